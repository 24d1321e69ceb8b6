"""What an operator asks: ``antientropy.v1.RepairAdminService``. Register it on the administration listener only."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, NoReturn, Protocol, TypeVar

import grpc
import grpc.aio

from antientropy.admin_wire import (
    history_limit_of,
    keyspace_of,
    options_of,
    schedule_message,
    session_id_of,
    session_message,
    summary_messages,
    throttle_message,
    throttle_of,
    update_message,
)
from antientropy.errors import (
    RepairError,
    RepairRequestError,
    ServiceStoppedError,
    StoreError,
    UnknownKeyspaceError,
)
from antientropy.options import RepairOptions
from antientropy.reports import RangeSummary, RepairUpdate, ScheduleStatus, SessionInfo, ThrottleStatus
from antientropy.service import RepairService, ReplicaDescription
from antientropy.strict import strict
from antientropy.v1 import admin_pb2 as pb
from antientropy.v1 import admin_pb2_grpc

_Part = TypeVar("_Part")
Context = grpc.aio.ServicerContext[Any, Any]

#: Most special first; any other fault of a repair is a conflict with what is going on.
_CODES: Final = (
    (UnknownKeyspaceError, grpc.StatusCode.NOT_FOUND),
    (RepairRequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (ServiceStoppedError, grpc.StatusCode.UNAVAILABLE),
    (StoreError, grpc.StatusCode.FAILED_PRECONDITION),
    (RepairError, grpc.StatusCode.ABORTED),
)


class UnknownSessionError(RepairRequestError):
    """No session has an id that begins so."""


class RepairOperations(Protocol):
    """The part of :class:`~antientropy.service.RepairService` that an operator reaches."""

    @property
    def keyspaces(self) -> tuple[str, ...]:
        """The names of the stores."""
        ...

    async def describe(self, keyspace: str) -> ReplicaDescription:
        """What this node's replica of a keyspace holds."""
        ...

    def repair(self, keyspace: str, options: RepairOptions) -> AsyncGenerator[RepairUpdate, None]:
        """Repair; closing the iterator ends it."""
        ...

    async def sessions(self, active_only: bool = True) -> Sequence[SessionInfo]:
        """Sessions that have not ended, or all."""
        ...

    async def history(self, limit: int) -> Sequence[SessionInfo]:
        """Sessions that have ended, the last one first."""
        ...

    async def cancel(self, session_id: str, force: bool = False) -> None:
        """End a session."""
        ...

    async def pause(self, session_id: str) -> None:
        """Hold a session up."""
        ...

    def resume(self, session_id: str) -> AsyncGenerator[RepairUpdate, None]:
        """Go on with a session; updates as those of :meth:`repair`."""
        ...

    async def summarize(self, keyspace: str) -> Sequence[RangeSummary]:
        """How long ago each range was repaired."""
        ...


class AdjustableThrottle(Protocol):
    """Limits that can be changed while repairs run."""

    def status(self) -> ThrottleStatus:
        """The limits in force."""
        ...

    def update(self, *, bytes_per_second: float | None, rows_per_second: float | None, cpu_share: float | None) -> None:
        """Other limits; None: none."""
        ...


class Scheduler(Protocol):
    """The automatic repair of a node."""

    def status(self) -> ScheduleStatus:
        """What it is about."""
        ...

    def annotated(self, summaries: Sequence[RangeSummary]) -> Sequence[RangeSummary]:
        """With when each range is due, and whether it is stalled."""
        ...

    def pause(self) -> None:
        """Begin nothing more; what is under way goes on."""
        ...

    def resume(self) -> None:
        """Begin again what is due."""
        ...


@asynccontextmanager
async def _answering(context: Context) -> AsyncIterator[None]:
    try:
        yield
    except UnknownSessionError as error:
        await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
    except (RepairError, StoreError) as error:
        code = next(code for kind, code in _CODES if isinstance(error, kind))
        await context.abort(code, str(error))


def _aborted() -> NoReturn:
    raise AssertionError("unreachable: aborted")


