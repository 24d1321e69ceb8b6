"""The shell around finding what a pair differs in: rows by the locator, or only parts of the token line."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from antientropy.core.locate import Locator
from antientropy.core.reconcile import Difference
from antientropy.core.requests import FAN_OUT, HashesRequest, LocateRequest
from antientropy.core.tokens import BUCKET_LEVEL, TokenRange, covering
from antientropy.core.tree_search import child_hashes
from antientropy.errors import PeerError, PeerMessageError
from antientropy.limits import DIFFERENCE_ROWS_MAX
from antientropy.peer_client import PeerClient, RootsAnswer
from antientropy.running import RunContext
from antientropy.snapshots import ReplicaSnapshot

_SALT_BITS: Final = 32


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """What was found with one peer."""

    difference: Difference | None
    """None: about ``estimate`` rows differ, too many for one unit."""
    estimate: int = 0
    with_digests: bool = False
    """Content that differs at equal versions is in the difference."""


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
    limit = DIFFERENCE_ROWS_MAX if rows_max is None else rows_max + 1
    least = abs(answer.root_count - snapshot.root.count)
    if rows_max is not None and least > rows_max:
        return Located(None, least)
    salt = context.random.getrandbits(_SALT_BITS)

    def begin() -> Locator:
        return Locator(
            snapshot,
            remote_count=answer.root_count,
            first=answer.symbols,
            strategy=context.options.strategy,
            salt=salt,
            rows_max=limit,
        )

    with_digests = False
    try:
        async with reading:
            locator = await context.in_thread(begin)
        while True:
            async with reading:
                request = await context.in_thread(locator.next_request)
            if request is None:
                break
            with_digests |= any(part is not None and part.with_digests for part in (request.hashes, request.rows))
            found = await client.locate(request)
            async with reading:
                await context.in_thread(locator.feed, found)
        async with reading:
            difference = await context.in_thread(lambda: locator.difference)
    except PeerMessageError as error:
        raise PeerError(client.endpoint, f"broke the protocol: {error}") from error
    if rows_max is not None and (locator.complete_to < snapshot.token_range.last or len(difference) > rows_max):
        return Located(None, _estimate(len(difference), locator.complete_to, snapshot.token_range))
    strategies = context.statistics.strategies
    for strategy in locator.found_by:
        strategies[strategy.value] = strategies.get(strategy.value, 0) + 1
    return Located(difference, with_digests=with_digests)


def _estimate(rows: int, complete_to: int, token_range: TokenRange) -> int:
    """How many rows differ in a range of which a part was searched, if they are spread evenly."""
    searched = min(complete_to, token_range.last) - token_range.first + 1
    whole = token_range.last - token_range.first + 1
    return max(1, rows) if searched <= 0 else max(1, rows * whole // searched)


async def differing_parts(
    context: RunContext, client: PeerClient, snapshot: ReplicaSnapshot, reading: asyncio.Lock
) -> tuple[int, NDArray[np.int64]]:
    """Which nodes of a level differ in a pair whose roots are unequal, by one round trip: no rows are looked at.

    Returns the level (2 where both trees are so deep: buckets) and the nodes, ascending.

    Raises:
        PeerError: the peer failed.
    """
    tree = snapshot.tree
    for level in range(min(BUCKET_LEVEL, tree.depth) - 1, -1, -1):
        first, last = covering(snapshot.token_range, level)
        nodes = np.arange(first, last + 1, dtype=np.int64)
        salt = context.random.getrandbits(_SALT_BITS)
        async with reading:
            hashes = await context.in_thread(child_hashes, tree, level, nodes, salt)
        request = LocateRequest(hashes=HashesRequest(level, tree.depth, salt, nodes, hashes, with_digests=False))
        answer = await client.locate(request)
        if answer.hashes is None:
            raise PeerError(client.endpoint, "broke the protocol: no hashes")
        if len(answer.hashes.masks) == len(nodes):
            unequal = (answer.hashes.masks[:, None] >> np.arange(FAN_OUT, dtype=np.uint16)) & np.uint16(1) != 0
            return level + 1, (nodes[:, None] * FAN_OUT + np.arange(FAN_OUT))[unequal]
    return 0, np.zeros(1, np.int64)
