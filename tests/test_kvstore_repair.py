"""Repair inside a node of the key-value store: what it brings, how it ends with the node, what the node says of it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest

from antientropy.errors import ServiceStoppedError
from antientropy.reports import SessionState
from antientropy.store import Row
from kvstore import KvStoreConfig, KvStoreNode
from kvstore.hlc import version_at
from kvstore.machine import ThisMachine
from kvstore.peers import KEYSPACE

FREE = "127.0.0.1:0"


def config_of(directory: Path, **options: object) -> KvStoreConfig:
    settings: dict[str, object] = {
        "data_dir": directory,
        "listen_peers": FREE,
        "listen_clients": FREE,
        "listen_admin": FREE,
        "replication_factor": 2,
        "interval_seconds": 0.05,
        "repair_period_seconds": 0.0,
        "shutdown_grace_seconds": 1.0,
        **options,
    }
    return KvStoreConfig(**settings)  # type: ignore[arg-type]  # options of the tests


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


async def two_nodes(stack: AsyncExitStack, directory: Path, **options: object) -> tuple[KvStoreNode, KvStoreNode]:
    """Two nodes that know each other, the first with 400 rows that the other lacks."""
    first = await stack.enter_async_context(KvStoreNode(config_of(directory / "1", **options)))
    seeds = (first.addresses.peers,)
    second = await stack.enter_async_context(KvStoreNode(config_of(directory / "2", seeds=seeds, **options)))
    both = {first.addresses.peers, second.addresses.peers}
    for node in (first, second):
        await until(lambda node=node: {one.endpoint for one in node.gossiper.members() if one.alive} == both)
        await until(lambda node=node: len(node.membership.ranges(KEYSPACE)) >= 2)
    old = version_at(ThisMachine().wall() - 60)
    first.store.apply([Row(b"key%d" % number, old + number, bytes(200), False) for number in range(400)])
    return first, second


async def test_a_repair_brings_rows_and_the_node_tells_of_it(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        _, second = await two_nodes(stack, tmp_path)
        async with aclosing(second.repair.repair(KEYSPACE)) as updates:
            last = [update async for update in updates][-1]
        assert last.state is SessionState.COMPLETED, last.message
        assert (last.statistics.rows_moved, last.statistics.rows_optimal) == (400, 400)
        assert second.store.row_count == 400
        series = dict(second.gossiper.metrics.snapshot())
        assert series["kvstore_rows"] == 400
        assert series['antientropy_rows_moved_total{keyspace="kv"}'] == 400
        summaries = await second.repair.summarize(KEYSPACE)
        assert all(one.repaired_at is not None for one in summaries)
        # All of it in one session, though the line is cut in parts.
        assert len(summaries) >= 2
        assert len(await second.repair.history()) == 1
    async with KvStoreNode(config_of(tmp_path / "2", replication_factor=1)) as again:
        assert (await again.repair.history())[0].state is SessionState.COMPLETED


async def test_a_node_that_stops_during_a_repair_stops_cleanly_and_can_resume(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        _, second = await two_nodes(stack, tmp_path, repair_throttle_rows_per_second=20.0)
        tasks = set(asyncio.all_tasks())

        async def repair() -> None:
            async with aclosing(second.repair.repair(KEYSPACE)) as updates:
                async for _ in updates:
                    pass

        repairing = asyncio.create_task(repair())

        async def under_way() -> bool:
            return any(one.state is SessionState.STREAMING for one in await second.repair.sessions())

        async with asyncio.timeout(30):
            while not await under_way():
                await asyncio.sleep(0.02)
        async with asyncio.timeout(20):
            await second.stop()
        with pytest.raises(ServiceStoppedError):
            await repairing
        assert not {task for task in asyncio.all_tasks() - tasks if "antientropy" in task.get_name()}
    async with KvStoreNode(config_of(tmp_path / "2", replication_factor=1)) as again:
        (session,) = await again.repair.sessions()
        assert session.state is SessionState.INTERRUPTED
