"""Reconciliation: goal - exactly the rows that differ, each copied once to each replica that lacks it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antientropy.core.merge import TokenMerge
from antientropy.core.plan import plan_repair
from antientropy.core.reconcile import Difference, difference
from antientropy.core.rows import Row, RowDigests
from antientropy.core.tokens import TOKEN_MAX
from antientropy.errors import PeerMessageError

State = tuple[int, bytes]
#: A replica: at most one row (version, digest) at a token.
replica = st.dictionaries(
    st.integers(0, 12),
    st.tuples(st.integers(0, 3), st.sampled_from([b"\x00" * 16, b"\x00" * 15 + b"\x01", b"\x80" + b"\x00" * 15])),
)
#: Rows with shared tokens.
crowd = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 2), st.sampled_from([b"\x01" * 16, b"\x02" * 16])),
    max_size=8,
    unique=True,
)


def columns(rows: dict[int, State]) -> RowDigests:
    tokens = sorted(rows)
    return RowDigests.of(tokens, [rows[token][0] for token in tokens], [rows[token][1] for token in tokens])


def rows_of(rows: list[tuple[int, int, bytes]]) -> RowDigests:
    rows = sorted(rows, key=lambda row: row[0])
    return RowDigests.of([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])


@given(replica, replica)
def test_difference_against_brute_force(local: dict[int, State], remote: dict[int, State]) -> None:
    found = difference(columns(local), columns(remote))
    tokens = sorted(local.keys() | remote.keys())
    missing = (-1, b"")
    assert found.tokens.tolist() == [token for token in tokens if local.get(token) != remote.get(token)]
    assert found.fetch_tokens.tolist() == [t for t in tokens if remote.get(t, missing) > local.get(t, missing)]
    assert found.push_tokens.tolist() == [t for t in tokens if local.get(t, missing) > remote.get(t, missing)]
    assert not len(found.colliding)


@given(crowd, crowd)
def test_tokens_shared_by_keys_are_set_apart(
    local: list[tuple[int, int, bytes]], remote: list[tuple[int, int, bytes]]
) -> None:
    found = difference(rows_of(local), rows_of(remote))
    for token in range(5):
        here = sorted(row for row in local if row[0] == token)
        there = sorted(row for row in remote if row[0] == token)
        shared = len(here) > 1 or len(there) > 1
        assert (token in found.colliding.tolist()) is (shared and here != there)
        assert (token in found.tokens.tolist()) is (not shared and here != there)
    assert len(found) == len(found.tokens) + len(found.colliding)


@given(replica, st.lists(replica, min_size=1, max_size=4))
def test_plan_makes_all_replicas_equal_with_the_fewest_copies(
    local: dict[int, State], peers: list[dict[int, State]]
) -> None:
    plan = plan_repair([difference(columns(local), columns(peer)) for peer in peers])
    replicas = [local, *peers]
    tokens = sorted(set().union(*replicas))
    winners = {token: max(one[token] for one in replicas if token in one) for token in tokens}
    copies = 0
    after = [dict(one) for one in replicas]
    for number, part in enumerate(plan.pairs, start=1):
        for token in part.fetch_tokens.tolist():
            copies += 1
            assert replicas[0].get(token) != winners[token]
            after[0][token] = replicas[number][token]
    for number, part in enumerate(plan.pairs, start=1):
        for token in part.push_tokens.tolist():
            copies += 1
            assert replicas[number].get(token) != winners[token], "pushed to a replica that has it"
            after[number][token] = after[0][token]
    assert all(one == winners for one in after)
    lacking = sum(one.get(token) != winners[token] for one, token in product(replicas, tokens))
    assert copies == plan.rows_optimal == lacking
    assert plan.rows_differing == len([t for t in tokens if any(one.get(t) != winners[t] for one in replicas)])


def test_a_token_that_collides_in_one_pair_is_no_plain_token_of_another() -> None:
    one, two = (1, b"\x01" * 16), (2, b"\x02" * 16)
    local = columns({5: one, 9: one})
    crowded = rows_of([(5, *one), (5, *two), (9, *one)])
    plan = plan_repair([difference(local, crowded), difference(local, columns({5: two, 9: two}))])
    assert plan.colliding_tokens.tolist() == [5]
    assert [part.colliding_tokens.tolist() for part in plan.pairs] == [[5], [5]]
    assert [part.fetch_tokens.tolist() for part in plan.pairs] == [[], [9]]
    assert [part.push_tokens.tolist() for part in plan.pairs] == [[9], []]
    assert (plan.rows_differing, plan.rows_optimal) == (2, 2)


def test_plan_of_no_pairs() -> None:
    plan = plan_repair([])
    assert (plan.pairs, plan.rows_differing, plan.rows_optimal) == ([], 0, 0)


def test_a_difference_that_was_not_changed_is_recognised() -> None:
    one, two = (1, b"\x01" * 16), (2, b"\x02" * 16)
    before = difference(columns({1: one, 2: one, 3: one}), columns({1: two, 2: two}))
    after = difference(columns({1: one, 2: two, 3: one}), columns({1: two, 3: two}))
    assert before.repeated_in(after).tolist() == [1]
    assert before.up_to(1).tokens.tolist() == [1]
    assert before.without(np.array([1, 3], np.uint64)).tokens.tolist() == [2]
    assert Difference.concatenate([before.up_to(1), before.without(before.up_to(1).tokens)]).tokens.tolist() == [
        1,
        2,
        3,
    ]
    assert len(Difference.concatenate([])) == 0


# --- last write wins ---

versions = st.integers(0, 2)
rows = st.one_of(
    st.builds(Row, key=st.just(b"k"), version=versions, value=st.binary(max_size=1)),
    st.builds(Row, key=st.just(b"k"), version=versions, value=st.just(b""), deleted=st.just(True)),
)


def merged(*candidates: Row) -> Row:
    winner = candidates[0]
    for candidate in candidates[1:]:
        winner = candidate if candidate.wins_over(winner) else winner
    return winner


@given(rows, rows, rows)
def test_last_write_wins_is_total_idempotent_commutative_and_associative(one: Row, two: Row, three: Row) -> None:
    assert (one == two) is not (one.wins_over(two) != two.wins_over(one))
    assert merged(one, one) == one
    assert merged(one, two) == merged(two, one)
    assert merged(merged(one, two), three) == merged(one, merged(two, three))


@given(st.binary(max_size=3), versions)
def test_a_deletion_wins_a_tie(value: bytes, version: int) -> None:
    assert Row(b"k", version, b"", deleted=True).wins_over(Row(b"k", version, value))
    assert Row(b"k", version + 1, value).wins_over(Row(b"k", version, b"", deleted=True))


# --- merging two streams ---


def chunked(rows: RowDigests, size: int) -> list[RowDigests]:
    return [rows.take(slice(at, at + size)) for at in range(0, len(rows), size)]


@given(crowd, crowd, st.integers(1, 3), st.integers(1, 3))
def test_merging_in_step_gives_complete_parts_in_order(
    local: list[tuple[int, int, bytes]], remote: list[tuple[int, int, bytes]], local_size: int, remote_size: int
) -> None:
    here, there = rows_of(local), rows_of(remote)
    feeds = {"local": chunked(here, local_size), "remote": chunked(there, remote_size)}
    merge = TokenMerge()
    parts = []
    while side := merge.needs:
        chunk = feeds[side].pop(0) if feeds[side] else None
        (merge.feed_local if side == "local" else merge.feed_remote)(chunk)
        parts.append(merge.take())
    assert [part[2] for part in parts] == sorted(part[2] for part in parts)
    assert parts[-1][2] == TOKEN_MAX
    whole = difference(here, there)
    pieces = Difference.concatenate([difference(one, other) for one, other, _ in parts])
    assert (pieces.tokens == whole.tokens).all()
    assert (pieces.colliding == whole.colliding).all()
    assert RowDigests.concatenate([part[0] for part in parts]).tokens.tolist() == here.tokens.tolist()


def test_a_peer_out_of_order_is_refused() -> None:
    merge = TokenMerge()
    merge.feed_remote(rows_of([(7, 1, b"\x01" * 16)]))
    with pytest.raises(PeerMessageError, match="order"):
        merge.feed_remote(rows_of([(6, 1, b"\x01" * 16)]))


def test_endless_rows_at_one_token_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antientropy.core.merge.DIGESTS_PER_CHUNK_MAX", 2)
    merge = TokenMerge()
    merge.feed_remote(rows_of([(7, 1, b"\x01" * 16), (7, 2, b"\x01" * 16)]))
    with pytest.raises(PeerMessageError, match="at one token"):
        merge.feed_remote(rows_of([(7, 3, b"\x01" * 16)]))
