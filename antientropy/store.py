"""The seam between repair and a store: what a store must offer to be repaired.

Lives here: the row, the ``RowStore`` Protocol. Implementations are in ``antientropy.stores``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from antientropy.core.hashing import row_digest, token_of
from antientropy.core.merkle import HashTree
from antientropy.core.tokens import TokenRange
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Row:
    """One row: the newest value of a key, or its tombstone.

    ``version`` is a 64-bit timestamp chosen by the application (a hybrid logical clock in the key-value store).
    Of two rows with the same key the one with the greater ``(version, digest)`` wins; the digest's first bit is the
    tombstone flag, so a deletion wins a tie. The order is total and decided by content alone, so replicas converge.
    """

    key: bytes
    version: int
    value: bytes
    deleted: bool = False

    @property
    def token(self) -> int:
        """Where the row lies on the token line, 0 to 2**64 - 1."""
        return token_of(self.key)

    @property
    def digest(self) -> bytes:
        """16 bytes over key, version, tombstone flag and value."""
        return row_digest(self.key, self.version, self.deleted, self.value)


@dataclass(frozen=True, slots=True, eq=False)
class RowDigests:
    """Digests of n rows as columns of length n, ordered by (token, key): what is compared, without keys and values."""

    tokens: NDArray[np.uint64]
    versions: NDArray[np.uint64]
    digests: NDArray[np.uint64]
    """Shape (n, 2): high and low half of each row digest."""

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.tokens)


class StoreSnapshot(Protocol):
    """A store's tree and rows at one point in time; close it soon, it may hold old pages of the store."""

    @property
    def tree(self) -> HashTree:
        """The tree of exactly the rows of this snapshot. Not changed by later writes."""
        ...

    def digests(self, token_range: TokenRange) -> Iterator[RowDigests]:
        """Digests of all rows of a range, in token order, in bounded batches."""
        ...

    def rows_at(self, tokens: Sequence[int]) -> Iterator[Row]:
        """The rows at these tokens (several where keys collide), in token order."""
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
