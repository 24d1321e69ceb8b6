"""Both stores keep one contract; the LMDB store also keeps what it acknowledged, whatever happens to the process."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from antientropy import (
    LmdbRowStore,
    MemoryRowStore,
    Row,
    RowReader,
    RowRefusedError,
    StoreClosedError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreInUseError,
    StoreReadOnlyError,
    TokenRange,
)
from antientropy.core import deletes, hashing
from antientropy.core.merkle import HashTree, Root
from antientropy.core.rows import Changes, RowDigests
from antientropy.core.tokens import TOKEN_MAX
from antientropy.limits import LMDB_READERS_MAX

Store = MemoryRowStore | LmdbRowStore
FULL = TokenRange.full()


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


def read_rows(reader: RowReader, token_range: TokenRange = FULL) -> list[Row]:
    """All rows with their values, through the digests."""
    tokens = RowDigests.concatenate([*reader.digests([token_range])]).tokens
    return list(reader.rows_at(np.unique(tokens).tolist()))


def rows_of(store: Store, token_range: TokenRange = FULL) -> list[Row]:
    reader = store.read()
    try:
        return read_rows(reader, token_range)
    finally:
        reader.close()


def columns_of(rows: list[Row]) -> RowDigests:
    return RowDigests.of([row.token for row in rows], [row.version for row in rows], [row.digest for row in rows])


def root_of(rows: list[Row]) -> Root:
    """Hashing them again."""
    return HashTree.build(columns_of(rows), 1).root


def check_consistent(store: Store) -> None:
    """Digests, tombstones, counters and rows tell the same."""
    reader = store.read()
    rows = read_rows(reader)
    digests = RowDigests.concatenate([*reader.digests([FULL])])
    assert HashTree.build(digests, 1).root == root_of(rows)
    listed = RowDigests.concatenate([*reader.tombstones(2**64 - 1)])
    dead = [row for row in rows if row.deleted and row.version < 2**64 - 1]
    assert HashTree.build(listed, 2).same_as(HashTree.build(columns_of(dead), 2))
    reader.close()
    assert store.row_count == len(rows)
    assert store.tombstone_count == sum(row.deleted for row in rows)
    assert store.version_max == max([row.version for row in rows], default=0)
    assert rows == sorted(rows, key=lambda row: (row.token, row.key))


some_rows = st.lists(
    st.one_of(
        st.builds(Row, key=st.binary(min_size=1, max_size=2), version=st.integers(0, 3), value=st.binary(max_size=3)),
        st.builds(
            Row,
            key=st.binary(min_size=1, max_size=2),
            version=st.integers(0, 3),
            value=st.just(b""),
            deleted=st.just(True),
        ),
    ),
    max_size=30,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(batches=st.lists(some_rows, max_size=4), data=st.data())
def test_apply_keeps_the_winner_of_each_key_in_any_order(
    make_store: Callable[[], Store], batches: list[list[Row]], data: st.DataObject
) -> None:
    one, other = make_store(), make_store()
    winners: dict[bytes, Row] = {}
    for batch in batches:
        one.apply(batch)
        for row in batch:
            if row.key not in winners or row.wins_over(winners[row.key]):
                winners[row.key] = row
    flat = data.draw(st.permutations([row for batch in batches for row in batch]))
    other.apply(flat)
    assert one.apply(flat) == 0, "idempotent"
    for store in (one, other):
        assert {row.key: row for row in rows_of(store)} == winners
        check_consistent(store)
    one.close()
    other.close()


def test_apply_counts_what_changed(store: Store) -> None:
    assert store.apply([Row(b"a", 1, b"x"), Row(b"b", 1, b"x")]) == 2
    assert store.apply([Row(b"a", 1, b"x"), Row(b"b", 2, b"y"), Row(b"b", 0, b"z")]) == 1
    assert store.apply([Row(b"c", 1, b"1"), Row(b"c", 2, b"2")]) == 2
    assert store.apply([]) == 0


def test_reads(store: Store) -> None:
    rows = [Row(b"%d" % number, number, b"v" * number) for number in range(50)] + [Row(b"gone", 7, b"", deleted=True)]
    store.apply(rows)
    assert store.get(b"7") == rows[7]
    assert store.get(b"gone") == rows[-1]
    assert store.get(b"never") is None
    assert store.get_many([b"3", b"never", b"2"]) == [rows[3], None, rows[2]]
    assert store.get_many([b"x" * 600, b""]) == [None, None]
    in_order = sorted(rows, key=lambda row: (row.token, row.key))
    assert store.scan() == in_order
    assert store.scan(limit=3) == in_order[:3]
    assert store.scan(after_key=in_order[4].key, limit=2) == in_order[5:7]
    assert store.scan(after_key=in_order[-1].key) == []
    part = TokenRange(in_order[10].token, in_order[20].token)
    assert store.scan(part) == in_order[10:21]
    assert store.scan(part, after_key=in_order[19].key) == in_order[20:21]
    assert store.scan(part, after_key=in_order[3].key, limit=1) == in_order[10:11]
    assert store.stored_bytes > 0


def test_a_reader_is_one_point_in_time(store: Store) -> None:
    store.apply([Row(b"a", 1, b"old"), Row(b"b", 1, b"old")])
    reader = store.read()
    store.apply([Row(b"a", 2, b"new"), Row(b"c", 1, b"new")])
    assert {row.value for row in read_rows(reader)} == {b"old"}
    reader.close()
    reader.close()
    for use in (
        lambda: list(reader.digests([FULL])),
        lambda: list(reader.rows_at([1])),
        lambda: list(reader.tombstones(9)),
    ):
        with pytest.raises(StoreClosedError):
            use()


def test_changes_are_reported_at_the_right_side_of_a_read(store: Store) -> None:
    log: list[Changes | None] = []
    assert store.subscribe(log.append)
    store.apply([Row(b"a", 1, b"x"), Row(b"b", 1, b"x")])
    reader = store.read(lambda: log.append(None))
    store.apply([Row(b"a", 2, b"", deleted=True), Row(b"b", 0, b"older")])
    store.apply([Row(b"a", 2, b"", deleted=True)])
    assert [None if changes is None else changes.signs.tolist() for changes in log] == [[1, 1], None, [-1, 1]]
    last = log[-1]
    assert last is not None
    assert last.tokens.tolist() == [Row(b"a", 1, b"").token] * 2
    assert last.versions.tolist() == [1, 2]
    assert hashing.digest_bytes(last.digests) == Row(b"a", 1, b"x").digest + Row(b"a", 2, b"", deleted=True).digest
    assert len(read_rows(reader)) == 2
    reader.close()
    store.subscribe(None)
    store.apply([Row(b"z", 1, b"")])
    assert len(log) == 3


def test_reader_columns(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("memory", "lmdb_reader"):
        monkeypatch.setattr(f"antientropy.stores.{module}.DIGESTS_PER_CHUNK_MAX", 7)
    rows = sorted([Row(b"%d" % number, number, b"") for number in range(60)], key=lambda row: (row.token, row.key))
    store.apply(rows)
    reader = store.read()
    wanted = [
        TokenRange(0, rows[9].token),
        TokenRange(rows[20].token, rows[20].token),
        TokenRange(rows[30].token, TOKEN_MAX),
    ]
    parts = list(reader.digests(wanted))
    assert all(0 < len(part) <= 7 for part in parts)
    found = RowDigests.concatenate(parts)
    expected = rows[:10] + rows[20:21] + rows[30:]
    assert found.tokens.tolist() == [row.token for row in expected]
    assert found.versions.tolist() == [row.version for row in expected]
    assert hashing.digest_bytes(found.digests) == b"".join(row.digest for row in expected)
    assert list(reader.digests([])) == []
    assert list(reader.rows_at([rows[3].token, rows[5].token])) == [rows[3], rows[5]]
    reader.close()


def test_keys_that_share_a_token(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "token_of", lambda key: key[0] % 2)
    rows = [Row(b"%d" % number, 1, b"v%d" % number) for number in range(10)]
    store.apply(rows)
    reader = store.read()
    assert list(reader.rows_at([0])) == rows[0::2]
    assert len(RowDigests.concatenate(list(reader.digests([TokenRange(1, 1)])))) == 5
    reader.close()
    assert store.scan(after_key=b"6") == [rows[8], *rows[1::2]]
    assert store.get(b"3") == rows[3]
    check_consistent(store)


def test_tombstones_are_listed_by_version(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antientropy.stores.lmdb_reader._TURN_ROWS_MAX", 4)
    store.apply([Row(b"%d" % number, number, b"", deleted=number % 2 == 0) for number in range(40)])
    store.apply([Row(b"4", 50, b"again"), Row(b"6", 60, b"", deleted=True)])
    reader = store.read()

    def versions(before: int) -> list[int]:
        found = RowDigests.concatenate([*reader.tombstones(before)])
        assert found.tombstones.all()
        return sorted(found.versions.tolist())

    assert versions(0) == []
    assert versions(9) == [0, 2, 8]
    assert versions(2**64 - 1) == [0, 2, *range(8, 40, 2), 60]
    reader.close()


def test_marks(store: Store) -> None:
    assert store.read_mark("repaired") is None
    store.write_mark("repaired", b"\0\1")
    store.write_mark("repaired", b"\0\2")
    store.write_mark("empty", b"")
    assert (store.read_mark("repaired"), store.read_mark("empty")) == (b"\0\2", b"")
    for name, value, reason in (
        ("", b"", "name"),
        ("n" * 65, b"", "name"),
        ("big", bytes(64 * 1024 + 1), "65537 bytes"),
        ("floors", b"short", "a mark of floors has 2048 bytes"),
    ):
        with pytest.raises(StoreError, match=reason):
            store.write_mark(name, value)
    assert store.read_mark("big") is None


def floors_at(version: int, **buckets: int) -> NDArray[np.uint64]:
    floors = np.full(256, version, np.uint64)
    for bucket, other in buckets.items():
        floors[int(bucket[1:])] = other
    return floors


def test_purge_removes_expired_tombstones_oldest_first(store: Store) -> None:
    rows = [Row(b"%d" % number, number, b"", deleted=number % 2 == 0) for number in range(100)]
    store.apply(rows)
    log: list[Changes] = []
    store.subscribe(log.append)
    assert store.purge(floors_at(40), 5) == 5
    assert sorted(row.version for row in rows_of(store) if row.deleted)[:2] == [10, 12]
    assert store.purge(floors_at(40), 100) == 15
    assert store.purge(floors_at(40), 100) == 0
    assert store.purge(floors_at(0), 100) == 0
    assert {row.version for row in rows_of(store)} == {*range(40, 100), *range(1, 40, 2)}
    assert sorted(Changes.concatenate(log).versions.tolist()) == list(range(0, 40, 2))
    assert set(Changes.concatenate(log).signs.tolist()) == {-1}
    check_consistent(store)
    mark = store.read_mark("floors")
    assert mark is not None
    assert np.frombuffer(mark, ">u8").tolist() == [40] * 256, "floors never sink"


def test_purge_keeps_to_the_floor_of_each_bucket(store: Store) -> None:
    rows = [Row(b"%d" % number, 5, b"", deleted=True) for number in range(300)]
    bucket = rows[0].token >> 56
    store.apply(rows)
    inside = [row for row in rows if row.token >> 56 == bucket]
    assert store.purge(floors_at(0, **{f"b{bucket}": 6}), 1_000) == len(inside)
    assert len(rows_of(store)) == 300 - len(inside)
    check_consistent(store)


def test_a_row_below_its_floor_is_refused_unless_repair_brings_it_or_it_loses_anyway(store: Store) -> None:
    store.apply([Row(b"known", 3, b"x"), Row(b"gone", 5, b"", deleted=True)])
    assert store.purge(floors_at(10), 10) == 1
    late = [Row(b"gone", 4, b"ghost"), Row(b"new", 9, b"ghost"), Row(b"known", 7, b"", deleted=True)]
    assert store.apply([*late, Row(b"known", 2, b"older")]) == 0
    assert store.rows_refused == 3
    assert store.get(b"gone") is None
    store.write_mark("fence", deletes.encode_versions(deletes.uniform(11)))
    assert store.apply([Row(b"new", 10, b"behind the fence")]) == 0
    store.write_mark("fence", b"")
    assert store.apply([Row(b"new", 10, b"at the floor")]) == 1
    assert store.apply([Row(b"gone", 4, b"x")], from_repair=True) == 1
    assert store.rows_refused == 4
    check_consistent(store)


def test_keys_that_share_a_token_are_purged_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "token_of", lambda key: 77)
    store.apply([Row(b"%d" % number, 1, b"", deleted=number == 3) for number in range(6)])
    assert store.purge(floors_at(2), 10) == 1
    assert {row.key for row in rows_of(store)} == {b"0", b"1", b"2", b"4", b"5"}
    check_consistent(store)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (Row(b"k" * 504, 1, b""), "key of 504 bytes refused: a key has 1 to 503 bytes"),
        (Row(b"", 1, b""), "key of 0 bytes"),
        (Row(b"k", 1, b"v" * (512 * 1024 + 1)), "value of 524289 bytes"),
        (Row(b"k", 2**64, b""), "version"),
        (Row(b"k", -1, b""), "version"),
        (Row(b"k", 1, b"v", deleted=True), "tombstone with a value"),
    ],
)
def test_a_row_beyond_a_limit_refuses_the_batch(store: Store, row: Row, reason: str) -> None:
    with pytest.raises(RowRefusedError, match=reason):
        store.apply([Row(b"good", 1, b""), row])
    assert rows_of(store) == []
    assert store.apply([Row(b"k" * 503, 2**64 - 1, b"v" * 512 * 1024)]) == 1


def test_threads_write_and_read_at_once(store: Store) -> None:
    def work(worker: int) -> None:
        for number in range(20):
            store.apply([Row(b"%d" % key, worker * 100 + number, b"%d" % worker) for key in range(number, number + 20)])
            reader = store.read()
            digests = RowDigests.concatenate([*reader.digests([FULL])])
            assert root_of(read_rows(reader)) == HashTree.build(digests, 1).root
            reader.close()
            assert store.get(b"%d" % number) is not None

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    check_consistent(store)


# --- LMDB ---


def test_rows_and_counters_come_back(tmp_path: Path) -> None:
    with LmdbRowStore(tmp_path, durable=False) as store:
        store.apply([Row(b"%d" % number, number, b"v") for number in range(1_000)])
        store.apply([Row(b"%d" % number, 5_000 + number, b"", deleted=True) for number in range(10)])
        rows, state = rows_of(store), store.state_id()
    with LmdbRowStore(tmp_path, durable=False) as store:
        assert store.state_id() == state
        assert (store.row_count, store.tombstone_count, store.version_max) == (1_000, 10, 5_009)
        assert rows_of(store) == rows
        check_consistent(store)


WRITER = """
import sys
from antientropy import LmdbRowStore, Row

