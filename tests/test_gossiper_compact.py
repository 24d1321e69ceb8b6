"""Compact digests: whatever two nodes know, they give the same result as the plain form, and cost no more."""

from __future__ import annotations

import copy
from collections import Counter as Tally
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from compact_pairs import NOW, WALL, A, B, engine, name, tell, told
from hypothesis import given, settings
from hypothesis import strategies as st

from gossiper.core.engine import CAPABILITIES, GossipEngine
from gossiper.core.exchange import ATTEMPTS_MAX
from gossiper.core.io import Answer, Count, ReplyReceived, RequestReceived, RoundDue, Send
from gossiper.core.messages import (
    CompactAnswer,
    DigestColumns,
    EndpointState,
    GossipDigestAck,
    GossipDigestAck2,
    GossipDigestSyn,
    Sender,
    VersionedValue,
)
from gossiper.core.table import LivenessCode
from gossiper.core.versions import Now, version_of
from gossiper.wire import codec

DAY = 86_400


@dataclass(frozen=True)
class Life:
    """What an endpoint published in one generation: (version, key, value), ascending."""

    generation: int
    interval_ms: int
    ticks: int
    published: tuple[tuple[int, str, str], ...]

    def view(self, ticks: int) -> EndpointState | None:
        """What somebody knows who heard the heartbeat ``ticks``."""
        ticks = max(1, min(ticks, self.ticks))
        known = [entry for entry in self.published if entry[0] >> 4 <= ticks]
        values = {key: VersionedValue(version, value) for version, key, value in known}
        return None if not known else self.state(ticks, known[-1][0], values)

    def state(self, ticks: int, version: int, values: dict[str, VersionedValue]) -> EndpointState:
        endpoint = ""
        return EndpointState(endpoint, self.generation, self.interval_ms, ticks, 0, version, tuple(values.items()))


