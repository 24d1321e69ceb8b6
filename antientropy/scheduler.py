"""Repairs the primary ranges of a node by itself, each once in a period; see :mod:`antientropy.core.schedule`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from random import Random
from typing import Final, Protocol

from antientropy.core.schedule import RangeKey, RangePlan, RangeView, RepairSchedule, SchedulerSettings
from antientropy.core.tokens import TokenRange
from antientropy.errors import AntiEntropyError
from antientropy.limits import LOG_INTERVAL_SECONDS, METRIC_RANGES_MAX
from antientropy.membership import Membership
from antientropy.metrics import Gauge, RepairMetrics
from antientropy.options import RepairOptions
from antientropy.reports import (
    RangeSummary,
    RepairUpdate,
    ScheduledRange,
    ScheduleStatus,
    SessionInfo,
    SessionState,
)

logger = logging.getLogger(__name__)

#: Repairs that the node's stop cancels are waited for so long.
STOP_SECONDS_MAX: Final = 10.0


class ScheduledRepairs(Protocol):
    """The part of :class:`~antientropy.service.RepairService` that a schedule needs."""

    @property
    def keyspaces(self) -> tuple[str, ...]:
        """The names of the stores."""
        ...

    def repair(self, keyspace: str, options: RepairOptions) -> AsyncGenerator[RepairUpdate, None]:
        """Repair; closing the iterator cancels it."""
        ...

    def resume(self, session_id: str) -> AsyncGenerator[RepairUpdate, None]:
        """Go on with an interrupted session."""
        ...

    async def sessions(self, active_only: bool = True) -> Sequence[SessionInfo]:
        """Sessions that have not ended."""
        ...

    async def summarize(self, keyspace: str) -> Sequence[RangeSummary]:
        """How long ago each part of a keyspace was repaired, by the durable record."""
        ...


class RepairScheduler:
    """Start and stop it on the service's event loop, after the service has been started and before it is stopped.

    What was repaired when is read from the service's durable record, so a restart forgets nothing but failures; a
    session that a restart interrupted is resumed when its range's turn comes. Ranges with a dead replica are left out,
    and :meth:`status` says so: such a repair could not be complete. At most ``settings.concurrency_max`` repairs are
    under way by the schedule.

    ``clock``: seconds since the epoch. ``utc_offset``: of local time at such a time, for the windows of the day.
    ``random``: spreads the starts.
    """

    def __init__(
        self,
        service: ScheduledRepairs,
        settings: SchedulerSettings,
        membership: Membership,
        *,
        metrics: RepairMetrics | None = None,
        random: Random | None = None,
        clock: Callable[[], float] = time.time,
        utc_offset: Callable[[float], float] | None = None,
    ) -> None:
        self._service = service
        self._settings = settings
        self._membership = membership
        self._metrics = RepairMetrics() if metrics is None else metrics
        self._random = Random() if random is None else random  # noqa: S311 - jitter, no secret
        self._clock = clock
        self._utc_offset = _local_offset if utc_offset is None else utc_offset
        self._schedule = RepairSchedule(settings, clock())
        self._loop_task: asyncio.Task[None] | None = None
        self._repairs: dict[RangeKey, asyncio.Task[None]] = {}
        self._session_ids: dict[RangeKey, str] = {}
        self._paused = False
        self._wake = asyncio.Event()
        self._logged_at: dict[str, float] = {}
        self._forget: Callable[[], None] = lambda: None

    @property
    def is_running(self) -> bool:
        """Whether it has been started and not stopped."""
        return self._loop_task is not None

    async def start(self) -> None:
        """Begin to watch and repair. Idempotent; nothing happens if the settings say ``enabled=False``."""
        if self._loop_task is not None or not self._settings.enabled:
            return
        self._schedule = RepairSchedule(self._settings, self._clock(), self._random.random())
        self._forget = self._metrics.collect(self._gauges)
        self._loop_task = asyncio.create_task(self._watch(), name="antientropy scheduler")

    async def stop(self) -> None:
        """Cancel what is under way by the schedule, and end. Idempotent; it can be started again."""
        if self._loop_task is None:
            return
        tasks = [self._loop_task, *self._repairs.values()]
        self._loop_task = None
        self._forget()
        for task in tasks:
            task.cancel()
        _, hung = await asyncio.wait(tasks, timeout=STOP_SECONDS_MAX)
        if hung:
            logger.warning("%d scheduled repairs did not end within %g s", len(hung), STOP_SECONDS_MAX)

    def pause(self) -> None:
        """Begin nothing more until :meth:`resume` or a restart; what is under way goes on."""
        self._paused = True

    def resume(self) -> None:
        """Begin again what is due."""
        self._paused = False
        self._wake.set()

    def status(self) -> ScheduleStatus:
        """What is repaired when; ranges ordered by the time when they are due."""
        now = self._clock()
        offset = self._utc_offset(now)
        ranges = [self._scheduled(key, plan, now, offset) for key, plan in self._schedule.plans.items()]
        return ScheduleStatus(
            paused=self._paused,
            period_seconds=self._settings.period_seconds,
            windows=tuple(map(str, self._settings.parsed_windows)),
            in_window=self._schedule.in_window(now, offset),
            ranges=tuple(sorted(ranges, key=lambda one: (one.due_at, one.keyspace, one.token_range))),
        )

    def annotated(self, summaries: Sequence[RangeSummary]) -> list[RangeSummary]:
        """The service's summaries with what the schedule knows of them: when they are due, and what is stalled."""
        now = self._clock()
        offset = self._utc_offset(now)
        made = []
        for summary in summaries:
            plans = [plan for plan in self._schedule.plans.values() if _overlap(plan.view, summary)]
            due = min((self._schedule.expected_at(plan, now, offset) for plan in plans), default=summary.due_at)
            stalled = summary.stalled or any(self._schedule.is_stalled(plan, now) for plan in plans)
            made.append(replace(summary, due_at=due, stalled=stalled))
        return made

    def _scheduled(self, key: RangeKey, plan: RangePlan, now: float, offset: float) -> ScheduledRange:
        return ScheduledRange(
            keyspace=plan.view.keyspace,
            token_range=plan.view.token_range,
            repaired_at=plan.view.repaired_at,
            due_at=self._schedule.expected_at(plan, now, offset),
            session_id=self._session_ids.get(key, ""),
            stalled=self._schedule.is_stalled(plan, now),
            failures=plan.failures,
            last_error=self._schedule.waiting_for(plan) or plan.last_error,
        )

    # --- the loop ---

    async def _watch(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._observe()
                self._begin_due()
            except AntiEntropyError as error:
                self._log("the schedule of repairs cannot be made: %s", str(error))
            except Exception:  # a defect, or of the application's membership: automatic repair must not end with it
                logger.exception("the schedule of repairs broke off; it goes on with the next look")
            try:
                async with asyncio.timeout(self._settings.check_interval_seconds):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _observe(self) -> None:
        views: list[RangeView] = []
        for keyspace in self._service.keyspaces:
            summaries = await self._service.summarize(keyspace)
            views += self._views(keyspace, summaries)
        self._schedule.observe(views, self._clock(), [self._random.random() for _ in views])

    def _views(self, keyspace: str, summaries: Sequence[RangeSummary]) -> list[RangeView]:
        local = self._membership.local_endpoint
        views = []
        for one in self._membership.ranges(keyspace):
            others = tuple(replica for replica in one.replicas if replica != local)
            if one.primary != local or not others:
                continue
            dead = tuple(replica for replica in others if not self._membership.is_alive(replica))
            repaired_at, differences = repaired(one.token_range, summaries)
            views.append(RangeView(keyspace, one.token_range, others, repaired_at, dead, differences))
        return views

    def _begin_due(self) -> None:
        while not self._paused:
            now = self._clock()
            view = self._schedule.next_range(now, self._utc_offset(now))
            if view is None:
                return
            self._schedule.begin(view.key, now)
            task = asyncio.create_task(self._repair(view), name=f"antientropy schedule {view.keyspace}")
            self._repairs[view.key] = task
            task.add_done_callback(partial(self._done, view.key))

    def _done(self, key: RangeKey, task: asyncio.Task[None]) -> None:
        self._repairs.pop(key, None)
        self._session_ids.pop(key, None)
        self._wake.set()
        if task.cancelled():
            self._schedule.release(key)
        elif (error := task.exception()) is not None:
            self._schedule.fail(key, self._clock(), f"{type(error).__name__}: {error}", self._random.random())
            logger.error("a scheduled repair of keyspace %s broke off", key[0], exc_info=error)

    # --- one repair ---

    async def _repair(self, view: RangeView) -> None:
        began, last = self._clock(), None
        reason = "the repair ended without a result"
        try:
            async with asyncio.timeout(self._settings.session_seconds_max) as limit:
                async with aclosing(await self._updates(view)) as updates:
                    async for update in updates:
                        last = update
                        self._session_ids[view.key] = update.session_id
                        reason = update.message or reason
        except TimeoutError:
            if not limit.expired():
                raise
            reason, last = f"took longer than {self._settings.session_seconds_max:g} s", None
        except AntiEntropyError as error:
            reason, last = str(error), None
        if last is not None and last.state is SessionState.COMPLETED:
            found = last.statistics.rows_differing
            self._schedule.succeed(view.key, began, found, self._random.random())
            self._metrics.increment("antientropy_scheduled_repairs_total", outcome="completed")
            return
        outcome = last.state.value if last is not None and last.is_last else "failed"
        self._metrics.increment("antientropy_scheduled_repairs_total", outcome=outcome)
        self._schedule.fail(view.key, self._clock(), reason, self._random.random())
        self._log(f"scheduled repair of keyspace {view.keyspace}, {view.token_range}: %s", reason)

    async def _updates(self, view: RangeView) -> AsyncGenerator[RepairUpdate, None]:
        """Of the session of this range that a restart interrupted, or else of a new one."""
        for session in await self._service.sessions():
            wanted = (view.keyspace, (view.token_range,), self._membership.local_endpoint)
            if session.state is SessionState.INTERRUPTED and wanted == (
                session.keyspace,
                session.token_ranges,
                session.coordinator,
            ):
                return self._service.resume(session.session_id)
        return self._service.repair(view.keyspace, RepairOptions(token_ranges=(view.token_range,)))

    def _log(self, form: str, reason: str) -> None:
        """A line for each reason, again only after a while."""
        now = self._clock()
        self._logged_at = {text: at for text, at in self._logged_at.items() if 0 <= now - at < LOG_INTERVAL_SECONDS}
        if form + reason not in self._logged_at:
            self._logged_at[form + reason] = now
            logger.warning(form, reason)

    # --- metrics ---

    def _gauges(self) -> Iterable[Gauge]:
        now = self._clock()
        by_keyspace: dict[str, list[RangePlan]] = {}
        for plan in self._schedule.plans.values():
            by_keyspace.setdefault(plan.view.keyspace, []).append(plan)
        for keyspace, plans in sorted(by_keyspace.items()):
            labels = (("keyspace", keyspace),)
            ages = [max(0.0, now - plan.age_from) for plan in plans]
            stalled = [self._schedule.is_stalled(plan, now) for plan in plans]
            yield Gauge("antientropy_ranges", len(plans), labels)
            yield Gauge("antientropy_ranges_stalled", sum(stalled), labels)
            yield Gauge("antientropy_ranges_waiting", sum(bool(plan.view.dead) for plan in plans), labels)
            yield Gauge("antientropy_unrepaired_seconds_max", max(ages), labels)
            if len(plans) > METRIC_RANGES_MAX:
                continue
            for plan, age, late in zip(plans, ages, stalled, strict=True):
                both = (*labels, ("range", f"{plan.view.token_range.first:016x}-{plan.view.token_range.last:016x}"))
                yield Gauge("antientropy_range_unrepaired_seconds", age, both)
                yield Gauge("antientropy_range_differences", plan.view.differences_last, both)
                yield Gauge("antientropy_range_stalled", late, both)


def repaired(token_range: TokenRange, summaries: Sequence[RangeSummary]) -> tuple[float | None, int]:
    """Since when all of a range has been repaired (None: a part of it never was), and the differences found then."""
    cuts = [(summary.token_range.intersection(token_range), summary) for summary in summaries]
    parts = sorted(
        ((cut.first, cut.last, summary) for cut, summary in cuts if cut is not None), key=lambda one: one[:2]
    )
    next_token, times, differences = token_range.first, [], 0
    for first, last, summary in parts:
        if first > next_token or summary.repaired_at is None:
            return None, 0
        next_token = max(next_token, last + 1)
        times.append(summary.repaired_at)
        differences += summary.differences_last
    return (None, 0) if next_token <= token_range.last else (min(times), differences)


def _overlap(view: RangeView, summary: RangeSummary) -> bool:
    return view.keyspace == summary.keyspace and view.token_range.intersection(summary.token_range) is not None


def _local_offset(now: float) -> float:
    return float(time.localtime(now).tm_gmtoff)
