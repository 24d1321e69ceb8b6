"""Deterministic simulation: whole clusters in one process, in virtual time, from one integer seed.

The engine and the codec are the real ones; what is replaced is the shell around them (``gossiper.node``) and the
transport. See ``docs/simulation.md``.

The names below are loaded on first use: who only wants virtual time (``gossiper.testing``) needs no simulator.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gossiper.simulation.options import SimulationOptions
    from gossiper.simulation.run import SeedResult, run_seed
    from gossiper.simulation.violation import InvariantViolation, Violation

__all__ = ["InvariantViolation", "SeedResult", "SimulationOptions", "Violation", "run_seed"]

_MODULES = {
    "InvariantViolation": "violation",
    "SeedResult": "run",
    "SimulationOptions": "options",
    "Violation": "violation",
    "run_seed": "run",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
