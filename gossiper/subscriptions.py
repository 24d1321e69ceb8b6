"""Event subscriptions: a slow listener never blocks gossip, it misses events and is told how many."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Self

from gossiper.events import Event, EventsMissed
from gossiper.limits import EVENT_QUEUE_MAX


class Subscription:
    """An async iterator of events: first a snapshot of what is known, then every change, until the gossiper stops.

    Subscribed from the moment it is made. At most ``EVENT_QUEUE_MAX`` changes wait; beyond that the oldest are dropped
    and one ``EventsMissed`` says how many. For one consumer.
    """

    def __init__(self, snapshot: Iterable[Event], on_close: Callable[[Subscription], None]) -> None:
        self._snapshot = deque(snapshot)
        self._queue: deque[Event] = deque()
        self._missed = 0
        self._wake = asyncio.Event()
        self._closed = False
        self._on_close = on_close

    def put(self, event: Event) -> None:
        """Add one change; never blocks."""
        if len(self._queue) >= EVENT_QUEUE_MAX:
            self._queue.popleft()
            self._missed += 1
        self._queue.append(event)
        self._wake.set()

    def close(self) -> None:
        """No more events come; those that wait can still be read. Idempotent."""
        self._closed = True
        self._on_close(self)
        self._wake.set()

    async def aclose(self) -> None:
        """Unsubscribe."""
        self.close()

    def __aiter__(self) -> Self:
        """Itself."""
        return self

    async def __anext__(self) -> Event:
        """The next event."""
        while True:
            if self._snapshot:
                return self._snapshot.popleft()
            if self._missed:
                missed, self._missed = self._missed, 0
                return EventsMissed(missed)
            if self._queue:
                return self._queue.popleft()
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
