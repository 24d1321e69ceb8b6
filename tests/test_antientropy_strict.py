"""What is no protobuf is answered, counted and logged once, in every kind of method; what is, passes unchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from antientropy.strict import strict
from antientropy.v1 import repair_pb2, repair_pb2_grpc

NOISE = b"\xff\xff\xff\xff noise"
ROOTS = "/antientropy.v1.RepairPeerService/Compare"
FETCH = "/antientropy.v1.RepairPeerService/Fetch"
PUSH = "/antientropy.v1.RepairPeerService/Push"


class Peer:
    """Three of the methods: one of each kind."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def Compare(self, request: Any, context: Any) -> Any:  # noqa: N802 - generated name
        self.seen.append(request)
        return repair_pb2.CompareResponse()

    async def Fetch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 - generated name
        self.seen.append(request)
        yield repair_pb2.RowColumns()
        yield repair_pb2.RowColumns()

    async def Push(self, requests: Any, context: Any) -> Any:  # noqa: N802 - generated name
        async for request in requests:
            self.seen.append(request)
        return repair_pb2.PushResponse()

    # Not called; a generated servicer has them all.
    Locate = Send = Heartbeat = Close = Compare


class World:
    def __init__(self) -> None:
        self.peer = Peer()
        self.counts: Counter[str] = Counter()
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        peer: Any = self.peer
        outer = strict(self.server, lambda method: self.counts.update([method]))
        assert strict(outer) is outer
        repair_pb2_grpc.add_RepairPeerServiceServicer_to_server(peer, strict(outer))
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)])


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    await made.server.start()
    async with made.channel:
        yield made
    await made.server.stop(None)


async def test_messages_pass(world: World) -> None:
    stub: Any = repair_pb2_grpc.RepairPeerServiceStub(world.channel)
    await stub.Compare(repair_pb2.CompareRequest(keyspace="a"), timeout=10)
    assert len([chunk async for chunk in stub.Fetch(repair_pb2.FetchRequest(), timeout=10)]) == 2
    await stub.Push(iter([repair_pb2.PushRequest(), repair_pb2.PushRequest()]), timeout=10)
    assert world.peer.seen[0].keyspace == "a"
    assert len(world.peer.seen) == 4
    assert not world.counts


async def noise_to(channel: Any, method: str) -> None:
    if method == ROOTS:
        await channel.unary_unary(method)(NOISE, timeout=10)
    elif method == FETCH:
        _ = [chunk async for chunk in channel.unary_stream(method)(NOISE, timeout=10)]
    else:
        await channel.stream_unary(method)(iter([b"", NOISE, b""]), timeout=10)


@pytest.mark.parametrize("method", [ROOTS, FETCH, PUSH])
async def test_noise_is_refused(world: World, caplog: pytest.LogCaptureFixture, method: str) -> None:
    for _ in range(3):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await noise_to(world.channel, method)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "not the protobuf message" in str(caught.value.details())
    assert world.counts == {method: 3}
    assert len(world.peer.seen) == (3 if method == PUSH else 0), "what came before the noise"
    (line,) = caplog.messages
    assert line.startswith(f"{method} of ipv4:127.0.0.1:")


def test_a_method_that_streams_both_ways_is_not_let_through_unchecked() -> None:
    def both(requests: Any, context: Any) -> Any:
        return requests

    handler: Any = grpc.stream_stream_rpc_method_handler(both)
    checked: Any = strict(object())  # type: ignore[arg-type]  # never reached
    with pytest.raises(TypeError, match="both ways"):
        checked.add_registered_method_handlers("service", {"Both": handler})
