"""The network: latency, loss, duplication, reordering, partitions, clogs, replays. It carries bytes.

A request and its answer are two packets, each with its own fate. Whoever is waited for in vain notices by a deadline of
the sender (``process``). Faults of links are between machines, by their index: a new address does not heal a cable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gossiper.simulation.loop import Action, VirtualLoop
from gossiper.simulation.options import Swarm

if TYPE_CHECKING:
    from gossiper.simulation.machine import Machine
    from gossiper.simulation.process import Process

Link = tuple[int, int]
"""Indices of the sending and of the receiving machine."""

#: Requests kept for a replay; new ones take the places of random old ones, so that very old ones stay possible.
RECORDED_MAX: Final = 256
#: A duplicate or a reordered packet comes up to this much later.
STRAY_SECONDS_MAX: Final = 5.0
#: The longest tail of a packet under ``heavy_tail``.
TAIL_SECONDS_MAX: Final = 10.0


class Packet(NamedTuple):
    """A request on its way."""

    source: int
    to: str
    kind: str
    data: bytes


class Network:
    """Delivers packets between machines, more or less."""

    def __init__(self, loop: VirtualLoop, swarm: Swarm) -> None:
        self.counts: Counter[str] = Counter()
        """Packets that something happened to, by what happened."""
        self.messages = 0
        """Packets delivered to a process."""
        self.bytes = 0
        self._loop = loop
        self._swarm = swarm
        self._rng: Random = loop.stream("network")
        self._machines: dict[str, Machine] = {}
        self._blocked: Counter[Link] = Counter()
        self._clogged: dict[Link, float] = {}
        self._lossy: dict[Link, float] = {}
        self._base_seconds: dict[Link, float] = {}
        self._calm: frozenset[int] = frozenset()
        self._recorded: list[Packet] = []

    # -- addresses ---------------------------------------------------------------------------------------------------

    def register(self, endpoint: str, machine: Machine) -> None:
        """``endpoint`` leads to ``machine`` from now on."""
        self._machines[endpoint] = machine

    # -- faults ------------------------------------------------------------------------------------------------------

    def block(self, links: Iterable[Link]) -> None:
        """Drop everything on these links until they are unblocked as often as they were blocked."""
        self._blocked.update(links)

    def unblock(self, links: Iterable[Link]) -> None:
        """Undo one :meth:`block` of the same links."""
        for link in links:
            self._blocked[link] -= 1
            if self._blocked[link] <= 0:
                del self._blocked[link]

    def clog(self, links: Iterable[Link], until: float) -> None:
        """Hold everything on these links back until then."""
        for link in links:
            self._clogged[link] = max(until, self._clogged.get(link, 0.0))

    def make_lossy(self, link: Link, loss: float) -> None:
        """Lose this share of the packets on one link; 0 ends it."""
        if loss > 0:
            self._lossy[link] = loss
        else:
            self._lossy.pop(link, None)

    def calm(self, machines: Iterable[int]) -> None:
        """Links among these machines have no faults any more; all others stay as they are."""
        self._calm = frozenset(machines)

    def replay(self) -> bool:
        """Deliver a recorded request once more, to whoever listens there now; False when there is none."""
        if not self._recorded:
            return False
        packet = self._recorded[self._rng.randrange(len(self._recorded))]
        self._transmit(packet.source, self._machines[packet.to].index, self._arrive, packet, None, 0)
        return True

    # -- packets -----------------------------------------------------------------------------------------------------

    def request(self, caller: Process, call: int, to: str, kind: str, data: bytes) -> None:
        """Send a request; an answer or a refusal comes back to ``caller.answered`` or ``caller.unreachable``."""
        packet = Packet(caller.machine.index, to, kind, data)
        machine = self._machines.get(to)
        if machine is None:
            return
        if self._swarm.record and self._rng.random() < self._swarm.record:
            if len(self._recorded) < RECORDED_MAX:
                self._recorded.append(packet)
            else:
                self._recorded[self._rng.randrange(RECORDED_MAX)] = packet
        self._transmit(packet.source, machine.index, self._arrive, packet, caller, call)

    def answer(self, source: Machine, caller: Process, call: int, data: bytes) -> None:
        """Send the encoded answer to a request."""
        self._transmit(source.index, caller.machine.index, caller.answered, call, data)

    def refuse(self, source: Machine, caller: Process, call: int, reason: str) -> None:
        """Tell a caller that its request was refused."""
        self._transmit(source.index, caller.machine.index, caller.failed, call, reason)

    def _arrive(self, packet: Packet, caller: Process | None, call: int) -> None:
        machine = self._machines[packet.to]
        process = machine.process
        if process is None or machine.endpoint != packet.to:
            if machine.powered and machine.endpoint == packet.to and caller is not None:
                self.refuse(machine, caller, call, "unavailable")
            return
        process.requested(packet.kind, packet.data, packet.source, caller, call)

    def _transmit(self, source: int, destination: int, deliver: Action, *arguments: Any) -> None:
        link = (source, destination)
        rng, swarm = self._rng, self._swarm
        delay = self._base(link)
        if source in self._calm and destination in self._calm:
            self._loop.at(self._loop.now + delay + rng.expovariate(2000.0), deliver, *arguments)
            return
        if self._blocked and link in self._blocked:
            self.counts["packets_blocked"] += 1
            return
        loss = max(swarm.loss, self._lossy.get(link, 0.0)) if self._lossy else swarm.loss
        if loss and rng.random() < loss:
            self.counts["packets_lost"] += 1
            return
        delay += rng.expovariate(200.0 if swarm.latency == "wan" else 2000.0)
        if swarm.latency == "heavy_tail" and rng.random() < 0.05:
            delay += min(TAIL_SECONDS_MAX, 0.02 * rng.paretovariate(0.8))
        if swarm.reorder and rng.random() < swarm.reorder:
            self.counts["packets_reordered"] += 1
            delay += rng.uniform(0.0, STRAY_SECONDS_MAX)
        when = self._loop.now + delay
        if self._clogged:
            until = self._clogged.get(link, 0.0)
            if until > self._loop.now:
                self.counts["packets_clogged"] += 1
                when = until + delay
        self._loop.at(when, deliver, *arguments)
        if swarm.duplicate and rng.random() < swarm.duplicate:
            self.counts["packets_duplicated"] += 1
            self._loop.at(when + rng.uniform(0.0, STRAY_SECONDS_MAX), deliver, *arguments)

    def _base(self, link: Link) -> float:
        base = self._base_seconds.get(link)
        if base is None:
            low, high = (0.005, 0.1) if self._swarm.latency == "wan" else (0.0001, 0.001)
            base = self._base_seconds[link] = self._rng.uniform(low, high)
        return base
