"""Whether the disk of this node takes rows, as the cluster is told.

A node whose disk is full stays up and serves reads, but writes fail on it: it says so in its gossip (HEALTH), and
``nodetool status`` shows it. It says that it serves again after a write succeeded and none failed for a while, so that
a disk at its limit, where small writes succeed and large ones fail, does not make the whole cluster gossip about it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from antientropy.errors import RowRefusedError, StoreClosedError, StoreError
from gossiper import LifecycleError, NotRunningError

#: A path and a sentence; every node of the cluster keeps it.
REASON_LENGTH_MAX: Final = 200


class StorageHealth:
    """Follows the commits of a node. Belongs to one event loop.

    Args:
        tell: Publishes (serving, reason); may raise NotRunningError or LifecycleError: the next commit tries again.
        hold_seconds: How long no commit may have failed before it is said that the node serves again; also the least
            time between two reasons why it does not.
    """

    def __init__(self, tell: Callable[[bool, str], None], *, hold_seconds: float) -> None:
        self._tell = tell
        self._hold_seconds = hold_seconds
        self._failed_at = 0.0
        self._reason = ""
        self._told_reason = ""
        self._told_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def committed(self, error: Exception | None) -> None:
        """A commit has ended: with ``error``, or well. Errors that are not the disk's say nothing of it."""
        if self._closed:
            return
        # Not only StoreFullError: LMDB calls the first short write to a full disk an input/output error.
        if isinstance(error, StoreError) and not isinstance(error, RowRefusedError | StoreClosedError):
            self._failed_at = asyncio.get_running_loop().time()
            self._cancel()
            self._say(f"writes fail: {error}"[:REASON_LENGTH_MAX])
        elif error is None and (self._reason or self._told_reason) and self._timer is None:
            loop = asyncio.get_running_loop()
            delay_seconds = max(0.0, self._failed_at + self._hold_seconds - loop.time())
            self._timer = loop.call_later(delay_seconds, self._recover)

    def close(self) -> None:
        """Say nothing any more."""
        self._closed = True
        self._cancel()

    def _recover(self) -> None:
        self._timer = None
        self._say("")

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _say(self, reason: str) -> None:
        """Tell when it changes from well to ill or back; another reason only after a while."""
        self._reason = reason
        now = asyncio.get_running_loop().time()
        if reason == self._told_reason:
            return
        if reason and self._told_reason and now - self._told_at < self._hold_seconds:
            return
        try:
            self._tell(not reason, reason)
        except (LifecycleError, NotRunningError):
            return
        self._told_reason, self._told_at = reason, now
