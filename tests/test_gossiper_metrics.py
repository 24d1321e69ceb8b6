"""Counters and gauges."""

from __future__ import annotations

import pytest

from gossiper.metrics import GossipMetrics


def test_series_are_told_apart_by_labels_in_any_order() -> None:
    metrics = GossipMetrics()
    metrics.increment("gossiper_messages_total", kind="syn", direction="sent")
    metrics.increment("gossiper_messages_total", 2, direction="sent", kind="syn")
    metrics.increment("gossiper_messages_total", kind="ack", direction="sent")
    assert metrics.value("gossiper_messages_total", direction="sent", kind="syn") == 3
    assert metrics.value("gossiper_messages_total") == 0
    assert metrics.snapshot() == [
        ('gossiper_messages_total{direction="sent",kind="ack"}', 1.0),
        ('gossiper_messages_total{direction="sent",kind="syn"}', 3.0),
    ]


def test_gauges_are_set_and_the_snapshot_is_ordered() -> None:
    metrics = GossipMetrics()
    metrics.set("gossiper_live", 3)
    metrics.set("gossiper_live", 2)
    metrics.increment("gossiper_a_total", 0)
    assert metrics.snapshot() == [("gossiper_a_total", 0.0), ("gossiper_live", 2.0)]


def test_label_values_are_escaped() -> None:
    metrics = GossipMetrics()
    metrics.increment("a", reason='quote " backslash \\ line\n')
    assert metrics.snapshot() == [('a{reason="quote \\" backslash \\\\ line\\n"}', 1.0)]


def test_a_counter_does_not_go_down_and_names_are_checked() -> None:
    metrics = GossipMetrics()
    with pytest.raises(ValueError, match="a: a counter cannot go down by 1"):
        metrics.increment("a", -1)
    for bad in ("", "9a", "a-b", "a{b}"):
        with pytest.raises(ValueError, match="is not a metric name"):
            metrics.increment(bad)
        with pytest.raises(ValueError, match="is not a metric name"):
            metrics.set(bad, 1)
    assert metrics.snapshot() == []
