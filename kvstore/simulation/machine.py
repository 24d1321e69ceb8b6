"""A machine that a real node runs on, without knowing that it is none."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Final, cast

from antientropy.config import RepairConfig
from antientropy.core.pacing import ThrottleSettings
from antientropy.membership import Membership
from antientropy.replica import Replica
from antientropy.service import RepairService
from antientropy.store import RowStore
from gossiper import GossipConfig, Gossiper
from gossiper.simulation.virtual_loop import VirtualClock
from kvstore.config import KvStoreConfig
from kvstore.machine import OnMalformed, Register, Stop
from kvstore.peers import KEYSPACE, ReplicaService
from kvstore.simulation.disk import SimulatedDisk
from kvstore.simulation.network import (
    GossipTransport,
    SimulatedNetwork,
    SimulatedRepairTransport,
    SimulatedReplicaTransport,
)
from kvstore.simulation.process import Process
from kvstore.store import NodeStore
from kvstore.transport import ReplicaTransport

#: A write arrives within 2 s or never, but for a replay by the network, and clocks are off by up to 2 s.
PROPAGATION_DELAY_SECONDS: Final = 10.0
_REPAIR_SETTINGS: Final[dict[str, Any]] = {
    "rpc_timeout_seconds": 5.0,
    "stream_timeout_seconds": 30.0,
    "session_idle_seconds": 10.0,
    # All buckets in a fifth of a run, so that hashes are made anew now and then.
    "scrub_period_seconds": 25.0,
    "lease_seconds": 6.0,
    "heartbeat_seconds": 2.0,
    "lease_wait_seconds": 20.0,
    "propagation_delay_seconds": PROPAGATION_DELAY_SECONDS,
    "purge_interval_seconds": 2.0,
    "vouch_step_seconds": 1.0,
}


class PromptReplica(Replica):
    """A replica whose index is made anew while virtual time stands still, and never because it has outgrown its depth.

    When a real thread is done would be a matter of chance.
    """

    def rebuild(self, epoch: int | None = None, *, tree_depth: int | None = None) -> Future[None]:
        """As :class:`~antientropy.replica.Replica` does it, but done on return."""
        done = super().rebuild(epoch, tree_depth=tree_depth)
        done.exception()
        return done


class SimulatedMachine:
    """A :class:`kvstore.machine.Machine` for one run of a node."""

    def __init__(
        self,
        *,
        endpoint: str,
        network: SimulatedNetwork,
        disk: SimulatedDisk,
        clock: VirtualClock,
        process: Process,
        rng: Random,
    ) -> None:
        self.random = rng
        self._endpoint = endpoint
        self._network = network
        self._disk = disk
        self._clock = clock
        self._process = process

    def wall(self) -> float:
        """The wall clock of this machine, which may be wrong."""
        return self._clock.now().wall

    def open_store(self, config: KvStoreConfig) -> NodeStore:  # noqa: ARG002 - of the Protocol
        """The rows on the simulated disk."""
        return cast("NodeStore", self._disk.open_store(self._process))

    def gossiper(
        self,
        config: GossipConfig,
        replicas: ReplicaService,
        repair: RepairService,
        on_malformed: OnMalformed,  # noqa: ARG002 - of the Protocol: here all messages are protobuf
    ) -> Gossiper:
        """A gossiper on the simulated network."""
        self._network.serve(self._endpoint, self._process, replicas, repair.peers)
        transport = GossipTransport(self._network, self._endpoint, self._process)
        host_id = str(uuid.uuid5(uuid.NAMESPACE_URL, self._endpoint))
        config = replace(config, random_seed=self.random.getrandbits(63), host_id=host_id)
        return Gossiper(config, transport=transport, clock=self._clock.now)

    def replica_transport(self) -> ReplicaTransport:
        """Calls over the simulated network."""
        return SimulatedReplicaTransport(self._network, self._endpoint, self._process, self._disk.observer)

    def repair_service(
        self,
        store: RowStore,
        index_dir: Path,
        *,
        membership: Membership,
        config: RepairConfig,
        latency: Callable[[], float | None],  # noqa: ARG002 - slowing down would depend on the real processor's time
    ) -> RepairService:
        """A repair service on the simulated network, with delays that fit into a run."""
        return RepairService(
            {KEYSPACE: PromptReplica(store, index_dir=index_dir, tree_depth=self.random.choice([1, 2, 3]))},
            membership,
            replace(config, throttle=ThrottleSettings(), **_REPAIR_SETTINGS),
            transport=SimulatedRepairTransport(self._network, self._endpoint, self._process),
            random=Random(self.random.random()),  # noqa: S311 - repeatable on purpose, guards nothing
            clock=self.wall,
        )

    async def listen(
        self,
        name: str,
        address: str,  # noqa: ARG002 - of the Protocol
        services: Sequence[Register],  # noqa: ARG002 - nobody speaks gRPC here
        *,
        rpcs_max: int,  # noqa: ARG002
        grace_seconds: float,  # noqa: ARG002
    ) -> tuple[str, Stop]:
        """Nothing listens: clients of a simulation ask the coordinator of a node."""

        async def stop() -> None:
            pass

        return f"{name}.{self._endpoint}", stop
