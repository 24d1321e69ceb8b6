"""The shell of one unit: asks the state machine what to do, does it with all peers at once, and leaves nothing behind.

A unit has a session of its own on every participant, named alike: its lease, its snapshots. Heartbeats keep them while
something takes long. Whatever happens (the end, a fault, a pause, a cancellation), snapshots, sessions and leases are
given back before :meth:`UnitRun.run` returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from antientropy.config import version_text
from antientropy.core import deletes
from antientropy.core.merkle import EMPTY_ROOT, Root
from antientropy.core.plan import RepairPlan
from antientropy.core.reconcile import Difference
from antientropy.core.session import (
    Compare,
    End,
    Locate,
    Move,
    Rebuild,
    Split,
    Step,
    UnitLimits,
    UnitSession,
    Verdict,
    Wait,
)
from antientropy.core.tokens import BUCKET_LEVEL, BUCKETS, TokenRange
from antientropy.errors import PeerError, RepairError
from antientropy.leases import LeaseDenied, new_session
from antientropy.locating import differing_parts, locate_pair
from antientropy.moving import PlanMover
from antientropy.options import RepairMode
from antientropy.peer_client import OpenSession, PeerClient, RefusalKind, RootsAnswer
from antientropy.reports import SessionState
from antientropy.running import HeldElsewhereError, RunContext, close_clients
from antientropy.snapshots import ReplicaSnapshot, open_in_thread

#: A peer that does not take its session back in this time closes it itself when its lease expires.
CLOSE_TIMEOUT_SECONDS: Final = 2.0
#: Between two looks at a replica that is building its index.
_NOT_READY_PAUSE_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class UnitResult:
    """How a unit ended."""

    verdict: Verdict | None
    """None: it was cut into ``parts``."""
    peers: tuple[str, ...]
    """Those that were there to the end."""
    failures: dict[str, str]
    root: Root
    """The own root when it was compared last; that of all peers when VERIFIED."""
    parts: tuple[TokenRange, ...] = ()
    plan: RepairPlan | None = None
    """Of a preview, with ``peers`` as its replicas 1, 2, ..."""
    rows_differing: int = 0
    session: int = 0
    """The name that it had between the replicas."""
    settled: bool = False
    """Every row older than what the unit vouches for is the same on all replicas that took part."""
    acknowledged_version: int = 0
    """Every one of them has recorded that it is repaired up to here."""
    floors: NDArray[np.uint64] | None = None
    """The greatest floors of all; None: it was forced, so none counted."""


@dataclass(frozen=True, slots=True)
class Vouching:
    """What a unit tells of deletes; see core/deletes.py. All 0: nothing, since not every replica takes part."""

    as_of: int = 0
    """The version that the unit counts for if it is complete."""
    confirmed_session: int = 0
    """An earlier session of this range that was complete."""
    purge_version: int = 0
    """Every replica has recorded that it is repaired up to here."""
    replicas: tuple[str, ...] = ()
    """All of the range, ordered: a peer that sees others refuses."""


class UnitRun:
    """One unit with those of its peers that are there.

    Args:
        context: The repair.
        token_range: The unit.
        peers: Endpoints.
        vouching: Told to the peers.
        counts_pairs: Whether its pairs are in the statistics: a whole range for the first time.
        preview: Called with plan, snapshot and clients of a preview, while they are open.
    """

    def __init__(
        self,
        context: RunContext,
        token_range: TokenRange,
        peers: Iterable[str],
        *,
        vouching: Vouching,
        counts_pairs: bool,
        preview: Callable[[RepairPlan, ReplicaSnapshot, list[PeerClient]], Coroutine[Any, Any, None]],
    ) -> None:
        config = context.config
        self._context = context
        self._range = token_range
        self._vouching = vouching
        self._preview = preview
        self._number = new_session(context.clock(), context.random)
        self._clients = {endpoint: context.client(endpoint, token_range, self._number) for endpoint in peers}
        self._session = UnitSession(
            token_range,
            tuple(self._clients),
            context.options.mode,
            UnitLimits(
                passes_max=config.passes_max,
                rows_max=rows_max(context),
                in_flight_seconds=config.in_flight_seconds,
                in_flight_waits_max=config.in_flight_waits_max,
                version_time=config.version_time,
            ),
            context.broken_links,
        )
        self._floors: NDArray[np.uint64] | None = None
        self._others_floors = deletes.no_versions()
        self._fenced = False
        self._acknowledged: dict[str, int] = {}
        self._counts_pairs = counts_pairs
        self._counted: set[str] = set()
        self._counted_rows = False
        self._root = EMPTY_ROOT
        self._epoch = 0
        self._answers: dict[str, RootsAnswer] = {}
        self._snapshot: ReplicaSnapshot | None = None
        self._moved_once = False
        self._chain: dict[str, int] = {}
        self._not_ready_since: float | None = None

    async def run(self) -> UnitResult:
        """Run it to its end.

        Raises:
            HeldElsewhereError: another repair holds an overlapping range; nothing has happened.
            StoreError: the own store failed; rows that were applied before stay.
        """
        context = self._context
        lease = context.leases.hold(context.keyspace, self._range, self._number)
        if isinstance(lease, LeaseDenied):
            raise HeldElsewhereError(
                lease.holder,
                f"this node takes part in a repair of {lease.holder} that holds an overlapping range",
                lease.retry_after_seconds,
            )
        keeping = asyncio.create_task(self._keep_leases(), name="antientropy heartbeats")
        try:
            return await self._steps()
        finally:
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping
            await self._leave()

    async def _leave(self) -> None:
        """Give everything back, also when cancelled."""
        if not self._counted_rows:
            self._context.statistics.rows_differing += self._session.rows_moved
        try:
            await self._close_snapshot()
        finally:
            self._context.leases.release(self._number)
            await close_clients(self._clients.values(), CLOSE_TIMEOUT_SECONDS)

    async def _steps(self) -> UnitResult:
        while True:
            step = self._session.next(self._context.clock())
            if not isinstance(step, End | Split):
                await self._do(step)
                continue
            try:
                return await self._ended(step)
            except PeerError as error:
                # While a preview was counted: the others are looked at once more, without this one.
                self._fail(error.endpoint, error.detail)
                self._session.restart()

    async def _do(self, step: Step) -> None:
        match step:
            case Compare(peers):
                await self._compare(peers)
            case Locate(peers):
                await self._locate(peers)
            case Move(plan):
                await self._move(plan)
            case Wait(seconds):
                await self._close_snapshot()
                await asyncio.sleep(seconds)
            case Rebuild(reason):
                self._context.narrator.say(f"{reason}: building the index anew, with other hashes")
                await self._rebuild(self._context.replica.epoch + 1)

    async def _ended(self, step: End | Split) -> UnitResult:
        session, context = self._session, self._context
        if isinstance(step, End) and step.plan is not None and self._snapshot is not None:
            await self._preview(step.plan, self._snapshot, [self._clients[endpoint] for endpoint in session.live])
            session.rows_differing, session.rows_conflicting = len(step.plan), step.plan.conflicts
        self._count_chain()
        self._counted_rows = True
        context.statistics.rows_differing += session.rows_differing
        context.statistics.rows_conflicting += session.rows_conflicting
        context.statistics.rows_in_flight += session.rows_in_flight
        return UnitResult(
            verdict=step.verdict if isinstance(step, End) else None,
            peers=tuple(session.live),
            failures=session.failures,
            root=self._root,
            parts=step.parts if isinstance(step, Split) else (),
            plan=step.plan if isinstance(step, End) else None,
            rows_differing=session.rows_differing,
            session=self._number,
            settled=isinstance(step, End) and self._settled(step),
            acknowledged_version=await self._acknowledged_version(),
            floors=self._floors,
        )

    def _settled(self, step: End) -> bool:
        """Whether all differences that are left are of writes newer than what the unit vouches for."""
        if step.verdict is Verdict.VERIFIED:
            return True
        plan, as_of = step.plan, self._vouching.as_of
        if step.verdict is not Verdict.UNSETTLED or plan is None or len(plan.colliding_tokens) or not as_of:
            return False
        return bool((plan.winners.versions >= np.uint64(as_of)).all())

    async def _acknowledged_version(self) -> int:
        """What every replica has recorded, this one included; 0: one has not said anything."""
        if not self._vouching.as_of or set(self._acknowledged) < set(self._clients):
            return 0
        own = await self._context.in_thread(self._context.marks.repaired_version, self._range)
        return min([own, *self._acknowledged.values()])

    # --- comparing ---

    async def _compare(self, peers: tuple[str, ...]) -> None:
        context = self._context
        context.narrator.entered(SessionState.VERIFYING if self._moved_once else SessionState.COMPARING)
        self._count_chain()
        await self._close_snapshot()
        if not self._fenced:
            await context.in_thread(self._fence)
            self._fenced = True
        self._root = await context.in_thread(context.replica.root, self._range, self._floors)
        epoch = self._epoch = context.replica.epoch
        await self._each(peers, lambda client: self._compare_with(client, epoch))
        if refused := [answer.refusal for answer in self._answers.values() if answer.refusal is not None]:
            await self._refused(refused[0].kind, refused[0].retry_after_seconds)
            return
        answers = {endpoint: self._answers[endpoint] for endpoint in peers if endpoint in self._answers}
        if any(answer.epoch != epoch for answer in answers.values()):
            await self._match_epochs(epoch, answers)
            return
        if self._raised_floors(answers):
            return
        self._not_ready_since = None
        self._count_pairs(answers)
        for endpoint, answer in answers.items():
            self._session.compared(endpoint, equal=answer.equal)
            if not answer.equal:
                continue
            context.narrator.say(f"Endpoints {context.local} and {endpoint} are consistent for {context.keyspace}")

    def _count_pairs(self, answers: dict[str, RootsAnswer]) -> None:
        """Each pair counts once, by what it was found to be at first; parts of a range do not count again."""
        if not self._counts_pairs:
            return
        fresh = [answer for endpoint, answer in answers.items() if endpoint not in self._counted]
        self._counted.update(answers)
        self._context.statistics.pairs_compared += len(fresh)
        self._context.statistics.pairs_equal += sum(answer.equal for answer in fresh)

    async def _compare_with(self, client: PeerClient, epoch: int) -> None:
        self._answers.pop(client.endpoint, None)
        answer = await client.compare(
            self._root,
            self._floors,
            epoch=epoch,
            open_session=OpenSession.IF_UNEQUAL,
            repaired_version=self._vouching.as_of,
            confirmed_session=self._vouching.confirmed_session,
            purge_version=self._vouching.purge_version,
            replicas=self._vouching.replicas,
            forced=self._context.options.force,
        )
        refusal = answer.refusal
        if refusal is not None and refusal.kind is RefusalKind.LEASED:
            self._answers[client.endpoint] = answer
            raise HeldElsewhereError(
                refusal.holder,
                f"Endpoint {client.endpoint} takes part in a repair of {refusal.holder or 'another node'} that holds "
                "an overlapping range",
                refusal.retry_after_seconds,
            )
        if refusal is not None and refusal.kind not in (RefusalKind.BUSY, RefusalKind.NOT_READY):
            self._fail(client.endpoint, f"takes no part: {refusal.detail}")
            return
        if answer.repaired_version:
            self._acknowledged[client.endpoint] = answer.repaired_version
        self._answers[client.endpoint] = answer

    def _fence(self) -> None:
        """Close the own past before the own rows are looked at, and take the own floors, in this order."""
        marks = self._context.marks
        if self._vouching.as_of:
            marks.fence(self._number, self._range, self._vouching.as_of)
        if not self._context.options.force:
            floors = marks.read().floors
            self._floors = np.where(deletes.buckets_touched(self._range), floors, np.uint64(0))

    async def _refused(self, kind: RefusalKind, retry_after_seconds: float) -> None:
        """Some peer is building its index, or has no room for a session."""
        waiting = {
            endpoint: answer.refusal.detail
            for endpoint, answer in self._answers.items()
            if answer.refusal is not None and endpoint not in self._session.failures
        }
        await self._wait_for(waiting, kind.name.lower().replace("_", " "), retry_after_seconds)

    async def _wait_for(self, waiting: dict[str, str], what: str, retry_after_seconds: float = 0.0) -> None:
        """Some peers (why, by name) cannot be compared now: look again in a while, not for ever."""
        now = asyncio.get_running_loop().time()
        if self._not_ready_since is None:
            self._not_ready_since = now
            self._context.narrator.say(f"waiting for a replica that is {what}")
        if now - self._not_ready_since > self._context.config.not_ready_wait_seconds:
            for endpoint, detail in waiting.items():
                self._fail(endpoint, f"takes no part: {detail}")
        for endpoint in waiting:
            self._answers.pop(endpoint, None)
        await asyncio.sleep(min(max(retry_after_seconds, _NOT_READY_PAUSE_SECONDS), 2.0))

    async def _match_epochs(self, own: int, answers: dict[str, RootsAnswer]) -> None:
        """Hashes of different epochs cannot be compared: the lesser side builds anew."""
        self._session.restart()
        greatest = max(answer.epoch for answer in answers.values())
        if greatest > own:
            self._context.narrator.say(f"building the index anew for hashes of epoch {greatest}")
            await self._rebuild(greatest)
            return
        behind = {name: answer.epoch for name, answer in answers.items() if answer.epoch != own}
        await self._wait_for(
            {name: f"its hashes are still those of epoch {epoch}, not {own}" for name, epoch in behind.items()},
            "building its index anew",
        )

    def _raised_floors(self, answers: dict[str, RootsAnswer]) -> bool:
        """Take the greatest purge floors of all; whether they have changed: then all is compared again."""
        if self._floors is None:
            return False
        theirs = deletes.merged(*(answer.floors for answer in answers.values()))
        self._others_floors = deletes.merged(self._others_floors, theirs)
        floors = deletes.merged(self._floors, theirs)
        if bool((floors == self._floors).all()):
            return False
        self._floors = floors
        self._session.restart()
        return True

    def _check_clean(self, snapshot: ReplicaSnapshot) -> None:
        """Refuse to bring rows back whose tombstones are gone elsewhere.

        Raises:
            RepairError: this replica was away for too long.
        """
        if self._floors is None:
            return
        marks = self._context.marks.read()
        level = snapshot.tree.levels[min(BUCKET_LEVEL, snapshot.tree.depth)]
        empty = np.repeat(level.counts == 0, BUCKETS // len(level.counts))
        unclean = deletes.unclean(marks.repaired, empty, self._others_floors) & deletes.buckets_touched(self._range)
        if unclean.any():
            when = version_text(self._context.config.version_time)
            raise RepairError(deletes.refusal(self._context.local, unclean, marks.repaired, self._others_floors, when))

    async def _rebuild(self, epoch: int) -> None:
        await self._close_snapshot()
        await asyncio.wrap_future(self._context.replica.rebuild(epoch))

    # --- finding ---

    async def _locate(self, peers: tuple[str, ...]) -> None:
        context = self._context
        if self._snapshot is None:
            self._snapshot = await open_in_thread(context.executor, context.replica, self._range, self._floors)
            if self._snapshot.epoch != self._epoch:
                # The hashes were made anew meanwhile: those of the peers' snapshots cannot be compared with them.
                self._session.restart()
                return
            await context.in_thread(self._check_clean, self._snapshot)
        snapshot = self._snapshot
        consistent = snapshot.root == self._root
        reading = asyncio.Lock()

        async def validate(client: PeerClient) -> None:
            level, nodes = await differing_parts(context, client, snapshot, reading)
            self._session.located(client.endpoint, Difference.concatenate([]), consistent=False)
            context.narrator.say(
                f"Endpoints {context.local} and {client.endpoint} differ in {len(nodes)} of {16**level} parts of the "
                f"token line for {context.keyspace}: {', '.join(map(str, nodes.tolist()))}"
            )

        async def locate(client: PeerClient) -> None:
            found = await locate_pair(
                context, client, self._answers[client.endpoint], snapshot, reading, rows_max=self._session.rows_max
            )
            if found.difference is None:
                self._session.oversized(client.endpoint, found.estimate)
                return
            self._session.located(
                client.endpoint, found.difference, consistent=consistent, with_digests=found.with_digests
            )
            context.narrator.say(
                f"Endpoints {context.local} and {client.endpoint} have {len(found.difference)} rows out of sync "
                f"for {context.keyspace}"
            )

        await self._each(peers, validate if context.options.mode is RepairMode.VALIDATE else locate)

    # --- moving ---

    async def _move(self, plan: RepairPlan) -> None:
        snapshot = self._snapshot
        if snapshot is None:
            raise RuntimeError("rows are to move, but nothing was compared")
        self._context.narrator.entered(SessionState.STREAMING)
        live = self._session.live
        mover = PlanMover(
            self._context,
            self._session,
            [self._clients[endpoint] for endpoint in live],
            snapshot,
            opened=self._open_session,
            failed=self._fail,
        )
        await mover.move(plan)
        self._moved_once = True
        if mover.own_rows_changed:
            self._session.own_rows_changed()
        self._session.move_ended(sorted(mover.touched))
        await self._close_snapshot()

    async def _open_session(self, client: PeerClient) -> None:
        """A peer that is equal is to get rows of others: they are only taken in a session."""
        answer = await client.compare(
            self._root, self._floors, epoch=self._context.replica.epoch, open_session=OpenSession.ALWAYS
        )
        if answer.refusal is not None:
            raise PeerError(client.endpoint, f"takes no part: {answer.refusal.detail}")

    # --- helpers ---

    async def _each(self, peers: Iterable[str], step: Callable[[PeerClient], Coroutine[Any, Any, None]]) -> None:
        """A step with some peers at once. A peer's fault ends its pair; any other ends the unit."""

        async def guarded(client: PeerClient) -> None:
            try:
                await step(client)
            except PeerError as error:
                self._fail(client.endpoint, error.detail)

        try:
            async with asyncio.TaskGroup() as group:
                for endpoint in peers:
                    group.create_task(guarded(self._clients[endpoint]))
        except BaseExceptionGroup as errors:
            # The first fault says it; the others are its consequences.
            raise errors.exceptions[0] from None

    def _fail(self, endpoint: str, reason: str) -> None:
        self._answers.pop(endpoint, None)
        self._session.failed(endpoint, reason)

    async def _keep_leases(self) -> None:
        """Heartbeats, while something takes long; a lost session shows at the next call."""
        while True:
            await asyncio.sleep(self._context.config.heartbeat_seconds)
            if not self._context.leases.keep(self._number):
                # This process stood still for too long. Nobody else may have taken it; if so, the peers will tell.
                self._context.leases.hold(self._context.keyspace, self._range, self._number)
            for client in self._clients.values():
                with suppress(PeerError):
                    await client.heartbeat()

    def _count_chain(self) -> None:
        """Round trips of a pass: those of the pair that had most, since pairs do not wait for each other."""
        longest = max((client.requests - self._chain.get(name, 0) for name, client in self._clients.items()), default=0)
        self._context.statistics.round_trips += longest
        self._chain = {name: client.requests for name, client in self._clients.items()}

    async def _close_snapshot(self) -> None:
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            await self._context.in_thread(snapshot.close)


def rows_max(context: RunContext) -> int:
    """Differing rows of a unit, so that their bytes are bounded too, by the average row here."""
    store, config = context.replica.store, context.config
    average = max(1, store.stored_bytes // max(1, store.row_count))
    return max(1, min(config.unit_rows_max, config.unit_bytes_max // average))
