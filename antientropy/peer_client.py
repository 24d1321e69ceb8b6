"""The asking side of the peer protocol: typed calls to one replica, each with a deadline, repeated, checked, counted.

Every request may be repeated: the answering side answers a repeated one as it did before. So a call that was cut off or
not answered in time is made again, after a pause that doubles and is drawn (full jitter would be as good; half of it
fixed keeps the least pause), a bounded number of times. Everything that can go wrong with a peer leaves here as
:class:`~antientropy.errors.PeerError`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Final, TypeVar, TypeVarTuple

import grpc
import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from antientropy import wire
from antientropy.config import RepairConfig
from antientropy.core.glance import Glance
from antientropy.core.hashing import HASH_VERSION
from antientropy.core.merkle import Root
from antientropy.core.requests import LocateAnswer, LocateRequest
from antientropy.core.rows import Row
from antientropy.core.tokens import TokenRange
from antientropy.errors import PeerError, PeerMessageError, SessionLostError
from antientropy.reports import RepairStatistics
from antientropy.transport.base import CallError, PeerCalls
from antientropy.v1 import repair_pb2 as pb

Answer = TypeVar("Answer", bound=Message)
Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

#: Called before a chunk is sent or handed on: bytes of it, rows in it. Waits as long as a throttle wants.
Spend = Callable[[int, int], Awaitable[None]]

_REPEATABLE: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


class OpenSession(Enum):
    """What a comparison does with the session."""

    NEVER = pb.CompareRequest.OPEN_NONE
    """Only compare; a session that is open closes, also when unequal."""
    IF_UNEQUAL = pb.CompareRequest.OPEN_IF_UNEQUAL
    """Open or renew it when unequal; equal: it closes, or is not opened."""
    ALWAYS = pb.CompareRequest.OPEN_ALWAYS
    """Also when equal: to push rows that other replicas have. No snapshot is opened for that."""


class RefusalKind(Enum):
    """Why a replica does not take part now."""

    LEASED = pb.Refusal.KIND_LEASED
    """Another session repairs an overlapping range: both back off for a random time."""
    BUSY = pb.Refusal.KIND_BUSY
    """As many sessions as allowed are open there."""
    HASH_VERSION = pb.Refusal.KIND_HASH_VERSION
    TOO_LONG_AWAY = pb.Refusal.KIND_TOO_LONG_AWAY
    """One of the two was away for longer than tombstones were kept; ``detail`` tells the way out."""
    NOT_READY = pb.Refusal.KIND_NOT_READY
    """Its index is being built."""
    NOT_A_REPLICA = pb.Refusal.KIND_NOT_A_REPLICA
    """It does not hold all of the range: the ring has changed."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal as it was told."""

    kind: RefusalKind
    detail: str
    """One line for people."""
    holder: str = ""
    """LEASED: the coordinator that holds the lease."""
    retry_after_seconds: float = 0.0
    """0: nothing is known."""


@dataclass(frozen=True, slots=True, eq=False)
class RootsAnswer:
    """What a peer said to the coordinator's root."""

    equal: bool
    """The range is equal there; if a repaired version was given, it has been recorded durably."""
    root_count: int
    """Rows of the range there; the own number when equal."""
    floors: NDArray[np.uint64]
    """Shape (256,): the greatest floors of both sides, which the peer's root and snapshot use. Where they are greater
    than those that were given, the coordinator's snapshot must be opened with these."""
    epoch: int
    """The peer's seed epoch. If it is another one than the own, nothing was compared: the lesser side rebuilds (the
    peer has begun to if it is the lesser one), then compare again."""
    repaired_version: int = 0
    """Answers ``confirmed_session``: up to which version all buckets of the range are recorded as repaired there."""
    symbols: Glance | None = None
    """First symbols of its sketch of the range, for the locator; None when there is no session with a snapshot."""
    refusal: Refusal | None = None
    """Set: nothing was compared, no session is open."""


