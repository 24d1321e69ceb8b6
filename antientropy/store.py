"""The seam between repair and a store: what a store must offer to be repaired.

Lives here: the ``RowStore`` and ``RowReader`` Protocols; ``Row``, ``RowDigests`` and ``Changes`` are defined in the
core and are re-exported. Implementations are in ``antientropy.stores``; the index over a store (hash tree and
sketches), which no store needs to know about, is :class:`antientropy.replica.Replica`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from antientropy.core.deletes import FENCE_MARK, FLOORS_MARK, past
from antientropy.core.floors import decode_floors
from antientropy.core.rows import Changes, Row, RowDigests
from antientropy.core.tokens import TokenRange
from antientropy.errors import RowRefusedError, StoreError
from antientropy.limits import (
    KEY_BYTES_MAX,
    MARK_BYTES_MAX,
    MARK_NAME_BYTES_MAX,
    VALUE_BYTES_MAX,
    VERSION_MAX,
)

__all__ = [
    "ENFORCED_MARKS",
    "Changes",
    "Listener",
    "QuarantiningStore",
    "Reread",
    "RereadingReader",
    "Row",
    "RowDigests",
    "RowReader",
    "RowStore",
    "check_mark",
    "check_row",
    "limits_of_marks",
    "quarantining",
    "rereading",
]

Listener = Callable[[Changes], None]


def _nothing() -> None:
    return None


class RowReader(Protocol):
    """A store's rows at one point in time; close it soon, it may hold old pages of the store.

    Used by one thread at a time, not always the same one. An iterator may be left unfinished.
    """

    def digests(self, ranges: Sequence[TokenRange]) -> Iterator[RowDigests]:
        """Digests of all rows of some ranges (ascending, disjoint).

        In token order, in chunks of 1 to ``DIGESTS_PER_CHUNK_MAX`` rows; rows that share a token come in any order, but
        always the same one. No values are read where that can be avoided.

        Raises:
            StoreClosedError: the reader or the store has been closed.
            StoreCorruptError: the store is damaged so that a row's token, version or digest cannot be told.
        """
        ...

    def rows_at(self, tokens: Sequence[int]) -> Iterator[Row]:
        """The rows at these tokens (ascending; several rows where keys collide, none where there is no row).

        In token order. Every row is checked against its digest.

        Raises:
            StoreClosedError: the reader or the store has been closed.
            StoreCorruptError: a row does not match its digest; those before it were given.
        """
        ...

    def tombstones(self, before_version: int) -> Iterator[RowDigests]:
        """Digests of all tombstones with a version less than ``before_version``, in any order, in such chunks too.

        Must not cost a look at every row: a store keeps its tombstones ordered by version.
        """
        ...

    def close(self) -> None:
        """Give the reader back. Idempotent; waits for a read that is under way in another thread."""
        ...


class RowStore(Protocol):
    """A set of rows, at most one for each key. Thread-safe; methods may block and are called from worker threads."""

    def read(self, on_open: Callable[[], None] = _nothing) -> RowReader:
        """The rows as they are now.

        ``on_open`` is called once, while no change can come between it and the view: every change that was reported to
        the listener before it is in the view, every change that is reported after it is not. It is short, and calls
        nothing of the store but :meth:`state_id`.
        """
        ...

    def apply(self, rows: Iterable[Row], *, from_repair: bool = False) -> int:
        """Put rows that win over what is stored: compare-and-set by ``(version, digest)``, see :class:`Row`.

        Idempotent and commutative. Durable on return, all or nothing. Returns how many rows changed the store. A row
        that would win, but whose version lies below fence or purge floor of its bucket, is not applied, whether its
        key is stored or not: it may be what a purged tombstone had deleted, or a deletion that comes too late to be
        kept (see ``core/deletes.py``). It is counted in ``rows_refused``; who wrote it must not be told that it is
        stored.

        ``from_repair``: rows that a repair brings. No check of fence and floors (repair has its own rules). Background
        priority: writes without the flag never wait for these. Rows are independent, so all or nothing may hold for
        slices only: after an error some rows may have been applied, none of them in part. The call returns when all are
        durable.

        Raises:
            RowRefusedError: a row is beyond a limit of :func:`check_row`; nothing was applied.
            StoreError: nothing of ``rows`` was applied (disk full, read-only, ...); the store stays usable.
        """
        ...

    def purge(self, floors: NDArray[np.uint64], rows_max: int) -> int:
        """Remove tombstones whose version is less than the floor of their bucket, at most ``rows_max``.

        ``floors`` has shape (256,), one version for each bucket (``core.tokens.bucket_of``). Before the first row is
        removed, the greater of old and new floors is durable, as mark ``floors`` (256 big-endian unsigned 64-bit
        integers); floors never sink, and hold in :meth:`apply` from then on. Returns how many were removed, oldest
        first; less than ``rows_max`` means that none is left. Background priority as in :meth:`apply`.

        Raises:
            StoreError: the store failed; some tombstones may have been removed, the floors hold.
        """
        ...

    def read_mark(self, name: str) -> bytes | None:
        """A small named value that lives and dies with the rows; None: never written."""
        ...

    def write_mark(self, name: str, value: bytes) -> None:
        """Write one; durable on return. Names have 1 to 64 bytes, values at most ``MARK_BYTES_MAX``.

        :meth:`apply` keeps to the marks ``floors`` and ``fence`` (:func:`limits_of_marks`) from the return of this call
        on: whoever writes one and then reads sees no row that was applied against it. They are set, not merged, so also
        to lesser versions (a replica that starts anew).

        Raises:
            StoreError: nothing was written.
        """
        ...

    def subscribe(self, listener: Listener | None) -> bool:
        """Have every later change reported; None ends it. There is one listener at a time.

        The listener is called after the commit and before the next one, in the order of the commits, also for purges
        and for rows that a scrub takes out; it returns quickly, calls nothing of the store, and does not raise. False:
        this store cannot report its changes (somebody else writes to it); its rows will be scanned instead.
        """
        ...

    def state_id(self) -> bytes | None:
        """Names the exact durable content: equal ids, equal rows, whatever happened in between. None: unknown.

        Changes with every durable change (also of marks), is never used again, and is the same after the store is
        closed and opened. Called from ``on_open`` of :meth:`read` it names the view.
        """
        ...

    @property
    def row_count(self) -> int:
        """Rows, tombstones included. An estimate is enough."""
        ...

    @property
    def tombstone_count(self) -> int:
        """Rows that are tombstones."""
        ...

    @property
    def stored_bytes(self) -> int:
        """Bytes that the rows take."""
        ...

    @property
    def rows_refused(self) -> int:
        """Rows that were not applied because they lay below fence or purge floor, since the store was opened."""
        ...


@dataclass(frozen=True, slots=True)
class Reread:
    """Some rows that were read again."""

    rows: int
    row_bytes: int
    damaged: tuple[bytes, ...]
    """The store's own names of those that do not match their digest, for :meth:`QuarantiningStore.quarantine`."""