store = LmdbRowStore(sys.argv[1])
batch = 0
while True:
    rows = [Row(b"%d-%d" % (batch, number), batch + 1, b"v" * 200) for number in range(50)]
    rows.append(Row(b"hot", batch + 1, b"", deleted=batch % 2 == 0))
    store.apply(rows)
    print(batch, flush=True)
    batch += 1
"""


@pytest.mark.process
@pytest.mark.parametrize("acknowledged_min", [1, 7, 40])
def test_what_was_acknowledged_survives_sigkill(tmp_path: Path, acknowledged_min: int) -> None:
    """Method: a real process writes and reports each acknowledged batch; it is killed while it writes on."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    try:
        for _ in range(acknowledged_min):
            assert writer.stdout.readline()
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = acknowledged_min + len(writer.stdout.read().splitlines())
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    with LmdbRowStore(tmp_path) as store:
        written: dict[int, int] = {}
        for row in rows_of(store):
            if row.key != b"hot":
                batch = int(row.key.split(b"-")[0])
                written[batch] = written.get(batch, 0) + 1
        assert set(written.values()) == {50}, "a torn batch"
        assert acknowledged <= len(written) <= acknowledged + 1
        hot = store.get(b"hot")
        assert hot is not None
        assert hot.version == len(written) == store.version_max
        check_consistent(store)
        assert store.apply([Row(b"hot", hot.version + 1, b"alive")]) == 1


