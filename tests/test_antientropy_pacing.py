"""Token buckets, the pace that the application's latency permits, the share of the CPU. Time is an argument."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antientropy.core.pacing import (
    BASELINE_RISE_SECONDS,
    BURST_SECONDS,
    RECOVERY_SECONDS,
    TIERS,
    WORK_SECONDS_MAX,
    LatencyGovernor,
    ThrottleSettings,
    TokenBucket,
    rest_seconds,
)
from antientropy.errors import ConfigError

FLOOR_SECONDS = 0.001


def admit(bucket: TokenBucket, amount: float, now: float) -> float:
    """Ask and wait; when it was admitted."""
    position = bucket.ask(amount, now)
    while (wait := bucket.wait_seconds(position, now)) > 0:
        now += wait
    return now


@given(
    rate=st.floats(1.0, 1e9),
    requests=st.lists(st.tuples(st.floats(0.0, 1e6), st.floats(0.0, 5.0)), min_size=1, max_size=60),
)
def test_no_more_passes_than_the_rate_a_burst_and_one_request(rate: float, requests: list[tuple[float, float]]) -> None:
    bucket, now = TokenBucket(rate, 0.0), 0.0
    admitted: list[tuple[float, float]] = []
    for amount, pause in requests:
        now = admit(bucket, amount, now + pause)
        admitted.append((now, amount))
    largest = max(amount for amount, _ in requests)
    for begin in range(len(admitted)):
        passed = 0.0
        for at, amount in admitted[begin:]:
            passed += amount
            elapsed = at - admitted[begin][0]
            assert passed <= (rate * (elapsed + BURST_SECONDS) + largest) * (1 + 1e-6) + 1e-3


@given(amount=st.floats(1.0, 1e6), rate=st.floats(1.0, 1e6))
def test_a_bucket_that_is_kept_busy_gives_its_whole_rate(amount: float, rate: float) -> None:
    bucket, now = TokenBucket(rate, 0.0), 0.0
    for _ in range(200):
        now = admit(bucket, amount, now)
    assert 200 * amount >= rate * now


def test_who_waits_is_admitted_in_order_and_at_the_rate() -> None:
    bucket = TokenBucket(100.0, 0.0)
    positions = [bucket.ask(100, 0.0) for _ in range(4)]
    assert [bucket.wait_seconds(position, 0.0) for position in positions] == [0.0, 0.5, 1.5, 2.5]


def test_a_request_larger_than_the_bucket_passes_and_is_paid_for_afterwards() -> None:
    bucket = TokenBucket(10.0, 0.0)
    assert admit(bucket, 1000.0, 0.0) == 0.0
    assert admit(bucket, 1.0, 0.0) == pytest.approx(99.5)


def test_a_changed_rate_holds_for_those_who_wait() -> None:
    bucket = TokenBucket(10.0, 0.0)
    bucket.ask(1005.0, 0.0)
    position = bucket.ask(1.0, 0.0)
    assert bucket.wait_seconds(position, 0.0) == pytest.approx(100.0)
    bucket.set_rate(1000.0, 10.0)
    assert bucket.wait_seconds(position, 10.0) == pytest.approx(0.9)
    bucket.set_rate(None, 10.0)
    assert bucket.wait_seconds(position, 10.0) == 0.0


def test_after_no_limit_a_limit_begins_with_one_burst() -> None:
    bucket = TokenBucket(None, 0.0)
    for _ in range(10):
        assert admit(bucket, 1e9, 0.0) == 0.0
    bucket.set_rate(10.0, 1.0)
    assert bucket.rate == 10.0
    assert admit(bucket, 5.0, 1.0) == 1.0
    assert admit(bucket, 5.0, 1.5) == 1.5
    assert admit(bucket, 100.0, 100.0) == 100.0
    assert admit(bucket, 1.0, 100.0) == pytest.approx(109.5)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = TokenBucket(10.0, 100.0)
    bucket.ask(15.0, 100.0)
    position = bucket.ask(1.0, 50.0)
    assert bucket.wait_seconds(position, 50.0) == pytest.approx(1.0)
    assert bucket.wait_seconds(position, 101.0) == 0.0


# -- latency --------------------------------------------------------------------------------------------------------


def governor_at(latency_seconds: float) -> LatencyGovernor:
    """One that has seen this latency for a while."""
    governor = LatencyGovernor(FLOOR_SECONDS)
    for second in range(60):
        governor.observe(latency_seconds, float(second))
    return governor


@pytest.mark.parametrize(
    ("factor", "pace"), [(1.0, 1.0), (1.4, 1.0), (1.6, 0.5), (3.0, 0.25), (7.0, 0.1), (50.0, 0.02)]
)
def test_the_pace_falls_at_once_by_tiers_of_the_latency(factor: float, pace: float) -> None:
    governor = governor_at(0.010)
    assert governor.observe(0.010 * factor, 60.0) == pace


def test_the_pace_comes_back_tier_by_tier() -> None:
    governor = governor_at(0.010)
    assert governor.observe(1.0, 60.0) == 0.02
    paces = [governor.observe(0.010, 60.0 + RECOVERY_SECONDS * at / 2) for at in range(1, 12)]
    assert paces == [0.02, 0.1, 0.1, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]


def test_latencies_below_the_floor_are_never_slow() -> None:
    governor = governor_at(0.00001)
    assert governor.observe(0.0009, 60.0) == 1.0
    assert governor.observe(0.0051, 61.0) == 0.1


def test_the_baseline_does_not_soon_follow_what_repair_causes_but_does_follow_the_day() -> None:
    governor = governor_at(0.010)
    for second in range(60, 120):
        governor.observe(0.050, float(second))
    assert governor.pace <= 0.25
    for second in range(120, 120 + int(6 * BASELINE_RISE_SECONDS)):
        governor.observe(0.050, float(second))
    assert governor.pace == 1.0


def test_after_a_long_pause_the_first_latency_is_the_baseline() -> None:
    governor = governor_at(0.010)
    assert governor.observe(0.1, 60.0 + BASELINE_RISE_SECONDS) == 1.0
    assert governor.baseline_seconds == 0.1


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf, -1.0])
def test_what_is_no_latency_slows_nothing_down(nothing: float | None) -> None:
    governor = governor_at(0.010)
    baseline = governor.baseline_seconds
    governor.observe(1.0, 60.0)
    for second in range(61, 70):
        governor.observe(nothing, float(second))
    assert governor.pace == 1.0
    assert governor.latency_seconds is None
    assert governor.baseline_seconds is not None
    assert baseline is not None
    assert governor.baseline_seconds >= baseline


@given(st.lists(st.tuples(st.floats(0.0, 10.0), st.floats(0.0, 1000.0)), max_size=50))
def test_the_pace_is_never_nothing(observations: list[tuple[float, float]]) -> None:
    governor, now = LatencyGovernor(FLOOR_SECONDS), 0.0
    for latency, pause in observations:
        now += pause
        assert governor.observe(latency, now) in {pace for _, pace in TIERS}
        assert governor.pace > 0


# -- share of the CPU, settings -------------------------------------------------------------------------------------


@given(worked=st.floats(1e-5, WORK_SECONDS_MAX), share=st.floats(0.01, 1.0))
def test_work_is_the_share_of_work_and_rest(worked: float, share: float) -> None:
    assert worked / (worked + rest_seconds(worked, share)) == pytest.approx(share)


@pytest.mark.parametrize("worked", [0.0, -1.0, WORK_SECONDS_MAX * 1.01])
def test_what_was_no_work_needs_no_rest(worked: float) -> None:
    assert rest_seconds(worked, 0.1) == 0.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bytes_per_second", 0.0),
        ("bytes_per_second", math.nan),
        ("rows_per_second", -5.0),
        ("rows_per_second", math.inf),
        ("cpu_share", 0.0),
        ("cpu_share", 1.5),
        ("latency_floor_seconds", 0.0),
    ],
)
def test_settings_out_of_bounds_are_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} is"):
        ThrottleSettings(**{name: value})
