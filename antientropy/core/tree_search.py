"""The search down the hash trees, and rows listed and compared.

Both sides take turns in comparing: a request carries the hashes of the children of nodes that differ, the answer says
which of these children differ and carries the hashes of theirs, and so on, two levels for each round trip. Hashes are 4
bytes, salted for each session: what looks equal by chance in one session does not in the next. At the leaves of the
shallower tree rows are listed as (token, version); leaves that differ although those agree are listed with digests.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from antientropy.core.listing import Page, Searched, last_token, list_rows, nodes_above
from antientropy.core.merkle import HashTree
from antientropy.core.reconcile import Difference, States, difference
from antientropy.core.requests import FAN_OUT, HashesAnswer, HashesRequest, RowsAnswer, RowsRequest, at_leaves
from antientropy.core.rows import RowDigests
from antientropy.core.sketch import Indices, mix
from antientropy.core.tokens import LEVEL_BITS, TOKEN_BITS, TOKEN_MAX, TokenRange
from antientropy.errors import PeerMessageError
from antientropy.limits import HASH_NODES_PER_REQUEST_MAX, NODES_PER_REQUEST_MAX
from antientropy.options import Strategy


def child_hashes(tree: HashTree, level: int, nodes: Indices, salt: int) -> NDArray[np.uint32]:
    """4-byte hashes of the children of some nodes of a level above the leaves. Shape (n, 16)."""
    children = (nodes[:, None] * FAN_OUT + np.arange(FAN_OUT)).ravel().astype(np.uint32)
    wide = tree.node_hashes(level + 1, children) + mix(np.array([salt + 1], np.uint64))
    hashes: NDArray[np.uint32] = (mix(wide) >> np.uint64(32)).astype(np.uint32).reshape(-1, FAN_OUT)
    return hashes


def answer_hashes(request: HashesRequest, snapshot: Searched) -> tuple[HashesAnswer, RowsAnswer | None]:
    """The answering side: compare, and go one level further down."""
    tree = snapshot.tree
    none = np.empty((0, FAN_OUT), np.uint32)
    if tree.depth <= request.level:
        return HashesAnswer(tree.depth, np.empty(0, np.uint16), none), None
    unequal = child_hashes(tree, request.level, request.nodes, request.salt) != request.hashes
    masks = (unequal * (1 << np.arange(FAN_OUT))).sum(axis=1).astype(np.uint16)
    differing = (request.nodes[:, None] * FAN_OUT + np.arange(FAN_OUT))[unequal]
    if not at_leaves(request, tree.depth):
        below = child_hashes(tree, request.level + 1, differing, request.salt)
        return HashesAnswer(tree.depth, masks, below), None
    page = list_rows(snapshot, LEVEL_BITS * (request.level + 1), differing, 0)
    return HashesAnswer(tree.depth, masks, none), RowsAnswer(page.rows, page.last)


@dataclass(frozen=True, slots=True, eq=False)
class _Listing:
    """Rows to be compared: of nodes from a token on. ``suspect``: the nodes are known to differ.

    ``explained``: the node in which ``token`` lies, when a difference was found in its part before that token.
    """

    bits: int
    nodes: Indices
    token: int
    with_digests: bool
    suspect: bool
    explained: int = -1


@dataclass(frozen=True, slots=True, eq=False)
class _Descent:
    """Nodes of a level to be compared by the hashes of their children."""

    level: int
    nodes: Indices
    with_digests: bool


class TreeSearch:
    """Descents and lists in the range of a snapshot, one of each under way at a time.

    Attributes:
        found: Differences, each of some nodes.
        found_by: How many rows were found by descents, and how many by lists of nodes.
        complete_to: The last token up to which lists were compared; less than all when too much was found for one pass.
        unexplained: Nodes that differ although all their rows are equal: trees that lie.
    """

    def __init__(self, snapshot: Searched, *, salt: int, rows_max: int) -> None:
        self._snapshot = snapshot
        self._salt = salt % 2**32
        self._rows_max = rows_max
        self._listings: deque[_Listing] = deque()
        self._descents: deque[_Descent] = deque()
        self._listing: _Listing | None = None
        self._descent: tuple[_Descent, HashesRequest] | None = None
        self.found: list[Difference] = []
        self.found_by: Counter[Strategy] = Counter()
        self.complete_to = TOKEN_MAX
        self.unexplained = 0

    @property
    def finished(self) -> bool:
        """Whether nothing is left to ask, and no answer is awaited."""
        return not (self._listings or self._descents or self._listing or self._descent)

    def list_nothing(self) -> None:
        """The peer has no rows: all own rows differ."""
        self._compare(_Listing(0, np.zeros(1, np.int64), 0, False, False), RowsAnswer(RowDigests.empty(), TOKEN_MAX))

    def list_nodes(self, bits: int, nodes: Indices, *, with_digests: bool = False) -> None:
        """List the rows of some nodes that may or may not differ."""
        self._list(_Listing(bits, nodes, 0, with_digests, suspect=False))

    def descend(self, bits: int, nodes: Indices, *, with_digests: bool = False) -> None:
        """Compare some nodes by the tree."""
        level = -(-bits // LEVEL_BITS)
        width = 1 << (LEVEL_BITS * level - bits)
        below = (nodes[:, None] * width + np.arange(width)).ravel()
        if level >= self._snapshot.tree.depth:
            self._list(_Listing(LEVEL_BITS * level, below, 0, with_digests, suspect=False))
        else:
            self._go_down(level, below, with_digests=with_digests)

    # --- hashes ---

    def request_hashes(self) -> HashesRequest | None:
        """The next hashes to be compared by the peer."""
        if not self._descents:
            return None
        descent = self._descents.popleft()
        tree = self._snapshot.tree
        hashes = child_hashes(tree, descent.level, descent.nodes, self._salt)
        request = HashesRequest(descent.level, tree.depth, self._salt, descent.nodes, hashes, descent.with_digests)
        self._descent = descent, request
        return request

    def feed_hashes(self, answer: HashesAnswer, leaves: RowsAnswer | None) -> None:
        """The answer to the last hashes.

        Raises:
            PeerMessageError: it does not fit the request.
        """
        if self._descent is None:
            raise RuntimeError("no hashes were asked for")
        (descent, request), self._descent = self._descent, None
        if answer.leaf_level <= descent.level:
            # The peer's tree ends here.
            self._list(_Listing(LEVEL_BITS * descent.level, descent.nodes, 0, descent.with_digests, suspect=True))
            return
        if len(answer.masks) != len(descent.nodes):
            raise PeerMessageError("an answer about hashes has another number of nodes than its request")
        unequal = (answer.masks[:, None] >> np.arange(FAN_OUT, dtype=np.uint16)) & np.uint16(1) != 0
        children = (descent.nodes[:, None] * FAN_OUT + np.arange(FAN_OUT))[unequal]
        if at_leaves(request, answer.leaf_level):
            self._list(
                _Listing(LEVEL_BITS * (descent.level + 1), children, 0, descent.with_digests, suspect=True), leaves
            )
            return
        if len(answer.hashes) != len(children):
            raise PeerMessageError("an answer about hashes has another number of hashes than of differing nodes")
        own = child_hashes(self._snapshot.tree, descent.level + 1, children, self._salt)
        below = (children[:, None] * FAN_OUT + np.arange(FAN_OUT))[own != answer.hashes]
        level = descent.level + 2
        if level >= min(self._snapshot.tree.depth, answer.leaf_level):
            self._list(_Listing(LEVEL_BITS * level, below, 0, descent.with_digests, suspect=True))
        else:
            self._go_down(level, below, with_digests=descent.with_digests)

    def _go_down(self, level: int, nodes: Indices, *, with_digests: bool) -> None:
        nodes = self._not_beyond(LEVEL_BITS * level, nodes)
        for start in range(0, len(nodes), HASH_NODES_PER_REQUEST_MAX):
            part = nodes[start : start + HASH_NODES_PER_REQUEST_MAX]
            self._descents.append(_Descent(level, part, with_digests))

    # --- rows ---

    def request_rows(self) -> RowsRequest | None:
        """The next rows to ask for."""
        if not self._listings:
            return None
        listing = self._listings.popleft()
        self._listing = listing
        return RowsRequest(listing.bits, listing.nodes, listing.token, listing.with_digests)

    def feed_rows(self, answer: RowsAnswer) -> None:
        """The answer to the last rows.

        Raises:
            PeerMessageError: it does not fit the request.
        """
        if self._listing is None:
            raise RuntimeError("no rows were asked for")
        listing, self._listing = self._listing, None
        self._compare(listing, answer)

    def _list(self, listing: _Listing, answer: RowsAnswer | None = None) -> None:
        """Ask for rows in pages of nodes; ``answer``: the first rows of all nodes, if they came already."""
        if answer is not None:
            self._compare(listing, answer)
            return
        if listing.token > self.complete_to:
            return
        nodes = self._not_beyond(listing.bits, listing.nodes)
        for start in range(0, len(nodes), NODES_PER_REQUEST_MAX):
            part = nodes[start : start + NODES_PER_REQUEST_MAX]
            self._listings.append(replace(listing, nodes=part))

    def _compare(self, listing: _Listing, answer: RowsAnswer) -> None:
        """Match the peer's rows with the own ones; what the answer does not cover is asked again."""
        if not len(listing.nodes):
            return
        end = last_token(listing.bits, int(listing.nodes[-1]))
        _check(listing, answer, self._snapshot.token_range)
        found: list[Difference] = []
        token, last = listing.token, min(answer.last, end)
        remote = answer.rows
        while token <= last:
            page = list_rows(self._snapshot, listing.bits, listing.nodes, token)
            upto = min(page.last, last)
            cut = int(np.searchsorted(remote.tokens, np.uint64(upto), "right"))
            found.append(_difference(page, upto, remote.take(slice(0, cut)), with_digests=listing.with_digests))
            remote = remote.take(slice(cut, None))
            self.found_by[Strategy.DESCENT if listing.suspect else Strategy.ROWS] += len(found[-1])
            token = upto + 1
            if self.complete_to == TOKEN_MAX and self.found_by.total() > self._rows_max:
                # Once only: what is pending before this token is finished, so that every pass makes progress.
                self._leave_beyond(upto)
                last = upto
        part = Difference.concatenate(found)
        self.found.append(part)
        named = nodes_above(np.concatenate((part.tokens, part.colliding)), listing.bits)
        if listing.suspect:
            self._explain(listing, named, last)
        if last < end:
            cut_node = last_node(listing.bits, last)
            explained = cut_node if cut_node == listing.explained or bool((named == cut_node).any()) else -1
            left = listing.nodes[listing.nodes >= cut_node]
            self._list(replace(listing, nodes=left, token=last + 1, explained=explained))

    def _leave_beyond(self, token: int) -> None:
        """Enough was found: what lies beyond a token is left to the next pass, what lies before it is not."""
        self.complete_to = min(self.complete_to, token)
        listings, descents = list(self._listings), list(self._descents)
        self._listings.clear()
        self._descents.clear()
        for listing in listings:
            self._list(listing)
        for descent in descents:
            self._go_down(descent.level, descent.nodes, with_digests=descent.with_digests)

    def _not_beyond(self, bits: int, nodes: Indices) -> Indices:
        """The nodes (ascending) that begin within what is searched."""
        return nodes[: int(np.searchsorted(nodes, self.complete_to >> (TOKEN_BITS - bits), "right"))]

    def _explain(self, listing: _Listing, named: Indices, last: int) -> None:
        """Nodes known to differ in which nothing was found: look at digests; if those were seen, the trees lie."""
        whole = listing.nodes[listing.nodes < last_node(listing.bits, last)]
        silent = whole[~np.isin(whole, named) & (whole != listing.explained)]
        if not len(silent):
            return
        if listing.with_digests:
            self.unexplained += len(silent)
        else:
            self._list(_Listing(listing.bits, silent, 0, with_digests=True, suspect=True))


