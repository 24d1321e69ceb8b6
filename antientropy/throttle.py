"""Holds repair to its limits: every chunk is paid for with :meth:`Throttle.spend` before it is sent or applied."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from antientropy.core.pacing import (
    WAIT_SECONDS_MIN,
    LatencyGovernor,
    ThrottleSettings,
    TokenBucket,
    limit_faults,
    rest_seconds,
)
from antientropy.errors import RepairRequestError
from antientropy.limits import CHUNK_BYTES_MAX
from antientropy.metrics import RepairMetrics
from antientropy.reports import ThrottleStatus

#: The application's latency is asked for so often at most.
LATENCY_INTERVAL_SECONDS: Final = 0.25
#: A waiting request looks again after so long, since the pace may have changed.
LOOK_SECONDS: Final = 1.0
#: A chunk should take so long at the permitted rate: less than the time in which a peer is missed.
CHUNK_SECONDS: Final = 0.5
#: Chunks are not made smaller than this: below, what surrounds them is most of the work.
CHUNK_BYTES_MIN: Final = 16 * 1024


class Throttle:
    """One for a node, shared by all its repairs. For one event loop; not thread-safe.

    ``latency``: the application's own, in seconds (say the p99 of its writes in the last seconds), or None where there
    is nothing to tell; asked on the event loop at most every ``LATENCY_INTERVAL_SECONDS``, so it answers from memory.
    Repair goes slower while it is far above what it was before, see :class:`~antientropy.core.pacing.LatencyGovernor`.

    The CPU share counts the time of the whole process between two spends (``cpu_clock``), so where the application
    lives in the same process repair leaves it more, not less.

    Raises:
        ConfigError: a limit is not above 0.
    """

    def __init__(
        self,
        bytes_per_second: float | None = None,
        rows_per_second: float | None = None,
        cpu_share: float | None = None,
        latency: Callable[[], float | None] | None = None,
        *,
        latency_floor_seconds: float = 0.001,
        metrics: RepairMetrics | None = None,
        clock: Callable[[], float] | None = None,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        checked = ThrottleSettings(
            bytes_per_second=bytes_per_second,
            rows_per_second=rows_per_second,
            cpu_share=cpu_share,
            latency_floor_seconds=latency_floor_seconds,
        )
        self._limits = (checked.bytes_per_second, checked.rows_per_second, checked.cpu_share)
        self._latency = latency
        self._governor = LatencyGovernor(latency_floor_seconds)
        self._metrics = RepairMetrics() if metrics is None else metrics
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._buckets: tuple[TokenBucket, TokenBucket] | None = None
        self._asked_latency_at: float | None = None
        self._released: tuple[float, float] | None = None
        self._changed = asyncio.Event()

    @classmethod
    def of(
        cls,
        settings: ThrottleSettings,
        latency: Callable[[], float | None] | None = None,
        *,
        metrics: RepairMetrics | None = None,
    ) -> Throttle:
        """With these settings."""
        return cls(
            settings.bytes_per_second,
            settings.rows_per_second,
            settings.cpu_share,
            latency,
            latency_floor_seconds=settings.latency_floor_seconds,
            metrics=metrics,
        )

    @property
    def chunk_bytes(self) -> int:
        """A good size for a chunk at the present rate: half a second of it, up to what a message may hold."""
        rate = self._limits[0]
        if rate is None:
            return CHUNK_BYTES_MAX
        return int(min(CHUNK_BYTES_MAX, max(CHUNK_BYTES_MIN, rate * self._governor.pace * CHUNK_SECONDS)))

    async def spend(self, bytes: int, rows: int) -> None:  # noqa: A002 - the word of the field
        """Wait until so much may be sent, taken or applied; what is asked for together is never cut up.

        Those who wait are let through in the order in which they came. Cancelled while waiting, it has spent all the
        same: what follows waits as long as if it had been used.

        Raises:
            ValueError: an amount is negative.
        """
        if bytes < 0 or rows < 0:
            raise ValueError(f"{bytes} bytes and {rows} rows to spend; 0 or more is needed")
        began = now = self._now()
        self._observe(now)
        buckets = self._filled(now)
        positions = (buckets[0].ask(bytes, now), buckets[1].ask(rows, now))
        rested_until = now + self._rest(now)
        while True:
            waits = [bucket.wait_seconds(at, now) for bucket, at in zip(buckets, positions, strict=True)]
            left = max(*waits, rested_until - now)
            if left < WAIT_SECONDS_MIN:
                break
            await self._pause(min(left, LOOK_SECONDS))
            now = self._now()
            self._observe(now)
        self._released = (now, self._cpu_clock())
        self._count(bytes, rows, now - began)

    def update(
        self,
        *,
        bytes_per_second: float | None,
        rows_per_second: float | None,
        cpu_share: float | None,
    ) -> None:
        """Other limits, at once, also for those who wait. None: no limit.

        Raises:
            RepairRequestError: a limit is not above 0; all stay as they were.
        """
        if faults := limit_faults(bytes_per_second, rows_per_second, cpu_share):
            raise RepairRequestError("; ".join(faults))
        self._limits = (bytes_per_second, rows_per_second, cpu_share)
        self._apply()

    def status(self) -> ThrottleStatus:
        """The limits in force, and how much of them the application's latency permits."""
        rate, rows, share = self._limits
        return ThrottleStatus(rate, rows, share, self._governor.pace, self._governor.latency_seconds)

    def describe(self) -> str:
        """The limits in one line for people."""
        rate, rows, share = self._limits
        parts = [
            "no limit of bytes" if rate is None else f"{rate / 1e6:,.3g} MB/s",
            "no limit of rows" if rows is None else f"{rows:,.0f} rows/s",
            "no limit of CPU" if share is None else f"{100 * share:.0f} % of a core",
        ]
        if (pace := self._governor.pace) < 1:
            parts.append(f"held to {100 * pace:.0f} % by the application's latency")
        return ", ".join(parts)

    def _now(self) -> float:
        return asyncio.get_running_loop().time() if self._clock is None else self._clock()

    def _observe(self, now: float) -> None:
        """Ask for the application's latency if it is time to; another pace holds for all who wait."""
        if self._latency is None:
            return
        if self._asked_latency_at is not None and now - self._asked_latency_at < LATENCY_INTERVAL_SECONDS:
            return
        self._asked_latency_at = now
        before = self._governor.pace
        if self._governor.observe(self._latency(), now) != before:
            self._apply()
        self._metrics.set("antientropy_throttle_pace", self._governor.pace)

    def _filled(self, now: float) -> tuple[TokenBucket, TokenBucket]:
        if self._buckets is None:
            rate, rows = self._rates()
            self._buckets = (TokenBucket(rate, now), TokenBucket(rows, now))
        return self._buckets

    def _rates(self) -> tuple[float | None, float | None]:
        rate, rows, _ = self._limits
        pace = self._governor.pace
        return None if rate is None else rate * pace, None if rows is None else rows * pace

    def _apply(self) -> None:
        if self._buckets is None:
            return
        now = self._now()
        for bucket, rate in zip(self._buckets, self._rates(), strict=True):
            bucket.set_rate(rate, now)
        self._changed.set()
        self._changed = asyncio.Event()

    def _rest(self, now: float) -> float:
        """For the share of the CPU. The latency's pace holds here, too: it slows down where nothing else is limited."""
        share = (self._limits[2] or 1.0) * self._governor.pace
        if share >= 1 or self._released is None:
            return 0.0
        released_at, cpu = self._released
        return rest_seconds(min(now - released_at, self._cpu_clock() - cpu), share)

    async def _pause(self, seconds: float) -> None:
        changed = self._changed
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await changed.wait()

    def _count(self, amount: int, rows: int, waited: float) -> None:
        self._metrics.increment("antientropy_throttled_bytes_total", amount)
        self._metrics.increment("antientropy_throttled_rows_total", rows)
        if waited > 0:
            self._metrics.increment("antientropy_throttle_waits_total")
            self._metrics.increment("antientropy_throttle_wait_seconds_total", waited)