class RepairAdmin(admin_pb2_grpc.RepairAdminServiceServicer):
    """Serves a :class:`~antientropy.service.RepairService` to ``nodetool``.

    Args:
        service: What is administered. Its ``throttle``, if it has one, is shown and set.
        scheduler: The automatic repair, if there is one.
        clock: Seconds since the epoch, as the service has them in its reports.
    """

    def __init__(
        self,
        service: RepairService | RepairOperations,
        scheduler: Scheduler | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._service: RepairOperations = service
        self._throttle: AdjustableThrottle | None = getattr(service, "throttle", None)
        self._scheduler = scheduler
        self._clock = clock

    def register(self, server: grpc.aio.Server) -> None:
        """Serve on this server."""
        admin_pb2_grpc.add_RepairAdminServiceServicer_to_server(self, strict(server))

    async def DescribeReplica(  # noqa: N802 - named by the protocol
        self, request: pb.DescribeReplicaRequest, context: Context
    ) -> pb.DescribeReplicaResponse:
        """Rows, tombstones, root."""
        async with _answering(context):
            found = await self._service.describe(self._keyspace(request.keyspace))
            return pb.DescribeReplicaResponse(
                keyspace=found.keyspace,
                row_count=found.root.count,
                tombstone_count=found.tombstone_count,
                root_digest=found.root.digest,
                tree_depth=found.tree_depth,
                replication_factor=len(found.replicas),
                replicas=found.replicas,
                stored_bytes=found.stored_bytes,
            )
        _aborted()

    async def Repair(  # noqa: N802 - named by the protocol
        self, request: pb.RepairRequest, context: Context
    ) -> AsyncIterator[pb.RepairUpdate]:
        """Repair with this node as the coordinator. Cancelling the call cancels the repair."""
        async with _answering(context):
            options = options_of(request)
            keyspace = self._keyspace(request.keyspace)
            async with aclosing(self._service.repair(keyspace, options)) as updates:
                async for update in updates:
                    yield update_message(update, keyspace)

    async def ResumeRepair(  # noqa: N802 - named by the protocol
        self, request: pb.ResumeRepairRequest, context: Context
    ) -> AsyncIterator[pb.RepairUpdate]:
        """Go on with a session that was paused or interrupted. Cancelling the call cancels the repair."""
        async with _answering(context):
            session = await self._session(request.session_id)
            async with aclosing(self._service.resume(session.session_id)) as updates:
                async for update in updates:
                    yield update_message(update, session.keyspace)

    async def ListSessions(  # noqa: N802 - named by the protocol
        self,
        request: pb.ListSessionsRequest,  # noqa: ARG002 - has no fields
        context: Context,
    ) -> pb.ListSessionsResponse:
        """Sessions that have not ended, the oldest first."""
        async with _answering(context):
            sessions = sorted(await self._service.sessions(), key=lambda session: session.started_at)
            return pb.ListSessionsResponse(now=self._clock(), sessions=map(session_message, sessions))
        _aborted()

    async def ListHistory(  # noqa: N802 - named by the protocol
        self, request: pb.ListHistoryRequest, context: Context
    ) -> pb.ListHistoryResponse:
        """Sessions that have ended, the last one first."""
        async with _answering(context):
            sessions = await self._service.history(history_limit_of(request.limit))
            return pb.ListHistoryResponse(now=self._clock(), sessions=map(session_message, sessions))
        _aborted()

    async def CancelRepairs(  # noqa: N802 - named by the protocol
        self, request: pb.CancelRepairsRequest, context: Context
    ) -> pb.CancelRepairsResponse:
        """End one session, or all."""
        async with _answering(context):
            if request.all == bool(request.session_id):
                raise RepairRequestError("name one session, or ask for all")
            if not request.all:
                session = await self._session(request.session_id)
                await self._service.cancel(session.session_id, request.force)
                return pb.CancelRepairsResponse(cancelled=[session_message(await self._now(session))])
            answer = pb.CancelRepairsResponse()
            for session in await self._service.sessions():
                try:
                    await self._service.cancel(session.session_id, request.force)
                except RepairError as error:
                    answer.failures.append(f"{session.session_id}: {error}")
                else:
                    answer.cancelled.append(session_message(await self._now(session)))
            return answer
        _aborted()

    async def PauseRepair(  # noqa: N802 - named by the protocol
        self, request: pb.PauseRepairRequest, context: Context
    ) -> pb.PauseRepairResponse:
        """Hold a session up."""
        async with _answering(context):
            session = await self._session(request.session_id)
            await self._service.pause(session.session_id)
            return pb.PauseRepairResponse(session=session_message(await self._now(session)))
        _aborted()

    async def SummarizeRepairs(  # noqa: N802 - named by the protocol
        self, request: pb.SummarizeRepairsRequest, context: Context
    ) -> pb.SummarizeRepairsResponse:
        """How long ago each range was repaired."""
        async with _answering(context):
            asked = keyspace_of(request.keyspace)
            answer = pb.SummarizeRepairsResponse(now=self._clock())
            for keyspace in [asked] if asked else sorted(self._service.keyspaces):
                summaries = await self._service.summarize(keyspace)
                if self._scheduler is not None:
                    summaries = self._scheduler.annotated(summaries)
                answer.ranges.extend(summary_messages(summaries))
            return answer
        _aborted()

    async def GetThrottle(  # noqa: N802 - named by the protocol
        self,
        request: pb.GetThrottleRequest,  # noqa: ARG002 - has no fields
        context: Context,
    ) -> pb.GetThrottleResponse:
        """The limits in force."""
        throttle = await self._offered(self._throttle, "throttle", context)
        return pb.GetThrottleResponse(throttle=throttle_message(throttle.status()))

    async def SetThrottle(  # noqa: N802 - named by the protocol
        self, request: pb.SetThrottleRequest, context: Context
    ) -> pb.SetThrottleResponse:
        """Other limits, at once."""
        throttle = await self._offered(self._throttle, "throttle", context)
        async with _answering(context):
            asked = throttle_of(request, throttle.status())
            throttle.update(
                bytes_per_second=asked.bytes_per_second,
                rows_per_second=asked.rows_per_second,
                cpu_share=asked.cpu_share,
            )
            return pb.SetThrottleResponse(throttle=throttle_message(throttle.status()))
        _aborted()

    async def GetSchedule(  # noqa: N802 - named by the protocol
        self,
        request: pb.GetScheduleRequest,  # noqa: ARG002 - has no fields
        context: Context,
    ) -> pb.GetScheduleResponse:
        """What is repaired next."""
        scheduler = await self._offered(self._scheduler, "schedule", context)
        return pb.GetScheduleResponse(schedule=schedule_message(scheduler.status(), self._clock()))

    async def PauseSchedule(  # noqa: N802 - named by the protocol
        self, request: pb.PauseScheduleRequest, context: Context
    ) -> pb.PauseScheduleResponse:
        """Begin nothing more, or begin again."""
        scheduler = await self._offered(self._scheduler, "schedule", context)
        if request.paused:
            scheduler.pause()
        else:
            scheduler.resume()
        return pb.PauseScheduleResponse(schedule=schedule_message(scheduler.status(), self._clock()))

    async def _offered(self, part: _Part | None, what: str, context: Context) -> _Part:
        """The part, where there is one."""
        if part is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"repair on this node has no {what}")
        assert part is not None  # noqa: S101 - abort raises, but its type does not say so
        return part

    def _keyspace(self, asked: str) -> str:
        """The keyspace asked for; none named is the only one there is."""
        if asked:
            return keyspace_of(asked)
        if len(self._service.keyspaces) != 1:
            raise RepairRequestError(f"name a keyspace; there is: {', '.join(sorted(self._service.keyspaces))}")
        return self._service.keyspaces[0]

    async def _session(self, asked: str) -> SessionInfo:
        """The session whose id begins so."""
        beginning = session_id_of(asked)
        found = {
            session.session_id: session
            for session in await self._service.sessions(active_only=False)
            if session.session_id.startswith(beginning)
        }
        if beginning in found:
            return found[beginning]
        if not found:
            raise UnknownSessionError(f"no session begins with {beginning}; 'nodetool repair_admin list' shows them")
        if len(found) > 1:
            some = ", ".join(sorted(found)[:3])
            raise RepairRequestError(f"{len(found)} sessions begin with {beginning} ({some}); give more of the id")
        return next(iter(found.values()))

    async def _now(self, session: SessionInfo) -> SessionInfo:
        """The session as it is after something was done to it."""
        for one in await self._service.sessions(active_only=False):
            if one.session_id == session.session_id:
                return one
        return session
