"""The ``nodetool`` command, and ``python -m nodetool``."""

from __future__ import annotations

import sys

from gossiper.interrupts import quietly

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def _load() -> Callable[[], int]:
    from nodetool.main import main as command  # noqa: PLC0415 - the first import that takes long

    return command


def main() -> int:
    """Run nodetool and return its exit status."""
    status: int = quietly("nodetool", _load)
    return status


if __name__ == "__main__":
    sys.exit(main())
