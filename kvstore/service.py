"""The server side of what applications speak, on the client listener."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import grpc

from antientropy.store import Row
from antientropy.strict import strict
from kvstore.errors import InvalidRequestError, KvStoreError, StoppingError
from kvstore.limits import PAGE_BYTES_MAX
from kvstore.replication import Consistency, Coordinator, Mutation, majority_of
from kvstore.v1 import kvstore_pb2 as pb
from kvstore.v1 import kvstore_pb2_grpc as pb_grpc
from kvstore.wire import abort, check_key, check_mutations, check_scan, mutations_of, rows_to_pb

if TYPE_CHECKING:  # generic in the stubs only
    _Context = grpc.aio.ServicerContext[Any, Any]

_CONSISTENCY: Final[dict[int, Consistency]] = {
    pb.CONSISTENCY_UNSPECIFIED: Consistency.QUORUM,
    pb.CONSISTENCY_LOCAL: Consistency.LOCAL,
    pb.CONSISTENCY_QUORUM: Consistency.QUORUM,
}


class KeyValueService(pb_grpc.KeyValueServiceServicer):
    """Checks what clients send, and lets the coordinator do it.

    Args:
        coordinator: Of this node.
        describe: Makes the answer to DescribeNode.
    """

    def __init__(self, coordinator: Coordinator, describe: Callable[[], pb.DescribeNodeResponse]) -> None:
        self._coordinator = coordinator
        self._describe = describe
        self._refusal: str | None = None

    def register(self, server: grpc.aio.Server) -> None:
        """Serve on ``server``."""
        pb_grpc.add_KeyValueServiceServicer_to_server(self, strict(server))

    def stop(self, refusal: str = "this node is shutting down; ask another one") -> None:
        """Refuse new calls from now on, with this text; those under way go on. The first text stays."""
        self._refusal = self._refusal or refusal

    async def Put(self, request: pb.PutRequest, context: _Context) -> pb.PutResponse:  # noqa: N802 - generated name
        """One value."""
        version = 0
        try:
            version = await self._write((Mutation(request.key, request.value),), context)
        except KvStoreError as error:
            await abort(context, error)
        return pb.PutResponse(version=version)

    async def Delete(self, request: pb.DeleteRequest, context: _Context) -> pb.DeleteResponse:  # noqa: N802 - generated name
        """One tombstone."""
        version = 0
        try:
            version = await self._write((Mutation(request.key, deleted=True),), context)
        except KvStoreError as error:
            await abort(context, error)
        return pb.DeleteResponse(version=version)

    async def Write(self, request: pb.WriteRequest, context: _Context) -> pb.WriteResponse:  # noqa: N802 - generated name
        """Many mutations."""
        first = count = 0
        try:
            mutations = mutations_of(request)
            count = len(mutations)
            first = await self._write(mutations, context)
        except KvStoreError as error:
            await abort(context, error)
        return pb.WriteResponse(first_version=first, last_version=first + count - 1)

    async def Get(self, request: pb.GetRequest, context: _Context) -> pb.GetResponse:  # noqa: N802 - generated name
        """The newest value of a key."""
        row = None
        try:
            self._check_running()
            check_key(request.key)
            row = await self._coordinator.read(request.key, _consistency(request.consistency), context.time_remaining())
        except KvStoreError as error:
            await abort(context, error)
        if row is None:
            return pb.GetResponse()
        return pb.GetResponse(found=not row.deleted, value=row.value, version=row.version)

    async def Scan(self, request: pb.ScanRequest, context: _Context) -> AsyncIterator[pb.ScanResponse]:  # noqa: N802 - generated name
        """All rows, or those with a prefix."""
        try:
            self._check_running()
            check_scan(request.prefix, request.after_key)
            batches = self._coordinator.scan(
                prefix=request.prefix,
                after_key=request.after_key,
                rows_max=request.rows_max,
                consistency=_consistency(request.consistency),
                include_tombstones=request.include_tombstones,
            )
            async for rows in batches:
                for chunk in chunks_of(rows):
                    yield pb.ScanResponse(rows=rows_to_pb(chunk))
        except KvStoreError as error:
            await abort(context, error)

    async def DescribeNode(self, request: pb.DescribeNodeRequest, context: _Context) -> pb.DescribeNodeResponse:  # noqa: ARG002, N802 - generated name; has no fields
        """What this node knows."""
        try:
            self._check_running()
        except KvStoreError as error:
            await abort(context, error)
        return self._describe()

    async def _write(self, mutations: tuple[Mutation, ...], context: _Context) -> int:
        self._check_running()
        check_mutations(mutations)
        return await self._coordinator.write(mutations, context.time_remaining())

    def _check_running(self) -> None:
        if self._refusal is not None:
            raise StoppingError(self._refusal)


def chunks_of(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Slices that fit a message each: a merge of several pages may not."""
    begin = size_bytes = 0
    for index, row in enumerate(rows):
        size_bytes += len(row.key) + len(row.value)
        if size_bytes >= PAGE_BYTES_MAX:
            yield rows[begin : index + 1]
            begin, size_bytes = index + 1, 0
    if begin < len(rows):
        yield rows[begin:]


def _consistency(value: int) -> Consistency:
    consistency = _CONSISTENCY.get(value)
    if consistency is None:
        raise InvalidRequestError(f"consistency {value} is not known here")
    return consistency


def describe(
    *,
    cluster_name: str,
    endpoint: str,
    host_id: str,
    generation: int,
    replication_factor: int,
    replicas: dict[str, bool],
    row_count: int,
    tombstone_count: int,
    stored_bytes: int,
) -> pb.DescribeNodeResponse:
    """The answer to DescribeNode; ``replicas`` says of each endpoint whether it is alive."""
    required, _total = majority_of(replication_factor, len(replicas))
    return pb.DescribeNodeResponse(
        cluster_name=cluster_name,
        endpoint=endpoint,
        host_id=host_id,
        generation=generation,
        replication_factor=replication_factor,
        replicas_required=required,
        replicas=[pb.ReplicaView(endpoint=name, alive=alive) for name, alive in sorted(replicas.items())],
        row_count=row_count,
        tombstone_count=tombstone_count,
        stored_bytes=stored_bytes,
    )
