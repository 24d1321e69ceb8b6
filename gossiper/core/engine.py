"""GossipEngine: everything a gossiper decides, as ``handle(event, now) -> effects``.

No clock, no I/O, no randomness of its own: the shell (``gossiper.node``, or a simulation) reads both clocks, injects a
``random.Random``, delivers what arrived as an event, and carries out the effects in the order given. A request from a
peer gives exactly one ``Answer``; a request that is refused raises ``PeerProtocolError`` before anything has changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

import numpy as np

from gossiper.core.application_states import COMPACT, ApplicationState
from gossiper.core.digest import endpoint_state
from gossiper.core.exchange import DigestExchange
from gossiper.core.failure_detector import PhiAccrualFailureDetector
from gossiper.core.io import (
    Answer,
    AssassinateRequested,
    ChangeHealth,
    ChangeStatus,
    Count,
    Effect,
    EnableRequested,
    EngineEvent,
    GenerationNotPersisted,
    GenerationPersisted,
    LeaveRequested,
    Notify,
    PersistGeneration,
    RemoveRequested,
    ReplyReceived,
    RequestReceived,
    RoundDue,
    SeedsChanged,
    Send,
    SendFailed,
    ShutdownRequested,
    Stop,
    Warn,
)
from gossiper.core.lifecycle import INITIAL_STATUSES, JOINED_STATUSES, SILENT_STATUSES, Status, left_value, status_of
from gossiper.core.local import LocalEndpoint, Publish
from gossiper.core.messages import (
    EchoReply,
    EchoRequest,
    EndpointState,
    GossipDigestAck,
    GossipDigestAck2,
    GossipDigestAck2Reply,
    GossipDigestSyn,
    Request,
    Sender,
)
from gossiper.core.operations import assassination, removal
from gossiper.core.peers import Partners, PeerPolicy, Peers, choose_targets
from gossiper.core.rumours import FANOUT_DEFAULT, Rumours
from gossiper.core.saved import REMEMBERED_PER_ANSWER_MAX, KnownPeer, remembered_state
from gossiper.core.shadow import SHADOW_GENERATION
from gossiper.core.state import ClusterState
from gossiper.core.versions import GENERATION_STEP, Now
from gossiper.errors import LifecycleError, NotRunningError, PeerProtocolError
from gossiper.events import Event, LocalStopped
from gossiper.limits import GENERATION_AHEAD_SECONDS_MAX

#: Version of the protocol that this code speaks; it also understands the one before, once there is one.
PROTOCOL_VERSION: Final = 1
#: What this node can do, as the value of CAPABILITIES: a comma-separated list, so strangers get the plain form.
CAPABILITIES: Final = f"plain,{COMPACT}"
#: The same of a node that speaks no compact digests, because it shall not or cannot.
CAPABILITIES_PLAIN: Final = "plain"
#: ECHOs begun in one round besides those that news causes at once; each is an RPC of about 1 ms CPU.
ECHOS_PER_ROUND_MAX: Final = 32
#: Live peers that a shutdown or a leave is announced to at once; gossip among them carries it on.
ANNOUNCE_PEERS_MAX: Final = 64
#: A generation that could not be written is tried again after so many intervals: until then nobody listens to this
#: node, and a full disk is not freed sooner.
PERSIST_RETRY_INTERVALS: Final = 5


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
    known_peers: tuple[str, ...] = field(default=())
    """Endpoints of an earlier run; tried as unreachable ones until somebody tells of them."""
    saved_peers: tuple[KnownPeer, ...] = field(default=())
    """What the own file says of them, so that one that stays dead can be replaced or removed."""
    push_fanout: int = FANOUT_DEFAULT
    """Live peers that each node tells of a change of status at once; 0: digests only, as Cassandra."""
    peer_policy: PeerPolicy = field(default=PeerPolicy())


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
        self.state.now = now
        self.local = LocalEndpoint(self.state, config.interval_ms)
        self._digests = DigestExchange(
            self.state,
            self._sender,
            compact=COMPACT in (values.get(ApplicationState.CAPABILITIES) or "").split(","),
        )
        self._rng = rng
        self._spoke_as = Sender(config.cluster_name, PROTOCOL_VERSION, config.endpoint, 0)
        self._partners = Partners(config.peer_policy.partners)
        self._rumours = Rumours(config.push_fanout)
        self._set_seeds(config.seeds)
        self._generation_wanted = 0
        self._persist_again_at: float | None = None
        status = status_of(values.get(ApplicationState.STATUS))
        if status not in INITIAL_STATUSES:
            raise LifecycleError(f"a generation cannot begin as {status}")
        self.local.begin(generation, values, now)
        self.state.adopt_local_host_id()
        self.state.remember(config.known_peers, now, config.saved_peers)
        self.state.take_events()

    @property
    def generation(self) -> int:
        """The generation of this node."""
        return self.local.generation

    @property
    def heartbeat(self) -> int:
        """The newest tick of this node."""
        return self.local.heartbeat

    @property
    def seeds(self) -> tuple[str, ...]:
        """Seeds in use, without this node."""
        return self._seeds

    def peers_that_know(self, version: int) -> tuple[list[str], list[str]]:
        """Live peers that have shown to know this node up to ``version``, and those that have not."""
        table = self.state.table
        rows = self.state.live_rows()
        known = table.knows_local_version[rows] >= version
        return (
            [table.endpoint(int(row)) for row in rows[known]],
            [table.endpoint(int(row)) for row in rows[~known]],
        )

    def handle(self, event: EngineEvent, now: Now) -> list[Effect]:
        """Decide what follows from ``event``; ``now`` never goes back in its monotonic part.

        Raises:
            PeerProtocolError: a RequestReceived is refused; nothing has changed.
            PublishError: the values of a Publish are not acceptable; nothing has changed.
            LifecycleError: an operation that is not possible now, or a Publish of a node that has left; nothing has
                changed.
            NotRunningError: an operation on a node that has stopped.
        """
        self.state.now = now
        effects = self._decide(event, now)
        effects += self._claims(now)
        changes = self.state.take_events()
        if changes:
            told_by = event.request.sender.endpoint if isinstance(event, RequestReceived) else ""
            if not self.stopped and not isinstance(event, LeaveRequested):
                effects += self._push(changes, told_by, now)
            # Subscribers first: carrying out a Send may bring about the next event.
            effects = [*(Notify(change) for change in changes), *effects]
        if self.state.refused:
            effects += [Count("gossiper_refused_entries_total", reason, n) for reason, n in self.state.refused.items()]
            self.state.refused = Counter()
        return effects

    def _decide(self, event: EngineEvent, now: Now) -> list[Effect]:
        match event:
            case RoundDue():
                return self._round(now)
            case RequestReceived(request):
                return self._request(request, now)
            case ReplyReceived():
                return self._reply(event, now)
            case SendFailed():
                return self._failed(event)
            case GenerationPersisted(generation):
                return self._regenerate(generation, now)
            case GenerationNotPersisted():
                return self._not_persisted(event, now)
            case EnableRequested(generation):
                return self._enable(generation, now)
            case SeedsChanged(seeds):
                self._set_seeds(seeds)
                return []
        if self.stopped:
            if isinstance(event, ShutdownRequested):
                return []
            raise NotRunningError("this node has announced its shutdown")
        return self._operate(event, now)

    def _operate(
        self,
        event: Publish
        | ChangeStatus
        | ChangeHealth
        | LeaveRequested
        | ShutdownRequested
        | RemoveRequested
        | AssassinateRequested,
        now: Now,
    ) -> list[Effect]:
        if isinstance(event, Publish):
            return [*self.local.publish(event)]
        host_id = self.state.view(self.state.local_row).host_id or ""
        match event:
            case ChangeStatus(status):
                if status in {Status.LEFT, Status.SHUTDOWN}:
                    raise LifecycleError(f"{status} is not set, it follows from leaving or shutting down")
                return [*self.local.change_status(status, {})]
            case ChangeHealth(serving, reason):
                health = "serving" if serving else f"not_serving,{reason}"
                self.local.publish_managed({ApplicationState.HEALTH: health})
                return []
            case LeaveRequested():
                effects: list[Effect] = [*self.local.change_status(left_value(now.wall), self._taken_back())]
                return effects + self._announce()
            case ShutdownRequested():
                return self._shutdown()
            case RemoveRequested(victim):
                return self._impose(removal(self.state, victim, host_id, now), now)
            case AssassinateRequested(endpoint, force):
                return self._impose(assassination(self.state, endpoint, host_id, now, force=force), now)

    # -- rounds ------------------------------------------------------------------------------------------------------

    def _round(self, now: Now) -> list[Effect]:
        if self.stopped:
            return []
        effects: list[Effect] = [*self.local.tick(now)]
        paused_seconds = self.state.convict_silent(now)
        if paused_seconds:
            effects.append(Count("gossiper_local_pauses_total"))
            effects.append(
                Warn("local_pause", f"this process stood still for {paused_seconds:.1f} s; nobody is convicted for now")
            )
        self.state.forget_past(now)
        effects += self._persist_again(now)
        effects += self._echos(now)
        effects += [Send(target, self._digests.syn(target, now)) for target in self._targets()]
        effects.append(Count("gossiper_rounds_total"))
        return effects

    def _targets(self) -> list[str]:
        table = self.state.table
        peers = Peers(
            self.state.live_rows(),
            self.state.unreachable_rows(),
            table.datacenter,
            table.rack,
            self.state.local_row,
        )
        seeds = [seed if (row := table.row(seed)) is None else row for seed in self._seeds]
        chosen = choose_targets(self._rng, peers, self.config.peer_policy, seeds=seeds, partners=self._partners)
        return [target if isinstance(target, str) else table.endpoint(target) for target in chosen]

    def _echos(self, now: Now) -> list[Effect]:
        """ECHOs to those that gave a sign of life and are not alive."""
        table = self.state.table
        # After almost every event nobody waits for an ECHO.
        if not np.count_nonzero(table.echo_wanted):
            return []
        overdue = (table.echo_generation > 0) & (now.monotonic - table.echo_sent > self.config.echo_retry_seconds)
        table.echo_generation[overdue] = 0
        candidates = self.state.echo_candidates()
        if len(candidates) > ECHOS_PER_ROUND_MAX:
            order = table.echo_sent[candidates].argsort(kind="stable")
            candidates = candidates[order[:ECHOS_PER_ROUND_MAX]]
        effects: list[Effect] = []
        for row in candidates.tolist():
            self.state.echo_sent(row, now)
            effects.append(Send(table.endpoint(row), EchoRequest(self._sender(), int(table.generation[row]))))
        return effects

    # -- requests ----------------------------------------------------------------------------------------------------

    def _request(self, request: Request, now: Now) -> list[Effect]:
        self._admit(request.sender)
        match request:
            case GossipDigestSyn():
                effects = self._digests.answer(request, now)
                if request.sender.generation != SHADOW_GENERATION:
                    return effects + self._echos(now)
                if len(self.state.saved):
                    effects = [self._with_remembered(one, request, now) for one in effects]
                return effects
            case GossipDigestAck2():
                news = self.state.apply(request.states, now, request.sender.endpoint)
                return [Answer(GossipDigestAck2Reply(news)), *self._echos(now)]
            case EchoRequest():
                return [Answer(EchoReply(self._sender(), self.heartbeat))]

    def _with_remembered(self, effect: Effect, syn: GossipDigestSyn, now: Now) -> Effect:
        """Whoever is about to start also hears of members that nobody has heard of since (CASSANDRA-16213)."""
        if not isinstance(effect, Answer) or not isinstance(effect.reply, GossipDigestAck):
            return effect
        told = set(syn.digests.endpoints)
        more = [peer for peer in self.state.saved.fresh(now.wall) if peer.endpoint not in told]
        some = more[: 0 if effect.reply.deferred else REMEMBERED_PER_ANSWER_MAX]
        states = effect.reply.states + tuple(remembered_state(peer, self.config.interval_ms) for peer in some)
        deferred = effect.reply.deferred + len(more) - len(some)
        return Answer(replace(effect.reply, states=states, deferred=deferred))

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

    # -- replies -----------------------------------------------------------------------------------------------------

    def _reply(self, event: ReplyReceived, now: Now) -> list[Effect]:
        reply = event.reply
        if not isinstance(reply, GossipDigestAck2Reply) and reply.sender.cluster_name != self.config.cluster_name:
            return self._failed(SendFailed(event.peer, event.request, "cluster_mismatch"))
        match reply:
            case GossipDigestAck():
                return [] if self.stopped else self._ack(event, reply, now)
            case EchoReply():
                return self._echo_answered(event, reply, now)
            case GossipDigestAck2Reply(news):
                self._told(event)
                return [Count("gossiper_push_news_total", "", news)] if news else []

    def _ack(self, event: ReplyReceived, ack: GossipDigestAck, now: Now) -> list[Effect]:
        if ack.sender.generation == SHADOW_GENERATION or not isinstance(event.request, GossipDigestSyn):
            return []
        effects = self._digests.conclude(event.peer, event.request, ack, now)
        return self._echos(now) + effects

    def _told(self, event: ReplyReceived) -> None:
        """A peer took an ACK2: if that held our whole state, it knows it."""
        if isinstance(event.request, GossipDigestAck2):
            for one in event.request.states:
                if one.endpoint == self.config.endpoint and one.from_version == 0:
                    self.state.heard_of_local(event.peer, one.generation, one.states_version)

    def _echo_answered(self, event: ReplyReceived, reply: EchoReply, now: Now) -> list[Effect]:
        row = self.state.table.row(event.peer)
        if row is None or not isinstance(event.request, EchoRequest):
            return []
        if reply.sender.endpoint != event.peer:
            self.state.echo_failed(row, event.request.generation)
            return [Count("gossiper_echo_mismatches_total")]
        self.state.echo_answered(row, reply.sender.generation, reply.heartbeat, now)
        return []

    def _failed(self, event: SendFailed) -> list[Effect]:
        row = self.state.table.row(event.peer)
        if row is not None and isinstance(event.request, EchoRequest):
            self.state.echo_failed(row, event.request.generation)
        return []

    # -- rumours and operations --------------------------------------------------------------------------------------

    def _push(self, changes: Iterable[Event], told_by: str, now: Now) -> list[Effect]:
        pushes = self._rumours.pushes(
            self.state, changes, sender=self._sender(), told_by=told_by, rng=self._rng, now=now.monotonic
        )
        effects: list[Effect] = [Send(peer, message) for peer, message in pushes]
        return [*effects, Count("gossiper_pushes_total", "", len(effects))] if effects else effects

    def _impose(self, verdict: EndpointState, now: Now) -> list[Effect]:
        """Apply an operator's verdict here and tell the victim; the events that follow push it to others."""
        self.state.apply([verdict], now, self.config.endpoint)
        return [Send(verdict.endpoint, GossipDigestAck2(self._sender(), (verdict,)))]

    def _shutdown(self) -> list[Effect]:
        """The last version of this generation says that it stopped; live peers hear it at once."""
        if self.local.status in SILENT_STATUSES:
            self.stopped = True
            return []
        effects: list[Effect] = [*self.local.change_status(f"{Status.SHUTDOWN},true", {})]
        self.stopped = True
        return effects + self._announce()

    def _taken_back(self) -> dict[str, str | None]:
        """Who gives up joining has replaced nobody."""
        gives_up = self.local.status not in JOINED_STATUSES and ApplicationState.REPLACES in self.local.values()
        return {ApplicationState.REPLACES: None} if gives_up else {}

    def _announce(self) -> list[Effect]:
        # The whole state: soon nobody can ask this node for what a delta would leave out.
        last_words = GossipDigestAck2(self._sender(), (endpoint_state(self.state, self.state.local_row, 0),))
        live = [self.state.table.endpoint(int(row)) for row in self.state.live_rows()]
        if len(live) > ANNOUNCE_PEERS_MAX:
            live = self._rng.sample(live, ANNOUNCE_PEERS_MAX)
        return [Send(peer, last_words) for peer in live]

    # -- the own generation and identity -----------------------------------------------------------------------------

    def _claims(self, now: Now) -> list[Effect]:
        """What peers said of this very node in another voice: a past to outrun, a removal, a double."""
        if not self.state.claims and self.state.host_id_winner is None:
            return []
        claims, self.state.claims = self.state.claims, []
        if self.stopped:
            return []
        effects: list[Effect] = []
        if self.state.host_id_winner is not None:
            winner = self.state.host_id_winner
            return self._stop(
                f"{winner} has the same host id and a greater generation, so it is the one that stays; "
                "was a data directory copied, or this node replaced?"
            )
        own_host_id = self.state.view(self.state.local_row).host_id
        for claim in claims:
            values = dict(claim.values)
            host_id = values.get(ApplicationState.HOST_ID)
            removed_by = values.get(ApplicationState.REMOVED_BY)
            foreign = host_id is not None and host_id.value != own_host_id
            if claim.generation < self.generation:
                continue
            if removed_by is not None and not foreign and claim.generation > self.generation:
                return self._stop(
                    f"an operator removed this node (on the node with host id {removed_by.value}); it may only come "
                    "back as a new one, with an empty data directory"
                )
            if foreign and host_id is not None:
                if claim.generation == self.generation and (own_host_id or "") > host_id.value:
                    return self._stop(f"the node with host id {host_id.value} uses the same endpoint")
                effects.append(
                    Warn("double", f"the node with host id {host_id.value} claims this node's endpoint as its own")
                )
                continue
            if claim.generation > self.generation:
                effects += self._outrun(claim.generation, now)
        return effects

    def _stop(self, reason: str) -> list[Effect]:
        self.stopped = True
        return [Notify(LocalStopped(self.config.endpoint, reason)), Stop(reason)]

    def _outrun(self, seen: int, now: Now) -> list[Effect]:
        """Take a greater generation when the cluster remembers one: else nobody would listen to this one."""
        if seen <= max(self.generation, self._generation_wanted - GENERATION_STEP):
            return []
        if seen > now.wall + GENERATION_AHEAD_SECONDS_MAX:
            return [Count("gossiper_refused_entries_total", "invalid_generation")]
        wanted = self._generation_wanted = seen + GENERATION_STEP
        self._persist_again_at = None
        return [
            Warn("own_generation", f"the cluster knows generation {seen} of this node; taking {wanted}"),
            PersistGeneration(wanted),
        ]

    def _not_persisted(self, event: GenerationNotPersisted, now: Now) -> list[Effect]:
        """The disk is full, or gone: without that generation nobody listens to this node, so it goes on trying."""
        if event.generation != self._generation_wanted or not self._wants_generation():
            return []
        wait_seconds = PERSIST_RETRY_INTERVALS * self.config.interval_ms / 1000
        self._persist_again_at = now.monotonic + wait_seconds
        return [
            Count("gossiper_generations_not_persisted_total"),
            Warn(
                "generation",
                f"generation {event.generation} cannot be kept, tried again in {wait_seconds:g} s; until then peers "
                f"ignore this node: {event.reason}",
            ),
        ]

    def _persist_again(self, now: Now) -> list[Effect]:
        if self._persist_again_at is None or now.monotonic < self._persist_again_at:
            return []
        self._persist_again_at = None
        return [PersistGeneration(self._generation_wanted)] if self._wants_generation() else []

    def _wants_generation(self) -> bool:
        """Whether this node can still go on in the generation that it asked for."""
        return not self.stopped and self._generation_wanted > self.generation and self.local.status in _RESUMABLE

    def _regenerate(self, generation: int, now: Now) -> list[Effect]:
        if self.stopped or generation <= self.generation or self.local.status not in _RESUMABLE:
            return []
        self.local.resume(generation, {}, now)
        return []

    def _enable(self, generation: int, now: Now) -> list[Effect]:
        if not self.stopped:
            raise LifecycleError("gossip is running")
        if self.local.status != Status.SHUTDOWN:
            raise LifecycleError(f"a node that is {self.local.status} does not come back")
        self.local.resume(generation, {ApplicationState.STATUS: Status.NORMAL.value}, now)
        self.stopped = False
        return []

    def _set_seeds(self, seeds: Iterable[str]) -> None:
        self._seeds = tuple(dict.fromkeys(seed for seed in seeds if seed != self.config.endpoint))

    def _sender(self) -> Sender:
        # In every message, and the same for a whole generation.
        if self._spoke_as.generation != self.generation:
            self._spoke_as = replace(self._spoke_as, generation=self.generation)
        return self._spoke_as


#: A node in one of these that has to take a greater generation goes on in it as it is.
_RESUMABLE: Final = frozenset(
    {Status.NONE, Status.BOOT, Status.BOOT_REPLACE, Status.NORMAL, Status.LEAVING, Status.HIBERNATE}
)
