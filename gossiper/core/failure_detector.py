"""Phi accrual failure detection over all endpoints at once.

phi = -log10 of the probability, under an exponential distribution of inter-arrival times with the measured mean,
that a heartbeat comes later than now: ``phi = (now - last arrival) / mean / ln(10)``. Sources: Hayashibara et al.,
"The phi accrual failure detector" (2004); Cassandra's ``FailureDetector`` and ``ArrivalWindow`` (CASSANDRA-2597 for
the exponential form). Like Cassandra: one assumed interval comes first, gaps over a maximum are outages and are not
recorded, and after a pause of the own process nobody is convicted for a while (CASSANDRA-9183). Unlike it, windows
are columns, grow on demand, and sums are whole microseconds, so they never drift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.intp]

#: 1 / ln(10): makes phi a decimal logarithm; 0.434 in Cassandra.
PHI_FACTOR: Final = 1.0 / math.log(10.0)
_MICROSECONDS: Final = 1_000_000
#: A sample fills 32 bits: 71 minutes.
INTERVAL_SECONDS_MAX: Final = (2**32 - 1) / _MICROSECONDS
_WIDTH_INITIAL: Final = 8
#: So long ago that the interval since is above every maximum.
_NEVER: Final = -(2**62)


class ArrivalWindows:
    """The last inter-arrival times of many endpoints: a ring of ``size`` microsecond samples per row.

    ``samples`` has shape (rows, width); width grows by doubling up to ``size``, so a short history costs little.
    """

    def __init__(self, *, size: int, first_interval_seconds: float, interval_seconds_max: float) -> None:
        if size < 1:
            raise ValueError("the window holds at least one interval")
        if not 0 < first_interval_seconds <= INTERVAL_SECONDS_MAX:
            raise ValueError(f"first_interval_seconds must be above 0 and at most {INTERVAL_SECONDS_MAX:.0f}")
        self._size = size
        self._first_us = max(1, round(first_interval_seconds * _MICROSECONDS))
        self._max_us = round(min(interval_seconds_max, INTERVAL_SECONDS_MAX) * _MICROSECONDS)
        self._samples = np.zeros((0, min(_WIDTH_INITIAL, size)), dtype=np.uint32)
        self._recorded = np.zeros(0, dtype=np.int64)
        """Intervals recorded per row since its reset: the next one's place is this, modulo the width."""
        self._recorded_most = 0
        """No row has recorded more; found out again when it reaches the width."""
        self._sum_us = np.zeros(0, dtype=np.int64)
        self._last_us = np.full(0, _NEVER, dtype=np.int64)

    def report(self, rows: Rows, now: float) -> None:
        """A heartbeat of each of ``rows`` (no duplicates) arrived at ``now`` (monotonic seconds)."""
        if not len(rows):
            return
        now_us = round(now * _MICROSECONDS)
        try:
            last = self._last_us[rows]
        except IndexError:
            # Only for rows never seen: looking for the greatest each time costs as much as three other steps.
            self._reserve_for(rows)
            last = self._last_us[rows]
        self._last_us[rows] = now_us
        interval = now_us - last
        # A clock that stands still gives 0; the gap after an outage says nothing about the rhythm.
        # As unsigned numbers, negative ones are the greatest: one look finds out that all are usable.
        if int(interval.view(np.uint64).max()) > self._max_us:
            usable = (interval >= 0) & (interval <= self._max_us)
            first = last == _NEVER
            interval[first] = self._first_us
            usable |= first
            rows, interval = rows[usable], interval[usable]
        self._record(rows, interval)

    def report_one(self, row: int, now: float) -> None:
        """:meth:`report` for a single row, with plain numbers: numpy takes ten times as long for an array of one."""
        self._reserve(row + 1)
        now_us = round(now * _MICROSECONDS)
        last = int(self._last_us[row])
        self._last_us[row] = now_us
        interval = self._first_us if last == _NEVER else now_us - last
        if last != _NEVER and not 0 <= interval <= self._max_us:
            return
        self._make_room()
        recorded = int(self._recorded[row])
        place = recorded % self._samples.shape[1]
        self._sum_us[row] += interval - int(self._samples[row, place])
        self._samples[row, place] = interval
        self._recorded[row] = recorded + 1

    def reset(self, rows: Rows) -> None:
        """Forget the history of ``rows``: a new generation has its own rhythm."""
        rows = rows[rows < len(self._recorded)]
        self._recorded[rows] = 0
        self._sum_us[rows] = 0
        self._samples[rows] = 0
        self._last_us[rows] = _NEVER

    def means_seconds(self, rows: Rows) -> NDArray[np.float64]:
        """Mean interval per row; NaN where nothing was reported."""
        self._reserve_for(rows)
        count = self.sample_counts(rows)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean: NDArray[np.float64] = self._sum_us[rows] / count / _MICROSECONDS
        return mean

    def sample_counts(self, rows: Rows) -> NDArray[np.int64]:
        """Intervals held per row, the assumed first one included until it is overwritten."""
        self._reserve_for(rows)
        counts: NDArray[np.int64] = np.minimum(self._recorded[rows], self._size)
        return counts

    def silence_seconds(self, rows: Rows, now: float) -> NDArray[np.float64]:
        """Seconds since the last arrival per row; NaN where nothing was reported."""
        self._reserve_for(rows)
        last = self._last_us[rows]
        return np.where(last == _NEVER, np.nan, np.maximum(0.0, now - last / _MICROSECONDS))

    def silent_beyond(self, rows: Rows, now: float, means: float) -> Rows:
        """Those of ``rows`` that are silent for more than ``means`` times their mean interval.

        It is asked of everybody in every round, so nothing is divided and nothing can be NaN: where nothing was
        reported, 0 is compared with 0.
        """
        self._reserve_for(rows)
        silence_us = now * _MICROSECONDS - self._last_us[rows]
        silent: Rows = rows[silence_us * np.minimum(self._recorded[rows], self._size) > means * self._sum_us[rows]]
        return silent

    def _record(self, rows: Rows, interval_us: NDArray[np.int64]) -> None:
        self._make_room()
        recorded = self._recorded[rows]
        width = self._samples.shape[1]
        place = rows * width + recorded % width
        samples = self._samples.reshape(-1)
        # A ring that is not full has zeros in the places that come next: the sum needs no distinction.
        self._sum_us[rows] += interval_us - samples[place]
        samples[place] = interval_us
        self._recorded[rows] = recorded + 1

    def _make_room(self) -> None:
        """For one more sample in every ring. Rings shorter than the window have not wrapped yet: samples stay."""
        self._recorded_most += 1
        width = self._samples.shape[1]
        if self._recorded_most <= width or width == self._size:
            return
        self._recorded_most = int(self._recorded.max(initial=0)) + 1
        if self._recorded_most > width:
            wider = np.zeros((len(self._samples), min(2 * width, self._size)), dtype=np.uint32)
            wider[:, :width] = self._samples
            self._samples = wider

    def _reserve_for(self, rows: Rows) -> None:
        if len(rows):
            self._reserve(int(rows.max()) + 1)

    def _reserve(self, needed: int) -> None:
        have = len(self._recorded)
        if needed <= have:
            return
        more = max(needed, 2 * have) - have
        self._samples = np.pad(self._samples, ((0, more), (0, 0)))
        self._recorded, self._sum_us = (np.pad(column, (0, more)) for column in (self._recorded, self._sum_us))
        self._last_us = np.pad(self._last_us, (0, more), constant_values=_NEVER)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one look at all endpoints gave."""

    convicted: Rows
    """Rows whose phi is above the threshold."""
    paused_seconds: float
    """How long this process stood still before the look, when that was too long; else 0."""


class PhiAccrualFailureDetector:
    """Suspicion levels of all endpoints, and who is convicted. Rows are those of the endpoint table."""

    def __init__(
        self,
        *,
        threshold: float,
        window_size: int,
        first_interval_seconds: float,
        interval_seconds_max: float,
        local_pause_seconds: float,
    ) -> None:
        self.threshold = threshold
        self.windows = ArrivalWindows(
            size=window_size,
            first_interval_seconds=first_interval_seconds,
            interval_seconds_max=interval_seconds_max,
        )
        self._local_pause_seconds = local_pause_seconds
        self._interpreted: float | None = None
        self._silent_until = -math.inf

    def report(self, rows: Rows, now: float) -> None:
        """A newer heartbeat of each of ``rows`` arrived."""
        self.windows.report(rows, now)

    def report_one(self, row: int, now: float) -> None:
        """A newer heartbeat of one row arrived."""
        self.windows.report_one(row, now)

    def reset(self, rows: Rows) -> None:
        """Begin anew for ``rows``."""
        self.windows.reset(rows)

    def phi(self, rows: Rows, now: float) -> NDArray[np.float64]:
        """Suspicion per row, scaled to decimal logarithms; NaN where nothing was ever reported."""
        return self.phi_unscaled(rows, now) * PHI_FACTOR

    def phi_unscaled(self, rows: Rows, now: float) -> NDArray[np.float64]:
        """Silence in units of the mean interval, Cassandra's raw phi."""
        mean = self.windows.means_seconds(rows)
        with np.errstate(invalid="ignore", divide="ignore"):
            result: NDArray[np.float64] = self.windows.silence_seconds(rows, now) / mean
        return result

    def interpret(self, rows: Rows, now: float) -> Verdict:
        """Convict among ``rows``; to be called once per round.

        When the last call is longer ago than the local pause, this process itself stood still (garbage collection,
        a stopped virtual machine), so silence proves nothing: nobody is convicted now and for that long again.
        """
        gap = 0.0 if self._interpreted is None else now - self._interpreted
        self._interpreted = now
        nobody = np.zeros(0, dtype=np.intp)
        if gap > self._local_pause_seconds:
            self._silent_until = now + self._local_pause_seconds
            return Verdict(nobody, gap)
        if now < self._silent_until:
            return Verdict(nobody, 0.0)
        return Verdict(self.windows.silent_beyond(rows, now, self.threshold / PHI_FACTOR), 0.0)

    def local_pause_remaining_seconds(self, now: float) -> float:
        """How much longer nobody is convicted after a pause of this process."""
        return max(0.0, self._silent_until - now)
