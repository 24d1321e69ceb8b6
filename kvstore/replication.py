"""The coordinator: which replicas a request goes to, and how many answers make it true.

* Every node of the cluster holds every row. A later ring replaces :class:`EveryNode`; the coordinator only asks
  ``replicas_for(token)``.
* A write goes to all replicas in parallel, this node included, and is acknowledged when a majority has it on disk. A
  quorum read asks all live replicas and takes the newest row of the first majority that answers. Two majorities
  share a replica, so a read sees every write that was acknowledged before it began.
* The majority is one of ``max(replication_factor, replicas known)``. A node that has not met the others yet so never
  takes itself for the whole cluster: with replication factor 3 nothing is accepted before two nodes know each other.
* Replicas that are DOWN are not tried. Nothing but repair brings them what they missed: there are no hints and no
  repair on read.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

from antientropy.logs import LogLimiter
from antientropy.store import Row
from kvstore.errors import (
    KvStoreError,
    NotEnoughReplicasError,
    ReadTimeoutError,
    ReplicaFailureError,
    WriteTimeoutError,
)
from kvstore.hlc import HybridLogicalClock
from kvstore.limits import PAGE_ROWS_MAX

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Consistency(Enum):
    """How many replicas answer a read."""

    LOCAL = "local"
    """Only this node's own: fast, and it may miss what this node missed."""
    QUORUM = "quorum"
    """A majority."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """What a client asks for: put a value, or delete. The coordinator adds the version."""

    key: bytes
    value: bytes = b""
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of a scan, in the order of (token, key); ``next_after_key`` is None on the last page."""

    rows: tuple[Row, ...]
    next_after_key: bytes | None


class Placement(Protocol):
    """Where rows live, at one moment."""

    @property
    def replication_factor(self) -> int:
        """How many replicas there are meant to be."""
        ...

    def replicas_for(self, token: int) -> tuple[str, ...]:
        """The endpoints that hold a token, dead ones included, ordered."""
        ...

    def is_alive(self, endpoint: str) -> bool:
        """Whether an endpoint is worth a call; true for this node."""
        ...


@dataclass(frozen=True, slots=True)
class EveryNode:
    """Every node holds every row."""

    endpoints: tuple[str, ...]
    alive: frozenset[str]
    replication_factor: int

    def replicas_for(self, token: int) -> tuple[str, ...]:  # noqa: ARG002 - the seam for a ring
        """All nodes."""
        return self.endpoints

    def is_alive(self, endpoint: str) -> bool:
        """As gossip held it when this was made."""
        return endpoint in self.alive


def majority_of(replication_factor: int, replicas_known: int) -> tuple[int, int]:
    """(how many must answer, of how many)."""
    total = max(replication_factor, replicas_known)
    return total // 2 + 1, total


class Replicas(Protocol):
    """Calls to one replica, near or far. Each returns or raises a :class:`KvStoreError` by its deadline."""

    async def apply_rows(self, endpoint: str, rows: Sequence[Row], timeout_seconds: float) -> None:
        """Make rows durable there."""
        ...

    async def read_rows(self, endpoint: str, keys: Sequence[bytes], timeout_seconds: float) -> Sequence[Row]:
        """What it holds of ``keys``; unknown ones are left out."""
        ...

    async def scan_rows(
        self, endpoint: str, prefix: bytes, after_key: bytes, rows_max: int, timeout_seconds: float
    ) -> Page:
        """One page of what it holds, behind ``after_key`` (empty: from the beginning)."""
        ...


def newest(rows: Iterable[Row]) -> Row | None:
    """The row that wins: the greatest (version, digest). All must have the same key."""
    return max(rows, key=lambda row: (row.version, row.digest), default=None)


