"""Finding out what a table without triggers holds: every row is read and hashed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Final

from antientropy.core import hashing
from antientropy.stores.sqlite_batch import ROWS_PER_TRANSACTION_MAX, DeleteVersion, Indexed, deletion_of, of_table
from antientropy.stores.sqlite_reader import TOKEN_OFFSET
from antientropy.stores.sqlite_table import INDEX_COLUMNS, TableColumns, listed, quoted

_INSERT: Final = "INSERT INTO temp.snapshot VALUES (?, ?, ?, ?, ?)"


def scan_into_snapshot(
    connection: sqlite3.Connection, columns: TableColumns, delete_version: DeleteVersion, at_seconds: float
) -> Iterator[list[Indexed]]:
    """Make the temporary table ``snapshot`` of the connection's read transaction: what the index would be.

    Returns what differs from the index, in pages. Memory is bounded: SQLite keeps the table in a file.
    """
    connection.execute(f"CREATE TEMP TABLE snapshot ({INDEX_COLUMNS}) WITHOUT ROWID")
    keys = listed([quoted(name) for name in columns.keys])
    count = len(columns.keys)
    cursor = connection.execute(f"SELECT {keys}, {columns.read_columns} FROM {quoted(columns.table)}")
    while page := cursor.fetchmany(ROWS_PER_TRANSACTION_MAX):
        rows = []
        for found in page:
            key = columns.key_of(found[:count])
            rows.append(of_table(columns, hashing.token_of(key), key, found[count:]))
        connection.executemany(_INSERT, [_stored(row) for row in rows])
    _add_tombstones(connection, columns, delete_version, at_seconds)
    connection.execute("CREATE INDEX temp.snapshot_tombstones ON snapshot (version, token, key) WHERE deleted")
    return _differing(connection, columns)


def _add_tombstones(
    connection: sqlite3.Connection, columns: TableColumns, delete_version: DeleteVersion, at_seconds: float
) -> None:
    """Of rows that the index knows and the table does not: their tombstone, or a new one."""
    index = columns.side("index")
    connection.execute(f"INSERT OR IGNORE INTO temp.snapshot SELECT * FROM {index} WHERE deleted")
    while missing := connection.execute(
        f"SELECT i.token, i.key, i.version, i.digest, i.deleted FROM {index} i"
        " LEFT JOIN temp.snapshot s ON s.token = i.token AND s.key = i.key WHERE s.key IS NULL LIMIT ?",
        (ROWS_PER_TRANSACTION_MAX,),
    ).fetchall():
        deleted = [deletion_of(_indexed(*found), delete_version, at_seconds) for found in missing]
        connection.executemany(_INSERT, [_stored(row) for row in deleted])


def _differing(connection: sqlite3.Connection, columns: TableColumns) -> Iterator[list[Indexed]]:
    place: tuple[int, bytes] = (-TOKEN_OFFSET, b"")
    while True:
        found = connection.execute(
            "SELECT s.token, s.key, s.version, s.digest, s.deleted FROM temp.snapshot s"
            f" LEFT JOIN {columns.side('index')} i ON s.token = i.token AND s.key = i.key"
            " WHERE (s.token, s.key) > (?, ?) AND (i.key IS NULL OR i.version <> s.version OR i.digest <> s.digest)"
            " ORDER BY s.token, s.key LIMIT ?",
            (*place, ROWS_PER_TRANSACTION_MAX),
        ).fetchall()
        if not found:
            return
        yield [_indexed(*one) for one in found]
        place = found[-1][:2]


def _indexed(token: int, key: bytes, version: int, digest: bytes, deleted: int) -> Indexed:
    return Indexed(token + TOKEN_OFFSET, key, version, digest, bool(deleted))


def _stored(row: Indexed) -> tuple[int, bytes, int, bytes, bool]:
    return row.token - TOKEN_OFFSET, row.key, row.version, row.digest, row.deleted
