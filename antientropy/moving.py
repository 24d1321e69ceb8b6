"""Moving the rows of a plan: the coordinator fetches what it lacks, everybody else gets rows from their holders.

All transfers of a plan run at once; each is cut into pages, so that progress is seen and a loss costs little. Rows are
durable on their receiver when a page ends. Before a page travels, the own current rows are looked at again: what a
foreground write has changed meanwhile is left to it, and compared again in the next pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from antientropy.core.plan import RepairPlan, Transfer
from antientropy.core.rows import Row, RowDigests
from antientropy.core.session import UnitSession
from antientropy.core.tokens import TokenRange
from antientropy.errors import PeerError, SessionLostError
from antientropy.limits import ROWS_PER_PUSH_MAX
from antientropy.peer_client import Moved, PeerClient
from antientropy.running import RunContext
from antientropy.snapshots import ReplicaSnapshot
from antientropy.store import RowReader

Tokens = NDArray[np.uint64]
Result = TypeVar("Result")


class PlanMover:
    """Carries one plan out.

    Args:
        context: The repair.
        session: The unit; told of every page.
        clients: Of the plan's replicas 1, 2, ..., in order.
        snapshot: What the plan was made from.
        opened: Opens the session of a peer that is equal, so that it can give and be given rows.
        failed: Told of a peer that fails.
    """

    def __init__(
        self,
        context: RunContext,
        session: UnitSession,
        clients: list[PeerClient],
        snapshot: ReplicaSnapshot,
        *,
        opened: Callable[[PeerClient], Coroutine[Any, Any, None]],
        failed: Callable[[str, str], None],
    ) -> None:
        self._context = context
        self._session = session
        self._clients = clients
        self._snapshot = snapshot
        self._opened = opened
        self._failed = failed
        self._reading = asyncio.Lock()
        self._fetched = np.empty(0, np.uint64)
        self.touched: set[str] = set()
        """Peers that gave or got rows, or may have."""
        self.own_rows_changed = False

    async def move(self, plan: RepairPlan) -> None:
        """Returns when all transfers have ended, well or not.

        Raises:
            StoreError: the own store failed; rows that were applied before stay.
        """
        settled = np.setdiff1d(plan.tokens, await self._unsettled(plan.tokens), assume_unique=True)
        plan = plan.only(~np.isin(plan.tokens, settled))
        self._fetched = plan.tokens[plan.lacks[0]]
        transfers = plan.transfers
        self._context.narrator.planned(plan.copies)
        peers = {number for one in transfers for number in (one.source, one.target)} - {0}
        if len(plan.colliding_tokens):
            peers |= set(range(1, len(self._clients) + 1))
        await self._all(
            [
                self._guarded(client, self._opened(client))
                for client in (self._clients[number - 1] for number in sorted(peers))
                if not client.session_open
            ]
        )
        await self._all([self._transfer(one) for one in transfers])
        if len(plan.colliding_tokens):
            await self._move_colliding(plan)

    # --- one transfer ---

    async def _transfer(self, transfer: Transfer) -> None:
        source = self._clients[transfer.source - 1] if transfer.source else None
        target = self._clients[transfer.target - 1] if transfer.target else None
        left = len(transfer.tokens)
        rows = 0
        for start in range(0, len(transfer.tokens), ROWS_PER_PUSH_MAX):
            if not (self._usable(source) and self._usable(target)):
                break
            page = transfer.tokens[start : start + ROWS_PER_PUSH_MAX]
            # The first look was a moment ago; and what this plan itself brings here is no foreground write.
            tokens = page
            if start:
                looked_at = page if target is None else np.setdiff1d(page, self._fetched, assume_unique=True)
                settled = np.setdiff1d(looked_at, await self._unsettled(looked_at), assume_unique=True)
                tokens = np.setdiff1d(page, settled, assume_unique=True)
            left -= len(page)
            self._context.narrator.planned(len(tokens) - len(page))
            if not len(tokens):
                continue
            moved = await self._page(source, target, tokens)
            if moved is None:
                self._context.narrator.planned(-len(tokens))
                break
            rows += moved.sent
            self._count(moved)
            self._session.moved(transfer, tokens)
        self._context.narrator.planned(-left)
        if rows:
            self._tell(source, target, rows)

    def _usable(self, client: PeerClient | None) -> bool:
        return client is None or client.endpoint not in self._session.failures

    async def _page(self, source: PeerClient | None, target: PeerClient | None, tokens: Tokens) -> Moved | None:
        """Move the rows at some tokens; None: a peer failed."""
        for client in (source, target):
            if client is not None:
                self.touched.add(client.endpoint)
        if source is None and target is not None:
            return await self._guarded(target, self._push(target, tokens))
        if target is None and source is not None:
            return await self._guarded(source, self._fetch(source, tokens))
        if source is None or target is None:
            raise ValueError("a transfer from the coordinator to itself")
        return await self._send(source, target, tokens)

    async def _fetch(self, source: PeerClient, tokens: Tokens) -> Moved:
        sent = applied = size = 0
        async with aclosing(source.fetch(tokens)) as chunks:
            async for rows in chunks:
                self.own_rows_changed = True
                applied += await self._apply(rows)
                sent += len(rows)
                size += sum(len(row.key) + len(row.value) for row in rows)
        return Moved(sent, applied, size)

    async def _apply(self, rows: list[Row]) -> int:
        store = self._context.replica.store
        return await self._context.in_thread(lambda: store.apply(rows, from_repair=True))

    async def _push(self, target: PeerClient, tokens: Tokens) -> Moved:
        readers: list[RowReader] = []
        store = self._context.replica.store

        def rows() -> Iterator[Row]:
            # Called once for each attempt, in the event loop; the reader opens with the first row, in a thread.
            def read() -> Iterator[Row]:
                reader = store.read()
                readers.append(reader)
                yield from reader.rows_at(tokens.tolist())

            return read()

        try:
            return await target.push(rows)
        finally:
            for reader in readers:
                await self._context.in_thread(reader.close)

    async def _send(self, source: PeerClient, target: PeerClient, tokens: Tokens) -> Moved | None:
        try:
            return await source.send_rows(target.endpoint, tokens)
        except SessionLostError as error:
            self._failed(source.endpoint, error.detail)
        except PeerError as error:
            # Which of the two it is, or only the way between them, shows when they are compared next.
            self._context.broken_links.add((source.endpoint, target.endpoint))
            self._context.narrator.say(
                f"Endpoint {source.endpoint} could not send rows to {target.endpoint} ({error.detail}): "
                "they will go another way"
            )
        return None

    # --- tokens that keys share ---

    async def _move_colliding(self, plan: RepairPlan) -> None:
        """Fetch all rows there from whoever differs, then give all rows there to everybody."""
        for number, client in enumerate(self._clients, start=1):
            if len(plan.colliding[number]) and self._usable(client):
                self.touched.add(client.endpoint)
                moved = await self._guarded(client, self._fetch(client, plan.colliding[number]))
                if moved is not None:
                    self._count(moved)
        for client in self._clients:
            if self._usable(client):
                self.touched.add(client.endpoint)
                moved = await self._guarded(client, self._push(client, plan.colliding_tokens))
                if moved is not None:
                    self._count(moved)

    # --- helpers ---

    async def _unsettled(self, tokens: Tokens) -> Tokens:
        """Those at which the own store still holds what the snapshot held; the others are left to their writes."""
        async with self._reading:
            changed = await self._context.in_thread(self._changed, tokens)
        if not len(changed):
            return tokens
        self._session.left_to_writes(changed)
        return np.setdiff1d(tokens, changed, assume_unique=True)

    def _changed(self, tokens: Tokens) -> Tokens:
        snapshot = self._snapshot
        if not len(tokens) or self._context.replica.root(snapshot.token_range, snapshot.floors) == snapshot.root:
            return np.empty(0, np.uint64)
        ranges = [TokenRange(token, token) for token in tokens.tolist()]
        before = RowDigests.concatenate([*self._snapshot.digests(ranges)])
        reader = self._context.replica.store.read()
        try:
            now = RowDigests.concatenate([*reader.digests(ranges)])
        finally:
            reader.close()
        return changed_tokens(before, now)

    def _count(self, moved: Moved) -> None:
        statistics = self._context.statistics
        statistics.rows_moved += moved.sent
        statistics.rows_optimal += moved.applied
        self._context.narrator.planned(0)

    def _tell(self, source: PeerClient | None, target: PeerClient | None, rows: int) -> None:
        here, keyspace = self._context.local, self._context.keyspace
        if target is None and source is not None:
            self._context.narrator.say(f"Endpoint {here} received {rows} rows from {source.endpoint} for {keyspace}")
        elif target is not None:
            origin = here if source is None else source.endpoint
            self._context.narrator.say(f"Endpoint {origin} sent {rows} rows to {target.endpoint} for {keyspace}")

    async def _guarded(self, client: PeerClient, step: Coroutine[Any, Any, Result]) -> Result | None:
        """A peer's fault ends its pair; any other ends the repair."""
        try:
            return await step
        except PeerError as error:
            self._failed(client.endpoint, error.detail)
            return None

    @staticmethod
    async def _all(steps: list[Coroutine[Any, Any, Any]]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for step in steps:
                    group.create_task(step)
        except BaseExceptionGroup as errors:
            # The first fault says it; the others are its consequences.
            raise errors.exceptions[0] from None


def changed_tokens(before: RowDigests, now: RowDigests) -> Tokens:
    """Tokens at which two lists of rows, each in the order of tokens, differ."""
    if len(before) == len(now) and bool((before.tokens == now.tokens).all() and (before.digests == now.digests).all()):
        return np.empty(0, np.uint64)
    rows = np.concatenate([np.column_stack((one.tokens, one.versions, one.digests)) for one in (before, now)])
    # A row that is on both sides is there twice.
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    tokens: Tokens = np.unique(distinct[counts == 1][:, 0])
    return tokens
