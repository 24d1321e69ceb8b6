"""What a repair, a preview or a validation has come to: a closing summary for people, one object for programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from nodetool.errors import ExitStatus, NodetoolError
from nodetool.render import (
    AddressBook,
    byte_size,
    json_text,
    labelled,
    narrow_table,
    one_line,
    printable,
    rfc3339,
    width_wanted,
)
from nodetool.repair_follow import duration, percent, resume_hint, state_of

if TYPE_CHECKING:
    from antientropy.v1.admin_pb2 import FlowPreview, RepairStatistics, RepairUpdate

#: A key is shown so far; the whole of it is in the JSON.
_KEY_LENGTH_MAX: Final = 32
_WORDS: Final = {"repair": "Repair", "preview": "Repair preview", "validate": "Repair validation", "pull": "Repair"}


def differ(update: RepairUpdate) -> bool:
    """Whether a preview or a validation found that replicas are not equal."""
    statistics = update.statistics
    found_rows = statistics.rows_differing > 0 or any(one.rows for one in update.previews)
    return found_rows or statistics.pairs_equal < statistics.pairs_compared


def bytes_text(count: int) -> str:
    """Exactly, and readable."""
    return f"{count:,} ({byte_size(count)})" if count >= 1024 else str(count)


def statistics_lines(statistics: RepairStatistics, mode: str) -> list[str]:
    """Labelled numbers; those that are seldom other than zero only when they are."""
    moving = mode in {"repair", "pull"}
    # A validation looks for no rows.
    rows = [] if mode == "validate" else [("Rows that differed", f"{statistics.rows_differing:,}")]
    if moving:
        rows += [
            ("Rows moved", f"{statistics.rows_moved:,}"),
            ("Rows moved at best", f"{statistics.rows_optimal:,}"),
        ]
    if statistics.rows_in_flight:
        rows.append(("Settled by writes", f"{statistics.rows_in_flight:,}"))
    if statistics.rows_conflicting:
        rows.append(("Equal versions", f"{statistics.rows_conflicting:,}, of different content"))
    rows.append(("Bytes for finding", bytes_text(statistics.find_bytes)))
    if moving:
        rows.append(("Bytes for moving", bytes_text(statistics.move_bytes)))
    round_trips = f"{statistics.round_trips:,}"
    if statistics.requests > statistics.round_trips:
        round_trips += f" ({statistics.requests:,} requests)"
    rows.append(("Round trips", round_trips))
    if statistics.strategies:
        ordered = sorted(statistics.strategies, key=lambda one: -one.count)
        taken = ", ".join(printable(one.strategy) + (f" x{one.count:,}" if one.count > 1 else "") for one in ordered)
        rows.append(("Strategy", taken))
    rows.append(("Pairs compared", f"{statistics.pairs_compared:,}, of them equal: {statistics.pairs_equal:,}"))
    return [labelled(f"  {label}", value) for label, value in rows]


def repair_text(update: RepairUpdate, mode: str) -> str:
    """The closing summary."""
    statistics = update.statistics
    what = _WORDS[mode]
    state = state_of(update.state)
    head = {
        "completed": f"{what} completed successfully",
        "partial": f"{what} partly done",
        "failed": f"{what} failed",
        "cancelled": f"{what} was cancelled at {percent(update.progress)}",
        "paused": f"{what} paused at {percent(update.progress)}",
        "interrupted": f"{what} interrupted at {percent(update.progress)}",
    }[state]
    lines = [f"{head} in {duration(statistics.elapsed_seconds)}"]
    lines += statistics_lines(statistics, mode)
    lines.append(labelled("  Session", one_line(update.session_id)))
    if state in {"completed", "partial"}:
        if mode == "preview":
            lines += ["", *preview_lines(update)]
        elif mode == "validate":
            found = "Validated data is inconsistent" if differ(update) else "Validated data is in sync"
            lines += ["", found if state == "completed" else f"{found}, as far as replicas took part"]
    return "\n".join(lines)


def preview_lines(update: RepairUpdate) -> list[str]:
    """One line for each direction, then the first keys of each."""
    flows = [one for one in update.previews if one.rows]
    if not flows:
        # Replicas that differ in nothing that would move: equal versions of other content, say.
        return ["Replicas differ, but no row would move" if differ(update) else "Previewed data was in sync"]
    book = AddressBook({name for one in flows for name in (one.source, one.target)}, print_port=False)
    rows = [("From", "To", "Rows", "Bytes", "Tombstones")]
    rows += [(book.plain(one.source), book.plain(one.target), *_amounts([one])) for one in flows]
    if len(flows) > 1:
        rows.append(("Total", "", *_amounts(flows)))
    lines = [line.rstrip() for line in narrow_table(rows, width_wanted(sys.stdout), short_titles={}, shortened=0)]
    with_keys = [one for one in flows if one.first_keys]
    if with_keys:
        lines += ["", "First keys:"]
    for one in with_keys:
        lines.append(f"  {book.plain(one.source)} -> {book.plain(one.target)}")
        lines += [f"    {key_text(key)}" for key in one.first_keys]
        if one.rows > len(one.first_keys):
            lines.append(f"    ... and {one.rows - len(one.first_keys):,} more")
    return lines


def _amounts(flows: Sequence[FlowPreview]) -> tuple[str, str, str]:
    rows, size, tombstones = (sum(getattr(one, name) for one in flows) for name in ("rows", "row_bytes", "tombstones"))
    return f"{rows:,}", f"{size:,}", f"{tombstones:,}"


def key_text(key: bytes) -> str:
    """Text as it is, other keys in hexadecimal; long ones are cut."""
    text = _decoded(key)
    shown = f"0x{key.hex()}" if text is None or not text.isprintable() else text
    return shown if len(shown) <= _KEY_LENGTH_MAX else shown[: _KEY_LENGTH_MAX - 1] + "…"


def _decoded(key: bytes) -> str | None:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return None


def statistics_content(statistics: RepairStatistics) -> dict[str, Any]:
    """The same numbers for programs."""
    return {
        "rows_differing": statistics.rows_differing,
        "rows_moved": statistics.rows_moved,
        "rows_optimal": statistics.rows_optimal,
        "rows_in_flight": statistics.rows_in_flight,
        "rows_conflicting": statistics.rows_conflicting,
        "find_bytes": statistics.find_bytes,
        "move_bytes": statistics.move_bytes,
        "round_trips": statistics.round_trips,
        "requests": statistics.requests,
        "pairs_compared": statistics.pairs_compared,
        "pairs_equal": statistics.pairs_equal,
        "strategies": {one.strategy: one.count for one in statistics.strategies},
        "elapsed_seconds": statistics.elapsed_seconds,
    }


def repair_json(update: RepairUpdate, mode: str) -> str:
    """One object, printed when the repair has ended."""
    return json_text(
        {
            "time": rfc3339(datetime.now(tz=UTC)),
            "session_id": update.session_id,
            "keyspace": update.keyspace or None,
            "mode": mode,
            "outcome": state_of(update.state),
            "message": update.message,
            "progress_ratio": update.progress,
            **statistics_content(update.statistics),
            "differences_found": differ(update),
            "previews": [
                {
                    "source": one.source,
                    "target": one.target,
                    "rows": one.rows,
                    "row_bytes": one.row_bytes,
                    "tombstones": one.tombstones,
                    "first_keys": [_decoded(key) for key in one.first_keys],
                    "first_keys_hex": [key.hex() for key in one.first_keys],
                }
                for one in update.previews
            ],
        }
    )


def raise_unless_done(update: RepairUpdate, *, exit_code: bool) -> None:
    """Turn the outcome into an exit status.

    Raises:
        NodetoolError: the repair did not do all; or it did, ``exit_code`` is set and replicas differ.
    """
    match state_of(update.state):
        case "partial":
            raise NodetoolError(_reason("repair partly done", update.message), ExitStatus.PARTLY_DONE)
        case "paused" | "interrupted" as state:
            raise NodetoolError(f"repair {state}: {resume_hint(update.session_id)}", ExitStatus.PARTLY_DONE)
        case "failed":
            raise NodetoolError(_reason("repair failed", update.message))
        case "cancelled":
            raise NodetoolError("repair was cancelled; rows that were moved stay")
    if exit_code and differ(update):
        raise NodetoolError("the replicas differ", ExitStatus.DIFFERENCES)


def _reason(what: str, message: str) -> str:
    """Why, without saying twice that it is about a repair."""
    why = one_line(message)
    return f"r{why[1:]}" if why.startswith("Repair ") else f"{what}: {why}"
