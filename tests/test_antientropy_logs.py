"""Log lines of one kind are written once in a while, and it is said how many were not."""

from __future__ import annotations

from antientropy.limits import LOG_INTERVAL_SECONDS
from antientropy.logs import LogLimiter


def test_one_line_per_key_and_interval() -> None:
    now = 1_000.0
    limiter = LogLimiter(lambda: now)
    assert [limiter.permit("a"), limiter.permit("a"), limiter.permit("b"), limiter.permit("a")] == [0, None, 0, None]
    now += LOG_INTERVAL_SECONDS - 0.1
    assert limiter.permit("a") is None
    now += 0.1
    assert limiter.permit("a") == 3
    assert limiter.permit("b") == 0
    now += LOG_INTERVAL_SECONDS
    assert limiter.permit("a") == 0


def test_many_keys_are_forgotten_and_not_kept() -> None:
    limiter = LogLimiter(lambda: 0.0)
    assert all(limiter.permit(number) == 0 for number in range(10_000))
    assert len(limiter._last) <= 1_000
