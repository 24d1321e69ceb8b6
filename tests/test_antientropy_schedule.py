"""When which range is repaired: pure decisions over days of time that is an argument."""

from __future__ import annotations

import itertools
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antientropy.core.schedule import RangeView, RepairSchedule, SchedulerSettings
from antientropy.core.tokens import TokenRange
from antientropy.core.windows import DAY_SECONDS, Window, in_windows, open_for_seconds, opens_in_seconds
from antientropy.errors import ConfigError

HOUR = 3600.0
START = 1_700_000_000.0


def view(number: int, *, repaired_at: float | None = None, replicas: tuple[str, ...] = ("b", "c")) -> RangeView:
    return RangeView("ks", TokenRange(100 * number, 100 * number + 99), replicas, repaired_at)


def schedule_of(views: list[RangeView], rng: Random, **options: object) -> RepairSchedule:
    made = RepairSchedule(SchedulerSettings(**options), START, rng.random())  # type: ignore[arg-type]
    made.observe(views, START, [rng.random() for _ in views])
    return made


# -- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("22:00-06:00", (22.0, 23.99, 0.0, 5.99), (6.0, 12.0, 21.99)),
        ("01:30-04:00", (1.5, 3.99), (1.49, 4.0, 23.0)),
        ("00:00-24:00", (0.0, 12.0, 23.99), ()),
        ("9:00-17:00", (9.0,), (17.0, 8.99)),
    ],
)
def test_windows_of_the_day(text: str, inside: tuple[float, ...], outside: tuple[float, ...]) -> None:
    window = Window.parse(text)
    assert [window.contains(hour * HOUR) for hour in inside] == [True] * len(inside)
    assert [window.contains(hour * HOUR) for hour in outside] == [False] * len(outside)
    assert Window.parse(str(window)) == window


@pytest.mark.parametrize(
    "text", ["", "22:00", "22-06", "25:00-06:00", "22:60-06:00", "22:00-24:01", "06:00-06:00", "-"]
)
def test_what_is_no_window_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ValueError, match="window"):
        Window.parse(text)


@given(
    st.lists(st.tuples(st.integers(0, DAY_SECONDS - 1), st.integers(1, DAY_SECONDS)), max_size=4),
    st.integers(0, DAY_SECONDS - 1),
)
def test_opening_and_closing_agree_with_containing(pairs: list[tuple[int, int]], second: int) -> None:
    windows = [Window(begin, end) for begin, end in pairs if begin != end]
    wait = opens_in_seconds(windows, second)
    assert in_windows(windows, (second + wait) % DAY_SECONDS)
    assert wait == 0 or not in_windows(windows, (second + wait - 1) % DAY_SECONDS)
    stays = open_for_seconds(windows, second)
    assert (stays > 0) == in_windows(windows, second)
    if 0 < stays < DAY_SECONDS:
        assert in_windows(windows, (second + stays - 1) % DAY_SECONDS)
        assert not in_windows(windows, (second + stays) % DAY_SECONDS)


