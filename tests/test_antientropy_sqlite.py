"""SQLite tables of applications as row stores: what others write is found, whatever the columns are; errors help."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antientropy import (
    Replica,
    Row,
    RowRefusedError,
    StoreClosedError,
    StoreCorruptError,
    StoreError,
    StoreInUseError,
    StoreReadOnlyError,
    TokenRange,
)
from antientropy.stores.sqlite import SqliteRowStore, Tracking
from antientropy.stores.sqlite_columns import Column, decode_columns, encode_columns
from antientropy.testing.store_contract import Follower, fingerprint, rows_of, uniform

FULL = TokenRange.full()
ORDERS = """
CREATE TABLE "o""rders" (
    customer TEXT, number INTEGER, price REAL, note TEXT, version INTEGER NOT NULL, size INTEGER GENERATED ALWAYS AS
    (length(note)) VIRTUAL, PRIMARY KEY (customer, number)
)"""
BOTH = pytest.mark.parametrize("tracking", list(Tracking))

column = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_database(tmp_path / "shop.db", ORDERS)


def make_database(path: Path, *statements: str) -> Path:
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    return path


@pytest.fixture
def orders(path: Path) -> Iterator[Callable[..., SqliteRowStore]]:
    """Opens stores on the table of orders."""
    stores: list[SqliteRowStore] = []

    def open_orders(tracking: Tracking = Tracking.TRIGGERS, at: Path = path, **options: Any) -> SqliteRowStore:
        options = {"keys": ["customer", "number"], "version": "version", "durable": False, **options}
        stores.append(SqliteRowStore(at, 'o"rders', tracking=tracking, **options))
        return stores[-1]

    yield open_orders
    for store in stores:
        store.close()


def write(path: Path, sql: str, *parameters: Column) -> None:
    """As another process would, by a connection of its own."""
    connection = sqlite3.connect(path, timeout=10)
    with connection:
        connection.execute(sql, parameters)
    connection.close()


def read(path: Path, sql: str = 'SELECT * FROM "o""rders" ORDER BY customer, number') -> list[Any]:
    connection = sqlite3.connect(path)
    rows = connection.execute(sql).fetchall()
    connection.close()
    return rows


PUT = 'INSERT OR REPLACE INTO "o""rders" (customer, number, price, note, version) VALUES (?, ?, ?, ?, ?)'


def order(customer: str, number: int, price: float | None, note: str | None, version: int) -> Row:
    return Row(encode_columns([customer, number]), version, encode_columns([price, note]))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- bytes of columns ---


@given(st.lists(column, max_size=5))
def test_columns_come_back(columns: list[Column]) -> None:
    back = decode_columns(encode_columns(columns), len(columns))
    assert [(type(one), one) for one in back] == [(type(one), one) for one in columns]


@given(st.lists(column, max_size=3), st.lists(column, max_size=3))
def test_different_columns_are_different_bytes(one: list[Column], other: list[Column]) -> None:
    same = [(type(each), repr(each)) for each in one] == [(type(each), repr(each)) for each in other]
    assert (encode_columns(one) == encode_columns(other)) is same


@given(st.binary(max_size=30), st.integers(0, 3))
def test_other_bytes_are_refused(encoded: bytes, count: int) -> None:
    try:
        columns = decode_columns(encoded, count)
    except ValueError:
        return
    assert encode_columns(columns) == encoded


# --- the table is the truth ---


@BOTH
def test_rows_that_are_there_and_rows_that_others_write(
    orders: Callable[..., SqliteRowStore], path: Path, tracking: Tracking
) -> None:
    write(path, PUT, "ann", 1, 9.5, "old", 5)
    store = orders(tracking, version_at=int)
    assert rows_of(store) == [order("ann", 1, 9.5, "old", 5)]
    write(path, PUT, "bob", -1, None, None, 6)
    write(path, 'UPDATE "o""rders" SET note = ?, version = 7 WHERE customer = ?', "new", "ann")
    assert {row.key: row for row in rows_of(store)} == {
        row.key: row for row in [order("ann", 1, 9.5, "new", 7), order("bob", -1, None, None, 6)]
    }
    before = int(time.time())
    write(path, 'DELETE FROM "o""rders" WHERE customer = ?', "bob")
    deleted = next(row for row in rows_of(store) if row.deleted)
    assert deleted.key == encode_columns(["bob", -1])
    assert before <= deleted.version <= int(time.time())
    assert (store.row_count, store.tombstone_count) == (2, 1)
    write(path, 'UPDATE "o""rders" SET number = 2, version = 8')
    keys = {row.key: row.deleted for row in rows_of(store)}
    assert keys[encode_columns(["ann", 1])]
    assert not keys[encode_columns(["ann", 2])]


@BOTH
def test_rows_of_repair_go_to_the_table(orders: Callable[..., SqliteRowStore], path: Path, tracking: Tracking) -> None:
    store = orders(tracking)
    store.apply([order("ann", 1, 2.0, "x", 3), order("bob", 2, None, None, 3)], from_repair=True)
    assert read(path) == [("ann", 1, 2.0, "x", 3, 1), ("bob", 2, None, None, 3, None)]
    store.apply([Row(encode_columns(["ann", 1]), 4, b"", deleted=True)])
    assert read(path) == [("bob", 2, None, None, 3, None)]
    assert store.tombstone_count == 1
    write(path, PUT, "bob", 2, 1.0, "newer", 9)
    assert store.apply([order("bob", 2, 0.0, "late", 8)]) == 0, "what others wrote meanwhile is compared with"
    assert read(path)[0][3] == "newer"
    assert store.purge(uniform(5), 10) == 1
    assert store.tombstone_count == 0


def test_a_tombstone_column_keeps_deleted_rows_in_the_table(tmp_path: Path) -> None:
    path = make_database(
        tmp_path / "a.db",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT NOT NULL, n INTEGER NOT NULL, ver INTEGER, dead BOOLEAN)",
        "INSERT INTO t VALUES (1, 'one', 1, 5, NULL), (2, 'two', 2, 5, 1)",
    )
    with SqliteRowStore(path, "t", keys=["id"], version="ver", tombstone="dead", durable=False) as store:
        assert sorted((row.version, row.deleted) for row in rows_of(store)) == [(5, False), (5, True)]
        store.apply([Row(encode_columns([1]), 6, b"", deleted=True)])
        assert read(path, "SELECT * FROM t ORDER BY id") == [(1, "", 0, 6, 1), (2, "two", 2, 5, 1)]
        write(path, "DELETE FROM t WHERE id = 2")
        assert len(rows_of(store)) == 2, "the tombstone stays known"
        assert store.purge(uniform(6), 10) == 1
        assert store.purge(uniform(7), 10) == 1
        assert read(path, "SELECT * FROM t") == []
        assert rows_of(store) == []


def test_changes_of_others_are_reported(orders: Callable[..., SqliteRowStore], path: Path) -> None:
    store = orders(poll_seconds=0.01)
    follower = Follower()
    assert store.subscribe(follower)
    write(path, PUT, "ann", 1, 1.0, "x", 3)
    wait_until(lambda: follower.rows() == [fingerprint(order("ann", 1, 1.0, "x", 3))])
    write(path, 'DELETE FROM "o""rders"')
    wait_until(lambda: follower.rows() == [fingerprint(Row(encode_columns(["ann", 1]), 4, b"", deleted=True))])


def test_a_replica_follows_a_table_that_others_write(orders: Callable[..., SqliteRowStore], path: Path) -> None:
    store, other = orders(poll_seconds=0.01), make_database(path.with_name("other.db"), ORDERS)
    replica, second = Replica(store), Replica(orders(at=other, tracking=Tracking.SCAN))
    replica.open()
    second.open()
    for number in range(50):
        for file in (path, other):
            write(file, PUT, "ann", number, float(number), "x", number)
    wait_until(lambda: replica.root(FULL).count == 50)
    assert replica.root(FULL) == second.root(FULL)
    replica.close()
    second.close()


WRITER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=20)
for number in range(400):
    with connection:
        connection.execute(sys.argv[2], (sys.argv[3], number % 40, float(number), "x", number))
        if number % 5 == 0:
            connection.execute('DELETE FROM "o""rders" WHERE customer = ? AND number = ?', (sys.argv[3], number % 40))
"""


