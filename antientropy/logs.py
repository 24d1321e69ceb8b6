"""Log lines that would repeat for ever are written once in a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Final

from antientropy.limits import LOG_INTERVAL_SECONDS

#: Keys remembered, about 200 bytes each: whoever sends from thousands of addresses makes room by clearing them all.
_KEYS_MAX: Final = 1_000


class LogLimiter:
    """At most one line per key in ``LOG_INTERVAL_SECONDS``.

    Args:
        clock: Seconds of any monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[Hashable, tuple[float, int]] = {}

    def permit(self, key: Hashable) -> int | None:
        """How many lines were held back since the last one if this one may be written, else None."""
        now = self._clock()
        last, held_back = self._last.get(key, (now - LOG_INTERVAL_SECONDS, 0))
        if now - last < LOG_INTERVAL_SECONDS:
            self._last[key] = (last, held_back + 1)
            return None
        if key not in self._last and len(self._last) >= _KEYS_MAX:
            self._last.clear()
        self._last[key] = (now, 0)
        return held_back
