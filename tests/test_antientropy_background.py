"""Writes of a repair in a store: goal - all of them arrive, foreground writes never wait for them nor fail by them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from antientropy import LmdbRowStore, Replica, Row, RowRefusedError, StoreClosedError, StoreFullError, TokenRange
from antientropy.stores import background
from antientropy.stores.background import BackgroundWrites

ROWS = [Row(b"repaired%d" % number, 1, b"v" * 20) for number in range(2_000)]


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbRowStore]:
    with LmdbRowStore(tmp_path, durable=False) as store:
        yield store


@pytest.fixture
def no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a repair get a transaction of their own only when the store has been quiet for an hour."""
    monkeypatch.setattr(background, "QUIET_SECONDS", 3_600.0)
    monkeypatch.setattr(background, "BUSY_SHARE", 1e-9)


def test_a_quiet_store_takes_them_in_slices(store: LmdbRowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    store.subscribe(lambda changes: sizes.append(len(changes)))
    assert store.apply(ROWS, from_repair=True) == 2_000
    assert sizes == [background.SLICE_ROWS_MAX] * 7 + [208]
    assert store.apply(ROWS, from_repair=True) == 0
    assert store.apply([], from_repair=True) == 0
    assert {row.key for row in store.scan()} == {row.key for row in ROWS}
    monkeypatch.setattr(background, "SLICE_BYTES_MAX", 1_000)
    assert store.apply([Row(b"big%d" % number, 1, b"v" * 400) for number in range(5)], from_repair=True) == 5
    assert sizes[8:] == [3, 2]


@pytest.mark.usefixtures("no_turns")
def test_a_busy_store_takes_them_along(store: LmdbRowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Method: no turns of their own, so only foreground writes can bring them in."""
    monkeypatch.setattr(background, "BULK_RIDE_EVERY", 3)
    store.apply([Row(b"first", 1, b"")])
    store._background._turn_at = time.monotonic() + 3_600
    sizes: list[int] = []
    store.subscribe(lambda changes: sizes.append(len(changes)))
    with ThreadPoolExecutor(2) as pool:
        repairs = [pool.submit(store.apply, ROWS[at::2], from_repair=True) for at in (0, 1)]
        until(lambda: len(store._background._jobs) == 2)
        written = 0
        while not all(repair.done() for repair in repairs):
            assert store.apply([Row(b"foreground%d" % written, 1, b"")]) == 1
            written += 1
            assert written < 10_000
        assert [repair.result() for repair in repairs] == [1_000, 1_000]
    assert max(sizes) <= 1 + background.RIDE_ROWS_MAX
    assert sum(sizes) == 2_000 + written
    assert store.row_count == 2_001 + written


def test_seats_are_few_where_they_cost_much() -> None:
    writes: BackgroundWrites[bytes] = BackgroundWrites(threading.RLock(), len)
    writes._foreground_seconds = 8e-3
    slow_disk = [writes._seats() for _ in range(background.BULK_RIDE_EVERY)]
    assert slow_disk == [13] * (background.BULK_RIDE_EVERY - 1) + [background.RIDE_ROWS_MAX]
    writes._foreground_seconds = 1e-4
    fast_disk = [writes._seats() for _ in range(background.BULK_RIDE_EVERY)]
    assert fast_disk == [0] * (background.BULK_RIDE_EVERY - 1) + [background.RIDE_ROWS_MAX]


@pytest.mark.usefixtures("no_turns")
def test_riders_are_bounded_in_bytes(store: LmdbRowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "BULK_RIDE_EVERY", 1)
    store.apply([Row(b"first", 1, b"")])
    store._background._turn_at = time.monotonic() + 3_600
    sizes: list[int] = []
    store.subscribe(lambda changes: sizes.append(len(changes)))
    rows = [Row(b"big%d" % number, 1, b"v" * 30_000) for number in range(4)]
    with ThreadPoolExecutor(1) as pool:
        repair = pool.submit(store.apply, rows, from_repair=True)
        until(lambda: len(store._background._jobs) == 1)
        for number in range(2):
            store.apply([Row(b"foreground%d" % number, 1, b"")])
        assert repair.result() == 4
    assert sizes == [3, 3]


def test_a_foreground_write_does_not_fail_for_its_riders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Method: the rows of the repair fill the map; whoever brought them is told, the write that took them is not."""
    monkeypatch.setattr(background, "BULK_RIDE_EVERY", 1)
    monkeypatch.setattr(background, "RIDE_BYTES_MAX", 2**30)
    monkeypatch.setattr(background, "SLICE_BYTES_MAX", 2**30)
    with LmdbRowStore(tmp_path, durable=False, map_bytes_max=1024 * 1024) as store:
        store.apply([Row(b"first", 1, b"")])
        turns = store._background
        turns._turn_at = turns._foreground_at = time.monotonic() + 3_600
        rows = [Row(b"big%d" % number, 1, b"v" * 60_000) for number in range(40)]
        with ThreadPoolExecutor(1) as pool, Replica(store) as replica:
            repair = pool.submit(store.apply, rows, from_repair=True)
            until(lambda: len(turns._jobs) == 1)
            assert store.apply([Row(b"foreground", 1, b"x")]) == 1
            assert not repair.done()
            turns._turn_at = turns._foreground_at = 0.0
            with pytest.raises(StoreFullError, match="map_bytes_max"):
                repair.result(20)
            assert store.apply([Row(b"foreground", 2, b"y")]) == 1
            assert {row.key for row in store.scan()} == {b"first", b"foreground"}
            assert replica.root(TokenRange.full()).count == 2
            assert store.apply([Row(b"repaired", 1, b"")], from_repair=True) == 1
        assert not turns._jobs


def test_slices_before_a_failure_stay(tmp_path: Path) -> None:
    with LmdbRowStore(tmp_path, durable=False, map_bytes_max=1024 * 1024) as store:
        rows = [Row(b"%04d" % number, 1, b"v" * 1_000) for number in range(2_000)]
        with pytest.raises(StoreFullError):
            store.apply(rows, from_repair=True)
        assert store.row_count == len(store.scan())
        assert 0 < store.row_count < 2_000
        assert store.row_count % 253 == 0, "rows of 1,036 bytes in slices of 256 KiB"


def test_a_row_beyond_a_limit_refuses_all(store: LmdbRowStore) -> None:
    with pytest.raises(RowRefusedError):
        store.apply([*ROWS, Row(b"", 1, b"")], from_repair=True)
    assert store.row_count == 0


@pytest.mark.usefixtures("no_turns")
def test_closing_ends_a_repair_that_waits(tmp_path: Path) -> None:
    store = LmdbRowStore(tmp_path, durable=False)
    store.apply([Row(b"first", 1, b"", deleted=True)])
    store._background._turn_at = time.monotonic() + 3_600
    with ThreadPoolExecutor(2) as pool:
        repair = pool.submit(store.apply, ROWS, from_repair=True)
        purge = pool.submit(store.purge, np.full(256, 9, np.uint64), 10)
        until(lambda: len(store._background._jobs) == 1)
        store.close()
        for waiting in (repair, purge):
            with pytest.raises(StoreClosedError):
                waiting.result(20)
    with pytest.raises(StoreClosedError):
        store.apply(ROWS, from_repair=True)


def test_foreground_comes_first(store: LmdbRowStore) -> None:
    """Method: while the lock is held, a repair and then a write queue up for it; the write is committed first."""
    order: list[bytes] = []
    write = store._writing

    def noted(rows: Iterable[Row], **options: bool) -> int:
        applied = store.apply(rows, **options)
        order.append(b"repair" if options else b"foreground")
        return applied

    with ThreadPoolExecutor(2) as pool:
        with store._lock:
            repair = pool.submit(noted, [Row(b"repaired", 1, b"")], from_repair=True)
            until(lambda: len(store._background._jobs) == 1)
            foreground = pool.submit(noted, [Row(b"foreground", 1, b"")])
            until(lambda: store._background._foreground_waiting == 1)
        foreground.result()
        repair.result()
    assert write is not None
    assert order[0] == b"foreground"


def test_many_writers_of_both_kinds(store: LmdbRowStore) -> None:
    with Replica(store) as replica, ThreadPoolExecutor(6) as pool:
        works = [
            pool.submit(
                store.apply, [Row(b"%d" % (at % 500), version, b"%d" % version) for at in range(300)], **options
            )
            for version in range(1, 13)
            for options in ({"from_repair": True}, {})
        ]
        for work in works:
            work.result()
        assert {row.version for row in store.scan()} == {12}
        reader = store.read()
        digests = [*reader.digests([TokenRange.full()])]
        reader.close()
        assert replica.root(TokenRange.full()).count == sum(map(len, digests)) == 300
        assert replica.bucket_is_sound(0)


def test_a_slice_ends_when_a_foreground_write_waits() -> None:
    """Method: one begins to wait when the third row of a slice is asked for, and goes when that slice is committed."""
    writes: BackgroundWrites[bytes] = BackgroundWrites(threading.RLock(), len)
    slices: list[list[bytes]] = []

    def commit(items: Iterable[bytes]) -> int:
        taken: list[bytes] = []
        for item in items:
            taken.append(item)
            writes._foreground_waiting = int(len(taken) == 3 and not slices)
        writes._foreground_waiting = 0
        slices.append(taken)
        return len(taken)

    items = [b"%d" % number for number in range(20)]
    assert writes.run(items, commit) == 20
    assert slices == [items[:3], items[3:]]


def test_a_busy_store_is_committing_for_a_small_share_of_the_time() -> None:
    writes: BackgroundWrites[bytes] = BackgroundWrites(threading.RLock(), len)
    with writes.foreground():
        pass
    assert writes.try_turn(), "none before it"
    writes._committing_since -= 0.004
    writes.end_turn()
    assert writes._turn_at - time.monotonic() > 0.3
    with writes.foreground():
        pass
    assert not writes.try_turn()
    writes._foreground_at -= background.QUIET_SECONDS
    assert writes.try_turn()
    writes.end_turn()
