"""How long the hash tree takes over 1,000,000 rows: to build, to compare, to copy, and to keep up to date on write."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from antientropy.core.merkle import HashTree, differing_leaves
from antientropy.core.rows import RowDigests

ROWS = 1_000_000
BATCH = 1_000


def random_rows(count: int, seed: int = 1) -> RowDigests:
    rng = np.random.default_rng(seed)
    tokens: NDArray[np.uint64] = np.sort(rng.integers(0, 2**64, count, dtype=np.uint64))
    digests = rng.integers(0, 2**64, (count, 2), dtype=np.uint64)
    return RowDigests(tokens, np.ones(count, np.uint64), digests)


@pytest.fixture(scope="module")
def rows() -> RowDigests:
    return random_rows(ROWS)


def test_build_of_a_million_rows_in_token_order(benchmark: Any, rows: RowDigests) -> None:
    tree = benchmark.pedantic(HashTree.build, (rows,), rounds=7, warmup_rounds=1)
    assert tree.root.count == ROWS
    benchmark.extra_info.update(rows=ROWS, depth=tree.depth, tree_bytes=tree.nbytes)


def test_build_of_a_million_rows_in_any_order(benchmark: Any, rows: RowDigests) -> None:
    shuffled = rows.take(np.random.default_rng(2).permutation(ROWS))
    tree = benchmark.pedantic(HashTree.build, (shuffled,), rounds=7, warmup_rounds=1)
    assert tree.root.count == ROWS
    benchmark.extra_info.update(rows=ROWS, depth=tree.depth, tree_bytes=tree.nbytes)


@pytest.mark.parametrize("differences", [0, 1, 100, 10_000])
def test_comparison_over_a_million_rows(benchmark: Any, rows: RowDigests, differences: int) -> None:
    """The descent without a wire; ``find_bytes`` is what it would send: hashes, indices, and 32 bytes for each row."""
    one = HashTree.build(rows)
    other = one.copy()
    changed = np.random.default_rng(3).choice(ROWS, differences, replace=False)
    other.fold(rows.tokens[changed], rows.digests[changed], np.full(differences, -1, np.int8))
    level, leaves = benchmark(differing_leaves, one, other)
    assert 0.98 * differences <= len(leaves) <= differences
    find_bytes, indices = 48, np.zeros(min(differences, 1), np.uint32)
    for depth in range(level):
        find_bytes += len(indices) * (16 * 8 + (4 if depth else 0))
        indices = one.differing_children(depth, indices, other.child_hashes(depth, indices))
    find_bytes += len(leaves) * 4 + int(other.counts(level, leaves).sum()) * 32
    benchmark.extra_info.update(rows=ROWS, differences=differences, leaves=len(leaves), find_bytes=find_bytes)


def test_copy_for_a_snapshot(benchmark: Any, rows: RowDigests) -> None:
    tree = HashTree.build(rows)
    copy = benchmark(tree.copy)
    assert copy.root == tree.root
    benchmark.extra_info.update(rows=ROWS, tree_bytes=tree.nbytes)


def test_upkeep_in_batches_of_a_thousand_writes(benchmark: Any, rows: RowDigests) -> None:
    """Each write replaces a row: the old digest out, the new one in. Time is for one batch of 1,000 writes."""
    tree = HashTree.build(rows)
    fresh = random_rows(2 * BATCH, seed=4)
    signs = np.array([-1, 1] * BATCH, np.int8)
    benchmark(tree.fold, fresh.tokens, fresh.digests, signs)
    assert tree.root.count == ROWS
    benchmark.extra_info.update(rows=ROWS, writes_per_batch=BATCH, changes_per_batch=2 * BATCH)
