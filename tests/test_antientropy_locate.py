"""Finding differences: equal to brute force for any rows, range and strategy; a hostile peer gets nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from antientropy.core import glance as glance_module
from antientropy.core import listing, locate, peeling, sketch_search, tree_search
from antientropy.core.glance import GLANCE_BYTES
from antientropy.core.listing import list_rows
from antientropy.core.locate import Glance, LocateAnswer, LocateRequest, Locator, glance
from antientropy.core.merkle import HashTree
from antientropy.core.reconcile import Difference, difference
from antientropy.core.requests import HashesAnswer, HashesRequest, RowsAnswer, RowsRequest, SymbolsRequest
from antientropy.core.rows import RowDigests
from antientropy.core.sketch import SketchBank, Symbols, mix
from antientropy.core.tokens import TOKEN_MAX, TokenRange
from antientropy.errors import PeerMessageError
from antientropy.options import Strategy

STRATEGIES = list(Strategy)


@dataclass
class Replica:
    """Rows in memory, searched in a range."""

    all_rows: RowDigests
    token_range: TokenRange = field(default_factory=TokenRange.full)
    depth: int | None = None
    epoch: int = 1
    chunk: int = 16_384

    def __post_init__(self) -> None:
        order = np.lexsort((self.all_rows.versions, self.all_rows.tokens))
        self.all_rows = self.all_rows.take(order)
        tree = HashTree.build(self.all_rows, self.depth)
        self.tree = tree.restricted(self.token_range, self.read(tree.edges(self.token_range)))
        bank = SketchBank.build(self.all_rows, self.epoch)
        self.sketch = bank.restricted(self.token_range, self.read(bank.edges(self.token_range)))

    def read(self, ranges: Sequence[TokenRange]) -> RowDigests:
        return RowDigests.concatenate([*self.digests(ranges)])

    def digests(self, ranges: Sequence[TokenRange]) -> Iterator[RowDigests]:
        tokens = self.all_rows.tokens
        for one in ranges:
            first = int(np.searchsorted(tokens, np.uint64(one.first)))
            last = int(np.searchsorted(tokens, np.uint64(one.last), "right"))
            for start in range(first, last, self.chunk):
                yield self.all_rows.take(slice(start, min(last, start + self.chunk)))

    @property
    def rows(self) -> RowDigests:
        return self.read([self.token_range])


def random_rows(count: int, seed: int) -> RowDigests:
    rng = np.random.default_rng(seed)
    tokens = np.unique(rng.integers(0, 2**64, count, dtype=np.uint64))
    versions = rng.integers(2**50, 2**51, len(tokens), dtype=np.uint64)
    return RowDigests(tokens, versions, rng.integers(1, 2**64, (len(tokens), 2), dtype=np.uint64))


def updated(rows: RowDigests, where: slice | NDArray[np.bool_], by: int) -> RowDigests:
    versions, digests = rows.versions.copy(), rows.digests.copy()
    versions[where] += np.uint64(by)
    # Not linear: changes of several rows must not cancel out in the XOR of a tree node.
    digests[where] = mix(digests[where] + np.uint64(by + 1))
    return RowDigests(rows.tokens, versions, digests)


def diverged(count: int, seed: int, share: float) -> tuple[RowDigests, RowDigests]:
    """Two sides of which a share of rows is missing on one, newer on one, or in conflict."""
    rng = np.random.default_rng(seed)
    rows = random_rows(count, seed)
    fate = np.where(rng.random(len(rows)) < share, rng.integers(0, 4, len(rows)), 9)
    own = updated(rows, fate == 2, 5)
    remote = updated(rows, fate == 3, 7)
    return own.take(fate != 0), remote.take(fate != 1)


def search(
    own: Replica, remote: Replica, strategy: Strategy = Strategy.AUTO, *, with_first: bool = True, rows_max: int = 10**6
) -> Locator:
    """The whole conversation, over the bytes of all messages."""
    first = Glance.decode(glance(remote).encode()) if with_first else None
    locator = Locator(
        own, remote_count=remote.tree.root.count, first=first, strategy=strategy, salt=77, rows_max=rows_max
    )
    while (request := locator.next_request()) is not None:
        arrived = LocateRequest.decode(request.encode())
        assert request.nbytes == len(arrived.encode())
        answer = locate.answer(arrived, remote)
        locator.feed(LocateAnswer.decode(answer.encode(arrived), request))
    return locator


def outcome(found: Difference) -> tuple[list[int], list[int], list[int]]:
    return found.fetch_tokens.tolist(), found.push_tokens.tolist(), found.colliding.tolist()


def check(own: Replica, remote: Replica, locator: Locator) -> None:
    expected = difference(own.rows, remote.rows)
    found = locator.difference
    assert outcome(found) == outcome(expected)
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.local.versions.tolist() == expected.local.versions.tolist()
    assert found.local.digests.tolist() == expected.local.digests.tolist()
    assert found.remote.versions.tolist() == expected.remote.versions.tolist()
    assert not locator.unexplained
    assert locator.complete_to == TOKEN_MAX
    assert sum(locator.found_by.values()) == len(expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("share", [0.0005, 0.02, 0.3, 1.0])
def test_every_strategy_finds_what_brute_force_finds(strategy: Strategy, share: float) -> None:
    own, remote = (Replica(rows) for rows in diverged(8_000, int(share * 1e4), share))
    locator = search(own, remote, strategy)
    check(own, remote, locator)


@given(
    st.integers(0, 2**32),
    st.integers(0, 700),
    st.sampled_from([0.0, 0.003, 0.05, 0.5]),
    st.sampled_from(STRATEGIES),
    st.tuples(st.integers(0, TOKEN_MAX), st.integers(0, TOKEN_MAX), st.booleans()),
    st.tuples(st.sampled_from([None, 1, 2, 3]), st.sampled_from([None, 1, 2, 4]), st.booleans()),
)
@settings(max_examples=150, deadline=None)
def test_any_rows_in_any_range(
    seed: int,
    count: int,
    share: float,
    strategy: Strategy,
    ends: tuple[int, int, bool],
    how: tuple[int | None, int | None, bool],
) -> None:
    token_range = TokenRange.full() if ends[2] else TokenRange(min(ends[:2]), max(ends[:2]))
    mine, theirs = diverged(count, seed, share)
    own = Replica(mine, token_range, depth=how[0], chunk=50)
    remote = Replica(theirs, token_range, depth=how[1], chunk=70)
    check(own, remote, search(own, remote, strategy, with_first=how[2]))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("mine", "theirs"), [(0, 900), (900, 0), (1, 0), (0, 1), (0, 0)])
def test_one_side_is_empty(strategy: Strategy, mine: int, theirs: int) -> None:
    own, remote = Replica(random_rows(mine, 1)), Replica(random_rows(theirs, 2))
    locator = search(own, remote, strategy)
    check(own, remote, locator)
    if not theirs and strategy is Strategy.AUTO and mine:
        assert not locator.requests


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("conflicts", [1, 40])
def test_equal_versions_with_different_content_are_found_by_their_digests(strategy: Strategy, conflicts: int) -> None:
    rows = random_rows(3_000, 1)
    own, remote = Replica(rows), Replica(updated(rows, slice(0, conflicts), 0))
    locator = search(own, remote, strategy)
    check(own, remote, locator)
    assert (locator.difference.remote.digests != 0).all()
    assert locator.found_by == {Strategy.DESCENT: conflicts}


def test_conflicts_beside_other_differences_are_found_in_the_next_pass() -> None:
    rows = random_rows(3_000, 1)
    own, remote = Replica(rows), Replica(updated(updated(rows, slice(0, 9), 0), slice(100, 120), 3))
    first = search(own, remote)
    assert first.difference.fetch_tokens.tolist() == rows.tokens[100:120].tolist()
    repaired = Replica(updated(rows, slice(100, 120), 3))
    check(repaired, remote, search(repaired, remote))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tokens_shared_by_several_keys_are_set_apart(strategy: Strategy) -> None:
    """The same rows but at some tokens: two rows here and one there, two on each side with one in common, ..."""
    rows = random_rows(2_000, 1)
    extra = rows.take(np.arange(0, 12))
    other = updated(extra, slice(None), 3)
    third = updated(extra, slice(None), 9)
    mine = RowDigests.concatenate([rows, other.take(slice(0, 9))])
    theirs = RowDigests.concatenate([rows, other.take(slice(3, 6)), third.take(slice(6, 12))])
    own, remote = Replica(mine), Replica(theirs)
    locator = search(own, remote, strategy)
    found = locator.difference
    # 0-2: two here, one there; 3-5: equal; 6-8: two on each side, one in common; 9-11: one here, two there.
    assert sorted([*found.tokens.tolist(), *found.colliding.tolist()]) == np.delete(extra.tokens, [3, 4, 5]).tolist()
    assert found.colliding.tolist() == np.delete(extra.tokens, [3, 4, 5]).tolist()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_that_differ_in_their_number_only(strategy: Strategy) -> None:
    """Two keys with one token and one version, of which the other side has one: no sketch decodes that twofold item."""
    rows = random_rows(500, 1)
    twin = updated(rows.take(np.arange(3)), slice(None), 0)
    own, remote = Replica(RowDigests.concatenate([rows, twin, twin])), Replica(rows)
    found = search(own, remote, strategy).difference
    assert found.colliding.tolist() == rows.tokens[:3].tolist()
    assert not len(found.tokens)


def test_all_tokens_in_one_place() -> None:
    """Tokens cut to one byte: whatever strategy, all that differs is among the colliding."""
    rows = random_rows(600, 1)
    cut = RowDigests(rows.tokens >> np.uint64(62), rows.versions, rows.digests)
    for strategy in STRATEGIES:
        own, remote = Replica(cut), Replica(updated(cut, slice(100, 130), 4))
        found = search(own, remote, strategy).difference
        changed = set(own.all_rows.tokens[[*range(100, 130)]].tolist())
        assert changed <= set(found.colliding.tolist()) <= set(cut.tokens.tolist())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_too_much_for_one_pass_ends_early_and_is_complete_up_to_there(strategy: Strategy) -> None:
    mine, theirs = diverged(80_000, 5, 0.5)
    own, remote = Replica(mine), Replica(theirs)
    every = difference(own.rows, remote.rows)
    locator = search(own, remote, strategy, rows_max=1_000)
    found = locator.difference
    if strategy is Strategy.DESCENT:
        # One answer brings more than that.
        assert outcome(found) == outcome(every.up_to(locator.complete_to))
        return
    assert locator.complete_to < TOKEN_MAX
    assert outcome(found) == outcome(every.up_to(locator.complete_to))
    assert len(found) > 0


def repaired(own: RowDigests, remote: RowDigests, found: Difference) -> tuple[RowDigests, RowDigests]:
    """Both sides after the rows of a difference have moved; at colliding tokens both get all rows."""

    def without(rows: RowDigests, tokens: NDArray[np.uint64]) -> RowDigests:
        return rows.take(~np.isin(rows.tokens, tokens))

    def at(rows: RowDigests, tokens: NDArray[np.uint64]) -> RowDigests:
        return rows.take(np.isin(rows.tokens, tokens))

    fetched, pushed, shared = found.fetch_tokens, found.push_tokens, found.colliding
    every = sorted(
        {
            (token, version, high, low)
            for rows in (at(own, shared), at(remote, shared))
            for token, version, (high, low) in zip(
                rows.tokens.tolist(), rows.versions.tolist(), rows.digests.tolist(), strict=True
            )
        }
    )
    columns = np.array(every, np.uint64).reshape(-1, 4)
    both = RowDigests(columns[:, 0], columns[:, 1], columns[:, 2:])
    moved = np.concatenate((fetched, shared)), np.concatenate((pushed, shared))
    return (
        RowDigests.concatenate([without(own, moved[0]), at(remote, fetched), both]),
        RowDigests.concatenate([without(remote, moved[1]), at(own, pushed), both]),
    )


@given(
    st.integers(0, 2**32),
    st.sampled_from([0.01, 0.2, 1.0]),
    st.integers(0, 30),
    st.integers(0, 12),
    st.sampled_from(STRATEGIES),
    st.sampled_from([3, 40, 10**6]),
    st.sampled_from([2, 50]),
)
@settings(max_examples=80, deadline=None)
def test_passes_end_with_equal_rows(
    seed: int, share: float, conflicts: int, twins: int, strategy: Strategy, rows_max: int, page: int
) -> None:
    """Missing and updated rows, conflicts and keys that share tokens, in passes of few rows: each makes progress."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "ROWS_LISTED_PER_ANSWER_MAX", page)
        mine, theirs = diverged(400, seed, share)
        rng = np.random.default_rng(seed)
        chosen = rng.random(len(theirs)) < conflicts / 400
        theirs = updated(theirs, chosen, 0)
        extra = mine.take(rng.choice(max(len(mine), 1), min(twins, len(mine)), replace=False))
        mine = RowDigests.concatenate([mine, updated(extra, slice(None), 3)])
        for _ in range(400):
            own, remote = Replica(mine), Replica(theirs)
            if own.tree.root == remote.tree.root:
                break
            locator = search(own, remote, strategy, rows_max=rows_max)
            assert not locator.unexplained
            found = locator.difference
            assert len(found)
            mine, theirs = repaired(own.all_rows, remote.all_rows, found)
        assert Replica(mine).tree.root == Replica(theirs).tree.root


