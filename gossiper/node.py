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
from collections.abc import Callable, Coroutine, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from gossiper.config import GossipConfig
from gossiper.core.application_states import ApplicationState, Status
from gossiper.core.endpoints import canonical_endpoint, parse_endpoint
from gossiper.core.engine import (
    CAPABILITIES,
    PROTOCOL_VERSION,
    Answer,
    Count,
    Effect,
    EngineConfig,
    EngineEvent,
    GenerationPersisted,
    GossipEngine,
    Notify,
    PersistGeneration,
    Publish,
    Published,
    ReplyReceived,
    RequestReceived,
    RoundDue,
    Send,
    SendFailed,
    ShutdownRequested,
    Warn,
)
from gossiper.core.messages import EchoRequest, Reply, Request
from gossiper.core.versions import Now, next_generation
from gossiper.errors import LocalStateError, NotRunningError, PeerProtocolError, TransportError
from gossiper.events import (
    EndpointAlive,
    EndpointDead,
    EndpointJoined,
    EndpointRestarted,
    EndpointView,
    Event,
)
from gossiper.limits import (
    LOG_INTERVAL_SECONDS,
    SENDS_IN_FLIGHT_MAX,
    SENDS_IN_FLIGHT_PER_PEER_MAX,
)
from gossiper.metrics import GossipMetrics
from gossiper.reports import FailureDetectorReport, NodeInfo, PhiReport
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


