"""Exchanges while a cluster changes: joins, a rolling restart, state changes. Whole cores in virtual time.

Every sampled exchange is weighed twice between the same two states: what was really sent, and what the plain form would
have sent there. So the ratio does not depend on two runs being alike.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from typing import Any, Final

from benchmarks.exchange_parts import compressed_bytes
from benchmarks.virtual_cluster import Exchange, Member, VirtualCluster
from gossiper.core.digest import endpoint_states, examine, heartbeat_digests, requested_states
from gossiper.core.local import Publish
from gossiper.core.messages import DigestColumns, GossipDigestAck, GossipDigestAck2, GossipDigestSyn, Sender
from gossiper.wire import codec

CASES: Final = ("joins", "rolling-restart", "state-change")
#: Virtual seconds before anything changes, and of the measured part.
SETTLE_SECONDS: Final = 40.0
MEASURED_SECONDS: Final = 90.0
#: Joins come within so much of it, a tenth of the cluster; restarts one after the other.
JOINS_TIME_SHARE: Final = 2 / 3
JOINS_SHARE: Final = 0.1
RESTART_EVERY_SECONDS: Final = 4.0
CHANGE_EVERY_SECONDS: Final = 60.0
#: Every so many exchanges of large clusters the plain form is weighed, too.
_SAMPLED_OF: Final = {100: 1, 300: 4}
_SAMPLED_OF_LARGE: Final = 20


class Scales:
    """Weighs exchanges."""

    def __init__(self, cluster: VirtualCluster, sampled_of: int) -> None:
        self.kinds: Counter[str] = Counter()
        self.all_bytes: list[int] = []
        self.sampled: list[Exchange] = []
        self._cluster = cluster
        self._sampled_of = sampled_of
        self._seen = 0
        cluster.on_syn = self._syn
        cluster.on_exchange = self._done

    def _syn(self, caller: Member, target: Member, exchange: Exchange) -> None:
        self._seen += 1
        if self._seen % self._sampled_of == 0:
            exchange.plain = plain_messages(self._cluster, caller, target, exchange.digests)

    def _done(self, exchange: Exchange) -> None:
        self.kinds[exchange.kind] += 1
        self.all_bytes.append(_bytes(exchange.messages))
        if exchange.plain:
            self.sampled.append(exchange)


def plain_messages(
    cluster: VirtualCluster, caller: Member, target: Member, known: DigestColumns | None = None
) -> list[tuple[str, bytes]]:
    """What the plain form would send between two nodes as they are; nothing changes by it.

    ``known``: the digests of the caller when it began; a newcomer asks several at once, and learns all from the first.
    """
    mine, theirs = caller.engine.state, target.engine.state
    now = cluster.now(target)
    as_of_ms = round(now.wall * 1000)
    syn = GossipDigestSyn(_sender(caller), as_of_ms, mine.table.digests() if known is None else known)
    found = examine(theirs, syn.digests, now)
    states, deferred = endpoint_states(theirs, found.send_states)
    heartbeats = heartbeat_digests(theirs, found.send_heartbeats)
    ack = GossipDigestAck(_sender(target), as_of_ms, found.requests, heartbeats, states, deferred)
    messages = [("syn", codec.encode(syn)), ("ack", codec.encode(ack))]
    answers, _ = endpoint_states(mine, requested_states(mine, found.requests))
    if answers:
        messages.append(("ack2", codec.encode(GossipDigestAck2(_sender(caller), answers))))
    return messages


def _sender(member: Member) -> Sender:
    config = member.engine.config
    return Sender(config.cluster_name, 1, config.endpoint, member.engine.generation)


def _bytes(messages: list[tuple[str, bytes]]) -> int:
    return sum(len(data) for _, data in messages)


def _begin(case: str, cluster: VirtualCluster, nodes: int, seconds: float) -> None:
    """Schedule what the case is about."""
    rng = cluster.loop.stream(case)
    start = cluster.loop.now
    if case == "joins":
        for number in range(nodes, nodes + max(1, round(nodes * JOINS_SHARE))):
            cluster.loop.at(start + rng.uniform(0.0, JOINS_TIME_SHARE * seconds), cluster.join, number)
    elif case == "rolling-restart":
        order = rng.sample(range(nodes), min(nodes, int(seconds / RESTART_EVERY_SECONDS)))
        for place, number in enumerate(order):
            cluster.loop.at(start + place * RESTART_EVERY_SECONDS, cluster.restart, number)
    else:
        for member in list(cluster.members.values()):
            cluster.loop.at(start + rng.uniform(0.0, CHANGE_EVERY_SECONDS), _change, cluster, member, 0)


def _change(cluster: VirtualCluster, member: Member, ticket: int) -> None:
    if member.alive:
        cluster.do(member, Publish({"load": f"{member.number * 7919 + ticket}"}, ticket))
        cluster.loop.after(CHANGE_EVERY_SECONDS, _change, cluster, member, ticket + 1)


def measure(case: str, endpoints: int, seconds: float = MEASURED_SECONDS) -> dict[str, Any]:
    """Run one case at one size."""
    began = time.process_time()
    cluster = VirtualCluster(endpoints)
    cluster.loop.run_until(SETTLE_SECONDS if endpoints <= 300 else SETTLE_SECONDS / 4)
    scales = Scales(cluster, _SAMPLED_OF.get(endpoints, 1 if endpoints < 100 else _SAMPLED_OF_LARGE))
    _begin(case, cluster, endpoints, seconds)
    cluster.loop.run_until(cluster.loop.now + seconds)
    exchanges = sum(scales.kinds.values())
    sent = [_bytes(one.messages) for one in scales.sampled]
    plain = [_bytes(one.plain) for one in scales.sampled]
    more = [(a - b, a / b, one.kind) for a, b, one in zip(sent, plain, scales.sampled, strict=True) if a > b]
    steady = [(a, b) for a, b, one in zip(sent, plain, scales.sampled, strict=True) if one.kind != "plain"]
    return {
        "endpoints": endpoints,
        "case": case,
        "virtual_seconds": seconds,
        "exchanges": exchanges,
        "weighed_in_both_forms": len(sent),
        "kinds": {kind: round(count / exchanges, 4) for kind, count in sorted(scales.kinds.items())},
        "forms": {
            "compact": _summary(sent, [one.messages for one in scales.sampled]) | {"max_of_all": max(scales.all_bytes)},
            "plain": _summary(plain, [one.plain for one in scales.sampled]),
        },
        "mean_ratio": round(sum(sent) / sum(plain), 4),
        "mean_bytes_without_plain_exchanges": {
            "compact": round(statistics.fmean(a for a, _ in steady), 1),
            "plain": round(statistics.fmean(b for _, b in steady), 1),
        },
        "exceeding": {
            "share": round(len(more) / len(sent), 4),
            "kinds": dict(Counter(kind for _, _, kind in more)),
            "bytes_max": max((extra for extra, _, _ in more), default=0),
            "ratio_max": round(max((ratio for _, ratio, _ in more), default=1.0), 3),
        },
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def _summary(totals: list[int], messages: list[list[tuple[str, bytes]]]) -> dict[str, float]:
    ordered = sorted(totals)
    packed = [sum(compressed_bytes(data) for _, data in one) for one in messages[:: max(1, len(messages) // 500)]]
    return {
        "mean": round(statistics.fmean(ordered), 1),
        "median": ordered[len(ordered) // 2],
        "p99": ordered[int(0.99 * (len(ordered) - 1))],
        "max": ordered[-1],
        "compressed_mean": round(statistics.fmean(packed), 1),
    }
