"""Scenarios on gossipers of one process in virtual time: exact, repeatable, and fast."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gossiper.core.io import EngineEvent, RoundDue
from gossiper.metrics import GossipMetrics
from gossiper.node import Gossiper
from gossiper.scenario.backend import Link
from gossiper.scenario.member import Member, Observation, StartPlan, WrongClock
from gossiper.scenario.transport import ScenarioTransport
from gossiper.simulation.virtual_loop import VirtualClock
from gossiper.transport.memory import MemoryNetwork, MemoryTransport


class _PausableGossiper(Gossiper):
    """Stands still as a stopped process does: what happens to it meanwhile, it learns when it goes on."""

    _standing = False
    _kept: tuple[EngineEvent, ...] = ()

    def stand_still(self) -> None:
        self._standing = True

    def go_on(self) -> None:
        self._standing = False
        kept, self._kept = self._kept, ()
        for event in kept:
            self._do_safely(event)

    def _do_safely(self, event: EngineEvent) -> None:
        if not self._standing:
            super()._do_safely(event)
        elif not isinstance(event, RoundDue) or event not in self._kept:
            # Timers that came due many times fire once.
            self._kept = (*self._kept, event)


class _Network(MemoryNetwork):
    """Links can be slow; what is under way on a slow link arrives, also when nobody waits for the answer any more."""

    def __init__(self) -> None:
        super().__init__()
        self.delays_seconds: dict[Link, float] = {}
        self.under_way: set[asyncio.Task[bytes]] = set()

    async def _carry(self, source: str, target: str, kind: str, data: bytes) -> bytes:
        if not self.delays_seconds:
            return await super()._carry(source, target, kind, data)
        work = asyncio.create_task(self._carry_slowly(source, target, kind, data), name="slow link")
        self.under_way.add(work)
        work.add_done_callback(self._arrived)
        return await asyncio.shield(work)

    def _arrived(self, work: asyncio.Task[bytes]) -> None:
        self.under_way.discard(work)
        if not work.cancelled():
            # Perhaps nobody waits for it any more, and then nobody minds how it ended.
            work.exception()

    async def _carry_slowly(self, source: str, target: str, kind: str, data: bytes) -> bytes:
        await asyncio.sleep(self.delays_seconds.get((source, target), 0.0))
        answer = await super()._carry(source, target, kind, data)
        await asyncio.sleep(self.delays_seconds.get((target, source), 0.0))
        return answer


class MemoryBackend:
    """A :class:`~gossiper.scenario.backend.Backend`; lives on a loop of virtual time."""

    def __init__(self, directory: Path, *, seed: int = 0) -> None:
        self.directory = directory
        self._seed = seed
        self._starts = 0
        self._network = _Network()
        self._members: dict[str, Member] = {}
        self._pausable: dict[str, _PausableGossiper] = {}
        self._endpoints: dict[str, str] = {}
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._cut: frozenset[Link] = frozenset()
        self._delays: dict[Link, float] = {}
        self._cut_endpoints: set[Link] = set()

    def deadline_seconds(self, seconds: float) -> float:
        """Virtual time needs no patience."""
        return seconds

    async def prepare(self, nodes: Iterable[str], endpoints: Iterable[str]) -> None:
        """There is nothing to prepare."""

    async def start(self, node: str, plan: StartPlan) -> None:
        """As the Protocol says."""
        self._starts += 1
        # Who is asked in a round depends on the seed of the run, on the node, and on how often one was started.
        settings = {"random_seed": self._seed * 10_000 + self._starts, **plan.settings}
        config = StartPlan(plan.endpoint, plan.data_dir, plan.clock_offset_seconds, settings).config()
        metrics = GossipMetrics()
        transport = ScenarioTransport(MemoryTransport(self._network, plan.endpoint, metrics=metrics))
        true_clock = VirtualClock()
        clock = WrongClock(plan.clock_offset_seconds, true_clock.now)
        gossiper = _PausableGossiper(config, transport=transport, clock=clock.now)
        gossiper.metrics = metrics
        member = Member(gossiper, transport, clock)
        self._members[node] = member
        self._pausable[node] = gossiper
        self._endpoints[node] = plan.endpoint
        self._apply_links()
        starting = self._starting[node] = asyncio.create_task(member.start(), name=f"scenario start {node}")
        try:
            await starting
        except BaseException:
            starting.cancel()
            if self._members.get(node) is member:
                del self._members[node]
            raise
        finally:
            if self._starting.get(node) is starting:
                del self._starting[node]

    async def stop(self, node: str) -> None:
        """As the Protocol says."""
        member = self._members.pop(node)
        await member.stop()

    async def kill(self, node: str) -> None:
        """As the Protocol says."""
        member = self._members.pop(node, None)
        if member is None:
            return
        self._network.resume(self._endpoints[node])
        member.drop_tasks()
        starting = self._starting.pop(node, None)
        if starting is not None:
            # First nobody reaches it any more, so that nothing of its end is seen.
            await member.transport.stop(0.0)
            starting.cancel()
            await asyncio.wait([starting])
        await member.gossiper.abort()

    async def pause(self, node: str) -> None:
        """As the Protocol says."""
        self._pausable[node].stand_still()
        self._network.hang(self._endpoints[node])

    async def resume(self, node: str) -> None:
        """As the Protocol says."""
        self._pausable[node].go_on()
        self._network.resume(self._endpoints[node])

    async def do(self, node: str, operation: str, arguments: Mapping[str, Any]) -> Any:
        """As the Protocol says."""
        return await self._members[node].do(operation, arguments)

    async def observe(self, node: str) -> Observation:
        """As the Protocol says."""
        return self._members[node].observe()

    def set_links(self, cut: Iterable[Link], delays_seconds: Mapping[Link, float]) -> None:
        """As the Protocol says."""
        self._cut = frozenset(cut)
        self._delays = dict(delays_seconds)
        self._apply_links()

    def _apply_links(self) -> None:
        """Nodes move, so what is said of nodes is said of their addresses again after each start."""
        for source, target in self._cut_endpoints:
            self._network.heal(source, target, both=False)
        self._cut_endpoints = {
            (self._endpoints[source], self._endpoints[target])
            for source, target in self._cut
            if source in self._members and target in self._members
        }
        for source, target in self._cut_endpoints:
            self._network.cut(source, target, both=False)
        self._network.delays_seconds = {
            (self._endpoints[source], self._endpoints[target]): seconds
            for (source, target), seconds in self._delays.items()
            if source in self._members and target in self._members
        }

    async def close(self) -> None:
        """As the Protocol says."""
        for node in list(self._members):
            await self.kill(node)
        for task in list(self._network.under_way):
            task.cancel()
