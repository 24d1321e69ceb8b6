"""The settings of the repair service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc.aio

from antientropy.core.deletes import PurgeMode
from antientropy.core.pacing import ThrottleSettings
from antientropy.errors import ConfigError
from antientropy.limits import DIFFERENCE_ROWS_MAX, SCRUB_PERIOD_SECONDS, UNIT_BYTES_MAX, UNIT_ROWS_MAX


def insecure_channel(endpoint: str) -> grpc.aio.Channel:
    """A plain-text channel to a peer that never asks a proxy of the environment."""
    return grpc.aio.insecure_channel(endpoint, options=[("grpc.enable_http_proxy", 0)])


def version_text(version_time: Callable[[int], float] | None) -> Callable[[int], str]:
    """Shows versions to people: as times, where they tell any."""
    if version_time is None:
        return str
    seconds_of = version_time
    return lambda version: datetime.fromtimestamp(seconds_of(version), UTC).isoformat(sep=" ", timespec="seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairConfig:
    """Settings of a repair service. All have defaults that suit a local network.

    Raises:
        ConfigError: lists every setting that is out of its bounds.
    """

    rpc_timeout_seconds: float = 10.0
    """Deadline of a call, and of each message of a stream. Too small: a peer that folds a large tree or waits for its
    disk counts as failed. Too large: a stopped peer holds a repair up for so long, once."""
    stream_timeout_seconds: float = 600.0
    """Deadline of a whole stream (a page of rows or of row digests)."""
    session_idle_seconds: float = 60.0
    """A peer's session that asks nothing for so long gives its snapshot back. Snapshots keep old pages of the store."""
    sessions_max: int = 8
    """Snapshots held for peers at once, up to 25 MB of memory each."""
    passes_max: int = 4
    """Compare and stream again while writes arrive; then the pair counts as done, and an update says so."""
    difference_rows_max: int = DIFFERENCE_ROWS_MAX
    """Differing rows held in memory at once; more are moved in further passes."""
    throttle: ThrottleSettings = field(default_factory=ThrottleSettings)
    """How fast repair may go; can be changed while the service runs."""
    threads: int = 4
    """Worker threads for the store."""
    data_dir: Path | None = None
    """Where the journal of sessions lives. None: in memory, so that nothing can be resumed after a restart."""
    lease_seconds: float = 15.0
    """A participant whose coordinator is silent for so long is free again. Too small: a busy disk loses sessions."""
    heartbeat_seconds: float = 2.0
    """Leases are kept so often; several must fit into ``lease_seconds``."""
    lease_wait_seconds: float = 60.0
    """A repair whose range is held by another one tries again, after random pauses, for so long."""
    version_at: Callable[[float], int] | None = None
    """Maps seconds since the epoch to the least version that is written then. None: versions tell no time, so nothing
    is recorded as repaired up to a version, and nothing is purged."""
    version_time: Callable[[int], float] | None = None
    """The inverse. None: rows that are being written cannot be told from others."""
    in_flight_seconds: float = 0.5
    """A row younger than this that differs is left to the write that brings it; looked at again when it is older."""
    in_flight_waits_max: int = 6
    """Waits for such rows in one part of the range; rows that are still written then are left for the next repair."""
    propagation_delay_seconds: float = 3600.0
    """A repair vouches for writes that are so much older than its start: those have left every queue by then."""
    vouch_step_seconds: float = 60.0
    """Repairs that begin within so long vouch for the same version. Too small: each of a quick succession of them
    writes the store's marks. Too large: tombstones stay for so much longer."""
    purge: PurgeMode = PurgeMode.REPAIR
    """When tombstones are removed for good."""
    gc_grace_seconds: float = 864_000.0
    """Age at which tombstones go with ``PurgeMode.TIME``: ten days, Cassandra's default."""
    purge_interval_seconds: float = 10.0
    """Pause between two slices of purged tombstones; too small: foreground writes meet many small transactions."""
    replica_retries_max: int = 3
    """A replica that is lost in mid-repair is tried so often again, after the others are done."""
    replica_retry_seconds: float = 1.0
    """The first pause before that, doubled each time."""
    not_ready_wait_seconds: float = 120.0
    """How long a replica may take to build its index anew before it counts as lost."""
    unit_rows_max: int = UNIT_ROWS_MAX
    """Differing rows that are found, moved and verified as one unit; more: the range is cut into parts."""
    unit_bytes_max: int = UNIT_BYTES_MAX
    """As above, in bytes, by the average row."""
    resume_seconds_max: float = 86_400.0
    """What a session verified longer ago than this is verified again when it is resumed."""
    scrub_period_seconds: float = SCRUB_PERIOD_SECONDS
    """All rows are read again and checked, and the index with them, once in this time, evenly spread; then one of the
    replicas has all of them make their hashes anew. 0: never. Too small: the disk is always busy. Too large: damage is
    found late."""
    session_seconds_max: float = 7 * 86_400.0
    """Deadline of a whole repair: one that is so slow is superseded by the next."""
    channel_factory: Callable[[str], grpc.aio.Channel] = insecure_channel
    """Makes the channel to a peer; for TLS."""

    def __post_init__(self) -> None:
        faults = [
            f"{name} is {getattr(self, name)}; a number above 0 is needed"
            for name in (
                "rpc_timeout_seconds",
                "stream_timeout_seconds",
                "session_idle_seconds",
                "sessions_max",
                "passes_max",
                "difference_rows_max",
                "threads",
                "lease_seconds",
                "heartbeat_seconds",
                "purge_interval_seconds",
                "vouch_step_seconds",
                "replica_retry_seconds",
                "not_ready_wait_seconds",
                "unit_rows_max",
                "unit_bytes_max",
                "session_seconds_max",
            )
            if not getattr(self, name) > 0
        ]
        faults += [
            f"{name} is {getattr(self, name)}; 0 or more is needed"
            for name in (
                "lease_wait_seconds",
                "in_flight_seconds",
                "in_flight_waits_max",
                "propagation_delay_seconds",
                "gc_grace_seconds",
                "replica_retries_max",
                "resume_seconds_max",
                "scrub_period_seconds",
            )
            if not getattr(self, name) >= 0
        ]
        if self.heartbeat_seconds * 3 > self.lease_seconds:
            faults.append(
                f"heartbeat_seconds is {self.heartbeat_seconds}; three must fit into lease_seconds {self.lease_seconds}"
            )
        if self.purge is PurgeMode.TIME and self.version_at is None:
            faults.append("purge by time needs version_at, which maps time to versions")
        if faults:
            raise ConfigError(faults)
