"""The in-process twin of the gRPC transport: real bytes, bounded streams, and faults per message; no sockets.

It draws no random numbers, and its only clock is that of the event loop, so a loop with virtual time replays it
exactly. What differs from a network: an intact link has no latency and loses nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from antientropy.transport.base import METHODS, CallError, PeerAnswers

Result = TypeVar("Result")

#: Messages of a stream that are under way before its sender waits, as a window of HTTP/2 does.
STREAM_MESSAGES_MAX: Final = 2
#: gRPC's default limit of a message that is received.
MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024


class FaultKind(Enum):
    """What happens to a message on its way."""

    DROP = "drop"
    """It is lost; its call ends at its deadline."""
    DELAY = "delay"
    """It arrives ``seconds`` later."""
    DUPLICATE = "duplicate"
    """It arrives twice. A request is served twice, and its first answer counts."""
    REORDER = "reorder"
    """It arrives after the next one: of its stream, or, where it is no stream, of the same way."""
    REPLAY = "replay"
    """It arrives, and ``seconds`` later a copy of it, whose answer nobody waits for. Of streams: as DUPLICATE."""
    KILL = "kill"
    """Whom it was meant for dies instead: see :meth:`MemoryNetwork.kill`."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of one message."""

    kind: FaultKind
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Crossing:
    """A message that is about to cross the network."""

    origin: str
    destination: str
    method: str
    is_request: bool
    """False: an answer."""
    index: int
    """Of a stream: 0, 1, ..."""
    data: bytes


Faults = Callable[[Crossing], Fault | None]


def no_faults(_crossing: Crossing) -> Fault | None:
    """Everything arrives, once and in order."""
    return None


class MemoryNetwork:
    """All replicas of one process, and the faults between them.

    ``messages`` and ``message_bytes`` count by (origin, destination) what was put on its way, lost or not.

    Args:
        faults: Asked for every message. May be replaced at any time.
    """

    def __init__(self, faults: Faults = no_faults) -> None:
        self.faults = faults
        self.messages: Counter[tuple[str, str]] = Counter()
        self.message_bytes: Counter[tuple[str, str]] = Counter()
        self._served: dict[str, PeerAnswers] = {}
        self._resets: dict[asyncio.Future[None], str] = {}
        self._held: dict[tuple[str, str], list[asyncio.Future[None]]] = {}
        self._replays: set[asyncio.Task[None]] = set()

    def serve(self, endpoint: str, answers: PeerAnswers) -> None:
        """Answer what comes to ``endpoint`` from now on."""
        self._served[endpoint] = answers

    def kill(self, endpoint: str) -> None:
        """Nobody answers there any more; calls under way are reset, and what served them is cancelled."""
        self._served.pop(endpoint, None)
        for reset, where in self._resets.items():
            if where == endpoint and not reset.done():
                reset.set_result(None)

    def transport(self, source: str) -> MemoryTransport:
        """How the node at ``source`` calls the others."""
        return MemoryTransport(self, source)

    async def close(self) -> None:
        """End what still waits to be replayed."""
        for task in list(self._replays):
            task.cancel()
        await asyncio.gather(*self._replays, return_exceptions=True)

    # --- for MemoryCalls ---

    def answers_of(self, endpoint: str) -> PeerAnswers:
        """Who serves it.

        Raises:
            CallError: nobody.
        """
        answers = self._served.get(endpoint)
        if answers is None:
            raise CallError(grpc.StatusCode.UNAVAILABLE, f"{endpoint}: connection refused")
        return answers

    async def unless_killed(self, endpoint: str, work: Coroutine[Any, Any, Result]) -> Result:
        """Run ``work``; when ``endpoint`` is killed meanwhile, cancel it and say so."""
        reset: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._resets[reset] = endpoint
        task = asyncio.ensure_future(work)
        waited: set[asyncio.Future[Any]] = {task, reset}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if reset.done():
                raise CallError(grpc.StatusCode.UNAVAILABLE, f"{endpoint}: connection reset")
            return task.result()
        finally:
            del self._resets[reset]
            await _ended(task)

    async def cross(self, crossing: Crossing, *, in_stream: bool = False) -> Fault | None:
        """Carry a message: returns its fault when it arrives, never for one that is lost.

        A stream reorders and repeats by itself; of other messages one that is held goes when the next has arrived.
        """
        way = (crossing.origin, crossing.destination)
        self.messages[way] += 1
        self.message_bytes[way] += len(crossing.data)
        if len(crossing.data) > MESSAGE_BYTES_MAX:
            raise CallError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"a message of {len(crossing.data)} bytes is too large")
        fault = self.faults(crossing)
        await asyncio.sleep(fault.seconds if fault is not None and fault.kind is FaultKind.DELAY else 0)
        forever: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if fault is not None and fault.kind is FaultKind.KILL:
            self.kill(crossing.destination)
            await forever
        if fault is not None and fault.kind is FaultKind.DROP:
            await forever
        if fault is not None and fault.kind is FaultKind.REORDER and not in_stream:
            self._held.setdefault(way, []).append(forever)
            await forever
        else:
            for held in self._held.pop(way, []):
                if not held.done():
                    held.set_result(None)
        return fault

    def replay_later(self, crossing: Crossing, seconds: float) -> None:
        """Serve a request once more; nobody waits for the answer."""

        async def replay() -> None:
            await asyncio.sleep(seconds)
            await asyncio.gather(self.serve_once(crossing), return_exceptions=True)

        task = asyncio.get_running_loop().create_task(replay(), name="antientropy replay")
        self._replays.add(task)
        task.add_done_callback(self._replays.discard)

    async def serve_once(self, crossing: Crossing) -> Message:
        """Give a request to whoever serves its destination."""
        answers = self.answers_of(crossing.destination)
        return await answers.unary(crossing.method, _parsed(crossing), crossing.origin)


