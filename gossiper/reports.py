"""What a running node tells about itself: immutable reports, made on request.

Lives here: plain values only. Who makes them: ``gossiper.node``. Who sends them: ``gossiper.admin``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from gossiper.discovery import ReloadResult
from gossiper.events import EndpointView, Liveness


@dataclass(frozen=True, slots=True)
class PhiReport:
    """The failure detector's view of one remote endpoint."""

    endpoint: str
    phi: float
    """Suspicion, scaled as it is compared with the threshold; 0 while nothing has arrived."""
    interval_mean_seconds: float
    """Mean of the recorded inter-arrival times."""
    sample_count: int
    """Inter-arrival times in the window."""
    last_arrival_age_seconds: float
    """Since the last arrival; negative: there was none."""
    liveness: Liveness


@dataclass(frozen=True, slots=True)
class FailureDetectorReport:
    """The failure detector as a whole."""

    phi_threshold: float
    local_pause_remaining_seconds: float
    """Non-zero while the detector is silent after a pause of its own process."""
    endpoints: tuple[PhiReport, ...]
    """All endpoints but the local one, ordered by endpoint."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """The running node itself. Resident memory is not here: the administration service reads it."""

    endpoint: str
    host_id: str
    generation: int
    heartbeat: int
    gossip_active: bool
    uptime_seconds: float
    datacenter: str
    rack: str
    release_version: str
    interval_seconds: float
    seeds: tuple[str, ...]
    counters: tuple[tuple[str, float], ...]
    """``GossipMetrics.snapshot()``: (name, value), ordered by name."""


class LeaveOutcome(Protocol):
    """Who is known to know that a node has left; ``gossiper.node.LeaveReport`` is one."""

    @property
    def knowing(self) -> tuple[str, ...]:
        """Live peers that have shown it."""
        ...

    @property
    def unaware(self) -> tuple[str, ...]:
        """Live peers that have not shown it in time."""
        ...


class Application(Protocol):
    """What an application that embeds a gossiper adds to the operations that end its service."""

    def check_leave(self) -> None:
        """Whether the rest of the cluster can do without this node; not asked when leaving is forced.

        Raises:
            LifecycleError: it cannot; says what would be lost, and that force would do it all the same.
        """
        ...

    async def stop_serving(self, reason: str) -> None:
        """Take no more work, for ``reason`` ("leaving" or "draining"), and tell clients so; for good.

        Gossip is told afterwards, so that nobody is sent here who would be refused. Must be quick: an operator waits.
        """
        ...


class AdminSource(Protocol):
    """What the administration service needs of a node; ``gossiper.node.Gossiper`` is one.

    Every method and property raises :class:`gossiper.errors.NotRunningError` while the node is not running, except
    for ``failure``. What the operations do and raise is told there.
    """

    @property
    def cluster_name(self) -> str:
        """The name of the cluster."""
        ...

    @property
    def endpoint(self) -> str:
        """The canonical endpoint under which others know this node."""
        ...

    def members(self) -> tuple[EndpointView, ...]:
        """All known endpoints, this node included."""
        ...

    def evidence_ages(self) -> Mapping[str, float]:
        """Seconds since the last evidence of life, by endpoint; an endpoint that is missing never gave any."""
        ...

    def failure_detector(self) -> FailureDetectorReport:
        """The failure detector now."""
        ...

    def info(self) -> NodeInfo:
        """This node now."""
        ...

    @property
    def failure(self) -> str | None:
        """Why the node stopped by itself; None: it did not."""
        ...

    def member(self, endpoint: str) -> EndpointView | None:
        """One endpoint; None when it is not known."""
        ...

    def set_health(self, *, serving: bool, reason: str = "") -> None:
        """Tell the cluster whether the application can serve."""
        ...

    async def leave(self, *, timeout_seconds: float = 10.0) -> LeaveOutcome:
        """Leave for good, then gossip is off."""
        ...

    async def drain(self) -> None:
        """Say that this node no longer serves, then stop gossiping."""
        ...

    async def disable_gossip(self) -> None:
        """Announce the shutdown and stop gossiping."""
        ...

    async def enable_gossip(self) -> None:
        """Take part again, in a new generation."""
        ...

    def remove(self, host_id: str) -> None:
        """Remove a dead node for good."""
        ...

    def assassinate(self, endpoint: str, *, force: bool = False) -> None:
        """Remove whatever is at an endpoint for good."""
        ...

    async def reload_seeds(self) -> ReloadResult:
        """Read all sources of seeds now."""
        ...

    async def wait_settled(self, *, timeout_seconds: float = 60.0) -> bool:
        """Wait until known and live endpoints stay the same; False: not in time."""
        ...