def life(rng: Random, number: int) -> Life:
    """Of any age; its clock may have been wrong by years when it began."""
    age = rng.choice((3, 12, 20, 40, 100, 1000, 10 * DAY))
    wrong = rng.choice((0, 0, 0, 0, 0, 3, -3, 300, -3600, -10 * 365 * DAY, DAY - 5))
    interval_ms = rng.choice((1000, 1000, 1000, 1000, 500, 3000))
    ticks = max(1, age * 1000 // interval_ms)
    at = sorted({1} | {max(1, ticks - rng.choice((0, 1, 2, 5, 9, 14, 30, 200))) for _ in range(rng.randrange(4))})
    texts = [("STATUS", "NORMAL"), ("HOST_ID", f"22222222-8b86-4d01-b42d-{number:012}"), ("CAPABILITIES", CAPABILITIES)]
    published = [(version_of(1, 0), key, value) for key, value in texts]
    published += [(version_of(tick, counter), f"key{rng.randrange(3)}", f"{tick}") for tick in at for counter in (1, 2)]
    return Life(int(WALL) - age + wrong, interval_ms, ticks, tuple(published))


def lives(rng: Random, number: int) -> list[Life]:
    """One or two incarnations, the second as a rule recent."""
    first = life(rng, number)
    if rng.random() < 0.8:
        return [first]
    second = life(rng, number)
    if second.generation <= first.generation:
        second = replace(second, generation=first.generation + rng.choice((2, 5, 1000)))
    return [first, second] if second.generation < WALL + DAY else [first]


def know(rng: Random, node: GossipEngine, world: dict[str, list[Life]]) -> None:
    """Let a node hear of most of the world, up to some time of each."""
    for endpoint, story in world.items():
        if endpoint == node.config.endpoint or rng.random() < 0.05:
            continue
        chosen = story[-1] if rng.random() < 0.8 else story[0]
        seen: list[EndpointState] = []
        for one in story[: story.index(chosen) + 1]:
            lag = rng.choice((0, 0, 1, 2, 3, 5, 9, 15, 40, 150, 3000))
            if one is chosen or rng.random() < 0.7:
                seen += [state for late in (lag + 6, lag) if (state := one.view(one.ticks - late)) is not None]
        tell(node, [replace(state, endpoint=endpoint) for state in seen])
        row = node.state.table.row(endpoint)
        if row is not None:
            node.state.table.liveness[row] = rng.choice((LivenessCode.ALIVE, LivenessCode.ALIVE, LivenessCode.DOWN))


def pair(rng: Random, size: int) -> tuple[GossipEngine, GossipEngine]:
    """Two nodes that know each other, and different parts of a world."""
    world = {name(number): lives(rng, number) for number in range(size)}
    nodes = engine(A, age_seconds=rng.choice((5, 1000))), engine(B, age_seconds=rng.choice((5, 1000)))
    for node in nodes:
        node.handle(RoundDue(), NOW)
        know(rng, node, world)
    states = [node.state.table for node in nodes]
    for node, table, row in ((nodes[0], states[1], nodes[1].state.local_row), (nodes[1], states[0], 0)):
        if rng.random() < 0.9 or node is nodes[0]:
            values = tuple(table.states[row].items())
            version, generation = int(table.states_version[row]), int(table.generation[row])
            heartbeat = max(1, int(table.heartbeat[row]) - rng.randrange(5))
            tell(node, [EndpointState(table.endpoint(row), generation, 1000, heartbeat, 0, version, values)])
    return nodes


def exchange(one: GossipEngine, other: GossipEngine, form: str) -> tuple[Tally[str], str]:
    """A whole exchange through real bytes, with all that follows; bytes by message, and what kind it was."""
    sizes: Tally[str] = Tally()
    kind = ""
    peer = other.config.endpoint
    digests = one._digests
    first = digests.syn(peer, NOW) if form == "compact" else digests._plain_syn(round(NOW.wall * 1000))
    waiting: list[GossipDigestSyn | GossipDigestAck2] = [first]
    for _ in range(8):
        if not waiting:
            return sizes, kind
        request = waiting.pop(0)
        data = codec.encode(request)
        sizes["ack2" if isinstance(request, GossipDigestAck2) else "syn"] += len(data)
        decode = codec.decode_ack2 if isinstance(request, GossipDigestAck2) else codec.decode_syn
        effects = other.handle(RequestReceived(decode(data)), NOW)
        answer = codec.encode(next(effect.reply for effect in effects if isinstance(effect, Answer)))
        if isinstance(request, GossipDigestSyn):
            sizes["ack"] += len(answer)
        effects = one.handle(ReplyReceived(peer, request, codec.decode_reply_to(request, answer)), NOW)
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.request, GossipDigestSyn | GossipDigestAck2):
                unsolicited = isinstance(effect.request, GossipDigestAck2) and isinstance(request, GossipDigestAck2)
                if effect.peer == peer and not unsolicited:
                    waiting.append(effect.request)
            if isinstance(effect, Count) and effect.name == "gossiper_exchanges_total":
                kind = kind or effect.label
    raise AssertionError("an exchange that does not end")


def both_forms(one: GossipEngine, other: GossipEngine) -> tuple[str, Tally[str], Tally[str]]:
    plain = copy.deepcopy((one, other))
    sizes_plain, _ = exchange(*plain, "plain")
    sizes_compact, kind = exchange(one, other, "compact")
    for ours, theirs in zip((one, other), plain, strict=True):
        mine, expected = told(ours), told(theirs)
        assert mine.keys() == expected.keys()
        for endpoint, known in expected.items():
            assert mine[endpoint] == known, endpoint
    return kind, sizes_compact, sizes_plain


@settings(max_examples=150, deadline=None)
@given(rng=st.randoms(use_true_random=False), size=st.integers(0, 90))
def test_any_two_views_give_the_same_result_as_plain_digests(rng: Random, size: int) -> None:
    both_forms(*pair(rng, size))


