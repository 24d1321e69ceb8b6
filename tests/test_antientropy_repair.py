"""Repair end to end over real gRPC in one process: what travels, how much of it, and what happens when it breaks."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from antientropy import (
    ConfigError,
    LmdbRowStore,
    MemoryRowStore,
    Phase,
    RepairAdmin,
    RepairConfig,
    RepairOutcome,
    RepairRequestError,
    RepairRunningError,
    RepairService,
    RepairUpdate,
    Replica,
    Row,
    ServiceStoppedError,
    StoreFullError,
    TokenRange,
    UnknownKeyspaceError,
)
from antientropy.core import hashing
from antientropy.core.merkle import HashTree, Root
from antientropy.core.rows import Changes, RowDigests
from antientropy.core.tokens import TOKEN_MAX
from antientropy.limits import LOG_INTERVAL_SECONDS
from antientropy.logs import LogLimiter
from antientropy.stores.memory import MemoryReader
from antientropy.v1 import admin_pb2, admin_pb2_grpc, repair_pb2_grpc
from antientropy.v1 import repair_pb2 as pb

Store = MemoryRowStore | LmdbRowStore
FULL = TokenRange.full()


class CallCounter(grpc.aio.ServerInterceptor):
    """Counts calls by name; may hold one up or break it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        name = handler_call_details.method.rpartition("/")[2]
        self.calls.append(name)
        if name in self.before:
            await self.before[name]()
        return await continuation(handler_call_details)


@dataclass
class Members:
    """A membership that the test decides."""

    local_endpoint: str
    endpoints: list[str]
    dead: set[str] = field(default_factory=set)

    def replicas(self, keyspace: str) -> list[str]:
        return self.endpoints

    def is_alive(self, endpoint: str) -> bool:
        return endpoint not in self.dead


@dataclass
class Node:
    store: Store
    server: grpc.aio.Server
    counter: CallCounter
    service: RepairService
    members: Members

    @property
    def endpoint(self) -> str:
        return self.members.local_endpoint

    @property
    def calls(self) -> list[str]:
        return self.counter.calls

    def rows(self) -> dict[bytes, Row]:
        return {row.key: row for row in self.store.scan()}

    def stub(self) -> Any:
        return repair_pb2_grpc.RepairPeerServiceStub(self.service._channel(self.endpoint))


@asynccontextmanager
async def cluster(
    *stores: Store, config: RepairConfig | None = None, depths: Sequence[int] = ()
) -> AsyncIterator[list[Node]]:
    endpoints: list[str] = []
    dead: set[str] = set()
    nodes: list[Node] = []
    async with AsyncExitStack() as stack:
        for number, store in enumerate(stores):
            counter = CallCounter()
            server = grpc.aio.server(options=[("grpc.so_reuseport", 0)], interceptors=[counter])
            endpoints.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
            members = Members(endpoints[-1], endpoints, dead)
            replica = Replica(store, tree_depth=depths[number] if depths else None)
            service = RepairService({"kv": replica}, members, config)
            service.register(server)
            nodes.append(Node(store, server, counter, service, members))
        for node in nodes:
            await node.server.start()
            stack.push_async_callback(node.server.stop, None)
            await stack.enter_async_context(node.service)
        yield nodes


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def repaired(node: Node, token_range: TokenRange | None = None, peers: Iterable[str] = ()) -> list[RepairUpdate]:
    """All updates of a repair; checks what holds for every one."""
    updates = [update async for update in node.service.repair("kv", token_range, tuple(peers))]
    assert [update.outcome is None for update in updates] == [True] * (len(updates) - 1) + [False]
    assert all("\n" not in update.message for update in updates)
    progress = [update.progress for update in updates]
    assert progress == sorted(progress)
    assert updates[0].message.startswith("Starting repair session ")
    assert len({update.session_id for update in updates}) == 1
    assert updates[-1].statistics.elapsed_seconds > 0
    return updates


def root_of(store: Store, token_range: TokenRange = FULL) -> Root:
    """By brute force."""
    reader = store.read()
    try:
        return HashTree.build(RowDigests.concatenate([*reader.digests([token_range])]), 1).root
    finally:
        reader.close()


def messages(updates: list[RepairUpdate]) -> str:
    return "\n".join(update.message for update in updates)


def rows_named(count: int, version: int = 1, value: bytes = b"value", start: int = 0) -> list[Row]:
    return [Row(b"key%d" % number, version, value) for number in range(start, start + count)]


def diverge(stores: list[Store], seed: int, changes: int) -> None:
    """Writes and deletions, each of which reaches some of the replicas only."""
    rng = random.Random(seed)
    for _ in range(changes):
        key, version = b"key%d" % rng.randrange(3_000), rng.randrange(2, 9)
        deleted = rng.random() < 0.3
        row = Row(key, version, b"" if deleted else b"%d" % version, deleted)
        for store in rng.sample(stores, rng.randrange(1, len(stores))):
            store.apply([row])


