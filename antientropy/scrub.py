"""Scrub: re-reads a store slowly, to find what no comparison can see.

- Bit rot: a row that no longer matches its digest. Replicas compare stored digests, so they would agree for ever. It is
  moved aside (quarantine), so that it counts no more, is served no more, and the next repair brings it back.
- Drift: an index that is not that of its rows. It is reported, and made anew from the rows in the background.

A bucket (1/256 of the token line) is scrubbed at a time; by default all of them within a week, as in Riak. Where the
scrub stands is a mark of the store, so restarts do not begin anew.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final

from antientropy.core.tokens import BUCKET_LEVEL, BUCKETS, TokenRange, node_range
from antientropy.errors import StoreError
from antientropy.limits import SCRUB_PERIOD_SECONDS
from antientropy.metrics import Gauge
from antientropy.replica import Replica
from antientropy.store import quarantining, rereading

logger = logging.getLogger(__name__)

#: The mark that tells the next bucket.
_MARK: Final = "scrub"
_MARK_FORMAT: Final = struct.Struct(">H")


@dataclass(frozen=True, slots=True)
class BucketReport:
    """What the scrub of a bucket found."""

    bucket: int
    rows_read: int
    bytes_read: int
    damaged: tuple[bytes, ...]
    """The store's names (in LMDB: token and key) of rows that did not match their digest."""
    quarantined: int
    """How many of them were moved aside: all, unless they were overwritten meanwhile or the store cannot."""
    drifted: bool
    """The index was not that of the rows; it is being made anew."""

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.damaged and not self.drifted


#: What should stay 0.
_ALARMS: Final = ("rows_damaged", "rows_quarantined", "drifts", "failures")


@dataclass(slots=True)
class ScrubStatistics:
    """Sums since the process was started."""

    buckets: int = 0
    rounds: int = 0
    """How often all buckets were done."""
    rows_read: int = 0
    bytes_read: int = 0
    rows_damaged: int = 0
    rows_quarantined: int = 0
    drifts: int = 0
    failures: int = 0
    """Buckets that could not be read."""
    findings: list[BucketReport] = field(default_factory=list)
    """The last ones that were not clean."""

    def gauges(self, keyspace: str) -> Iterator[Gauge]:
        """As metrics."""
        for name in ("buckets", "rounds", "rows_read", "bytes_read", *_ALARMS):
            yield Gauge(f"antientropy_scrub_{name}_total", getattr(self, name), (("keyspace", keyspace),))


#: Reports that are kept to be shown.
_FINDINGS_MAX: Final = 64


class Scrubber:
    """Scrubs a replica, a bucket at a time. Its methods block; one thread at a time.

    A store whose readers are no ``RereadingReader`` is only looked at for drift.
    """

    def __init__(self, replica: Replica, on_report: Callable[[BucketReport], None] = lambda _: None) -> None:
        self._replica = replica
        self._on_report = on_report
        self.statistics: Final = ScrubStatistics()

    @property
    def next_bucket(self) -> int:
        """The bucket that :meth:`scrub_next` does next."""
        mark = self._replica.store.read_mark(_MARK)
        if mark is None or len(mark) != _MARK_FORMAT.size:
            return 0
        return int(_MARK_FORMAT.unpack(mark)[0]) % BUCKETS

    def scrub_next(self) -> BucketReport:
        """Scrub the next bucket, and note that it was done.

        Raises:
            StoreError: it could not be read; the next call goes on behind it.
        """
        bucket = self.next_bucket
        try:
            return self.scrub_bucket(bucket)
        except StoreError:
            self.statistics.failures += 1
            raise
        finally:
            if bucket == BUCKETS - 1:
                self.statistics.rounds += 1
            self._replica.store.write_mark(_MARK, _MARK_FORMAT.pack((bucket + 1) % BUCKETS))

    def scrub_bucket(self, bucket: int) -> BucketReport:
        """Read all rows of a bucket again, move damaged ones aside, and compare the index with them.

        Raises:
            StoreError: it could not be read.
        """
        rows, row_bytes, damaged = self._reread(node_range(BUCKET_LEVEL, bucket))
        store = self._replica.store
        quarantine = quarantining(store) if damaged else None
        quarantined = 0 if quarantine is None else quarantine.quarantine(damaged)
        drifted = not self._replica.bucket_is_sound(bucket)
        report = BucketReport(bucket, rows, row_bytes, tuple(damaged), quarantined, drifted)
        self._note(report)
        if drifted:
            self._replica.rebuild()
        return report

    def rotate_epoch(self) -> None:
        """Make the index anew under the next seed epoch, so that no collision of hashes stays hidden; blocks.

        Replicas compare under one epoch, so all of them have to be rotated to the same one.

        Raises:
            StoreError: the store could not be read; the old epoch stays.
        """
        self._replica.rebuild(epoch=self._replica.epoch + 1).result()

    def _reread(self, token_range: TokenRange) -> tuple[int, int, list[bytes]]:
        rows = row_bytes = 0
        damaged: list[bytes] = []
        reader = self._replica.store.read()
        try:
            again = rereading(reader)
            for turn in () if again is None else again.reread(token_range):
                rows += turn.rows
                row_bytes += turn.row_bytes
                damaged += turn.damaged
        finally:
            reader.close()
        return rows, row_bytes, damaged

    def _note(self, report: BucketReport) -> None:
        sums = self.statistics
        sums.buckets += 1
        sums.rows_read += report.rows_read
        sums.bytes_read += report.bytes_read
        sums.rows_damaged += len(report.damaged)
        sums.rows_quarantined += report.quarantined
        sums.drifts += report.drifted
        if not report.clean:
            sums.findings = [*sums.findings, report][-_FINDINGS_MAX:]
            logger.warning(
                "scrub of bucket %d: %d damaged rows (%d moved aside; repair brings them back)%s",
                report.bucket,
                len(report.damaged),
                report.quarantined,
                "; the index had drifted from the rows and is made anew" if report.drifted else "",
            )
        self._on_report(report)


async def scrub_steadily(
    scrubber: Scrubber,
    executor: Executor,
    *,
    period_seconds: float = SCRUB_PERIOD_SECONDS,
    on_round: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Scrub all buckets within each period, for ever, evenly spread; cancel it to stop.

    A store that fails is tried again with the next bucket. ``on_round``: awaited after each round of all buckets.
    """
    loop = asyncio.get_running_loop()
    rounds = scrubber.statistics.rounds
    while True:
        await asyncio.sleep(period_seconds / BUCKETS)
        try:
            await loop.run_in_executor(executor, scrubber.scrub_next)
            if on_round is not None and scrubber.statistics.rounds > rounds:
                await on_round()
        except StoreError as error:
            logger.warning("scrub failed: %s", error)
        rounds = scrubber.statistics.rounds
