"""The replica: goal - its index is at every moment that of the rows, whatever is written, rebuilt, killed or kept."""

from __future__ import annotations

import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from antientropy import (
    LmdbRowStore,
    MemoryRowStore,
    Replica,
    ReplicaSnapshot,
    Row,
    RowDigests,
    RowReader,
    StoreClosedError,
    StoreError,
    TokenRange,
)
from antientropy.core.floors import expired, no_floors
from antientropy.core.index import Index
from antientropy.core.merkle import EMPTY_ROOT
from antientropy.core.tokens import TOKEN_MAX, bucket_of
from antientropy.store import Listener

FULL = TokenRange.full()
Store = MemoryRowStore | LmdbRowStore


@pytest.fixture(params=["memory", "lmdb"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    stores: list[Store] = []

    def make() -> Store:
        path = tmp_path / f"store{len(stores)}"
        stores.append(MemoryRowStore() if request.param == "memory" else LmdbRowStore(path, durable=False))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(make_store: Callable[[], Store]) -> Store:
    return make_store()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def numbered(count: int, version: int = 1, first: int = 0) -> list[Row]:
    return [Row(b"key%d" % number, version, b"v%d" % version) for number in range(first, first + count)]


def made_of(digests: RowDigests, like: Index | ReplicaSnapshot) -> Index:
    tree = like.tree
    index = Index.empty(tree.depth, tree.epoch)
    index.fold_rows(digests)
    return index


def digests_of(source: RowReader | ReplicaSnapshot, token_range: TokenRange = FULL) -> RowDigests:
    return RowDigests.concatenate([*source.digests([token_range])])


def brute_force(store: Store, token_range: TokenRange, floors: NDArray[np.uint64] | None) -> RowDigests:
    reader = store.read()
    rows = digests_of(reader, token_range)
    reader.close()
    return rows if floors is None else rows.take(~expired(rows, floors))


def check(replica: Replica, token_range: TokenRange = FULL, floors: NDArray[np.uint64] | None = None) -> None:
    """Snapshot and root of a quiet store are those of its rows."""
    assert isinstance(replica.store, MemoryRowStore | LmdbRowStore)
    rows = brute_force(replica.store, token_range, floors)
    snapshot = replica.snapshot(token_range, floors)
    try:
        expected = made_of(rows, snapshot)
        assert snapshot.tree.same_as(expected.tree)
        assert snapshot.sketch.same_as(expected.bank)
        found = digests_of(snapshot)
        assert found.tokens.tolist() == rows.tokens.tolist()
        assert found.digests.tolist() == rows.digests.tolist()
        assert snapshot.root == replica.root(token_range, floors) == expected.tree.root
        moved = list(snapshot.rows_at(np.unique(rows.tokens).tolist()))
        assert sorted(row.digest for row in moved) == sorted(
            high.to_bytes(8, "big") + low.to_bytes(8, "big") for high, low in rows.digests.tolist()
        )
    finally:
        snapshot.close()


some_rows = st.lists(
    st.builds(
        lambda key, version, value, deleted: Row(key, version, b"" if deleted else value, deleted),
        st.binary(min_size=1, max_size=2),
        st.integers(0, 9),
        st.binary(max_size=2),
        st.booleans(),
    ),
    max_size=40,
)
tokens = st.integers(0, TOKEN_MAX)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    batches=st.lists(some_rows, min_size=1, max_size=4),
    ends=st.tuples(tokens, tokens),
    depth=st.integers(1, 3),
    epoch=st.integers(0, 3),
    floor=st.integers(0, 10),
    seed=st.integers(0, 99),
)
def test_the_index_is_that_of_the_rows(
    make_store: Callable[[], Store],
    batches: list[list[Row]],
    ends: tuple[int, int],
    depth: int,
    epoch: int,
    floor: int,
    seed: int,
) -> None:
    store = make_store()
    store.apply(batches[0])
    floors = np.random.default_rng(seed).integers(0, floor + 1, 256).astype(np.uint64)
    part = TokenRange(min(ends), max(ends))
    with Replica(store, tree_depth=depth, epoch=epoch) as replica:
        for batch in batches[1:]:
            store.apply(batch)
            check(replica, part)
        check(replica)
        check(replica, FULL, floors)
        check(replica, part, floors)
        store.purge(floors, 5)
        check(replica, part, floors)
        store.purge(floors, 1_000)
        check(replica)
        assert replica.root(FULL, floors) == replica.root(FULL)
        assert replica.epoch == epoch
    store.close()


def test_a_snapshot_is_one_point_in_time(store: Store) -> None:
    store.apply(numbered(500))
    with Replica(store) as replica:
        before = replica.root(FULL)
        snapshot = replica.snapshot(FULL)
        store.apply(numbered(100, version=2))
        assert snapshot.root == before != replica.root(FULL)
        assert made_of(digests_of(snapshot), snapshot).same_as(snapshot._index)
        snapshot.close()
        with pytest.raises(StoreClosedError):
            list(snapshot.digests([FULL]))


def test_a_snapshot_tells_nothing_outside_of_its_range(store: Store) -> None:
    rows = sorted(numbered(200), key=lambda row: row.token)
    store.apply(rows)
    part = TokenRange(rows[50].token, rows[99].token)
    with Replica(store) as replica:
        snapshot = replica.snapshot(part)
        assert snapshot.token_range == part
        assert len(digests_of(snapshot, FULL)) == 50
        assert list(snapshot.rows_at([row.token for row in rows])) == rows[50:100]
        snapshot.close()


def test_purged_here_and_only_expired_there_look_the_same(make_store: Callable[[], Store]) -> None:
    one, other = make_store(), make_store()
    dead = [Row(b"key%d" % number, 5, b"", deleted=True) for number in range(0, 300, 3)]
    for each in (one, other):
        each.apply(numbered(300))
        each.apply(dead)
    floors = np.full(256, 6, np.uint64)
    one.purge(floors, 1_000)
    with Replica(one) as purged, Replica(other) as full:
        assert purged.root(FULL) != full.root(FULL)
        assert purged.root(FULL, floors) == full.root(FULL, floors)
        part = TokenRange(TOKEN_MAX // 5, TOKEN_MAX // 3)
        mine, theirs = purged.snapshot(part, floors), full.snapshot(part, floors)
        assert mine.sketch.same_as(theirs.sketch)
        assert mine.root == theirs.root == full.root(part, floors)
        assert list(theirs.rows_at(sorted(row.token for row in dead))) == []
        mine.close()
        theirs.close()
        other.apply([Row(b"key0", 9, b"alive")])
        assert purged.root(FULL, floors) != full.root(FULL, floors), "a remembered root is not used after a change"
        assert full.root(FULL, no_floors()) == full.root(FULL)
        with pytest.raises(ValueError, match="floors are 256"):
            full.root(FULL, floors[:3])


def test_a_tree_deepens_while_rows_grow(store: Store) -> None:
    with Replica(store) as replica:
        assert replica.tree_depth == 1
        for start in range(0, 5_000, 500):
            store.apply(numbered(500, first=start))
        replica.settle()
        assert replica.tree_depth == 3
        check(replica)
    with Replica(store, tree_depth=2) as fixed:
        fixed.settle()
        assert fixed.tree_depth == 2


def test_changes_that_nobody_asks_for_are_taken_in(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antientropy.replica.PENDING_CHANGES_MAX", 64)
    with Replica(store) as replica:
        store.apply(numbered(1_000))
        until(lambda: replica._log_rows == 0)
        until(lambda: replica.tree_depth == 3)
        check(replica)


def test_a_writer_takes_changes_in_when_too_many_wait(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antientropy.replica.PENDING_CHANGES_HARD_MAX", 10)
    with Replica(store) as replica:
        store.apply(numbered(9))
        assert replica._log_rows == 9
        with replica._index_lock:
            store.apply(numbered(3, version=2))
            assert replica._log_rows == 15, "never waits"
        store.apply([Row(b"one", 1, b"")])
        assert replica._log_rows == 0
        check(replica)


def test_rebuild_under_another_epoch_lasts(store: Store) -> None:
    store.apply(numbered(300))
    with Replica(store) as replica:
        before = replica.root(FULL)
        replica.rebuild(epoch=7).result()
        assert replica.epoch == 7
        after = replica.root(FULL)
        assert after.count == before.count
        assert after.digest != before.digest
        check(replica)
        for wrong in (-1, 2**32):
            with pytest.raises(ValueError, match="epoch"):
                replica.rebuild(epoch=wrong)
    with Replica(store) as again:
        assert again.epoch == 7
        assert again.root(FULL) == after
    with pytest.raises(ValueError, match="epoch"):
        Replica(store, epoch=-1)


def test_writes_go_on_while_the_index_is_rebuilt(store: Store) -> None:
    """Method: four writers, a rebuilder that changes depth and epoch, snapshots checked by brute force."""
    store.apply(numbered(2_000))
    stop = threading.Event()

    def write(worker: int) -> None:
        chance = random.Random(worker)
        version = 2
        while not stop.is_set():
            rows = [Row(b"key%d" % chance.randrange(3_000), version, b"%d" % worker) for _ in range(20)]
            rows.append(Row(b"key%d" % chance.randrange(3_000), version, b"", deleted=True))
            store.apply(rows, from_repair=chance.random() < 0.3)
            version += 1

    with Replica(store) as replica, ThreadPoolExecutor(5) as pool:
        writers = [pool.submit(write, worker) for worker in range(4)]
        try:
            for number in range(12):
                rebuilding = replica.rebuild(epoch=number, tree_depth=1 + number % 4)
                snapshot = replica.snapshot(FULL if number % 2 else TokenRange(TOKEN_MAX // 7, TOKEN_MAX // 2))
                assert made_of(digests_of(snapshot), snapshot).same_as(snapshot._index)
                snapshot.close()
                rebuilding.result()
                assert (replica.epoch, replica.tree_depth) == (number, 1 + number % 4)
        finally:
            stop.set()
        for writer in writers:
            writer.result()
        check(replica)


def test_rebuilds_take_turns(store: Store) -> None:
    store.apply(numbered(100))
    with Replica(store) as replica:
        futures = [replica.rebuild(epoch=epoch) for epoch in range(1, 6)]
        for future in futures:
            future.result()
        assert replica.epoch == 5
        check(replica)


class Failing(MemoryRowStore):
    broken = False

    def read(self, on_open: Callable[[], None] = lambda: None) -> RowReader:  # type: ignore[override]  # as any store
        if self.broken:
            raise StoreError("the disk has gone")
        return super().read(on_open)


def test_a_store_that_fails_ends_a_rebuild_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    store = Failing()
    store.apply(numbered(50))
    with Replica(store) as replica:
        before = replica.root(FULL)
        store.broken = True
        with pytest.raises(StoreError, match="gone"):
            replica.rebuild(epoch=3).result()
        assert "could not be made anew" in caplog.text
        with pytest.raises(StoreError, match="gone"):
            replica.snapshot(FULL)
        store.broken = False
        store.apply(numbered(50, version=2))
        assert replica.epoch == 0
        assert replica.root(FULL) != before
        check(replica)


def test_a_store_that_fails_at_opening_can_be_opened_later() -> None:
    store = Failing()
    store.apply(numbered(50))
    store.broken = True
    replica = Replica(store)
    with pytest.raises(StoreError, match="gone"):
        replica.open()
    store.broken = False
    check(replica)
    replica.close()


def test_a_closed_replica() -> None:
    store = MemoryRowStore()
    replica = Replica(store)
    assert replica.root(FULL) == EMPTY_ROOT, "opens by itself"
    replica.close()
    replica.close()
    store.apply(numbered(1))
    uses: tuple[Callable[[], object], ...] = (
        replica.open,
        lambda: replica.root(FULL),
        lambda: replica.snapshot(FULL),
        replica.rebuild,
        lambda: replica.epoch,
    )
    for use in uses:
        with pytest.raises(StoreClosedError):
            use()
    assert replica._log_rows == 0


def test_progress_of_a_scan(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antientropy.replica._ROWS_PER_FOLD", 100)
    monkeypatch.setattr("antientropy.stores.memory.DIGESTS_PER_CHUNK_MAX", 100)
    monkeypatch.setattr("antientropy.stores.lmdb_reader.DIGESTS_PER_CHUNK_MAX", 100)
    store.apply(numbered(1_000))
    told: list[float] = []
    replica = Replica(store)
    replica.open(told.append)
    assert len(told) == 11
    assert told == sorted(told)
    assert told[-1] == 1.0
    check(replica)
    replica.close()


# --- stores that report nothing ---


class Silent(MemoryRowStore):
    """Somebody else writes to it."""

    reads = 0
    state: bytes | None = None

    def subscribe(self, listener: Listener | None) -> bool:
        return False

    def state_id(self) -> bytes | None:
        return self.state

    def read(self, on_open: Callable[[], None] = lambda: None) -> RowReader:  # type: ignore[override]  # as any store
        self.reads += 1
        return super().read(on_open)


def test_a_store_that_reports_nothing_is_scanned() -> None:
    store = Silent()
    store.apply(numbered(100))
    with Replica(store) as replica:
        check(replica)
        store.apply(numbered(700, version=3))
        check(replica, TokenRange(0, TOKEN_MAX // 3))
        store.apply([Row(b"key1", 9, b"", deleted=True)])
        check(replica, FULL, np.full(256, 10, np.uint64))
        replica.rebuild(epoch=2).result()
        assert replica.snapshot(FULL).epoch == 2
        check(replica)


def test_a_store_that_names_its_content_is_scanned_once() -> None:
    store = Silent()
    store.apply(numbered(100))
    store.state = b"1"
    with Replica(store) as replica:
        snapshots = [replica.snapshot(FULL), replica.snapshot(FULL)]
        assert snapshots[0].root == snapshots[1].root
        index = replica._index
        replica.root(FULL)
        assert replica._index is index
        store.apply(numbered(10, version=2))
        store.state = b"2"
        check(replica)
        assert replica._index is not index


# --- the kept index ---


@pytest.fixture
def no_scan(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Counts scans."""
    scans: list[bool] = []
    scan = Replica._scan

    def counted(*arguments: object) -> Index:
        scans.append(True)
        return scan(*arguments)  # type: ignore[arg-type]  # a spy

    monkeypatch.setattr(Replica, "_scan", counted)
    return scans


def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "index"


def test_a_kept_index_is_used_and_taken_away(tmp_path: Path, no_scan: list[bool]) -> None:
    with LmdbRowStore(tmp_path) as store:
        store.apply(numbered(3_000))
        with Replica(store, index_dir=tmp_path / "kept", epoch=5) as replica:
            root = replica.root(FULL)
        assert kept(tmp_path).exists()
    with LmdbRowStore(tmp_path) as store, Replica(store, index_dir=tmp_path / "kept", epoch=5) as replica:
        assert not kept(tmp_path).exists()
        assert len(no_scan) == 1
        assert replica.root(FULL) == root
        check(replica)
        store.apply(numbered(10, version=2))
        check(replica)
        assert replica.tree_depth == 3
    with LmdbRowStore(tmp_path) as store, Replica(store, index_dir=tmp_path / "kept", epoch=5) as replica:
        assert len(no_scan) == 1
        check(replica)


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("damage", ["written", "byte", "short", "empty", "magic", "depth", "epoch", "directory"])
def test_a_kept_index_that_may_be_wrong_is_not_used(tmp_path: Path, no_scan: list[bool], damage: str) -> None:
    with LmdbRowStore(tmp_path) as store:
        store.apply(numbered(600))
        Replica(store, index_dir=tmp_path / "kept").close()
        replica = Replica(store, index_dir=tmp_path / "kept")
        replica.open()
        replica.close()
        data = kept(tmp_path).read_bytes()
        if damage == "written":
            store.apply([Row(b"key1", 1, b"v1"), Row(b"key2", 2, b"")])
        elif damage == "directory":
            kept(tmp_path).unlink()
            kept(tmp_path).mkdir()
        elif damage not in ("depth", "epoch"):
            changed = {
                "byte": flip(data, len(data) // 2),
                "short": data[: len(data) // 2],
                "empty": b"",
                "magic": flip(data, 3),
            }
            kept(tmp_path).write_bytes(changed[damage])
        scans = len(no_scan)
        depth, epoch = (4 if damage == "depth" else None), (3 if damage == "epoch" else None)
        with Replica(store, index_dir=tmp_path / "kept", tree_depth=depth, epoch=epoch) as again:
            assert len(no_scan) == scans + 1
            check(again)


def test_every_byte_of_a_kept_index_is_checked(tmp_path: Path) -> None:
    from antientropy.index_file import take_index, write_index

    index = Index.empty(1, 3)
    index.fold_rows(RowDigests.of([5 << 60], [7], [b"\x05" * 16]))
    path = tmp_path / "index"
    assert write_index(path, index, b"state")
    data = path.read_bytes()
    taken = take_index(path, b"state")
    assert taken is not None
    assert taken.same_as(index)
    assert take_index(path, b"state") is None
    for at in [*range(0, len(data), 4_999), *range(60), *range(len(data) - 20, len(data))]:
        path.write_bytes(flip(data, at))
        assert take_index(path, b"state") is None
    for state in (b"other", None):
        path.write_bytes(data)
        assert take_index(path, state) is None


def test_no_room_for_the_index_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with LmdbRowStore(tmp_path, durable=False) as store:
        store.apply(numbered(100))
        replica = Replica(store, index_dir=tmp_path / "kept")
        replica.open()
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, limit[1]))
        try:
            replica.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert "cannot be kept" in caplog.text
        assert list((tmp_path / "kept").iterdir()) == []
        with Replica(store, index_dir=tmp_path / "kept") as again:
            check(again)


def test_a_store_that_was_closed_first_keeps_no_index(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store = LmdbRowStore(tmp_path)
    replica = Replica(store, index_dir=tmp_path / "kept")
    replica.open()
    store.close()
    replica.close()
    assert not kept(tmp_path).exists()
    assert "not kept" in caplog.text


def test_the_index_of_a_quiet_store_is_kept_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antientropy.replica.SAVE_QUIET_SECONDS", 0.01)
    with LmdbRowStore(tmp_path) as store, Replica(store, index_dir=tmp_path / "kept") as replica:
        for version in range(1, 4):
            store.apply(numbered(30, version=version))
            kept(tmp_path).unlink(missing_ok=True)
            until(kept(tmp_path).exists)
        check(replica)


WRITER = """
import sys
from pathlib import Path
from antientropy import LmdbRowStore, Replica, Row
import antientropy.replica

antientropy.replica.SAVE_QUIET_SECONDS = 0.002
antientropy.replica.PENDING_CHANGES_MAX = 100
path = Path(sys.argv[1])
store = LmdbRowStore(path)
replica = Replica(store, index_dir=path / "kept")
replica.open()
version = store.version_max
while True:
    version += 1
    store.apply([Row(b"key%d" % (number * version % 5_000), version, b"v") for number in range(30)])
    print(version, flush=True)
"""


@pytest.mark.process
def test_what_is_used_after_sigkill_is_the_index_of_the_rows(tmp_path: Path) -> None:
    """Method: a process writes, while its replica keeps the index all the time; it is killed, again and again."""
    chance = random.Random(3)
    for _ in range(6):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        try:
            for _ in range(chance.randrange(1, 60)):
                assert writer.stdout.readline()
            os.kill(writer.pid, signal.SIGKILL)
        finally:
            writer.kill()
            writer.wait()
            writer.stdout.close()
        with LmdbRowStore(tmp_path) as store, Replica(store, index_dir=tmp_path / "kept") as replica:
            check(replica)
            (tmp_path / "kept" / "index.new").unlink(missing_ok=True)


def test_floors_of_buckets(store: Store) -> None:
    dead = [Row(b"key%d" % number, 5, b"", deleted=True) for number in range(500)]
    store.apply(dead)
    buckets = bucket_of(np.array([row.token for row in dead], np.uint64))
    floors = no_floors()
    floors[: 256 // 2] = 6
    with Replica(store) as replica:
        assert replica.root(FULL, floors).count == int((buckets >= 128).sum())
        check(replica, FULL, floors)
        check(replica, TokenRange(TOKEN_MAX // 3, TOKEN_MAX - 5), floors)


class Busy(MemoryRowStore):
    """A write comes just after a read has opened."""

    rows: Iterator[Row] | None = None

    def read(self, on_open: Callable[[], None] = lambda: None) -> RowReader:  # type: ignore[override]  # as any store
        reader = super().read(on_open)
        if self.rows is not None:
            self.apply([next(self.rows)])
        return reader


def test_a_write_just_after_a_read_is_not_forgotten() -> None:
    store = Busy()
    store.apply(numbered(50))
    store.apply([Row(b"gone", 1, b"", deleted=True)])
    floors = np.full(256, 2, np.uint64)
    with Replica(store) as replica:
        for version, part in ((5, FULL), (6, TokenRange(0, TOKEN_MAX - 1))):
            store.rows = iter(numbered(50, version))
            snapshot = replica.snapshot(part)
            assert made_of(digests_of(snapshot), snapshot).same_as(snapshot._index)
            snapshot.close()
            before = replica.root(part, floors)
            store.rows = None
            assert replica.root(part, floors) != before
            check(replica, part, floors)
