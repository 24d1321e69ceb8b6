"""The answering side of a repair: what a replica tells a coordinator, rows that it takes, and rows that it gives.

Store work runs in worker threads, never on the event loop. Every request may arrive twice, late, or after its session
has closed: see :mod:`antientropy.served` for what is remembered. Nothing of a message is applied before all of it has
been checked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import aclosing, contextmanager
from random import Random
from typing import Final

import grpc
from google.protobuf.message import Message

from antientropy.config import RepairConfig
from antientropy.core.deletes import PurgeMode
from antientropy.core.tokens import TokenRange
from antientropy.errors import PeerMessageError, StoreClosedError, StoreError, StoreFullError
from antientropy.leases import Lease, LeaseDenied, LeaseTable
from antientropy.limits import PURGE_ROWS_PER_SLICE_MAX
from antientropy.logs import LogLimiter
from antientropy.marks import ReplicaMarks
from antientropy.membership import Membership
from antientropy.peer_client import Spend, unthrottled
from antientropy.peer_compare import Comparisons
from antientropy.peer_rows import RowCalls
from antientropy.replica import Replica
from antientropy.served import ServedSession, ServedSessions, lost_session
from antientropy.serving import Serving, shutting_down
from antientropy.transport.base import CallError, PeerTransport
from antientropy.v1 import repair_pb2 as pb

logger = logging.getLogger(__name__)


class PeerService:
    """Serves the replicas of a node to its peers: a :class:`~antientropy.transport.base.PeerAnswers`.

    Give it to a transport (``antientropy.transport.grpc.register``), call :meth:`sweep` now and then, :meth:`stop` it.

    Args:
        replicas: By keyspace.
        transport: For rows that go to a third replica directly.
        executor: For all work on stores.
        random: Numbers of streams, pauses between attempts.
        spend: The throttle.
        epoch_seconds: The wall clock.
    """

    def __init__(
        self,
        replicas: Mapping[str, Replica],
        membership: Membership,
        config: RepairConfig,
        *,
        transport: PeerTransport,
        executor: Executor,
        random: Random,
        spend: Spend = unthrottled,
        epoch_seconds: Callable[[], float] = time.time,
    ) -> None:
        self._sessions = ServedSessions(LeaseTable(config.lease_seconds), executor, self._ended)
        self.marks: Final = {name: ReplicaMarks(replica.store, config.purge) for name, replica in replicas.items()}
        """What each replica has promised about deletes, by keyspace; the coordinator of this node works with it too."""
        self._node = Serving(
            replicas=replicas,
            marks=self.marks,
            membership=membership,
            config=config,
            transport=transport,
            executor=executor,
            random=random,
            spend=spend,
            epoch_seconds=epoch_seconds,
            sessions=self._sessions,
        )
        self._comparisons = Comparisons(self._node)
        self._rows = RowCalls(self._node)
        self._background: set[asyncio.Task[None]] = set()
        self._refusals = LogLimiter()

    @property
    def session_count(self) -> int:
        """Sessions that are open here."""
        return len(self._sessions)

    @property
    def snapshot_count(self) -> int:
        """Snapshots that are held for coordinators."""
        return self._sessions.snapshot_count

    # --- leases of the own sessions, for the coordinator of this node ---

    def hold(self, keyspace: str, token_range: TokenRange, session: int) -> Lease | LeaseDenied:
        """Take or renew the lease that this node needs as a coordinator."""
        return self._sessions.acquire(keyspace, token_range, self._node.membership.local_endpoint, session)

    def keep(self, session: int) -> bool:
        """Renew it; False: it is gone."""
        return self._sessions.leases.renew(session, asyncio.get_running_loop().time())

    def release(self, session: int) -> None:
        """Give it back."""
        self._sessions.leases.release(session)

    # --- life ---

    async def sweep(self) -> None:
        """Close the sessions whose coordinator is silent. To be called a few times in ``lease_seconds``."""
        await self._sessions.sweep()

    async def stop(self) -> None:
        """Close every session and refuse further calls. Idempotent."""
        self._node.stopped = True
        for session in self._sessions:
            await self._sessions.close(session)
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    # --- calls ---

    async def unary(self, method: str, request: Message, caller: str) -> Message:
        """As the Protocol says."""
        with self._answering(caller):
            match request:
                case pb.CompareRequest():
                    return await self._comparisons.compare(request)
                case pb.LocateRequest():
                    return await self._rows.locate(request)
                case pb.SendRequest():
                    return await self._rows.send(request)
                case pb.HeartbeatRequest():
                    self._sessions.get(request.session)
                    return pb.HeartbeatResponse()
                case pb.CloseRequest():
                    session = self._sessions.find(request.session)
                    if session is not None:
                        await self._sessions.close(session)
                    return pb.CloseResponse()
            raise CallError(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served")

    async def response_stream(self, method: str, request: Message, caller: str) -> AsyncGenerator[Message, None]:
        """As the Protocol says."""
        with self._answering(caller):
            if not isinstance(request, pb.FetchRequest):
                raise CallError(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served")
            async with aclosing(self._rows.fetch(request)) as stream:
                async for answer in stream:
                    yield answer

    async def request_stream(self, method: str, requests: AsyncIterator[Message], caller: str) -> Message:
        """As the Protocol says."""
        with self._answering(caller):
            if method != "Push":
                raise CallError(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served")
            return await self._rows.push(requests)

    @contextmanager
    def _answering(self, caller: str) -> Iterator[None]:
        """Turns what can go wrong in a call into its status: one translation for all calls."""
        try:
            if self._node.stopped:
                raise shutting_down()
            yield
        except CallError as error:
            self._log(caller, error)
            raise
        except PeerMessageError as error:
            raise self._log(caller, CallError(grpc.StatusCode.INVALID_ARGUMENT, str(error))) from error
        except StoreClosedError as error:
            raise self._log(caller, lost_session()) from error
        except StoreFullError as error:
            raise self._log(caller, CallError(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))) from error
        except StoreError as error:
            raise self._log(caller, CallError(grpc.StatusCode.FAILED_PRECONDITION, str(error))) from error

    def _log(self, caller: str, error: CallError) -> CallError:
        # A peer that is wrong repeats itself; texts of one reason differ in names and numbers, so the status counts.
        held_back = self._refusals.permit((caller.rpartition(":")[0] or caller, error.code))
        if held_back is not None:
            logger.warning(
                "repair call of %s refused: %s: %s (held_back=%d)", caller, error.code.name, error.detail, held_back
            )
        return error

    # --- purging ---

    def _ended(self, session: ServedSession) -> None:
        """A session has closed: what it permitted to purge is purged now, when nobody compares the range."""
        wanted = self._node.config.purge is PurgeMode.REPAIR
        if session.purge_version and wanted and not self._node.stopped:
            task = asyncio.get_running_loop().create_task(self._purge(session), name="antientropy purge")
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _purge(self, session: ServedSession) -> None:
        store = self._node.replicas[session.keyspace].store
        try:
            held = [one.token_range for one in self._node.membership.ranges(session.keyspace)]
            permitted = self.marks[session.keyspace].floors_permitted
            floors = await self._node.in_thread(permitted, session.purge_version, session.token_range, held)
            while True:
                purged = await self._node.in_thread(store.purge, floors, PURGE_ROWS_PER_SLICE_MAX)
                if purged < PURGE_ROWS_PER_SLICE_MAX:
                    return
                await asyncio.sleep(self._node.config.purge_interval_seconds)
        except (StoreError, CallError) as error:
            logger.warning("tombstones of %s were not purged, the next repair tries again: %s", session.keyspace, error)
