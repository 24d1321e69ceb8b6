"""Replicas that serve each other in one process, over the in-process transport, and clients that ask them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from antientropy import wire
from antientropy.config import RepairConfig
from antientropy.core.hashing import HASH_VERSION
from antientropy.core.merkle import Root
from antientropy.core.rows import Row
from antientropy.core.tokens import TokenRange
from antientropy.leases import new_session
from antientropy.membership import ReplicatedRange
from antientropy.peer_client import PeerClient, RetryPolicy
from antientropy.peer_service import PeerService
from antientropy.replica import Replica
from antientropy.reports import RepairStatistics
from antientropy.stores.memory import MemoryRowStore
from antientropy.transport.memory import MemoryNetwork
from antientropy.v1 import repair_pb2 as pb

FULL = TokenRange.full()
NOW = 1_750_000_000.0
#: Versions of the tests: milliseconds, shifted as those of a hybrid logical clock.
CONFIG: dict[str, Any] = {
    "version_at": lambda seconds: int(seconds * 1000) << 16,
    "version_time": lambda version: (version >> 16) / 1000,
    "rpc_timeout_seconds": 5.0,
}
FAST = RetryPolicy(first_seconds=0.001, pause_seconds_max=0.002)


def row(number: int, version: int = 1, value: bytes = b"value") -> Row:
    return Row(b"key%06d" % number, version, value)


def gone(number: int, version: int) -> Row:
    return Row(b"key%06d" % number, version, b"", deleted=True)


@dataclass
class Ring:
    """Who holds what, as one node sees it."""

    local_endpoint: str
    ring: list[ReplicatedRange]
    dead: set[str] = field(default_factory=set)

    def ranges(self, keyspace: str) -> Sequence[ReplicatedRange]:
        return self.ring

    def is_alive(self, endpoint: str) -> bool:
        return endpoint not in self.dead

    def datacenter(self, endpoint: str) -> str:
        return ""


@dataclass
class Node:
    """One replica of keyspace "kv" and its answering side."""

    endpoint: str
    store: MemoryRowStore
    replica: Replica
    ring: Ring
    service: PeerService
    spent: list[tuple[int, int]]

    def root(self, token_range: TokenRange = FULL, floors: NDArray[np.uint64] | None = None) -> Root:
        return self.replica.root(token_range, floors)

    def rows(self) -> list[Row]:
        rows = self.store.scan(limit=100_000)
        return sorted(rows, key=lambda one: one.key)


class World:
    """Nodes 1, 2, ... of one network. Close it."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.executor = ThreadPoolExecutor(4)
        self.random = Random(7)
        self.now = NOW
        self.nodes: list[Node] = []
        self.statistics = RepairStatistics()
        self._sessions = 0

    def node(self, rows: Iterable[Row] = (), *, store: MemoryRowStore | None = None, **config: Any) -> Node:
        endpoint = f"127.0.0.1:{7000 + len(self.nodes)}"
        if store is None:
            store = MemoryRowStore()
        store.apply(rows)
        replica = Replica(store)
        replica.open()
        ring = Ring(endpoint, [])
        spent: list[tuple[int, int]] = []

        async def spend(spent_bytes: int, spent_rows: int) -> None:
            spent.append((spent_bytes, spent_rows))

        service = PeerService(
            {"kv": replica},
            ring,
            RepairConfig(**{**CONFIG, **config}),
            transport=self.network.transport(endpoint),
            executor=self.executor,
            random=self.random,
            spend=spend,
            epoch_seconds=lambda: self.now,
        )
        node = Node(endpoint, store, replica, ring, service, spent)
        self.nodes.append(node)
        for one in self.nodes:
            one.ring.ring = [ReplicatedRange(FULL, tuple(each.endpoint for each in self.nodes), endpoint)]
        self.network.serve(endpoint, service)
        return node

    def session(self) -> int:
        """A name for a session that is later than all before."""
        self._sessions += 1
        return new_session(NOW + self._sessions, self.random)

    def client(
        self,
        node: Node,
        *,
        session: int = 0,
        owner: str = "127.0.0.1:9000",
        token_range: TokenRange = FULL,
        alive: Callable[[], bool] = lambda: True,
        retry: RetryPolicy = FAST,
        **config: Any,
    ) -> PeerClient:
        return PeerClient(
            node.endpoint,
            self.network.transport(owner).calls(node.endpoint),
            keyspace="kv",
            token_range=token_range,
            session=session or self.session(),
            owner=owner,
            config=RepairConfig(**{**CONFIG, **config}),
            statistics=self.statistics,
            random=self.random,
            retry=retry,
            alive=alive,
            executor=self.executor,
        )

    async def close(self) -> None:
        await self.network.close()
        for node in self.nodes:
            await node.service.stop()
            node.replica.close()
        self.executor.shutdown()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def raw(world: World, node: Node, method: str, request: Message) -> Any:
    return await world.network.transport("127.0.0.1:6666").calls(node.endpoint).unary(method, request, 5)


def opening(root: Root, session: int, **fields: Any) -> pb.CompareRequest:
    request = pb.CompareRequest(
        keyspace="kv",
        session=session,
        root_digest=root.digest if root.count else b"",
        row_count=root.count,
        hashes=wire.encode_hashes(HASH_VERSION, 0),
        owner="127.0.0.1:9000",
    )
    request.MergeFrom(pb.CompareRequest(**fields))
    return request
