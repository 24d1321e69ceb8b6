"""The shell around finding the rows in which a pair differs."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from antientropy.core.merge import TokenMerge
from antientropy.core.reconcile import Difference, difference
from antientropy.options import Strategy
from antientropy.peer_client import PeerClient, RootsAnswer
from antientropy.running import RunContext
from antientropy.snapshots import ReplicaSnapshot


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """What was found with one peer."""

    difference: Difference | None
    """None: about ``estimate`` rows differ, too many for one unit."""
    estimate: int = 0


async def locate_pair(
    context: RunContext,
    client: PeerClient,
    answer: RootsAnswer,
    snapshot: ReplicaSnapshot,
    reading: asyncio.Lock,
    *,
    rows_max: int | None,
) -> Located:
    """Find the differing rows of a pair whose roots are unequal.

    Args:
        context: The repair.
        client: The peer, with its session open.
        answer: What it said to the comparison.
        snapshot: The own side.
        reading: Held while the snapshot is used; several pairs share it.
        rows_max: Give up when more differ; None: however many do.

    Raises:
        PeerError: the peer failed.
        StoreError: the own store failed.
    """
    del answer
    context.statistics.strategies[Strategy.ROWS.value] = context.statistics.strategies.get(Strategy.ROWS.value, 0) + 1
    own = snapshot.digests([snapshot.token_range])
    merge = TokenMerge()
    parts: list[Difference] = []
    count = 0
    async with aclosing(client.row_digests(0, np.zeros(1, np.uint32))) as theirs:
        while side := merge.needs:
            if side == "remote":
                merge.feed_remote(await anext(theirs, None))
            else:
                async with reading:
                    merge.feed_local(await context.in_thread(next, own, None))
            here, there, _ = merge.take()
            if len(here) or len(there):
                part = await context.in_thread(difference, here, there)
                parts.append(part)
                count += len(part)
            if rows_max is not None and count > rows_max:
                return Located(None, count)
    return Located(Difference.concatenate(parts))
