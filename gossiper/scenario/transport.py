"""A transport around a transport, in which a scenario loses single kinds of message, holds them back, repeats them.

What concerns whole links (cuts, delays) is done on the network itself; this is for "exactly this message was lost" and
"this message came late", which on a real network cannot be asked for. The same code runs on both backends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Final

from gossiper.core.messages import EchoRequest, GossipDigestAck, GossipDigestAck2, GossipDigestSyn, Reply, Request
from gossiper.errors import PeerProtocolError, TransportError
from gossiper.transport.base import Handler, Transport

#: The word of a scenario for each type of message that can be lost or held.
KIND_OF: Final[Mapping[type[Request] | type[GossipDigestAck], str]] = {
    GossipDigestSyn: "syn",
    GossipDigestAck: "ack",
    GossipDigestAck2: "ack2",
    EchoRequest: "echo",
}


class ScenarioTransport:
    """A :class:`~gossiper.transport.base.Transport` that does to messages what a scenario says.

    Args:
        inner: what really sends and listens.
        routes: where an endpoint is really reached, when that is another address; without an entry there nobody is.
            None: the endpoints are the addresses.
    """

    def __init__(self, inner: Transport, routes: Mapping[str, str] | None = None) -> None:
        self._inner = inner
        self._routes = routes
        self._handler: Handler | None = None
        self._lost: set[tuple[str, str]] = set()
        self._held: set[tuple[str, str]] = set()
        self._copied: set[tuple[str, str]] = set()
        self._late: list[Request] = []
        self._late_answers = 0
        self._released = asyncio.Event()

    # -- what a scenario does ----------------------------------------------------------------------------------------

    def lose(self, kind: str, peer: str) -> None:
        """Lose every message of ``kind`` that this node sends to ``peer``: its calls end at their deadline."""
        self._lost.add((kind, peer))

    def hold(self, kind: str, peer: str) -> None:
        """Keep every message of ``kind`` that comes from ``peer`` until :meth:`release`; its sender sees a failure."""
        self._held.add((kind, peer))

    def copy(self, kind: str, peer: str) -> None:
        """Let messages of ``kind`` from ``peer`` in, and again at :meth:`release`."""
        self._copied.add((kind, peer))

    def release(self) -> int:
        """Hand over all that was held or copied, in the order in which it came; return how many messages that were."""
        late, self._late = self._late, []
        answers, self._late_answers = self._late_answers, 0
        self._held.clear()
        self._copied.clear()
        self._released.set()
        self._released = asyncio.Event()
        if self._handler is not None:
            for request in late:
                # Whoever sent it does not wait for an answer any more.
                with contextlib.suppress(PeerProtocolError):
                    self._handler(request)
        return len(late) + answers

    def heal(self) -> None:
        """Lose nothing any more."""
        self._lost.clear()

    # -- a transport -------------------------------------------------------------------------------------------------

    async def start(self, handler: Handler) -> str:
        """As the Protocol says."""
        self._handler = handler
        return await self._inner.start(self._receive)

    def _receive(self, request: Request) -> Reply:
        if self._handler is None:
            raise AssertionError("nothing arrives before the start")
        key = (KIND_OF[type(request)], request.sender.endpoint)
        if key in self._held:
            self._late.append(request)
            raise PeerProtocolError("not_running", "held back by the scenario")
        if key in self._copied:
            self._late.append(request)
        return self._handler(request)

    async def send(self, peer: str, request: Request, timeout_seconds: float) -> Reply:
        """As the Protocol says."""
        if (KIND_OF[type(request)], peer) in self._lost:
            await asyncio.sleep(timeout_seconds)
            raise TransportError(f"{peer}: no answer in {timeout_seconds:g} s", reason="deadline")
        address = peer if self._routes is None else self._routes.get(peer)
        if address is None:
            raise TransportError(f"{peer}: connection refused", reason="unavailable")
        reply = await self._inner.send(address, request, timeout_seconds)
        if isinstance(reply, GossipDigestAck) and ("ack", peer) in self._held:
            self._late_answers += 1
            await self._released.wait()
        return reply

    async def stop(self, grace_seconds: float) -> None:
        """As the Protocol says."""
        self._released.set()
        await self._inner.stop(grace_seconds)
