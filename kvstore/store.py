"""The rows of a node, as its parts see them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from antientropy.core.tokens import TokenRange
from antientropy.store import Row, RowStore
from kvstore.hlc import HybridLogicalClock

_log = logging.getLogger(__name__)


class NodeStore(RowStore, Protocol):
    """A row store with what serving clients takes beyond repair."""

    @property
    def version_max(self) -> int:
        """The greatest version ever stored, 0 when empty."""
        ...

    def get_many(self, keys: Sequence[bytes]) -> list[Row | None]:
        """The rows of some keys at one point in time, in their order; tombstones included."""
        ...

    def scan(
        self, token_range: TokenRange | None = None, *, after_key: bytes | None = None, limit: int = ...
    ) -> list[Row]:
        """Up to ``limit`` rows in the order of (token, key), tombstones included; ``after_key``: those behind it."""
        ...

    def close(self) -> None:
        """Give the files back. Idempotent."""
        ...


class ClockedStore:
    """The row store as repair sees it: what repair brings moves the clock on, so that later writes win over it."""

    def __init__(self, store: NodeStore, clock: HybridLogicalClock) -> None:
        self._store = store
        self._clock = clock

    def apply(self, rows: Iterable[Row], *, from_repair: bool = False) -> int:
        """See :meth:`antientropy.store.RowStore.apply`. Called from worker threads.

        A version too far ahead is stored all the same, as another replica has acknowledged it, but the clock does not
        follow it.
        """
        rows = list(rows)
        if rows and not self._clock.observe(max(row.version for row in rows)):
            _log.warning("repair brought a row whose version is far ahead of the clock here; are clocks synchronised?")
        return self._store.apply(rows, from_repair=from_repair)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the store's own."""
        return getattr(self._store, name)
