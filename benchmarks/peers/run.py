"""The digest exchange of Cassandra, chitchat, memberlist and this library on the same simulated state, in one run.

Usage: ``python -m benchmarks.peers.run [--endpoints 10,100,1000] [--runs N] [--json] [--no-docs] | --merkle ROWS``.
Builds each harness (a missing tool or package skips that peer with one line), runs each several times, compares
Cassandra's answers with the committed vectors, prints a table or JSON, and writes ``docs/benchmarks.md`` and its plot.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.cluster_states import lag_quantiles, state_file
from benchmarks.peers import ours, report, rows, vectors
from benchmarks.peers.harness import CASSANDRA, CHITCHAT, MEMBERLIST, Peer, PeerUnavailableError

ENDPOINTS: Final = (10, 100, 1000)
RUNS: Final = 2
PEERS: Final = (CASSANDRA, CHITCHAT, MEMBERLIST)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: one library in one form at one size."""

    peer: str
    version: str
    form: str
    endpoints: int
    messages: Json
    total_bytes: int
    total_cpu_microseconds: float
    """Median over all repeats of all runs."""
    cpu_microseconds_least: float
    cpu_microseconds_most: float
    warm_up: Json
    notes: list[str]


def measure_peer(peer: Peer, state: Path, runs: int) -> list[Line]:
    """All forms of one peer at one size.

    Raises:
        PeerUnavailableError: the harness fails.
    """
    prefix = ["exchange"] if peer is CASSANDRA else []
    return lines([peer.answer(*prefix, str(state)) for _ in range(runs)])


def measure_ours(state: Json, runs: int) -> list[Line]:
    """All forms of this library at one size."""
    return [line for form in ours.FORMS for line in lines([ours.measure(state, form) for _ in range(runs)])]


def lines(answers: list[Json]) -> list[Line]:
    """What several runs of one harness said, put together: its main form first, then its variants."""
    first = answers[0]
    forms = [(first.get("form", report.MAIN_FORMS.get(first["peer"], "")), answers)]
    forms += [(name, [answer["variants"][name] for answer in answers]) for name in first.get("variants", {})]
    made = []
    for form, several in forms:
        if "fails" in several[0]:
            continue
        repeats = [one for answer in several for one in answer["repeats_cpu_microseconds"]]
        made.append(
            Line(
                peer=first["peer"],
                version=first["version"],
                form=form,
                endpoints=first["endpoints"],
                messages={
                    name: {**message, "cpu_microseconds": median(_cpu(answer, name) for answer in several)}
                    for name, message in several[0]["messages"].items()
                },
                total_bytes=several[0]["total_bytes"],
                total_cpu_microseconds=median(repeats),
                cpu_microseconds_least=min(repeats),
                cpu_microseconds_most=max(repeats),
                warm_up=first["warm_up"],
                notes=first["notes"],
            )
        )
    return made


def _cpu(answer: Json, message: str) -> float:
    return float(answer["messages"][message]["cpu_microseconds"])


def machine() -> Json:
    """What it ran on, without names of hosts."""
    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def compare_vectors() -> str:
    """One line that says whether Cassandra still answers as the committed vectors say."""
    differing = vectors.differences(vectors.ask_cassandra(vectors.inputs()))
    return f"differ from Cassandra: {', '.join(differing)}" if differing else "as Cassandra answers"


def run(endpoints: list[int], runs: int) -> Json:
    """Everything: the built peers, all lines, the lags of the states, the vectors."""
    built, skipped = [], {}
    for peer in PEERS:
        say(f"building {peer.name}")
        try:
            peer.make()
            built.append(peer)
        except PeerUnavailableError as error:
            skipped[peer.name] = str(error)
    measured: list[Line] = []
    states = {}
    for size in endpoints:
        say(f"state of {size} endpoints")
        path = state_file(size)
        state = json.loads(path.read_text())
        states[str(size)] = {"model": state["model"], "views_differ_by_ticks": lag_quantiles(state)}
        say(f"measuring at {size} endpoints")
        measured += measure_ours(state, runs)
        for peer in list(built):
            try:
                measured += measure_peer(peer, path, runs)
            except PeerUnavailableError as error:
                built.remove(peer)
                skipped[peer.name] = f"at {size} endpoints: {error}"
    checked = "not compared: Cassandra was skipped"
    if CASSANDRA in built:
        say("comparing vectors")
        checked = compare_vectors()
    return {
        "machine": machine(),
        "runs": runs,
        "states": states,
        "lines": [asdict(line) for line in measured],
        "skipped": skipped,
        "vectors": checked,
    }


def merkle(count: int, *, as_json: bool) -> int:
    """Print what it takes to find the rows that differ: Cassandra's MerkleTree, set reconciliation, and here."""
    result = rows.run(count) | {"machine": machine()}
    print(json.dumps(result) if as_json else rows.as_text(result))
    return 0


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Entry point; the exit status is 1 when the vectors differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", default=",".join(map(str, ENDPOINTS)), help="sizes, with commas between them")
    parser.add_argument("--runs", type=int, default=RUNS, help="times that each harness is started")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/ as it is")
    parser.add_argument("--merkle", metavar="ROWS", type=int, help="finding differing rows among so many instead")
    options = parser.parse_args()
    if options.merkle is not None:
        return merkle(options.merkle, as_json=options.json)
    result = run([int(size) for size in options.endpoints.split(",")], options.runs)
    print(json.dumps(result) if options.json else report.table(result))
    for name, reason in result["skipped"].items():
        say(f"{name}: skipped, {reason}")
    say(f"vectors: {result['vectors']}")
    if not options.no_docs:
        report.write(result)
    return 1 if result["vectors"].startswith("differ") else 0


if __name__ == "__main__":
    sys.exit(main())
