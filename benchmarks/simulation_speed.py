"""How many messages per second the simulation delivers on one core, through the real codec, and where the time goes.

Usage: ``python -m benchmarks.simulation_speed [--nodes N] [--duration SECONDS] [--faults] [--profile] [--json]``. The
time is CPU time of this process. Without ``--faults`` a steady cluster with a few publishes; with it, one seed of the
swarm.
``--profile`` runs once more under cProfile, which more than doubles the time, and groups it by part.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gossiper.simulation.cluster import Cluster
from gossiper.simulation.faults import FaultInjector
from gossiper.simulation.loop import stream
from gossiper.simulation.operations import publish
from gossiper.simulation.options import SimulationOptions, Swarm, draw, quiet

SEED = 1
#: Until then a cluster of this size has met: every pair exchanges an ECHO and whole states once.
SETTLE_SECONDS = 30.0
#: Parts of the program by a piece of their path; the rest is "other".
PARTS = {
    "gossiper/simulation/checkers": "checkers",
    "gossiper/simulation/truth": "checkers",
    "gossiper/simulation/": "simulation",
    "gossiper/wire/": "codec",
    "gossiper/core/": "core",
}


def steady(nodes: int) -> Swarm:
    """No faults, and clocks that agree within 2 s."""
    return replace(quiet(nodes), wrong_clocks=0.0)


def build(nodes: int, duration_seconds: float, faults: bool) -> Cluster:
    """A cluster that has settled; the measured part follows."""
    options = SimulationOptions(seed=SEED, nodes=nodes, duration_seconds=SETTLE_SECONDS + duration_seconds)
    cluster = Cluster(options, draw(options, stream(SEED, "swarm")) if faults else steady(nodes))
    cluster.loop.run_until(SETTLE_SECONDS)
    if faults:
        FaultInjector(cluster)
        return cluster
    rng = cluster.loop.stream("publish")
    for _ in range(int(duration_seconds)):
        machine = cluster.machines[rng.randrange(nodes)]
        cluster.loop.at(SETTLE_SECONDS + rng.uniform(0.0, duration_seconds), publish, cluster, machine, rng)
    return cluster


def measure(nodes: int, duration_seconds: float, faults: bool) -> dict[str, Any]:
    """Messages and CPU time of the part after settling."""
    cluster = build(nodes, duration_seconds, faults)
    before_messages, before_bytes = cluster.network.messages, cluster.network.bytes
    began = time.process_time()
    cluster.loop.run_until(SETTLE_SECONDS + duration_seconds)
    cpu_seconds = time.process_time() - began
    messages = cluster.network.messages - before_messages
    return {
        "nodes": nodes,
        "virtual_seconds": duration_seconds,
        "faults": faults,
        "messages": messages,
        "bytes_per_message": round((cluster.network.bytes - before_bytes) / messages),
        "cpu_seconds": round(cpu_seconds, 3),
        "messages_per_second": round(messages / cpu_seconds),
        "virtual_seconds_per_second": round(duration_seconds / cpu_seconds, 1),
    }


def profile(nodes: int, duration_seconds: float, faults: bool) -> dict[str, float]:
    """Share of each part: the time of a function of numpy, protobuf or the interpreter belongs to who called it."""
    cluster = build(nodes, duration_seconds, faults)
    profiler = cProfile.Profile()
    profiler.runcall(cluster.loop.run_until, SETTLE_SECONDS + duration_seconds)
    shares: dict[str, float] = {}
    entries: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]  # not in the stubs
    for (path, _, _), (_, _, own_seconds, _, callers) in entries.items():
        part = part_of(path)
        if part != "other" or not callers:
            shares[part] = shares.get(part, 0.0) + own_seconds
            continue
        for (caller_path, _, _), (_, _, seconds, _) in callers.items():
            name = part_of(caller_path)
            shares[name] = shares.get(name, 0.0) + seconds
    total = sum(shares.values())
    return {name: round(seconds / total, 3) for name, seconds in sorted(shares.items(), key=lambda item: -item[1])}


def part_of(path: str) -> str:
    """The part of the program to which a file belongs."""
    posix = Path(path).as_posix()
    return next((part for piece, part in PARTS.items() if piece in posix), "other")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--duration", type=float, default=60.0, help="virtual seconds after the cluster has settled")
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.nodes, options.duration, options.faults)
    if options.profile:
        result["shares"] = profile(options.nodes, options.duration, options.faults)
    if options.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:<28}{value}")


if __name__ == "__main__":
    main()
