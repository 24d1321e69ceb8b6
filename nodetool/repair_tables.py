"""How sessions, ranges, limits and schedules of repair look: tables that fit a terminal, and JSON."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from nodetool.render import (
    AddressBook,
    address_order,
    byte_size,
    labelled,
    narrow_table,
    one_line,
    printable,
    rfc3339,
    table,
    width_wanted,
)
from nodetool.repair_flags import TOKEN_MAX
from nodetool.repair_follow import ID_LENGTH, duration, percent, short_count, state_of
from nodetool.repair_report import statistics_content

if TYPE_CHECKING:
    from antientropy.v1.admin_pb2 import RangeSummary, Schedule, ScheduledRange, SessionInfo, Throttle, TokenRange

#: Ranges that are shown unless all are asked for.
RANGES_SHOWN: Final = 24
_BUCKET_BITS: Final = 56


# --- texts


def short_ids(ids: Iterable[str]) -> Callable[[str], str]:
    """A function that abbreviates these ids to what still names each of them."""
    known = list(ids)
    length = ID_LENGTH
    while length < max(map(len, known), default=0) and len({one[:length] for one in known}) < len(set(known)):
        length += 1
    return lambda session_id: printable(session_id[:length])


def _moment(seconds: float) -> datetime | None:
    """A time that a node gave; None for what is none."""
    try:
        return datetime.fromtimestamp(seconds, tz=UTC)
    except (OverflowError, ValueError, OSError):
        return None


def local_time(seconds: float) -> str:
    """``2026-01-02 03:04:05`` in local time, as the lines of a repair."""
    moment = _moment(seconds)
    return "?" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def rough_duration(seconds: float) -> str:
    """``40 s``, ``4 min``, ``19 h``, ``10 d``: one number that people compare."""
    if not math.isfinite(seconds):
        return "?"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def ago(moment: float, now: float) -> str:
    """How long before ``now``."""
    return f"{rough_duration(now - moment)} ago"


def due_text(due_at: float, now: float) -> str:
    """``in 3 h``, or ``now``; ``?`` where a window that is needed never opens."""
    if not math.isfinite(due_at):
        return "?"
    return f"in {rough_duration(due_at - now)}" if due_at > now else "now"


def range_text(token_range: TokenRange, *, short: bool = False) -> str:
    """``0000000000000000-00ffffffffffffff``; short: ``00..-00..`` where it is made of 256ths of all tokens."""
    first, last = token_range.first, token_range.last
    if (first, last) == (0, TOKEN_MAX):
        return "all tokens"
    rest = (1 << _BUCKET_BITS) - 1
    if short and first & rest == 0 and last & rest == rest:
        return f"{first >> _BUCKET_BITS:02x}..-{last >> _BUCKET_BITS:02x}.."
    return f"{first:016x}-{last:016x}"


def _fitting(make: Callable[[bool], list[list[str]]], short_titles: dict[str, str], shortened: int) -> list[str]:
    """A table with all that there is to say; with less (``make(True)``) where a terminal is too narrow for that."""
    width = width_wanted(sys.stdout)
    lines = table(make(False))
    if width is not None and max(len(line.rstrip()) for line in lines) > width:
        lines = narrow_table(make(True), width, short_titles=short_titles, shortened=shortened)
    return [line.rstrip() for line in lines]


# --- sessions


def sessions_text(sessions: Sequence[SessionInfo], now: float) -> str:
    """Cassandra's ``repair_admin list``, with how far each one is; then why a session stands still."""
    if not sessions:
        return "no sessions"
    short = short_ids(one.session_id for one in sessions)
    book = AddressBook({name for one in sessions for name in (one.coordinator, *one.replicas)}, print_port=False)

    def rows(narrow: bool) -> list[list[str]]:
        # A node lists what it coordinates itself: on a narrow terminal its own address can be missed.
        places = ["participants"] if narrow else ["coordinator", "participants"]
        made = [["id", "keyspace", "state", "verified", "rows moved", "started", "last activity", *places]]
        for one in sessions:
            replicas = [book.plain(name) for name in sorted(one.replicas, key=address_order)]
            made.append(
                [
                    short(one.session_id),
                    printable(one.keyspace),
                    state_of(one.state),
                    percent(one.progress),
                    f"{one.statistics.rows_moved:,}",
                    ago(one.started_at, now),
                    ago(one.updated_at, now),
                    *([str(len(replicas))] if narrow else [book.plain(one.coordinator), ",".join(replicas)]),
                ]
            )
        return made

    short_titles = {"rows moved": "moved", "last activity": "activity", "verified": "done", "participants": "replicas"}
    return "\n".join([*_fitting(rows, short_titles, 1), *_details(sessions, short)])


