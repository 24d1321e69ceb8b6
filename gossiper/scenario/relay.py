"""TCP relays between nodes on loopback: a network that can be cut, one way or both, and slowed, without root.

There is one listener for each pair of a node and an endpoint that it may call, so that a relay knows both ends of every
connection. What is lost on a cut link stays lost: a connection that lost something is broken once the link is whole,
as a stream with a hole in it is of no use.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from gossiper.scenario.backend import Link

_HOST: Final = "127.0.0.1"
_CHUNK_BYTES: Final = 64 * 1024


@dataclass(eq=False, slots=True)
class _Connection:
    ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    lossy: set[Link] = field(default_factory=set)

    def abort(self) -> None:
        for writer in self.ends:
            writer.transport.abort()


class Relays:
    """All relays of one cluster."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []
        self._occupants: dict[str, tuple[str, int]] = {}
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut: frozenset[Link] = frozenset()
        self._delays_seconds: dict[Link, float] = {}

    async def open(self, source: str, endpoint: str) -> str:
        """Listen for what ``source`` sends to ``endpoint``; return where."""

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._serve(source, endpoint, reader, writer), name="relay")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        server = await asyncio.start_server(accepted, _HOST, 0)
        self._servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return f"{_HOST}:{port}"

    def occupy(self, endpoint: str, node: str, port: int) -> None:
        """From now on ``node`` is what is reached at ``endpoint``; it listens at ``port``."""
        self._occupants[endpoint] = (node, port)

    def vacate(self, endpoint: str, node: str) -> None:
        """``node`` is not there any more: who calls is refused."""
        if self._occupants.get(endpoint, ("", 0))[0] == node:
            del self._occupants[endpoint]

    def set_links(self, cut: Iterable[Link], delays_seconds: Mapping[Link, float]) -> None:
        """These links lose everything, those take so much longer, all others are whole."""
        self._cut = frozenset(cut)
        self._delays_seconds = dict(delays_seconds)
        for connection in list(self._connections):
            if connection.lossy - self._cut:
                connection.abort()

    async def close(self) -> None:
        """Break all connections, stop listening."""
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.abort()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(
        self, source: str, endpoint: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        occupant = self._occupants.get(endpoint)
        if occupant is None:
            writer.transport.abort()
            return
        target, port = occupant
        try:
            there, to_there = await asyncio.open_connection(_HOST, port)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection((writer, to_there))
        self._connections.add(connection)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(connection, (source, target), reader, to_there))
                tasks.create_task(self._pump(connection, (target, source), there, writer))
        finally:
            self._connections.discard(connection)
            connection.abort()

    async def _pump(
        self, connection: _Connection, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Carry bytes one way until one end closes; then the other one is closed, too."""
        loop = asyncio.get_running_loop()
        due = 0.0
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                if link in self._cut:
                    connection.lossy.add(link)
                    continue
                # What comes later never overtakes, also when the link became faster meanwhile.
                due = max(due + 1e-6, loop.time() + self._delays_seconds.get(link, 0.0))
                if due - loop.time() > 1e-4:
                    loop.call_at(due, _write, writer, data)
                else:
                    writer.write(data)
                    await writer.drain()
            await asyncio.sleep(max(0.0, due - loop.time()))
        connection.abort()


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.transport.is_closing():
        writer.write(data)
