"""The answering side of a repair: what a replica tells a coordinator, and rows that it takes from it.

Store work runs in worker threads, never on the event loop. A session holds a snapshot; sessions are bounded in number
and in idle time, and an equal pair leaves none behind.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, TypeVar, TypeVarTuple

import grpc
import grpc.aio
import numpy as np

from antientropy import legacy_wire as wire
from antientropy.config import RepairConfig
from antientropy.core.hashing import HASH_VERSION
from antientropy.core.rows import RowDigests
from antientropy.core.tokens import TokenRange, node_ranges
from antientropy.errors import PeerMessageError, StoreError, StoreFullError
from antientropy.logs import LogLimiter
from antientropy.replica import Replica
from antientropy.snapshots import ReplicaSnapshot, open_in_thread
from antientropy.v1 import repair_pb2 as pb
from antientropy.v1 import repair_pb2_grpc

logger = logging.getLogger(__name__)

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True, eq=False)
class ServedSession:
    """A snapshot that a coordinator compares itself with."""

    snapshot: ReplicaSnapshot
    used_at: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One call at a time is inside a snapshot."""


class RefusedError(Exception):
    """A call that is answered with a status."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        self.code = code
        self.detail = detail
        super().__init__(detail)


@asynccontextmanager
async def answering(context: Context, refusals: LogLimiter) -> AsyncIterator[None]:
    """Turns what can go wrong in a call into its status: one translation for all calls."""
    try:
        yield
    except RefusedError as error:
        await _abort(context, refusals, error.code, error.detail)
    except PeerMessageError as error:
        await _abort(context, refusals, grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except StoreFullError as error:
        await _abort(context, refusals, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
    except StoreError as error:
        await _abort(context, refusals, grpc.StatusCode.FAILED_PRECONDITION, str(error))


async def _abort(context: Context, refusals: LogLimiter, code: grpc.StatusCode, detail: str) -> NoReturn:
    # A peer that is wrong repeats itself; of each reason the texts differ in names and numbers, so the status counts.
    held_back = refusals.permit((_host(context.peer()), code))
    if held_back is not None:
        logger.warning("repair call of %s refused: %s: %s (held_back=%d)", context.peer(), code.name, detail, held_back)
    await context.abort(code, detail)


def _host(peer: str) -> str:
    """The address of a caller without its port, which is another one for each connection."""
    return peer.rpartition(":")[0] or peer


class RepairPeerServicer(repair_pb2_grpc.RepairPeerServiceServicer):
    """Serves the stores of a node to its peers."""

    def __init__(self, replicas: Mapping[str, Replica], config: RepairConfig, executor: Executor) -> None:
        self._replicas = replicas
        self._config = config
        self._executor = executor
        self._sessions: dict[bytes, ServedSession] = {}
        self._opening = 0
        self._refusals = LogLimiter()
        self._stopped = False

    @property
    def session_count(self) -> int:
        """Sessions that hold a snapshot."""
        return len(self._sessions)

    async def close_idle(self) -> None:
        """Close sessions that nobody has used for ``session_idle_seconds``."""
        horizon = asyncio.get_running_loop().time() - self._config.session_idle_seconds
        idle = [name for name, one in self._sessions.items() if one.used_at <= horizon and not one.lock.locked()]
        for name in idle:
            logger.warning("repair session %s closed: idle for %g s", name.hex(), self._config.session_idle_seconds)
            await self._close(name)

    async def stop(self) -> None:
        """Close every session and refuse further calls."""
        self._stopped = True
        for session in self._sessions.values():
            await asyncio.to_thread(session.snapshot.close)
        self._sessions.clear()

    async def CompareRoots(  # noqa: N802 - named by the protocol
        self, request: pb.CompareRootsRequest, context: Context
    ) -> pb.CompareRootsResponse:
        """Compare, and open a session if the roots differ and one is wanted."""
        async with answering(context, self._refusals):
            return await self._compare_roots(request)
        raise AssertionError("unreachable: aborted")

    async def CompareNodes(  # noqa: N802 - named by the protocol
        self, request: pb.CompareNodesRequest, context: Context
    ) -> pb.CompareNodesResponse:
        """Hashes of the children of some nodes."""
        async with answering(context, self._refusals), self._session(request.session_id) as session:
            indices = wire.decode_indices(request.level, request.indices, level_max=session.snapshot.tree.depth - 1)
            hashes = await self._in_thread(session.snapshot.tree.child_hashes, request.level, indices)
            return pb.CompareNodesResponse(child_hashes=wire.encode_unsigned(hashes))
        raise AssertionError("unreachable: aborted")

    async def ListRowDigests(  # noqa: N802 - named by the protocol
        self, request: pb.ListRowDigestsRequest, context: Context
    ) -> AsyncIterator[pb.RowDigestsChunk]:
        """Digests of all rows below some nodes."""
        async with answering(context, self._refusals), self._session(request.session_id) as session:
            indices = wire.decode_indices(request.level, request.indices, level_max=session.snapshot.tree.depth)
            ranges = node_ranges(request.level, indices, session.snapshot.token_range)
            chunks: Iterator[RowDigests] = session.snapshot.digests(ranges)
            while (rows := await self._in_thread(next, chunks, None)) is not None:
                yield wire.encode_digests(rows)

    async def FetchRows(  # noqa: N802 - named by the protocol
        self, request: pb.FetchRowsRequest, context: Context
    ) -> AsyncIterator[pb.RowsChunk]:
        """The rows at some tokens."""
        async with answering(context, self._refusals), self._session(request.session_id) as session:
            tokens = wire.decode_tokens(request.tokens, session.snapshot.token_range)
            chunks = wire.encode_rows(session.snapshot.rows_at(tokens.tolist()))
            while (item := await self._in_thread(next, chunks, None)) is not None:
                yield item[0]

    async def PushRows(  # noqa: N802 - named by the protocol
        self, request_iterator: AsyncIterator[pb.PushRowsRequest], context: Context
    ) -> pb.PushRowsResponse:
        """Take rows: each chunk is checked whole, then applied where its rows win, durable before the next is read."""
        async with answering(context, self._refusals):
            received = applied = 0
            replica: Replica | None = None
            async for request in request_iterator:
                if replica is None:
                    replica = self._replica(request.keyspace)
                apply = partial(replica.store.apply, from_repair=True)
                rows = await self._in_thread(wire.decode_rows, request.rows)
                applied += await self._in_thread(apply, rows)
                received += len(rows)
            return pb.PushRowsResponse(rows_received=received, rows_applied=applied)
        raise AssertionError("unreachable: aborted")

    async def CloseSession(  # noqa: N802 - named by the protocol
        self, request: pb.CloseSessionRequest, context: Context
    ) -> pb.CloseSessionResponse:
        """Give the snapshot back."""
        async with answering(context, self._refusals):
            await self._close(request.session_id)
            return pb.CloseSessionResponse()
        raise AssertionError("unreachable: aborted")

    async def _compare_roots(self, request: pb.CompareRootsRequest) -> pb.CompareRootsResponse:
        replica = self._replica(request.keyspace)
        token_range = wire.token_range_of(request.first_token, request.last_token)
        theirs = wire.root_of(request.root_digest, request.row_count)
        if request.hash_version != HASH_VERSION:
            raise RefusedError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"hash version {request.hash_version} is not spoken here (but {HASH_VERSION}); use one release on all",
            )
        ours = await self._in_thread(replica.root, token_range)
        response = pb.CompareRootsResponse(equal=ours == theirs, root_digest=ours.digest, row_count=ours.count)
        if response.equal or not request.open_session:
            return response
        name, session = await self._open(replica, token_range)
        root = session.snapshot.tree.root
        response.root_digest, response.row_count = root.digest, root.count
        response.session_id, response.tree_depth = name, session.snapshot.tree.depth
        response.child_hashes = wire.encode_unsigned(session.snapshot.tree.child_hashes(0, np.zeros(1, np.uint32)))
        return response

    async def _open(self, replica: Replica, token_range: TokenRange) -> tuple[bytes, ServedSession]:
        await self.close_idle()
        if len(self._sessions) + self._opening >= self._config.sessions_max:
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._config.sessions_max} repair sessions are open here; try again when one has ended",
            )
        self._opening += 1
        try:
            snapshot = await open_in_thread(self._executor, replica, token_range)
        finally:
            self._opening -= 1
        if self._stopped:
            snapshot.close()
            raise _stopping()
        session = ServedSession(snapshot, asyncio.get_running_loop().time())
        name = secrets.token_bytes(wire.SESSION_ID_BYTES)
        self._sessions[name] = session
        return name, session

    def _replica(self, keyspace: str) -> Replica:
        replica = self._replicas.get(wire.check_keyspace(keyspace))
        if replica is None:
            raise RefusedError(grpc.StatusCode.NOT_FOUND, f"keyspace {keyspace!r} is not served here")
        return replica

    @asynccontextmanager
    async def _session(self, name: bytes) -> AsyncIterator[ServedSession]:
        session = self._sessions.get(name)
        if session is None:
            raise RefusedError(
                grpc.StatusCode.FAILED_PRECONDITION,
                "unknown repair session: it was closed, was idle for too long, or this node was restarted",
            )
        async with session.lock:
            session.used_at = asyncio.get_running_loop().time()
            try:
                yield session
            finally:
                session.used_at = asyncio.get_running_loop().time()

    async def _close(self, name: bytes) -> None:
        session = self._sessions.pop(name, None)
        if session is not None:
            await self._in_thread(session.snapshot.close)

    async def _in_thread(self, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        if self._stopped:
            raise _stopping()
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)


def _stopping() -> RefusedError:
    return RefusedError(grpc.StatusCode.UNAVAILABLE, "this node is shutting down")