def system_clock() -> Now:
    """Both clocks of this machine; the monotonic one counts suspended time where the system has such a clock."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    monotonic = time.monotonic() if boottime is None else time.clock_gettime(boottime)
    return Now(monotonic, time.time())


class Gossiper:
    """A member of a cluster.

    Use it as ``async with Gossiper(config) as g:``, or call ``start`` and ``stop``. It listens on its own gRPC server,
    on which ``services`` may register further services of the application before it starts. Not reusable: a stopped
    gossiper stays stopped. All methods belong to the event loop in which it was started.
    """

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
        self._main: asyncio.Task[None] | None = None
        self._running = False
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
        """Load or make the identity, put the generation on disk, listen, and begin to gossip.

        Raises:
            LocalStateError: the port is in use, or the data directory is locked, corrupt, full or not writable.
        """
        if self._main is not None:
            raise LocalStateError("a gossiper is started once")
        try:
            await self._begin()
        except BaseException:
            if self._transport is not None:
                await self._transport.stop(0.0)
            self._storage.close()
            raise
        self._running = True
        self._main = asyncio.create_task(self._run(), name=f"gossiper {self._endpoint}")
        logger.info("started endpoint=%s generation=%d host_id=%s", self._endpoint, self.generation, self._host_id)

    async def _begin(self) -> None:
        identity = await asyncio.to_thread(self._storage.load)
        self._host_id = self.config.host_id or identity.host_id
        now = self._clock()
        generation = next_generation(identity.generation, now.wall)
        if identity.generation is not None and generation == identity.generation + 1:
            logger.warning("clock_behind generation=%d: the last generation lies at or after the clock", generation)
        await asyncio.to_thread(self._storage.store_generation, generation, self._host_id)
        if self._transport is None:
            from gossiper.transport.grpc import GrpcTransport  # noqa: PLC0415 - in-memory users need no gRPC

            self._transport = GrpcTransport(self.config.listen, metrics=self.metrics, services=self._services)
        bound = await self._transport.start(self._handle_request)
        self._endpoint = self._advertised(bound)
        self._started = now
        self._engine = GossipEngine(
            self._engine_config(),
            generation=generation,
            values=self._initial_values(),
            rng=random.Random(self.config.random_seed),  # noqa: S311 - chooses peers, guards nothing
            now=self._clock(),
        )

    def _advertised(self, bound: str) -> str:
        if self.config.advertise is None:
            return bound
        host, port = parse_endpoint(self.config.advertise)
        return canonical_endpoint(self.config.advertise) if port else f"{host}:{parse_endpoint(bound)[1]}"

    def _engine_config(self) -> EngineConfig:
        config = self.config
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
            seeds=config.seeds,
        )

    def _initial_values(self) -> dict[str, str | None]:
        config = self.config
        return {
            ApplicationState.DC: config.datacenter,
            ApplicationState.RACK: config.rack,
            ApplicationState.RELEASE_VERSION: config.release_version or library_version(),
            ApplicationState.NET_VERSION: str(PROTOCOL_VERSION),
            ApplicationState.CAPABILITIES: CAPABILITIES,
            ApplicationState.HOST_ID: self._host_id,
            ApplicationState.INTERNAL_ADDRESS_AND_PORT: self._endpoint,
            **dict(config.states),
            ApplicationState.STATUS: Status.NORMAL.value,
        }

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
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                rounds = tasks.create_task(self._rounds(), name="gossip rounds")
                await self._stopping.wait()
                rounds.cancel()
                await self._announce_shutdown()
                for task in list(self._sends):
                    task.cancel()
        finally:
            self._running = False
            self._tasks = None
            for future in self._tickets.values():
                future.cancel()
            for subscription in list(self._subscriptions):
                subscription.close()
            if self._transport is not None:
                await self._transport.stop(self.config.shutdown_grace_seconds)
            self._storage.close()
            logger.info("stopped endpoint=%s", self._endpoint)

    async def _rounds(self) -> None:
        interval = self.config.interval_seconds
        due = self._clock().monotonic + interval
        while True:
            await asyncio.sleep(max(0.0, due - self._clock().monotonic))
            # After a pause one round is run, not all that were missed.
            due = max(due + interval, self._clock().monotonic)
            self._do_safely(RoundDue())

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
            case Count(name, label, amount):
                if label:
                    self.metrics.increment(name, amount, reason=label)
                else:
                    self.metrics.increment(name, amount)
            case Warn(key, text):
                self._warn(key, text)

    def _handle_request(self, request: Request) -> Reply:
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
            self._warn("generation", f"generation {generation} cannot be kept: {error}")
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

    # -- the public face ---------------------------------------------------------------------------------------------

    @property
    def _running_engine(self) -> GossipEngine:
        if self._engine is None:
            raise NotRunningError("the gossiper is not running")
        return self._engine

    @property
    def cluster_name(self) -> str:
        """The name of the cluster."""
        return self.config.cluster_name

    @property
    def endpoint(self) -> str:
        """The canonical, advertised endpoint of this node.

        Raises:
            NotRunningError: not started yet.
        """
        return self._running_engine.config.endpoint

    @property
    def host_id(self) -> str:
        """The identity of this node, which survives restarts and changes of address."""
        return self._host_id

    @property
    def generation(self) -> int:
        """The generation of this node."""
        return self._running_engine.generation

    def members(self) -> tuple[EndpointView, ...]:
        """All known endpoints as this node sees them, itself included, ordered by endpoint."""
        state = self._running_engine.state
        return tuple(sorted((state.view(int(row)) for row in state.table.rows()), key=lambda view: view.endpoint))

    def member(self, endpoint: str) -> EndpointView | None:
        """One endpoint; None when it is not known."""
        state = self._running_engine.state
        row = state.table.row(canonical_endpoint(endpoint))
        return None if row is None else state.view(row)

    def is_alive(self, endpoint: str) -> bool:
        """Whether an endpoint is held to be alive; False for an unknown one."""
        view = self.member(endpoint)
        return view is not None and view.alive

    async def publish(self, values: Mapping[str, str | None]) -> int:
        """Publish values of this node under keys that begin with a lower-case letter; None deletes a key.

        All of one call get the same version, which is returned; peers see all of them or none. More than 15 calls in
        one gossip interval wait for the next one and are merged.

        Raises:
            PublishError: a key that is not the application's, or a limit; nothing was published.
            NotRunningError: not started, or stopping.
        """
        self._ticket += 1
        ticket = self._ticket
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tickets[ticket] = future
        try:
            if not self._running:
                raise NotRunningError("the gossiper is not running")
            self._do(Publish(dict(values), ticket))
            return await future
        finally:
            self._tickets.pop(ticket, None)

    def events(self) -> Subscription:
        """Subscribe: an async iterator that tells first what is known now, then every change, until the stop."""
        snapshot: list[Event] = []
        for view in self.members():
            if view.endpoint != self.endpoint:
                snapshot.append(EndpointJoined(view.endpoint, view))
                if view.alive:
                    snapshot.append(EndpointAlive(view.endpoint, view, view))
        subscription = Subscription(snapshot, self._unsubscribe)
        self._subscriptions.append(subscription)
        if not self._running:
            subscription.close()
        return subscription

    def _unsubscribe(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    # -- reports -----------------------------------------------------------------------------------------------------

    def evidence_ages(self) -> dict[str, float]:
        """Seconds since the last evidence of life, by endpoint; endpoints that never gave any are missing."""
        table = self._running_engine.state.table
        now = self._clock().monotonic
        ages = {table.endpoint(int(row)): now - float(table.evidence_arrival[row]) for row in table.rows()}
        return {endpoint: age for endpoint, age in ages.items() if np.isfinite(age)}

    def failure_detector(self) -> FailureDetectorReport:
        """Suspicion of every other endpoint, now."""
        state = self._running_engine.state
        now = self._clock().monotonic
        rows = state.table.rows()
        rows = rows[rows != state.local_row]
        detector = state.detector
        columns = zip(
            rows,
            np.nan_to_num(detector.phi(rows, now)),
            np.nan_to_num(detector.windows.means_seconds(rows)),
            detector.windows.sample_counts(rows),
            np.nan_to_num(detector.windows.silence_seconds(rows, now), nan=-1.0),
            strict=True,
        )
        views = ((state.view(int(row)), *numbers) for row, *numbers in columns)
        reports = [
            PhiReport(view.endpoint, float(phi), float(mean), int(samples), float(silence), view.liveness)
            for view, phi, mean, samples, silence in views
        ]
        return FailureDetectorReport(
            detector.threshold,
            detector.local_pause_remaining_seconds(now),
            tuple(sorted(reports, key=lambda report: report.endpoint)),
        )

    def info(self) -> NodeInfo:
        """This node itself."""
        engine, config = self._running_engine, self.config
        return NodeInfo(
            endpoint=self.endpoint,
            host_id=self._host_id,
            generation=engine.generation,
            heartbeat=engine.heartbeat,
            gossip_active=self._running and not engine.stopped,
            uptime_seconds=self._clock().monotonic - self._started.monotonic,
            datacenter=config.datacenter,
            rack=config.rack,
            release_version=config.release_version or library_version(),
            interval_seconds=config.interval_seconds,
            seeds=config.seeds,
            counters=tuple(self.metrics.snapshot()),
        )


def library_version() -> str:
    """The version of the installed distribution."""
    try:
        return metadata.version("gossiper")
    except metadata.PackageNotFoundError:
        return "unknown"


def log_event(event: Event) -> None:
    """One line per change of liveness; changes of values are frequent and only for debugging."""
    match event:
        case EndpointJoined(endpoint, new):
            logger.info("joined endpoint=%s generation=%d host_id=%s", endpoint, new.generation, new.host_id)
        case EndpointAlive(endpoint, _, new):
            logger.info("alive endpoint=%s generation=%d", endpoint, new.generation)
        case EndpointDead(endpoint, old, _, reason):
            logger.info("dead endpoint=%s generation=%d reason=%s", endpoint, old.generation, reason)
        case EndpointRestarted(endpoint, old, new):
            logger.info("restarted endpoint=%s generation=%d after=%d", endpoint, new.generation, old.generation)
        case _:
            logger.debug("%s", event)
