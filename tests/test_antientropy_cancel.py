"""Pause, resume, cancel and stop at every state: no lease, no snapshot, no file, no task is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from repair_cluster import Cluster, Store, cluster, diverge, messages, repaired, rows_named, until

from antientropy import (
    LmdbRowStore,
    MemoryRowStore,
    RepairConfig,
    RepairOptions,
    RepairRequestError,
    RepairUpdate,
    ServiceStoppedError,
    SessionState,
)
from antientropy.transport.memory import Crossing, Fault, FaultKind

#: The message at which a repair stands still: its method, and whether it is the request or the answer.
PLACES = [(method, way) for method in ("Compare", "Locate", "Fetch", "Push", "Send") for way in (True, False)]


def stores_of(count: int) -> list[Store]:
    stores: list[Store] = [MemoryRowStore() for _ in range(count)]
    for store in stores:
        store.apply(rows_named(1_000))
    diverge(stores, 5, 200, keys=1_000)
    return stores


class Halt:
    """Holds the first message of a kind, and the second comparison (the verification) as ``Verify``."""

    def __init__(self, made: Cluster, method: str, is_request: bool) -> None:
        self.reached = asyncio.Event()
        self._method = method
        self._is_request = is_request
        self._compared = 0
        made.network.faults = self

    def __call__(self, crossing: Crossing) -> Fault | None:
        self._compared += crossing.method == "Compare" and crossing.is_request and crossing.destination == "n1:1"
        method = "Verify" if crossing.method == "Compare" and self._compared > 1 else crossing.method
        if self.reached.is_set() or (method, crossing.is_request) != (self._method, self._is_request):
            return None
        self.reached.set()
        return Fault(FaultKind.DELAY, 30.0)


@asynccontextmanager
async def halted(
    made: Cluster, method: str, is_request: bool
) -> AsyncIterator[tuple[str, asyncio.Task[list[RepairUpdate]]]]:
    """A repair of the first node that stands still; its session and the task that listens."""
    halt = Halt(made, method, is_request)
    seen: list[RepairUpdate] = []

    async def listen() -> list[RepairUpdate]:
        async with aclosing(made[0].service.repair("kv")) as updates:
            seen.append(await anext(updates))
            seen.extend([update async for update in updates])
        return seen

    task = asyncio.create_task(listen())
    async with asyncio.timeout(10):
        await halt.reached.wait()
    try:
        yield seen[0].session_id, task
    finally:
        made.network.faults = lambda _crossing: None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def names_of_tasks() -> list[str]:
    """Of repair; the indexes are opened once, when a service starts."""
    names = (task.get_name() for task in asyncio.all_tasks())
    return sorted(name for name in names if "antientropy" in name and name != "antientropy open")


@pytest.mark.parametrize(("method", "is_request"), [*PLACES, ("Verify", True), ("Verify", False)])
async def test_cancelling_leaves_nothing(method: str, is_request: bool) -> None:
    async with cluster(*stores_of(3)) as made:
        idle = names_of_tasks()
        async with halted(made, method, is_request) as (session_id, task):
            await made[0].service.cancel(session_id)
            updates = await task
        assert updates[-1].state is SessionState.CANCELLED
        assert updates[-1].message == "Repair cancelled"
        await until(lambda: made.held() == 0)
        await until(lambda: names_of_tasks() == idle)
        [session] = await made[0].service.history()
        assert session.state is SessionState.CANCELLED
        with pytest.raises(RepairRequestError, match="has ended: it is cancelled"):
            await made[0].service.cancel(session_id)
        # Nothing is in the way of the next one.
        assert (await repaired(made[1]))[-1].state is SessionState.COMPLETED
        assert made.equal()


@pytest.mark.parametrize(("method", "is_request"), [*PLACES, ("Verify", True), ("Verify", False)])
async def test_pausing_leaves_nothing_and_resuming_finishes(method: str, is_request: bool) -> None:
    async with cluster(*stores_of(3)) as made:
        async with halted(made, method, is_request) as (session_id, task):
            service = made[0].service
            await service.pause(session_id)
            assert made[0].held == 0
            await until(lambda: made.held() == 0)
            [session] = await service.sessions()
            assert session.state is SessionState.PAUSED
            await service.pause(session_id)
            # Others may repair meanwhile.
            made.network.faults = lambda _crossing: None
            assert (await repaired(made[1]))[-1].state is SessionState.COMPLETED
            followed = [update async for update in service.resume(session_id)]
            updates = await task
        assert updates[-1] == followed[-1]
        assert updates[-1].state is SessionState.COMPLETED, messages(updates)
        assert "Repair paused" in messages(updates)
        assert "Repair goes on" in messages(followed)
        assert made.equal()
        assert made.held() == 0
        with pytest.raises(RepairRequestError, match="is completed; begin a new repair"):
            await anext(service.resume(session_id))


async def test_a_paused_repair_can_be_cancelled_and_a_running_one_not_resumed() -> None:
    async with cluster(*stores_of(2)) as made:
        async with halted(made, "Locate", True) as (session_id, task):
            with pytest.raises(RepairRequestError, match="is comparing, not paused"):
                await anext(made[0].service.resume(session_id))
            await made[0].service.pause(session_id)
            await made[0].service.cancel(session_id)
            assert (await task)[-1].state is SessionState.CANCELLED
        assert made.held() == 0


async def test_leaving_the_stream_of_a_resumed_pause_does_not_end_the_repair() -> None:
    async with cluster(*stores_of(2)) as made:
        async with halted(made, "Locate", True) as (session_id, task):
            await made[0].service.pause(session_id)
            made.network.faults = lambda _crossing: None
            async with aclosing(made[0].service.resume(session_id)) as updates:
                await anext(updates)
            assert (await task)[-1].state is SessionState.COMPLETED
        assert made.equal()


@pytest.mark.parametrize(("method", "is_request"), [*PLACES, ("Verify", True)])
async def test_stopping_the_service_interrupts_and_leaves_nothing(
    tmp_path: Path, method: str, is_request: bool
) -> None:
    config = RepairConfig(data_dir=tmp_path)

    def settings(number: int) -> RepairConfig:
        return config if number == 0 else RepairConfig()

    async with cluster(*stores_of(3), config=settings) as made:
        async with halted(made, method, is_request) as (session_id, task):
            await made[0].service.stop()
            with pytest.raises(ServiceStoppedError, match="resume it later"):
                await task
        with pytest.raises(ServiceStoppedError, match="not running"):
            await anext(made[0].service.repair("kv"))
        await until(lambda: made.held() == 0)
        node = await made.restart(0)
        [session] = await node.service.sessions()
        assert (session.session_id, session.state) == (session_id, SessionState.INTERRUPTED)
        updates = [update async for update in node.service.resume(session_id)]
        assert updates[-1].state is SessionState.COMPLETED
        assert updates[-1].session_id == session_id
        assert made.equal()
        assert made.held() == 0


async def test_an_interrupted_session_can_be_cancelled(tmp_path: Path) -> None:
    async with cluster(*stores_of(2), config=lambda number: RepairConfig(data_dir=tmp_path / str(number))) as made:
        async with halted(made, "Locate", True) as (session_id, task):
            await made[0].service.stop()
            await asyncio.gather(task, return_exceptions=True)
        node = await made.restart(0)
        await node.service.cancel(session_id)
        [session] = await node.service.history()
        assert session.state is SessionState.CANCELLED
        assert await node.service.sessions() == []


async def test_files_stay_what_they_are(tmp_path: Path) -> None:
    stores: list[Store] = [LmdbRowStore(tmp_path / f"store{number}", durable=False) for number in range(2)]
    stores[1].apply(rows_named(100))
    try:
        async with cluster(*stores, config=lambda number: RepairConfig(data_dir=tmp_path / f"data{number}")) as made:
            before = {str(path) for path in tmp_path.rglob("*")}
            async with halted(made, "Fetch", False) as (session_id, task):
                await made[0].service.cancel(session_id)
                await task
            assert {str(path) for path in tmp_path.rglob("*")} == before
            options = RepairOptions()
            assert (await repaired(made[0], options))[-1].state is SessionState.COMPLETED
            assert {str(path) for path in tmp_path.rglob("*")} == before
    finally:
        for store in stores:
            store.close()