def test_the_strategy_is_chosen_by_bytes() -> None:
    few, many = diverged(20_000, 1, 0.01), diverged(20_000, 2, 0.95)
    assert set(search(Replica(few[0]), Replica(few[1])).found_by) == {Strategy.SKETCH}
    assert set(search(Replica(many[0]), Replica(many[1])).found_by) == {Strategy.ROWS}
    # All differences in one bucket: its rows are listed, the other buckets are done by sketches.
    rows = random_rows(60_000, 3)
    hole = rows.take(rows.tokens >> np.uint64(56) != 9)
    assert Strategy.ROWS in search(Replica(rows), Replica(hole)).found_by


def test_a_tree_that_lies_is_told() -> None:
    rows = random_rows(1_000, 1)
    own, remote = Replica(rows), Replica(rows)
    remote.tree = HashTree.build(updated(rows, slice(4, 5), 0))
    for strategy in STRATEGIES:
        locator = search(own, remote, strategy)
        assert locator.unexplained
        assert not len(locator.difference)


# --- a peer that errs or lies ---


def noise(count: int, seed: int = 1) -> Symbols:
    columns = np.random.default_rng(seed).integers(0, 2**64, (3, count), dtype=np.uint64)
    return Symbols(columns[0], columns[1], columns[2])


