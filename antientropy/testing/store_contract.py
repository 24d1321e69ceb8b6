"""What every row store must do, as tests: subclass :class:`StoreContract`, say how to open your store, run pytest.

    class TestMyStore(StoreContract):
        def open_store(self, path):
            return MyStore(path / "rows")

Each test has directories of its own. ``docs/repair.md`` explains how to write a store.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from antientropy.core import deletes, hashing
from antientropy.core.merkle import HashTree
from antientropy.core.rows import Changes, Row, RowDigests
from antientropy.core.tokens import BUCKETS, TOKEN_MAX, TokenRange
from antientropy.errors import RowRefusedError, StoreClosedError, StoreCorruptError, StoreError
from antientropy.limits import (
    DIGESTS_PER_CHUNK_MAX,
    KEY_BYTES_MAX,
    MARK_BYTES_MAX,
    MARK_NAME_BYTES_MAX,
    VALUE_BYTES_MAX,
    VERSION_MAX,
)
from antientropy.replica import Replica
from antientropy.store import RowReader, RowStore

FULL: Final = TokenRange.full()
#: A deadline of threads that work on a store at once.
_THREADS_SECONDS: Final = 30.0

_rows = st.lists(
    st.builds(
        lambda key, version, value: Row(key, version, value or b"", deleted=value is None),
        st.binary(min_size=1, max_size=2),
        st.integers(0, 4),
        st.none() | st.binary(max_size=3),
    ),
    max_size=20,
)
_property = settings(
    deadline=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)

Fingerprint = tuple[int, int, bytes]
"""Token, version and digest of a row."""


class StoreContract:
    """The tests. Override :meth:`open_store`, and what else is different about your store."""

    is_durable: bool = True
    """Whether a store that is closed and opened again still has its rows."""
    version_max: int = VERSION_MAX
    """The greatest version that the store can hold, if it is less than that of the contract."""

    def open_store(self, path: Path) -> RowStore:
        """Open the store in this directory; it is empty the first time."""
        raise NotImplementedError(f"say how to open a store in {path}")

    def close_store(self, store: RowStore) -> None:
        """Close it; by default by a method ``close``, if there is one."""
        close = getattr(store, "close", None)
        if close is not None:
            close()

    def damage(self, store: RowStore, key: bytes) -> None:
        """Change the value of a stored row past the store, as a failing disk would; by default not tested."""
        pytest.skip(f"nobody says how to damage {key!r} in {store!r}")

    @contextmanager
    def opened(self, path: Path | None = None) -> Iterator[Any]:
        """A store for one test."""
        with tempfile.TemporaryDirectory() as made:
            store = self.open_store(Path(made) if path is None else path)
            try:
                yield store
            finally:
                self.close_store(store)

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[RowStore]:
        """An empty store."""
        with self.opened(tmp_path) as store:
            yield store

    # --- apply ---

    @_property
    @given(batches=st.lists(_rows, max_size=4), data=st.data())
    def test_the_winner_of_each_key_stays_in_any_order(self, batches: list[list[Row]], data: st.DataObject) -> None:
        """Compare-and-set by (version, digest): idempotent, commutative, counted."""
        winners: dict[bytes, Row] = {}
        flat = [row for batch in batches for row in batch]
        with self.opened() as one, self.opened() as other:
            for batch in batches:
                changed = 0
                for row in batch:
                    if row.key not in winners or row.wins_over(winners[row.key]):
                        winners[row.key] = row
                        changed += 1
                assert one.apply(batch) == changed, "apply returns how many rows changed the store"
            assert one.apply(flat) == 0, "what is stored already changes nothing"
            other.apply(data.draw(st.permutations(flat)))
            for store in (one, other):
                assert rows_of(store) == in_order(winners.values())
                check_counters(store, winners.values())

    def test_nothing_of_a_refused_batch_is_applied(self, store: RowStore) -> None:
        """All or nothing, whether a row or whoever gives the rows fails."""
        good = Row(b"good", 1, b"v")
        for bad in (
            Row(b"", 1, b""),
            Row(b"k" * (KEY_BYTES_MAX + 1), 1, b""),
            Row(b"k", 1, b"v" * (VALUE_BYTES_MAX + 1)),
            Row(b"k", -1, b""),
            Row(b"k", self.version_max + 1, b""),
            Row(b"k", 1, b"v", deleted=True),
        ):
            for from_repair in (False, True):
                with pytest.raises(RowRefusedError):
                    store.apply([good, bad], from_repair=from_repair)
        with pytest.raises(ZeroDivisionError):
            store.apply(Row(b"%d" % number, 1, b"%d" % (1 // (3 - number))) for number in range(5))
        assert rows_of(store) == []
        assert store.row_count == 0

    def test_the_largest_row_fits(self, store: RowStore) -> None:
        """All limits at once."""
        row = Row(b"k" * KEY_BYTES_MAX, self.version_max, b"v" * VALUE_BYTES_MAX)
        smallest = Row(b"\0", 0, b"")
        assert store.apply([row, smallest]) == 2
        assert rows_of(store) == in_order([row, smallest])

    def test_rows_of_a_repair_are_applied_like_others(self, store: RowStore) -> None:
        """More of them than go into one slice; the same rules decide."""
        rows = some_rows(700)
        newer = [Row(row.key, 50, b"newer") for row in rows[:100]]
        store.apply(newer)
        assert store.apply(rows, from_repair=True) == 600
        assert store.apply(rows, from_repair=True) == 0
        assert rows_of(store) == in_order([*newer, *rows[100:]])

    # --- reading ---

    def test_digests_come_in_the_order_of_tokens(self, store: RowStore) -> None:
        """Any ascending, disjoint ranges, in chunks that are neither empty nor too large."""
        rows = in_order(some_rows(300))
        store.apply(rows)
        with reading(store) as reader:
            for ranges in (
                [FULL],
                [],
                [TokenRange(0, rows[0].token)],
                [TokenRange(rows[3].token, rows[7].token), TokenRange(rows[9].token, rows[9].token)],
                [TokenRange(rows[7].token + 1, rows[8].token - 1)],
                [TokenRange(rows[-1].token, TOKEN_MAX)],
            ):
                chunks = list(reader.digests(ranges))
                assert all(0 < len(chunk) <= DIGESTS_PER_CHUNK_MAX for chunk in chunks)
                wanted = [row for row in rows if any(one.contains(row.token) for one in ranges)]
                assert fingerprints(chunks) == [fingerprint(row) for row in wanted]

    def test_many_digests_come_in_chunks(self, store: RowStore) -> None:
        """Nothing is lost or repeated between two chunks, nor when an iterator is left."""
        rows = some_rows(DIGESTS_PER_CHUNK_MAX + 500)
        for start in range(0, len(rows), 4_096):
            store.apply(rows[start : start + 4_096])
        with reading(store) as reader:
            next(iter(reader.digests([FULL])))
            chunks = list(reader.digests([FULL]))
        assert len(chunks) > 1
        assert fingerprints(chunks) == [fingerprint(row) for row in in_order(rows)]

    def test_rows_are_read_by_token(self, store: RowStore) -> None:
        """Tokens without a row are passed over."""
        rows = in_order(some_rows(60))
        store.apply(rows)
        tokens = sorted({row.token for row in rows[::3]} | {0, rows[5].token + 1, TOKEN_MAX})
        with reading(store) as reader:
            assert list(reader.rows_at(tokens)) == rows[::3]
            assert list(reader.rows_at([])) == []

    def test_tombstones_are_listed_by_version(self, store: RowStore) -> None:
        """Only tombstones, only older ones."""
        store.apply([Row(b"%d" % number, number, b"", deleted=number % 2 == 0) for number in range(40)])
        store.apply([Row(b"4", 41, b"alive again"), Row(b"6", 42, b"", deleted=True)])
        with reading(store) as reader:
            for before in (0, 1, 20, 42, 43, VERSION_MAX):
                found = sorted(fingerprints(reader.tombstones(before)))
                wanted = [row for row in rows_of(store) if row.deleted and row.version < before]
                assert found == sorted(fingerprint(row) for row in wanted)

    def test_keys_may_share_a_token(self, store: RowStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tokens are hashes: they collide now and then, and a store must not mix their rows up."""
        monkeypatch.setattr(hashing, "token_of", lambda key: (key[0] % 2) << 56)
        rows = [Row(b"%d" % number, 5, b"v%d" % number) for number in range(10)]
        store.apply(rows)
        store.apply([Row(b"4", 6, b"", deleted=True), Row(b"5", 4, b"older")])
        with reading(store) as reader:
            assert {row.key for row in reader.rows_at([0])} == {b"0", b"2", b"4", b"6", b"8"}
            assert sum(len(chunk) for chunk in reader.digests([TokenRange(0, 0)])) == 5
        assert store.purge(uniform(9), 10) == 1
        assert {row.key for row in rows_of(store)} == {row.key for row in rows} - {b"4"}

    def test_a_reader_stays_at_its_point_in_time(self, store: RowStore) -> None:
        """Writes and purges after it was opened are not seen, however late it reads."""
        rows = in_order([*some_rows(50), Row(b"gone", 3, b"", deleted=True)])
        store.apply(rows)
        with reading(store) as reader:
            store.apply([Row(row.key, 9, b"newer") for row in rows[:10]])
            store.apply([Row(b"another", 9, b"v")])
            store.purge(uniform(9), 10)
            assert fingerprints(reader.digests([FULL])) == [fingerprint(row) for row in rows]
            assert list(reader.rows_at([row.token for row in rows])) == rows
            assert sum(len(chunk) for chunk in reader.tombstones(9)) == 1
        assert len(rows_of(store)) == 51

    def test_a_closed_reader_says_so(self, store: RowStore) -> None:
        """Also in the middle of an iteration; closing again does nothing."""
        store.apply(some_rows(10))
        reader = store.read()
        rows = reader.rows_at(sorted(row.token for row in some_rows(10)))
        next(iter(rows))
        reader.close()
        reader.close()
        with pytest.raises(StoreClosedError):
            list(reader.digests([FULL]))
        with pytest.raises(StoreClosedError):
            list(reader.rows_at([some_rows(1)[0].token]))
        with suppress(StoreClosedError):
            assert len(list(rows)) == 9, "what had been read already may still come"

    def test_damage_is_noticed(self, store: RowStore) -> None:
        """A row that does not match its digest must not be spread."""
        store.apply([Row(b"bad", 1, b"value"), Row(b"good", 1, b"value")])
        self.damage(store, b"bad")
        with reading(store) as reader:
            assert [row.key for row in reader.rows_at([hashing.token_of(b"good")])] == [b"good"]
            with pytest.raises(StoreCorruptError):
                list(reader.rows_at([hashing.token_of(b"bad")]))

    # --- marks, floors, fence ---

    def test_marks_are_kept(self, store: RowStore) -> None:
        """By name, small, replaced as a whole."""
        assert store.read_mark("mine") is None
        store.write_mark("mine", b"1")
        store.write_mark("other", b"")
        store.write_mark("mine", b"\0" * MARK_BYTES_MAX)
        assert store.read_mark("mine") == b"\0" * MARK_BYTES_MAX
        assert store.read_mark("other") == b""
        for name, value in (("", b""), ("n" * (MARK_NAME_BYTES_MAX + 1), b""), ("mine", b"\0" * (MARK_BYTES_MAX + 1))):
            with pytest.raises(StoreError):
                store.write_mark(name, value)
        for name in (deletes.FENCE_MARK, deletes.FLOORS_MARK):
            with pytest.raises(StoreError):
                store.write_mark(name, b"\x80")
            assert store.read_mark(name) is None
        assert store.row_count == 0

    def test_purge_removes_the_oldest_tombstones_below_the_floors(self, store: RowStore) -> None:
        """At most as many as asked for; live rows and newer tombstones stay."""
        live = [Row(b"live%d" % number, number, b"v") for number in range(20)]
        dead = [Row(b"dead%d" % number, number, b"", deleted=True) for number in range(400)]
        store.apply([*live, *dead])
        assert store.purge(uniform(0), 10) == 0
        assert store.purge(uniform(5), 0) == 0
        assert store.purge(uniform(390), 3) == 3
        assert rows_of(store) == in_order([*live, *dead[3:]])
        assert store.purge(uniform(390), 300) == 300
        assert store.purge(uniform(390), 300) == 87
        assert rows_of(store) == in_order([*live, *dead[390:]])
        check_counters(store, [*live, *dead[390:]])

    def test_purge_keeps_to_the_floor_of_each_bucket(self, store: RowStore) -> None:
        """A tombstone has the floor of the bucket of its token."""
        rows = [Row(b"%d" % number, 5, b"", deleted=True) for number in range(300)]
        store.apply(rows)
        floors = uniform(0)
        floors[rows[0].token >> 56] = 6
        wanted = [row for row in rows if row.token >> 56 != rows[0].token >> 56]
        assert store.purge(floors, 1_000) == 300 - len(wanted)
        assert rows_of(store) == in_order(wanted)

    def test_floors_are_recorded_and_never_sink(self, store: RowStore) -> None:
        """As the mark ``floors``, also when nothing is removed."""
        store.purge(uniform(7), 0)
        floors = uniform(3)
        floors[9] = 11
        store.purge(floors, 10)
        mark = store.read_mark(deletes.FLOORS_MARK)
        assert mark is not None
        assert np.frombuffer(mark, ">u8").tolist() == [11 if bucket == 9 else 7 for bucket in range(BUCKETS)]
        assert store.apply([Row(b"k", 6, b"v")]) == 0
        assert store.rows_refused == 1
        store.write_mark(deletes.FLOORS_MARK, bytes(BUCKETS * 8))
        assert store.apply([Row(b"k", 6, b"v")]) == 1, "a written mark holds, also with lesser floors"

    def test_the_past_is_closed_below_the_fence(self, store: RowStore) -> None:
        """What would win is refused and counted, whether its key is known or not; repair may bring it."""
        store.apply([Row(b"known", 3, b"x")])
        store.write_mark(deletes.FENCE_MARK, deletes.encode_versions(deletes.uniform(10)))
        late = [Row(b"known", 5, b"", deleted=True), Row(b"known", 7, b"y"), Row(b"new", 9, b"z")]
        assert store.apply([*late, Row(b"known", 2, b"older"), Row(b"known", 3, b"x")]) == 0
        assert store.rows_refused == 3, "what loses anyway is not refused"
        assert rows_of(store) == [Row(b"known", 3, b"x")]
        assert store.apply([Row(b"new", 10, b"z")]) == 1
        assert store.apply(late, from_repair=True) == 2
        assert rows_of(store) == in_order([late[1], Row(b"new", 10, b"z")])
        assert store.rows_refused == 3
        fence = deletes.no_versions()
        fence[hashing.token_of(b"known") >> 56] = 20
        store.write_mark(deletes.FENCE_MARK, deletes.encode_versions(fence))
        assert store.apply([Row(b"known", 19, b"late"), Row(b"new", 11, b"z")]) == 1

    # --- changes ---

    @_property
    @given(batches=st.lists(st.tuples(_rows, st.booleans(), st.integers(0, 5)), max_size=5))
    def test_reported_changes_make_the_rows(self, batches: list[tuple[list[Row], bool, int]]) -> None:
        """Everything that came less everything that went is what is stored, after writes and purges."""
        with self.opened() as store:
            follower = Follower()
            if not store.subscribe(follower):
                pytest.skip("the store does not report its changes")
            for rows, from_repair, floor in batches:
                store.apply(rows, from_repair=from_repair)
                assert follower.rows() == sorted(fingerprint(row) for row in rows_of(store))
                store.purge(uniform(floor), 5)
                assert follower.rows() == sorted(fingerprint(row) for row in rows_of(store))
            store.subscribe(None)
            before = follower.reports
            store.apply([Row(b"unseen", self.version_max, b"")])
            assert follower.reports == before

    def test_on_open_divides_the_changes(self, store: RowStore) -> None:
        """What was reported before ``on_open`` is in the view, and nothing else, while others write."""
        follower = Follower()
        if not store.subscribe(follower):
            pytest.skip("the store does not report its changes")
        stop = threading.Event()

        def write(worker: int) -> None:
            number = 0
            while not stop.is_set():
                store.apply([Row(b"%d" % (number % 50), number, b"%d" % worker), Row(b"w%d" % worker, number, b"")])
                number += 1

        with ThreadPoolExecutor(2) as pool:
            writers = [pool.submit(write, worker) for worker in range(2)]
            try:
                for _ in range(15):
                    seen: list[list[Fingerprint]] = []
                    reader = store.read(lambda seen=seen: seen.append(follower.rows()))  # type: ignore[misc]
                    try:
                        assert len(seen) == 1, "on_open is called once"
                        assert sorted(fingerprints(reader.digests([FULL]))) == seen[0]
                    finally:
                        reader.close()
            finally:
                stop.set()
            for writer in writers:
                writer.result(_THREADS_SECONDS)
        assert follower.rows() == sorted(fingerprint(row) for row in rows_of(store))

    def test_state_id_names_the_content(self, store: RowStore) -> None:
        """It changes with every change, marks and purges included, and never comes back."""
        names = [store.state_id()]
        if names[0] is None:
            store.read(lambda: names.append(store.state_id())).close()
            assert names[1] is None
            return
        steps: list[Callable[[], object]] = [
            lambda: store.apply([Row(b"a", 1, b"")]),
            lambda: store.apply([Row(b"b", 1, b"", deleted=True)], from_repair=True),
            lambda: store.write_mark("mine", b"1"),
            lambda: store.purge(uniform(2), 10),
            lambda: store.apply([Row(b"a", 2, b"")]),
        ]
        for step in steps:
            step()
            assert store.state_id() not in names
            names.append(store.state_id())
        store.read(lambda: names.append(store.state_id())).close()
        assert names[-1] == names[-2] == store.state_id()

    # --- everything at once ---

    def test_threads_write_and_read_at_once(self, store: RowStore) -> None:
        """Nothing is lost, and each reader sees whole batches only, but of a repair."""

        def work(worker: int) -> None:
            for number in range(8):
                version = worker * 100 + number
                store.apply(
                    [Row(b"%d/%d" % (worker, key), version, b"v") for key in range(20)], from_repair=worker == 0
                )
                with reading(store) as reader:
                    versions = [version for _, version, _ in fingerprints(reader.digests([FULL]))]
                for other in range(1, 4):
                    mine = [version for version in versions if version // 100 == other]
                    assert len(mine) in (0, 20)
                    assert len(set(mine)) <= 1

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(work, worker) for worker in range(4)]:
                done.result(_THREADS_SECONDS)
        assert len(rows_of(store)) == 80
        check_counters(store, rows_of(store))

    def test_a_replica_over_it_follows(self, store: RowStore) -> None:
        """Tree and rows agree after writes, as repair needs it."""
        store.apply(some_rows(200))
        replica = Replica(store)
        replica.open()
        try:
            store.apply([Row(b"new", 9, b"v"), Row(some_rows(1)[0].key, 9, b"", deleted=True)])
            rows = rows_of(store)
            columns = RowDigests.of(
                [row.token for row in rows], [row.version for row in rows], [row.digest for row in rows]
            )
            assert replica.root(FULL) == HashTree.build(columns, epoch=replica.epoch).root
        finally:
            replica.close()

    def test_rows_and_marks_come_back(self, tmp_path: Path) -> None:
        """Closed and opened again, it is the same: rows, counters, marks, limits, and its name."""
        if not self.is_durable:
            pytest.skip("the store is not durable")
        rows = [*some_rows(30), Row(b"gone", 8, b"", deleted=True)]
        with self.opened(tmp_path) as store:
            store.apply(rows)
            store.write_mark("mine", b"1")
            store.write_mark(deletes.FENCE_MARK, deletes.encode_versions(deletes.uniform(9)))
            store.purge(uniform(4), 10)
            name = store.state_id()
        with self.opened(tmp_path) as store:
            assert store.state_id() == name
            assert rows_of(store) == in_order(rows)
            check_counters(store, rows)
            assert store.read_mark("mine") == b"1"
            assert store.apply([Row(b"late", 8, b"v")]) == 0
            assert store.rows_refused == 1
            assert store.stored_bytes > 0