def copies_needed(nodes: list[Node]) -> tuple[int, int]:
    """By brute force: keys that differ, and row copies that are missing somewhere."""
    replicas = [node.rows() for node in nodes]
    differing = copies = 0
    for key in set().union(*replicas):
        held = [replica.get(key) for replica in replicas]
        winner = max((row for row in held if row is not None), key=lambda row: (row.version, row.digest))
        lacking = sum(row != winner for row in held)
        copies += lacking
        differing += lacking > 0
    return differing, copies


@pytest.mark.parametrize("replicas", [2, 3, 4])
async def test_repair_makes_replicas_equal_and_moves_exactly_what_differs(tmp_path: Path, replicas: int) -> None:
    stores: list[Store] = [LmdbRowStore(tmp_path / str(number), durable=False) for number in range(replicas)]
    for store in stores:
        store.apply(rows_named(3_000))
    diverge(stores, replicas, 400)
    try:
        async with cluster(*stores) as nodes:
            differing, copies = copies_needed(nodes)
            updates = await repaired(nodes[0])
            last = updates[-1]
            assert last.outcome is RepairOutcome.COMPLETED, messages(updates)
            assert (last.progress, last.phase) == (1.0, Phase.DONE)
            assert (last.statistics.rows_differing, last.statistics.rows_moved) == (differing, copies)
            assert last.statistics.rows_optimal == copies > 100
            assert copies_needed(nodes) == (0, 0)
            assert len({root_of(store, FULL) for store in stores}) == 1
            assert any(row.deleted for row in nodes[0].rows().values())
            assert [node.service.session_count for node in nodes] == [0] * replicas
            assert f"Endpoints {nodes[0].endpoint} and {nodes[1].endpoint} are consistent for kv" in messages(updates)
            assert "rows out of sync for kv" in messages(updates)
    finally:
        for store in stores:
            store.close()


async def test_an_equal_pair_costs_one_round_trip_and_leaves_nothing_behind() -> None:
    one, other = MemoryRowStore(), MemoryRowStore()
    for store in (one, other):
        store.apply(rows_named(2_000))
    async with cluster(one, other) as (local, peer):
        updates = await repaired(local)
        assert peer.calls == ["CompareRoots"]
        assert local.calls == []
        assert peer.service.session_count == 0
        statistics = updates[-1].statistics
        assert statistics.round_trips == 1
        assert (statistics.pairs_compared, statistics.pairs_equal) == (1, 1)
        assert 0 < statistics.find_bytes < 100
        assert (statistics.move_bytes, statistics.rows_moved, statistics.rows_differing) == (0, 0, 0)
        assert updates[-1].outcome is RepairOutcome.COMPLETED
        assert len(updates) == 3


@pytest.mark.parametrize(("local_depth", "peer_depth"), [(1, 5), (5, 1), (3, 3), (2, 4)])
async def test_a_single_row_is_found_at_any_depths(local_depth: int, peer_depth: int) -> None:
    one, other = MemoryRowStore(), MemoryRowStore()
    for store in (one, other):
        store.apply(rows_named(500))
    other.apply([Row(b"key77", 2, b"", deleted=True)])
    async with cluster(one, other, depths=(local_depth, peer_depth)) as (local, peer):
        last = (await repaired(local))[-1]
        assert (last.statistics.rows_moved, last.statistics.rows_differing) == (1, 1)
        # Roots, a call for each level below the first, digests, row, close, roots again.
        assert peer.calls == ["CompareRoots", *["CompareNodes"] * (min(local_depth, peer_depth) - 1), "ListRowDigests",
            "FetchRows", "CloseSession", "CompareRoots"]  # fmt: skip
        assert last.statistics.round_trips == len(peer.calls)
        stored = local.store.get(b"key77")
        assert stored is not None
        assert stored.deleted


async def test_an_empty_replica_gets_everything_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antientropy.core.session.NODES_PER_REQUEST_MAX", 5)
    monkeypatch.setattr("antientropy.core.session.TOKENS_PER_REQUEST_MAX", 300)
    monkeypatch.setattr("antientropy.core.session.ROWS_PER_PUSH_MAX", 400)
    monkeypatch.setattr("antientropy.stores.memory.DIGESTS_PER_CHUNK_MAX", 37)
    monkeypatch.setattr("antientropy.legacy_wire.CHUNK_ROWS_MAX", 50)
    full, empty, half = MemoryRowStore(), MemoryRowStore(), MemoryRowStore()
    full.apply(rows_named(2_000))
    half.apply(rows_named(1_000))
    async with cluster(empty, full, half) as nodes:
        last = (await repaired(nodes[0]))[-1]
        assert last.outcome is RepairOutcome.COMPLETED
        assert (last.statistics.rows_moved, last.statistics.rows_optimal) == (3_000, 3_000)
        assert copies_needed(nodes) == (0, 0)
        assert nodes[1].calls.count("FetchRows") >= 4
        assert nodes[2].calls.count("PushRows") == 3


