"""Run one scenario from the beginning to the comparison with its expected transcript, on a backend of choice."""

from __future__ import annotations

import asyncio
import difflib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gossiper.scenario.language import Scenario
from gossiper.scenario.memory import MemoryBackend
from gossiper.scenario.processes import ProcessBackend
from gossiper.scenario.runner import Runner
from gossiper.simulation.virtual_loop import run as run_virtual

#: Virtual time a scenario may take.
_LIMIT_SECONDS: Final = 3_600.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that went through all commands."""

    scenario: Scenario
    transcript: tuple[str, ...]

    @property
    def as_expected(self) -> bool:
        """Whether the transcript is the one of the file."""
        return self.transcript == self.scenario.expected

    def difference(self) -> str:
        """What differs, as a unified diff; empty when nothing does."""
        lines = difflib.unified_diff(
            self.scenario.expected, self.transcript, f"{self.scenario.name} (expected)", "this run", lineterm="", n=99
        )
        return "\n".join(lines)


def run_in_memory(scenario: Scenario, *, seed: int = 0) -> Outcome:
    """Run it in virtual time; ``seed`` decides who asks whom.

    Raises:
        ScenarioError: it did not go as the scenario says.
    """

    async def run(directory: Path) -> Outcome:
        return Outcome(scenario, await Runner(scenario, MemoryBackend(directory, seed=seed)).run())

    with tempfile.TemporaryDirectory(prefix="gossiper-") as directory:
        return run_virtual(run(Path(directory)), limit_seconds=_LIMIT_SECONDS)


def run_on_processes(scenario: Scenario) -> Outcome:
    """Run it on real processes on loopback, in real time.

    Raises:
        ScenarioError: it did not go as the scenario says.
    """

    async def run(directory: Path) -> Outcome:
        return Outcome(scenario, await Runner(scenario, ProcessBackend(directory)).run())

    with tempfile.TemporaryDirectory(prefix="gossiper-") as directory:
        return asyncio.run(run(Path(directory)))
