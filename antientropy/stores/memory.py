"""A store in memory: for tests, and for rows that live elsewhere anyway. Keeps nothing over a restart."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antientropy.core import floors as purge_floors
from antientropy.core import hashing
from antientropy.core.rows import Changes, Row, RowDigests
from antientropy.core.tokens import TokenRange
from antientropy.errors import StoreClosedError, StoreCorruptError
from antientropy.limits import DIGESTS_PER_CHUNK_MAX, ROWS_PER_READ_MAX
from antientropy.store import ENFORCED_MARKS, Listener, Reread, check_mark, check_row, limits_of_marks


@dataclass(frozen=True, slots=True)
class _Stored:
    """A row with what is hashed once."""

    row: Row
    token: int
    digest: bytes

    @property
    def place(self) -> tuple[int, bytes]:
        return self.token, self.row.key

    @property
    def is_sound(self) -> bool:
        return self.row.digest == self.digest


class _View:
    """The rows at one point in time; all readers of that point share it. Made when somebody reads, not before."""

    def __init__(self, rows: dict[bytes, _Stored]) -> None:
        self._rows = rows
        self._ordered: list[_Stored] | None = None
        self._lock = threading.Lock()

    def ordered(self) -> list[_Stored]:
        """All rows in the order of tokens and keys."""
        with self._lock:
            if self._ordered is None:
                self._ordered = sorted(self._rows.values(), key=lambda stored: stored.place)
            return self._ordered

    def between(self, token_range: TokenRange) -> list[_Stored]:
        """The rows of a range."""
        rows = self.ordered()
        first = bisect_left(rows, (token_range.first, b""), key=lambda stored: stored.place)
        last = bisect_left(rows, (token_range.last + 1, b""), key=lambda stored: stored.place)
        return rows[first:last]

    def tombstones(self, before_version: int) -> list[_Stored]:
        """Tombstones with a lesser version, oldest first."""
        found = [one for one in self._rows.values() if one.row.deleted and one.row.version < before_version]
        return sorted(found, key=lambda stored: (stored.row.version, stored.place))


class MemoryRowStore:
    """Rows in a dictionary. Thread-safe; keeps the contract of :class:`~antientropy.store.RowStore`.

    The first write after a read copies the dictionary (not the rows), so it costs time by the number of rows. Nothing
    is ever slow here, so rows of a repair are applied like any others.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._rows: dict[bytes, _Stored] = {}
        self._view: _View | None = None
        self._marks: dict[str, bytes] = {}
        self._floors = purge_floors.no_floors()
        self._past = self._floors.tolist()
        self._listener: Listener | None = None
        self._tombstones = 0
        self._bytes = 0
        self._version_max = 0
        self._refused = 0

    # --- writing ---

    def apply(self, rows: Iterable[Row], *, from_repair: bool = False) -> int:
        """See :class:`~antientropy.store.RowStore`.

        Raises:
            RowRefusedError: a row is beyond a limit; nothing was applied.
        """
        arrived = []
        for row in rows:
            check_row(row)
            arrived.append(_Stored(row, row.token, row.digest))
        with self._lock:
            log: list[tuple[_Stored, int]] = []
            applied = sum([self._put(stored, log, checked=not from_repair) for stored in arrived])
            self._report(log)
        return applied

    def _put(self, stored: _Stored, log: list[tuple[_Stored, int]], *, checked: bool) -> bool:
        old = self._rows.get(stored.row.key)
        if old is not None and (stored.row.version, stored.digest) <= (old.row.version, old.digest):
            return False
        if checked and purge_floors.is_below(stored.token, stored.row.version, self._past):
            self._refused += 1
            return False
        if old is not None:
            self._remove(old, log)
        self._own_rows()[stored.row.key] = stored
        self._count(stored, 1)
        self._version_max = max(self._version_max, stored.row.version)
        log.append((stored, 1))
        return True

    def _remove(self, stored: _Stored, log: list[tuple[_Stored, int]]) -> None:
        del self._own_rows()[stored.row.key]
        self._count(stored, -1)
        log.append((stored, -1))

    def _own_rows(self) -> dict[bytes, _Stored]:
        """The dictionary, after it has been left to its readers."""
        if self._view is not None:
            self._rows, self._view = dict(self._rows), None
        return self._rows

    def _count(self, stored: _Stored, sign: int) -> None:
        self._tombstones += sign * stored.row.deleted
        self._bytes += sign * (len(stored.row.key) + len(stored.row.value))

    def _report(self, log: list[tuple[_Stored, int]]) -> None:
        if log and self._listener is not None:
            rows = _columns([stored for stored, _ in log])
            signs = np.array([sign for _, sign in log], np.int8)
            self._listener(Changes(rows.tokens, rows.versions, rows.digests, signs))

    def purge(self, floors: NDArray[np.uint64], rows_max: int) -> int:
        """See :class:`~antientropy.store.RowStore`."""
        with self._lock:
            raised = np.maximum(purge_floors.check_floors(floors), self._floors)
            self._set_mark(purge_floors.FLOORS_MARK, purge_floors.encode_floors(raised))
            by_bucket = raised.tolist()
            old = _View(self._rows).tombstones(max(by_bucket))
            gone = [one for one in old if purge_floors.row_expired(one.row, by_bucket)][: max(0, rows_max)]
            log: list[tuple[_Stored, int]] = []
            for stored in gone:
                self._remove(stored, log)
            self._report(log)
        return len(gone)

    def quarantine(self, names: Sequence[bytes]) -> int:
        """Drop rows that do not match their digest; see :class:`~antientropy.store.QuarantiningStore`."""
        with self._lock:
            found = [stored for key in names if (stored := self._rows.get(key)) is not None and not stored.is_sound]
            log: list[tuple[_Stored, int]] = []
            for stored in found:
                self._remove(stored, log)
            self._report(log)
        return len(found)

    def read_mark(self, name: str) -> bytes | None:
        """See :class:`~antientropy.store.RowStore`."""
        with self._lock:
            return self._marks.get(name)

    def write_mark(self, name: str, value: bytes) -> None:
        """See :class:`~antientropy.store.RowStore`."""
        check_mark(name, value)
        with self._lock:
            self._set_mark(name, bytes(value))

    def _set_mark(self, name: str, value: bytes) -> None:
        if name in ENFORCED_MARKS:
            self._floors, self._past = limits_of_marks({**self._marks, name: value})
        self._marks[name] = value

    def subscribe(self, listener: Listener | None) -> bool:
        """See :class:`~antientropy.store.RowStore`."""
        with self._lock:
            self._listener = listener
        return True

    def state_id(self) -> bytes | None:
        """None: there is no durable content."""
        return None

    # --- reading ---

    def read(self, on_open: Callable[[], None] = lambda: None) -> MemoryReader:
        """See :class:`~antientropy.store.RowStore`."""
        with self._lock:
            if self._view is None:
                self._view = _View(self._rows)
            on_open()
            return MemoryReader(self._view)

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
        with self._lock:
            view = self._view = self._view or _View(self._rows)
        for stored in view.between(TokenRange.full() if token_range is None else token_range):
            if len(found) >= limit:
                break
            if after is None or stored.place > after:
                found.append(stored.row)
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
    def rows_refused(self) -> int:
        """Rows that were not applied because they lay below a purge floor."""
        return self._refused

    @property
    def version_max(self) -> int:
        """The greatest version ever stored; 0 when empty."""
        return self._version_max

    def close(self) -> None:
        """Nothing to give back."""


