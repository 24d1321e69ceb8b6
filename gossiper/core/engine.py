"""GossipEngine: everything a gossiper decides, as ``handle(event, now) -> effects``.

No clock, no I/O, no randomness of its own: the shell (``gossiper.node``, or a simulation) reads both clocks, injects a
``random.Random``, delivers what arrived as an event, and carries out the effects in the order given. A request from a
peer gives exactly one ``Answer``; a request that is refused raises ``PeerProtocolError`` before anything has changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Final

from gossiper.core.application_states import MANAGED_KEYS, ApplicationState, Status, is_key
from gossiper.core.digest import endpoint_state, endpoint_states, examine, heartbeat_digests, requested_states
from gossiper.core.failure_detector import PhiAccrualFailureDetector
from gossiper.core.messages import (
    DigestColumns,
    EchoReply,
    EchoRequest,
    EndpointState,
    GossipDigestAck,
    GossipDigestAck2,
    GossipDigestAck2Reply,
    GossipDigestSyn,
    Reply,
    Request,
    Sender,
)
from gossiper.core.peers import choose_targets
from gossiper.core.state import ClusterState
from gossiper.core.table import Rows
from gossiper.core.versions import COUNTERS_PER_TICK, Now, tick_of, version_of
from gossiper.errors import NotRunningError, PeerProtocolError, PublishError
from gossiper.events import Event
from gossiper.limits import (
    ENDPOINT_STATES_BYTES_MAX,
    GENERATION_AHEAD_SECONDS_MAX,
    KEY_BYTES_MAX,
    STATES_PER_ENDPOINT_MAX,
    VALUE_BYTES_MAX,
)

#: Version of the protocol that this code speaks; it also understands the one before, once there is one.
PROTOCOL_VERSION: Final = 1
#: What this node can do, as the value of CAPABILITIES: a comma-separated list, so strangers get the plain form.
CAPABILITIES: Final = "plain"
#: ECHOs begun in one round besides those that news causes at once; each is an RPC of about 1 ms CPU.
ECHOS_PER_ROUND_MAX: Final = 32
#: Live peers that a shutdown is announced to at once; gossip among them carries it on.
ANNOUNCE_PEERS_MAX: Final = 64


# -- events: what happened ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RoundDue:
    """One gossip interval has passed."""


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """A peer sent a request that passed the codec's validation."""

    request: Request


@dataclass(frozen=True, slots=True)
class ReplyReceived:
    """A peer answered a request that this node sent to ``peer``."""

    peer: str
    request: Request
    reply: Reply


@dataclass(frozen=True, slots=True)
class SendFailed:
    """A request got no answer."""

    peer: str
    request: Request
    reason: str


@dataclass(frozen=True, slots=True)
class Publish:
    """The application sets (None: deletes) values of this node; answered by ``Published`` with the same ``ticket``."""

    values: Mapping[str, str | None]
    ticket: int


@dataclass(frozen=True, slots=True)
class GenerationPersisted:
    """The generation that ``PersistGeneration`` asked for is on disk."""

    generation: int


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """This node is about to stop."""


EngineEvent = (
    RoundDue | RequestReceived | ReplyReceived | SendFailed | Publish | GenerationPersisted | ShutdownRequested
)


# -- effects: what is to be done ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Deliver ``request`` to ``peer``, then report ReplyReceived or SendFailed."""

    peer: str
    request: Request


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to the request being handled."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell subscribers."""

    event: Event


@dataclass(frozen=True, slots=True)
class Published:
    """The values of a Publish now have this version."""

    ticket: int
    version: int


@dataclass(frozen=True, slots=True)
class PersistGeneration:
    """Put this generation on disk, then report GenerationPersisted."""

    generation: int


@dataclass(frozen=True, slots=True)
class Count:
    """Something worth counting: a metric's name, a label value (or ""), and by how much."""

    name: str
    label: str = ""
    amount: int = 1


@dataclass(frozen=True, slots=True)
class Warn:
    """Something an operator should read; the shell limits the rate per ``key``."""

    key: str
    text: str


