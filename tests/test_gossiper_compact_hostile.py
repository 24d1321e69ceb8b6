"""Compact digests under wrong clocks, unlucky hashes and hostile peers: bytes may be lost, truth may not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest
from compact_pairs import (
    AS_OF_MS,
    CUT_MS,
    MONOTONIC,
    NOW,
    WALL,
    A,
    B,
    Exchanged,
    at,
    engine,
    exchange,
    introduce,
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
from xxhash import xxh3_64_intdigest, xxh3_128_digest

import gossiper.core.compact as compact_module
import gossiper.core.roster as roster_module
from gossiper.core import evidence
from gossiper.core.engine import CAPABILITIES, GossipEngine
from gossiper.core.io import Answer, Count, ReplyReceived, RequestReceived, Send
from gossiper.core.messages import (
    CompactAnswer,
    CompactDigests,
    GossipDigestAck,
    GossipDigestAck2,
    GossipDigestSyn,
    Sender,
)
from gossiper.core.roster_lookup import _ROSTERS_MAX
from gossiper.core.table import _COLUMNS, LivenessCode
from gossiper.core.versions import Now
from gossiper.errors import PeerProtocolError
from gossiper.wire import codec

YEAR_SECONDS = 365 * 86_400
SIZE = 60
NOTHING = np.zeros(0, dtype=np.int64)
NO_SYMBOLS = np.zeros(0, dtype=np.uint8)


def snapshot(node: GossipEngine) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """All that a node believes."""
    table = node.state.table
    return {column: getattr(table, column).tobytes() for column in _COLUMNS}, [dict(one) for one in table.states]


def plain_too(one: GossipEngine, other: GossipEngine, now: Now, other_now: Now) -> Exchanged:
    """A compact exchange, whose result must be that of a plain one."""
    plain_one, plain_other = copy.deepcopy((one, other))
    plain_syn = plain_one._digests._plain_syn(round(now.wall * 1000))
    exchange(plain_one, plain_other, now, syn=plain_syn, other_now=other_now)
    result = exchange(one, other, now, other_now=other_now)
    assert told(one) == told(plain_one)
    assert told(other) == told(plain_other)
    return result


# -- wrong clocks, huge numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("years", [-40, -3, -1 / 365, -1e-4, 1e-4, 1 / 365, 3, 200])
@pytest.mark.parametrize("who", ["sender", "receiver"])
def test_a_clock_that_is_off_by_years(years: float, who: str) -> None:
    """It costs bytes: the sender's names the cut and the base, and both sides use the same."""
    one, other = pair(SIZE)
    tell(one, [state(number, heartbeat=1003 + number, values=[("x", "1")], tick=990) for number in range(5)])
    tell(other, [state(number, heartbeat=1004 + number, values=[("x", "2")], tick=995) for number in range(3, 9)])
    wrong = Now(MONOTONIC, WALL + years * YEAR_SECONDS)
    if who == "sender":
        plain_too(one, other, wrong, NOW)
    else:
        plain_too(one, other, NOW, wrong)


def test_clocks_that_were_wrong_when_generations_began() -> None:
    """Each such endpoint costs a number of its own, and its heartbeat is told all the same."""
    one, other = pair(SIZE)
    for node, more in ((one, 0), (other, 1)):
        odd = [state(100, age_seconds=20 * YEAR_SECONDS, heartbeat=500 + more)]
        odd += [state(101, age_seconds=-3_600, heartbeat=700 + more)]
        odd += [state(102, generation=1, heartbeat=3 + more)]
        odd += [state(103, generation=1, heartbeat=int(WALL) - 5 + more)]
        tell(node, odd)
    result = plain_too(one, other, at(8_000), at(8_000))
    assert result.kind == "compact"
    assert told(one)[name(100)][1] == 501