def history_text(sessions: Sequence[SessionInfo]) -> str:
    """Sessions that have ended, the last one first; then why some are not complete."""
    if not sessions:
        return "no sessions"
    short = short_ids(one.session_id for one in sessions)

    def rows(narrow: bool) -> list[list[str]]:
        made = [["id", "keyspace", "state", "started", "took", "rows differed", "rows moved", "bytes to find"]]
        for one in sessions:
            statistics = one.statistics
            count: Callable[[int], str] = short_count if narrow else "{:,}".format
            started = local_time(one.started_at)
            made.append(
                [
                    short(one.session_id),
                    printable(one.keyspace),
                    state_of(one.state),
                    started[: -len(":00")] if narrow else started,
                    duration(statistics.elapsed_seconds or one.ended_at - one.started_at),
                    count(statistics.rows_differing),
                    count(statistics.rows_moved),
                    byte_size(statistics.find_bytes),
                ]
            )
        return made

    short_titles = {"rows differed": "differed", "rows moved": "moved", "bytes to find": "to find"}
    return "\n".join([*_fitting(rows, short_titles, 1), *_details(sessions, short)])


def _details(sessions: Sequence[SessionInfo], short: Callable[[str], str]) -> list[str]:
    told = [f"{short(one.session_id)}: {one_line(one.detail)}" for one in sessions if one.detail]
    return ["", *told] if told else []


def session_content(session: SessionInfo) -> dict[str, Any]:
    """A session for programs."""
    return {
        "session_id": session.session_id,
        "keyspace": session.keyspace,
        "state": state_of(session.state),
        "coordinator": session.coordinator,
        "replicas": list(session.replicas),
        "token_ranges": [range_content(one) for one in session.token_ranges],
        "started_time": _time(session.started_at),
        "updated_time": _time(session.updated_at),
        "ended_time": _time(session.ended_at) if session.HasField("ended_at") else None,
        "progress_ratio": session.progress,
        "detail": session.detail or None,
        **statistics_content(session.statistics),
    }


def range_content(token_range: TokenRange) -> dict[str, int]:
    """A range for programs, both ends inclusive."""
    return {"first_token": token_range.first, "last_token": token_range.last}


def _time(seconds: float) -> str | None:
    moment = _moment(seconds)
    return None if moment is None else rfc3339(moment)


# --- ranges


def summary_text(ranges: Sequence[RangeSummary], now: float, *, everything: bool) -> str:
    """How long ago each range was repaired; of many ranges those that were not for the longest time."""
    if not ranges:
        return "no stats"
    shown = list(ranges)
    if not everything and len(shown) > RANGES_SHOWN:
        shown = sorted(shown, key=lambda one: one.repaired_at if one.HasField("repaired_at") else -1.0)[:RANGES_SHOWN]

    def rows(narrow: bool) -> list[list[str]]:
        made = [["keyspace", "tokens", "last repaired", "rows differed", "due", "state"]]
        made += [
            [
                printable(one.keyspace),
                range_text(one.token_range, short=narrow),
                ago(one.repaired_at, now) if one.HasField("repaired_at") else "never",
                f"{one.differences_last:,}" if one.HasField("repaired_at") else "-",
                due_text(one.due_at, now) if one.HasField("due_at") else "-",
                "stalled" if one.stalled else "ok",
            ]
            for one in shown
        ]
        return made

    never = sum(not one.HasField("repaired_at") for one in ranges)
    stalled = sum(one.stalled for one in ranges)
    count = f"{len(ranges):,} range{'s' * (len(ranges) != 1)}"
    lines = [f"{count}: {never:,} never repaired with all replicas, {stalled:,} stalled", ""]
    lines += _fitting(rows, {"last repaired": "repaired", "rows differed": "differed"}, 0)
    if len(shown) < len(ranges):
        lines.append(f"... and {len(ranges) - len(shown):,} that were repaired later; -v shows all")
    return "\n".join(lines)


def summary_content(one: RangeSummary) -> dict[str, Any]:
    """A range for programs."""
    return {
        "keyspace": one.keyspace,
        **range_content(one.token_range),
        "repaired_time": _time(one.repaired_at) if one.HasField("repaired_at") else None,
        "purged_version": one.purged_version,
        "differences_last": one.differences_last,
        "due_time": _time(one.due_at) if one.HasField("due_at") else None,
        "stalled": one.stalled,
    }