class Follower:
    """A listener that keeps what came and went."""

    def __init__(self) -> None:
        self.reports = 0
        self._changes: list[Changes] = []

    def __call__(self, changes: Changes) -> None:
        """A report."""
        self.reports += 1
        self._changes.append(changes)

    def rows(self) -> list[Fingerprint]:
        """The rows that there should be, sorted; every one came once more than it went."""
        counts: dict[Fingerprint, int] = {}
        for changes in list(self._changes):
            rows = RowDigests(changes.tokens, changes.versions, changes.digests)
            for row, sign in zip(fingerprints([rows]), changes.signs.tolist(), strict=True):
                counts[row] = counts.get(row, 0) + sign
        assert set(counts.values()) <= {0, 1}, "a row came twice, or went without having come"
        return sorted(row for row, count in counts.items() if count)


def uniform(version: int) -> NDArray[np.uint64]:
    """The same floor for every bucket."""
    return np.full(BUCKETS, version, np.uint64)


def some_rows(count: int) -> list[Row]:
    """Rows with different keys."""
    return [Row(b"key %d" % number, number % 7, b"value %d" % number) for number in range(count)]


def in_order(rows: Iterable[Row]) -> list[Row]:
    """By token and key."""
    return sorted(rows, key=lambda row: (row.token, row.key))


