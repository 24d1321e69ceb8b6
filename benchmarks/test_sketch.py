"""Sketches over 1,000,000 rows: to build, to copy, to keep up to date on write; and what finding differences costs.

The differences are at random tokens, half on each side. ``find_bytes`` are the bytes of all requests and answers, the
first symbols included; ``bound_bytes`` is d * (b - log2 d + 1.44) bits for d items of b = 64 bits, the least that names
d tokens; rows that are to move cost 8 bytes each more (a token that is asked for, or a version that comes with a row).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from antientropy.core import locate
from antientropy.core.locate import Glance, LocateAnswer, LocateRequest, Locator, glance
from antientropy.core.merkle import HashTree
from antientropy.core.rows import RowDigests
from antientropy.core.sketch import SketchBank
from antientropy.core.tokens import TokenRange
from antientropy.limits import DIGESTS_PER_CHUNK_MAX
from antientropy.options import Strategy

ROWS = 1_000_000
BATCH = 1_000


@dataclass
class Replica:
    """Rows in memory, searched whole."""

    rows: RowDigests

    def __post_init__(self) -> None:
        self.token_range = TokenRange.full()
        self.tree = HashTree.build(self.rows)
        self.sketch = SketchBank.build(self.rows, 1)

    def digests(self, ranges: Sequence[TokenRange]) -> Iterator[RowDigests]:
        """Digests of all rows of some ranges."""
        tokens = self.rows.tokens
        for one in ranges:
            first = int(np.searchsorted(tokens, np.uint64(one.first)))
            last = int(np.searchsorted(tokens, np.uint64(one.last), "right"))
            for start in range(first, last, DIGESTS_PER_CHUNK_MAX):
                yield self.rows.take(slice(start, min(last, start + DIGESTS_PER_CHUNK_MAX)))


def random_rows(count: int, seed: int = 1) -> RowDigests:
    """Versions are those of a hybrid clock, of the last thirty days."""
    rng = np.random.default_rng(seed)
    tokens: NDArray[np.uint64] = np.sort(rng.integers(0, 2**64, count, dtype=np.uint64))
    milliseconds = np.uint64(1_790_000_000_000) - rng.integers(0, 30 * 86_400_000, count, dtype=np.uint64)
    return RowDigests(tokens, milliseconds << np.uint64(16), rng.integers(0, 2**64, (count, 2), dtype=np.uint64))


@pytest.fixture(scope="module")
def rows() -> RowDigests:
    return random_rows(ROWS)


def sides(rows: RowDigests, kind: str, differences: int) -> tuple[Replica, Replica]:
    """The rows of which some are missing on one side, or newer on one, half of them on each."""
    rng = np.random.default_rng(differences)
    chosen = rng.choice(len(rows), differences, replace=False)
    halves = chosen[: differences // 2], chosen[differences // 2 :]
    replicas = []
    for half in halves:
        keep = np.ones(len(rows), np.bool_)
        versions, digests = rows.versions.copy(), rows.digests.copy()
        if kind == "missing":
            keep[half] = False
        else:
            versions[half] += np.uint64(1_000_000 << 16)
            digests[half] = rng.integers(0, 2**64, (len(half), 2), dtype=np.uint64)
        replicas.append(Replica(RowDigests(rows.tokens, versions, digests).take(keep)))
    return replicas[0], replicas[1]


def search(own: Replica, remote: Replica, strategy: Strategy) -> tuple[Locator, int]:
    """The whole search over the bytes of its messages, and their number."""
    data = glance(remote).encode()
    first = Glance.decode(data)
    locator = Locator(own, remote_count=remote.tree.root.count, first=first, strategy=strategy, salt=1)
    total = len(data)
    while (request := locator.next_request()) is not None:
        asked = request.encode()
        arrived = LocateRequest.decode(asked)
        answered = locate.answer(arrived, remote).encode(arrived)
        total += len(asked) + len(answered)
        locator.feed(LocateAnswer.decode(answered, request))
    return locator, total


def test_build_of_a_million_rows(benchmark: Any, rows: RowDigests) -> None:
    bank = benchmark.pedantic(SketchBank.build, (rows, 1), rounds=5, warmup_rounds=1)
    benchmark.extra_info.update(rows=ROWS, bank_bytes=bank.nbytes)


def test_copy_for_a_snapshot(benchmark: Any, rows: RowDigests) -> None:
    bank = SketchBank.build(rows, 1)
    assert benchmark(bank.copy).same_as(bank)


def test_upkeep_of_tree_and_sketch_in_batches_of_a_thousand_updates(benchmark: Any, rows: RowDigests) -> None:
    """Each update takes the old row out and puts the new one in. Time is for one batch of 1,000 updates."""
    tree, bank = HashTree.build(rows), SketchBank.build(rows, 1)
    fresh = random_rows(2 * BATCH, seed=4)
    tokens = np.repeat(fresh.tokens[:BATCH], 2)
    signs = np.tile(np.array([-1, 1], np.int8), BATCH)

    def upkeep() -> None:
        tree.fold(tokens, fresh.digests, signs)
        bank.fold(tokens, fresh.versions, signs)

    benchmark(upkeep)
    benchmark.extra_info.update(rows=ROWS, updates_per_batch=BATCH)


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("differences", [1, 10, 100, 1_000, 10_000])
@pytest.mark.parametrize("kind", ["missing", "updated"])
def test_search(benchmark: Any, rows: RowDigests, kind: str, differences: int, strategy: Strategy) -> None:
    own, remote = sides(rows, kind, differences)
    locator, find_bytes = benchmark.pedantic(search, (own, remote, strategy), rounds=1)
    assert len(locator.difference) == differences
    items = differences * (1 if kind == "missing" else 2)
    benchmark.extra_info.update(
        rows=ROWS,
        find_bytes=find_bytes,
        bound_bytes=round(items * (64 - math.log2(items) + 1.44) / 8),
        round_trips=locator.requests,
        found_by={strategy.value: count for strategy, count in locator.found_by.items()},
    )