class RereadingReader(RowReader, Protocol):
    """A reader that can tell which rows are damaged, without raising."""

    def reread(self, token_range: TokenRange) -> Iterator[Reread]:
        """All rows of a range, in turns short enough to be done without a break."""
        ...


class QuarantiningStore(Protocol):
    """A store that can move damaged rows aside."""

    def quarantine(self, names: Sequence[bytes]) -> int:
        """Move rows that (still) do not match their digest aside; returns how many. Reported to the listener."""
        ...


def rereading(reader: RowReader) -> RereadingReader | None:
    """The reader, if it can tell damaged rows. Wrappers hand methods on, so a look at its class would not do."""
    return cast("RereadingReader", reader) if callable(getattr(reader, "reread", None)) else None


def quarantining(store: RowStore) -> QuarantiningStore | None:
    """The store, if it can move damaged rows aside."""
    return cast("QuarantiningStore", store) if callable(getattr(store, "quarantine", None)) else None


def check_row(row: Row) -> None:
    """Whether a row keeps the limits of every store.

    Raises:
        RowRefusedError: it does not; the message names the limit.
    """
    if not 0 < len(row.key) <= KEY_BYTES_MAX:
        raise RowRefusedError(f"key of {len(row.key)} bytes refused: a key has 1 to {KEY_BYTES_MAX} bytes")
    if len(row.value) > VALUE_BYTES_MAX:
        raise RowRefusedError(f"value of {len(row.value)} bytes refused: a value has at most {VALUE_BYTES_MAX} bytes")
    if row.deleted and row.value:
        raise RowRefusedError("tombstone with a value refused: a deleted row has an empty value")
    if not 0 <= row.version <= VERSION_MAX:
        raise RowRefusedError(f"version {row.version} refused: a version is 0 to {VERSION_MAX}")


#: The marks that a store keeps to in :meth:`RowStore.apply`.
ENFORCED_MARKS: Final = (FENCE_MARK, FLOORS_MARK)


def limits_of_marks(marks: Mapping[str, bytes | None]) -> tuple[NDArray[np.uint64], list[int]]:
    """What the marks of a store mean for it: its floors, shape (256,), and by bucket, what lies in the past.

    A row of a lesser version than the latter is applied from a repair only.

    Raises:
        StoreError: a mark is damaged.
    """
    try:
        floors = decode_floors(marks.get(FLOORS_MARK))
        return floors, past(floors, marks.get(FENCE_MARK)).tolist()
    except ValueError as error:
        raise StoreError(f"mark refused: {error}") from error


def check_mark(name: str, value: bytes) -> None:
    """Whether a mark keeps the limits of every store.

    Raises:
        StoreError: it does not.
    """
    if not 0 < len(name.encode()) <= MARK_NAME_BYTES_MAX:
        raise StoreError(f"mark {name!r} refused: a name has 1 to {MARK_NAME_BYTES_MAX} bytes")
    if len(value) > MARK_BYTES_MAX:
        raise StoreError(f"mark {name} of {len(value)} bytes refused: at most {MARK_BYTES_MAX} bytes are allowed")
