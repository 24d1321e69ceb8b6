"""What two nodes of a steady, simulated cluster know just before one gossips with the other, as one JSON file.

Usage: ``python -m benchmarks.cluster_states --endpoints N [--model whole|rounds] [--compare] [--out FILE]``.

Two ways lead to the same kind of state:

* ``whole``: ``gossiper.simulation`` with everything (shadow rounds, ECHO, codec, network). Its join phase grows with
  the square: 6 s of CPU at 100 nodes, 60 s at 300, more than 10 minutes at 1,000. Used up to 300 endpoints.
* ``rounds``: in a steady cluster nothing changes but heartbeats, and an exchange makes both views their maximum. So
  only that is done: the same tick, the same choice of targets (``core.peers.choose_targets``), random phases, views as
  one matrix. Seconds at 1,000 nodes. ``--compare`` prints how far behind their owners the heartbeats of both ways are.

Both then get an age: every node is given a start up to 30 days earlier (its generation goes back, its heartbeat and the
version of its LOAD grow by as many ticks), since numbers of a cluster of one minute would be smaller than real ones.
The lags between views stay those of the simulation. Wall clocks differ by some tens of milliseconds, as with NTP.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import uuid
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossiper.core.engine import CAPABILITIES, PROTOCOL_VERSION
from gossiper.core.peers import PeerPolicy, Peers, choose_targets
from gossiper.core.table import EndpointTable
from gossiper.core.versions import version_of
from gossiper.simulation.cluster import Cluster
from gossiper.simulation.machine import EPOCH_SECONDS, Machine, MachineClock
from gossiper.simulation.options import SimulationOptions, quiet

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "cluster_states"
FORMAT = 1
SEED = 1
WHOLE_ENDPOINTS_MAX = 300
#: Until then a whole cluster of this size has met.
SETTLE_SECONDS = 20.0
#: LOAD is published in this span, and known to all long before the state is taken.
PUBLISH_SECONDS = (20.0, 40.0)
TAKEN_SECONDS = 75.0
#: Rounds of the model until lags no longer depend on its start, in which everybody knows everything.
MODEL_SECONDS = 60
SEEDS = 2
AGE_SECONDS_MIN, AGE_SECONDS_MAX = 3_600, 30 * 86_400
CLOCK_ERROR_SECONDS = 0.05
INTERVAL_MS = 1000

Json = dict[str, Any]
Matrix = NDArray[np.int64]


def cluster_state(endpoints: int, *, model: str | None = None, seed: int = SEED) -> Json:
    """The views of two nodes; the format is described in ``docs/benchmarks.md``."""
    chosen = model or ("whole" if endpoints <= WHOLE_ENDPOINTS_MAX else "rounds")
    a, b, as_of = _whole(endpoints, seed) if chosen == "whole" else _rounds(endpoints, seed)
    rng = Random(f"{seed}/age")
    names = sorted(row["endpoint"] for row in a)
    ages = {name: rng.randrange(AGE_SECONDS_MIN, AGE_SECONDS_MAX) for name in names}
    for view in (a, b):
        view.sort(key=lambda row: str(row["endpoint"]))
        for row in view:
            _age(row, ages[row["endpoint"]])
    return {
        "format": FORMAT,
        "model": chosen,
        "seed": seed,
        "cluster_name": "simulation",
        "endpoints": endpoints,
        "as_of_ms": round(as_of * 1000),
        "a": {"endpoint": a.own, "view": list(a)},
        "b": {"endpoint": b.own, "view": list(b)},
    }


class View(list[Json]):
    """Rows of one node's view, and whose it is."""

    def __init__(self, own: str, rows: list[Json]) -> None:
        super().__init__(rows)
        self.own = own


def _age(row: Json, age_seconds: int) -> None:
    """Let the endpoint of a row have begun ``age_seconds`` earlier; what it published at its start, it did then."""
    ticks = age_seconds * 1000 // INTERVAL_MS
    row["generation"] -= age_seconds
    row["heartbeat"] += ticks
    for value in row["values"]:
        if value["key"] == "LOAD":
            value["version"] += version_of(ticks, 0)
    row["states_version"] = max(value["version"] for value in row["values"])


