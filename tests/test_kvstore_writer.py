"""Group commit: shared transactions, acknowledged after the commit, bounded; failures reach those they concern."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from antientropy.errors import StoreFullError
from antientropy.store import Row
from antientropy.stores.lmdb import LmdbRowStore
from kvstore.errors import OverloadedError, StoppingError, StorageError, TooOldError
from kvstore.limits import COMMIT_ROWS_MAX, LATENCY_WINDOW_SECONDS
from kvstore.writer import GroupCommitWriter


class GatedStore:
    """Commits wait until the test lets them."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.commits: list[list[Row]] = []
        self.fault: Exception | None = None
        self.rows_refused = 0
        self.floor = 0

    def apply(self, rows: Iterable[Row]) -> int:
        self.entered.set()
        assert self.gate.wait(30)
        if self.fault is not None:
            raise self.fault
        arrived = list(rows)
        self.commits.append([row for row in arrived if row.version >= self.floor])
        self.rows_refused += len(arrived) - len(self.commits[-1])
        return len(self.commits[-1])


def row(number: int, size: int = 1) -> Row:
    return Row(b"key%d" % number, number + 1, b"x" * size)


async def until_entered(store: GatedStore) -> None:
    assert await asyncio.to_thread(store.entered.wait, 30)


async def test_writes_that_wait_share_one_transaction() -> None:
    store = GatedStore()
    async with GroupCommitWriter(store) as writer:
        first = asyncio.create_task(writer.write([row(0)]))
        await until_entered(store)
        others = [asyncio.create_task(writer.write([row(number)])) for number in range(1, 50)]
        await asyncio.sleep(0)
        assert not first.done()
        store.gate.set()
        await asyncio.gather(first, *others)
        assert [len(commit) for commit in store.commits] == [1, 49]
        assert writer.commits == 2


async def test_order_of_arrival_is_kept_and_a_transaction_is_bounded() -> None:
    store = GatedStore()
    async with GroupCommitWriter(store) as writer:
        tasks = [asyncio.create_task(writer.write([row(0)]))]
        await until_entered(store)
        half = COMMIT_ROWS_MAX // 2 + 1
        batches = [[row(batch * half + n) for n in range(half)] for batch in range(3)]
        tasks += [asyncio.create_task(writer.write(rows)) for rows in batches]
        await asyncio.sleep(0)
        store.gate.set()
        await asyncio.gather(*tasks)
    assert [len(commit) for commit in store.commits] == [1, half, half, half]
    assert [commit[0].key for commit in store.commits[1:]] == [b"key%d" % (batch * half) for batch in range(3)]


async def test_a_failed_transaction_fails_its_writes_and_the_next_one_works() -> None:
    store = GatedStore()
    store.fault = StoreFullError("no space left")
    store.gate.set()
    async with GroupCommitWriter(store) as writer:
        results = await asyncio.gather(writer.write([row(1)]), writer.write([row(2)]), return_exceptions=True)
        assert [str(result) for result in results] == ["not written: no space left"] * 2
        assert all(isinstance(result, StorageError) for result in results)
        assert results[0] is not results[1]
        assert writer.failures >= 1
        store.fault = None
        await writer.write([row(3)])
    assert [len(commit) for commit in store.commits] == [1]


async def test_more_than_the_queue_holds_is_refused_at_once() -> None:
    store = GatedStore()
    async with GroupCommitWriter(store, queue_rows_max=3) as writer:
        first = asyncio.create_task(writer.write([row(0)]))
        await until_entered(store)
        waiting = asyncio.create_task(writer.write([row(1), row(2)]))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="2 rows"):
            await writer.write([row(3), row(4)])
        store.gate.set()
        await asyncio.gather(first, waiting)
    assert sum(map(len, store.commits)) == 3


async def test_bytes_are_bounded_too() -> None:
    store = GatedStore()
    async with GroupCommitWriter(store, queue_bytes_max=1_000) as writer:
        first = asyncio.create_task(writer.write([row(0)]))
        await until_entered(store)
        # An empty queue takes one write of any size: it could never be written otherwise.
        waiting = asyncio.create_task(writer.write([row(1, 5_000)]))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await writer.write([row(2)])
        store.gate.set()
        await asyncio.gather(first, waiting)


