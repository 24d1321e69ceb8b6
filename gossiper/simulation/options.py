"""What a run is told, and what its seed is expanded to.

Swarm testing (Groce and others, 2012): not only the faults, the *probabilities* of faults are drawn per seed, and each
kind is left out of many seeds altogether, since a fault that is always there hides what only happens without it.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass
from random import Random
from typing import Final

#: Kinds of latency: a rack, a continent, and a rack with a heavy tail beyond the deadline of an exchange.
LATENCIES: Final = ("lan", "wan", "heavy_tail")
#: Nodes of one simulation: each holds a row for every other, so memory grows with the square.
NODES_MAX: Final = 2_000
DURATION_SECONDS_MAX: Final = 7 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """One run. Everything else follows from ``seed``.

    Raises:
        ValueError: an option is out of its range.
    """

    seed: int
    nodes: int = 30
    """Machines altogether; some of them join later."""
    duration_seconds: float = 300.0
    """Length of the phase with faults, in virtual time. The phase of convergence follows."""
    pair: str | None = None
    """``OPERATION-FAULT``: that pair instead of swarm faults."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 2 <= self.nodes <= NODES_MAX:
            raise ValueError(f"nodes must be 2 to {NODES_MAX}, is {self.nodes}")
        if not 1 <= self.duration_seconds <= DURATION_SECONDS_MAX:
            raise ValueError(f"duration must be 1 to {DURATION_SECONDS_MAX:.0f} seconds, is {self.duration_seconds}")

    def command(self) -> str:
        """The command that runs exactly this again."""
        words = ["gossiper", "simulate"]
        if self.pair is not None:
            words += ["--pair", self.pair]
        words += ["--seeds", str(self.seed), "--nodes", str(self.nodes), "--duration", f"{self.duration_seconds:g}"]
        return shlex.join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Swarm:
    """What a seed was expanded to. Rates are events per second in the whole cluster, 0: never; the rest are shares."""

    seeds: int
    nodes_at_start: int
    join_timeout_seconds: float
    """After so long a seed begins alone; the default of the configuration is 30."""
    latency: str
    loss: float
    duplicate: float
    reorder: float
    record: float
    """Share of requests that are kept for a replay."""
    replay_rate: float
    partition_rate: float
    clog_rate: float
    swizzle_rate: float
    lossy_link_rate: float
    join_rate: float
    publish_rate: float
    delete: float
    """Share of publishes that delete a key."""
    burst: float
    """Share of publishes that come as a burst, more than one tick has counters for."""
    purge_rate: float
    shutdown_rate: float
    crash_rate: float
    power_off: float
    """Share of crashes that take the machine with them, so that nobody refuses a connection."""
    restart_seconds_max: float
    stay_down: float
    new_address: float
    file_lost: float
    file_corrupt: float
    disk_fails_rate: float
    leave_rate: float
    remove_rate: float
    replace_rate: float
    disable_rate: float
    pause_rate: float
    pause_seconds_max: float
    slow_rate: float
    clock_jump_rate: float
    clock_drift_rate: float
    wrong_clocks: float
    """Share of machines whose wall clock is up to an hour off from the beginning; the others agree within 2 s."""
    plain_only: float
    """Share of processes that know nothing of compact digests: of an older version, as in a rolling upgrade."""

    def to_json(self) -> dict[str, object]:
        """As plain values."""
        return asdict(self)


#: What everything is at rest: a sound network, nobody fails.
_QUIET: Final[dict[str, float]] = {
    "loss": 0.0, "duplicate": 0.0, "reorder": 0.0, "record": 0.0, "replay_rate": 0.0, "partition_rate": 0.0,
    "clog_rate": 0.0, "swizzle_rate": 0.0, "lossy_link_rate": 0.0, "join_rate": 0.0, "publish_rate": 0.5,
    "delete": 0.2, "burst": 0.05, "purge_rate": 0.0, "shutdown_rate": 0.0, "crash_rate": 0.0, "power_off": 0.5,
    "restart_seconds_max": 30.0, "stay_down": 0.1, "new_address": 0.0, "file_lost": 0.0, "file_corrupt": 0.0,
    "disk_fails_rate": 0.0, "pause_rate": 0.0, "pause_seconds_max": 30.0, "slow_rate": 0.0, "clock_jump_rate": 0.0,
    "clock_drift_rate": 0.0, "leave_rate": 0.0, "remove_rate": 0.0, "replace_rate": 0.0, "disable_rate": 0.0,
    "wrong_clocks": 0.3, "plain_only": 0.0,
}  # fmt: skip