@pytest.mark.process
def test_other_processes_write_while_rows_are_read(orders: Callable[..., SqliteRowStore], path: Path) -> None:
    store = orders(poll_seconds=0.01)
    follower = Follower()
    store.subscribe(follower)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), PUT, name]) for name in ("ann", "bob")]
    try:
        while any(writer.poll() is None for writer in writers):
            rows_of(store)  # checks each row against its digest
            store.apply([order("cid", 1, 1.0, "y", time.monotonic_ns())])
    finally:
        for writer in writers:
            writer.wait(30)
    assert [writer.returncode for writer in writers] == [0, 0]
    rows = rows_of(store)
    assert follower.rows() == sorted(fingerprint(row) for row in rows)
    live = [(row.key, row.value) for row in rows if not row.deleted]
    found = [(encode_columns(one[:2]), encode_columns(one[2:4])) for one in read(path)]
    assert sorted(live) == sorted(found)


def test_readers_do_not_block_writers(orders: Callable[..., SqliteRowStore], path: Path) -> None:
    store = orders()
    store.apply([order("ann", number, 1.0, "x", 1) for number in range(100)])
    reader = store.read()
    chunks = reader.digests([FULL])
    next(chunks)
    write(path, PUT, "bob", 1, 1.0, "x", 3)
    store.apply([order("cid", 1, 1.0, "x", 1)])
    reader.close()
    assert store.row_count == 102


