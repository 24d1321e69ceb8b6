"""Sessions that are interrupted go on: coordinators and replicas killed at every durable step, damaged journals."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from repair_cluster import Store, cluster, collected, grpc_cluster, messages, repaired, rows_named, until
from repair_process import Everybody, config_of

from antientropy import (
    JournalError,
    LmdbRowStore,
    MemoryRowStore,
    RepairConfig,
    RepairService,
    RepairUpdate,
    Row,
    SessionState,
)
from antientropy.journal import FILE_NAME, RepairJournal
from antientropy.transport.memory import Crossing, Fault, FaultKind

SCRIPT = Path(__file__).parent / "support" / "repair_process.py"
#: Durable steps of the repair below: the session begins, then each unit applies rows and is recorded, the end.
STEPS = [1, 2, 4, 9]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def process(role: str, directory: Path, port: int, own: str, endpoints: list[str], step: int, before: bool):  # type: ignore[no-untyped-def] # asyncio's own type is private
    return asyncio.create_subprocess_exec(
        sys.executable,
        str(SCRIPT),
        role,
        str(directory),
        str(port),
        own,
        ",".join(endpoints),
        str(step),
        "1" if before else "0",
        stdout=asyncio.subprocess.PIPE,
    )


@pytest.mark.process
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("step", STEPS)
async def test_a_coordinator_killed_at_a_durable_step_resumes(tmp_path: Path, step: int, before: bool) -> None:
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    own = f"127.0.0.1:{free_port()}"
    own_store = LmdbRowStore(tmp_path / "store")
    own_store.apply(rows_named(300))
    own_store.close()
    stores[0].apply(rows_named(300, start=200))
    stores[1].apply(rows_named(300, start=400))
    async with grpc_cluster(*stores) as made:
        made.ring.endpoints.append(own)
        killed = await process("coordinator", tmp_path, 0, own, made.ring.endpoints, step, before)
        async with asyncio.timeout(40):
            await killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        own_store = LmdbRowStore(tmp_path / "store")
        journal = RepairJournal(tmp_path / "repair")
        left = journal.sessions(active_only=True)
        verified = [] if not left else journal.session(left[0].session_id).verified  # type: ignore[union-attr]
        journal.close()
        try:
            async with RepairService(
                {"kv": own_store}, Everybody(own, made.ring.endpoints), config_of(tmp_path)
            ) as service:
                sessions = await service.sessions()
                assert [one.state for one in sessions] == [SessionState.INTERRUPTED] * len(left)
                if left:
                    updates = [update async for update in service.resume(left[0].session_id)]
                    assert updates[-1].session_id == left[0].session_id
                    if verified:
                        assert f"{len(verified)} parts were verified before" in updates[0].message
                        assert updates[0].progress > 0
                else:
                    # Killed before the session was recorded, or at its very end.
                    assert (step, before) == (1, True) or step >= STEPS[-1]
                    updates = [update async for update in service.repair("kv")]
                assert updates[-1].state is SessionState.COMPLETED, messages(updates)
                assert updates[-1].progress == 1.0
            rows = {row.key: row for row in own_store.scan()}
            assert len(rows) == 700
            assert all({row.key: row for row in store.scan()} == rows for store in stores)
            assert made.held() == 0
        finally:
            own_store.close()


@asynccontextmanager
async def replica_process(
    directory: Path, port: int, endpoints: list[str], step: int, before: bool
) -> AsyncIterator[asyncio.subprocess.Process]:
    running = await process("replica", directory, port, f"127.0.0.1:{port}", endpoints, step, before)
    try:
        async with asyncio.timeout(20):
            assert await running.stdout.readline() == b"ready\n"
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


@pytest.mark.process
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("step", [1, 3])
async def test_a_replica_killed_at_a_durable_step_is_tried_again_in_the_session(
    tmp_path: Path, step: int, before: bool
) -> None:
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    for store in stores:
        store.apply(rows_named(600))
    port = free_port()
    config = RepairConfig(unit_rows_max=100, replica_retry_seconds=0.3, replica_retries_max=6)
    async with grpc_cluster(*stores, config=config) as made:
        made.ring.endpoints.append(f"127.0.0.1:{port}")
        endpoints = list(made.ring.endpoints)
        async with replica_process(tmp_path, port, endpoints, step, before) as first:
            repairing = asyncio.create_task(repaired(made[0]))
            async with asyncio.timeout(30):
                assert await first.wait() == -signal.SIGKILL
            async with replica_process(tmp_path, port, endpoints, 0, False):
                updates = await repairing
        assert updates[-1].state is SessionState.COMPLETED, messages(updates)
        assert f"Repair with 127.0.0.1:{port} failed" in messages(updates)
        copy = LmdbRowStore(tmp_path / "store")
        assert {row.key: row for row in copy.scan()} == made[0].rows()
        copy.close()


async def test_verified_parts_are_skipped_but_not_when_they_are_old(tmp_path: Path) -> None:
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    stores[1].apply(rows_named(2_000))
    config = RepairConfig(data_dir=tmp_path, unit_rows_max=200, resume_seconds_max=100)
    async with cluster(*stores, config=lambda number: config if number == 0 else RepairConfig()) as made:
        session_id = await interrupted(made, after=5)
        node = await made.restart(0)
        [session] = await node.service.sessions()
        assert session.state is SessionState.INTERRUPTED
        assert 0 < session.progress < 1
        fetched = 0

        def count(crossing: Crossing) -> None:
            nonlocal fetched
            fetched += crossing.method == "Fetch" and crossing.is_request

        made.network.faults = count
        before = session.statistics.rows_moved
        updates = [update async for update in node.service.resume(session_id)]
        assert updates[0].progress == pytest.approx(session.progress)
        assert "parts were verified before" in updates[0].message
        assert updates[-1].statistics.rows_moved == 2_000 > before > 0
        assert made.equal()

        stores[1].apply(rows_named(2_000, version=2))
        session_id = await interrupted(made, after=5)
        made.clock.ahead = 101
        node = await made.restart(0)
        updates = [update async for update in node.service.resume(session_id)]
        assert updates[0].progress == 0
        assert updates[-1].state is SessionState.COMPLETED
        assert made.equal()


async def interrupted(made, after: int) -> str:  # type: ignore[no-untyped-def] # the helper's own type
    """Begin a repair and stop its node when so many pages have been fetched."""
    fetched = 0
    reached = asyncio.Event()

    def halt(crossing: Crossing) -> Fault | None:
        nonlocal fetched
        fetched += crossing.method == "Fetch" and crossing.is_request
        if fetched > after:
            reached.set()
            return Fault(FaultKind.DELAY, 30)
        return None

    made.network.faults = halt
    task = asyncio.create_task(repaired(made[0]))
    async with asyncio.timeout(10):
        await reached.wait()
    [session] = await made[0].service.sessions()
    await made[0].service.stop()
    await asyncio.gather(task, return_exceptions=True)
    made.network.faults = lambda _crossing: None
    return str(session.session_id)


async def test_a_session_whose_ring_has_changed_is_resumed_with_the_ring_of_now(tmp_path: Path) -> None:
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore(), MemoryRowStore()]
    stores[1].apply(rows_named(1_000))
    config = RepairConfig(data_dir=tmp_path, unit_rows_max=200)
    async with cluster(*stores, config=lambda number: config if number == 0 else RepairConfig()) as made:
        third = made.ring.endpoints.pop()
        session_id = await interrupted(made, after=2)
        made.ring.endpoints.append(third)
        node = await made.restart(0)
        updates = [update async for update in node.service.resume(session_id)]
        assert updates[-1].state is SessionState.COMPLETED, messages(updates)
        assert made.equal()


# --- the journal fails ---


async def test_a_journal_that_cannot_be_opened_is_told_and_the_node_serves_on(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 1_000)
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    stores[0].apply(rows_named(10))
    async with cluster(
        *stores, config=lambda number: RepairConfig(data_dir=tmp_path) if number == 0 else RepairConfig()
    ) as made:
        with pytest.raises(JournalError, match="damaged"):
            await anext(made[0].service.repair("kv"))
        with pytest.raises(JournalError, match="damaged"):
            await made[0].service.sessions()
        assert (await repaired(made[1]))[-1].state is SessionState.COMPLETED
        assert made.equal()
        # When the file is out of the way, it goes on without a restart.
        (tmp_path / FILE_NAME).unlink()
        assert (await repaired(made[0]))[-1].state is SessionState.COMPLETED


@pytest.mark.parametrize("step", range(1, 6))
async def test_a_full_disk_under_the_journal_ends_the_repair_clearly(tmp_path: Path, step: int) -> None:
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    stores[1].apply(rows_named(400))
    config = RepairConfig(data_dir=tmp_path, unit_rows_max=100)
    async with cluster(*stores, config=lambda number: config if number == 0 else RepairConfig()) as made:
        service = made[0].service
        await service.sessions()
        journal = service._journal
        assert journal is not None
        commit, count = journal._commit, 0

        def full(connection):  # type: ignore[no-untyped-def] # a fault of the disk
            nonlocal count
            count += 1
            if count >= step:
                raise JournalError("the disk is full; make room")
            commit(connection)

        journal._commit = full  # type: ignore[method-assign]
        updates: list[RepairUpdate] = []
        with pytest.raises(JournalError, match="the disk is full"):
            await collected(service.repair("kv"), updates)
        assert updates[-1].state is SessionState.FAILED
        assert "the disk is full" in updates[-1].message
        await until(lambda: made.held() == 0)
        journal._commit = commit  # type: ignore[method-assign]
        assert (await repaired(made[0]))[-1].state is SessionState.COMPLETED
        assert made.equal()


async def test_two_nodes_cannot_share_a_directory(tmp_path: Path) -> None:
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    async with cluster(*stores, config=RepairConfig(data_dir=tmp_path)) as made:
        with pytest.raises(JournalError, match="another process"):
            await anext(made[1].service.repair("kv"))
        assert (await repaired(made[0]))[-1].state is SessionState.COMPLETED


async def test_rows_written_while_a_session_was_interrupted_are_left_to_the_next_repair(tmp_path: Path) -> None:
    """What was verified is verified as of then; the whole range is compared at the end, and what is new is moved."""
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    stores[1].apply(rows_named(2_000))
    config = RepairConfig(data_dir=tmp_path, unit_rows_max=200)
    async with cluster(*stores, config=lambda number: config if number == 0 else RepairConfig()) as made:
        session_id = await interrupted(made, after=6)
        stores[1].apply([Row(b"key%d" % number, 2, b"new") for number in range(0, 2_000, 100)])
        node = await made.restart(0)
        updates = [update async for update in node.service.resume(session_id)]
        assert updates[-1].state is SessionState.COMPLETED
        assert made.equal()
