"""The in-process twin of the gRPC transport: real bytes through the real codec, faults at will, no sockets.

It draws no random numbers, and its only clock is that of the event loop, so a loop with virtual time replays it
exactly. What differs from a network: an intact link has no latency and loses nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from gossiper import limits
from gossiper.core.endpoints import format_endpoint, parse_endpoint
from gossiper.core.messages import Reply, Request
from gossiper.errors import LocalStateError, PeerProtocolError, TransportError
from gossiper.metrics import GossipMetrics
from gossiper.transport.base import Handler
from gossiper.transport.inbound import Inbound
from gossiper.wire import codec

#: The first port given to whoever asks for port 0.
PORT_FIRST: Final = 7000


class MemoryNetwork:
    """All nodes of one process, and the faults between them.

    ``message_bytes[(source, target)]`` and ``messages[(source, target)]`` count what was put on each link, lost or not.
    """

    def __init__(self) -> None:
        self.messages: Counter[tuple[str, str]] = Counter()
        self.message_bytes: Counter[tuple[str, str]] = Counter()
        self._listening: dict[str, MemoryTransport] = {}
        self._cut: set[tuple[str, str]] = set()
        self._hanging: set[str] = set()
        self._waiting: dict[asyncio.Future[None], tuple[str, str]] = {}

    def cut(self, source: str, target: str, *, both: bool = True) -> None:
        """Lose everything from ``source`` to ``target``, and back if ``both``: calls end at their deadline."""
        self._cut.add((source, target))
        if both:
            self._cut.add((target, source))

    def heal(self, source: str, target: str, *, both: bool = True) -> None:
        """Undo :meth:`cut` for later messages; what was lost stays lost."""
        self._cut.discard((source, target))
        if both:
            self._cut.discard((target, source))

    def hang(self, endpoint: str) -> None:
        """Stop a node as SIGSTOP does: it takes connections, but neither answers nor sends."""
        self._hanging.add(endpoint)

    def resume(self, endpoint: str) -> None:
        """Undo :meth:`hang`; calls that have not reached their deadline go on."""
        self._hanging.discard(endpoint)
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    # -- for MemoryTransport -----------------------------------------------------------------------------------------

    def _listen(self, transport: MemoryTransport, endpoint: str) -> str:
        host, port = parse_endpoint(endpoint)
        if port == 0:
            port = PORT_FIRST
            while format_endpoint(host, port) in self._listening:
                port += 1
        canonical = format_endpoint(host, port)
        if canonical in self._listening:
            raise LocalStateError(f"cannot listen on {canonical}: the address is in use; choose another port")
        self._listening[canonical] = transport
        return canonical

    def _leave(self, endpoint: str) -> None:
        """Nobody listens there any more: calls that wait for it are reset."""
        del self._listening[endpoint]
        self._reset(1, endpoint)

    def _reset(self, end: int, endpoint: str) -> None:
        for future, link in self._waiting.items():
            if link[end] == endpoint and not future.done():
                future.set_exception(_unavailable(endpoint, "the connection was closed"))

    async def _wait(self, link: tuple[str, str]) -> None:
        """Until something changed that may concern a call on ``link``."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = link
        try:
            await future
        finally:
            del self._waiting[future]

    async def _carry(self, source: str, target: str, kind: str, data: bytes) -> bytes:
        """One message there and its answer back; never returns when one of them is lost."""
        link = (source, target)
        await asyncio.sleep(0)
        await self._cross(source, target, link, data)
        while target in self._hanging:
            await self._wait(link)
        receiver = self._listening.get(target)
        if receiver is None:
            raise _unavailable(target, "connection refused")
        answer = receiver.receive(kind, data, source)
        await asyncio.sleep(0)
        await self._cross(target, source, link, answer)
        return answer

    async def _cross(self, origin: str, destination: str, link: tuple[str, str], data: bytes) -> None:
        while origin in self._hanging:
            await self._wait(link)
        self.messages[origin, destination] += 1
        self.message_bytes[origin, destination] += len(data)
        if (origin, destination) in self._cut:
            while True:
                await self._wait(link)


class MemoryTransport:
    """A :class:`~gossiper.transport.base.Transport` over a :class:`MemoryNetwork`. It starts once."""

    def __init__(self, network: MemoryNetwork, endpoint: str, *, metrics: GossipMetrics | None = None) -> None:
        self._network = network
        self._endpoint = endpoint
        self._metrics = GossipMetrics() if metrics is None else metrics
        self._inbound: Inbound | None = None
        self._running = False
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self, handler: Handler) -> str:
        """As the Protocol says; port 0 takes the first free one from 7000 on."""
        if self._inbound is not None:
            raise LocalStateError("a transport starts once; make a new one")
        self._endpoint = self._network._listen(self, self._endpoint)  # noqa: SLF001 - the two are one thing
        self._inbound = Inbound(self._metrics, handler, asyncio.get_running_loop().time)
        self._running = True
        return self._endpoint

    def receive(self, kind: str, data: bytes, source: str) -> bytes:
        """Take bytes that ``source`` sent, as they came: the way to hand a node bytes that no codec made.

        Raises:
            PeerProtocolError: they are refused.
            TransportError: this transport does not listen, or the answer is too large.
        """
        if self._inbound is None or not self._running:
            raise _unavailable(self._endpoint, "connection refused")
        return self._inbound.answer(kind, data, source)

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
            raise TransportError(f"{len(data)} bytes are too large", reason="too_large", retriable=False)
        kind = codec.KINDS[type(request)]
        self._metrics.count_message(kind, codec.form_of(request), "sent", len(data))
        self._under_way += 1
        self._idle.clear()
        try:
            async with asyncio.timeout(timeout_seconds):
                answer = await self._network._carry(self._endpoint, peer, kind, data)  # noqa: SLF001 - as above
        except TimeoutError:
            raise TransportError(f"{peer}: no answer in {timeout_seconds:g} s", reason="deadline") from None
        except PeerProtocolError as error:
            raise refused(peer, error.reason, error.detail) from None
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        try:
            reply = codec.decode_reply_to(request, answer)
        except PeerProtocolError as error:
            self._metrics.increment("gossiper_refused_total", reason=error.reason)
            raise TransportError(f"{peer} answered: {error}", reason="malformed", retriable=False) from error
        self._metrics.count_message(codec.KINDS[type(reply)], codec.form_of(reply), "received", len(answer))
        return reply

    async def stop(self, grace_seconds: float) -> None:
        """As the Protocol says."""
        if self._running:
            self._running = False
            self._network._leave(self._endpoint)  # noqa: SLF001 - the two are one thing
        try:
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()
        except TimeoutError:
            self._network._reset(0, self._endpoint)  # noqa: SLF001 - the two are one thing
            await self._idle.wait()


def _unavailable(peer: str, detail: str) -> TransportError:
    return TransportError(f"{peer}: {detail}", reason="unavailable")


def refused(peer: str, reason: str, detail: str) -> TransportError:
    """What a sender is told of a refusal: only ``not_running`` passes by itself."""
    if reason == "too_large":
        return TransportError(f"{peer} refused: {reason}: {detail}", reason="too_large", retriable=False)
    return TransportError(f"{peer} refused: {reason}: {detail}", reason="refused", retriable=reason == "not_running")