def last_node(bits: int, last: int) -> int:
    """The first node that is not wholly covered when tokens are known up to ``last``."""
    return (last + 1) >> (TOKEN_BITS - bits)


def _check(listing: _Listing, answer: RowsAnswer, within: TokenRange) -> None:
    """Whether listed rows are what was asked for."""
    rows = answer.rows
    if answer.last < listing.token:
        raise PeerMessageError("listed rows end before they begin")
    if not len(rows):
        return
    if bool((rows.tokens[1:] < rows.tokens[:-1]).any()) or int(rows.tokens[-1]) > answer.last:
        raise PeerMessageError("listed rows are out of order")
    nodes = nodes_above(rows.tokens, listing.bits)
    where = np.minimum(np.searchsorted(listing.nodes, nodes), len(listing.nodes) - 1)
    outside = not within.contains(int(rows.tokens[0])) or not within.contains(int(rows.tokens[-1]))
    if outside or int(rows.tokens[0]) < listing.token or bool((listing.nodes[where] != nodes).any()):
        raise PeerMessageError("listed rows lie outside of the nodes that were asked for")


def _difference(page: Page, upto: int, remote: RowDigests, *, with_digests: bool) -> Difference:
    """What differs up to a token; without digests only what tokens and versions show."""
    own = page.rows.take(slice(0, int(np.searchsorted(page.rows.tokens, np.uint64(upto), "right"))))
    if with_digests:
        return difference(own, remote)
    bare = RowDigests(own.tokens, own.versions, np.zeros((len(own), 2), np.uint64))
    part = difference(bare, RowDigests(remote.tokens, remote.versions, np.zeros((len(remote), 2), np.uint64)))
    return Difference(part.tokens, States.at(own, part.tokens), part.remote, part.colliding)
