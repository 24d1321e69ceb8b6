"""Two engines with what somebody told them, and exchanges between them through real bytes, leg by leg."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from random import Random

from gossiper.core.engine import CAPABILITIES, EngineConfig, GossipEngine
from gossiper.core.io import Answer, Count, ReplyReceived, RequestReceived, RoundDue, Send
from gossiper.core.messages import (
    EndpointState,
    GossipDigestAck,
    GossipDigestAck2,
    GossipDigestSyn,
    Sender,
    VersionedValue,
)
from gossiper.core.roster import Roster, cut_of
from gossiper.core.roster_lookup import roster_at
from gossiper.core.versions import Now, version_of
from gossiper.wire import codec

WALL = 1_700_000_000.0
MONOTONIC = 10_000_000.0
NOW = Now(MONOTONIC, WALL)
AS_OF_MS = round(WALL * 1000)
A, B = "10.0.0.1:7000", "10.0.0.2:7000"
CUT_MS = cut_of(AS_OF_MS, 1000)


def name(number: int) -> str:
    return f"10.1.{number // 250}.{number % 250 + 1}:7000"


def host_id(number: int) -> str:
    return f"22222222-8b86-4d01-b42d-{number:012}"


def at(seconds: float) -> Now:
    """So many seconds after NOW."""
    return Now(MONOTONIC + seconds, WALL + seconds)


def engine(
    endpoint: str,
    *,
    age_seconds: int = 1000,
    capabilities: str = CAPABILITIES,
    interval_ms: int = 1000,
    wall_offset_seconds: float = 0.0,
) -> GossipEngine:
    """A node that began so long before NOW, by a clock that is off by so much."""
    wall = WALL + wall_offset_seconds
    made = GossipEngine(
        EngineConfig(cluster_name="c", endpoint=endpoint, interval_ms=interval_ms),
        generation=int(wall) - age_seconds,
        values={
            "STATUS": "NORMAL",
            "HOST_ID": f"11111111-8b86-4d01-b42d-{endpoint.split(':', maxsplit=1)[0].replace('.', ''):>012}",
            "CAPABILITIES": capabilities,
        },
        rng=Random(1),
        now=Now(MONOTONIC - age_seconds, wall - age_seconds),
    )
    made.handle(RoundDue(), Now(MONOTONIC, wall))
    return made


def state(
    number: int,
    *,
    age_seconds: int = 1000,
    heartbeat: int | None = None,
    values: Iterable[tuple[str, str]] = (),
    tick: int = 1,
    endpoint: str | None = None,
    generation: int | None = None,
    ids: int | None = None,
) -> EndpointState:
    """The whole state of the endpoint ``number``, all of it published at ``tick``."""
    version = version_of(tick, 0)
    known = {"STATUS": "NORMAL", "HOST_ID": host_id(number if ids is None else ids), **dict(values)}
    return EndpointState(
        endpoint=endpoint or name(number),
        generation=int(WALL) - age_seconds if generation is None else generation,
        interval_ms=1000,
        heartbeat=max(tick, age_seconds) if heartbeat is None else heartbeat,
        from_version=0,
        states_version=version,
        values=tuple((key, VersionedValue(version, text)) for key, text in known.items()),
    )


def tell(node: GossipEngine, states: Iterable[EndpointState], now: Now = NOW, *, at_once: int = 1) -> None:
    """As if somebody else had pushed them, one by one (or more ``at_once``)."""
    sender = Sender("c", 1, "10.9.9.9:7000", 1)
    for several in batched(states, at_once):
        node.handle(RequestReceived(GossipDigestAck2(sender, several)), now)


def batched(states: Iterable[EndpointState], size: int) -> Iterator[tuple[EndpointState, ...]]:
    """``itertools.batched`` of Python 3.12."""
    left = iter(states)
    while several := tuple(islice(left, size)):
        yield several


def introduce(one: GossipEngine, other: GossipEngine, now: Now = NOW) -> None:
    """Let each know the other."""
    for teller, listener in ((one, other), (other, one)):
        table, row = teller.state.table, teller.state.local_row
        values = tuple(table.states[row].items())
        version, heartbeat = int(table.states_version[row]), int(table.heartbeat[row])
        interval_ms = int(table.interval_ms[row])
        told = EndpointState(teller.config.endpoint, teller.generation, interval_ms, heartbeat, 0, version, values)
        tell(listener, [told], now)


def pair(
    size: int, *, interval_ms: int = 1000, ages: Callable[[int], int | None] = lambda _: None
) -> tuple[GossipEngine, GossipEngine]:
    """Two nodes that know each other and the same others, whose heartbeats are ``ages`` (None: as expected)."""
    nodes = engine(A, interval_ms=interval_ms), engine(B, interval_ms=interval_ms)
    for node in nodes:
        tell(node, [state(number, heartbeat=ages(number)) for number in range(size)], at_once=500 if size > 999 else 1)
    introduce(*nodes)
    return nodes


def roster(node: GossipEngine, cut_ms: int = CUT_MS) -> Roster:
    return roster_at(node.state.table, cut_ms)


Legs = GossipDigestSyn | GossipDigestAck | GossipDigestAck2


@dataclass
class Exchanged:
    """What an exchange was."""

    kind: str = ""
    messages: list[Legs] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def forms(self) -> list[str]:
        """Each message, and whether it is compact."""
        words = {GossipDigestSyn: "syn", GossipDigestAck: "ack", GossipDigestAck2: "ack2"}
        return [words[type(one)] + ("c" if getattr(one, "compact", None) is not None else "") for one in self.messages]


def exchange(
    one: GossipEngine,
    other: GossipEngine,
    now: Now = NOW,
    *,
    syn: GossipDigestSyn | None = None,
    between: Callable[[GossipDigestAck], GossipDigestAck | None] = lambda ack: ack,
    other_now: Now | None = None,
    later: Now | None = None,
) -> Exchanged:
    """A whole exchange through bytes, with all that follows.

    ``between`` changes (or loses) each ACK on its way, ``syn`` is sent instead of the own one; the receiver's clock is
    ``other_now``, and the sender's ``later`` when answers arrive.
    """
    result = Exchanged()
    peer = other.config.endpoint
    waiting: list[GossipDigestSyn | GossipDigestAck2] = [one._digests.syn(peer, now) if syn is None else syn]
    for _ in range(8):
        if not waiting:
            return result
        request = waiting.pop(0)
        data = codec.encode(request)
        result.messages.append(request)
        result.sizes.append(len(data))
        decode = codec.decode_ack2 if isinstance(request, GossipDigestAck2) else codec.decode_syn
        effects = other.handle(RequestReceived(decode(data)), other_now or now)
        _count(result, effects)
        answer = codec.encode(next(effect.reply for effect in effects if isinstance(effect, Answer)))
        reply = codec.decode_reply_to(request, answer)
        if isinstance(reply, GossipDigestAck):
            changed = between(reply)
            if changed is None:
                continue
            reply = changed
            result.messages.append(reply)
            result.sizes.append(len(answer))
        effects = one.handle(ReplyReceived(peer, request, reply), later or now)
        _count(result, effects)
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.request, GossipDigestSyn | GossipDigestAck2):
                pushed = isinstance(effect.request, GossipDigestAck2) and isinstance(request, GossipDigestAck2)
                if effect.peer == peer and not pushed:
                    waiting.append(effect.request)
    raise AssertionError("an exchange that does not end")


def _count(result: Exchanged, effects: Iterable[object]) -> None:
    for effect in effects:
        if isinstance(effect, Count):
            key = (effect.name, effect.label)
            result.counts[key] = result.counts.get(key, 0) + effect.amount
            if effect.name == "gossiper_exchanges_total":
                result.kind = result.kind or effect.label


Known = dict[str, tuple[int, int, int, dict[str, VersionedValue]]]


def told(node: GossipEngine) -> Known:
    """All that a node knows of everybody: generation, heartbeat, states_version, values."""
    table = node.state.table
    return {
        table.endpoint(row): (
            int(table.generation[row]),
            int(table.heartbeat[row]),
            int(table.states_version[row]),
            dict(table.states[row]),
        )
        for row in map(int, table.rows())
    }


def restarted(one: EndpointState, *, age_seconds: int) -> EndpointState:
    """The next incarnation of an endpoint."""
    return replace(one, generation=int(WALL) - age_seconds, heartbeat=max(1, age_seconds))
