"""What is no protobuf is refused, counted and logged at a limited rate.

gRPC parses a request before it calls a servicer, and writes a traceback for each one that it cannot parse: a peer that
sends noise would fill the disk. :func:`strict` stands between a generated ``add_...Servicer_to_server`` and the server,
parses by itself and answers INVALID_ARGUMENT.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final, cast

import grpc
from google.protobuf.message import DecodeError

from antientropy.logs import LogLimiter

_log = logging.getLogger(__name__)

#: Takes the full name of a method, such as ``/antientropy.v1.RepairPeerService/Push``.
OnMalformed = Callable[[str], None]


class _Malformed:
    """Stands where a request would be."""


_MALFORMED: Final = _Malformed()


def strict(server: grpc.aio.Server, on_malformed: OnMalformed = lambda _method: None) -> grpc.aio.Server:
    """A server to give to ``add_...Servicer_to_server``; what is added goes to ``server`` with its parsing replaced.

    A server that is strict already stays what it is: whoever wrapped it first counts.

    Args:
        server: Has not started.
        on_malformed: Called for every request that is no protobuf, to count it.
    """
    if isinstance(server, _StrictServer):
        return server
    return cast("grpc.aio.Server", _StrictServer(server, on_malformed))


class _StrictServer:
    """The part of a server that generated code uses."""

    def __init__(self, server: grpc.aio.Server, on_malformed: OnMalformed) -> None:
        self._server = server
        self._on_malformed = on_malformed
        self._log_limiter = LogLimiter()

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Generated code adds the same methods in the other way too, where they can be seen."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Add a service."""
        checked = {name: self._checked(f"/{service}/{name}", handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, checked),))

    def _checked(self, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """The handler with a parser that does not raise."""
        parse: Callable[[bytes], object] = handler.request_deserializer

        def tolerant(data: bytes) -> object:
            try:
                return parse(data)
            except DecodeError:
                return _MALFORMED

        make, behaviour = self._behaviour(method, handler)
        return cast(
            "grpc.RpcMethodHandler[Any, Any]",
            make(behaviour, request_deserializer=tolerant, response_serializer=handler.response_serializer),
        )

    def _behaviour(self, method: str, handler: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """How the method is made, and what it does now."""

        async def requests(arriving: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            async for request in arriving:
                await self._check(method, request, context)
                yield request

        async def unary_unary(request: Any, context: Any) -> Any:
            await self._check(method, request, context)
            return await handler.unary_unary(request, context)

        async def unary_stream(request: Any, context: Any) -> AsyncIterator[Any]:
            await self._check(method, request, context)
            async for answer in handler.unary_stream(request, context):
                yield answer

        async def stream_unary(arriving: AsyncIterator[Any], context: Any) -> Any:
            return await handler.stream_unary(requests(arriving, context), context)

        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler, unary_unary
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler, unary_stream
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler, stream_unary
        raise TypeError(f"{method}: no method of this project streams both ways")

    async def _check(self, method: str, request: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        if request is not _MALFORMED:
            return
        self._on_malformed(method)
        held_back = self._log_limiter.permit(method)
        if held_back is not None:
            _log.warning("%s of %s refused: no protobuf (held_back=%d)", method, context.peer(), held_back)
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is not the protobuf message of this method")
