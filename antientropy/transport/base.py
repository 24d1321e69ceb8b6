"""The seam between repair and the network: calls by method name with a deadline, on both sides.

A transport carries whole messages of ``repair.proto`` and the status of a call; it knows nothing of sessions. The
asking side sees a :class:`PeerCalls` per endpoint, the answering side is a :class:`PeerAnswers`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final, Protocol

import grpc
from google.protobuf.message import Message

from antientropy.errors import AntiEntropyError
from antientropy.v1 import repair_pb2 as pb

#: The service of ``repair.proto``.
SERVICE_NAME: Final = "antientropy.v1.RepairPeerService"


class Shape(Enum):
    """Which side of a call is a stream."""

    UNARY = "unary"
    RESPONSE_STREAM = "response stream"
    REQUEST_STREAM = "request stream"


@dataclass(frozen=True, slots=True)
class Method:
    """A method of the service."""

    name: str
    shape: Shape
    request_type: type[Message]
    response_type: type[Message]

    @property
    def path(self) -> str:
        """As gRPC names it."""
        return f"/{SERVICE_NAME}/{self.name}"


#: All methods by name.
METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method("Compare", Shape.UNARY, pb.CompareRequest, pb.CompareResponse),
            Method("Locate", Shape.UNARY, pb.LocateRequest, pb.LocateResponse),
            Method("Fetch", Shape.RESPONSE_STREAM, pb.FetchRequest, pb.RowColumns),
            Method("Push", Shape.REQUEST_STREAM, pb.PushRequest, pb.PushResponse),
            Method("Send", Shape.UNARY, pb.SendRequest, pb.SendResponse),
            Method("Heartbeat", Shape.UNARY, pb.HeartbeatRequest, pb.HeartbeatResponse),
            Method("Close", Shape.UNARY, pb.CloseRequest, pb.CloseResponse),
        )
    }
)


class CallError(AntiEntropyError):
    """A call ended without an answer, or was refused: ``code`` says how, ``detail`` is one line for people.

    UNAVAILABLE and DEADLINE_EXCEEDED may be repeated; ABORTED says that the session is gone.
    """

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        self.code = code
        self.detail = detail
        super().__init__(f"{code.name}: {detail}")


class PeerCalls(Protocol):
    """Calls to one peer. Each ends by its deadline, whatever the peer does."""

    @property
    def endpoint(self) -> str:
        """The peer: host:port."""
        ...

    async def unary(self, method: str, request: Message, timeout_seconds: float) -> Message:
        """One request, one answer.

        Raises:
            CallError: no answer in time, or a status.
        """
        ...

    def response_stream(
        self, method: str, request: Message, timeout_seconds: float, message_timeout_seconds: float
    ) -> AsyncGenerator[Message, None]:
        """One request, many answers; close the generator to cancel the call.

        ``timeout_seconds`` bounds the call, ``message_timeout_seconds`` each wait for a message.

        Raises:
            CallError: as for :meth:`unary`.
        """
        ...

    async def request_stream(
        self, method: str, requests: AsyncIterable[Message], timeout_seconds: float, message_timeout_seconds: float
    ) -> Message:
        """Many requests, one answer. ``requests`` is asked for the next message when the peer has room for it.

        Raises:
            CallError: as for :meth:`unary`; what ``requests`` raises is raised here, and the call is cancelled.
        """
        ...


class PeerTransport(Protocol):
    """All peers of a node."""

    def calls(self, endpoint: str) -> PeerCalls:
        """Calls to the peer at ``endpoint``. Connects when the first is made."""
        ...

    async def close(self) -> None:
        """Give connections back. Idempotent."""
        ...


class PeerAnswers(Protocol):
    """The answering side. ``caller`` names who asks, for the log.

    Every method raises CallError for what is answered with a status.
    """

    async def unary(self, method: str, request: Message, caller: str) -> Message:
        """One request, one answer."""
        ...

    def response_stream(self, method: str, request: Message, caller: str) -> AsyncGenerator[Message, None]:
        """One request, many answers; closed when the caller cancels."""
        ...

    async def request_stream(self, method: str, requests: AsyncIterator[Message], caller: str) -> Message:
        """Many requests, one answer."""
        ...
