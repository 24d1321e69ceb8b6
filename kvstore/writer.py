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
from typing import Protocol

from antientropy.logs import LogLimiter
from antientropy.store import Row
from kvstore.errors import OverloadedError, StoppingError, StorageError
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


class Applies(Protocol):
    """What the writer needs of a store."""

    def apply(self, rows: Iterable[Row]) -> int:
        """Put rows that win, durably, in one transaction; see :class:`antientropy.store.RowStore`."""
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
            rows = [row for pending in group for row in pending.rows]
            self.commits += 1
            try:
                await loop.run_in_executor(self._executor, self._store.apply, rows)
            except Exception as error:  # noqa: BLE001 - whatever the store raises belongs to those who wait for it
                self.failures += 1
                # Others may acknowledge these writes, so no client has to see that this disk is in need.
                held_back = self._log_limiter.permit(type(error).__name__)
                if held_back is not None:
                    _log.error("%d rows were not written: %s (held_back=%d)", len(rows), error, held_back)
                self._on_commit(error)
                self._finish(group, StorageError(f"not written: {error}"))
            else:
                self._latencies.append((loop.time(), loop.time() - group[0].since))
                self._on_commit(None)
                self._finish(group, None)

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
    def _finish(group: list[_Pending], error: StorageError | None) -> None:
        for pending in group:
            if pending.done.done():
                continue
            if error is None:
                pending.done.set_result(None)
            else:
                # One object per waiter: a traceback belongs to one.
                pending.done.set_exception(StorageError(str(error)))
