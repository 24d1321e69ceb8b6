"""The shadow round: before a node takes part, it asks what the cluster knows of its endpoint and of its host id.

It sends SYNs of what it has learned so far (at first an empty list) as a sender of generation 0, keeps the answers to
itself, and ends in a verdict: go on (with the greatest generation the cluster remembers of it, and what it replaces),
or a refusal that says why. Source: Cassandra's ``doShadowRound``, ``checkForEndpointCollision``,
``prepareForReplacement`` (CASSANDRA-8072: the SYN is repeated; CASSANDRA-13851: peers known from disk are asked too;
CASSANDRA-16588: an answer that lists this node without a host id is not enough).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from gossiper.core.application_states import ApplicationState
from gossiper.core.lifecycle import GONE_STATUSES, JOINED_STATUSES, STOPPED_STATUSES, Status, status_of
from gossiper.core.messages import DigestColumns, EndpointState, GossipDigestAck, GossipDigestSyn, Sender
from gossiper.core.replacements import Replaced, replaced_in, replaces_value
from gossiper.core.saved import REMEMBERED_HEARTBEAT
from gossiper.core.versions import Now
from gossiper.errors import JoinError
from gossiper.limits import ENDPOINTS_MAX, GENERATION_AHEAD_SECONDS_MAX

#: The generation under which a node speaks that is not one yet.
SHADOW_GENERATION: Final = 0
#: SYNs are repeated after so many gossip intervals.
REPEAT_INTERVALS: Final = 5
#: A node that is to be replaced is taken for dead when its heartbeat stood still for so many intervals.
STANDSTILL_INTERVALS: Final = 10
#: A clock that differs by so much from those of most peers is warned of: NTP keeps them within a second, and a message
#: takes no such time.
CLOCK_OFFSET_SECONDS_WARN: Final = 60
#: Peers named in a line about the clock.
_CLOCK_PEERS_NAMED_MAX: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowConfig:
    """Who wants to join, and how."""

    cluster_name: str
    protocol_version: int
    endpoint: str
    host_id: str
    interval_seconds: float
    seeds: tuple[str, ...]
    """Without the own endpoint."""
    known_peers: tuple[str, ...] = ()
    is_seed: bool = False
    """The own endpoint is in the seed list, or the list is empty: it may begin a cluster alone."""
    replace: str | None = None
    """Host id or endpoint of the dead node whose place this one takes."""
    restarted: bool = False
    """This node had a generation before, so it is not the first start with these settings."""
    rejoin: bool = False
    """Come back although the cluster remembers that this node left."""
    timeout_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The node may join."""

    own_generation_seen: int
    """Its generation must be greater; 0: the cluster does not know it."""
    host_id: str
    """Its own, or at the same address the one of the node that it replaces."""
    replaces: str | None
    """Value of REPLACES: host id and generation of the replaced node, and whom others said before; None: nobody."""
    alone: bool
    """Nobody answered, and this is a seed: it begins a cluster."""
    peers: tuple[str, ...]
    """Endpoints learned, to be remembered before the first exchange."""
    clock_ahead_seconds: float | None = None
    """By how much the own wall clock is ahead of the others' (median of the answers); None: nobody answered."""
    clock_warning: str = ""
    """What is wrong with the own clock, for an operator; empty when nothing is."""


@dataclass(slots=True)
class _Known:
    state: EndpointState
    values: dict[str, str] = field(default_factory=dict)
    first_heartbeat: int = 0
    first_seen: float = 0.0
    moved_at: float | None = None

    @property
    def status(self) -> str:
        return status_of(self.values.get(ApplicationState.STATUS))

    @property
    def host_id(self) -> str | None:
        return self.values.get(ApplicationState.HOST_ID)


