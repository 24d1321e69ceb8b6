"""Event subscriptions: a slow listener never blocks gossip, it misses events and is told how many."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

from gossiper.events import EndpointForgotten, EndpointReplaced, EndpointView, Event, EventsMissed, LocalStopped
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


@dataclass(frozen=True, slots=True)
class Watched:
    """A value under a watched prefix: ``value`` is None when it is deleted, expired, or its endpoint is gone."""

    endpoint: str
    key: str
    value: str | None


class Watch:
    """An async iterator over values whose key begins with a prefix: first those there are, then every change.

    A slow reader misses values in between, never the last one: after a gap everything is compared with ``members``.
    """

    def __init__(
        self, subscription: Subscription, key_prefix: str, members: Callable[[], Iterable[EndpointView]]
    ) -> None:
        self._subscription = subscription
        self._prefix = key_prefix
        self._members = members
        self._ready: deque[Watched] = deque()
        self._known: dict[tuple[str, str], str] = {}
        self._compare_all()

    async def aclose(self) -> None:
        """Unsubscribe."""
        self._subscription.close()

    def __aiter__(self) -> Self:
        """Itself."""
        return self

    async def __anext__(self) -> Watched:
        """The next value."""
        while not self._ready:
            event = await anext(self._subscription)
            if isinstance(event, EventsMissed):
                self._compare_all()
            elif isinstance(event, EndpointReplaced) and event.old.endpoint != event.endpoint:
                self._compare(event.old.endpoint, None)
                self._compare(event.endpoint, event.new)
            elif isinstance(event, EndpointForgotten):
                self._compare(event.endpoint, None)
            elif not isinstance(event, LocalStopped):
                self._compare(event.endpoint, event.new)
        return self._ready.popleft()

    def _compare_all(self) -> None:
        views = {view.endpoint: view for view in self._members()}
        for endpoint in sorted({*views, *(endpoint for endpoint, _ in self._known)}):
            self._compare(endpoint, views.get(endpoint))

    def _compare(self, endpoint: str, view: EndpointView | None) -> None:
        now = {} if view is None else {k: v.value for k, v in view.states.items() if k.startswith(self._prefix)}
        before = {key: value for (at, key), value in self._known.items() if at == endpoint}
        for key in sorted(before.keys() | now.keys()):
            value = now.get(key)
            if value != before.get(key):
                self._ready.append(Watched(endpoint, key, value))
                if value is None:
                    del self._known[endpoint, key]
                else:
                    self._known[endpoint, key] = value
