"""What an operator asks: ``antientropy.v1.RepairAdminService``. Register it on the administration listener only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import grpc
import grpc.aio

from antientropy.core.tokens import TokenRange
from antientropy.errors import (
    JournalError,
    RepairRequestError,
    RepairRunningError,
    ServiceStoppedError,
    StoreError,
    UnknownKeyspaceError,
)
from antientropy.options import RepairOptions
from antientropy.reports import RepairUpdate, SessionState
from antientropy.service import RepairService
from antientropy.strict import strict
from antientropy.v1 import admin_pb2 as pb
from antientropy.v1 import admin_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

_PHASES: Final = {
    SessionState.PREPARING: pb.REPAIR_PHASE_PREPARING,
    SessionState.COMPARING: pb.REPAIR_PHASE_COMPARING,
    SessionState.STREAMING: pb.REPAIR_PHASE_STREAMING,
    SessionState.VERIFYING: pb.REPAIR_PHASE_VERIFYING,
}
_OUTCOMES: Final = {
    SessionState.COMPLETED: pb.REPAIR_OUTCOME_COMPLETED,
    SessionState.PARTIAL: pb.REPAIR_OUTCOME_PARTIAL,
    SessionState.FAILED: pb.REPAIR_OUTCOME_FAILED,
    SessionState.CANCELLED: pb.REPAIR_OUTCOME_FAILED,
}
#: Most special first.
_CODES: Final = (
    (UnknownKeyspaceError, grpc.StatusCode.NOT_FOUND),
    (RepairRequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (RepairRunningError, grpc.StatusCode.ABORTED),
    (ServiceStoppedError, grpc.StatusCode.UNAVAILABLE),
    (StoreError, grpc.StatusCode.FAILED_PRECONDITION),
    (JournalError, grpc.StatusCode.FAILED_PRECONDITION),
)


@asynccontextmanager
async def _answering(context: Context) -> AsyncIterator[None]:
    try:
        yield
    except (RepairRequestError, RepairRunningError, ServiceStoppedError, StoreError, JournalError) as error:
        code = next(code for kind, code in _CODES if isinstance(error, kind))
        await context.abort(code, str(error))


class RepairAdmin(admin_pb2_grpc.RepairAdminServiceServicer):
    """Serves a :class:`~antientropy.service.RepairService` to ``nodetool``."""

    def __init__(self, service: RepairService) -> None:
        self._service = service

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
        raise AssertionError("unreachable: aborted")

    async def Repair(  # noqa: N802 - named by the protocol
        self, request: pb.RepairRequest, context: Context
    ) -> AsyncIterator[pb.RepairUpdate]:
        """Repair with this node as the coordinator. Cancelling the call cancels the repair."""
        async with _answering(context):
            keyspace = self._keyspace(request.keyspace)
            token_range = _token_range(request.first_token, request.last_token)
            options = RepairOptions(
                token_ranges=() if token_range.is_full else (token_range,), peers=tuple(request.peers)
            )
            async with aclosing(self._service.repair(keyspace, options)) as updates:
                async for update in updates:
                    yield _message(update)

    def _keyspace(self, asked: str) -> str:
        """The keyspace asked for; none named is the only one there is."""
        if asked:
            return asked
        if len(self._service.keyspaces) != 1:
            raise RepairRequestError(f"name a keyspace; there is: {', '.join(sorted(self._service.keyspaces))}")
        return self._service.keyspaces[0]


def _token_range(first: int, last: int) -> TokenRange:
    if (first, last) == (0, 0):
        return TokenRange.full()
    if first > last:
        raise RepairRequestError(f"token range {first} to {last} is empty; the first token must not be the greater")
    return TokenRange(first, last)


def _message(update: RepairUpdate) -> pb.RepairUpdate:
    statistics = update.statistics
    return pb.RepairUpdate(
        session_id=update.session_id,
        message=update.message,
        phase=_PHASES.get(update.state, pb.REPAIR_PHASE_FINISHED),
        progress=update.progress,
        outcome=_OUTCOMES.get(update.state, pb.REPAIR_OUTCOME_UNSPECIFIED),
        statistics=pb.RepairStatistics(
            rows_differing=statistics.rows_differing,
            rows_moved=statistics.rows_moved,
            rows_optimal=statistics.rows_optimal,
            find_bytes=statistics.find_bytes,
            move_bytes=statistics.move_bytes,
            round_trips=statistics.round_trips,
            pairs_compared=statistics.pairs_compared,
            pairs_equal=statistics.pairs_equal,
            elapsed_seconds=statistics.elapsed_seconds,
        ),
    )
