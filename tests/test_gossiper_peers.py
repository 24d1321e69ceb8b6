"""The choice of peers: probabilities of Cassandra, and an unreachable peer in every round."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gossiper.core.peers import PeerPolicy, Peers, choose_targets

LOCAL = 0
PLAIN = PeerPolicy()
rows = st.lists(st.integers(1, 12), unique=True, max_size=8)


def peers(live: list[int], unreachable: list[int], *, datacenters: list[int] | None = None) -> Peers:
    places = np.ones(20, dtype=np.int64) if datacenters is None else np.array(datacenters, dtype=np.int64)
    return Peers(
        np.array(live, dtype=np.intp), np.array(unreachable, dtype=np.intp), places, np.ones(20, dtype=np.int64), LOCAL
    )


@given(st.randoms(use_true_random=False), rows, rows, rows)
def test_whatever_is_known(rng: Random, live: list[int], down: list[int], seeds: list[int]) -> None:
    down = [row for row in down if row not in live]
    targets = choose_targets(rng, peers(live, down), PLAIN, seeds=seeds)
    assert len(targets) == len(set(targets)) <= 3
    assert set(targets) <= {*live, *down, *seeds}
    if live:
        assert targets[0] in live
    if down:
        assert set(targets) & set(down), "an unreachable peer is tried in every round"
    if not live and seeds:
        assert set(targets) & set(seeds), "with nobody live a seed is always asked"


def test_a_live_seed_is_enough() -> None:
    rng = Random(1)
    for _ in range(100):
        assert choose_targets(rng, peers([1, 2], []), PLAIN, seeds=[1, 2]) in ([1], [2])


def test_seed_probability_is_seeds_over_others() -> None:
    rng = Random(2)
    around = peers(list(range(1, 9)), [9])
    asked = Counter(len(choose_targets(rng, around, PLAIN, seeds=["s:1"])) for _ in range(9000))
    share = asked[3] / 9000
    assert 0.09 < share < 0.13, f"expected 1/9, saw {share}"


def test_fewer_live_than_seeds_may_ask_a_seed_even_after_one() -> None:
    rng = Random(3)
    seen = {len(choose_targets(rng, peers([1], []), PLAIN, seeds=[1, 2])) for _ in range(50)}
    assert 2 in seen


@given(st.integers(0, 2**32), rows, rows)
def test_with_a_bound_the_rest_of_a_round_stays_in_the_data_centre(seed: int, live: list[int], down: list[int]) -> None:
    down = [row for row in down if row not in live]
    places = [1 + row % 2 for row in range(20)]
    policy = PeerPolicy(remote_exchanges_per_interval=1e-9)
    targets = choose_targets(Random(seed), peers(live, down, datacenters=places), policy, seeds=[3, 4])
    far = [target for target in targets if int(target) % 2]
    assert not far or not any(row % 2 == 0 for row in live), "only a node that is alone at home asks a far seed"