def test_a_full_map_refuses_the_batch_and_the_store_stays_usable(tmp_path: Path) -> None:
    with LmdbRowStore(tmp_path, map_bytes_max=512 * 1024, durable=False) as store:
        store.apply([Row(b"small", 1, b"v")])
        with pytest.raises(StoreFullError, match="map_bytes_max") as caught:
            store.apply([Row(b"%d" % number, 1, b"v" * 10_000) for number in range(100)])
        assert "\n" not in str(caught.value)
        assert rows_of(store) == [Row(b"small", 1, b"v")]
        assert store.apply([Row(b"small", 2, b"w")]) == 1
        check_consistent(store)


LIMITED = """
import resource, sys
from antientropy import LmdbRowStore, Row, StoreError

store = LmdbRowStore(sys.argv[1])
store.apply([Row(b"small", 1, b"v")])
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    store.apply([Row(b"%d" % number, 1, b"v" * 10_000) for number in range(100)])
except StoreError as error:
    assert store.scan() == [Row(b"small", 1, b"v")]
    assert store.apply([Row(b"small", 2, b"w")]) == 1
    print(error)
"""


@pytest.mark.process
def test_a_failed_disk_write_refuses_the_batch_and_the_store_stays_usable(tmp_path: Path) -> None:
    """Method: a limit on file sizes makes the kernel itself refuse LMDB's write, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 0, done.stderr
    assert "cannot write" in done.stdout
    with LmdbRowStore(tmp_path) as store:
        assert rows_of(store) == [Row(b"small", 2, b"w")]


def test_errors_of_a_full_disk_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ENOSPC cannot be made without a disk of one's own; the translation is tested on LMDB's error itself."""
    from antientropy.stores.lmdb_files import translated

    with pytest.raises(StoreFullError, match="no space left"), translated(tmp_path, "write"):
        raise lmdb.DiskError("mdb_txn_commit")
    with pytest.raises(StoreReadOnlyError, match="cannot write"), translated(tmp_path, "write"):
        raise lmdb.ReadonlyError("mdb_txn_begin")
    with pytest.raises(StoreFullError, match="no space left"), translated(tmp_path, "write"):
        raise OSError(28, "No space left on device")
    short_write = lmdb.Error("mdb_txn_commit: Input/output error")
    monkeypatch.setattr(short_write, "code", 5, raising=False)
    with pytest.raises(StoreError, match="cannot write"), translated(tmp_path, "write"):
        raise short_write
    monkeypatch.setattr("antientropy.stores.lmdb_files._DISK_BYTES_LEFT_MIN", 2**62)
    with pytest.raises(StoreFullError, match="no space left"), translated(tmp_path, "write"):
        raise short_write