def quiet(nodes: int) -> Swarm:
    """No faults at all, a few publishes: the ground on which pairs are played."""
    return Swarm(seeds=min(2, nodes - 1), nodes_at_start=nodes, join_timeout_seconds=10.0, latency="lan", **_QUIET)


def draw(options: SimulationOptions, rng: Random) -> Swarm:
    """Expand a seed. The order of the draws is part of what a seed means."""

    def sometimes(share: float, low: float, high: float) -> float:
        """0 in most seeds of a rare kind; else log-uniform between the two."""
        chosen, exponent = rng.random(), rng.random()
        return low * math.exp(exponent * math.log(high / low)) if chosen < share else 0.0

    nodes = options.nodes
    # A larger cluster meets more of everything.
    scale = max(1.0, nodes / 10)
    return Swarm(
        seeds=min(rng.randint(1, 3), nodes - 1),
        nodes_at_start=max(2, nodes - rng.randint(0, nodes // 3)),
        join_timeout_seconds=rng.choice((5.0, 30.0)),
        latency=rng.choice(LATENCIES),
        loss=sometimes(0.6, 0.01, 0.3),
        duplicate=sometimes(0.5, 0.01, 0.5),
        reorder=sometimes(0.5, 0.01, 0.3),
        record=sometimes(0.6, 0.01, 0.2),
        replay_rate=sometimes(0.6, 0.1, 5.0),
        partition_rate=sometimes(0.6, 0.005, 0.1),
        clog_rate=sometimes(0.5, 0.02, 0.5) * scale,
        swizzle_rate=sometimes(0.3, 0.005, 0.03),
        lossy_link_rate=sometimes(0.3, 0.01, 0.2) * scale,
        join_rate=sometimes(0.7, 0.01, 0.3),
        publish_rate=sometimes(0.9, 0.1, 5.0) * scale,
        delete=rng.uniform(0.0, 0.4),
        burst=sometimes(0.5, 0.01, 0.3),
        purge_rate=sometimes(0.5, 0.02, 0.5),
        shutdown_rate=sometimes(0.5, 0.005, 0.1) * scale,
        crash_rate=sometimes(0.6, 0.005, 0.1) * scale,
        power_off=rng.random(),
        restart_seconds_max=rng.choice((2.0, 10.0, 30.0, 90.0)),
        stay_down=rng.uniform(0.0, 0.3),
        new_address=sometimes(0.4, 0.05, 0.5),
        file_lost=sometimes(0.4, 0.05, 0.5),
        file_corrupt=sometimes(0.3, 0.02, 0.3),
        disk_fails_rate=sometimes(0.3, 0.01, 0.1),
        pause_rate=sometimes(0.5, 0.005, 0.1) * scale,
        pause_seconds_max=rng.choice((3.0, 10.0, 60.0)),
        slow_rate=sometimes(0.4, 0.005, 0.05) * scale,
        clock_jump_rate=sometimes(0.5, 0.01, 0.1) * scale,
        clock_drift_rate=sometimes(0.4, 0.01, 0.05) * scale,
        leave_rate=sometimes(0.4, 0.003, 0.05),
        remove_rate=sometimes(0.3, 0.005, 0.1),
        replace_rate=sometimes(0.4, 0.01, 0.3),
        disable_rate=sometimes(0.3, 0.005, 0.05) * scale,
        wrong_clocks=rng.choice((0.0, 0.1, 0.3)),
        plain_only=rng.choice((0.0, 0.0, 0.2, 0.6)),
    )
