"""What is kept over the rows of a store so that nobody has to scan it: hash tree and sketches, under one seed epoch.

They are over the same rows at every moment, so they are changed, cut and compared together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from antientropy.core.merkle import HashTree, Root
from antientropy.core.rows import Changes, RowDigests
from antientropy.core.sketch import SketchBank
from antientropy.core.tokens import BUCKET_LEVEL, TokenRange, edges_of


@dataclass(slots=True, eq=False)
class Index:
    """Tree and sketches. Not thread-safe: whoever keeps it serialises changes and hands out copies."""

    tree: HashTree
    bank: SketchBank

    @classmethod
    def empty(cls, depth: int, epoch: int) -> Index:
        """Over no rows."""
        return cls(HashTree(depth, epoch=epoch), SketchBank(epoch))

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
        if not len(changes):
            return
        order = np.argsort(changes.tokens, kind="stable")
        tokens, signs = changes.tokens[order], changes.signs[order]
        self.tree.fold(tokens, changes.digests[order], signs)
        self.bank.fold(tokens, changes.versions[order], signs)

    def fold_rows(self, rows: RowDigests) -> None:
        """Take rows in that came, in token order."""
        self.tree.fold(rows.tokens, rows.digests, np.ones(len(rows), np.int8))
        self.bank.fold(rows.tokens, rows.versions, None)

    def copy(self) -> Index:
        """An independent copy."""
        return Index(self.tree.copy(), self.bank.copy())

    def edges(self, token_range: TokenRange) -> list[TokenRange]:
        """The parts of a range whose rows :meth:`trim` must be given, at most two."""
        return edges_of(token_range, min(self.depth, BUCKET_LEVEL))

    def cut(self, token_range: TokenRange) -> Index:
        """An independent copy of what lies around a range: the first step of a restriction, which reads no rows."""
        return Index(self.tree.cut(token_range), self.bank.copy())

    def trim(self, token_range: TokenRange, edge_rows: RowDigests) -> None:
        """The second step: make a :meth:`cut` the index of the rows of the range. ``edge_rows``: all of its edges."""
        if not token_range.is_full:
            self.tree.trim(token_range, _within(edge_rows, self.tree.edges(token_range)))
            self.bank = self.bank.restricted(token_range, _within(edge_rows, self.bank.edges(token_range)))

    def root_of(self, token_range: TokenRange, edge_rows: RowDigests) -> Root:
        """The root of the rows of a range; ``edge_rows`` as in :meth:`trim`. Copies nothing."""
        return self.tree.root_of(token_range, _within(edge_rows, self.tree.edges(token_range)))

    def same_as(self, other: Index) -> bool:
        """Whether both are over the same rows, as far as can be told."""
        return self.tree.epoch == other.tree.epoch and self.tree.same_as(other.tree) and self.bank.same_as(other.bank)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        return self.tree.nbytes + self.bank.nbytes


def _within(rows: RowDigests, ranges: list[TokenRange]) -> RowDigests:
    """The rows in some ranges."""
    keep = np.zeros(len(rows), np.bool_)
    for part in ranges:
        keep |= part.holds(rows.tokens)
    return rows.take(keep)
