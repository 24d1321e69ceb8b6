"""The result of a run as a table, as ``docs/benchmarks.md`` and as a plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from benchmarks.peers.harness import ROOT

DOCUMENT: Final = ROOT / "docs" / "benchmarks.md"
PLOT: Final = ROOT / "docs" / "benchmarks.svg"
#: What the main form of a peer is called; its variants name themselves.
MAIN_FORMS: Final = {"cassandra": "", "chitchat": "v1, zstd", "memberlist": "push/pull, raw"}

Json = dict[str, Any]

#: Messages in the order in which they travel.
ORDER: Final = ("syn", "syn_ack", "ack", "ack2", "push", "pull")

_COLORS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#000000")
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP, _BOTTOM = 330, 240, 76, 36, 90, 46


def title(line: Json) -> str:
    """A line's library and form."""
    return f"{line['peer']} ({line['form']})" if line["form"] else str(line["peer"])


def rows(result: Json) -> list[list[str]]:
    """Cells of the table, the head first."""
    made = [["endpoints", "library", "version", "bytes of each message", "bytes", "per endpoint", "CPU us", "spread"]]
    for line in sorted(result["lines"], key=lambda one: one["endpoints"]):
        messages = " + ".join(f"{line['messages'][name]['bytes']:,}" for name in ORDER if name in line["messages"])
        spread = f"{line['cpu_microseconds_least']:,.0f} to {line['cpu_microseconds_most']:,.0f}"
        made.append(
            [
                f"{line['endpoints']:,}",
                title(line),
                line["version"],
                messages,
                f"{line['total_bytes']:,}",
                f"{line['total_bytes'] / line['endpoints']:.1f}",
                f"{line['total_cpu_microseconds']:,.0f}",
                spread,
            ]
        )
    return made


def table(result: Json) -> str:
    """For a terminal."""
    cells = rows(result)
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    left = {1, 2}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def write(result: Json) -> None:
    """``docs/benchmarks.md`` and its plot."""
    DOCUMENT.write_text(document(result))
    PLOT.write_text(plot(result["lines"]))


def document(result: Json) -> str:
    """The whole text."""
    head, *body = rows(result)
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---:", "---", "---", *["---:"] * 5], *body]]
    machine = result["machine"]
    skipped = [f"- {name}: {reason}" for name, reason in result["skipped"].items()]
    states = [
        f"| {int(size):,} | {state['model']} | {state['views_differ_by_ticks']['equal']:.0%} "
        f"| {state['views_differ_by_ticks']['mean']} | {state['views_differ_by_ticks']['max']} |"
        for size, state in result["states"].items()
    ]
    return _TEXT.format(
        table="\n".join(lines),
        states="\n".join(states),
        machine=f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}",
        date=machine["date"],
        runs=result["runs"],
        vectors=result["vectors"],
        cassandra=_warm_up(result["lines"]),
        skipped="\n".join(["", "Skipped in this run:", "", *skipped, ""]) if skipped else "",
    )


def _warm_up(lines: Sequence[Json]) -> str:
    cold = [
        f"{line['warm_up']['first_exchange_cpu_microseconds'] / 1000:,.0f} ms at {line['endpoints']:,} endpoints"
        for line in lines
        if line["peer"] == "cassandra"
    ]
    return f"The first exchange of a cold JVM took {', '.join(cold)}." if cold else ""


# ------------------------------------------------------------------------------------------------------------- plot


def plot(lines: Sequence[Json]) -> str:
    """Bytes and CPU of a whole exchange over the number of endpoints, both axes logarithmic, as SVG."""
    names = list(dict.fromkeys(title(line) for line in lines))
    legend = _TOP + _HEIGHT + _BOTTOM
    width, height = _LEFT + 2 * _WIDTH + _GAP + 20, legend + 18 * ((len(names) + 2) // 3) + 10
    panels = [
        _panel(lines, names, _LEFT, "bytes of a whole exchange", lambda line: float(line["total_bytes"])),
        _panel(
            lines,
            names,
            _LEFT + _WIDTH + _GAP,
            "CPU of both sides, microseconds",
            lambda line: float(line["total_cpu_microseconds"]),
        ),
    ]
    keys = []
    for at, name in enumerate(names):
        x, y = _LEFT + (at % 3) * 250, legend + 18 * (at // 3)
        keys.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{_COLORS[at % len(_COLORS)]}"/>')
        keys.append(f'<text x="{x + 10}" y="{y + 4}">{name}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
            '<g font-family="sans-serif" font-size="12" fill="#222">',
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            *panels,
            *keys,
            "</g>",
            "</svg>\n",
        ]
    )


def _panel(lines: Sequence[Json], names: list[str], left: float, heading: str, value: Callable[[Json], float]) -> str:
    sizes = sorted({line["endpoints"] for line in lines})
    values = [value(line) for line in lines]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    x_low, x_span = math.log10(sizes[0]), max(1e-9, math.log10(sizes[-1]) - math.log10(sizes[0]))

    def x(size: float) -> float:
        return round(left + _WIDTH * (math.log10(size) - x_low) / x_span, 1)

    def y(number: float) -> float:
        return round(_TOP + _HEIGHT * (high - math.log10(number)) / (high - low), 1)

    parts = [f'<text x="{left}" y="{_TOP - 14}" font-weight="bold">{heading}</text>']
    for power in range(low, high + 1):
        parts.append(f'<path d="M{left} {y(10**power)}h{_WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(10**power) + 4}" text-anchor="end">{10**power:,}</text>')
    parts += [f'<text x="{x(size)}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">{size:,}</text>' for size in sizes]
    for at, name in enumerate(names):
        color = _COLORS[at % len(_COLORS)]
        points = sorted((line["endpoints"], value(line)) for line in lines if title(line) == name)
        joined = " ".join(f"{x(size)},{y(number)}" for size, number in points)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(size)}" cy="{y(number)}" r="3" fill="{color}"/>' for size, number in points]
    return "\n".join(parts)