def test_the_lock_file_has_no_holes(tmp_path: Path) -> None:
    """It is written through a memory map: without room on disk for it the process would end by SIGBUS."""
    with LmdbRowStore(tmp_path):
        status = (tmp_path / "lock.mdb").stat()
    assert status.st_blocks * 512 >= status.st_size > 64 * LMDB_READERS_MAX


@pytest.mark.parametrize("content", [b"", b"x"])
def test_no_room_for_the_lock_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock.mdb").write_bytes(content)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(StoreFullError, match="no space left"):
            LmdbRowStore(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (tmp_path / "lock.mdb").read_bytes() == content
    LmdbRowStore(tmp_path).close()


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="not a directory; name another one"):
            LmdbRowStore(path)


def test_a_read_only_directory_is_named(tmp_path: Path) -> None:
    """Permissions do not bind root, so a root test run takes another user's rights for a moment."""
    with tempfile.TemporaryDirectory() as parent:
        path = Path(parent) / "data"
        path.mkdir()
        Path(parent).chmod(0o755)
        path.chmod(0o555)
        was_root = os.geteuid() == 0
        try:
            if was_root:
                os.seteuid(65_534)
            with pytest.raises(StoreReadOnlyError, match="check owner, mode and mount"):
                LmdbRowStore(path)
            with pytest.raises(StoreReadOnlyError, match="cannot open"):
                LmdbRowStore(path / "below")
        finally:
            if was_root:
                os.seteuid(0)
            path.chmod(0o755)


