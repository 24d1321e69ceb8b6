"""How fast repair may go: token buckets, a share of the CPU, and less of both while the application is slow.

A bucket admits a request as soon as it is not in debt, and then goes into debt for all of it: a request larger than
the bucket is never stuck, and over any time t no more than ``rate * t`` plus a burst plus one request passes. Riak
slows its anti-entropy down in tiers by the length of its message queue; here the tiers are those of the application's
latency against what it was recently. Time is an argument throughout; seconds of any clock that never goes back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from antientropy.errors import ConfigError

#: What may pass at once after a pause, in seconds of the rate: the time of one chunk.
BURST_SECONDS: Final = 0.5
#: Waits shorter than this are over: no timer is finer, and sums of floats do not come out even.
WAIT_SECONDS_MIN: Final = 1e-6
#: Pauses between two requests that are longer than this were waiting for the network or for nobody, not work.
WORK_SECONDS_MAX: Final = 2.0
#: Latency of the application against its baseline, and the part of the permitted pace from there on.
TIERS: Final = ((1.5, 1.0), (2.0, 0.5), (4.0, 0.25), (8.0, 0.1), (math.inf, 0.02))
#: One tier back up takes so long: latency must stay low at the higher pace, or it swings.
RECOVERY_SECONDS: Final = 1.0
#: The baseline follows a falling latency with this half-life ...
BASELINE_FALL_SECONDS: Final = 10.0
#: ... and a rising one with this: repair's own load must not become what is normal.
BASELINE_RISE_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrottleSettings:
    """Limits of repair on one node, over all its sessions; can be changed while it runs. None: no limit.

    Raises:
        ConfigError: lists every setting that is out of its bounds.
    """

    bytes_per_second: float | None = 64 * 1024 * 1024
    """Messages sent and taken. Half of a network of 1 Gbit/s; Cassandra streams 24 MiB/s. Too small: a node that was
    away for an hour is not equal again for days, and a chunk (up to 1 MiB) may take longer than ``rpc_timeout_seconds``
    (100 kB/s is the least that is safe). Too large: repair fills the network, and the application's requests queue."""
    rows_per_second: float | None = None
    """Rows read or applied. Too small: as above, and resuming costs more than is done. Too large: with tiny rows the
    disk's write transactions queue behind those of repair."""
    cpu_share: float | None = None
    """Of one core, above 0 and up to 1: repair rests for ``(1 - share) / share`` of what it worked. Too small: repairs
    take long and hold snapshots meanwhile, which keep old pages of the store. Too large: the application's own work in
    the same process waits."""
    latency_floor_seconds: float = 0.001
    """Latencies below this are never slow, whatever they were before. Too small: noise slows repair down. Too large:
    repair is not slowed down where it should be."""

    def __post_init__(self) -> None:
        faults = limit_faults(self.bytes_per_second, self.rows_per_second, self.cpu_share)
        if not (math.isfinite(self.latency_floor_seconds) and self.latency_floor_seconds > 0):
            faults.append(f"latency_floor_seconds is {self.latency_floor_seconds}; a number above 0 is needed")
        if faults:
            raise ConfigError(faults)


def limit_faults(bytes_per_second: float | None, rows_per_second: float | None, cpu_share: float | None) -> list[str]:
    """What is wrong with these limits, a line for each."""
    faults = [
        f"{name} is {value}; a number above 0 is needed, or none for no limit"
        for name, value in (("bytes_per_second", bytes_per_second), ("rows_per_second", rows_per_second))
        if value is not None and not (math.isfinite(value) and value > 0)
    ]
    if cpu_share is not None and not 0 < cpu_share <= 1:
        faults.append(f"cpu_share is {cpu_share}; above 0 and up to 1 is needed, or none for no limit")
    return faults


