"""The nodes of one simulation: started, stopped, killed and started again."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, Final

from gossiper import GossipError
from gossiper.simulation.virtual_loop import VirtualClock
from kvstore.config import KvStoreConfig
from kvstore.errors import KvStoreError
from kvstore.node import KvStoreNode
from kvstore.simulation.disk import Observer, SimulatedDisk
from kvstore.simulation.machine import SimulatedMachine
from kvstore.simulation.network import SimulatedNetwork
from kvstore.simulation.process import KilledError, Process

#: What a node that was killed finds as it was at that moment, whatever its dying tasks have tried.
_KEPT_DIRECTORIES: Final = ("repair", "index", "gossip")
#: Work in threads, mostly fsync.
_THREAD_SECONDS: Final = (0.0002, 0.004)


class SimulatedNode:
    """One machine with its node.

    Args:
        number: 1, 2, ...
        network: Of all.
        directory: Its files.
        observer: Sees every row on its way to the disk.
        rng: Of this machine alone.
        settings: Of :class:`~kvstore.config.KvStoreConfig`.
    """

    def __init__(
        self,
        number: int,
        network: SimulatedNetwork,
        directory: Path,
        observer: Observer,
        rng: Random,
        *,
        lmdb: bool,
        settings: dict[str, Any],
    ) -> None:
        self.endpoint = f"10.0.0.{number}:7000"
        self.clock = VirtualClock(offset_seconds=rng.uniform(-0.4, 0.4), drift=rng.uniform(-1e-4, 1e-4))
        self.disk = SimulatedDisk(directory, observer, lmdb=lmdb)
        self.slow_disk_seconds = 0.0
        self.node: KvStoreNode | None = None
        self.process: Process | None = None
        self._rng = rng
        self._network = network
        self._settings = settings
        self._runs = 0
        self._busy = asyncio.Lock()

    async def start(self) -> bool:
        """Start the node unless it runs; False: it could not, for example because nobody could be reached."""
        async with self._busy:
            if self.node is not None:
                return True
            self._runs += 1
            process = self.process = Process(f"{self.endpoint} run {self._runs}", self._thread_seconds)
            config = KvStoreConfig(
                data_dir=self.disk.directory,
                listen_peers=self.endpoint,
                listen_clients=self.endpoint.replace("7000", "9042"),
                listen_admin="127.0.0.1:7199",
                **self._settings,
            )
            machine = SimulatedMachine(
                endpoint=self.endpoint,
                network=self._network,
                disk=self.disk,
                clock=self.clock,
                process=process,
                rng=self._rng,
            )
            node = KvStoreNode(config, machine=machine)
            try:
                await process.run(node.start())
            except (KvStoreError, GossipError, KilledError):
                self._network.leave(self.endpoint)
                await process.end_tasks()
                self.disk.close()
                return False
            self.node = node
            return True

    async def stop(self) -> None:
        """Stop the node as an operator does."""
        async with self._busy:
            node, process, self.node = self.node, self.process, None
            if node is None or process is None:
                return
            await process.run(node.stop())
            self._network.leave(self.endpoint)
            await process.end_tasks()
            self.disk.close()

    async def crash(self, *, lose: bool) -> None:
        """The power fails. Nothing happens after it but that memory is given back."""
        async with self._busy:
            node, process, self.node = self.node, self.process, None
            if node is None or process is None:
                return
            process.stop_work(self._rng, lose=lose)
            self._network.leave(self.endpoint)
            restore = self.disk.save(*_KEPT_DIRECTORIES)
            await node.gossiper.abort()
            await process.end_tasks()
            await process.spawn(_discard(node))
            self.disk.close()
            restore()

    def _thread_seconds(self) -> float:
        return self._rng.uniform(*_THREAD_SECONDS) + self.slow_disk_seconds


async def _discard(node: KvStoreNode) -> None:
    """Close what a killed node has open: it can do no harm any more, and no good."""
    with suppress(Exception, asyncio.CancelledError):
        await node.stop()
