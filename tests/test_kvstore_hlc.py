"""The hybrid logical clock."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import ClockDriftError
from kvstore.hlc import COUNTER_BITS, HybridLogicalClock, seconds_of, version_at

seconds = st.floats(min_value=0, max_value=2.0**31, allow_nan=False)


class Wall:
    """A clock that the test sets."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@given(seconds, seconds)
def test_versions_sort_as_moments_do(first: float, second: float) -> None:
    early, late = sorted((first, second))
    assert version_at(early) <= version_at(late)
    assert 0 <= early - seconds_of(version_at(early)) < 0.001 + 1e-6


steps = st.lists(
    st.one_of(
        st.tuples(st.just("advance"), st.floats(min_value=-2.0, max_value=2.0)),
        st.tuples(st.just("now"), st.integers(min_value=1, max_value=70_000)),
        st.tuples(st.just("update"), st.floats(min_value=-3.0, max_value=4.0)),
    ),
    max_size=40,
)


@given(steps)
def test_every_version_is_greater_than_all_issued_and_seen_before(plan: list[tuple[str, float]]) -> None:
    wall = Wall(1_000_000.0)
    clock = HybridLogicalClock(wall, drift_seconds_max=1_000.0)
    greatest = 0
    for action, number in plan:
        if action == "advance":
            wall.now += number
        elif action == "update":
            seen = version_at(wall.now + number)
            clock.update(seen)
            greatest = max(greatest, seen)
        else:
            first = clock.now(int(number))
            assert first > greatest
            assert first >= version_at(wall.now)
            greatest = first + int(number) - 1
        assert clock.last == greatest


def test_starts_above_the_store() -> None:
    stored = version_at(1_000.0) + 7
    assert HybridLogicalClock(lambda: 999.0, drift_seconds_max=5.0, start_version=stored).now() == stored + 1


def test_a_full_counter_runs_into_the_next_millisecond() -> None:
    clock = HybridLogicalClock(lambda: 1_000.0, drift_seconds_max=5.0)
    first = clock.now(1 << COUNTER_BITS)
    assert clock.now() == first + (1 << COUNTER_BITS)
    assert seconds_of(clock.last) == 1_000.001


def test_refuses_a_version_too_far_ahead_and_is_unchanged() -> None:
    clock = HybridLogicalClock(lambda: 1_000.0, drift_seconds_max=5.0)
    before = clock.now()
    clock.update(version_at(1_004.9))
    accepted = clock.last
    with pytest.raises(ClockDriftError, match=r"10\.000 s ahead of the clock here, 5 s are allowed"):
        clock.update(version_at(1_010.0))
    assert not clock.observe(version_at(1_010.0))
    assert clock.last == accepted > before


@pytest.mark.parametrize("version", [-1, 2**64])
def test_refuses_what_is_not_64_bits(version: int) -> None:
    with pytest.raises(ClockDriftError, match="outside of 64 bits"):
        HybridLogicalClock(lambda: 0.0, drift_seconds_max=5.0).update(version)


def test_a_clock_that_was_set_back_too_far_is_told_instead_of_losing_writes() -> None:
    clock = HybridLogicalClock(lambda: 1_000.0, drift_seconds_max=5.0, start_version=version_at(1_100.0))
    with pytest.raises(ClockDriftError, match="was set back"):
        clock.now()


def test_threads_get_different_versions() -> None:
    clock = HybridLogicalClock(lambda: 1_000.0, drift_seconds_max=5.0)
    versions: list[int] = []

    def work() -> None:
        versions.extend(clock.now() for _ in range(500))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(versions)) == 2_000