@pytest.mark.parametrize("strategy", [Strategy.AUTO, Strategy.SKETCH])
def test_symbols_of_noise_end_in_other_ways(strategy: Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sketches that find no end are left: the rows, or the trees, tell."""
    monkeypatch.setattr(sketch_search, "SYMBOLS_PER_SKETCH_MAX", 200)
    own, remote = (Replica(rows) for rows in diverged(2_000, 5, 0.05))
    first = Glance.decode(np.random.default_rng(1).bytes(GLANCE_BYTES))
    locator = Locator(own, remote_count=remote.tree.root.count, first=first, strategy=strategy)
    while (request := locator.next_request()) is not None:
        answer = locate.answer(request, remote)
        if answer.symbols is not None:
            answer = replace(answer, symbols=noise(len(answer.symbols), locator.requests))
        locator.feed(answer)
    assert outcome(locator.difference) == outcome(difference(own.rows, remote.rows))
    assert locator.requests < 100


@pytest.mark.parametrize("lie", ["an own row that is none", "a remote row that is an own one"])
def test_items_that_cannot_be_are_not_believed(lie: str) -> None:
    """Symbols that are in themselves consistent, of items that contradict the own rows."""
    own, remote = (Replica(rows) for rows in diverged(2_000, 5, 0.001))
    forged = remote.sketch.copy()
    if lie == "an own row that is none":
        stranger = random_rows(1, 99)
        forged.fold(stranger.tokens, stranger.versions, np.array([-1], np.int8))
    else:
        common = own.all_rows.take(~np.isin(own.all_rows.tokens, difference(own.rows, remote.rows).tokens))
        forged.fold(common.tokens[:1], common.versions[:1], np.array([1], np.int8))
    liar = replace(remote)
    liar.sketch = forged
    locator = Locator(own, remote_count=remote.tree.root.count, first=glance(liar))
    while (request := locator.next_request()) is not None:
        locator.feed(locate.answer(request, liar))
    assert outcome(locator.difference) == outcome(difference(own.rows, remote.rows))
    assert Strategy.DESCENT in locator.found_by


@pytest.mark.parametrize("check_bits", [0, 2, 5, 8])
def test_checks_that_fit_by_chance_never_make_a_wrong_result(check_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks cut to a few bits: mixtures are taken for items all the time, the result is the same."""
    for module in (peeling, glance_module):
        monkeypatch.setattr(module, "MARK_MASK", np.uint64(2 ** (16 + check_bits) - 1))
    monkeypatch.setattr(sketch_search, "SYMBOLS_PER_SKETCH_MAX", 300)
    ways: set[Strategy] = set()
    for seed in range(12):
        own, remote = (Replica(rows) for rows in diverged(1_500, seed, 0.03))
        locator = search(own, remote, Strategy.SKETCH)
        check(own, remote, locator)
        ways |= set(locator.found_by)
    assert Strategy.DESCENT in ways or check_bits > 2


def test_hashes_that_always_differ_come_to_an_end() -> None:
    own = remote = Replica(random_rows(3_000, 1), depth=3)
    locator = Locator(own, remote_count=3_000, strategy=Strategy.DESCENT)
    while (request := locator.next_request()) is not None:
        answer = locate.answer(request, remote)
        if answer.hashes is not None and request.hashes is not None:
            level, count = request.hashes.level, len(request.hashes.nodes)
            hashes = np.random.default_rng(1).integers(0, 2**32, (count * 16 * (level < 2), 16), dtype=np.uint32)
            page = list_rows(remote, 4 * level, request.hashes.nodes, 0)
            answer = LocateAnswer(
                hashes=HashesAnswer(3, np.full(count, 0xFFFF, np.uint16), hashes),
                leaves=None if level < 2 else RowsAnswer(page.rows, page.last),
            )
        locator.feed(answer)
    assert locator.unexplained
    assert not len(locator.difference)


def test_a_peer_that_leads_on_for_ever_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "LOCATE_REQUESTS_MAX", 3)
    own, remote = (Replica(rows) for rows in diverged(3_000, 1, 0.3))
    with pytest.raises(PeerMessageError, match="3 answers"):
        search(own, remote, Strategy.SKETCH)


