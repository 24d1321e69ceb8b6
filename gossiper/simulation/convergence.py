"""What must hold when faults have ended for a core of nodes: the same view everywhere, and a true one.

Random healing hides livelocks, so the rest of the cluster stays as broken as it is: crashed, paused, cut off both ways
or one way. The core has to agree all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
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
#: Rounds after the last of them within which everybody in the core knows what its owners had said by then, and holds
#: all of it alive; one round more per doubling beyond 100 nodes.
AGREE_ROUNDS_MAX: Final = 15
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
    about_core: bool = True
    """Whether it is about the core itself; what is about others may have to wait until they are known to be silent."""


def disagreement(core: list[Machine]) -> Disagreement | None:
    """Why the core does not agree, or None: its digests and values are equal and it holds itself alive."""
    processes: list[Process] = []
    for machine in core:
        if machine.process is None or not machine.process.gossips:
            return Disagreement("core_not_running", f"{machine.endpoint} does not run")
        processes.append(machine.process)
    unequal = _unequal(processes)
    if unequal is not None and unequal.about_core:
        return unequal
    return _not_alive(processes) or unequal


def marks(core: list[Machine]) -> dict[str, tuple[int, int]]:
    """How far the owners in the core are now: (generation, states_version) by endpoint."""
    running = [machine.process for machine in core if machine.process is not None and machine.process.joined]
    return {process.endpoint: (process.engine.generation, process.engine.local.states_version) for process in running}


def behind(core: list[Machine], wanted: dict[str, tuple[int, int]]) -> Disagreement | None:
    """Who in the core does not know the others as far as ``wanted`` says, or does not hold them alive; or None.

    Unlike :func:`disagreement` it does not mind news: values that expire are deleted by their owners at any time.
    """
    processes = [machine.process for machine in core if machine.process is not None and machine.process.joined]
    for process in processes:
        table = process.engine.state.table
        for endpoint, mark in wanted.items():
            row = table.row(endpoint)
            known = (0, 0) if row is None else (int(table.generation[row]), int(table.states_version[row]))
            if known < mark:
                return Disagreement("core_unknown", f"{process.endpoint} knows {known} of {endpoint}, not {mark}")
    return _not_alive(processes)


def _unequal(processes: list[Process]) -> Disagreement | None:
    """Differences between the first node and the others, those about the core before those about others."""
    core = {process.endpoint for process in processes}
    first = processes[0]
    about_others: Disagreement | None = None
    for process in processes[1:]:
        for endpoint, invariant in _differences(first, process):
            where = f"{endpoint}: not the same at {process.endpoint} and {first.endpoint}"
            found = Disagreement(invariant, where, about_core=endpoint in core)
            if found.about_core:
                return found
            about_others = about_others or found
    return about_others


def _differences(one: Process, other: Process) -> Iterator[tuple[str, str]]:
    """Endpoints of which two nodes do not hold the same, and which invariant that breaks."""
    first, second = one.engine.state.table, other.engine.state.table
    mine = {first.endpoint(row): row for row in first.rows().tolist() if first.generation[row]}
    theirs = {second.endpoint(row): row for row in second.rows().tolist() if second.generation[row]}
    for endpoint in sorted(mine.keys() ^ theirs.keys()):
        yield endpoint, "unequal_digests"
    for endpoint, a in mine.items():
        b = theirs.get(endpoint)
        if b is None:
            continue
        if first.generation[a] != second.generation[b] or first.states_version[a] != second.states_version[b]:
            yield endpoint, "unequal_digests"
            continue
        gone = max(int(first.gc_version[a]), int(second.gc_version[b]))
        if _kept(first.states[a], gone) != _kept(second.states[b], gone):
            yield endpoint, "unequal_values"


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
