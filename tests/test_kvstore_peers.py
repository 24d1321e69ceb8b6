"""Replica calls over real gRPC: what is checked, what is refused, and that a refused message changes nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from antientropy.store import Row
from antientropy.stores.lmdb import LmdbRowStore
from kvstore.errors import (
    ClockDriftError,
    InvalidRequestError,
    KvStoreError,
    OverloadedError,
    StorageError,
    UnreachableError,
    WrongClusterError,
)
from kvstore.hlc import HybridLogicalClock, version_at
from kvstore.limits import KEY_BYTES_MAX, MUTATIONS_PER_CALL_MAX, REPLICA_CALLS_IN_FLIGHT_MAX, VALUE_BYTES_MAX
from kvstore.peers import KEYSPACE, LocalReplica, ReplicaCalls, ReplicaService
from kvstore.v1 import kvstore_pb2 as pb
from kvstore.v1 import kvstore_pb2_grpc as pb_grpc
from kvstore.wire import REASON_KEY, SERVER_OPTIONS
from kvstore.writer import GroupCommitWriter

NOW = 1_000_000.0
LOCAL = "127.0.0.1:1"
ROWS = [Row(b"key%d" % number, number + 1, b"value%d" % number) for number in range(20)]


class Peer:
    """A replica behind a server, and the calls that reach it."""

    def __init__(self, store: LmdbRowStore, writer: GroupCommitWriter) -> None:
        self.store = store
        self.clock = HybridLogicalClock(lambda: NOW, drift_seconds_max=5.0)
        self.replica = LocalReplica(store, writer, self.clock)
        self.service = ReplicaService(cluster_name="test", replica=self.replica)
        self.server = grpc.aio.server(options=SERVER_OPTIONS)
        self.service.register(self.server)
        self.endpoint = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.calls = self.calls_of("test")

    def calls_of(self, cluster_name: str) -> ReplicaCalls:
        return ReplicaCalls(cluster_name=cluster_name, local_endpoint=LOCAL, local=self.replica)


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    store = LmdbRowStore(tmp_path / "rows", durable=False)
    async with GroupCommitWriter(store) as writer:
        made = Peer(store, writer)
        await made.server.start()
        yield made
        await made.calls.close()
        await made.server.stop(None)
        made.replica.close()
    store.close()


async def test_rows_go_there_and_come_back(peer: Peer) -> None:
    tombstone = Row(b"gone", 9, b"", deleted=True)
    await peer.calls.apply_rows(peer.endpoint, [*ROWS, tombstone], 10.0)
    found = await peer.calls.read_rows(peer.endpoint, [b"key3", b"nothing", b"gone"], 10.0)
    assert found == [ROWS[3], tombstone]
    assert peer.clock.last == 20


@pytest.mark.parametrize("endpoint_is_local", [False, True])
async def test_pages_cover_everything_once_in_order(peer: Peer, endpoint_is_local: bool) -> None:
    await peer.calls.apply_rows(peer.endpoint, ROWS, 10.0)
    endpoint = LOCAL if endpoint_is_local else peer.endpoint
    found: list[Row] = []
    after_key: bytes | None = b""
    pages = 0
    while after_key is not None:
        page = await peer.calls.scan_rows(endpoint, b"", after_key, 7, 10.0)
        found += page.rows
        after_key = page.next_after_key
        pages += 1
    assert found == sorted(ROWS, key=lambda row: (row.token, row.key))
    assert pages == 3


async def test_a_page_is_bounded_by_bytes(peer: Peer) -> None:
    large = [Row(b"key%d" % number, 1, bytes(200_000)) for number in range(6)]
    await peer.replica.apply_rows(large)
    page = await peer.calls.scan_rows(peer.endpoint, b"", b"", 1_000, 10.0)
    assert len(page.rows) == 3
    assert page.next_after_key == page.rows[-1].key


async def test_a_prefix_passes_over_other_rows(peer: Peer) -> None:
    await peer.replica.apply_rows([*ROWS, Row(b"other", 1, b"x")])
    page = await peer.calls.scan_rows(peer.endpoint, b"oth", b"", 10, 10.0)
    assert [row.key for row in page.rows] == [b"other"]
    assert page.next_after_key is None


async def test_a_foreign_cluster_is_refused_and_logged_once(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    foreign = peer.calls_of("elsewhere")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with pytest.raises(WrongClusterError, match="this is cluster 'test'"):
                await foreign.apply_rows(peer.endpoint, ROWS, 10.0)
        with pytest.raises(WrongClusterError):
            await foreign.read_rows(peer.endpoint, [b"a"], 10.0)
        with pytest.raises(WrongClusterError):
            await foreign.scan_rows(peer.endpoint, b"", b"", 1, 10.0)
    await foreign.close()
    assert len([record for record in caplog.records if "elsewhere" in record.getMessage()]) == 1
    assert peer.store.row_count == 0
    assert peer.service.refused["wrong_cluster"] == 5


def row_message(key: bytes = b"key", version: int = 1, value: bytes = b"", deleted: bool = False) -> pb.Row:
    return pb.Row(key=key, version=version, value=value, deleted=deleted)


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ([row_message(key=b"")], "1 to 480 bytes, this one has 0"),
        ([row_message(key=bytes(KEY_BYTES_MAX + 1))], "this one has 481"),
        ([row_message(version=0)], "a row has a version"),
        ([row_message(value=bytes(VALUE_BYTES_MAX + 1))], "a value has at most"),
        ([row_message(value=b"x", deleted=True)], "a tombstone has no value"),
        ([row_message()] * (MUTATIONS_PER_CALL_MAX + 1), "at most 1000 rows"),
    ],
)
async def test_an_impossible_row_refuses_the_whole_message(peer: Peer, bad: list[pb.Row], text: str) -> None:
    request = pb.ApplyRowsRequest(cluster_name="test", keyspace=KEYSPACE, rows=[row_message(key=b"good"), *bad])
    async with grpc.aio.insecure_channel(peer.endpoint) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb_grpc.ReplicaServiceStub(channel).ApplyRows(request, timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert text in str(caught.value.details())
    assert (REASON_KEY, "invalid_request") in [tuple(pair) for pair in caught.value.trailing_metadata()]
    assert peer.store.row_count == 0


async def test_what_is_no_protobuf_changes_nothing(peer: Peer) -> None:
    async with grpc.aio.insecure_channel(peer.endpoint) as channel:
        call: Any = channel.unary_unary("/kvstore.v1.ReplicaService/ApplyRows")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff\xff\xff\xff not protobuf", timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert peer.store.row_count == 0


async def test_a_version_from_the_far_future_is_refused(peer: Peer) -> None:
    with pytest.raises(ClockDriftError, match="3600"):
        await peer.calls.apply_rows(peer.endpoint, [ROWS[0], Row(b"future", version_at(NOW + 3600), b"x")], 10.0)
    assert peer.store.row_count == 0


@pytest.mark.parametrize("keys", [[], [b""], [b"x"] * 257])
async def test_impossible_reads_are_refused(peer: Peer, keys: list[bytes]) -> None:
    with pytest.raises(InvalidRequestError):
        await peer.calls.read_rows(peer.endpoint, keys, 10.0)


async def test_a_full_disk_there_is_told_here(tmp_path: Path) -> None:
    store = LmdbRowStore(tmp_path / "small", map_bytes_max=1024 * 1024, durable=False)
    async with GroupCommitWriter(store) as writer:
        peer = Peer(store, writer)
        await peer.server.start()
        with pytest.raises(StorageError, match="map_bytes_max"):
            await peer.calls.apply_rows(
                peer.endpoint, [Row(b"key%d" % number, 1, bytes(50_000)) for number in range(40)], 10.0
            )
        await peer.calls.apply_rows(peer.endpoint, [ROWS[0]], 10.0)
        assert await peer.calls.read_rows(peer.endpoint, [ROWS[0].key], 10.0) == [ROWS[0]]
        await peer.calls.close()
        await peer.server.stop(None)
        peer.replica.close()
    store.close()


async def test_a_dead_peer_fails_at_once_and_a_returned_one_is_reached_at_once(peer: Peer) -> None:
    port = int(peer.endpoint.rpartition(":")[2])
    await peer.server.stop(None)
    for _ in range(2):
        with pytest.raises(UnreachableError, match="connection"):
            await peer.calls.read_rows(peer.endpoint, [b"a"], 10.0)
    again = grpc.aio.server(options=SERVER_OPTIONS)
    peer.service.register(again)
    assert again.add_insecure_port(f"127.0.0.1:{port}") == port
    await again.start()
    # The old channel would wait before it tries again.
    peer.calls.reconnect(peer.endpoint)
    assert await peer.calls.read_rows(peer.endpoint, [b"a"], 10.0) == []
    await again.stop(None)


async def test_calls_to_a_peer_that_hangs_are_bounded(tmp_path: Path) -> None:
    accepted: list[asyncio.StreamWriter] = []
    listener = await asyncio.start_server(lambda _reader, writer: accepted.append(writer), "127.0.0.1", 0)
    endpoint = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    store = LmdbRowStore(tmp_path / "rows", durable=False)
    async with GroupCommitWriter(store) as writer:
        peer = Peer(store, writer)
        waiting = [
            asyncio.create_task(peer.calls.read_rows(endpoint, [b"a"], 30.0))
            for _ in range(REPLICA_CALLS_IN_FLIGHT_MAX)
        ]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="256 calls to it are not answered"):
            await peer.calls.read_rows(endpoint, [b"a"], 30.0)
        for task in waiting:
            task.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError | KvStoreError) for result in results)
        await peer.calls.close()
        await peer.server.stop(None)
        peer.replica.close()
    store.close()
    for connection in accepted:
        connection.close()
    listener.close()
    await listener.wait_closed()
