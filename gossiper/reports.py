"""What a running node tells about itself: immutable reports, made on request.

Lives here: plain values only. Who makes them: ``gossiper.node``. Who sends them: ``gossiper.admin``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

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


class AdminSource(Protocol):
    """What the administration service needs of a node; ``gossiper.node.Gossiper`` is one.

    Every method and property raises :class:`gossiper.errors.NotRunningError` while the node is not running.
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
