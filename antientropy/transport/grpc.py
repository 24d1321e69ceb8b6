"""Calls between replicas over gRPC: what is served on the peer listener, and channels to peers.

A message of a stream is written when HTTP/2 has room for it: a slow receiver slows the sender, and no more than a
window and one message of a stream are under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from antientropy.config import insecure_channel
from antientropy.strict import OnMalformed, strict
from antientropy.transport.base import METHODS, SERVICE_NAME, CallError, Method, PeerAnswers, Shape

_NO_DETAIL: Final = "no reason was given"


def register(server: grpc.aio.Server, answers: PeerAnswers, on_malformed: OnMalformed = lambda _method: None) -> None:
    """Serve ``answers`` on a server that has not started.

    Requests that are no protobuf are refused and counted, see :mod:`antientropy.strict`.
    """
    handlers = {method.name: _handler(method, answers) for method in METHODS.values()}
    # What strict() makes of a server takes handlers in the way of generated code.
    target = cast("Any", strict(server, on_malformed))
    target.add_registered_method_handlers(SERVICE_NAME, handlers)


def _handler(method: Method, answers: PeerAnswers) -> grpc.RpcMethodHandler[Any, Any]:
    async def unary(request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
        try:
            return await answers.unary(method.name, request, context.peer())
        except CallError as error:
            await context.abort(error.code, error.detail)

    async def response_stream(request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Message]:
        stream = answers.response_stream(method.name, request, context.peer())
        try:
            async for answer in stream:
                yield answer
        except CallError as error:
            await context.abort(error.code, error.detail)
        finally:
            await stream.aclose()

    async def request_stream(requests: AsyncIterator[Message], context: grpc.aio.ServicerContext[Any, Any]) -> Message:
        try:
            return await answers.request_stream(method.name, requests, context.peer())
        except CallError as error:
            await context.abort(error.code, error.detail)

    make, behaviour = {
        Shape.UNARY: (grpc.unary_unary_rpc_method_handler, unary),
        Shape.RESPONSE_STREAM: (grpc.unary_stream_rpc_method_handler, response_stream),
        Shape.REQUEST_STREAM: (grpc.stream_unary_rpc_method_handler, request_stream),
    }[method.shape]
    return cast(
        "grpc.RpcMethodHandler[Any, Any]",
        cast("Callable[..., Any]", make)(
            behaviour,
            request_deserializer=method.request_type.FromString,
            response_serializer=method.response_type.SerializeToString,
        ),
    )


class GrpcTransport:
    """Channels to peers, made when they are first needed.

    Args:
        channel_factory: Makes a channel; for TLS. The default never asks a proxy of the environment.
    """

    def __init__(self, channel_factory: Callable[[str], grpc.aio.Channel] = insecure_channel) -> None:
        self._channel_factory = channel_factory
        self._channels: dict[str, grpc.aio.Channel] = {}

    def calls(self, endpoint: str) -> GrpcCalls:
        """Calls to the peer at ``endpoint``, over one channel however often this is asked."""
        if endpoint not in self._channels:
            self._channels[endpoint] = self._channel_factory(endpoint)
        return GrpcCalls(endpoint, self._channels[endpoint])

    async def close(self) -> None:
        """Close all channels. Idempotent."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()


class GrpcCalls:
    """Calls to one peer."""

    def __init__(self, endpoint: str, channel: grpc.aio.Channel) -> None:
        self._endpoint = endpoint
        self._channel = channel

    @property
    def endpoint(self) -> str:
        """The peer."""
        return self._endpoint

    async def unary(self, method: str, request: Message, timeout_seconds: float) -> Message:
        """As the Protocol says."""
        with _call_errors():
            call = self._make(method, self._channel.unary_unary)(request, timeout=timeout_seconds)
            return cast("Message", await call)

    async def response_stream(
        self, method: str, request: Message, timeout_seconds: float, message_timeout_seconds: float
    ) -> AsyncGenerator[Message, None]:
        """As the Protocol says."""
        with _call_errors(message_timeout_seconds):
            call = self._make(method, self._channel.unary_stream)(request, timeout=timeout_seconds)
            try:
                while True:
                    async with asyncio.timeout(message_timeout_seconds):
                        message = await call.read()
                    if message is grpc.aio.EOF:
                        return
                    yield message
            finally:
                call.cancel()

    async def request_stream(
        self, method: str, requests: AsyncIterable[Message], timeout_seconds: float, message_timeout_seconds: float
    ) -> Message:
        """As the Protocol says."""
        with _call_errors(message_timeout_seconds):
            call = self._make(method, self._channel.stream_unary)(timeout=timeout_seconds)
            try:
                async for request in requests:
                    async with asyncio.timeout(message_timeout_seconds):
                        await call.write(request)
                async with asyncio.timeout(message_timeout_seconds):
                    await call.done_writing()
                    return cast("Message", await call)
            except asyncio.InvalidStateError:
                # The peer ended the call while messages were on their way: its status is the reason.
                await call
                raise
            finally:
                call.cancel()

    def _make(self, method: str, kind: Callable[..., Any]) -> Callable[..., Any]:
        spec = METHODS[method]
        made = kind(
            spec.path,
            request_serializer=spec.request_type.SerializeToString,
            response_deserializer=spec.response_type.FromString,
        )
        return cast("Callable[..., Any]", made)


@contextmanager
def _call_errors(message_timeout_seconds: float = 0.0) -> Iterator[None]:
    """GRPC's errors as those of the seam."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise CallError(error.code(), error.details() or _NO_DETAIL) from error
    except TimeoutError as error:
        raise CallError(
            grpc.StatusCode.DEADLINE_EXCEEDED, f"nothing for {message_timeout_seconds:g} s in a stream"
        ) from error
    except grpc.aio.UsageError as error:
        # The channel was closed under the call.
        raise CallError(grpc.StatusCode.UNAVAILABLE, str(error)) from error
