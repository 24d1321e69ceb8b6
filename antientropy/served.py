"""The sessions that a replica serves: each is a lease on a range and most often a snapshot of it.

Leases and snapshots live and die together. What a coordinator may repeat is remembered here: the last comparison, also
of sessions that have closed, and streams of rows that were taken or sent.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

import grpc

from antientropy.core.rows import Row
from antientropy.core.tokens import TokenRange
from antientropy.errors import StoreClosedError
from antientropy.leases import Lease, LeaseDenied, LeaseTable
from antientropy.limits import FINISHED_SESSIONS_MAX, STREAMS_PER_SESSION_MAX
from antientropy.snapshots import ReplicaSnapshot
from antientropy.transport.base import CallError
from antientropy.v1 import repair_pb2 as pb

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class SharedSnapshot:
    """A snapshot that several calls use: one thread at a time is inside, and none after it has been closed."""

    def __init__(self, snapshot: ReplicaSnapshot) -> None:
        self._snapshot = snapshot
        self._lock = threading.Lock()
        self._closed = False

    def use(self, function: Callable[[ReplicaSnapshot], Result]) -> Result:
        """Do something with it. Blocks.

        Raises:
            StoreClosedError: it has been closed.
        """
        with self._lock:
            if self._closed:
                raise StoreClosedError("the snapshot of this repair session has been closed")
            return function(self._snapshot)

    def rows_at(self, tokens: Sequence[int]) -> Iterator[Row]:
        """As the snapshot's, but between two rows others may use it."""
        rows = self.use(lambda snapshot: snapshot.rows_at(tokens))
        while (row := self.use(lambda _snapshot: next(rows, None))) is not None:
            yield row

    def close(self) -> None:
        """Give the store's pages back. Idempotent."""
        with self._lock:
            self._closed = True
            self._snapshot.close()


@dataclass(slots=True, eq=False)
class TakenStream:
    """Rows that were taken in one stream: by the digest of each chunk, how many it holds and how many of them won."""

    chunks: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True, eq=False)
