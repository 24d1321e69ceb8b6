"""Results of ``benchmarks.repair`` as text."""

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


def _flat(name: str, found: Any, indent: str = "") -> str:
    """Nested numbers as an indented list."""
    if isinstance(found, list) and found and isinstance(found[0], dict):
        return "\n".join(_flat(f"{name} {at + 1}", one, indent) for at, one in enumerate(found))
    if isinstance(found, dict):
        inner = "\n".join(_flat(key, value, indent + "  ") for key, value in found.items())
        return f"{indent}{name.replace('_', ' ')}:\n{inner}"
    return f"{indent}{name.replace('_', ' ')}: {found}"
