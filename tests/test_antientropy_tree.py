"""The hash tree: goal - equal rows have equal trees in any order and history, and any single difference is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from antientropy.core import hashing
from antientropy.core.merkle import EMPTY_ROOT, FAN_OUT, HashTree, depth_for, differing_leaves, outgrown
from antientropy.core.rows import Changes, Row, RowDigests
from antientropy.core.tokens import TOKEN_MAX, TokenRange, covering, node_range, node_ranges

rows_strategy = st.lists(
    st.builds(
        Row,
        key=st.binary(min_size=1, max_size=6),
        version=st.integers(0, 2**64 - 1),
        value=st.binary(max_size=6),
    ),
    max_size=60,
    unique_by=lambda row: row.key,
)
depths = st.integers(1, 4)


def columns(rows: list[Row]) -> RowDigests:
    return RowDigests.of([row.token for row in rows], [row.version for row in rows], [row.digest for row in rows])


def ordered(rows: list[Row]) -> RowDigests:
    return columns(sorted(rows, key=lambda row: (row.token, row.key)))


@given(rows_strategy, depths, st.randoms(use_true_random=False))
def test_equal_rows_in_any_order_make_equal_trees(rows: list[Row], depth: int, random) -> None:  # type: ignore[no-untyped-def]  # hypothesis' Random
    shuffled = list(rows)
    random.shuffle(shuffled)
    one, other = HashTree.build(columns(rows), depth), HashTree.build(columns(shuffled), depth)
    assert one.same_as(other)
    assert one.root == other.root
    assert one.root.count == len(rows)


@given(rows_strategy.filter(len), depths, depths, st.data())
def test_any_single_difference_is_found_at_any_depths(
    rows: list[Row], depth: int, other_depth: int, data: st.DataObject
) -> None:
    """Methods of difference: a changed version, a changed value, a tombstone, a missing row."""
    at = data.draw(st.integers(0, len(rows) - 1))
    row = rows[at]
    changed = data.draw(
        st.sampled_from(
            [
                [Row(row.key, row.version ^ 1, row.value)],
                [Row(row.key, row.version, row.value + b"!")],
                [Row(row.key, row.version, b"", deleted=True)],
                [],
            ]
        )
    )
    one = HashTree.build(columns(rows), depth)
    other = HashTree.build(columns(rows[:at] + changed + rows[at + 1 :]), other_depth)
    level, leaves = differing_leaves(one, other)
    assert level == min(depth, other_depth)
    assert leaves.tolist() == [row.token >> (64 - 4 * level)]


@given(rows_strategy, depths, depths)
def test_trees_of_unequal_depth_agree_on_the_levels_that_both_have(
    rows: list[Row], depth: int, other_depth: int
) -> None:
    one, other = HashTree.build(columns(rows), depth), HashTree.build(columns(rows), other_depth)
    assert one.same_as(other)
    assert differing_leaves(one, other)[1].tolist() == []
    for level in range(min(depth, other_depth) + 1):
        assert (one.node_hashes(level) == other.node_hashes(level)).all()


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=1), st.integers(0, 99)), max_size=200), depths, st.integers(0, 9)
)
def test_an_incremental_tree_equals_one_built_from_scratch(
    writes: list[tuple[bytes, int]], depth: int, epoch: int
) -> None:
    tree = HashTree(depth, epoch=epoch)
    rows: dict[bytes, Row] = {}
    log: list[Changes] = []
    for number, (key, version) in enumerate(writes):
        new, old = Row(key, version, b"%d" % number), rows.get(key)
        if old is not None:
            log.append(Changes.went(columns([old])))
        log.append(Changes.came(columns([new])))
        rows[key] = new
        if number % 17 == 0:
            fold(tree, Changes.concatenate(log))
            log = []
    fold(tree, Changes.concatenate(log))
    assert tree.same_as(HashTree.build(columns(list(rows.values())), depth, epoch=epoch))


def fold(tree: HashTree, changes: Changes) -> None:
    tree.fold(changes.tokens, changes.digests, changes.signs)


def test_emptied_tree_is_an_empty_tree() -> None:
    rows = columns([Row(b"k", 1, b"v")])
    tree = HashTree(3)
    fold(tree, Changes.concatenate([Changes.came(rows), Changes.went(rows)]))
    assert tree.root == EMPTY_ROOT
    assert tree.same_as(HashTree(3))


@given(rows_strategy, depths, st.integers(0, TOKEN_MAX), st.integers(0, TOKEN_MAX))
def test_a_tree_restricted_to_a_range_is_the_tree_of_its_rows(
    rows: list[Row], depth: int, one: int, other: int
) -> None:
    token_range = TokenRange(min(one, other), max(one, other))
    tree = HashTree.build(columns(rows), depth)
    edges = tree.edges(token_range)
    edge_rows = ordered([row for row in rows if any(part.contains(row.token) for part in edges)])
    expected = HashTree.build(columns([row for row in rows if token_range.contains(row.token)]), depth)
    assert tree.restricted(token_range, edge_rows).same_as(expected)
    assert tree.root_of(token_range, edge_rows) == expected.root
    assert len(edges) <= 2


def test_restriction_within_one_leaf_and_on_aligned_ranges() -> None:
    rows = [Row(b"%d" % number, 1, b"") for number in range(2_000)]
    tree = HashTree.build(columns(rows), 1)
    leaf = node_range(1, 7)
    inside = TokenRange(leaf.first + 5, leaf.last - 5)
    assert tree.edges(leaf) == []
    assert tree.edges(inside) == [inside]
    assert tree.restricted(leaf, RowDigests.empty()).root.count == sum(leaf.contains(row.token) for row in rows)
    found = tree.restricted(inside, ordered([row for row in rows if inside.contains(row.token)]))
    assert found.root.count == sum(inside.contains(row.token) for row in rows)
    assert tree.root.count == 2_000, "the tree itself is unchanged"


def test_restriction_to_everything_is_the_tree_itself() -> None:
    tree = HashTree(2)
    assert tree.restricted(TokenRange.full(), RowDigests.empty()) is tree


def test_a_copy_does_not_follow_its_source() -> None:
    tree = HashTree(2)
    copy = tree.copy()
    row = Row(b"k", 1, b"v")
    tree.fold(*_change(row))
    assert copy.root == EMPTY_ROOT
    assert tree.root.digest == hashing.digest_bytes(hashing.epoch_digests(columns([row]).digests, 0))


def _change(row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    one = columns([row])
    return one.tokens, one.digests, np.ones(1, np.int8)


def test_rows_that_cancel_in_the_digest_are_seen_by_the_count() -> None:
    row = Row(b"k", 1, b"v")
    tree = HashTree(2)
    tree.fold(*_change(row))
    tree.fold(*_change(row))
    assert tree.root.digest == hashing.EMPTY_DIGEST
    assert tree.root != EMPTY_ROOT
    assert (tree.node_hashes(1) != HashTree(2).node_hashes(1)).sum() == 1


def test_node_hashes_are_not_linear() -> None:
    """With linear hashes, changes of two rows could cancel out on the wire though not in the tree."""
    rng = np.random.default_rng(7)
    high, low, other = (rng.integers(0, 2**64, 1_000, dtype=np.uint64) for _ in range(3))
    counts = np.ones(1_000, np.int64)
    change = np.uint64(0x1234_5678)
    before, after = (hashing.node_hashes(value, low, counts) for value in (high, high ^ change))
    elsewhere = hashing.node_hashes(other, low, counts) ^ hashing.node_hashes(other ^ change, low, counts)
    assert ((before ^ after) != elsewhere).all()
    assert len(np.unique(before)) == 1_000


def test_depth_grows_with_rows_up_to_five() -> None:
    assert [depth_for(count) for count in (0, 32, 33, 512, 513, 8_192, 131_072, 131_073, 10**9)] == [
        1, 1, 2, 2, 3, 3, 4, 5, 5,
    ]  # fmt: skip
    assert [outgrown(depth, 10**9) for depth in (1, 4, 5)] == [True, True, False]
    assert not outgrown(2, 16 * 256)


@pytest.mark.parametrize("depth", [0, 6, -1])
def test_impossible_depth(depth: int) -> None:
    with pytest.raises(ValueError, match="1 to 5"):
        HashTree(depth)


def test_child_hashes_are_the_hashes_of_the_children() -> None:
    tree = HashTree.build(columns([Row(b"%d" % number, 1, b"") for number in range(500)]), 3)
    indices = np.array([3, 200], np.uint32)
    found = tree.child_hashes(2, indices)
    assert found.shape == (2, FAN_OUT)
    assert (found[1] == tree.node_hashes(3)[200 * 16 : 201 * 16]).all()
    assert tree.counts(2, indices).tolist() == [
        tree.levels[3].counts[48:64].sum(),
        tree.levels[3].counts[3200:3216].sum(),
    ]


# --- tokens and hashes ---


@given(st.integers(0, TOKEN_MAX), st.integers(0, 5))
def test_nodes_lie_on_the_token_line(token: int, level: int) -> None:
    node = covering(TokenRange(token, token), level)[0]
    assert node_range(level, node).contains(token)


def test_neighbouring_nodes_make_one_range() -> None:
    indices = np.array([0, 1, 2, 7, 15], np.uint32)
    within = TokenRange(5, TOKEN_MAX - 1)
    assert node_ranges(1, indices, within) == [
        TokenRange(5, node_range(1, 2).last),
        node_range(1, 7),
        TokenRange(node_range(1, 15).first, TOKEN_MAX - 1),
    ]
    assert node_ranges(1, np.empty(0, np.uint32), within) == []
    assert node_ranges(1, indices[:1], TokenRange(TOKEN_MAX, TOKEN_MAX)) == []


@pytest.mark.parametrize(("first", "last"), [(2, 1), (-1, 5), (0, 2**64)])
def test_impossible_ranges(first: int, last: int) -> None:
    with pytest.raises(ValueError, match="not a token range"):
        TokenRange(first, last)


def test_ranges() -> None:
    assert TokenRange(1, 5).intersection(TokenRange(5, 9)) == TokenRange(5, 5)
    assert TokenRange(1, 4).intersection(TokenRange(5, 9)) is None
    assert TokenRange.full().is_full
    assert not TokenRange(1, TOKEN_MAX).is_full


@given(st.binary(max_size=9), st.integers(0, 2**64 - 1), st.booleans(), st.binary(max_size=9), st.integers(0, 9))
def test_first_bit_of_a_digest_is_the_tombstone_flag(
    key: bytes, version: int, deleted: bool, value: bytes, seed: int
) -> None:
    digest = hashing.row_digest(key, version, deleted, value, seed)
    assert len(digest) == 16
    assert bool(digest[0] & 0x80) is deleted


def test_digest_depends_on_every_field_and_on_its_borders() -> None:
    digests = {
        hashing.row_digest(b"ab", 1, False, b"c"),
        hashing.row_digest(b"a", 1, False, b"bc"),
        hashing.row_digest(b"ab", 2, False, b"c"),
        hashing.row_digest(b"ab", 1, True, b"c"),
        hashing.row_digest(b"ab", 1, False, b"d"),
        hashing.row_digest(b"ab", 1, False, b"c", seed=1),
    }
    assert len(digests) == 6


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=9))
def test_digest_columns_round_trip_and_keep_their_order(digests: list[bytes]) -> None:
    found = hashing.digest_columns(b"".join(digests))
    assert hashing.digest_bytes(found) == b"".join(digests)
    as_numbers = [(int(high) << 64) | int(low) for high, low in found]
    assert sorted(range(len(digests)), key=lambda at: digests[at]) == sorted(
        range(len(digests)), key=as_numbers.__getitem__
    )


def random_digests(count: int) -> NDArray[np.uint64]:
    return np.random.default_rng(5).integers(0, 2**64, (count, 2), dtype=np.uint64)


def test_epoch_digests_are_a_bijection_that_is_not_linear() -> None:
    digests = random_digests(20_000)
    one, other = hashing.epoch_digests(digests, 1), hashing.epoch_digests(digests, 2)
    assert len(np.unique(one[:, 0])) == len(np.unique(one[:, 1])) == 20_000
    assert not (one == other).any()
    assert not (one == digests).any()
    change = np.array([1, 0], np.uint64)
    delta = hashing.epoch_digests(digests ^ change, 1) ^ one
    assert len(np.unique(delta[:, 0])) == len(np.unique(delta[:, 1])) == 20_000
    flips = np.unpackbits(delta.view(np.uint8)).mean()
    assert 0.49 < flips < 0.51, "one bit changes half of them"
    assert hashing.epoch_digests(digests[:0], 3).shape == (0, 2)


def test_sets_that_collide_under_one_epoch_differ_under_another() -> None:
    """Method: with 8 bits left, pairs of rows that collide under epoch 1 are found by search."""
    digests = random_digests(2_000)

    def sums(epoch: int, rows: NDArray[np.int64]) -> list[int]:
        found: list[int] = np.bitwise_xor.reduce(hashing.epoch_digests(digests[rows], epoch), axis=0).tolist()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "EPOCH_DIGEST_MASK", (0xFF, 0))
        first = np.array([0, 1])
        wanted = sums(1, first)
        pairs = [np.array([2, at]) for at in range(3, 2_000)]
        colliding = [pair for pair in pairs if sums(1, pair) == wanted]
        assert 2 <= len(colliding) <= 30
        assert sum(sums(2, pair) == sums(2, first) for pair in colliding) <= 2
    assert all(sums(1, pair) != sums(1, first) for pair in colliding)
