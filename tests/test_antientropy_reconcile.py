"""Reconciliation: goal - exactly the rows that differ, each copied once to each replica that lacks it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from antientropy.core.reconcile import Difference, difference
from antientropy.core.rows import Row, RowDigests

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
