"""Rosters are defined by what a node knows, not by how it came to know it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from compact_pairs import (
    AS_OF_MS,
    CUT_MS,
    NOW,
    WALL,
    A,
    at,
    engine,
    exchange,
    host_id,
    name,
    pair,
    restarted,
    roster,
    state,
    tell,
    told,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gossiper.core.engine import GossipEngine
from gossiper.core.io import RoundDue
from gossiper.core.lifecycle import GONE_EXPIRE_SECONDS
from gossiper.core.messages import EndpointState, GossipDigestSyn
from gossiper.core.roster import ROSTER_EXPIRY_MS
from gossiper.core.roster_lookup import _ROSTERS_MAX, _build, roster_at, standing
from gossiper.core.table import LivenessCode
from gossiper.core.versions import REMOVAL_STEP

DAY_MS = 86_400_000


def removed(one: EndpointState, *, seconds_ago: float) -> EndpointState:
    """An operator's verdict on ``one``."""
    expire_ms = AS_OF_MS - round(seconds_ago * 1000) + GONE_EXPIRE_SECONDS * 1000
    values = {key: value.value for key, value in one.values}
    values |= {"STATUS": f"removed,{expire_ms}", "REMOVED_BY": host_id(999)}
    return state(0, endpoint=one.endpoint, generation=one.generation + REMOVAL_STEP, values=values.items(), heartbeat=2)


def left(number: int, *, expire_ms: int, age_seconds: int = 1000) -> EndpointState:
    return state(number, values=[("STATUS", f"LEFT,{expire_ms}")], age_seconds=age_seconds, tick=20)