class Coordinator:
    """Serves reads and writes of clients; every node has one.

    Args:
        local_endpoint: This node.
        placement: Gives the placement as it is now.
        replicas: How to reach them.
        clock: Dates writes.
        write_timeout_seconds: The deadline of a write, unless the client's own is shorter.
        read_timeout_seconds: The same for a read, and for each page of a scan.
    """

    def __init__(
        self,
        *,
        local_endpoint: str,
        placement: Callable[[], Placement],
        replicas: Replicas,
        clock: HybridLogicalClock,
        write_timeout_seconds: float,
        read_timeout_seconds: float,
    ) -> None:
        self._local_endpoint = local_endpoint
        self._placement = placement
        self._replicas = replicas
        self._clock = clock
        self._write_timeout_seconds = write_timeout_seconds
        self._read_timeout_seconds = read_timeout_seconds
        self._log_limiter = LogLimiter()
        self._background: set[asyncio.Task[object]] = set()

    async def write(self, mutations: Sequence[Mutation], timeout_seconds: float | None = None) -> int:
        """Write in this order; returns the version of the first, the others follow by one.

        Raises:
            NotEnoughReplicasError: nothing was sent.
            ClockDriftError: the clock of this node is not usable; nothing was sent.
            ReplicaFailureError: a majority cannot be reached any more; StorageError, OverloadedError when this is
                why every one of the failed replicas refused.
            WriteTimeoutError: in time no majority acknowledged.
        """
        timeout_seconds = min(timeout_seconds or self._write_timeout_seconds, self._write_timeout_seconds)
        placement = self._placement()
        first_version = self._clock.now(len(mutations))
        groups: dict[tuple[str, ...], list[Row]] = {}
        for offset, mutation in enumerate(mutations):
            row = Row(mutation.key, first_version + offset, mutation.value, mutation.deleted)
            groups.setdefault(placement.replicas_for(row.token), []).append(row)
        # All or nothing where it can be told beforehand.
        live = {endpoints: self._live(placement, endpoints) for endpoints in groups}
        await asyncio.gather(
            *(
                self._write_group(placement, endpoints, live[endpoints], rows, timeout_seconds)
                for endpoints, rows in groups.items()
            )
        )
        return first_version

    async def _write_group(
        self,
        placement: Placement,
        endpoints: tuple[str, ...],
        live: list[str],
        rows: list[Row],
        timeout_seconds: float,
    ) -> None:
        required, total = majority_of(placement.replication_factor, len(endpoints))
        calls = {endpoint: self._replicas.apply_rows(endpoint, rows, timeout_seconds) for endpoint in live}
        try:
            await self._first_answers(calls, required, total, timeout_seconds, keep_going=True)
        except TimeoutError as error:
            raise WriteTimeoutError(f"{error}; the write may still arrive") from None

    async def read(self, key: bytes, consistency: Consistency, timeout_seconds: float | None = None) -> Row | None:
        """The newest row of ``key``, which may be a tombstone; None when nothing was ever written.

        Raises:
            NotEnoughReplicasError, ReplicaFailureError, ReadTimeoutError: as their names say.
        """
        timeout_seconds = min(timeout_seconds or self._read_timeout_seconds, self._read_timeout_seconds)
        if consistency is Consistency.LOCAL:
            rows = await self._replicas.read_rows(self._local_endpoint, [key], timeout_seconds)
            return newest(rows)
        placement = self._placement()
        endpoints = placement.replicas_for(Row(key, 0, b"").token)
        live = self._live(placement, endpoints)
        required, total = majority_of(placement.replication_factor, len(endpoints))
        calls = {endpoint: self._replicas.read_rows(endpoint, [key], timeout_seconds) for endpoint in live}
        try:
            answers = await self._first_answers(calls, required, total, timeout_seconds, keep_going=False)
        except TimeoutError as error:
            raise ReadTimeoutError(str(error)) from None
        row = newest(row for rows in answers for row in rows)
        if row is not None:
            # What is written after this read wins over what was read.
            self._clock.observe(row.version)
        return row

    async def scan(
        self,
        *,
        prefix: bytes = b"",
        after_key: bytes = b"",
        rows_max: int = 0,
        consistency: Consistency = Consistency.QUORUM,
        include_tombstones: bool = False,
    ) -> AsyncIterator[Sequence[Row]]:
        """Batches of rows behind ``after_key``, in the order of (token, key); ``rows_max`` 0 is no limit.

        Rows that change meanwhile appear in their old or their new form.

        Raises:
            NotEnoughReplicasError, ReplicaFailureError, ReadTimeoutError: as their names say.
        """
        sources = [
            _Source(self._page_reader(endpoint, prefix, rows_max), after_key)
            for endpoint in self._scan_endpoints(consistency)
        ]
        remaining = rows_max
        async for batch in _merge(sources):
            rows = [row for row in batch if include_tombstones or not row.deleted]
            if rows_max:
                rows = rows[:remaining]
                remaining -= len(rows)
            if rows:
                yield rows
            if rows_max and remaining == 0:
                return

    def _scan_endpoints(self, consistency: Consistency) -> list[str]:
        if consistency is Consistency.LOCAL:
            return [self._local_endpoint]
        placement = self._placement()
        endpoints = placement.replicas_for(0)
        live = self._live(placement, endpoints)
        required, _total = majority_of(placement.replication_factor, len(endpoints))
        # This node first: its pages travel nowhere.
        return sorted(live, key=lambda endpoint: (endpoint != self._local_endpoint, endpoint))[:required]

    def _page_reader(self, endpoint: str, prefix: bytes, rows_max: int) -> Callable[[bytes], Awaitable[Page]]:
        page_rows = min(rows_max, PAGE_ROWS_MAX) if rows_max else PAGE_ROWS_MAX

        async def read_page(after_key: bytes) -> Page:
            timeout_seconds = self._read_timeout_seconds
            return await self._replicas.scan_rows(endpoint, prefix, after_key, page_rows, timeout_seconds)

        return read_page

    def _live(self, placement: Placement, endpoints: tuple[str, ...]) -> list[str]:
        required, total = majority_of(placement.replication_factor, len(endpoints))
        live = [endpoint for endpoint in endpoints if placement.is_alive(endpoint)]
        if len(live) < required:
            raise NotEnoughReplicasError.of(required, total, len(live))
        return live

    async def _first_answers(
        self,
        calls: Mapping[str, Awaitable[_T]],
        required: int,
        total: int,
        timeout_seconds: float,
        *,
        keep_going: bool,
    ) -> list[_T]:
        """The first ``required`` answers; those that come later are awaited in the background or given up."""
        tasks: dict[asyncio.Future[_T], str] = {asyncio.ensure_future(call): name for name, call in calls.items()}
        pending: set[asyncio.Future[_T]] = set(tasks)
        answers: list[_T] = []
        failures: dict[str, KvStoreError] = {}
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + timeout_seconds
        try:
            while len(answers) < required:
                if len(tasks) - len(failures) < required:
                    raise _combined(failures, required, total)
                done, pending = await asyncio.wait(
                    pending, timeout=max(0.0, ends_at - loop.time()), return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    raise TimeoutError(
                        f"{len(answers)} of {total} replicas answered within {timeout_seconds:g} s, {required} needed"
                    )
                for task in done:
                    error = task.exception()
                    if error is None:
                        answers.append(task.result())
                    elif isinstance(error, KvStoreError):
                        failures[tasks[task]] = error
                    else:
                        raise error
        finally:
            self._leave(pending, tasks, keep_going=keep_going)
        if keep_going:
            for endpoint, failure in failures.items():
                self._missed(endpoint, failure)
        return answers

    def _leave(
        self, pending: set[asyncio.Future[_T]], tasks: dict[asyncio.Future[_T], str], *, keep_going: bool
    ) -> None:
        for task in pending:
            if not keep_going:
                task.cancel()
            self._background.add(task)  # type: ignore[arg-type]  # a Task: its coroutine came from `calls`
            replica = tasks[task] if keep_going else None
            task.add_done_callback(lambda task, replica=replica: self._left(task, replica))  # type: ignore[misc]

    def _left(self, task: asyncio.Task[object], replica: str | None) -> None:
        """Take note of the end of a call; ``replica`` is the one that was to write, None for a read."""
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and replica is not None:
            self._missed(replica, error)

    def _missed(self, endpoint: str, error: BaseException) -> None:
        """A write failed at one replica, whatever the others say: only repair brings it what it lacks."""
        held_back = self._log_limiter.permit(endpoint)
        if held_back is not None:
            _log.warning(
                "replica %s missed a write: %s; run `nodetool repair` when it is well again (held_back=%d)",
                endpoint,
                error,
                held_back,
            )

    async def close(self) -> None:
        """Wait for calls whose answers nobody needed; each has its own deadline."""
        if self._background:
            await asyncio.wait(self._background)


def _combined(failures: dict[str, KvStoreError], required: int, total: int) -> KvStoreError:
    """One error for all: of their class when they agree."""
    text = "; ".join(f"{endpoint}: {error}" for endpoint, error in sorted(failures.items()))
    kinds = {type(error) for error in failures.values()}
    kind = kinds.pop() if len(kinds) == 1 else ReplicaFailureError
    return kind(f"needs {required} of {total} replicas: {text}")


class _Source:
    """The rows of one replica, page by page."""

    def __init__(self, read_page: Callable[[bytes], Awaitable[Page]], after_key: bytes) -> None:
        self._read_page = read_page
        self._after_key: bytes | None = after_key
        self.rows: list[tuple[int, bytes, Row]] = []

    @property
    def exhausted(self) -> bool:
        """No rows here and none to come."""
        return not self.rows and self._after_key is None

    async def fill(self) -> None:
        """Fetch until there are rows or the end is reached."""
        while not self.rows and self._after_key is not None:
            page = await self._read_page(self._after_key)
            self.rows = [(row.token, row.key, row) for row in page.rows]
            self._after_key = page.next_after_key


async def _merge(sources: list[_Source]) -> AsyncIterator[list[Row]]:
    """Rows of all sources in order, the newest of each key; one batch per round of pages."""
    while True:
        await asyncio.gather(*(source.fill() for source in sources))
        sources = [source for source in sources if source.rows]
        if not sources:
            return
        # Up to the end of the shortest page everything is known from every source.
        horizon = min(source.rows[-1][:2] for source in sources)
        parts = []
        for source in sources:
            cut = len(source.rows)
            if source.rows[-1][:2] > horizon:
                cut = next(index for index, entry in enumerate(source.rows) if entry[:2] > horizon)
            parts.append(source.rows[:cut])
            source.rows = source.rows[cut:]
        batch: list[Row] = []
        for _token, key, row in heapq.merge(*parts, key=lambda entry: entry[:2]):
            if batch and batch[-1].key == key:
                batch[-1] = max(batch[-1], row, key=lambda candidate: (candidate.version, candidate.digest))
            else:
                batch.append(row)
        yield batch
