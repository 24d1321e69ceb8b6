"""What a repair tells to whoever listens, without ever waiting for anybody."""

from __future__ import annotations

import asyncio
from collections import deque

from antientropy.limits import UPDATES_QUEUED_MAX
from antientropy.reports import RepairUpdate


class UpdateFeed:
    """Updates for any number of listeners. One event loop; not thread-safe."""

    def __init__(self) -> None:
        self._listeners: list[UpdateListener] = []
        self.last: RepairUpdate | None = None
        """The latest update."""
        self.ended = False

    def publish(self, update: RepairUpdate) -> None:
        """Hand an update to everybody."""
        self.last = update
        for listener in self._listeners:
            listener.push(update)

    def end(self) -> None:
        """There will be no more."""
        self.ended = True
        for listener in self._listeners:
            listener.wake()

    def listen(self) -> UpdateListener:
        """All updates from now on, until the end."""
        listener = UpdateListener(self)
        self._listeners.append(listener)
        return listener

    def forget(self, listener: UpdateListener) -> None:
        """A listener has gone."""
        if listener in self._listeners:
            self._listeners.remove(listener)


class UpdateListener:
    """One listener's queue. A slow one misses the oldest of what it has not read yet, never the last."""

    def __init__(self, feed: UpdateFeed) -> None:
        self._feed = feed
        self._queue: deque[RepairUpdate] = deque(maxlen=UPDATES_QUEUED_MAX)
        self._arrived = asyncio.Event()

    def push(self, update: RepairUpdate) -> None:
        """Called by the feed. An update without a message gives way to the next one."""
        if self._queue and not self._queue[-1].message and not update.message:
            self._queue.pop()
        self._queue.append(update)
        self._arrived.set()

    def wake(self) -> None:
        """Called by the feed at its end."""
        self._arrived.set()

    async def next(self) -> RepairUpdate | None:
        """The next update; None: there will be no more."""
        while not self._queue:
            if self._feed.ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return self._queue.popleft()

    def close(self) -> None:
        """Listen no longer."""
        self._feed.forget(self)