# --- opening again ---


def test_what_happened_while_it_was_closed_is_found(orders: Callable[..., SqliteRowStore], path: Path) -> None:
    store = orders()
    store.apply([order("ann", 1, 1.0, "x", 3)])
    name = store.state_id()
    store.close()
    store = orders()
    assert store.state_id() == name
    store.close()
    write(path, PUT, "bob", 1, 1.0, "x", 3)
    store = orders()
    assert store.row_count == 2
    assert store.state_id() != name
    assert len(rows_of(store)) == 2


def test_changes_past_missing_triggers_are_found_by_indexing_anew(
    orders: Callable[..., SqliteRowStore], path: Path
) -> None:
    store = orders()
    store.apply([order("ann", 1, 1.0, "x", 3), order("bob", 1, 1.0, "x", 3)])
    trigger = 'DROP TRIGGER "o""rders_antientropy_update"'
    write(path, trigger)
    with pytest.raises(StoreError, match=r"triggers on table .* are gone; open the store anew"):
        store.apply([order("ann", 2, 1.0, "x", 3)])
    store.close()
    write(path, 'UPDATE "o""rders" SET note = ?, version = 9 WHERE customer = ?', "past", "ann")
    store = orders()
    assert order("ann", 1, 1.0, "past", 9) in rows_of(store)


def test_other_value_columns_make_other_digests(orders: Callable[..., SqliteRowStore]) -> None:
    store = orders()
    store.apply([order("ann", 1, 1.0, "x", 3)])
    store.close()
    store = orders(values=["price"])
    assert rows_of(store) == [Row(encode_columns(["ann", 1]), 3, encode_columns([1.0]))]


def test_an_altered_table_is_noticed(orders: Callable[..., SqliteRowStore], path: Path) -> None:
    store = orders()
    store.apply([order("ann", 1, 1.0, "x", 3)])
    write(path, "CREATE TABLE something_else (a)")
    store.apply([order("ann", 2, 1.0, "x", 3)])
    write(path, 'ALTER TABLE "o""rders" ADD COLUMN colour TEXT')
    for use in (lambda: store.apply([order("ann", 3, 1.0, "x", 3)]), store.read):
        with pytest.raises(StoreError, match=r"columns of table .* have changed; open the store anew"):
            use()
    store.close()
    store = orders()
    assert rows_of(store)[0].value == encode_columns([1.0, "x", None])


def test_uninstalling_leaves_the_table_alone(orders: Callable[..., SqliteRowStore], path: Path) -> None:
    store = orders()
    store.apply([order("ann", 1, 1.0, "x", 3)])
    rows = read(path)
    store.uninstall()
    assert read(path) == rows
    assert read(path, "SELECT name FROM sqlite_master WHERE name LIKE '%antientropy%'") == []
    with pytest.raises(StoreClosedError):
        store.apply([])


def test_rows_changed_past_the_triggers_are_not_spread(orders: Callable[..., SqliteRowStore], path: Path) -> None:
    store = orders()
    store.apply([order("ann", 1, 1.0, "x", 3)])
    connection = sqlite3.connect(path)
    trigger = store._columns.triggers()['o"rders_antientropy_update']
    connection.execute('DROP TRIGGER "o""rders_antientropy_update"')
    connection.execute('UPDATE "o""rders" SET note = NULL')
    connection.execute(trigger)
    connection.commit()
    connection.close()
    reader = store.read()
    with pytest.raises(StoreCorruptError, match=r"call reindex\(\)"):
        list(reader.rows_at([order("ann", 1, 1.0, "x", 3).token]))
    reader.close()
    store.reindex()
    assert rows_of(store) == [order("ann", 1, 1.0, None, 3)]