Effect = Send | Answer | Notify | Published | PersistGeneration | Count | Warn


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What the engine needs to know of its node; times in the unit of the name."""

    cluster_name: str
    endpoint: str
    interval_ms: int
    phi_threshold: float = 8.0
    phi_window_size: int = 1000
    first_interval_seconds: float | None = None
    interval_seconds_max: float | None = None
    local_pause_seconds: float = 5.0
    echo_retry_seconds: float = 30.0
    """An ECHO without any outcome reported for so long counts as failed."""
    seeds: tuple[str, ...] = field(default=())


class GossipEngine:
    """One node's decisions. ``state`` may be read at any time between two calls of ``handle``."""

    def __init__(
        self, config: EngineConfig, *, generation: int, values: Mapping[str, str | None], rng: Random, now: Now
    ) -> None:
        """Begin ``generation`` (which is on disk already) with ``values`` published before anyone hears of it."""
        interval_seconds = config.interval_ms / 1000
        self.config = config
        self.stopped = False
        self.state = ClusterState(
            PhiAccrualFailureDetector(
                threshold=config.phi_threshold,
                window_size=config.phi_window_size,
                first_interval_seconds=config.first_interval_seconds or 2 * interval_seconds,
                interval_seconds_max=config.interval_seconds_max or 2 * interval_seconds,
                local_pause_seconds=config.local_pause_seconds,
            ),
            endpoint=config.endpoint,
        )
        self._rng = rng
        self._seeds = tuple(seed for seed in config.seeds if seed != config.endpoint)
        self._waiting: list[Publish] = []
        self._generation_wanted = 0
        self._begin(generation, now)
        self.state.publish(_checked(values, self._values(), managed=True), version_of(1, 0))
        self.state.take_events()

    @property
    def generation(self) -> int:
        """The generation of this node."""
        return int(self.state.table.generation[self.state.local_row])

    @property
    def heartbeat(self) -> int:
        """The newest tick of this node."""
        return int(self.state.table.heartbeat[self.state.local_row])

    @property
    def seeds(self) -> tuple[str, ...]:
        """Seeds in use, without this node."""
        return self._seeds

    def handle(self, event: EngineEvent, now: Now) -> list[Effect]:
        """Decide what follows from ``event``; ``now`` never goes back in its monotonic part.

        Raises:
            PeerProtocolError: a RequestReceived is refused; nothing has changed.
            PublishError: the values of a Publish are not acceptable; nothing has changed.
            NotRunningError: a Publish after ShutdownRequested.
        """
        match event:
            case RoundDue():
                effects = self._round(now)
            case RequestReceived(request):
                effects = self._request(request, now)
            case ReplyReceived():
                effects = self._reply(event, now)
            case SendFailed():
                effects = self._failed(event)
            case Publish():
                effects = self._publish(event)
            case GenerationPersisted(generation):
                effects = self._regenerate(generation, now)
            case ShutdownRequested():
                effects = self._shutdown()
        effects += [Notify(change) for change in self.state.take_events()]
        if self.state.refused:
            effects += [Count("gossiper_refused_entries_total", reason, n) for reason, n in self.state.refused.items()]
            self.state.refused = Counter()
        return effects

    # -- rounds ------------------------------------------------------------------------------------------------------

    def _round(self, now: Now) -> list[Effect]:
        if self.stopped:
            return []
        self.state.tick(now.monotonic - self._origin)
        effects: list[Effect] = self._flush_waiting()
        paused_seconds = self.state.convict_silent(now)
        if paused_seconds:
            effects.append(Count("gossiper_local_pauses_total"))
            effects.append(
                Warn("local_pause", f"this process stood still for {paused_seconds:.1f} s; nobody is convicted for now")
            )
        effects += self._echos(now)
        table = self.state.table
        targets = choose_targets(
            self._rng,
            live=[table.endpoint(int(row)) for row in self.state.live_rows()],
            unreachable=[table.endpoint(int(row)) for row in self.state.unreachable_rows()],
            seeds=self._seeds,
        )
        syn = GossipDigestSyn(self._sender(), round(now.wall * 1000), table.digests())
        effects += [Send(target, syn) for target in targets]
        effects.append(Count("gossiper_rounds_total"))
        return effects

    def _echos(self, now: Now, rows: Rows | None = None) -> list[Effect]:
        """ECHOs to those that gave a sign of life and are not alive; ``rows`` limits whom."""
        table = self.state.table
        overdue = (table.echo_generation > 0) & (now.monotonic - table.echo_sent > self.config.echo_retry_seconds)
        table.echo_generation[overdue] = 0
        candidates = self.state.echo_candidates() if rows is None else rows
        if len(candidates) > ECHOS_PER_ROUND_MAX:
            order = table.echo_sent[candidates].argsort(kind="stable")
            candidates = candidates[order[:ECHOS_PER_ROUND_MAX]]
        effects: list[Effect] = []
        for row in map(int, candidates):
            self.state.echo_sent(row, now)
            effects.append(Send(table.endpoint(row), EchoRequest(self._sender(), int(table.generation[row]))))
        return effects

    # -- requests ----------------------------------------------------------------------------------------------------

    def _request(self, request: Request, now: Now) -> list[Effect]:
        self._admit(request.sender)
        match request:
            case GossipDigestSyn():
                return self._syn(request, now)
            case GossipDigestAck2():
                news = self._apply(request.states, now, request.sender.endpoint)
                own = self._own_generation_seen(request.states)
                return [Answer(GossipDigestAck2Reply(news)), *self._echos(now), *self._outrun(own, now)]
            case EchoRequest():
                return [Answer(EchoReply(self._sender(), self.heartbeat))]

    def _admit(self, sender: Sender) -> None:
        if self.stopped:
            raise PeerProtocolError("not_running", "this node has announced its shutdown")
        if sender.cluster_name != self.config.cluster_name:
            raise PeerProtocolError(
                "cluster_mismatch", f"this is cluster {self.config.cluster_name!r}, not {sender.cluster_name!r}"
            )
        if sender.protocol_version != PROTOCOL_VERSION:
            raise PeerProtocolError(
                "protocol_version", f"version {sender.protocol_version} is not spoken here, only {PROTOCOL_VERSION}"
            )
        if sender.endpoint == self.config.endpoint:
            raise PeerProtocolError(
                "own_endpoint",
                f"{sender.endpoint} is this node's own endpoint: two nodes advertise it, or a seed is an alias of it",
            )

    def _syn(self, syn: GossipDigestSyn, now: Now) -> list[Effect]:
        found = examine(self.state, syn.digests, now)
        states, left_out = endpoint_states(self.state, found.send_states)
        ack = GossipDigestAck(
            self._sender(),
            round(now.wall * 1000),
            found.requests,
            heartbeat_digests(self.state, found.send_heartbeats),
            states,
        )
        self.state.take_heartbeats(found.take_rows, found.take_heartbeats, now, syn.sender.endpoint)
        effects: list[Effect] = [Answer(ack), *self._echos(now), *self._outrun(found.own_generation_seen, now)]
        if left_out:
            effects.append(Count("gossiper_states_deferred_total", "", left_out))
        if found.refused_generations:
            effects += self._refused_generations(found.refused_generations, len(syn.digests))
        return effects

    def _refused_generations(self, refused: int, of: int) -> list[Effect]:
        effects: list[Effect] = [Count("gossiper_refused_entries_total", "invalid_generation", refused)]
        # The peer lists itself and perhaps us; when everybody else is from the future, we are from the past.
        if refused >= max(1, of - 1):
            effects.append(
                Warn(
                    "own_clock",
                    f"{refused} of {of} generations lie more than a day ahead: is this node's clock behind?",
                )
            )
        return effects

    # -- replies -----------------------------------------------------------------------------------------------------

    def _reply(self, event: ReplyReceived, now: Now) -> list[Effect]:
        match event.reply:
            case GossipDigestAck():
                return self._ack(event.peer, event.reply, now)
            case EchoReply():
                return self._echo_answered(event, event.reply, now)
            case GossipDigestAck2Reply(news):
                return [Count("gossiper_push_news_total", "", news)] if news else []

    def _ack(self, peer: str, ack: GossipDigestAck, now: Now) -> list[Effect]:
        if self.stopped or ack.sender.cluster_name != self.config.cluster_name:
            return []
        sender = ack.sender.endpoint
        table = self.state.table
        self._apply(ack.states, now, sender)
        rows = table.index_of(ack.heartbeats.endpoints)
        current = (rows >= 0) & (table.generation[rows] == ack.heartbeats.generations)
        self.state.take_heartbeats(rows[current], ack.heartbeats.heartbeats[current], now, sender)
        effects = self._echos(now)
        effects += self._outrun(self._own_generation_seen(ack.states, ack.requests), now)
        states, left_out = endpoint_states(self.state, requested_states(self.state, ack.requests))
        if states:
            effects.append(Send(peer, GossipDigestAck2(self._sender(), states)))
        if left_out:
            effects.append(Count("gossiper_states_deferred_total", "", left_out))
        return effects

    def _echo_answered(self, event: ReplyReceived, reply: EchoReply, now: Now) -> list[Effect]:
        row = self.state.table.row(event.peer)
        if row is None or not isinstance(event.request, EchoRequest):
            return []
        if reply.sender.endpoint != event.peer or reply.sender.cluster_name != self.config.cluster_name:
            self.state.echo_failed(row, event.request.generation)
            return [Count("gossiper_echo_mismatches_total")]
        self.state.echo_answered(row, reply.sender.generation, reply.heartbeat, now)
        return []

    def _failed(self, event: SendFailed) -> list[Effect]:
        row = self.state.table.row(event.peer)
        if row is not None and isinstance(event.request, EchoRequest):
            self.state.echo_failed(row, event.request.generation)
        return []

    def _apply(self, states: Iterable[EndpointState], now: Now, sender: str) -> int:
        return self.state.apply(states, now, sender)

    # -- the local endpoint ------------------------------------------------------------------------------------------

    def _publish(self, event: Publish) -> list[Effect]:
        if self.stopped:
            raise NotRunningError("this node has announced its shutdown")
        states = self.state.table.states[self.state.local_row]
        # Tombstones are values too: they count in the limits that peers enforce.
        present: dict[str, str | None] = {key: None if v.deleted else v.value for key, v in states.items()}
        for waiting in self._waiting:
            present.update(waiting.values)
        _checked(event.values, present, managed=False)
        version = self._next_version()
        if version is None:
            self._waiting.append(event)
            return []
        self.state.publish(event.values, version)
        return [Published(event.ticket, version)]

    def _flush_waiting(self) -> list[Effect]:
        """What waited because its tick had used all counters is published together."""
        version = self._next_version()
        if not self._waiting or version is None:
            return []
        merged: dict[str, str | None] = {}
        for waiting in self._waiting:
            merged.update(waiting.values)
        self.state.publish(merged, version)
        effects: list[Effect] = [Published(waiting.ticket, version) for waiting in self._waiting]
        self._waiting = []
        return effects

    def _next_version(self) -> int | None:
        """The next version of the current tick; None when all its counters are used."""
        last = int(self.state.table.states_version[self.state.local_row])
        if tick_of(last) < self.heartbeat:
            return version_of(self.heartbeat, 0)
        return last + 1 if (last + 1) % COUNTERS_PER_TICK else None

    def _values(self) -> dict[str, str | None]:
        states = self.state.table.states[self.state.local_row]
        return {key: value.value for key, value in states.items() if not value.deleted}

    def _shutdown(self) -> list[Effect]:
        """The last version of this generation says that it stopped; live peers hear it at once."""
        if self.stopped:
            return []
        effects = self._flush_or_end_tick()
        version = self._next_version()
        if version is None:
            raise AssertionError("a new tick has free counters")
        live = [self.state.table.endpoint(int(row)) for row in self.state.live_rows()]
        self.state.publish({ApplicationState.STATUS: f"{Status.SHUTDOWN},true"}, version)
        self.stopped = True
        # The whole state: nobody can ask this node for what a delta would leave out.
        last_words = GossipDigestAck2(self._sender(), (endpoint_state(self.state, self.state.local_row, 0),))
        if len(live) > ANNOUNCE_PEERS_MAX:
            live = self._rng.sample(live, ANNOUNCE_PEERS_MAX)
        return [*effects, *(Send(peer, last_words) for peer in live)]

    def _flush_or_end_tick(self) -> list[Effect]:
        """Publish what waits and leave a free counter for the last words, beginning a new tick where needed."""
        effects: list[Effect] = []
        while self._waiting or self._next_version() is None:
            if self._next_version() is None:
                self.state.tick(0.0)
            effects += self._flush_waiting()
        return effects

    # -- the own generation ------------------------------------------------------------------------------------------

    def _begin(self, generation: int, now: Now) -> None:
        self.state.begin_generation(generation, self.config.interval_ms)
        # Ticks count from the epoch second that is the generation, so that others can predict them.
        self._origin = now.monotonic - min(1.0, max(0.0, now.wall - generation))

    def _own_generation_seen(self, states: Iterable[EndpointState], requests: DigestColumns | None = None) -> int:
        """The greatest generation in which a peer's message knows this very node."""
        seen = [state.generation for state in states if state.endpoint == self.config.endpoint]
        if requests is not None and self.config.endpoint in requests.endpoints:
            seen.append(int(requests.generations[requests.endpoints.index(self.config.endpoint)]))
        return max(seen, default=0)

    def _outrun(self, seen: int, now: Now) -> list[Effect]:
        """Take a greater generation when the cluster remembers one: else nobody would listen to this one."""
        if self.stopped or seen <= max(self.generation, self._generation_wanted - 1):
            return []
        if seen > now.wall + GENERATION_AHEAD_SECONDS_MAX:
            return [Count("gossiper_refused_entries_total", "invalid_generation")]
        self._generation_wanted = seen + 1
        return [
            Warn("own_generation", f"the cluster knows generation {seen} of this node; taking {seen + 1}"),
            PersistGeneration(seen + 1),
        ]

    def _regenerate(self, generation: int, now: Now) -> list[Effect]:
        if self.stopped or generation <= self.generation:
            return []
        values = self._values()
        self._begin(generation, now)
        self.state.publish(values, version_of(1, 0))
        return self._flush_waiting()

    def _sender(self) -> Sender:
        return Sender(self.config.cluster_name, PROTOCOL_VERSION, self.config.endpoint, self.generation)


