"""Counters and gauges of repair, kept in the process: cheap to bump, read by whoever exposes them.

Names follow Prometheus: ``antientropy_<what>_<unit>_total`` for counters, labels in braces. The snapshot has the shape
of that of ``gossiper.metrics``, so that a node can put both into one exposition.

By the service (:meth:`RepairMetrics.record_session`), for each repair that ends, by ``keyspace``:

* ``antientropy_sessions_total{keyspace,state}``: repairs that ended, by completed, partial, failed, cancelled.
* ``antientropy_differences_total``: rows that were not the same on all replicas.
* ``antientropy_rows_moved_total``, ``antientropy_rows_optimal_total``, ``antientropy_rows_in_flight_total``,
  ``antientropy_rows_conflicting_total``.
* ``antientropy_find_bytes_total``, ``antientropy_move_bytes_total``, ``antientropy_requests_total``,
  ``antientropy_session_seconds_total``.
* ``antientropy_strategies_total{keyspace,strategy}``: ways of finding differences that were taken.

By the throttle: ``antientropy_throttle_waits_total``, ``antientropy_throttle_wait_seconds_total``,
``antientropy_throttled_bytes_total``, ``antientropy_throttled_rows_total`` (what went through it), and
``antientropy_throttle_pace``: 1, or less while the application is slow.

By the scrub, all with ``{keyspace}`` and since the start: ``antientropy_scrub_buckets_total`` (1/256 of the token line
each), ``antientropy_scrub_rounds_total`` (all of them), ``antientropy_scrub_rows_read_total``,
``antientropy_scrub_bytes_read_total``, and what should stay 0: ``antientropy_scrub_rows_damaged_total``,
``antientropy_scrub_rows_quarantined_total`` (moved aside, so that the next repair brings them back),
``antientropy_scrub_drifts_total`` (an index that was not that of its rows), ``antientropy_scrub_failures_total`` (a
bucket that could not be read).

By the scheduler: ``antientropy_scheduled_repairs_total{outcome}`` and, made anew for every snapshot,
``antientropy_range_unrepaired_seconds{keyspace,range}`` (since the start of the last complete repair; since the
scheduler first saw the range, if there was none), ``antientropy_range_differences{keyspace,range}`` (that its last
repair found), ``antientropy_range_stalled{keyspace,range}`` (0 or 1), and for whole keyspaces
``antientropy_unrepaired_seconds_max{keyspace}``, ``antientropy_ranges{keyspace}``,
``antientropy_ranges_stalled{keyspace}``, ``antientropy_ranges_waiting{keyspace}`` (for a dead replica).

Not thread-safe: one service lives on one event loop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from antientropy.reports import RepairStatistics, SessionState

_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_Series = tuple[str, tuple[tuple[str, str], ...]]
#: What ``record_session`` sums, by the field of the statistics.
_SUMS: Final = {
    "rows_differing": "antientropy_differences_total",
    "rows_moved": "antientropy_rows_moved_total",
    "rows_optimal": "antientropy_rows_optimal_total",
    "rows_in_flight": "antientropy_rows_in_flight_total",
    "rows_conflicting": "antientropy_rows_conflicting_total",
    "find_bytes": "antientropy_find_bytes_total",
    "move_bytes": "antientropy_move_bytes_total",
    "requests": "antientropy_requests_total",
    "elapsed_seconds": "antientropy_session_seconds_total",
}


@dataclass(frozen=True, slots=True)
class Gauge:
    """A value that a collector made for one snapshot."""

    name: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()
    """Ordered by name."""


class RepairMetrics:
    """All series of one service. A series begins to exist when it is first bumped or set.

    Labels must come from a small set that the node's operator decides (keyspaces, states), never from peer input:
    series are never dropped. What comes and goes (ranges) belongs into a collector.
    """

    def __init__(self) -> None:
        self._values: dict[_Series, float] = {}
        self._collectors: list[Callable[[], Iterable[Gauge]]] = []

    def increment(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add ``amount`` to a counter.

        Raises:
            ValueError: ``name`` is not a metric name, or ``amount`` is negative.
        """
        if amount < 0:
            raise ValueError(f"{name}: a counter cannot go down by {-amount}")
        series = _series(name, labels)
        try:
            self._values[series] += amount
        except KeyError:
            self._begin(series, amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge.

        Raises:
            ValueError: ``name`` is not a metric name.
        """
        self._begin(_series(name, labels), value)

    def value(self, name: str, **labels: str) -> float:
        """The value of one series; 0 when it was never bumped. Those of collectors are in :meth:`snapshot` only."""
        return self._values.get(_series(name, labels), 0)

    def record_session(self, keyspace: str, state: SessionState, statistics: RepairStatistics) -> None:
        """A repair has ended. Once for each.

        Raises:
            ValueError: the state is not final.
        """
        if not state.is_final:
            raise ValueError(f"{state.value} is no end of a session")
        self.increment("antientropy_sessions_total", keyspace=keyspace, state=state.value)
        for field, name in _SUMS.items():
            self.increment(name, getattr(statistics, field), keyspace=keyspace)
        for strategy, count in statistics.strategies.items():
            self.increment("antientropy_strategies_total", count, keyspace=keyspace, strategy=strategy)

    def collect(self, collector: Callable[[], Iterable[Gauge]]) -> Callable[[], None]:
        """Have gauges made for every snapshot; the answer takes the collector out again (idempotent)."""
        self._collectors.append(collector)

        def remove() -> None:
            if collector in self._collectors:
                self._collectors.remove(collector)

        return remove

    def snapshot(self) -> list[tuple[str, float]]:
        """All series as (name with labels, value), ordered by name; labels are ordered too."""
        values = dict(self._values)
        for collector in self._collectors:
            for gauge in collector():
                values[(gauge.name, gauge.labels)] = gauge.value
        return sorted((_text(series), float(value)) for series, value in values.items())

    def exposition(self) -> str:
        """The snapshot in Prometheus' text format, a line for each series."""
        return "".join(f"{name} {value:.17g}\n" for name, value in self.snapshot())

    def _begin(self, series: _Series, value: float) -> None:
        if not _NAME.fullmatch(series[0]):
            raise ValueError(f"{series[0]!r} is not a metric name")
        self._values[series] = value


def _series(name: str, labels: dict[str, str]) -> _Series:
    return name, tuple(sorted(labels.items()))


def _text(series: _Series) -> str:
    name, labels = series
    if not labels:
        return name
    return name + "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
