"""A cluster of whole cores in virtual time, for measuring: real engines, the real codec, no shadow rounds or checks.

``gossiper.simulation`` hunts for faults and looks at every event; here nothing is looked at but what an exchange costs,
so that 1,000 engines fit. A cluster begins settled: each engine is given the states of all others as alive, instead
of the million ECHOs by which they would find that out. In one process the engines share the values, not the tables.
Delays are those of one network; nothing is lost; a call to a node that does not run fails after one delay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

import numpy as np

from benchmarks.steady_cluster import CLUSTER, HOUR_SECONDS, WALL, Lags, endpoint, values
from gossiper.core.digest import endpoint_state
from gossiper.core.engine import EngineConfig, GossipEngine
from gossiper.core.io import (
    Answer,
    Count,
    Effect,
    EngineEvent,
    GenerationPersisted,
    Notify,
    PersistGeneration,
    ReplyReceived,
    RequestReceived,
    RoundDue,
    Send,
    SendFailed,
    ShutdownRequested,
)
from gossiper.core.messages import DigestColumns, GossipDigestAck2, GossipDigestSyn, Reply, Request
from gossiper.core.peers import PeerPolicy
from gossiper.core.rumours import FANOUT_DEFAULT
from gossiper.core.table import LivenessCode
from gossiper.core.versions import Now
from gossiper.errors import PeerProtocolError
from gossiper.events import Event
from gossiper.simulation.loop import VirtualLoop
from gossiper.transport.inbound import DECODERS
from gossiper.wire import codec

#: Monotonic seconds at the beginning: every node can be months old.
MONOTONIC: Final = 10_000_000.0
SEEDS: Final = 2
#: Wall clocks differ by so much, as NTP leaves them.
CLOCK_SECONDS_MAX: Final = 0.05
SHUTDOWN_SECONDS: Final = 2.0
_INTERVAL_SECONDS: Final = 1.0


@dataclass(slots=True)
class Exchange:
    """What one exchange cost: protobuf bytes per kind of message, all SYNs and ACKs of it together."""

    began: float
    source: str
    peer: str
    kind: str = ""
    """The label of ``gossiper_exchanges_total``; "" until the first ACK has arrived, two labels after falling back."""
    messages: list[tuple[str, bytes]] = field(default_factory=list)
    digests: DigestColumns | None = None
    """What the caller knew when it began, kept while somebody listens to ``on_syn``."""
    plain: list[tuple[str, bytes]] = field(default_factory=list)
    """What the plain form would have been between the same two states; empty when not looked at."""


@dataclass(slots=True, eq=False)
class Member:
    """A node that runs."""

    number: int
    engine: GossipEngine
    clock_seconds: float
    alive: bool = True

    @property
    def endpoint(self) -> str:
        """Its endpoint."""
        return self.engine.config.endpoint


class VirtualCluster:
    """Members by endpoint, one loop, hooks for those who measure.

    Args:
        nodes: how many there are at the beginning, settled, between an hour and 30 days old.
        seed: everything else follows from it.
        seeds: how many of them are seeds.
        policy: preferences among peers.
        fanout: of pushes; 0: news travels by digests only.
    """

    def __init__(
        self,
        nodes: int,
        *,
        seed: int = 1,
        seeds: int = SEEDS,
        policy: PeerPolicy | None = None,
        fanout: int | None = None,
    ) -> None:
        self.loop = VirtualLoop(seed)
        self.members: dict[str, Member] = {}
        self.on_syn: Callable[[Member, Member, Exchange], None] | None = None
        """Called when a SYN arrives, before the receiver looks at it."""
        self.on_exchange: Callable[[Exchange], None] | None = None
        """Called with the exchange before, when a member begins a new one with anybody."""
        self.on_event: Callable[[Member, Event], None] | None = None
        self._policy = policy or PeerPolicy()
        self._fanout = fanout
        self._rng = self.loop.stream("cluster")
        self._network = self.loop.stream("network")
        self._seeds = tuple(endpoint(number) for number in range(min(seeds, nodes)))
        self._settle(nodes)

    # -- members -----------------------------------------------------------------------------------------------------

    def now(self, member: Member) -> Now:
        """The clocks of a member."""
        return Now(MONOTONIC + self.loop.now, WALL + self.loop.now + member.clock_seconds)

    def _settle(self, nodes: int) -> None:
        for number in range(nodes):
            age_seconds = float(self._rng.randrange(HOUR_SECONDS, 30 * 86_400)) + self._rng.random()
            self._add(number, age_seconds)
        states = []
        for member in self.members.values():
            now = self.now(member)
            # A second ago: a round within the same tick would put this node one tick ahead of its clock for good.
            member.engine.handle(RoundDue(), Now(now.monotonic - _INTERVAL_SECONDS, now.wall - _INTERVAL_SECONDS))
            states.append(endpoint_state(member.engine.state, member.engine.state.local_row, 0))
        for member in self.members.values():
            state = member.engine.state
            state.apply((one for one in states if one.endpoint != member.endpoint), self.now(member), member.endpoint)
            table = state.table
            rows = table.rows()
            table.liveness[rows] = LivenessCode.ALIVE
            table.echo_wanted[rows] = False
            state.take_events()
            self._begin(member)

    def _add(self, number: int, age_seconds: float, known_peers: tuple[str, ...] = ()) -> Member:
        clock_seconds = self._rng.uniform(-CLOCK_SECONDS_MAX, CLOCK_SECONDS_MAX)
        now = Now(MONOTONIC + self.loop.now - age_seconds, WALL + self.loop.now + clock_seconds - age_seconds)
        engine = GossipEngine(
            EngineConfig(
                cluster_name=CLUSTER,
                endpoint=endpoint(number),
                interval_ms=round(_INTERVAL_SECONDS * 1000),
                seeds=self._seeds,
                known_peers=known_peers,
                peer_policy=self._policy,
                push_fanout=FANOUT_DEFAULT if self._fanout is None else self._fanout,
            ),
            generation=int(now.wall),
            values=values(number),
            rng=Random(self._rng.getrandbits(64)),
            now=now,
        )
        member = self.members[engine.config.endpoint] = Member(number, engine, clock_seconds)
        return member

    def _begin(self, member: Member) -> None:
        self.loop.after(self._rng.uniform(0.0, _INTERVAL_SECONDS), self._round, member)

    def join(self, number: int) -> Member:
        """A node begins now; from its shadow round it knows the names of all."""
        member = self._add(number, 0.0, tuple(one for one in self.members if one != endpoint(number)))
        self._begin(member)
        return member

    def restart(self, number: int) -> None:
        """Announce the end, stop after the grace, and begin again at once in a new generation."""
        member = self.members[endpoint(number)]
        self.do(member, ShutdownRequested())
        self.loop.after(SHUTDOWN_SECONDS, self._again, member)

    def _again(self, member: Member) -> None:
        member.alive = False
        self.join(member.number)

    # -- the shell of an engine --------------------------------------------------------------------------------------

    def _round(self, member: Member) -> None:
        if member.alive:
            self.loop.after(_INTERVAL_SECONDS, self._round, member)
            self.do(member, RoundDue())

    def do(self, member: Member, event: EngineEvent, exchange: Exchange | None = None) -> Reply | None:
        """Let an engine decide and carry out what it wants; its answer, if it gave one."""
        effects: list[Effect] = member.engine.handle(event, self.now(member))
        answer: Reply | None = None
        for effect in effects:
            match effect:
                case Send(peer, request):
                    self._send(member, peer, request, exchange if exchange and exchange.peer == peer else None)
                case Answer(reply):
                    answer = reply
                case Count("gossiper_exchanges_total", label) if exchange is not None:
                    exchange.kind += f", then {label}" if exchange.kind else label
                case Notify(told) if self.on_event is not None:
                    self.on_event(member, told)
                case PersistGeneration(generation):
                    self.do(member, GenerationPersisted(generation))
        if exchange is not None and self.on_exchange is not None and not _goes_on(effects, exchange):
            self.on_exchange(exchange)
        return answer

    def _delay(self) -> float:
        return 0.0005 + self._network.expovariate(2000.0)

    def _send(self, member: Member, peer: str, request: Request, exchange: Exchange | None) -> None:
        if exchange is None and isinstance(request, GossipDigestSyn):
            exchange = Exchange(self.loop.now, member.endpoint, peer)
            if self.on_syn is not None:
                exchange.digests = member.engine.state.table.digests()
        data = codec.encode(request)
        if exchange is not None:
            exchange.messages.append((codec.KINDS[type(request)], data))
        self.loop.after(self._delay(), self._arrive, member, peer, request, data, exchange)

    def _arrive(self, caller: Member, peer: str, request: Request, data: bytes, exchange: Exchange | None) -> None:
        target = self.members.get(peer)
        if target is None or not target.alive:
            self.loop.after(self._delay(), self._fail, caller, SendFailed(peer, request, "unavailable"))
            return
        if exchange is not None and self.on_syn is not None and not exchange.kind:
            self.on_syn(caller, target, exchange)
        try:
            reply = self.do(target, RequestReceived(DECODERS[codec.KINDS[type(request)]](data)))
        except PeerProtocolError as error:
            self.loop.after(self._delay(), self._fail, caller, SendFailed(peer, request, error.reason))
            return
        if reply is None:
            raise AssertionError(f"{peer} gives no answer to a {type(request).__name__}")
        answer = codec.encode(reply)
        if exchange is not None and isinstance(request, GossipDigestSyn):
            exchange.messages.append(("ack", answer))
        self.loop.after(self._delay(), self._answered, caller, peer, request, answer, exchange)

    def _answered(self, caller: Member, peer: str, request: Request, data: bytes, exchange: Exchange | None) -> None:
        if caller.alive:
            reply = codec.decode_reply_to(request, data)
            self.do(caller, ReplyReceived(peer, request, reply), None if _is_ack2(request) else exchange)

    def _fail(self, caller: Member, event: SendFailed) -> None:
        if caller.alive:
            self.do(caller, event)


def _is_ack2(request: Request) -> bool:
    return isinstance(request, GossipDigestAck2)


def _goes_on(effects: list[Effect], exchange: Exchange) -> bool:
    """Whether a further SYN of the same exchange follows."""
    return any(
        isinstance(effect, Send) and effect.peer == exchange.peer and isinstance(effect.request, GossipDigestSyn)
        for effect in effects
    )


def meeting(cluster: VirtualCluster) -> Lags:
    """Run on until somebody begins an exchange; what the two know just before it."""
    found: list[Lags] = []

    def look(caller: Member, target: Member, _exchange: Exchange) -> None:
        if found:
            return
        tables = [member.engine.state.table for member in (caller, target)]
        names = tuple(endpoint(number) for number in range(len(cluster.members)))
        rows = [table.index_of(names) for table in tables]
        found.append(
            Lags(
                cluster.now(caller).wall,
                (caller.number, target.number),
                np.stack([table.heartbeat[at] for table, at in zip(tables, rows, strict=True)]),
                tables[0].generation[rows[0]],
            )
        )

    cluster.on_syn = look
    while not found:
        cluster.loop.run_until(cluster.loop.now + 0.01)
    cluster.on_syn = None
    return found[0]