def test_ticks_far_behind_and_huge_ones() -> None:
    one, other = pair(SIZE, interval_ms=10)
    for node, more in ((one, 0), (other, 7)):
        slow = replace(state(100, age_seconds=30 * YEAR_SECONDS, heartbeat=1 + more), states_version=17)
        quick = replace(state(101, age_seconds=30 * YEAR_SECONDS), interval_ms=10)
        quick = replace(quick, heartbeat=30 * YEAR_SECONDS * 100 - more)
        tell(node, [slow, quick])
        assert node.state.table.row(name(101)) is not None
    result = plain_too(one, other, NOW, NOW)
    assert result.kind == "compact"
    assert told(other)[name(101)][1] == 30 * YEAR_SECONDS * 100
    assert told(one)[name(100)][1] == 8


@pytest.mark.parametrize("kind", ["roster_buckets", "states_buckets"])
@pytest.mark.parametrize("jump_seconds", [-20 * YEAR_SECONDS, -3_600, -17, 3_600, 100 * 86_400, 20 * YEAR_SECONDS])
def test_a_clock_that_is_set_during_an_exchange(kind: str, jump_seconds: float) -> None:
    one, other = pair(SIZE)
    tell(one, [restarted(state(7), age_seconds=100) if kind == "roster_buckets" else state(7, tick=50)])
    result = exchange(one, other, later=Now(MONOTONIC, WALL + jump_seconds))
    assert result.kind == kind
    assert result.forms[:3] == ["sync", "ackc", "sync"]
    assert told(one) == told(other)


# -- unlucky hashes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [0, 8])
@pytest.mark.parametrize("form", ["generation", "endpoint"])
def test_half_a_hash_of_rosters_that_is_equal_is_not_enough(
    half: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlucky(data: bytes) -> bytes:
        digest = bytearray(xxh3_128_digest(data))
        digest[half : half + 8] = bytes(8)
        return bytes(digest)

    monkeypatch.setattr(roster_module, "xxh3_128_digest", unlucky)
    one, other = pair(SIZE)
    if form == "generation":
        tell(one, [restarted(state(7), age_seconds=100)])
        tell(other, [restarted(state(8), age_seconds=100)])
    else:
        tell(one, [state(100)])
        tell(other, [state(101)])
    assert len(roster(one)) == len(roster(other))
    assert roster(one).digest[half : half + 8] == roster(other).digest[half : half + 8]
    result = plain_too(one, other, NOW, NOW)
    assert result.kind == "roster_buckets"
    assert told(one) == told(other)


def test_the_count_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster_module, "xxh3_128_digest", lambda _: bytes(16))
    one, other = pair(SIZE)
    tell(one, [state(100)])
    assert plain_too(one, other, NOW, NOW).kind == "roster_buckets"
    assert told(one) == told(other)


