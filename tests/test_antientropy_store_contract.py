"""All stores of the library keep one contract, the one that users run against their own."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

from antientropy import LmdbRowStore, MemoryRowStore
from antientropy.store import RowStore
from antientropy.stores.sqlite import SqliteRowStore, Tracking
from antientropy.testing import StoreContract

TABLES = {
    "blobs": "CREATE TABLE blobs (k BLOB NOT NULL PRIMARY KEY, version INTEGER NOT NULL, v BLOB NOT NULL)",
    "flagged": "CREATE TABLE flagged (k BLOB NOT NULL PRIMARY KEY, version INTEGER, dead INTEGER, v BLOB NOT NULL)",
}


def database(path: Path, table: str) -> Path:
    """A database with an empty table, unless it is there."""
    file = path / "application.db"
    connection = sqlite3.connect(file)
    connection.execute(TABLES[table].replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS"))
    connection.close()
    return file


class TestMemory(StoreContract):
    is_durable = False

    def open_store(self, path: Path) -> RowStore:
        return MemoryRowStore()

    def damage(self, store: RowStore, key: bytes) -> None:
        assert isinstance(store, MemoryRowStore)
        stored = store._rows[key]
        store._rows[key] = replace(stored, row=replace(stored.row, value=b"rot"))


class TestLmdb(StoreContract):
    def open_store(self, path: Path) -> RowStore:
        return LmdbRowStore(path, durable=False)

    def damage(self, store: RowStore, key: bytes) -> None:
        assert isinstance(store, LmdbRowStore)
        with (
            store._environment.begin(write=True, db=store._databases.rows) as transaction,
            transaction.cursor() as all_,
        ):
            for place, stored in list(all_):
                if bytes(place[8:]) == key:
                    transaction.put(place, bytes(stored[:-1]) + b"!")


class SqliteContract(StoreContract):
    version_max = 2**63 - 1

    def damage(self, store: RowStore, key: bytes) -> None:
        assert isinstance(store, SqliteRowStore)
        table = store._columns.table
        connection = sqlite3.connect(store.path)
        for trigger in store._columns.triggers():
            connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        with connection:
            connection.execute(f"UPDATE {table} SET v = ? WHERE k = ?", (b"rot", key))
        for statement in store._columns.triggers().values():
            connection.execute(statement)
        connection.close()


class TestSqliteTriggers(SqliteContract):
    def open_store(self, path: Path) -> RowStore:
        return SqliteRowStore(database(path, "blobs"), "blobs", keys=["k"], version="version", durable=False)


class TestSqliteTriggersWithTombstones(SqliteContract):
    def open_store(self, path: Path) -> RowStore:
        file = database(path, "flagged")
        return SqliteRowStore(file, "flagged", keys=["k"], version="version", tombstone="dead", durable=False)


class SqliteScanContract(SqliteContract):
    def test_damage_is_noticed(self, store: RowStore) -> None:
        """Nothing to test: what the table holds is what counts."""


class TestSqliteScan(SqliteScanContract):
    def open_store(self, path: Path) -> RowStore:
        file = database(path, "blobs")
        return SqliteRowStore(file, "blobs", keys=["k"], version="version", tracking=Tracking.SCAN, durable=False)


class TestSqliteScanWithTombstones(SqliteScanContract):
    def open_store(self, path: Path) -> RowStore:
        return SqliteRowStore(
            database(path, "flagged"),
            "flagged",
            keys=["k"],
            version="version",
            tombstone="dead",
            tracking=Tracking.SCAN,
            durable=False,
        )
