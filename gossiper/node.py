"""Gossiper: a member of a cluster, as applications use it. What keeps it going is in ``shell``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gossiper.core.endpoints import canonical_endpoint
from gossiper.core.io import (
    AssassinateRequested,
    ChangeHealth,
    ChangeStatus,
    EnableRequested,
    EngineEvent,
    LeaveRequested,
    RemoveRequested,
    ShutdownRequested,
)
from gossiper.core.lifecycle import Status
from gossiper.core.local import Publish
from gossiper.core.versions import next_generation
from gossiper.discovery import ReloadResult
from gossiper.errors import NotRunningError, PublishError
from gossiper.events import EndpointAlive, EndpointJoined, EndpointView, Event, Liveness
from gossiper.reporting import evidence_ages, failure_detector_report
from gossiper.reports import FailureDetectorReport, NodeInfo
from gossiper.shell import GossiperShell, library_version
from gossiper.subscriptions import Subscription, Watch

#: Polls that must agree before the cluster counts as settled (Cassandra's default).
SETTLE_POLLS: Final = 3
#: A value that lives longer than a year is not meant to expire.
TTL_SECONDS_MAX: Final = 366 * 86_400


@dataclass(frozen=True, slots=True)
class LeaveReport:
    """Who is known to know that this node has left, of those that were live, and who is not."""

    knowing: tuple[str, ...]
    unaware: tuple[str, ...]


class Gossiper(GossiperShell):
    """A member of a cluster.

    Use it as ``async with Gossiper(config) as g:``, or call ``start`` and ``stop``. It listens on its own gRPC server,
    on which ``services`` may register further services of the application before it starts. Not reusable: a stopped
    gossiper stays stopped. All methods belong to the event loop in which it was started.
    """

    # -- the public face ---------------------------------------------------------------------------------------------

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

    def member(self, endpoint: str) -> EndpointView | None:
        """One endpoint; None when it is not known."""
        state = self._running_engine.state
        row = state.table.row(canonical_endpoint(endpoint))
        return None if row is None else state.view(row)

    def is_alive(self, endpoint: str) -> bool:
        """Whether an endpoint is held to be alive; False for an unknown one."""
        view = self.member(endpoint)
        return view is not None and view.alive

    async def publish(self, values: Mapping[str, str | None], *, ttl_seconds: float | None = None) -> int:
        """Publish values of this node under keys that begin with a lower-case letter; None deletes a key.

        All of one call get the same version, which is returned; peers see all of them or none. More than 15 calls in
        one gossip interval wait for the next one and are merged. After ``ttl_seconds`` they count as absent
        everywhere, also when this node is gone by then.

        Raises:
            PublishError: a key that is not the application's, or a limit; nothing was published.
            LifecycleError: this node is leaving for good: LEFT is the last that it says.
            NotRunningError: not started, or stopping.
        """
        if ttl_seconds is not None and not 0 < ttl_seconds <= TTL_SECONDS_MAX:
            raise PublishError(f"ttl_seconds must be above 0 and at most {TTL_SECONDS_MAX}, is {ttl_seconds}")
        expires_at_ms = 0 if ttl_seconds is None else round((self._clock().wall + ttl_seconds) * 1000)
        self._ticket += 1
        ticket = self._ticket
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tickets[ticket] = future
        try:
            self._operate(Publish(dict(values), ticket, expires_at_ms))
            return await future
        finally:
            self._tickets.pop(ticket, None)

    def _operate(self, event: EngineEvent) -> None:
        if not self._running:
            raise NotRunningError("the gossiper is not running")
        self._do(event)

    # -- operations --------------------------------------------------------------------------------------------------

    def set_status(self, status: str) -> None:
        """Move on in the node's life, for example from BOOT to NORMAL; ``gossiper.core.lifecycle`` has the table.

        Raises:
            LifecycleError: the status may not follow the present one.
        """
        self._operate(ChangeStatus(status))

    def set_health(self, *, serving: bool, reason: str = "") -> None:
        """Tell the cluster whether the application can serve; the node stays up either way.

        Raises:
            LifecycleError: this node is leaving for good: LEFT is the last that it says.
        """
        self._operate(ChangeHealth(serving, reason))

    async def leave(self, *, timeout_seconds: float = 10.0) -> LeaveReport:
        """Leave for good: all live peers are told, and counted as they show that they know. Then gossip is off.

        What was published before and waits for its tick is told with it; from now on nothing is published any more.

        Raises:
            LifecycleError: this node is no member.
        """
        self._operate(LeaveRequested())
        engine = self._running_engine
        version = engine.local.states_version
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while engine.peers_that_know(version)[1] and self._running:
                    await self._changed()
        knowing, unaware = engine.peers_that_know(version)
        self._do(ShutdownRequested())
        return LeaveReport(tuple(knowing), tuple(unaware))

    async def drain(self) -> None:
        """Say that this node no longer serves, then announce the shutdown; the process goes on without gossip.

        Raises:
            NotRunningError: gossip is off already.
        """
        self.set_health(serving=False, reason="draining")
        await self.disable_gossip()

    async def disable_gossip(self) -> None:
        """Announce the shutdown and stop gossiping; ``enable_gossip`` undoes it."""
        if not self._running:
            raise NotRunningError("the gossiper is not running")
        await self._announce_shutdown()

    async def enable_gossip(self) -> None:
        """Take part again, in a new generation that is on disk before anybody hears of it.

        Raises:
            LifecycleError: gossip is on, or this node has left.
            LocalStateError: the generation cannot be written.
        """
        engine = self._running_engine
        if not self._running:
            raise NotRunningError("the gossiper is not running")
        # One that was written just as gossip went off was never begun, but it is used up.
        stored = (await asyncio.to_thread(self._storage.load)).generation or 0
        generation = next_generation(max(engine.generation, stored), self._clock().wall)
        if engine.stopped and engine.local.status == Status.SHUTDOWN:
            await asyncio.to_thread(self._storage.store_generation, generation)
        self._do(EnableRequested(generation))

    def remove(self, host_id: str) -> None:
        """Remove a dead node from the cluster for good.

        Raises:
            LifecycleError: it is unknown, this node itself, alive, or gone already.
        """
        self._operate(RemoveRequested(host_id))

    def assassinate(self, endpoint: str, *, force: bool = False) -> None:
        """Remove whatever is at ``endpoint`` for good, without asking it; never waits.

        Raises:
            LifecycleError: it is this node itself, gone already, or its heartbeat moves (unless ``force``).
            ValueError: ``endpoint`` is no endpoint.
        """
        self._operate(AssassinateRequested(canonical_endpoint(endpoint), force))

    async def reload_seeds(self) -> ReloadResult:
        """Read all sources of seeds now; a source that fails keeps its old list and is named in the result."""
        return await self._seeds.reload()

    async def wait_settled(self, *, timeout_seconds: float = 60.0) -> bool:
        """Wait until known and live members are the same in three polls, one interval apart; False: not in time.

        Cassandra counts only known endpoints, so it opens for clients while all peers look down (CASSANDRA-18543).
        """
        same = 0
        before: tuple[str, ...] = ()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while same < SETTLE_POLLS:
                    await asyncio.sleep(self.config.interval_seconds)
                    now = tuple(f"{view.endpoint} {view.liveness}" for view in self.members())
                    unconfirmed = any(view.liveness is Liveness.UNKNOWN for view in self.members())
                    same = same + 1 if now == before and not unconfirmed else 0
                    before = now
        return same >= SETTLE_POLLS

    async def wait_stopped(self) -> str | None:
        """Wait until this gossiper has stopped; why, when it was not asked to: removed, or a double of another."""
        if self._main is not None:
            await asyncio.shield(asyncio.wait([self._main]))
        return self._failure

    async def abort(self) -> None:
        """End at once and without a word, as a crash does: for tests.

        Nobody is told, calls of peers are reset, nothing more is put on disk; generation and host id stay there.
        Subscriptions end, and whoever waits for a publish gets ``NotRunningError``. Idempotent; does nothing before
        ``start`` has returned (cancel that instead).
        """
        if self._main is None or self._main.done():
            return
        self._aborted = True
        if self._transport is not None:
            # First nobody reaches it any more, so that nothing of its end is seen.
            await self._transport.stop(0.0)
        self._main.cancel()
        await asyncio.wait([self._main])

    @property
    def failure(self) -> str | None:
        """Why this gossiper stopped by itself; None when it did not."""
        return self._failure

    # -- subscriptions -----------------------------------------------------------------------------------------------

    async def _changed(self) -> None:
        """Wait for anything to happen: an event, or the end of half an interval."""
        await asyncio.sleep(self.config.interval_seconds / 2)

    def watch(self, key_prefix: str) -> Watch:
        """Subscribe to application states whose key begins with ``key_prefix``: first all there are, then changes."""
        return Watch(self.events(), key_prefix, self.members)

    def events(self) -> Subscription:
        """Subscribe: an async iterator that tells first what is known now, then every change, until the stop."""
        snapshot: list[Event] = []
        for view in self.members():
            # Of who is only remembered from an earlier run, nothing was told yet.
            if view.endpoint != self.endpoint and view.generation:
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
        return evidence_ages(self._running_engine.state, self._clock())

    def failure_detector(self) -> FailureDetectorReport:
        """Suspicion of every other endpoint, now."""
        return failure_detector_report(self._running_engine.state, self._clock())

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
            seeds=self._seeds.seeds,
            counters=tuple(self.metrics.snapshot()),
        )