def first_request(strategy: Strategy) -> tuple[Locator, LocateRequest, LocateAnswer]:
    own, remote = (Replica(rows) for rows in diverged(3_000, 1, 0.1))
    locator = Locator(own, remote_count=remote.tree.root.count, strategy=strategy)
    request = locator.next_request()
    assert request is not None
    return locator, request, locate.answer(request, remote)


def test_answers_that_do_not_fit_are_refused() -> None:
    for strategy in STRATEGIES:
        locator, _, _ = first_request(strategy)
        with pytest.raises(PeerMessageError, match="lacks"):
            locator.feed(LocateAnswer())
    locator, _, _ = first_request(Strategy.SKETCH)
    with pytest.raises(PeerMessageError, match="lacks"):
        locator.feed(LocateAnswer(symbols=Symbols.zero(3)))
    locator, _, answer = first_request(Strategy.DESCENT)
    assert answer.hashes is not None
    with pytest.raises(PeerMessageError, match="number of hashes"):
        locator.feed(replace(answer, hashes=replace(answer.hashes, hashes=answer.hashes.hashes[1:])))
    locator, _, answer = first_request(Strategy.DESCENT)
    assert answer.hashes is not None
    with pytest.raises(PeerMessageError, match="number of nodes"):
        locator.feed(replace(answer, hashes=replace(answer.hashes, masks=np.zeros(2, np.uint16))))


