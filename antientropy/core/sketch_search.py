"""How many symbols to ask for, of which nodes, until every sketch is decoded: the policy of a search by sketches.

The first symbols tell about how many items there are, and so into how many nodes the range is best cut: some tens of
items a node, which the kept symbols decode without reading a row. Nodes that need more than is kept are cut further;
their children's symbols add up to those of the parent, so that the last child's need not be sent as far as the parent's
are known. A bucket that needs more gets symbols made from its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from antientropy.core.listing import Searched, last_token, node_cover, node_symbols
from antientropy.core.peeling import Items, SketchDecoder
from antientropy.core.requests import SymbolsRequest
from antientropy.core.sketch import SYMBOLS_KEPT, Indices, Symbols, spans_of, symbol_bytes
from antientropy.core.tokens import BUCKET_BITS, LEVEL_BITS, TOKEN_MAX
from antientropy.limits import SYMBOLS_PER_REQUEST_MAX, SYMBOLS_PER_SKETCH_MAX

#: Symbols asked for first where nothing is known of the difference.
_FIRST_SYMBOLS: Final = 4
#: As good as so many symbols is the estimate that came along with the first one.
_GLANCE_SAMPLES: Final = 12
#: Bytes of a listed row (token and version, packed), for the choice between a sketch and a list.
ROW_LISTED_BYTES: Final = 14
#: Items of a node that the kept symbols decode with room for an estimate that was too low.
_ITEMS_PER_NODE: Final = 72
#: The first batch of many nodes is small: it tells which are empty, and how many items the others have.
_PROBE_SYMBOLS: Final = 8
_PROBE_SYMBOLS_TOTAL: Final = 256
#: Symbols of the whole range from which the number of nodes is decided: they tell the items within a third.
_SAMPLES: Final = 24
#: So many items need many nodes, however bad the estimate.
_ITEMS_CERTAINLY_MANY: Final = 2_000
#: Nodes from whose common mean each one's estimate gains.
_NODES_MANY: Final = 8
#: An estimate from three symbols may be too great by far: the least share of it that the next batch aims at.
_SHARE_LEAST: Final = 0.4
#: How many standard deviations below the estimate the first, second, ... batch aims.
_CAUTIONS: Final = (0.5, 0.2, 0.0, -0.3)
#: By which share sketches grow that should have been decoded: at the first time, the second, ...
_GROWTHS: Final = np.array([0.125, 0.125, 0.125, 0.25, 0.25, 0.5])
#: Open nodes are the last few when there are so many times as many nodes.
_FEW_LEFT: Final = 8
_GROWTH_LAST: Final = 0.25
#: A range is cut early, as long as little of its symbols would be lost, or when the kept symbols come to their end.
_KEPT_SHARE_EARLY: Final = 0.75
_KEPT_SHARE_LATE: Final = 0.95


def symbols_needed(items: NDArray[np.float64]) -> NDArray[np.float64]:
    """Symbols that decode so many items on average, a fit of own runs from 1 to 1,000 items."""
    needed: NDArray[np.float64] = np.where(items <= 1.0, 1.0, 1.35 * items + 1.15 * np.sqrt(items) - 1.0)
    return needed


def _deviation(samples: Indices) -> NDArray[np.float64]:
    """The standard deviation of an estimate from so many symbols, as a share of it."""
    deviation: NDArray[np.float64] = np.sqrt(2.0 / np.maximum(samples - 1, 2))
    return deviation


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """Some nodes of ``bits`` bits, ascending."""

    bits: int
    nodes: Indices


@dataclass(frozen=True, slots=True, eq=False)
class _Split:
    """Nodes that were cut: their symbols, from which those of each one's last child follow."""

    symbols: Symbols
    lengths: Indices
    parents: Indices
    """The parent of each child, 0 to len(lengths) - 1."""