async def test_a_write_that_nobody_waits_for_any_more_is_dropped_before_its_commit() -> None:
    store = GatedStore()
    async with GroupCommitWriter(store) as writer:
        first = asyncio.create_task(writer.write([row(0)]))
        await until_entered(store)
        given_up = asyncio.create_task(writer.write([row(1)]))
        await asyncio.sleep(0)
        given_up.cancel()
        store.gate.set()
        await first
        with pytest.raises(asyncio.CancelledError):
            await given_up
    assert [len(commit) for commit in store.commits] == [1]


async def test_leaving_commits_what_waits_and_refuses_what_comes_later() -> None:
    store = GatedStore()
    writer = GroupCommitWriter(store)
    async with writer:
        tasks = [asyncio.create_task(writer.write([row(0)]))]
        await until_entered(store)
        tasks.append(asyncio.create_task(writer.write([row(1)])))
        await asyncio.sleep(0)
        store.gate.set()
    await asyncio.gather(*tasks)
    assert sum(map(len, store.commits)) == 2
    with pytest.raises(StoppingError):
        await writer.write([row(2)])


async def test_what_was_acknowledged_is_in_the_store(tmp_path: Path) -> None:
    store = LmdbRowStore(tmp_path / "rows")
    try:
        async with GroupCommitWriter(store) as writer:
            await asyncio.gather(*(writer.write([row(number)]) for number in range(200)))
            assert store.row_count == 200
            assert writer.commits < 200
    finally:
        store.close()


async def test_a_full_store_refuses_writes_and_still_reads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = LmdbRowStore(tmp_path / "rows", map_bytes_max=1024 * 1024, durable=False)
    try:
        async with GroupCommitWriter(store) as writer:
            results = [await asyncio.gather(writer.write([row(n, 10_000)]), return_exceptions=True) for n in range(200)]
            failures = [result for (result,) in results if result is not None]
            assert all(isinstance(failure, StorageError) for failure in failures)
            assert "map_bytes_max" in str(failures[0])
            (line,) = caplog.messages
            assert "1 rows were not written" in line
            assert "map_bytes_max" in line
            assert 0 < store.row_count == 200 - len(failures)
            assert store.get(b"key0") == row(0, 10_000)
    finally:
        store.close()


async def test_every_transaction_is_told(tmp_path: Path) -> None:
    told: list[Exception | None] = []
    store = LmdbRowStore(tmp_path / "rows", map_bytes_max=1024 * 1024)
    try:
        async with GroupCommitWriter(store, on_commit=told.append) as writer:
            await writer.write([row(1)])
            with pytest.raises(StorageError):
                await writer.write([row(number, 300_000) for number in range(2, 8)])
    finally:
        store.close()
    assert told[0] is None
    assert isinstance(told[1], StoreFullError)
    assert len(told) == 2


async def test_the_recent_latency_is_told_until_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    store = GatedStore()
    loop = asyncio.get_running_loop()
    now = loop.time()
    async with GroupCommitWriter(store) as writer:
        assert writer.recent_latency_seconds() is None
        monkeypatch.setattr(loop, "time", lambda: now)
        waiting = asyncio.create_task(writer.write([row(0)]))
        await until_entered(store)
        monkeypatch.setattr(loop, "time", lambda: now + 0.25)
        store.gate.set()
        await waiting
        assert writer.recent_latency_seconds() == pytest.approx(0.25)
        monkeypatch.setattr(loop, "time", lambda: now + 0.25 + LATENCY_WINDOW_SECONDS + 0.01)
        assert writer.recent_latency_seconds() is None
        monkeypatch.undo()


async def test_what_the_store_refuses_is_not_acknowledged_and_its_neighbours_are() -> None:
    store = GatedStore()
    store.floor = 5
    async with GroupCommitWriter(store) as writer:
        first = asyncio.create_task(writer.write([row(9)]))
        await until_entered(store)
        writes = [[row(number)] for number in range(1, 8)] + [[row(2), row(8)]]
        tasks = [asyncio.create_task(writer.write(rows)) for rows in writes]
        await asyncio.sleep(0)
        store.gate.set()
        await first
        results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [min(one.version for one in rows) < store.floor for rows in writes]
        assert [isinstance(result, TooOldError) for result in results] == refused
        assert all(result is None for result in results if not isinstance(result, TooOldError))
        with pytest.raises(TooOldError, match="older than what repair has settled"):
            await writer.write([row(0)])
        assert writer.failures == 0
