"""What a repair tells to whoever listens, without ever waiting for anybody."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from antientropy.limits import UPDATES_QUEUED_MAX
from antientropy.reports import RepairUpdate


class UpdateFeed:
    """Updates for any number of listeners. A slow one misses the oldest of those that it has not read yet, never the last.

    One event loop; not thread-safe.
    """

    def __init__(self) -> None:
        self._listeners: dict[int, tuple[deque[RepairUpdate], asyncio.Event]] = {}
        self._numbers = 0
        self.last: RepairUpdate | None = None
        """The latest update."""
        self.ended = False

    @property
    def listeners(self) -> int:
        """How many listen."""
        return len(self._listeners)

    def publish(self, update: RepairUpdate) -> None:
        """Hand an update to everybody."""
        self.last = update
        for queue, arrived in self._listeners.values():
            queue.append(update)
            arrived.set()

    def end(self) -> None:
        """There will be no more."""
        self.ended = True
        for _, arrived in self._listeners.values():
            arrived.set()

    async def listen(self) -> AsyncGenerator[RepairUpdate, None]:
        """All updates from now on, until the end."""
        queue: deque[RepairUpdate] = deque(maxlen=UPDATES_QUEUED_MAX)
        arrived = asyncio.Event()
        self._numbers += 1
        number = self._numbers
        self._listeners[number] = (queue, arrived)
        try:
            while True:
                while queue:
                    yield queue.popleft()
                if self.ended:
                    return
                arrived.clear()
                await arrived.wait()
        finally:
            del self._listeners[number]
