"""The ``kvstore`` command, and ``python -m kvstore``."""

from __future__ import annotations

from functools import partial

from gossiper.interrupts import quietly

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def _load() -> Callable[[], None]:
    from kvstore.cli import main as command  # noqa: PLC0415 - the first import that takes long

    return partial(command, prog_name="kvstore")


def main() -> None:
    """Run kvstore; raises ``SystemExit`` with its exit status."""
    quietly("kvstore", _load)


if __name__ == "__main__":
    main()
