"""The trace: one line per delivered packet, fault and change of state, hashed as it grows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import xxhash

from gossiper.simulation.loop import VirtualLoop

#: Lines that a violation shows.
LINES_KEPT: Final = 200


class Trace:
    """Keeps the last lines and the hash of all; ``sink`` receives each line, for a file."""

    def __init__(self, loop: VirtualLoop, sink: Callable[[str], object] | None = None) -> None:
        self.lines = 0
        self._loop = loop
        self._sink = sink
        self._last: deque[str] = deque(maxlen=LINES_KEPT)
        self._hash = xxhash.xxh3_128()

    def line(self, text: str) -> None:
        """Add one line, with the virtual time before it."""
        stamped = f"{self._loop.now:.6f} {text}\n"
        self.lines += 1
        self._hash.update(stamped.encode())
        self._last.append(stamped)
        if self._sink is not None:
            self._sink(stamped)

    @property
    def digest(self) -> str:
        """xxh3_128 over all lines so far, hexadecimal: equal for equal runs."""
        return self._hash.hexdigest()

    def last(self) -> tuple[str, ...]:
        """The last lines, oldest first, without line ends."""
        return tuple(line.rstrip("\n") for line in self._last)
