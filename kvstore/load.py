"""LOAD: how many bytes a node holds, as the cluster is told."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from gossiper import ApplicationState, Gossiper, LifecycleError, NotRunningError
from kvstore.limits import LOAD_CHANGE_RATIO, LOAD_GAP_INTERVALS, LOAD_INTERVAL_SECONDS, LOAD_LOOK_SECONDS
from kvstore.store import NodeStore


def load_value(stored_bytes: int) -> str:
    """LOAD as Cassandra writes it: bytes, as a decimal fraction."""
    return str(float(stored_bytes))


def load_is_due(published_bytes: int, stored_bytes: int, age_seconds: float, interval_seconds: float) -> bool:
    """Whether LOAD is to be published again.

    Args:
        published_bytes: What was said last.
        stored_bytes: What is true now.
        age_seconds: Since it was said.
        interval_seconds: Of gossip.
    """
    if age_seconds >= LOAD_INTERVAL_SECONDS:
        return True
    changed = abs(stored_bytes - published_bytes) > LOAD_CHANGE_RATIO * published_bytes
    return changed and age_seconds >= LOAD_GAP_INTERVALS * interval_seconds


async def keep_load(gossiper: Gossiper, store: NodeStore, interval_seconds: float) -> None:
    """Keep LOAD, which was said at the start, close to the truth; until cancelled."""
    loop = asyncio.get_running_loop()
    published_bytes, published_at = store.stored_bytes, loop.time()
    while True:
        await asyncio.sleep(LOAD_LOOK_SECONDS)
        stored_bytes, age_seconds = store.stored_bytes, loop.time() - published_at
        if not load_is_due(published_bytes, stored_bytes, age_seconds, interval_seconds):
            continue
        with suppress(LifecycleError, NotRunningError):
            await gossiper.publish({ApplicationState.LOAD: load_value(stored_bytes)})
        published_bytes, published_at = stored_bytes, loop.time()
