"""Results of ``benchmarks.repair`` as text, and as the Markdown of ``docs/repair-measured.md``."""

from __future__ import annotations

from typing import Any, Final

from benchmarks.exchange_report import table

_COLUMNS: Final = (
    ("find_payload_bytes", "to find"),
    ("find_wire_bytes", "on the wire"),
    ("bound_bytes", "bound"),
    ("round_trips", "round trips"),
    ("milliseconds", "ms"),
    ("cpu_milliseconds", "CPU ms"),
    ("rows_moved", "moved"),
    ("rows_optimal", "optimal"),
    ("peak_megabytes", "peak MB"),
)

Json = dict[str, Any]


def as_text(result: Json) -> str:
    """Tables for people."""
    parts = []
    if "results" in result:
        parts.append(repairs(result))
    parts += [_flat(name, result[name]) for name in ("upkeep", "cold_build", "write_latency") if name in result]
    parts.append(", ".join(f"{key} {value}" for key, value in result["environment"].items()))
    return "\n\n".join(parts)


def repairs(result: Json) -> str:
    """One line for each case."""
    rows = []
    for one in result["results"]:
        shown = one | {
            "milliseconds": 1000 * one["seconds"],
            "cpu_milliseconds": 1000 * one["cpu_seconds"],
            "peak_megabytes": one["peak_memory_bytes"] / 1e6,
        }
        name = f"{one['differences']:,} {one['kind']}, {one['value_bytes']} B, {one['strategy']}"
        rows.append([name, *(shown[column] for column, _ in _COLUMNS)])
    head = f"{result['rows']:,} rows, {result['replicas']} replicas"
    return table([head, *(title for _, title in _COLUMNS)], rows)


def composition(result: Json) -> str:
    """What the bytes of the wire are, and how far the search is from the bound."""
    rows = []
    for one in result["results"]:
        wire = one["wire"]
        methods = ("Compare", "Locate", "Fetch", "Push", "SendRows")
        by_method = [one["parts"].get(method, {}).get("find_bytes", 0) for method in methods]
        bound = one["bound_bytes"]
        framing = 5 * wire["messages"] + 9 * wire["frames"]
        rows.append(
            [
                f"{one['differences']:,} {one['kind']}, {one['value_bytes']} B",
                *by_method,
                one["find_payload_bytes"] - sum(by_method),
                f"{one['find_payload_bytes'] / bound:.2f}" if bound else "-",
                framing,
                wire["header_bytes"],
                wire["control_bytes"],
            ]
        )
    head = ["bytes", "Compare", "Locate", "Fetch", "Push", "SendRows", "between others", "times bound"]
    return table([*head, "frames", "headers", "HTTP/2 control"], rows)


def latency(found: Json) -> str:
    """p99 of single durable puts without and with a repair."""
    phases = ("quiet", "repair", "repair_backing_off")
    rows = [
        [f"replica {number + 1}, {phase.replace('_', ' ')}", *(one[phase][key] for key in _LATENCY_COLUMNS)]
        for number, one in enumerate(found["replicas"])
        for phase in phases
    ]
    for row, (one, phase) in zip(rows, [(one, phase) for one in found["replicas"] for phase in phases], strict=True):
        ratio, low, high = one.get(f"p99_ratio_{phase}", (1.0, 1.0, 1.0))
        row.append("1" if phase == "quiet" else f"{ratio:.2f} ({low:.2f} to {high:.2f})")
    head = f"{found['writes_per_second']:.0f} puts per second and replica"
    return table([head, *(name.replace("_", " ") for name in _LATENCY_COLUMNS), "p99 / quiet"], rows)


_LATENCY_COLUMNS: Final = ("writes", "p50_ms", "p90_ms", "p99_ms")


def document(parts: Json) -> str:
    """The Markdown; ``parts`` by name: two, three, strategies, equal, local."""
    local, environment = parts["local"], parts["two"]["environment"]
    upkeep = local["upkeep"]
    folds, writes = upkeep["fold_microseconds_per_row"], upkeep["upkeep_microseconds_per_row"]
    return _TEMPLATE.format(
        environment=", ".join(f"{key} {value}" for key, value in environment.items()),
        two=repairs(parts["two"]),
        composition=composition(parts["two"]),
        strategies=repairs(parts["strategies"]),
        three=repairs(parts["three"]),
        equal=table(
            ["rows, all equal", "bytes", "on the wire", "round trips", "ms"],
            [
                [
                    f"{one['rows']:,}",
                    *(one["results"][0][key] for key in ("find_payload_bytes", "find_wire_bytes", "round_trips")),
                    1000 * one["results"][0]["seconds"],
                ]
                for one in parts["equal"]
            ],
        ),
        folds=table(["index alone, us per row", ""], [[name.replace("_", " "), us] for name, us in folds.items()]),
        writes=", ".join(f"{name} {us:g} us" for name, us in writes.items()),
        cold=table(
            ["index from a store that has none", "rows", "seconds", "rows per second"],
            [
                [f"values of {one['value_bytes']} B", one["rows"], one["seconds"], one["rows_per_second"]]
                for one in local["cold_build"]
            ],
        ),
        latency=latency(local["write_latency"]),
    )


def _flat(name: str, found: Any, indent: str = "") -> str:
    """Nested numbers as an indented list."""
    if isinstance(found, list) and found and isinstance(found[0], dict):
        return "\n".join(_flat(f"{name} {at + 1}", one, indent) for at, one in enumerate(found))
    if isinstance(found, dict):
        inner = "\n".join(_flat(key, value, indent + "  ") for key, value in found.items())
        return f"{indent}{name.replace('_', ' ')}:\n{inner}"
    return f"{indent}{name.replace('_', ' ')}: {found}"


_TEMPLATE: Final = """# Repair, measured

Written by `python -m benchmarks.repair --report docs/repair-measured.md`:
{environment}.

Replicas are processes on loopback with LMDB stores and default settings. `to find` is all that travels but keys and
values of rows, the final check included; the library's own count and that of a relay which takes HTTP/2 apart are the
same in every line, or the run fails. `on the wire` is what TCP carries both ways, less keys and values. `bound` is
d (b - log2 d + 1.44) bits for d items of b = 128 bits (token and version); a row that is updated or deleted is two
items. `optimal` was counted when the difference was made; `CPU` is of all replicas; `peak` is the largest replica's
resident memory, of which the mapped store is most. In the end the rows of all stores are hashed and compared. Each half
of the differences is at one side.

## Two replicas

{two}

What that is, by request; the wire's own on the right:

{composition}

## Each way of finding

{strategies}

## Three replicas

Every second winning row is held by two of them. All pairs count.

{three}

## Nothing differs

{equal}

## Beside repairs

{folds}

Felt by writes (CPU of all threads with an index, less without): {writes}.

{cold}

Single durable puts while a repair of 2,000 rows runs; both replicas write, on the same disk. `backing off`: the repair
is told what the puts take, and goes slower when that rises. In brackets: what nine of ten drawings of rounds give.

{latency}
"""
