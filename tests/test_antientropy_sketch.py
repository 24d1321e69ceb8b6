"""Sketches of (token, version): linear, decodable, the same however they are built, and never wrong in silence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antientropy.core.peeling import SketchDecoder
from antientropy.core.rows import RowDigests
from antientropy.core.sketch import (
    SYMBOLS_KEPT,
    Indices,
    SketchBank,
    Symbols,
    symbol_bytes,
    symbols_of,
)
from antientropy.core.tokens import BUCKETS, TokenRange, bucket_of


def rows_of(count: int, seed: int = 1, *, first: int = 0, last: int = 2**64 - 1) -> RowDigests:
    rng = np.random.default_rng(seed)
    tokens = np.sort(rng.integers(first, last, count, dtype=np.uint64, endpoint=True))
    return RowDigests(tokens, rng.integers(0, 2**60, count, dtype=np.uint64), np.zeros((count, 2), np.uint64))


def all_symbols(bank: SketchBank) -> Symbols:
    return bank.symbols(8, np.arange(BUCKETS), np.zeros(BUCKETS, np.int64), np.full(BUCKETS, SYMBOLS_KEPT))


def equal(one: Symbols, other: Symbols) -> bool:
    return bool(
        (one.tokens == other.tokens).all()
        and (one.versions == other.versions).all()
        and (one.marks == other.marks).all()
    )


def indices(*numbers: int) -> Indices:
    return np.array(numbers, np.int64)


def found(decoder: SketchDecoder) -> set[tuple[int, int, int, int]]:
    items = decoder.items
    return set(
        zip(items.sketches.tolist(), items.tokens.tolist(), items.versions.tolist(), items.signs.tolist(), strict=True)
    )


def test_symbol_i_holds_an_item_with_probability_1_over_1_plus_half_i() -> None:
    rows = rows_of(100_000)
    counts = symbols_of(
        rows.tokens, rows.versions, groups=np.zeros(100_000, np.int64), firsts=indices(0), lasts=indices(40), epoch=0
    ).marks.astype(np.uint16)
    shares = 2 / (np.arange(40) + 2)
    expected = 100_000 * shares
    # Six standard deviations of a binomial; the count is known modulo 2**16.
    off = (counts.astype(np.float64) - expected + 2**15) % 2**16 - 2**15
    assert (np.abs(off) <= 6 * np.sqrt(expected * (1 - shares)) + 1e-9).all()


def test_a_bank_is_the_same_however_it_came_about() -> None:
    rows = rows_of(3_000)
    whole = SketchBank.build(rows, 7)
    folded = SketchBank(7)
    order = np.random.default_rng(3).permutation(3_000)
    for start in range(0, 3_000, 700):
        some = order[start : start + 700]
        folded.fold(rows.tokens[some], rows.versions[some], np.ones(len(some), np.int8))
    assert folded.same_as(whole)
    extra = rows_of(500, seed=9)
    both = folded.copy()
    both.fold(extra.tokens, extra.versions, np.ones(500, np.int8))
    assert not both.same_as(whole)
    both.fold(extra.tokens, extra.versions, np.full(500, -1, np.int8))
    assert both.same_as(whole)
    assert folded.same_as(whole)
    assert not SketchBank.build(rows, 8).same_as(whole)
    assert SketchBank.from_bytes(whole.to_bytes(), 7).same_as(whole)
    assert whole.nbytes == len(whole.to_bytes())
    with pytest.raises(ValueError, match="no sketch bank"):
        SketchBank.from_bytes(whole.to_bytes()[1:], 7)


@pytest.mark.parametrize("bits", range(9))
def test_the_sketch_of_a_node_is_that_of_its_rows(bits: int) -> None:
    rows = rows_of(2_000)
    bank = SketchBank.build(rows, 1)
    nodes = np.unique(np.random.default_rng(bits).integers(0, 1 << bits, 5))
    groups = (bucket_of(rows.tokens) >> (8 - bits)).astype(np.int64)
    keep = np.isin(groups, nodes)
    firsts = np.arange(len(nodes)) * 7
    lasts = firsts + 30
    direct = symbols_of(
        rows.tokens[keep],
        rows.versions[keep],
        groups=np.searchsorted(nodes, groups[keep]),
        firsts=firsts,
        lasts=lasts,
        epoch=1,
    )
    kept = bank.symbols(bits, nodes, firsts, lasts)
    assert equal(kept, direct)
    data = kept.encode(bits)
    assert len(data) == len(kept) * symbol_bytes(bits)
    assert Symbols.decode(data, len(kept), bits).encode(bits) == data
    with pytest.raises(ValueError, match="are not"):
        Symbols.decode(data, len(kept) + 1, bits)


@pytest.mark.parametrize(
    ("bits", "nodes", "firsts", "lasts"),
    [(9, [0], [0], [1]), (-1, [0], [0], [1]), (3, [8], [0], [1]), (0, [-1], [0], [1]), (0, [0], [0], [129]),
     (0, [0], [2], [1]), (0, [0], [-1], [1])],
)  # fmt: skip
def test_symbols_that_are_not_kept_are_refused(
    bits: int, nodes: list[int], firsts: list[int], lasts: list[int]
) -> None:
    with pytest.raises(ValueError, match=r"no nodes|beyond"):
        SketchBank(1).symbols(bits, indices(*nodes), indices(*firsts), indices(*lasts))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
@settings(max_examples=40, deadline=None)
def test_a_bank_restricted_to_a_range_is_that_of_its_rows(one: int, other: int) -> None:
    token_range = TokenRange(min(one, other), max(one, other))
    rows = rows_of(1_000)
    edges = SketchBank.edges(token_range)
    assert len(edges) <= 2

    def within(part: TokenRange) -> RowDigests:
        return rows.take((rows.tokens >= np.uint64(part.first)) & (rows.tokens <= np.uint64(part.last)))

    bank = SketchBank.build(rows, 1)
    before = bank.copy()
    restricted = bank.restricted(token_range, RowDigests.concatenate([within(part) for part in edges]))
    assert restricted.same_as(SketchBank.build(within(token_range), 1))
    assert bank.same_as(before)


@given(st.integers(0, 2**32), st.integers(0, 60), st.integers(0, 60), st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_any_difference_is_decoded_by_symbols_that_come_in_pieces(seed: int, mine: int, theirs: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    common, own, remote = rows_of(300, seed), rows_of(mine, seed + 1), rows_of(theirs, seed + 2)
    count = 1 << bits
    nodes = np.arange(count)

    def side(rows: RowDigests, first: int, last: int) -> Symbols:
        every = RowDigests.concatenate([common, rows])
        return symbols_of(
            every.tokens,
            every.versions,
            groups=(bucket_of(every.tokens) >> (8 - bits)).astype(np.int64),
            firsts=np.full(count, first),
            lasts=np.full(count, last),
            epoch=seed % 3,
        )

    decoder = SketchDecoder(bits, nodes, seed % 3)
    first = 0
    while not decoder.done.all():
        last = first + int(rng.integers(1, 20))
        assert last < 2_000
        there = side(remote, first, last).encode(bits)
        difference = side(own, first, last).minus(Symbols.decode(there, count * (last - first), bits))
        left = np.flatnonzero(~decoder.done)
        cells = (left[:, None] * (last - first) + np.arange(last - first)).ravel()
        decoder.add(left, np.full(len(left), last - first), difference.take(cells))
        first = last
    expected = {
        (token >> (64 - bits), token, version, sign)
        for rows, sign in ((own, 1), (remote, -1))
        for token, version in zip(rows.tokens.tolist(), rows.versions.tolist(), strict=True)
    }
    assert found(decoder) == expected
    assert not decoder.failed.any()


def test_estimates_are_near_whatever_the_number() -> None:
    for count in (300, 3_000, 30_000):
        rows = rows_of(count)
        signs = np.where(np.arange(count) % 3 == 0, 1, -1)
        symbols = symbols_of(
            rows.tokens, rows.versions, groups=np.zeros(count, np.int64), firsts=indices(0), lasts=indices(100),
            epoch=1, signs=signs,
        )  # fmt: skip
        decoder = SketchDecoder(0, indices(0), 1)
        decoder.add(indices(0), indices(100), symbols)
        assert not decoder.done[0]
        assert 0.4 * count < decoder.estimates()[0] < 2.0 * count


def test_a_row_that_is_there_twice_does_not_vanish() -> None:
    rows = rows_of(1)
    twice = RowDigests.concatenate([rows, rows])
    symbols = symbols_of(
        twice.tokens, twice.versions, groups=np.zeros(2, np.int64), firsts=indices(0), lasts=indices(50), epoch=1
    )
    decoder = SketchDecoder(0, indices(0), 1)
    decoder.add(indices(0), indices(50), symbols)
    assert not decoder.done[0]
    assert len(decoder.items) == 0


def random_symbols(count: int, seed: int) -> Symbols:
    rng = np.random.default_rng(seed)
    columns = rng.integers(0, 2**64, (3, count), dtype=np.uint64)
    return Symbols(columns[0], columns[1], columns[2])


def test_noise_is_never_done_and_costs_bounded_work() -> None:
    decoder = SketchDecoder(4, np.arange(16), 1)
    for _ in range(5):
        decoder.add(np.arange(16), np.full(16, 200), random_symbols(3_200, 1))
    assert not decoder.done.any()
    assert len(decoder.items) <= 16 * 1_000


def test_more_items_than_symbols_fail_the_sketch() -> None:
    """A peer that puts a different item of its own into every symbol, again and again."""
    rows = rows_of(50)
    single = [
        symbols_of(
            rows.tokens[i : i + 1], rows.versions[i : i + 1], groups=indices(0), firsts=indices(0), lasts=indices(1),
            epoch=1,
        )
        for i in range(50)
    ]  # fmt: skip
    forged = Symbols(
        np.concatenate([one.tokens for one in single]),
        np.concatenate([one.versions for one in single]),
        np.concatenate([one.marks for one in single]),
    )
    decoder = SketchDecoder(0, indices(0), 1)
    for _ in range(20):
        decoder.add(indices(0), indices(50), forged)
        if decoder.failed[0]:
            break
    assert not decoder.done[0]
    assert len(decoder.items) <= decoder.lengths[0]


def test_an_item_of_another_node_is_no_item() -> None:
    rows = rows_of(1, first=0, last=2**56)
    symbols = symbols_of(rows.tokens, rows.versions, groups=indices(0), firsts=indices(0), lasts=indices(4), epoch=1)
    for bits, node in ((8, 3), (3, 1)):
        decoder = SketchDecoder(bits, indices(node), 1)
        decoder.add(indices(0), indices(4), symbols)
        assert not decoder.done[0]
        assert not len(decoder.items)


def test_an_item_that_is_on_both_sides_at_once_fails_the_sketch() -> None:
    """Symbols that lay bare an item, and later its opposite, add up to nothing, but prove nothing."""
    rows = rows_of(1)
    one = symbols_of(rows.tokens, rows.versions, groups=indices(0), firsts=indices(0), lasts=indices(1), epoch=1)
    decoder = SketchDecoder(0, indices(0, 0), 1)
    decoder.add(indices(0), indices(2), Symbols(
        np.concatenate((one.tokens, -one.tokens)), np.concatenate((one.versions, -one.versions)),
        np.concatenate((one.marks, -one.marks)),
    ))  # fmt: skip
    assert not decoder.done[0]


def test_a_wrong_number_of_symbols_is_refused() -> None:
    with pytest.raises(ValueError, match="asked for"):
        SketchDecoder(0, indices(0), 1).add(indices(0), indices(2), Symbols.zero(3))
