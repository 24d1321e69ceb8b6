"""When this node was last alive, on its own disk: the check of a start where tombstones are purged by their age.

A node that was away for longer than the others keep tombstones holds rows whose deletion nobody remembers: repair would
bring them back. Cassandra has the same check since 4.1 (CASSANDRA-17180, ``DataResurrectionCheck``). Where tombstones
are purged by repair it is not needed: nothing is purged before this node has been repaired too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from antientropy.logs import LogLimiter
from kvstore.errors import StartError
from kvstore.limits import SIGN_OF_LIFE_SECONDS

_log = logging.getLogger(__name__)

#: In the data directory; holds seconds since the epoch as a decimal number.
FILE_NAME: Final = "last-alive"
_FILE_BYTES_MAX: Final = 64


class SignOfLife:
    """The file of one node.

    Args:
        data_dir: Of the node.
        rows_dir: Where its rows are: their last change is a sign of life too, for a directory without the file.
        wall: Seconds since the epoch.
    """

    def __init__(self, data_dir: Path, rows_dir: Path, wall: Callable[[], float] = time.time) -> None:
        self._path = data_dir / FILE_NAME
        self._rows_dir = rows_dir
        self._wall = wall
        self._log_limiter = LogLimiter()

    def last(self) -> float | None:
        """Seconds since the epoch of the last sign of life; None: there never was one, or nobody can tell."""
        try:
            with self._path.open("rb") as file:
                return float(file.read(_FILE_BYTES_MAX))
        except (OSError, ValueError):
            # None yet, or none that can be read: the rows change less often, so what they say is on the safe side.
            return self._rows_changed_at()

    def check(self, gc_grace_seconds: float) -> None:
        """Whether this node may start; call it before the rows are opened.

        Raises:
            StartError: it was away for longer than ``gc_grace_seconds``.
        """
        last = self.last()
        if last is None:
            return
        away_seconds = self._wall() - last
        if away_seconds <= gc_grace_seconds:
            return
        raise StartError(
            f"this node was last alive {_days(away_seconds)} ago, longer than gc_grace_seconds ({gc_grace_seconds:g}): "
            f"rows deleted since then could come back from here. Move {self._rows_dir} and {self._path} away, start "
            "again and run nodetool repair; or, if no other node has purged tombstones meanwhile, start once with a "
            "greater --gc-grace-seconds"
        )

    def write(self) -> None:
        """Say that the node lives. A disk that refuses is no reason to stop: the check then is only stricter."""
        try:
            temporary = self._path.with_name(f".{FILE_NAME}.new")
            with temporary.open("w", encoding="ascii") as file:
                file.write(f"{self._wall():.3f}\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError as error:
            held_back = self._log_limiter.permit("write")
            if held_back is not None:
                _log.warning("%s was not written: %s (held_back=%d)", self._path, error, held_back)

    async def keep(self) -> None:
        """Write it now and again, until cancelled."""
        while True:
            await asyncio.sleep(SIGN_OF_LIFE_SECONDS)
            await asyncio.to_thread(self.write)

    def _rows_changed_at(self) -> float | None:
        try:
            return (self._rows_dir / "data.mdb").stat().st_mtime
        except OSError:
            return None


def _days(seconds: float) -> str:
    return f"{seconds / 86_400:.1f} days" if seconds >= 86_400 else f"{seconds / 3_600:.1f} hours"