async def test_more_differences_than_memory_allows_take_more_passes() -> None:
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore(), MemoryRowStore()]
    for number, store in enumerate(stores):
        store.apply(rows_named(700, start=number * 500))
    async with cluster(*stores, config=RepairConfig(difference_rows_max=50, passes_max=1)) as nodes:
        _, copies = copies_needed(nodes)
        updates = await repaired(nodes[0])
        assert updates[-1].outcome is RepairOutcome.COMPLETED
        assert updates[-1].statistics.rows_moved == updates[-1].statistics.rows_optimal == copies
        assert copies_needed(nodes) == (0, 0)


async def test_repair_of_a_token_range_leaves_the_rest_alone() -> None:
    one, other = MemoryRowStore(), MemoryRowStore()
    rows = rows_named(1_000)
    one.apply(rows[:500])
    other.apply(rows[400:])
    part = TokenRange(TOKEN_MAX // 3 + 12_345, TOKEN_MAX // 2 + 999)
    async with cluster(one, other) as nodes:
        updates = await repaired(nodes[0], part)
        inside = [row for row in rows if part.contains(row.token)]
        missing = [row for row in inside if row not in rows[400:500]]
        assert updates[-1].statistics.rows_moved == len(missing) > 50
        assert root_of(one, part) == root_of(other, part)
        assert one.row_count == 500 + len([row for row in inside if row in rows[500:]])
        again = await repaired(nodes[0], part)
        assert again[-1].statistics.round_trips == 1


async def test_keys_that_share_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Method: tokens of which a hundred keys share each; every leaf's rows collide."""
    original = hashing.token_of
    monkeypatch.setattr(hashing, "token_of", lambda key: (original(key) % 7) << 61)
    stores: list[Store] = [MemoryRowStore() for _ in range(3)]
    for store in stores:
        store.apply(rows_named(600))
    diverge(stores, 5, 100)
    async with cluster(*stores) as nodes:
        _, copies = copies_needed(nodes)
        updates = await repaired(nodes[0])
        assert updates[-1].outcome is RepairOutcome.COMPLETED, messages(updates)
        assert copies_needed(nodes) == (0, 0)
        # A row that the coordinator got from one peer and then, newer, from another, counts twice here.
        assert updates[-1].statistics.rows_optimal >= copies


async def test_different_keys_at_one_token() -> None:
    """One row each side at a token looks like two versions of one row; the second pass sees both keys."""
    one, other = MemoryRowStore(), MemoryRowStore()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "token_of", lambda key: 42)
        one.apply([Row(b"first", 1, b"a")])
        other.apply([Row(b"second", 2, b"b")])
        async with cluster(one, other) as nodes:
            updates = await repaired(nodes[0])
            assert updates[-1].outcome is RepairOutcome.COMPLETED
            assert nodes[0].rows() == nodes[1].rows()
            assert len(nodes[0].rows()) == 2
            assert updates[-1].statistics.rows_optimal == 2
            assert updates[-1].statistics.rows_moved <= 4


async def test_writes_during_a_repair_are_no_failure() -> None:
    one, other = MemoryRowStore(), MemoryRowStore()
    other.apply(rows_named(50))
    async with cluster(one, other, config=RepairConfig(passes_max=2)) as (local, peer):
        written = 0

        async def write() -> None:
            nonlocal written
            written += 1
            one.apply([Row(b"new%d" % written, 9, b"here only")])

        peer.counter.before["CloseSession"] = write
        updates = await repaired(local)
        assert updates[-1].outcome is RepairOutcome.COMPLETED
        assert "got new writes during this repair" in messages(updates)
        assert peer.rows().keys() >= {b"key%d" % number for number in range(50)}
        assert b"new1" in peer.rows()
        del peer.counter.before["CloseSession"]
        await repaired(local)
        assert local.rows() == peer.rows()


async def test_a_replica_that_is_down_is_named_and_the_others_are_repaired() -> None:
    stores: list[Store] = [MemoryRowStore() for _ in range(3)]
    stores[1].apply(rows_named(100))
    async with cluster(*stores) as nodes:
        nodes[0].members.dead.add(nodes[2].endpoint)
        updates = await repaired(nodes[0])
        assert updates[-1].outcome is RepairOutcome.PARTIAL
        assert f"Endpoint {nodes[2].endpoint} is not alive" in messages(updates)
        assert nodes[2].endpoint in updates[-1].message
        assert nodes[0].rows() == nodes[1].rows()
        assert nodes[2].calls == []


async def test_no_live_replica_is_a_failure() -> None:
    async with cluster(MemoryRowStore(), MemoryRowStore()) as nodes:
        nodes[0].members.dead.add(nodes[1].endpoint)
        updates = await repaired(nodes[0])
        assert updates[-1].outcome is RepairOutcome.FAILED
        assert nodes[1].calls == []


