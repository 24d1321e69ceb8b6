"""Counters and gauges of one node, kept in the process: cheap to bump, and read by the administration service.

Names follow Prometheus: ``gossiper_<what>_<unit>_total`` for counters, labels in braces. Bumped by this library:

* ``gossiper_messages_total{kind,form,direction}`` and ``gossiper_message_bytes_total{kind,form,direction}``: messages
  given to or taken from the network, before compression; kind is syn, ack, ack2, ack2_reply, echo_request or
  echo_reply, form compact, plain or (of what could not be read) unknown, direction received or sent.
* ``gossiper_exchanges_total{kind}``: digest exchanges begun here and answered, by what they needed: compact,
  roster_buckets, states_buckets or plain; see ``gossiper.core.exchange``. One that falls back to the plain form after
  an attempt in columns is counted as both.
* ``gossiper_refused_total{reason}``: messages of peers that broke the protocol (``PeerProtocolError.reason``).
* ``gossiper_send_failures_total{reason}``: sends without an answer (``TransportError.reason``).
* ``gossiper_internal_errors_total``: defects that were met while a message or a round was handled.
* ``gossiper_generations_not_persisted_total``: writes of a new generation that failed while the node ran.
* ``gossiper_rounds_total``, ``gossiper_channels``: rounds begun, channels open.

Not thread-safe: one node lives on one event loop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_Series = tuple[str, tuple[tuple[str, str], ...]]
Collector = Callable[[], Iterable[tuple[str, float]]]
"""Gives (name with labels, value) of each of its series; quick, raises nothing."""


class GossipMetrics:
    """All series of one node. A series begins to exist when it is first bumped or set.

    Labels must come from a small fixed set (reasons, kinds), never from peer input: series are never dropped.
    """

    def __init__(self) -> None:
        self._values: dict[_Series, float] = {}
        self._collectors: list[Collector] = []

    def increment(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add ``amount`` to a counter.

        Raises:
            ValueError: ``name`` is not a metric name, or ``amount`` is negative.
        """
        if amount < 0:
            raise ValueError(f"{name}: a counter cannot go down by {-amount}")
        series = (name, tuple(sorted(labels.items())))
        try:
            self._values[series] += amount
        except KeyError:
            self._begin(series, amount)

    def count_message(self, kind: str, form: str, direction: str, size_bytes: int) -> None:
        """One message was given to the network or taken from it."""
        self.increment("gossiper_messages_total", kind=kind, form=form, direction=direction)
        self.increment("gossiper_message_bytes_total", size_bytes, kind=kind, form=form, direction=direction)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge.

        Raises:
            ValueError: ``name`` is not a metric name.
        """
        self._begin((name, tuple(sorted(labels.items()))), value)

    def value(self, name: str, **labels: str) -> float:
        """The value of one series; 0 when it was never bumped."""
        return self._values.get((name, tuple(sorted(labels.items()))), 0)

    def snapshot(self) -> list[tuple[str, float]]:
        """All series as (name with labels, value), ordered by name; labels are ordered too."""
        collected = [series for collector in self._collectors for series in collector()]
        return sorted([(_text(series), float(value)) for series, value in self._values.items()] + collected)

    def collect(self, collector: Collector) -> None:
        """Have an application's own series in every snapshot: what is counted elsewhere is asked for, not copied."""
        self._collectors.append(collector)

    def _begin(self, series: _Series, value: float) -> None:
        if not _NAME.fullmatch(series[0]):
            raise ValueError(f"{series[0]!r} is not a metric name")
        self._values[series] = value


def _text(series: _Series) -> str:
    name, labels = series
    if not labels:
        return name
    return name + "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
