"""One incarnation of a gossiper on a simulated machine: what ``gossiper.node`` is to a real one.

It feeds the engine, carries out effects, encodes and decodes every message, waits for answers until their deadline,
and obeys the same limits of sends in flight. It can be paused (as by SIGSTOP: what arrives waits in the kernel) and
slow. New effects of the engine need one more entry in ``_carry_out``.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from gossiper.core.application_states import ApplicationState
from gossiper.core.engine import CAPABILITIES, CAPABILITIES_PLAIN, PROTOCOL_VERSION, EngineConfig, GossipEngine
from gossiper.core.io import (
    Answer,
    Count,
    EnableRequested,
    EngineEvent,
    GenerationNotPersisted,
    GenerationPersisted,
    LeaveRequested,
    Notify,
    PersistGeneration,
    ReplyReceived,
    RequestReceived,
    RoundDue,
    Send,
    SendFailed,
    ShutdownRequested,
    Stop,
    Warn,
)
from gossiper.core.lifecycle import Status
from gossiper.core.local import Publish, Published
from gossiper.core.messages import GossipDigestAck, GossipDigestSyn, Reply, Request
from gossiper.core.saved import KnownPeer, seen_now
from gossiper.core.shadow import ShadowConfig, ShadowRound, Verdict, answer_while_in_shadow
from gossiper.core.table import NO_EXPIRY
from gossiper.core.versions import Now, next_generation
from gossiper.errors import JoinError, LifecycleError, LocalStateError, PeerProtocolError, PublishError
from gossiper.limits import MESSAGE_BYTES_MAX, SENDS_IN_FLIGHT_MAX, SENDS_IN_FLIGHT_PER_PEER_MAX
from gossiper.simulation.loop import Action
from gossiper.simulation.violation import InvariantViolation
from gossiper.transport.inbound import DECODERS
from gossiper.wire import codec

if TYPE_CHECKING:
    from gossiper.simulation.cluster import Cluster
    from gossiper.simulation.machine import Machine

CLUSTER_NAME: Final = "simulation"
#: As the shell has it at an interval of one second.
PEERS_STORE_SECONDS: Final = 10.0
#: The shell's defaults: ``GossipConfig`` with an interval of one second.
INTERVAL_MS: Final = 1000
TIMEOUT_SECONDS: Final = 1.0
SHUTDOWN_GRACE_SECONDS: Final = 2.0
#: An operator reads a warning that the node itself cannot act upon.
OPERATOR_SECONDS: Final = 5.0
#: Writing and syncing the identity file.
PERSIST_SECONDS_MAX: Final = 0.05
#: Reasons for which an honest node may refuse an honest message; any other is a finding.
REFUSALS_EXPECTED: Final = frozenset({"not_running"})
#: Reasons for which an entry of an honest message may be left out.
LEFT_OUT_EXPECTED: Final = frozenset({"quarantined", "expired"})


class Process:
    """A gossiper that starts, runs and ends; ``engine`` is its state once it has joined."""

    def __init__(self, cluster: Cluster, machine: Machine) -> None:
        """Read the files and begin the shadow round.

        Raises:
            LocalStateError: the disk does not let it.
        """
        self.cluster = cluster
        self.machine = machine
        self.endpoint = machine.endpoint
        self.alive = True
        self.stopping = False
        self._leaving = False
        """Stopping, but gossip goes on until its peers have had time to hear that it leaves."""
        self.paused = False
        self.slow_seconds = 0.0
        self._loop = cluster.loop
        self._network = cluster.network
        self._rng = cluster.loop.stream(f"process/{machine.index}/{machine.incarnations}")
        # A stream of its own, so that it changes nothing else that a seed means.
        forms = cluster.loop.stream(f"form/{machine.index}/{machine.incarnations}")
        self._plain_only = forms.random() < cluster.swarm.plain_only
        self._waiting: list[tuple[Action, tuple[Any, ...]]] = []
        self._backlog: deque[tuple[Action, tuple[Any, ...]]] = deque()
        self._calls: dict[int, tuple[str, Request]] = {}
        self._in_flight: Counter[tuple[str, type[Request]]] = Counter()
        self._call = 0
        self._ticket = 0
        self._encoded: tuple[Request, bytes] | None = None
        self._doubted = False
        self.published: dict[int, Publish] = {}
        """Publishes that are not acknowledged yet, by ticket; the checkers take them out."""
        self._carry_out: dict[type, Callable[[Any], None]] = {
            Send: self._send,
            Notify: cluster.notified,
            Published: self._published,
            PersistGeneration: self._persist,
            Stop: self._told_to_stop,
            Count: self._count,
            Warn: self._warn,
        }
        self._engine: GossipEngine | None = None
        machine.disk.load()
        self._shadow_config = ShadowConfig(
            cluster_name=CLUSTER_NAME,
            protocol_version=PROTOCOL_VERSION,
            endpoint=self.endpoint,
            host_id=machine.disk.host_id,
            interval_seconds=INTERVAL_MS / 1000,
            seeds=tuple(seed for seed in machine.seeds if seed != self.endpoint),
            known_peers=tuple(peer.endpoint for peer in machine.disk.known_peers if peer.endpoint != self.endpoint),
            is_seed=machine.is_seed,
            replace=machine.replaces,
            timeout_seconds=cluster.swarm.join_timeout_seconds,
        )
        self._shadow = ShadowRound(self._shadow_config, self.now())
        self._loop.at(self._loop.now, self._run, self._ask)

    # -- joining -----------------------------------------------------------------------------------------------------

    @property
    def joined(self) -> bool:
        """Whether the shadow round is over and the engine runs."""
        return self._engine is not None

    @property
    def gossips(self) -> bool:
        """Whether it takes part: joined, not stopping, gossip not disabled."""
        return self._engine is not None and not self._engine.stopped and not self.stopping

    @property
    def engine(self) -> GossipEngine:
        """The engine of a process that has joined."""
        if self._engine is None:
            raise AssertionError(f"{self.endpoint} has not joined yet")
        return self._engine

    def _ask(self) -> None:
        """One turn of the shadow round: a verdict, or more questions."""
        if self._decided():
            return
        self._poll()
        self._loop.after(INTERVAL_MS / 1000, self._run, self._ask)

    def _poll(self) -> None:
        for peer, syn in self._shadow.poll(self.now()):
            self._request(peer, syn)

    def _decided(self) -> bool:
        if self.joined:
            return True
        try:
            verdict = self._shadow.verdict(self.now())
            if verdict is not None:
                self._begin(verdict)
        except (JoinError, LocalStateError) as error:
            self.cluster.refused(self, error)
            return True
        return verdict is not None

    def _begin(self, verdict: Verdict) -> None:
        """Take a generation, on disk before anybody hears of it, and begin to gossip."""
        if verdict.clock_warning:
            self.cluster.trace.line(f"clock of {self.endpoint}: {verdict.clock_warning}")
        disk, now = self.machine.disk, self.now()
        known = disk.load()
        generation = self.cluster.truth.unused_generation(
            self.endpoint, next_generation(known, now.wall, verdict.own_generation_seen), lost=known is None
        )
        disk.store(generation)
        self._calls.clear()
        self._in_flight.clear()
        peers = {*verdict.peers, *self._shadow_config.known_peers}
        self._engine = GossipEngine(
            EngineConfig(
                cluster_name=CLUSTER_NAME,
                endpoint=self.endpoint,
                interval_ms=INTERVAL_MS,
                echo_retry_seconds=2 * TIMEOUT_SECONDS,
                seeds=self.machine.seeds,
                known_peers=tuple(sorted(peers)),
                saved_peers=disk.known_peers,
            ),
            generation=generation,
            values=self._initial_values(verdict),
            rng=self._rng,
            now=now,
        )
        self.machine.replaces = None
        self.observer = self.cluster.checkers.observe(self)
        self.cluster.joined(self)
        self._schedule_round()
        self._loop.after(PEERS_STORE_SECONDS, self._run, self._keep_peers)

    def _initial_values(self, verdict: Verdict) -> dict[str, str | None]:
        replacing: dict[str, str | None] = {}
        if verdict.replaces is not None:
            replacing[ApplicationState.REPLACES] = verdict.replaces
        return {
            **replacing,
            ApplicationState.DC: "dc1",
            ApplicationState.RACK: f"rack{self.machine.index % 3}",
            ApplicationState.RELEASE_VERSION: "simulated",
            ApplicationState.NET_VERSION: str(PROTOCOL_VERSION),
            ApplicationState.CAPABILITIES: CAPABILITIES_PLAIN if self._plain_only else CAPABILITIES,
            ApplicationState.HOST_ID: self.machine.disk.host_id,
            ApplicationState.INTERNAL_ADDRESS_AND_PORT: self.endpoint,
            ApplicationState.STATUS: Status.NORMAL.value,
        }

    def _keep_peers(self) -> None:
        self._store_peers()
        self._loop.after(PEERS_STORE_SECONDS, self._run, self._keep_peers)

    def _store_peers(self) -> None:
        if self._engine is None:
            return
        state, wall_seconds = self._engine.state, self.now().wall
        table = state.table
        # Only who is gone for good has a time to be forgotten.
        known = table.used & (table.generation > 0) & (table.expire_ms == NO_EXPIRY)
        known[state.local_row] = False
        seen = seen_now(wall_seconds)
        rows = known.nonzero()[0]
        members = [
            KnownPeer(table.endpoint(row), state.host_id_at(row) or "", "", "", generation, seen)
            for row, generation in zip(rows.tolist(), table.generation[rows].tolist(), strict=True)
        ]
        members.sort(key=attrgetter("endpoint"))
        self.machine.disk.known_peers = (*members, *state.saved.fresh(wall_seconds))

    def now(self) -> Now:
        """Both clocks of its machine."""
        return self.machine.clock.now(self._loop.now)

    # -- scheduling: pauses and slowness ----------------------------------------------------------------------------

    def _run(self, action: Action, *arguments: Any) -> None:
        """Run ``action`` when this process gets to it, if it lives to see that."""
        if not self.alive:
            return
        if self.paused:
            self._waiting.append((action, arguments))
        elif self.slow_seconds or self._backlog:
            self._backlog.append((action, arguments))
            if len(self._backlog) == 1:
                self._serve_later()
        else:
            action(*arguments)

    def _serve_later(self) -> None:
        """A slow process takes its time for each event; a quick one works its backlog off at once."""
        delay = self._rng.expovariate(1 / self.slow_seconds) if self.slow_seconds else 0.0
        self._loop.after(delay, self._serve)

    def _serve(self) -> None:
        if self.paused:
            self._waiting = [*self._backlog, *self._waiting]
            self._backlog.clear()
        elif self.alive:
            action, arguments = self._backlog[0]
            action(*arguments)
            self._backlog.popleft()
            if self._backlog:
                self._serve_later()

    def pause(self) -> None:
        """Stand still; what arrives waits."""
        self.paused = True

    def resume(self) -> None:
        """Go on. Whether timers or packets are seen first after a pause is a matter of luck."""
        self.paused = False
        waiting, self._waiting = self._waiting, []
        timers = [item for item in waiting if item[0] == self._round]
        packets = [item for item in waiting if item[0] != self._round]
        for action, arguments in timers + packets if self._rng.random() < 0.5 else packets + timers:
            self._run(action, *arguments)

    def _schedule_round(self) -> None:
        self._due = self._loop.now + INTERVAL_MS / 1000
        self._loop.at(self._due + self._rng.uniform(0.0, 0.005), self._run, self._round)

    def _round(self) -> None:
        if self.stopping and not self._leaving:
            return
        # After a pause one round is run, not all that were missed.
        self._due = max(self._due + INTERVAL_MS / 1000, self._loop.now)
        self._loop.at(self._due + self._rng.uniform(0.0, 0.005), self._run, self._round)
        self.do(RoundDue())

    # -- the engine --------------------------------------------------------------------------------------------------

    def do(self, event: EngineEvent) -> Reply | None:
        """Let the engine decide, have the checkers look at what it did, carry out what it wants."""
        now = self.now()
        effects = self.engine.handle(event, now)
        self.observer.check(event, effects, now)
        answer: Reply | None = None
        for effect in effects:
            if not self.alive:
                break
            if type(effect) is Answer:
                if answer is not None or type(event) is not RequestReceived:
                    raise InvariantViolation(
                        "one_answer", f"{self.endpoint} answers {type(event).__name__} once too often"
                    )
                answer = effect.reply
            else:
                self._carry_out[type(effect)](effect)
        return answer

    def _published(self, effect: Published) -> None:
        """Nobody waits for it but the checkers, which have seen it already."""
        self.cluster.counters["published"] += 1
        self.cluster.trace.line(f"published {self.endpoint} version {effect.version}")

    def _persist(self, effect: PersistGeneration) -> None:
        self._loop.after(self._rng.uniform(0.0, PERSIST_SECONDS_MAX), self._run, self._persisted, effect.generation)

    def _persisted(self, generation: int) -> None:
        if self.cluster.truth.used(self.endpoint, generation):
            # Only after the identity file was lost: nobody could know. An operator has to help.
            self.cluster.generation_used_before(self)
            return
        try:
            self.machine.disk.store(generation)
        except LocalStateError as error:
            self.cluster.trace.line(f"disk {self.endpoint} generation {generation}: {error}")
            self.cluster.faults["persist_failed"] += 1
            self.do(GenerationNotPersisted(generation, str(error)))
            return
        self.do(GenerationPersisted(generation))

    def _count(self, effect: Count) -> None:
        self.cluster.counters[effect.name] += effect.amount
        if effect.name == "gossiper_exchanges_total":
            self.cluster.counters[f"{effect.name} {effect.label}"] += effect.amount
        if effect.name == "gossiper_refused_entries_total" and effect.label not in LEFT_OUT_EXPECTED:
            raise InvariantViolation(
                "honest_entry_refused", f"{self.endpoint} left out {effect.amount}: {effect.label}"
            )

    def _warn(self, effect: Warn) -> None:
        self.cluster.trace.line(f"warn {self.endpoint} {effect.key}: {effect.text}")
        if effect.key == "double" and not self._doubted:
            self._doubted = True
            self._loop.after(OPERATOR_SECONDS, self.cluster.doubled, self, effect.text)

    def _told_to_stop(self, effect: Stop) -> None:
        self.cluster.stopped_itself(self, effect.reason)

    # -- operations --------------------------------------------------------------------------------------------------

    def publish(self, values: Mapping[str, str | None], expires_in_seconds: float = 0.0) -> None:
        """Publish as an application would; waits while the process is paused."""
        self._run(self._publish, values, expires_in_seconds)

    def _publish(self, values: Mapping[str, str | None], expires_in_seconds: float) -> None:
        if not self.gossips:
            return
        self._ticket += 1
        expires_at_ms = round((self.now().wall + expires_in_seconds) * 1000) if expires_in_seconds else 0
        event = Publish(values, self._ticket, expires_at_ms)
        self.published[self._ticket] = event
        try:
            self.do(event)
        except (LifecycleError, PublishError) as error:
            raise InvariantViolation("publish_refused", f"{self.endpoint}: {error}") from error

    def shut_down(self) -> None:
        """Announce the end, wait for the peers up to the grace, stop."""
        self._run(self._end, ShutdownRequested())

    def leave(self) -> None:
        """Leave for good."""
        self._run(self._end, LeaveRequested())

    def _end(self, event: ShutdownRequested | LeaveRequested) -> None:
        if self.stopping:
            return
        if not self.joined:
            self._stop()
            return
        if self.operate(event):
            self.stopping = True
            self._leaving = isinstance(event, LeaveRequested)
            if self._leaving:
                self._loop.after(SHUTDOWN_GRACE_SECONDS / 2, self._run, self._publish_late)
            self._loop.after(SHUTDOWN_GRACE_SECONDS, self._run, self._leave_behind)

    def _publish_late(self) -> None:
        """The application has not noticed that the node leaves: it is refused, and nobody hears of it."""
        self._ticket += 1
        event = self.published[self._ticket] = Publish({"late": "value"}, self._ticket)
        if not self.operate(event):
            del self.published[self._ticket]

    def _leave_behind(self) -> None:
        # Leaving is followed by an ordinary stop, which is silent then.
        self.operate(ShutdownRequested())
        self._stop()

    def _stop(self) -> None:
        if self.alive:
            self._store_peers()
            self.cluster.stopped(self)

    def operate(self, event: EngineEvent) -> bool:
        """An operator's wish; False when the engine says that it is not possible now."""
        if not self.joined or (self.engine.stopped and not isinstance(event, EnableRequested)):
            return False
        try:
            self.do(event)
        except LifecycleError as error:
            self.cluster.trace.line(f"{type(event).__name__} at {self.endpoint}: {error}")
            return False
        return True

    def enable(self) -> bool:
        """Take part again after gossip was disabled; False when it was not, or the disk does not let it."""
        if not self.joined or not self.engine.stopped or self.stopping:
            return False
        generation = self.cluster.truth.unused_generation(
            self.endpoint, next_generation(self.machine.disk.load(), self.now().wall), lost=False
        )
        try:
            self.machine.disk.store(generation)
        except LocalStateError:
            return False
        return self.operate(EnableRequested(generation))

    def kill(self) -> None:
        """Be gone, now. What is under way in the network arrives; answers to this process do not."""
        self.alive = False
        self._calls.clear()
        self._waiting.clear()

    # -- sending -----------------------------------------------------------------------------------------------------

    def _send(self, effect: Send) -> None:
        self._request(effect.peer, effect.request)

    def _request(self, peer: str, request: Request) -> None:
        kind = (peer, type(request))
        if self._in_flight[kind] >= SENDS_IN_FLIGHT_PER_PEER_MAX or len(self._calls) >= SENDS_IN_FLIGHT_MAX:
            self.cluster.counters["sends_skipped"] += 1
            self._unanswered(peer, request, "busy")
            return
        self._in_flight[kind] += 1
        self._call += 1
        call = self._call
        self._calls[call] = (peer, request)
        self._network.request(self, call, peer, codec.KINDS[type(request)], self._encode(request))
        self._loop.after(TIMEOUT_SECONDS, self._run, self._ended, call, "deadline")

    def _encode(self, request: Request) -> bytes:
        # One SYN goes to up to three peers of a round.
        if self._encoded is None or self._encoded[0] is not request:
            self._encoded = (request, _bounded(codec.encode(request)))
        return self._encoded[1]

    def answered(self, call: int, data: bytes) -> None:
        """The network brings an answer."""
        self._run(self._answered, call, data)

    def _answered(self, call: int, data: bytes) -> None:
        found = self._take_call(call)
        if found is None:
            return
        peer, request = found
        self.cluster.delivered("answer", peer, self.endpoint, data)
        try:
            reply = codec.decode_reply_to(request, data)
        except PeerProtocolError as error:
            raise InvariantViolation("honest_message_refused", f"{self.endpoint} refuses an answer: {error}") from error
        if self.joined:
            self.do(ReplyReceived(peer, request, reply))
        elif isinstance(reply, GossipDigestAck):
            self._shadow.answered(reply, self.now())
            if not self._decided():
                self._poll()

    def failed(self, call: int, reason: str) -> None:
        """The network brings a refusal."""
        self._run(self._ended, call, reason)

    def _ended(self, call: int, reason: str) -> None:
        found = self._take_call(call)
        if found is not None:
            self._unanswered(*found, reason)

    def _unanswered(self, peer: str, request: Request, reason: str) -> None:
        if self.joined:
            self.do(SendFailed(peer, request, reason))
        else:
            self._shadow.failed(peer, reason, retriable=True)

    def _take_call(self, call: int) -> tuple[str, Request] | None:
        found = self._calls.pop(call, None)
        if found is not None:
            kind = (found[0], type(found[1]))
            self._in_flight[kind] -= 1
            if not self._in_flight[kind]:
                del self._in_flight[kind]
        return found

    # -- receiving ---------------------------------------------------------------------------------------------------

    def requested(self, kind: str, data: bytes, source: int, caller: Process | None, call: int) -> None:
        """The network brings a request; ``caller`` None: nobody waits for the answer (a replay)."""
        self._run(self._requested, kind, data, source, caller, call)

    def _requested(self, kind: str, data: bytes, source: int, caller: Process | None, call: int) -> None:
        self.cluster.delivered(kind, source, self.endpoint, data)
        try:
            reply = self._handle(self._understood(DECODERS[kind](data)))
        except PeerProtocolError as error:
            if error.reason not in REFUSALS_EXPECTED:
                raise InvariantViolation(
                    "honest_message_refused", f"{self.endpoint} refuses a {kind}: {error}"
                ) from error
            if caller is not None:
                self._network.refuse(self.machine, caller, call, "refused")
            return
        if reply is None:
            raise InvariantViolation("one_answer", f"{self.endpoint} gives no answer to a {kind}")
        if caller is not None:
            self._network.answer(self.machine, caller, call, _bounded(codec.encode(reply)))

    def _understood(self, request: Request) -> Request:
        """What an older version takes from a message: fields that it does not know are not there for it."""
        if self._plain_only and isinstance(request, GossipDigestSyn) and request.compact is not None:
            self.cluster.counters["compact_not_understood"] += 1
            return replace(request, compact=None)
        return request

    def _handle(self, request: Request) -> Reply | None:
        if self.joined:
            return self.do(RequestReceived(request))
        answer = None
        if isinstance(request, GossipDigestSyn):
            answer = answer_while_in_shadow(self._shadow_config, request, self.now())
        if answer is None:
            raise PeerProtocolError("not_running", "this node is starting")
        return answer


def _bounded(data: bytes) -> bytes:
    if len(data) > MESSAGE_BYTES_MAX:
        raise InvariantViolation("message_too_large", f"{len(data)} bytes, the limit is {MESSAGE_BYTES_MAX}")
    return data