@pytest.mark.parametrize(
    ("tokens", "last", "match"),
    [([5, 4], TOKEN_MAX, "out of order"), ([4, 9], 8, "out of order"), ([2**63], TOKEN_MAX, "outside")],
)
def test_rows_that_were_not_asked_for_are_refused(tokens: list[int], last: int, match: str) -> None:
    own = Replica(random_rows(50, 1))
    search_of_tree = tree_search.TreeSearch(own, salt=1, rows_max=100)
    search_of_tree.list_nodes(4, np.array([0, 1]))
    assert search_of_tree.request_rows() is not None
    count = len(tokens)
    rows = RowDigests(np.array(tokens, np.uint64), np.zeros(count, np.uint64), np.zeros((count, 2), np.uint64))
    with pytest.raises(PeerMessageError, match=match):
        search_of_tree.feed_rows(RowsAnswer(rows, last))


def test_rows_that_end_before_they_begin_are_refused() -> None:
    own = Replica(random_rows(50, 1))
    search_of_tree = tree_search.TreeSearch(own, salt=1, rows_max=100)
    search_of_tree.list_nodes(4, np.array([0, 1]))
    search_of_tree.request_rows()
    search_of_tree.feed_rows(RowsAnswer(RowDigests.empty(), 100))
    request = search_of_tree.request_rows()
    assert request is not None
    assert request.token == 101
    with pytest.raises(PeerMessageError, match="before they begin"):
        search_of_tree.feed_rows(RowsAnswer(RowDigests.empty(), 100))


