"""Reports of a running node, made from its engine: what administration shows and what is logged."""

from __future__ import annotations

import logging

import numpy as np

from gossiper.core.state import ClusterState
from gossiper.core.versions import Now
from gossiper.events import (
    EndpointAlive,
    EndpointDead,
    EndpointForgotten,
    EndpointJoined,
    EndpointLeft,
    EndpointRemoved,
    EndpointReplaced,
    EndpointRestarted,
    Event,
    LocalStopped,
)
from gossiper.reports import FailureDetectorReport, PhiReport

logger = logging.getLogger("gossiper.node")


def evidence_ages(state: ClusterState, now: Now) -> dict[str, float]:
    """Seconds since the last evidence of life, by endpoint; endpoints that never gave any are missing."""
    table = state.table
    ages = {table.endpoint(int(row)): now.monotonic - float(table.evidence_arrival[row]) for row in table.rows()}
    return {endpoint: age for endpoint, age in ages.items() if np.isfinite(age)}


def failure_detector_report(state: ClusterState, now: Now) -> FailureDetectorReport:
    """Suspicion of every other endpoint, now."""
    rows = state.table.rows()
    rows = rows[rows != state.local_row]
    detector = state.detector
    columns = zip(
        rows,
        np.nan_to_num(detector.phi(rows, now.monotonic)),
        np.nan_to_num(detector.windows.means_seconds(rows)),
        detector.windows.sample_counts(rows),
        np.nan_to_num(detector.windows.silence_seconds(rows, now.monotonic), nan=-1.0),
        strict=True,
    )
    views = ((state.view(int(row)), *numbers) for row, *numbers in columns)
    reports = [
        PhiReport(view.endpoint, float(phi), float(mean), int(samples), float(silence), view.liveness)
        for view, phi, mean, samples, silence in views
    ]
    return FailureDetectorReport(
        detector.threshold,
        detector.local_pause_remaining_seconds(now.monotonic),
        tuple(sorted(reports, key=lambda report: report.endpoint)),
    )


def log_event(event: Event) -> None:
    """One line per change of membership; changes of values are frequent and only for debugging."""
    match event:
        case EndpointJoined(endpoint, new):
            logger.info("joined endpoint=%s generation=%d host_id=%s", endpoint, new.generation, new.host_id)
        case EndpointAlive(endpoint, _, new):
            logger.info("alive endpoint=%s generation=%d", endpoint, new.generation)
        case EndpointDead(endpoint, old, _, reason):
            logger.info("dead endpoint=%s generation=%d reason=%s", endpoint, old.generation, reason)
        case EndpointRestarted(endpoint, old, new):
            logger.info("restarted endpoint=%s generation=%d after=%d", endpoint, new.generation, old.generation)
        case EndpointLeft(endpoint, _, new):
            logger.info("left endpoint=%s generation=%d", endpoint, new.generation)
        case EndpointRemoved(endpoint, _, _, removed_by):
            logger.info("removed endpoint=%s by=%s", endpoint, removed_by)
        case EndpointReplaced(endpoint, old, _):
            logger.info("replaced endpoint=%s old=%s old_host_id=%s", endpoint, old.endpoint, old.host_id)
        case EndpointForgotten(endpoint, _, reason):
            logger.info("forgotten endpoint=%s reason=%s", endpoint, reason)
        case LocalStopped(endpoint, reason):
            logger.error("stopped endpoint=%s reason=%s", endpoint, reason)
        case _:
            logger.debug("%s", event)