_TEXT: Final = """\
# Benchmarks beside the peers

This file is written by `make bench-peers`; edit `benchmarks/peers/report.py` instead. One whole exchange between two
nodes of a steady cluster, on the same state for everybody, in one run.

{table}

![Bytes and CPU of a whole exchange](benchmarks.svg)

Measured on {machine}, {date}.
CPU is the median of all repeats of {runs} runs of each program, warm; the spread is the least and the greatest of them.
{cassandra}
{skipped}
## What is compared

- **Bytes** are those of the messages themselves, without the framing of a transport: protobuf before compression here,
  the payload of Cassandra's serializers, chitchat's datagrams, memberlist's stream.
- **CPU** is that of both sides together, without transport: making a message, encoding, decoding, examining, applying.
  For Cassandra and here it is the time of the one thread that does it; the JIT compiler and the garbage collector of
  the JVM have their own threads and are not counted. chitchat's includes its scheduler (tokio); what plain datagrams
  of the same sizes cost is measured and subtracted. memberlist's is that of the whole process with one processor.
- **gossiper (compact)** is what nodes of this library speak with each other ([digests.md](digests.md)): names and
  generations under one hash, heartbeats as columns of bits. It is not compressed any further.
- **gossiper (plain)** is this library's form that any protobuf client can speak. Endpoints travel as text.
- **cassandra**: its serializers, `makeGossipDigest`, `examineGossiper`, `getStateForVersionBiggerThan`,
  `notifyFailureDetector` and `applyStateLocally`, called in the order of its verb handlers by a few lines of ours. A
  message header of about 13 bytes and a frame come on top. Cassandra has no key for CAPABILITIES, which is left out.
- **chitchat**: two of its own servers over loopback, in its wire format V0 (the one without compression; a digest has
  to fit a datagram of 65,507 bytes, so it ends at about 1,300 endpoints) and V1 (digests compressed with zstd). The SYN
  carries no wish, so the whole digest goes both ways.
- **memberlist** has no digest exchange. It is a full push/pull of everything, which it does once in 180 s at 1,000
  nodes; in between, changes travel in packets, which are not shown. The values are its nodes' meta. `compressed` (LZW)
  is its default. Heartbeats do not exist in it, so it is another design rather than a slower one.

## The state

`python -m benchmarks.cluster_states --endpoints N` makes it: what two nodes of a simulated cluster know just before
one begins an exchange with the other. Everybody has published eight values at its start and LOAD later; both know them
all, and differ in heartbeats only. Up to 300 endpoints it is the whole simulation; above, only the rounds of a cluster
that has met are run, with the same choice of partners (`--compare` shows that both give the same lags). Ages of up to
30 days are added, since the numbers of a young cluster are shorter.

| endpoints | model | heartbeats known equally | mean difference in ticks | greatest |
| ---: | --- | ---: | ---: | ---: |
{states}

One JSON object: `format`, `model`, `seed`, `cluster_name`, `endpoints`, `as_of_ms` (wall clock of `a`), and `a` and `b`
with `endpoint` and `view`. A view is a list, sorted by endpoint, of `endpoint`, `generation` (epoch seconds),
`interval_ms`, `heartbeat` (ticks), `states_version` and `values`, a list of `key`, `version` (tick * 16 + counter) and
`value`.

## Held to Cassandra's behaviour

The same run asks Cassandra's `ArrivalWindow` and `Gossiper.examineGossiper` and compares with
`tests/data/cassandra`: {vectors}.
`tests/test_cassandra_vectors.py` holds this library to those files without a JVM:
the same heartbeats give the same phi, and of the same pairs of states the same is requested and sent. On purpose it is
otherwise where

- only a heartbeat is newer at the sender: it is in the digest already, so it is taken from there and not requested;
- an endpoint is missing in the digests: it is sent at once, not after the next SYN the other way;
- a generation is more than a day ahead of the local clock: it is not requested.

## Running it

`make bench-peers` wants `java` and `mvn`, `cargo`, `go`; what is missing is skipped with one line. The versions of the
peers are pinned in `benchmarks/peers/*/`. Lock files and everything built stay out of the repository.
`python -m benchmarks.peers.run --endpoints 10,100,1000 --json` prints all numbers; with `--merkle ROWS` instead, what
it takes to find differing rows: Cassandra's MerkleTree at depths 15 and 18, negentropy, a rateless sketch, and here.
Another form of this library's exchange is one more entry in `FORMS` of `benchmarks/peers/ours.py`.
"""