def _row(endpoint: str, generation: int, heartbeat: int, values: list[tuple[str, int, str]]) -> Json:
    return {
        "endpoint": endpoint,
        "generation": generation,
        "interval_ms": INTERVAL_MS,
        "heartbeat": heartbeat,
        "states_version": 0,
        "values": [{"key": key, "version": version, "value": text} for key, version, text in values],
    }


def _load_text(rng: Random) -> str:
    return f"{rng.uniform(1e9, 9e11):.1f}"


# ------------------------------------------------------------------------------------------------ whole simulation


def settled(endpoints: int, seed: int = SEED) -> Cluster:
    """A whole simulated cluster in which everybody knows everybody and has published LOAD."""
    cluster = Cluster(SimulationOptions(seed=seed, nodes=endpoints, duration_seconds=TAKEN_SECONDS), quiet(endpoints))
    rng = cluster.loop.stream("load")
    for machine in cluster.machines:
        # A seed of the swarm has clocks that are off by up to an hour; here NTP keeps them.
        machine.clock = MachineClock(rng.uniform(0.0, 1e6), rng.gauss(0.0, CLOCK_ERROR_SECONDS))
    cluster.loop.run_until(SETTLE_SECONDS)
    for machine in cluster.machines:
        cluster.loop.at(rng.uniform(*PUBLISH_SECONDS), _publish_load, machine, _load_text(rng))
    cluster.loop.run_until(TAKEN_SECONDS)
    return cluster


def _publish_load(machine: Machine, text: str) -> None:
    if machine.process is not None:
        machine.process.publish({"LOAD": text})


def _table(machine: Machine) -> EndpointTable:
    if machine.process is None:
        raise RuntimeError(f"{machine.endpoint} does not run")
    return machine.process.engine.state.table


def _whole(endpoints: int, seed: int) -> tuple[View, View, float]:
    cluster = settled(endpoints, seed)
    rng = Random(f"{seed}/pair")
    a, b = rng.sample(cluster.machines, 2)
    table = _table(a)
    own = table.row(a.endpoint)
    before = int(table.heartbeat[own])
    # Just before the next round of a: step until it comes, keep what was known one step earlier.
    step_seconds, seconds = 0.002, TAKEN_SECONDS
    views = _take(cluster, a), _take(cluster, b)
    while int(table.heartbeat[own]) == before:
        views = _take(cluster, a), _take(cluster, b)
        seconds += step_seconds
        cluster.loop.run_until(seconds)
    for row in views[0]:
        row["heartbeat"] += row["endpoint"] == a.endpoint  # its round begins with a tick
    if len(views[0]) != endpoints or len(views[1]) != endpoints:
        raise RuntimeError(f"the simulated cluster has not met after {TAKEN_SECONDS} s")
    return views[0], views[1], a.clock.now(seconds).wall


def _take(cluster: Cluster, machine: Machine) -> View:
    """One node's view."""
    table = _table(machine)
    rows = []
    for other in cluster.machines:
        row = table.row(other.endpoint)
        if row is None:
            continue
        values = [(str(key), value.version, value.value) for key, value in table.states[row].items()]
        rows.append(_row(other.endpoint, int(table.generation[row]), int(table.heartbeat[row]), values))
    return View(machine.endpoint, rows)


# -------------------------------------------------------------------------------------------------- model of rounds


def steady_views(endpoints: int, seconds: int, rng: Random) -> tuple[Matrix, NDArray[np.float64]]:
    """Heartbeats that each node (row) knows of each endpoint (column) after some rounds; and the phases in seconds.

    Everybody begins within two seconds, alive for all; node 0 and 1 are the seeds. Between the round of one node and
    that of the next no time passes for messages: they take a millisecond, a round is a second.
    """
    began = np.array([rng.uniform(0.0, 2.0) for _ in range(endpoints)])
    views: Matrix = np.ones((endpoints, endpoints), dtype=np.int64)
    everybody = np.arange(endpoints, dtype=np.intp)
    nobody, zone = np.zeros(0, dtype=np.intp), np.zeros(endpoints, dtype=np.int64)
    policy = PeerPolicy()
    order = np.argsort(began % 1.0, kind="stable")
    for second in range(3, seconds + 3):
        for node in order.tolist():
            views[node, node] = second - int(began[node])
            peers = Peers(np.delete(everybody, node), nobody, zone, zone, node)
            seeds = [seed for seed in range(min(SEEDS, endpoints - 1)) if seed != node]
            for target in choose_targets(rng, peers, policy, seeds=seeds):
                newest = np.maximum(views[node], views[int(target)])
                views[node] = newest
                views[int(target)] = newest
    return views, began


