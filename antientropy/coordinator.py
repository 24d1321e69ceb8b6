"""One repair of one range, seen from the node that coordinates it: the shell around the pair sessions.

A pass: compare all pairs with one snapshot of the own store, at once; plan over all pairs; fetch what is missing here;
give each peer what is missing there; compare the roots again. A peer that fails fails its pair only.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple

import numpy as np
from numpy.typing import NDArray

from antientropy.config import RepairConfig
from antientropy.core.merge import TokenMerge
from antientropy.core.merkle import Root
from antientropy.core.plan import PairPlan, RepairPlan, plan_repair
from antientropy.core.reconcile import Difference
from antientropy.core.rows import RowDigests
from antientropy.core.session import (
    AskDigests,
    AskNodes,
    AskRoots,
    AskRows,
    GiveRows,
    PairSession,
    Phase,
    RepairStatistics,
)
from antientropy.core.tokens import TOKEN_MAX, TokenRange, node_ranges
from antientropy.errors import DivergenceError, PeerError, PeerMessageError
from antientropy.legacy_client import PeerClient, RootsAnswer
from antientropy.replica import Replica
from antientropy.snapshots import ReplicaSnapshot, open_in_thread

logger = logging.getLogger(__name__)

_NO_TOKENS: Final = np.empty(0, np.uint64)
#: A peer that does not take its session back in this time closes it itself when it has been idle.
_CLOSE_TIMEOUT_SECONDS: Final = 2.0

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class RepairOutcome(Enum):
    """How a repair ended."""

    COMPLETED = "completed"
    """Every replica took part, and all are equal."""
    PARTIAL = "partial"
    """Some pairs failed or some replicas are down; those that took part are equal."""
    FAILED = "failed"
    """No pair was repaired, or the own store failed."""


@dataclass(frozen=True, slots=True)
class RepairUpdate:
    """A step of a repair, for people (``message``) and for programs (the rest)."""

    session_id: str
    message: str
    phase: Phase
    progress: float
    """Share of the work that is done, 0 to 1; 1 only when it is verified."""
    statistics: RepairStatistics
    outcome: RepairOutcome | None = None
    """Set in the last update only."""


Emit = Callable[[RepairUpdate], Awaitable[None]]


def _no_plan() -> PairPlan:
    return PairPlan(_NO_TOKENS, _NO_TOKENS, _NO_TOKENS)


@dataclass(slots=True, eq=False)
class Pair:
    """The coordinator and one peer."""

    client: PeerClient
    session: PairSession
    answer: RootsAnswer | None = None
    plan: PairPlan = field(default_factory=_no_plan)
    copies_left: int = 0
    """Row copies of this pass that have not yet travelled."""

    @property
    def endpoint(self) -> str:
        """The peer."""
        return self.client.endpoint

    @property
    def failed(self) -> bool:
        """Whether the pair is out of this repair."""
        return self.session.phase is Phase.FAILED


class RepairRun:
    """One repair. :meth:`run` once.

    ``pairs_of`` makes the pairs with the live peers; ``dead`` are replicas that are not alive and are left out.
    """

    def __init__(
        self,
        *,
        keyspace: str,
        token_range: TokenRange,
        replica: Replica,
        local: str,
        clients: Callable[[RepairStatistics], list[PeerClient]],
        dead: Sequence[str],
        config: RepairConfig,
        executor: Executor,
        emit: Emit,
    ) -> None:
        self.session_id = str(uuid.uuid4())
        self._keyspace = keyspace
        self._range = token_range
        self._replica = replica
        self._apply = partial(replica.store.apply, from_repair=True)
        self._local = local
        self._dead = dead
        self._config = config
        self._executor = executor
        self._emit = emit
        self._statistics = RepairStatistics()
        self._started_at = time.monotonic()
        self._phase = Phase.PREPARING
        self._progress = 0.0
        self._copies_planned = 1
        self._copies_done = 0
        self._pairs = [
            Pair(client, PairSession(config.passes_max, config.difference_rows_max, self._statistics))
            for client in clients(self._statistics)
        ]

    async def run(self) -> None:
        """Repair, with updates on the way; the last one carries the outcome.

        Raises:
            StoreError: the own store failed; rows that were applied before stay.
        """
        replicas = 1 + len(self._pairs) + len(self._dead)
        where = "" if self._range.is_full else f", tokens {self._range.first} to {self._range.last}"
        await self._say(
            f"Starting repair session {self.session_id} for keyspace {self._keyspace} with {replicas} replicas{where}"
        )
        for endpoint in self._dead:
            await self._say(f"Endpoint {endpoint} is not alive and is left out of this repair")
        if replicas == 1:
            await self._say(
                f"Replication factor is 1. No repair is needed for keyspace '{self._keyspace}'",
                outcome=RepairOutcome.COMPLETED,
            )
            return
        try:
            while pairs := [pair for pair in self._pairs if pair.session.phase not in (Phase.DONE, Phase.FAILED)]:
                await self._one_pass(pairs)
        finally:
            await self._close_sessions(self._pairs)
        await self._finish()

    async def _finish(self) -> None:
        good = [pair for pair in self._pairs if not pair.failed]
        bad = [pair.endpoint for pair in self._pairs if pair.failed] + list(self._dead)
        statistics = self._statistics
        moved = f"{statistics.rows_differing} rows differed, {statistics.rows_moved} row copies moved"
        self._phase = Phase.DONE if good else Phase.FAILED
        if not bad:
            self._progress = 1.0
            await self._say(f"Repair completed successfully: {moved}", outcome=RepairOutcome.COMPLETED)
        elif good:
            await self._say(f"Repair finished without {', '.join(bad)}: {moved}", outcome=RepairOutcome.PARTIAL)
        else:
            await self._say(
                f"Repair failed: no replica took part ({', '.join(bad)}); start or reach one and repair again",
                outcome=RepairOutcome.FAILED,
            )

    async def _one_pass(self, pairs: list[Pair]) -> None:
        """Compare, plan, move. Ends with sessions that are DONE, FAILED, or ask for roots again."""
        root = await self._in_thread(self._replica.root, self._range)
        await self._each(pairs, lambda pair: self._compare_roots(pair, root))
        unequal = [pair for pair in pairs if pair.session.phase is Phase.COMPARING]
        if not unequal:
            return
        await self._enter(Phase.COMPARING, 0.05)
        snapshot = await open_in_thread(self._executor, self._replica, self._range)
        try:
            reading = asyncio.Lock()
            await self._each(unequal, lambda pair: self._compare(pair, snapshot, reading))
            planned = await self._plan([pair for pair in self._pairs if not pair.failed])
            if planned is None:
                return
            streaming, plan = planned
            await self._stream(streaming, plan, snapshot)
        finally:
            await self._in_thread(snapshot.close)
        for pair in streaming:
            if not pair.failed:
                pair.session.verify()
        await self._enter(Phase.VERIFYING, 0.95)

    # --- comparing ---

    async def _compare_roots(self, pair: Pair, root: Root) -> None:
        request = pair.session.next_request()
        if not isinstance(request, AskRoots):
            raise TypeError(f"expected to compare roots, not {request}")
        pair.answer = await pair.client.compare_roots(root, open_session=request.open_session)
        pair.session.roots(equal=pair.answer.equal)
        names = f"Endpoints {self._local} and {pair.endpoint}"
        if pair.answer.equal:
            await self._say(f"{names} are consistent for {self._keyspace}")
        elif pair.session.unsettled:
            await self._say(f"{names} got new writes during this repair; all rows found different before were moved")

    async def _compare(self, pair: Pair, snapshot: ReplicaSnapshot, reading: asyncio.Lock) -> None:
        if pair.answer is None or pair.answer.child_hashes is None:
            raise PeerError(pair.endpoint, "broke the protocol: no session")
        pair.session.compare(snapshot.tree, pair.answer.tree_depth, pair.answer.child_hashes)
        while request := pair.session.next_request():
            if isinstance(request, AskNodes):
                pair.session.nodes(request, await pair.client.child_hashes(request))
            elif isinstance(request, AskDigests):
                await self._match_rows(pair, request, snapshot, reading)
        count = len(pair.session.found)
        if pair.session.complete_to < self._range.last:
            await self._say(f"Endpoints {self._local} and {pair.endpoint}: moving the first {count} differing rows")
        await self._say(
            f"Endpoints {self._local} and {pair.endpoint} have {count} rows out of sync for {self._keyspace}"
        )

    async def _match_rows(
        self, pair: Pair, request: AskDigests, snapshot: ReplicaSnapshot, reading: asyncio.Lock
    ) -> None:
        """List the rows below some nodes on both sides, in step, and let the session match them."""
        ranges = node_ranges(request.level, request.indices, self._range)
        own = snapshot.digests(ranges)
        merge = TokenMerge()
        async with aclosing(pair.client.row_digests(request, ranges)) as theirs:
            more = True
            while more and (side := merge.needs):
                if side == "remote":
                    chunk = await anext(theirs, None)
                    merge.feed_remote(chunk)
                else:
                    async with reading:
                        merge.feed_local(await self._in_thread(next, own, None))
                here, there, last = merge.take()
                if len(here) or len(there):
                    more = await self._in_thread(_match, pair.session, here, there, last)

    # --- moving ---

    async def _plan(self, pairs: list[Pair]) -> tuple[list[Pair], RepairPlan] | None:
        """Plan over all pairs, also those that are equal: they may lack what others bring. None: nothing to move."""
        differences: list[Difference] = []
        good: list[Pair] = []
        for pair in pairs:
            try:
                differences.append(pair.session.found)
                good.append(pair)
            except DivergenceError as error:
                await self._fail(pair, str(error))
        complete_to = min([pair.session.complete_to for pair in good], default=TOKEN_MAX)
        differences = [one.up_to(complete_to) for one in differences]
        plan = await self._in_thread(plan_repair, differences)
        streaming = []
        for pair, difference, part in zip(good, differences, plan.pairs, strict=True):
            idle = not (len(difference) or len(part.push_tokens) or len(plan.colliding_tokens))
            if pair.session.phase is Phase.DONE and idle:
                continue
            pair.plan = part
            pair.copies_left = len(part.fetch_tokens) + len(part.push_tokens)
            pair.session.stream(part, streamed=difference, cut=complete_to < TOKEN_MAX)
            streaming.append(pair)
        self._statistics.rows_differing += plan.rows_differing
        self._statistics.rows_optimal += plan.rows_optimal
        self._copies_planned = max(1, plan.rows_optimal)
        self._copies_done = 0
        return (streaming, plan) if streaming else None

    async def _stream(self, pairs: list[Pair], plan: RepairPlan, snapshot: ReplicaSnapshot) -> None:
        """Fetch from all peers, then give to all peers; rows are durable on their receiver when a call ends."""
        await self._enter(Phase.STREAMING, 0.3)
        await self._each(pairs, self._fetch)
        lost = np.unique(np.concatenate([*(pair.plan.fetch_tokens for pair in pairs if pair.failed), _NO_TOKENS]))
        await self._close_sessions(pairs)
        good = [pair for pair in pairs if not pair.failed]
        fetched = any(len(pair.plan.fetch_tokens) or len(pair.plan.colliding_tokens) for pair in pairs)
        source = snapshot
        if fetched:
            source = await open_in_thread(self._executor, self._replica, TokenRange.full())
        try:
            await self._each(good, lambda pair: self._give(pair, plan.colliding_tokens, lost, source))
        finally:
            if source is not snapshot:
                await self._in_thread(source.close)

    async def _fetch(self, pair: Pair) -> None:
        count = 0
        while request := pair.session.next_request():
            if not isinstance(request, AskRows):
                raise TypeError(f"expected to fetch rows, not {request}")
            arrived = 0
            async with aclosing(pair.client.rows(request.tokens)) as chunks:
                async for rows in chunks:
                    applied = await self._in_thread(self._apply, rows)
                    arrived += len(rows)
                    self._moved(pair, len(rows), applied, counted=request.counted)
            count += arrived
            if request.counted and arrived != len(request.tokens):
                raise PeerError(pair.endpoint, f"sent {arrived} of {len(request.tokens)} rows that it has listed")
        if count:
            await self._say(f"Endpoint {self._local} received {count} rows from {pair.endpoint} for {self._keyspace}")

    async def _give(
        self, pair: Pair, colliding: NDArray[np.uint64], lost: NDArray[np.uint64], source: ReplicaSnapshot
    ) -> None:
        keep = ~np.isin(pair.plan.push_tokens, lost)
        self._drop_copies(pair, int((~keep).sum()))
        pair.session.push(pair.plan.push_tokens[keep], colliding, lost)
        count = 0
        while request := pair.session.next_request():
            if not isinstance(request, GiveRows):
                raise TypeError(f"expected to give rows, not {request}")
            sent, applied = await pair.client.push(source.rows_at(request.tokens.tolist()))
            self._moved(pair, sent, applied, counted=request.counted)
            count += sent
        if count:
            await self._say(f"Endpoint {self._local} sent {count} rows to {pair.endpoint} for {self._keyspace}")

    def _moved(self, pair: Pair, rows: int, applied: int, *, counted: bool) -> None:
        pair.session.moved(rows, applied=applied, counted=counted)
        if counted:
            pair.copies_left -= rows
            self._copies_done += rows
            self._progress = max(self._progress, 0.3 + 0.6 * min(1.0, self._copies_done / self._copies_planned))

    def _drop_copies(self, pair: Pair, copies: int) -> None:
        """Copies that were planned and will not travel in this pass are no part of its optimum."""
        pair.copies_left -= copies
        self._statistics.rows_optimal -= copies

    # --- helpers ---

    async def _each(self, pairs: Iterable[Pair], step: Callable[[Pair], Coroutine[Any, Any, None]]) -> None:
        """A step for all pairs at once. A peer's fault ends its pair; any other ends the repair."""

        async def guarded(pair: Pair) -> None:
            try:
                await step(pair)
            except (PeerError, DivergenceError) as error:
                await self._fail(pair, str(error))
            except PeerMessageError as error:
                await self._fail(pair, f"Endpoint {pair.endpoint} broke the protocol: {error}")

        try:
            async with asyncio.TaskGroup() as group:
                for pair in pairs:
                    group.create_task(guarded(pair))
        except BaseExceptionGroup as errors:
            # The first fault says it; the others are its consequences.
            raise errors.exceptions[0] from None

    async def _fail(self, pair: Pair, reason: str) -> None:
        self._drop_copies(pair, pair.copies_left)
        pair.session.fail(reason)
        logger.warning("repair of %s with %s failed: %s", self._keyspace, pair.endpoint, reason)
        await self._say(f"Repair with {pair.endpoint} failed: {reason}")

    async def _close_sessions(self, pairs: Iterable[Pair]) -> None:
        """Give the peers' snapshots back. Best effort: an idle session closes itself."""

        async def close(pair: Pair) -> None:
            with suppress(PeerError, TimeoutError):
                async with asyncio.timeout(_CLOSE_TIMEOUT_SECONDS):
                    await pair.client.close_session()

        await asyncio.gather(*(close(pair) for pair in pairs))

    async def _enter(self, phase: Phase, progress: float) -> None:
        self._phase = phase
        self._progress = max(self._progress, progress)

    async def _say(self, message: str, *, outcome: RepairOutcome | None = None) -> None:
        self._statistics.elapsed_seconds = time.monotonic() - self._started_at
        logger.info("repair %s: %s", self.session_id, message)
        await self._emit(
            RepairUpdate(self.session_id, message, self._phase, self._progress, replace(self._statistics), outcome)
        )

    async def _in_thread(self, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)


def _match(session: PairSession, here: RowDigests, there: RowDigests, last: int) -> bool:
    return session.digests(here, there, last)
