"""Repair end to end over real gRPC and LMDB in one process: bytes, pages, collisions, dead and hanging peers."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from repair_cluster import (
    FULL,
    Store,
    cluster,
    copies_needed,
    diverge,
    grpc_cluster,
    messages,
    repaired,
    rows_named,
    until,
)

from antientropy import ConfigError, LmdbRowStore, MemoryRowStore, RepairConfig, Row, SessionState, TokenRange
from antientropy.core import hashing
from antientropy.stores.memory import MemoryReader


@pytest.mark.parametrize("replicas", [2, 3, 4])
async def test_repair_makes_replicas_equal_and_moves_exactly_what_differs(tmp_path: Path, replicas: int) -> None:
    stores: list[Store] = [LmdbRowStore(tmp_path / str(number), durable=False) for number in range(replicas)]
    for store in stores:
        store.apply(rows_named(3_000))
    diverge(stores, replicas, 400)
    try:
        async with grpc_cluster(*stores) as made:
            differing, copies = copies_needed(made.nodes)
            last = (await repaired(made[0]))[-1]
            assert last.state is SessionState.COMPLETED
            assert (last.statistics.rows_differing, last.statistics.rows_moved) == (differing, copies)
            assert last.statistics.rows_optimal == copies > 100
            assert copies_needed(made.nodes) == (0, 0)
            assert any(row.deleted for row in made[0].rows().values())
            assert made.held() == 0
    finally:
        for store in stores:
            store.close()


@pytest.mark.parametrize(
    ("differences", "kind", "bytes_max"),
    [(0, "none", 100), (1, "missing", 300), (1, "updated", 300), (100, "missing", 6_000), (100, "updated", 12_000)],
)
async def test_bytes_to_find_stay_in_their_budget(differences: int, kind: str, bytes_max: int) -> None:
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    rows = rows_named(20_000)
    stores[0].apply(rows)
    stores[1].apply(rows[differences:] if kind == "missing" else rows)
    stores[0].apply(rows_named(differences if kind == "updated" else 0, version=2))
    async with grpc_cluster(*stores) as made:
        statistics = (await repaired(made[0]))[-1].statistics
        assert made.equal()
        assert statistics.rows_moved == statistics.rows_optimal == differences
        assert statistics.find_bytes <= bytes_max


async def test_an_empty_replica_gets_everything_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antientropy.moving.ROWS_PER_PUSH_MAX", 300)
    monkeypatch.setattr("antientropy.wire.CHUNK_ROWS_MAX", 50)
    full, empty, half = MemoryRowStore(), MemoryRowStore(), MemoryRowStore()
    full.apply(rows_named(2_000))
    half.apply(rows_named(1_000))
    async with grpc_cluster(empty, full, half) as made:
        last = (await repaired(made[0]))[-1]
        assert last.state is SessionState.COMPLETED
        assert (last.statistics.rows_moved, last.statistics.rows_optimal) == (3_000, 3_000)
        assert copies_needed(made.nodes) == (0, 0)


async def test_keys_that_share_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Method: tokens of which a hundred keys share each."""
    original = hashing.token_of
    monkeypatch.setattr(hashing, "token_of", lambda key: (original(key) % 7) << 61)
    stores: list[Store] = [MemoryRowStore() for _ in range(3)]
    for store in stores:
        store.apply(rows_named(600))
    diverge(stores, 5, 100, keys=600)
    async with grpc_cluster(*stores) as made:
        updates = await repaired(made[0])
        assert updates[-1].state is SessionState.COMPLETED, messages(updates)
        assert copies_needed(made.nodes) == (0, 0)


async def test_different_keys_at_one_token() -> None:
    """One row each side at a token looks like two versions of one row; the second pass sees both keys."""
    one, other = MemoryRowStore(), MemoryRowStore()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "token_of", lambda key: 42)
        one.apply([Row(b"first", 1, b"a")])
        other.apply([Row(b"second", 2, b"b")])
        async with grpc_cluster(one, other) as made:
            updates = await repaired(made[0])
            assert updates[-1].state is SessionState.COMPLETED, messages(updates)
            assert made.equal()
            assert len(made[0].rows()) == 2
            assert updates[-1].statistics.rows_moved <= 4


