"""Who is gone, and up to which generation: what a slow peer says of them is neither requested nor applied.

Cassandra refuses *everything* about a removed endpoint for 60 s (120 s after a replacement), so that it does not come
back through a peer that has not heard of the removal (CASSANDRA-2371, CASSANDRA-8260). Here a removal is remembered
with its generation: nothing up to that generation ever comes back, and a real restart, which has a greater one, is
never held up. What was forgotten only because it was silent is let in again after a while.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

#: Remembered at once; the oldest are dropped first. At 100 bytes each: 1 MB.
GRAVES_MAX: Final = 10_000
FOR_EVER: Final = math.inf


class Quarantine:
    """Endpoints that are gone, each with the last generation that is and until when (monotonic seconds)."""

    def __init__(self) -> None:
        self._graves: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._graves)

    def bury(self, endpoint: str, generation: int, until: float) -> None:
        """Refuse generations of ``endpoint`` up to ``generation`` until then."""
        known_generation, known_until = self._graves.pop(endpoint, (0, 0.0))
        self._graves[endpoint] = (max(generation, known_generation), max(until, known_until))
        if len(self._graves) > GRAVES_MAX:
            self._graves.popitem(last=False)

    def refuses(self, endpoint: str, generation: int, now: float) -> bool:
        """Whether what is said of this generation must be left out."""
        grave = self._graves.get(endpoint)
        return grave is not None and generation <= grave[0] and now < grave[1]

    def drop_past(self, now: float) -> None:
        """Forget those whose time is over."""
        past = [endpoint for endpoint, (_, until) in self._graves.items() if until <= now]
        for endpoint in past:
            del self._graves[endpoint]
