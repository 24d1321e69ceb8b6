"""Opening a snapshot in a worker thread without ever losing it: an open snapshot keeps old pages of its store."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from antientropy.core.merkle import HashTree
from antientropy.core.rows import RowDigests
from antientropy.core.tokens import TokenRange
from antientropy.store import RowStore, StoreSnapshot


def open_snapshot(store: RowStore, token_range: TokenRange) -> tuple[StoreSnapshot, HashTree]:
    """A snapshot of a store, and its tree restricted to a range. Blocks."""
    snapshot = store.snapshot()
    try:
        tree = snapshot.tree
        edges = RowDigests.concatenate([*snapshot.digests(tree.edges(token_range))])
        return snapshot, tree.restricted(token_range, edges)
    except BaseException:
        snapshot.close()
        raise


async def open_in_thread(
    executor: Executor, store: RowStore, token_range: TokenRange
) -> tuple[StoreSnapshot, HashTree]:
    """:func:`open_snapshot` in a worker thread; when the caller is cancelled, the snapshot is closed all the same."""
    opening = asyncio.get_running_loop().run_in_executor(executor, open_snapshot, store, token_range)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_late)
        raise


def _close_late(opening: asyncio.Future[tuple[StoreSnapshot, HashTree]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[0].close()
