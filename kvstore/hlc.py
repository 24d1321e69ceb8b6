"""The hybrid logical clock that dates every write.

A version is one 64-bit integer that sorts as time does: 48 bits of milliseconds since the epoch, then a 16-bit
counter. It is never less than the wall clock, and greater than every version that was issued or seen before, so a
write that was made after another was read wins over it, whatever the clocks of the two nodes say. Source: Kulkarni,
Demirbas et al., "Logical Physical Clocks" (2014).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from kvstore.errors import ClockDriftError

COUNTER_BITS: Final = 16
VERSION_MAX: Final = 2**64 - 1
_MS_MAX: Final = 2**48 - 1


def version_at(seconds: float) -> int:
    """The least version of a moment, in seconds since the epoch."""
    return min(max(int(seconds * 1000), 0), _MS_MAX) << COUNTER_BITS


def seconds_of(version: int) -> float:
    """The moment of a version, in seconds since the epoch."""
    return (version >> COUNTER_BITS) / 1000


class HybridLogicalClock:
    """Issues versions; may be used from any thread.

    Args:
        wall: Seconds since the epoch.
        drift_seconds_max: How far a version that is seen may lie ahead of ``wall``.
        start_version: Every version issued is greater; the greatest in the store, so that a clock that was set back
            while the node was down does not make new writes lose against old ones.
    """

    def __init__(self, wall: Callable[[], float], *, drift_seconds_max: float, start_version: int = 0) -> None:
        self._wall = wall
        self._drift_seconds_max = drift_seconds_max
        self._last = start_version
        self._lock = threading.Lock()

    @property
    def last(self) -> int:
        """The greatest version issued or seen."""
        return self._last

    def now(self, count: int = 1) -> int:
        """The first of ``count`` consecutive versions, all of them new.

        When the counter overflows it runs into the milliseconds: the clock is then a little ahead and the order stays
        right.

        Raises:
            ClockDriftError: this clock would run further ahead of the wall clock than others accept: the wall clock
                was set back, or the version numbers are used up.
        """
        if count < 1:
            raise ValueError("count must be at least 1")
        with self._lock:
            first = max(self._last + 1, version_at(self._wall()))
            last = first + count - 1
            self._check(last, "the clock of this node was set back: the newest row here")
            self._last = last
            return first

    def update(self, seen: int) -> None:
        """Take note of a version from elsewhere: versions issued from now on are greater.

        Raises:
            ClockDriftError: ``seen`` is too far ahead; the clock is unchanged.
        """
        with self._lock:
            self._check(seen, "a version from another node")
            self._last = max(self._last, seen)

    def observe(self, seen: int) -> bool:
        """As :meth:`update`, but a version too far ahead is ignored; returns whether it was taken."""
        try:
            self.update(seen)
        except ClockDriftError:
            return False
        return True

    def _check(self, version: int, what: str) -> None:
        if not 0 <= version <= VERSION_MAX:
            raise ClockDriftError(f"{what} is {version}, outside of 64 bits")
        ahead_seconds = seconds_of(version) - self._wall()
        if ahead_seconds > self._drift_seconds_max:
            raise ClockDriftError(
                f"{what} is {ahead_seconds:.3f} s ahead of the clock here, {self._drift_seconds_max:g} s are allowed; "
                "synchronise the clocks (see clock_drift_seconds_max)"
            )
