"""What many seeds gave together, as one object and as lines for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

#: Raised when a key of the JSON object is renamed or removed, or changes its meaning; additions leave it.
SCHEMA_VERSION: Final = 1


def summary(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One JSON object over results of seeds (``SeedResult.to_json``), in order of seeds.

    ``violations`` is a number; ``findings`` has them whole. ``agree_rounds_max`` is the greatest number of rounds that
    any core needed to agree.
    """
    ordered = sorted(results, key=lambda result: (result["pair"] or "", result["seed"]))
    faults: Counter[str] = Counter()
    counters: Counter[str] = Counter()
    for result in ordered:
        faults.update(result["faults"])
        counters.update(result["counters"])
    findings = [result["violation"] for result in ordered if result["violation"]]
    agree = [result["agree_rounds"] for result in ordered if result["agree_rounds"] is not None]
    silent = [result["silent_rounds"] for result in ordered if result["silent_rounds"] is not None]
    return {
        "schema_version": SCHEMA_VERSION,
        "seeds": len(ordered),
        "node_hours": round(sum(result["node_hours"] for result in ordered), 3),
        "virtual_seconds": round(sum(result["virtual_seconds"] for result in ordered), 3),
        "messages": sum(result["messages"] for result in ordered),
        "message_bytes": sum(result["message_bytes"] for result in ordered),
        "faults": dict(sorted(faults.items())),
        "counters": dict(sorted(counters.items())),
        "agree_rounds_max": max(agree, default=None),
        "silent_rounds_max": max(silent, default=None),
        "violations": len(findings),
        "findings": findings,
    }


def violation_lines(finding: Mapping[str, Any]) -> list[str]:
    """One violation for a person: what, when, the options, the last events, and the command that replays it."""
    swarm = finding["options"]["swarm"]
    at = f"after {finding['at_seconds']:.3f} s"
    return [
        f"seed {finding['seed']} breaks {finding['invariant']} {at}: {finding['detail']}",
        "options: " + ", ".join(f"{key}={_number(value)}" for key, value in swarm.items()),
        f"last {len(finding['trace'])} events:",
        *(f"  {line}" for line in finding["trace"]),
        f"replay: {finding['command']}",
    ]


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """The whole for a person."""
    faults = ", ".join(f"{count:,} {kind}" for kind, count in report["faults"].items()) or "none"
    return [
        f"seeds       {report['seeds']:,}",
        f"node-hours  {report['node_hours']:,.1f}",
        f"messages    {report['messages']:,}",
        f"faults      {faults}",
        f"converged   within {report['agree_rounds_max']} rounds, silent ones within {report['silent_rounds_max']}",
        f"violations  {report['violations']}",
    ]


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