# --- throttle and schedule


def throttle_text(throttle: Throttle) -> str:
    """The limits in force."""
    rows_limit = f"{throttle.rows_per_second:,.0f}" if throttle.rows_per_second else "no limit"
    share = f"{throttle.cpu_share:.0%} of one core" if throttle.cpu_share < 1 else "no limit"
    pace = "full" if throttle.pace >= 1 else f"{throttle.pace:.0%}: held back, the application is slow"
    lines = [
        labelled("Bytes per second", byte_size(throttle.bytes_per_second) if throttle.bytes_per_second else "no limit"),
        labelled("Rows per second", rows_limit),
        labelled("CPU share", share),
        labelled("Pace", pace),
    ]
    if throttle.HasField("latency_seconds"):
        lines.append(labelled("Application latency", f"{throttle.latency_seconds * 1000:.3g} ms"))
    return "\n".join(lines)


def throttle_content(throttle: Throttle) -> dict[str, Any]:
    """The limits for programs."""
    return {
        "bytes_per_second": throttle.bytes_per_second or None,
        "rows_per_second": throttle.rows_per_second or None,
        "cpu_share_ratio": throttle.cpu_share,
        "pace_ratio": throttle.pace,
        "latency_seconds": throttle.latency_seconds if throttle.HasField("latency_seconds") else None,
    }


def schedule_text(schedule: Schedule, *, everything: bool) -> str:
    """What is repaired by itself, and when."""
    ranges = schedule.ranges
    stalled = sum(one.stalled for one in ranges)
    running = [one for one in ranges if one.session_id]
    windows = ", ".join(map(printable, schedule.windows))
    open_now = "open now" if schedule.in_window else "closed now"
    lines = [
        labelled("Automatic repair", "paused" if schedule.paused else "on"),
        labelled("Period", f"each range once in {rough_duration(schedule.period_seconds)}"),
        labelled("Windows", f"{windows} ({open_now})" if windows else "always"),
        labelled("Ranges", f"{len(ranges):,}, running {len(running):,}, stalled {stalled:,}"),
    ]
    if not ranges:
        why = "No ranges yet: the node has just started, or is the first replica of none."
        return "\n".join([*lines, "", why])
    shown = ranges if everything else [*running, *(one for one in ranges if not one.session_id)][:RANGES_SHOWN]
    now = schedule.now

    def rows(narrow: bool) -> list[list[str]]:
        made = [["keyspace", "tokens", "last repaired", "due", "state"]]
        made += [
            [
                printable(one.keyspace),
                range_text(one.token_range, short=narrow),
                ago(one.repaired_at, now) if one.HasField("repaired_at") else "never",
                "" if one.session_id else due_text(one.due_at, now),
                _state(one, narrow=narrow),
            ]
            for one in shown
        ]
        return made

    lines += ["", *_fitting(rows, {"last repaired": "repaired"}, 0)]
    if len(shown) < len(ranges):
        lines.append(f"... and {len(ranges) - len(shown):,} later; -v shows all")
    errors = {one_line(one.last_error): None for one in shown if one.last_error}
    return "\n".join([*lines, *([""] if errors else []), *(f"last failure: {error}" for error in errors)])


def _state(one: ScheduledRange, *, narrow: bool) -> str:
    words = [f"running {printable(one.session_id[:ID_LENGTH])}"] if one.session_id else []
    if not (words and narrow):
        words += ["stalled"] if one.stalled else []
        words += [f"failed {one.failures}x"] if one.failures else []
    return ", ".join(words) or "ok"


def schedule_content(schedule: Schedule) -> dict[str, Any]:
    """The schedule for programs."""
    return {
        "paused": schedule.paused,
        "period_seconds": schedule.period_seconds,
        "windows": list(schedule.windows),
        "in_window": schedule.in_window,
        "stalled_count": sum(one.stalled for one in schedule.ranges),
        "running_count": sum(bool(one.session_id) for one in schedule.ranges),
        "ranges": [
            {
                "keyspace": one.keyspace,
                **range_content(one.token_range),
                "repaired_time": _time(one.repaired_at) if one.HasField("repaired_at") else None,
                "due_time": _time(one.due_at),
                "session_id": one.session_id or None,
                "stalled": one.stalled,
                "failure_count": one.failures,
                "last_error": one.last_error or None,
            }
            for one in schedule.ranges
        ],
    }
