"""Repairs that somebody asks for during a run, with options drawn from the seed, and the last one, of everything."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from random import Random
from typing import Any, Final

from antientropy.core.tokens import TOKEN_MAX, TokenRange
from antientropy.errors import AntiEntropyError, RepairRequestError
from antientropy.options import RepairMode, RepairOptions, Strategy
from antientropy.reports import RepairUpdate, SessionState
from antientropy.service import RepairService
from kvstore.peers import KEYSPACE
from kvstore.simulation.cluster import SimulatedNode
from kvstore.simulation.options import Swarm
from kvstore.simulation.process import KilledError
from kvstore.simulation.truth import ViolationError

#: The last repair may meet one of the schedule, or a replica that still starts: it is asked for again.
_LAST_TRIES: Final = 20
_LAST_PAUSE_SECONDS: Final = 5.0

Work = Coroutine[Any, Any, RepairUpdate | None]


class RepairDriver:
    """Asks for repairs.

    Args:
        nodes: All machines.
        swarm: How often.
        rng: Draws everything.
        tell: Takes a line of the trace.
    """

    def __init__(self, nodes: list[SimulatedNode], swarm: Swarm, rng: Random, tell: Callable[[str], None]) -> None:
        self._nodes = nodes
        self._swarm = swarm
        self._rng = rng
        self._tell = tell
        self.counts: Counter[str] = Counter()

    async def run(self, until: float) -> None:
        """Ask until a time of the loop, and wait for what was asked."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while self._swarm.repair_rate:
                await asyncio.sleep(self._rng.expovariate(self._swarm.repair_rate))
                if loop.time() >= until:
                    return
                node = self._rng.choice(self._nodes)
                if node.node is None or node.process is None:
                    continue
                service, rng = node.node.repair, self._rng
                kind = rng.choice(["whole", "whole", "whole", "whole", "cancelled", "paused", "continued", "throttled"])
                pause_seconds, number = rng.uniform(0.1, 8.0), rng.randint(1, 12)
                options = self._draw(node)
                work = {
                    "whole": _follow(service, options, None),
                    "cancelled": _follow(service, options, number),
                    "paused": _pause(service, options, number, pause_seconds),
                    "continued": _continue(service, cancel=number > 9),
                    "throttled": _throttle(service, 1_000.0 * number, pause_seconds),
                }
                for other in work.keys() - {kind}:
                    work[other].close()
                group.create_task(self._ask(node, f"{options.mode.value} {kind}", work[kind]), name="asked repair")

    async def _ask(self, node: SimulatedNode, kind: str, work: Work) -> None:
        assert node.process is not None  # noqa: S101 - looked at by the caller
        try:
            last = await node.process.run(work)
        except AntiEntropyError as error:
            self.counts[f"{kind} refused"] += 1
            self._tell(f"{kind} at {node.endpoint} refused: {type(error).__name__}")
        except KilledError:
            self.counts[f"{kind} cut off"] += 1
            self._tell(f"{kind} at {node.endpoint} cut off")
        else:
            state = "none" if last is None else last.state.value
            self.counts[f"{kind} {state}"] += 1
            self._tell(f"{kind} at {node.endpoint}: {_told(last)}")

    def _draw(self, node: SimulatedNode) -> RepairOptions:
        rng = self._rng
        others = [one.endpoint for one in self._nodes if one is not node]
        ranges: tuple[TokenRange, ...] = ()
        if rng.random() < 0.2:
            first, last = sorted((rng.randint(0, TOKEN_MAX), rng.randint(0, TOKEN_MAX)))
            ranges = (TokenRange(first, last),)
        modes = [RepairMode.REPAIR] * 6 + [RepairMode.PREVIEW, RepairMode.VALIDATE, RepairMode.PULL]
        return RepairOptions(
            token_ranges=ranges,
            primary_only=not ranges and rng.random() < 0.3,
            peers=tuple(sorted(rng.sample(others, rng.randint(1, len(others))))) if rng.random() < 0.2 else (),
            mode=rng.choice(modes),
            full=rng.random() < 0.1,
            force=rng.random() < 0.1,
            jobs=rng.choice([1, 1, 2, 4]),
            strategy=rng.choice([Strategy.AUTO, Strategy.AUTO, *Strategy]),
        )


async def repair_everything(node: SimulatedNode, tell: Callable[[str], None]) -> RepairUpdate:
    """Repair everything with everybody, until that succeeds.

    Raises:
        ViolationError: it does not, although nothing is wrong any more.
    """
    told = "never began"
    for _ in range(_LAST_TRIES):
        assert node.node is not None  # noqa: S101 - healed: all run
        assert node.process is not None  # noqa: S101 - as above
        try:
            last = await node.process.run(_follow(node.node.repair, RepairOptions(), None))
        except AntiEntropyError as error:
            told = f"{type(error).__name__}: {error}"
        else:
            told = _told(last)
            tell(f"last repair at {node.endpoint}: {told}")
            if last is not None and last.state is SessionState.COMPLETED:
                return last
        await asyncio.sleep(_LAST_PAUSE_SECONDS)
    raise ViolationError("never_repaired", f"{node.endpoint}, after the last fault: {told}")


async def _follow(service: RepairService, options: RepairOptions, updates_max: int | None) -> RepairUpdate | None:
    """Repair; after so many updates it is cancelled, as Ctrl-C does."""
    last: RepairUpdate | None = None
    count = 0
    async with aclosing(service.repair(KEYSPACE, options)) as updates:
        async for update in updates:
            last = update
            count += 1
            if count == updates_max:
                break
    return last


async def _pause(service: RepairService, options: RepairOptions, number: int, seconds: float) -> RepairUpdate | None:
    """Repair; after so many updates let it rest for a while, then have it go on."""
    last: RepairUpdate | None = None
    count = 0

    async def rest(session_id: str) -> None:
        # Refused when it has ended meanwhile.
        with suppress(RepairRequestError):
            await service.pause(session_id)
            await asyncio.sleep(seconds)
            async with aclosing(service.resume(session_id)) as updates:
                async for _ in updates:
                    pass

    resting: list[asyncio.Task[None]] = []
    try:
        async with aclosing(service.repair(KEYSPACE, options)) as updates:
            async for update in updates:
                last = update
                count += 1
                if count == number:
                    resting.append(asyncio.create_task(rest(update.session_id), name="pause"))
    finally:
        await asyncio.gather(*resting, return_exceptions=True)
    return last


async def _continue(service: RepairService, *, cancel: bool) -> RepairUpdate | None:
    """Go on with what a crash or a stop interrupted here, or cancel it."""
    last: RepairUpdate | None = None
    for session in await service.sessions():
        if session.state is not SessionState.INTERRUPTED:
            continue
        if cancel:
            await service.cancel(session.session_id)
            continue
        async with aclosing(service.resume(session.session_id)) as updates:
            async for update in updates:
                last = update
    return last


async def _throttle(service: RepairService, bytes_per_second: float, seconds: float) -> None:
    """Hold all repairs of a node to a crawl for a while."""
    service.throttle.update(bytes_per_second=bytes_per_second, rows_per_second=bytes_per_second / 100, cpu_share=None)
    await asyncio.sleep(seconds)
    service.throttle.update(bytes_per_second=None, rows_per_second=None, cpu_share=None)


def _told(update: RepairUpdate | None) -> str:
    if update is None:
        return "nothing"
    statistics = update.statistics
    return (
        f"{update.state.value}, {statistics.rows_differing} differing, {statistics.rows_moved} moved of "
        f"{statistics.rows_optimal}: {update.message}"
    )
