"""What ``nodetool info`` says of a replica: rows, tombstones, and when what was repaired longest ago was."""

from __future__ import annotations

import pytest

from antientropy.v1 import admin_pb2 as pb
from nodetool.node import Holding

NOW = 1_800_000_000.0


def holding_of(*repaired_at: float | None) -> Holding:
    ranges = [pb.RangeSummary(keyspace="kv", repaired_at=time) for time in repaired_at]
    replica = pb.DescribeReplicaResponse(row_count=1_100, tombstone_count=100)
    return Holding.of(replica, pb.SummarizeRepairsResponse(now=NOW, ranges=ranges))


@pytest.mark.parametrize(
    ("repaired_at", "text"),
    [
        ((NOW - 300.0, NOW - 10.0), "5 min ago"),
        ((NOW - 300.0, None), "(not all tokens yet)"),
        ((None,), "(not all tokens yet)"),
        ((), "(not all tokens yet)"),
    ],
)
def test_the_range_that_was_repaired_longest_ago_counts(repaired_at: tuple[float | None, ...], text: str) -> None:
    assert holding_of(*repaired_at).lines() == [
        "Rows                   : 1,000",
        "Tombstones             : 100",
        f"Last repair            : {text}",
    ]


def test_for_programs() -> None:
    assert holding_of(NOW - 1.0).fields() == {
        "row_count": 1_000,
        "tombstone_count": 100,
        "repaired_at": "2027-01-15T07:59:59.000Z",
    }
    assert holding_of(None).fields()["repaired_at"] is None
    assert Holding.of(pb.DescribeReplicaResponse(row_count=1), None).repaired_at is None
