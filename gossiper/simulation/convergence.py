"""What must hold when faults have ended for a core of nodes: the same view everywhere, and a true one.

Random healing hides livelocks, so the rest of the cluster stays as broken as it is: crashed, paused, cut off both ways
or one way. The core has to agree all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from gossiper.core.messages import VersionedValue
from gossiper.core.table import LivenessCode
from gossiper.simulation.cluster import Cluster
from gossiper.simulation.machine import Machine
from gossiper.simulation.process import Process

#: Rounds within which everybody in the core has joined: a shadow round may take 30 s, and a host id at two addresses is
#: watched for 10; somebody who is refused is put right and tried again.
JOIN_ROUNDS_MAX: Final = 90
#: Rounds after the last of them within which the core agrees on all states and holds all of itself alive: twice what
#: ``docs/simulation.md`` shows as measured, and one round more per doubling beyond 100 nodes.
AGREE_ROUNDS_MAX: Final = 30
#: Rounds within which nobody in the core holds a silent node alive: phi 8 at a mean of two seconds is 36.8 s, and the
#: last heartbeats of the dead still travel for as long as agreeing takes.
SILENT_ROUNDS_MAX: Final = 75
#: Rounds for which the core then has to stay as it is.
STAY_ROUNDS: Final = 10


def choose_core(cluster: Cluster, rng: Random) -> list[Machine]:
    """At least half of the machines, among them a seed: without one, who has a new address finds nobody."""
    machines = [machine for machine in cluster.machines if not machine.retired]
    seeds = [machine for machine in machines if machine.is_seed]
    seed = seeds[rng.randrange(len(seeds))]
    size = rng.randint(max(2, (len(machines) + 1) // 2), len(machines))
    others = [machine for machine in machines if machine is not seed]
    rng.shuffle(others)
    return sorted([seed, *others[: size - 1]], key=lambda machine: machine.index)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """What is not as it has to be yet; the first thing found."""

    invariant: str
    detail: str


def disagreement(core: list[Machine]) -> Disagreement | None:
    """Why the core does not agree, or None: its digests and values are equal and it holds itself alive."""
    processes: list[Process] = []
    for machine in core:
        if machine.process is None or not machine.process.gossips:
            return Disagreement("core_not_running", f"{machine.endpoint} does not run")
        processes.append(machine.process)
    return _unequal(processes) or _not_alive(processes)


def _unequal(processes: list[Process]) -> Disagreement | None:
    first = processes[0].engine.state.table
    reference = {first.endpoint(row): row for row in first.rows().tolist() if first.generation[row]}
    for process in processes[1:]:
        table = process.engine.state.table
        names = {table.endpoint(row): row for row in table.rows().tolist() if table.generation[row]}
        if names.keys() != reference.keys():
            odd = min(names.keys() ^ reference.keys())
            return Disagreement(
                "unequal_digests", f"{odd} is not known to both {processes[0].endpoint} and {process.endpoint}"
            )
        for endpoint, row in names.items():
            known = reference[endpoint]
            mine = int(table.generation[row]), int(table.states_version[row])
            other = int(first.generation[known]), int(first.states_version[known])
            if mine != other:
                return Disagreement(
                    "unequal_digests",
                    f"{endpoint}: {mine} at {process.endpoint}, {other} at {processes[0].endpoint}",
                )
            gone = max(int(table.gc_version[row]), int(first.gc_version[known]))
            if _kept(table.states[row], gone) != _kept(first.states[known], gone):
                return Disagreement(
                    "unequal_values", f"{endpoint}: not the same at {process.endpoint} and {processes[0].endpoint}"
                )
    return None


def _kept(states: dict[str, VersionedValue], gone: int) -> dict[str, VersionedValue]:
    """Without tombstones that the owner has dropped: who has them still may keep them."""
    if not any(value.deleted for value in states.values()):
        return states
    return {key: value for key, value in states.items() if not (value.deleted and value.version <= gone)}


def _not_alive(processes: list[Process]) -> Disagreement | None:
    for observer in processes:
        table = observer.engine.state.table
        for process in processes:
            row = table.row(process.endpoint)
            if row is None or int(table.generation[row]) != process.engine.generation:
                return Disagreement("core_unknown", f"{observer.endpoint} does not know {process.endpoint} as it is")
            liveness = LivenessCode(int(table.liveness[row]))
            if liveness is not LivenessCode.ALIVE:
                kind = "false_conviction" if liveness is LivenessCode.DOWN else "core_not_alive"
                return Disagreement(kind, f"{observer.endpoint} holds {process.endpoint} {liveness.name}")
    return None


def silent_but_alive(cluster: Cluster, core: list[Machine]) -> Disagreement | None:
    """Whom a core node holds alive although nothing runs there, or it is stopped for good; None if nobody."""
    silent = {endpoint for machine in cluster.machines for endpoint in machine.former_endpoints}
    silent |= {m.endpoint for m in cluster.machines if m.process is None or (m.process.paused and cluster.frozen(m))}
    for machine in core:
        if machine.process is None or not machine.process.joined:
            continue
        state = machine.process.engine.state
        for row in state.live_rows().tolist():
            endpoint = state.table.endpoint(row)
            if endpoint in silent:
                return Disagreement("silent_but_alive", f"{machine.endpoint} holds {endpoint} alive")
    return None
