"""Reading a repaired SQLite table at one point in time: a connection with a read transaction of its own."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from antientropy.core import hashing
from antientropy.core.rows import Row, RowDigests
from antientropy.core.tokens import TokenRange
from antientropy.errors import StoreClosedError, StoreCorruptError
from antientropy.limits import DIGESTS_PER_CHUNK_MAX
from antientropy.stores.sqlite_table import VERSION_MAX, TableColumns, translated

#: Tokens are stored less this, so that their order is that of SQLite's signed integers.
TOKEN_OFFSET: Final = 1 << 63

#: token, key, version, digest of a row of the index.
_Indexed = tuple[int, bytes, int, bytes]


class SqliteReader:
    """See :class:`~antientropy.store.RowReader`. In WAL mode it blocks no writer, and no writer blocks it.

    Args:
        path: The database, for messages.
        connection: In a read transaction; the reader closes it.
        columns: Of the table.
        index: The quoted name of the table of digests.
        forget: Told when the reader closes.
    """

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        columns: TableColumns,
        index: str,
        forget: Callable[[SqliteReader], None],
    ) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = connection
        self._columns = columns
        self._index = index
        self._forget = forget
        self._lock = threading.Lock()

    def digests(self, ranges: Sequence[TokenRange]) -> Iterator[RowDigests]:
        """Digests of all rows of some ranges, in token order."""
        for token_range in ranges:
            last = token_range.last - TOKEN_OFFSET
            token, key = token_range.first - TOKEN_OFFSET, b""
            more = True
            while more:
                rows = self._select(
                    f"SELECT token, key, version, digest FROM {self._index}"
                    " WHERE (token, key) > (?, ?) AND token <= ? ORDER BY token, key LIMIT ?",
                    (token, key, last, DIGESTS_PER_CHUNK_MAX),
                )
                more = len(rows) == DIGESTS_PER_CHUNK_MAX
                if rows:
                    token, key = rows[-1][:2]
                    yield _columns(rows)

    def rows_at(self, tokens: Sequence[int]) -> Iterator[Row]:
        """The rows at these tokens; each is hashed and compared with its digest."""
        for token in tokens:
            indexed = self._select(
                f"SELECT key, version, digest, deleted FROM {self._index} WHERE token = ? ORDER BY key",
                (token - TOKEN_OFFSET,),
            )
            for key, version, digest, deleted in indexed:
                row = Row(key, version, b"", deleted=True) if deleted else self._live(key)
                if row is None or row.digest != digest:
                    raise StoreCorruptError(
                        f"{self._path}: the row at token {token} of table {self._columns.table} does not match its"
                        " digest: it was changed past the triggers, or is damaged; call reindex()"
                    )
                yield row

    def tombstones(self, before_version: int) -> Iterator[RowDigests]:
        """Tombstones with a lesser version, oldest first."""
        place: tuple[int, int, bytes] = (-1, 0, b"")
        more = True
        while more:
            rows = self._select(
                f"SELECT token, key, version, digest FROM {self._index} WHERE deleted"
                " AND (version, token, key) > (?, ?, ?) AND version <= ? ORDER BY version, token, key LIMIT ?",
                (*place, min(before_version - 1, VERSION_MAX), DIGESTS_PER_CHUNK_MAX),
            )
            more = len(rows) == DIGESTS_PER_CHUNK_MAX
            if rows:
                place = (rows[-1][2], rows[-1][0], rows[-1][1])
                yield _columns(rows)

    def close(self) -> None:
        """Give the connection back."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            self._forget(self)
            connection.close()

    def _live(self, key: bytes) -> Row | None:
        columns = self._columns
        found = self._select(columns.select, columns.key_columns(key))
        if not found:
            return None
        version, deleted, *values = found[0][len(columns.keys) :]
        return None if deleted else Row(key, version, columns.value_of(values))

    def _select(self, sql: str, parameters: Sequence[Any]) -> list[Any]:
        with self._reading() as connection:
            return connection.execute(sql, parameters).fetchall()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._connection is None:
                raise StoreClosedError("the reader has been closed")
            with translated(self._path, "read"):
                yield self._connection


def _columns(rows: list[_Indexed]) -> RowDigests:
    tokens = np.array([row[0] for row in rows], np.int64).view(np.uint64) ^ np.uint64(TOKEN_OFFSET)
    return RowDigests(
        tokens,
        np.array([row[2] for row in rows], np.uint64),
        hashing.digest_columns(b"".join([row[3] for row in rows])),
    )
