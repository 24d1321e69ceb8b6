"""One replica for another: the calls between nodes, both sides, and the same for the replica of this node.

Lives here: :class:`ReplicaCalls` (what the coordinator calls), :class:`LocalReplica` (this node's rows) and
:class:`ReplicaService` (the server side on the peer listener).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import grpc
from google.protobuf.message import Message

from antientropy.logs import LogLimiter
from antientropy.store import Row
from antientropy.strict import strict
from kvstore.errors import InvalidRequestError, KvStoreError, OverloadedError, StorageError, WrongClusterError
from kvstore.hlc import HybridLogicalClock
from kvstore.limits import (
    MUTATIONS_PER_CALL_MAX,
    PAGE_BYTES_MAX,
    PAGE_EXAMINED_MAX,
    PAGE_ROWS_MAX,
    READ_THREADS,
    REPLICA_BYTES_IN_FLIGHT_MAX,
    REPLICA_CALLS_IN_FLIGHT_MAX,
    SCAN_SLICE_ROWS,
)
from kvstore.replication import Page
from kvstore.store import NodeStore
from kvstore.transport import GrpcReplicaTransport, ReplicaTransport
from kvstore.v1 import kvstore_pb2 as pb
from kvstore.v1 import kvstore_pb2_grpc as pb_grpc
from kvstore.wire import abort, check_keys, check_scan, rows_of, rows_to_pb
from kvstore.writer import GroupCommitWriter, rows_bytes

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
if TYPE_CHECKING:  # generic in the stubs only
    _Context = grpc.aio.ServicerContext[Any, Any]

#: The one keyspace there is.
KEYSPACE: Final = "kv"


class LocalReplica:
    """This node's rows, as a coordinator anywhere sees them.

    Args:
        store: Where the rows are.
        writer: Commits to ``store``.
        clock: Learns of every version that is written here, and refuses those too far ahead.
    """

    def __init__(self, store: NodeStore, writer: GroupCommitWriter, clock: HybridLogicalClock) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock
        self._executor = ThreadPoolExecutor(max_workers=READ_THREADS, thread_name_prefix="kvstore-read")

    async def apply_rows(self, rows: Sequence[Row]) -> None:
        """Make rows durable here.

        Raises:
            ClockDriftError: a version is too far ahead; nothing was written.
            StorageError, OverloadedError, StoppingError: see :meth:`GroupCommitWriter.write`.
        """
        if rows:
            self._clock.update(max(row.version for row in rows))
        await self._writer.write(rows)

    async def read_rows(self, keys: Sequence[bytes]) -> list[Row]:
        """What is known of ``keys``, tombstones included.

        Raises:
            InvalidRequestError: they do not fit one answer.
            StorageError: they cannot be read.
        """
        rows = await self._in_thread(lambda: [row for row in self._store.get_many(keys) if row is not None])
        if len(rows) > 1 and rows_bytes(rows) > PAGE_BYTES_MAX * 4:
            raise InvalidRequestError(f"{len(keys)} keys have more than {PAGE_BYTES_MAX * 4} bytes; ask for fewer")
        return rows

    async def scan_rows(self, prefix: bytes, after_key: bytes, rows_max: int) -> Page:
        """One page of what is here, tombstones included.

        Raises:
            StorageError: the rows cannot be read.
        """
        return await self._in_thread(lambda: self._scan(prefix, after_key, rows_max))

    def _scan(self, prefix: bytes, after_key: bytes, rows_max: int) -> Page:
        rows: list[Row] = []
        size_bytes = examined = 0
        while examined < PAGE_EXAMINED_MAX:
            found = self._store.scan(after_key=after_key or None, limit=SCAN_SLICE_ROWS)
            for row in found:
                after_key = row.key
                if not row.key.startswith(prefix):
                    continue
                rows.append(row)
                size_bytes += len(row.key) + len(row.value)
                if len(rows) >= rows_max or size_bytes >= PAGE_BYTES_MAX:
                    return Page(tuple(rows), after_key)
            if len(found) < SCAN_SLICE_ROWS:
                return Page(tuple(rows), None)
            examined += len(found)
        return Page(tuple(rows), after_key)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except KvStoreError:
            raise
        except Exception as error:
            raise StorageError(f"not read: {error}") from error

    def close(self) -> None:
        """Wait for reads under way."""
        self._executor.shutdown()


class ReplicaCalls:
    """Calls to any replica: to this node's without a network, to others over a transport.

    Args:
        cluster_name: Sent with each call; another cluster refuses it.
        local_endpoint: Which endpoint is this node.
        local: The replica of this node.
        transport: Default: gRPC.
    """

    def __init__(
        self,
        *,
        cluster_name: str,
        local_endpoint: str,
        local: LocalReplica,
        transport: ReplicaTransport | None = None,
    ) -> None:
        self._cluster_name = cluster_name
        self._local_endpoint = local_endpoint
        self._local = local
        self._transport = GrpcReplicaTransport() if transport is None else transport
        self._calls_in_flight: Counter[str] = Counter()
        self._bytes_in_flight: Counter[str] = Counter()

    async def apply_rows(self, endpoint: str, rows: Sequence[Row], timeout_seconds: float) -> None:
        """Make rows durable on a replica; see :class:`kvstore.replication.Replicas`."""
        if endpoint == self._local_endpoint:
            await _within(self._local.apply_rows(rows), timeout_seconds)
            return
        async with self._slot(endpoint, rows_bytes(rows)):
            request = pb.ApplyRowsRequest(cluster_name=self._cluster_name, keyspace=KEYSPACE, rows=rows_to_pb(rows))
            await self._transport.call(endpoint, "ApplyRows", request, timeout_seconds)

    async def read_rows(self, endpoint: str, keys: Sequence[bytes], timeout_seconds: float) -> Sequence[Row]:
        """What a replica holds of keys; see :class:`kvstore.replication.Replicas`."""
        if endpoint == self._local_endpoint:
            return await _within(self._local.read_rows(keys), timeout_seconds)
        async with self._slot(endpoint, 0):
            request = pb.ReadRowsRequest(cluster_name=self._cluster_name, keyspace=KEYSPACE, keys=keys)
            reply: pb.ReadRowsResponse = await self._transport.call(endpoint, "ReadRows", request, timeout_seconds)
        return rows_of(reply.rows)

    async def scan_rows(
        self, endpoint: str, prefix: bytes, after_key: bytes, rows_max: int, timeout_seconds: float
    ) -> Page:
        """One page of a replica; see :class:`kvstore.replication.Replicas`."""
        if endpoint == self._local_endpoint:
            return await _within(self._local.scan_rows(prefix, after_key, rows_max), timeout_seconds)
        async with self._slot(endpoint, 0):
            request = pb.ScanRowsRequest(
                cluster_name=self._cluster_name,
                keyspace=KEYSPACE,
                prefix=prefix,
                after_key=after_key,
                rows_max=rows_max,
            )
            reply: pb.ScanRowsResponse = await self._transport.call(endpoint, "ScanRows", request, timeout_seconds)
        return Page(tuple(rows_of(reply.rows)), reply.next_after_key or None)

    def reconnect(self, endpoint: str) -> None:
        """An endpoint has come back: the next call connects at once."""
        self._transport.reconnect(endpoint)

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()

    @asynccontextmanager
    async def _slot(self, endpoint: str, size_bytes: int) -> AsyncIterator[None]:
        """Counts a call to a replica; a replica that hangs must not gather rows in memory."""
        if (
            self._calls_in_flight[endpoint] >= REPLICA_CALLS_IN_FLIGHT_MAX
            or self._bytes_in_flight[endpoint] + size_bytes > REPLICA_BYTES_IN_FLIGHT_MAX
        ):
            raise OverloadedError(f"{self._calls_in_flight[endpoint]} calls to it are not answered yet")
        self._calls_in_flight[endpoint] += 1
        self._bytes_in_flight[endpoint] += size_bytes
        try:
            yield
        finally:
            self._calls_in_flight[endpoint] -= 1
            self._bytes_in_flight[endpoint] -= size_bytes


async def _within(work: Awaitable[_T], timeout_seconds: float) -> _T:
    try:
        async with asyncio.timeout(timeout_seconds):
            return await work
    except TimeoutError:
        raise StorageError(f"the disk of this node did not answer within {timeout_seconds:g} s") from None


class ReplicaService(pb_grpc.ReplicaServiceServicer):
    """The server side, registered on the peer listener beside gossip.

    Args:
        cluster_name: Calls that name another are refused.
        replica: This node's rows.
    """

    def __init__(self, *, cluster_name: str, replica: LocalReplica) -> None:
        self._cluster_name = cluster_name
        self._replica = replica
        self._log_limiter = LogLimiter()
        self.refused: Counter[str] = Counter()
        """Refused calls by reason."""

    def register(self, server: grpc.aio.Server) -> None:
        """Serve on ``server``."""
        pb_grpc.add_ReplicaServiceServicer_to_server(self, strict(server))

    async def answer(self, method: str, request: Message, caller: str) -> Message:
        """One of ``kvstore.transport.METHODS``; ``caller`` names who asks, for the log.

        Raises:
            KvStoreError: it is refused; nothing was applied.
        """
        handlers: dict[str, Callable[[Any, str], Awaitable[Message]]] = {
            "ApplyRows": self._apply_rows,
            "ReadRows": self._read_rows,
            "ScanRows": self._scan_rows,
        }
        try:
            return await handlers[method](request, caller)
        except KvStoreError as error:
            self.refused[error.reason] += 1
            raise

    async def _apply_rows(self, request: pb.ApplyRowsRequest, caller: str) -> pb.ApplyRowsResponse:
        self._check_sender(request.cluster_name, request.keyspace, caller)
        if len(request.rows) > MUTATIONS_PER_CALL_MAX:
            raise InvalidRequestError(f"at most {MUTATIONS_PER_CALL_MAX} rows per call, these are {len(request.rows)}")
        await self._replica.apply_rows(rows_of(request.rows))
        return pb.ApplyRowsResponse()

    async def _read_rows(self, request: pb.ReadRowsRequest, caller: str) -> pb.ReadRowsResponse:
        self._check_sender(request.cluster_name, request.keyspace, caller)
        check_keys(request.keys)
        return pb.ReadRowsResponse(rows=rows_to_pb(await self._replica.read_rows(list(request.keys))))

    async def _scan_rows(self, request: pb.ScanRowsRequest, caller: str) -> pb.ScanRowsResponse:
        self._check_sender(request.cluster_name, request.keyspace, caller)
        check_scan(request.prefix, request.after_key)
        rows_max = min(request.rows_max or PAGE_ROWS_MAX, PAGE_ROWS_MAX)
        page = await self._replica.scan_rows(request.prefix, request.after_key, rows_max)
        return pb.ScanRowsResponse(rows=rows_to_pb(page.rows), next_after_key=page.next_after_key or b"")

    async def ApplyRows(self, request: pb.ApplyRowsRequest, context: _Context) -> pb.ApplyRowsResponse:  # noqa: N802 - generated name
        """Put rows that win."""
        return cast("pb.ApplyRowsResponse", await self._answer_or_abort("ApplyRows", request, context))

    async def ReadRows(self, request: pb.ReadRowsRequest, context: _Context) -> pb.ReadRowsResponse:  # noqa: N802 - generated name
        """What is here of some keys."""
        return cast("pb.ReadRowsResponse", await self._answer_or_abort("ReadRows", request, context))

    async def ScanRows(self, request: pb.ScanRowsRequest, context: _Context) -> pb.ScanRowsResponse:  # noqa: N802 - generated name
        """One page."""
        return cast("pb.ScanRowsResponse", await self._answer_or_abort("ScanRows", request, context))

    async def _answer_or_abort(self, method: str, request: Message, context: _Context) -> Message:
        try:
            return await self.answer(method, request, context.peer())
        except KvStoreError as error:
            await abort(context, error)

    def _check_sender(self, cluster_name: str, keyspace: str, caller: str) -> None:
        if cluster_name == self._cluster_name and keyspace == KEYSPACE:
            return
        if self._log_limiter.permit(caller.rpartition(":")[0]) is not None:
            _log.warning("refused rows from %s: cluster %r, keyspace %r", caller, cluster_name, keyspace)
        raise WrongClusterError(f"this is cluster {self._cluster_name!r}, keyspace {KEYSPACE!r}")