def test_a_place_where_nothing_can_be_made() -> None:
    with pytest.raises(StoreError, match="cannot open"):
        LmdbRowStore("/proc/antientropy-test")


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "data.mdb").write_bytes(b"garbage " * 2_000)
    with pytest.raises(StoreCorruptError, match="no usable row store"):
        LmdbRowStore(tmp_path / "garbage")
    with lmdb.open(str(tmp_path / "foreign"), max_dbs=5) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"not", b"ours")
    with pytest.raises(StoreCorruptError, match="no row store"):
        LmdbRowStore(tmp_path / "foreign")
    LmdbRowStore(tmp_path / "future").close()
    with lmdb.open(str(tmp_path / "future"), max_dbs=5) as environment:
        meta = environment.open_db(b"meta")
        with environment.begin(write=True) as transaction:
            transaction.put(b"format", b"antientropy rows 9", db=meta)
    with pytest.raises(StoreCorruptError, match="unknown to this version"):
        LmdbRowStore(tmp_path / "future")


def _overwrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    with lmdb.open(str(path), max_dbs=5) as environment:
        database = environment.open_db(b"rows")
        with environment.begin(write=True, db=database) as transaction:
            place, stored = next(iter(transaction.cursor()))
            transaction.put(bytes(place), change(bytes(stored)))


