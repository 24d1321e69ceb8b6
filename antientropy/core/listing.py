"""Rows and symbols of some nodes of a snapshot, for both sides of a search for differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from antientropy.core.merkle import HashTree
from antientropy.core.rows import RowDigests
from antientropy.core.sketch import SYMBOLS_KEPT, U64, Indices, SketchBank, Symbols, spans_of, symbols_of
from antientropy.core.tokens import TOKEN_BITS, TOKEN_MAX, TokenRange
from antientropy.limits import ROWS_LISTED_PER_ANSWER_MAX


class Searched(Protocol):
    """What is searched: tree, sketch and rows of a range at one point in time."""

    @property
    def tree(self) -> HashTree:
        """The tree of exactly the rows of the range."""
        ...

    @property
    def sketch(self) -> SketchBank:
        """The sketch of exactly the rows of the range."""
        ...

    @property
    def token_range(self) -> TokenRange:
        """The range."""
        ...

    def digests(self, ranges: Sequence[TokenRange]) -> Iterator[RowDigests]:
        """Digests of all rows of some ranges (ascending, disjoint), in token order, in bounded batches."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """Rows of some nodes in token order, complete up to token ``last``."""

    rows: RowDigests
    last: int


def nodes_above(tokens: U64, bits: int) -> Indices:
    """The node of ``bits`` bits above each token."""
    if not bits:
        return np.zeros(len(tokens), np.int64)
    return (tokens >> np.uint64(TOKEN_BITS - bits)).astype(np.int64)


def last_token(bits: int, node: int) -> int:
    """The last token below a node."""
    return ((node + 1) << (TOKEN_BITS - bits)) - 1


def node_cover(bits: int, token_range: TokenRange) -> Indices:
    """All nodes of ``bits`` bits that have a token in the range."""
    shift = TOKEN_BITS - bits
    return np.arange(token_range.first >> shift, (token_range.last >> shift) + 1)


def ranges_below(bits: int, nodes: Indices, within: TokenRange) -> list[TokenRange]:
    """The tokens below some nodes (ascending), cut to ``within``; neighbouring nodes make one range."""
    if not len(nodes):
        return []
    shift = TOKEN_BITS - bits
    breaks = np.flatnonzero(np.diff(nodes) != 1)
    firsts = nodes[np.concatenate(([0], breaks + 1))].tolist()
    lasts = nodes[np.concatenate((breaks, [len(nodes) - 1]))].tolist()
    spans = [TokenRange(first << shift, ((last + 1) << shift) - 1) for first, last in zip(firsts, lasts, strict=True)]
    return [cut for span in spans if (cut := span.intersection(within)) is not None]


def list_rows(snapshot: Searched, bits: int, nodes: Indices, token: int) -> Page:
    """The rows of some nodes from ``token`` on, bounded by what an answer holds; rows of one token stay together."""
    rows_max = ROWS_LISTED_PER_ANSWER_MAX
    within = TokenRange(token, TOKEN_MAX).intersection(snapshot.token_range)
    ranges = ranges_below(bits, nodes, within) if within is not None else []
    parts: list[RowDigests] = []
    count = 0
    for part in snapshot.digests(ranges):
        parts.append(part)
        count += len(part)
        if count > rows_max:
            break
    rows = RowDigests.concatenate(parts)
    if count <= rows_max:
        return Page(rows, TOKEN_MAX)
    # What follows the last row that was read is unknown, and may have its token: the list ends before that token.
    cut = int(np.searchsorted(rows.tokens, rows.tokens[rows_max]))
    if cut:
        return Page(rows.take(slice(0, cut)), int(rows.tokens[cut]) - 1)
    # One token has them all.
    alone = int(rows.tokens[0])
    return Page(RowDigests.concatenate([*snapshot.digests([TokenRange(alone, alone)])]), alone)


def node_symbols(snapshot: Searched, bits: int, nodes: Indices, firsts: Indices, lasts: Indices) -> Symbols:
    """Symbols of the sketches of some nodes: those that are kept, and others from the rows of their nodes."""
    spans, _ = spans_of(firsts, lasts)
    symbols = Symbols.zero(len(spans))
    beyond = lasts > SYMBOLS_KEPT
    kept = np.flatnonzero(~beyond)
    symbols.put(np.flatnonzero(~beyond[spans]), snapshot.sketch.symbols(bits, nodes[kept], firsts[kept], lasts[kept]))
    if bool(beyond.any()):
        far = np.flatnonzero(beyond)
        cells = np.flatnonzero(beyond[spans])
        for part in snapshot.digests(ranges_below(bits, nodes[far], snapshot.token_range)):
            groups = np.searchsorted(nodes[far], nodes_above(part.tokens, bits))
            more = symbols_of(
                part.tokens,
                part.versions,
                groups=groups,
                firsts=firsts[far],
                lasts=lasts[far],
                epoch=snapshot.sketch.epoch,
            )
            symbols.put(cells, symbols.take(cells).plus(more))
    return symbols
