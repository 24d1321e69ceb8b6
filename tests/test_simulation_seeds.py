"""The ordinary run: 60 seeds of swarm faults, every pair of operation and fault, and not one broken invariant."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gossiper.simulation import SimulationOptions, run_seed
from gossiper.simulation.pairs import PAIRS

SEEDS = range(60)
NODES, DURATION_SECONDS = 8, 60.0
PAIR_NODES, PAIR_DURATION_SECONDS = 6, 45.0
CHUNK = 10


def options(seed: int) -> SimulationOptions:
    return SimulationOptions(seed=seed, nodes=NODES, duration_seconds=DURATION_SECONDS)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", SEEDS[::CHUNK])
def test_no_seed_breaks_an_invariant(first: int) -> None:
    for seed in SEEDS[first : first + CHUNK]:
        result = run_seed(options(seed))
        assert result.violation is None, f"{result.violation.command}: {result.violation.detail}"
        assert result.messages > 200, "next to nothing happened"
        assert result.agree_rounds is not None


@pytest.mark.parametrize("pair", PAIRS)
def test_no_pair_breaks_an_invariant(pair: str) -> None:
    for seed in range(2):
        result = run_seed(
            SimulationOptions(seed=seed, nodes=PAIR_NODES, duration_seconds=PAIR_DURATION_SECONDS, pair=pair)
        )
        assert result.violation is None, f"{result.violation.command}: {result.violation.detail}"
        operation, _, fault = pair.partition("-")
        assert result.faults[operation] == 1
        assert result.faults[fault] == 1


def test_there_are_25_pairs() -> None:
    assert len(PAIRS) == 25


def test_the_swarm_has_every_fault() -> None:
    """Faults that no seed of the ordinary run ever has would be tested by nobody."""
    from gossiper.simulation.faults import NETWORK_FAULTS
    from gossiper.simulation.loop import stream
    from gossiper.simulation.operations import OPERATIONS
    from gossiper.simulation.options import draw

    swarms = [draw(options(seed), stream(seed, "swarm")) for seed in SEEDS]
    for name in (*OPERATIONS, *NETWORK_FAULTS):
        rates = [getattr(swarm, f"{name}_rate") for swarm in swarms]
        assert any(rate > 0 for rate in rates), f"no seed has {name}"
        assert any(rate == 0 for rate in rates), f"every seed has {name}"


REPLAY = """
import hashlib, sys
from gossiper.simulation import SimulationOptions, run_seed
digest = hashlib.sha256()
result = run_seed(
    SimulationOptions(seed=int(sys.argv[1]), nodes=8, duration_seconds=60.0),
    trace_sink=lambda line: digest.update(line.encode()),
)
print(digest.hexdigest(), result.trace_digest, result.trace_lines)
"""


@pytest.mark.parametrize("seed", [2, 13])
def test_same_trace_byte_for_byte_under_two_hash_seeds(seed: int) -> None:
    printed = set()
    for hash_seed in ("0", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", REPLAY, str(seed)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        printed.add(done.stdout)
    assert len(printed) == 1
    digest = run_seed(options(seed)).trace_digest
    assert digest in printed.pop(), "a process that has run other seeds before gives the same trace"


def test_other_seeds_are_other_runs() -> None:
    digests = {run_seed(SimulationOptions(seed=seed, nodes=4, duration_seconds=10.0)).trace_digest for seed in range(5)}
    assert len(digests) == 5
