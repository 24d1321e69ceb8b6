"""docs/digests.md says what is on the wire: its example and its tables are compared with the code."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from compact_pairs import exchange, pair, roster, state, tell

from gossiper import limits
from gossiper.core.exchange import ATTEMPTS_MAX
from gossiper.core.messages import GossipDigestAck, GossipDigestSyn
from gossiper.v1 import gossip_pb2
from gossiper.wire import codec

DOCUMENT = (Path(__file__).parent.parent / "docs" / "digests.md").read_text()


def rows(header: str) -> list[list[str]]:
    """The cells of the one table with this header."""
    found = re.findall(rf"(?m)^\| {re.escape(header)} \|\n\|[-|]+\|\n((?:\|.*\|\n)+)", DOCUMENT)
    assert len(found) == 1, header
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines()]


def test_the_example_is_what_two_nodes_say() -> None:
    one, other = pair(4)
    tell(one, [state(2, heartbeat=1002, values=[("x", "1")], tick=1001)])
    tell(other, [state(3, heartbeat=1003)])
    result = exchange(one, other)
    assert result.kind == "compact"
    assert result.forms == ["sync", "ackc", "ack2"]
    example = DOCUMENT.partition("## An example")[2].partition("\n## ")[0]
    blocks = re.findall(r"(?s)```\n(.*?)```", example)
    for message, block in zip(result.messages[:2], blocks, strict=True):
        told = [re.match(r"\s*((?:[0-9a-f]{2} )*[0-9a-f]{2})(?=\s{3,}|$)", line) for line in block.splitlines()]
        assert all(told), block
        assert bytes.fromhex("".join(found[1] for found in told if found)) == codec.encode(message)
    sizes = re.search(r"The SYN has (\d+) bytes \(plainly it would have (\d+)\)", example)
    assert sizes is not None
    ack = re.search(r"The ACK has (\d+):", example)
    assert ack is not None
    plain = one._digests._plain_syn(result.messages[0].as_of_ms)  # type: ignore[union-attr] # a SYN
    assert [int(sizes[1]), int(ack[1])] == result.sizes[:2]
    assert int(sizes[2]) == len(codec.encode(plain))
    order = re.search(r"the roster is ((?:`[\d.]+`,?\s*)+)", example)
    assert order is not None
    names = [f"{name}:7000" for name in re.findall(r"`([\d.]+)`", order[1])]
    assert names == [one.state.table.endpoint(int(row)) for row in roster(one).rows]


def test_the_constants() -> None:
    for name, where, value, meaning in rows("name | where | value | meaning"):
        package = "gossiper.wire" if where == "symbols" else "gossiper.core"
        assert getattr(importlib.import_module(f"{package}.{where}"), name.strip("`")) == float(value), name
        assert meaning


def test_every_field_of_a_syn_is_explained() -> None:
    told = {name for row in rows("field | what it says | why") for name in re.findall(r"`(\w+)`", row[0])}
    compact = {field.name for field in gossip_pb2.CompactDigests.DESCRIPTOR.fields}
    assert told == compact | {"as_of_ms", "digests"}
    answer = {field.name for field in gossip_pb2.CompactAnswer.DESCRIPTOR.fields}
    assert {name for name in answer if f"`{name}`" not in DOCUMENT} == set()


def test_the_kinds_of_exchanges() -> None:
    from gossiper.core import exchange as module

    kinds = [row[0].strip("`") for row in rows("kind | what happened | what follows")]
    assert sorted(kinds) == sorted(re.findall(r"(?m)^\* ``(\w+)``", module.__doc__ or ""))
    assert ATTEMPTS_MAX == 3


@pytest.mark.parametrize("form", ["compact", "plain"])
def test_ten_thousand_endpoints(form: str) -> None:
    """The sizes that the document names, and room for ten times as much."""
    one, other = pair(10_000, ages=lambda number: 996 - number * 7 % 5 - number * 11 % 3)
    tell(other, [state(number, heartbeat=999) for number in range(50)])
    syn = None if form == "compact" else one._digests._plain_syn(1_700_000_000_000)
    result = exchange(one, other, syn=syn)
    assert result.kind == form
    first, second = result.messages[:2]
    assert isinstance(first, GossipDigestSyn)
    assert isinstance(second, GossipDigestAck)
    expected_bytes = 4_000 if form == "compact" else 300_000
    assert expected_bytes * 0.7 < result.sizes[0] < expected_bytes * 1.2
    assert 10 * result.sizes[0] < limits.MESSAGE_BYTES_MAX
