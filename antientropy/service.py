"""The repair service of a node: serves its stores to peers, and repairs with them when asked to.

It asks a small :class:`Membership` who the replicas are and who is alive, and knows nothing else of the cluster.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import grpc.aio

from antientropy.config import RepairConfig
from antientropy.coordinator import RepairOutcome, RepairRun, RepairUpdate
from antientropy.core.merkle import Root
from antientropy.core.session import RepairStatistics
from antientropy.core.tokens import TokenRange
from antientropy.errors import RepairRequestError, RepairRunningError, ServiceStoppedError, UnknownKeyspaceError
from antientropy.legacy_client import PeerClient
from antientropy.legacy_service import RepairPeerServicer
from antientropy.limits import REPLICAS_MAX, UPDATES_QUEUED_MAX
from antientropy.replica import Replica
from antientropy.store import RowStore
from antientropy.strict import strict
from antientropy.v1 import repair_pb2_grpc

__all__ = ["Membership", "RepairOutcome", "RepairService", "RepairUpdate", "ReplicaDescription"]

logger = logging.getLogger(__name__)


class Membership(Protocol):
    """What repair must know of the cluster."""

    @property
    def local_endpoint(self) -> str:
        """This node, as its peers reach it: host:port of its peer listener."""
        ...

    def replicas(self, keyspace: str) -> Sequence[str]:
        """All endpoints that hold the keyspace's range, this node included."""
        ...

    def is_alive(self, endpoint: str) -> bool:
        """Whether the failure detector holds it for alive."""
        ...


@dataclass(frozen=True, slots=True)
class ReplicaDescription:
    """What this node's replica of a keyspace holds."""

    keyspace: str
    root: Root
    """``root.count`` rows, tombstones included."""
    tombstone_count: int
    stored_bytes: int
    tree_depth: int
    replicas: tuple[str, ...]