def _checked(
    values: Mapping[str, str | None], present: Mapping[str, str | None], *, managed: bool
) -> Mapping[str, str | None]:
    """``values`` when they may be published beside ``present``.

    Raises:
        PublishError: a key or a size is not acceptable.
    """
    if not values:
        raise PublishError("nothing to publish")
    for key, value in values.items():
        if not is_key(key) or len(key.encode()) > KEY_BYTES_MAX:
            raise PublishError(
                f"{key!r} is no key: letters, digits and ._/- after a lower-case letter, at most {KEY_BYTES_MAX} bytes"
            )
        if key in MANAGED_KEYS and not managed:
            raise PublishError(f"{key} is published by the gossiper itself")
        if value is not None and len(value.encode()) > VALUE_BYTES_MAX:
            raise PublishError(
                f"the value of {key} has {len(value.encode())} bytes; at most {VALUE_BYTES_MAX} are allowed"
            )
    together = {**present, **values}
    if len(together) > STATES_PER_ENDPOINT_MAX:
        raise PublishError(f"{len(together)} application states; at most {STATES_PER_ENDPOINT_MAX} are allowed")
    total_bytes = sum(len(key.encode()) + len((value or "").encode()) for key, value in together.items())
    if total_bytes > ENDPOINT_STATES_BYTES_MAX:
        raise PublishError(
            f"all application states together have {total_bytes} bytes; at most {ENDPOINT_STATES_BYTES_MAX} are allowed"
        )
    return values
