"""Reading an LMDB row store at one point in time: columns of digests, rows by token, tombstones by version."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final, cast

import lmdb
import numpy as np

from antientropy.core.rows import Row, RowDigests
from antientropy.core.tokens import TOKEN_MAX, TokenRange
from antientropy.errors import StoreClosedError, StoreCorruptError
from antientropy.limits import DIGESTS_PER_CHUNK_MAX
from antientropy.store import Reread
from antientropy.stores.lmdb_files import HEADER, TOKEN, TOMBSTONE, Databases, translated

#: Token and header as a numpy record: what a scan takes of a row.
_HEAD_TYPE: Final = np.dtype([("token", ">u8"), ("version", ">u8"), ("flags", "u1"), ("digest", ">u8", (2,))])
#: A place in the list of tombstones.
_TOMBSTONE_TYPE: Final = np.dtype([("version", ">u8"), ("token", ">u8"), ("digest", ">u8", (2,))])
#: Rows that are looked at under the reader's lock at once: few at first, since most ranges are small.
_TURN_ROWS_MIN: Final = 32
_TURN_ROWS_MAX: Final = 4_096
#: Rows that are read with their values under the lock at once; the values are in memory together.
_ROWS_PER_TURN: Final = 64
#: LMDB copies short values faster than it makes views of them; beyond this (on average) a scan takes views.
_COPIED_BYTES_MAX: Final = 2_048


class LmdbReader:
    """See :class:`~antientropy.store.RowReader`: a read transaction.

    LMDB's read transactions are not tied to a thread (py-lmdb opens with MDB_NOTLS), but must not be used by two at
    once: a lock is held for each turn, and no cursor is kept between turns.
    """

    def __init__(
        self,
        path: Path,
        environment: lmdb.Environment,
        databases: Databases,
        forget: Callable[[LmdbReader], None] = lambda _: None,
    ) -> None:
        self._path = path
        self._databases = databases
        self._forget = forget
        self._lock = threading.Lock()
        with translated(path, "read"):
            transaction = environment.begin(db=databases.rows)
            used = transaction.stat(databases.rows)
            pages = used["branch_pages"] + used["leaf_pages"] + used["overflow_pages"]
            self._views = pages * used["psize"] > _COPIED_BYTES_MAX * used["entries"]
            if self._views:
                # The caller holds the write lock: this one sees the same rows. Its views are taken for bytes below.
                transaction.abort()
                transaction = cast("lmdb.Transaction[bytes]", environment.begin(db=databases.rows, buffers=True))
        self._transaction: lmdb.Transaction[bytes] | None = transaction

    def digests(self, ranges: Sequence[TokenRange]) -> Iterator[RowDigests]:
        """Digests of all rows of some ranges, in token order; only headers are read."""
        heads: list[bytes] = []
        for token_range in ranges:
            start: bytes | None = TOKEN.pack(token_range.first)
            turn = _TURN_ROWS_MIN
            while start is not None:
                with self._reading() as cursor:
                    start = self._read_heads(
                        cursor, start, token_range.last, min(turn, DIGESTS_PER_CHUNK_MAX - len(heads)), heads
                    )
                turn = min(4 * turn, _TURN_ROWS_MAX)
                if len(heads) >= DIGESTS_PER_CHUNK_MAX:
                    yield self._columns(heads)
                    heads = []
        if heads:
            yield self._columns(heads)

    def _read_heads(
        self, cursor: lmdb.Cursor[bytes], start: bytes, last: int, rows_max: int, heads: list[bytes]
    ) -> bytes | None:
        """Append tokens and headers from ``start`` on; return where to go on, or None at the end of the range."""
        if not cursor.set_range(start):
            return None
        rows = islice(cursor.iternext(), rows_max)
        if self._views:
            found = [bytes(place[:8]) + bytes(stored[:25]) for place, stored in rows]
        else:
            found = [place[:8] + stored[:25] for place, stored in rows]
        following = bytes(cursor.key()) + b"\0" if len(found) == rows_max else None
        if last != TOKEN_MAX:
            inside = bisect_left(found, TOKEN.pack(last + 1))
            if inside < len(found):
                following = None
                del found[inside:]
        heads += found
        return following

    def _columns(self, heads: list[bytes]) -> RowDigests:
        joined = b"".join(heads)
        if len(joined) != len(heads) * _HEAD_TYPE.itemsize:
            raise StoreCorruptError(f"{self._path}: a row is shorter than its header; restore or wipe this replica")
        records = np.frombuffer(joined, _HEAD_TYPE)
        return RowDigests(
            records["token"].astype(np.uint64),
            records["version"].astype(np.uint64),
            records["digest"].astype(np.uint64),
        )

    def rows_at(self, tokens: Sequence[int]) -> Iterator[Row]:
        """The rows at these tokens, each checked against its digest."""
        for first in range(0, len(tokens), _ROWS_PER_TURN):
            found: list[tuple[bytes, bytes]] = []
            with self._reading() as cursor:
                for token in tokens[first : first + _ROWS_PER_TURN]:
                    start = TOKEN.pack(token)
                    more = cursor.set_range(start)
                    while more and bytes(cursor.key()[:8]) == start:
                        found.append((bytes(cursor.key()), bytes(cursor.value())))
                        more = cursor.next()
            for place, stored in found:
                yield checked_row(self._path, place, stored)

    def reread(self, token_range: TokenRange) -> Iterator[Reread]:
        """Read all rows of a range again; tells the places of those that are damaged."""
        start: bytes | None = TOKEN.pack(token_range.first)
        while start is not None:
            found: list[tuple[bytes, bytes]] = []
            with self._reading() as cursor:
                more = cursor.set_range(start)
                start = None
                while more:
                    place = bytes(cursor.key())
                    if TOKEN.unpack_from(place)[0] > token_range.last:
                        break
                    if len(found) >= _ROWS_PER_TURN:
                        start = place
                        break
                    found.append((place, bytes(cursor.value())))
                    more = cursor.next()
            row_bytes = sum(len(place) + len(stored) for place, stored in found)
            damaged = tuple(place for place, stored in found if not is_sound(place, stored))
            yield Reread(len(found), row_bytes, damaged)

    def tombstones(self, before_version: int) -> Iterator[RowDigests]:
        """Tombstones with a lesser version, oldest first."""
        start: bytes | None = b"\0"
        end = TOKEN.pack(before_version)
        while start is not None:
            with self._reading(self._databases.tombstones) as cursor:
                if not cursor.set_range(start):
                    return
                places = [bytes(place) for place in islice(cursor.iternext(values=False), _TURN_ROWS_MAX)]
            inside = bisect_left(places, end)
            start = places[-1] + b"\0" if inside == _TURN_ROWS_MAX else None
            if inside:
                records = np.frombuffer(b"".join(places[:inside]), _TOMBSTONE_TYPE)
                yield RowDigests(
                    records["token"].astype(np.uint64),
                    records["version"].astype(np.uint64),
                    records["digest"].astype(np.uint64),
                )

    def close(self) -> None:
        """End the read transaction. Idempotent; waits for a read that is under way in another thread."""
        with self._lock:
            if self._transaction is not None:
                self._transaction.abort()
                self._transaction = None
        self._forget(self)

    @contextmanager
    def _reading(self, database: lmdb._Database | None = None) -> Iterator[lmdb.Cursor[bytes]]:
        """A cursor for one turn: no two threads are ever inside the transaction, and none keeps it between turns."""
        with self._lock:
            if self._transaction is None:
                raise StoreClosedError("the reader has been closed")
            with translated(self._path, "read"), self._transaction.cursor(db=database) as cursor:
                yield cursor


def row_of(key: bytes, stored: bytes | memoryview) -> Row:
    """A row as it is stored, unchecked."""
    version, flags, _ = HEADER.unpack_from(stored)
    return Row(key, version, bytes(stored[HEADER.size :]), bool(flags & TOMBSTONE))


def is_sound(place: bytes, stored: bytes) -> bool:
    """Whether a stored row matches its digest and lies where its key belongs."""
    if len(stored) < HEADER.size or len(place) <= TOKEN.size:
        return False
    row = row_of(place[TOKEN.size :], stored)
    return bool(row.digest == HEADER.unpack_from(stored)[2] and row.token == TOKEN.unpack_from(place)[0])


def checked_row(path: Path, place: bytes, stored: bytes) -> Row:
    """A stored row; damage must not be spread to other replicas."""
    if is_sound(place, stored):
        return row_of(place[TOKEN.size :], stored)
    token = TOKEN.unpack_from(place)[0]
    raise StoreCorruptError(
        f"{path}: the row at token {token} does not match its digest; scrub this replica, restore it, or wipe it"
    )
