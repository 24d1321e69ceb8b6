"""gRPC compression: what is compressed, what is not, and that a bomb stays shut."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import numpy as np
import pytest

from gossiper import limits
from gossiper.core.messages import (
    CompactAnswer,
    DigestColumns,
    EchoReply,
    EndpointState,
    GossipDigestAck,
    GossipDigestAck2,
    GossipDigestAck2Reply,
    GossipDigestSyn,
    Reply,
    Request,
    Sender,
    VersionedValue,
)
from gossiper.errors import TransportError
from gossiper.metrics import GossipMetrics
from gossiper.transport.compression import COMPRESSED_BYTES_MIN, compression_of
from gossiper.transport.grpc import CHANNEL_OPTIONS, SERVER_OPTIONS, GrpcTransport
from gossiper.wire import codec

TIMEOUT_SECONDS = 10.0
SENDER = Sender("test", 1, "127.0.0.1:7001", 100)
COLUMN = np.zeros(0, dtype=np.int64)


def digests(count: int) -> DigestColumns:
    return DigestColumns.from_rows([(f"10.0.0.{number}:7000", 1_700_000_000, 9, 130) for number in range(count)])


def states(count: int) -> tuple[EndpointState, ...]:
    values = (("STATUS", VersionedValue(129, "NORMAL")), ("x", VersionedValue(130, "y" * 40)))
    return tuple(EndpointState(f"10.0.0.{number}:7000", 100, 1000, 9, 0, 130, values) for number in range(count))


def ack(reply_states: tuple[EndpointState, ...], symbols: int = 0) -> GossipDigestAck:
    compact = CompactAnswer(np.ones(symbols, dtype=np.uint8), COLUMN, COLUMN, COLUMN, COLUMN) if symbols else None
    nothing = DigestColumns.empty()
    return GossipDigestAck(SENDER, 1_000_001, nothing, nothing, reply_states, compact=compact)


class Relay:
    """Counts the bytes of each direction between a client and a server."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self, target: str) -> str:
        self._target = target
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        host, _, port = self._target.rpartition(":")
        there, to_there = await asyncio.open_connection(host, int(port))
        self._writers.append(to_there)
        for name, source, sink in (("request", reader, to_there), ("reply", there, writer)):
            self._tasks.append(asyncio.create_task(self._pump(name, source, sink)))

    async def _pump(self, name: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            self.counts[name] += len(data)
            sink.write(data)
            await sink.drain()
        sink.close()

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # A connection that is left to the collector is a warning, and so an error, in whatever test runs then.
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)


class Pair:
    """A client and a server with a relay between; the server answers with ``reply``."""

    at: str

    def __init__(self) -> None:
        self.reply: Reply = GossipDigestAck2Reply(1)
        self.metrics = GossipMetrics()
        self.heard: list[Request] = []
        self.server = GrpcTransport("127.0.0.1:0", metrics=self.metrics)
        self.client = GrpcTransport("127.0.0.1:0", metrics=GossipMetrics())
        self.relay = Relay()

    def handler(self, request: Request) -> Reply:
        self.heard.append(request)
        return self.reply

    async def send(self, request: Request) -> Reply:
        self.relay.counts.clear()
        return await self.client.send(self.at, request, TIMEOUT_SECONDS)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    both = Pair()
    listening = await both.server.start(both.handler)
    await both.client.start(both.handler)
    both.at = await both.relay.start(listening)
    yield both
    await both.client.stop(0.0)
    await both.server.stop(0.0)
    await both.relay.stop()


def test_text_is_compressed_columns_are_not() -> None:
    plain = GossipDigestSyn(SENDER, 1, digests(100))
    assert compression_of(plain, len(codec.encode(plain))) is grpc.Compression.Gzip
    answered = ack((), symbols=2000)
    assert compression_of(answered, 1500) is grpc.Compression.NoCompression
    assert compression_of(answered, 2000 + COMPRESSED_BYTES_MIN) is grpc.Compression.Gzip
    assert (
        compression_of(GossipDigestAck2(SENDER, states(1)), COMPRESSED_BYTES_MIN - 1) is grpc.Compression.NoCompression
    )
    one = GossipDigestAck2(SENDER, states(1))
    assert compression_of(one, COMPRESSED_BYTES_MIN - 1) is grpc.Compression.NoCompression
    assert compression_of(one, COMPRESSED_BYTES_MIN) is grpc.Compression.Gzip
    assert compression_of(EchoReply(SENDER, 1), 10_000) is grpc.Compression.NoCompression


async def test_long_requests_and_replies_are_short_on_the_wire(pair: Pair) -> None:
    request, reply = GossipDigestSyn(SENDER, 1_000_000, digests(200)), ack(states(200))
    pair.reply = reply
    assert await pair.send(request) == reply
    assert pair.heard == [request]
    # Connection set-up included.
    assert pair.relay.counts["request"] < len(codec.encode(request)) / 2
    assert pair.relay.counts["reply"] < len(codec.encode(reply)) / 4


async def test_metrics_count_messages_as_they_are_before_compression(pair: Pair) -> None:
    request = GossipDigestAck2(SENDER, states(200))
    await pair.send(request)
    labels = {"kind": "ack2", "form": "plain", "direction": "received"}
    assert pair.metrics.value("gossiper_message_bytes_total", **labels) == len(codec.encode(request))


@pytest.mark.parametrize("over", [1, 60 * 1024 * 1024])
async def test_a_compressed_request_that_grows_beyond_the_limit_is_refused_and_counted(pair: Pair, over: int) -> None:
    bomb = bytes(limits.MESSAGE_BYTES_MAX + over)
    unlimited = [option for option in CHANNEL_OPTIONS if option[0] != "grpc.max_send_message_length"]
    options = [*unlimited, ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"ipv4:{pair.at}", options=options) as channel:
        method = "/gossiper.v1.GossipService/Exchange"
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call(bomb, timeout=TIMEOUT_SECONDS, compression=grpc.Compression.Gzip)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert pair.relay.counts["request"] < 200_000, "it did arrive compressed"
    # The server counts when its handler runs, which may be after the client has the answer.
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not pair.metrics.value("gossiper_refused_total", reason="too_large"):
            await asyncio.sleep(0.01)
    assert pair.metrics.value("gossiper_refused_total", reason="too_large") == 1
    assert pair.heard == []


async def test_a_compressed_answer_that_grows_beyond_the_limit_is_refused() -> None:
    async def answer(_: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        context.set_compression(grpc.Compression.Gzip)
        await context.send_initial_metadata(())
        return bytes(60 * 1024 * 1024)

    unlimited = [option for option in SERVER_OPTIONS if option[0] != "grpc.max_send_message_length"]
    server = grpc.aio.server(options=[*unlimited, ("grpc.max_send_message_length", -1)])
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(answer)
    service = grpc.method_handlers_generic_handler("gossiper.v1.GossipService", {"Exchange": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = GrpcTransport("127.0.0.1:0", metrics=GossipMetrics())
    await client.start(lambda request: GossipDigestAck2Reply(0))
    try:
        with pytest.raises(TransportError) as failure:
            await client.send(f"127.0.0.1:{port}", GossipDigestSyn(SENDER, 1, digests(1)), TIMEOUT_SECONDS)
    finally:
        await client.stop(0.0)
        await server.stop(None)
    assert failure.value.reason == "too_large"
    assert not failure.value.retriable
