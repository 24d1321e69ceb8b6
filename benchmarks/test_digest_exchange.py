"""One whole steady exchange in the plain form: how many bytes, and how much CPU, at 10, 100 and 1,000 endpoints.

Sizes go into ``extra_info``: protobuf bytes of Syn, Ack and Ack2, without gRPC and HTTP/2 framing. The state is that of
a cluster whose rounds were really run by engines against each other: each side knows half of the heartbeats better.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from gossiper.core.engine import EngineConfig, GossipEngine
from gossiper.core.io import Answer, ReplyReceived, RequestReceived, RoundDue, Send
from gossiper.core.messages import (
    EndpointState,
    GossipDigestAck,
    GossipDigestAck2,
    GossipDigestSyn,
    Sender,
    VersionedValue,
)
from gossiper.core.versions import Now
from gossiper.wire import codec

WALL = 1_700_000_000.0
HOUR_SECONDS = 3600


def engine(endpoint: str) -> GossipEngine:
    """A node that began an hour ago."""
    return GossipEngine(
        EngineConfig(cluster_name="Test Cluster", endpoint=endpoint, interval_ms=1000),
        generation=int(WALL) - HOUR_SECONDS,
        values={"STATUS": "NORMAL", "HOST_ID": f"8b244cb0-135d-4745-b498-{endpoint:>012}"},
        rng=Random(1),
        now=Now(0.0, WALL - HOUR_SECONDS),
    )


def pair(size: int) -> tuple[GossipEngine, GossipEngine, Now]:
    """Two nodes of a steady cluster of ``size``: same states, each knows half of the heartbeats newer by some ticks."""
    one, other = engine("10.0.0.1:7000"), engine("10.0.0.2:7000")
    now = Now(float(HOUR_SECONDS), WALL)
    rng = Random(size)
    for node in (one, other):
        node.handle(RoundDue(), now)
    states = []
    for number in range(2, size):
        texts = dict.fromkeys(("DC", "LOAD", "RACK", "SCHEMA"), "x" * 12)
        texts |= {"HOST_ID": f"8b244cb0-135d-4745-b498-{number:012}", "STATUS": "NORMAL"}
        values = tuple((key, VersionedValue(16, text)) for key, text in texts.items())
        endpoint = f"10.0.{number // 250}.{number % 250 + 3}:7000"
        generation = int(WALL) - rng.randrange(HOUR_SECONDS, 30 * 86_400)
        ticks = int(WALL) - generation
        states.append(EndpointState(endpoint, generation, 1000, ticks - rng.randrange(8), 0, 16, values))
    sender = Sender("Test Cluster", 1, "10.0.0.9:7000", 1)
    for node in (one, other):
        known = [s if rng.random() < 0.5 else _older(s, rng.randrange(1, 6)) for s in states]
        node.handle(RequestReceived(GossipDigestAck2(sender, tuple(known))), now)
    _exchange(one, other, now)
    assert len(one.state.table) == len(other.state.table) == size
    # The two know each other now; make every second heartbeat differ again.
    for node in (one, other):
        rows = node.state.table.rows()
        chosen = rows[[rng.random() < 0.5 for _ in rows]]
        node.state.table.heartbeat[chosen] -= 3
    return one, other, now


def _older(state: EndpointState, ticks: int) -> EndpointState:
    return EndpointState(
        state.endpoint, state.generation, 1000, state.heartbeat - ticks, 0, state.states_version, state.values
    )


def _exchange(one: GossipEngine, other: GossipEngine, now: Now) -> dict[str, int]:
    """A whole exchange through real bytes; the bytes of each message."""
    table = one.state.table
    syn = GossipDigestSyn(
        Sender("Test Cluster", 1, one.config.endpoint, one.generation), round(now.wall * 1000), table.digests()
    )
    syn_bytes = codec.encode(syn)
    effects = other.handle(RequestReceived(codec.decode_syn(syn_bytes)), now)
    answer = next(effect.reply for effect in effects if isinstance(effect, Answer))
    ack_bytes = codec.encode(answer)
    ack = codec.decode_ack(ack_bytes)
    effects = one.handle(ReplyReceived(other.config.endpoint, syn, ack), now)
    ack2_bytes = 0
    for effect in effects:
        if isinstance(effect, Send) and isinstance(effect.request, GossipDigestAck2):
            data = codec.encode(effect.request)
            ack2_bytes += len(data)
            other.handle(RequestReceived(codec.decode_ack2(data)), now)
    return {"syn_bytes": len(syn_bytes), "ack_bytes": len(ack_bytes), "ack2_bytes": ack2_bytes}


@pytest.mark.parametrize("size", [10, 100, 1000])
def test_whole_exchange(benchmark: Any, size: int) -> None:
    one, other, now = pair(size)
    heartbeats = [node.state.table.heartbeat.copy() for node in (one, other)]

    def restore() -> None:
        for node, column in zip((one, other), heartbeats, strict=True):
            node.state.table.heartbeat[:] = column

    sizes: dict[str, int] = {}

    def once() -> None:
        sizes.update(_exchange(one, other, now))

    benchmark.pedantic(once, setup=restore, rounds=100 if size < 1000 else 40, warmup_rounds=3)
    sizes["total_bytes"] = sum(sizes.values())
    benchmark.extra_info.update({"endpoints": size, "form": "plain", **sizes})
    assert sizes["ack2_bytes"] == 0, "nothing was requested: one round trip"


@pytest.mark.parametrize("leg", ["syn", "ack"])
def test_encode_and_decode_at_1000(benchmark: Any, leg: str) -> None:
    one, other, now = pair(1000)
    sender = Sender("Test Cluster", 1, one.config.endpoint, one.generation)
    syn = GossipDigestSyn(sender, round(now.wall * 1000), one.state.table.digests())
    if leg == "syn":
        data = codec.encode(syn)
        benchmark(lambda: codec.decode_syn(codec.encode(syn)))
    else:
        effects = other.handle(RequestReceived(syn), now)
        ack = next(effect.reply for effect in effects if isinstance(effect, Answer))
        assert isinstance(ack, GossipDigestAck)
        data = codec.encode(ack)
        benchmark(lambda: codec.decode_ack(codec.encode(ack)))
    benchmark.extra_info.update({"endpoints": 1000, "protobuf_bytes": len(data)})
