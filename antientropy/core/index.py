"""What is kept over the rows of a store so that nobody has to scan it: the hash tree, under one seed epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from antientropy.core.merkle import HashTree, Root
from antientropy.core.rows import Changes, RowDigests
from antientropy.core.tokens import BUCKET_LEVEL, TokenRange, edges_of


@dataclass(slots=True, eq=False)
class Index:
    """A hash tree. Not thread-safe: whoever keeps it serialises changes and hands out copies."""

    tree: HashTree

    @classmethod
    def empty(cls, depth: int, epoch: int) -> Index:
        """Over no rows."""
        return cls(HashTree(depth, epoch=epoch))

    @property
    def epoch(self) -> int:
        """The seed epoch of all hashes."""
        return self.tree.epoch

    @property
    def depth(self) -> int:
        """Levels of the tree below its root."""
        return self.tree.depth

    def fold(self, changes: Changes) -> None:
        """Take changes in."""
        self.tree.fold(changes.tokens, changes.digests, changes.signs)

    def copy(self) -> Index:
        """An independent copy."""
        return Index(self.tree.copy())

    def edges(self, token_range: TokenRange) -> list[TokenRange]:
        """The parts of a range whose rows :meth:`trim` must be given, at most two."""
        return edges_of(token_range, min(self.depth, BUCKET_LEVEL))

    def cut(self, token_range: TokenRange) -> Index:
        """An independent copy of what lies around a range: the first step of a restriction, which reads no rows."""
        return Index(self.tree.cut(token_range))

    def trim(self, token_range: TokenRange, edge_rows: RowDigests) -> None:
        """The second step: make a :meth:`cut` the index of the rows of the range. ``edge_rows``: all of its edges."""
        if not token_range.is_full:
            self.tree.trim(token_range, _within(edge_rows, self.tree.edges(token_range)))

    def root_of(self, token_range: TokenRange, edge_rows: RowDigests) -> Root:
        """The root of the rows of a range; ``edge_rows`` as in :meth:`trim`. Copies nothing."""
        return self.tree.root_of(token_range, _within(edge_rows, self.tree.edges(token_range)))

    def same_as(self, other: Index) -> bool:
        """Whether both are over the same rows, as far as can be told."""
        return self.epoch == other.epoch and self.tree.same_as(other.tree)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        return self.tree.nbytes


def _within(rows: RowDigests, ranges: list[TokenRange]) -> RowDigests:
    """The rows in some ranges."""
    keep = np.zeros(len(rows), np.bool_)
    for part in ranges:
        keep |= part.holds(rows.tokens)
    return rows.take(keep)
