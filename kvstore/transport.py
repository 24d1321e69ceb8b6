"""How calls between replicas travel: the seam, and gRPC. The simulation has a twin in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

import grpc
from google.protobuf.message import Message

from kvstore.v1 import kvstore_pb2 as pb
from kvstore.v1 import kvstore_pb2_grpc as pb_grpc
from kvstore.wire import CHANNEL_OPTIONS, error_of

#: The methods of ``ReplicaService`` with what they take and give.
METHODS: Final[Mapping[str, tuple[type[Message], type[Message]]]] = MappingProxyType(
    {
        "ApplyRows": (pb.ApplyRowsRequest, pb.ApplyRowsResponse),
        "ReadRows": (pb.ReadRowsRequest, pb.ReadRowsResponse),
        "ScanRows": (pb.ScanRowsRequest, pb.ScanRowsResponse),
    }
)


class ReplicaTransport(Protocol):
    """The asking side. The answering one is :meth:`kvstore.peers.ReplicaService.answer`."""

    async def call(self, endpoint: str, method: str, request: Message, timeout_seconds: float) -> Any:
        """One of ``METHODS`` on a replica: its answer, of the type that belongs to the method.

        Raises:
            KvStoreError: what the replica answered; UnreachableError when nothing came in time.
        """
        ...

    def reconnect(self, endpoint: str) -> None:
        """An endpoint has come back: the next call connects at once."""
        ...

    async def close(self) -> None:
        """Give connections back. Idempotent."""
        ...


class GrpcReplicaTransport:
    """One warm channel to each replica."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[str, pb_grpc.ReplicaServiceAsyncStub] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def call(self, endpoint: str, method: str, request: Message, timeout_seconds: float) -> Any:
        """See :class:`ReplicaTransport`."""
        try:
            return await getattr(self._stub(endpoint), method)(request, timeout=timeout_seconds)
        except grpc.aio.AioRpcError as error:
            raise error_of(endpoint, error) from None

    def reconnect(self, endpoint: str) -> None:
        """Forget the channel to an endpoint, which has come back.

        A channel whose connection was refused waits before it tries again, and fails calls meanwhile.
        """
        self._stubs.pop(endpoint, None)
        channel = self._channels.pop(endpoint, None)
        if channel is not None:
            task = asyncio.ensure_future(channel.close(grace=1.0))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all channels."""
        for endpoint in list(self._channels):
            self.reconnect(endpoint)
        if self._closing:
            await asyncio.wait(self._closing)

    def _stub(self, endpoint: str) -> pb_grpc.ReplicaServiceAsyncStub:
        stub = self._stubs.get(endpoint)
        if stub is None:
            channel = grpc.aio.insecure_channel(endpoint, options=CHANNEL_OPTIONS)
            self._channels[endpoint] = channel
            stub = self._stubs[endpoint] = pb_grpc.ReplicaServiceStub(channel)
        return stub
