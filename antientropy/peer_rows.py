"""Rows of a session, seen from the side that answers: where they differ, and the rows themselves in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import grpc
from google.protobuf.message import Message

from antientropy import wire
from antientropy.core import locate
from antientropy.core.hashing import DIGEST_BYTES
from antientropy.core.requests import LocateRequest
from antientropy.core.rows import Row
from antientropy.errors import PeerError, PeerMessageError
from antientropy.limits import CHUNKS_PER_STREAM_MAX, STREAMS_PER_SESSION_MAX
from antientropy.peer_client import PeerClient
from antientropy.reports import RepairStatistics
from antientropy.served import ServedSession, TakenStream, lost_session
from antientropy.serving import Serving
from antientropy.snapshots import ReplicaSnapshot
from antientropy.transport.base import CallError
from antientropy.v1 import repair_pb2 as pb

#: Streams that a holder sends by itself are numbered at random from here on, apart from those of coordinators.
_SENT_STREAMS_FIRST: Final = 2**28


class RowCalls:
    """Answers Locate, Fetch, Push and Send."""

    def __init__(self, node: Serving) -> None:
        self._node = node

    async def locate(self, request: pb.LocateRequest) -> pb.LocateResponse:
        """One step of finding the difference, on the snapshot of the session."""
        session = self._node.sessions.get(request.session)
        snapshot = session.rows()
        with session.busy():
            body = await self._node.in_thread(snapshot.use, lambda inside: _located(request.body, inside))
        return pb.LocateResponse(body=body)

    async def fetch(self, request: pb.FetchRequest) -> AsyncGenerator[pb.RowColumns, None]:
        """The rows at some tokens, of the snapshot of the session."""
        session = self._node.sessions.get(request.session)
        tokens = wire.decode_tokens(request.tokens, session.token_range)
        chunks = wire.encode_rows(session.rows().rows_at(tokens.tolist()))
        while True:
            with session.busy():
                chunk = await self._node.in_thread(next, chunks, None)
            if chunk is None:
                return
            await self._node.spend(chunk.message.ByteSize(), chunk.row_count)
            yield chunk.message
            self._node.sessions.get(session.name)

    async def push(self, requests: AsyncIterator[Message]) -> pb.PushResponse:
        """Take rows: each chunk is checked whole, then applied where its rows win, durable before the next is read."""
        session: ServedSession | None = None
        stream: TakenStream | None = None
        seen: set[bytes] = set()
        answer = pb.PushResponse()
        async for request in requests:
            if not isinstance(request, pb.PushRequest):
                raise TypeError(f"the transport gave a {type(request).__name__} to Push")
            if session is None or stream is None:
                session = self._node.sessions.get(request.session)
                stream = session.taken_stream(request.stream)
            elif request.session not in (0, session.name):
                raise PeerMessageError("a stream of rows belongs to two sessions")
            self._node.sessions.get(session.name)
            received, applied = await self._take(session, stream, request.rows)
            name = _chunk_name(request.rows)
            if name not in seen:
                seen.add(name)
                answer.rows_received += received
                answer.rows_applied += applied
        return answer

    async def _take(self, session: ServedSession, stream: TakenStream, rows: pb.RowColumns) -> tuple[int, int]:
        """Apply a chunk, unless this stream has brought it before: how many rows it holds, and how many of them won."""
        async with stream.lock:
            name = _chunk_name(rows)
            known = stream.chunks.get(name)
            if known is not None:
                return known
            if len(stream.chunks) >= CHUNKS_PER_STREAM_MAX:
                raise PeerMessageError(f"a stream of rows has more than {CHUNKS_PER_STREAM_MAX} chunks")
            with session.busy():
                checked = await self._node.in_thread(wire.decode_rows, rows, session.token_range)
                await self._node.spend(rows.ByteSize(), len(checked))
                if session.closed:
                    raise lost_session()
                applied = await self._node.in_thread(self._apply, session.keyspace, checked)
            stream.chunks[name] = (len(checked), applied)
            return len(checked), applied

    def _apply(self, keyspace: str, rows: list[Row]) -> int:
        """Apply rows. Runs in a worker thread."""
        return self._node.replicas[keyspace].store.apply(rows, from_repair=True)

    # --- from here to a third replica ---

    async def send(self, request: pb.SendRequest) -> pb.SendResponse:
        """Give rows of the snapshot to another replica; a repeated request waits for the same transfer."""
        session = self._node.sessions.get(request.session)
        tokens = wire.decode_tokens(request.tokens, session.token_range)
        target = wire.check_endpoint(request.target)
        here = self._node.membership.local_endpoint
        if target == here or not self._node.holds(session.keyspace, session.token_range, target):
            raise PeerMessageError(f"{target} is no other replica of {session.token_range} of {session.keyspace}")
        task = session.sent.get(request.stream)
        if task is None:
            if sum(not one.done() for one in session.sent.values()) >= STREAMS_PER_SESSION_MAX:
                raise CallError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many transfers of one session are under way")
            while len(session.sent) >= STREAMS_PER_SESSION_MAX:
                done = next(number for number, one in session.sent.items() if one.done())
                del session.sent[done]
            sending = self._send(session, target, tokens.tolist())
            task = asyncio.get_running_loop().create_task(sending, name="antientropy send")
            # Whoever asked may be gone when it fails; whoever asks again is told.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            session.sent[request.stream] = task
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise lost_session() from None
            raise
        except Exception:
            session.sent.pop(request.stream, None)
            raise

    async def _send(self, session: ServedSession, target: str, tokens: list[int]) -> pb.SendResponse:
        statistics = RepairStatistics()
        client = PeerClient(
            target,
            self._node.transport.calls(target),
            keyspace=session.keyspace,
            token_range=session.token_range,
            session=session.name,
            owner=session.owner,
            config=self._node.config,
            statistics=statistics,
            random=self._node.random,
            alive=lambda: self._node.membership.is_alive(target) and not session.closed,
            spend=self._node.spend,
            executor=self._node.executor,
            first_stream=_SENT_STREAMS_FIRST | self._node.random.getrandbits(28),
        )
        client.join_session()
        snapshot = session.rows()
        answer = pb.SendResponse()
        # Rows of many chunks: the transfer itself keeps the session.
        with session.busy():
            try:
                moved = await client.push(lambda: snapshot.rows_at(tokens))
                answer.rows_sent, answer.rows_applied = moved.sent, moved.applied
            except PeerError as error:
                answer.target_failure = error.detail
        answer.row_bytes, answer.other_bytes = statistics.move_bytes, statistics.find_bytes
        return answer


def _chunk_name(rows: pb.RowColumns) -> bytes:
    """The digest over a chunk's rows, and its head: equal names, equal rows."""
    return rows.columns[-DIGEST_BYTES:] + rows.columns[:3]


def _located(body: bytes, snapshot: ReplicaSnapshot) -> bytes:
    """Answer a step of the locator. Runs in a worker thread."""
    request = LocateRequest.decode(body)
    return locate.answer(request, snapshot).encode(request)