async def test_a_peer_that_cannot_be_reached_fails_its_pair_only() -> None:
    stores: list[Store] = [MemoryRowStore() for _ in range(3)]
    stores[1].apply(rows_named(100))
    async with cluster(*stores, config=RepairConfig(rpc_timeout_seconds=5)) as nodes:
        await nodes[2].server.stop(None)
        updates = await repaired(nodes[0])
        assert updates[-1].outcome is RepairOutcome.PARTIAL
        assert f"Endpoint {nodes[2].endpoint} cannot be reached" in messages(updates)
        assert nodes[0].rows() == nodes[1].rows()


@pytest.mark.parametrize("call", ["CompareNodes", "ListRowDigests", "FetchRows", "PushRows"])
async def test_a_peer_that_fails_in_mid_session_fails_its_pair_only(call: str) -> None:
    """The third replica alone has some of the newest rows; without it the others still become equal."""
    stores: list[Store] = [MemoryRowStore() for _ in range(3)]
    for number, store in enumerate(stores):
        store.apply(rows_named(300, start=number * 150))
    async with cluster(*stores) as nodes:
        stopping: list[asyncio.Task[None]] = []

        async def die() -> None:
            # The call must not wait for the end of the server, which ends the call.
            stopping.append(asyncio.create_task(nodes[2].server.stop(None)))
            await asyncio.Event().wait()

        nodes[2].counter.before[call] = die
        updates = await repaired(nodes[0])
        await asyncio.gather(*stopping)
        assert updates[-1].outcome is RepairOutcome.PARTIAL, messages(updates)
        assert f"Repair with {nodes[2].endpoint} failed" in messages(updates)
        assert nodes[0].rows() == nodes[1].rows()
        assert updates[-1].statistics.rows_moved <= updates[-1].statistics.rows_optimal + 1


async def test_a_peer_that_hangs_costs_one_deadline() -> None:
    one, other = MemoryRowStore(), MemoryRowStore()
    other.apply(rows_named(10))
    async with cluster(one, other, config=RepairConfig(rpc_timeout_seconds=0.2)) as (local, peer):
        never = asyncio.Event()

        async def hang() -> None:
            await never.wait()

        for call in ("CompareRoots", "ListRowDigests"):
            peer.counter.before = {call: hang}
            updates = await repaired(local)
            assert updates[-1].outcome is RepairOutcome.FAILED
            assert "did not answer within 0.2 s" in messages(updates)
        never.set()


async def test_the_own_store_failing_ends_the_repair() -> None:
    class FullStore(MemoryRowStore):
        def apply(self, rows: Iterable[Row], *, from_repair: bool = False) -> int:
            raise StoreFullError("no space left")

    one, other = FullStore(), MemoryRowStore()
    other.apply(rows_named(10))
    async with cluster(one, other) as (local, peer):
        with pytest.raises(StoreFullError):
            async for _ in local.service.repair("kv"):
                pass
        await until(lambda: peer.service.session_count == 0)
        other.apply([])
        assert one.row_count == 0


async def test_a_peer_whose_store_is_full_fails_its_pair() -> None:
    class FullStore(MemoryRowStore):
        def apply(self, rows: Iterable[Row], *, from_repair: bool = False) -> int:
            raise StoreFullError("no space left")

    one, other = MemoryRowStore(), FullStore()
    one.apply(rows_named(10))
    async with cluster(one, other) as (local, _):
        updates = await repaired(local)
        assert updates[-1].outcome is RepairOutcome.FAILED
        assert "refused (RESOURCE_EXHAUSTED): no space left" in messages(updates)


async def test_a_tree_that_drifted_from_its_rows_is_named_not_repaired_for_ever() -> None:
    one, other = MemoryRowStore(), MemoryRowStore()
    for store in (one, other):
        store.apply(rows_named(100))
    async with cluster(one, other) as (local, peer):
        await asyncio.to_thread(peer.service._replicas["kv"].open)
        peer.service._replicas["kv"]._record(Changes.of([12_345], [1], [b"\x01" * 16], [1]))
        updates = await repaired(local)
        assert updates[-1].outcome is RepairOutcome.FAILED
        assert "restart both nodes to rebuild the trees" in messages(updates)
        assert peer.service.session_count == 0


async def test_rows_that_do_not_take_are_named_not_repaired_for_ever() -> None:
    class Forgetful(MemoryRowStore):
        def apply(self, rows: Iterable[Row], *, from_repair: bool = False) -> int:
            return 0

    one, other = MemoryRowStore(), Forgetful()
    one.apply(rows_named(10))
    async with cluster(one, other) as (local, _):
        updates = await repaired(local)
        assert updates[-1].outcome is RepairOutcome.FAILED
        assert "10 rows were moved and differ as before" in messages(updates)


