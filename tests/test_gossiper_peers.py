"""The choice of peers: probabilities of Cassandra, and an unreachable peer in every round."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from gossiper.core.peers import choose_targets

names = st.lists(st.sampled_from([f"10.0.0.{n}:7000" for n in range(12)]), unique=True, max_size=8)


@given(st.randoms(use_true_random=False), names, names, names)
def test_whatever_is_known(rng: Random, live: list[str], down: list[str], seeds: list[str]) -> None:
    down = [endpoint for endpoint in down if endpoint not in live]
    targets = choose_targets(rng, live=live, unreachable=down, seeds=seeds)
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
        assert choose_targets(rng, live=["a:1", "b:1"], unreachable=[], seeds=["a:1", "b:1"]) in (["a:1"], ["b:1"])


def test_seed_probability_is_seeds_over_others() -> None:
    rng = Random(2)
    live = [f"n{i}:1" for i in range(8)]
    asked = Counter(len(choose_targets(rng, live=live, unreachable=["d:1"], seeds=["s:1"])) for _ in range(9000))
    share = asked[3] / 9000
    assert 0.09 < share < 0.13, f"expected 1/9, saw {share}"


def test_fewer_live_than_seeds_may_ask_a_seed_even_after_one() -> None:
    rng = Random(3)
    seen = {len(choose_targets(rng, live=["a:1"], unreachable=[], seeds=["a:1", "b:1"])) for _ in range(50)}
    assert 2 in seen
