"""Nodes that speak compact digests and nodes that do not, in one cluster; and what metrics say of it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from gossiper.config import GossipConfig
from gossiper.core.messages import (
    CompactAnswer,
    CompactDigests,
    DigestColumns,
    GossipDigestAck,
    GossipDigestSyn,
    Reply,
    Request,
    Sender,
)
from gossiper.errors import ConfigError, PeerProtocolError
from gossiper.metrics import GossipMetrics
from gossiper.node import Gossiper
from gossiper.simulation import SimulationOptions, run_seed
from gossiper.simulation.loop import stream
from gossiper.simulation.options import draw
from gossiper.testing import MemoryCluster, RunVirtual
from gossiper.transport.inbound import Inbound
from gossiper.wire import codec

pytest_plugins = ["gossiper.testing.plugin"]


def messages(member: Gossiper | GossipMetrics, kind: str, form: str, direction: str) -> float:
    metrics = member if isinstance(member, GossipMetrics) else member.metrics
    return metrics.value("gossiper_messages_total", kind=kind, form=form, direction=direction)


def test_a_cluster_of_both_kinds(run_virtual: RunVirtual) -> None:
    async def scenario() -> None:
        async with MemoryCluster() as cluster:
            both = [await cluster.start_node() for _ in range(2)]
            plain = await cluster.start_node(digest_form="plain")
            await cluster.converged()
            await asyncio.sleep(40.0)  # of virtual time, until the first cut after all of them began
            before = [messages(member, "syn", "compact", "sent") for member in both]
            await both[0].publish({"a": "1"})
            await plain.publish({"b": "2"})
            await asyncio.sleep(30.0)
            for member in (*both, plain):
                assert [view.get("a") for view in member.members() if view.get("a")] == ["1"]
                assert [view.get("b") for view in member.members() if view.get("b")] == ["2"]
                assert all(view.alive for view in member.members())
            capabilities = {view.endpoint: view.get("CAPABILITIES") for view in both[0].members()}
            assert capabilities[plain.endpoint] == "plain"
            assert "compact" in (capabilities[both[0].endpoint] or "")
            for member, count in zip(both, before, strict=True):
                assert messages(member, "syn", "compact", "sent") > count
                assert messages(member, "ack", "compact", "received") > 0
                assert messages(member, "ack", "plain", "received") > 0
                assert member.metrics.value("gossiper_exchanges_total", kind="compact") > 0
                assert member.metrics.value("gossiper_exchanges_total", reason="compact") == 0
            for kind in ("syn", "ack"):
                for direction in ("sent", "received"):
                    assert messages(plain, kind, "compact", direction) == 0
                    assert messages(plain, kind, "plain", direction) > 0
            exchanges = [line for line in plain.metrics.snapshot() if line[0].startswith("gossiper_exchanges_total")]
            assert [name for name, _ in exchanges] == ['gossiper_exchanges_total{kind="plain"}']

    run_virtual(scenario())


def test_the_setting_is_checked() -> None:
    with pytest.raises(ConfigError, match="digest_form: must be compact or plain, is 'short'"):
        GossipConfig(cluster_name="c", listen="127.0.0.1:0", digest_form="short")


def test_messages_are_counted_by_form() -> None:
    nothing, no_symbols = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint8)
    sender, empty = Sender("c", 1, "10.0.0.1:7000", 5), DigestColumns.empty()
    level = np.full(3, 19, dtype=np.uint8)
    columns = CompactDigests(0, 3, bytes(16), 0, level, nothing, 0, 12, nothing, nothing, 9)
    answer = CompactAnswer(no_symbols, nothing, nothing, nothing, nothing)

    def handler(request: Request) -> Reply:
        compact = answer if isinstance(request, GossipDigestSyn) and request.compact is not None else None
        return GossipDigestAck(sender, 1, empty, empty, (), 0, compact)

    metrics = GossipMetrics()
    inbound = Inbound(metrics, handler, lambda: 0.0)
    sizes = {}
    for form, syn in (
        ("compact", GossipDigestSyn(sender, 1000, empty, columns)),
        ("plain", GossipDigestSyn(sender, 1000, empty)),
    ):
        data = codec.encode(syn)
        sizes[form] = len(data)
        inbound.answer("syn", data, "peer")
        assert messages(metrics, "syn", form, "received") == 1
        assert messages(metrics, "ack", form, "sent") == 1
        labels = {"kind": "syn", "form": form, "direction": "received"}
        assert metrics.value("gossiper_message_bytes_total", **labels) == sizes[form]
    with pytest.raises(PeerProtocolError):
        inbound.answer("syn", b"\xff" * 7, "peer")
    assert messages(metrics, "syn", "unknown", "received") == 1
    labels = {"kind": "syn", "form": "unknown", "direction": "received"}
    assert metrics.value("gossiper_message_bytes_total", **labels) == 7


def test_simulated_clusters_are_of_one_kind_and_of_both() -> None:
    """The ordinary run of seeds has both; here one whose processes meet peers that do not understand them."""
    swarms = {seed: draw(SimulationOptions(seed=seed, nodes=8), stream(seed, "swarm")) for seed in range(20)}
    mixed = [seed for seed, swarm in swarms.items() if swarm.plain_only]
    assert 3 < len(mixed) < 17
    totals: dict[str, int] = {}
    for seed in mixed[:3]:
        result = run_seed(SimulationOptions(seed=seed, nodes=8, duration_seconds=60.0))
        assert result.violation is None
        assert result.agree_rounds is not None
        for name, count in result.counters.items():
            totals[name] = totals.get(name, 0) + count
    assert totals["gossiper_exchanges_total compact"] > 50
    assert totals["gossiper_exchanges_total plain"] > 50
