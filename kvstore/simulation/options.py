"""What a run is told, and what its seed is expanded to: each kind of fault is left out of many seeds altogether."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from random import Random
from typing import Final

#: More only take longer: every node holds every row.
NODES_MAX: Final = 9
DURATION_SECONDS_MAX: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """One run. Everything else follows from ``seed``.

    Raises:
        ValueError: an option is out of its range.
    """

    seed: int
    nodes: int | None = None
    """None: drawn, 3 to 5."""
    duration_seconds: float = 60.0
    """Length of the phase with faults, in virtual time; healing and the last repair follow."""
    lmdb: bool = False
    """Rows in LMDB instead of memory: slower."""

    def __post_init__(self) -> None:
        if self.nodes is not None and not 2 <= self.nodes <= NODES_MAX:
            raise ValueError(f"nodes must be 2 to {NODES_MAX}, is {self.nodes}")
        if not 1 <= self.duration_seconds <= DURATION_SECONDS_MAX:
            raise ValueError(f"duration must be 1 to {DURATION_SECONDS_MAX:g} seconds, is {self.duration_seconds:g}")

    def command(self) -> str:
        """The command that runs exactly this again."""
        words = ["python", "-m", "kvstore.simulation", "--seeds", str(self.seed)]
        if self.nodes is not None:
            words += ["--nodes", str(self.nodes)]
        words += ["--duration", f"{self.duration_seconds:g}"]
        if self.lmdb:
            words.append("--lmdb")
        return shlex.join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Swarm:
    """What a seed draws. Rates are per virtual second; 0: not in this seed."""

    nodes: int
    keys: int
    operations_per_second: float
    delete_share: float
    partition_rate: float
    crash_rate: float
    stop_rate: float
    slow_rate: float
    link_rate: float
    """Of phases in which links lose, delay, repeat and reorder messages."""
    clock_rate: float
    repair_rate: float
    """Of repairs that somebody asks for."""
    repair_period_seconds: float
    """Of the scheduler; 0: none."""
    lose_unsynced: float
    """Share of crashes after which nothing is on disk that was not acknowledged."""


def draw(options: SimulationOptions, rng: Random) -> Swarm:
    """Everything of a seed that is not drawn on the way."""

    def maybe(share: float, low: float, high: float) -> float:
        rate = rng.uniform(low, high)
        return rate if rng.random() < share else 0.0

    drawn_nodes = rng.choice([3, 3, 3, 4, 5])
    return Swarm(
        nodes=options.nodes or drawn_nodes,
        keys=rng.choice([8, 40, 200]),
        operations_per_second=rng.uniform(2.0, 8.0),
        delete_share=rng.uniform(0.05, 0.5),
        partition_rate=maybe(0.7, 0.02, 0.1),
        crash_rate=maybe(0.7, 0.02, 0.1),
        stop_rate=maybe(0.4, 0.01, 0.05),
        slow_rate=maybe(0.4, 0.02, 0.1),
        link_rate=maybe(0.5, 0.02, 0.1),
        clock_rate=maybe(0.3, 0.02, 0.1),
        repair_rate=maybe(0.8, 0.05, 0.3),
        repair_period_seconds=maybe(0.7, 5.0, 30.0),
        lose_unsynced=rng.random(),
    )
