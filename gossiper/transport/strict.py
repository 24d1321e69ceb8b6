"""What is no protobuf is refused in one line, at a limited rate, also by generated servicers.

gRPC parses a request before it calls a servicer, and logs a traceback for each one that it cannot parse: whoever sends
noise would fill the disk. Gossip itself takes bytes (``gossiper.transport.grpc``); this is for services made of
generated code, whose methods take one request and give one answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from gossiper.transport.inbound import LogLimiter

logger = logging.getLogger(__name__)

REFUSAL: Final = "the request is not the protobuf message of this method"


class _Malformed:
    """Stands where a request would be."""


_MALFORMED: Final = _Malformed()


def strict(server: grpc.aio.Server, clock: Callable[[], float] = time.monotonic) -> grpc.aio.Server:
    """A server to give to ``add_...Servicer_to_server``; what is added goes to ``server`` with its parsing replaced.

    Args:
        server: has not started. What is no server of gRPC, but stands before one, stays what it is: whoever wrapped it
            first counts.
        clock: seconds of any monotonic clock.
    """
    if not isinstance(server, grpc.aio.Server):
        return server
    return cast("grpc.aio.Server", _StrictServer(server, clock))


class _StrictServer:
    """The part of a server that generated code uses."""

    def __init__(self, server: grpc.aio.Server, clock: Callable[[], float]) -> None:
        self._server = server
        self._clock = clock
        self._limiter = LogLimiter()

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
        if handler.unary_unary is None:
            raise TypeError(f"{method}: takes or gives a stream")
        parse: Callable[[bytes], object] = handler.request_deserializer

        def tolerant(data: bytes) -> object:
            try:
                return parse(data)
            except DecodeError:
                return _MALFORMED

        async def serve(request: object, context: grpc.aio.ServicerContext[Any, Any]) -> object:
            if request is _MALFORMED:
                self._log(method, context.peer())
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, REFUSAL)
            return await handler.unary_unary(request, context)

        made: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            serve, request_deserializer=tolerant, response_serializer=handler.response_serializer
        )
        return made

    def _log(self, method: str, peer: str) -> None:
        held_back = self._limiter.permit((method, ""), self._clock())
        if held_back is not None:
            logger.warning("request refused method=%s peer=%s: no protobuf held_back=%d", method, peer, held_back)
