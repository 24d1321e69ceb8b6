"""The first look at a difference: 88 bytes that ride on the answer which says that roots differ.

One row that one side lacks is found from the first symbol of the sketches alone: it holds every item. A row that was
updated is two items of one token, which cancel out there: what is left are the difference of the two versions and that
of the two marks. So of the next symbols there is only a part, the first 40 bits of their sums of tokens and 8 bits of
their counts: in every other one or so only one of the two items is left, and tells its token well enough to look the
own row up; the first symbol then gives the peer's version and proves it. What is found so needs no further round trip.

When more differs, the counts say about how much: a tug-of-war sketch (Alon, Matias and Szegedy, 1996).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from antientropy.core.listing import Searched
from antientropy.core.peeling import Items
from antientropy.core.rows import RowDigests
from antientropy.core.sketch import MARK_MASK, SYMBOL_BYTES, U64, Symbols, hashes, symbols_of
from antientropy.core.tokens import TOKEN_MAX, TokenRange

#: Symbols of which a part travels, behind the first one: a row that was updated is found with 199 in 200 of them.
PARTIAL_SYMBOLS: Final = 11
_TOP_BYTES: Final = 5
_LOW_BITS: Final = 64 - 8 * _TOP_BYTES
GLANCE_BYTES: Final = SYMBOL_BYTES + PARTIAL_SYMBOLS * (_TOP_BYTES + 1)
#: Own rows looked at for one updated row: those whose tokens begin with the same 40 bits, which one is by far.
_CANDIDATES_MAX: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class Glance:
    """What one side tells."""

    first: Symbols
    """The first symbol of the range."""
    tops: U64
    """The upper 40 bits of the sums of tokens of the next symbols. Shape (``PARTIAL_SYMBOLS``,)."""
    counts: NDArray[np.int8]
    """Their counts modulo 256."""

    def encode(self) -> bytes:
        """``GLANCE_BYTES`` bytes."""
        tops = self.tops.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :_TOP_BYTES]
        return self.first.encode() + tops.tobytes() + self.counts.tobytes()

    @classmethod
    def decode(cls, data: bytes) -> Glance:
        """The inverse.

        Raises:
            ValueError: another number of bytes.
        """
        if len(data) != GLANCE_BYTES:
            raise ValueError(f"{len(data)} bytes; {GLANCE_BYTES} are needed")
        wide = np.zeros((PARTIAL_SYMBOLS, 8), np.uint8)
        ends = SYMBOL_BYTES, SYMBOL_BYTES + PARTIAL_SYMBOLS * _TOP_BYTES
        wide[:, :_TOP_BYTES] = np.frombuffer(data[ends[0] : ends[1]], np.uint8).reshape(-1, _TOP_BYTES)
        return cls(
            Symbols.decode(data[: ends[0]], 1),
            wide.view("<u8").ravel().astype(np.uint64),
            np.frombuffer(data[ends[1] :], np.int8).copy(),
        )


def own_symbols(snapshot: Searched) -> Symbols:
    """The whole symbols of the own side, of which a peer is told a :class:`Glance`."""
    zero = np.zeros(1, np.int64)
    return snapshot.sketch.symbols(0, zero, zero, zero + 1 + PARTIAL_SYMBOLS)


def glance(snapshot: Searched) -> Glance:
    """What the answering side tells of the range of a snapshot."""
    return _told(own_symbols(snapshot))


def _told(symbols: Symbols) -> Glance:
    rest = symbols.take(slice(1, None))
    counts = rest.marks.astype(np.uint8).view(np.int8)
    return Glance(symbols.take(slice(0, 1)), rest.tokens >> np.uint64(_LOW_BITS), counts)


def one_row(
    own: Symbols, remote: Glance, read: Callable[[TokenRange], RowDigests], *, within: TokenRange, epoch: int
) -> tuple[Items, RowDigests] | None:
    """The items of the one row that differs, with the own rows of its token, if that is all that differs; else None.

    ``read`` gives the own rows of a small range.
    """
    items = _missing(own, remote, epoch)
    if items is None:
        items = _updated(own, remote, read, within, epoch)
    if items is None or not _explains(items, own, remote, epoch):
        return None
    token = int(items.tokens[0])
    return (items, read(TokenRange(token, token))) if within.contains(token) else None


def misleads(own: Symbols, remote: Glance, epoch: int) -> bool:
    """Whether the first symbol looks like one item by chance (once in 2**32), as the rest of the glance tells."""
    items = _missing(own, remote, epoch)
    return items is not None and not _explains(items, own, remote, epoch)


def _missing(own: Symbols, remote: Glance, epoch: int) -> Items | None:
    """The one item of the first symbol, if it looks like one."""
    difference = own.take(slice(0, 1)).minus(remote.first)
    signs = difference.counts
    if abs(int(signs[0])) != 1:
        return None
    factor = signs.view(np.uint64)
    tokens, versions = difference.tokens * factor, difference.versions * factor
    _, marks = hashes(tokens, versions, epoch)
    if int(((difference.marks * factor - marks) & MARK_MASK)[0]):
        return None
    return Items(np.zeros(1, np.int64), tokens, versions, signs)


def _updated(
    own: Symbols, remote: Glance, read: Callable[[TokenRange], RowDigests], within: TokenRange, epoch: int
) -> Items | None:
    """The two items of one token, if the first symbol looks like that."""
    difference = own.take(slice(0, 1)).minus(remote.first)
    if int(difference.counts[0]) or int(difference.tokens[0]) or not int(difference.marks[0] & MARK_MASK):
        return None
    candidates = _tokens(own, remote, within)
    rows = RowDigests.empty() if candidates is None else read(candidates)
    if not 0 < len(rows) <= _CANDIDATES_MAX:
        return None
    versions: U64 = rows.versions - difference.versions
    _, held = hashes(rows.tokens, rows.versions, epoch)
    _, told = hashes(rows.tokens, versions, epoch)
    fits = np.flatnonzero((held - told - difference.marks) & MARK_MASK == 0)
    if len(fits) != 1:
        return None
    at = int(fits[0])
    pair = np.array([rows.versions[at], versions[at]], np.uint64)
    return Items(np.zeros(2, np.int64), rows.tokens[[at, at]], pair, np.array([1, -1], np.int64))


def _explains(items: Items, own: Symbols, remote: Glance, epoch: int) -> bool:
    """Whether the peer told just what it would if these items were all that differs: no check can fit by chance."""
    zero = np.zeros(1, np.int64)
    pair = symbols_of(
        items.tokens,
        items.versions,
        groups=items.sketches,
        firsts=zero,
        lasts=zero + 1 + PARTIAL_SYMBOLS,
        epoch=epoch,
        signs=items.signs,
    )
    return _told(own.minus(pair)).encode() == remote.encode()


def _tokens(own: Symbols, remote: Glance, within: TokenRange) -> TokenRange | None:
    """Where the token of the one item must lie that is left in some of the symbols; None: it is in none alone."""
    first, last = within.first, within.last
    counts = own.take(slice(1, None)).marks.astype(np.uint8).view(np.int8) - remote.counts
    alone = np.flatnonzero(np.abs(counts) == 1).tolist()
    for number in alone:
        # The peer's sum lies less than 2**24 above what it told.
        mine, theirs = int(own.tokens[number + 1]), int(remote.tops[number]) << _LOW_BITS
        if int(counts[number]) > 0:
            end = (mine - theirs) & TOKEN_MAX
            first, last = max(first, end - (1 << _LOW_BITS) + 1), min(last, end)
        else:
            begin = (theirs - mine) & TOKEN_MAX
            first, last = max(first, begin), min(last, begin + (1 << _LOW_BITS) - 1)
    return TokenRange(first, last) if alone and first <= last else None


def estimate(own: Symbols, remote: Glance, imbalance: int) -> float:
    """About how many items differ, ``imbalance`` being own rows less those of the peer."""
    shares = 2.0 / (np.arange(1, 1 + PARTIAL_SYMBOLS) + 2.0)
    counts = (own.take(slice(1, None)).marks.astype(np.uint8).view(np.int8) - remote.counts).astype(np.float64)
    # Counts are known modulo 256: what is left beside the known imbalance is the square root of a number of rows.
    deviations = (counts - shares * imbalance + 128.0) % 256.0 - 128.0
    return max(float((deviations**2 / (shares * (1.0 - shares))).mean()), float(abs(imbalance)), 1.0)
