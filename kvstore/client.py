"""Clients of one node: :class:`KeyValueClient` blocks, :class:`AsyncKeyValueClient` belongs to an event loop.

Both raise :class:`kvstore.errors.KvStoreError`, whose text is one line. Any node coordinates any request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

import grpc

from kvstore.replication import Consistency, Mutation
from kvstore.v1 import kvstore_pb2 as pb
from kvstore.v1 import kvstore_pb2_grpc as pb_grpc
from kvstore.wire import CHANNEL_OPTIONS, check_key, check_mutations, check_scan, error_of

#: Longer than a node takes to give up, so that its own error arrives.
TIMEOUT_SECONDS_DEFAULT: Final = 10.0
#: A scan of everything; each page of it has a deadline of its own in the node.
SCAN_TIMEOUT_SECONDS_DEFAULT: Final = 3_600.0

_CONSISTENCY: Final = {
    Consistency.LOCAL: pb.CONSISTENCY_LOCAL,
    Consistency.QUORUM: pb.CONSISTENCY_QUORUM,
}


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One row as a client sees it; ``version`` is a hybrid logical clock timestamp."""

    key: bytes
    value: bytes
    version: int
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A replica as the asked node sees it."""

    endpoint: str
    alive: bool


@dataclass(frozen=True, slots=True)
class NodeDescription:
    """What a node knows of itself and of the replicas."""

    cluster_name: str
    endpoint: str
    host_id: str
    generation: int
    replication_factor: int
    replicas_required: int
    replicas: tuple[ReplicaStatus, ...]
    row_count: int
    """Tombstones included."""
    tombstone_count: int
    stored_bytes: int

    @property
    def alive_count(self) -> int:
        """Replicas that are alive."""
        return sum(replica.alive for replica in self.replicas)


def _write_request(mutations: Sequence[Mutation]) -> pb.WriteRequest:
    check_mutations(mutations)
    return pb.WriteRequest(
        mutations=[pb.Mutation(key=item.key, value=item.value, deleted=item.deleted) for item in mutations]
    )


def _put_request(key: bytes, value: bytes) -> pb.PutRequest:
    check_mutations((Mutation(key, value),))
    return pb.PutRequest(key=key, value=value)


def _delete_request(key: bytes) -> pb.DeleteRequest:
    check_key(key)
    return pb.DeleteRequest(key=key)


def _get_request(key: bytes, consistency: Consistency) -> pb.GetRequest:
    check_key(key)
    return pb.GetRequest(key=key, consistency=_CONSISTENCY[consistency])


def _scan_request(
    prefix: bytes, rows_max: int, consistency: Consistency, include_tombstones: bool, after_key: bytes
) -> pb.ScanRequest:
    check_scan(prefix, after_key)
    return pb.ScanRequest(
        prefix=prefix,
        rows_max=rows_max,
        consistency=_CONSISTENCY[consistency],
        include_tombstones=include_tombstones,
        after_key=after_key,
    )


def _found(key: bytes, reply: pb.GetResponse) -> KeyValue | None:
    return KeyValue(key, reply.value, reply.version) if reply.found else None


def _key_value(row: pb.Row) -> KeyValue:
    return KeyValue(row.key, row.value, row.version, row.deleted)


def _description(reply: pb.DescribeNodeResponse) -> NodeDescription:
    return NodeDescription(
        cluster_name=reply.cluster_name,
        endpoint=reply.endpoint,
        host_id=reply.host_id,
        generation=reply.generation,
        replication_factor=reply.replication_factor,
        replicas_required=reply.replicas_required,
        replicas=tuple(ReplicaStatus(view.endpoint, view.alive) for view in reply.replicas),
        row_count=reply.row_count,
        tombstone_count=reply.tombstone_count,
        stored_bytes=reply.stored_bytes,
    )


class KeyValueClient:
    """A blocking client; may be used from several threads. Use as a context manager, or call :meth:`close`.

    Every method raises :class:`kvstore.errors.UnreachableError` when no answer comes, InvalidRequestError for keys and
    values beyond :mod:`kvstore.limits`, and whatever the node answers.

    Args:
        address: ``host:port`` of a node's client listener.
        timeout_seconds: The deadline of each call but :meth:`scan`.
    """

    def __init__(self, address: str, *, timeout_seconds: float = TIMEOUT_SECONDS_DEFAULT) -> None:
        self.address = address
        self._timeout_seconds = timeout_seconds
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = pb_grpc.KeyValueServiceStub(self._channel)

    def __enter__(self) -> Self:
        """Nothing is connected yet."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def put(self, key: bytes, value: bytes) -> int:
        """Write a value; returns its version. When it returns, a majority of the replicas has it on disk."""
        request = _put_request(key, value)
        try:
            return self._stub.Put(request, timeout=self._timeout_seconds).version
        except grpc.RpcError as error:
            raise error_of(self.address, error) from None

    def delete(self, key: bytes) -> int:
        """Write a tombstone; returns its version. Deleting what is not there is not an error."""
        request = _delete_request(key)
        try:
            return self._stub.Delete(request, timeout=self._timeout_seconds).version
        except grpc.RpcError as error:
            raise error_of(self.address, error) from None

    def write(self, mutations: Sequence[Mutation]) -> int:
        """Write many in one call, in this order; returns the version of the last."""
        request = _write_request(mutations)
        try:
            return self._stub.Write(request, timeout=self._timeout_seconds).last_version
        except grpc.RpcError as error:
            raise error_of(self.address, error) from None

    def get(self, key: bytes, *, consistency: Consistency = Consistency.QUORUM) -> KeyValue | None:
        """The newest value; None when there is none."""
        request = _get_request(key, consistency)
        try:
            return _found(key, self._stub.Get(request, timeout=self._timeout_seconds))
        except grpc.RpcError as error:
            raise error_of(self.address, error) from None

    def scan(
        self,
        *,
        prefix: bytes = b"",
        rows_max: int = 0,
        consistency: Consistency = Consistency.QUORUM,
        include_tombstones: bool = False,
        after_key: bytes = b"",
        timeout_seconds: float = SCAN_TIMEOUT_SECONDS_DEFAULT,
    ) -> Iterator[KeyValue]:
        """Rows in the order of (token, key), the same on every node; ``rows_max`` 0 is no limit.

        LOCAL reads only the replica of the node that is asked: what is really there, for comparing replicas.
        """
        request = _scan_request(prefix, rows_max, consistency, include_tombstones, after_key)
        call = self._stub.Scan(request, timeout=timeout_seconds)
        try:
            for reply in call:
                yield from map(_key_value, reply.rows)
        except grpc.RpcError as error:
            raise error_of(self.address, error) from None
        finally:
            call.cancel()

    def describe(self) -> NodeDescription:
        """What the node knows of itself and of the replicas."""
        try:
            return _description(self._stub.DescribeNode(pb.DescribeNodeRequest(), timeout=self._timeout_seconds))
        except grpc.RpcError as error:
            raise error_of(self.address, error) from None


