"""Decoding sketches: from the symbols of a difference to its items, for many sketches at once.

Peer input ends here, so nothing is believed: an item must lie in its sketch's part of the token line, a sketch has at
most as many items as symbols, rounds are bounded, and a sketch is done only when everything in it cancels out to zero.
A mark that fits by chance (once in 2**32) therefore leaves a sketch undone; it is never taken for a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from antientropy.core.sketch import (
    MARK_MASK,
    U64,
    Indices,
    Symbols,
    hashes,
    spans_of,
    symbols_of,
    token_mask,
    walk,
)
from antientropy.core.tokens import TOKEN_BITS

#: Rounds of peeling after one addition; decodable sketches of any size need some dozens.
_ROUNDS_MAX: Final = 512


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """Decoded items as columns of length n: rows that only one of both sides has."""

    sketches: Indices
    """The number of the sketch."""
    tokens: U64
    versions: U64
    signs: Indices
    """+1: an item of the side that subtracted the other (the own one); -1: of the other side."""

    def __len__(self) -> int:
        """The number of items."""
        return len(self.tokens)

    @classmethod
    def empty(cls) -> Items:
        """No items."""
        return cls(np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64))

    def take(self, where: NDArray[np.bool_] | Indices) -> Items:
        """Some of the items."""
        return Items(self.sketches[where], self.tokens[where], self.versions[where], self.signs[where])

    def plus(self, other: Items) -> Items:
        """The items of both."""
        return Items(
            np.concatenate((self.sketches, other.sketches)),
            np.concatenate((self.tokens, other.tokens)),
            np.concatenate((self.versions, other.versions)),
            np.concatenate((self.signs, other.signs)),
        )


class SketchDecoder:
    """k sketches of nodes of ``bits`` bits that receive symbols and are peeled in rounds over all of them.

    Attributes:
        lengths: Symbols received of each sketch. Shape (k,).
        done: Sketches that are decoded wholly. Shape (k,).
        failed: Sketches whose symbols contradict each other; they receive nothing more. Shape (k,).
        items: What was decoded so far; only those of sketches that are done are to be believed.
    """

    def __init__(self, bits: int, nodes: Indices, epoch: int, imbalance: int | None = None) -> None:
        """``imbalance``: own rows less those of the peer, when it is known otherwise and there is one sketch."""
        count = len(nodes)
        self.bits: Final = bits
        self.nodes: Final = nodes
        self.epoch: Final = epoch
        self.lengths = np.zeros(count, np.int64)
        self.done = np.zeros(count, np.bool_)
        self.failed = np.zeros(count, np.bool_)
        self.items = Items.empty()
        self._symbols = Symbols.zero(0)
        self._decoded = np.zeros(count, np.int64)
        self._imbalance = imbalance
        self._mask = np.uint64(token_mask(bits))
        self._prefixes = nodes.astype(np.uint64) << np.uint64(TOKEN_BITS - bits) if bits else np.zeros(count, np.uint64)

    def add(self, which: Indices, lengths: Indices, differences: Symbols) -> None:
        """Take the next symbols in, own minus peer's: ``lengths[j]`` more for sketch ``which[j]``, in this order.

        Raises:
            ValueError: the numbers do not fit.
        """
        if len(differences) != int(lengths.sum()):
            raise ValueError(f"{len(differences)} symbols where {int(lengths.sum())} were asked for")
        more = np.zeros(len(self.nodes), np.int64)
        more[which] = lengths
        differences = self._without_items(more, differences, which)
        old, new = self.lengths, self.lengths + more
        offsets = np.cumsum(new) - new
        symbols = Symbols.zero(int(new.sum()))
        of, at = spans_of(np.zeros_like(old), old)
        symbols.put(offsets[of] + at, self._symbols)
        of, at = spans_of(old[which], new[which])
        fresh = offsets[which][of] + at
        symbols.put(fresh, differences)
        self.lengths, self._symbols = new, symbols
        self._peel(fresh, offsets)
        self._settle(offsets)

    def estimates(self) -> NDArray[np.float64]:
        """About how many items each sketch has, those decoded included. Shape (k,).

        A symbol's count, less its share of the known imbalance, is a sum of d independent terms of variance p (1 - p):
        the tug-of-war sketch of Alon, Matias and Szegedy (1996), which works for any d.
        """
        left = self.imbalances()
        of, at = spans_of(np.zeros_like(self.lengths), self.lengths)
        shares = 2.0 / (at + 2.0)
        # Counts are known modulo 2**16; deviations are the square root of a number of rows.
        deviations: NDArray[np.float64] = (self._symbols.counts - shares * left[of] + 2**15) % 2**16 - 2**15
        # The first symbol holds every item: it says nothing but the imbalance.
        variances = np.where(at > 0, shares * (1.0 - shares), 1.0)
        squares = np.where(at > 0, deviations**2 / variances, 0.0)
        means: NDArray[np.float64] = np.bincount(of, squares, len(left)) / np.maximum(self.lengths - 1, 1)
        least = np.abs(left).astype(np.float64)
        return np.maximum(means, least) + self._decoded

    def imbalances(self) -> Indices:
        """Own items less those of the peer that are not yet decoded, of each sketch. Shape (k,)."""
        if self._imbalance is not None:
            return np.array([self._imbalance - int(self.items.signs.sum())])
        firsts = np.cumsum(self.lengths) - self.lengths
        imbalances = np.zeros(len(self.nodes), np.int64)
        some = self.lengths > 0
        imbalances[some] = self._symbols.counts[firsts[some]]
        return imbalances

    def _without_items(self, more: Indices, differences: Symbols, which: Indices) -> Symbols:
        """New symbols less the items that are known already."""
        if not len(self.items):
            return differences
        ranks = np.full(len(self.nodes), -1, np.int64)
        ranks[which] = np.arange(len(which))
        known = self.items.take(ranks[self.items.sketches] >= 0)
        firsts = self.lengths[which]
        mine = symbols_of(
            known.tokens,
            known.versions,
            groups=ranks[known.sketches],
            firsts=firsts,
            lasts=firsts + more[which],
            epoch=self.epoch,
            signs=known.signs,
        )
        return differences.minus(mine)

    def _peel(self, touched: Indices, offsets: Indices) -> None:
        """Find items that stand alone, take them out everywhere, look at the symbols that changed, and so on."""
        owners = np.repeat(np.arange(len(self.lengths)), self.lengths)
        for _ in range(_ROUNDS_MAX):
            items = self._alone(touched, owners)
            if not len(items):
                return
            self._decoded += np.bincount(items.sketches, minlength=len(self._decoded))
            self.failed |= self._decoded > self.lengths
            items = items.take(~self.failed[items.sketches])
            self.items = self.items.plus(items)
            touched = self._take_out(items, offsets)
        self.failed[owners[touched]] = True

    def _alone(self, touched: Indices, owners: Indices) -> Items:
        """The items of symbols that hold just one."""
        counts = self._symbols.counts[touched]
        single = np.abs(counts) == 1
        cells, signs = touched[single], counts[single]
        sketches = owners[cells]
        usable = ~(self.done | self.failed)[sketches]
        cells, signs, sketches = cells[usable], signs[usable], sketches[usable]
        factors = signs.view(np.uint64)
        tokens = (self._symbols.tokens[cells] * factors) & self._mask
        tokens |= self._prefixes[sketches] & ~self._mask
        versions = self._symbols.versions[cells] * factors
        seeds, marks = hashes(tokens, versions, self.epoch)
        fits = ((self._symbols.marks[cells] * factors) ^ marks) & MARK_MASK == 0
        if self.bits:
            fits &= (tokens ^ self._prefixes[sketches]) >> np.uint64(TOKEN_BITS - self.bits) == 0
        chosen = np.flatnonzero(fits)
        # Several symbols may hold the same one item.
        _, once = np.unique(seeds[chosen] + sketches[chosen].astype(np.uint64), return_index=True)
        chosen = chosen[once]
        return Items(sketches[chosen], tokens[chosen], versions[chosen], signs[chosen])

    def _take_out(self, items: Items, offsets: Indices) -> Indices:
        """Subtract items from all symbols that hold them; which symbols these were, each once."""
        seeds, marks = hashes(items.tokens, items.versions, self.epoch)
        factors = (-items.signs).view(np.uint64)
        columns = (items.tokens * factors, items.versions * factors, marks * factors)
        limits, starts = self.lengths[items.sketches], offsets[items.sketches]
        changed = np.zeros(len(self._symbols), np.bool_)
        for positions, indices in walk(seeds, int(limits.max(initial=0))):
            inside = np.flatnonzero(indices < limits[positions])
            chosen = positions[inside]
            cells = starts[chosen] + indices[inside]
            np.add.at(self._symbols.tokens, cells, columns[0][chosen])
            np.add.at(self._symbols.versions, cells, columns[1][chosen])
            np.add.at(self._symbols.marks, cells, columns[2][chosen])
            changed[cells] = True
        touched: Indices = np.flatnonzero(changed)
        return touched

    def _settle(self, offsets: Indices) -> None:
        """Sketches in which nothing is left are done, unless an item was found twice."""
        mine = self._symbols
        left = (mine.tokens & self._mask) | mine.versions | (mine.marks & MARK_MASK)
        some = np.flatnonzero(self.lengths)
        if not len(some):
            return
        empty = np.zeros(len(self.lengths), np.bool_)
        empty[some] = np.bitwise_or.reduceat(left, offsets[some]) == 0
        fresh = empty & ~self.done & ~self.failed
        seeds, _ = hashes(self.items.tokens, self.items.versions, self.epoch)
        order = np.lexsort((seeds, self.items.sketches))
        sketches, seeds = self.items.sketches[order], seeds[order]
        twice = (seeds[1:] == seeds[:-1]) & (sketches[1:] == sketches[:-1])
        self.failed[sketches[1:][twice]] = True
        self.done |= fresh & ~self.failed
