"""A store in memory: for tests, and for rows that live elsewhere anyway. Keeps nothing over a restart."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from antientropy.core import hashing
from antientropy.core.merkle import HashTree, MaintainedTree, Root
from antientropy.core.rows import Row, RowDigests
from antientropy.core.tokens import TokenRange
from antientropy.errors import StoreClosedError
from antientropy.limits import DIGESTS_PER_CHUNK_MAX, ROWS_PER_READ_MAX
from antientropy.store import check_row


@dataclass(frozen=True, slots=True)
class _Stored:
    """A row with what is hashed once."""

    row: Row
    token: int
    digest: bytes

    @property
    def place(self) -> tuple[int, bytes]:
        return self.token, self.row.key


class MemoryRowStore:
    """Rows in a dictionary, with a hash tree kept up to date. Thread-safe.

    A snapshot copies the dictionary (not the rows), so it costs time by the number of rows.
    """

    def __init__(self, *, tree_depth: int | None = None) -> None:
        self._lock = threading.Lock()
        self._rows: dict[bytes, _Stored] = {}
        self._tree_depth = tree_depth
        self._tree = MaintainedTree(HashTree(1 if tree_depth is None else tree_depth))
        self._tombstones = 0
        self._bytes = 0
        self._version_max = 0

    def apply(self, rows: Iterable[Row]) -> int:
        """See :class:`~antientropy.store.RowStore`.

        Raises:
            RowRefusedError: a row is beyond a limit; nothing was applied.
        """
        arrived = []
        for row in rows:
            check_row(row)
            arrived.append(_Stored(row, row.token, row.digest))
        with self._lock:
            applied = sum([self._put(stored) for stored in arrived])
            if self._tree_depth is None and self._tree.outgrown(len(self._rows)):
                self._tree = MaintainedTree(HashTree.build(_columns(list(self._rows.values()))))
        return applied

    def _put(self, stored: _Stored) -> bool:
        old = self._rows.get(stored.row.key)
        if old is not None:
            if (stored.row.version, stored.digest) <= (old.row.version, old.digest):
                return False
            self._tree.record([stored.token], [old.digest], [-1])
            self._tombstones -= old.row.deleted
            self._bytes -= len(old.row.key) + len(old.row.value)
        self._tree.record([stored.token], [stored.digest], [1])
        self._tombstones += stored.row.deleted
        self._bytes += len(stored.row.key) + len(stored.row.value)
        self._version_max = max(self._version_max, stored.row.version)
        self._rows[stored.row.key] = stored
        return True

    def snapshot(self) -> MemorySnapshot:
        """Tree and rows at one point in time."""
        with self._lock:
            return MemorySnapshot(self._tree.folded().copy(), list(self._rows.values()))

    def root(self, token_range: TokenRange) -> Root:
        """XOR of the digests of all rows of a range, and their number."""
        if token_range.is_full:
            with self._lock:
                return self._tree.folded().root
        snapshot = self.snapshot()
        tree = snapshot.tree
        return tree.restricted(token_range, RowDigests.concatenate([*snapshot.digests(tree.edges(token_range))])).root

    def get(self, key: bytes) -> Row | None:
        """The row of a key, a tombstone included; None if there never was one."""
        with self._lock:
            stored = self._rows.get(key)
        return None if stored is None else stored.row

    def get_many(self, keys: Sequence[bytes]) -> list[Row | None]:
        """The rows of some keys at one point in time, in their order."""
        with self._lock:
            found = [self._rows.get(key) for key in keys]
        return [None if stored is None else stored.row for stored in found]

    def scan(
        self, token_range: TokenRange | None = None, *, after_key: bytes | None = None, limit: int = ROWS_PER_READ_MAX
    ) -> list[Row]:
        """Up to ``limit`` rows of a range in token order, tombstones included; ``after_key``: those behind that key."""
        after = None if after_key is None else (hashing.token_of(after_key), after_key)
        found: list[Row] = []
        for row in self.snapshot().rows(TokenRange.full() if token_range is None else token_range):
            if len(found) >= limit:
                break
            if after is None or (row.token, row.key) > after:
                found.append(row)
        return found

    @property
    def row_count(self) -> int:
        """Rows, tombstones included."""
        return len(self._rows)

    @property
    def tombstone_count(self) -> int:
        """Rows that are tombstones."""
        return self._tombstones

    @property
    def stored_bytes(self) -> int:
        """Bytes of keys and values."""
        return self._bytes

    @property
    def version_max(self) -> int:
        """The greatest version ever stored; 0 when empty."""
        return self._version_max

    @property
    def tree_depth(self) -> int:
        """Levels of the tree below its root."""
        return self._tree.depth

    def close(self) -> None:
        """Nothing to give back."""


class MemorySnapshot:
    """See :class:`~antientropy.store.StoreSnapshot`."""

    def __init__(self, tree: HashTree, rows: list[_Stored]) -> None:
        self._tree = tree
        self._unordered = rows
        self._ordered: list[_Stored] | None = None
        self._closed = False

    @property
    def tree(self) -> HashTree:
        """The tree of exactly the rows of this snapshot."""
        return self._tree

    def digests(self, ranges: Sequence[TokenRange]) -> Iterator[RowDigests]:
        """Digests of all rows of some ranges, in token order."""
        for token_range in ranges:
            rows = self._between(token_range)
            for start in range(0, len(rows), DIGESTS_PER_CHUNK_MAX):
                yield _columns(rows[start : start + DIGESTS_PER_CHUNK_MAX])

    def rows_at(self, tokens: Sequence[int]) -> Iterator[Row]:
        """The rows at these tokens."""
        for token in tokens:
            for stored in self._between(TokenRange(token, token)):
                yield stored.row

    def rows(self, token_range: TokenRange) -> Iterator[Row]:
        """All rows of a range, in token order."""
        for stored in self._between(token_range):
            yield stored.row

    def close(self) -> None:
        """Forget the rows."""
        self._closed = True
        self._unordered, self._ordered = [], None

    def _between(self, token_range: TokenRange) -> list[_Stored]:
        if self._closed:
            raise StoreClosedError("the snapshot has been closed")
        if self._ordered is None:
            self._ordered = sorted(self._unordered, key=lambda stored: stored.place)
        first = bisect_left(self._ordered, (token_range.first, b""), key=lambda stored: stored.place)
        last = bisect_left(self._ordered, (token_range.last + 1, b""), key=lambda stored: stored.place)
        return self._ordered[first:last]


def _columns(rows: list[_Stored]) -> RowDigests:
    return RowDigests(
        np.array([stored.token for stored in rows], np.uint64),
        np.array([stored.row.version for stored in rows], np.uint64),
        hashing.digest_columns(b"".join([stored.digest for stored in rows])),
    )
