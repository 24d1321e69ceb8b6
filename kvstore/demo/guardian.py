"""Cleans up after a demonstration that was killed before it could do so itself.

Run as a script of its own, with the standard library only: it leads the process group that all processes of the
demonstration join, and reads its standard input, on which nothing ever comes. When that ends, the demonstration is dead
(SIGKILL, for one, can be handled by nobody): the group is killed and the directory named by the only argument is
removed. A demonstration that ends by itself cleans up and kills the guardian with its group.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time

GROUP_GONE_SECONDS_MAX = 10.0
"""How long killed processes may take to disappear before the directory is removed nevertheless."""


def clean_up(group: int, directory: str) -> None:
    """Kill the process group and remove the directory; the caller must not belong to the group."""
    deadline = time.monotonic() + GROUP_GONE_SECONDS_MAX
    try:
        os.killpg(group, signal.SIGKILL)
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.01)
    except (ProcessLookupError, PermissionError):
        pass  # All gone; PermissionError is what some systems say of a group of zombies.
    shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    """Entry point."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    directory = sys.argv[1]
    sys.stdin.read()
    group = os.getpgid(0)
    if os.fork() == 0:
        # The leader is killed with its group; this one leaves the group to survive the shot.
        os.setsid()
        clean_up(group, directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
