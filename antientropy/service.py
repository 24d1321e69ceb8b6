"""The repair service of a node: serves its stores to peers, and repairs with them when asked to.

It asks a small :class:`~antientropy.membership.Membership` who holds which range and who is alive, and knows nothing
else of the cluster.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from random import Random
from types import TracebackType
from typing import Final, TypeVar, TypeVarTuple

import grpc.aio

from antientropy.config import RepairConfig
from antientropy.coordinator import RepairRun
from antientropy.core import deletes
from antientropy.core.merkle import Root
from antientropy.core.tokens import TokenRange
from antientropy.errors import (
    JournalError,
    RepairRequestError,
    RepairRunningError,
    ServiceStoppedError,
    StoreError,
    UnknownKeyspaceError,
)
from antientropy.journal import JournaledSession, RepairJournal
from antientropy.limits import HISTORY_SESSIONS_MAX
from antientropy.membership import Membership
from antientropy.metrics import Gauge, RepairMetrics
from antientropy.options import RepairOptions
from antientropy.peer_service import PeerService
from antientropy.purging import Purger
from antientropy.replica import Replica
from antientropy.reports import RangeSummary, RepairStatistics, RepairUpdate, SessionInfo, SessionState
from antientropy.running import RunContext, silent
from antientropy.scrub import Scrubber, scrub_steadily
from antientropy.selection import chosen_ranges, range_summaries
from antientropy.store import RowStore
from antientropy.throttle import Throttle
from antientropy.transport.base import PeerTransport
from antientropy.transport.grpc import GrpcTransport, register

__all__ = ["RepairService", "ReplicaDescription"]

logger = logging.getLogger(__name__)

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

#: Looks at idle sessions of peers in one lease.
_SWEEPS_PER_LEASE: Final = 5


@dataclass(frozen=True, slots=True)
class ReplicaDescription:
    """What this node's replica of a keyspace holds."""

    keyspace: str
    root: Root
    """``root.count`` rows, tombstones included."""
    tombstone_count: int
    stored_bytes: int
    tree_depth: int
    replicas: tuple[str, ...]


