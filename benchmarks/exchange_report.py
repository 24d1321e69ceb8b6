"""Results of ``benchmarks.digest_exchange`` as text and as the Markdown of ``docs/digests-measured.md``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

from benchmarks import exchange_cases, exchange_compression, exchange_steady, partner_sets
from benchmarks.exchange_parts import FORMS, LEGS

_STEADY_SIZES: Final = (10, 100, 1000, 10_000)
#: Endpoints, and virtual seconds.
_CASE_SIZES: Final = ((100, 90.0), (300, 45.0))
_PARTNER_SIZES: Final = (100, 300, 1000)
_BYTES: Final = ("protobuf_bytes", "compressed_bytes", "wire_bytes", "wire_bytes_cold", "cpu_microseconds")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table that is readable as it is, too; numbers to the right."""
    cells = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        first = row[0].ljust(widths[0])
        return "| " + " | ".join([first, *(text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True))]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def as_text(result: dict[str, Any]) -> str:
    """One result as a few lines."""
    case = result["case"]
    if case == "steady":
        return _steady(result)
    if case == "compression":
        return ", ".join(f"{key} {value}" for key, value in result.items() if key != "case")
    if case == "partners":
        return f"partners, {result['endpoints']} endpoints\n{_partners([result])}"
    return f"{case}, {result['endpoints']} endpoints\n{_cases([result])}\n{_kinds([result])}"


def _steady(result: dict[str, Any]) -> str:
    rows = []
    for form in FORMS:
        for leg in (*LEGS, "total"):
            found = result["forms"][form][leg]
            rows.append([f"{form} {leg}", *(found[key] for key in _BYTES)])
    head = [f"{result['endpoints']:,} endpoints", "protobuf", "compressed", "wire", "wire, cold", "CPU, us"]
    text = table(head, rows)
    if "profile" in result:
        shares = [(name, f"{100 * share:.1f} %") for name, share in result["profile"]]
        text += "\n\n" + table(["function", "own time"], shares)
    return f"{text}\n\n{_floor(result)}"


def _floor(result: dict[str, Any]) -> str:
    entropy, parts = result["entropy"], result["composition_bytes"]
    rest = ", ".join(f"{name.replace('_', ' ')} {size:g}" for name, size in parts.items() if "column" not in name)
    return (
        f"Entropy of the columns: SYN {entropy['syn_bytes']:g} bytes ({entropy['syn_bits_per_endpoint']:g} bits per "
        f"endpoint), ACK {entropy['ack_bytes']:g} ({entropy['ack_given_syn_bytes']:g} given the SYN); sent for them: "
        f"{parts['syn_column']:g} and {parts['ack_column']:g}. The rest: {rest}. States: {result['states']}."
    )


def _cases(results: list[dict[str, Any]]) -> str:
    rows = []
    for result in results:
        for form in FORMS:
            found = result["forms"][form]
            sizes = [found[key] for key in ("mean", "median", "p99", "max", "compressed_mean")]
            rows.append([f"{result['case']}, {result['endpoints']}, {form}", *sizes])
    return table(["bytes per exchange", "mean", "median", "p99", "max", "mean compressed"], rows)


def _kinds(results: list[dict[str, Any]]) -> str:
    rows = []
    for result in results:
        kinds = ", ".join(f"{kind} {100 * share:.2f} %" for kind, share in result["kinds"].items())
        beyond = result["exceeding"]
        rows.append(
            [
                f"{result['case']}, {result['endpoints']}",
                f"{result['mean_ratio']:.3f}",
                kinds,
                f"{100 * beyond['share']:.2f} %",
                f"{beyond['bytes_max']:,}",
                f"{beyond['ratio_max']:g}",
            ]
        )
    return table(["case", "compact / plain", "exchanges by kind", "above plain", "by at most, bytes", "times"], rows)


def _partners(results: list[dict[str, Any]]) -> str:
    rows = []
    for result in results:
        for name in ("all", "partners"):
            found = result[name]
            cores = found.get("spreading_seconds_whole_core", {})
            model = found["spreading_seconds_model"]
            rows.append(
                [
                    f"{result['endpoints']:,}, {name}",
                    f"{100 * found['connections']['cold_share']:.1f} %",
                    found["connections"]["open_mean"],
                    found["wire_bytes"],
                    found["cpu_microseconds"],
                    f"{model['median']:.2f} / {model['max']:.2f}",
                    f"{cores['median']:.2f} / {cores['max']:.2f}" if cores else "-",
                ]
            )
    head = [
        "live peers, drawn from",
        "new connection",
        "open",
        "wire bytes",
        "CPU, us",
        "all know, model",
        "whole cores",
    ]
    return table(head, rows)


def _compression(results: list[dict[str, Any]]) -> str:
    keys = ("protobuf_bytes", "gzip_bytes", "deflate_bytes", "gzip_microseconds", "gunzip_microseconds", "sent_as")
    rows = [[f"{row['message']}, {row['endpoints']:,}", *(row[key] for key in keys)] for row in results]
    return table(["message, endpoints", "none", "gzip", "deflate", "gzip, us", "gunzip, us", "sent as"], rows)


