"""The seam between repair and a store: what a store must offer to be repaired.

Lives here: the ``RowStore`` and ``StoreSnapshot`` Protocols; ``Row`` and ``RowDigests`` are defined in the core and
are re-exported. Implementations are in ``antientropy.stores``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from antientropy.core.merkle import HashTree, Root
from antientropy.core.rows import Row, RowDigests
from antientropy.core.tokens import TokenRange
from antientropy.errors import RowRefusedError
from antientropy.limits import KEY_BYTES_MAX, VALUE_BYTES_MAX, VERSION_MAX

__all__ = ["Row", "RowDigests", "RowStore", "StoreSnapshot", "check_row"]


class StoreSnapshot(Protocol):
    """A store's tree and rows at one point in time; close it soon, it may hold old pages of the store.

    Used by one thread at a time, not always the same one.
    """

    @property
    def tree(self) -> HashTree:
        """The tree of exactly the rows of this snapshot. Not changed by later writes."""
        ...

    def digests(self, ranges: Sequence[TokenRange]) -> Iterator[RowDigests]:
        """Digests of all rows of some ranges (ascending, disjoint), in token order, in bounded batches."""
        ...

    def rows_at(self, tokens: Sequence[int]) -> Iterator[Row]:
        """The rows at these tokens (ascending; several rows where keys collide), in token order.

        Raises:
            StoreCorruptError: a row does not match its digest.
        """
        ...

    def rows(self, token_range: TokenRange) -> Iterator[Row]:
        """All rows of a range with their values, in token order."""
        ...

    def close(self) -> None:
        """Give the snapshot back. Idempotent."""
        ...


class RowStore(Protocol):
    """A set of rows that can be repaired. All methods may block and are called from worker threads."""

    def apply(self, rows: Iterable[Row]) -> int:
        """Put rows that win over what is stored (compare-and-set by ``(version, digest)``); durable on return.

        Idempotent and commutative. Returns how many rows changed the store.

        Raises:
            StoreError: nothing of ``rows`` was applied (disk full, read-only, ...).
        """
        ...

    def snapshot(self) -> StoreSnapshot:
        """Tree and rows at one point in time."""
        ...

    def root(self, token_range: TokenRange) -> Root:
        """XOR of the digests of all rows of a range, and their number. Cheap for the full range: no scan, no copy."""
        ...

    @property
    def row_count(self) -> int:
        """Rows, tombstones included: what the tree covers."""
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
    def tree_depth(self) -> int:
        """Levels of the tree below its root."""
        ...


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
