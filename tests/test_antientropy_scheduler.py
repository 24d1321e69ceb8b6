"""The schedule at work over a service that is played: days in virtual time, restarts, failures, windows, pauses."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from antientropy.core.schedule import SchedulerSettings
from antientropy.core.tokens import TokenRange
from antientropy.errors import RepairError, RepairRunningError
from antientropy.membership import ReplicatedRange
from antientropy.metrics import RepairMetrics
from antientropy.options import RepairOptions
from antientropy.reports import RangeSummary, RepairStatistics, RepairUpdate, SessionInfo, SessionState
from antientropy.scheduler import RepairScheduler, repaired
from gossiper.simulation.virtual_loop import VirtualClock, run

HOUR = 3600.0
DAY = 86_400.0
RANGES = tuple(TokenRange(1000 * number, 1000 * number + 999) for number in range(6))


@dataclass
class PlayedCluster:
    """A membership of which this node, a, is the primary of every range but the last."""

    ranges_held: tuple[ReplicatedRange, ...] = (
        *(ReplicatedRange(one, ("a", "b", "c"), "a") for one in RANGES[:-1]),
        ReplicatedRange(RANGES[-1], ("a", "b", "c"), "b"),
    )
    dead: set[str] = field(default_factory=set)
    local_endpoint: str = "a"

    def ranges(self, keyspace: str) -> Sequence[ReplicatedRange]:
        return self.ranges_held

    def is_alive(self, endpoint: str) -> bool:
        return endpoint not in self.dead

    def datacenter(self, endpoint: str) -> str:
        return ""


@dataclass
class PlayedService:
    """Repairs take ``seconds``; what was repaired survives in ``marks``, as the journal does."""

    now: Callable[[], float]
    seconds: float = 10.0
    marks: dict[TokenRange, float] = field(default_factory=dict)
    begun: list[tuple[float, TokenRange]] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    cancelled: int = 0
    running: int = 0
    running_most: int = 0
    interrupted: list[SessionInfo] = field(default_factory=list)
    outcome: Callable[[TokenRange], SessionState | Exception] = lambda _: SessionState.COMPLETED
    summary_error: Exception | None = None
    keyspaces: tuple[str, ...] = ("ks",)

    def repair(self, keyspace: str, options: RepairOptions) -> AsyncGenerator[RepairUpdate, None]:
        (token_range,) = options.token_ranges
        return self._run(token_range, f"session {len(self.begun)}")

    def resume(self, session_id: str) -> AsyncGenerator[RepairUpdate, None]:
        self.resumed.append(session_id)
        (session,) = [one for one in self.interrupted if one.session_id == session_id]
        self.interrupted.remove(session)
        return self._run(session.token_ranges[0], session_id)

    async def _run(self, token_range: TokenRange, session_id: str) -> AsyncGenerator[RepairUpdate, None]:
        started = self.now()
        self.begun.append((started, token_range))
        self.running += 1
        self.running_most = max(self.running_most, self.running)
        update = RepairUpdate(session_id, "", SessionState.COMPARING, 0.0, RepairStatistics(rows_differing=3))
        try:
            yield update
            await asyncio.sleep(self.seconds)
            outcome = self.outcome(token_range)
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is SessionState.COMPLETED:
                self.marks[token_range] = started
            yield replace(update, state=outcome, message=f"it is {outcome.value}", progress=1.0)
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def sessions(self, active_only: bool = True) -> Sequence[SessionInfo]:
        return self.interrupted

    async def summarize(self, keyspace: str) -> Sequence[RangeSummary]:
        if self.summary_error is not None:
            raise self.summary_error
        return [RangeSummary("ks", one, self.marks.get(one), 0, 3, None, stalled=False) for one in RANGES]


class Played:
    """A scheduler over a played service; made inside of a virtual loop."""

    def __init__(self, service: PlayedService | None = None, **settings: object) -> None:
        self.clock = VirtualClock()
        self.cluster = PlayedCluster()
        self.service = PlayedService(self.wall) if service is None else service
        self.service.now = self.wall
        self.metrics = RepairMetrics()
        self.settings = SchedulerSettings(**{"period_seconds": HOUR, **settings})  # type: ignore[arg-type]
        self.scheduler = RepairScheduler(
            self.service,
            self.settings,
            self.cluster,
            metrics=self.metrics,
            random=Random(3),
            clock=self.wall,
            utc_offset=lambda _: 0.0,
        )

    def wall(self) -> float:
        return self.clock.now().wall

    def series(self, name: str) -> float:
        return dict(self.metrics.snapshot())[name]


def test_every_primary_range_is_repaired_once_in_every_period() -> None:
    async def scenario() -> None:
        played = Played()
        await played.scheduler.start()
        await played.scheduler.start()
        await asyncio.sleep(10 * HOUR)
        service = played.service
        assert {one for _, one in service.begun} == set(RANGES[:-1])
        for one in RANGES[:-1]:
            times = [at for at, which in service.begun if which == one]
            assert len(times) >= 10
            assert max(late - early for early, late in itertools.pairwise(times)) < HOUR
            assert min(late - early for early, late in itertools.pairwise(times)) > HOUR / 2
        assert service.running_most == 1
        status = played.scheduler.status()
        assert (status.paused, status.period_seconds, status.windows, status.in_window) == (False, HOUR, (), True)
        assert {one.token_range for one in status.ranges} == set(RANGES[:-1])
        assert [one.due_at for one in status.ranges] == sorted(one.due_at for one in status.ranges)
        assert not any(one.stalled or one.failures for one in status.ranges)
        assert played.series('antientropy_ranges_stalled{keyspace="ks"}') == 0
        assert played.series('antientropy_ranges{keyspace="ks"}') == 5
        assert 0 < played.series('antientropy_unrepaired_seconds_max{keyspace="ks"}') < HOUR
        label = 'keyspace="ks",range="0000000000000000-00000000000003e7"'
        assert played.series(f"antientropy_range_unrepaired_seconds{{{label}}}") < HOUR
        assert played.series(f"antientropy_range_differences{{{label}}}") == 3
        assert played.metrics.value("antientropy_scheduled_repairs_total", outcome="completed") >= 50
        await played.scheduler.stop()
        await played.scheduler.stop()
        begun = len(service.begun)
        await asyncio.sleep(3 * HOUR)
        assert len(service.begun) == begun
        assert "antientropy_ranges" not in str(played.metrics.snapshot())

    run(scenario(), limit_seconds=DAY)


def test_more_at_once_when_allowed() -> None:
    async def scenario() -> None:
        played = Played(concurrency_max=3)
        played.service.seconds = 0.4 * HOUR
        await played.scheduler.start()
        await asyncio.sleep(5 * HOUR)
        assert 2 <= played.service.running_most <= 3
        await played.scheduler.stop()
        assert played.service.running == 0

    run(scenario(), limit_seconds=DAY)


def test_a_restart_forgets_nothing_that_was_repaired() -> None:
    async def scenario() -> None:
        first = Played()
        await first.scheduler.start()
        await asyncio.sleep(2 * HOUR)
        await first.scheduler.stop()
        before = dict(first.service.marks)
        assert set(before) == set(RANGES[:-1])
        second = Played(first.service)
        first.service.begun.clear()
        await second.scheduler.start()
        await asyncio.sleep(1)
        status = second.scheduler.status()
        assert {one.token_range: one.repaired_at for one in status.ranges} == before
        await asyncio.sleep(3 * HOUR)
        for one in RANGES[:-1]:
            again = next(at for at, which in first.service.begun if which == one)
            assert HOUR / 2 < again - before[one] < 1.1 * HOUR
        await second.scheduler.stop()

    run(scenario(), limit_seconds=DAY)


def test_an_interrupted_session_is_resumed_when_its_range_is_due() -> None:
    async def scenario() -> None:
        played = Played()
        whole = SessionInfo(
            "0" * 16, "ks", SessionState.INTERRUPTED, "a", ("a", "b", "c"), (RANGES[2],), 1, 2, None, 0.5,
            RepairStatistics(),
        )  # fmt: skip
        played.service.interrupted = [
            replace(whole, session_id="of another", coordinator="b"),
            replace(whole, session_id="by hand", token_ranges=RANGES[:2]),
            replace(whole, session_id="paused", state=SessionState.PAUSED),
            whole,
        ]
        await played.scheduler.start()
        await asyncio.sleep(2 * HOUR)
        assert played.service.resumed == ["0" * 16]
        assert RANGES[2] in played.service.marks
        await played.scheduler.stop()

    run(scenario(), limit_seconds=DAY)


def test_ranges_with_a_dead_replica_wait_for_it_and_are_stalled_in_the_end() -> None:
    async def scenario() -> None:
        played = Played()
        played.cluster.ranges_held = (
            ReplicatedRange(RANGES[0], ("a", "b"), "a"),
            ReplicatedRange(RANGES[1], ("a", "c"), "a"),
            ReplicatedRange(RANGES[2], ("a",), "a"),
        )
        played.cluster.dead = {"c"}
        await played.scheduler.start()
        await asyncio.sleep(2 * HOUR)
        assert {one for _, one in played.service.begun} == {RANGES[0]}
        found = {one.token_range: one for one in played.scheduler.status().ranges}
        assert set(found) == {RANGES[0], RANGES[1]}
        assert found[RANGES[1]].last_error == "waits for c, which is down"
        assert found[RANGES[1]].failures == 0
        assert (found[RANGES[0]].stalled, found[RANGES[1]].stalled) == (False, True)
        assert played.series('antientropy_ranges_waiting{keyspace="ks"}') == 1
        assert played.series('antientropy_ranges_stalled{keyspace="ks"}') == 1
        (summary,) = played.scheduler.annotated([RangeSummary("ks", RANGES[1], None, 0, 0, None, stalled=False)])
        assert summary.stalled
        assert summary.due_at is not None
        played.cluster.dead = set()
        await asyncio.sleep(60)
        assert RANGES[1] in played.service.marks
        await played.scheduler.stop()

    run(scenario(), limit_seconds=DAY)


def test_failures_are_told_and_tried_again_after_pauses() -> None:
    async def scenario() -> None:
        played = Played(retry_seconds=60.0)
        answers: list[SessionState | Exception] = [
            SessionState.FAILED,
            RepairRunningError("another repair holds it"),
            SessionState.PARTIAL,
            ValueError("a defect"),
        ]
        played.cluster.ranges_held = (ReplicatedRange(RANGES[0], ("a", "b"), "a"),)
        played.service.outcome = lambda _: answers[min(len(played.service.begun), 5) - 1]
        answers.append(SessionState.COMPLETED)
        await played.scheduler.start()
        errors = []
        while RANGES[0] not in played.service.marks:
            await asyncio.sleep(1)
            (found,) = played.scheduler.status().ranges or [None]
            if found is not None and found.last_error and found.last_error not in errors:
                errors.append(found.last_error)
                assert found.failures == len(errors)
        assert errors == ["it is failed", "another repair holds it", "it is partial", "ValueError: a defect"]
        times = [at for at, _ in played.service.begun]
        pauses = [late - early for early, late in itertools.pairwise(times)]
        assert all(bound / 2 <= pause <= bound + 60 for pause, bound in zip(pauses, (60, 120, 240, 480), strict=True))
        await asyncio.sleep(1)
        (found,) = played.scheduler.status().ranges
        assert (found.failures, found.last_error) == (0, "")
        for outcome, count in (("failed", 2), ("partial", 1), ("completed", 1)):
            assert played.metrics.value("antientropy_scheduled_repairs_total", outcome=outcome) == count, outcome
        await played.scheduler.stop()

    run(scenario(), limit_seconds=DAY)


def test_a_repair_that_takes_too_long_is_cancelled() -> None:
    async def scenario() -> None:
        played = Played(session_seconds_max=100.0)
        played.service.seconds = 1e6
        played.cluster.ranges_held = (ReplicatedRange(RANGES[0], ("a", "b"), "a"),)
        await played.scheduler.start()
        await asyncio.sleep(HOUR)
        (found,) = played.scheduler.status().ranges
        assert found.failures >= 1
        assert found.last_error == "took longer than 100 s"
        assert played.service.cancelled >= 1
        await played.scheduler.stop()
        assert played.service.running == 0

    run(scenario(), limit_seconds=DAY)


def test_windows_of_the_day_are_kept_also_over_midnight() -> None:
    async def scenario() -> None:
        played = Played(period_seconds=DAY, windows=("22:00-06:00",))
        await played.scheduler.start()
        await asyncio.sleep(6 * DAY)
        hours = [at % DAY / HOUR for at, _ in played.service.begun]
        assert len(hours) >= 25
        assert all(hour >= 22 or hour < 6 for hour in hours)
        assert not any(one.stalled for one in played.scheduler.status().ranges)
        assert played.scheduler.status().windows == ("22:00-06:00",)
        await played.scheduler.stop()

    run(scenario(), limit_seconds=8 * DAY)


def test_a_pause_lets_end_what_is_under_way_and_begins_nothing() -> None:
    async def scenario() -> None:
        played = Played()
        played.service.seconds = 300
        await played.scheduler.start()
        while not played.service.running:
            await asyncio.sleep(1)
        assert [one.session_id for one in played.scheduler.status().ranges if one.session_id] == ["session 0"]
        played.scheduler.pause()
        await asyncio.sleep(5 * HOUR)
        assert len(played.service.begun) == len(played.service.marks) == 1
        assert played.scheduler.status().paused
        played.scheduler.resume()
        await asyncio.sleep(HOUR)
        assert len(played.service.marks) == 5
        await played.scheduler.stop()

    run(scenario(), limit_seconds=DAY)


def test_stopping_cancels_what_is_under_way_and_it_can_be_started_again() -> None:
    async def scenario() -> None:
        played = Played()
        played.service.seconds = 300
        await played.scheduler.start()
        while not played.service.running:
            await asyncio.sleep(1)
        await played.scheduler.stop()
        assert (played.service.running, played.service.cancelled, played.scheduler.is_running) == (0, 1, False)
        assert played.service.marks == {}
        await played.scheduler.start()
        await asyncio.sleep(2 * HOUR)
        assert len(played.service.marks) == 5
        await played.scheduler.stop()

    run(scenario(), limit_seconds=DAY)


def test_disabled_it_does_nothing() -> None:
    async def scenario() -> None:
        played = Played(enabled=False)
        await played.scheduler.start()
        await asyncio.sleep(DAY)
        assert played.service.begun == []
        assert not played.scheduler.is_running
        assert played.scheduler.status().ranges == ()
        await played.scheduler.stop()

    run(scenario(), limit_seconds=2 * DAY)


def test_a_record_that_cannot_be_read_ends_nothing() -> None:
    async def scenario() -> None:
        played = Played()
        played.service.summary_error = RepairError("the journal is damaged")
        await played.scheduler.start()
        await asyncio.sleep(HOUR)
        played.service.summary_error = ValueError("a defect")
        await asyncio.sleep(HOUR)
        assert played.service.begun == []
        played.service.summary_error = None
        await asyncio.sleep(HOUR)
        assert len(played.service.marks) == 5
        await played.scheduler.stop()

    run(scenario(), limit_seconds=DAY)


def test_a_range_that_moves_away_is_no_longer_repaired() -> None:
    async def scenario() -> None:
        played = Played()
        await played.scheduler.start()
        await asyncio.sleep(2 * HOUR)
        played.cluster.ranges_held = played.cluster.ranges_held[:2]
        await asyncio.sleep(60)
        played.service.begun.clear()
        await asyncio.sleep(3 * HOUR)
        assert {one for _, one in played.service.begun} == set(RANGES[:2])
        await played.scheduler.stop()

    run(scenario(), limit_seconds=DAY)


def test_a_range_is_as_old_as_its_oldest_part_and_never_repaired_with_a_gap() -> None:
    def part(first: int, last: int, at: float | None) -> RangeSummary:
        return RangeSummary("ks", TokenRange(first, last), at, 0, 2, None, stalled=False)

    whole = TokenRange(0, 99)
    assert repaired(whole, [part(50, 200, 7.0), part(0, 49, 9.0)]) == (7.0, 4)
    assert repaired(whole, [part(0, 99, 5.0)]) == (5.0, 2)
    assert repaired(whole, [part(0, 48, 9.0), part(50, 99, 7.0)]) == (None, 0)
    assert repaired(whole, [part(0, 49, 9.0), part(50, 99, None)]) == (None, 0)
    assert repaired(whole, [part(0, 49, 9.0)]) == (None, 0)
    assert repaired(whole, []) == (None, 0)
