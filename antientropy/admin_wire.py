"""Requests and reports of repair, to and from ``antientropy.v1`` messages of the administration.

What arrives is validated whole: :func:`options_of` and its like raise before anything is begun.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from antientropy.core.tokens import TokenRange
from antientropy.errors import RepairRequestError
from antientropy.limits import HISTORY_SESSIONS_MAX, JOBS_MAX, KEYSPACE_BYTES_MAX, REPLICAS_MAX
from antientropy.options import RepairMode, RepairOptions, Strategy
from antientropy.reports import (
    FlowPreview,
    RangeSummary,
    RepairStatistics,
    RepairUpdate,
    ScheduleStatus,
    SessionInfo,
    SessionState,
    ThrottleStatus,
)
from antientropy.v1 import admin_pb2 as pb

#: Ranges that a node holds of a keyspace are some hundreds at most; a longer list is a mistake in the caller.
ASKED_RANGES_MAX: Final = 1_024
#: What names an endpoint or a data centre: a DNS name, a colon and a port, generously.
NAME_LENGTH_MAX: Final = 300
SESSION_ID_LENGTH_MAX: Final = 64
HISTORY_LIMIT_DEFAULT: Final = 20

_MODES: Final = {
    pb.REPAIR_MODE_UNSPECIFIED: RepairMode.REPAIR,
    pb.REPAIR_MODE_REPAIR: RepairMode.REPAIR,
    pb.REPAIR_MODE_PREVIEW: RepairMode.PREVIEW,
    pb.REPAIR_MODE_VALIDATE: RepairMode.VALIDATE,
    pb.REPAIR_MODE_PULL: RepairMode.PULL,
}
_STRATEGIES: Final = {
    pb.REPAIR_STRATEGY_UNSPECIFIED: Strategy.AUTO,
    pb.REPAIR_STRATEGY_AUTO: Strategy.AUTO,
    pb.REPAIR_STRATEGY_SKETCH: Strategy.SKETCH,
    pb.REPAIR_STRATEGY_DESCENT: Strategy.DESCENT,
    pb.REPAIR_STRATEGY_ROWS: Strategy.ROWS,
}
_STATES: Final = {
    SessionState.PREPARING: pb.SESSION_STATE_PREPARING,
    SessionState.COMPARING: pb.SESSION_STATE_COMPARING,
    SessionState.STREAMING: pb.SESSION_STATE_STREAMING,
    SessionState.VERIFYING: pb.SESSION_STATE_VERIFYING,
    SessionState.PAUSED: pb.SESSION_STATE_PAUSED,
    SessionState.INTERRUPTED: pb.SESSION_STATE_INTERRUPTED,
    SessionState.COMPLETED: pb.SESSION_STATE_COMPLETED,
    SessionState.PARTIAL: pb.SESSION_STATE_PARTIAL,
    SessionState.FAILED: pb.SESSION_STATE_FAILED,
    SessionState.CANCELLED: pb.SESSION_STATE_CANCELLED,
}

_Meaning = TypeVar("_Meaning")


def options_of(request: pb.RepairRequest) -> RepairOptions:
    """What is asked for.

    Raises:
        RepairRequestError: a value is out of its bounds, or of a kind that this version does not know.
    """
    jobs = request.jobs or 1
    if jobs > JOBS_MAX:
        raise RepairRequestError(f"{jobs} jobs: 1 to {JOBS_MAX} ranges can be repaired at once")
    return RepairOptions(
        token_ranges=_token_ranges(request.token_ranges),
        primary_only=request.primary_only,
        peers=_names(request.peers, "replica", REPLICAS_MAX),
        datacenters=_names(request.datacenters, "data centre", REPLICAS_MAX),
        mode=_known(request.mode, _MODES, "repair mode"),
        full=request.full,
        force=request.force,
        jobs=jobs,
        strategy=_known(request.strategy, _STRATEGIES, "strategy"),
        trace=request.trace,
    )


def _known(value: int, meanings: dict[Any, _Meaning], what: str) -> _Meaning:
    meaning = meanings.get(value)
    if meaning is None:
        raise RepairRequestError(f"{what} number {value} is not known to this version")
    return meaning


def _names(names: Sequence[str], what: str, count_max: int) -> tuple[str, ...]:
    if len(names) > count_max:
        raise RepairRequestError(f"{len(names)} names of a {what}: at most {count_max} can be given")
    for name in names:
        if not 0 < len(name) <= NAME_LENGTH_MAX or not name.isprintable():
            raise RepairRequestError(f"the name of a {what} is empty, not printable or over {NAME_LENGTH_MAX} letters")
    return tuple(dict.fromkeys(names))


def _token_ranges(ranges: Sequence[pb.TokenRange]) -> tuple[TokenRange, ...]:
    if len(ranges) > ASKED_RANGES_MAX:
        raise RepairRequestError(f"{len(ranges)} token ranges: at most {ASKED_RANGES_MAX} can be given")
    last = -1
    for one in ranges:
        if one.first > one.last:
            raise RepairRequestError(f"token range {one.first} to {one.last} ends before it begins")
        if one.first <= last:
            raise RepairRequestError(f"token range {one.first} to {one.last} overlaps one before it, or comes too late")
        last = one.last
    return tuple(TokenRange(one.first, one.last) for one in ranges)


def keyspace_of(asked: str) -> str:
    """A keyspace that can exist; "" where none was named.

    Raises:
        RepairRequestError: its name is too long.
    """
    if len(asked.encode()) > KEYSPACE_BYTES_MAX:
        raise RepairRequestError(f"the name of a keyspace has at most {KEYSPACE_BYTES_MAX} bytes")
    return asked


def session_id_of(asked: str) -> str:
    """An id, or its beginning.

    Raises:
        RepairRequestError: nothing that an id could begin with.
    """
    if not 0 < len(asked) <= SESSION_ID_LENGTH_MAX or not asked.isascii() or not asked.isprintable():
        raise RepairRequestError("name a session by its id or the beginning of it; 'nodetool repair_admin list' has it")
    return asked.lower()


def history_limit_of(asked: int) -> int:
    """How many ended sessions are wanted.

    Raises:
        RepairRequestError: more than are kept.
    """
    if asked > HISTORY_SESSIONS_MAX:
        raise RepairRequestError(f"{asked} sessions: at most {HISTORY_SESSIONS_MAX} can be listed")
    return asked or HISTORY_LIMIT_DEFAULT


def throttle_of(request: pb.SetThrottleRequest, current: ThrottleStatus) -> ThrottleStatus:
    """The limits that shall be in force: those asked for, the others as they are.

    Raises:
        RepairRequestError: a limit is negative or no number.
    """
    for name in ("bytes_per_second", "rows_per_second"):
        value = getattr(request, name)
        if not math.isfinite(value) or value < 0:
            raise RepairRequestError(f"{name} is {value:g}; a number above 0 is needed, or 0 for no limit")
    if request.HasField("cpu_share") and not 0 < request.cpu_share <= 1:
        raise RepairRequestError(f"cpu_share is {request.cpu_share:g}; above 0 and up to 1 is needed, 1 for no limit")
    asked = {field.name: value for field, value in request.ListFields()}
    return replace(
        current,
        bytes_per_second=_limit(asked.get("bytes_per_second"), current.bytes_per_second, unlimited=0),
        rows_per_second=_limit(asked.get("rows_per_second"), current.rows_per_second, unlimited=0),
        cpu_share=_limit(asked.get("cpu_share"), current.cpu_share, unlimited=1),
    )


def _limit(asked: float | None, current: float | None, *, unlimited: float) -> float | None:
    if asked is None:
        return current
    return None if asked == unlimited else asked


def throttle_message(status: ThrottleStatus) -> pb.Throttle:
    """The limits in force."""
    return pb.Throttle(
        bytes_per_second=status.bytes_per_second or 0.0,
        rows_per_second=status.rows_per_second or 0.0,
        cpu_share=1.0 if status.cpu_share is None else status.cpu_share,
        pace=status.pace,
        latency_seconds=status.latency_seconds,
    )


def schedule_message(status: ScheduleStatus, now: float) -> pb.Schedule:
    """What the scheduler is about."""
    return pb.Schedule(
        now=now,
        paused=status.paused,
        period_seconds=status.period_seconds,
        windows=status.windows,
        in_window=status.in_window,
        ranges=(
            pb.ScheduledRange(
                keyspace=one.keyspace,
                token_range=token_range_message(one.token_range),
                repaired_at=one.repaired_at,
                due_at=one.due_at,
                session_id=one.session_id,
                stalled=one.stalled,
                failures=one.failures,
                last_error=one.last_error,
            )
            for one in status.ranges
        ),
    )


def state_message(state: SessionState) -> pb.SessionState.ValueType:
    """The state of a session."""
    return _STATES[state]


def token_range_message(token_range: TokenRange) -> pb.TokenRange:
    """A range of tokens."""
    return pb.TokenRange(first=token_range.first, last=token_range.last)


def statistics_message(statistics: RepairStatistics) -> pb.RepairStatistics:
    """Sums of a repair."""
    return pb.RepairStatistics(
        rows_differing=statistics.rows_differing,
        rows_moved=statistics.rows_moved,
        rows_optimal=statistics.rows_optimal,
        rows_in_flight=statistics.rows_in_flight,
        rows_conflicting=statistics.rows_conflicting,
        find_bytes=statistics.find_bytes,
        move_bytes=statistics.move_bytes,
        round_trips=statistics.round_trips,
        requests=statistics.requests,
        pairs_compared=statistics.pairs_compared,
        pairs_equal=statistics.pairs_equal,
        strategies=(
            pb.StrategyCount(strategy=name, count=count) for name, count in sorted(statistics.strategies.items())
        ),
        elapsed_seconds=statistics.elapsed_seconds,
    )


def update_message(update: RepairUpdate, keyspace: str) -> pb.RepairUpdate:
    """A step of a repair."""
    return pb.RepairUpdate(
        session_id=update.session_id,
        keyspace=keyspace,
        message=update.message,
        state=_STATES[update.state],
        progress=update.progress,
        statistics=statistics_message(update.statistics),
        rows_to_move=update.rows_to_move,
        eta_seconds=update.eta_seconds,
        previews=map(preview_message, update.previews),
        trace=update.trace,
    )


def preview_message(preview: FlowPreview) -> pb.FlowPreview:
    """What would travel in one direction."""
    return pb.FlowPreview(
        source=preview.source,
        target=preview.target,
        rows=preview.rows,
        row_bytes=preview.row_bytes,
        tombstones=preview.tombstones,
        first_keys=preview.first_keys,
    )


def session_message(session: SessionInfo) -> pb.SessionInfo:
    """A session."""
    return pb.SessionInfo(
        session_id=session.session_id,
        keyspace=session.keyspace,
        state=_STATES[session.state],
        coordinator=session.coordinator,
        replicas=session.replicas,
        token_ranges=map(token_range_message, session.token_ranges),
        started_at=session.started_at,
        updated_at=session.updated_at,
        ended_at=session.ended_at,
        progress=session.progress,
        statistics=statistics_message(session.statistics),
        detail=session.detail,
    )


def summary_messages(summaries: Iterable[RangeSummary]) -> list[pb.RangeSummary]:
    """How long ago ranges were repaired."""
    return [
        pb.RangeSummary(
            keyspace=one.keyspace,
            token_range=token_range_message(one.token_range),
            repaired_at=one.repaired_at,
            purged_version=one.purged_version,
            differences_last=one.differences_last,
            due_at=one.due_at,
            stalled=one.stalled,
        )
        for one in summaries
    ]
