"""Faults of the network and the schedule of everything random: swarm testing from one seed.

Partitions are cut in three ways (sides of a uniform size, each machine by a coin, one machine alone), both ways or one
way only, and stay for a minimum time. A swizzle-clog (FoundationDB) stops the links of a random set of machines one by
one and lets them go in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Final

from gossiper.simulation.cluster import Cluster
from gossiper.simulation.network import Link
from gossiper.simulation.operations import OPERATIONS, Operation

Fault = Callable[[Cluster, Random], bool]

PARTITION_SECONDS_MIN: Final = 2.0
PARTITION_SECONDS_MAX: Final = 60.0
#: Partitions at a time; they may overlap.
PARTITIONS_MAX: Final = 3


def sides(cluster: Cluster, rng: Random) -> tuple[list[int], list[int]]:
    """Two sides of a partition, none of them empty."""
    machines = list(range(len(cluster.machines)))
    rng.shuffle(machines)
    mode = rng.choice(("uniform_size", "uniform_member", "isolate_one"))
    if mode == "uniform_size":
        cut = rng.randint(1, len(machines) - 1)
    elif mode == "uniform_member":
        cut = min(len(machines) - 1, max(1, sum(rng.random() < 0.5 for _ in machines)))
    else:
        cut = 1
    return machines[:cut], machines[cut:]


def cut_links(one: list[int], other: list[int], ways: str) -> list[Link]:
    """The links between two sides: ``both``, ``out`` (of the first) or ``in``."""
    out = [(a, b) for a in one for b in other]
    back = [(b, a) for a in one for b in other]
    return {"both": out + back, "out": out, "in": back}[ways]


def partition(cluster: Cluster, rng: Random) -> bool:
    """Cut the cluster in two, for a while."""
    if len(cluster.machines) < 2 or cluster.counters["partitions_now"] >= PARTITIONS_MAX:
        return False
    one, other = sides(cluster, rng)
    ways = rng.choice(("both", "both", "out", "in"))
    seconds = rng.uniform(PARTITION_SECONDS_MIN, PARTITION_SECONDS_MAX)
    cut_for(cluster, cut_links(one, other, ways), seconds, f"partition {ways} {sorted(one)}")
    if ways != "both":
        cluster.faults["partition_one_way"] += 1
    return True


def cut_for(cluster: Cluster, links: list[Link], seconds: float, text: str) -> None:
    """Block links for a while, or for ever when the faults end meanwhile."""
    cluster.trace.line(f"{text} for {seconds:.3f}")
    cluster.counters["partitions_now"] += 1
    cluster.network.block(links)
    cluster.loop.after(seconds, _heal, cluster, links)


def _heal(cluster: Cluster, links: list[Link]) -> None:
    if not cluster.faults_over:
        cluster.trace.line(f"heal {len(links)} links")
        cluster.counters["partitions_now"] -= 1
        cluster.network.unblock(links)


def clog(cluster: Cluster, rng: Random) -> bool:
    """Hold back everything on one link."""
    link = _random_link(cluster, rng)
    seconds = rng.uniform(0.1, 30.0)
    cluster.trace.line(f"clog {link} for {seconds:.3f}")
    cluster.network.clog([link], cluster.loop.now + seconds)
    return True


def swizzle(cluster: Cluster, rng: Random) -> bool:
    """Clog a random set of machines one by one, and let them go in another order."""
    everyone = list(range(len(cluster.machines)))
    chosen = rng.sample(everyone, rng.randint(1, len(everyone)))
    at = cluster.loop.now
    begins = [at + rng.uniform(0.0, 5.0) for _ in chosen]
    ends = [at + 5.0 + rng.uniform(0.0, 25.0) for _ in chosen]
    for machine, begin, end in zip(chosen, begins, ends, strict=True):
        links = [(machine, other) for other in everyone] + [(other, machine) for other in everyone]
        cluster.loop.at(begin, _clog, cluster, links, end)
    cluster.trace.line(f"swizzle {chosen}")
    return True


def _clog(cluster: Cluster, links: list[Link], until: float) -> None:
    if not cluster.faults_over:
        cluster.network.clog(links, until)


def lossy_link(cluster: Cluster, rng: Random) -> bool:
    """Lose most packets of one link for a while."""
    link = _random_link(cluster, rng)
    loss = rng.uniform(0.3, 1.0)
    cluster.trace.line(f"lossy {link} {loss:.3f}")
    cluster.network.make_lossy(link, loss)
    cluster.loop.after(rng.uniform(2.0, 60.0), _sound_link, cluster, link)
    return True


def _sound_link(cluster: Cluster, link: Link) -> None:
    if not cluster.faults_over:
        cluster.network.make_lossy(link, 0.0)


def replay(cluster: Cluster, _rng: Random) -> bool:
    """Deliver a request that was seen before once more."""
    return cluster.network.replay()


def _random_link(cluster: Cluster, rng: Random) -> Link:
    one, other = rng.sample(range(len(cluster.machines)), 2)
    return one, other


#: By name; each has a rate ``NAME_rate`` in ``Swarm``.
NETWORK_FAULTS: Final[Mapping[str, Fault]] = {
    "partition": partition,
    "clog": clog,
    "swizzle": swizzle,
    "lossy_link": lossy_link,
    "replay": replay,
}


class FaultInjector:
    """Lets every kind of fault happen at its rate, until :meth:`stop`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        for name, operation in OPERATIONS.items():
            self._begin(name, _on_random_machine(operation))
        for name, fault in NETWORK_FAULTS.items():
            self._begin(name, fault)

    def _begin(self, name: str, fault: Fault) -> None:
        rate: float = getattr(self._cluster.swarm, f"{name}_rate")
        if rate > 0:
            # Each kind has its own stream, so that one more event of a kind does not shift all others.
            self._next(name, fault, rate, self._cluster.loop.stream(f"fault/{name}"))

    def _next(self, name: str, fault: Fault, rate: float, rng: Random) -> None:
        self._cluster.loop.after(rng.expovariate(rate), self._happen, name, fault, rate, rng)

    def _happen(self, name: str, fault: Fault, rate: float, rng: Random) -> None:
        if self._cluster.faults_over:
            return
        if fault(self._cluster, rng):
            self._cluster.faults[name] += 1
        self._next(name, fault, rate, rng)


def _on_random_machine(operation: Operation) -> Fault:
    def happen(cluster: Cluster, rng: Random) -> bool:
        return operation(cluster, cluster.machines[rng.randrange(len(cluster.machines))], rng)

    return happen
