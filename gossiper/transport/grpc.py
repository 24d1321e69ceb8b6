"""The transport over gRPC (``grpc.aio``): one listener, one long-lived channel per peer.

Bytes go through unchanged: the codec decodes and refuses, so that whatever a peer sends is checked and counted in one
place. The options follow what gRPC does by default and should not here: sharing a listening port, waiting 120 s before
it connects again, waiting for ever for an answer.

A process uses one event loop for gRPC, and never forks after it (both are limits of grpcio).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
import grpc.aio

from gossiper import limits
from gossiper.core.endpoints import format_endpoint, parse_endpoint
from gossiper.core.messages import Reply, Request
from gossiper.errors import LocalStateError, PeerProtocolError, TransportError
from gossiper.metrics import GossipMetrics
from gossiper.transport.base import Handler
from gossiper.transport.compression import compression_of
from gossiper.transport.inbound import Inbound
from gossiper.v1 import gossip_pb2
from gossiper.wire import codec

#: A peer that has opened a call sends its message at once; a call without one holds a place.
REQUEST_SECONDS_MAX: Final = 10.0
#: gRPC puts the details of a status into HTTP/2 trailers, which are limited to 8 KiB.
_DETAIL_CHARACTERS_MAX: Final = 300

#: Two are needed (handler done, task around it done), measured with grpcio 1.85.
_TURNS_AFTER_STOP: Final = 4

_SERVICE: Final = gossip_pb2.DESCRIPTOR.services_by_name["GossipService"].full_name
#: Method name of each kind of request.
_METHODS: Final = {"syn": "Exchange", "ack2": "Deliver", "echo_request": "Echo"}

_Options = Sequence[tuple[str, int]]
_COMMON_OPTIONS: Final[_Options] = (
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", limits.MESSAGE_BYTES_MAX),
    # A dead connection is noticed after keepalive_time + ping_timeout, not after the minutes that TCP takes.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)
SERVER_OPTIONS: Final[_Options] = (
    *_COMMON_OPTIONS,
    # Otherwise a second process binds the same port without an error, and takes half of the calls.
    ("grpc.so_reuseport", 0),
    # Silent sockets go after 3 s. Idle connections after two minutes at the default interval: of 32 partners one has
    # not been met for that long with a probability of 2 %, for one minute with 15 %.
    ("grpc.server_handshake_timeout_ms", 3_000),
    ("grpc.max_connection_idle_ms", 120_000),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 5_000),
    # Not below 100: a first burst arrives before the peer knows the setting. The number of calls is what sheds load.
    ("grpc.max_concurrent_streams", 256),
)
CHANNEL_OPTIONS: Final[_Options] = (
    *_COMMON_OPTIONS,
    # gRPC's own back-off grows to 120 s: a node that is back would be convicted for our silence.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.enable_http_proxy", 0),
    # Connections are not shared with other channels of the process: closing one channel closes its connection.
    ("grpc.use_local_subchannel_pool", 1),
)

#: What a refused peer is told; every other reason is INVALID_ARGUMENT.
_STATUS_OF_REASON: Final = {
    "cluster_mismatch": grpc.StatusCode.FAILED_PRECONDITION,
    "protocol_version": grpc.StatusCode.FAILED_PRECONDITION,
    "not_running": grpc.StatusCode.FAILED_PRECONDITION,
    "too_large": grpc.StatusCode.RESOURCE_EXHAUSTED,
}

#: (TransportError.reason, retriable) of each status; RESOURCE_EXHAUSTED and FAILED_PRECONDITION depend on the details.
_FAILURE_OF_STATUS: Final = {
    grpc.StatusCode.DEADLINE_EXCEEDED: ("deadline", True),
    grpc.StatusCode.UNAVAILABLE: ("unavailable", True),
    grpc.StatusCode.CANCELLED: ("unavailable", True),
    grpc.StatusCode.RESOURCE_EXHAUSTED: ("unavailable", True),
    grpc.StatusCode.ABORTED: ("unavailable", True),
    grpc.StatusCode.INTERNAL: ("unavailable", True),
    grpc.StatusCode.UNKNOWN: ("unavailable", True),
    grpc.StatusCode.DATA_LOSS: ("unavailable", True),
    grpc.StatusCode.FAILED_PRECONDITION: ("refused", False),
    grpc.StatusCode.INVALID_ARGUMENT: ("refused", False),
    grpc.StatusCode.OUT_OF_RANGE: ("refused", False),
    grpc.StatusCode.NOT_FOUND: ("refused", False),
    grpc.StatusCode.ALREADY_EXISTS: ("refused", False),
    grpc.StatusCode.UNIMPLEMENTED: ("refused", False),
    grpc.StatusCode.PERMISSION_DENIED: ("refused", False),
    grpc.StatusCode.UNAUTHENTICATED: ("refused", False),
}


if TYPE_CHECKING:  # generic in the stubs only
    _Context = grpc.aio.ServicerContext[bytes, bytes]
    _Call = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


@dataclass(slots=True)
class _Peer:
    channel: grpc.aio.Channel
    calls: dict[str, _Call]
    under_way: int = 0


class GrpcTransport:
    """A :class:`~gossiper.transport.base.Transport` over gRPC. It starts once, inside a running event loop.

    Args:
        listen: ``host:port`` to bind; port 0 takes a free one. A host name is bound at all of its addresses.
        metrics: bumped here; the names are in :mod:`gossiper.metrics`.
        services: each is called with the server before it starts, to add an application's own services to it.
    """

    def __init__(
        self,
        listen: str,
        *,
        metrics: GossipMetrics,
        services: Sequence[Callable[[grpc.aio.Server], None]] = (),
        channels_max: int = limits.CHANNELS_MAX,
    ) -> None:
        self._listen = listen
        self._metrics = metrics
        self._services = tuple(services)
        self._channels_max = channels_max
        self._server: grpc.aio.Server | None = None
        self._inbound: Inbound | None = None
        self._peers: OrderedDict[str, _Peer] = OrderedDict()
        self._running = False
        self._stopping = asyncio.Lock()

    # -- receiving ---------------------------------------------------------------------------------------------------

    async def start(self, handler: Handler) -> str:
        """As the Protocol says."""
        if self._inbound is not None:
            raise LocalStateError("a transport starts once; make a new one")
        host, port = parse_endpoint(self._listen)
        addresses = await _addresses(host, port)
        inbound = self._inbound = Inbound(self._metrics, handler, asyncio.get_running_loop().time)
        server = grpc.aio.server(options=list(SERVER_OPTIONS), maximum_concurrent_rpcs=limits.INBOUND_RPCS_MAX)
        try:
            methods = {method: _method(inbound, kind) for kind, method in _METHODS.items()}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, methods),))
            for service in self._services:
                service(server)
            port = _bind_all(server, addresses, port)
            await server.start()
        except BaseException:
            await server.stop(None)
            raise
        self._server = server
        self._running = True
        return format_endpoint(host, port)

    # -- sending -----------------------------------------------------------------------------------------------------

    async def send(self, peer: str, request: Request, timeout_seconds: float) -> Reply:
        """As the Protocol says."""
        try:
            return await self._send(peer, request, timeout_seconds)
        except TransportError as error:
            self._metrics.increment("gossiper_send_failures_total", reason=error.reason)
            raise

    async def _send(self, peer: str, request: Request, timeout_seconds: float) -> Reply:
        if not self._running:
            raise TransportError("this node is not running", reason="unavailable", retriable=False)
        data = codec.encode(request)
        if len(data) > limits.MESSAGE_BYTES_MAX:
            detail = f"{peer}: a message of {len(data)} bytes, the limit is {limits.MESSAGE_BYTES_MAX}"
            raise TransportError(detail, reason="too_large", retriable=False)
        kind = codec.KINDS[type(request)]
        self._metrics.count_message(kind, codec.form_of(request), "sent", len(data))
        answer = await self._call(peer, kind, data, compression_of(request, len(data)), timeout_seconds)
        try:
            reply = codec.decode_reply_to(request, answer)
        except PeerProtocolError as error:
            self._metrics.increment("gossiper_refused_total", reason=error.reason)
            raise TransportError(f"{peer} answered: {error}", reason="malformed", retriable=False) from error
        self._metrics.count_message(codec.KINDS[type(reply)], codec.form_of(reply), "received", len(answer))
        return reply

    async def _call(
        self, peer: str, kind: str, data: bytes, compression: grpc.Compression, timeout_seconds: float
    ) -> bytes:
        entry = self._peer(peer)
        entry.under_way += 1
        try:
            return await entry.calls[kind](data, timeout=timeout_seconds, compression=compression)
        except grpc.aio.AioRpcError as error:
            raise _failure(peer, error.code(), error.details() or "") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._running or (task is not None and task.cancelling()):
                raise
            # Nobody cancelled the caller: stop() closed the channel below it.
            raise TransportError(f"{peer}: this node stopped", reason="unavailable", retriable=False) from None
        finally:
            entry.under_way -= 1
            await self._close_surplus()

    def _peer(self, peer: str) -> _Peer:
        """The channel of a peer, as the one used last."""
        entry = self._peers.get(peer)
        if entry is None:
            channel = grpc.aio.insecure_channel(_target(peer), options=list(CHANNEL_OPTIONS))
            calls: dict[str, _Call] = {
                kind: channel.unary_unary(f"/{_SERVICE}/{method}") for kind, method in _METHODS.items()
            }
            entry = self._peers[peer] = _Peer(channel, calls)
            self._metrics.set("gossiper_channels", len(self._peers))
        self._peers.move_to_end(peer)
        return entry

    async def _close_surplus(self) -> None:
        """Close the channels that were not used for longest and carry no call."""
        surplus = len(self._peers) - self._channels_max
        if surplus <= 0:
            return
        idle = [peer for peer, entry in self._peers.items() if not entry.under_way][:surplus]
        closing = [self._peers.pop(peer).channel for peer in idle]
        self._metrics.set("gossiper_channels", len(self._peers))
        for channel in closing:
            await channel.close()

    async def stop(self, grace_seconds: float) -> None:
        """As the Protocol says. New calls from peers are told UNAVAILABLE from the beginning of the grace on."""
        self._running = False
        async with self._stopping:
            channels = [entry.channel for entry in self._peers.values()]
            ends = [channel.close(grace_seconds) for channel in channels]
            if self._server is not None:
                ends.append(self._server.stop(grace_seconds))
            await asyncio.gather(*ends)
            # gRPC's own task around each call ends in the turns of the loop after its handler has; leave none behind.
            for _ in range(_TURNS_AFTER_STOP):
                await asyncio.sleep(0)
            self._server = None
            self._peers.clear()
            self._metrics.set("gossiper_channels", 0)


# ------------------------------------------------------------------------------------------------------- one request


def _method(inbound: Inbound, kind: str) -> grpc.RpcMethodHandler[bytes, bytes]:
    """The handler of one method.

    On the wire one request is a stream of one. Taken as a stream, a message that gRPC itself has refused for its size
    can be seen and counted; a unary handler would never be called.
    """

    async def serve(_: object, context: _Context) -> bytes:
        return await _serve(inbound, kind, context)

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_unary_rpc_method_handler(serve)
    return handler


async def _serve(inbound: Inbound, kind: str, context: _Context) -> bytes:
    peer = _peer_host(context.peer())
    try:
        async with asyncio.timeout(REQUEST_SECONDS_MAX):
            data: Any = await context.read()
    except TimeoutError:
        late = PeerProtocolError("malformed", f"no message within {REQUEST_SECONDS_MAX:g} s")
        inbound.refuse(kind, peer, late)
        await _abort(context, late.reason, late.detail)
    if data is grpc.aio.EOF:
        await _no_message(inbound, kind, peer, context)
    try:
        reply, answer = inbound.respond(kind, data, peer)
    except PeerProtocolError as error:
        await _abort(context, error.reason, error.detail)
    except TransportError as error:
        if error.reason == "too_large":
            await _abort(context, error.reason, str(error))
        await context.abort(grpc.StatusCode.INTERNAL, str(error))
    else:
        compression = compression_of(reply, len(answer))
        if compression is not grpc.Compression.NoCompression:
            context.set_compression(compression)
            # It takes effect with metadata that are sent by hand only, https://github.com/grpc/grpc/issues/34690.
            await context.send_initial_metadata(())
        return answer


async def _no_message(inbound: Inbound, kind: str, peer: str, context: _Context) -> NoReturn:
    """A call without a message: gRPC has refused it as too large, and ended the call; or there really was none."""
    error = PeerProtocolError("malformed", "a call without a message")
    try:
        await _abort(context, error.reason, error.detail)
    except grpc.aio.AbortError:
        inbound.refuse(kind, peer, error)
        raise
    except Exception:
        inbound.refuse(kind, peer, PeerProtocolError("too_large", f"more than {limits.MESSAGE_BYTES_MAX} bytes"))
        raise


# ------------------------------------------------------------------------------------------------------ small helpers


def _target(peer: str) -> str:
    """An address goes past the resolver; only names need one."""
    host, _ = parse_endpoint(peer)
    if ":" in host:
        return f"ipv6:{peer}"
    return f"ipv4:{peer}" if host.replace(".", "").isdigit() else f"dns:///{peer}"


def _peer_host(peer: str) -> str:
    """The address of a caller without its port, which is another one for each connection."""
    _, _, address = urllib.parse.unquote(peer).partition(":")
    return address.rpartition(":")[0] or peer


async def _abort(context: _Context, reason: str, detail: str) -> NoReturn:
    status = _STATUS_OF_REASON.get(reason, grpc.StatusCode.INVALID_ARGUMENT)
    await context.abort(status, f"{reason}: {detail}"[:_DETAIL_CHARACTERS_MAX])


def _failure(peer: str, status: grpc.StatusCode, details: str) -> TransportError:
    reason, retriable = _FAILURE_OF_STATUS.get(status, ("unavailable", True))
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and (
        details.startswith("too_large:") or "larger than max" in details
    ):
        reason, retriable = "too_large", False
    if status is grpc.StatusCode.FAILED_PRECONDITION and details.startswith("not_running:"):
        retriable = True
    what = "refused" if reason == "refused" else status.name
    return TransportError(f"{peer} {what}: {details}", reason=reason, retriable=retriable)


async def _addresses(host: str, port: int) -> list[str]:
    """What to bind for ``host``: itself, or all addresses of a name.

    gRPC takes it for a success when it can bind one of them, and then only some peers could connect.
    """
    if ":" in host or host.replace(".", "").isdigit():
        return [host]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise LocalStateError(f"cannot listen on {format_endpoint(host, port)}: {error.strerror}") from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _bind_all(server: grpc.aio.Server, addresses: list[str], port: int) -> int:
    """Bind all addresses of a host at one port and return it; those that this machine does not have may be missing."""
    bound = False
    missing: LocalStateError | None = None
    for address in addresses:
        try:
            _try(address, port)
        except OSError as error:
            failure = LocalStateError(_cannot_listen(format_endpoint(address, port), error.errno or 0))
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                raise failure from error
            missing = failure
            continue
        try:
            port = server.add_insecure_port(format_endpoint(address, port))
        except RuntimeError as error:
            raise LocalStateError(_cannot_listen(format_endpoint(address, port), errno.EADDRINUSE)) from error
        bound = True
    if missing is not None and not bound:
        raise missing
    return port


def _try(address: str, port: int) -> None:
    """Bind a plain socket for a moment: it tells why it cannot be done, gRPC only writes that to stderr."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))


def _cannot_listen(address: str, number: int) -> str:
    way_out = {
        errno.EADDRINUSE: "; stop the process that uses it, or choose another port",
        errno.EADDRNOTAVAIL: "; this machine has no such address",
        errno.EACCES: "; ports below 1024 need a privilege",
    }.get(number, "")
    return f"cannot listen on {address}: {os.strerror(number)}{way_out}"
