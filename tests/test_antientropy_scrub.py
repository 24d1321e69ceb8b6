"""The scrub: goal - damaged rows are found, moved aside and brought back by repair; a drifted index is made anew."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pytest
from repair_cluster import cluster, repaired, until

from antientropy import (
    LmdbRowStore,
    MemoryRowStore,
    RepairConfig,
    Replica,
    Row,
    RowReader,
    SessionState,
    StoreCorruptError,
    StoreError,
    TokenRange,
)
from antientropy.core.rows import Changes
from antientropy.core.tokens import BUCKETS
from antientropy.scrub import BucketReport, Scrubber, scrub_steadily

FULL = TokenRange.full()
ROWS = [
    Row(b"key%d" % number, 1 + number, b"" if number % 7 == 0 else b"value", number % 7 == 0) for number in range(900)
]


def overwrite(path: Path, change: Callable[[bytes], bytes], keys: list[bytes]) -> None:
    """As the disk would: behind the store's back."""
    with lmdb.open(str(path), max_dbs=5) as environment:
        database = environment.open_db(b"rows")
        with environment.begin(write=True, db=database) as transaction:
            for key in keys:
                place = Row(key, 0, b"").token.to_bytes(8, "big") + key
                stored = transaction.get(place)
                assert stored is not None
                transaction.put(place, change(bytes(stored)))


def scrub_all(scrubber: Scrubber) -> list[BucketReport]:
    return [report for bucket in range(BUCKETS) if not (report := scrubber.scrub_bucket(bucket)).clean]


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    with LmdbRowStore(tmp_path, durable=False) as store:
        store.apply(ROWS)
        with Replica(store) as replica:
            yield replica