def story() -> list[list[EndpointState]]:
    """What happened to 40 endpoints: to each its own states, in their order."""
    seconds = [10_000, 1000, 200, 60, 40, 20, 10, 2]
    stories = [[state(number, age_seconds=seconds[number % len(seconds)])] for number in range(40)]
    for number in (1, 2, 3, 9, 10, 11):
        stories[number].append(restarted(stories[number][0], age_seconds=5 if number < 8 else 35))
    for number in (16, 24):
        stories[number].append(removed(stories[number][0], seconds_ago=4 if number == 16 else 100))
    stories[17].append(left(17, expire_ms=AS_OF_MS + GONE_EXPIRE_SECONDS * 1000))
    stories[25].append(left(25, expire_ms=AS_OF_MS + ROSTER_EXPIRY_MS // 2))
    # The node 33 took a new address: the greater generation stays.
    stories.append([state(50, ids=33, age_seconds=8)])
    return stories


@settings(max_examples=40, deadline=None)
@given(rng=st.randoms(use_true_random=False))
def test_the_same_knowledge_gives_the_same_roster_however_it_was_learned(rng: Random) -> None:
    """In any order of endpoints; of each in its own order, since an older state says nothing any more."""
    nodes = [engine(A), engine(A)]
    for node in nodes:
        stories = [list(one) for one in story()]
        while stories:
            chosen = rng.choice(stories)
            tell(node, [chosen.pop(0)])
            if not chosen:
                stories.remove(chosen)
            if rng.random() < 0.2:
                roster(node)  # a roster asked for in between must not stay
    for cut_ms in (CUT_MS, CUT_MS - 32_000, CUT_MS + 16_000, AS_OF_MS - 100_000):
        one, other = (roster(node, cut_ms) for node in nodes)
        assert one.digest == other.digest
        assert np.array_equal(one.content, other.content)
    assert told(nodes[0]) == told(nodes[1])


Change = Callable[[GossipEngine, Random, float], None]


def joins(node: GossipEngine, rng: Random, seconds: float) -> None:
    age = rng.choice((0, 3, 20, 50, 1000))
    tell(node, [state(rng.randrange(12), generation=int(WALL + seconds) - age, age_seconds=age + 1)], at(seconds))


def goes(node: GossipEngine, rng: Random, seconds: float) -> None:
    """It leaves, to be forgotten sooner or later."""
    expire_ms = round((WALL + seconds) * 1000) + rng.choice((1000, 60_000, 300_000, 330_000, 10**7))
    number = rng.randrange(12)
    row = node.state.table.row(name(number))
    generation = int(WALL) if row is None else int(node.state.table.generation[row])
    heartbeat = 30 if row is None else int(node.state.table.heartbeat[row]) + 1
    status = rng.choice((f"LEFT,{expire_ms}", f"LEFT,{expire_ms}", "NORMAL"))
    tell(
        node,
        [
            state(
                number,
                generation=generation,
                heartbeat=heartbeat,
                tick=heartbeat,
                values=[("STATUS", status)],
            )
        ],
        at(seconds),
    )


def is_removed(node: GossipEngine, rng: Random, seconds: float) -> None:
    number = rng.randrange(12)
    row = node.state.table.row(name(number))
    if row is not None:
        one = state(number, generation=int(node.state.table.generation[row]))
        tell(node, [removed(one, seconds_ago=-seconds + rng.choice((0, 40)))], at(seconds))


def moves(node: GossipEngine, rng: Random, seconds: float) -> None:
    ids = rng.randrange(12)
    tell(node, [state(20 + rng.randrange(4), ids=ids, generation=int(WALL + seconds), age_seconds=1)], at(seconds))


def time_passes(node: GossipEngine, rng: Random, seconds: float) -> None:
    del rng
    node.handle(RoundDue(), at(seconds))


@settings(max_examples=150, deadline=None)
@given(rng=st.randoms(use_true_random=False))
def test_a_roster_that_is_kept_is_the_one_that_would_be_built(rng: Random) -> None:
    node = engine(A)
    table, seconds = node.state.table, 0.0
    for _ in range(rng.randrange(2, 25)):
        rng.choice((joins, joins, joins, goes, is_removed, moves, time_passes))(node, rng, seconds)
        now_ms = round((WALL + seconds) * 1000)
        asked = [now_ms - rng.choice((0, 1, 3_000, 16_000, 20_000, 40_000, 200_000)) for _ in range(2)]
        for cut_ms in {*table.rosters, *asked, CUT_MS, AS_OF_MS + 32_000}:
            kept, fresh = roster_at(table, cut_ms), _build(table, cut_ms)
            assert kept.digest == fresh.digest
            assert np.array_equal(kept.rows, fresh.rows)
            found = standing(table, kept, node.state.local_row)
            fresh_found = standing(table, fresh, node.state.local_row)
            assert np.array_equal(found.outside, fresh_found.outside)
            for gone in (found.gone, fresh_found.gone):
                assert gone is None or np.array_equal(gone, table.generation[kept.rows] != kept.generations)
            assert found.own == fresh_found.own
        seconds += rng.choice((0.0, 0.0, 1.0, 15.0, 40.0, 400.0))


def test_rosters_are_ordered_and_name_each_endpoint_once() -> None:
    node = engine(A)
    tell(node, [state(number) for number in range(300)])
    names = list(zip(roster(node).names_high.view(np.uint64), roster(node).names_low.view(np.uint64), strict=True))
    assert names == sorted(names)
    assert len(set(names)) == 301


def test_few_rosters_are_kept_those_asked_for_last() -> None:
    """Whoever names one cut after the other, or has a clock that is years ahead, takes nobody's place for ever."""
    node = engine(A)
    table = node.state.table
    first = roster(node)
    for number in range(100):
        roster_at(table, CUT_MS + 365 * DAY_MS + number)
        if number % 3 == 0:
            assert roster(node) is first
    assert len(table.rosters) == _ROSTERS_MAX
    for number in range(_ROSTERS_MAX):
        roster_at(table, number)
    assert CUT_MS not in table.rosters


# -- what happens after the cut ----------------------------------------------------------------------------------------

SIZE = 60


def news(change: str) -> list[EndpointState]:
    """Something that happened 3 s ago."""
    match change:
        case "join":
            return [state(200, age_seconds=3)]
        case "restart":
            return [restarted(state(7), age_seconds=3)]
        case "removal":
            return [removed(state(7), seconds_ago=3)]
        case "leave":
            return [
                replace(
                    left(7, expire_ms=AS_OF_MS + GONE_EXPIRE_SECONDS * 1000 - 3000), heartbeat=1000, states_version=320
                )
            ]
        case "address":
            return [state(200, ids=7, age_seconds=3)]
    raise AssertionError(change)


@pytest.mark.parametrize("change", ["join", "restart", "removal"])
@pytest.mark.parametrize("who", ["sender", "receiver", "both"])
def test_news_after_the_cut_keep_the_exchange_in_one_round_trip(change: str, who: str) -> None:
    one, other = pair(SIZE)
    for node, name_of in ((one, "sender"), (other, "receiver")):
        if who in {name_of, "both"}:
            tell(node, news(change))
    result = exchange(one, other)
    assert result.kind == "compact"
    assert result.forms[:2] == ["sync", "ackc"]
    assert result.forms[2:] == (["ack2"] if who == "sender" else [])
    # The two differ in what only they say of themselves by now, and in nothing else.
    assert told(one) == told(other)


@pytest.mark.parametrize("change", ["leave", "address"])
@pytest.mark.parametrize("who", ["sender", "receiver", "both"])
def test_other_news_need_no_plain_form_and_end_alike(change: str, who: str) -> None:
    one, other = pair(SIZE)
    for node, name_of in ((one, "sender"), (other, "receiver")):
        if who in {name_of, "both"}:
            tell(node, news(change))
    result = exchange(one, other)
    assert result.kind in {"compact", "roster_buckets", "states_buckets"}
    assert "syn" not in result.forms
    assert told(one) == told(other)


def test_dead_endpoints_leave_the_column() -> None:
    """With 30 % dead the bytes do not grow: their heartbeats are one hash."""
    sizes = {}
    for dead in (0, 300):
        one, other = pair(0)
        for node in (one, other):
            tell(node, [state(number, heartbeat=300 if number < dead else 998 + number % 3) for number in range(1000)])
            table = node.state.table
            for number in range(1000):
                table.liveness[table.row(name(number))] = LivenessCode.DOWN if number < dead else LivenessCode.ALIVE
        result = exchange(one, other)
        assert result.kind == "compact"
        assert result.forms == ["sync", "ackc"]
        syn = result.messages[0]
        assert isinstance(syn, GossipDigestSyn)
        assert syn.compact is not None
        assert not len(syn.compact.escapes)
        sizes[dead] = result.sizes
    # One more symbol costs at most a bit per entry; nothing of the dead is said one by one.
    assert sizes[300][0] < sizes[0][0] + 1000 / 8
    assert sizes[300][1] == sizes[0][1]


def test_the_dead_who_come_back_are_told() -> None:
    one, other = pair(40)
    tell(one, [state(3, heartbeat=1001)])
    for node in (one, other):
        row = node.state.table.row(name(3))
        node.state.table.liveness[row] = LivenessCode.DOWN
    later = at(500)
    exchange(other, one, later)
    assert told(other)[name(3)][1] == 1001
    assert NOW.wall < later.wall
