"""Digests encoded by hand are exactly what protobuf would have written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossiper.core.messages import DigestColumns
from gossiper.v1 import gossip_pb2
from gossiper.wire.columns import digests_field, varint

NUMBERS = st.integers(0, 2**63 - 1) | st.sampled_from([0, 1, 127, 128, 16_383, 16_384, 2**62])
ROWS = st.lists(st.tuples(st.text(max_size=300) | st.just("10.0.0.1:7000"), NUMBERS, NUMBERS, NUMBERS), max_size=20)


@given(ROWS)
def test_same_bytes_as_protobuf(rows: list[tuple[str, int, int, int]]) -> None:
    wire = gossip_pb2.GossipDigestAck(
        requests=[
            gossip_pb2.GossipDigest(endpoint=e, generation=g, heartbeat=h, states_version=v) for e, g, h, v in rows
        ]
    )
    assert digests_field(3, DigestColumns.from_rows(rows)) == wire.SerializeToString(deterministic=True)


@pytest.mark.parametrize("number", [-1, 2**64])
def test_a_number_that_does_not_fit(number: int) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        varint(number)


@pytest.mark.parametrize("numbers", [(-1, 1, 1), (1, -1, 1), (1, 1, -1)])
def test_a_negative_number_is_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        digests_field(3, DigestColumns.from_rows([("10.0.0.1:7000", *numbers)]))
