"""Where two replicas differ: the asking side as a state machine without I/O, and the answering side as a function.

How rows are found is chosen by bytes. With d differing items (a row that one side lacks is one, an updated row two) in
n rows, a sketch costs 21 to 22 bytes for each of some 1.36 d (many) to 1.7 d (few) symbols; listing a node's rows costs
about 14 bytes for each of them, so it wins where more than half differs; descending costs 64 bytes for each differing
node of each level and 14 for each row of the differing leaves, so it wins nowhere but serves where the others cannot:
equal versions with different content are in no sketch and no list, and sketches that a peer (or a collision of a
32-bit check) has spoiled find no end.

Whatever strategy is forced, the result is exact as far as the peer tells the truth, or the difference is seen again
when the roots are compared afterwards; a peer that does not can make neither an endless loop nor a large allocation.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np

from antientropy.core import glance as glances
from antientropy.core.glance import Glance, glance
from antientropy.core.listing import Searched, list_rows, node_symbols, nodes_above, ranges_below
from antientropy.core.peeling import Items
from antientropy.core.reconcile import Difference, States
from antientropy.core.requests import LocateAnswer, LocateRequest, RowsAnswer
from antientropy.core.rows import RowDigests
from antientropy.core.sketch import U64, Indices, hashes
from antientropy.core.sketch_search import Nodes, SketchSearch
from antientropy.core.tokens import TOKEN_MAX, TokenRange
from antientropy.core.tree_search import TreeSearch, answer_hashes
from antientropy.errors import PeerMessageError
from antientropy.limits import DIFFERENCE_ROWS_MAX, LOCATE_REQUESTS_MAX
from antientropy.options import Strategy

__all__ = ["Glance", "LocateAnswer", "LocateRequest", "Locator", "Searched", "answer", "glance"]

#: Looking a row up costs about as much as reading so many neighbours (LMDB: 19 us and 0.43 us).
_ROWS_READ_PER_LOOKUP: Final = 40


def answer(request: LocateRequest, snapshot: Searched) -> LocateAnswer:
    """The answering side. Bounded by the limits of the request, and by one read of the rows of its nodes.

    Raises:
        PeerMessageError: the request does not fit the snapshot.
    """
    symbols, hashes, leaves, rows = None, None, None, None
    if (part := request.symbols) is not None:
        symbols = node_symbols(snapshot, part.bits, part.nodes, part.firsts, part.lasts)
    if (wanted := request.hashes) is not None:
        hashes, leaves = answer_hashes(wanted, snapshot)
    if (listed := request.rows) is not None:
        page = list_rows(snapshot, listed.bits, listed.nodes, listed.token)
        rows = RowsAnswer(page.rows, page.last)
    return LocateAnswer(symbols, hashes, leaves, rows)


class Locator:
    """The asking side: :meth:`next_request`, :meth:`feed` with its answer, until there is none; then the result.

    Attributes:
        requests: How many requests were made: round trips.
    """

    def __init__(
        self,
        snapshot: Searched,
        *,
        remote_count: int,
        first: Glance | None = None,
        strategy: Strategy = Strategy.AUTO,
        salt: int = 0,
        rows_max: int = DIFFERENCE_ROWS_MAX,
    ) -> None:
        """Begin.

        Args:
            snapshot: The own rows; read from while requests are made and answers fed.
            remote_count: The peer's rows in the range, by its root.
            first: The peer's :func:`glance`, when it came along.
            strategy: How to search.
            salt: Random, another one for each session: for the hashes of the descent.
            rows_max: Differing rows at which the search ends; the rest is for the next pass.
        """
        self._snapshot = snapshot
        self._tree = TreeSearch(snapshot, salt=salt, rows_max=rows_max)
        self._sketch: SketchSearch | None = None
        self._decoded: list[Difference] = []
        self._asked: LocateRequest | None = None
        self._last_resort = False
        self.requests = 0
        root = np.zeros(1, np.int64)
        if strategy is Strategy.DESCENT:
            self._tree.descend(0, root)
        elif strategy is Strategy.ROWS:
            self._tree.list_nodes(0, root)
        elif not remote_count:
            self._tree.list_nothing()
        else:
            self._begin_sketch(remote_count, first, by_cost=strategy is Strategy.AUTO, rows_max=rows_max)
        self._resort()

    def _begin_sketch(self, remote_count: int, first: Glance | None, *, by_cost: bool, rows_max: int) -> None:
        """Search by sketches; with the first look at them, one differing row is found without asking anything."""
        snapshot = self._snapshot
        if first is None:
            self._sketch = SketchSearch(snapshot, remote_count, by_cost=by_cost, items_max=rows_max)
            return
        own, epoch = glances.own_symbols(snapshot), snapshot.sketch.epoch

        def read(tokens: TokenRange) -> RowDigests:
            return RowDigests.concatenate([*snapshot.digests([tokens])])

        found = glances.one_row(own, first, read, within=snapshot.token_range, epoch=epoch)
        if found is not None:
            items, rows = found
            self._believe(Nodes(0, np.zeros(1, np.int64)), items, rows)
            return
        if glances.misleads(own, first, epoch):
            self._sketch = SketchSearch(snapshot, remote_count, by_cost=by_cost, items_max=rows_max)
            return
        expected = glances.estimate(own, first, snapshot.tree.root.count - remote_count)
        sketch = SketchSearch(snapshot, remote_count, by_cost=by_cost, items_max=rows_max, expected=expected)
        sketch.request()
        sketch.feed(first.first)
        self._sketch = sketch
        self._after_sketch(sketch)

    def next_request(self) -> LocateRequest | None:
        """What to ask next; None when the result is there.

        Raises:
            PeerMessageError: the peer leads on and on.
        """
        if self._asked is not None:
            raise RuntimeError("the last request has not been answered")
        sketch = self._sketch
        request = LocateRequest(
            None if sketch is None else sketch.request(), self._tree.request_hashes(), self._tree.request_rows()
        )
        if request.symbols is None and request.hashes is None and request.rows is None:
            return None
        self.requests += 1
        if self.requests > LOCATE_REQUESTS_MAX:
            raise PeerMessageError(f"{LOCATE_REQUESTS_MAX} answers have not settled what differs")
        self._asked = request
        return request

    def feed(self, answer: LocateAnswer) -> None:
        """The answer to the last request.

        Raises:
            PeerMessageError: it does not fit the request. The search cannot go on.
        """
        request, self._asked = self._asked, None
        if request is None:
            raise RuntimeError("nothing was asked")
        if request.hashes is not None:
            if answer.hashes is None:
                raise PeerMessageError("an answer lacks the hashes that were asked for")
            self._tree.feed_hashes(answer.hashes, answer.leaves)
        if request.rows is not None:
            if answer.rows is None:
                raise PeerMessageError("an answer lacks the rows that were asked for")
            self._tree.feed_rows(answer.rows)
        if request.symbols is not None and self._sketch is not None:
            if answer.symbols is None or len(answer.symbols) != len(request.symbols):
                raise PeerMessageError("an answer lacks the symbols that were asked for")
            self._sketch.feed(answer.symbols)
            self._after_sketch(self._sketch)
        self._resort()

    @property
    def difference(self) -> Difference:
        """What differs, complete up to :attr:`complete_to`; digests are 0 where they are not known.

        Only token and version are known of the peer's rows, unless these are the same on both sides. So a digest is
        known of every row by which a winner has to be decided.
        """
        parts = [*self._decoded, *self._tree.found]
        every = Difference.concatenate(parts)
        order = np.argsort(every.tokens)
        merged = Difference(
            every.tokens[order], every.local.take(order), every.remote.take(order), np.unique(every.colliding)
        )
        return merged.up_to(self.complete_to)

    @property
    def complete_to(self) -> int:
        """The last token up to which the result is complete; less than the last one when there was too much."""
        complete_to = self._tree.complete_to
        return complete_to if self._sketch is None else min(complete_to, self._sketch.complete_to)

    @property
    def found_by(self) -> dict[Strategy, int]:
        """How many rows each strategy found."""
        counts = Counter({Strategy.SKETCH: sum(len(part) for part in self._decoded)})
        counts.update(self._tree.found_by)
        return {strategy: count for strategy, count in counts.items() if count}

    @property
    def unexplained(self) -> bool:
        """Whether trees differ while all rows are equal: one of them is wrong and must be built anew."""
        return bool(self._tree.unexplained)

    def _resort(self) -> None:
        """Nothing found, though roots differ: rows of equal version and different content, seen by their digests."""
        sketch_open = self._sketch is not None and not self._sketch.finished
        if self._last_resort or sketch_open or not self._tree.finished or self.complete_to != TOKEN_MAX:
            return
        self._last_resort = True
        if not self.found_by and not self._tree.unexplained:
            self._tree.descend(0, np.zeros(1, np.int64), with_digests=True)

    def _after_sketch(self, sketch: SketchSearch) -> None:
        """Take what the sketches found, and go on in other ways where they do not serve."""
        for nodes, items in sketch.found:
            self._believe(nodes, items)
        for nodes in sketch.listed:
            self._tree.list_nodes(nodes.bits, nodes.nodes)
        for nodes in sketch.failed:
            self._tree.descend(nodes.bits, nodes.nodes)
        sketch.found, sketch.listed, sketch.failed = [], [], []

    def _believe(self, nodes: Nodes, items: Items, own: RowDigests | None = None) -> None:
        """Hold decoded items against the own rows: an own item must be one of them, a remote one must not.

        ``own``: the own rows at the tokens of the items, when they are at hand.
        """
        if not len(items):
            return
        if own is None:
            own = self._own_rows(nodes, np.unique(items.tokens))
        held, _ = hashes(own.tokens, own.versions, 0)
        named, _ = hashes(items.tokens, items.versions, 0)
        within = self._snapshot.token_range
        outside = (items.tokens < np.uint64(within.first)) | (items.tokens > np.uint64(within.last))
        wrong = (np.isin(named, held) != (items.signs > 0)) | outside
        if bool(wrong.any()):
            spoiled = np.unique(nodes_above(items.tokens[wrong], nodes.bits))
            self._tree.descend(nodes.bits, spoiled)
            items = items.take(~np.isin(nodes_above(items.tokens, nodes.bits), spoiled))
            if not len(items):
                return
        self._decoded.append(_difference(items, own))

    def _own_rows(self, nodes: Nodes, tokens: U64) -> RowDigests:
        """The own rows at some tokens, by looking each up or, when they are many, by reading their nodes."""
        if len(tokens) * _ROWS_READ_PER_LOOKUP < self._snapshot.tree.root.count:
            ranges = [TokenRange(token, token) for token in tokens.tolist()]
            return RowDigests.concatenate([*self._snapshot.digests(ranges)])
        ranges = ranges_below(nodes.bits, np.unique(nodes_above(tokens, nodes.bits)), self._snapshot.token_range)
        parts = []
        for part in self._snapshot.digests(ranges):
            where = np.minimum(tokens.searchsorted(part.tokens), len(tokens) - 1)
            parts.append(part.take(tokens[where] == part.tokens))
        return RowDigests.concatenate(parts)


def _difference(items: Items, own: RowDigests) -> Difference:
    """Items as what both sides hold at their tokens. ``own``: all own rows there, and perhaps others."""
    mine, theirs = items.take(items.signs > 0), items.take(items.signs < 0)
    theirs = theirs.take(np.argsort(theirs.tokens))
    tokens = np.unique(items.tokens)
    held, decoded, arrived = (_counts_at(tokens, column) for column in (own.tokens, mine.tokens, theirs.tokens))
    # An own row that is no difference, beside a row of the peer: the peer has both.
    shared = (held > 1) | (arrived > 1) | (held > decoded)
    plain = tokens[~shared]
    remote = RowDigests(theirs.tokens, theirs.versions, np.zeros((len(theirs), 2), np.uint64))
    return Difference(plain, States.at(own, plain), States.at(remote, plain), tokens[shared])


def _counts_at(tokens: U64, column: U64) -> Indices:
    """How often each token (ascending) is in a column of such tokens."""
    here = tokens.searchsorted(column)
    here = here[tokens[np.minimum(here, len(tokens) - 1)] == column]
    return np.bincount(here, minlength=len(tokens))
