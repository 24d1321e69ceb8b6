"""The two transports carry calls alike; the in-process one also loses, delays, repeats and reorders on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from antientropy.transport.base import METHODS, SERVICE_NAME, CallError, PeerCalls, PeerTransport, Shape
from antientropy.transport.grpc import GrpcTransport, register
from antientropy.transport.memory import Crossing, Fault, FaultKind, MemoryNetwork
from antientropy.v1 import repair_pb2 as pb

HERE, THERE = "127.0.0.1:1", "127.0.0.1:2"


@dataclass
class Echo:
    """Answers with what it was asked, and remembers what it saw."""

    seen: list[int] = field(default_factory=list)
    error: Exception | None = None
    hangs: bool = False
    cancelled: int = 0
    chunks: int = 3
    sent: int = 0
    closed_streams: int = 0

    async def unary(self, method: str, request: Message, caller: str) -> Message:
        assert isinstance(request, pb.HeartbeatRequest | pb.LocateRequest)
        assert caller
        self.seen.append(request.session)
        await self._trouble()
        if isinstance(request, pb.LocateRequest):
            return pb.LocateResponse(body=request.body)
        return pb.HeartbeatResponse()

    async def response_stream(self, method: str, request: Message, caller: str) -> AsyncGenerator[Message, None]:
        assert isinstance(request, pb.FetchRequest)
        try:
            for number in range(self.chunks):
                self.sent += 1
                yield pb.RowColumns(columns=bytes([number % 256]), content=request.tokens)
            await self._trouble()
        finally:
            self.closed_streams += 1

    async def request_stream(self, method: str, requests: AsyncIterator[Message], caller: str) -> Message:
        count = 0
        async for request in requests:
            assert isinstance(request, pb.PushRequest)
            self.seen.append(request.stream)
            count += 1
            await self._trouble()
        return pb.PushResponse(rows_received=count)

    async def _trouble(self) -> None:
        if self.error is not None:
            raise self.error
        if self.hangs:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise


@dataclass
class World:
    echo: Echo
    calls: PeerCalls
    transport: PeerTransport
    network: MemoryNetwork | None
    malformed: list[str]
    channel: grpc.aio.Channel | None = None


@pytest.fixture(params=["grpc", "memory"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    echo = Echo()
    malformed: list[str] = []
    if request.param == "memory":
        network = MemoryNetwork()
        network.serve(THERE, echo)
        transport = network.transport(HERE)
        yield World(echo, transport.calls(THERE), transport, network, malformed)
        await network.close()
        return
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    register(server, echo, malformed.append)
    endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    over_grpc = GrpcTransport()
    try:
        calls = over_grpc.calls(endpoint)
        assert calls.endpoint == endpoint
        yield World(echo, calls, over_grpc, None, malformed, over_grpc._channels[endpoint])
    finally:
        await over_grpc.close()
        await server.stop(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def heartbeat(calls: PeerCalls, session: int = 1, timeout_seconds: float = 10.0) -> Message:
    return await calls.unary("Heartbeat", pb.HeartbeatRequest(session=session), timeout_seconds)


async def pushes(count: int) -> AsyncIterator[Message]:
    for number in range(count):
        yield pb.PushRequest(stream=number)


async def fetched(calls: PeerCalls, timeout_seconds: float = 10.0) -> list[int]:
    request = pb.FetchRequest(tokens=b"token")
    stream = calls.response_stream("Fetch", request, timeout_seconds, timeout_seconds)
    found = []
    try:
        async for message in stream:
            assert isinstance(message, pb.RowColumns)
            assert message.content == b"token"
            found.append(message.columns[0])
    finally:
        await stream.aclose()
    return found


# --- both ---


async def test_all_shapes_of_calls_arrive(world: World) -> None:
    answer = await world.calls.unary("Locate", pb.LocateRequest(session=2**64 - 1, body=b"where"), 10)
    assert answer == pb.LocateResponse(body=b"where")
    assert world.echo.seen == [2**64 - 1]
    assert await fetched(world.calls) == [0, 1, 2]
    world.echo.seen.clear()
    assert await world.calls.request_stream("Push", pushes(5), 10, 10) == pb.PushResponse(rows_received=5)
    assert world.echo.seen == [0, 1, 2, 3, 4]


async def test_a_status_keeps_its_code_and_detail_in_every_shape(world: World) -> None:
    world.echo.error = CallError(grpc.StatusCode.ABORTED, "the session is gone")
    for call in (
        heartbeat(world.calls),
        fetched(world.calls),
        world.calls.request_stream("Push", pushes(3), 10, 10),
    ):
        with pytest.raises(CallError) as caught:
            await call
        assert (caught.value.code, caught.value.detail) == (grpc.StatusCode.ABORTED, "the session is gone")


async def test_chunks_that_came_before_a_status_are_given(world: World) -> None:
    world.echo.error = CallError(grpc.StatusCode.ABORTED, "gone")
    stream = world.calls.response_stream("Fetch", pb.FetchRequest(tokens=b"token"), 10, 10)
    got = [await anext(stream) for _ in range(3)]
    assert len(got) == 3
    with pytest.raises(CallError, match="gone"):
        await anext(stream)


async def test_every_call_ends_by_its_deadline_and_what_served_it_is_cancelled(world: World) -> None:
    world.echo.hangs = True
    for call in (
        heartbeat(world.calls, timeout_seconds=0.05),
        fetched(world.calls, timeout_seconds=0.05),
        world.calls.request_stream("Push", pushes(3), 0.05, 10),
    ):
        with pytest.raises(CallError) as caught:
            await call
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: world.echo.cancelled == 3)


async def test_a_stream_that_says_nothing_ends_by_the_deadline_of_its_messages(world: World) -> None:
    world.echo.hangs = True
    stream = world.calls.response_stream("Fetch", pb.FetchRequest(tokens=b"token"), 60, 0.05)
    with pytest.raises(CallError) as caught:
        async for _ in stream:
            pass
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(CallError) as caught:
        await world.calls.request_stream("Push", pushes(50), 60, 0.05)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: world.echo.cancelled == 2)


async def test_closing_a_stream_cancels_the_call(world: World) -> None:
    world.echo.hangs = True
    stream = world.calls.response_stream("Fetch", pb.FetchRequest(tokens=b"token"), 60, 60)
    await anext(stream)
    await stream.aclose()
    await until(lambda: world.echo.closed_streams == 1)


async def test_what_the_sender_of_a_stream_raises_is_raised_and_the_call_ends(world: World) -> None:
    async def broken() -> AsyncIterator[Message]:
        yield pb.PushRequest(stream=1)
        raise ValueError("the disk is broken")

    with pytest.raises(ValueError, match="disk"):
        await world.calls.request_stream("Push", broken(), 10, 10)


async def test_a_slow_receiver_slows_the_sender(world: World) -> None:
    world.echo.chunks = 2_000
    stream = world.calls.response_stream("Fetch", pb.FetchRequest(tokens=bytes(100_000)), 60, 60)
    await anext(stream)
    for _ in range(100):
        await asyncio.sleep(0)
    assert world.echo.sent < 200
    await stream.aclose()


async def test_a_message_beyond_the_limit_of_the_transport_is_refused(world: World) -> None:
    with pytest.raises(CallError) as caught:
        await world.calls.unary("Locate", pb.LocateRequest(body=bytes(5 * 1024 * 1024)), 10)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not world.echo.seen


async def test_nobody_there_is_told(world: World) -> None:
    calls = world.transport.calls("127.0.0.1:9")
    for call in (heartbeat(calls), fetched(calls), calls.request_stream("Push", pushes(3), 10, 10)):
        with pytest.raises(CallError) as caught:
            await call
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def test_a_handler_that_breaks_is_a_status(world: World) -> None:
    world.echo.error = ZeroDivisionError("oops")
    with pytest.raises(CallError) as caught:
        await heartbeat(world.calls)
    assert caught.value.code is grpc.StatusCode.UNKNOWN


# --- gRPC ---


@pytest.mark.parametrize("world", ["grpc"], indirect=True)
async def test_noise_is_refused_and_counted_for_every_method(world: World) -> None:
    assert world.channel is not None
    for method in METHODS.values():
        noise: Any = b"\xff\xff"
        if method.shape is Shape.UNARY:
            answer: Any = world.channel.unary_unary(method.path)(noise, timeout=10)
        elif method.shape is Shape.RESPONSE_STREAM:
            answer = world.channel.unary_stream(method.path)(noise, timeout=10).read()
        else:
            answer = world.channel.stream_unary(method.path)(iter([noise]), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answer
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert world.malformed == [f"/{SERVICE_NAME}/{name}" for name in METHODS]
    assert not world.echo.seen


@pytest.mark.parametrize("world", ["grpc"], indirect=True)
async def test_a_closed_transport_says_so(world: World) -> None:
    await world.transport.close()
    await world.transport.close()
    with pytest.raises(CallError) as caught:
        await heartbeat(world.calls)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


# --- faults of the in-process twin ---


@dataclass
class Script:
    """Faults by (method, is_request, index): of the first such message, of the second, ..."""

    faults: dict[tuple[str, bool, int], list[Fault | None]]

    def __call__(self, crossing: Crossing) -> Fault | None:
        left = self.faults.get((crossing.method, crossing.is_request, crossing.index))
        return left.pop(0) if left else None


def with_faults(world: World, **faults: list[Fault | None]) -> MemoryNetwork:
    """``Fetch_0=...``: requests; ``back_Fetch_0=...``: answers."""
    assert world.network is not None
    script = {}
    for name, some in faults.items():
        parts = name.split("_")
        script[(parts[-2], len(parts) == 2, int(parts[-1]))] = some
    world.network.faults = Script(script)
    return world.network


only_memory = pytest.mark.parametrize("world", ["memory"], indirect=True)


@only_memory
async def test_a_lost_request_is_not_served_and_a_lost_answer_is(world: World) -> None:
    with_faults(world, Heartbeat_0=[Fault(FaultKind.DROP)])
    with pytest.raises(CallError, match="DEADLINE"):
        await heartbeat(world.calls, timeout_seconds=0.02)
    assert world.echo.seen == []
    with_faults(world, back_Heartbeat_0=[Fault(FaultKind.DROP)])
    with pytest.raises(CallError, match="DEADLINE"):
        await heartbeat(world.calls, timeout_seconds=0.02)
    assert world.echo.seen == [1]


@only_memory
async def test_a_duplicated_request_is_served_twice_and_answered_once(world: World) -> None:
    with_faults(world, Heartbeat_0=[Fault(FaultKind.DUPLICATE)])
    await heartbeat(world.calls)
    assert world.echo.seen == [1, 1]


@only_memory
async def test_a_delayed_request_arrives_later(world: World) -> None:
    with_faults(world, Heartbeat_0=[Fault(FaultKind.DELAY, 0.05)])
    await asyncio.gather(heartbeat(world.calls, 1), heartbeat(world.calls, 2))
    assert world.echo.seen == [2, 1]


@only_memory
async def test_a_reordered_request_arrives_after_the_next_one(world: World) -> None:
    with_faults(world, Heartbeat_0=[Fault(FaultKind.REORDER)])
    first = asyncio.ensure_future(heartbeat(world.calls, 1))
    await asyncio.sleep(0.01)
    assert world.echo.seen == []
    await heartbeat(world.calls, 2)
    await first
    assert world.echo.seen == [2, 1]


@only_memory
async def test_a_replayed_request_is_served_again_when_nobody_waits_for_it(world: World) -> None:
    with_faults(world, Heartbeat_0=[Fault(FaultKind.REPLAY, 0.01)])
    await heartbeat(world.calls, 7)
    assert world.echo.seen == [7]
    await until(lambda: world.echo.seen == [7, 7])


@only_memory
async def test_who_is_killed_resets_all_calls_and_answers_no_more(world: World) -> None:
    network = with_faults(world, Fetch_0=[Fault(FaultKind.KILL)])
    world.echo.hangs = True
    under_way = asyncio.ensure_future(heartbeat(world.calls))
    pushing = asyncio.ensure_future(world.calls.request_stream("Push", pushes(3), 10, 10))
    await until(lambda: len(world.echo.seen) == 2)
    for call in (fetched(world.calls), under_way, pushing, heartbeat(world.calls)):
        with pytest.raises(CallError) as caught:
            await call
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert world.echo.cancelled == 2
    world.echo.hangs = False
    network.serve(THERE, world.echo)
    await heartbeat(world.calls)


@only_memory
async def test_messages_of_streams_are_repeated_swapped_and_lost(world: World) -> None:
    with_faults(world, Push_1=[Fault(FaultKind.DUPLICATE)], Push_2=[Fault(FaultKind.REORDER)])
    await world.calls.request_stream("Push", pushes(5), 10, 10)
    assert world.echo.seen == [0, 1, 1, 3, 2, 4]
    with_faults(world, back_Fetch_0=[Fault(FaultKind.REORDER)], back_Fetch_2=[Fault(FaultKind.REORDER)])
    assert await fetched(world.calls) == [1, 0, 2]
    with_faults(world, back_Fetch_1=[Fault(FaultKind.DROP)])
    with pytest.raises(CallError, match="DEADLINE"):
        await fetched(world.calls, timeout_seconds=0.02)


@only_memory
async def test_what_crosses_is_counted_in_bytes(world: World) -> None:
    assert world.network is not None
    await heartbeat(world.calls)
    assert world.network.messages == {(HERE, THERE): 1, (THERE, HERE): 1}
    assert world.network.message_bytes == {(HERE, THERE): 9, (THERE, HERE): 0}