class MemoryReader:
    """See :class:`~antientropy.store.RowReader`."""

    def __init__(self, view: _View) -> None:
        self._view: _View | None = view

    def digests(self, ranges: Sequence[TokenRange]) -> Iterator[RowDigests]:
        """Digests of all rows of some ranges, in token order."""
        for token_range in ranges:
            yield from _chunks(self._open().between(token_range))

    def rows_at(self, tokens: Sequence[int]) -> Iterator[Row]:
        """The rows at these tokens."""
        for token in tokens:
            for stored in self._open().between(TokenRange(token, token)):
                if not stored.is_sound:
                    raise StoreCorruptError(f"the row at token {token} does not match its digest; scrub this replica")
                yield stored.row

    def reread(self, token_range: TokenRange) -> Iterator[Reread]:
        """Hash all rows of a range again."""
        for stored in self._open().between(token_range):
            row = stored.row
            yield Reread(1, len(row.key) + len(row.value), () if stored.is_sound else (row.key,))

    def tombstones(self, before_version: int) -> Iterator[RowDigests]:
        """Tombstones with a lesser version, oldest first."""
        yield from _chunks(self._open().tombstones(before_version))

    def close(self) -> None:
        """Forget the rows."""
        self._view = None

    def _open(self) -> _View:
        if self._view is None:
            raise StoreClosedError("the reader has been closed")
        return self._view


def _chunks(rows: list[_Stored]) -> Iterator[RowDigests]:
    for start in range(0, len(rows), DIGESTS_PER_CHUNK_MAX):
        yield _columns(rows[start : start + DIGESTS_PER_CHUNK_MAX])


def _columns(rows: list[_Stored]) -> RowDigests:
    return RowDigests(
        np.array([stored.token for stored in rows], np.uint64),
        np.array([stored.row.version for stored in rows], np.uint64),
        hashing.digest_columns(b"".join([stored.digest for stored in rows])),
    )
