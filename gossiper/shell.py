"""Gossiper: the asyncio shell around the engine. It owns clocks, timers, files, the transport and the subscribers.

One task group owns every task; the engine is called from the event loop only, so its state needs no lock. A peer that
hangs costs one deadline in its own task and never holds up a round.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Final, Self

from gossiper.config import GossipConfig
from gossiper.core.application_states import ApplicationState
from gossiper.core.endpoints import canonical_endpoint, format_endpoint, parse_endpoint
from gossiper.core.engine import CAPABILITIES, CAPABILITIES_PLAIN, PROTOCOL_VERSION, EngineConfig, GossipEngine
from gossiper.core.io import (
    Answer,
    Count,
    Effect,
    EngineEvent,
    GenerationNotPersisted,
    GenerationPersisted,
    Notify,
    PersistGeneration,
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
from gossiper.core.lifecycle import GONE_STATUSES, Status
from gossiper.core.local import Published
from gossiper.core.messages import EchoRequest, Reply, Request
from gossiper.core.peers import PeerPolicy
from gossiper.core.saved import KnownPeer, seen_now
from gossiper.core.shadow import Verdict
from gossiper.core.versions import Now
from gossiper.discovery import ReloadResult, SeedWatcher, parse_seed_sources
from gossiper.errors import LocalStateError, NotRunningError, PeerProtocolError, TransportError
from gossiper.events import EndpointView, Event
from gossiper.joining import Joining, load_identity, take_generation
from gossiper.limits import LOG_INTERVAL_SECONDS, SENDS_IN_FLIGHT_MAX, SENDS_IN_FLIGHT_PER_PEER_MAX
from gossiper.metrics import GossipMetrics
from gossiper.reporting import log_event
from gossiper.storage import NodeStorage
from gossiper.subscriptions import Subscription
from gossiper.transport.base import Transport

if TYPE_CHECKING:
    import grpc.aio

logger = logging.getLogger(__name__)

Services = Sequence[Callable[["grpc.aio.Server"], None]]
Clock = Callable[[], Now]

#: Kinds of warning whose last time is remembered; beyond it all may be said once more.
_WARNINGS_MAX: Final = 1024
#: What the label of a counter is called; most tell why something did not happen.
_LABELS: Final = {"gossiper_exchanges_total": "kind"}
#: Known peers are compared with what is on disk every so many intervals.
PEERS_STORE_INTERVALS: Final = 2


def system_clock() -> Now:
    """Both clocks of this machine; the monotonic one counts suspended time where the system has such a clock."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    monotonic = time.monotonic() if boottime is None else time.clock_gettime(boottime)
    return Now(monotonic, time.time())


