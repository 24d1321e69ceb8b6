"""The token line: 0 to 2**64 - 1, where ``token = xxh3_64(key)``, its ranges, and how tree nodes lie on it.

Cassandra's ranges exclude their start and may wrap around; here both ends belong to a range and nothing wraps. Whoever
speaks Cassandra's form maps it at the edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

TOKEN_BITS: Final = 64
TOKEN_MAX: Final = 2**TOKEN_BITS - 1
#: Bits of the token that one level of the tree takes: a fan-out of 16.
LEVEL_BITS: Final = 4
#: A bucket is a node of this level: the unit of kept sketches, of progress and of what is known about a range.
BUCKET_LEVEL: Final = 2
BUCKET_BITS: Final = LEVEL_BITS * BUCKET_LEVEL
BUCKETS: Final = 1 << BUCKET_BITS


@dataclass(frozen=True, slots=True, order=True)
class TokenRange:
    """All tokens from ``first`` to ``last``, both inclusive.

    Raises:
        ValueError: an end is no token, or ``first`` is greater than ``last``.
    """

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last <= TOKEN_MAX:
            raise ValueError(f"not a token range: {self.first} to {self.last}; allowed is 0 <= first <= last < 2**64")

    @classmethod
    def full(cls) -> TokenRange:
        """Every token."""
        return cls(0, TOKEN_MAX)

    @property
    def is_full(self) -> bool:
        """Whether every token belongs to it."""
        return self.first == 0 and self.last == TOKEN_MAX

    def contains(self, token: int) -> bool:
        """Whether ``token`` belongs to the range."""
        return self.first <= token <= self.last

    def holds(self, tokens: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of some tokens belong to the range."""
        found: NDArray[np.bool_] = (tokens >= np.uint64(self.first)) & (tokens <= np.uint64(self.last))
        return found

    def intersection(self, other: TokenRange) -> TokenRange | None:
        """The tokens in both, or None."""
        first, last = max(self.first, other.first), min(self.last, other.last)
        return TokenRange(first, last) if first <= last else None

    def __str__(self) -> str:
        return f"[{self.first}, {self.last}]"


def node_range(level: int, index: int) -> TokenRange:
    """The tokens below node ``index`` of ``level``."""
    shift = TOKEN_BITS - LEVEL_BITS * level
    return TokenRange(index << shift, ((index + 1) << shift) - 1)


def covering(token_range: TokenRange, level: int) -> tuple[int, int]:
    """First and last node of ``level`` that have a token in the range: the tree-aligned cover of it."""
    shift = TOKEN_BITS - LEVEL_BITS * level
    return token_range.first >> shift, token_range.last >> shift


def edges_of(token_range: TokenRange, level: int) -> list[TokenRange]:
    """The parts of a range that cover a node of a level only in part, at most two."""
    found = []
    for node in sorted(set(covering(token_range, level))):
        whole = node_range(level, node)
        part = whole.intersection(token_range)
        if part is not None and part != whole:
            found.append(part)
    return found


def node_ranges(level: int, indices: NDArray[np.uint32], within: TokenRange) -> list[TokenRange]:
    """The tokens below some nodes (strictly ascending), cut to ``within``; neighbouring nodes make one range."""
    if not len(indices):
        return []
    wide = indices.astype(np.int64)
    breaks = np.flatnonzero(np.diff(wide) != 1)
    firsts = wide[np.concatenate(([0], breaks + 1))].tolist()
    lasts = wide[np.concatenate((breaks, [len(wide) - 1]))].tolist()
    merged = [
        TokenRange(node_range(level, first).first, node_range(level, last).last)
        for first, last in zip(firsts, lasts, strict=True)
    ]
    return [cut for one in merged if (cut := one.intersection(within)) is not None]


def clipped(ranges: Sequence[TokenRange], within: TokenRange) -> list[TokenRange]:
    """The parts of ``ranges`` that lie in ``within``."""
    return [cut for one in ranges if (cut := one.intersection(within)) is not None]


def nodes_of(tokens: NDArray[np.uint64], level: int) -> NDArray[np.int64]:
    """The node of ``level`` above each token. Shape (n,)."""
    if level == 0:
        return np.zeros(len(tokens), np.int64)
    return (tokens >> np.uint64(TOKEN_BITS - LEVEL_BITS * level)).astype(np.int64)


def bucket_of(tokens: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The bucket above each token, 0 to 255. Shape (n,)."""
    return nodes_of(tokens, BUCKET_LEVEL)
