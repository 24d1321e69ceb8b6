"""What goes wrong during a run, and who repairs meanwhile; every choice is drawn from the seed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from kvstore.simulation.cluster import SimulatedNode
from kvstore.simulation.network import LinkFaults, SimulatedNetwork
from kvstore.simulation.options import Swarm

Tell = Callable[[str], None]


class FaultDriver:
    """Runs while faults are allowed.

    Args:
        nodes: All machines.
        network: Of all.
        swarm: How often which fault happens.
        rng: Draws everything.
        tell: Takes a line of the trace.
    """

    def __init__(
        self, nodes: list[SimulatedNode], network: SimulatedNetwork, swarm: Swarm, rng: Random, tell: Tell
    ) -> None:
        self._nodes = nodes
        self._network = network
        self._swarm = swarm
        self._rng = rng
        self._tell = tell
        self.counts: Counter[str] = Counter()
        self._ending: set[asyncio.Task[None]] = set()

    async def run(self, until: float) -> None:
        """Make faults until a time of the loop; then undo them all and have every node running."""
        loop = asyncio.get_running_loop()
        rates: list[tuple[str, float]] = [
            ("partition", self._swarm.partition_rate),
            ("crash", self._swarm.crash_rate),
            ("stop", self._swarm.stop_rate),
            ("slow", self._swarm.slow_rate),
            ("links", self._swarm.link_rate),
            ("clock", self._swarm.clock_rate),
        ]
        total = sum(rate for _, rate in rates)
        while total:
            await asyncio.sleep(self._rng.expovariate(total))
            if loop.time() >= until:
                break
            (kind,) = self._rng.choices([name for name, _ in rates], [rate for _, rate in rates])
            self.counts[kind] += 1
            self._begin(kind, self._rng.choice(self._nodes), self._rng.uniform(1.0, 25.0), until)
        await asyncio.sleep(max(0.0, until - loop.time()))
        if self._ending:
            await asyncio.gather(*self._ending)
        self._network.heal()
        for node in self._nodes:
            while not await node.start():  # noqa: ASYNC110 - nobody tells when a start would work
                await asyncio.sleep(1.0)

    def _begin(self, kind: str, node: SimulatedNode, seconds: float, until: float) -> None:
        loop = asyncio.get_running_loop()
        seconds = max(0.0, min(seconds, until - loop.time()))
        self._tell(f"{kind} {node.endpoint} for {seconds:.3f} s")
        actions: dict[str, Callable[[SimulatedNode, float], Coroutine[Any, Any, None]]] = {
            "partition": self._partition,
            "crash": self._crash,
            "stop": self._stop,
            "slow": self._slow,
            "links": self._links,
            "clock": self._clock,
        }
        task = loop.create_task(actions[kind](node, seconds), name=f"fault {kind}")
        self._ending.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            self._ending.discard(task)

    async def _partition(self, node: SimulatedNode, seconds: float) -> None:
        """Cut a node, or two of them together, off; sometimes in one direction only."""
        inside = {node.endpoint}
        if len(self._nodes) > 3 and self._rng.random() < 0.5:
            inside.add(self._rng.choice(self._nodes).endpoint)
        ways = self._rng.choice(["both", "both", "in", "out"])
        for one in inside:
            for other in {member.endpoint for member in self._nodes} - inside:
                if ways != "in":
                    self._network.cut(one, other)
                if ways != "out":
                    self._network.cut(other, one)
        await asyncio.sleep(seconds)
        self._network.heal()

    async def _crash(self, node: SimulatedNode, seconds: float) -> None:
        await node.crash(lose=self._rng.random() < self._swarm.lose_unsynced)
        await asyncio.sleep(seconds)
        await node.start()

    async def _stop(self, node: SimulatedNode, seconds: float) -> None:
        await node.stop()
        await asyncio.sleep(seconds)
        await node.start()

    async def _slow(self, node: SimulatedNode, seconds: float) -> None:
        """Its disk or its network is slow."""
        if self._rng.random() < 0.5:
            node.slow_disk_seconds = self._rng.uniform(0.05, 1.5)
        else:
            self._network.slow_seconds[node.endpoint] = self._rng.uniform(0.05, 1.5)
        await asyncio.sleep(seconds)
        node.slow_disk_seconds = 0.0
        self._network.slow_seconds.pop(node.endpoint, None)

    async def _links(self, _node: SimulatedNode, seconds: float) -> None:
        rng = self._rng
        self._network.faults = LinkFaults(
            loss=rng.choice([0.0, 0.02, 0.2]),
            lag=rng.choice([0.0, 0.05, 0.3]),
            repeat=rng.choice([0.0, 0.05, 0.3]),
            reorder=rng.choice([0.0, 0.05]),
        )
        await asyncio.sleep(seconds)
        self._network.faults = LinkFaults()

    async def _clock(self, node: SimulatedNode, seconds: float) -> None:
        """A wall clock steps, and back: within what the nodes forgive each other."""
        step = self._rng.uniform(-1.0, 1.0)
        node.clock.jump_wall(step)
        await asyncio.sleep(seconds)
        node.clock.jump_wall(-step)