def test_a_sound_replica_is_clean(replica: Replica) -> None:
    scrubber = Scrubber(replica)
    assert scrub_all(scrubber) == []
    sums = scrubber.statistics
    assert (sums.buckets, sums.rows_read, sums.rows_damaged, sums.drifts) == (256, 900, 0, 0)
    assert sums.bytes_read > 900 * 30
    replica.store.apply([Row(b"key1", 99_999, b"new")])
    assert scrub_all(scrubber) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored[:-1] + bytes([stored[-1] ^ 1]),
        lambda stored: stored + b"longer",
        lambda stored: bytes([stored[0] ^ 1]) + stored[1:],
        lambda stored: stored[:8] + bytes([stored[8] ^ 1]) + stored[9:],
        lambda stored: stored[:20] + bytes([stored[20] ^ 1]) + stored[21:],
    ],
    ids=["value", "length", "version", "flag", "digest"],
)
def test_damaged_rows_are_moved_aside_and_brought_back(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    with LmdbRowStore(tmp_path) as store:
        store.apply(ROWS)
    rotten = [b"key1", b"key500", b"key7"]
    overwrite(tmp_path, change, rotten)
    with LmdbRowStore(tmp_path) as store, Replica(store) as replica:
        with pytest.raises(StoreCorruptError, match="scrub this replica"):
            list(store.read().rows_at(sorted(row.token for row in ROWS)))
        scrubber = Scrubber(replica)
        findings = scrub_all(scrubber)
        replica.settle()
        assert sorted(name[8:] for report in findings for name in report.damaged) == rotten
        assert scrubber.statistics.rows_quarantined == scrubber.statistics.rows_damaged == 3
        assert scrubber.statistics.findings == findings
        assert set(store.quarantined()) == set(rotten)
        assert store.get(b"key1") is None
        assert store.row_count == replica.root(FULL).count == 897
        assert scrub_all(scrubber) == []
        assert store.apply([row for row in ROWS if row.key in rotten], from_repair=True) == 3
        with Replica(MemoryRowStore()) as sound:
            sound.store.apply(ROWS)
            assert sound.root(FULL) == replica.root(FULL)
        assert store.tombstone_count == sum(row.deleted for row in ROWS)
        assert sum(map(len, store.read().tombstones(2**63))) == store.tombstone_count


def test_a_row_without_a_header_is_moved_aside_when_the_replica_opens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with LmdbRowStore(tmp_path) as store:
        store.apply(ROWS)
    overwrite(tmp_path, lambda stored: stored[:5], [b"key2"])
    with LmdbRowStore(tmp_path) as store:
        with pytest.raises(StoreCorruptError, match="shorter than its header"):
            list(store.read().digests([FULL]))
        with Replica(store) as replica:
            assert "1 damaged rows were moved aside" in caplog.text
            assert replica.root(FULL).count == 899 == store.row_count
            assert scrub_all(Scrubber(replica)) == []
        assert set(store.quarantined()) == {b"key2"}


def test_a_row_that_was_overwritten_meanwhile_stays(tmp_path: Path) -> None:
    with LmdbRowStore(tmp_path) as store:
        store.apply(ROWS)
        place = ROWS[1].token.to_bytes(8, "big") + ROWS[1].key
        assert store.quarantine([place, b"\0" * 8 + b"never"]) == 0
        assert store.row_count == 900


def test_a_row_that_rots_in_memory() -> None:
    store = MemoryRowStore()
    store.apply(ROWS)
    stored = store._rows[b"key3"]
    with Replica(store) as replica:
        replica.open()
        store._view = None
        store._rows[b"key3"] = replace(stored, row=replace(stored.row, value=b"rotten"))
        with pytest.raises(StoreCorruptError, match="does not match"):
            list(store.read().rows_at([stored.token]))
        (report,) = scrub_all(Scrubber(replica))
        assert (report.damaged, report.quarantined, report.drifted) == ((b"key3",), 1, False)
        assert replica.root(FULL).count == store.row_count == 899


def drift_of_a_leaf(replica: Replica) -> None:
    rows = Changes.of([ROWS[5].token], [1], [b"\1" * 16], [1])
    replica._record(rows)


def drift_of_a_sketch(replica: Replica) -> None:
    index = replica._index
    assert index is not None
    index.bank.fold(np.array([ROWS[5].token], np.uint64), np.array([1], np.uint64), np.array([1], np.int8))


def drift_of_the_root(replica: Replica) -> None:
    index = replica._index
    assert index is not None
    index.tree.levels[0].counts[0] += 1


def drift_of_an_inner_node(replica: Replica) -> None:
    index = replica._index
    assert index is not None
    index.tree.levels[2].low[ROWS[5].token >> 56] ^= np.uint64(1)


@pytest.mark.parametrize(
    ("drift", "depth"),
    [
        *((drift, depth) for drift in (drift_of_a_leaf, drift_of_a_sketch, drift_of_the_root) for depth in (1, 2, 4)),
        (drift_of_an_inner_node, 2),
        (drift_of_an_inner_node, 4),
    ],
)
def test_drift_is_reported_and_the_index_made_anew(
    tmp_path: Path, drift: Callable[[Replica], None], depth: int
) -> None:
    reports: list[BucketReport] = []
    with LmdbRowStore(tmp_path, durable=False) as store, Replica(store, tree_depth=depth) as replica:
        store.apply(ROWS)
        sound = replica.root(FULL)
        drift(replica)
        report = Scrubber(replica, reports.append).scrub_bucket(ROWS[5].token >> 56)
        assert reports == [report]
        assert report.drifted
        assert not report.damaged
        replica.settle()
        assert replica.root(FULL) == sound
        assert Scrubber(replica).scrub_bucket(ROWS[5].token >> 56).clean


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    with LmdbRowStore(tmp_path) as store, Replica(store) as replica:
        store.apply(ROWS[:50])
        scrubber = Scrubber(replica)
        assert [scrubber.scrub_next().bucket for _ in range(3)] == [0, 1, 2]
        store.write_mark("scrub", b"\0\xff")
    with LmdbRowStore(tmp_path) as store, Replica(store) as replica:
        scrubber = Scrubber(replica)
        assert [scrubber.scrub_next().bucket for _ in range(2)] == [255, 0]
        assert scrubber.statistics.rounds == 1
        store.write_mark("scrub", b"garbage")
        assert scrubber.next_bucket == 0


class Unreadable(MemoryRowStore):
    broken = False

    def read(self, on_open: Callable[[], None] = lambda: None) -> RowReader:  # type: ignore[override]  # as any store
        if self.broken:
            raise StoreError("the disk has gone")
        return super().read(on_open)


async def test_it_runs_steadily_and_survives_a_failing_store(caplog: pytest.LogCaptureFixture) -> None:
    store = Unreadable()
    store.apply(ROWS)
    with Replica(store) as replica, ThreadPoolExecutor(1) as executor:
        replica.open()
        scrubber = Scrubber(replica)
        store.broken = True
        task = asyncio.create_task(scrub_steadily(scrubber, executor, period_seconds=0.256))
        async with asyncio.timeout(20):
            while scrubber.statistics.failures < 2:
                await asyncio.sleep(0.001)
            store.broken = False
            while scrubber.statistics.rounds < 2:
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert "scrub failed: the disk has gone" in caplog.text
        assert scrubber.statistics.rows_read >= 900


def test_the_epoch_is_rotated(replica: Replica) -> None:
    before = replica.root(FULL)
    Scrubber(replica).rotate_epoch()
    assert replica.epoch == 1
    assert replica.root(FULL) != before
    assert scrub_all(Scrubber(replica)) == []


def test_a_store_that_can_only_be_read_is_looked_at_for_drift() -> None:
    """Method: a reader without the optional method."""
    store = MemoryRowStore()
    store.apply(ROWS)

    class Plain:
        def __init__(self, reader: RowReader) -> None:
            self.digests, self.rows_at, self.tombstones, self.close = (
                reader.digests,
                reader.rows_at,
                reader.tombstones,
                reader.close,
            )

    with pytest.MonkeyPatch.context() as patch, Replica(store) as replica:
        read = store.read
        patch.setattr(store, "read", lambda on_open=lambda: None: Plain(read(on_open)))
        report = Scrubber(replica).scrub_bucket(3)
        assert report == BucketReport(3, 0, 0, (), 0, drifted=False)
        drift_of_a_leaf(replica)
        assert Scrubber(replica).scrub_bucket(ROWS[5].token >> 56).drifted
        deadline = time.monotonic() + 20
        while scrub_all(Scrubber(replica)):
            assert time.monotonic() < deadline
            replica.settle()


# --- run by the service ---


async def test_a_service_scrubs_by_itself_and_the_next_repair_brings_back_what_was_damaged(tmp_path: Path) -> None:
    with LmdbRowStore(tmp_path / "a", durable=False) as one, LmdbRowStore(tmp_path / "b", durable=False) as other:
        for store in (one, other):
            store.apply(ROWS)
        one.close()
        overwrite(tmp_path / "a", lambda stored: stored[:-1] + bytes([stored[-1] ^ 1]), [b"key1", b"key2"])
        with LmdbRowStore(tmp_path / "a", durable=False) as damaged:
            async with cluster(damaged, other, config=RepairConfig(scrub_period_seconds=0.5)) as made:
                metrics = made[0].service.metrics

                def counted(name: str) -> float:
                    return dict(metrics.snapshot())[f'antientropy_scrub_{name}_total{{keyspace="kv"}}']

                await until(lambda: counted("rounds") >= 1, 30)
                assert (counted("rows_damaged"), counted("rows_quarantined"), counted("drifts")) == (2, 2, 0)
                assert counted("rows_read") >= len(ROWS)
                assert damaged.row_count == len(ROWS) - 2
                last = (await repaired(made[0]))[-1]
                assert (last.state, last.statistics.rows_moved) == (SessionState.COMPLETED, 2)
                assert made.equal()


async def test_after_a_round_one_replica_begins_a_new_epoch_and_the_others_follow() -> None:
    stores = [MemoryRowStore() for _ in range(3)]
    for store in stores:
        store.apply(ROWS)
    # The first of those that are alive begins; a scrub of the others begins nothing.
    configs = [RepairConfig(scrub_period_seconds=seconds) for seconds in (0.3, 0.3, 0)]
    async with cluster(*stores, config=lambda number: configs[number]) as made:
        made.ring.dead = {made.ring.endpoints[0]}
        replicas = [node.service._replicas["kv"] for node in made.nodes]
        await until(lambda: replicas[1].epoch > 0, 30)
        assert replicas[2].epoch == 0
        made.ring.dead = set()
        stores[2].apply([Row(b"another", 1, b"value")])
        assert (await repaired(made[2]))[-1].state is SessionState.COMPLETED
        assert replicas[2].epoch > 0
        assert made.equal()


async def test_no_scrub_runs_where_it_is_turned_off() -> None:
    async with cluster(MemoryRowStore(), config=RepairConfig(scrub_period_seconds=0)) as made:
        assert not any("scrub" in task.get_name() for task in made[0].service._background)
        assert all(value == 0 for name, value in made[0].service.metrics.snapshot() if "scrub" in name)