class MemoryTransport:
    """A :class:`~antientropy.transport.base.PeerTransport` over a :class:`MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, source: str) -> None:
        self._network = network
        self._source = source

    def calls(self, endpoint: str) -> MemoryCalls:
        """Calls to the peer at ``endpoint``."""
        return MemoryCalls(self._network, self._source, endpoint)

    async def close(self) -> None:
        """Nothing is kept."""


class _Pipe:
    """The messages of a stream that are under way, in order and bounded, and the faults of each."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network
        self._queue: asyncio.Queue[Crossing | None] = asyncio.Queue(STREAM_MESSAGES_MAX)
        self._held: Crossing | None = None

    async def put(self, crossing: Crossing) -> None:
        """Send a message; waits while too many are under way."""
        fault = await self._network.cross(crossing, in_stream=True)
        if fault is not None and fault.kind is FaultKind.REORDER and self._held is None:
            self._held = crossing
            return
        await self._queue.put(crossing)
        if fault is not None and fault.kind in (FaultKind.DUPLICATE, FaultKind.REPLAY):
            await self._queue.put(crossing)
        await self._flush()

    async def end(self) -> None:
        """There is no more."""
        await self._flush()
        await self._queue.put(None)

    async def _flush(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            await self._queue.put(held)

    async def messages(self) -> AsyncGenerator[Message, None]:
        """As they arrive."""
        while (crossing := await self._queue.get()) is not None:
            yield _parsed(crossing)


class MemoryCalls:
    """Calls from one node to another."""

    def __init__(self, network: MemoryNetwork, source: str, endpoint: str) -> None:
        self._network = network
        self._source = source
        self._endpoint = endpoint

    @property
    def endpoint(self) -> str:
        """The peer."""
        return self._endpoint

    async def unary(self, method: str, request: Message, timeout_seconds: float) -> Message:
        """As the Protocol says."""
        async with _deadline(timeout_seconds):
            return await self._network.unless_killed(self._endpoint, self._unary(method, request))

    async def _unary(self, method: str, request: Message) -> Message:
        there = self._there(method, request, 0)
        fault = await self._network.cross(there)
        answer = await _served(self._network.serve_once(there))
        if fault is not None and fault.kind is FaultKind.DUPLICATE:
            await asyncio.gather(self._network.serve_once(there), return_exceptions=True)
        if fault is not None and fault.kind is FaultKind.REPLAY:
            self._network.replay_later(there, fault.seconds)
        back = self._back(method, answer, 0)
        await self._network.cross(back)
        return _parsed(back)

    async def response_stream(
        self, method: str, request: Message, timeout_seconds: float, message_timeout_seconds: float
    ) -> AsyncGenerator[Message, None]:
        """As the Protocol says."""
        pipe = _Pipe(self._network)
        serving = asyncio.ensure_future(
            self._network.unless_killed(self._endpoint, self._serve_stream(method, request, pipe))
        )
        until = asyncio.get_running_loop().time() + timeout_seconds
        messages = pipe.messages()
        try:
            while True:
                left = min(message_timeout_seconds, until - asyncio.get_running_loop().time())
                getting = asyncio.ensure_future(anext(messages, None))
                try:
                    async with _deadline(left):
                        # What has arrived is read before the status of the call.
                        await asyncio.wait({getting, serving}, return_when=asyncio.FIRST_COMPLETED)
                        if not getting.done() and serving.exception() is not None:
                            serving.result()
                        message = await getting
                finally:
                    await _ended(getting)
                if message is None:
                    return
                yield message
        finally:
            await _ended(serving)
            await messages.aclose()

    async def _serve_stream(self, method: str, request: Message, pipe: _Pipe) -> None:
        there = self._there(method, request, 0)
        await self._network.cross(there)
        answers = self._network.answers_of(self._endpoint)
        stream = answers.response_stream(method, _parsed(there), self._source)
        try:
            index = 0
            while (answer := await _served(anext(stream, None))) is not None:
                await pipe.put(self._back(method, answer, index))
                index += 1
        finally:
            await stream.aclose()
        await pipe.end()

    async def request_stream(
        self, method: str, requests: AsyncIterable[Message], timeout_seconds: float, message_timeout_seconds: float
    ) -> Message:
        """As the Protocol says."""
        pipe = _Pipe(self._network)
        serving = asyncio.ensure_future(self._network.unless_killed(self._endpoint, self._serve_requests(method, pipe)))
        sending = asyncio.ensure_future(self._send(method, requests, pipe, message_timeout_seconds))
        try:
            async with _deadline(timeout_seconds):
                await asyncio.wait({serving, sending}, return_when=asyncio.FIRST_COMPLETED)
                if not serving.done():
                    await sending
                async with _deadline(message_timeout_seconds):
                    return await serving
        finally:
            await _ended(sending)
            await _ended(serving)

    async def _send(
        self, method: str, requests: AsyncIterable[Message], pipe: _Pipe, message_timeout_seconds: float
    ) -> None:
        index = 0
        async for request in requests:
            async with _deadline(message_timeout_seconds):
                await pipe.put(self._there(method, request, index))
            index += 1
        async with _deadline(message_timeout_seconds):
            await pipe.end()

    async def _serve_requests(self, method: str, pipe: _Pipe) -> Message:
        answers = self._network.answers_of(self._endpoint)
        messages = pipe.messages()
        try:
            answer = await _served(answers.request_stream(method, messages, self._source))
        finally:
            await messages.aclose()
        back = self._back(method, answer, 0)
        await self._network.cross(back)
        return _parsed(back)

    def _there(self, method: str, request: Message, index: int) -> Crossing:
        return Crossing(self._source, self._endpoint, method, True, index, request.SerializeToString())

    def _back(self, method: str, answer: Message, index: int) -> Crossing:
        return Crossing(self._endpoint, self._source, method, False, index, answer.SerializeToString())


def _parsed(crossing: Crossing) -> Message:
    spec = METHODS[crossing.method]
    kind = spec.request_type if crossing.is_request else spec.response_type
    try:
        return kind.FromString(crossing.data)
    except DecodeError as error:
        raise CallError(grpc.StatusCode.INVALID_ARGUMENT, "not the protobuf message of this method") from error


async def _served(answering: Awaitable[Result]) -> Result:
    """What serves a call; whatever it raises that is no status becomes one, as gRPC does."""
    try:
        return await answering
    except CallError:
        raise
    except Exception as error:
        raise CallError(grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}") from error


@asynccontextmanager
async def _deadline(seconds: float) -> AsyncIterator[None]:
    """A limit of time as a status."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise CallError(grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {seconds:g} s") from error


async def _ended(task: asyncio.Future[Any]) -> None:
    """Cancel what still runs, and wait until it has ended."""
    if not task.done():
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
