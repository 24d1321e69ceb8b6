"""Evidence of life: a heartbeat greater than the one known, from the endpoint itself or from somebody else.

Lives here: what a newer heartbeat writes into the table and the failure detector, and which heartbeats are possible at
all. Not here: whether it may count, which depends on the generation and its STATUS (``state``). A message brings either
many heartbeats and nothing else, or one with a state: columns for the first, plain numbers for the second, which are
ten times as fast for a single row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gossiper.core.columns import Rows
from gossiper.core.failure_detector import PhiAccrualFailureDetector
from gossiper.core.table import NO_PATH, EndpointTable, LivenessCode
from gossiper.core.versions import Now
from gossiper.limits import GENERATION_AHEAD_SECONDS_MAX

#: As a plain number: comparing a column with a member of an enum takes numpy five times as long.
_ALIVE = int(LivenessCode.ALIVE)


def limits(table: EndpointTable, rows: Rows, now: Now) -> NDArray[np.float64]:
    """No heartbeat can be greater than this, per row, with a day of doubt about everybody's clocks."""
    age_seconds = (now.wall + GENERATION_AHEAD_SECONDS_MAX) - table.generation[rows]
    greatest: NDArray[np.float64] = age_seconds * 1000.0 / np.maximum(table.interval_ms[rows], 1)
    return greatest


def possible(table: EndpointTable, rows: Rows, heartbeats: NDArray[np.int64], now: Now) -> NDArray[np.bool_]:
    """Which of these heartbeats their rows can have reached: those within ``limits``, found without a division.

    As floating-point numbers: what a peer says may be so great that a product of integers would wrap.
    """
    needed_ms = np.multiply(heartbeats, table.interval_ms[rows], dtype=np.float64)
    age_ms = (now.wall + GENERATION_AHEAD_SECONDS_MAX) * 1000.0 - table.generation[rows] * 1000
    within: NDArray[np.bool_] = needed_ms <= age_ms
    return within


def of_many(
    table: EndpointTable,
    detector: PhiAccrualFailureDetector,
    rows: Rows,
    heartbeats: NDArray[np.int64],
    *,
    now: Now,
    path: int,
) -> None:
    """Newer heartbeats of ``rows`` (no duplicates), told by the endpoint in row ``path``.

    Evidence for the detector, and a wish for an ECHO of those that are not alive.
    """
    if not len(rows):
        return
    table.heartbeat[rows] = heartbeats
    detector.report(rows, now.monotonic)
    table.evidence_arrival[rows] = now.monotonic
    table.evidence_path[rows] = path
    if len((rows == path).nonzero()[0]):
        _direct(table, path, now)
    silent = table.liveness[rows] != _ALIVE
    if np.count_nonzero(silent):
        rows = rows[silent]
        table.echo_wanted[rows] = ~table.dead_status[rows]


def of_one(
    table: EndpointTable, detector: PhiAccrualFailureDetector, row: int, heartbeat: int, *, now: Now, path: int
) -> None:
    """:func:`of_many` for a single row."""
    table.heartbeat[row] = heartbeat
    detector.report_one(row, now.monotonic)
    table.evidence_arrival[row] = now.monotonic
    table.evidence_path[row] = path
    if row == path:
        _direct(table, path, now)
    table.echo_wanted[row] = table.liveness[row] != _ALIVE and not table.dead_status[row]


def _direct(table: EndpointTable, row: int, now: Now) -> None:
    table.evidence_path[row] = NO_PATH
    table.direct_arrival[row] = now.monotonic
