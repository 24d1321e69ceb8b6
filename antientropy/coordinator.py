"""One repair, seen from the node that coordinates it: takes units from the list of what is to do, runs them, records.

A unit that ends verified is durable in the journal before the next begins. A pause ends the units that run (they leave
nothing behind and are done anew later); a cancellation, too. A unit whose range is held by another repair is put back
for a random time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from antientropy.core import deletes
from antientropy.core.session import Verdict
from antientropy.core.tokens import TokenRange
from antientropy.core.work import RepairWork, RetryLimits, Unit, without
from antientropy.feed import UpdateFeed
from antientropy.journal import JournaledSession, RepairedPart, RepairJournal, VerifiedPart
from antientropy.membership import ReplicatedRange
from antientropy.options import RepairMode
from antientropy.previews import PreviewTable
from antientropy.reports import RepairStatistics, RepairUpdate, SessionInfo, SessionState
from antientropy.running import HeldElsewhereError, RunContext
from antientropy.unit import UnitResult, UnitRun, Vouching

logger = logging.getLogger(__name__)

#: The first random pause when another repair holds a range is up to this; each further one up to twice as much ...
_BACK_OFF_SECONDS: Final = 0.5
#: ... up to this.
_BACK_OFF_SECONDS_MAX: Final = 8.0


class RepairRun:
    """One repair. :meth:`run` once; the last update of ``feed`` carries the outcome.

    Args:
        context: Its means; this object becomes its narrator.
        session_id: Its name, for people and the journal.
        ranges: What is to be repaired, with all replicas of each.
        peers: Which of the other replicas take part, for each range.
        journal: Where it is recorded.
        journaled: When it is resumed: what was recorded.
        as_of: The version that this repair vouches for if it is complete; 0: versions tell no time.
    """

    def __init__(
        self,
        *,
        context: RunContext,
        session_id: str,
        ranges: Sequence[ReplicatedRange],
        peers: Sequence[tuple[str, ...]],
        journal: RepairJournal,
        journaled: JournaledSession | None,
        as_of: int,
    ) -> None:
        context.narrator = self
        self.session_id = session_id
        self.feed = UpdateFeed()
        self.cancelled = False
        """Whether the end was asked for; else a cancelled task was stopped and can be resumed."""
        self._context = context
        self._ranges = ranges
        self._journal = journal
        self._as_of = as_of
        self._earlier: list[RepairedPart] = []
        everybody = {endpoint for one in peers for endpoint in one}
        self._dead = frozenset(endpoint for endpoint in everybody if not context.membership.is_alive(endpoint))
        chosen = [tuple(one for one in part if not (context.options.force and one in self._dead)) for part in peers]
        now = context.clock()
        fresh = now - context.config.resume_seconds_max
        verified = () if journaled is None else tuple(one for one in journaled.verified if one.verified_at >= fresh)
        self._skipped = len(verified)
        self._settled: dict[int, UnitResult] = {}
        """Whole ranges that are settled with every replica."""
        self._work = RepairWork(
            [
                Unit(one.token_range, part, number)
                for number, (one, part) in enumerate(zip(ranges, chosen, strict=True))
            ],
            dead=frozenset() if context.options.force else self._dead,
            skipped=[one.token_range for one in verified],
            retry=RetryLimits(
                rounds_max=context.config.replica_retries_max, first_seconds=context.config.replica_retry_seconds
            ),
            compares_whole=context.options.mode is RepairMode.REPAIR,
        )
        self._begun = time.monotonic()
        self._spent_before = 0.0 if journaled is None else journaled.info.statistics.elapsed_seconds
        self._rows_to_move = context.statistics.rows_moved
        self._state = SessionState.PREPARING
        self._detail = ""
        self._started_at = now if journaled is None else journaled.info.started_at
        self._ended_at: float | None = None
        self._resumable = asyncio.Event()
        self._resumable.set()
        self._units: set[asyncio.Task[UnitResult]] = set()
        self._changed = asyncio.Event()
        self._held_since: float | None = None
        self._held_count = 0
        self._previews = PreviewTable(context)
        self._differences: dict[int, int] = {}

    # --- what others ask of it ---

    @property
    def info(self) -> SessionInfo:
        """As it stands now."""
        return SessionInfo(
            session_id=self.session_id,
            keyspace=self._context.keyspace,
            state=self._state,
            coordinator=self._context.local,
            replicas=tuple(sorted({endpoint for one in self._ranges for endpoint in one.replicas})),
            token_ranges=tuple(one.token_range for one in self._ranges),
            started_at=self._started_at,
            updated_at=self._context.clock(),
            ended_at=self._ended_at,
            progress=self._work.progress,
            statistics=self._statistics(),
            detail=self._detail,
        )

    async def pause(self) -> None:
        """Leave every unit and wait for :meth:`resume`; returns when nothing is held any more."""
        if self._state.is_final or not self._resumable.is_set():
            return
        self._resumable.clear()
        running = list(self._units)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        # What is left is planned anew when the units are done again.
        self._rows_to_move = self._context.statistics.rows_moved
        if self._state.is_final:
            return
        self.entered(SessionState.PAUSED)
        self.say("Repair paused")
        await self._context.in_thread(self._journal.update, self.info)

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        if not self._resumable.is_set():
            self._resumable.set()
            self.entered(SessionState.PREPARING)
            self.say("Repair goes on")

    def overlaps(self, keyspace: str, ranges: Sequence[TokenRange]) -> bool:
        """Whether it works on a part of some ranges."""
        mine = [one.token_range for one in self._ranges]
        return keyspace == self._context.keyspace and any(
            one.intersection(other) is not None for one in mine for other in ranges
        )

    # --- narrator ---

    def say(self, message: str, *, trace: bool = False) -> None:
        """A line for people."""
        logger.log(logging.DEBUG if trace else logging.INFO, "repair %s: %s", self.session_id, message)
        self._publish(message, trace=trace)

    def entered(self, state: SessionState) -> None:
        """The repair does something else now."""
        if not self._state.is_final:
            self._state = state

    def planned(self, copies: int) -> None:
        """So many more rows are to move."""
        self._rows_to_move += copies
        self._publish("")

    def _publish(self, message: str, *, trace: bool = False) -> None:
        self.feed.publish(
            RepairUpdate(
                session_id=self.session_id,
                message=message,
                state=self._state,
                progress=self._work.progress,
                statistics=self._statistics(),
                rows_to_move=self._rows_to_move,
                eta_seconds=0.0 if self._state.is_final else self._work.eta_seconds(time.monotonic() - self._begun),
                previews=self._previews.flows() if self._state.is_final else (),
                trace=trace,
            )
        )

    def _statistics(self) -> RepairStatistics:
        statistics = self._context.statistics
        statistics.elapsed_seconds = self._spent_before + time.monotonic() - self._begun
        return replace(statistics, strategies=dict(statistics.strategies))

    # --- the repair ---

    async def run(self) -> None:
        """Repair. Whatever ends it is recorded and told.

        Raises:
            StoreError: the own store failed; rows that were applied before stay.
            JournalError: the journal cannot be written.
        """
        try:
            await self._context.in_thread(self._journal.begin, self.info, self._context.options)
            self._earlier = await self._context.in_thread(self._journal.repaired_parts, self._context.keyspace)
            self._introduce()
            if self._context.options.full:
                await self._rebuild()
            async with asyncio.timeout(self._context.config.session_seconds_max):
                await self._work_off()
            await self._mark_repaired()
            self._conclude()
        except asyncio.CancelledError:
            self._end(
                SessionState.CANCELLED if self.cancelled else SessionState.INTERRUPTED,
                "Repair cancelled" if self.cancelled else "Repair interrupted; it can be resumed",
            )
            raise
        except TimeoutError:
            limit = self._context.config.session_seconds_max
            self._end(SessionState.FAILED, f"Repair failed: it took longer than {limit:g} s; what was verified counts")
        except Exception as error:
            self._end(SessionState.FAILED, f"Repair failed: {error}")
            raise
        finally:
            # Not in the executor: the task may be cancelled, and the last state must be durable all the same.
            self._record_end()
            self.feed.end()

    def _introduce(self) -> None:
        replicas = {endpoint for one in self._ranges for endpoint in one.replicas} | {self._context.local}
        ranges = [one.token_range for one in self._ranges]
        where = ""
        if len(ranges) == 1 and not ranges[0].is_full:
            where = f", tokens {ranges[0].first} to {ranges[0].last}"
        elif len(ranges) > 1:
            where = f", {len(ranges)} ranges of tokens"
        again = f"; {self._skipped} parts were verified before" if self._skipped else ""
        self.say(
            f"Starting repair session {self.session_id} for keyspace {self._context.keyspace} "
            f"with {len(replicas)} replicas{where}{again}"
        )
        for endpoint in sorted(self._dead):
            self.say(f"Endpoint {endpoint} is not alive and is left out of this repair")

    async def _rebuild(self) -> None:
        """Build the own index anew in the next epoch; the peers follow when they are compared."""
        self.say("Building every index anew, with other hashes")
        replica = self._context.replica
        epoch = await self._context.in_thread(lambda: replica.epoch)
        await asyncio.wrap_future(replica.rebuild(epoch + 1))

    async def _work_off(self) -> None:
        jobs = self._context.options.jobs
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(jobs):
                    group.create_task(self._worker(), name=f"antientropy repair {self._context.keyspace} {number}")
        except BaseExceptionGroup as errors:
            # The first fault says it; the others are its consequences.
            raise errors.exceptions[0] from None

    async def _worker(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._resumable.wait()
            taken = self._work.take(loop.time(), self._context.membership.is_alive)
            if isinstance(taken, Unit):
                await self._one_unit(taken)
                self._changed.set()
            elif isinstance(taken, float):
                await asyncio.sleep(taken)
            elif not self._units:
                return
            else:
                self._changed.clear()
                await self._changed.wait()

    async def _one_unit(self, unit: Unit) -> None:
        peers = self._work.peers_of(unit)
        if why := self._ring_changed(unit):
            self._work.failed(unit, why)
            self.say(f"Tokens {unit.token_range}: {why}")
            return
        if not peers:
            self._work.done(unit, ())
            return
        task = asyncio.create_task(self._run_unit(unit, peers), name=f"antientropy unit {unit.token_range}")
        self._units.add(task)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise
        finally:
            self._units.discard(task)
        if task.cancelled():
            self._work.put_back(unit)
            return
        try:
            result = task.result()
        except HeldElsewhereError as error:
            await self._back_off(unit, error)
            return
        await self._unit_ended(unit, result)

    async def _run_unit(self, unit: Unit, peers: tuple[str, ...]) -> UnitResult:
        run = UnitRun(
            self._context,
            unit.token_range,
            peers,
            vouching=self._vouching(unit, peers),
            counts_pairs=unit.token_range == self._ranges[unit.range_index].token_range and not unit.is_last,
            preview=self._previews.add,
        )
        return await run.run()

    def _vouching(self, unit: Unit, peers: Sequence[str]) -> Vouching:
        """What is told of deletes: nothing, unless every replica of the range takes part."""
        planned = self._ranges[unit.range_index]
        took_part = [self._context.local, *peers]
        restricted = self._context.options.restricted or not planned.complete
        if not self._as_of or not deletes.counts_as_repaired(planned.replicas, took_part, restricted=restricted):
            return Vouching()
        replicas = tuple(sorted(planned.replicas))
        parts = [
            part
            for part in self._earlier
            if part.replicas == replicas and part.token_range.intersection(unit.token_range) is not None
        ]
        gaps = without(unit.token_range, [part.token_range for part in parts])
        return Vouching(
            as_of=self._as_of,
            replicas=replicas,
            # Only one can be told; with parts of several sessions the others count when all are repaired again.
            confirmed_session=parts[0].session if len({part.session for part in parts}) == 1 else 0,
            purge_version=0 if gaps or not parts else min(part.acknowledged_version for part in parts),
        )

    async def _unit_ended(self, unit: Unit, result: UnitResult) -> None:
        self._held_since, self._held_count = None, 0
        for endpoint, reason in result.failures.items():
            self._work.lose(endpoint, reason)
            self.say(f"Repair with {endpoint} failed: {reason}")
        if result.verdict is None:
            self._work.split(unit, result.parts)
            self.say(f"much differs in tokens {unit.token_range}: repairing it in {len(result.parts)} parts")
            return
        if result.verdict is Verdict.FAILED:
            self._work.unfinished(unit)
            return
        complete = self._work.done(unit, result.peers)
        if result.verdict is Verdict.UNSETTLED:
            self.say(
                f"Tokens {unit.token_range} got new writes during this repair; rows found different before were moved"
            )
        self._differences[unit.range_index] = self._differences.get(unit.range_index, 0) + result.rows_differing
        if complete and result.settled and unit.token_range == self._ranges[unit.range_index].token_range:
            self._settled[unit.range_index] = result
        if complete and result.verdict is Verdict.VERIFIED:
            part = VerifiedPart(unit.token_range, result.root, self._context.clock())
            await self._context.in_thread(self._journal.verify, self.info, part)
        self._publish("")

    async def _back_off(self, unit: Unit, error: HeldElsewhereError) -> None:
        """Another repair has the range: again after a random pause, so that of two that meet one comes through."""
        now = asyncio.get_running_loop().time()
        if self._held_since is None:
            self._held_since = now
            self.say(f"waiting: {error}")
        if now - self._held_since >= self._context.config.lease_wait_seconds:
            why = f"{error}; wait for it to end, or cancel it"
            self._work.failed(unit, why)
            self.say(f"Repair of tokens {unit.token_range} failed: {why}")
            return
        self._work.put_back(unit)
        self._held_count += 1
        longest = min(_BACK_OFF_SECONDS * 2**self._held_count, _BACK_OFF_SECONDS_MAX)
        await asyncio.sleep(longest * (0.1 + 0.9 * self._context.random.random()))

    def _ring_changed(self, unit: Unit) -> str:
        """Why a unit can no longer be repaired as it was planned; empty if it can."""
        planned = self._ranges[unit.range_index]
        left = [unit.token_range]
        for now in self._context.membership.ranges(self._context.keyspace):
            if now.token_range.intersection(unit.token_range) is None:
                continue
            if set(now.replicas) != set(planned.replicas):
                return "the ring has changed: other replicas hold these tokens now; repair again"
            left = [rest for one in left for rest in without(one, [now.token_range])]
        return "the ring has changed: this node no longer holds these tokens; repair again" if left else ""

    # --- the end ---

    async def _mark_repaired(self) -> None:
        """Ranges that are settled with every replica count as repaired, unless the ring has changed."""
        context = self._context
        if context.options.restricted or any(
            self._ring_changed(Unit(one.token_range, (), number)) for number, one in enumerate(self._ranges)
        ):
            return
        held = [one.token_range for one in context.membership.ranges(context.keyspace)]
        for number, result in self._settled.items():
            planned = self._ranges[number]
            if not planned.complete or not set(planned.replicas) <= {context.local, *result.peers}:
                continue
            if self._as_of:
                await context.in_thread(context.marks.confirm, result.session, held, result.floors)
            part = RepairedPart(
                token_range=planned.token_range,
                replicas=tuple(sorted(planned.replicas)),
                session=result.session,
                repaired_version=self._as_of,
                acknowledged_version=result.acknowledged_version,
                repaired_at=self._started_at,
                differences=self._differences.get(number, 0),
            )
            await context.in_thread(self._journal.repaired, context.keyspace, part)

    def _conclude(self) -> None:
        statistics = self._context.statistics
        mode = self._context.options.mode
        moved = f"{statistics.rows_differing} rows differed, {statistics.rows_moved} row copies moved"
        if mode is RepairMode.VALIDATE:
            # It looks at hashes only, so rows are not counted.
            unequal = statistics.pairs_compared - statistics.pairs_equal
            moved = f"{unequal} of {statistics.pairs_compared} pairs of replicas differ"
        elif mode is RepairMode.PREVIEW:
            moved = f"{statistics.rows_differing} rows differ, nothing was moved"
        elif mode is RepairMode.PULL:
            moved = (
                f"{statistics.rows_differing} rows were older or missing here, {statistics.rows_moved} row copies moved"
            )
        left_out = self._work.left_out
        if not any(one.peers for one in self._work.units):
            only = all(set(one.replicas) <= {self._context.local} for one in self._ranges)
            self._end(
                SessionState.COMPLETED,
                f"Replication factor is 1. No repair is needed for keyspace '{self._context.keyspace}'"
                if only
                else "Repair completed successfully: no other replica was to take part",
            )
            return
        outcome = self._work.outcome
        if outcome is SessionState.COMPLETED:
            self._end(outcome, f"{_DONE.get(mode, 'Repair completed successfully')}: {moved}")
            return
        why = "; ".join(
            [f"{endpoint} {reason}" for endpoint, reason in left_out.items()]
            + sorted({f"tokens {unit.token_range}: {reason}" for unit, reason in self._work.failed_units.items()})
        )
        if outcome is SessionState.PARTIAL:
            what = _WORK.get(mode, "Repair")
            self._end(outcome, f"{what} finished without {', '.join(left_out) or 'some tokens'}: {moved} ({why})")
        else:
            nobody = ", ".join(left_out)
            reason = f"no replica took part ({why or nobody}); start or reach one and repair again"
            self._end(outcome, f"Repair failed: {why if self._work.failed_units else reason}")

    def _end(self, state: SessionState, message: str) -> None:
        self._state = state
        self._detail = "" if state is SessionState.COMPLETED else message
        self._ended_at = self._context.clock() if state.is_final else None
        self.say(message)

    def _record_end(self) -> None:
        try:
            self._journal.update(self.info)
        except Exception:
            logger.exception("repair %s: its end cannot be recorded", self.session_id)


_DONE: Final = {
    RepairMode.PREVIEW: "Preview completed",
    RepairMode.VALIDATE: "Validation completed",
    RepairMode.PULL: "Repair (pull) completed successfully",
}
_WORK: Final = {RepairMode.PREVIEW: "Preview", RepairMode.VALIDATE: "Validation"}