def test_a_row_that_rotted_is_not_spread(tmp_path: Path) -> None:
    with LmdbRowStore(tmp_path) as store:
        store.apply([Row(b"k", 1, b"value")])
    _overwrite(tmp_path, lambda stored: stored[:-1] + b"!")
    with LmdbRowStore(tmp_path) as store, pytest.raises(StoreCorruptError, match="does not match its digest"):
        rows_of(store)


def test_a_row_without_a_header_is_refused(tmp_path: Path) -> None:
    with LmdbRowStore(tmp_path) as store:
        store.apply([Row(b"k", 1, b"value")])
    _overwrite(tmp_path, lambda stored: stored[:5])
    with LmdbRowStore(tmp_path) as store, pytest.raises(StoreCorruptError, match="shorter than its header"):
        rows_of(store)


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    with LmdbRowStore(tmp_path), pytest.raises(StoreInUseError, match="in use"):
        LmdbRowStore(tmp_path)
    LmdbRowStore(tmp_path).close()


def test_a_closed_store(tmp_path: Path) -> None:
    store = LmdbRowStore(tmp_path)
    reader = store.read()
    store.close()
    store.close()
    for use in (store.read, lambda: store.get(b"k"), lambda: store.apply([Row(b"k", 1, b"")]), store.scan):
        with pytest.raises(StoreClosedError):
            use()
    with pytest.raises(StoreClosedError):
        list(reader.digests([FULL]))
    reader.close()


def test_a_reader_moves_between_threads(tmp_path: Path) -> None:
    with LmdbRowStore(tmp_path) as store:
        store.apply([Row(b"%d" % number, 1, b"") for number in range(200)])
        reader = store.read()
        rows = reader.rows_at(sorted(Row(b"%d" % number, 1, b"").token for number in range(200)))
        found = [next(rows)]
        thread = threading.Thread(target=lambda: found.extend(rows))
        thread.start()
        thread.join()
        assert len(found) == 200
        reader.close()


def test_too_many_keys_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antientropy.stores.lmdb.ROWS_PER_READ_MAX", 2)
    with LmdbRowStore(tmp_path) as store, pytest.raises(StoreError, match="at most 2"):
        store.get_many([b"a", b"b", b"c"])


def test_format_1_is_brought_up(tmp_path: Path) -> None:
    rows = [Row(b"%d" % number, number, b"" if number % 5 == 0 else b"v", number % 5 == 0) for number in range(100)]
    with LmdbRowStore(tmp_path) as store:
        store.apply(rows)
    with lmdb.open(str(tmp_path), max_dbs=5) as environment:
        meta = environment.open_db(b"meta")
        databases = [environment.open_db(name) for name in (b"tombstones", b"marks", b"quarantine")]
        with environment.begin(write=True) as transaction:
            for database in databases:
                transaction.drop(database)
            for key in (b"name", b"version_max"):
                transaction.delete(key, db=meta)
            transaction.put(b"format", b"antientropy rows 1", db=meta)
    for _ in range(2):
        with LmdbRowStore(tmp_path) as store:
            assert (store.row_count, store.tombstone_count, store.version_max) == (100, 20, 99)
            check_consistent(store)
            state = store.state_id()
    with LmdbRowStore(tmp_path) as store:
        assert store.state_id() == state
        assert store.purge(floors_at(100), 100) == 20


def test_a_state_is_never_named_twice(tmp_path: Path) -> None:
    seen = set()
    for number in range(3):
        with LmdbRowStore(tmp_path / "one") as store:
            store.apply([Row(b"k", number, b"")])
            seen.add(store.state_id())
            store.write_mark("m", b"%d" % number)
            seen.add(store.state_id())
    with LmdbRowStore(tmp_path / "other") as store:
        store.apply([Row(b"k", 1, b"")])
        seen.add(store.state_id())
    assert len(seen) == 7