def test_misuse_is_told() -> None:
    own = Replica(random_rows(50, 1))
    locator = Locator(own, remote_count=5)
    with pytest.raises(RuntimeError, match="nothing was asked"):
        locator.feed(LocateAnswer())
    locator.next_request()
    with pytest.raises(RuntimeError, match="not been answered"):
        locator.next_request()


REQUESTS = [
    LocateRequest(symbols=SymbolsRequest(3, np.array([1, 5]), np.array([0, 7]), np.array([4, 300]))),
    LocateRequest(
        hashes=HashesRequest(1, 4, 9, np.array([0, 3]), np.arange(32, dtype=np.uint32).reshape(2, 16), True),
        rows=RowsRequest(20, np.array([1, 2**20 - 1]), 2**64 - 1, False),
    ),
    LocateRequest(rows=RowsRequest(0, np.array([0]), 0, True)),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_requests_survive_their_bytes(request_: LocateRequest) -> None:
    data = request_.encode()
    again = LocateRequest.decode(data)
    assert again.encode() == data
    for part, other in (
        (request_.symbols, again.symbols),
        (request_.rows, again.rows),
        (request_.hashes, again.hashes),
    ):
        assert (part is None) == (other is None)
        if part is not None and other is not None:
            assert part.nodes.tolist() == other.nodes.tolist()


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_cut_short_or_too_long_is_refused(request_: LocateRequest) -> None:
    data = request_.encode()
    for end in range(len(data)):
        with pytest.raises(PeerMessageError):
            LocateRequest.decode(data[:end])
    with pytest.raises(PeerMessageError, match="at its end"):
        LocateRequest.decode(data + b"\0")


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_good_request_or_refused(data: bytes) -> None:
    try:
        request = LocateRequest.decode(data)
    except PeerMessageError:
        return
    remote = Replica(random_rows(20, 1))
    try:
        answer = locate.answer(request, remote)
    except PeerMessageError:
        return
    assert LocateAnswer.decode(answer.encode(request), request).encode(request) == answer.encode(request)


@given(st.integers(0, 2), st.data())
@settings(max_examples=200, deadline=None)
def test_any_damaged_answer_is_a_good_one_or_refused(which: int, data: st.DataObject) -> None:
    """Whatever arrives: the search goes on, or says what is wrong; it never fails otherwise."""
    strategy = [Strategy.SKETCH, Strategy.DESCENT, Strategy.ROWS][which]
    own, remote = (Replica(rows) for rows in diverged(200, 1, 0.1))
    locator = Locator(own, remote_count=remote.tree.root.count, strategy=strategy)
    for _ in range(6):
        request = locator.next_request()
        if request is None:
            break
        good = bytearray(locate.answer(request, remote).encode(request))
        for _ in range(data.draw(st.integers(0, 2))):
            good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
        try:
            locator.feed(LocateAnswer.decode(bytes(good), request))
        except PeerMessageError:
            return


@pytest.mark.parametrize(
    "request_",
    [
        LocateRequest(symbols=SymbolsRequest(8, np.arange(256), np.zeros(256, np.int64), np.full(256, 500))),
        LocateRequest(symbols=SymbolsRequest(0, np.array([0]), np.array([16_000]), np.array([17_000]))),
        LocateRequest(rows=RowsRequest(12, np.arange(4_097) % 4_096, 0, False)),
        LocateRequest(rows=RowsRequest(4, np.array([3, 3]), 0, False)),
        LocateRequest(rows=RowsRequest(4, np.array([16]), 0, False)),
        LocateRequest(rows=RowsRequest(24, np.array([16]), 0, False)),
        LocateRequest(hashes=HashesRequest(4, 4, 0, np.array([1]), np.zeros((1, 16), np.uint32), False)),
        LocateRequest(hashes=HashesRequest(4, 9, 0, np.array([1]), np.zeros((1, 16), np.uint32), False)),
        LocateRequest(hashes=HashesRequest(3, 5, 0, np.arange(1_025), np.zeros((1_025, 16), np.uint32), False)),
        LocateRequest(),
    ],
)
def test_requests_beyond_a_limit_are_refused(request_: LocateRequest) -> None:
    with pytest.raises(PeerMessageError):
        LocateRequest.decode(request_.encode())


@pytest.mark.parametrize("kind", ["missing here", "missing there", "older here", "older there"])
def test_one_row_is_found_by_the_first_look_alone(kind: str) -> None:
    """Nothing is asked: but for one updated row in two hundred, whose two items are never apart in it."""
    asked = 0
    for seed in range(60):
        rows = random_rows(500, seed)
        at = slice(7 * seed, 7 * seed + 1)
        there = updated(rows, at, 3)
        one = rows.take(np.arange(500) != 7 * seed)
        own, remote = {
            "missing here": (one, rows),
            "missing there": (rows, one),
            "older here": (rows, there),
            "older there": (there, rows),
        }[kind]
        locator = search(Replica(own), Replica(remote))
        check(Replica(own), Replica(remote), locator)
        asked += locator.requests
    assert asked <= 4 if kind.startswith("older") else asked == 0


def test_a_first_look_that_fits_by_chance_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks cut to nothing: whatever is left of the first symbol looks like one row."""
    for module in (peeling, glance_module):
        monkeypatch.setattr(module, "MARK_MASK", np.uint64(2**16 - 1))
    for seed in range(40):
        rows = random_rows(400, seed)
        own, remote = Replica(rows.take(slice(3, None))), Replica(rows.take(slice(0, 398)))
        check(own, remote, search(own, remote))
