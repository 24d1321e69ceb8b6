"""Writes of a repair that foreground writes never wait for, in a store that takes one write transaction at a time.

Rows that a repair brings wait in a queue. Foreground transactions take some of them along, a bounded number of rows and
bytes, and their fsync carries both: each as many as cost a small share of what it takes anyway (``RIDE_SHARE``), which
is none at all on a fast disk; and one in ``BULK_RIDE_EVERY`` more, which is too few to be seen among the slowest
hundredth. By itself the queue is committed in small slices only

- when no foreground write has come for ``QUIET_SECONDS``, or
- as often as leaves the share of the time small (``BUSY_SHARE``) in which a foreground write would find the store
  committing a slice: less than one in a hundred of them does.

A slice takes no further row once a foreground write waits, so that one waits for a commit at most.

So repair moves fast through a quiet store and, in a busy one, at the pace of its writers.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

from antientropy.errors import StoreClosedError, StoreError

#: Without a foreground write for so long, the store counts as quiet.
QUIET_SECONDS: Final = 0.25
#: Share of the time in which own transactions may be committing while the store is not quiet.
BUSY_SHARE: Final = 0.008
#: Rows and bytes of one transaction of our own: a few milliseconds.
SLICE_ROWS_MAX: Final = 256
SLICE_BYTES_MAX: Final = 256 * 1024
#: Rows and bytes that one foreground transaction takes along ...
RIDE_ROWS_MAX: Final = 64
RIDE_BYTES_MAX: Final = 64 * 1024
#: ... the share of its usual time that they may take ...
RIDE_SHARE: Final = 0.1
#: ... and how often it takes that many whatever they take.
BULK_RIDE_EVERY: Final = 160
#: For fewer it is not worth it: the first one costs as much as several.
_RIDE_ROWS_MIN: Final = 4
#: What a row costs until it is known, and what it costs with the pages that have to be written for it, as a multiple.
_ROW_SECONDS: Final = 20e-6
_ROW_COST_WITH_PAGES: Final = 3.0
#: How fast usual times follow the last one, which counts for at most double the usual: disks stumble now and then.
_SMOOTHING: Final = 0.1
_OUTLIER: Final = 2.0
#: A wait for a turn looks again after at most so long, also when nothing woke it.
_WAIT_SECONDS_MAX: Final = 0.1
#: Rows that are made ready between two breaks, and a break: a thread that never lets go of the interpreter's lock makes
#: every other one wait for its switch interval (5 ms).
_ROWS_BETWEEN_BREAKS: Final = 8
_BREAK_SECONDS: Final = 0.000_2

Item = TypeVar("Item")


class Job(Generic[Item]):
    """The rows of one call."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.waiting = deque(items)
        self.under_way = 0
        self.applied = 0
        self.rides = True
        self.error: StoreError | None = None
        self.ended = threading.Event()

    def settle(self, count: int, applied: int) -> None:
        """Some of the rows are durable."""
        self.under_way -= count
        self.applied += applied
        if not self.waiting and not self.under_way:
            self.ended.set()


