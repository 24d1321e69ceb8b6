"""What the benchmarks of digests measure is real: the model of heartbeats, the virtual cluster, the scales."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.exchange_cases import measure
from benchmarks.exchange_parts import FORMS, LEGS, Meeting
from benchmarks.steady_cluster import Lags, entropy_bits, meetings
from benchmarks.virtual_cluster import VirtualCluster, meeting
from gossiper.core.table import LivenessCode

ROOT = Path(__file__).resolve().parent.parent


def behind(found: Lags) -> NDArray[np.int64]:
    """By how many ticks each of the two lags behind what clocks would give, beyond the caller's own lag."""
    late = np.floor(found.wall - found.generations).astype(np.int64) - found.heartbeats
    beyond: NDArray[np.int64] = late - late[0, found.who[0]]
    return beyond


def test_lags_of_the_model_are_those_of_whole_cores_at_100_nodes() -> None:
    cluster = VirtualCluster(100, seeds=0)
    cluster.loop.run_until(20.0)
    cores = []
    for _ in range(60):
        cores.append(behind(meeting(cluster)))
        cluster.loop.run_until(cluster.loop.now + 0.17)
    modelled = [behind(found) for seed in range(12) for found in islice(meetings(100, seed=seed), 0, 100, 10)]
    means = [float(np.mean(lags)) for lags in (cores, modelled)]
    assert means[0] == pytest.approx(means[1], rel=0.06)
    assert float(np.std(cores)) == pytest.approx(float(np.std(modelled)), rel=0.1)
    entropies = [float(np.mean([entropy_bits(lags[0]) for lags in found])) for found in (cores, modelled)]
    assert entropies[0] == pytest.approx(entropies[1], rel=0.08)


def test_a_settled_cluster_stays_settled_and_its_exchanges_are_compact() -> None:
    cluster = VirtualCluster(20)
    kinds: list[str] = []
    cluster.on_exchange = lambda exchange: kinds.append(exchange.kind)
    cluster.loop.run_until(30.0)
    assert len(kinds) >= 20 * 29
    assert set(kinds) == {"compact"}
    for member in cluster.members.values():
        assert int((member.engine.state.table.liveness == LivenessCode.ALIVE).sum()) == 20


def test_a_meeting_repeats_itself_second_after_second() -> None:
    pair = Meeting(next(meetings(60)))
    found: dict[str, list[list[int]]] = {form: [] for form in FORMS}
    for second in range(3):
        for form in FORMS:
            traced = pair.exchange(form, pair.at(second))
            found[form].append([len(traced.messages[leg]) for leg in LEGS])
    for form in FORMS:
        sizes = np.array(found[form])
        assert sizes.max(axis=0) - sizes.min(axis=0) == pytest.approx(0, abs=2), "but for the length of a number"
        assert sizes[:, 2].tolist() == [0, 0, 0], "nothing was asked for"
    assert sum(found["compact"][0]) < sum(found["plain"][0]) / 5


@pytest.mark.parametrize("case", ["joins", "rolling-restart", "state-change"])
def test_a_changing_cluster_never_costs_more_than_the_plain_form_on_average(case: str) -> None:
    result = measure(case, 16, seconds=20.0)
    assert result["mean_ratio"] < 0.9
    assert sum(result["kinds"].values()) == pytest.approx(1.0, abs=0.01)
    if case == "state-change":
        assert result["kinds"] == {"compact": 1.0}
    else:
        assert {"compact", "plain"} <= result["kinds"].keys()


def test_one_size_as_json_is_one_object_with_what_readers_of_it_need() -> None:
    command = [sys.executable, "-m", "benchmarks.digest_exchange", "--endpoints", "10", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=50)
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["endpoints"] == 10
    assert result["entropy_bytes"] > 0
    for form in FORMS:
        rows = result["forms"][form]
        for key in ("protobuf_bytes", "compressed_bytes", "wire_bytes", "cpu_microseconds"):
            assert rows["total"][key] == pytest.approx(sum(rows[leg][key] for leg in LEGS), abs=0.3)
            assert rows["syn"][key] > 0
            assert rows["ack"][key] > 0
        assert rows["total"]["wire_bytes"] > rows["total"]["compressed_bytes"], "framing is never free"
    assert result["forms"]["compact"]["total"]["compressed_bytes"] <= 200
    assert {"python", "numpy", "protobuf", "grpcio", "cpu", "cores", "commit"} <= result["environment"].keys()
