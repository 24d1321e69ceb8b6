"""One contract for every transport, then what only gRPC, only the in-process twin, and the shared inbound half do."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import grpc
import grpc.aio
import pytest

from gossiper import limits
from gossiper.core.messages import (
    DigestColumns,
    EchoReply,
    EchoRequest,
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
from gossiper.errors import LocalStateError, NotRunningError, PeerProtocolError, TransportError
from gossiper.metrics import GossipMetrics
from gossiper.transport.base import Handler, Transport
from gossiper.transport.grpc import SERVER_OPTIONS, GrpcTransport, _peer_host, _target
from gossiper.transport.inbound import LogLimiter
from gossiper.transport.memory import MemoryNetwork, MemoryTransport
from gossiper.wire import codec

TIMEOUT_SECONDS = 5.0
EXCHANGE = "/gossiper.v1.GossipService/Exchange"


def sender(endpoint: str = "127.0.0.1:7001") -> Sender:
    return Sender("test", 1, endpoint, 100)


SYN = GossipDigestSyn(sender(), 1_000_000, DigestColumns.from_rows([("127.0.0.1:7001", 100, 9, 130)]))
STATE = EndpointState(
    "127.0.0.1:7001", 100, 1000, 9, 0, 130, (("STATUS", VersionedValue(129, "NORMAL")), ("x", VersionedValue(130, "")))
)
ACK = GossipDigestAck(sender("127.0.0.1:7002"), 1_000_001, SYN.digests, DigestColumns.empty(), (STATE,))
ACK2 = GossipDigestAck2(sender(), (STATE,))
ECHO = EchoRequest(sender(), 100)
ECHO_REPLY = EchoReply(sender("127.0.0.1:7002"), 11)


def answer(request: Request) -> Reply:
    match request:
        case GossipDigestSyn():
            return ACK
        case GossipDigestAck2():
            return GossipDigestAck2Reply(len(request.states))
        case EchoRequest():
            return ECHO_REPLY


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 15.0) -> None:
    """Wait for a condition with a deadline, which is generous for a busy machine."""
    async with asyncio.timeout(seconds):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(0.01)


def other_tasks() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


async def is_unavailable(client: Transport, peer: str) -> bool:
    """Whether ``peer`` does not answer now; any other failure is raised."""
    try:
        assert await client.send(peer, ECHO, TIMEOUT_SECONDS) == ECHO_REPLY
    except TransportError as error:
        if error.reason != "unavailable":
            raise
        return True
    return False


async def is_back(client: Transport, peer: str) -> bool:
    return not await is_unavailable(client, peer)


class World(Protocol):
    """What the contract needs of a kind of transport."""

    async def start(self, handler: Handler = answer, listen: str = ...) -> tuple[Transport, str, GossipMetrics]: ...

    async def hanging_peer(self) -> str:
        """The endpoint of a peer that takes calls and never answers."""
        ...

    def hanging_calls(self) -> int:
        """How many calls have reached such a peer."""
        ...


class GrpcWorld:
    def __init__(self) -> None:
        self._ends: list[Callable[[], Awaitable[None]]] = []
        self._hanging_calls = 0

    def hanging_calls(self) -> int:
        return self._hanging_calls

    async def start(
        self, handler: Handler = answer, listen: str = "127.0.0.1:0", **options: Any
    ) -> tuple[GrpcTransport, str, GossipMetrics]:
        metrics = GossipMetrics()
        transport = GrpcTransport(listen, metrics=metrics, **options)
        self._ends.append(lambda: transport.stop(0))
        return transport, await transport.start(handler), metrics

    async def hanging_peer(self) -> str:
        async def hang(_: bytes, context: Any) -> bytes:
            self._hanging_calls += 1
            await asyncio.Event().wait()
            raise AssertionError

        server = grpc.aio.server(options=list(SERVER_OPTIONS))
        method: Any = grpc.unary_unary_rpc_method_handler(hang)
        methods = dict.fromkeys(("Exchange", "Deliver", "Echo"), method)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("gossiper.v1.GossipService", methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._ends.append(lambda: server.stop(None))
        return f"127.0.0.1:{port}"

    async def close(self) -> None:
        for end in reversed(self._ends):
            await end()
        if self._hanging_calls:  # a bare server leaves gRPC's own tasks to the next turns of the loop
            await until(lambda: not other_tasks())


class MemoryWorld:
    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self._transports: list[MemoryTransport] = []

    def hanging_calls(self) -> int:
        return len(self.network._waiting)

    async def start(
        self, handler: Handler = answer, listen: str = "127.0.0.1:0"
    ) -> tuple[MemoryTransport, str, GossipMetrics]:
        metrics = GossipMetrics()
        transport = MemoryTransport(self.network, listen, metrics=metrics)
        self._transports.append(transport)
        return transport, await transport.start(handler), metrics

    async def hanging_peer(self) -> str:
        _, endpoint, _ = await self.start()
        self.network.hang(endpoint)
        return endpoint

    async def close(self) -> None:
        for transport in self._transports:
            await transport.stop(0)


async def no_tasks_left() -> bool:
    """gRPC ends its own task of a refused call a moment after the server has stopped."""
    deadline = time.monotonic() + 5.0
    while other_tasks() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return not other_tasks()


@pytest.fixture(params=[GrpcWorld, MemoryWorld], ids=["grpc", "memory"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    one = request.param()
    yield one
    await one.close()
    assert await no_tasks_left()


@pytest.fixture
async def grpc_world() -> AsyncIterator[GrpcWorld]:
    one = GrpcWorld()
    yield one
    await one.close()


@pytest.fixture
async def memory_world() -> AsyncIterator[MemoryWorld]:
    one = MemoryWorld()
    yield one
    await one.close()


# -- the contract ------------------------------------------------------------------------------------------------------


async def test_answers_every_kind_of_request(world: World) -> None:
    taken: list[Request] = []

    def handler(request: Request) -> Reply:
        taken.append(request)
        return answer(request)

    client, _, sent = await world.start()
    _, server, received = await world.start(handler)
    assert await client.send(server, SYN, TIMEOUT_SECONDS) == ACK
    assert await client.send(server, ACK2, TIMEOUT_SECONDS) == GossipDigestAck2Reply(1)
    assert await client.send(server, ECHO, TIMEOUT_SECONDS) == ECHO_REPLY
    assert taken == [SYN, ACK2, ECHO]
    for kind, message in (("syn", SYN), ("ack2", ACK2), ("echo_request", ECHO)):
        size = len(codec.encode(message))
        for metrics, direction in ((sent, "sent"), (received, "received")):
            assert metrics.value("gossiper_messages_total", kind=kind, form="plain", direction=direction) == 1
            assert metrics.value("gossiper_message_bytes_total", kind=kind, form="plain", direction=direction) == size
    size = len(codec.encode(ACK))
    assert sent.value("gossiper_message_bytes_total", kind="ack", form="plain", direction="received") == size
    assert received.value("gossiper_message_bytes_total", kind="ack", form="plain", direction="sent") == size


async def test_the_port_is_filled_in(world: World) -> None:
    _, endpoint, _ = await world.start(listen="127.0.0.1:0")
    host, _, port = endpoint.rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0


async def test_two_nodes_do_not_share_an_address(world: World) -> None:
    _, endpoint, _ = await world.start()
    with pytest.raises(LocalStateError, match=f"cannot listen on {endpoint}: .*in use.* another port"):
        await world.start(listen=endpoint)


async def test_nobody_there_is_unavailable(world: World) -> None:
    client, _, metrics = await world.start()
    gone, endpoint, _ = await world.start()
    await gone.stop(0)
    with pytest.raises(TransportError, match=endpoint) as caught:
        await client.send(endpoint, ECHO, TIMEOUT_SECONDS)
    assert (caught.value.reason, caught.value.retriable) == ("unavailable", True)
    assert metrics.value("gossiper_send_failures_total", reason="unavailable") == 1


async def test_a_hanging_peer_costs_one_deadline_and_blocks_nobody(world: World) -> None:
    client, _, metrics = await world.start()
    _, healthy, _ = await world.start()
    hanging = await world.hanging_peer()
    slow = asyncio.create_task(client.send(hanging, SYN, 1.0))
    await until(lambda: world.hanging_calls() == 1)
    for _ in range(5):
        assert await client.send(healthy, ECHO, TIMEOUT_SECONDS) == ECHO_REPLY
    with pytest.raises(TransportError) as caught:
        await slow
    assert (caught.value.reason, caught.value.retriable) == ("deadline", True)
    assert metrics.value("gossiper_send_failures_total", reason="deadline") == 1


@pytest.mark.parametrize(
    ("error", "reason", "retriable"),
    [
        (PeerProtocolError("cluster_mismatch", "this is 'a', not 'b'"), "refused", False),
        (PeerProtocolError("protocol_version", "speaks 9"), "refused", False),
        (PeerProtocolError("invalid_generation", "of tomorrow"), "refused", False),
        (PeerProtocolError("too_large", "too many"), "too_large", False),
        (PeerProtocolError("not_running", "stopped"), "refused", True),
        (NotRunningError("not started"), "refused", True),
    ],
)
async def test_a_refusal_is_told_and_counted(world: World, error: Exception, reason: str, retriable: bool) -> None:
    def handler(request: Request) -> Reply:
        raise error

    client, _, sent = await world.start()
    _, server, received = await world.start(handler)
    with pytest.raises(TransportError) as caught:
        await client.send(server, SYN, TIMEOUT_SECONDS)
    assert (caught.value.reason, caught.value.retriable) == (reason, retriable)
    label = error.reason if isinstance(error, PeerProtocolError) else "not_running"
    detail = error.detail if isinstance(error, PeerProtocolError) else "not started"
    assert f"{label}: {detail}" in str(caught.value)
    assert received.value("gossiper_refused_total", reason=label) == 1
    assert sent.value("gossiper_send_failures_total", reason=reason) == 1


async def test_a_fault_of_the_handler_is_not_the_fault_of_the_peer(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(request: Request) -> Reply:
        raise ZeroDivisionError

    client, _, _ = await world.start()
    _, server, received = await world.start(handler)
    with pytest.raises(TransportError, match="internal error") as caught:
        await client.send(server, SYN, TIMEOUT_SECONDS)
    assert (caught.value.reason, caught.value.retriable) == ("unavailable", True)
    assert received.value("gossiper_internal_errors_total") == 1
    assert not [name for name, _ in received.snapshot() if name.startswith("gossiper_refused_total")]
    assert "ZeroDivisionError" in caplog.text


async def test_what_is_too_large_is_not_sent(world: World) -> None:
    client, _, metrics = await world.start()
    _, server, received = await world.start()
    value = VersionedValue(1, "v" * limits.MESSAGE_BYTES_MAX)
    request = GossipDigestAck2(sender(), (EndpointState("127.0.0.1:7001", 1, 1000, 1, 0, 1, (("x", value),)),))
    with pytest.raises(TransportError) as caught:
        await client.send(server, request, TIMEOUT_SECONDS)
    assert (caught.value.reason, caught.value.retriable) == ("too_large", False)
    assert metrics.value("gossiper_messages_total", kind="ack2", form="plain", direction="sent") == 0
    assert received.snapshot() == [] or received.snapshot() == [("gossiper_channels", 0.0)]


async def test_an_answer_that_is_too_large_is_not_sent_either(world: World) -> None:
    value = VersionedValue(1, "v" * limits.MESSAGE_BYTES_MAX)
    state = EndpointState("127.0.0.1:7001", 1, 1000, 1, 0, 1, (("x", value),))

    def handler(request: Request) -> Reply:
        return GossipDigestAck(sender(), 1, DigestColumns.empty(), DigestColumns.empty(), (state,))

    client, _, _ = await world.start()
    _, server, received = await world.start(handler)
    with pytest.raises(TransportError) as caught:
        await client.send(server, SYN, TIMEOUT_SECONDS)
    assert (caught.value.reason, caught.value.retriable) == ("too_large", False)
    assert received.value("gossiper_send_failures_total", reason="too_large") == 1


async def test_an_answer_with_impossible_fields_is_malformed(world: World) -> None:
    def handler(request: Request) -> Reply:
        return EchoReply(sender("NOT-CANONICAL:7000"), 1)

    client, _, metrics = await world.start()
    _, server, _ = await world.start(handler)
    with pytest.raises(TransportError, match="not in canonical form") as caught:
        await client.send(server, ECHO, TIMEOUT_SECONDS)
    assert (caught.value.reason, caught.value.retriable) == ("malformed", False)
    assert metrics.value("gossiper_refused_total", reason="invalid_field") == 1


async def test_stop_ends_calls_under_way_as_a_transport_error(world: World) -> None:
    client, _, _ = await world.start()
    hanging = await world.hanging_peer()
    calls = [asyncio.create_task(client.send(hanging, SYN, 60)) for _ in range(3)]
    await until(lambda: world.hanging_calls() == 3)
    await client.stop(0.05)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [getattr(result, "reason", result) for result in results] == ["unavailable"] * 3


async def test_cancelling_a_send_cancels_it(world: World) -> None:
    client, _, _ = await world.start()
    call = asyncio.create_task(client.send(await world.hanging_peer(), SYN, 60))
    await until(lambda: world.hanging_calls() == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_stop_is_idempotent_also_at_the_same_time_and_before_the_start(world: World) -> None:
    transport, endpoint, _ = await world.start()
    await asyncio.gather(transport.stop(0.1), transport.stop(0.1))
    await transport.stop(0)
    with pytest.raises(TransportError, match="not running") as caught:
        await transport.send(endpoint, ECHO, TIMEOUT_SECONDS)
    assert (caught.value.reason, caught.value.retriable) == ("unavailable", False)
    with pytest.raises(LocalStateError, match="starts once"):
        await transport.start(answer)
    await GrpcTransport("127.0.0.1:0", metrics=GossipMetrics()).stop(0)
    await MemoryTransport(MemoryNetwork(), "127.0.0.1:0").stop(0)


async def test_a_channel_recovers_when_its_peer_restarts_on_the_same_port(world: World) -> None:
    client, _, _ = await world.start()
    first, endpoint, _ = await world.start()
    assert await client.send(endpoint, ECHO, TIMEOUT_SECONDS) == ECHO_REPLY
    await first.stop(0)
    assert await is_unavailable(client, endpoint)
    await world.start(listen=endpoint)
    await until(lambda: is_back(client, endpoint))


async def test_many_calls_at_once(world: World) -> None:
    client, _, _ = await world.start()
    servers = [(await world.start())[1] for _ in range(3)]
    replies = await asyncio.gather(*(client.send(server, SYN, TIMEOUT_SECONDS) for server in servers * 20))
    assert replies == [ACK] * 60


# -- only gRPC ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def raw(grpc_world: GrpcWorld) -> AsyncIterator[tuple[grpc.aio.Channel, GossipMetrics, list[Request]]]:
    """A channel to a transport for bytes that no codec made, its metrics, and what reached its handler."""
    taken: list[Request] = []

    def handler(request: Request) -> Reply:
        taken.append(request)
        return answer(request)

    _, server, metrics = await grpc_world.start(handler)
    channel = grpc.aio.insecure_channel(server, options=[("grpc.use_local_subchannel_pool", 1)])
    yield channel, metrics, taken
    await channel.close()


Raw = tuple[grpc.aio.Channel, GossipMetrics, list[Request]]


async def refusal(channel: grpc.aio.Channel, data: bytes, path: str = EXCHANGE) -> tuple[grpc.StatusCode, str]:
    call: Any = channel.unary_unary(path)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(data, timeout=TIMEOUT_SECONDS)
    return caught.value.code(), caught.value.details() or ""


@pytest.mark.parametrize("method", ["Exchange", "Deliver", "Echo"])
async def test_garbage_is_refused_and_counted(raw: Raw, method: str) -> None:
    channel, metrics, taken = raw
    status, details = await refusal(channel, b"\xff\xfe garbage", f"/gossiper.v1.GossipService/{method}")
    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("malformed: 10 bytes are not a ")
    assert metrics.value("gossiper_refused_total", reason="malformed") == 1
    assert taken == []


async def test_impossible_fields_are_refused_and_counted(raw: Raw) -> None:
    channel, metrics, taken = raw
    request = EchoRequest(sender(), limits.INTEGER_MAX)
    status, details = await refusal(channel, codec.encode(request), "/gossiper.v1.GossipService/Echo")
    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("invalid_generation: ")
    assert metrics.value("gossiper_refused_total", reason="invalid_generation") == 1
    assert taken == []


async def test_a_message_that_grpc_refuses_for_its_size_is_counted(raw: Raw) -> None:
    channel, metrics, taken = raw
    status, _ = await refusal(channel, bytes(limits.MESSAGE_BYTES_MAX + 1))
    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
    await until(lambda: metrics.value("gossiper_refused_total", reason="too_large") == 1)
    assert taken == []


async def test_a_call_without_a_message_is_malformed(raw: Raw) -> None:
    channel, metrics, _ = raw
    stream: Any = channel.stream_unary(EXCHANGE)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream(iter(()), timeout=TIMEOUT_SECONDS)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert metrics.value("gossiper_refused_total", reason="malformed") == 1


async def test_a_call_that_never_sends_its_message_ends(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossiper.transport.grpc.REQUEST_SECONDS_MAX", 0.05)
    channel, metrics, _ = raw

    async def nothing() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    stream: Any = channel.stream_unary(EXCHANGE)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream(nothing(), timeout=TIMEOUT_SECONDS)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no message within" in (caught.value.details() or "")
    assert metrics.value("gossiper_refused_total", reason="malformed") == 1


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("cluster_mismatch", grpc.StatusCode.FAILED_PRECONDITION),
        ("protocol_version", grpc.StatusCode.FAILED_PRECONDITION),
        ("not_running", grpc.StatusCode.FAILED_PRECONDITION),
        ("invalid_heartbeat", grpc.StatusCode.INVALID_ARGUMENT),
        ("too_large", grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_the_status_of_a_refusal(grpc_world: GrpcWorld, reason: str, status: grpc.StatusCode) -> None:
    def handler(request: Request) -> Reply:
        raise PeerProtocolError(reason, "because ünicode\n" * 1000)

    _, server, _ = await grpc_world.start(handler)
    async with grpc.aio.insecure_channel(server) as channel:
        found, details = await refusal(channel, codec.encode(SYN))
    assert found is status
    assert details.startswith(f"{reason}: because ünicode\n")
    assert len(details) == 300


async def test_foreign_services_share_the_listener(grpc_world: GrpcWorld) -> None:
    async def shout(request: bytes, _: Any) -> bytes:
        return request.upper()

    def register(server: grpc.aio.Server) -> None:
        methods: Any = {"Shout": grpc.unary_unary_rpc_method_handler(shout)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("application.Service", methods),))

    client, _, _ = await grpc_world.start()
    _, server, _ = await grpc_world.start(services=[register])
    async with grpc.aio.insecure_channel(server) as channel:
        call: Any = channel.unary_unary("/application.Service/Shout")
        assert await call(b"hello", timeout=TIMEOUT_SECONDS) == b"HELLO"
    assert await client.send(server, SYN, TIMEOUT_SECONDS) == ACK


async def test_a_listener_that_is_no_gossiper_refuses(grpc_world: GrpcWorld) -> None:
    client, _, _ = await grpc_world.start()
    server = grpc.aio.server(options=list(SERVER_OPTIONS))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        with pytest.raises(TransportError) as caught:
            await client.send(f"127.0.0.1:{port}", SYN, TIMEOUT_SECONDS)
        assert (caught.value.reason, caught.value.retriable) == ("refused", False)
    finally:
        await server.stop(None)


async def test_a_listener_that_does_not_speak_grpc_is_a_transport_error(grpc_world: GrpcWorld) -> None:
    client, _, _ = await grpc_world.start()
    quiet = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with quiet:
        port = quiet.sockets[0].getsockname()[1]
        with pytest.raises(TransportError) as caught:
            await client.send(f"127.0.0.1:{port}", SYN, 1.0)
    assert caught.value.reason in {"unavailable", "deadline"}


async def test_a_port_used_by_another_program_is_named(grpc_world: GrpcWorld) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(LocalStateError, match=f"cannot listen on {endpoint}: Address already in use; stop the"):
            await grpc_world.start(listen=endpoint)


async def test_an_address_of_another_machine_cannot_be_bound(grpc_world: GrpcWorld) -> None:
    with pytest.raises(LocalStateError, match=r"cannot listen on 192\.0\.2\.1:0: .*; this machine has no such address"):
        await grpc_world.start(listen="192.0.2.1:0")


@pytest.fixture
def resolves(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """Makes every host name resolve to the given addresses, or to an error if there are none."""

    def set_addresses(addresses: list[str]) -> None:
        async def getaddrinfo(*_: object, **__: object) -> list[Any]:
            if not addresses:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)

    return set_addresses


async def test_a_name_that_does_not_resolve_cannot_be_bound(
    grpc_world: GrpcWorld, resolves: Callable[[list[str]], None]
) -> None:
    resolves([])
    with pytest.raises(LocalStateError, match="cannot listen on elsewhere:7000: Name or service not known"):
        await grpc_world.start(listen="elsewhere:7000")


async def test_a_name_is_bound_at_all_addresses_of_this_machine(
    grpc_world: GrpcWorld, resolves: Callable[[list[str]], None]
) -> None:
    client, _, _ = await grpc_world.start()
    resolves(["127.0.0.1", "192.0.2.1", "127.0.0.2"])
    _, endpoint, _ = await grpc_world.start(listen="several:0")
    port = endpoint.removeprefix("several:")
    for address in ("127.0.0.1", "127.0.0.2"):
        assert await client.send(f"{address}:{port}", ECHO, TIMEOUT_SECONDS) == ECHO_REPLY
    with pytest.raises(LocalStateError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
        await grpc_world.start(listen=f"several:{port}")
    resolves(["192.0.2.1"])
    with pytest.raises(LocalStateError, match="no such address"):
        await grpc_world.start(listen="several:0")


async def test_host_names_and_ipv6(grpc_world: GrpcWorld) -> None:
    client, _, _ = await grpc_world.start()
    _, by_name, _ = await grpc_world.start(listen="localhost:0")
    assert by_name.startswith("localhost:")
    assert await client.send(by_name, ECHO, TIMEOUT_SECONDS) == ECHO_REPLY
    try:
        _, by_address, _ = await grpc_world.start(listen="[::1]:0")
    except LocalStateError as error:
        pytest.skip(f"no IPv6 here: {error}")
    assert by_address.startswith("[::1]:")
    assert await client.send(by_address, ECHO, TIMEOUT_SECONDS) == ECHO_REPLY


async def test_channels_are_capped_and_the_one_used_longest_ago_goes(grpc_world: GrpcWorld) -> None:
    client, _, metrics = await grpc_world.start(channels_max=2)
    servers = [(await grpc_world.start())[1] for _ in range(3)]
    for server in (servers[0], servers[1], servers[0], servers[2]):
        await client.send(server, ECHO, TIMEOUT_SECONDS)
    assert list(client._peers) == [servers[0], servers[2]]
    assert metrics.value("gossiper_channels") == 2
    assert await client.send(servers[1], ECHO, TIMEOUT_SECONDS) == ECHO_REPLY


async def test_a_channel_with_a_call_under_way_is_not_closed(grpc_world: GrpcWorld) -> None:
    client, _, _ = await grpc_world.start(channels_max=1)
    _, healthy, _ = await grpc_world.start()
    hanging = await grpc_world.hanging_peer()
    slow = asyncio.create_task(client.send(hanging, SYN, 0.5))
    await asyncio.sleep(0)
    await client.send(healthy, ECHO, TIMEOUT_SECONDS)
    with pytest.raises(TransportError, match="DEADLINE_EXCEEDED"):
        await slow
    assert len(client._peers) == 1


async def test_a_stopping_server_says_unavailable(grpc_world: GrpcWorld) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow(request: bytes, _: Any) -> bytes:
        entered.set()
        await leave.wait()
        return request

    def register(server: grpc.aio.Server) -> None:
        methods: Any = {"Slow": grpc.unary_unary_rpc_method_handler(slow)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("application.Service", methods),))

    client, _, _ = await grpc_world.start()
    transport, server, _ = await grpc_world.start(services=[register])
    assert await client.send(server, ECHO, TIMEOUT_SECONDS) == ECHO_REPLY
    async with grpc.aio.insecure_channel(server) as channel:
        call: Any = channel.unary_unary("/application.Service/Slow")
        under_way = asyncio.ensure_future(call(b"x", timeout=TIMEOUT_SECONDS))
        await entered.wait()
        stopping = asyncio.create_task(transport.stop(TIMEOUT_SECONDS))
        await until(lambda: is_unavailable(client, server))
        assert not under_way.done()
        leave.set()
        assert await under_way == b"x"
        await stopping


async def test_refusals_are_logged_at_a_limited_rate(grpc_world: GrpcWorld, caplog: pytest.LogCaptureFixture) -> None:
    def handler(request: Request) -> Reply:
        reason = "cluster_mismatch" if isinstance(request, GossipDigestSyn) else "protocol_version"
        raise PeerProtocolError(reason, "not ours")

    client, _, _ = await grpc_world.start()
    _, server, metrics = await grpc_world.start(handler)
    with caplog.at_level(logging.WARNING, "gossiper.transport.inbound"):
        for _ in range(4):
            with pytest.raises(TransportError):
                await client.send(server, SYN, TIMEOUT_SECONDS)
        with pytest.raises(TransportError):
            await client.send(server, ECHO, TIMEOUT_SECONDS)
    lines = [record.getMessage() for record in caplog.records if record.name == "gossiper.transport.inbound"]
    assert lines == [
        "message refused peer=127.0.0.1 kind=syn reason=cluster_mismatch detail=not ours held_back=0",
        "message refused peer=127.0.0.1 kind=echo_request reason=protocol_version detail=not ours held_back=0",
    ]
    assert metrics.value("gossiper_refused_total", reason="cluster_mismatch") == 4


async def test_a_peer_that_comes_too_early_or_too_late_is_no_warning(
    grpc_world: GrpcWorld, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(request: Request) -> Reply:
        if isinstance(request, GossipDigestSyn):
            raise NotRunningError("stopped")
        raise PeerProtocolError("protocol_version", "not ours")

    client, _, _ = await grpc_world.start()
    _, server, _ = await grpc_world.start(handler)
    with caplog.at_level(logging.INFO, "gossiper.transport.inbound"):
        for request in (SYN, ECHO):
            with pytest.raises(TransportError):
                await client.send(server, request, TIMEOUT_SECONDS)
    levels = [record.levelname for record in caplog.records if record.name == "gossiper.transport.inbound"]
    assert levels == ["INFO", "WARNING"]


def test_targets_go_past_the_resolver_when_they_can() -> None:
    assert _target("127.0.0.1:7000") == "ipv4:127.0.0.1:7000"
    assert _target("[::1]:7000") == "ipv6:[::1]:7000"
    assert _target("node-1.example:7000") == "dns:///node-1.example:7000"


def test_peers_are_named_without_their_port() -> None:
    assert _peer_host("ipv4:127.0.0.1:43210") == "127.0.0.1"
    assert _peer_host("ipv6:%5B::1%5D:43210") == "[::1]"
    assert _peer_host("strange") == "strange"


# -- only the in-process twin ------------------------------------------------------------------------------------------


async def test_a_cut_link_ends_calls_at_their_deadline_until_healed(memory_world: MemoryWorld) -> None:
    taken: list[Request] = []

    def handler(request: Request) -> Reply:
        taken.append(request)
        return answer(request)

    a, a_endpoint, _ = await memory_world.start(handler)
    b, b_endpoint, _ = await memory_world.start(handler)
    memory_world.network.cut(a_endpoint, b_endpoint)
    for one, peer in ((a, b_endpoint), (b, a_endpoint)):
        with pytest.raises(TransportError, match="no answer") as caught:
            await one.send(peer, ECHO, 0.01)
        assert caught.value.reason == "deadline"
    assert taken == []
    memory_world.network.heal(a_endpoint, b_endpoint)
    assert await a.send(b_endpoint, ECHO, TIMEOUT_SECONDS) == ECHO_REPLY
    assert taken == [ECHO]


async def test_a_link_cut_one_way_loses_requests_or_answers(memory_world: MemoryWorld) -> None:
    taken: list[str] = []

    def handler_of(name: str) -> Handler:
        def handler(request: Request) -> Reply:
            taken.append(name)
            return answer(request)

        return handler

    a, a_endpoint, _ = await memory_world.start(handler_of("a"))
    b, b_endpoint, _ = await memory_world.start(handler_of("b"))
    memory_world.network.cut(a_endpoint, b_endpoint, both=False)
    with pytest.raises(TransportError):
        await a.send(b_endpoint, ECHO, 0.01)
    assert taken == []
    with pytest.raises(TransportError):
        await b.send(a_endpoint, ECHO, 0.01)
    assert taken == ["a"]


async def test_a_node_that_hangs_sends_nothing_and_goes_on_when_resumed(memory_world: MemoryWorld) -> None:
    a, a_endpoint, _ = await memory_world.start()
    b, b_endpoint, _ = await memory_world.start()
    memory_world.network.hang(b_endpoint)
    with pytest.raises(TransportError):
        await b.send(a_endpoint, ECHO, 0.01)
    waiting = asyncio.create_task(a.send(b_endpoint, ECHO, TIMEOUT_SECONDS))
    await until(lambda: memory_world.hanging_calls() == 1)
    assert not waiting.done()
    memory_world.network.resume(b_endpoint)
    assert await waiting == ECHO_REPLY


async def test_calls_to_a_hanging_node_are_reset_when_it_ends(memory_world: MemoryWorld) -> None:
    a, _, _ = await memory_world.start()
    b, b_endpoint, _ = await memory_world.start()
    memory_world.network.hang(b_endpoint)
    waiting = asyncio.create_task(a.send(b_endpoint, ECHO, TIMEOUT_SECONDS))
    await until(lambda: memory_world.hanging_calls() == 1)
    await b.stop(0)
    with pytest.raises(TransportError, match="closed") as caught:
        await waiting
    assert caught.value.reason == "unavailable"


async def test_the_network_counts_what_is_put_on_each_link(memory_world: MemoryWorld) -> None:
    a, a_endpoint, _ = await memory_world.start()
    _, b_endpoint, _ = await memory_world.start()
    await a.send(b_endpoint, SYN, TIMEOUT_SECONDS)
    network = memory_world.network
    assert network.message_bytes == {
        (a_endpoint, b_endpoint): len(codec.encode(SYN)),
        (b_endpoint, a_endpoint): len(codec.encode(ACK)),
    }
    assert network.messages == {(a_endpoint, b_endpoint): 1, (b_endpoint, a_endpoint): 1}


async def test_ports_are_given_in_order(memory_world: MemoryWorld) -> None:
    endpoints = [(await memory_world.start(listen="10.0.0.1:0"))[1] for _ in range(3)]
    assert endpoints == ["10.0.0.1:7000", "10.0.0.1:7001", "10.0.0.1:7002"]


async def test_bytes_that_no_codec_made_are_refused(memory_world: MemoryWorld) -> None:
    a, _, metrics = await memory_world.start()
    with pytest.raises(PeerProtocolError, match="malformed"):
        a.receive("syn", b"\xff\xfe garbage", "10.0.0.9:7000")
    assert metrics.value("gossiper_refused_total", reason="malformed") == 1


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop that does not wait: when nothing is ready, its clock jumps to the next timer."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__()

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        internals: Any = self
        if not internals._ready and internals._scheduled:
            self.now = max(self.now, internals._scheduled[0]._when)
        internals = super()
        internals._run_once()


def test_deadlines_follow_virtual_time() -> None:
    async def main() -> float:
        world = MemoryWorld()
        client, _, _ = await world.start()
        with pytest.raises(TransportError, match="no answer in 3600 s"):
            await client.send(await world.hanging_peer(), ECHO, 3600)
        await world.close()
        return asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(main()) == 3600


# -- the limit of log lines --------------------------------------------------------------------------------------------


def test_one_line_per_key_and_interval_says_how_many_were_held_back() -> None:
    limiter = LogLimiter(interval_seconds=60, keys_max=10)
    key = ("10.0.0.1", "malformed")
    assert limiter.permit(key, 0.0) == 0
    assert [limiter.permit(key, second) for second in (1.0, 30.0, 59.9)] == [None, None, None]
    assert limiter.permit(("10.0.0.1", "too_large"), 30.0) == 0
    assert limiter.permit(key, 60.0) == 3
    assert limiter.permit(key, 61.0) is None


def test_memory_and_lines_are_bounded_whatever_peers_invent() -> None:
    limiter = LogLimiter(interval_seconds=60, keys_max=10)
    lines = [limiter.permit((f"10.0.0.{i}", "malformed"), 0.0) for i in range(100)]
    assert lines == [0] * 10 + [None] * 90
    assert len(limiter) == 10
    assert limiter.permit(("10.0.1.1", "malformed"), 60.0) == 0
    assert len(limiter) == 10