def test_such_views_need_every_kind_of_exchange() -> None:
    kinds: Tally[str] = Tally()
    for seed in range(120):
        rng = Random(seed)
        kinds[both_forms(*pair(rng, rng.choice((3, 30, 200))))[0]] += 1
    assert kinds.keys() >= {"compact", "roster_buckets", "states_buckets", "plain"}, kinds


def test_a_clock_set_back_during_an_exchange_leaves_its_second_syn_sound() -> None:
    """Found by simulation: the cut of the first SYN lay in the future of the clock that made the second."""
    one, other = engine(A), engine(B)
    for node, known in ((one, 60), (other, 58)):
        node.handle(RoundDue(), NOW)
        peers = [life(Random(number), number) for number in range(known)]
        states = [state for peer in peers if (state := peer.view(peer.ticks)) is not None]
        tell(node, [replace(state, endpoint=name(n), generation=int(WALL) - 900) for n, state in enumerate(states)])
    table = other.state.table
    values = tuple(table.states[other.state.local_row].items())
    version = int(table.states_version[other.state.local_row])
    tell(one, [EndpointState(B, other.generation, 1000, other.heartbeat, 0, version, values)])
    first = one._digests.syn(B, NOW)
    assert first.compact is not None
    effects = other.handle(RequestReceived(codec.decode_syn(codec.encode(first))), NOW)
    answer = codec.encode(next(effect.reply for effect in effects if isinstance(effect, Answer)))
    ack = codec.decode_reply_to(first, answer)
    effects = one.handle(ReplyReceived(B, first, ack), Now(NOW.monotonic, NOW.wall - 3600))
    again = [effect.request for effect in effects if isinstance(effect, Send) and effect.peer == B]
    second = next(request for request in again if isinstance(request, GossipDigestSyn))
    assert second.compact is not None, "most of the roster is alike"
    assert second.compact.plain_buckets
    codec.decode_syn(codec.encode(second))


def test_an_exchange_has_a_bounded_number_of_syns() -> None:
    """Whatever the answers say: rosters, then states, then rosters again."""
    one, other = engine(A), engine(B)
    for node in (one, other):
        node.handle(RoundDue(), NOW)
        peers = [life(Random(number), number) for number in range(60)]
        states = [state for peer in peers if (state := peer.view(peer.ticks)) is not None]
        tell(node, [replace(state, endpoint=name(n), generation=int(WALL) - 900) for n, state in enumerate(states)])
    table = other.state.table
    values = tuple(table.states[other.state.local_row].items())
    version = int(table.states_version[other.state.local_row])
    tell(one, [EndpointState(B, other.generation, 1000, other.heartbeat, 0, version, values)])
    request: GossipDigestSyn | None = one._digests.syn(B, NOW)
    sender, none = Sender("c", 1, B, other.generation), DigestColumns.empty()
    nothing = np.zeros(0, dtype=np.int64)
    sent = 0
    for number in range(10):
        if request is None:
            break
        sent += 1
        assert request.compact is not None, "most of the roster is alike"
        unlike = (1, *request.exchange.roster.bucket_digests(8)[1:]) if request.exchange else ()
        rosters, states_hashes = (unlike, ()) if number % 2 == 0 else ((), (1,) * (request.compact.buckets or 8))
        answer = CompactAnswer(np.zeros(0, dtype=np.uint8), nothing, nothing, nothing, nothing, rosters, states_hashes)
        ack = GossipDigestAck(sender, request.as_of_ms, none, none, (), compact=answer)
        effects = one.handle(ReplyReceived(B, request, ack), NOW)
        syns = [e.request for e in effects if isinstance(e, Send) and isinstance(e.request, GossipDigestSyn)]
        assert len(syns) <= 1
        request = syns[0] if syns else None
    assert sent == ATTEMPTS_MAX
