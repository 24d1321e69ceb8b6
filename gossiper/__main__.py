"""The ``gossiper`` command, and ``python -m gossiper``."""

from __future__ import annotations

import sys

from gossiper.interrupts import quietly

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def _load() -> Callable[[], int]:
    from gossiper.cli import main as command  # noqa: PLC0415 - the first import that takes long

    return command


def main() -> int:
    """Run gossiper and return its exit status."""
    status: int = quietly("gossiper", _load)
    return status


if __name__ == "__main__":
    sys.exit(main())
