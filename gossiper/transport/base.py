"""The seam between a gossiper and the network: one Protocol each way.

A transport encodes every message to bytes with ``gossiper.wire.codec``, the in-memory one too, and calls the handler
of the receiving node with messages that have passed the codec's validation.
"""

from __future__ import annotations

from typing import Protocol

from gossiper.core.messages import Reply, Request


class Handler(Protocol):
    """The receiving side; implemented by the node."""

    def __call__(self, request: Request) -> Reply:
        """Answer one request. Never blocks.

        Raises:
            PeerProtocolError: the request is refused; nothing was applied. The transport tells the peer the reason.
        """
        ...


class Transport(Protocol):
    """The sending side, and the life of the listener."""

    async def start(self, handler: Handler) -> str:
        """Listen, and return the canonical endpoint listened on (the port filled in when 0 was asked for).

        Raises:
            LocalStateError: cannot listen, for example because the port is in use.
        """
        ...

    async def send(self, peer: str, request: Request, timeout_seconds: float) -> Reply:
        """Deliver ``request`` to the endpoint ``peer`` and return its answer.

        Raises:
            TransportError: no answer within ``timeout_seconds``, or none is possible now. ``reason`` is one of
                deadline, unavailable, refused, malformed, too_large.
        """
        ...

    async def stop(self, grace_seconds: float) -> None:
        """Stop listening, let calls under way finish for ``grace_seconds``, close all channels. Idempotent."""
        ...
