"""Phi against values worked out by hand, and columns against the same done one endpoint at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossiper.core.failure_detector import PHI_FACTOR, ArrivalWindows, PhiAccrualFailureDetector

ROW = np.array([0], dtype=np.intp)


def detector(**changes: float) -> PhiAccrualFailureDetector:
    settings: dict[str, float] = {
        "threshold": 8.0,
        "first_interval_seconds": 2.0,
        "interval_seconds_max": 2.0,
        "local_pause_seconds": 5.0,
    }
    window_size = int(changes.pop("window_size", 1000))
    return PhiAccrualFailureDetector(window_size=window_size, **{**settings, **changes})


def test_cassandras_anchor() -> None:
    """ArrivalWindowTest of Cassandra: a window of 4, a heartbeat each 111 ms."""
    fd = detector(window_size=4)
    for at in (0.111, 0.222, 0.333, 0.444, 0.555):
        fd.report(ROW, at)
    assert fd.phi_unscaled(ROW, 0.666)[0] == pytest.approx(1.0)
    assert fd.phi_unscaled(ROW, 3.0)[0] == pytest.approx(22.03, abs=0.005)
    assert fd.phi(ROW, 3.0)[0] == pytest.approx(22.03 / math.log(10), abs=0.005)


def test_the_first_interval_is_assumed_and_fades() -> None:
    """Conviction takes 36.8 s after one heartbeat and nears 18.4 s with a full second-by-second history."""
    fd = detector()
    fd.report(ROW, 100.0)
    assert fd.windows.means_seconds(ROW)[0] == 2.0
    assert fd.phi(ROW, 100.0 + 36.8)[0] < 8.0 < fd.phi(ROW, 100.0 + 36.9)[0]
    for second in range(1, 11):
        fd.report(ROW, 100.0 + second)
    assert fd.windows.sample_counts(ROW)[0] == 11
    assert fd.windows.means_seconds(ROW)[0] == pytest.approx(12 / 11)


def test_a_gap_over_the_maximum_is_no_rhythm_but_moves_the_last_arrival() -> None:
    fd = detector()
    fd.report(ROW, 0.0)
    fd.report(ROW, 1.0)
    fd.report(ROW, 31.0)
    assert fd.windows.sample_counts(ROW)[0] == 2
    assert fd.windows.silence_seconds(ROW, 31.5)[0] == pytest.approx(0.5)


def test_never_reported_is_never_convicted() -> None:
    fd = detector()
    rows = np.arange(5, dtype=np.intp)
    assert np.isnan(fd.phi(rows, 1e9)).all()
    assert len(fd.interpret(rows, 1e9).convicted) == 0


def test_a_new_generation_begins_anew() -> None:
    fd = detector()
    for second in range(20):
        fd.report(ROW, float(second))
    fd.reset(ROW)
    assert np.isnan(fd.phi(ROW, 100.0)[0])
    fd.report(ROW, 100.0)
    assert fd.windows.means_seconds(ROW)[0] == 2.0
    assert fd.windows.sample_counts(ROW)[0] == 1


def test_conviction_is_strictly_above_the_threshold() -> None:
    fd = detector(threshold=1.0, local_pause_seconds=1e9)
    fd.report(ROW, 0.0)
    exactly = 1.0 / PHI_FACTOR * 2.0
    assert len(fd.interpret(ROW, exactly * (1 - 1e-9)).convicted) == 0
    assert fd.interpret(ROW, exactly * (1 + 1e-9)).convicted.tolist() == [0]


def test_a_pause_of_this_process_convicts_nobody_for_as_long_again() -> None:
    fd = detector()
    for second in range(10):
        fd.report(ROW, float(second))
        fd.interpret(ROW, float(second))
    woken = fd.interpret(ROW, 69.0)
    assert woken.paused_seconds == pytest.approx(60.0)
    assert len(woken.convicted) == 0
    assert fd.local_pause_remaining_seconds(70.0) == pytest.approx(4.0)
    for second in range(70, 74):
        assert len(fd.interpret(ROW, float(second)).convicted) == 0
    assert fd.interpret(ROW, 74.0).convicted.tolist() == [0]


def test_a_short_delay_of_the_round_is_no_pause() -> None:
    fd = detector()
    fd.report(ROW, 0.0)
    fd.interpret(ROW, 40.0)
    assert fd.interpret(ROW, 44.9).convicted.tolist() == [0]


def test_unusable_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ArrivalWindows(size=0, first_interval_seconds=1.0, interval_seconds_max=1.0)
    with pytest.raises(ValueError, match="first_interval_seconds"):
        ArrivalWindows(size=1, first_interval_seconds=0.0, interval_seconds_max=1.0)


@given(
    size=st.integers(1, 40),
    steps=st.lists(
        st.tuples(st.integers(0, 3_000_000), st.sets(st.integers(0, 4), max_size=5)), min_size=1, max_size=120
    ),
)
def test_columns_equal_one_window_at_a_time(size: int, steps: list[tuple[int, set[int]]]) -> None:
    """Model: for each endpoint a plain list of its last ``size`` accepted intervals in whole microseconds."""
    windows = ArrivalWindows(size=size, first_interval_seconds=2.0, interval_seconds_max=2.0)
    samples: dict[int, list[int]] = {}
    last: dict[int, int] = {}
    now_us = 0
    for step_us, reporting in steps:
        now_us += step_us
        if len(reporting) == 1:
            windows.report_one(min(reporting), now_us / 1_000_000)
        else:
            windows.report(np.array(sorted(reporting), dtype=np.intp), now_us / 1_000_000)
        for row in reporting:
            interval = 2_000_000 if row not in last else now_us - last[row]
            if row not in last or interval <= 2_000_000:
                samples[row] = [*samples.get(row, []), interval][-size:]
            last[row] = now_us
    for row, expected in samples.items():
        at = np.array([row], dtype=np.intp)
        assert windows.sample_counts(at)[0] == len(expected)
        assert windows.means_seconds(at)[0] == pytest.approx(sum(expected) / len(expected) / 1_000_000, rel=1e-12)