# --- errors ---


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"keys": []}, "name at least one key column"),
        ({"keys": ["customer"]}, "must be its primary key or have a unique index"),
        ({"keys": ["customer", "nr"]}, "there is no column nr; it has customer, "),
        ({"version": "note", "values": ["note"]}, "a column is named twice"),
        ({"values": ["size"]}, "column size is generated"),
        ({"version": "price", "values": ["note"]}, "column version is NOT NULL without a default"),
    ],
)
def test_unfit_columns_are_refused(orders: Callable[..., SqliteRowStore], options: dict[str, Any], reason: str) -> None:
    with pytest.raises(StoreError, match=reason):
        orders(**options)


def test_unfit_tables_and_files_are_refused(tmp_path: Path) -> None:
    path = make_database(
        tmp_path / "a.db",
        "CREATE TABLE folded (k TEXT COLLATE NOCASE PRIMARY KEY, ver INTEGER)",
        "CREATE VIEW seen AS SELECT * FROM folded",
    )
    for table, reason in (("folded", "another collation"), ("seen", "no such table"), ("none", "no such table")):
        with pytest.raises(StoreError, match=reason):
            SqliteRowStore(path, table, keys=["k"], version="ver")
    with pytest.raises(StoreError, match="no such database"):
        SqliteRowStore(tmp_path / "missing.db", "t", keys=["k"], version="ver")
    (tmp_path / "text.db").write_bytes(b"no database, but a text that is long enough to be looked at" * 100)
    with pytest.raises(StoreCorruptError, match="no usable database"):
        SqliteRowStore(tmp_path / "text.db", "t", keys=["k"], version="ver")


def test_one_store_a_table(orders: Callable[..., SqliteRowStore]) -> None:
    orders()
    with pytest.raises(StoreInUseError, match="in use by another store"):
        orders()


def test_rows_that_do_not_fit_the_columns_are_refused(orders: Callable[..., SqliteRowStore], path: Path) -> None:
    store = orders()
    good = order("ann", 1, 1.0, "x", 3)
    for bad, reason in (
        (Row(b"raw", 1, good.value), "key b'raw' refused"),
        (Row(encode_columns(["ann", 1.5]), 1, good.value), "keys are integers, text or blobs"),
        (Row(good.key, 1, b"raw"), "all replicas need the same columns"),
        (Row(good.key, 2**63, good.value), "SQLite's integers end at"),
    ):
        with pytest.raises(RowRefusedError, match=reason):
            store.apply([good, bad])
    with pytest.raises(StoreError, match="declare its columns as on the other replicas"):
        store.apply([good, Row(encode_columns(["ann", "7"]), 1, good.value)])
    assert read(path) == []
    assert rows_of(store) == []


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        (("ann", None, 1.0, "x", 3), "key column number is None"),
        (("ann", 1, 1.0, "x", -3), "version of key .* is -3"),
        (("ann", 1, 1.0, "x" * 600_000, 3), "a value has at most 524288"),
        (("a" * 600, 1, 1.0, "x", 3), "a key has 1 to 503"),
    ],
)
def test_rows_that_cannot_be_repaired_are_named(
    orders: Callable[..., SqliteRowStore], path: Path, parameters: tuple[Column, ...], reason: str
) -> None:
    store = orders()
    write(path, PUT, *parameters)
    with pytest.raises(StoreError, match=reason):
        store.read()
    write(path, 'DELETE FROM "o""rders"')
    assert rows_of(store) == []


def test_a_writer_that_takes_too_long_is_named(orders: Callable[..., SqliteRowStore], path: Path) -> None:
    store = orders(busy_seconds=0.05)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another connection writes for too long"):
        store.apply([order("ann", 1, 1.0, "x", 3)])
    blocker.execute("ROLLBACK")
    blocker.close()
    assert store.apply([order("ann", 1, 1.0, "x", 3)]) == 1