class GossiperShell:
    """What keeps a gossiper going: start, stop, the engine's events and effects; ``Gossiper`` adds the public face."""

    def __init__(
        self,
        config: GossipConfig,
        *,
        services: Services = (),
        transport: Transport | None = None,
        clock: Clock = system_clock,
    ) -> None:
        self.config = config
        self.metrics = GossipMetrics()
        self._services = services
        self._transport = transport
        self._clock = clock
        self._storage = NodeStorage(config.data_dir)
        self._engine: GossipEngine | None = None
        self._endpoint = ""
        self._host_id = ""
        self._started = Now(0.0, 0.0)
        self._rng = random.Random(config.random_seed)  # noqa: S311 - chooses peers, guards nothing
        self._seeds = SeedWatcher(
            parse_seed_sources(config.seeds),
            rng=self._rng,
            interval_seconds=config.seed_reload_seconds,
            on_change=self._seeds_changed,
        )
        self._joining: Joining | None = None
        self._failure: str | None = None
        self._stored_peers: tuple[KnownPeer, ...] | None = None
        self._main: asyncio.Task[None] | None = None
        self._begun = False
        self._running = False
        self._entered = asyncio.Event()
        self._aborted = False
        self._stopping = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._in_flight: Counter[tuple[str, type[Request]]] = Counter()
        self._tickets: dict[int, asyncio.Future[int]] = {}
        self._ticket = 0
        self._sends: set[asyncio.Task[None]] = set()
        self._subscriptions: list[Subscription] = []
        self._warned: dict[str, float] = {}

    # -- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop, telling the others."""
        await self.stop()

    async def start(self) -> None:
        """Load or make the identity, listen, ask the cluster, put the generation on disk, and begin to gossip.

        Raises:
            LocalStateError: the port is in use, or the data directory is locked, corrupt, full or not writable.
            JoinError: the cluster does not take this node, or (for a node that is no seed) nobody could be reached.
            ConfigError: a source of seeds cannot be used.
            SeedError: no source of seeds names anybody.
        """
        if self._begun:
            raise LocalStateError("a gossiper is started once")
        self._begun = True
        try:
            await self._begin()
            await self._enter()
        except BaseException:
            if self._transport is not None:
                await self._transport.stop(0.0)
            self._storage.close()
            raise
        logger.info("started endpoint=%s generation=%d host_id=%s", self._endpoint, self.generation, self._host_id)

    async def _enter(self) -> None:
        """Begin the main task, and see it begun: cancelled before its first step it would clean up nothing."""
        self._running = True
        main = self._main = asyncio.create_task(self._run(), name=f"gossiper {self._endpoint}")
        main.add_done_callback(lambda _: self._entered.set())
        try:
            await self._entered.wait()
        except BaseException:
            main.cancel()
            await asyncio.wait([main])
            raise
        finally:
            self._running = self._running and not main.done()
        if main.cancelled():
            raise asyncio.CancelledError

    async def _begin(self) -> None:
        identity = await load_identity(self._storage, self.config)
        self._host_id = identity.host_id
        if self._transport is None:
            from gossiper.transport.grpc import GrpcTransport  # noqa: PLC0415 - in-memory users need no gRPC

            self._transport = GrpcTransport(self.config.listen, metrics=self.metrics, services=self._services)
        self._endpoint = self._advertised(await self._transport.start(self._handle_request))
        seeds = await self._seeds.start()
        self._joining = Joining(self.config, identity, self._endpoint, seeds)
        verdict = await self._joining.run(self._transport, self._clock)
        if verdict.alone and self._joining.shadow_config.seeds:
            logger.warning("alone endpoint=%s: no other seed answered; beginning without them", self._endpoint)
        now = self._clock()
        if verdict.clock_warning:
            self._warn("clock", verdict.clock_warning)
        generation = await take_generation(self._storage, identity, verdict, now)
        self._started = now
        known = {*verdict.peers, *self._joining.shadow_config.known_peers}
        self._engine = GossipEngine(
            self._engine_config(seeds, tuple(sorted(known)), identity.known_peers),
            generation=generation,
            values=self._initial_values(verdict),
            rng=self._rng,
            now=self._clock(),
        )

    def _advertised(self, bound: str) -> str:
        if self.config.advertise is None:
            return bound
        host, port = parse_endpoint(self.config.advertise)
        return canonical_endpoint(self.config.advertise) if port else format_endpoint(host, parse_endpoint(bound)[1])

    def _engine_config(
        self, seeds: tuple[str, ...], known_peers: tuple[str, ...], saved_peers: tuple[KnownPeer, ...]
    ) -> EngineConfig:
        config = self.config
        remote_per_second = config.remote_exchanges_per_second
        return EngineConfig(
            cluster_name=config.cluster_name,
            endpoint=self._endpoint,
            interval_ms=config.interval_ms,
            phi_threshold=config.phi_threshold,
            phi_window_size=config.phi_window_size,
            first_interval_seconds=config.first_interval_seconds,
            interval_seconds_max=config.interval_seconds_max,
            local_pause_seconds=config.local_pause_seconds,
            echo_retry_seconds=2 * self._echo_timeout_seconds,
            seeds=seeds,
            known_peers=known_peers,
            saved_peers=saved_peers,
            push_fanout=config.push_fanout,
            peer_policy=PeerPolicy(
                partners=config.partners,
                own_zone_probability=config.own_zone_probability,
                remote_exchanges_per_interval=None
                if remote_per_second is None
                else remote_per_second * config.interval_seconds,
            ),
        )

    def _initial_values(self, verdict: Verdict) -> dict[str, str | None]:
        config = self.config
        replacing: dict[str, str | None] = {}
        if verdict.replaces is not None:
            replacing[ApplicationState.REPLACES] = verdict.replaces
        return {
            **dict(config.states),
            **replacing,
            ApplicationState.DC: config.datacenter,
            ApplicationState.RACK: config.rack,
            ApplicationState.RELEASE_VERSION: config.release_version or library_version(),
            ApplicationState.NET_VERSION: str(PROTOCOL_VERSION),
            ApplicationState.CAPABILITIES: CAPABILITIES_PLAIN if config.digest_form == "plain" else CAPABILITIES,
            ApplicationState.HOST_ID: self._host_id,
            ApplicationState.INTERNAL_ADDRESS_AND_PORT: self._endpoint,
            ApplicationState.STATUS: self._initial_status(),
        }

    def _initial_status(self) -> str:
        hibernate = self.config.initial_status == Status.HIBERNATE
        return f"{Status.HIBERNATE},true" if hibernate else self.config.initial_status

    @property
    def _echo_timeout_seconds(self) -> float:
        return self.config.echo_timeout_seconds or self.config.exchange_timeout_seconds

    async def stop(self) -> None:
        """Announce the shutdown to live peers, wait for them up to the grace, close everything. Idempotent."""
        if self._main is None:
            return
        self._stopping.set()
        # A cancelled stop must still end what runs; the task itself is bounded by the grace.
        await asyncio.shield(asyncio.wait([self._main]))
        if not self._main.cancelled() and (error := self._main.exception()) is not None:
            raise error

    async def _run(self) -> None:
        self._entered.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                timers = [
                    tasks.create_task(self._rounds(), name="gossip rounds"),
                    tasks.create_task(self._seeds.run(), name="gossip seeds"),
                    tasks.create_task(self._keep_peers(), name="gossip peers"),
                ]
                try:
                    await self._stopping.wait()
                    for timer in timers:
                        timer.cancel()
                    if self._failure is None:
                        await self._announce_shutdown()
                finally:
                    # From here on peers are refused: the group that would carry what they cause is ending.
                    self._running = False
                for task in list(self._sends):
                    task.cancel()
        finally:
            self._running = False
            self._tasks = None
            for future in self._tickets.values():
                if not future.done():
                    future.set_exception(NotRunningError("the gossiper stopped before the values were published"))
                    # Whoever waits gets it; whoever gave up must not be reported as a forgotten exception.
                    future.exception()
            for subscription in list(self._subscriptions):
                subscription.close()
            if self._transport is not None:
                await self._transport.stop(self.config.shutdown_grace_seconds)
            if self._stopping.is_set() and not self._aborted:
                # Whoever is cancelled without a stop is being killed: nothing may be done that a kill would not do.
                await self._store_peers()
            self._storage.close()
            logger.info("stopped endpoint=%s", self._endpoint)

    async def _rounds(self) -> None:
        interval = self.config.interval_seconds
        due = self._clock().monotonic + interval
        while True:
            await asyncio.sleep(max(0.0, due - self._clock().monotonic))
            # After a pause one round is run, not all that were missed.
            now = self._clock().monotonic
            due = due + interval if due + interval > now else now + interval
            self._do_safely(RoundDue())

    async def _keep_peers(self) -> None:
        """Peers go to disk a while after a change, so that the whole cluster can start again without its seeds."""
        while True:
            await asyncio.sleep(PEERS_STORE_INTERVALS * self.config.interval_seconds)
            await self._store_peers()

    async def _store_peers(self) -> None:
        if self.config.data_dir is None or self._engine is None:
            return
        wall_seconds = self._clock().wall
        members = tuple(
            KnownPeer(
                view.endpoint,
                view.host_id or "",
                view.get(ApplicationState.DC) or "",
                view.get(ApplicationState.RACK) or "",
                view.generation,
                seen_now(wall_seconds),
            )
            for view in self.members()
            if view.endpoint != self._endpoint and view.generation and view.status not in GONE_STATUSES
        )
        # A member that is dead since a run before stays remembered, as long as it may be.
        peers = members + self._engine.state.saved.fresh(wall_seconds)
        if peers == self._stored_peers:
            return
        try:
            await asyncio.to_thread(self._storage.store_peers, peers)
        except LocalStateError as error:
            self._warn("peers", f"known peers cannot be kept: {error}")
        else:
            self._stored_peers = peers

    def _seeds_changed(self, result: ReloadResult) -> None:
        self._do_safely(SeedsChanged(result.seeds))

    async def _announce_shutdown(self) -> None:
        before = set(self._sends)
        self._do_safely(ShutdownRequested())
        announcements = set(self._sends) - before
        if announcements:
            await asyncio.wait(announcements, timeout=self.config.shutdown_grace_seconds)

    # -- engine, effects, sends --------------------------------------------------------------------------------------

    def _do(self, event: EngineEvent) -> Reply | None:
        """Let the engine decide, carry out what it wants; the answer, if the event was a request."""
        answer: Reply | None = None
        for effect in self._running_engine.handle(event, self._clock()):
            if isinstance(effect, Answer):
                answer = effect.reply
            else:
                self._carry_out(effect)
        return answer

    def _do_safely(self, event: EngineEvent) -> None:
        """As ``_do``; a defect in it is logged and counted, and membership goes on, as in Cassandra."""
        try:
            self._do(event)
        except Exception:
            self.metrics.increment("gossiper_internal_errors_total")
            logger.exception("internal_error event=%s", type(event).__name__)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send(peer, request):
                self._send(peer, request)
            case Notify(event):
                self._notify(event)
            case Published(ticket, version):
                future = self._tickets.pop(ticket, None)
                if future is not None and not future.done():
                    future.set_result(version)
            case PersistGeneration(generation):
                self._spawn(self._persist(generation), name="persist generation")
            case Stop(reason):
                self._failure = reason
                self._stopping.set()
            case Count(name, label, amount):
                if label:
                    self.metrics.increment(name, amount, **{_LABELS.get(name, "reason"): label})
                else:
                    self.metrics.increment(name, amount)
            case Warn(key, text):
                self._warn(key, text)

    def _handle_request(self, request: Request) -> Reply:
        if self._joining is not None and self._engine is None:
            return self._joining.answer(request, self._clock())
        if self._engine is None or not self._running:
            raise PeerProtocolError("not_running", "this node is starting or has stopped")
        answer = self._do(RequestReceived(request))
        if answer is None:
            raise AssertionError("the engine answers every request it admits")
        return answer

    def _send(self, peer: str, request: Request) -> None:
        kind = (peer, type(request))
        busy = self._in_flight[kind] >= SENDS_IN_FLIGHT_PER_PEER_MAX
        if busy or len(self._sends) >= SENDS_IN_FLIGHT_MAX:
            # Gossip repeats itself: what is left out now is said again in the next round.
            self.metrics.increment("gossiper_sends_skipped_total")
            self._do_safely(SendFailed(peer, request, "busy"))
            return
        self._in_flight[kind] += 1
        self._spawn(self._deliver(peer, request), name=f"send {type(request).__name__} to {peer}")

    def _spawn(self, work: Coroutine[object, object, None], *, name: str) -> None:
        if self._tasks is None:
            work.close()
            return
        task = self._tasks.create_task(work, name=name)
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)

    async def _deliver(self, peer: str, request: Request) -> None:
        if self._transport is None:
            raise AssertionError("sends begin after the transport")
        is_echo = isinstance(request, EchoRequest)
        timeout_seconds = self._echo_timeout_seconds if is_echo else self.config.exchange_timeout_seconds
        event: EngineEvent
        try:
            reply = await self._transport.send(peer, request, timeout_seconds)
            event = ReplyReceived(peer, request, reply)
        except TransportError as error:
            if not error.retriable:
                self._warn(f"{peer} {error.reason}", f"{peer} refused a message: {error}")
            event = SendFailed(peer, request, error.reason)
        except Exception:
            # A defect in a transport costs this message, not the membership.
            self.metrics.increment("gossiper_internal_errors_total")
            logger.exception("internal_error send=%s peer=%s", type(request).__name__, peer)
            event = SendFailed(peer, request, "internal_error")
        finally:
            kind = (peer, type(request))
            self._in_flight[kind] -= 1
            if not self._in_flight[kind]:
                del self._in_flight[kind]
        self._do_safely(event)

    async def _persist(self, generation: int) -> None:
        try:
            await asyncio.to_thread(self._storage.store_generation, generation)
        except LocalStateError as error:
            self._do_safely(GenerationNotPersisted(generation, str(error)))
            return
        self._do_safely(GenerationPersisted(generation))

    def _notify(self, event: Event) -> None:
        log_event(event)
        for subscription in self._subscriptions:
            subscription.put(event)

    def _warn(self, key: str, text: str) -> None:
        now = self._clock().monotonic
        if now - self._warned.get(key, -LOG_INTERVAL_SECONDS) >= LOG_INTERVAL_SECONDS:
            if len(self._warned) >= _WARNINGS_MAX:
                self._warned.clear()
            self._warned[key] = now
            logger.warning("%s", text)

    @property
    def generation(self) -> int:
        """The generation of this node."""
        return self._running_engine.generation

    def members(self) -> tuple[EndpointView, ...]:
        """All known endpoints as this node sees them, itself included, ordered by endpoint."""
        state = self._running_engine.state
        return tuple(sorted((state.view(int(row)) for row in state.table.rows()), key=lambda view: view.endpoint))

    @property
    def _running_engine(self) -> GossipEngine:
        if self._engine is None:
            raise NotRunningError("the gossiper is not running")
        return self._engine


def library_version() -> str:
    """The version of the installed distribution."""
    try:
        return metadata.version("gossiper")
    except metadata.PackageNotFoundError:
        return "unknown"