class RepairService:
    """Serves and repairs the stores of a node.

    ``register`` it on the peer listener before the server starts; ``start`` and ``stop`` it (or ``async with``) on the
    event loop of the server. The stores stay the caller's: close them after ``stop``.
    """

    def __init__(
        self, stores: Mapping[str, RowStore | Replica], membership: Membership, config: RepairConfig | None = None
    ) -> None:
        self._replicas = {
            keyspace: store if isinstance(store, Replica) else Replica(store) for keyspace, store in stores.items()
        }
        self._membership = membership
        self._config = RepairConfig() if config is None else config
        self._executor = ThreadPoolExecutor(self._config.threads, "antientropy")
        self._servicer = RepairPeerServicer(self._replicas, self._config, self._executor)
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._janitor: asyncio.Task[None] | None = None

    def register(self, server: grpc.aio.Server) -> None:
        """Serve the peer RPCs on this server; see :mod:`antientropy.strict` for requests that are no protobuf."""
        repair_pb2_grpc.add_RepairPeerServiceServicer_to_server(self._servicer, strict(server))

    async def start(self) -> None:
        """Begin to close idle sessions; repairs are possible from now on."""
        if self._janitor is None:
            self._janitor = asyncio.create_task(self._close_idle_sessions(), name="antientropy janitor")

    async def stop(self) -> None:
        """Cancel repairs, close sessions and channels. Idempotent; not to be started again."""
        tasks = [*self._running.values()]
        if self._janitor is not None:
            tasks.append(self._janitor)
            self._janitor = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._servicer.stop()
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
        for replica in self._replicas.values():
            await asyncio.to_thread(replica.close)
        await asyncio.to_thread(self._executor.shutdown)

    async def __aenter__(self) -> RepairService:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def keyspaces(self) -> tuple[str, ...]:
        """The names of the stores."""
        return tuple(self._replicas)

    @property
    def session_count(self) -> int:
        """Snapshots that are held for peers right now."""
        return self._servicer.session_count

    async def describe(self, keyspace: str) -> ReplicaDescription:
        """What this node's replica holds.

        Raises:
            UnknownKeyspaceError: no store of that name.
        """
        replica = self._replica(keyspace)
        store = replica.store
        loop = asyncio.get_running_loop()
        root = await loop.run_in_executor(self._executor, replica.root, TokenRange.full())
        stored_bytes = await loop.run_in_executor(self._executor, lambda: store.stored_bytes)
        replicas = tuple(sorted(self._membership.replicas(keyspace)))
        return ReplicaDescription(keyspace, root, store.tombstone_count, stored_bytes, replica.tree_depth, replicas)

    async def repair(
        self, keyspace: str, token_range: TokenRange | None = None, peers: Collection[str] | None = None
    ) -> AsyncGenerator[RepairUpdate, None]:
        """Make this replica and its peers equal; yields updates, the last one with an outcome.

        ``token_range``: None is every token. ``peers``: None is every other replica. Closing the iterator cancels the
        repair: rows that were applied stay, snapshots are given back.

        Raises:
            UnknownKeyspaceError: no store of that name.
            RepairRequestError: a peer is no replica.
            RepairRunningError: this node repairs the keyspace already.
            ServiceStoppedError: the service is not started.
            StoreError: the own store failed.
        """
        replica = self._replica(keyspace)
        chosen = self._peers(keyspace, peers)
        if self._janitor is None:
            raise ServiceStoppedError("the repair service is not running; start it first")
        if keyspace in self._running:
            raise RepairRunningError(f"a repair of keyspace {keyspace} is running on this node; wait for it to end")
        queue: asyncio.Queue[RepairUpdate] = asyncio.Queue(UPDATES_QUEUED_MAX)
        within = TokenRange.full() if token_range is None else token_range
        live = [endpoint for endpoint in chosen if self._membership.is_alive(endpoint)]

        def clients(statistics: RepairStatistics) -> list[PeerClient]:
            return [
                PeerClient(
                    endpoint,
                    self._channel(endpoint),
                    keyspace=keyspace,
                    token_range=within,
                    config=self._config,
                    statistics=statistics,
                )
                for endpoint in live
            ]

        run = RepairRun(
            keyspace=keyspace,
            token_range=within,
            replica=replica,
            local=self._membership.local_endpoint,
            clients=clients,
            dead=[endpoint for endpoint in chosen if endpoint not in live],
            config=self._config,
            executor=self._executor,
            emit=queue.put,
        )
        task = asyncio.create_task(run.run(), name=f"antientropy repair {keyspace}")
        self._running[keyspace] = task
        try:
            async with aclosing(_until_done(task, queue)) as updates:
                async for update in updates:
                    yield update
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            del self._running[keyspace]

    def _replica(self, keyspace: str) -> Replica:
        replica = self._replicas.get(keyspace)
        if replica is None:
            known = ", ".join(sorted(self._replicas))
            raise UnknownKeyspaceError(f"keyspace {keyspace!r} is not known here; there is: {known}")
        return replica

    def _peers(self, keyspace: str, peers: Collection[str] | None) -> list[str]:
        local = self._membership.local_endpoint
        replicas = [endpoint for endpoint in self._membership.replicas(keyspace) if endpoint != local]
        if len(replicas) >= REPLICAS_MAX:
            raise RepairRequestError(f"{len(replicas) + 1} replicas: at most {REPLICAS_MAX} can be repaired at once")
        if not peers:
            return sorted(replicas)
        if strangers := sorted(set(peers) - set(replicas)):
            known = ", ".join(sorted(replicas)) or "none"
            raise RepairRequestError(f"{', '.join(strangers)}: no other replica of {keyspace}; the others are: {known}")
        return sorted(set(peers))

    def _channel(self, endpoint: str) -> grpc.aio.Channel:
        if endpoint not in self._channels:
            self._channels[endpoint] = self._config.channel_factory(endpoint)
        return self._channels[endpoint]

    async def _close_idle_sessions(self) -> None:
        while True:
            await asyncio.sleep(self._config.session_idle_seconds / 2)
            await self._servicer.close_idle()


async def _until_done(
    task: asyncio.Task[None], queue: asyncio.Queue[RepairUpdate]
) -> AsyncGenerator[RepairUpdate, None]:
    """Updates as they come; when the task has ended, the rest of them, and what it raised."""
    while not task.done():
        getter = asyncio.create_task(queue.get())
        try:
            await asyncio.wait({task, getter}, return_when=asyncio.FIRST_COMPLETED)
            if getter.done():
                yield getter.result()
        finally:
            if not getter.done():
                getter.cancel()
                with suppress(asyncio.CancelledError):
                    await getter
    while not queue.empty():
        yield queue.get_nowait()
    if task.cancelled():
        raise ServiceStoppedError("the repair service was stopped during the repair")
    task.result()
