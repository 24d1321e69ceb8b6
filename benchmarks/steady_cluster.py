"""Two views of a steady cluster just before they meet, for benchmarks that need realistic states of any size.

Where time allows, the states come from whole cores (``benchmarks.virtual_cluster``); for 1,000 endpoints and more from
the model here: every node has its phase, ticks, exchanges with one random live peer per interval, and both then hold
the greater heartbeat of every endpoint. That is all that a steady cluster does with heartbeats; a test holds the lags
of the model against those of whole cores at 100 nodes. Memory: 4 * nodes**2 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from gossiper.core.engine import CAPABILITIES, EngineConfig, GossipEngine
from gossiper.core.io import RequestReceived, RoundDue
from gossiper.core.messages import EndpointState, GossipDigestAck2, Sender, VersionedValue
from gossiper.core.table import LivenessCode
from gossiper.core.versions import Now

WALL = 1_700_000_000.0
HOUR_SECONDS = 3600
CLUSTER = "Test Cluster"
#: Rounds until the lags of a cluster no longer change: news has reached everybody several times over.
ROUNDS = 40


@dataclass(frozen=True, slots=True)
class Lags:
    """What two nodes know at ``wall``: heartbeats (shape (2, nodes)) and when each endpoint began, wall seconds."""

    wall: float
    who: tuple[int, int]
    heartbeats: NDArray[np.int64]
    generations: NDArray[np.int64]


def lags(nodes: int, *, seed: int = 1, loss: float = 0.0, rounds: int = ROUNDS) -> Lags:
    """Run the model for ``rounds`` intervals of 1 s; the two nodes are those whose exchange would be the next."""
    return next(meetings(nodes, seed=seed, loss=loss, rounds=rounds))


def meetings(nodes: int, *, seed: int = 1, loss: float = 0.0, rounds: int = ROUNDS) -> Iterator[Lags]:
    """The same, for one exchange after the other of the round that follows; each is as in ``lags``."""
    rng = np.random.default_rng(seed)
    began = WALL - rng.uniform(HOUR_SECONDS, 30 * 86_400, nodes)
    generations = np.floor(began).astype(np.int64)
    phases = rng.uniform(0.0, 1.0, nodes)
    order = np.argsort(phases)
    base = (WALL - rounds - generations).astype(np.int64)
    # Heartbeats relative to ``base``; -1: not heard of since the model began.
    known = np.full((nodes, nodes), -1, dtype=np.int32)
    for number in range(rounds + 1):
        for node in order.tolist():
            wall = WALL - rounds + number + phases[node]
            known[node, node] = int(wall - generations[node]) - base[node]
            peer = int(rng.integers(nodes - 1))
            peer += peer >= node
            if number == rounds:
                rows = known[[node, peer]].astype(np.int64) + base
                yield Lags(float(wall), (node, peer), rows, generations)
            if rng.random() >= loss:
                np.maximum(known[node], known[peer], out=known[node])
                known[peer] = known[node]


def endpoint(number: int) -> str:
    """The endpoint of a node."""
    return f"10.{number // 62_500}.{number // 250 % 250}.{number % 250 + 1}:7000"


def values(number: int) -> dict[str, str]:
    """What a node publishes: as Cassandra does, about 200 bytes."""
    return {
        "STATUS": "NORMAL",
        "HOST_ID": f"8b244cb0-135d-4745-b498-{number:012}",
        "DC": "datacenter1",
        "RACK": f"rack{number % 3 + 1}",
        "RELEASE_VERSION": "0.1.0",
        "SCHEMA": "59adb24e-f3cd-3e02-97f0-5b395827453f",
        "LOAD": f"{number * 7919 % 10**9}.0",
        "CAPABILITIES": CAPABILITIES,
    }


def pair(nodes: int, *, seed: int = 1, loss: float = 0.0) -> tuple[GossipEngine, GossipEngine, Now]:
    """Two engines of such a cluster that know the same states and each the heartbeats of the model."""
    return engines(lags(nodes, seed=seed, loss=loss), seed=seed)


def engines(found: Lags, *, seed: int = 1) -> tuple[GossipEngine, GossipEngine, Now]:
    """Two engines that know the same states and each the heartbeats that were found."""
    nodes = len(found.generations)
    now = Now(10.0 * HOUR_SECONDS, found.wall)
    both = []
    for side, who in enumerate(found.who):
        generation = int(found.generations[who])
        began = Now(now.monotonic - (now.wall - generation), float(generation))
        engine = GossipEngine(
            EngineConfig(cluster_name=CLUSTER, endpoint=endpoint(who), interval_ms=1000),
            generation=generation,
            values=values(who),
            rng=Random(seed),
            now=began,
        )
        states = [
            _state(number, int(found.generations[number]), int(found.heartbeats[side, number]))
            for number in range(nodes)
            if number != who
        ]
        # A second ago: the round that follows gives the node's own heartbeat of now.
        sender = Sender(CLUSTER, 1, "10.250.0.1:7000", 1)
        engine.handle(RequestReceived(GossipDigestAck2(sender, tuple(states))), Now(now.monotonic - 1, now.wall - 1))
        table = engine.state.table
        table.liveness[table.rows()] = LivenessCode.ALIVE
        # Else every message would make 32 ECHOs, and their cost would count as that of the exchange.
        table.echo_wanted[:] = False
        table.echo_generation[:] = 0
        engine.handle(RoundDue(), now)
        table.heartbeat[engine.state.local_row] = found.heartbeats[side, who]
        both.append(engine)
    return both[0], both[1], now


def _state(number: int, generation: int, heartbeat: int) -> EndpointState:
    version = 16
    texts = tuple((key, VersionedValue(version, text)) for key, text in sorted(values(number).items()))
    return EndpointState(endpoint(number), generation, 1000, max(1, heartbeat), 0, version, texts)


def entropy_bits(column: NDArray[np.int64]) -> float:
    """Shannon entropy of a column, bits per entry, as if entries were independent."""
    _, counts = np.unique(column, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
