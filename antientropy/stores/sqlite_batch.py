"""One write transaction on a repaired SQLite table: bringing the index up to the table, and rows into both."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from antientropy.core import hashing
from antientropy.core.rows import Changes, Row
from antientropy.errors import RowRefusedError, StoreError
from antientropy.limits import VALUE_BYTES_MAX
from antientropy.store import check_row
from antientropy.stores.sqlite_columns import Column
from antientropy.stores.sqlite_reader import TOKEN_OFFSET
from antientropy.stores.sqlite_table import VERSION_MAX, TableColumns, quoted

#: Rows of the log or of the table that are brought up in one transaction.
ROWS_PER_TRANSACTION_MAX: Final = 4_096

#: The version of a delete that somebody made in the table: from the version that was deleted and when, in seconds.
DeleteVersion = Callable[[int, float], int]


@dataclass(frozen=True, slots=True)
class Indexed:
    """What the index says of a key."""

    token: int
    key: bytes
    version: int
    digest: bytes
    deleted: bool


@dataclass(frozen=True, slots=True)
class ArrivedRow:
    """A row, checked and hashed, as it will be stored."""

    indexed: Indexed
    keys: Sequence[Column]
    values: Sequence[Column]
    size: int

    @classmethod
    def of(cls, row: Row, columns: TableColumns) -> ArrivedRow:
        """From a row that keeps the limits and fits the table.

        Raises:
            RowRefusedError: it does not.
        """
        check_row(row)
        if row.version > VERSION_MAX:
            raise RowRefusedError(f"version {row.version} refused: SQLite's integers end at {VERSION_MAX}")
        values = columns.fillers if row.deleted else columns.value_columns(row.value)
        indexed = Indexed(row.token, row.key, row.version, row.digest, row.deleted)
        return cls(indexed, columns.key_columns(row.key), values, len(row.key) + len(row.value))


def of_table(columns: TableColumns, token: int, key: bytes, found: Sequence[Column]) -> Indexed:
    """What the index should say of a row of the table; ``found``: its ``read_columns``.

    Raises:
        StoreError: a version that is none, or a row that is too large.
    """
    version, deleted = found[0], bool(found[1])
    if not isinstance(version, int) or version < 0:
        raise StoreError(
            f"table {columns.table}: {columns.version} of key {key!r} is {version!r}; a version is an integer, 0 or"
            " greater"
        )
    value = b"" if deleted else columns.value_of(found[2:])
    if len(value) > VALUE_BYTES_MAX:
        raise StoreError(
            f"table {columns.table}: the row of key {key!r} takes {len(value)} bytes, but a value has at most"
            f" {VALUE_BYTES_MAX}"
        )
    return Indexed(token, key, version, hashing.row_digest(key, version, deleted, value), deleted)


def deletion_of(row: Indexed, delete_version: DeleteVersion, at_seconds: float) -> Indexed:
    """The tombstone of a row that somebody deleted from the table."""
    version = max(row.version + 1, delete_version(row.version, at_seconds))
    if version > VERSION_MAX:
        raise StoreError(f"a deletion would have version {version}, but SQLite's integers end at {VERSION_MAX}")
    return Indexed(row.token, row.key, version, hashing.row_digest(row.key, version, True, b""), deleted=True)


class SqliteBatch:
    """What one write transaction does. ``connection`` is in it."""

    def __init__(self, connection: sqlite3.Connection, columns: TableColumns, delete_version: DeleteVersion) -> None:
        self.connection = connection
        self._columns = columns
        self._delete_version = delete_version
        self._index = columns.side("index")
        self._select = columns.select
        self._table = quoted(columns.table)
        self._came: list[tuple[Indexed, int]] = []
        self.refused = 0
        """Rows that lay in the past."""

    def changes(self) -> Changes:
        """What came and what went."""
        rows = [row for row, _ in self._came]
        return Changes.of(
            [row.token for row in rows],
            [row.version for row in rows],
            [row.digest for row in rows],
            [sign for _, sign in self._came],
        )

    @property
    def rows(self) -> int:
        """Rows that came, less those that went."""
        return sum(sign for _, sign in self._came)

    @property
    def tombstones(self) -> int:
        """The same of tombstones."""
        return sum(sign for row, sign in self._came if row.deleted)

    @property
    def row_bytes(self) -> int:
        """The same of bytes of keys: what the index knows of sizes."""
        return sum(sign * len(row.key) for row, sign in self._came)

    # --- from the table into the index ---

    def refresh(self, keys: Sequence[Column], at_seconds: float) -> Indexed | None:
        """Bring the index up to a row of the table. What is there counts, whatever its version.

        Args:
            keys: The key columns of the row, which may be gone.
            at_seconds: When it was changed at the latest, since the epoch.
        """
        columns = self._columns
        found = self._find(keys)
        try:
            key = columns.key_of(keys)
        except StoreError:
            if found is None:
                return None  # never taken in, and gone
            raise
        token = hashing.token_of(key)
        known = self.indexed(token, key)
        if found is not None:
            now: Indexed | None = of_table(columns, token, key, found)
        elif known is None or known.deleted:
            return known
        else:
            now = deletion_of(known, self._delete_version, at_seconds)
        if now != known:
            self._replace(known, now)
        return now

    def _find(self, keys: Sequence[Column]) -> Sequence[Column] | None:
        """What the table holds of a row: its ``read_columns``."""
        found = self.connection.execute(self._select, keys).fetchone()
        if found is None:
            return None
        stored = found[: len(keys)]
        if _typed(stored) != _typed(keys):
            raise StoreError(
                f"table {self._columns.table} takes key {tuple(keys)!r} for {stored!r}: declare its columns as on the"
                " other replicas"
            )
        rest: Sequence[Column] = found[len(keys) :]
        return rest

    def indexed(self, token: int, key: bytes) -> Indexed | None:
        """What the index says."""
        found = self.connection.execute(
            f"SELECT version, digest, deleted FROM {self._index} WHERE token = ? AND key = ?",
            (token - TOKEN_OFFSET, key),
        ).fetchone()
        return None if found is None else Indexed(token, key, found[0], found[1], bool(found[2]))

    def put_indexed(self, row: Indexed) -> None:
        """Take over what a scan found."""
        self._replace(self.indexed(row.token, row.key), row)

    def _replace(self, old: Indexed | None, new: Indexed | None) -> None:
        if old is not None:
            self._came.append((old, -1))
        if new is not None:
            self._came.append((new, 1))
            self.connection.execute(
                f"INSERT OR REPLACE INTO {self._index} (token, key, version, digest, deleted) VALUES (?, ?, ?, ?, ?)",
                (new.token - TOKEN_OFFSET, new.key, new.version, new.digest, new.deleted),
            )
        elif old is not None:
            self.connection.execute(
                f"DELETE FROM {self._index} WHERE token = ? AND key = ?", (old.token - TOKEN_OFFSET, old.key)
            )

    # --- from a replica into both ---

    def put(self, row: ArrivedRow, known: Indexed | None, past: Sequence[int] | None) -> bool:
        """Put a row if it wins over what is known; ``past``: refuse it if it lies below its bucket's version."""
        new = row.indexed
        if known is not None and (new.version, new.digest) <= (known.version, known.digest):
            return False
        if past is not None and new.version < past[new.token >> 56]:
            self.refused += 1
            return False
        if new.deleted and self._columns.tombstone is None:
            if self._find(row.keys) is not None:
                self.connection.execute(f"DELETE FROM {self._table} WHERE {self._columns.keys_match}", row.keys)
        else:
            self._upsert(row)
        self._replace(known, new)
        return True

    def _upsert(self, row: ArrivedRow) -> None:
        """Write it to the table and look whether the table keeps it as it is: column types may change values."""
        columns = self._columns
        flag = [] if columns.tombstone is None else [int(row.indexed.deleted)]
        self.connection.execute(columns.upsert, (*row.keys, row.indexed.version, *flag, *row.values))
        # Not by RETURNING, which shows values before the column's type has changed them.
        stored = self._find(row.keys)
        expected = [row.indexed.version, int(row.indexed.deleted), *row.values]
        if stored is None or (not row.indexed.deleted and _typed(stored) != _typed(expected)):
            raise StoreError(
                f"table {columns.table} stores {stored!r} where {(*row.keys, *expected)!r} was written: declare its"
                " columns as on the other replicas"
            )

    def remove_tombstone(self, row: Indexed) -> None:
        """Purge one, from the table too if it is kept there."""
        columns = self._columns
        if columns.tombstone is not None:
            self.connection.execute(
                f"DELETE FROM {self._table} WHERE {columns.keys_match} AND {quoted(columns.version)} = ?"
                f" AND {quoted(columns.tombstone)}",
                (*columns.key_columns(row.key), row.version),
            )
        self._replace(row, None)


def _typed(columns: Sequence[Column]) -> list[tuple[type, Column]]:
    """For comparison: 1 and 1.0 are different values."""
    return [(type(column), column) for column in columns]