class RepairService:
    """Serves and repairs the stores of a node.

    ``register`` it on the peer listener before the server starts; ``start`` and ``stop`` it (or ``async with``) on the
    event loop of the server. The stores stay the caller's: close them after ``stop``.

    Args:
        stores: By keyspace; a store, or a replica that was made around it.
        membership: Who holds what.
        config: Settings.
        transport: How peers are called; None: gRPC.
        latency: The application's own latency in seconds, for the throttle.
        random: For pauses and names of sessions.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        stores: Mapping[str, RowStore | Replica],
        membership: Membership,
        config: RepairConfig | None = None,
        *,
        transport: PeerTransport | None = None,
        latency: Callable[[], float | None] | None = None,
        random: Random | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = RepairConfig() if config is None else config
        self._replicas = {
            keyspace: store if isinstance(store, Replica) else Replica(store) for keyspace, store in stores.items()
        }
        self._membership = membership
        self._transport = GrpcTransport(self._config.channel_factory) if transport is None else transport
        self._random = Random() if random is None else random  # noqa: S311 - jitter and names, no secrets
        self._clock = clock
        self._executor = ThreadPoolExecutor(self._config.threads, "antientropy")
        self.metrics: Final = RepairMetrics()
        self.throttle: Final = Throttle.of(self._config.throttle, latency, metrics=self.metrics)
        self.peers: Final = PeerService(
            self._replicas,
            membership,
            self._config,
            transport=self._transport,
            executor=self._executor,
            random=self._random,
            spend=self.throttle.spend,
            epoch_seconds=clock,
        )
        self._purger = Purger(self._replicas, self.peers.marks, membership, self._config, clock)
        self._scrubbers = {keyspace: Scrubber(replica) for keyspace, replica in self._replicas.items()}
        self.metrics.collect(self._scrub_gauges)
        self._journal: RepairJournal | None = None
        self._runs: dict[str, RepairRun] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._background: list[asyncio.Task[None]] = []
        self._started = False

    # --- life ---

    def register(self, server: grpc.aio.Server) -> None:
        """Serve the peer RPCs on this server; see :mod:`antientropy.strict` for requests that are no protobuf."""
        register(server, self.peers)

    async def start(self) -> None:
        """Open the journal and the indexes, close idle sessions, purge; repairs are possible from now on. Idempotent.

        A journal that cannot be opened does not stop the node: repairs then say why they cannot begin.
        """
        if self._started:
            return
        self._started = True
        with suppress(JournalError):
            await self._opened_journal()
        for keyspace, marks in self.peers.marks.items():
            try:
                await self._in_thread(marks.born, self._as_of(self._clock()))
            except StoreError as error:
                logger.warning("the birth of keyspace %s is not recorded: %s", keyspace, error)
        self._background = [
            asyncio.create_task(self._open_replicas(), name="antientropy open"),
            asyncio.create_task(self._sweep(), name="antientropy janitor"),
            asyncio.create_task(self._purge(), name="antientropy purge"),
        ]
        if self._config.scrub_period_seconds:
            self._background += [
                asyncio.create_task(self._scrub(keyspace), name=f"antientropy scrub {keyspace}")
                for keyspace in self._replicas
            ]

    async def stop(self) -> None:
        """Interrupt repairs (they can be resumed), close sessions and channels. Idempotent; not to be started again."""
        self._started = False
        tasks = [*self._tasks.values(), *self._background]
        self._background = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.peers.stop()
        await self._transport.close()
        for replica in self._replicas.values():
            await asyncio.to_thread(replica.close)
        if self._journal is not None:
            await asyncio.to_thread(self._journal.close)
            self._journal = None
        await asyncio.to_thread(self._executor.shutdown)

    async def __aenter__(self) -> RepairService:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # --- what it knows ---

    @property
    def keyspaces(self) -> tuple[str, ...]:
        """The names of the stores."""
        return tuple(self._replicas)

    @property
    def session_count(self) -> int:
        """Sessions that are open for peers right now."""
        return self.peers.session_count

    async def describe(self, keyspace: str) -> ReplicaDescription:
        """What this node's replica holds.

        Raises:
            UnknownKeyspaceError: no store of that name.
        """
        replica = self._replica(keyspace)
        store = replica.store
        root = await self._in_thread(replica.root, TokenRange.full())
        stored_bytes = await self._in_thread(lambda: store.stored_bytes)
        everybody = {endpoint for one in self._membership.ranges(keyspace) for endpoint in one.replicas}
        return ReplicaDescription(
            keyspace, root, store.tombstone_count, stored_bytes, replica.tree_depth, tuple(sorted(everybody))
        )

    async def sessions(self, active_only: bool = True) -> list[SessionInfo]:
        """Repairs that this node coordinates, the latest first; interrupted ones are active.

        Raises:
            JournalError: the record cannot be read.
        """
        journal = await self._opened_journal()
        found = await self._in_thread(lambda: journal.sessions(active_only=active_only))
        return [self._runs[one.session_id].info if one.session_id in self._runs else one for one in found]

    async def history(self, limit: int = HISTORY_SESSIONS_MAX) -> list[SessionInfo]:
        """Repairs that have ended, the latest first.

        Raises:
            JournalError: the record cannot be read.
        """
        return [one for one in await self.sessions(active_only=False) if one.state.is_final][:limit]

    async def summarize(self, keyspace: str) -> list[RangeSummary]:
        """How long ago each range that this node holds was repaired whole, by the durable record.

        Raises:
            UnknownKeyspaceError: no store of that name.
            JournalError: the record cannot be read.
            StoreError: the store's marks cannot be read.
        """
        self._replica(keyspace)
        journal = await self._opened_journal()
        parts = await self._in_thread(journal.repaired_parts, keyspace)
        floors = (await self._in_thread(self.peers.marks[keyspace].read)).floors
        return range_summaries(keyspace, self._membership.ranges(keyspace), parts, floors)

    # --- repairing ---

    async def repair(self, keyspace: str, options: RepairOptions | None = None) -> AsyncGenerator[RepairUpdate, None]:
        """Make this replica and its peers equal; yields updates, the last one with a final state.

        Closing the iterator before that cancels the repair: rows that were applied stay, nothing is left behind.

        Raises:
            UnknownKeyspaceError: no store of that name.
            RepairRequestError: a range that is not held here, a peer that is no replica, ...
            RepairRunningError: this node repairs these tokens already.
            ServiceStoppedError: the service is not started, or was stopped during the repair.
            StoreError: the own store failed.
            JournalError: the journal cannot be read or written.
        """
        run = await self._begin(keyspace, RepairOptions() if options is None else options, None)
        async with aclosing(self._watched(run)) as updates:
            async for update in updates:
                yield update

    async def resume(self, session_id: str) -> AsyncGenerator[RepairUpdate, None]:
        """Go on with a paused repair, or with one that was interrupted: what it has verified is skipped.

        Yields updates as :meth:`repair`. Closing the iterator cancels a repair that had been interrupted; one that had
        been paused belongs to whoever began it, and goes on.

        Raises:
            RepairRequestError: no such session, or it is neither paused nor interrupted.
            RepairRunningError, ServiceStoppedError, StoreError, JournalError: as :meth:`repair`.
        """
        run = self._runs.get(session_id)
        if run is not None:
            if run.info.state is not SessionState.PAUSED:
                raise RepairRequestError(f"session {session_id} is {run.info.state.value}, not paused")
            listener = run.feed.listen()
            run.resume()
            try:
                while (update := await listener.next()) is not None:
                    yield update
            finally:
                listener.close()
            return
        journaled = await self._journaled(session_id)
        if journaled.info.state is not SessionState.INTERRUPTED:
            raise RepairRequestError(f"session {session_id} is {journaled.info.state.value}; begin a new repair")
        run = await self._begin(journaled.info.keyspace, journaled.options, journaled)
        async with aclosing(self._watched(run)) as updates:
            async for update in updates:
                yield update

    async def pause(self, session_id: str) -> None:
        """Let a repair rest; when this returns it holds nothing, here or on any peer.

        Raises:
            RepairRequestError: no such session is running.
        """
        await self._running(session_id).pause()

    async def cancel(self, session_id: str, force: bool = False) -> None:
        """End a repair for good: one that runs, is paused, or was interrupted. Rows that were moved stay.

        ``force``: also when it cannot be recorded.

        Raises:
            RepairRequestError: no such session, or it has ended.
            JournalError: an interrupted session cannot be recorded as cancelled.
        """
        task = self._tasks.get(session_id)
        if task is not None:
            self._runs[session_id].cancelled = True
            task.cancel()
            await asyncio.wait({task})
            return
        journaled = await self._journaled(session_id)
        if journaled.info.state.is_final:
            raise RepairRequestError(f"session {session_id} has ended: it is {journaled.info.state.value}")
        journal = await self._opened_journal()
        now = self._clock()
        ended = replace(journaled.info, state=SessionState.CANCELLED, updated_at=now, ended_at=now)
        try:
            await self._in_thread(journal.update, ended)
        except JournalError:
            if not force:
                raise
            logger.exception("session %s was cancelled; it cannot be recorded", session_id)

    # --- helpers ---

    async def _begin(self, keyspace: str, options: RepairOptions, journaled: JournaledSession | None) -> RepairRun:
        replica = self._replica(keyspace)
        if not self._started:
            raise ServiceStoppedError("the repair service is not running; start it first")
        ranges, peers = chosen_ranges(keyspace, options, self._membership)
        journal = await self._opened_journal()
        for other in self._runs.values():
            if other.overlaps(keyspace, [one.token_range for one in ranges]):
                raise RepairRunningError(
                    f"a repair of keyspace {keyspace} is running on this node (session {other.session_id}); "
                    "wait for it to end, or cancel it"
                )
        statistics = RepairStatistics() if journaled is None else replace(journaled.info.statistics)
        started_at = self._clock() if journaled is None else journaled.info.started_at
        context = RunContext(
            keyspace=keyspace,
            replica=replica,
            membership=self._membership,
            transport=self._transport,
            leases=self.peers,
            marks=self.peers.marks[keyspace],
            executor=self._executor,
            config=self._config,
            options=options,
            narrator=silent(),
            spend=self.throttle.spend,
            random=self._random,
            statistics=statistics,
            clock=self._clock,
        )
        run = RepairRun(
            context=context,
            session_id=str(uuid.UUID(int=self._random.getrandbits(128), version=4))
            if journaled is None
            else journaled.info.session_id,
            ranges=ranges,
            peers=peers,
            journal=journal,
            journaled=journaled,
            as_of=self._as_of(started_at),
        )
        self._runs[run.session_id] = run
        return run

    def _as_of(self, started_at: float) -> int:
        if self._config.version_at is None:
            return 0
        return deletes.session_version(
            started_at,
            self._config.version_at,
            propagation_delay_seconds=self._config.propagation_delay_seconds,
            step_seconds=self._config.vouch_step_seconds,
        )

    async def _watched(self, run: RepairRun) -> AsyncGenerator[RepairUpdate, None]:
        """Run a repair and yield its updates; whoever closes this cancels it."""
        listener = run.feed.listen()
        task = asyncio.create_task(self._run(run), name=f"antientropy repair {run.info.keyspace}")
        self._tasks[run.session_id] = task
        try:
            while (update := await listener.next()) is not None:
                yield update
            await asyncio.wait({task})
            if task.cancelled() and not run.cancelled:
                raise ServiceStoppedError("the repair service was stopped during the repair; resume it later")
            if not task.cancelled():
                task.result()
        finally:
            if not task.done():
                run.cancelled = True
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            # One that was cancelled before its first step has not done so itself.
            self._forget(run)
            listener.close()

    async def _run(self, run: RepairRun) -> None:
        try:
            await run.run()
        finally:
            info = run.info
            if info.state.is_final:
                # One that was interrupted goes on another day, and is counted then.
                self.metrics.record_session(info.keyspace, info.state, info.statistics)
            self._forget(run)

    def _forget(self, run: RepairRun) -> None:
        self._runs.pop(run.session_id, None)
        self._tasks.pop(run.session_id, None)

    def _replica(self, keyspace: str) -> Replica:
        replica = self._replicas.get(keyspace)
        if replica is None:
            known = ", ".join(sorted(self._replicas))
            raise UnknownKeyspaceError(f"keyspace {keyspace!r} is not known here; there is: {known}")
        return replica

    def _running(self, session_id: str) -> RepairRun:
        run = self._runs.get(session_id)
        if run is None:
            raise RepairRequestError(f"session {session_id} is not running on this node")
        return run

    async def _journaled(self, session_id: str) -> JournaledSession:
        journal = await self._opened_journal()
        found = await self._in_thread(journal.session, session_id)
        if found is None:
            raise RepairRequestError(f"session {session_id} is not known on this node")
        return found

    async def _opened_journal(self) -> RepairJournal:
        """The journal; what was under way in an earlier process is interrupted.

        Raises:
            JournalError: it cannot be opened.
        """
        if not self._started:
            raise ServiceStoppedError("the repair service is not running; start it first")
        if self._journal is None:
            self._journal = await self._in_thread(self._open_journal)
        return self._journal

    def _open_journal(self) -> RepairJournal:
        try:
            journal = RepairJournal(self._config.data_dir)
            journal.interrupt(self._clock())
        except JournalError as error:
            logger.error("no repair can be coordinated here: %s", error)  # noqa: TRY400 - a fault of the disk, no bug
            raise
        return journal

    async def _open_replicas(self) -> None:
        """Make the indexes ready before anybody asks."""
        for keyspace, replica in self._replicas.items():
            try:
                await self._in_thread(replica.open)
            except StoreError as error:
                logger.warning("the index of keyspace %s cannot be made: %s", keyspace, error)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._config.lease_seconds / _SWEEPS_PER_LEASE)
            await self.peers.sweep()

    async def _purge(self) -> None:
        """Remove tombstones that may go, in slices, while nobody compares: purging changes roots."""
        while True:
            await asyncio.sleep(self._config.purge_interval_seconds)
            for keyspace in self._replicas:
                if self._is_busy(keyspace) or self._journal is None:
                    continue
                try:
                    parts = await self._in_thread(self._journal.repaired_parts, keyspace)
                    await self._in_thread(self._purger.purge, keyspace, parts)
                except (StoreError, JournalError) as error:
                    logger.warning("tombstones of keyspace %s cannot be purged: %s", keyspace, error)

    async def _scrub(self, keyspace: str) -> None:
        """Look for damage, slowly; what is found and moved aside differs from then on, so the next repair brings it."""

        async def rotate() -> None:
            await self._rotate_epoch(keyspace)

        period = self._config.scrub_period_seconds
        await scrub_steadily(self._scrubbers[keyspace], self._executor, period_seconds=period, on_round=rotate)

    async def _rotate_epoch(self, keyspace: str) -> None:
        """Hashes that collide stay equal until they are made anew: the first replica that is alive begins.

        The others follow when they are compared with it.
        """
        replicas = {endpoint for one in self._membership.ranges(keyspace) for endpoint in one.replicas}
        here = self._membership.local_endpoint
        alive = [endpoint for endpoint in replicas if endpoint == here or self._membership.is_alive(endpoint)]
        if len(replicas) < 2 or min(alive, default="") != here:
            return
        replica = self._replicas[keyspace]
        logger.info("all rows of keyspace %s were scrubbed; their hashes are made anew", keyspace)
        await asyncio.wrap_future(replica.rebuild(replica.epoch + 1))

    def _is_busy(self, keyspace: str) -> bool:
        """Whether a repair is under way, here or served."""
        return bool(self.peers.session_count) or any(run.info.keyspace == keyspace for run in self._runs.values())

    def _scrub_gauges(self) -> Iterator[Gauge]:
        for keyspace, scrubber in self._scrubbers.items():
            yield from scrubber.statistics.gauges(keyspace)

    async def _in_thread(self, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
