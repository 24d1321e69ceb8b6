"""A node inside the test's own process: its order of starting and stopping, and the seams between its parts."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from antientropy.store import Row
from antientropy.stores.lmdb import LmdbRowStore
from gossiper import NotRunningError
from kvstore import AsyncKeyValueClient, Consistency, KvStoreConfig, KvStoreNode, Mutation
from kvstore.errors import ClockDriftError, StartError, UnreachableError
from kvstore.hlc import HybridLogicalClock, version_at
from kvstore.load import load_is_due
from kvstore.machine import ThisMachine
from kvstore.store import ClockedStore

FREE = "127.0.0.1:0"


def config_of(directory: Path, **options: object) -> KvStoreConfig:
    settings: dict[str, object] = {
        "data_dir": directory,
        "listen_peers": FREE,
        "listen_clients": FREE,
        "listen_admin": FREE,
        "replication_factor": 1,
        "interval_seconds": 0.1,
        **options,
    }
    return KvStoreConfig(**settings)  # type: ignore[arg-type]  # options of the tests


async def test_a_node_serves_and_announces_itself(tmp_path: Path) -> None:
    async with KvStoreNode(config_of(tmp_path, advertise_clients="kv.example:0")) as node:
        (member,) = node.gossiper.members()
        port = node.addresses.clients.rpartition(":")[2]
        assert member.get("RPC_READY") == "true"
        assert member.get("NATIVE_ADDRESS_AND_PORT") == f"kv.example:{port}"
        assert 0 <= int(member.get("TOKENS") or "-1") < 2**64
        async with AsyncKeyValueClient(node.addresses.clients) as client:
            last = await client.write([Mutation(b"a", b"1"), Mutation(b"b", b"2"), Mutation(b"a", deleted=True)])
            assert await client.get(b"a") is None
            found = await client.get(b"b", consistency=Consistency.LOCAL)
            assert found is not None
            assert (found.value, found.version) == (b"2", last - 1)
            assert await client.put(b"c", b"3") > last
            assert await client.delete(b"c") > last + 1
            rows = [row async for row in client.scan(include_tombstones=True)]
            assert {row.key: row.deleted for row in rows} == {b"a": True, b"b": False, b"c": True}
            description = await client.describe()
            assert (description.row_count, description.tombstone_count) == (3, 2)
            assert (description.replicas_required, description.alive_count) == (1, 1)
            series = dict(node.gossiper.metrics.snapshot())
            assert (series["kvstore_rows"], series["kvstore_tombstones"]) == (3, 2)
            assert series["kvstore_commits_total"] >= 3
            assert series["kvstore_commit_latency_seconds"] > 0
            assert series["kvstore_rows_refused_total"] == series["kvstore_commit_failures_total"] == 0
        address = node.addresses.clients
    async with AsyncKeyValueClient(address) as client:
        with pytest.raises(UnreachableError):
            await client.get(b"b")
    await node.stop()


@pytest.mark.parametrize(
    ("listener", "method"),
    [
        ("peers", "/kvstore.v1.ReplicaService/ApplyRows"),
        ("peers", "/antientropy.v1.RepairPeerService/Compare"),
        ("clients", "/kvstore.v1.KeyValueService/Write"),
        ("admin", "/gossiper.v1.GossipAdminService/GetClusterView"),
        ("admin", "/antientropy.v1.RepairAdminService/DescribeReplica"),
    ],
)
async def test_what_is_no_protobuf_is_refused_counted_and_logged_once(
    tmp_path: Path, listener: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with KvStoreNode(config_of(tmp_path)) as node:
        async with grpc.aio.insecure_channel(node.addresses.as_dict()[listener]) as channel:
            call: Any = channel.unary_unary(method)
            for _ in range(3):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(b"\xff\xff\xff\xff noise", timeout=10)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert node.gossiper.metrics.value("kvstore_malformed_total", method=method) == 3
        (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert method in line


async def test_load_is_said_at_once_and_follows_the_store(tmp_path: Path) -> None:
    async with KvStoreNode(config_of(tmp_path, interval_seconds=0.05)) as node:

        def load() -> float:
            (member,) = node.gossiper.members()
            return float(member.get("LOAD") or "nan")

        assert load() > 0
        before = load()
        async with AsyncKeyValueClient(node.addresses.clients) as client:
            await client.write([Mutation(b"key%03d" % number, bytes(1000)) for number in range(500)])
        async with asyncio.timeout(30):
            while load() < before + 500_000:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("stored_bytes", "age_seconds", "due"),
    [
        (1_000, 59.9, False),
        (1_000, 60.0, True),
        (1_100, 59.9, False),
        (1_101, 19.9, False),
        (1_101, 20.0, True),
        (899, 20.0, True),
        (900, 59.9, False),
    ],
)
def test_load_is_published_when_it_moved_and_not_too_often(stored_bytes: int, age_seconds: float, due: bool) -> None:
    assert load_is_due(1_000, stored_bytes, age_seconds, interval_seconds=2.0) is due


async def test_a_node_that_has_not_started_has_no_addresses(tmp_path: Path) -> None:
    node = KvStoreNode(config_of(tmp_path))
    for ask in (lambda: node.addresses, lambda: node.gossiper):
        with pytest.raises(NotRunningError):
            ask()
    with pytest.raises(NotRunningError):
        await node.wait_ended()
    await node.stop()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("listener", ["listen_peers", "listen_clients", "listen_admin"])
async def test_a_start_that_fails_gives_everything_back(tmp_path: Path, listener: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartError, match="in use"):
            await KvStoreNode(config_of(tmp_path, **{listener: address})).start()
    # The same directory and ports can be used at once.
    async with KvStoreNode(config_of(tmp_path)) as node:
        assert node.addresses.peers


async def test_a_clock_that_was_set_back_refuses_writes_and_reads_go_on(tmp_path: Path) -> None:
    async with KvStoreNode(config_of(tmp_path)) as node, AsyncKeyValueClient(node.addresses.clients) as client:
        await client.put(b"city", b"Paris")
    hour_ago = KvStoreNode(config_of(tmp_path), machine=ThisMachine(wall=lambda: time.time() - 3600))
    async with hour_ago as node, AsyncKeyValueClient(node.addresses.clients) as client:
        with pytest.raises(ClockDriftError, match="was set back"):
            await client.put(b"city", b"Rome")
        found = await client.get(b"city")
        assert found is not None
        assert found.value == b"Paris"


async def test_an_open_administration_listener_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no directory: nothing is bound to that address here")
    with caplog.at_level(logging.WARNING), pytest.raises(StartError):
        await KvStoreNode(config_of(tmp_path / "file", listen_admin="0.0.0.0:0")).start()
    assert "whoever reaches it may administer this node" in caplog.text


def test_what_repair_brings_moves_the_clock_but_not_too_far(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = 1_000_000.0
    clock = HybridLogicalClock(lambda: now, drift_seconds_max=5.0)
    inner = LmdbRowStore(tmp_path / "rows", durable=False)
    store = ClockedStore(inner, clock)
    soon, far = version_at(now + 3), version_at(now + 3600)
    assert store.apply([Row(b"a", 1, b"x"), Row(b"b", soon, b"x")]) == 2
    assert clock.now() > soon
    before = clock.last
    assert store.apply(iter([Row(b"a", far, b"y")])) == 1
    assert clock.last == before
    assert "far ahead" in caplog.text
    assert store.row_count == 2
    assert store.apply([]) == 0
    inner.close()