def test_constraints_of_the_application_are_kept(tmp_path: Path) -> None:
    path = make_database(
        tmp_path / "a.db", "CREATE TABLE t (id INTEGER PRIMARY KEY, age INTEGER CHECK (age > 0), ver INTEGER)"
    )
    with SqliteRowStore(path, "t", keys=["id"], version="ver", durable=False) as store:
        rows = [Row(encode_columns([number]), 1, encode_columns([number - 1])) for number in (2, 1)]
        with pytest.raises(StoreError, match="CHECK constraint failed"):
            store.apply(rows)
        assert rows_of(store) == []
        assert read(path, "SELECT * FROM t") == []


def test_a_read_only_database_is_named(orders: Callable[..., SqliteRowStore], path: Path) -> None:
    orders().close()
    import os

    if os.geteuid() == 0:
        pytest.skip("root may write anything")
    path.chmod(0o444)
    with pytest.raises(StoreReadOnlyError, match="check owner, mode and mount"):
        orders()


def test_a_full_disk_changes_nothing(orders: Callable[..., SqliteRowStore]) -> None:
    store = orders()
    store.apply([order("ann", 1, 1.0, "x", 3)])
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="no space left; free some, nothing was changed"):
        store.apply([order("bob", number, 1.0, "x" * 1_000, 3) for number in range(500)])
    assert rows_of(store) == [order("ann", 1, 1.0, "x", 3)]
    store._db.execute("PRAGMA max_page_count = 1000000")
    assert store.apply([order("bob", 1, 1.0, "x", 3)]) == 1


def test_an_error_while_looking_for_changes_is_logged(
    orders: Callable[..., SqliteRowStore], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = orders(poll_seconds=0.01)
    follower = Follower()
    store.subscribe(follower)
    write(path, PUT, "ann", 1, 1.0, "x", -1)
    wait_until(lambda: "changes of others cannot be taken in" in caplog.text)
    write(path, PUT, "ann", 1, 1.0, "x", 1)
    wait_until(lambda: len(follower.rows()) == 1)


def test_many_changes_at_once_are_taken_in(orders: Callable[..., SqliteRowStore], path: Path) -> None:
    store = orders()
    connection = sqlite3.connect(path)
    with connection:
        connection.executemany(PUT, [("ann", number, 1.0, "x", 1) for number in range(10_000)])
    connection.close()
    assert store.apply([order("ann", 3, 1.0, "y", 2)]) == 1
    assert store.row_count == 10_000
    assert len(rows_of(store)) == 10_000


def test_tables_without_rowid_and_text_keys(tmp_path: Path) -> None:
    path = make_database(
        tmp_path / "a.db",
        "CREATE TABLE t (k TEXT PRIMARY KEY, v, ver INTEGER NOT NULL) WITHOUT ROWID",
        "INSERT INTO t VALUES ('a', 1, 1), ('b', 'x', 1), ('c', x'00', 1), ('d', NULL, 1), ('e', 1.5, 1)",
    )
    with SqliteRowStore(path, "t", keys=["k"], version="ver", durable=False) as store:
        assert len(rows_of(store)) == 5
        store.apply([Row(encode_columns(["a"]), 2, encode_columns([b"blob"]))])
        assert read(path, "SELECT v, typeof(v) FROM t WHERE k = 'a'") == [(b"blob", "blob")]


def test_floors_of_other_buckets_do_not_hide_tombstones(orders: Callable[..., SqliteRowStore]) -> None:
    """Method: far more tombstones that stay than one slice of a purge looks at lie before those that go."""
    store = orders()
    rows = [Row(encode_columns(["ann", number]), number, b"", deleted=True) for number in range(6_000)]
    store.apply(rows)
    bucket = rows[-1].token >> 56
    floors = np.zeros(256, np.uint64)
    floors[bucket] = 6_000
    wanted = sum(row.token >> 56 == bucket for row in rows)
    assert store.purge(floors, 1_000) == wanted
    assert store.tombstone_count == 6_000 - wanted


def test_closing_waits_for_nobody_and_says_so(orders: Callable[..., SqliteRowStore]) -> None:
    store = orders()
    reader = store.read()
    store.subscribe(Follower())
    store.close()
    store.close()
    with pytest.raises(StoreClosedError):
        list(reader.digests([FULL]))
    for use in (store.read, store.state_id, lambda: store.purge(uniform(1), 1), lambda: store.read_mark("mine")):
        with pytest.raises(StoreClosedError):
            use()
    assert not any(thread.name == "antientropy sqlite" for thread in threading.enumerate())