@dataclass(frozen=True, slots=True)
class Moved:
    """Rows that travelled."""

    sent: int
    applied: int
    """Those that won over what their receiver held."""
    row_bytes: int = 0
    """Keys and values."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how late a call is repeated that was cut off or not answered in time."""

    attempts_max: int = 4
    """With deadlines of 10 s: 40 s, after which a peer is as good as dead."""
    first_seconds: float = 0.1
    """The first pause; each further one is twice as long ..."""
    pause_seconds_max: float = 2.0
    """... up to this: the rhythm of heartbeats."""

    def pause_seconds(self, attempt: int, random: Random) -> float:
        """The pause after attempt 0, 1, ...: between half and all of the doubled first one."""
        whole: float = min(self.pause_seconds_max, self.first_seconds * 2**attempt)
        return whole * (0.5 + 0.5 * random.random())


@dataclass(frozen=True, slots=True)
class CallTrace:
    """One request that was answered, for ``--trace``."""

    endpoint: str
    method: str
    find_bytes: int
    row_bytes: int
    seconds: float
    attempts: int


class _CutOffError(PeerError):
    """A call that may be made again."""


async def unthrottled(_bytes: int, _rows: int) -> None:
    """Spend nothing."""


class PeerClient:
    """Calls to one peer about one range of one keyspace, under one session. Counts into ``statistics``.

    Args:
        endpoint: The peer.
        calls: Where its calls go: ``transport.calls(endpoint)``.
        session: Of :func:`antientropy.leases.new_session`; another one for each range, the same one for all peers.
        owner: The coordinator's endpoint.
        statistics: Its ``find_bytes``, ``move_bytes`` and ``requests`` are counted here; may be shared by clients.
        random: For the pauses between attempts.
        alive: False: the failure detector holds the peer for dead; its calls are not repeated any more.
        spend: The throttle.
        trace: Told of every request.
        executor: Where rows are encoded and decoded; None: the loop's own worker threads.
        first_stream: Streams of rows are numbered from here; several senders of one session must not share numbers.
    """

    def __init__(
        self,
        endpoint: str,
        calls: PeerCalls,
        *,
        keyspace: str,
        token_range: TokenRange,
        session: int,
        owner: str,
        config: RepairConfig,
        statistics: RepairStatistics,
        random: Random,
        retry: RetryPolicy | None = None,
        alive: Callable[[], bool] = lambda: True,
        spend: Spend = unthrottled,
        trace: Callable[[CallTrace], None] = lambda _trace: None,
        executor: Executor | None = None,
        first_stream: int = 0,
    ) -> None:
        self.endpoint: Final = endpoint
        self.session: Final = session
        self.requests = 0
        """Requests to this peer so far: of a pair whose requests wait for each other, its round trips."""
        self._calls = calls
        self._keyspace = keyspace
        self._range = token_range
        self._owner = owner
        self._config = config
        self._statistics = statistics
        self._random = random
        self._retry = RetryPolicy() if retry is None else retry
        self._alive = alive
        self._spend = spend
        self._trace = trace
        self._executor = executor
        self._open = False
        self._to_close = False
        self._streams = first_stream
        self._turn = 0
        self._epoch = 0

    @property
    def session_open(self) -> bool:
        """Whether the peer holds a lease, and most often a snapshot, for this client."""
        return self._open

    async def compare(
        self,
        root: Root,
        floors: NDArray[np.uint64] | None = None,
        *,
        epoch: int = 0,
        open_session: OpenSession = OpenSession.IF_UNEQUAL,
        repaired_version: int = 0,
        confirmed_session: int = 0,
        purge_version: int = 0,
        forced: bool = False,
        replicas: Sequence[str] = (),
    ) -> RootsAnswer:
        """Compare the own root with the peer's, and open, renew or close the session there. One round trip.

        Also the verification: with the session open, the peer compares what it holds now. The last three arguments are
        told only while the session is not open; their rules are those of ``core/deletes.py``.

        Args:
            root: Of the range, its tombstones below ``floors`` left out.
            floors: Shape (256,), by bucket; None: all 0.
            epoch: The seed epoch that ``root`` was made with.
            open_session: See :class:`OpenSession`.
            repaired_version: What the session counts for if it is complete. The peer closes the past below it, durably,
                before it looks at its rows, and remembers that it takes part.
            confirmed_session: An earlier session of this range (its name) that was complete: recorded durably if the
                peer took part in it since its last start.
            purge_version: Every replica has recorded that it is repaired up to here.
            replicas: Endpoints of all replicas of the range, the own one too: told with ``repaired_version``, and
                refused (NOT_A_REPLICA) by a peer that sees another ring. Empty: not compared.
            forced: Also with a replica that was away for too long; no tombstone is left out on either side.

        Raises:
            PeerError: the peer failed or broke the protocol. A refusal is no error, but in the answer.
        """
        bounds = wire.NO_FLOORS if floors is None else floors
        request = self._compare_request(root, bounds, epoch, open_session)
        request.forced = forced
        if request.keyspace:
            request.repaired_version = wire.encode_version(repaired_version)
            request.confirmed_session = confirmed_session
            request.purge_version = wire.encode_version(purge_version)
            if repaired_version and replicas:
                request.replicas = wire.hash_of_replicas(replicas)
                if self._owner in replicas:
                    request.owner, request.owner_place = "", 1 + sorted(replicas).index(self._owner)
        answer = await self._unary("Compare", request, pb.CompareResponse)
        with self._peer_errors():
            result = self._roots_answer(answer, root, bounds, epoch)
        wanted = open_session is OpenSession.ALWAYS or (open_session is OpenSession.IF_UNEQUAL and not result.equal)
        self._open = self._to_close = wanted and result.refusal is None and result.epoch == epoch
        return result

    def _compare_request(
        self, root: Root, floors: NDArray[np.uint64], epoch: int, open_session: OpenSession
    ) -> pb.CompareRequest:
        """What the peer does not know yet: with the session open, neither keyspace nor range nor owner."""
        request = pb.CompareRequest(
            open=open_session.value,
            root_digest=root.digest if root.count else b"",
            row_count=root.count,
            floors=wire.encode_floors(floors, self._range),
        )
        if self._open or open_session is not OpenSession.NEVER:
            request.session, request.turn = self.session, self._turn
            self._turn += 1
            # Until the answer is known, the peer may have opened it.
            self._to_close = True
        if not self._open or epoch != self._epoch:
            request.hashes, self._epoch = wire.encode_hashes(HASH_VERSION, epoch), epoch
        if not self._open:
            request.keyspace, request.owner = self._keyspace, self._owner
            wire.put_range(request, self._range)
        return request

    def _roots_answer(
        self, answer: pb.CompareResponse, root: Root, floors: NDArray[np.uint64], epoch: int
    ) -> RootsAnswer:
        if answer.HasField("refusal"):
            return RootsAnswer(False, 0, floors, epoch, refusal=_refusal(answer.refusal))
        recorded = wire.decode_version(answer.repaired_version)
        theirs = np.maximum(floors, wire.decode_floors(answer.floors, self._range))
        if answer.equal:
            return RootsAnswer(True, root.count, theirs, epoch, recorded)
        if answer.hashes:
            told = wire.decode_hashes(answer.hashes)[1]
            if told == epoch:
                # The session has ended there, so it must not pass for one that is open.
                raise PeerMessageError(f"hashes of another epoch than {epoch}, which is also {told}")
            return RootsAnswer(False, 0, theirs, told, recorded)
        symbols = wire.decode_glance(answer.symbols)
        count = root.count + answer.rows_more
        if count < 0:
            raise PeerMessageError(f"a replica of {count} rows")
        return RootsAnswer(False, count, theirs, epoch, recorded, symbols)

    async def locate(self, request: LocateRequest) -> LocateAnswer:
        """One step of the locator (:class:`antientropy.core.locate.Locator`), on the snapshot of the session.

        Raises:
            PeerError: the peer failed or broke the protocol.
        """
        message = pb.LocateRequest(session=self.session, body=request.encode())
        answer = await self._unary("Locate", message, pb.LocateResponse)
        return await self._in_thread(self._located, answer.body, request)

    def _located(self, body: bytes, request: LocateRequest) -> LocateAnswer:
        """Decode and check. Runs in a worker thread: an answer may be a mebibyte."""
        with self._peer_errors():
            return LocateAnswer.decode(body, request)

    async def fetch(self, tokens: NDArray[np.uint64]) -> AsyncGenerator[list[Row], None]:
        """The rows at some tokens (strictly ascending), chunk by chunk, each checked whole against its digest.

        What is cut off is asked for again, but what has arrived; no row is given twice.
        """
        wanted = frozenset(tokens.tolist())
        keys: set[bytes] = set()
        whole: set[int] = set()
        attempt = 0
        while True:
            left = np.array([token for token in tokens.tolist() if token not in whole], np.uint64)
            request = pb.FetchRequest(session=self.session, tokens=wire.encode_tokens(left))
            try:
                async with aclosing(self._chunks("Fetch", request, attempt)) as messages:
                    async for message in messages:
                        arrived = await self._in_thread(self._rows_of, _typed(message, pb.RowColumns), wanted)
                        rows = [row for row in arrived if row.key not in keys]
                        if not rows:
                            continue
                        keys.update(row.key for row in rows)
                        # The last token may have more rows in the next chunk.
                        whole.update(row.token for row in rows if row.token != rows[-1].token)
                        attempt = 0
                        await self._spend(message.ByteSize(), len(rows))
                        yield rows
            except _CutOffError as error:
                attempt = await self._pause(error, attempt)
            else:
                return

    def _rows_of(self, message: pb.RowColumns, wanted: frozenset[int]) -> list[Row]:
        """Decode and check a chunk of rows. Runs in a worker thread."""
        with self._peer_errors():
            rows = wire.decode_rows(message, self._range)
            if any(row.token not in wanted for row in rows):
                raise PeerMessageError("rows that were not asked for")
            return rows

    async def push(self, rows: Callable[[], Iterator[Row]]) -> Moved:
        """Give rows of the range, in the order of tokens; durable there when this returns.

        The session must be open there (``OpenSession.ALWAYS`` where the peer is equal).

        Args:
            rows: Makes the iterator, once for each attempt; it is iterated in worker threads.
        """
        self._streams += 1
        attempt = 0
        while True:
            try:
                return await self._push_once(rows, self._streams, attempt)
            except _CutOffError as error:
                attempt = await self._pause(error, attempt)

    async def _push_once(self, rows: Callable[[], Iterator[Row]], stream: int, attempt: int) -> Moved:
        chunks = wire.encode_rows(rows())
        begun = asyncio.get_running_loop().time()
        sent = row_bytes = find_bytes = 0
        chunk = await self._in_thread(next, chunks, None)
        if chunk is None:
            return Moved(0, 0)

        async def requests() -> AsyncIterator[Message]:
            nonlocal chunk, sent, row_bytes, find_bytes
            while chunk is not None:
                request = pb.PushRequest(rows=chunk.message)
                if not sent:
                    request.session, request.stream = self.session, stream
                await self._spend(request.ByteSize(), chunk.row_count)
                yield request
                sent += chunk.row_count
                row_bytes += chunk.row_bytes
                find_bytes += request.ByteSize() - chunk.row_bytes
                chunk = await self._in_thread(next, chunks, None)

        try:
            with self._peer_errors():
                answer = _typed(
                    await self._calls.request_stream(
                        "Push", requests(), self._config.stream_timeout_seconds, self._config.rpc_timeout_seconds
                    ),
                    pb.PushResponse,
                )
                find_bytes += answer.ByteSize()
                if answer.rows_received != sent or answer.rows_applied > sent:
                    raise PeerMessageError(f"{answer.rows_received} of {sent} rows acknowledged")
        finally:
            self._count("Push", begun, find_bytes, row_bytes, attempt)
        return Moved(sent, answer.rows_applied, row_bytes)

    async def send_rows(self, target: str, tokens: NDArray[np.uint64]) -> Moved:
        """Let the peer give its rows at some tokens (strictly ascending) to another replica of the range itself.

        The target must have the session open too (``OpenSession.ALWAYS`` where it is equal). What travelled between
        the two is counted here.

        Raises:
            PeerError: its ``endpoint`` tells who failed: this peer, or the target.
        """
        self._streams += 1
        request = pb.SendRequest(
            session=self.session, stream=self._streams, target=target, tokens=wire.encode_tokens(tokens)
        )
        answer = await self._unary("Send", request, pb.SendResponse, self._config.stream_timeout_seconds)
        if answer.rows_applied > answer.rows_sent:
            raise PeerError(self.endpoint, "broke the protocol: more rows applied than sent")
        self._statistics.find_bytes += answer.other_bytes
        self._statistics.move_bytes += answer.row_bytes
        if answer.target_failure:
            raise PeerError(target, f"did not take rows of {self.endpoint}: {answer.target_failure}")
        return Moved(answer.rows_sent, answer.rows_applied, answer.row_bytes)

    async def heartbeat(self) -> None:
        """Keep session and lease.

        Raises:
            SessionLostError: there is none any more.
        """
        if self._open:
            await self._unary("Heartbeat", pb.HeartbeatRequest(session=self.session), pb.HeartbeatResponse)

    def join_session(self) -> None:
        """Use a session that somebody else has opened: to give rows to a replica on behalf of its coordinator."""
        self._open = True

    async def close_session(self) -> None:
        """Give the peer's snapshot and lease back, if there are any. After it the client may compare again."""
        if not self._to_close:
            return
        self._open = self._to_close = False
        await self._unary("Close", pb.CloseRequest(session=self.session), pb.CloseResponse)

    async def _unary(
        self, method: str, request: Message, kind: type[Answer], timeout_seconds: float | None = None
    ) -> Answer:
        timeout = self._config.rpc_timeout_seconds if timeout_seconds is None else timeout_seconds
        attempt = 0
        while True:
            begun = asyncio.get_running_loop().time()
            find_bytes = request.ByteSize()
            try:
                with self._peer_errors():
                    answer = await self._calls.unary(method, request, timeout)
                    find_bytes += answer.ByteSize()
                    return _typed(answer, kind)
            except _CutOffError as error:
                attempt = await self._pause(error, attempt)
            finally:
                self._count(method, begun, find_bytes, 0, attempt)

    async def _chunks(self, method: str, request: Message, attempt: int) -> AsyncGenerator[Message, None]:
        """The answers to one request, counted."""
        begun = asyncio.get_running_loop().time()
        find_bytes, row_bytes = request.ByteSize(), 0
        stream = self._calls.response_stream(
            method, request, self._config.stream_timeout_seconds, self._config.rpc_timeout_seconds
        )
        try:
            with self._peer_errors():
                async for message in stream:
                    carried = len(message.content) if isinstance(message, pb.RowColumns) else 0
                    row_bytes += carried
                    find_bytes += message.ByteSize() - carried
                    yield message
        finally:
            await stream.aclose()
            self._count(method, begun, find_bytes, row_bytes, attempt)

    def _count(self, method: str, begun: float, find_bytes: int, row_bytes: int, attempt: int) -> None:
        self.requests += 1
        self._statistics.requests += 1
        self._statistics.find_bytes += find_bytes
        self._statistics.move_bytes += row_bytes
        seconds = asyncio.get_running_loop().time() - begun
        self._trace(CallTrace(self.endpoint, method, find_bytes, row_bytes, seconds, attempt + 1))

    async def _pause(self, error: _CutOffError, attempt: int) -> int:
        """Wait before the next attempt, and return its number.

        Raises:
            PeerError: there is none.
        """
        if attempt + 1 >= self._retry.attempts_max or not self._alive():
            raise PeerError(self.endpoint, error.detail) from error
        await asyncio.sleep(self._retry.pause_seconds(attempt, self._random))
        return attempt + 1

    async def _in_thread(self, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    @contextmanager
    def _peer_errors(self) -> Iterator[None]:
        """One translation for all that can go wrong with a peer."""
        try:
            yield
        except CallError as error:
            if error.code in _REPEATABLE:
                raise _CutOffError(self.endpoint, _reason(error)) from error
            if error.code is grpc.StatusCode.ABORTED:
                self._open = self._to_close = False
                raise SessionLostError(self.endpoint, f"lost the session: {error.detail}") from error
            raise PeerError(self.endpoint, _reason(error)) from error
        except PeerMessageError as error:
            raise PeerError(self.endpoint, f"broke the protocol: {error}") from error


def _reason(error: CallError) -> str:
    if error.code is grpc.StatusCode.UNAVAILABLE:
        return "cannot be reached"
    if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"did not answer in time: {error.detail}"
    if error.code is grpc.StatusCode.UNIMPLEMENTED:
        return "serves no repair"
    return f"refused ({error.code.name}): {error.detail}"


def _refusal(refusal: pb.Refusal) -> Refusal:
    try:
        kind = RefusalKind(refusal.kind)
    except ValueError as error:
        raise PeerMessageError(f"refusal of unknown kind {refusal.kind}") from error
    return Refusal(kind, refusal.detail, refusal.holder, refusal.retry_after_ms / 1000)


def _typed(message: Message, kind: type[Answer]) -> Answer:
    """The transport parses each method's own type."""
    if not isinstance(message, kind):
        raise TypeError(f"the transport gave a {type(message).__name__} where a {kind.__name__} belongs")
    return message