class ServedSession:
    """One session of a coordinator."""

    name: int
    keyspace: str
    token_range: TokenRange
    owner: str
    snapshot: SharedSnapshot | None = None
    turn: int = -1
    """Of the last comparison that was answered."""
    answer: pb.CompareResponse | None = None
    hashes: int = 0
    """Which hashes its coordinator speaks."""
    closed: bool = False
    working: int = 0
    """Calls that keep a thread busy: the lease does not expire under them."""
    purge_version: int = 0
    """What may be purged when the session has ended."""
    comparing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One comparison at a time."""
    taken: OrderedDict[int, TakenStream] = field(default_factory=OrderedDict)
    sent: OrderedDict[int, asyncio.Task[pb.SendResponse]] = field(default_factory=OrderedDict)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """A thread works for this session."""
        self.working += 1
        try:
            yield
        finally:
            self.working -= 1

    def taken_stream(self, number: int) -> TakenStream:
        """What was taken in a stream so far; the oldest ones are forgotten: their repetition is harmless."""
        stream = self.taken.setdefault(number, TakenStream())
        while len(self.taken) > STREAMS_PER_SESSION_MAX:
            self.taken.popitem(last=False)
        return stream

    def rows(self) -> SharedSnapshot:
        """The snapshot.

        Raises:
            CallError: there is none.
        """
        if self.snapshot is None:
            raise lost_session()
        return self.snapshot


def lost_session() -> CallError:
    """What the messages of a session get that is not open."""
    return CallError(
        grpc.StatusCode.ABORTED,
        "unknown repair session: it was closed, its coordinator was silent for too long, or this node was restarted",
    )


def late_message() -> CallError:
    """What messages get that a session has left behind."""
    return CallError(grpc.StatusCode.ABORTED, "late message of a repair session that has gone on since")


class ServedSessions:
    """All sessions of a node, and its leases.

    Args:
        leases: Also those that this node holds as a coordinator.
        executor: Snapshots are closed there.
        on_closed: Called for each session that has ended, in whatever way.
    """

    def __init__(
        self, leases: LeaseTable, executor: Executor, on_closed: Callable[[ServedSession], None] = lambda _session: None
    ) -> None:
        self.leases: Final = leases
        self._executor = executor
        self._on_closed = on_closed
        self._sessions: dict[int, ServedSession] = {}
        self._finished: OrderedDict[int, tuple[int, pb.CompareResponse | None]] = OrderedDict()

    def __len__(self) -> int:
        """Sessions that are open."""
        return len(self._sessions)

    def __iter__(self) -> Iterator[ServedSession]:
        """Those sessions."""
        return iter(list(self._sessions.values()))

    @property
    def snapshot_count(self) -> int:
        """Sessions that hold a snapshot."""
        return sum(session.snapshot is not None for session in self._sessions.values())

    def acquire(self, keyspace: str, token_range: TokenRange, owner: str, session: int) -> Lease | LeaseDenied:
        """The lease of a session, of this node's own ones too."""
        now = _now()
        self._keep_busy(now)
        return self.leases.acquire(keyspace, token_range, owner=owner, session=session, now=now)

    def open(self, keyspace: str, token_range: TokenRange, owner: str, name: int) -> ServedSession | LeaseDenied:
        """A new session, or the one of that name; what it supersedes is closed by the next :meth:`sweep`."""
        lease = self.acquire(keyspace, token_range, owner, name)
        if isinstance(lease, LeaseDenied):
            return lease
        if name not in self._sessions:
            turn, _ = self._finished.get(name, (-1, None))
            self._sessions[name] = ServedSession(name, keyspace, token_range, owner, turn=turn)
        return self._sessions[name]

    def find(self, name: int) -> ServedSession | None:
        """The session of that name, its lease renewed; None: it is not open, or its lease is over."""
        session = self._sessions.get(name)
        now = _now()
        self._keep_busy(now)
        return session if session is not None and self.leases.renew(name, now) else None

    def get(self, name: int) -> ServedSession:
        """As :meth:`find`.

        Raises:
            CallError: it is not open.
        """
        session = self.find(name)
        if session is None:
            raise lost_session()
        return session

    def finished(self, name: int) -> tuple[int, pb.CompareResponse | None] | None:
        """The last turn of a session that has closed, and what it was answered; None: nothing is known of it."""
        return self._finished.get(name)

    async def close(self, session: ServedSession) -> None:
        """Give snapshot and lease back. Idempotent."""
        if session.closed:
            return
        session.closed = True
        if self._sessions.get(session.name) is session:
            del self._sessions[session.name]
            self.leases.release(session.name)
        self._finished.pop(session.name, None)
        self._finished[session.name] = (session.turn, session.answer)
        while len(self._finished) > FINISHED_SESSIONS_MAX:
            self._finished.popitem(last=False)
        sending = list(session.sent.values())
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        await self.drop_snapshot(session)
        self._on_closed(session)

    async def drop_snapshot(self, session: ServedSession) -> None:
        """Close the snapshot; the session stays."""
        snapshot, session.snapshot = session.snapshot, None
        if snapshot is not None:
            await asyncio.get_running_loop().run_in_executor(self._executor, snapshot.close)

    async def sweep(self) -> None:
        """Close the sessions whose lease has expired or was taken over."""
        now = _now()
        self._keep_busy(now)
        self.leases.expired(now)
        for session in self:
            if not self.leases.holds(session.name, now):
                logger.warning(
                    "repair session %016x of %s closed: its coordinator was silent for %g s, or has begun another one",
                    session.name,
                    session.owner,
                    self.leases.lease_seconds,
                )
                await self.close(session)

    def _keep_busy(self, now: float) -> None:
        for session in self._sessions.values():
            if session.working:
                self.leases.renew(session.name, now)


def _now() -> float:
    return asyncio.get_running_loop().time()