def _rounds(endpoints: int, seed: int) -> tuple[View, View, float]:
    rng = Random(f"{seed}/rounds")
    views, began = steady_views(endpoints, MODEL_SECONDS, rng)
    # The node whose phase comes first begins the next round, with a tick of its own.
    a = int(np.argmin(began % 1.0))
    b = rng.choice([node for node in range(endpoints) if node != a])
    views[a, a] += 1
    names = [f"10.{node >> 8 & 255}.{node & 255}.{node % 250 + 1}:7000" for node in range(endpoints)]
    values = []
    for node in range(endpoints):
        published = version_of(int(rng.uniform(*PUBLISH_SECONDS)), 0)
        host_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        fixed = {
            "DC": "dc1",
            "RACK": f"rack{node % 3}",
            "RELEASE_VERSION": "simulated",
            "NET_VERSION": str(PROTOCOL_VERSION),
            "CAPABILITIES": CAPABILITIES,
            "HOST_ID": host_id,
            "INTERNAL_ADDRESS_AND_PORT": names[node],
            "STATUS": "NORMAL",
        }
        start = version_of(1, 0)
        values.append([*((key, start, text) for key, text in fixed.items()), ("LOAD", published, _load_text(rng))])
    errors = [rng.gauss(0.0, CLOCK_ERROR_SECONDS) for _ in range(endpoints)]
    generations = [math.floor(EPOCH_SECONDS + began[node] + errors[node]) for node in range(endpoints)]
    both = []
    for node in (a, b):
        rows = [
            _row(names[other], generations[other], int(views[node, other]), values[other]) for other in range(endpoints)
        ]
        both.append(View(names[node], rows))
    as_of = EPOCH_SECONDS + MODEL_SECONDS + 3 + float(began[a] % 1.0) + errors[a]
    return both[0], both[1], as_of


# ---------------------------------------------------------------------------------------------------------- command


def lag_quantiles(state: Json) -> dict[str, float]:
    """By how many ticks the two views differ: share of equal heartbeats, and quantiles of the difference."""
    known = [{row["endpoint"]: row["heartbeat"] for row in state[side]["view"]} for side in "ab"]
    differences = np.array([abs(known[0][name] - known[1][name]) for name in known[0]])
    quantiles = np.quantile(differences, [0.5, 0.9, 0.99])
    return {
        "equal": round(float((differences == 0).mean()), 3),
        **{name: float(q) for name, q in zip(("median", "p90", "p99"), quantiles, strict=True)},
        "max": int(differences.max()),
        "mean": round(float(differences.mean()), 3),
    }


def state_file(endpoints: int, seed: int = SEED) -> Path:
    """The file of a state, made when it is not there yet."""
    path = CACHE / f"steady-{FORMAT}-{endpoints}-{seed}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(cluster_state(endpoints, seed=seed), separators=(",", ":")))
    return path


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", type=int, default=100)
    parser.add_argument("--model", choices=("whole", "rounds"), help="default: whole up to 300 endpoints")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, help="where to write it; default: standard output")
    parser.add_argument("--compare", action="store_true", help="print the lags of both models instead, over 5 seeds")
    options = parser.parse_args()
    if options.endpoints < 2:
        parser.error("an exchange needs 2 endpoints")
    if options.compare:
        for model in ("whole", "rounds"):
            for seed in range(1, 6):
                print(model, seed, lag_quantiles(cluster_state(options.endpoints, model=model, seed=seed)))
        return 0
    text = json.dumps(cluster_state(options.endpoints, model=options.model, seed=options.seed), separators=(",", ":"))
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
