"""Group commit: writes that arrive while a transaction is under way share the next one.

A durable commit costs an fsync, whatever it holds. One worker thread commits; what is written meanwhile waits in a
bounded queue and is committed together. A write is acknowledged after the commit that holds it, never before.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

from antientropy.logs import LogLimiter
from antientropy.store import Row
from kvstore.errors import KvStoreError, OverloadedError, StoppingError, StorageError, TooOldError
from kvstore.limits import (
    COMMIT_BYTES_MAX,
    COMMIT_ROWS_MAX,
    LATENCIES_MAX,
    LATENCY_WINDOW_SECONDS,
    WRITE_QUEUE_BYTES_MAX,
    WRITE_QUEUE_ROWS_MAX,
)

_log = logging.getLogger(__name__)

_ROW_OVERHEAD_BYTES = 64
"""Version, flags and objects around a row; keeps empty rows from being free."""


_TOO_OLD: Final = (
    "a row is older than what repair has settled, and could be what a purged tombstone had deleted; "
    "is the clock of the coordinating node far behind?"
)


class Applies(Protocol):
    """What the writer needs of a store."""

    def apply(self, rows: Iterable[Row]) -> int:
        """Put rows that win, durably, in one transaction; see :class:`antientropy.store.RowStore`."""
        ...

    @property
    def rows_refused(self) -> int:
        """Rows that were not applied because they are older than what repair has settled, since it was opened."""
        ...


def rows_bytes(rows: Iterable[Row]) -> int:
    """About the memory that rows take, in bytes."""
    return sum(len(row.key) + len(row.value) + _ROW_OVERHEAD_BYTES for row in rows)


@dataclass(slots=True, eq=False)
class _Pending:
    rows: Sequence[Row]
    size_bytes: int
    done: asyncio.Future[None]
    since: float
    """Of the loop's clock."""


class GroupCommitWriter:
    """Writes rows to a store in shared transactions. Belongs to one event loop.

    Use as an async context manager; leaving it commits what is waiting.

    Args:
        store: Where rows go; only :meth:`write` may reach its ``apply`` from here, in a thread of the writer's own.
        queue_rows_max: Rows that may wait.
        queue_bytes_max: Their size that may wait.
        on_commit: Told after every transaction: None, or why it failed. Must be quick and raise nothing.
    """

    def __init__(
        self,
        store: Applies,
        *,
        queue_rows_max: int = WRITE_QUEUE_ROWS_MAX,
        queue_bytes_max: int = WRITE_QUEUE_BYTES_MAX,
        on_commit: Callable[[Exception | None], None] = lambda _error: None,
    ) -> None:
        self._store = store
        self._on_commit = on_commit
        self._queue_rows_max = queue_rows_max
        self._queue_bytes_max = queue_bytes_max
        self._queue: deque[_Pending] = deque()
        self._queued_rows = 0
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._log_limiter = LogLimiter()
        self._latencies: deque[tuple[float, float]] = deque(maxlen=LATENCIES_MAX)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kvstore-commit")
        self.commits = 0
        """Transactions so far, failed ones included."""
        self.failures = 0
        """Transactions that failed."""

    async def __aenter__(self) -> GroupCommitWriter:
        """Begin to commit."""
        self._task = asyncio.create_task(self._run(), name="kvstore-commit")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Commit what is waiting, then stop. Later writes are refused."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
        self._executor.shutdown()

    async def write(self, rows: Sequence[Row]) -> None:
        """Return when the rows are durable (or have lost against newer ones).

        Raises:
            OverloadedError: too much is waiting; nothing was written.
            StorageError: the transaction that held these rows failed; nothing of it was written.
            TooOldError: a row was refused, because it is older than what repair has settled; the others are written.
            StoppingError: the node stops.
        """
        if self._stopping:
            raise StoppingError("the node is shutting down")
        if not rows:
            return
        size_bytes = rows_bytes(rows)
        if self._queue and (
            self._queued_rows + len(rows) > self._queue_rows_max
            or self._queued_bytes + size_bytes > self._queue_bytes_max
        ):
            raise OverloadedError(
                f"{self._queued_rows} rows ({self._queued_bytes} bytes) wait to be committed; try again later"
            )
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._queue.append(_Pending(rows, size_bytes, done, loop.time()))
        self._queued_rows += len(rows)
        self._queued_bytes += size_bytes
        self._wake.set()
        await done

    def recent_latency_seconds(self) -> float | None:
        """What writes of the last seconds took from their call to their commit, as a mean; None: there were none."""
        if not self._latencies:
            return None
        begin = asyncio.get_running_loop().time() - LATENCY_WINDOW_SECONDS
        recent = [seconds for at, seconds in self._latencies if at >= begin]
        return sum(recent) / len(recent) if recent else None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._queue:
                if self._stopping:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            group = self._take_group()
            if not group:
                continue
            self.commits += 1
            try:
                refused = await loop.run_in_executor(self._executor, self._commit, group)
            except Exception as error:  # noqa: BLE001 - whatever the store raises belongs to those who wait for it
                self._failed(group, error)
            else:
                self._latencies.append((loop.time(), loop.time() - group[0].since))
                self._on_commit(None)
                self._finish([pending for pending in group if pending not in refused], None)
                self._finish(refused, TooOldError(_TOO_OLD))

    def _commit(self, group: list[_Pending]) -> list[_Pending]:
        """Apply the rows of a group, in the writer's thread; returns those writes of which a row was refused.

        What the store refuses must not be acknowledged: the client would take a deletion for done that is nowhere.
        Nobody else makes the store refuse: repair has rules of its own.
        """
        if not self._refuses([row for pending in group for row in pending.rows]):
            return []
        if len(group) == 1:
            return group
        return [pending for pending in group if self._refuses(pending.rows)]

    def _refuses(self, rows: Sequence[Row]) -> bool:
        before = self._store.rows_refused
        self._store.apply(rows)
        return self._store.rows_refused > before

    def _failed(self, group: list[_Pending], error: Exception) -> None:
        self.failures += 1
        # Others may acknowledge these writes, so no client has to see that this disk is in need.
        held_back = self._log_limiter.permit(type(error).__name__)
        if held_back is not None:
            count = sum(len(pending.rows) for pending in group)
            _log.error("%d rows were not written: %s (held_back=%d)", count, error, held_back)
        self._on_commit(error)
        self._finish(group, StorageError(f"not written: {error}"))

    def _take_group(self) -> list[_Pending]:
        """The oldest waiting writes that fit one transaction; none when all waiters went away."""
        group: list[_Pending] = []
        rows = size_bytes = 0
        while self._queue:
            pending = self._queue[0]
            if pending.done.cancelled():
                # Whoever wrote has gone away before the commit began: it was never acknowledged and need not be done.
                self._drop_first()
                continue
            if group and (
                rows + len(pending.rows) > COMMIT_ROWS_MAX or size_bytes + pending.size_bytes > COMMIT_BYTES_MAX
            ):
                break
            self._drop_first()
            group.append(pending)
            rows += len(pending.rows)
            size_bytes += pending.size_bytes
        return group

    def _drop_first(self) -> None:
        pending = self._queue.popleft()
        self._queued_rows -= len(pending.rows)
        self._queued_bytes -= pending.size_bytes

    @staticmethod
    def _finish(group: list[_Pending], error: KvStoreError | None) -> None:
        for pending in group:
            if pending.done.done():
                continue
            if error is None:
                pending.done.set_result(None)
            else:
                # One object per waiter: a traceback belongs to one.
                pending.done.set_exception(type(error)(str(error)))