# -- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"period_seconds": 0}, "period_seconds is 0"),
        ({"period_seconds": float("nan")}, "period_seconds is nan"),
        ({"concurrency_max": 0}, "concurrency_max is 0"),
        ({"initial_delay_seconds": -1}, "initial_delay_seconds is -1"),
        ({"retry_seconds": -1.0, "check_interval_seconds": 0}, "check_interval_seconds.*; retry_seconds"),
        ({"windows": ("nightly",), "period_seconds": 1e6}, "window 'nightly' is not of the form"),
        ({"windows": ("22:00-06:00",), "period_seconds": 3600}, "period_seconds is 3600 with windows"),
    ],
)
def test_settings_out_of_bounds_are_named(options: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        SchedulerSettings(**options)  # type: ignore[arg-type]


# -- who is next ----------------------------------------------------------------------------------------------------


def test_nothing_begins_before_the_initial_delay() -> None:
    schedule = RepairSchedule(SchedulerSettings(initial_delay_seconds=60, period_seconds=10), START, 1.0)
    schedule.observe([view(1, repaired_at=START - 1e6)], START, [0.5])
    assert schedule.next_range(START + 89, 0) is None
    assert schedule.next_range(START + 90, 0) == view(1, repaired_at=START - 1e6)


def test_the_longest_unrepaired_goes_first_and_the_never_repaired_before_it() -> None:
    now = START + DAY_SECONDS
    views = [
        view(1, repaired_at=START - 10),
        view(2, repaired_at=START - 900),
        view(3),
        view(4, repaired_at=START - 90),
    ]
    schedule = schedule_of(views, Random(1))
    order = []
    while (found := schedule.next_range(now)) is not None:
        order.append(found.token_range.first // 100)
        schedule.begin(found.key, now)
        schedule.succeed(found.key, now, 0, 0.5)
    assert order == [3, 2, 4, 1]


def test_never_more_at_once_than_allowed_and_busy_replicas_last() -> None:
    now = START + DAY_SECONDS
    views = [
        view(1, repaired_at=START - 900, replicas=("b", "c")),
        view(2, repaired_at=START - 800, replicas=("b", "c")),
        view(3, repaired_at=START - 700, replicas=("c", "d")),
        view(4, repaired_at=START - 600, replicas=("d", "e")),
    ]
    schedule = schedule_of(views, Random(1), concurrency_max=3, period_seconds=1.1 * DAY_SECONDS)
    begun = []
    while (found := schedule.next_range(now)) is not None:
        begun.append(found.token_range.first // 100)
        schedule.begin(found.key, now)
    assert begun == [1, 4, 2]


def test_what_is_stalled_goes_first_whatever_is_busy() -> None:
    now = START + 1.2 * DAY_SECONDS
    views = [
        view(1, repaired_at=START - 900, replicas=("b", "c")),
        view(2, repaired_at=START - 800, replicas=("b", "c")),
        view(3, repaired_at=START + 0.2 * DAY_SECONDS, replicas=("d", "e")),
    ]
    schedule = schedule_of(views, Random(1), concurrency_max=3, period_seconds=1.1 * DAY_SECONDS)
    begun = []
    while (found := schedule.next_range(now)) is not None:
        begun.append(found.token_range.first // 100)
        schedule.begin(found.key, now)
    assert begun == [1, 2, 3]


def test_a_range_with_a_dead_replica_is_left_out_and_the_others_go_on() -> None:
    now = START + DAY_SECONDS
    dead = RangeView("ks", TokenRange(0, 99), ("b", "c"), None, ("c",))
    schedule = schedule_of([dead, view(1, replicas=("b",))], Random(1))
    found = schedule.next_range(now)
    assert found is not None
    assert found.token_range == TokenRange(100, 199)
    assert schedule.waiting_for(schedule.plans[dead.key]) == "waits for c, which is down"
    schedule.begin(found.key, now)
    schedule.succeed(found.key, now, 0, 0.5)
    assert schedule.next_range(now) is None
    schedule.observe([RangeView("ks", TokenRange(0, 99), ("b", "c"), None), view(1, replicas=("b",))], now, [0.5, 0.5])
    assert schedule.next_range(now) is not None


def test_failures_pause_for_longer_and_longer_up_to_the_most() -> None:
    schedule = schedule_of([view(1)], Random(1), retry_seconds=30, retry_seconds_max=600)
    key, now, pauses = view(1).key, START + DAY_SECONDS, []
    for _ in range(8):
        schedule.begin(key, now)
        schedule.fail(key, now, "x" * 5000, 0.0)
        pauses.append(schedule.plans[key].retry_at - now)
        assert schedule.next_range(now + pauses[-1] - 1) is None
        assert schedule.next_range(now + pauses[-1]) is not None
        now += pauses[-1]
    assert pauses == [30, 60, 120, 240, 480, 600, 600, 600]
    assert schedule.plans[key].failures == 8
    assert len(schedule.plans[key].last_error) == 500
    schedule.begin(key, now)
    schedule.fail(key, now, "again", 1.0)
    assert schedule.plans[key].retry_at - now == 300
    schedule.begin(key, now)
    schedule.succeed(key, now, 3, 0.0)
    assert (schedule.plans[key].failures, schedule.plans[key].last_error) == (0, "")


def test_a_repair_by_somebody_else_counts_and_an_older_record_does_not() -> None:
    schedule = schedule_of([view(1, repaired_at=START - 10 * HOUR)], Random(1))
    key, now = view(1).key, START + HOUR
    assert schedule.next_range(now) is not None
    schedule.fail(key, now, "no", 0.0)
    schedule.observe([view(1, repaired_at=now - 60)], now, [0.5])
    assert schedule.plans[key].failures == 0
    assert schedule.next_range(now + 60) is None
    schedule.observe([view(1, repaired_at=START - 10 * HOUR)], now, [0.5])
    assert schedule.plans[key].view.repaired_at == now - 60


def test_ranges_that_have_moved_away_are_forgotten_when_their_repair_has_ended() -> None:
    schedule = schedule_of([view(1), view(2)], Random(1))
    schedule.begin(view(1).key, START)
    schedule.observe([view(3)], START, [0.5])
    assert set(schedule.plans) == {view(1).key, view(3).key}
    schedule.release(view(1).key)
    schedule.observe([view(3)], START, [0.5])
    assert set(schedule.plans) == {view(3).key}
    schedule.fail(view(1).key, START, "its task ends late", 0.5)
    assert set(schedule.plans) == {view(3).key}


def test_stalled_is_longer_than_the_period_without_success() -> None:
    schedule = schedule_of([view(1), view(2, repaired_at=START - HOUR)], Random(1), period_seconds=2 * HOUR)
    never, before = schedule.plans[view(1).key], schedule.plans[view(2).key]
    assert [schedule.is_stalled(plan, START + HOUR + 1) for plan in (never, before)] == [False, True]
    assert [schedule.is_stalled(plan, START + 2 * HOUR + 1) for plan in (never, before)] == [True, True]


def test_what_is_expected_takes_pauses_and_windows_into_account() -> None:
    settings_ = {"period_seconds": 2.0 * DAY_SECONDS, "windows": ("22:00-06:00",), "initial_delay_seconds": 0.0}
    midnight = START - START % DAY_SECONDS
    schedule = RepairSchedule(SchedulerSettings(**settings_), midnight)  # type: ignore[arg-type]
    schedule.observe([view(1, repaired_at=midnight - 3 * DAY_SECONDS)], midnight, [0.0])
    plan = schedule.plans[view(1).key]
    noon = midnight + 12 * HOUR
    assert schedule.expected_at(plan, noon) == midnight + 22 * HOUR
    assert schedule.expected_at(plan, noon, 2 * HOUR) == midnight + 20 * HOUR
    schedule.begin(view(1).key, noon)
    schedule.fail(view(1).key, midnight + 23 * HOUR, "no", 0.0)
    assert schedule.expected_at(plan, midnight + 23 * HOUR) == midnight + 23 * HOUR + 30


# -- days of it -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 40),
    together=st.booleans(),
    windows=st.sampled_from([(), ("22:00-06:00",), ("01:00-03:00", "12:00-14:30")]),
    days=st.sampled_from([1.0, 1.3, 7.0]),
)
def test_every_range_is_repaired_within_its_period_inside_of_the_windows(
    seed: int, count: int, together: bool, windows: tuple[str, ...], days: float
) -> None:
    rng = Random(seed)
    period, step, seconds = days * DAY_SECONDS, 600.0, 20.0
    repaired = {number: START - rng.uniform(0, 0.0 if together else period) for number in range(count)}
    options = {"period_seconds": period, "windows": windows, "concurrency_max": 2}
    schedule = schedule_of([view(number, repaired_at=at) for number, at in repaired.items()], rng, **options)
    offset = rng.choice((-5, 0, 2)) * HOUR
    first_period_over = START + 2 * period
    running: list[tuple[float, float, RangeView]] = []
    now, late = START, 0.0
    while now < START + 4 * period:
        for end, began, done in [one for one in running if one[0] <= now]:
            running.remove((end, began, done))
            schedule.succeed(done.key, began, 0, rng.random())
        while (found := schedule.next_range(now, offset)) is not None:
            assert in_windows(schedule.settings.parsed_windows, (now + offset) % DAY_SECONDS)
            schedule.begin(found.key, now)
            running.append((now + seconds, now, found))
        assert len(running) <= 2
        if now > first_period_over:
            late = max(late, *(now - plan.age_from - period for plan in schedule.plans.values()))
        now += step
    # All of them fit into two thirds of the narrowest windows, one look of 600 s at a time.
    assert late <= (6 * step if windows else 3 * step)


def test_ranges_repaired_together_drift_apart() -> None:
    rng = Random(5)
    schedule = schedule_of([view(number, repaired_at=START) for number in range(200)], rng, period_seconds=DAY_SECONDS)
    due = Counter(int((schedule.due_at(plan) - START) // HOUR) for plan in schedule.plans.values())
    assert sum(due.values()) == 200
    assert len(due) >= 5
    assert max(due.values()) < 80


def test_ranges_never_repaired_are_begun_spread_over_half_of_the_period() -> None:
    schedule = schedule_of([view(number) for number in range(200)], Random(5), period_seconds=10 * HOUR)
    due = sorted(schedule.due_at(plan) - START for plan in schedule.plans.values())
    assert due[0] >= 60
    assert due[-1] <= 5 * HOUR + 90
    assert max(late - early for early, late in itertools.pairwise(due)) < HOUR