def report(environment: dict[str, Any]) -> str:
    """Measure everything and write it down; takes some minutes of CPU."""
    steady = [exchange_steady.measure(size) for size in _STEADY_SIZES]
    cases = [exchange_cases.measure(case, *size) for size in _CASE_SIZES for case in exchange_cases.CASES]
    partners = [partner_sets.measure(size) for size in _PARTNER_SIZES]
    thousand = next(result for result in steady if result["endpoints"] == 1000)
    steps = thousand["forms"]
    profile = exchange_steady.profile(1000, "compact", lines=15)
    scale = _scale()
    large, whole = scale["exchange"], scale["cluster"]
    return _TEMPLATE.format(
        environment=", ".join(f"{key} {value}" for key, value in environment.items()),
        steady="\n\n".join(map(_steady, steady)),
        steps=table(
            ["step at 1,000 endpoints, us", *FORMS],
            [
                [step.replace("_", " "), *(steps[form]["steps_microseconds"][step] for form in FORMS)]
                for step in steps["compact"]["steps_microseconds"]
            ],
        ),
        profile=table(["function", "own time"], [(name, f"{100 * share:.1f} %") for name, share in profile]),
        cases=_cases(cases),
        kinds=_kinds(cases),
        compression=_compression(exchange_compression.measure()),
        partners=_partners(partners),
        cold=partners[-1]["exchange"]["cold_bytes"],
        warm=partners[-1]["exchange"]["warm_bytes"],
        cold_us=partners[-1]["exchange"]["cold_microseconds"],
        warm_us=partners[-1]["exchange"]["warm_microseconds"],
        whole=table(
            ["1,000 whole cores in virtual time", ""], [[k.replace("_", " "), _plain(v)] for k, v in whole.items()]
        ),
        rows_mb=large["memory_bytes_per_node"] / 1e6,
        table_mb=large["table_bytes"] / 1e6,
    )


def _scale() -> dict[str, Any]:
    """In a process of its own: what one held before would be counted as free."""
    command = [sys.executable, "-m", "benchmarks.large_cluster", "--nodes", "1000", "--seconds", "5", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {count:,}" for key, count in value.items())
    return f"{value:,}"


_TEMPLATE: Final = """# Digests, measured

Written by `python -m benchmarks.digest_exchange --report docs/digests-measured.md`: {environment}. Sizes are exact,
times are of that machine. CPU is process time of both sides together, without transport and compression: of the
exchange that took least among many, both forms in turns.

## The steady state

`protobuf` is what the codec gives. `compressed` is what gzip leaves of each message, or the message itself where that
is shorter (as gRPC does it). `wire` is what TCP carries in both directions for one exchange on a warm connection of
the project's transport: HTTP/2 frames, headers, window updates and pings included, and with the transport's own
choice of what to compress. `cold` is the first exchange of a new connection.

{steady}

Where the time goes:

{steps}

Functions of the compact exchange, by their own time under a profiler, which makes calls look dearer than they are:

{profile}

## While the cluster changes

Whole cores in virtual time, nothing lost, 90 virtual seconds at 100 nodes and 45 at 300: a tenth more nodes join within
two thirds of that; a node restarts every 4 s; every node changes one application state per minute. Every exchange
(every fourth at 300 nodes) is weighed twice between the same two states: as it was sent, further SYNs and ACK2s
included, and as the plain form would have been.

{cases}

Exchanges by kind, as `gossiper_exchanges_total` counts them; two kinds in a row: the second followed the first within
the same exchange. A node that begins does not know yet what others speak, so its first SYNs are plain. `above plain`:
exchanges that cost more than the plain form would have there.

{kinds}

## Compression

One rule follows from this (`gossiper/transport/compression.py`): gzip for messages with 512 bytes of text and more;
columns are never compressed. deflate saves the same and takes as long.

{compression}

A receiver is safe: gRPC holds the limit of 4 MiB against what arrives and against what it is unpacked to. A message of
512 MiB in 0.5 MiB of gzip was refused with RESOURCE_EXHAUSTED; the peak of the server's memory was 38 MB, against 37
MB with a message of 1 MiB (tried once by hand, grpcio 1.85).

## Partners

An exchange costs {warm:,.0f} bytes and {warm_us:,.0f} us of CPU (both transports and the relay included) on a
connection that is there, and {cold:,.0f} bytes and {cold_us:,.0f} us on a new one; with TLS the difference is a
handshake more. Peers drawn from all live ones against peers drawn from 32 partners, one of them exchanged every 60
rounds; a server closes what is idle for 120 s. `open`: connections begun by a node that are open. `all know`: seconds
until one change is known by everybody, by digests alone, median / greatest.

{partners}

News takes as long in both, so partners are the default (`GossipConfig.partners`, 0 switches them off).

## Scale

{whole}

The cluster begins settled: every engine is given the states of all others as alive. The values are shared in the
process, tables and windows are not. A node that knows 10,000 endpoints and has met few takes {rows_mb:.1f} MB with
names and values, {table_mb:.1f} MB of it columns and arrival windows.
"""
