"""Nodes that repair, in one process: over the in-memory network or over gRPC on loopback, with a membership at will."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import grpc.aio

from antientropy import (
    LmdbRowStore,
    MemoryRowStore,
    RepairConfig,
    RepairOptions,
    RepairService,
    RepairUpdate,
    ReplicatedRange,
    Row,
    TokenRange,
)
from antientropy.transport.memory import MemoryNetwork

Store = MemoryRowStore | LmdbRowStore
FULL = TokenRange.full()


@dataclass
class Ring:
    """What all nodes know of the cluster; tests change it."""

    endpoints: list[str] = field(default_factory=list)
    dead: set[str] = field(default_factory=set)
    datacenters: dict[str, str] = field(default_factory=dict)
    parts: list[ReplicatedRange] | None = None
    """None: every node holds everything."""

    def ranges(self) -> list[ReplicatedRange]:
        if self.parts is not None:
            return self.parts
        everybody = tuple(sorted(self.endpoints))
        return [ReplicatedRange(FULL, everybody, everybody[0])]


@dataclass
class Members:
    """A node's view of it."""

    local_endpoint: str
    ring: Ring

    def ranges(self, keyspace: str) -> list[ReplicatedRange]:
        return [one for one in self.ring.ranges() if self.local_endpoint in one.replicas]

    def is_alive(self, endpoint: str) -> bool:
        return endpoint not in self.ring.dead

    def datacenter(self, endpoint: str) -> str:
        return self.ring.datacenters.get(endpoint, "")


@dataclass
class Node:
    endpoint: str
    store: Store
    service: RepairService
    config: RepairConfig

    def rows(self) -> dict[bytes, Row]:
        return {row.key: row for row in self.store.scan()}

    @property
    def held(self) -> int:
        """Leases and sessions that are held here, and snapshots."""
        return (
            self.service.peers.session_count
            + self.service.peers.snapshot_count
            + len(self.service.peers._sessions.leases)
        )


@dataclass
class Cluster:
    nodes: list[Node]
    ring: Ring
    network: MemoryNetwork
    clock: Clock
    _servers: dict[str, grpc.aio.Server] = field(default_factory=dict)

    def __getitem__(self, index: int) -> Node:
        return self.nodes[index]

    def equal(self) -> bool:
        first = self.nodes[0].rows()
        return all(node.rows() == first for node in self.nodes)

    def held(self) -> int:
        return sum(node.held for node in self.nodes)

    async def restart(self, index: int, **settings: object) -> Node:
        """A node whose process ended without a farewell, with the same store and directory, starts again."""
        old = self.nodes[index]
        self.network.kill(old.endpoint)
        await old.service.stop()
        config = replace(old.config, **settings)  # type: ignore[arg-type] # names of fields are checked by replace
        service = self._service(old.endpoint, old.store, config)
        node = Node(old.endpoint, old.store, service, config)
        self.nodes[index] = node
        self.network.serve(node.endpoint, service.peers)
        await service.start()
        return node

    def _service(self, endpoint: str, store: Store, config: RepairConfig) -> RepairService:
        return RepairService(
            {"kv": store},
            Members(endpoint, self.ring),
            config,
            transport=self.network.transport(endpoint),
            random=random.Random(endpoint),
            clock=self.clock,
        )


class Clock:
    """Seconds since the epoch, as the test says; runs by itself, too."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return 1_800_000_000.0 + self.ahead + time.monotonic()


@asynccontextmanager
async def cluster(
    *stores: Store, config: RepairConfig | Callable[[int], RepairConfig] | None = None
) -> AsyncIterator[Cluster]:
    """Nodes over the in-memory network."""
    network = MemoryNetwork()
    made = Cluster([], Ring([f"n{number}:1" for number in range(len(stores))]), network, Clock())
    for number, store in enumerate(stores):
        settings = config(number) if callable(config) else config or RepairConfig()
        endpoint = made.ring.endpoints[number]
        service = made._service(endpoint, store, settings)
        network.serve(endpoint, service.peers)
        made.nodes.append(Node(endpoint, store, service, settings))
    for node in made.nodes:
        await node.service.start()
    try:
        yield made
    finally:
        for node in made.nodes:
            await node.service.stop()
        await network.close()


@asynccontextmanager
async def grpc_cluster(*stores: Store, config: RepairConfig | None = None) -> AsyncIterator[Cluster]:
    """Nodes over gRPC on loopback."""
    made = Cluster([], Ring(), MemoryNetwork(), Clock())
    settings = config or RepairConfig()
    async with AsyncExitStack() as stack:
        for store in stores:
            server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
            endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            made.ring.endpoints.append(endpoint)
            service = RepairService({"kv": store}, Members(endpoint, made.ring), settings)
            service.register(server)
            made.nodes.append(Node(endpoint, store, service, settings))
            made._servers[endpoint] = server
        for node in made.nodes:
            await made._servers[node.endpoint].start()
            stack.push_async_callback(made._servers[node.endpoint].stop, None)
            await stack.enter_async_context(node.service)
        yield made


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def repaired(node: Node, options: RepairOptions | None = None) -> list[RepairUpdate]:
    """All updates of a repair; checks what holds for every one."""
    updates = [update async for update in node.service.repair("kv", options)]
    check(updates)
    return updates


async def collected(stream: AsyncGenerator[RepairUpdate, None], updates: list[RepairUpdate]) -> None:
    """All of a stream that may end with an error."""
    async for update in stream:
        updates.append(update)  # noqa: PERF401 - kept when the stream raises


def check(updates: Sequence[RepairUpdate]) -> None:
    assert [update.is_last for update in updates] == [False] * (len(updates) - 1) + [True]
    assert all("\n" not in update.message for update in updates)
    assert all(0 <= update.progress <= 1 for update in updates)
    assert len({update.session_id for update in updates}) == 1


def messages(updates: Sequence[RepairUpdate]) -> str:
    return "\n".join(update.message for update in updates)


def rows_named(count: int, version: int = 1, value: bytes = b"value", start: int = 0) -> list[Row]:
    return [Row(b"key%d" % number, version, value) for number in range(start, start + count)]


def diverge(stores: Sequence[Store], seed: int, changes: int, keys: int = 3_000) -> None:
    """Writes and deletions, each of which reaches some of the replicas only."""
    rng = random.Random(seed)
    for _ in range(changes):
        key, version = b"key%d" % rng.randrange(keys), rng.randrange(2, 9)
        # One version of a key is one row: there are no conflicts.
        deleted = version % 3 == 0
        row = Row(key, version, b"" if deleted else b"%d" % version, deleted)
        for store in rng.sample(list(stores), rng.randrange(1, len(stores))):
            store.apply([row])


def copies_needed(nodes: Sequence[Node]) -> tuple[int, int]:
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
