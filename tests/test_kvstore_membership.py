"""What gossip knows, as repair asks for it: parts of the token line, replicas, data centres."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antientropy.core.tokens import TOKEN_MAX, TokenRange
from antientropy.membership import ReplicatedRange
from gossiper import Gossiper
from gossiper.testing import MemoryCluster, run
from kvstore.limits import TOKENS_PER_NODE_MAX
from kvstore.membership import SCHEMA_VERSION, ClusterMembership, primary_ranges, tokens_of

A, B, C = "10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000"


def check_cover(ranges: tuple[ReplicatedRange, ...]) -> None:
    """Every token once, ascending."""
    assert ranges[0].token_range.first == 0
    assert ranges[-1].token_range.last == TOKEN_MAX
    for one, following in pairwise(ranges):
        assert following.token_range.first == one.token_range.last + 1


@given(
    st.lists(
        st.tuples(st.integers(0, TOKEN_MAX) | st.sampled_from([0, 1, TOKEN_MAX]), st.sampled_from([A, B, C])),
        max_size=9,
    )
)
def test_parts_cover_every_token_once_and_do_not_depend_on_order(tokens: list[tuple[int, str]]) -> None:
    ranges = primary_ranges(tokens, (A, B, C))
    check_cover(ranges)
    assert ranges == primary_ranges(reversed(tokens), (A, B, C))
    assert {one.primary for one in ranges} <= {endpoint for _, endpoint in tokens} | {A}
    assert all(one.replicas == (A, B, C) and one.complete for one in ranges)


def test_the_part_before_the_first_token_and_behind_the_last_belong_to_the_first() -> None:
    ranges = primary_ranges([(100, A), (300, B), (200, C)], (A, B, C))
    assert [(one.token_range, one.primary) for one in ranges] == [
        (TokenRange(0, 100), A),
        (TokenRange(101, 200), C),
        (TokenRange(201, 300), B),
        (TokenRange(301, TOKEN_MAX), A),
    ]


def test_without_tokens_somebody_has_all_and_without_replicas_there_is_nothing() -> None:
    (everything,) = primary_ranges([], (A, B))
    assert (everything.token_range.is_full, everything.primary) == (True, A)
    assert primary_ranges([], ()) == ()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("0", (0,)),
        (str(TOKEN_MAX), (TOKEN_MAX,)),
        ("5,3", (5, 3)),
        (None, ()),
        ("", ()),
        (str(TOKEN_MAX + 1), ()),
        ("-1", ()),
        ("1, 2", ()),
        ("1,,2", ()),
        ("\u0663", ()),
        ("9" * 5_000, ()),
        (",".join(["1"] * (TOKENS_PER_NODE_MAX + 1)), ()),
    ],
)
def test_tokens_are_a_bounded_list_of_numbers_or_none(text: str | None, tokens: tuple[int, ...]) -> None:
    assert tokens_of(text) == tokens


def member_of(gossiper: Gossiper, replication_factor: int = 2) -> ClusterMembership:
    return ClusterMembership(lambda: gossiper, replication_factor)


def states(token: int) -> tuple[tuple[str, str], ...]:
    return (("SCHEMA", SCHEMA_VERSION), ("TOKENS", str(token)))


def scenario(body: Callable[[MemoryCluster], Any]) -> None:
    async def main() -> None:
        async with MemoryCluster() as cluster:
            await body(cluster)

    run(main())


def test_nodes_that_know_each_other_cut_alike() -> None:
    async def body(cluster: MemoryCluster) -> None:
        first = await cluster.start_node(states=states(1_000), datacenter="east")
        (alone,) = member_of(first).ranges("kv")[:1]
        assert not alone.complete
        second = await cluster.start_node(states=states(2_000), datacenter="west")
        await cluster.converged()
        ranges = member_of(first).ranges("kv")
        assert ranges == member_of(second).ranges("kv")
        assert [(one.token_range.last, one.primary) for one in ranges] == [
            (1_000, first.endpoint),
            (2_000, second.endpoint),
            (TOKEN_MAX, first.endpoint),
        ]
        assert all(one.complete and one.replicas == (first.endpoint, second.endpoint) for one in ranges)
        assert not member_of(first, 3).ranges("kv")[0].complete
        assert member_of(first).datacenter(second.endpoint) == "west"
        assert member_of(first).datacenter(C) == ""
        await cluster.kill(second)
        await cluster.wait_until(lambda: not first.is_alive(second.endpoint))
        assert member_of(first).ranges("kv") == ranges

    scenario(body)


def test_whoever_is_only_remembered_keeps_a_repair_from_counting() -> None:
    async def body(cluster: MemoryCluster) -> None:
        first = await cluster.start_node(states=states(1_000))
        second = await cluster.start_node(states=states(2_000))
        third = await cluster.start_node(states=states(3_000))
        await cluster.converged()
        assert all(one.complete for one in member_of(first).ranges("kv"))
        for one in (second, third, first):
            await cluster.stop(one)
        first = await cluster.restart(first)
        second = await cluster.restart(second)
        await cluster.converged(first, second)
        ranges = member_of(first).ranges("kv")
        assert ranges[0].replicas == (first.endpoint, second.endpoint)
        assert not any(one.complete for one in ranges)
        await cluster.restart(third)
        await cluster.converged()
        assert all(one.complete for one in member_of(first).ranges("kv"))

    scenario(body)
