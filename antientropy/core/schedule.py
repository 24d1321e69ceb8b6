"""Which range is repaired when, so that each is repaired once within a period. Decides; starts nothing.

Every node repairs the ranges whose primary replica it is, so all nodes together cover each range once. A range is due
some time before its period ends, at a point that a random number decides anew after every repair: ranges that were
repaired together drift apart, and so do nodes that were started together. Of those that are due, a stalled one goes
first; then one that shares few replicas with what is under way; then the one whose last success is longest ago.
Cassandra's auto repair (CEP-37) has the same aims: primary ranges, priority by age, retries with pauses.

Time is an argument, in seconds since the epoch; local time of day is ``now + utc_offset_seconds``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from antientropy.core.tokens import TokenRange
from antientropy.core.windows import DAY_SECONDS, Window, in_windows, open_for_seconds, opens_in_seconds
from antientropy.errors import ConfigError

#: A range is due between these parts of its period: what is left of it is for retries.
DUE_EARLIEST: Final = 0.7
DUE_LATEST: Final = 0.9
#: Ranges that were never repaired are begun spread over this part of the period.
FIRST_SPREAD: Final = 0.5
#: A window that has so little of its time before the end of a range's period is no further chance.
LAST_WINDOW_SECONDS: Final = 3600.0
#: Characters of a failure that are kept for people.
ERROR_CHARACTERS_MAX: Final = 500

RangeKey = tuple[str, TokenRange]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """How often a node repairs its ranges by itself, and when it may.

    Raises:
        ConfigError: lists every setting that is out of its bounds.
    """

    enabled: bool = True
    """False: ranges are only repaired when somebody asks for it, and nothing is reported as stalled."""
    period_seconds: float = 3600.0
    """Every range is repaired once in this time. Too small: little where nothing differs (one round trip for a pair),
    but writes under way are compared again and again. Too large: replicas stay different for so long, tombstones are
    kept for longer, and a second replica may be lost before the first has been made good."""
    windows: tuple[str, ...] = ()
    """Local times of day in which repairs may begin, such as ``22:00-06:00``; none: always. Too narrow: what does not
    fit in is stalled. A repair that is under way when its window ends goes on to its end."""
    concurrency_max: int = 1
    """Ranges that this node repairs at once. Too small: with many or large ranges the period is missed. Too large:
    each holds a snapshot on every replica, and all share the limits of the throttle."""
    initial_delay_seconds: float = 60.0
    """After the start nothing begins for so long, half as much again at random. Too small: repair meets caches that are
    cold and peers that are not yet known. Too large: a node that is restarted often never repairs."""
    check_interval_seconds: float = 30.0
    """How often it looks what is due, and whether ranges have moved. Too small: idle work. Too large: starts are late
    by so much, which counts when there are many ranges."""
    retry_seconds: float = 30.0
    """First pause after a failure; doubled with each further one. Too small: a broken disk is tried all the time."""
    retry_seconds_max: float = 3600.0
    """Longest such pause. Too large: a range stays unrepaired long after its replica is well again."""
    session_seconds_max: float = 10_800.0
    """A scheduled repair that takes longer is cancelled and counts as failed. Cassandra's limit is 3 h, too. Too small:
    large ranges never end. Too large: one that hangs holds others up."""

    def __post_init__(self) -> None:
        faults = [
            f"{name} is {getattr(self, name)}; a number above 0 is needed"
            for name in (
                "period_seconds",
                "concurrency_max",
                "check_interval_seconds",
                "retry_seconds",
                "retry_seconds_max",
                "session_seconds_max",
            )
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0)
        ]
        if not (math.isfinite(self.initial_delay_seconds) and self.initial_delay_seconds >= 0):
            faults.append(f"initial_delay_seconds is {self.initial_delay_seconds}; 0 or more is needed")
        for text in self.windows:
            try:
                Window.parse(text)
            except ValueError as error:
                faults.append(str(error))
        if self.windows and self.period_seconds < DAY_SECONDS:
            faults.append(
                f"period_seconds is {self.period_seconds:g} with windows of the day; {DAY_SECONDS} or more is needed, "
                "since no range can be repaired outside of them"
            )
        if faults:
            raise ConfigError(faults)

    @property
    def parsed_windows(self) -> tuple[Window, ...]:
        """The windows."""
        return tuple(Window.parse(text) for text in self.windows)


@dataclass(frozen=True, slots=True)
class RangeView:
    """A range as it is now: what the schedule decides by."""

    keyspace: str
    token_range: TokenRange
    replicas: tuple[str, ...]
    """All but this node."""
    repaired_at: float | None
    """Start of its last complete repair, by whomever; None: never, as far as is recorded."""
    dead: tuple[str, ...] = ()
    """Those of the replicas that are down."""
    differences_last: int = 0

    @property
    def key(self) -> RangeKey:
        """Names it."""
        return self.keyspace, self.token_range


@dataclass(slots=True)
class RangePlan:
    """What the schedule knows of one range."""

    view: RangeView
    seen_at: float
    """When the schedule first saw it; its first period counts from here."""
    phase: float
    """0 to 1: where within the time that it may become due it does."""
    running_since: float | None = None
    failures: int = 0
    """In a row."""
    last_error: str = ""
    retry_at: float = -math.inf
    placed: tuple[tuple[float, float, float], float] | None = None
    """When it is due, and what that was made of: success, phase, offset of local time."""

    @property
    def age_from(self) -> float:
        """When the period that it has to be repaired within began."""
        return self.seen_at if self.view.repaired_at is None else self.view.repaired_at


@dataclass(slots=True)
class RepairSchedule:
    """The ranges of a node and when each is repaired. ``started_at``: nothing begins before the initial delay ends."""

    settings: SchedulerSettings
    started_at: float
    start_jitter: float = 0.0
    """0 to 1."""
    plans: dict[RangeKey, RangePlan] = field(default_factory=dict)
    windows: tuple[Window, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.windows = self.settings.parsed_windows

    def observe(self, views: Sequence[RangeView], now: float, phases: Sequence[float]) -> None:
        """Take the ranges as they are now; ``phases``: a random number from 0 to 1 for each.

        A range that is gone is forgotten, and so are its failures; one that is under way until that has ended. A range
        that somebody else has repaired since counts as repaired.
        """
        found = {view.key for view in views}
        for key in [key for key, plan in self.plans.items() if key not in found and plan.running_since is None]:
            del self.plans[key]
        for view, phase in zip(views, phases, strict=True):
            plan = self.plans.get(view.key)
            if plan is None:
                self.plans[view.key] = RangePlan(view, now, phase)
                continue
            before, after = plan.view.repaired_at, view.repaired_at
            if before is not None and (after is None or after < before):
                view = replace(view, repaired_at=before)  # noqa: PLW2901 - what was repaired is not forgotten
            elif after is not None and after != before:
                plan.phase, plan.failures, plan.last_error, plan.retry_at = phase, 0, "", -math.inf
            plan.view = view

    def next_range(self, now: float, utc_offset_seconds: float = 0.0) -> RangeView | None:
        """The range to begin with now; None: nothing is to begin. Tell :meth:`begin` when it has."""
        running = [plan for plan in self.plans.values() if plan.running_since is not None]
        if len(running) >= self.settings.concurrency_max or not self.in_window(now, utc_offset_seconds):
            return None
        busy = {replica for plan in running for replica in plan.view.replicas}
        due = [
            plan
            for plan in self.plans.values()
            if plan.running_since is None
            and not plan.view.dead
            and plan.retry_at <= now
            and self.due_at(plan, utc_offset_seconds) <= now
        ]
        if not due:
            return None

        def order(plan: RangePlan) -> tuple[bool, int, bool, float, RangeKey]:
            stalled = self.is_stalled(plan, now)
            shared = 0 if stalled else len(busy.intersection(plan.view.replicas))
            return not stalled, shared, plan.view.repaired_at is not None, plan.age_from, plan.view.key

        return min(due, key=order).view

    def begin(self, key: RangeKey, now: float) -> None:
        """Its repair has begun."""
        self.plans[key].running_since = now

    def succeed(self, key: RangeKey, started_at: float, differences: int, phase: float) -> None:
        """It was repaired with all replicas; what counts is when that repair began."""
        plan = self._ended(key)
        if plan is not None:
            plan.view = replace(plan.view, repaired_at=started_at, differences_last=differences)
            plan.phase, plan.failures, plan.last_error, plan.retry_at = phase, 0, "", -math.inf

    def fail(self, key: RangeKey, now: float, reason: str, jitter: float) -> None:
        """It failed: the next try waits twice as long as the last, less up to half of that (``jitter``: 0 to 1)."""
        plan = self._ended(key)
        if plan is not None:
            plan.failures += 1
            plan.last_error = reason[:ERROR_CHARACTERS_MAX]
            plan.retry_at = now + self._pause(plan.failures) * (1 - jitter / 2)

    def release(self, key: RangeKey) -> None:
        """It was neither repaired nor did it fail: it was stopped."""
        self._ended(key)

    def _ended(self, key: RangeKey) -> RangePlan | None:
        plan = self.plans.get(key)
        if plan is not None:
            plan.running_since = None
        return plan

    def _pause(self, failures: int) -> float:
        doubled = self.settings.retry_seconds * 2.0 ** min(failures - 1, 60)
        return min(self.settings.retry_seconds_max, doubled)

    def due_at(self, plan: RangePlan, utc_offset_seconds: float = 0.0) -> float:
        """When it is to be repaired, windows, pauses after failures and the initial delay left to :meth:`next_range`.

        Where the windows are closed at that time it is when they open next; where that is after the end of its period,
        a time in the last window before. Cheap: made anew only when something has changed.
        """
        if plan.view.repaired_at is None:
            return self._first_begin(plan)
        made_of = (plan.view.repaired_at, plan.phase, utc_offset_seconds)
        if plan.placed is None or plan.placed[0] != made_of:
            plan.placed = made_of, self._placed(*made_of)
        return plan.placed[1]

    def _first_begin(self, plan: RangePlan) -> float:
        begin = self.started_at + self.settings.initial_delay_seconds * (1 + self.start_jitter / 2)
        spread = min(self.settings.period_seconds, float(DAY_SECONDS)) * FIRST_SPREAD
        return max(begin, plan.seen_at) + plan.phase * spread

    def _placed(self, repaired_at: float, phase: float, offset: float) -> float:
        """When it is due by phase and windows.

        A window that is the last before the end of the period is used from the first half on, so that a range that
        has to wait for others, or fails once, is not late by a whole day.
        """
        period, windows = self.settings.period_seconds, self.windows
        deadline = repaired_at + period
        due = repaired_at + period * (DUE_EARLIEST + (DUE_LATEST - DUE_EARLIEST) * phase)
        opens = due + opens_in_seconds(windows, (due + offset) % DAY_SECONDS)
        stays = open_for_seconds(windows, (opens + offset) % DAY_SECONDS)
        if stays >= DAY_SECONDS:
            return due
        closes = opens + stays
        again = closes + opens_in_seconds(windows, (closes + offset) % DAY_SECONDS)
        if again + LAST_WINDOW_SECONDS <= deadline:
            return opens
        begun = self._last_begin(opens, offset)
        if begun > deadline:
            begun = self._last_begin(begun - 1, offset)
        if begun <= repaired_at:  # it was repaired within that same window
            return opens
        length = open_for_seconds(windows, (begun + offset) % DAY_SECONDS)
        return min(opens, begun + phase * min(length, deadline - begun) / 2)

    def _last_begin(self, at: float, offset: float) -> float:
        """When the last window before or at that time began."""
        return at - min((at + offset - window.begin) % DAY_SECONDS for window in self.windows)

    def in_window(self, now: float, utc_offset_seconds: float = 0.0) -> bool:
        """Whether repairs may begin: a window is open, and the initial delay is over."""
        begin = self.started_at + self.settings.initial_delay_seconds * (1 + self.start_jitter / 2)
        return now >= begin and in_windows(self.windows, (now + utc_offset_seconds) % DAY_SECONDS)

    def expected_at(self, plan: RangePlan, now: float, utc_offset_seconds: float = 0.0) -> float:
        """When its repair will begin, as far as that is known: pauses, windows and the initial delay included."""
        begin = self.started_at + self.settings.initial_delay_seconds * (1 + self.start_jitter / 2)
        due = max(self.due_at(plan, utc_offset_seconds), plan.retry_at, begin)
        if due <= now and self.in_window(now, utc_offset_seconds):
            return due
        at = max(due, now)
        opens = opens_in_seconds(self.windows, (at + utc_offset_seconds) % DAY_SECONDS)
        return due if opens == 0 else at + opens

    def is_stalled(self, plan: RangePlan, now: float) -> bool:
        """Whether it has not been repaired for longer than its period."""
        return self.settings.enabled and now - plan.age_from > self.settings.period_seconds

    def waiting_for(self, plan: RangePlan) -> str:
        """Why it is not repaired though it may be due, for people; empty: it waits for nothing."""
        return f"waits for {', '.join(plan.view.dead)}, which is down" if plan.view.dead else ""
