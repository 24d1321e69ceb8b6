"""Deterministic simulation: whole clusters in one process, in virtual time, from one integer seed.

The engine and the codec are the real ones; what is replaced is the shell around them (``gossiper.node``) and the
transport. See ``docs/simulation.md``.
"""

from gossiper.simulation.options import SimulationOptions
from gossiper.simulation.run import SeedResult, run_seed
from gossiper.simulation.violation import InvariantViolation, Violation

__all__ = ["InvariantViolation", "SeedResult", "SimulationOptions", "Violation", "run_seed"]
