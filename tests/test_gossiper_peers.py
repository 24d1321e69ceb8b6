"""The choice of peers: probabilities of Cassandra, and an unreachable peer in every round."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossiper.config import GossipConfig
from gossiper.core.peers import PARTNER_ROUNDS, PARTNERS_DEFAULT, Partners, PeerPolicy, Peers, choose_targets
from gossiper.errors import ConfigError

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


def live_rows(count: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    return np.arange(1, count + 1, dtype=np.intp)


def test_partners_stay_and_one_is_exchanged_after_some_rounds() -> None:
    rng, partners, live = Random(4), Partners(8), live_rows(100)
    first = partners.of_round(rng, live).tolist()
    assert len(set(first)) == 8
    for _ in range(PARTNER_ROUNDS - 1):
        assert partners.of_round(rng, live).tolist() == first
    second = partners.of_round(rng, live).tolist()
    assert second[:7] == first[1:], "the oldest one goes"
    assert second[7] not in first[1:]


def test_everybody_becomes_a_partner_in_time() -> None:
    rng, partners, live = Random(5), Partners(8), live_rows(20)
    seen: set[int] = set()
    for _ in range(100 * PARTNER_ROUNDS):
        seen.update(partners.of_round(rng, live).tolist())
    assert seen == set(range(1, 21))


@given(st.integers(0, 2**32), st.lists(st.lists(st.integers(1, 60), unique=True), max_size=30), st.integers(0, 12))
def test_partners_are_live_and_as_many_as_there_can_be(seed: int, lives: list[list[int]], size: int) -> None:
    rng, partners = Random(seed), Partners(size)
    for live in lives:
        rows = partners.of_round(rng, np.array(sorted(live), dtype=np.intp)).tolist()
        assert len(rows) == len(set(rows))
        assert set(rows) <= set(live)
        assert len(rows) == (min(size, len(live)) if size else len(live))


def test_few_live_peers_cost_no_random_numbers() -> None:
    rng = Random(6)
    before = rng.getstate()
    assert Partners(8).of_round(rng, live_rows(8)).tolist() == live_rows(8).tolist()
    assert rng.getstate() == before


def test_a_dead_partner_is_replaced_at_once_and_still_tried_as_unreachable() -> None:
    rng, partners = Random(7), Partners(8)
    kept = partners.of_round(rng, live_rows(15)).tolist()
    live = [row for row in range(1, 16) if row != kept[3]]
    asked = set()
    for _ in range(50):
        targets = choose_targets(rng, peers(live, [kept[3]]), PLAIN, seeds=[], partners=partners)
        assert targets[1:] == [kept[3]]
        asked.add(targets[0])
    assert len(asked) == 8
    assert asked >= {row for row in kept if row != kept[3]}


def test_seeds_that_are_no_partners_are_still_asked() -> None:
    rng, partners = Random(8), Partners(8)
    kept = partners.of_round(rng, live_rows(15)).tolist()
    stranger = next(row for row in range(1, 16) if row not in kept)
    asked = Counter(
        stranger in choose_targets(rng, peers(list(range(1, 16)), []), PLAIN, seeds=[stranger], partners=partners)
        for _ in range(600)
    )
    assert 15 < asked[True] < 100, "about every fifteenth round"


def test_the_number_of_partners_is_a_setting_with_bounds() -> None:
    assert GossipConfig(cluster_name="c", listen="127.0.0.1:0").partners == PARTNERS_DEFAULT
    assert GossipConfig(cluster_name="c", listen="127.0.0.1:0", partners=0).partners == 0
    with pytest.raises(ConfigError, match="partners: must be 0 or 8 to 128, is 3"):
        GossipConfig(cluster_name="c", listen="127.0.0.1:0", partners=3)
