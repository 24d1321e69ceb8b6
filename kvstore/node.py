"""One node: store, gossiper, replication, repair and three listeners, started and stopped in the right order."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, Self

import grpc

from antientropy.admin import RepairAdmin
from antientropy.core.hashing import token_of
from antientropy.errors import AntiEntropyError, StoreInUseError
from antientropy.scheduler import RepairScheduler
from antientropy.service import RepairService
from antientropy.strict import strict
from gossiper import (
    ApplicationState,
    EndpointAlive,
    EndpointRestarted,
    Gossiper,
    GossipError,
    LifecycleError,
    NotRunningError,
    Status,
)
from gossiper.admin import GossipAdmin
from gossiper.core.endpoints import format_endpoint, parse_endpoint
from kvstore.config import KvStoreConfig
from kvstore.errors import StartError
from kvstore.health import StorageHealth
from kvstore.hlc import HybridLogicalClock
from kvstore.lifesign import SignOfLife
from kvstore.limits import (
    ADMIN_RPCS_MAX,
    CLIENT_RPCS_MAX,
    HEALTH_HOLD_INTERVALS,
)
from kvstore.load import keep_load, load_value
from kvstore.machine import Machine, Register, ThisMachine
from kvstore.membership import SCHEMA_VERSION, ClusterMembership
from kvstore.metrics import store_series
from kvstore.peers import LocalReplica, ReplicaCalls, ReplicaService
from kvstore.replication import Coordinator, majority_of
from kvstore.service import KeyValueService, describe
from kvstore.store import ClockedStore, NodeStore
from kvstore.v1 import kvstore_pb2 as pb
from kvstore.writer import GroupCommitWriter

_log = logging.getLogger(__name__)

#: What clients are told from then on, by the reason for which the node stops serving.
_REFUSALS: Final = {
    "leaving": "this node has left the cluster; ask another one",
    "draining": "this node was drained; ask another one, or start it anew",
}
#: Beyond the grace: a call that does not end when it is cancelled.
_STOP_SECONDS_MAX: Final = 10.0


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """Where a running node listens; ports are the real ones."""

    peers: str
    clients: str
    admin: str

    def as_dict(self) -> dict[str, str]:
        """By name."""
        return asdict(self)


class KvStoreNode:
    """A node of a cluster. Use it as ``async with KvStoreNode(config) as node:``. Not reusable.

    Args:
        config: Its settings.
        machine: Clock, disk and network; default: those of this machine.
    """

    def __init__(self, config: KvStoreConfig, *, machine: Machine | None = None) -> None:
        self.config = config
        self._machine = ThisMachine() if machine is None else machine
        self._coordinator: Coordinator | None = None
        self._repair: RepairService | None = None
        self._gossiper: Gossiper | None = None
        self._store: NodeStore | None = None
        self._service: KeyValueService | None = None
        self._addresses: NodeAddresses | None = None
        self._following: asyncio.Task[None] | None = None
        self._stack = AsyncExitStack()
        self._membership = ClusterMembership(lambda: self.gossiper, config.replication_factor)

    @property
    def gossiper(self) -> Gossiper:
        """The running gossiper.

        Raises:
            NotRunningError: the node has not started.
        """
        if self._gossiper is None:
            raise NotRunningError("the node has not started")
        return self._gossiper

    @property
    def coordinator(self) -> Coordinator:
        """What serves reads and writes here, for use inside this process.

        Raises:
            NotRunningError: the node has not started.
        """
        if self._coordinator is None:
            raise NotRunningError("the node has not started")
        return self._coordinator

    @property
    def membership(self) -> ClusterMembership:
        """Who holds what, as repair asks for it."""
        return self._membership

    @property
    def repair(self) -> RepairService:
        """Repairs of this node, for use inside this process.

        Raises:
            NotRunningError: the node has not started.
        """
        if self._repair is None:
            raise NotRunningError("the node has not started")
        return self._repair

    @property
    def store(self) -> NodeStore:
        """The rows of this node.

        Raises:
            NotRunningError: the node has not started.
        """
        if self._store is None:
            raise NotRunningError("the node has not started")
        return self._store

    @property
    def addresses(self) -> NodeAddresses:
        """Where it listens.

        Raises:
            NotRunningError: the node has not started.
        """
        if self._addresses is None:
            raise NotRunningError("the node has not started")
        return self._addresses

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Stop."""
        await self.stop()

    async def start(self) -> None:
        """Open the store, join the cluster, serve clients, and say so.

        Raises:
            StartError: a port in use; a data directory that is full, read-only, damaged or used by another process.
        """
        for warning in self.config.warnings:
            _log.warning("%s", warning)
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self) -> None:
        sign_of_life = SignOfLife(self.config.data_dir, self.config.rows_dir, self._machine.wall)
        if self.config.gc_mode == "time":
            sign_of_life.check(self.config.gc_grace_seconds)
        # What is entered first is left last: the store outlives everything that uses it.
        store = await self._open_store()
        await asyncio.to_thread(sign_of_life.write)
        living = asyncio.create_task(sign_of_life.keep(), name="kvstore-sign-of-life")
        self._stack.push_async_callback(_cancel_all, [living])
        clock = HybridLogicalClock(
            self._machine.wall, drift_seconds_max=self.config.clock_drift_seconds_max, start_version=store.version_max
        )
        health = StorageHealth(self._tell_health, hold_seconds=HEALTH_HOLD_INTERVALS * self.config.interval_seconds)
        writer = await self._stack.enter_async_context(GroupCommitWriter(store, on_commit=health.committed))
        self._stack.callback(health.close)
        replica = LocalReplica(store, writer, clock)
        self._stack.callback(replica.close)
        repair = self._repair = self._machine.repair_service(
            ClockedStore(store, clock),
            self.config.index_dir,
            membership=self._membership,
            config=self.config.repair_config(),
            latency=writer.recent_latency_seconds,
        )
        self._stack.push_async_callback(repair.stop)
        replica_service = ReplicaService(cluster_name=self.config.cluster_name, replica=replica)
        gossiper = await self._start_gossiper(store, replica_service, repair)
        gossiper.metrics.collect(lambda: store_series(store, writer))
        gossiper.metrics.collect(repair.metrics.snapshot)
        await repair.start()
        scheduler = RepairScheduler(
            repair,
            self.config.scheduler_settings(),
            self._membership,
            metrics=repair.metrics,
            random=self._machine.random,
            clock=self._machine.wall,
        )
        calls = ReplicaCalls(
            cluster_name=self.config.cluster_name,
            local_endpoint=gossiper.endpoint,
            local=replica,
            transport=self._machine.replica_transport(),
        )
        self._stack.push_async_callback(calls.close)
        coordinator = self._coordinator = Coordinator(
            local_endpoint=gossiper.endpoint,
            placement=self._membership.placement,
            replicas=calls,
            clock=clock,
            write_timeout_seconds=self.config.write_timeout_seconds,
            read_timeout_seconds=self.config.read_timeout_seconds,
        )
        self._stack.push_async_callback(coordinator.close)
        self._service = KeyValueService(coordinator, self._describe)
        clients = await self._listen("client", self.config.listen_clients, CLIENT_RPCS_MAX, [self._service.register])
        admin_services = [GossipAdmin(gossiper, self).register, RepairAdmin(repair, scheduler=scheduler).register]
        admin = await self._listen("admin", self.config.listen_admin, ADMIN_RPCS_MAX, admin_services)
        self._addresses = NodeAddresses(peers=gossiper.endpoint, clients=clients, admin=admin)
        await self._announce(gossiper, store, calls)
        await scheduler.start()
        self._stack.push_async_callback(scheduler.stop)

    async def _announce(self, gossiper: Gossiper, store: NodeStore, calls: ReplicaCalls) -> None:
        await gossiper.publish(
            {
                ApplicationState.NATIVE_ADDRESS_AND_PORT: self._advertised_clients(),
                # One token of its own per node, for the sake of tools: here every node holds every row.
                ApplicationState.TOKENS: str(token_of(gossiper.host_id.encode())),
                ApplicationState.RPC_READY: "true",
            }
        )
        self._following = asyncio.create_task(self._follow(gossiper, calls), name="kvstore-events")
        publishing = asyncio.create_task(keep_load(gossiper, store, self.config.interval_seconds), name="kvstore-load")
        self._stack.push_async_callback(_cancel_all, [self._following, publishing])
        _log.info(
            "ready: peers %s, clients %s, admin %s, %d rows",
            self.addresses.peers,
            self.addresses.clients,
            self.addresses.admin,
            store.row_count,
        )

    async def stop(self) -> None:
        """Tell clients and peers, finish what is under way, close everything. Idempotent."""
        if self._service is not None:
            self._service.stop()
        if self._gossiper is not None and self._addresses is not None:
            await self._say_not_ready(self._gossiper)
            # The peer listener goes first: from now on the others know, and send no more rows here.
            await self._gossiper.stop()
        await self._stack.aclose()

    async def _say_not_ready(self, gossiper: Gossiper) -> None:
        if not gossiper.info().gossip_active:
            return
        try:
            async with asyncio.timeout(self.config.shutdown_grace_seconds):
                await gossiper.publish({ApplicationState.RPC_READY: "false"})
        except (GossipError, TimeoutError) as error:
            _log.warning("RPC_READY=false was not published: %s", error)

    def check_leave(self) -> None:
        """Whether the others can still take writes without this node.

        Raises:
            LifecycleError: they cannot.
        """
        placement = self._membership.placement()
        others = [endpoint for endpoint in placement.endpoints if endpoint != self.gossiper.endpoint]
        alive = sum(map(placement.is_alive, others))
        required, total = majority_of(placement.replication_factor, len(others))
        if alive < required:
            raise LifecycleError(
                f"without this node writes would need {required} of {total} replicas, {alive} alive; add or start a "
                "node first, or leave all the same (--force)"
            )

    async def stop_serving(self, reason: str) -> None:
        """Refuse clients for good, and say so to the cluster; nodetool has this node leave or drains it."""
        if self._service is not None:
            self._service.stop(_REFUSALS[reason])
        await self._say_not_ready(self.gossiper)
        if reason == "leaving":
            with suppress(LifecycleError, NotRunningError):
                self.gossiper.set_status(Status.LEAVING)
        _log.info("clients are refused from now on: %s", _REFUSALS[reason])

    def _tell_health(self, serving: bool, reason: str) -> None:
        if self._gossiper is not None:
            self._gossiper.set_health(serving=serving, reason=reason)

    async def wait_ended(self) -> None:
        """Return when the gossiper has ended by itself; a node without one is of no use.

        Raises:
            GossipError: why it ended, for example because another node uses the same address.
        """
        if self._following is None:
            raise NotRunningError("the node has not started")
        # Its events end with the gossiper.
        await asyncio.wait([self._following])
        await self.gossiper.stop()
        if self.gossiper.failure is not None:
            raise LifecycleError(self.gossiper.failure)

    async def _open_store(self) -> NodeStore:
        config = self.config
        try:
            store = await asyncio.to_thread(self._machine.open_store, config)
        except StoreInUseError:
            raise StartError(f"{config.data_dir} is used by another node; give each node its own --data-dir") from None
        except (AntiEntropyError, OSError) as error:
            raise StartError(f"the data directory {config.data_dir} cannot be used: {error}") from None
        self._store = store
        self._stack.callback(store.close)
        return store

    async def _start_gossiper(self, store: NodeStore, replicas: ReplicaService, repair: RepairService) -> Gossiper:
        states = (
            (ApplicationState.SCHEMA.value, SCHEMA_VERSION),
            (ApplicationState.LOAD.value, load_value(store.stored_bytes)),
            (ApplicationState.RPC_READY.value, "false"),
        )
        gossiper = self._machine.gossiper(
            self.config.gossip_config(states=states), replicas, repair, self._count_malformed
        )
        try:
            await gossiper.start()
        except GossipError as error:
            raise StartError(str(error)) from None
        self._stack.push_async_callback(gossiper.stop)
        self._gossiper = gossiper
        return gossiper

    async def _listen(self, name: str, address: str, rpcs_max: int, services: Sequence[Register]) -> str:
        """Start a listener; returns its address with the real port."""
        address, stop = await self._machine.listen(
            name,
            address,
            [partial(_register_strictly, register, self._count_malformed) for register in services],
            rpcs_max=rpcs_max,
            grace_seconds=self.config.shutdown_grace_seconds,
        )
        self._stack.push_async_callback(stop)
        return address

    def _count_malformed(self, method: str) -> None:
        if self._gossiper is not None:
            self._gossiper.metrics.increment("kvstore_malformed_total", method=method)

    def _advertised_clients(self) -> str:
        if self.config.advertise_clients is None:
            return self.addresses.clients
        host, port = parse_endpoint(self.config.advertise_clients)
        return format_endpoint(host, port or parse_endpoint(self.addresses.clients)[1])

    async def _follow(self, gossiper: Gossiper, calls: ReplicaCalls) -> None:
        async for event in gossiper.events():
            if isinstance(event, EndpointAlive | EndpointRestarted):
                calls.reconnect(event.endpoint)

    def _describe(self) -> pb.DescribeNodeResponse:
        store = self._store
        if store is None:
            raise NotRunningError("the node has not started")
        placement = self._membership.placement()
        return describe(
            cluster_name=self.config.cluster_name,
            endpoint=self.gossiper.endpoint,
            host_id=self.gossiper.host_id,
            generation=self.gossiper.generation,
            replication_factor=self.config.replication_factor,
            replicas={endpoint: placement.is_alive(endpoint) for endpoint in placement.endpoints},
            row_count=store.row_count,
            tombstone_count=store.tombstone_count,
            stored_bytes=store.stored_bytes,
        )


def _register_strictly(
    register: Callable[[grpc.aio.Server], None], on_malformed: Callable[[str], None], server: grpc.aio.Server
) -> None:
    register(strict(server, on_malformed))


async def _cancel_all(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            _log.error("a background task of the node had failed: %s", result, exc_info=result)


def process_info(node: KvStoreNode) -> dict[str, Any]:
    """What ``serve --ready-file`` writes."""
    return {
        **node.addresses.as_dict(),
        "pid": os.getpid(),
        "cluster_name": node.config.cluster_name,
        "host_id": node.gossiper.host_id,
        "generation": node.gossiper.generation,
        "data_dir": str(node.config.data_dir),
    }