@pytest.mark.parametrize("what", ["states", "buckets", "heartbeats behind"])
def test_a_hash_that_is_equal_by_chance_costs_delay(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is seeded with the time of the SYN, so the next exchange has another."""

    def unlucky(data: bytes, seed: int = 0) -> int:
        return 7 if seed == AS_OF_MS else xxh3_64_intdigest(data, seed)

    monkeypatch.setattr(roster_module if what == "buckets" else compact_module, "xxh3_64_intdigest", unlucky)
    one, other = pair(SIZE)
    if what == "heartbeats behind":
        for node, heartbeat in ((one, 400), (other, 401)):
            tell(node, [state(100, heartbeat=heartbeat)])
            node.state.table.liveness[node.state.table.row(name(100))] = LivenessCode.DOWN
    else:
        tell(one, [state(7, tick=50, values=[("x", "1")])])
    result = exchange(one, other)
    assert result.kind == "compact"
    assert result.forms[:2] == ["sync", "ackc"]
    assert told(one) != told(other)
    exchange(one, other, at(1))
    known = told(one), told(other)
    for number in (7, 100):
        assert known[0].get(name(number)) == known[1].get(name(number))


# -- hostile columns ---------------------------------------------------------------------------------------------------


def nothing_invented(node: GossipEngine, before: dict[str, Any], now: Now = NOW) -> None:
    """Heartbeats may have been believed as far as time allows; nothing else is any different."""
    after = told(node)
    assert after.keys() == before.keys()
    table = node.state.table
    limits = evidence.limits(table, np.arange(table.capacity), now)
    for endpoint, (generation, heartbeat, version, values) in after.items():
        assert (generation, version, values) == (before[endpoint][0], before[endpoint][2], before[endpoint][3])
        assert before[endpoint][1] <= heartbeat <= max(before[endpoint][1], limits[table.row(endpoint)])
    own = node.config.endpoint
    assert after[own] == before[own]


NUMBERS = st.integers(0, 2**62 - 1) | st.integers(0, 2000) | st.sampled_from([2**58 - 1, 2**58, 2**62 - 1])


@st.composite
def columns(draw: st.DrawFn, count: int) -> tuple[Any, Any]:
    symbols = np.array(draw(st.lists(st.integers(0, 255), min_size=count, max_size=count)), dtype=np.uint8)
    if draw(st.booleans()):
        symbols = np.full(count, draw(st.sampled_from([0, 1, 2, 3, 19, 255])), dtype=np.uint8)
    escaped = int((symbols == 0).sum())
    escapes = draw(st.lists(NUMBERS, min_size=escaped, max_size=escaped))
    return symbols, np.array(escapes, dtype=np.int64)


@st.composite
def listed(draw: st.DrawFn, count: int) -> tuple[Any, Any]:
    index = sorted(draw(st.sets(st.integers(0, count - 1), max_size=count)))
    versions = draw(st.lists(NUMBERS, min_size=len(index), max_size=len(index)))
    return np.array(index, dtype=np.int64), np.array(versions, dtype=np.int64)


@st.composite
def hostile_digests(draw: st.DrawFn, honest: CompactDigests) -> CompactDigests:
    """Some of its columns replaced: all of them what the codec lets through."""
    base = draw(st.sampled_from([0, 1, -1, honest.base, 2**61 - 1, 1 - 2**61]) | st.integers(-(10**6), 10**6))
    changed = replace(honest, base=draw(st.just(honest.base) | st.just(base)))
    if draw(st.booleans()):
        symbols, escapes = draw(columns(honest.count))
        changed = replace(changed, symbols=symbols, escapes=escapes)
    if draw(st.booleans()):
        index, offsets = draw(listed(honest.count))
        changed = replace(changed, recent_index=index, recent_offsets=offsets)
    hashes = st.integers(0, 2**64 - 1)
    changed = replace(
        changed,
        recent_ticks=draw(st.just(honest.recent_ticks) | st.integers(0, 2**32 - 1)),
        behind_hash=draw(st.just(honest.behind_hash) | hashes),
        states_hash=draw(st.just(honest.states_hash) | hashes),
    )
    if draw(st.integers(0, 4)) == 0:
        mask = draw(st.integers(1, 2**16 - 1))
        changed = replace(changed, symbols=NO_SYMBOLS, escapes=NOTHING, buckets=16, states_buckets=mask)
    return changed


_PAIR = pair(12)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_hostile_columns_of_a_syn_change_nothing_but_heartbeats(data: st.DataObject) -> None:
    one, other = copy.deepcopy(_PAIR)
    syn = one._digests.syn(B, NOW)
    assert syn.compact is not None
    syn = replace(syn, compact=data.draw(hostile_digests(syn.compact)), exchange=None)
    before, columns_before = told(other), snapshot(other)
    request = codec.decode_syn(codec.encode(syn))
    try:
        effects = other.handle(RequestReceived(request), NOW)
    except PeerProtocolError:
        assert snapshot(other) == columns_before
        return
    nothing_invented(other, before)
    answer = next(effect.reply for effect in effects if isinstance(effect, Answer))
    codec.decode_reply_to(request, codec.encode(answer))


@st.composite
def hostile_answers(draw: st.DrawFn, asked: CompactDigests) -> CompactAnswer:
    buckets = draw(st.sampled_from([8, 16, 32, 64]))
    hashes = tuple(draw(st.lists(st.integers(0, 2**64 - 1), min_size=buckets, max_size=buckets)))
    if draw(st.integers(0, 3)) == 0:
        return CompactAnswer(NO_SYMBOLS, NOTHING, NOTHING, NOTHING, NOTHING, hashes)
    index, versions = draw(listed(asked.count))
    if asked.states_buckets:
        return CompactAnswer(NO_SYMBOLS, NOTHING, index, versions, NOTHING)
    symbols, escapes = draw(columns(asked.count))
    behind = np.array(draw(st.lists(NUMBERS, max_size=asked.count)), dtype=np.int64)
    states = () if asked.buckets else draw(st.just(()) | st.just(hashes))
    return CompactAnswer(symbols, escapes, index, versions, behind, (), states)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_hostile_answers_change_nothing_but_heartbeats(data: st.DataObject) -> None:
    """Also those to the second and third SYN, and what is sent then are states that are known."""
    one, _ = copy.deepcopy(_PAIR)
    tell(one, [state(number, heartbeat=300) for number in range(20, 50)])
    one.state.table.liveness[one.state.table.row(name(21))] = LivenessCode.DOWN
    before = told(one)
    request: GossipDigestSyn | None = one._digests.syn(B, NOW)
    legs = 0
    while request is not None and request.compact is not None:
        legs += 1
        assert legs <= 3
        answer = data.draw(hostile_answers(request.compact))
        empty = request.digests.from_rows([])
        ack = GossipDigestAck(Sender("c", 1, B, int(WALL) - 1000), AS_OF_MS, empty, empty, (), 0, answer)
        reply = codec.decode_reply_to(request, codec.encode(ack))
        effects = one.handle(ReplyReceived(B, request, reply), NOW)
        nothing_invented(one, before)
        request = None
        for effect in effects:
            if isinstance(effect, Send):
                codec.encode(effect.request)
                if isinstance(effect.request, GossipDigestSyn):
                    request = effect.request
                elif isinstance(effect.request, GossipDigestAck2):
                    assert {one.endpoint for one in effect.request.states} <= before.keys()


def test_heartbeats_beyond_what_time_allows_are_refused_and_counted() -> None:
    one, other = pair(12)
    before = told(other)
    syn = one._digests.syn(B, NOW)
    assert syn.compact is not None
    own = next(i for i, row in enumerate(roster(other).rows) if other.state.table.endpoint(int(row)) == B)
    symbols = np.zeros(syn.compact.count, dtype=np.uint8)
    escapes = np.full(len(symbols), 2**58 - 1, dtype=np.int64)
    hostile = replace(syn, compact=replace(syn.compact, symbols=symbols, escapes=escapes), exchange=None)
    effects = other.handle(RequestReceived(codec.decode_syn(codec.encode(hostile))), NOW)
    counted = {(e.name, e.label): e.amount for e in effects if isinstance(e, Count)}
    assert counted["gossiper_refused_entries_total", "invalid_heartbeat"] == len(symbols) - 1
    assert own >= 0
    assert told(other) == before


@pytest.mark.parametrize("heartbeat", [2**58, 2**62 - 1])
def test_a_heartbeat_whose_versions_would_not_fit_is_refused_whole(heartbeat: int) -> None:
    one, other = pair(12)
    syn = one._digests.syn(B, NOW)
    assert syn.compact is not None
    symbols = syn.compact.symbols.copy()
    symbols[3] = 0
    changed = replace(syn.compact, symbols=symbols, escapes=np.array([heartbeat], dtype=np.int64))
    before = snapshot(other)
    with pytest.raises(PeerProtocolError, match="beyond") as caught:
        other.handle(RequestReceived(codec.decode_syn(codec.encode(replace(syn, compact=changed)))), NOW)
    assert caught.value.reason == "invalid_heartbeat"
    assert snapshot(other) == before


@pytest.mark.parametrize("offset", [2**62 - 16 * 900, 2**62 - 1])
def test_a_version_that_does_not_fit_is_refused_whole(offset: int) -> None:
    one, other = pair(12)
    syn = one._digests.syn(B, NOW)
    assert syn.compact is not None
    changed = replace(syn.compact, recent_index=np.array([5]), recent_offsets=np.array([offset], dtype=np.int64))
    before = snapshot(other)
    with pytest.raises(PeerProtocolError, match="states_version beyond"):
        other.handle(RequestReceived(codec.decode_syn(codec.encode(replace(syn, compact=changed)))), NOW)
    assert snapshot(other) == before


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_edited_bytes_are_refused_whole_or_invent_nothing(data: st.DataObject) -> None:
    one, other = copy.deepcopy(_PAIR)
    tell(one, [state(7, values=[("x", "1")], tick=995), state(30, age_seconds=4)])
    edit = bytearray(codec.encode(one._digests.syn(B, NOW)))
    # Behind the sender: whoever claims to be another one is not what is tried here.
    first = edit.index(b"\x10", 30) if b"\x10" in edit[30:] else 30
    for _ in range(data.draw(st.integers(1, 3))):
        edit[data.draw(st.integers(first, len(edit) - 1))] = data.draw(st.integers(0, 255))
    before = snapshot(other)
    known = told(other)
    try:
        request = codec.decode_syn(bytes(edit))
        other.handle(RequestReceived(request), NOW)
    except PeerProtocolError:
        assert snapshot(other) == before
    else:
        nothing_invented(other, known)


def test_rosters_of_many_cuts_do_not_grow_the_memory() -> None:
    one, other = pair(12)
    syn = one._digests.syn(B, NOW)
    assert syn.compact is not None
    for number in range(200):
        bomb = replace(syn.compact, cut_ms=CUT_MS - number * 7, count=100_000, symbols=np.full(100_000, 19, np.uint8))
        bomb = replace(bomb, escapes=NOTHING)
        data = codec.encode(replace(syn, compact=bomb, exchange=None))
        assert len(data) < 200
        effects = other.handle(RequestReceived(codec.decode_syn(data)), NOW)
        answer = next(effect.reply for effect in effects if isinstance(effect, Answer))
        assert len(codec.encode(answer)) < 400
    assert len(other.state.table.rosters) <= _ROSTERS_MAX


# -- late, repeated, of another time -----------------------------------------------------------------------------------


def swap(node: GossipEngine, old: str, newcomer: Any) -> Callable[[GossipDigestAck], GossipDigestAck]:
    """While an answer is under way ``old`` is forgotten, and its row given to a newcomer."""

    def act(ack: GossipDigestAck) -> GossipDigestAck:
        row = node.state.table.row(old)
        if row is not None:
            node.state._drop(row)
            tell(node, [newcomer])
            assert node.state.table.row(newcomer.endpoint) == row
        return ack

    return act


@pytest.mark.parametrize("form", ["heartbeat", "request", "behind", "states_buckets", "roster_buckets"])
def test_an_answer_after_rows_were_reused_touches_nobody_else(form: str) -> None:
    """The newcomer has the generation of the one that was forgotten, so that only its name tells them apart."""
    one, other = pair(SIZE)
    match form:
        case "heartbeat":
            tell(other, [state(7, heartbeat=1005)])
        case "request":
            tell(one, [state(7, values=[("x", "1")], tick=999)])
        case "behind":
            for node, heartbeat in ((one, 400), (other, 500)):
                tell(node, [state(200, heartbeat=heartbeat)])
                node.state.table.liveness[node.state.table.row(name(200))] = LivenessCode.DOWN
        case "states_buckets":
            tell(one, [state(7, values=[("x", "1")], tick=50)])
        case "roster_buckets":
            tell(one, [restarted(state(8), age_seconds=100)])
    victim = name(200) if form == "behind" else name(7)
    newcomer = state(100, heartbeat=990)
    result = exchange(one, other, between=swap(one, victim, newcomer))
    assert told(one)[newcomer.endpoint] == (newcomer.generation, 990, 16, dict(newcomer.values))
    for message in result.messages:
        if isinstance(message, GossipDigestAck2):
            assert form != "request" or newcomer.endpoint not in {one.endpoint for one in message.states}
            for told_state in message.states:
                if told_state.endpoint == newcomer.endpoint:
                    assert told_state.values == tuple(sorted(newcomer.values))


@pytest.mark.parametrize("age_seconds", [3, 100])
def test_an_answer_after_a_restart_says_nothing_of_the_new_generation(age_seconds: int) -> None:
    one, other = pair(SIZE)
    tell(other, [state(7, heartbeat=1005)])
    tell(one, [state(8, values=[("x", "1")], tick=999)])
    new = [restarted(state(number), age_seconds=age_seconds) for number in (7, 8)]

    def restart(ack: GossipDigestAck) -> GossipDigestAck:
        tell(one, new)
        return ack

    result = exchange(one, other, between=restart)
    for number, begun in zip((7, 8), new, strict=True):
        assert told(one)[name(number)][:2] == (begun.generation, begun.heartbeat)
    (sent,) = [message for message in result.messages if isinstance(message, GossipDigestAck2)]
    # It had asked for what is newer than a version of the generation before: it gets the whole of the new one.
    assert [(whole.endpoint, whole.generation, whole.from_version) for whole in sent.states] == [
        (name(8), new[1].generation, 0)
    ]


@settings(max_examples=40, deadline=None)
@given(rng=st.randoms(use_true_random=False))
def test_replayed_and_duplicated_messages_change_nothing_more(rng: Random) -> None:
    one, other = copy.deepcopy(_PAIR)
    seen: list[tuple[GossipDigestSyn, GossipDigestAck]] = []
    for second in range(4):
        now = at(second)
        for node in (one, other):
            number = rng.randrange(12)
            heartbeat = 1000 + second
            tell(node, [state(number, heartbeat=heartbeat, values=[("x", f"{second}")], tick=heartbeat)], now)
        legs = exchange(one, other, now).messages
        seen += [
            (first, second_leg)
            for first, second_leg in pairwise(legs)
            if isinstance(first, GossipDigestSyn) and isinstance(second_leg, GossipDigestAck)
        ]
    assert seen
    before = told(one), told(other)
    for _ in range(10):
        syn, ack = rng.choice(seen)
        if rng.random() < 0.5:
            other.handle(RequestReceived(codec.decode_syn(codec.encode(replace(syn, exchange=None)))), at(5))
        else:
            one.handle(ReplyReceived(B, syn, ack), at(5))
        assert (told(one), told(other)) == before


def test_an_answer_is_lost_and_the_next_exchange_makes_up_for_it() -> None:
    one, other = pair(SIZE)
    tell(one, [state(7, values=[("x", "1")], tick=50)])
    tell(other, [state(8, heartbeat=1005)])
    assert exchange(one, other, between=lambda _: None).forms == ["sync"]
    exchange(one, other, at(1))
    known = told(one), told(other)
    assert {k: v for k, v in known[0].items() if k not in {A, B}} == {
        k: v for k, v in known[1].items() if k not in {A, B}
    }


# -- who speaks what ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sender", "receiver"), [("plain", CAPABILITIES), (CAPABILITIES, "plain")])
def test_one_that_speaks_only_plain_digests_gets_and_sends_them(sender: str, receiver: str) -> None:
    one, other = engine(A, capabilities=sender), engine(B, capabilities=receiver)
    for node in (one, other):
        tell(node, [state(number) for number in range(SIZE)])
    introduce(one, other)
    tell(one, [state(7, values=[("x", "1")], tick=50)])
    tell(other, [state(8, values=[("x", "1")], tick=50)])
    result = exchange(one, other)
    assert result.kind == "plain"
    assert result.forms == ["syn", "ack", "ack2"]
    assert told(one) == told(other)


def test_a_node_that_does_not_know_the_columns_at_all_costs_bytes() -> None:
    """It was restarted with an older version, and the sender has not heard of that: it sees a short list of digests."""
    one, other = pair(SIZE)
    tell(one, [state(7, values=[("x", "1")], tick=50)])
    tell(other, [state(8, values=[("x", "1")], tick=50)])
    syn = one._digests.syn(B, NOW)
    assert syn.compact is not None
    stripped = codec.decode_syn(codec.encode(replace(syn, compact=None, exchange=None)))
    effects = other.handle(RequestReceived(stripped), NOW)
    ack = next(effect.reply for effect in effects if isinstance(effect, Answer))
    assert isinstance(ack, GossipDigestAck)
    assert len(ack.states) == SIZE + 2
    counted = one.handle(ReplyReceived(B, syn, codec.decode_reply_to(syn, codec.encode(ack))), NOW)
    assert Count("gossiper_exchanges_total", "plain") in counted
    assert told(one)[name(8)] == told(other)[name(8)]
