"""Phi over 1,000 endpoints: one look at all, and one message that reports half of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gossiper.core.failure_detector import PhiAccrualFailureDetector


def detector(endpoints: int, samples: int) -> PhiAccrualFailureDetector:
    """A detector with ``samples`` one-second intervals for each endpoint."""
    made = PhiAccrualFailureDetector(
        threshold=8.0,
        window_size=1000,
        first_interval_seconds=2.0,
        interval_seconds_max=2.0,
        local_pause_seconds=1e9,
    )
    rows = np.arange(endpoints, dtype=np.intp)
    rng = np.random.default_rng(1)
    for second in range(samples + 1):
        made.report(rng.permutation(rows), second + float(rng.random()) / 10)
    return made


@pytest.mark.parametrize("endpoints", [1000, 10_000])
def test_interpret_all(benchmark: Any, endpoints: int) -> None:
    fd = detector(endpoints, 50)
    rows = np.arange(endpoints, dtype=np.intp)
    verdict = benchmark(lambda: fd.interpret(rows, 55.0))
    benchmark.extra_info.update({"endpoints": endpoints, "samples_per_endpoint": 50})
    assert len(verdict.convicted) == 0


def test_report_half(benchmark: Any) -> None:
    fd = detector(1000, 1000)
    rows = np.arange(0, 1000, 2, dtype=np.intp)
    clock = iter(range(10**9))
    benchmark(lambda: fd.report(rows, 1001.0 + next(clock)))
    benchmark.extra_info.update({"endpoints": 1000, "reported": len(rows), "window_size": 1000})