async def test_one_repair_of_a_keyspace_at_a_time_and_cancelling_cleans_up() -> None:
    one, other = MemoryRowStore(), MemoryRowStore()
    other.apply(rows_named(100))
    async with cluster(one, other) as (local, peer):
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            reached.set()
            await go_on.wait()

        peer.counter.before["ListRowDigests"] = wait
        async with aclosing(local.service.repair("kv")) as updates:
            await anext(updates)
            await reached.wait()
            assert peer.service.session_count == 1
            with pytest.raises(RepairRunningError, match="a repair of keyspace kv is running"):
                await anext(local.service.repair("kv"))
        await until(lambda: peer.service.session_count == 0)
        peer.counter.before.clear()
        go_on.set()
        assert (await repaired(local))[-1].outcome is RepairOutcome.COMPLETED
        assert local.rows() == peer.rows()


async def test_a_snapshot_that_opens_after_a_cancellation_is_closed() -> None:
    reached, go_on, closed = threading.Event(), threading.Event(), threading.Event()

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

    opens: list[bool] = []

    one, other = Slow(), MemoryRowStore()
    other.apply(rows_named(10))
    async with cluster(one, other) as (local, peer):
        async with aclosing(local.service.repair("kv")) as updates:
            await anext(updates)
            await until(reached.is_set)
        go_on.set()
        await until(closed.is_set)
        await until(lambda: peer.service.session_count == 0)


async def test_stopping_the_service_ends_its_repair() -> None:
    one, other = MemoryRowStore(), MemoryRowStore()
    other.apply(rows_named(10))
    async with cluster(one, other) as (local, peer):
        reached = asyncio.Event()

        async def wait() -> None:
            reached.set()
            await asyncio.Event().wait()

        peer.counter.before["ListRowDigests"] = wait

        async def repair() -> None:
            async for _ in local.service.repair("kv"):
                pass

        task = asyncio.create_task(repair())
        await reached.wait()
        await local.service.stop()
        with pytest.raises(ServiceStoppedError):
            await task
        with pytest.raises(ServiceStoppedError, match="not running"):
            await anext(local.service.repair("kv"))