class TokenBucket:
    """Admits requests at a rate; those that wait are admitted in the order in which they asked.

    A request has a position: what was asked for before it. It is admitted when the supply has come so far. A changed
    rate holds from then on for those that wait, too.
    """

    def __init__(self, rate: float | None, now: float, *, burst_seconds: float = BURST_SECONDS) -> None:
        self._rate = rate
        self._burst_seconds = burst_seconds
        self._asked = 0.0
        self._supply = 0.0 if rate is None else rate * burst_seconds
        self._at = now

    @property
    def rate(self) -> float | None:
        """Per second; None: no limit."""
        return self._rate

    def set_rate(self, rate: float | None, now: float) -> None:
        """Go on at another rate."""
        self._refill(now)
        self._rate = rate
        self._refill(now)

    def ask(self, amount: float, now: float) -> float:
        """Stand in line for ``amount``: the position to :meth:`wait_seconds` for."""
        self._refill(now)
        position = self._asked
        self._asked += amount
        return position

    def wait_seconds(self, position: float, now: float) -> float:
        """How much longer the request at ``position`` has to wait; 0: it is admitted."""
        self._refill(now)
        if self._rate is None:
            return 0.0
        seconds = (position - self._supply) / self._rate
        return 0.0 if seconds < WAIT_SECONDS_MIN else seconds

    def _refill(self, now: float) -> None:
        elapsed = max(0.0, now - self._at)
        self._at = max(self._at, now)
        if self._rate is None:
            self._supply = max(self._supply, self._asked)
        else:
            self._supply = min(self._supply + elapsed * self._rate, self._asked + self._rate * self._burst_seconds)


class LatencyGovernor:
    """The pace that the application's latency permits: 1 is all of what is set, the least is 0.02, never nothing.

    The baseline is what the latency was recently: it falls fast and rises slowly, and after five minutes in which
    nothing was observed the first observation is the new one: no repair was running. Slower: down to the tier at once;
    faster: up by one tier in ``RECOVERY_SECONDS``.
    """

    def __init__(self, floor_seconds: float, *, tiers: Sequence[tuple[float, float]] = TIERS) -> None:
        self._floor = floor_seconds
        self._tiers = tuple(tiers)
        self._tier = 0
        self._changed_at = -math.inf
        self._observed_at = -math.inf
        self.baseline_seconds: float | None = None
        """None: nothing was observed yet."""
        self.latency_seconds: float | None = None
        """The last observation."""

    @property
    def pace(self) -> float:
        """Part of the permitted speed, above 0, up to 1."""
        return self._tiers[self._tier][1]

    def observe(self, latency_seconds: float | None, now: float) -> float:
        """Take a latency of the application, or None where it tells none now; answers the pace from here on.

        What is no latency (negative, not finite) counts as None.
        """
        if latency_seconds is None or not math.isfinite(latency_seconds) or latency_seconds < 0:
            self.latency_seconds = None
            wanted = 0
        else:
            self.latency_seconds = latency_seconds
            baseline = self._follow(latency_seconds, now)
            ratio = latency_seconds / max(baseline, self._floor)
            wanted = next(at for at, (bound, _) in enumerate(self._tiers) if ratio < bound or bound == math.inf)
        if wanted > self._tier:
            self._tier, self._changed_at = wanted, now
        elif wanted < self._tier and now - self._changed_at >= RECOVERY_SECONDS:
            self._tier, self._changed_at = self._tier - 1, now
        return self.pace

    def _follow(self, latency: float, now: float) -> float:
        """The baseline as it was before this observation: a first slow one is slow."""
        elapsed = max(0.0, now - self._observed_at)
        self._observed_at = max(self._observed_at, now)
        before = self.baseline_seconds
        if before is None or elapsed >= BASELINE_RISE_SECONDS:
            self.baseline_seconds = latency
            return latency
        half_life = BASELINE_FALL_SECONDS if latency < before else BASELINE_RISE_SECONDS
        self.baseline_seconds = latency + (before - latency) * 0.5 ** (elapsed / half_life)
        return before


def rest_seconds(worked_seconds: float, share: float) -> float:
    """How long to rest after work, so that it was ``share`` of the time; pauses are no work."""
    if share >= 1 or not WAIT_SECONDS_MIN < worked_seconds <= WORK_SECONDS_MAX:
        return 0.0
    return worked_seconds * (1 - share) / share