class AsyncKeyValueClient:
    """The same for an event loop; see :class:`KeyValueClient`. Use as an async context manager.

    Args:
        address: ``host:port`` of a node's client listener.
        timeout_seconds: The deadline of each call but :meth:`scan`.
    """

    def __init__(self, address: str, *, timeout_seconds: float = TIMEOUT_SECONDS_DEFAULT) -> None:
        self.address = address
        self._timeout_seconds = timeout_seconds
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub: pb_grpc.KeyValueServiceAsyncStub = pb_grpc.KeyValueServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        """Nothing is connected yet."""
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def put(self, key: bytes, value: bytes) -> int:
        """Write a value; returns its version."""
        request = _put_request(key, value)
        try:
            return (await self._stub.Put(request, timeout=self._timeout_seconds)).version
        except grpc.aio.AioRpcError as error:
            raise error_of(self.address, error) from None

    async def delete(self, key: bytes) -> int:
        """Write a tombstone; returns its version."""
        request = _delete_request(key)
        try:
            return (await self._stub.Delete(request, timeout=self._timeout_seconds)).version
        except grpc.aio.AioRpcError as error:
            raise error_of(self.address, error) from None

    async def write(self, mutations: Sequence[Mutation]) -> int:
        """Write many in one call, in this order; returns the version of the last."""
        request = _write_request(mutations)
        try:
            return (await self._stub.Write(request, timeout=self._timeout_seconds)).last_version
        except grpc.aio.AioRpcError as error:
            raise error_of(self.address, error) from None

    async def get(self, key: bytes, *, consistency: Consistency = Consistency.QUORUM) -> KeyValue | None:
        """The newest value; None when there is none."""
        request = _get_request(key, consistency)
        try:
            return _found(key, await self._stub.Get(request, timeout=self._timeout_seconds))
        except grpc.aio.AioRpcError as error:
            raise error_of(self.address, error) from None

    async def scan(
        self,
        *,
        prefix: bytes = b"",
        rows_max: int = 0,
        consistency: Consistency = Consistency.QUORUM,
        include_tombstones: bool = False,
        after_key: bytes = b"",
        timeout_seconds: float = SCAN_TIMEOUT_SECONDS_DEFAULT,
    ) -> AsyncIterator[KeyValue]:
        """Rows in the order of (token, key); see :meth:`KeyValueClient.scan`."""
        request = _scan_request(prefix, rows_max, consistency, include_tombstones, after_key)
        try:
            async for reply in self._stub.Scan(request, timeout=timeout_seconds):
                for row in reply.rows:
                    yield _key_value(row)
        except grpc.aio.AioRpcError as error:
            raise error_of(self.address, error) from None

    async def describe(self) -> NodeDescription:
        """What the node knows of itself and of the replicas."""
        try:
            return _description(await self._stub.DescribeNode(pb.DescribeNodeRequest(), timeout=self._timeout_seconds))
        except grpc.aio.AioRpcError as error:
            raise error_of(self.address, error) from None
