"""What a repair sees of a replica: index and rows of a range at one point in time.

An open snapshot keeps old pages of its store, so it is opened in a worker thread without ever being lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from antientropy.core.floors import expired, no_floors, row_expired
from antientropy.core.index import Index
from antientropy.core.merkle import HashTree, Root
from antientropy.core.rows import Changes, Row, RowDigests
from antientropy.core.sketch import SketchBank
from antientropy.core.tokens import TokenRange, clipped
from antientropy.store import RowReader

if TYPE_CHECKING:
    from antientropy.replica import Replica


class ReplicaSnapshot:
    """Index and rows of a range at one point in time. Not changed by later writes; close it soon.

    ``floors``: tombstones below the floor of their bucket are taken for purged: they are neither in the index nor among
    the rows. None: there are none. Used by one thread at a time, not always the same one.
    """

    def __init__(
        self, reader: RowReader, index: Index, token_range: TokenRange, floors: NDArray[np.uint64] | None
    ) -> None:
        self.token_range: Final = token_range
        self.floors: Final = no_floors() if floors is None else floors
        self._floors = floors
        self._reader = reader
        self._index = index

    def prepare(self) -> None:
        """Bring the index, a cut of the replica's around the range, down to just what the snapshot covers."""
        edges = self._index.edges(self.token_range)
        if edges:
            self._index.trim(self.token_range, RowDigests.concatenate([*self._reader.digests(edges)]))
        if self._floors is None:
            return
        for part in self._reader.tombstones(int(self._floors.max())):
            gone = part.take(expired(part, self._floors) & self.token_range.holds(part.tokens))
            self._index.fold(Changes.went(gone))

    @property
    def tree(self) -> HashTree:
        """The tree of exactly the rows of this snapshot."""
        return self._index.tree

    @property
    def sketch(self) -> SketchBank:
        """The sketches of exactly the rows of this snapshot."""
        return self._index.bank

    @property
    def root(self) -> Root:
        """The root of the tree."""
        return self._index.tree.root

    @property
    def epoch(self) -> int:
        """The seed epoch of tree and sketches."""
        return self._index.epoch

    def digests(self, ranges: Sequence[TokenRange]) -> Iterator[RowDigests]:
        """Digests of all rows in some ranges (ascending, disjoint) and in this one; see ``RowReader.digests``."""
        for part in self._reader.digests(clipped(ranges, self.token_range)):
            kept = part if self._floors is None else part.take(~expired(part, self._floors))
            if len(kept):
                yield kept

    def rows_at(self, tokens: Sequence[int]) -> Iterator[Row]:
        """The rows at some tokens (ascending) of this range; see ``RowReader.rows_at``."""
        wanted = [token for token in tokens if self.token_range.contains(token)]
        floors = None if self._floors is None else self._floors.tolist()
        for row in self._reader.rows_at(wanted):
            if floors is None or not row_expired(row, floors):
                yield row

    def close(self) -> None:
        """Give the store's pages back. Idempotent."""
        self._reader.close()


async def open_in_thread(
    executor: Executor, replica: Replica, token_range: TokenRange, floors: NDArray[np.uint64] | None = None
) -> ReplicaSnapshot:
    """A snapshot, opened in a worker thread; when the caller is cancelled, the snapshot is closed all the same."""
    opening = asyncio.get_running_loop().run_in_executor(executor, replica.snapshot, token_range, floors)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_late)
        raise


def _close_late(opening: asyncio.Future[ReplicaSnapshot]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
