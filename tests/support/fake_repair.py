"""A repair service that keeps the contract of the real one towards the administration, and moves nothing.

What a repair does is scripted: updates, then perhaps a wait until it is cancelled, paused or told to go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import grpc.aio

from antientropy.admin import RepairAdmin
from antientropy.core.merkle import Root
from antientropy.core.tokens import TokenRange
from antientropy.errors import RepairError, RepairRequestError, UnknownKeyspaceError
from antientropy.options import RepairOptions
from antientropy.reports import (
    FlowPreview,
    RangeSummary,
    RepairStatistics,
    RepairUpdate,
    ScheduledRange,
    ScheduleStatus,
    SessionInfo,
    SessionState,
    ThrottleStatus,
)
from antientropy.service import ReplicaDescription

NOW = 1_767_323_045.0
LOCAL = "127.0.0.1:7000"
REPLICAS = ("127.0.0.1:7000", "127.0.0.1:7001", "127.0.0.1:7002")
SESSION = "47249135-2703-46f2-be4d-a003cef020fa"
OTHER_SESSION = "47251111-2703-46f2-be4d-a003cef020fa"
FULL = TokenRange.full()


def statistics(**changes: float) -> RepairStatistics:
    found = RepairStatistics(
        rows_differing=600,
        rows_moved=1200,
        rows_optimal=1200,
        find_bytes=12_345,
        move_bytes=98_765,
        round_trips=14,
        requests=20,
        pairs_compared=3,
        pairs_equal=1,
        strategies={"sketch": 2, "descent": 1},
        elapsed_seconds=1.2345,
    )
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def update(
    message: str,
    state: SessionState = SessionState.COMPARING,
    progress: float = 0.0,
    *,
    sums: RepairStatistics | None = None,
    rows_to_move: int = 0,
    eta_seconds: float | None = None,
    previews: tuple[FlowPreview, ...] = (),
    trace: bool = False,
    session_id: str = SESSION,
) -> RepairUpdate:
    return RepairUpdate(
        session_id=session_id,
        message=message,
        state=state,
        progress=progress,
        statistics=RepairStatistics() if sums is None else sums,
        rows_to_move=rows_to_move,
        eta_seconds=eta_seconds,
        previews=previews,
        trace=trace,
    )


BEGUN = update("Starting repair\nof kv", SessionState.PREPARING)
STREAMING = update(
    "Streaming 1200 rows", SessionState.STREAMING, 0.5, sums=statistics(), rows_to_move=2400, eta_seconds=9.0
)
COMPLETED = update("Repair completed successfully", SessionState.COMPLETED, 1.0, sums=statistics(), rows_to_move=1200)


def session(session_id: str = SESSION, state: SessionState = SessionState.STREAMING, **changes: object) -> SessionInfo:
    info = SessionInfo(
        session_id=session_id,
        keyspace="kv",
        state=state,
        coordinator=LOCAL,
        replicas=REPLICAS,
        token_ranges=(FULL,),
        started_at=NOW - 245.0,
        updated_at=NOW - 0.5,
        ended_at=NOW if state.is_final else None,
        progress=0.43,
        statistics=statistics(),
    )
    return replace(info, **changes)  # type: ignore[arg-type]  # names of its fields


@dataclass
class FakeThrottle:
    limits: ThrottleStatus = field(default_factory=lambda: ThrottleStatus(None, None, None))

    def status(self) -> ThrottleStatus:
        return self.limits

    def update(self, *, bytes_per_second: float | None, rows_per_second: float | None, cpu_share: float | None) -> None:
        self.limits = replace(
            self.limits, bytes_per_second=bytes_per_second, rows_per_second=rows_per_second, cpu_share=cpu_share
        )


@dataclass
class FakeScheduler:
    ranges: tuple[ScheduledRange, ...] = ()
    windows: tuple[str, ...] = ()
    paused: bool = False

    def status(self) -> ScheduleStatus:
        return ScheduleStatus(self.paused, 86_400.0, self.windows, in_window=True, ranges=self.ranges)

    def annotated(self, summaries: Sequence[RangeSummary]) -> list[RangeSummary]:
        due = {one.token_range: one for one in self.ranges}
        return [
            replace(one, due_at=due[one.token_range].due_at, stalled=due[one.token_range].stalled)
            if one.token_range in due
            else one
            for one in summaries
        ]

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


@dataclass
class FakeRepairService:
    updates: Sequence[RepairUpdate] = (BEGUN, STREAMING, STREAMING, COMPLETED)
    error: Exception | None = None
    """Raised after the updates."""
    endless: bool = False
    """After the updates nothing more happens until ``go_on`` is set; then it completes."""
    state_when_closed: SessionState = SessionState.CANCELLED
    keyspaces: tuple[str, ...] = ("kv",)
    throttle: FakeThrottle | None = field(default_factory=FakeThrottle)
    known: dict[str, SessionInfo] = field(default_factory=dict)
    summaries: tuple[RangeSummary, ...] = ()
    stubborn: set[str] = field(default_factory=set)
    """Sessions that cannot be cancelled."""
    calls: list[tuple[object, ...]] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, *sessions: SessionInfo) -> None:
        self.known.update({one.session_id: one for one in sessions})

    def _check(self, keyspace: str) -> None:
        if keyspace not in self.keyspaces:
            raise UnknownKeyspaceError(f"keyspace {keyspace!r} is not known here")

    def _set(self, session_id: str, state: SessionState) -> None:
        self.known[session_id] = replace(self.known[session_id], state=state)

    async def describe(self, keyspace: str) -> ReplicaDescription:
        self._check(keyspace)
        return ReplicaDescription(keyspace, Root(bytes(16), 10), 1, 4096, 3, REPLICAS)

    async def repair(self, keyspace: str, options: RepairOptions) -> AsyncGenerator[RepairUpdate, None]:
        self.calls.append(("repair", keyspace, options))
        self._check(keyspace)
        self.add(session(self.updates[0].session_id if self.updates else SESSION))
        async for one in self._run():
            yield one

    async def _run(self) -> AsyncGenerator[RepairUpdate, None]:
        last = SESSION
        try:
            for one in self.updates:
                last = one.session_id
                yield one
            if self.error is not None:
                raise self.error
            if self.endless:
                await self.go_on.wait()
                yield COMPLETED
        except (asyncio.CancelledError, GeneratorExit):
            if last in self.known:
                self._set(last, self.state_when_closed)
            self.closed.set()
            raise

    async def sessions(self, active_only: bool = True) -> list[SessionInfo]:
        return [one for one in self.known.values() if not (active_only and one.state.is_final)]

    async def history(self, limit: int) -> list[SessionInfo]:
        self.calls.append(("history", limit))
        ended = [one for one in self.known.values() if one.state.is_final]
        return sorted(ended, key=lambda one: -one.started_at)[:limit]

    async def cancel(self, session_id: str, force: bool = False) -> None:
        self.calls.append(("cancel", session_id, force))
        if session_id in self.stubborn and not force:
            raise RepairError("a replica cannot be told; see --force")
        self._set(session_id, SessionState.CANCELLED)

    async def pause(self, session_id: str) -> None:
        if self.known[session_id].state.is_final:
            raise RepairRequestError(f"session {session_id} has ended")
        self._set(session_id, SessionState.PAUSED)

    async def resume(self, session_id: str) -> AsyncGenerator[RepairUpdate, None]:
        self.calls.append(("resume", session_id))
        async for one in self._run():
            yield one

    async def summarize(self, keyspace: str) -> list[RangeSummary]:
        self._check(keyspace)
        return [one for one in self.summaries if one.keyspace == keyspace]


@asynccontextmanager
async def served(
    service: FakeRepairService, scheduler: FakeScheduler | None = None, *beside: object
) -> AsyncIterator[int]:
    """The port of an administration listener; ``beside``: functions that register more on the server."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    RepairAdmin(service, scheduler, clock=lambda: NOW).register(server)
    for register in beside:
        assert callable(register)
        register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)
