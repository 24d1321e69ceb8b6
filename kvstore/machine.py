"""What a node takes from outside of its process: clock, disk, network. A simulation brings its own.

Everything else of :class:`kvstore.node.KvStoreNode` is the same on a real machine and on a simulated one.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Final, Protocol

import grpc

from antientropy.config import RepairConfig
from antientropy.membership import Membership
from antientropy.replica import Replica
from antientropy.service import RepairService
from antientropy.store import RowStore
from antientropy.stores.lmdb import LmdbRowStore
from antientropy.strict import strict
from gossiper import GossipConfig, Gossiper
from gossiper.core.endpoints import canonical_endpoint, format_endpoint, parse_endpoint
from kvstore.config import KvStoreConfig
from kvstore.errors import StartError
from kvstore.peers import KEYSPACE, ReplicaService
from kvstore.store import NodeStore
from kvstore.transport import GrpcReplicaTransport, ReplicaTransport
from kvstore.wire import SERVER_OPTIONS

#: Puts a service on a server; the generated ``add_...Servicer_to_server`` with its servicer.
Register = Callable[[grpc.aio.Server], None]
#: Told the method of a request that is no protobuf.
OnMalformed = Callable[[str], None]
#: Ends a listener.
Stop = Callable[[], Awaitable[None]]

#: The option that changes the address of a listener.
_LISTENER_OPTIONS: Final = {"client": "clients", "admin": "admin"}


class Machine(Protocol):
    """One per node and start; used from the event loop of the node, but for :meth:`open_store`."""

    @property
    def random(self) -> Random:
        """For jitter; guards nothing."""
        ...

    def wall(self) -> float:
        """Seconds since the epoch."""
        ...

    def open_store(self, config: KvStoreConfig) -> NodeStore:
        """The rows. May block; called from a worker thread.

        Raises:
            AntiEntropyError, OSError: why it cannot be used.
        """
        ...

    def gossiper(
        self, config: GossipConfig, replicas: ReplicaService, repair: RepairService, on_malformed: OnMalformed
    ) -> Gossiper:
        """A gossiper that has not started, on whose listener other nodes reach the two services too."""
        ...

    def replica_transport(self) -> ReplicaTransport:
        """Calls to the ``ReplicaService`` of other nodes."""
        ...

    def repair_service(
        self,
        store: RowStore,
        index_dir: Path,
        *,
        membership: Membership,
        config: RepairConfig,
        latency: Callable[[], float | None],
    ) -> RepairService:
        """A repair service that has not started.

        Args:
            store: The rows, as repair sees them.
            index_dir: Where their index is kept over a restart.
            membership: Who else has them.
            config: As the node's settings have it.
            latency: Of the writes of clients, in seconds.
        """
        ...

    async def listen(
        self, name: str, address: str, services: Sequence[Register], *, rpcs_max: int, grace_seconds: float
    ) -> tuple[str, Stop]:
        """Start a listener for applications or operators; returns its address with the real port, and what ends it.

        Args:
            name: ``client`` or ``admin``, for people.
            address: ``host:port``; port 0 takes a free one.
            services: What is served there.
            rpcs_max: Calls at once; the surplus is refused.
            grace_seconds: How long its end waits for calls under way.

        Raises:
            StartError: the port is in use, or the address is not of this machine.
        """
        ...


class ThisMachine:
    """The real one.

    Args:
        wall: Seconds since the epoch; dates writes.
    """

    def __init__(self, *, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self.random = Random()  # noqa: S311 - jitter

    def wall(self) -> float:
        """Seconds since the epoch."""
        return self._wall()

    def open_store(self, config: KvStoreConfig) -> NodeStore:
        """See :class:`Machine`."""
        return LmdbRowStore(config.rows_dir, map_bytes_max=config.map_bytes_max)

    def gossiper(
        self, config: GossipConfig, replicas: ReplicaService, repair: RepairService, on_malformed: OnMalformed
    ) -> Gossiper:
        """See :class:`Machine`."""

        def register(server: grpc.aio.Server) -> None:
            for service in (replicas, repair):
                service.register(strict(server, on_malformed))

        return Gossiper(config, services=[register])

    def replica_transport(self) -> ReplicaTransport:
        """See :class:`Machine`."""
        return GrpcReplicaTransport()

    def repair_service(
        self,
        store: RowStore,
        index_dir: Path,
        *,
        membership: Membership,
        config: RepairConfig,
        latency: Callable[[], float | None],
    ) -> RepairService:
        """See :class:`Machine`."""
        replica = Replica(store, index_dir=index_dir)
        return RepairService({KEYSPACE: replica}, membership, config, latency=latency, clock=self._wall)

    async def listen(
        self, name: str, address: str, services: Sequence[Register], *, rpcs_max: int, grace_seconds: float
    ) -> tuple[str, Stop]:
        """See :class:`Machine`."""
        server = grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=rpcs_max)
        for register in services:
            register(server)
        address = canonical_endpoint(address)
        try:
            await _try_to_bind(address)
            port = server.add_insecure_port(address)
        except (OSError, RuntimeError) as error:
            # A RuntimeError is gRPC's: somebody took the port a moment ago.
            reason = getattr(error, "strerror", None) or os.strerror(errno.EADDRINUSE)
            raise StartError(
                f"cannot listen for {name} connections on {address}: {reason}; choose another address with "
                f"--listen-{_LISTENER_OPTIONS[name]}"
            ) from None
        await server.start()

        async def stop() -> None:
            await server.stop(grace_seconds)

        return format_endpoint(parse_endpoint(address)[0], port), stop


async def _try_to_bind(address: str) -> None:
    """Bind plain sockets for a moment: they tell why it cannot be done; gRPC only writes that to stderr.

    Of the addresses of a name, those that this machine does not have may be missing, as long as there is one.

    Raises:
        OSError: it cannot be done.
    """
    host, port = parse_endpoint(address)
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    missing: list[OSError] = []
    for family, kind, protocol, _name, place in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
        except OSError as error:
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                raise
            missing.append(error)
    if len(missing) == len(found):
        raise missing[0]
