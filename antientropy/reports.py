"""What a repair tells: its steps while it runs, and what sessions and ranges look like afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from antientropy.core.tokens import TokenRange


class SessionState(Enum):
    """Where a repair stands; the first five are under way. Persisted by these names."""

    PREPARING = "preparing"
    COMPARING = "comparing"
    STREAMING = "streaming"
    VERIFYING = "verifying"
    PAUSED = "paused"
    INTERRUPTED = "interrupted"
    """The coordinator was stopped or killed; it can be resumed and skips what was verified."""
    COMPLETED = "completed"
    PARTIAL = "partial"
    """Some replicas or sub-ranges failed; the others are equal."""
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing will happen any more."""
        return self in (SessionState.COMPLETED, SessionState.PARTIAL, SessionState.FAILED, SessionState.CANCELLED)


@dataclass(slots=True)
class RepairStatistics:
    """Sums of one repair, or of one pair. ``bytes`` are serialized messages, without HTTP/2 framing."""

    rows_differing: int = 0
    """Rows that were not the same on all replicas that took part."""
    rows_moved: int = 0
    """Row copies that travelled ..."""
    rows_optimal: int = 0
    """... and the fewest that could have; where keys share tokens, those that changed their receiver."""
    rows_in_flight: int = 0
    """Rows that differed only because a write was under way: settled without being moved."""
    rows_conflicting: int = 0
    """Rows of equal version and different content."""
    find_bytes: int = 0
    """Everything that travelled but keys and values of rows."""
    move_bytes: int = 0
    """Keys and values of rows."""
    round_trips: int = 0
    """The longest chain of requests that waited for each other, summed over passes."""
    requests: int = 0
    pairs_compared: int = 0
    pairs_equal: int = 0
    strategies: dict[str, int] = field(default_factory=dict)
    """How often each way of finding rows was taken, by its name: sketch, descent, rows."""
    elapsed_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class FlowPreview:
    """What would travel from one replica to another."""

    source: str
    target: str
    rows: int
    row_bytes: int
    """Keys and values."""
    tombstones: int
    first_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RepairUpdate:
    """A step of a repair, for people (``message``) and for programs (the rest)."""

    session_id: str
    message: str
    """One line in nodetool's words; empty when only numbers changed."""
    state: SessionState
    progress: float
    """Share of the key space that is verified, 0 to 1."""
    statistics: RepairStatistics
    """A copy."""
    rows_to_move: int = 0
    """Known so far, over all that was compared; ``statistics.rows_moved`` of them have moved."""
    eta_seconds: float | None = None
    """None while nothing can be said."""
    previews: tuple[FlowPreview, ...] = ()
    """Of a preview: in its last update."""
    trace: bool = False
    """A line that only ``--trace`` shows."""

    @property
    def is_last(self) -> bool:
        """Whether the repair has ended with this."""
        return self.state.is_final


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as ``nodetool repair_admin list`` and ``history`` show it; also what a restarted node finds on disk."""

    session_id: str
    keyspace: str
    state: SessionState
    coordinator: str
    replicas: tuple[str, ...]
    token_ranges: tuple[TokenRange, ...]
    started_at: float
    """Seconds since the epoch, as the two below."""
    updated_at: float
    ended_at: float | None
    progress: float
    statistics: RepairStatistics
    detail: str = ""
    """Why it failed, or is partial; for people."""


@dataclass(frozen=True, slots=True)
class RangeSummary:
    """``nodetool repair_admin summarize``: how long ago each part of a keyspace was repaired."""

    keyspace: str
    token_range: TokenRange
    repaired_at: float | None
    """Start of the last complete repair in seconds since the epoch; None: never."""
    purged_version: int
    """Tombstones with a lesser version are gone."""
    differences_last: int
    """Rows that its last repair found different."""
    due_at: float | None
    """When the scheduler wants to repair it; None: no schedule."""
    stalled: bool
    """Not repaired for longer than its period allows."""


@dataclass(frozen=True, slots=True)
class ThrottleStatus:
    """``nodetool repair_admin throttle``: the limits in force."""

    bytes_per_second: float | None
    """None: no limit, as in the two below."""
    rows_per_second: float | None
    cpu_share: float | None
    """Of one core."""
    pace: float = 1.0
    """What is permitted of the above right now, 0 to 1: less than 1 while the application is slow."""
    latency_seconds: float | None = None
    """Of the application, where it tells it."""


@dataclass(frozen=True, slots=True)
class ScheduledRange:
    """A range as the scheduler sees it."""

    keyspace: str
    token_range: TokenRange
    repaired_at: float | None
    """Start of its last complete repair in seconds since the epoch; None: never."""
    due_at: float
    session_id: str = ""
    """Of the repair that is under way; empty: none."""
    stalled: bool = False
    """Not repaired for longer than the period allows."""
    failures: int = 0
    """In a row."""
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class ScheduleStatus:
    """``nodetool repair_admin schedule``."""

    paused: bool
    period_seconds: float
    windows: tuple[str, ...]
    """``22:00-06:00`` each; empty: always."""
    in_window: bool
    ranges: tuple[ScheduledRange, ...]
    """By the time when they are due."""
