"""A relay between processes on loopback that counts what really travels, and reads HTTP/2 and gRPC while doing so.

The bytes of messages are counted here without asking the library: frames are taken apart, messages are added up. What
TCP and IP add to each packet is not counted. With ``delay_seconds`` every byte arrives so much later: a longer wire.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, fields
from typing import Final

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_READ_BYTES: Final = 256 * 1024
_FRAME_HEAD: Final = 9
_MESSAGE_HEAD: Final = 5
_DATA, _HEADERS, _CONTINUATION = 0, 1, 9
_SETTLE_SECONDS: Final = 0.05


@dataclass(slots=True)
class WireCounts:
    """Bytes that passed, and what they were. ``total`` is the sum of preface, frame heads and the four kinds."""

    total: int = 0
    message_bytes: int = 0
    """Serialized messages, without the five bytes in front of each."""
    messages: int = 0
    header_bytes: int = 0
    """HEADERS and CONTINUATION: methods, deadlines, status."""
    control_bytes: int = 0
    """SETTINGS, WINDOW_UPDATE, PING, RST_STREAM, GOAWAY."""
    frames: int = 0
    calls: int = 0
    """Streams that a client opened."""

    def add(self, other: WireCounts) -> None:
        """Sum up."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


class FrameReader:
    """Takes one direction of one connection apart. ``from_client``: it begins with the preface, and opens streams."""

    def __init__(self, *, from_client: bool) -> None:
        self.counts = WireCounts()
        self._from_client = from_client
        self._left = b""
        self._preface_left = len(_PREFACE) if from_client else 0
        self._open: dict[int, tuple[bytes, int]] = {}  # stream: head of a message so far, bytes of it to come
        self._streams: set[int] = set()

    def feed(self, data: bytes) -> None:
        """The next bytes."""
        self.counts.total += len(data)
        skipped = min(self._preface_left, len(data))
        self._preface_left -= skipped
        held = self._left + data[skipped:]
        at = 0
        while len(held) - at >= _FRAME_HEAD:
            length = int.from_bytes(held[at : at + 3], "big")
            if len(held) - at - _FRAME_HEAD < length:
                break
            kind = held[at + 3]
            stream = int.from_bytes(held[at + 5 : at + 9], "big") & 0x7FFFFFFF
            self._frame(kind, stream, held[at + _FRAME_HEAD : at + _FRAME_HEAD + length])
            at += _FRAME_HEAD + length
        self._left = held[at:]

    def _frame(self, kind: int, stream: int, payload: bytes) -> None:
        self.counts.frames += 1
        if kind == _DATA:
            self._data(stream, payload)
        elif kind in (_HEADERS, _CONTINUATION):
            self.counts.header_bytes += len(payload)
            if self._from_client and stream not in self._streams:
                self._streams.add(stream)
                self.counts.calls += 1
        else:
            self.counts.control_bytes += len(payload)

    def _data(self, stream: int, payload: bytes) -> None:
        head, left = self._open.pop(stream, (b"", 0))
        at = 0
        while at < len(payload) or left:
            if left:
                taken = min(left, len(payload) - at)
                left, at = left - taken, at + taken
                if left:
                    break
                self.counts.messages += 1
                continue
            taken = min(_MESSAGE_HEAD - len(head), len(payload) - at)
            head, at = head + payload[at : at + taken], at + taken
            if len(head) < _MESSAGE_HEAD:
                break
            left, head = int.from_bytes(head[1:], "big"), b""
            self.counts.message_bytes += left
            if not left:
                self.counts.messages += 1
        if head or left:
            self._open[stream] = (head, left)


class CountingRelay:
    """Listens for one target and passes on what comes, both ways."""

    def __init__(self, target_port: int, *, delay_seconds: float = 0.0) -> None:
        self._target_port = target_port
        self._delay = delay_seconds
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._readers: list[FrameReader] = []
        self.connections = 0

    async def start(self) -> str:
        """Listen, and return where."""
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """End everything."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def taken(self) -> WireCounts:
        """What has passed since the last call."""
        sums = WireCounts()
        for reader in self._readers:
            sums.add(reader.counts)
            reader.counts = WireCounts()
        return sums

    @property
    def total(self) -> int:
        """Bytes since :meth:`taken` was called."""
        return sum(reader.counts.total for reader in self._readers)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there, to_there = await asyncio.open_connection("127.0.0.1", self._target_port)
        for from_client, source, sink in ((True, reader, to_there), (False, there, writer)):
            counter = FrameReader(from_client=from_client)
            self._readers.append(counter)
            queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
            for pump in (self._read(source, queue, counter), self._write(queue, sink)):
                task = asyncio.create_task(pump)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _read(
        self, source: asyncio.StreamReader, queue: asyncio.Queue[tuple[float, bytes]], counter: FrameReader
    ) -> None:
        clock = asyncio.get_running_loop().time
        data = b"-"
        while data:
            data = b""
            with contextlib.suppress(OSError):
                data = await source.read(_READ_BYTES)
            counter.feed(data)
            queue.put_nowait((clock() + self._delay, data))

    async def _write(self, queue: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        with contextlib.suppress(OSError):
            while True:
                due, data = await queue.get()
                if not data:
                    break
                if self._delay and (wait := due - clock()) > 0:
                    await asyncio.sleep(wait)
                sink.write(data)
                await sink.drain()
        sink.close()


async def settled(relays: list[CountingRelay]) -> WireCounts:
    """What has passed, when nothing passes any more."""
    before = -1
    while (now := sum(relay.total for relay in relays)) != before:
        before = now
        await asyncio.sleep(_SETTLE_SECONDS)
    sums = WireCounts()
    for relay in relays:
        sums.add(relay.taken())
    return sums
