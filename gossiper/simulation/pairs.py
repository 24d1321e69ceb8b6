"""Membership bugs come in pairs: every operation on a node while every fault is there.

25 pairs: {join, leave, replace, restart at the same address, restart with the clock behind} x {partition, one-way
partition, pause, kill, 30 % loss}. One operation or fault is one function and one entry in its table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Final, NamedTuple

from gossiper.simulation import operations
from gossiper.simulation.cluster import Cluster
from gossiper.simulation.faults import cut_for, cut_links, sides
from gossiper.simulation.machine import Machine

Begin = Callable[[Cluster, Machine, Random, float], None]
"""Begin an operation or a fault with one machine in its middle; a fault lasts for so many seconds."""

#: When the fault begins, after everybody has met everybody.
FAULT_AT_SECONDS: Final = 12.0
FAULT_SECONDS_MIN: Final = 5.0
FAULT_SECONDS_MAX: Final = 40.0
#: The operation comes so long before or after the beginning of the fault.
OPERATION_BEFORE_SECONDS: Final = 2.0
OPERATION_AFTER_SECONDS: Final = 10.0
LOSS: Final = 0.3


# -- operations ------------------------------------------------------------------------------------------------------


def join(cluster: Cluster, machine: Machine, _rng: Random, _seconds: float) -> None:
    """A machine that nobody has heard of starts."""
    cluster.start(machine)


def restart(cluster: Cluster, machine: Machine, rng: Random, _seconds: float) -> None:
    """Down, with or without a word, and up again at the same address after a moment or after half a minute."""
    _down(cluster, machine, rng)
    cluster.loop.after(_down_seconds(rng), _up, cluster, machine)


def restart_clock_behind(cluster: Cluster, machine: Machine, rng: Random, _seconds: float) -> None:
    """The same, and meanwhile the clock went back by up to an hour; every third time the identity file is lost."""
    _down(cluster, machine, rng)
    machine.clock.jump(cluster.loop.now, -rng.uniform(60.0, 3600.0))
    if rng.random() < 1 / 3:
        cluster.loop.after(2.5, machine.disk.lose)
        cluster.faults["file_lost"] += 1
    cluster.loop.after(_down_seconds(rng), _up, cluster, machine)


def leave(_cluster: Cluster, machine: Machine, _rng: Random, _seconds: float) -> None:
    """It leaves for good."""
    if machine.process is not None:
        machine.retired = True
        machine.process.leave()


def replace(cluster: Cluster, machine: Machine, rng: Random, _seconds: float) -> None:
    """It dies for good; another one takes its place, at its address with an empty disk or elsewhere."""
    cluster.kill(machine, power_off=rng.random() < 0.5)
    host_id = machine.disk.host_id
    if rng.random() < 0.5:
        machine.disk.renew()
        machine.replaces = machine.endpoint
        newcomer = machine
    else:
        machine.retired = True
        newcomer = cluster.add_machine()
        newcomer.replaces = host_id
    cluster.loop.after(rng.uniform(1.0, 30.0), cluster.start, newcomer)


def _down_seconds(rng: Random) -> float:
    return 3.0 + rng.choice((0.0, 5.0, 30.0)) * rng.random()


def _down(cluster: Cluster, machine: Machine, rng: Random) -> None:
    if machine.process is None:
        return
    if rng.random() < 0.5:
        machine.process.shut_down()
    else:
        cluster.kill(machine, power_off=rng.random() < 0.5)


def _up(cluster: Cluster, machine: Machine) -> None:
    if machine.process is not None:  # paused in the middle of its shutdown, or not gone yet
        cluster.kill(machine)
    cluster.start(machine)


# -- faults ----------------------------------------------------------------------------------------------------------


def partition(cluster: Cluster, machine: Machine, rng: Random, seconds: float) -> None:
    """Both ways, the machine on one of the sides or alone."""
    cut_for(cluster, cut_links(*_sides(cluster, machine, rng), "both"), seconds, "partition")


def one_way_partition(cluster: Cluster, machine: Machine, rng: Random, seconds: float) -> None:
    """One way only."""
    cut_for(cluster, cut_links(*_sides(cluster, machine, rng), rng.choice(("out", "in"))), seconds, "one-way partition")


def _sides(cluster: Cluster, machine: Machine, rng: Random) -> tuple[list[int], list[int]]:
    if rng.random() < 0.5:
        return [machine.index], [other.index for other in cluster.machines if other is not machine]
    return sides(cluster, rng)


def pause(cluster: Cluster, machine: Machine, rng: Random, seconds: float) -> None:
    """The machine itself, or another, stands still."""
    chosen = _machine_or_another(cluster, machine, rng)
    if chosen.process is not None and not chosen.process.paused:
        cluster.trace.line(f"pause {chosen.endpoint} for {seconds:.3f}")
        chosen.process.pause()
        cluster.loop.after(seconds, operations.resume, cluster, chosen, chosen.process)


def kill(cluster: Cluster, machine: Machine, rng: Random, seconds: float) -> None:
    """The machine itself, or another, dies and comes back."""
    chosen = _machine_or_another(cluster, machine, rng)
    cluster.kill(chosen, power_off=rng.random() < 0.5)
    cluster.loop.after(seconds, cluster.start, chosen)


def loss(cluster: Cluster, _machine: Machine, _rng: Random, seconds: float) -> None:
    """30 % of all packets are lost."""
    links = [(a.index, b.index) for a in cluster.machines for b in cluster.machines if a is not b]
    cluster.trace.line(f"loss {LOSS} for {seconds:.3f}")
    for link in links:
        cluster.network.make_lossy(link, LOSS)
        cluster.loop.after(seconds, cluster.network.make_lossy, link, 0.0)


def _machine_or_another(cluster: Cluster, machine: Machine, rng: Random) -> Machine:
    return machine if rng.random() < 0.5 else cluster.machines[rng.randrange(len(cluster.machines))]


OPERATIONS: Final[Mapping[str, Begin]] = {
    "join": join,
    "leave": leave,
    "replace": replace,
    "restart": restart,
    "restart_clock_behind": restart_clock_behind,
}
FAULTS: Final[Mapping[str, Begin]] = {
    "partition": partition,
    "one_way_partition": one_way_partition,
    "pause": pause,
    "kill": kill,
    "loss": loss,
}
#: Names of all pairs, as ``SimulationOptions.pair`` takes them.
PAIRS: Final = tuple(f"{operation}-{fault}" for operation in OPERATIONS for fault in FAULTS)


class _Planned(NamedTuple):
    name: str
    action: Begin


def schedule(cluster: Cluster, pair: str, duration_seconds: float) -> None:
    """Plan one pair, and publishes all the while.

    Raises:
        ValueError: there is no such pair.
    """
    operation_name, _, fault_name = pair.partition("-")
    if operation_name not in OPERATIONS or fault_name not in FAULTS:
        raise ValueError(f"no pair {pair!r}; there are {', '.join(PAIRS)}")
    loop = cluster.loop
    rng = loop.stream("pair")
    # A seed stays: others are told of its address at their start.
    candidates = [m for m in cluster.machines if not (m.is_seed and operation_name in {"leave", "replace"})]
    machine = candidates[rng.randrange(len(candidates))]
    if operation_name == "join":
        machine = cluster.add_machine()
    seconds = min(rng.uniform(FAULT_SECONDS_MIN, FAULT_SECONDS_MAX), max(1.0, duration_seconds - FAULT_AT_SECONDS))
    fault_at = FAULT_AT_SECONDS + rng.uniform(0.0, 2.0)
    operation_at = fault_at + rng.uniform(-OPERATION_BEFORE_SECONDS, OPERATION_AFTER_SECONDS)
    loop.at(operation_at, _begin, cluster, _Planned(operation_name, OPERATIONS[operation_name]), machine, rng, seconds)
    loop.at(fault_at, _begin, cluster, _Planned(fault_name, FAULTS[fault_name]), machine, rng, seconds)
    publishing = loop.stream("publish")
    for _ in range(int(duration_seconds)):
        chosen = cluster.machines[publishing.randrange(len(cluster.machines))]
        loop.at(publishing.uniform(3.0, duration_seconds), _publish, cluster, chosen, publishing)


def _publish(cluster: Cluster, machine: Machine, rng: Random) -> None:
    if not cluster.faults_over and operations.publish(cluster, machine, rng):
        cluster.faults["publish"] += 1


def _begin(cluster: Cluster, begin: _Planned, machine: Machine, rng: Random, seconds: float) -> None:
    cluster.trace.line(f"{begin.name} {machine.endpoint}")
    cluster.faults[begin.name] += 1
    begin.action(cluster, machine, rng, seconds)
