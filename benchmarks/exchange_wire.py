"""Bytes on the wire of whole exchanges: the project's own transports on loopback, with a relay between that counts.

Counted is what TCP carries in both directions: HTTP/2 frames, headers, window updates, pings. What TCP and IP add to
each packet is not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import Final

from benchmarks.exchange_parts import LEGS, Meeting
from gossiper.core.messages import EchoRequest, GossipDigestAck, Reply, Request
from gossiper.metrics import GossipMetrics
from gossiper.transport.grpc import GrpcTransport

_TIMEOUT_SECONDS: Final = 10.0
_CHUNK_BYTES: Final = 256 * 1024


class Relay:
    """Passes bytes on and counts them by direction."""

    def __init__(self, target: str) -> None:
        self.counts: Counter[str] = Counter()
        self.connections = 0
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Listen, and return where."""
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def drained(self) -> None:
        """Wait until the connections are closed by those who began them."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_TIMEOUT_SECONDS)

    async def stop(self) -> None:
        """End everything."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def taken(self) -> dict[str, int]:
        """Bytes since the last call."""
        counts, self.counts = dict(self.counts), Counter()
        return counts

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        host, _, port = self._target.rpartition(":")
        there, to_there = await asyncio.open_connection(host, int(port))
        for name, source, sink in (("out", reader, to_there), ("back", there, writer)):
            task = asyncio.create_task(self._pump(name, source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, name: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK_BYTES):
                self.counts[name] += len(data)
                sink.write(data)
                await sink.drain()
        sink.close()


@dataclass(frozen=True, slots=True)
class WireBytes:
    """Per leg, the mean of warm exchanges; and the first one, connection set-up included."""

    warm: dict[str, float]
    cold: dict[str, int]


async def _measure(meeting: Meeting, form: str, exchanges: int) -> WireBytes:
    now = meeting.at(0)

    def handler(request: Request) -> Reply:
        if isinstance(request, EchoRequest):
            raise TypeError("nobody sends an ECHO here")
        return meeting.answer(request, now)

    server = GrpcTransport("127.0.0.1:0", metrics=GossipMetrics())
    client = GrpcTransport("127.0.0.1:0", metrics=GossipMetrics())
    relay = Relay(await server.start(handler))
    await client.start(handler)
    at = await relay.start()

    async def legs() -> dict[str, int]:
        syn = meeting.syn(form, now)
        ack = await client.send(at, syn, _TIMEOUT_SECONDS)
        first = relay.taken()
        if not isinstance(ack, GossipDigestAck):
            raise TypeError(type(ack).__name__)
        for request in meeting.conclude(syn, ack, now):
            await client.send(at, request, _TIMEOUT_SECONDS)
        return {"syn": first["out"], "ack": first["back"], "ack2": sum(relay.taken().values())}

    try:
        cold = await legs()
        total: Counter[str] = Counter()
        for second in range(1, exchanges + 1):
            now = meeting.at(second)
            total.update(await legs())
    finally:
        await client.stop(0.0)
        await relay.drained()
        await server.stop(0.0)
        await relay.stop()
    return WireBytes({leg: total[leg] / exchanges for leg in LEGS}, cold)


def wire_bytes(meeting: Meeting, form: str, exchanges: int) -> WireBytes:
    """Bytes on a real connection, over so many exchanges after the first."""
    return asyncio.run(_measure(meeting, form, exchanges))