class SketchSearch:
    """The search by sketches in the range of a snapshot: :meth:`request`, :meth:`feed` with its answer, and so on.

    Attributes:
        found: What was decoded, with the nodes that are known by it wholly.
        listed: Nodes whose rows are to be listed instead: that is fewer bytes.
        failed: Nodes whose sketches contradict themselves or find no end.
        complete_to: The last token up to which nodes were searched; less than all when there was too much for one pass.
    """

    def __init__(
        self,
        snapshot: Searched,
        remote_count: int,
        *,
        by_cost: bool,
        items_max: int,
        expected: float | None = None,
    ) -> None:
        """``expected``: about how many items differ, when it is known; then the first request is for one symbol."""
        self._snapshot = snapshot
        self._remote_count = remote_count
        self._by_cost = by_cost
        self._items_max = items_max
        self._asked: SymbolsRequest | None = None
        self._split: _Split | None = None
        self.found: list[tuple[Nodes, Items]] = []
        self.listed: list[Nodes] = []
        self.failed: list[Nodes] = []
        self.complete_to = TOKEN_MAX
        imbalance = snapshot.tree.root.count - remote_count
        self._begin(SketchDecoder(0, np.zeros(1, np.int64), snapshot.sketch.epoch, imbalance))
        self._hint = expected
        self._targets[:] = _FIRST_SYMBOLS if expected is None else 1

    def _begin(self, decoder: SketchDecoder) -> None:
        count = len(decoder.nodes)
        self._decoder = decoder
        self._received = Symbols.zero(0)
        self._open = np.ones(count, np.bool_)
        self._targets = np.zeros(count, np.int64)
        self._stalled = np.zeros(count, np.int64)
        self._batches = 0

    @property
    def finished(self) -> bool:
        """Whether nothing is left to ask."""
        return not bool(self._open.any())

    def request(self) -> SymbolsRequest | None:
        """The next symbols to ask for; None when every node is decoded or handed on."""
        which = np.flatnonzero(self._open)
        firsts, lasts = self._decoder.lengths[which], self._targets[which]
        if self._split is not None:
            firsts = firsts + self._derived_lengths()
        some = (np.cumsum(lasts - firsts) <= SYMBOLS_PER_REQUEST_MAX) & (lasts > firsts)
        if not bool(some.any()):
            return None
        self._asked = SymbolsRequest(self._decoder.bits, self._decoder.nodes[which[some]], firsts[some], lasts[some])
        return self._asked

    def feed(self, remote: Symbols) -> None:
        """The peer's symbols of the last request."""
        asked = self._asked
        if asked is None:
            raise RuntimeError("no symbols were asked for")
        self._asked = None
        own = node_symbols(self._snapshot, asked.bits, asked.nodes, asked.firsts, asked.lasts)
        which = np.searchsorted(self._decoder.nodes, asked.nodes)
        lengths, differences = asked.lasts - asked.firsts, own.minus(remote)
        if self._split is not None:
            which, lengths, differences = self._with_derived(self._split, which, lengths, differences)
            self._split = None
        self._take(which, lengths, differences)
        self._decide()

    def _take(self, which: Indices, lengths: Indices, differences: Symbols) -> None:
        """Give the decoder symbols, and keep them as they came while nodes may still be cut."""
        before = self._decoder.lengths
        self._decoder.add(which, lengths, differences)
        if self._decoder.bits == BUCKET_BITS:
            return
        after = self._decoder.lengths
        starts = np.cumsum(after) - after
        received = Symbols.zero(int(after.sum()))
        of, at = spans_of(np.zeros_like(before), before)
        received.put(starts[of] + at, self._received)
        of, at = spans_of(before[which], after[which])
        received.put(starts[which][of] + at, differences)
        self._received = received

    def _decide(self) -> None:
        """After new symbols: what is done, what is handed on, and how far to go with the rest."""
        decoder = self._decoder
        hopeless = self._open & (decoder.failed | (decoder.lengths >= SYMBOLS_PER_SKETCH_MAX)) & ~decoder.done
        self._hand_over(self.failed, np.flatnonzero(hopeless))
        self._open &= ~decoder.done
        active = np.flatnonzero(self._open)
        if not len(active):
            self._harvest()
            return
        items = self._expected(active)
        if self._by_cost:
            self._hand_over(self.listed, active[self._cheaper_listed(active, items)])
        if decoder.bits == BUCKET_BITS:
            self._drop_beyond(active, items)
        keep = self._open[active]
        active, items = active[keep], items[keep]
        if not len(active):
            self._harvest()
            return
        have = decoder.lengths[active]
        needed = symbols_needed(items)
        room = SYMBOLS_KEPT * np.where(have <= _SAMPLES, _KEPT_SHARE_EARLY, _KEPT_SHARE_LATE)
        cramped = float(needed.mean()) > float(room.mean()) or bool((have >= SYMBOLS_KEPT).any())
        if not decoder.bits and int(have[0]) < _SAMPLES and _SAMPLES < float(items[0]) < _ITEMS_CERTAINLY_MANY:
            self._targets[:] = _SAMPLES
        elif decoder.bits < BUCKET_BITS and cramped:
            self._cut(active, items)
        else:
            self._targets[active] = self._batch(active, have, items)

    def _batch(self, active: Indices, have: Indices, items: NDArray[np.float64]) -> Indices:
        """How far to go: as far as is expected to do, then on by an eighth, later by a quarter and a half.

        What is asked for too much is never got back: the first batches aim below the estimate; later ones above it, so
        that there is an end.
        """
        if len(self._open) < _NODES_MANY:
            caution = _CAUTIONS[min(self._batches, len(_CAUTIONS) - 1)]
            known = have if self._hint is None else np.maximum(have, _GLANCE_SAMPLES)
            items = items * (1.0 - caution * _deviation(known))
        self._batches += 1
        needed = symbols_needed(items)
        beyond = needed > have * 1.125
        self._stalled[active] = np.where(beyond, 0, self._stalled[active] + 1)
        share = _GROWTHS[np.minimum(self._stalled[active], len(_GROWTHS) - 1)]
        if _FEW_LEFT * len(active) <= len(self._open):
            # The last few of many cost little: no further round trips for them.
            share = np.maximum(share, _GROWTH_LAST)
        onward = have + np.maximum(2.0, np.ceil(have * share))
        targets = np.maximum(onward, np.ceil(needed)).astype(np.int64)
        # Symbols that are not kept cost a look at all rows of the bucket: not for a few.
        near = (have < SYMBOLS_KEPT) & (targets < SYMBOLS_KEPT * 1.25)
        targets = np.where(near, np.minimum(targets, SYMBOLS_KEPT), targets)
        most = SYMBOLS_KEPT if self._decoder.bits < BUCKET_BITS else SYMBOLS_PER_SKETCH_MAX
        bounded: Indices = np.minimum(targets, most)
        return bounded

    def _expected(self, active: Indices) -> NDArray[np.float64]:
        """How many items each active node has, by its own symbols and by those of all nodes.

        An estimate from m symbols is off by a factor of about 1 + sqrt(2 / (m - 1)). Where tokens are spread evenly,
        nodes are alike and their mean is known far better; how alike they are is seen from their estimates.
        """
        decoder = self._decoder
        estimates = np.maximum(decoder.estimates(), 1.0)
        if self._hint is not None and not decoder.bits and int(decoder.lengths[0]) < _GLANCE_SAMPLES:
            estimates[:] = np.maximum(self._hint, decoder.lengths)
        own = estimates[active]
        if len(estimates) < _NODES_MANY:
            return own
        mean = float(estimates.mean())
        samples = np.maximum(decoder.lengths - 1, 1)
        noise = 2.0 * mean**2 / samples
        spread = max(mean, float(np.var(estimates)) - float(noise.mean()))
        posterior: NDArray[np.float64] = (own * spread + mean * noise[active]) / (spread + noise[active])
        return posterior

    def _cheaper_listed(self, active: Indices, items: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Where the rows of a node are fewer bytes than the rest of its symbols."""
        decoder = self._decoder
        rest = np.maximum(symbols_needed(items) - decoder.lengths[active], 1.0) * symbol_bytes(decoder.bits)
        if not decoder.bits:
            # Three samples decide nothing unless it is plain.
            return 2.0 * ROW_LISTED_BYTES * self._remote_count < rest
        rows = np.array([self._rows_below(node) for node in decoder.nodes[active].tolist()])
        cheaper: NDArray[np.bool_] = rest > ROW_LISTED_BYTES * rows
        return cheaper

    def _rows_below(self, node: int) -> int:
        """About how many rows a node has: as many as on this side."""
        tree, bits = self._snapshot.tree, self._decoder.bits
        level = min(BUCKET_BITS // LEVEL_BITS, tree.depth)
        width = LEVEL_BITS * level - bits
        if width < 0:
            return int(tree.counts(level, np.array([node >> -width], np.uint32))[0]) >> -width
        return int(tree.counts(level, np.arange(node << width, (node + 1) << width, dtype=np.uint32)).sum())

    def _drop_beyond(self, active: Indices, items: NDArray[np.float64]) -> None:
        """Leave nodes to the next pass when their items are too many for one; the first is always searched."""
        if self._snapshot.tree.root.count + self._remote_count <= self._items_max:
            return
        far = np.flatnonzero(np.cumsum(items) > self._items_max)[1:]
        if len(far):
            first = int(self._decoder.nodes[active[far[0]]])
            self.complete_to = min(self.complete_to, last_token(BUCKET_BITS, first - 1))
            self._open[active[far]] = False

    def _hand_over(self, where: list[Nodes], which: Indices) -> None:
        if len(which):
            where.append(Nodes(self._decoder.bits, self._decoder.nodes[which]))
            self._open[which] = False

    def _harvest(self) -> None:
        """Take what is decoded; the decoder is not used any more."""
        done = np.flatnonzero(self._decoder.done)
        items = self._decoder.items
        if len(done):
            chosen = items.take(self._decoder.done[items.sketches])
            self.found.append((Nodes(self._decoder.bits, self._decoder.nodes[done]), chosen))

    def _cut(self, active: Indices, items: NDArray[np.float64]) -> None:
        """Go on with children of the active nodes: so many that each has some tens of items."""
        decoder = self._decoder
        self._harvest()
        steps = int(np.ceil(np.log2(max(float(items.mean()) / _ITEMS_PER_NODE, 2.0))))
        bits = min(decoder.bits + steps, BUCKET_BITS)
        steps = bits - decoder.bits
        width = 1 << steps
        children = ((decoder.nodes[active] << steps)[:, None] + np.arange(width)).ravel()
        parents = np.repeat(np.arange(len(active)), width)
        cover = node_cover(bits, self._snapshot.token_range)
        inside = (children >= cover[0]) & (children <= cover[-1])
        children, parents = children[inside], parents[inside]
        starts = np.cumsum(decoder.lengths) - decoder.lengths
        of, at = spans_of(np.zeros_like(active), decoder.lengths[active])
        self._split = _Split(self._received.take(starts[active][of] + at), decoder.lengths[active], parents)
        samples = decoder.lengths[active]
        if self._hint is not None and not decoder.bits:
            samples = np.maximum(samples, _GLANCE_SAMPLES)
        careful = np.maximum(1.0 - _deviation(samples), _SHARE_LEAST) * items / width
        targets = np.ceil(symbols_needed(careful))
        probe = max(_PROBE_SYMBOLS, _PROBE_SYMBOLS_TOTAL // len(children))
        unsure = (samples < _SAMPLES) | (len(children) >= _NODES_MANY)
        if 2 * len(active) <= len(decoder.nodes):
            # Few nodes have it all: so it may be with their children.
            probe, unsure = _PROBE_SYMBOLS, np.ones(len(samples), np.bool_)
        most = np.where(unsure, probe, SYMBOLS_KEPT)
        targets = np.clip(targets, 2, np.minimum(most, SYMBOLS_KEPT)).astype(np.int64)
        self._begin(SketchDecoder(bits, children, decoder.epoch))
        self._targets = targets[parents]
        if bool((self._derived_lengths() == self._targets).all()):
            # The range lies below one child of each: nothing new is to be asked.
            nothing = np.empty(0, np.int64)
            which, lengths, differences = self._with_derived(self._split, nothing, nothing, Symbols.zero(0))
            self._split = None
            self._take(which, lengths, differences)
            self._decide()

    def _derived_lengths(self) -> Indices:
        """How many of the first symbols of each child follow from those of its parent: of its last child only."""
        split = self._split
        if split is None:
            return np.zeros(len(self._targets), np.int64)
        derived = np.zeros(len(split.parents), np.int64)
        last = np.flatnonzero(np.diff(split.parents, append=len(split.lengths)))
        derived[last] = np.minimum(split.lengths[split.parents[last]], self._targets[last])
        return derived

    def _with_derived(
        self, split: _Split, which: Indices, lengths: Indices, differences: Symbols
    ) -> tuple[Indices, Indices, Symbols]:
        """The first symbols of all children: those received, and of each last child the parent's less its siblings'."""
        derived = self._derived_lengths()
        starts = np.cumsum(self._targets) - self._targets
        symbols = Symbols.zero(int(self._targets.sum()))
        of, at = spans_of(derived[which], derived[which] + lengths)
        symbols.put(starts[which][of] + at, differences)
        first_of_parent = np.cumsum(split.lengths) - split.lengths
        for child in np.flatnonzero(derived).tolist():
            parent, count = int(split.parents[child]), int(derived[child])
            rest = split.symbols.take(slice(int(first_of_parent[parent]), int(first_of_parent[parent]) + count))
            for sibling in np.flatnonzero(split.parents[:child] == parent).tolist():
                rest = rest.minus(symbols.take(slice(int(starts[sibling]), int(starts[sibling]) + count)))
            symbols.put(int(starts[child]) + np.arange(count), rest)
        return np.arange(len(self._targets)), self._targets, symbols