class BackgroundWrites(Generic[Item]):
    """The queue of a store, around its write lock.

    ``size_of``: bytes of a row. All times are of the monotonic clock, in seconds.
    """

    def __init__(self, write_lock: threading.RLock, size_of: Callable[[Item], int]) -> None:
        self._write_lock = write_lock
        self._size_of = size_of
        self._guard = threading.Lock()
        self._jobs: deque[Job[Item]] = deque()
        self._foreground_waiting = 0
        self._foreground_at = -QUIET_SECONDS
        self._foreground_seconds = 0.0
        self._row_seconds = _ROW_SECONDS
        self._since_bulk = 0
        self._committing_since = 0.0
        self._turn_at = 0.0
        self._closed = False

    # --- foreground ---

    @contextmanager
    def foreground(self) -> Iterator[None]:
        """Hold the write lock for a foreground write, before anything of the background."""
        with self._guard:
            self._foreground_waiting += 1
        try:
            self._write_lock.acquire()
        finally:
            with self._guard:
                self._foreground_waiting -= 1
        started = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            self._foreground_at = ended
            self._foreground_seconds = _smoothed(self._foreground_seconds, ended - started)
            self._write_lock.release()

    def riders(self) -> Iterator[tuple[Job[Item], Item]]:
        """Rows that the foreground transaction under way should take along; :meth:`settle` or :meth:`refuse` them."""
        if not self._jobs:
            return
        size = 0
        for _ in range(self._seats()):
            with self._guard:
                job = next((one for one in self._jobs if one.rides and one.waiting), None)
                if job is None:
                    return
                size += self._size_of(job.waiting[0])
                if size > RIDE_BYTES_MAX:
                    return
                job.under_way += 1
                item = job.waiting.popleft()
            started = time.monotonic()
            yield job, item
            self._row_seconds = _smoothed(self._row_seconds, time.monotonic() - started)

    def _seats(self) -> int:
        """How many rows the next foreground transaction takes along."""
        self._since_bulk += 1
        if self._since_bulk >= BULK_RIDE_EVERY:
            self._since_bulk = 0
            return RIDE_ROWS_MAX
        affordable = int(RIDE_SHARE * self._foreground_seconds / (_ROW_COST_WITH_PAGES * self._row_seconds))
        return min(RIDE_ROWS_MAX, affordable) if affordable >= _RIDE_ROWS_MIN else 0

    def settle(self, riders: Sequence[tuple[Job[Item], int]]) -> None:
        """Rows that were taken along are durable; with each, how many rows it changed (0 or 1)."""
        with self._guard:
            for job, applied in riders:
                job.settle(1, applied)
            self._drop_ended()

    def refuse(self, riders: Sequence[tuple[Job[Item], Item]]) -> None:
        """The transaction failed: give the rows back. They ride no more, so that they fail for themselves only."""
        with self._guard:
            for job, item in reversed(riders):
                job.under_way -= 1
                job.rides = False
                job.waiting.appendleft(item)

    # --- background ---

    def run(self, items: Sequence[Item], commit: Callable[[Iterable[Item]], int]) -> int:
        """Have rows written; returns how many changed the store, when all are durable.

        ``commit`` writes some of them in one transaction, and is called with the write lock held; what it is given ends
        when a foreground write begins to wait.

        Raises:
            StoreError: what ``commit`` raised; slices before it stay.
        """
        if not items:
            return 0
        job = Job(items)
        with self._guard:
            self._jobs.append(job)
        try:
            while not job.ended.is_set():
                self._check_open()
                if self.try_turn():
                    try:
                        self._commit_slice(commit)
                    finally:
                        self.end_turn()
                else:
                    job.ended.wait(self._delay())
        finally:
            with self._guard:
                job.ended.set()
                self._drop_ended()
        if job.error is not None:
            raise job.error
        return job.applied

    def _commit_slice(self, commit: Callable[[Iterable[Item]], int]) -> None:
        with self._guard:
            job = next((one for one in self._jobs if one.waiting), None)
        if job is None:
            return
        before = job.under_way
        try:
            applied = commit(self._slice_of(job))
        except StoreError as error:
            with self._guard:
                job.error = error
                job.waiting.clear()
                job.ended.set()
                self._drop_ended()
            return
        with self._guard:
            job.settle(job.under_way - before, applied)
            self._drop_ended()

    def _slice_of(self, job: Job[Item]) -> Iterator[Item]:
        """The rows of one slice; the write lock is held, so no other slice and no rider is under way."""
        size = count = 0
        while count < SLICE_ROWS_MAX and not (count and (size >= SLICE_BYTES_MAX or self._foreground_waiting)):
            with self._guard:
                if not job.waiting:
                    break
                item = job.waiting.popleft()
                job.under_way += 1
            count += 1
            size += self._size_of(item)
            yield item
        self._committing_since = time.monotonic()

    def try_turn(self) -> bool:
        """Take the write lock for a background transaction, if it is its turn; then :meth:`end_turn` gives it back."""
        if self._delay() > 0:
            return False
        self._write_lock.acquire()
        if self._foreground_waiting or self._delay() > 0:
            self._write_lock.release()
            return False
        self._committing_since = time.monotonic()
        return True

    def end_turn(self) -> None:
        """The transaction is over."""
        now = time.monotonic()
        self._turn_at = now + (now - self._committing_since) / BUSY_SHARE
        self._write_lock.release()

    def wait_for_turn(self) -> None:
        """Block until it is a background transaction's turn, and take the write lock; then :meth:`end_turn`.

        Raises:
            StoreClosedError: the store was closed meanwhile.
        """
        while not self.try_turn():
            self._check_open()
            time.sleep(max(_BREAK_SECONDS, self._delay()))

    def breathe(self, rows_done: int) -> None:
        """Called for each row that is made ready for the background: leaves the processor to others now and then."""
        if rows_done % _ROWS_BETWEEN_BREAKS == 0 and time.monotonic() - self._foreground_at < QUIET_SECONDS:
            time.sleep(_BREAK_SECONDS)

    def close(self) -> None:
        """Let every call that waits end with StoreClosedError."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError("the store has been closed")

    def _delay(self) -> float:
        """Seconds until an own transaction may begin, at most ``_WAIT_SECONDS_MAX``; 0: now."""
        if self._foreground_waiting:
            return _BREAK_SECONDS
        now = time.monotonic()
        allowed_at = min(self._foreground_at + QUIET_SECONDS, self._turn_at)
        return min(max(0.0, allowed_at - now), _WAIT_SECONDS_MAX)

    def _drop_ended(self) -> None:
        while self._jobs and self._jobs[0].ended.is_set():
            self._jobs.popleft()


def _smoothed(usual: float, seconds: float) -> float:
    return seconds if usual <= 0 else usual + _SMOOTHING * (min(seconds, _OUTLIER * usual) - usual)