class ShadowRound:
    """Feed it ``poll`` at every gossip interval and ``answered`` for every ACK, until ``verdict`` returns one."""

    def __init__(self, config: ShadowConfig, now: Now) -> None:
        self.config = config
        self._began = now.monotonic
        self._sent_at: float | None = None
        self._rounds = 0
        self._answers = 0
        self._incomplete = False
        self._shadows: set[str] = set()
        self._known: dict[str, _Known] = {}
        self._saved: dict[str, _Known] = {}
        """Members of the run before, of which nobody has heard since; they are no rivals and hold no address."""
        self._failures: dict[str, tuple[str, bool]] = {}
        self._clocks: dict[str, float] = {}
        """By how many seconds the own wall clock was ahead of that of each peer that answered."""

    @property
    def asked(self) -> tuple[str, ...]:
        """Everybody that has been asked so far."""
        seeds, known_peers = self.config.seeds, self.config.known_peers
        return seeds if seeds and self._rounds < 2 else tuple(dict.fromkeys((*seeds, *known_peers)))

    def poll(self, now: Now) -> list[tuple[str, GossipDigestSyn]]:
        """SYNs to send now, by peer: at first to the seeds, when repeated also to the peers known from disk."""
        wait_seconds = REPEAT_INTERVALS * self.config.interval_seconds
        if self._watching() or self._incomplete:
            wait_seconds = self.config.interval_seconds
        if self._sent_at is not None and now.monotonic - self._sent_at < wait_seconds:
            return []
        self._sent_at = now.monotonic
        self._rounds += 1
        config = self.config
        sender = Sender(config.cluster_name, config.protocol_version, config.endpoint, SHADOW_GENERATION)
        rows = [
            (endpoint, known.state.generation, known.state.heartbeat, known.state.states_version)
            for endpoint, known in sorted({**self._saved, **self._known}.items())
        ]
        syn = GossipDigestSyn(sender, round(now.wall * 1000), DigestColumns.from_rows(rows))
        return [(peer, syn) for peer in self.asked]

    def answered(self, ack: GossipDigestAck, now: Now) -> None:
        """What one peer knows. An answer from somebody who is in a shadow round itself knows nothing."""
        if ack.sender.cluster_name != self.config.cluster_name:
            return
        if ack.as_of_ms:
            self._clocks[ack.sender.endpoint] = now.wall - ack.as_of_ms / 1000
        if ack.sender.generation == SHADOW_GENERATION:
            self._shadows.add(ack.sender.endpoint)
            return
        # Until everything fitted, a collision may be in the part that is still to come.
        self._answers += not ack.deferred
        self._incomplete = ack.deferred > 0
        for state in ack.states:
            remembered = state.heartbeat == REMEMBERED_HEARTBEAT
            room = len(self._saved if remembered else self._known) < ENDPOINTS_MAX
            if state.generation <= now.wall + GENERATION_AHEAD_SECONDS_MAX and room:
                (self._learn_saved if remembered else self._learn)(state, now)
        for index, endpoint in enumerate(ack.heartbeats.endpoints):
            known = self._known.get(endpoint)
            if known is not None and known.state.generation == int(ack.heartbeats.generations[index]):
                self._beat(known, int(ack.heartbeats.heartbeats[index]), now)

    def failed(self, peer: str, why: str, *, retriable: bool) -> None:
        """A SYN got no answer."""
        self._failures[peer] = (why, retriable)

    def _learn(self, state: EndpointState, now: Now) -> None:
        known = self._known.get(state.endpoint)
        if known is None or state.generation > known.state.generation:
            known = _Known(state, first_heartbeat=state.heartbeat, first_seen=now.monotonic)
            self._known[state.endpoint] = known
        elif state.generation < known.state.generation:
            return
        if state.states_version >= known.state.states_version or not known.values:
            known.state = state
            known.values.update({key: value.value for key, value in state.values if not value.deleted})
        self._beat(known, state.heartbeat, now)

    def _learn_saved(self, state: EndpointState, now: Now) -> None:
        known = self._saved.get(state.endpoint)
        if known is None or state.generation > known.state.generation:
            values = {key: value.value for key, value in state.values if not value.deleted}
            first_seen = now.monotonic if known is None else known.first_seen
            self._saved[state.endpoint] = _Known(state, values, first_seen=first_seen)

    @staticmethod
    def _beat(known: _Known, heartbeat: int, now: Now) -> None:
        if heartbeat > known.first_heartbeat:
            known.first_heartbeat = heartbeat
            known.moved_at = now.monotonic

    def verdict(self, now: Now) -> Verdict | None:
        """The end of the round, or None: go on.

        Raises:
            JoinError: this node may not join, or reached nobody in time.
        """
        config = self.config
        if self._clock_is_far_ahead():
            self._refuse_clock(now)
            return None
        if not config.seeds and not config.known_peers:
            if config.replace is not None:
                raise JoinError(f"cannot replace {config.replace}: there is no seed to ask")
            return self._go(None, alone=True)
        if not self._answers:
            return self._without_answers(now)
        own = self._known.get(config.endpoint)
        if own is not None and own.host_id is None and own.status not in GONE_STATUSES:
            return self._undecided(now)
        if config.replace is not None:
            return self._replacing(config.replace, now)
        self._refuse_collisions(own)
        if own is not None and self._moves_here(own) and self._stands_too_short(own, now):
            return None
        return None if self._rivals_may_live(now) else self._go(own)

    def _clock_is_far_ahead(self) -> bool:
        """Whether most of those who answered would refuse a generation of the own clock (CASSANDRA-8113)."""
        ahead = sum(seconds > GENERATION_AHEAD_SECONDS_MAX for seconds in self._clocks.values())
        return 2 * ahead > len(self._clocks)

    def _refuse_clock(self, now: Now) -> None:
        """One wrong clock that answers first is no majority yet: others get the time until the question is repeated."""
        waiting = [peer for peer in self.asked if peer not in self._clocks and peer not in self._failures]
        if waiting and now.monotonic - self._began < REPEAT_INTERVALS * self.config.interval_seconds:
            return
        ahead = [peer for peer, seconds in self._clocks.items() if seconds > GENERATION_AHEAD_SECONDS_MAX]
        raise JoinError(
            f"the clock of this node is {_duration(self._clock_ahead_seconds() or 0.0)} ahead of {len(ahead)} of the "
            f"{len(self._clocks)} nodes that answered ({_named(ahead)}); they refuse generations over a day ahead, so "
            "nobody would see this node. Set its clock, then start it again"
        )

    def _clock_ahead_seconds(self) -> float | None:
        return statistics.median(self._clocks.values()) if self._clocks else None

    def _clock_warning(self) -> str:
        ahead_seconds = self._clock_ahead_seconds()
        if ahead_seconds is None or abs(ahead_seconds) <= CLOCK_OFFSET_SECONDS_WARN:
            return ""
        if ahead_seconds > 0:
            wrong = f"{_duration(ahead_seconds)} ahead of"
            so = "its generations are too great, and more than a day ahead they would be refused"
        else:
            wrong = f"{_duration(-ahead_seconds)} behind"
            so = "its generations are too small, and only its data directory and its peers' memory keep them in order"
            if -ahead_seconds > GENERATION_AHEAD_SECONDS_MAX:
                so = "it refuses their generations, which lie over a day ahead for it, and sees nobody"
        asked = f"{len(self._clocks)} nodes that answered ({_named(self._clocks)})"
        return f"the clock of this node is {wrong} the clocks of {asked}: {so}; set its clock"

    def _without_answers(self, now: Now) -> Verdict | None:
        config = self.config
        # Everybody who answers is starting too: a seed goes first, and after a stop of the whole cluster whoever was
        # a member before need not wait for one.
        all_shadows = bool(self._shadows) and self._shadows >= set(config.seeds)
        was_member = bool(config.known_peers)
        if (config.is_seed and all_shadows) or (was_member and self._shadows and self._rounds > 2):
            return self._go(None, alone=True)
        failures = [self._failures.get(peer, ("no answer yet", True)) for peer in self.asked]
        refused = bool(failures) and not any(retriable for _, retriable in failures)
        if now.monotonic - self._began < config.timeout_seconds and not refused:
            return None
        if (config.is_seed or was_member) and not refused:
            return self._go(None, alone=True)
        waited = now.monotonic - self._began
        tried = "; ".join(f"{peer} ({why})" for peer, (why, _) in zip(self.asked, failures, strict=True))
        raise JoinError(
            f"reached no member of cluster {config.cluster_name!r} in {waited:.1f} s; tried {tried}. "
            "Check that a seed is running, its address and the cluster name"
        )

    def _undecided(self, now: Now) -> Verdict | None:
        if now.monotonic - self._began < self.config.timeout_seconds:
            return None
        raise JoinError(f"the cluster knows {self.config.endpoint} but nobody could say whose host id it has")

    def _refuse_collisions(self, own: _Known | None) -> None:
        config = self.config
        if own is not None:
            self._refuse_own_past(own)
        for rival in self._rivals():
            if rival.moved_at is not None:
                raise JoinError(
                    f"host id {config.host_id} is used by {rival.state.endpoint}, whose heartbeat moves; two nodes "
                    "cannot have one host id (was a data directory copied? then remove its identity file)"
                )

    def _refuse_own_past(self, own: _Known) -> None:
        config = self.config
        removed_by = own.values.get(ApplicationState.REMOVED_BY)
        mine = own.host_id == config.host_id
        if mine and removed_by is not None:
            raise JoinError(
                f"this node (host id {config.host_id}) was removed from the cluster by {removed_by}; it may only come "
                "back as a new one: start it with an empty data directory"
            )
        if mine and own.status == Status.LEFT and not config.rejoin:
            raise JoinError(
                f"this node (host id {config.host_id}) has left the cluster; set rejoin to come back, or start it with "
                "an empty data directory"
            )
        if self._moves_here(own) and own.moved_at is None:
            return
        if not mine and own.status not in GONE_STATUSES and own.status != Status.NONE:
            raise JoinError(
                f"a node with address {config.endpoint} and host id {own.host_id} already exists (status "
                f"{own.status}); choose another address, remove that node, or replace it"
            )

    def _replacing(self, wanted: str, now: Now) -> Verdict | None:
        config = self.config
        candidates = {**self._only_saved(), **self._known}
        victims = [known for endpoint, known in sorted(candidates.items()) if wanted in (endpoint, known.host_id)]
        victim = max(victims, key=lambda known: known.state.generation, default=None)
        done = victim is None or victim.status in GONE_STATUSES or victim.host_id == config.host_id
        if config.restarted and done:
            # The setting stayed in the configuration; the replacement was done at an earlier start.
            self._refuse_collisions(self._known.get(config.endpoint))
            return self._go(self._known.get(config.endpoint))
        if victim is None:
            raise JoinError(f"cannot replace {wanted}: the cluster does not know it")
        endpoint = victim.state.endpoint
        if victim.status in GONE_STATUSES:
            raise JoinError(f"cannot replace {wanted}: it is gone already (status {victim.status}); join as a new node")
        if victim.moved_at is not None:
            raise JoinError(f"cannot replace {wanted}: {endpoint} is alive, its heartbeat moves")
        if victim.host_id is None:
            raise JoinError(f"cannot replace {wanted}: nobody knows the host id of {endpoint}")
        if now.monotonic - victim.first_seen < STANDSTILL_INTERVALS * config.interval_seconds:
            return None
        if endpoint != config.endpoint:
            self._refuse_collisions(self._known.get(config.endpoint))
        return self._go(self._known.get(config.endpoint), replaces=victim)

    def _only_saved(self) -> dict[str, _Known]:
        """Those of whom nobody told anything else: neither of the endpoint nor of the host id."""
        host_ids = {known.host_id for known in self._known.values()}
        return {
            endpoint: saved
            for endpoint, saved in self._saved.items()
            if endpoint not in self._known and saved.host_id not in host_ids
        }

    def _rivals(self) -> list[_Known]:
        """Nodes elsewhere with the own host id that have not said that they stopped."""
        return [
            known
            for endpoint, known in sorted(self._known.items())
            if endpoint != self.config.endpoint
            and known.host_id == self.config.host_id
            and known.status not in STOPPED_STATUSES
        ]

    def _moves_here(self, own: _Known) -> bool:
        """Whether a member comes back at an address that another one had: addresses are swapped where pods restart.

        The other one cannot be there any more; it is watched all the same, in case two advertise one address.
        """
        if own.host_id in {None, self.config.host_id} or own.status in GONE_STATUSES:
            return False
        return any(
            known.host_id == self.config.host_id and known.status not in GONE_STATUSES
            for endpoint, known in self._known.items()
            if endpoint != self.config.endpoint
        )

    def _rivals_may_live(self, now: Now) -> bool:
        """Whether a rival has not been watched for long enough yet to be sure that it is the past of this node."""
        return any(self._stands_too_short(rival, now) for rival in self._rivals())

    def _stands_too_short(self, known: _Known, now: Now) -> bool:
        return now.monotonic - known.first_seen < STANDSTILL_INTERVALS * self.config.interval_seconds

    def _watching(self) -> bool:
        own = self._known.get(self.config.endpoint)
        if own is not None and self._moves_here(own):
            return True
        return bool(self._rivals()) or (self.config.replace is not None and bool(self._known or self._saved))

    def _go(self, own: _Known | None, *, alone: bool = False, replaces: _Known | None = None) -> Verdict:
        config = self.config
        past = [known for known in (own, self._saved.get(config.endpoint)) if known is not None]
        return Verdict(
            own_generation_seen=max((known.state.generation for known in past), default=0),
            host_id=config.host_id,
            replaces=self._statement(replaces),
            alone=alone,
            peers=tuple(endpoint for endpoint in sorted(self._known) if endpoint != config.endpoint),
            clock_ahead_seconds=self._clock_ahead_seconds(),
            clock_warning=self._clock_warning(),
        )

    def _statement(self, victim: _Known | None) -> str | None:
        """Whom this node replaces, and whom those have replaced whose words its own will supersede.

        They are the victim, and who had its endpoint or its host id before: this node itself, at most times.
        """
        config = self.config
        superseded = [
            known
            for endpoint, known in sorted(self._known.items())
            if known is not victim and (endpoint == config.endpoint or known.host_id == config.host_id)
        ]
        superseded.sort(key=lambda known: known.state.generation, reverse=True)
        replaced: list[Replaced] = []
        if victim is not None:
            replaced.append(Replaced(victim.host_id or "", victim.state.generation))
            superseded.insert(0, victim)
        for known in superseded:
            if known.status in JOINED_STATUSES:
                replaced += replaced_in(known.values.get(ApplicationState.REPLACES))
        return replaces_value(one for one in replaced if one.host_id != config.host_id)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" + (f" ({seconds / 86_400:.1f} days)" if seconds >= 86_400 else "")


def _named(peers: Iterable[str]) -> str:
    ordered = sorted(peers)
    rest = len(ordered) - _CLOCK_PEERS_NAMED_MAX
    return ", ".join(ordered[:_CLOCK_PEERS_NAMED_MAX]) + (f" and {rest} more" if rest > 0 else "")


def answer_while_in_shadow(config: ShadowConfig, syn: GossipDigestSyn, now: Now) -> GossipDigestAck | None:
    """The answer of a node that is in a shadow round itself: nothing, to another such node; None to all others."""
    if syn.sender.generation != SHADOW_GENERATION or syn.sender.cluster_name != config.cluster_name:
        return None
    sender = Sender(config.cluster_name, config.protocol_version, config.endpoint, SHADOW_GENERATION)
    empty = DigestColumns.empty()
    return GossipDigestAck(sender, round(now.wall * 1000), empty, empty, ())
