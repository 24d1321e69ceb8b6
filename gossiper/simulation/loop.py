"""Virtual time: a heap of (time, sequence number, action). Nothing here or above it reads a clock of this machine."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import Any, Final

from gossiper.simulation.violation import InvariantViolation

Action = Callable[..., object]

#: Actions at one and the same instant before the run counts as stuck: far more than all packets of 1,000 nodes.
ACTIONS_PER_INSTANT_MAX: Final = 1_000_000


class VirtualLoop:
    """Runs actions in order of time, equal times in order of being scheduled."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        """Seconds since the simulation began; the only true time there is."""
        self.actions_run = 0
        self._heap: list[tuple[float, int, Action, tuple[Any, ...]]] = []
        self._sequence = 0

    def at(self, when: float, action: Action, *arguments: Any) -> None:
        """Run ``action(*arguments)`` at ``when``, or now if that is past."""
        self._sequence += 1
        heapq.heappush(self._heap, (max(self.now, when), self._sequence, action, arguments))

    def after(self, delay_seconds: float, action: Action, *arguments: Any) -> None:
        """Run ``action(*arguments)`` in ``delay_seconds``."""
        self.at(self.now + delay_seconds, action, *arguments)

    def run_until(self, end: float) -> None:
        """Run everything that is due up to and including ``end``; afterwards it is ``end``.

        Raises:
            InvariantViolation: time stands still because actions go on causing each other.
        """
        heap = self._heap
        instant, at_instant = self.now, 0
        while heap and heap[0][0] <= end:
            self.now, _, action, arguments = heapq.heappop(heap)
            if self.now > instant:
                instant, at_instant = self.now, 0
            at_instant += 1
            if at_instant > ACTIONS_PER_INSTANT_MAX:
                raise InvariantViolation("time_stands_still", f"{at_instant} actions at {instant:.6f} s")
            self.actions_run += 1
            action(*arguments)
        self.now = max(self.now, end)

    def stream(self, name: str) -> Random:
        """As the function :func:`stream`, for the seed of this loop."""
        return stream(self.seed, name)


def stream(seed: int, name: str) -> Random:
    """Random numbers of their own for ``name``: more draws in one stream do not shift another."""
    # A str is hashed with SHA-512, so this does not depend on PYTHONHASHSEED.
    return Random(f"{seed}/{name}")  # noqa: S311 - repeatable on purpose, guards nothing
