"""The series of repair: counters, sessions, collectors, and the same text as the node's own metrics."""

from __future__ import annotations

import pytest

from antientropy.metrics import Gauge, RepairMetrics
from antientropy.reports import RepairStatistics, SessionState
from gossiper.metrics import GossipMetrics


def test_counters_and_gauges_have_the_text_of_the_nodes_own() -> None:
    ours, theirs = RepairMetrics(), GossipMetrics()
    for metrics in (ours, theirs):
        metrics.increment("a_total", keyspace='odd "name"\\\n', state="x")
        metrics.increment("a_total", 2, state="x", keyspace='odd "name"\\\n')
        metrics.set("b", 0.5)
    assert ours.snapshot() == theirs.snapshot()
    assert ours.value("a_total", keyspace='odd "name"\\\n', state="x") == 3
    assert ours.value("never") == 0
    assert ours.exposition() == 'a_total{keyspace="odd \\"name\\"\\\\\\n",state="x"} 3\nb 0.5\n'


def test_what_is_no_counter_is_refused() -> None:
    metrics = RepairMetrics()
    with pytest.raises(ValueError, match="go down"):
        metrics.increment("a_total", -1)
    with pytest.raises(ValueError, match="metric name"):
        metrics.increment("a-b")
    with pytest.raises(ValueError, match="metric name"):
        metrics.set("", 1)
    assert metrics.snapshot() == []


def test_sessions_are_summed_by_how_they_ended() -> None:
    metrics = RepairMetrics()
    statistics = RepairStatistics(
        rows_differing=7, rows_moved=9, rows_optimal=9, find_bytes=500, move_bytes=9000, requests=4, elapsed_seconds=1.5
    )
    statistics.strategies["sketch"] = 2
    metrics.record_session("ks", SessionState.COMPLETED, statistics)
    metrics.record_session("ks", SessionState.COMPLETED, statistics)
    metrics.record_session("ks", SessionState.FAILED, RepairStatistics())
    assert metrics.value("antientropy_sessions_total", keyspace="ks", state="completed") == 2
    assert metrics.value("antientropy_sessions_total", keyspace="ks", state="failed") == 1
    assert metrics.value("antientropy_differences_total", keyspace="ks") == 14
    assert metrics.value("antientropy_rows_moved_total", keyspace="ks") == 18
    assert metrics.value("antientropy_find_bytes_total", keyspace="ks") == 1000
    assert metrics.value("antientropy_move_bytes_total", keyspace="ks") == 18000
    assert metrics.value("antientropy_session_seconds_total", keyspace="ks") == 3.0
    assert metrics.value("antientropy_strategies_total", keyspace="ks", strategy="sketch") == 4
    with pytest.raises(ValueError, match="no end"):
        metrics.record_session("ks", SessionState.PAUSED, statistics)


def test_collectors_are_asked_for_every_snapshot_until_they_are_removed() -> None:
    metrics, ages = RepairMetrics(), [1.0, 2.0]
    remove = metrics.collect(lambda: [Gauge("age_seconds", ages.pop(0), (("range", "r"),))])
    assert metrics.snapshot() == [('age_seconds{range="r"}', 1.0)]
    assert metrics.snapshot() == [('age_seconds{range="r"}', 2.0)]
    remove()
    remove()
    assert metrics.snapshot() == []
