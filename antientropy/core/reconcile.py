"""Rows that differ between two replicas, and what each must get: exact, on columns.

Rows are matched by token. Where one side has several rows at a token (two keys with one token: once in 2**64 pairs of
keys), columns without keys cannot tell which row answers to which; such tokens are set apart, and their rows are moved
as rows and decided by key when they are applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antientropy.core.rows import RowDigests


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """What one replica holds at m tokens, at most one row each; version and digest are 0 where it has none."""

    present: NDArray[np.bool_]
    versions: NDArray[np.uint64]
    digests: NDArray[np.uint64]
    """Shape (m, 2)."""

    @classmethod
    def at(cls, rows: RowDigests, tokens: NDArray[np.uint64]) -> States:
        """Look ``tokens`` (ascending) up in rows of which none shares a token of theirs with another."""
        if not len(rows):
            return cls(np.zeros(len(tokens), np.bool_), np.zeros(len(tokens), np.uint64), _no_digests(len(tokens)))
        where = np.minimum(np.searchsorted(rows.tokens, tokens), len(rows) - 1)
        present = rows.tokens[where] == tokens
        versions = np.where(present, rows.versions[where], np.uint64(0))
        digests = np.where(present[:, None], rows.digests[where], np.uint64(0))
        return cls(present, versions, digests)

    def same(self, other: States) -> NDArray[np.bool_]:
        """Where both hold the same row, or both none."""
        equal: NDArray[np.bool_] = (self.digests == other.digests).all(axis=1)
        equal &= (self.present == other.present) & (self.versions == other.versions)
        return equal

    def wins_over(self, other: States) -> NDArray[np.bool_]:
        """Where this row is present and greater by (version, digest), or the other is missing."""
        high, low = self.digests[:, 0], self.digests[:, 1]
        other_high, other_low = other.digests[:, 0], other.digests[:, 1]
        digest_greater = (high > other_high) | ((high == other_high) & (low > other_low))
        greater = (self.versions > other.versions) | ((self.versions == other.versions) & digest_greater)
        wins: NDArray[np.bool_] = self.present & (~other.present | greater)
        return wins

    def take(self, where: NDArray[np.bool_] | NDArray[np.int64]) -> States:
        """Some of the tokens."""
        return States(self.present[where], self.versions[where], self.digests[where])

    def put(self, where: NDArray[np.bool_] | NDArray[np.int64], other: States) -> States:
        """A copy in which some tokens are taken from ``other`` (of just their number)."""
        present, versions, digests = self.present.copy(), self.versions.copy(), self.digests.copy()
        present[where], versions[where], digests[where] = other.present, other.versions, other.digests
        return States(present, versions, digests)


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """Where two replicas differ: m tokens, ascending, with what each side holds, and the tokens shared by keys."""

    tokens: NDArray[np.uint64]
    local: States
    remote: States
    colliding: NDArray[np.uint64]
    """Ascending; in none of the columns above."""

    def __len__(self) -> int:
        """Differing tokens, colliding ones included."""
        return len(self.tokens) + len(self.colliding)

    @property
    def fetch_tokens(self) -> NDArray[np.uint64]:
        """Where the remote row wins."""
        return self.tokens[self.remote.wins_over(self.local)]

    @property
    def push_tokens(self) -> NDArray[np.uint64]:
        """Where the local row wins."""
        return self.tokens[self.local.wins_over(self.remote)]

    def up_to(self, token: int) -> Difference:
        """The part at tokens not greater than ``token``."""
        keep = self.tokens <= np.uint64(token)
        return Difference(
            self.tokens[keep],
            self.local.take(keep),
            self.remote.take(keep),
            self.colliding[self.colliding <= np.uint64(token)],
        )

    def without(self, tokens: NDArray[np.uint64]) -> Difference:
        """The part at other tokens; ``colliding`` stays."""
        keep = ~np.isin(self.tokens, tokens)
        return Difference(self.tokens[keep], self.local.take(keep), self.remote.take(keep), self.colliding)

    def repeated_in(self, later: Difference) -> NDArray[np.uint64]:
        """Tokens at which ``later`` shows exactly the same two rows: whatever was done in between had no effect."""
        common, mine, theirs = np.intersect1d(self.tokens, later.tokens, assume_unique=True, return_indices=True)
        same = self.local.take(mine).same(later.local.take(theirs))
        same &= self.remote.take(mine).same(later.remote.take(theirs))
        return common[same]

    @classmethod
    def concatenate(cls, parts: Sequence[Difference]) -> Difference:
        """Differences of ascending, disjoint parts of the token line as one."""
        if not parts:
            return difference(RowDigests.empty(), RowDigests.empty())
        return cls(
            np.concatenate([part.tokens for part in parts]),
            _join([part.local for part in parts]),
            _join([part.remote for part in parts]),
            np.concatenate([part.colliding for part in parts]),
        )


def difference(local: RowDigests, remote: RowDigests) -> Difference:
    """Compare all rows that two replicas hold in the same leaves; both in token order."""
    tokens = np.union1d(local.tokens, remote.tokens)
    shared = np.union1d(_repeated(local.tokens), _repeated(remote.tokens))
    if len(shared):
        tokens = np.setdiff1d(tokens, shared, assume_unique=True)
    here, there = States.at(local, tokens), States.at(remote, tokens)
    differs = ~here.same(there)
    colliding = [token for token in shared.tolist() if _rows_at(local, token) != _rows_at(remote, token)]
    return Difference(tokens[differs], here.take(differs), there.take(differs), np.array(colliding, np.uint64))


def _repeated(tokens: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return np.unique(tokens[1:][tokens[1:] == tokens[:-1]])


def _rows_at(rows: RowDigests, token: int) -> list[tuple[int, int, int]]:
    """The rows at a shared token as a sorted list. The digest covers the key, so equal lists are equal rows."""
    first, last = (int(np.searchsorted(rows.tokens, np.uint64(token), side)) for side in ("left", "right"))
    span = slice(first, last)
    return sorted(zip(rows.versions[span].tolist(), *rows.digests[span].T.tolist(), strict=True))


def _no_digests(count: int) -> NDArray[np.uint64]:
    return np.zeros((count, 2), np.uint64)


def _join(parts: Sequence[States]) -> States:
    return States(
        np.concatenate([part.present for part in parts]),
        np.concatenate([part.versions for part in parts]),
        np.concatenate([part.digests for part in parts]),
    )