@pytest.mark.parametrize("seed", range(5))
async def test_collisions_of_digests_are_gone_after_a_few_epochs(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Method: the hashes of trees cut to 1 byte, so that of 256 differences one stays hidden under each seed."""
    original = hashing.epoch_digests

    def cut(digests: NDArray[np.uint64], epoch: int) -> NDArray[np.uint64]:
        short: NDArray[np.uint64] = original(digests, epoch) & np.array([0xFF, 0], np.uint64)
        return short

    monkeypatch.setattr(hashing, "epoch_digests", cut)
    rng = random.Random(seed)
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    for store in stores:
        store.apply(rows_named(500))
    # Content that differs at equal versions is in no sketch: only the cut digests tell of it.
    for number in rng.sample(range(500), 3):
        stores[0].apply([Row(b"key%d" % number, 2, b"left")])
        stores[1].apply([Row(b"key%d" % number, 2, b"right")])
    async with cluster(*stores, config=RepairConfig(replica_retries_max=1, replica_retry_seconds=0.01)) as made:
        for _ in range(8):
            updates = await repaired(made[0])
            if made.equal():
                break
            replica = made[0].service._replicas["kv"]
            await asyncio.wrap_future(replica.rebuild(replica.epoch + 1))
        assert made.equal(), messages(updates)


async def test_a_repair_under_a_stream_of_writes_loses_none(tmp_path: Path) -> None:
    """A thread writes to random replicas all the while; repairs afterwards make all equal, and nothing is lost."""
    stores: list[Store] = [LmdbRowStore(tmp_path / str(number), durable=False) for number in range(3)]
    newest: dict[bytes, int] = {}
    stop = threading.Event()
    rng = random.Random(7)

    def write() -> None:
        version = 10
        while not stop.is_set():
            version += 1
            key = b"key%d" % rng.randrange(2_000)
            for store in rng.sample(stores, rng.randrange(1, 4)):
                store.apply([Row(key, version, b"%d" % version)])
            newest[key] = version

    try:
        for store in stores:
            store.apply(rows_named(2_000))
        async with grpc_cluster(*stores, config=RepairConfig(in_flight_seconds=0.01)) as made:
            writer = threading.Thread(target=write)
            writer.start()
            try:
                for node in made.nodes:
                    assert (await repaired(node))[-1].state is SessionState.COMPLETED
            finally:
                stop.set()
                await asyncio.to_thread(writer.join)
            _, copies = copies_needed(made.nodes)
            statistics = (await repaired(made[0]))[-1].statistics
            assert statistics.rows_moved == statistics.rows_optimal == copies
            assert made.equal()
            rows = made[0].rows()
            assert newest
            assert all(rows[key].version == version for key, version in newest.items())
    finally:
        for store in stores:
            store.close()


async def test_a_peer_that_cannot_be_reached_fails_its_pair_only() -> None:
    stores: list[Store] = [MemoryRowStore() for _ in range(3)]
    stores[1].apply(rows_named(100))
    async with grpc_cluster(*stores, config=RepairConfig(replica_retries_max=0)) as made:
        lost = made.ring.endpoints[2]
        await made._servers[lost].stop(None)
        updates = await repaired(made[0])
        assert updates[-1].state is SessionState.PARTIAL
        assert f"Repair with {lost} failed: cannot be reached" in messages(updates)
        assert made[0].rows() == made[1].rows()


async def test_a_peer_that_hangs_costs_its_deadlines_and_no_more() -> None:
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    stores[1].apply(rows_named(10))
    config = RepairConfig(rpc_timeout_seconds=0.1, replica_retries_max=0)
    async with grpc_cluster(*stores, config=config) as made:
        never = asyncio.Event()

        async def hang(method: str, request: object, caller: str) -> object:
            await never.wait()
            raise AssertionError

        made[1].service.peers.unary = hang  # type: ignore[method-assign,assignment] # a peer that is stuck
        updates = await repaired(made[0])
        assert updates[-1].state is SessionState.FAILED
        assert "did not answer in time" in messages(updates)
        never.set()


async def test_a_snapshot_that_opens_after_a_cancellation_is_closed() -> None:
    reached, go_on, closed = threading.Event(), threading.Event(), threading.Event()
    opens: list[bool] = []

    class Slow(MemoryRowStore):
        def read(self, on_open: Callable[[], None] = lambda: None) -> MemoryReader:
            opens.append(True)
            if len(opens) == 1:
                return super().read(on_open)
            reached.set()
            assert go_on.wait(10)
            reader = super().read(on_open)
            close = reader.close

            def noted() -> None:
                close()
                closed.set()

            reader.close = noted  # type: ignore[method-assign]  # a spy
            return reader

    one, other = Slow(), MemoryRowStore()
    other.apply(rows_named(10))
    async with grpc_cluster(one, other) as made:
        async with aclosing(made[0].service.repair("kv")) as updates:
            await anext(updates)
            await until(reached.is_set)
            closing = asyncio.create_task(updates.aclose())
            go_on.set()
            await closing
        await until(closed.is_set)
        await until(lambda: made.held() == 0)


async def test_a_stopped_service_refuses_its_peers_and_describes_nothing_wrong() -> None:
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    stores[1].apply(rows_named(10))
    async with grpc_cluster(*stores, config=RepairConfig(replica_retries_max=0)) as made:
        description = await made[1].service.describe("kv")
        assert (description.root.count, description.tombstone_count) == (10, 0)
        assert description.replicas == tuple(sorted(made.ring.endpoints))
        assert description.stored_bytes > 0
        await made[1].service.stop()
        assert made[1].held == 0
        assert (await repaired(made[0]))[-1].state is SessionState.FAILED


async def test_many_small_ranges_and_the_whole_agree() -> None:
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    for store in stores:
        store.apply(rows_named(1_000))
    diverge(stores, 3, 100, keys=1_000)
    async with cluster(*stores) as made:
        replicas = [node.service._replicas["kv"] for node in made.nodes]
        await repaired(made[0])
        ranges = [TokenRange(number << 60, ((number + 1) << 60) - 1) for number in range(16)]
        for token_range in [*ranges, FULL]:
            roots = [await asyncio.to_thread(replica.root, token_range) for replica in replicas]
            assert roots[0] == roots[1]


def test_wrong_settings_are_named_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        RepairConfig(rpc_timeout_seconds=0, sessions_max=-1, in_flight_seconds=-1, heartbeat_seconds=9)
    assert len(caught.value.faults) == 4
    assert "rpc_timeout_seconds is 0" in str(caught.value)
    assert "three must fit into lease_seconds" in str(caught.value)