async def test_a_stopped_service_refuses_its_peers() -> None:
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    stores[1].apply(rows_named(10))
    async with cluster(*stores) as (local, peer):
        await opened(peer, stores[1])
        local_stub = repair_pb2_grpc.RepairPeerServiceStub(local.service._channel(peer.endpoint))
        await peer.service.stop()
        assert peer.service.session_count == 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await local_stub.CompareRoots(roots_request(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await repaired(local))[-1].outcome is RepairOutcome.FAILED


async def test_refused_calls_are_logged_once_per_peer_and_reason(caplog: pytest.LogCaptureFixture) -> None:
    now = 1_000.0
    async with cluster(MemoryRowStore()) as (node,):
        node.service._servicer._refusals = LogLimiter(lambda: now)
        stub = node.stub()

        async def refused(
            *, code: grpc.StatusCode, keyspace: str = "kv", hash_version: int = hashing.HASH_VERSION
        ) -> None:
            request = roots_request()
            request.keyspace, request.hash_version = keyspace, hash_version
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.CompareRoots(request, timeout=5)
            assert caught.value.code() is code

        for number in range(50):
            await refused(keyspace=f"other{number}", code=grpc.StatusCode.NOT_FOUND)
        await refused(hash_version=9, code=grpc.StatusCode.FAILED_PRECONDITION)
        assert [text.partition("refused: ")[2][:10] for text in caplog.messages if "refused" in text] == [
            "NOT_FOUND:",
            "FAILED_PRE",
        ]
        now += LOG_INTERVAL_SECONDS
        await refused(keyspace="other", code=grpc.StatusCode.NOT_FOUND)
        assert caplog.messages[-1].endswith("keyspace 'other' is not served here (held_back=49)")


async def test_wrong_requests() -> None:
    async with cluster(MemoryRowStore(), MemoryRowStore()) as nodes:
        service = nodes[0].service
        with pytest.raises(UnknownKeyspaceError, match="there is: kv"):
            await anext(service.repair("other"))
        with pytest.raises(UnknownKeyspaceError):
            await service.describe("other")
        for peer in ("10.0.0.1:1", nodes[0].endpoint):
            with pytest.raises(RepairRequestError, match="no other replica of kv"):
                await anext(service.repair("kv", None, [peer]))


async def test_chosen_peers_only() -> None:
    stores: list[Store] = [MemoryRowStore() for _ in range(3)]
    stores[0].apply(rows_named(10))
    async with cluster(*stores) as nodes:
        updates = await repaired(nodes[0], peers=[nodes[2].endpoint])
        assert updates[-1].outcome is RepairOutcome.COMPLETED
        assert nodes[2].rows() == nodes[0].rows()
        assert nodes[1].calls == []


async def test_a_single_replica_has_nothing_to_repair() -> None:
    async with cluster(MemoryRowStore()) as nodes:
        updates = await repaired(nodes[0])
        assert updates[-1].message == "Replication factor is 1. No repair is needed for keyspace 'kv'"
        assert updates[-1].outcome is RepairOutcome.COMPLETED


def test_wrong_settings_are_named_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        RepairConfig(rpc_timeout_seconds=0, sessions_max=-1)
    assert len(caught.value.faults) == 2
    assert "rpc_timeout_seconds is 0" in str(caught.value)


# --- administration ---


@asynccontextmanager
async def admin_of(node: Node) -> AsyncIterator[Any]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    RepairAdmin(node.service).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield admin_pb2_grpc.RepairAdminServiceStub(channel)
    await server.stop(None)


async def test_admin_describes_and_repairs() -> None:
    one, other = MemoryRowStore(), MemoryRowStore()
    one.apply(rows_named(100))
    other.apply([Row(b"key5", 2, b"", deleted=True)])
    async with cluster(one, other) as nodes, admin_of(nodes[0]) as stub:
        before = await stub.DescribeReplica(admin_pb2.DescribeReplicaRequest(), timeout=5)
        assert (before.keyspace, before.row_count, before.tombstone_count) == ("kv", 100, 0)
        assert (before.replication_factor, sorted(before.replicas)) == (2, sorted(node.endpoint for node in nodes))
        assert before.root_digest == root_of(one, FULL).digest
        assert before.stored_bytes > 0
        updates = [update async for update in stub.Repair(admin_pb2.RepairRequest(keyspace="kv"), timeout=20)]
        assert updates[-1].state == admin_pb2.SESSION_STATE_COMPLETED
        assert updates[-1].progress == 1.0
        assert updates[-1].statistics.rows_moved == updates[-1].statistics.rows_optimal == 100
        assert updates[-1].statistics.move_bytes > 0
        after = await stub.DescribeReplica(admin_pb2.DescribeReplicaRequest(keyspace="kv"), timeout=5)
        assert after.tombstone_count == 1
        assert after.root_digest == root_of(other, FULL).digest


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (admin_pb2.RepairRequest(keyspace="nope"), grpc.StatusCode.NOT_FOUND),
        (
            admin_pb2.RepairRequest(token_ranges=[admin_pb2.TokenRange(first=9, last=3)]),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (admin_pb2.RepairRequest(peers=["stranger:1"]), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_admin_refuses(request_: admin_pb2.RepairRequest, code: grpc.StatusCode) -> None:
    async with cluster(MemoryRowStore(), MemoryRowStore()) as nodes, admin_of(nodes[0]) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Repair(request_, timeout=5):
                pass
        assert caught.value.code() is code
        assert caught.value.details()


async def test_cancelling_the_admin_call_cleans_up() -> None:
    one, other = MemoryRowStore(), MemoryRowStore()
    other.apply(rows_named(10))
    async with cluster(one, other) as nodes, admin_of(nodes[0]) as stub:
        reached = asyncio.Event()

        async def wait() -> None:
            reached.set()
            await asyncio.Event().wait()

        nodes[1].counter.before["ListRowDigests"] = wait
        call = stub.Repair(admin_pb2.RepairRequest(), timeout=20)
        await call.read()
        await reached.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Repair(admin_pb2.RepairRequest(), timeout=5):
                pass
        assert caught.value.code() is grpc.StatusCode.ABORTED
        call.cancel()
        await until(lambda: nodes[1].service.session_count == 0)
        await until(lambda: not nodes[0].service._running)


# --- hostile peers ---


async def opened(node: Node, store: Store) -> bytes:
    """A session of a coordinator that has no rows."""
    answer = await node.stub().CompareRoots(roots_request(), timeout=5)
    assert len(answer.session_id) == 16
    return bytes(answer.session_id)


def roots_request(**changes: Any) -> pb.CompareRootsRequest:
    fields: dict[str, Any] = {
        "keyspace": "kv",
        "first_token": 0,
        "last_token": TOKEN_MAX,
        "root_digest": bytes(16),
        "row_count": 0,
        "hash_version": hashing.HASH_VERSION,
        "open_session": True,
    }
    return pb.CompareRootsRequest(**{**fields, **changes})


def indices(*values: int) -> bytes:
    return np.array(values, "<u4").tobytes()


def tokens(*values: int) -> bytes:
    return np.array(values, "<u8").tobytes()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"keyspace": "nope"}, grpc.StatusCode.NOT_FOUND),
        ({"keyspace": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"keyspace": "k" * 300}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"first_token": 9, "last_token": 3}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"root_digest": b"short"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"root_digest": b"\x01" * 16}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"hash_version": 99}, grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
