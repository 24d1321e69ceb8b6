"""A cluster of real gossipers in one process, on an in-memory network, on whatever event loop is running.

On a loop of virtual time (``gossiper.testing.run``) it does exactly the same each time; on an ordinary one it runs in
real time, and a short ``interval_seconds`` is wanted.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

from gossiper.config import GossipConfig
from gossiper.core.endpoints import canonical_endpoint
from gossiper.core.versions import Now
from gossiper.metrics import GossipMetrics
from gossiper.node import Gossiper
from gossiper.shell import system_clock
from gossiper.simulation.virtual_loop import VirtualClock, VirtualEventLoop
from gossiper.transport.memory import MemoryNetwork, MemoryTransport

#: Long enough for a conviction (18 intervals) and what follows from it.
TIMEOUT_INTERVALS: Final = 60.0
#: How often a condition is looked at, in parts of an interval. Looking costs more than gossip itself.
_POLLS_PER_INTERVAL: Final = 5
#: Differences named in an error; more would bury it.
_DIFFERENCES_MAX: Final = 20

Clock = Callable[[], Now]


class MemoryCluster:
    """Real gossipers that find each other over ``network``, where links can be cut and nodes can hang.

    An async context manager; ``close`` does what its end does. The first node that is started is the seed of all.
    Identities (generation and host id) are kept in a directory that is removed at the end, so that a restart is one.

    Args:
        seed: of all random numbers: which peers are asked, and host ids.
        interval_seconds: the gossip interval of nodes that are not given another.
        cluster_name: the same for all.
        config: further settings of :class:`~gossiper.GossipConfig` for all nodes.
    """

    def __init__(
        self, *, seed: int = 0, interval_seconds: float = 1.0, cluster_name: str = "test", **config: Any
    ) -> None:
        self.network = MemoryNetwork()
        self.clocks: dict[str, VirtualClock] = {}
        """In virtual time the clock of each endpoint that was not given one; it stays its own over restarts."""
        self._config: dict[str, Any] = {
            "cluster_name": cluster_name,
            "interval_seconds": interval_seconds,
            **config,
        }
        self._seed = seed
        self._rng = random.Random(f"{seed}/memory cluster")  # noqa: S311 - repeatable on purpose, guards nothing
        self._interval_seconds = interval_seconds
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._running: dict[str, Gossiper] = {}
        self._clock_of: dict[str, Clock] = {}
        self._data_dirs: dict[str, Path] = {}
        self._first = ""

    async def __aenter__(self) -> Self:
        """Nothing runs yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop all nodes."""
        await self.close()

    @property
    def nodes(self) -> tuple[Gossiper, ...]:
        """Those that run and gossip, in the order in which they were started."""
        return tuple(one for one in self._running.values() if one.info().gossip_active)

    def node(self, endpoint: str) -> Gossiper:
        """The running node with this endpoint.

        Raises:
            KeyError: there is none.
        """
        return self._running[canonical_endpoint(endpoint)]

    # -- life of nodes -----------------------------------------------------------------------------------------------

    async def start_node(
        self, endpoint: str | None = None, *, clock: Clock | None = None, **config_changes: Any
    ) -> Gossiper:
        """Start one node; ``endpoint`` defaults to the first free one of 10.0.0.1:7000, 10.0.0.2:7000, and so on.

        Args:
            endpoint: where it listens and what it advertises.
            clock: default: a :class:`VirtualClock` of its own in virtual time, else the clock of this machine.
            config_changes: settings of :class:`~gossiper.GossipConfig`, different from those of the cluster.

        Raises:
            ConfigError: the settings are unusable.
            LocalStateError: the address is in use.
        """
        endpoint = self._free_endpoint() if endpoint is None else canonical_endpoint(endpoint)
        self._first = self._first or endpoint
        settings = {
            "listen": endpoint,
            "seeds": (self._first,),
            "data_dir": self._data_dir(endpoint),
            "host_id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self._seed}/{endpoint}")),
            **self._config,
            **config_changes,
        }
        if clock is not None:
            self._clock_of[endpoint] = clock
        return await self._start(GossipConfig(**settings), endpoint)

    async def stop(self, gossiper: Gossiper) -> None:
        """Stop a node cleanly: it tells the others."""
        self._running.pop(gossiper.endpoint, None)
        await gossiper.stop()

    async def kill(self, gossiper: Gossiper) -> None:
        """End a node as SIGKILL does: nobody is told, calls to it are reset. Its identity stays on disk.

        No time passes until it is gone. Its subscriptions end.
        """
        self._running.pop(gossiper.endpoint, None)
        await gossiper.abort()

    async def restart(self, gossiper: Gossiper, **config_changes: Any) -> Gossiper:
        """Start a node again that was stopped or killed, at its endpoint (or a new ``listen``), with its identity.

        Returns:
            The new gossiper; the old one stays what it was.

        Raises:
            LocalStateError: it still runs.
        """
        config = replace(gossiper.config, random_seed=None, **config_changes)
        endpoint = canonical_endpoint(config.listen)
        self._clock_of.setdefault(endpoint, self._clock_of[gossiper.endpoint])
        return await self._start(config, endpoint)

    async def close(self) -> None:
        """Let all links be whole, stop all nodes, remove their identities. Idempotent.

        Raises:
            ExceptionGroup: nodes that could not be stopped; all others were.
        """
        errors: list[Exception] = []
        while self._running:
            endpoint, gossiper = self._running.popitem()
            self.network.resume(endpoint)
            try:
                await gossiper.stop()
            except Exception as error:  # noqa: BLE001 - the others are to be stopped too
                errors.append(error)
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None
        if errors:
            raise ExceptionGroup("some nodes did not stop cleanly", errors)

    async def _start(self, config: GossipConfig, endpoint: str) -> Gossiper:
        if config.random_seed is None:
            config = replace(config, random_seed=self._rng.getrandbits(63))
        metrics = GossipMetrics()
        transport = MemoryTransport(self.network, endpoint, metrics=metrics)
        gossiper = Gossiper(config, transport=transport, clock=self._clock(endpoint))
        gossiper.metrics = metrics
        await gossiper.start()
        self._running[gossiper.endpoint] = gossiper
        return gossiper

    def _clock(self, endpoint: str) -> Clock:
        """The clock of the machine of ``endpoint``, which outlives its nodes."""
        if endpoint not in self._clock_of:
            self._clock_of[endpoint] = system_clock
            if isinstance(asyncio.get_running_loop(), VirtualEventLoop):
                self.clocks[endpoint] = VirtualClock()
                self._clock_of[endpoint] = self.clocks[endpoint].now
        return self._clock_of[endpoint]

    def _free_endpoint(self) -> str:
        number = 1
        while (endpoint := f"10.0.{number // 250}.{number % 250}:7000") in self._data_dirs:
            number += 1
        return endpoint

    def _data_dir(self, endpoint: str) -> Path:
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="gossiper-")
        number = len(self._data_dirs) + 1
        return self._data_dirs.setdefault(endpoint, Path(self._directory.name) / str(number))

    # -- waiting -----------------------------------------------------------------------------------------------------

    async def wait_until(
        self, condition: Callable[[], bool], timeout_seconds: float | None = None, *, what: str = "the condition"
    ) -> None:
        """Wait until ``condition()`` is true; it is asked five times per gossip interval.

        Raises:
            TimeoutError: it was not within ``timeout_seconds`` (default: 60 gossip intervals); says who sees whom.
        """
        await self._wait(lambda: [] if condition() else [f"{what} is not true"], timeout_seconds)

    async def converged(self, *gossipers: Gossiper, timeout_seconds: float | None = None) -> None:
        """Wait until the nodes (default: all that run) hold each other alive, nobody else, and know the same values.

        Raises:
            TimeoutError: they did not within ``timeout_seconds`` (default: 60 gossip intervals); says what differs.
        """
        await self._wait(lambda: self.differences(*gossipers), timeout_seconds)

    def differences(self, *gossipers: Gossiper) -> list[str]:
        """What keeps the nodes (default: all that run) from agreeing, one line each; empty when they have converged."""
        group = gossipers or self.nodes
        endpoints = {one.endpoint for one in group}
        lines: list[str] = []
        for observer in group:
            alive = {view.endpoint for view in observer.members() if view.alive}
            lines += [f"{observer.endpoint} does not hold {missing} alive" for missing in sorted(endpoints - alive)]
            lines += [f"{observer.endpoint} holds {ghost} alive" for ghost in sorted(alive - endpoints)]
            lines += self._stale(observer, group)
        return lines

    def _stale(self, observer: Gossiper, group: Iterable[Gossiper]) -> list[str]:
        """Where ``observer`` knows other values of a node than the node itself."""
        lines: list[str] = []
        for owner in group:
            truth, seen = owner.member(owner.endpoint), observer.member(owner.endpoint)
            if truth is None or seen is None:
                continue
            if seen.generation != truth.generation:
                lines.append(
                    f"{observer.endpoint} knows generation {seen.generation} of {owner.endpoint}, "
                    f"not {truth.generation}"
                )
            elif (seen.states_version, dict(seen.states)) != (truth.states_version, dict(truth.states)):
                lines.append(
                    f"{observer.endpoint} knows {owner.endpoint} up to version {seen.states_version}, "
                    f"not {truth.states_version}"
                )
        return lines

    async def _wait(self, missing: Callable[[], list[str]], timeout_seconds: float | None) -> None:
        seconds = TIMEOUT_INTERVALS * self._interval_seconds if timeout_seconds is None else timeout_seconds
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while lines := missing():
            if loop.time() >= deadline:
                more = [f"and {len(lines) - _DIFFERENCES_MAX} more"] if len(lines) > _DIFFERENCES_MAX else []
                raise TimeoutError(
                    "\n  ".join([f"not within {seconds:g} s:", *lines[:_DIFFERENCES_MAX], *more, *self._picture()])
                )
            await asyncio.sleep(min(self._interval_seconds / _POLLS_PER_INTERVAL, max(0.0, deadline - loop.time())))

    def _picture(self) -> list[str]:
        """Who sees whom, one line per running node."""
        lines: list[str] = []
        for observer in self.nodes[:_DIFFERENCES_MAX]:
            seen = ", ".join(f"{view.endpoint} {view.liveness}" for view in observer.members())
            lines.append(f"{observer.endpoint} sees {seen}")
        return lines
