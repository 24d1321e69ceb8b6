"""The asking side of the peer protocol: typed calls to one replica, each with a deadline, checked, and counted.

Everything that can go wrong with a peer leaves here as :class:`~antientropy.errors.PeerError`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from antientropy import legacy_wire as wire
from antientropy.config import RepairConfig
from antientropy.core.hashing import HASH_VERSION
from antientropy.core.merkle import Root
from antientropy.core.rows import Row, RowDigests
from antientropy.core.session import AskDigests, AskNodes, RepairStatistics
from antientropy.core.tokens import TokenRange
from antientropy.errors import PeerError, PeerMessageError
from antientropy.limits import TREE_DEPTH_MAX
from antientropy.v1 import repair_pb2 as pb
from antientropy.v1 import repair_pb2_grpc


@dataclass(frozen=True, slots=True, eq=False)
class RootsAnswer:
    """What a peer said to the coordinator's root."""

    equal: bool
    root: Root
    tree_depth: int = 0
    """0: no session was opened."""
    child_hashes: NDArray[np.uint64] | None = None
    """Shape (16,)."""


class PeerClient:
    """Calls to one peer about one range of one keyspace. Counts into ``statistics``."""

    def __init__(
        self,
        endpoint: str,
        channel: grpc.aio.Channel,
        *,
        keyspace: str,
        token_range: TokenRange,
        config: RepairConfig,
        statistics: RepairStatistics,
    ) -> None:
        self.endpoint = endpoint
        self._stub = repair_pb2_grpc.RepairPeerServiceStub(channel)
        self._keyspace = keyspace
        self._range = token_range
        self._config = config
        self._statistics = statistics
        self._session_id = b""

    async def compare_roots(self, root: Root, *, open_session: bool) -> RootsAnswer:
        """One round trip: equal, or a session is open."""
        request = pb.CompareRootsRequest(
            keyspace=self._keyspace,
            first_token=self._range.first,
            last_token=self._range.last,
            root_digest=root.digest,
            row_count=root.count,
            hash_version=HASH_VERSION,
            open_session=open_session,
        )
        with self._peer_errors():
            answer = await self._stub.CompareRoots(request, timeout=self._config.rpc_timeout_seconds)
            self._count(request, answer)
            theirs = wire.root_of(answer.root_digest, answer.row_count)
            if answer.equal != (theirs == root) and not answer.session_id:
                raise PeerMessageError("roots that are equal are called unequal, or the other way round")
            if answer.equal or not open_session:
                return RootsAnswer(answer.equal, theirs)
            if len(answer.session_id) != wire.SESSION_ID_BYTES or not 1 <= answer.tree_depth <= TREE_DEPTH_MAX:
                raise PeerMessageError("a session without a name or with an impossible tree")
            self._session_id = answer.session_id
            hashes = wire.decode_child_hashes(answer.child_hashes, 1)[0]
            return RootsAnswer(equal=False, root=theirs, tree_depth=answer.tree_depth, child_hashes=hashes)

    async def child_hashes(self, asked: AskNodes) -> NDArray[np.uint64]:
        """Hashes of the children of some nodes. Shape (n, 16)."""
        request = pb.CompareNodesRequest(
            session_id=self._session_id, level=asked.level, indices=wire.encode_unsigned(asked.indices)
        )
        with self._peer_errors():
            answer = await self._stub.CompareNodes(request, timeout=self._config.rpc_timeout_seconds)
            self._count(request, answer)
            return wire.decode_child_hashes(answer.child_hashes, len(asked.indices))

    async def row_digests(self, asked: AskDigests, ranges: list[TokenRange]) -> AsyncGenerator[RowDigests, None]:
        """Digests of all rows below some nodes, which make up ``ranges``."""
        request = pb.ListRowDigestsRequest(
            session_id=self._session_id, level=asked.level, indices=wire.encode_unsigned(asked.indices)
        )
        bounds = np.array([(one.first, one.last) for one in ranges], np.uint64).reshape(-1, 2)
        with self._peer_errors():
            self._count(request)
            call = self._stub.ListRowDigests(request, timeout=self._config.stream_timeout_seconds)
            try:
                async for chunk in self._messages(call):
                    self._statistics.find_bytes += chunk.ByteSize()
                    yield wire.decode_digests(chunk, bounds)
            finally:
                call.cancel()

    async def rows(self, tokens: NDArray[np.uint64]) -> AsyncGenerator[list[Row], None]:
        """The rows at some tokens, chunk by chunk, each row checked against its digest."""
        request = pb.FetchRowsRequest(session_id=self._session_id, tokens=wire.encode_unsigned(tokens))
        wanted = frozenset(tokens.tolist())
        with self._peer_errors():
            self._count(request)
            call = self._stub.FetchRows(request, timeout=self._config.stream_timeout_seconds)
            try:
                async for chunk in self._messages(call):
                    self._statistics.move_bytes += chunk.ByteSize()
                    rows = await asyncio.to_thread(wire.decode_rows, chunk)
                    if any(row.token not in wanted for row in rows):
                        raise PeerMessageError("rows that were not asked for")
                    yield rows
            finally:
                call.cancel()

    async def push(self, rows: Iterable[Row]) -> tuple[int, int]:
        """Give rows; ``rows`` is iterated in worker threads. Returns how many were sent, and how many won there."""
        chunks = wire.encode_rows(rows)
        sent = 0
        with self._peer_errors():
            call = self._stub.PushRows(timeout=self._config.stream_timeout_seconds)
            try:
                while (item := await asyncio.to_thread(next, chunks, None)) is not None:
                    request = pb.PushRowsRequest(keyspace="" if sent else self._keyspace, rows=item[0])
                    async with asyncio.timeout(self._config.rpc_timeout_seconds):
                        await call.write(request)
                    self._statistics.move_bytes += request.ByteSize()
                    sent += item[1]
                async with asyncio.timeout(self._config.rpc_timeout_seconds):
                    await call.done_writing()
                    answer = await call
            except asyncio.InvalidStateError:
                # The peer ended the call while chunks were on their way: its status is the reason.
                await call
                raise
            finally:
                call.cancel()
            self._count(answer)
            if answer.rows_received != sent or answer.rows_applied > sent:
                raise PeerMessageError(f"{answer.rows_received} of {sent} rows acknowledged")
            return sent, answer.rows_applied

    async def close_session(self) -> None:
        """Give the peer's snapshot back, if there is one."""
        if not self._session_id:
            return
        request, self._session_id = pb.CloseSessionRequest(session_id=self._session_id), b""
        with self._peer_errors():
            answer = await self._stub.CloseSession(request, timeout=self._config.rpc_timeout_seconds)
            self._count(request, answer)

    async def _messages(self, call: Any) -> AsyncIterator[Any]:
        """Messages of a stream, none later than ``rpc_timeout_seconds`` after the one before."""
        while True:
            async with asyncio.timeout(self._config.rpc_timeout_seconds):
                message = await call.read()
            if message is grpc.aio.EOF:
                return
            yield message

    def _count(self, *messages: Any) -> None:
        """Count one round trip and the bytes of its messages that are no rows."""
        self._statistics.round_trips += 1
        self._statistics.find_bytes += sum(message.ByteSize() for message in messages)

    @contextmanager
    def _peer_errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise PeerError(self.endpoint, self._reason(error)) from error
        except TimeoutError as error:
            raise PeerError(self.endpoint, f"did not answer within {self._config.rpc_timeout_seconds:g} s") from error
        except PeerMessageError as error:
            raise PeerError(self.endpoint, f"broke the protocol: {error}") from error

    def _reason(self, error: grpc.aio.AioRpcError) -> str:
        code = error.code()
        if code is grpc.StatusCode.UNAVAILABLE:
            return "cannot be reached"
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"did not answer within {self._config.rpc_timeout_seconds:g} s"
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return "serves no repair"
        return f"refused ({code.name}): {error.details()}"
