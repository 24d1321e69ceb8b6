"""The row, and rows without keys and values as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antientropy.core import hashing


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
        return hashing.token_of(self.key)

    @property
    def digest(self) -> bytes:
        """16 bytes over key, version, tombstone flag and value."""
        return hashing.row_digest(self.key, self.version, self.deleted, self.value)

    def wins_over(self, other: Row) -> bool:
        """Whether this row replaces ``other``, a row of the same key. No row replaces itself."""
        return (self.version, self.digest) > (other.version, other.digest)


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

    @classmethod
    def empty(cls) -> RowDigests:
        """No rows."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty((0, 2), np.uint64))

    @classmethod
    def of(cls, tokens: Sequence[int], versions: Sequence[int], digests: Sequence[bytes]) -> RowDigests:
        """From Python values."""
        return cls(
            np.array(tokens, np.uint64), np.array(versions, np.uint64), hashing.digest_columns(b"".join(digests))
        )

    @classmethod
    def concatenate(cls, parts: Sequence[RowDigests]) -> RowDigests:
        """All rows of the parts, in their order."""
        if not parts:
            return cls.empty()
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.versions for part in parts]),
            np.concatenate([part.digests for part in parts]),
        )

    def take(self, where: NDArray[np.bool_] | NDArray[np.int64] | slice) -> RowDigests:
        """Some of the rows."""
        return RowDigests(self.tokens[where], self.versions[where], self.digests[where])

    @property
    def tombstones(self) -> NDArray[np.bool_]:
        """Which rows are tombstones: the first bit of their digests."""
        flags: NDArray[np.bool_] = (self.digests[:, 0] >> np.uint64(63)) != 0
        return flags


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """What writes did to a set of rows, as columns of length n: a replaced row is one that went and one that came.

    Changes commute: whoever takes them in may do so in any order and in any pieces.
    """

    tokens: NDArray[np.uint64]
    versions: NDArray[np.uint64]
    digests: NDArray[np.uint64]
    """Shape (n, 2)."""
    signs: NDArray[np.int8]
    """+1 came, -1 went."""

    def __len__(self) -> int:
        """The number of rows that came or went."""
        return len(self.tokens)

    @classmethod
    def of(
        cls, tokens: Sequence[int], versions: Sequence[int], digests: Sequence[bytes], signs: Sequence[int]
    ) -> Changes:
        """From Python values."""
        return cls(
            np.array(tokens, np.uint64),
            np.array(versions, np.uint64),
            hashing.digest_columns(b"".join(digests)),
            np.array(signs, np.int8),
        )

    @classmethod
    def came(cls, rows: RowDigests) -> Changes:
        """Rows that came."""
        return cls(rows.tokens, rows.versions, rows.digests, np.ones(len(rows), np.int8))

    @classmethod
    def went(cls, rows: RowDigests) -> Changes:
        """Rows that went."""
        return cls(rows.tokens, rows.versions, rows.digests, np.full(len(rows), -1, np.int8))

    @classmethod
    def concatenate(cls, parts: Sequence[Changes]) -> Changes:
        """All changes of the parts."""
        if not parts:
            return cls.came(RowDigests.empty())
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.versions for part in parts]),
            np.concatenate([part.digests for part in parts]),
            np.concatenate([part.signs for part in parts]),
        )