async def test_hostile_roots(changes: dict[str, Any], code: grpc.StatusCode) -> None:
    store = MemoryRowStore()
    store.apply(rows_named(10))
    async with cluster(store) as (node,):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await node.stub().CompareRoots(roots_request(**changes), timeout=5)
        assert caught.value.code() is code
        assert node.service.session_count == 0


@pytest.mark.parametrize(
    ("level", "packed"),
    [
        (1, b""),
        (1, b"123"),
        (1, indices(16)),
        (1, indices(3, 2)),
        (1, indices(2, 2)),
        (2, indices(*range(256)) + indices(0)),
        (4, indices(0)),
        (3, indices(*range(4_097))),
        (2**32 - 1, indices(0)),
    ],
)
async def test_hostile_nodes(level: int, packed: bytes) -> None:
    store = MemoryRowStore()
    store.apply(rows_named(10))
    async with cluster(store, depths=(3,)) as (node,):
        session = await opened(node, store)
        stub = node.stub()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CompareNodes(pb.CompareNodesRequest(session_id=session, level=level, indices=packed), timeout=5)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.ListRowDigests(
                pb.ListRowDigestsRequest(session_id=session, level=level, indices=packed), timeout=5
            ):
                pass
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert node.service.session_count == 1, "a wrong call does not end a session"


@pytest.mark.parametrize("packed", [b"", b"1234567", tokens(5, 4), tokens(4, 4), tokens(*range(16_385)), tokens(1_001)])
async def test_hostile_tokens(packed: bytes) -> None:
    store = MemoryRowStore()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "token_of", lambda key: 7)
        store.apply(rows_named(3))
        async with cluster(store) as (node,):
            answer = await node.stub().CompareRoots(roots_request(last_token=1_000), timeout=5)
            request = pb.FetchRowsRequest(session_id=answer.session_id, tokens=packed)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in node.stub().FetchRows(request, timeout=5):
                    pass
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_unknown_and_closed_sessions() -> None:
    store = MemoryRowStore()
    store.apply(rows_named(3))
    async with cluster(store) as (node,):
        stub, session = node.stub(), await opened(node, store)
        await stub.CloseSession(pb.CloseSessionRequest(session_id=session), timeout=5)
        await stub.CloseSession(pb.CloseSessionRequest(session_id=session), timeout=5)
        for name in (session, b"", b"x" * 100_000):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.CompareNodes(pb.CompareNodesRequest(session_id=name, indices=indices(0)), timeout=5)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "unknown repair session" in (caught.value.details() or "")


async def test_sessions_are_bounded_and_close_when_idle() -> None:
    store = MemoryRowStore()
    store.apply(rows_named(3))
    async with cluster(store, config=RepairConfig(sessions_max=2)) as (node,):
        await opened(node, store)
        await opened(node, store)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await opened(node, store)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    async with cluster(store, config=RepairConfig(session_idle_seconds=0.05)) as (node,):
        await opened(node, store)
        await until(lambda: node.service.session_count == 0)


def chunk_of(*rows: Row, **changes: bytes) -> pb.RowsChunk:
    from antientropy.legacy_wire import encode_rows

    chunk = next(iter(encode_rows(rows)))[0]
    for name, value in changes.items():
        setattr(chunk, name, value)
    return chunk


GOOD = Row(b"good", 1, b"value")


@pytest.mark.parametrize(
    "chunk",
    [
        pb.RowsChunk(),
        chunk_of(GOOD, versions=b""),
        chunk_of(GOOD, key_lengths=b"\xff\xff"),
        chunk_of(GOOD, value_lengths=b"\xff\xff\xff\xff"),
        chunk_of(GOOD, values=b"other"),
        chunk_of(GOOD, digests=bytes(16)),
        chunk_of(GOOD, digests=bytes([GOOD.digest[0] ^ 0x80]) + GOOD.digest[1:]),
        chunk_of(GOOD, versions=tokens(2)),
        chunk_of(Row(b"k" * 504, 1, b"")),
        chunk_of(Row(b"", 1, b"")),
        chunk_of(Row(b"tombstone", 1, b"with a value", deleted=True)),
        chunk_of(Row(b"large", 1, bytes(512 * 1024 + 1))),
        chunk_of(GOOD, values=bytes(1024 * 1024)),
        chunk_of(GOOD, key_lengths=bytes(2 * 5_000)),
    ],
)
async def test_hostile_rows_apply_nothing(chunk: pb.RowsChunk) -> None:
    """A good row stands before the bad column's row in the same chunk, except where the chunk is all there is."""
    store = MemoryRowStore()
    async with cluster(store) as (node,):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await node.stub().PushRows(iter([pb.PushRowsRequest(keyspace="kv", rows=chunk)]), timeout=5)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert store.row_count == 0


