"""Messages that no peer should send are refused whole: over the in-process transport, and over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf.message import Message
from repair_peers import FAST, FULL, World, opening, raw, row

from antientropy import wire
from antientropy.config import RepairConfig
from antientropy.core.hashing import HASH_VERSION
from antientropy.core.merkle import EMPTY_ROOT, Root
from antientropy.core.rows import Row
from antientropy.errors import PeerError
from antientropy.peer_client import PeerClient
from antientropy.reports import RepairStatistics
from antientropy.transport.base import CallError
from antientropy.transport.grpc import GrpcTransport, register
from antientropy.v1 import repair_pb2 as pb


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.close()


# --- hostile messages ---

SESSION = 77


@pytest.mark.parametrize(
    ("method", "request_message", "match"),
    [
        ("Compare", opening(Root(b"x" * 15, 1), SESSION), "root digest"),
        ("Compare", opening(EMPTY_ROOT, SESSION, root_digest=b"x" * 16), "root digest"),
        ("Compare", opening(Root(b"x" * 15, 1), SESSION, repaired_version=b"\x01"), "root digest"),
        ("Compare", opening(EMPTY_ROOT, 0), "no name"),
        ("Compare", opening(EMPTY_ROOT, SESSION, first_token=9, tokens_after=2**64 - 9), "empty"),
        ("Compare", opening(EMPTY_ROOT, SESSION, keyspace="k" * 300), "keyspace"),
        ("Compare", opening(EMPTY_ROOT, SESSION, owner="o" * 300), "endpoint"),
        ("Compare", opening(EMPTY_ROOT, SESSION, floors=bytes(3)), "floors"),
        ("Compare", opening(EMPTY_ROOT, SESSION, floors=b"\x08" + bytes(9)), "cut short"),
        ("Compare", opening(EMPTY_ROOT, SESSION, repaired_version=bytes(9)), "version"),
        ("Compare", opening(EMPTY_ROOT, SESSION, purge_version=b"\xff" * 8), "future"),
        ("Compare", opening(EMPTY_ROOT, SESSION, hashes=2**32 - 1 - (2**32 - 1) % 16 + HASH_VERSION), "epoch"),
        ("Locate", pb.LocateRequest(session=SESSION), "cut short"),
        ("Locate", pb.LocateRequest(session=SESSION, body=b"\x07"), "cut short"),
        ("Locate", pb.LocateRequest(session=SESSION, body=b"\xff" * 50), "INVALID"),
        ("Send", pb.SendRequest(session=SESSION, target="127.0.0.1:7000", tokens=bytes(7)), "bytes of tokens"),
        ("Send", pb.SendRequest(session=SESSION, target="127.0.0.1:7000"), "bytes of tokens"),
    ],
)
async def test_hostile_requests_are_refused_whole(
    world: World, method: str, request_message: Message, match: str
) -> None:
    there = world.node([row(1)])
    if method != "Compare":
        await raw(world, there, "Compare", opening(EMPTY_ROOT, SESSION))
    before = there.service.session_count
    with pytest.raises(CallError, match=match) as caught:
        await raw(world, there, method, request_message)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert there.service.session_count == before
    assert there.rows() == [row(1)]
    assert there.replica.epoch == 0
    assert not there.service.marks["kv"].read().fence.any()


async def test_keyspaces_and_hashes_that_are_not_spoken_here(world: World) -> None:
    there = world.node([row(1)])
    with pytest.raises(CallError, match="not served here") as caught:
        await raw(world, there, "Compare", opening(EMPTY_ROOT, SESSION, keyspace="other"))
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    answer = await raw(world, there, "Compare", opening(EMPTY_ROOT, SESSION, hashes=HASH_VERSION + 1))
    assert answer.refusal.kind == pb.Refusal.KIND_HASH_VERSION
    assert there.service.session_count == 0


async def test_a_session_cannot_be_turned_to_another_range(world: World) -> None:
    there = world.node([row(1)])
    await raw(world, there, "Compare", opening(EMPTY_ROOT, SESSION))
    with pytest.raises(CallError, match="another keyspace or range"):
        await raw(world, there, "Compare", opening(EMPTY_ROOT, SESSION, turn=1, first_token=5))


@pytest.mark.parametrize("tokens", [b"", bytes(9), bytes(16), (5).to_bytes(8, "little") + bytes(8), bytes(8 * 20_000)])
async def test_bad_tokens_are_refused(world: World, tokens: bytes) -> None:
    there = world.node([row(1)])
    await raw(world, there, "Compare", opening(EMPTY_ROOT, SESSION))
    calls = world.network.transport("127.0.0.1:6666").calls(there.endpoint)
    stream = calls.response_stream("Fetch", pb.FetchRequest(session=SESSION, tokens=tokens), 5, 5)
    with pytest.raises(CallError, match="INVALID_ARGUMENT"):
        await anext(stream)


def chunk(*rows: Row) -> pb.RowColumns:
    [message] = wire.encode_rows(rows)
    return message.message


def damaged(good: pb.RowColumns) -> pb.RowColumns:
    return pb.RowColumns(columns=good.columns, content=good.content[:-1] + b"!")


@pytest.mark.parametrize(
    "second",
    [
        pb.PushRequest(rows=damaged(chunk(row(3)))),
        pb.PushRequest(),
        pb.PushRequest(session=5, rows=chunk(row(3))),
        pb.PushRequest(rows=pb.RowColumns(columns=b"\xff\xff\x03\0\0\0" + bytes(16))),
        pb.PushRequest(rows=chunk(Row(b"tombstone", 1, b"with a value", True))),
    ],
    ids=["damaged", "empty", "of two sessions", "absurd count", "no row of a store"],
)
async def test_a_bad_chunk_ends_its_stream_and_nothing_of_it_is_applied(world: World, second: pb.PushRequest) -> None:
    there = world.node([row(1)])
    await raw(world, there, "Compare", opening(EMPTY_ROOT, SESSION))

    async def requests() -> AsyncIterator[Message]:
        yield pb.PushRequest(session=SESSION, stream=1, rows=chunk(row(2)))
        yield second

    calls = world.network.transport("127.0.0.1:6666").calls(there.endpoint)
    with pytest.raises(CallError, match="INVALID_ARGUMENT"):
        await calls.request_stream("Push", requests(), 5, 5)
    assert there.rows() == [row(1), row(2)]


# --- over gRPC ---


async def test_a_session_over_grpc_and_what_is_too_large_for_it(world: World) -> None:
    there = world.node([row(number) for number in range(2_000)])
    malformed: list[str] = []
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    register(server, there.service, malformed.append)
    endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    transport = GrpcTransport()
    statistics = RepairStatistics()
    client = PeerClient(
        endpoint,
        transport.calls(endpoint),
        keyspace="kv",
        token_range=FULL,
        session=world.session(),
        owner="127.0.0.1:9000",
        config=RepairConfig(rpc_timeout_seconds=5),
        statistics=statistics,
        random=world.random,
        retry=FAST,
        executor=world.executor,
    )
    try:
        answer = await client.compare(EMPTY_ROOT)
        assert (answer.equal, answer.root_count) == (False, 2_000)
        tokens = np.array(sorted(row(number).token for number in range(2_000)), np.uint64)
        rows = [one async for some in client.fetch(tokens) for one in some]
        assert len(rows) == 2_000
        assert statistics.move_bytes == sum(len(one.key) + len(one.value) for one in rows)
        assert (await client.push(lambda: iter([row(5_000)]))).applied == 1
        await client.heartbeat()
        with pytest.raises(PeerError, match="RESOURCE_EXHAUSTED"):
            await client.send_rows(endpoint, np.arange(600_000, dtype=np.uint64))
        with pytest.raises(PeerError, match="INVALID_ARGUMENT"):
            await client.send_rows(endpoint, np.arange(20_000, dtype=np.uint64))
        assert (await client.compare(there.root())).equal
        assert there.service.session_count == 0
        assert malformed == []
    finally:
        await transport.close()
        await server.stop(0)