def fingerprint(row: Row) -> Fingerprint:
    """A row as its digests tell it."""
    return row.token, row.version, row.digest


def fingerprints(chunks: Iterable[RowDigests]) -> list[Fingerprint]:
    """All rows of some chunks."""
    found: list[Fingerprint] = []
    for chunk in chunks:
        digests = hashing.digest_bytes(chunk.digests)
        found += [
            (token, version, digests[16 * number : 16 * number + 16])
            for number, (token, version) in enumerate(zip(chunk.tokens.tolist(), chunk.versions.tolist(), strict=True))
        ]
    return found


@contextmanager
def reading(store: RowStore) -> Iterator[RowReader]:
    """A reader for some lines."""
    reader = store.read()
    try:
        yield reader
    finally:
        reader.close()


def rows_of(store: RowStore) -> list[Row]:
    """All rows, by token and key; their digests and their contents must tell the same."""
    with reading(store) as reader:
        found = fingerprints(reader.digests([FULL]))
        rows = list(reader.rows_at(sorted({token for token, _, _ in found})))
    assert sorted(found) == sorted(fingerprint(row) for row in rows)
    return in_order(rows)


def check_counters(store: RowStore, rows: Iterable[Row] | Sequence[Row]) -> None:
    """They tell of exactly these rows."""
    rows = list(rows)
    assert store.row_count == len(rows)
    assert store.tombstone_count == sum(row.deleted for row in rows)
    assert store.stored_bytes >= 0