async def test_a_bad_row_behind_good_ones_refuses_its_chunk_but_no_earlier_one() -> None:
    store = MemoryRowStore()
    bad = chunk_of(*rows_named(5))
    bad.digests = bad.digests[:-1] + bytes([bad.digests[-1] ^ 1])
    requests = [pb.PushRowsRequest(keyspace="kv", rows=chunk_of(GOOD)), pb.PushRowsRequest(rows=bad)]
    async with cluster(store) as (node,):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await node.stub().PushRows(iter(requests), timeout=5)
        assert "does not match its digest" in (caught.value.details() or "")
        assert store.scan() == [GOOD]


async def test_rows_for_an_unknown_keyspace() -> None:
    async with cluster(MemoryRowStore()) as (node,):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await node.stub().PushRows(iter([pb.PushRowsRequest(keyspace="x", rows=chunk_of(GOOD))]), timeout=5)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


class Liar(repair_pb2_grpc.RepairPeerServiceServicer):
    """A peer that lies in one answer."""

    def __init__(self, lie: str) -> None:
        self.lie = lie
        self.tree = HashTree(1)

    async def CompareRoots(  # noqa: N802 - named by the protocol
        self, request: pb.CompareRootsRequest, context: Any
    ) -> pb.CompareRootsResponse:
        answer = pb.CompareRootsResponse(
            root_digest=b"\x01" * 16, row_count=1, session_id=b"s" * 16, tree_depth=1, child_hashes=bytes(128)
        )
        match self.lie:
            case "equal":
                return pb.CompareRootsResponse(equal=True, root_digest=b"\x01" * 16, row_count=1)
            case "root":
                answer.root_digest = b"\x01"
            case "session":
                answer.session_id = b"s" * 17
            case "depth":
                answer.tree_depth = 77
            case "hashes":
                answer.child_hashes = bytes(127)
        if self.lie == "nodes":
            answer.tree_depth = 3
        return answer

    async def CompareNodes(  # noqa: N802 - named by the protocol
        self, request: pb.CompareNodesRequest, context: Any
    ) -> pb.CompareNodesResponse:
        return pb.CompareNodesResponse(child_hashes=bytes(8))

    async def ListRowDigests(  # noqa: N802 - named by the protocol
        self, request: pb.ListRowDigestsRequest, context: Any
    ) -> AsyncIterator[pb.RowDigestsChunk]:
        at = [1 << 40, 2 << 40]
        if self.lie == "empty digests":
            yield pb.RowDigestsChunk()
        elif self.lie == "columns":
            yield pb.RowDigestsChunk(tokens=tokens(*at), versions=tokens(1), digests=bytes(32))
        elif self.lie == "order":
            yield pb.RowDigestsChunk(tokens=tokens(*reversed(at)), versions=tokens(1, 1), digests=bytes(32))
        elif self.lie == "many":
            yield pb.RowDigestsChunk(tokens=bytes(8 * 16_385), versions=bytes(8 * 16_385), digests=bytes(16 * 16_385))
        else:
            yield pb.RowDigestsChunk(tokens=tokens(*at), versions=tokens(1, 1), digests=bytes(32))

    async def FetchRows(  # noqa: N802 - named by the protocol
        self, request: pb.FetchRowsRequest, context: Any
    ) -> AsyncIterator[pb.RowsChunk]:
        if self.lie == "other rows":
            yield chunk_of(GOOD)
        elif self.lie == "bad row":
            yield chunk_of(GOOD, digests=bytes(16))

    async def PushRows(  # noqa: N802 - named by the protocol
        self, request_iterator: Any, context: Any
    ) -> pb.PushRowsResponse:
        async for _ in request_iterator:
            pass
        return pb.PushRowsResponse(rows_received=10**6)

    async def CloseSession(  # noqa: N802 - named by the protocol
        self, request: pb.CloseSessionRequest, context: Any
    ) -> pb.CloseSessionResponse:
        return pb.CloseSessionResponse()


@pytest.mark.parametrize(
    "lie",
    ["equal", "root", "session", "depth", "hashes", "nodes", "empty digests", "columns", "order", "many", "other rows",
     "bad row", "no rows", "acknowledgement"],
)  # fmt: skip
async def test_a_lying_peer_fails_its_pair_and_changes_nothing(lie: str) -> None:
    store = MemoryRowStore()
    mine = [Row(b"%d" % number, 1, b"mine") for number in range(100)]
    store.apply(mine)
    liar = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    repair_pb2_grpc.add_RepairPeerServiceServicer_to_server(Liar(lie), liar)
    endpoint = f"127.0.0.1:{liar.add_insecure_port('127.0.0.1:0')}"
    await liar.start()
    async with cluster(store, depths=(3,)) as (node,):
        node.members.endpoints[:] = [node.endpoint, endpoint]
        updates = await repaired(node)
        assert updates[-1].outcome is RepairOutcome.FAILED
        assert f"Repair with {endpoint} failed" in messages(updates)
        assert sorted(store.scan(), key=lambda row: row.key) == sorted(mine, key=lambda row: row.key)
    await liar.stop(None)
