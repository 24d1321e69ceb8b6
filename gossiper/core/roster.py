"""Rosters: who was known, in which generation, at a cut in time, so that both sides of an exchange need not say it.

A roster is defined by content, not by arrival: for every endpoint the generation that was current at the cut (a time at
least ``ROSTER_SETTLE_INTERVALS`` ago, by when everybody has heard of it). Two nodes that know the same have the same
roster, whatever each of them learned since: who joined, restarted or was removed after the cut is told plainly, and a
generation that ended after it stays in the roster until the cut has passed.

Left out are endpoints of which only the name is known (generation 0), and those who will soon be forgotten, because
nodes forget at slightly different times.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from gossiper.core.columns import Int64Column, Mask, Rows, Symbols

#: A cut lies between so many and twice as many intervals ago; at 1,000 nodes, news reaches everybody within 8 without
#: any push, and within 12 when every tenth message is lost.
ROSTER_SETTLE_INTERVALS: Final = 16
#: Left out is whoever will be forgotten so soon after the cut: nodes forget at slightly different times.
ROSTER_EXPIRY_MS: Final = 300_000
#: Entries per bucket, and at most so many buckets: hashes of all of them are sent only when something differs.
_BUCKET_ENTRIES: Final = 16
BUCKETS_MIN: Final = 8
BUCKETS_MAX: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """What a table knows by now of a roster's entries."""

    incarnations: int
    """Of the table for which this was found."""
    gone: Mask | None
    """Entries whose endpoint has a greater generation by now; None: there is none."""
    outside: Rows
    """Rows that the roster does not hold in their present generation, ascending."""
    own: int
    """The index of the local endpoint's present generation, -1 when it is not in the roster."""


@dataclass(frozen=True, slots=True, eq=False)
class Roster:
    """n entries in the order of the xxh3_128 of their endpoints; columns have length n and never change."""

    cut_ms: int
    rows: Rows
    """Rows of the table, as long as the table keeps this roster."""
    content: Int64Column
    """Shape (n, 4): high and low half of the xxh3_128 of the endpoint, generation, interval_ms."""
    generations: Int64Column
    intervals_ms: Int64Column
    interval_ms: int | None
    """The interval of all entries, when they have the same."""
    began_ms: Int64Column
    """1000 * generation."""
    names_high: Int64Column
    names_low: Int64Column
    digest: bytes
    """xxh3_128 over ``content``, little-endian, entry by entry."""
    standings: dict[int, Standing] = field(default_factory=dict)
    """By local row (always the same one): see ``standing``."""

    def __len__(self) -> int:
        """The number of entries."""
        return len(self.rows)

    def expected(self, as_of_ms: int) -> Int64Column:
        """The heartbeats that clocks alone would give at ``as_of_ms``."""
        elapsed_ms: Int64Column = as_of_ms - self.began_ms
        # Dividing by one number is several times faster, and nearly all clusters have one interval.
        elapsed_ms //= self.intervals_ms if self.interval_ms is None else self.interval_ms
        return elapsed_ms

    def bounds(self, buckets: int) -> NDArray[np.intp]:
        """Where each of ``buckets`` (a power of two) begins, and the end: buckets + 1 indices."""
        shift = 64 - (buckets.bit_length() - 1)
        edges = (np.arange(1, buckets, dtype=np.uint64) << np.uint64(shift)).view(np.int64)
        # Names are ordered as unsigned numbers.
        inner = np.searchsorted(self.names_high.view(np.uint64), edges.view(np.uint64))
        return np.concatenate(([0], inner, [len(self)])).astype(np.intp)

    def bucket_digests(self, buckets: int) -> tuple[int, ...]:
        """xxh3_64 over the entries of each bucket."""
        return hashes_between(self.content, self.bounds(buckets), 0)

    def mask(self, buckets: int, wanted: int) -> NDArray[np.bool_]:
        """Which entries lie in the buckets of the bit mask ``wanted``."""
        bounds = self.bounds(buckets)
        flags = np.array([wanted >> bucket & 1 for bucket in range(buckets)], dtype=np.bool_)
        return np.repeat(flags, np.diff(bounds))

    def without(self, left_out: NDArray[np.bool_]) -> Roster:
        """The roster without some of its entries."""
        kept = ~left_out
        return roster_of(self.cut_ms, self.rows[kept], self.content[kept])


@dataclass(slots=True, eq=False)
class Exchange:
    """What the sender of a compact SYN keeps until the ACK: indices mean nothing without it."""

    roster: Roster
    incarnations: int
    """Of the table when the SYN was made: as long as it is the same, rows mean the same."""
    heartbeats: Int64Column
    """What was told of each entry."""
    symbols: Symbols
    own_version: int
    attempt: int = 1


def cut_of(as_of_ms: int, interval_ms: int) -> int:
    """The cut of a roster at ``as_of_ms``: a whole multiple of the settling time, at least that time ago."""
    settle_ms = ROSTER_SETTLE_INTERVALS * interval_ms
    return max(0, as_of_ms // settle_ms - 1) * settle_ms


def bucket_count(entries: int) -> int:
    """Into how many buckets a roster is divided when something differs: a power of two."""
    return min(BUCKETS_MAX, max(BUCKETS_MIN, 1 << (entries // _BUCKET_ENTRIES).bit_length()))


def hashes_between(columns: NDArray[np.int64], bounds: NDArray[np.intp], seed: int) -> tuple[int, ...]:
    """xxh3_64 over the entries (first axis) between each two bounds."""
    data, width = columns.tobytes(), columns.nbytes // max(1, len(columns))
    places = (bounds * width).tolist()
    view = memoryview(data)
    return tuple(xxh3_64_intdigest(view[start:end], seed) for start, end in pairwise(places))


def roster_of(cut_ms: int, rows: Rows, content: Int64Column) -> Roster:
    """The roster of some rows, whose ``content`` (shape (n, 4), as in ``Roster``) is in order already."""
    names_high, names_low, generations, intervals_ms = np.ascontiguousarray(content.T)
    only = int(intervals_ms[0]) if len(rows) and (intervals_ms == intervals_ms[0]).all() else None
    digest = xxh3_128_digest(content.astype("<i8", copy=False).tobytes())
    return Roster(
        cut_ms=cut_ms,
        rows=rows,
        content=content,
        generations=generations,
        intervals_ms=intervals_ms,
        interval_ms=only,
        began_ms=generations * 1000,
        names_high=names_high,
        names_low=names_low,
        digest=digest,
    )
