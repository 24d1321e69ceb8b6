"""``netstats``: what gossip costs on the network, by kind and form of message, and how many exchanges fell back.

Cassandra's command of this name shows streams and message pools; here there is gossip to show. Numbers are the node's
counters since its process began.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from nodetool.connect import connect
from nodetool.options import Options, examples, node_options, pass_options
from nodetool.render import byte_size, json_text, labelled, printable, rfc3339, table

if TYPE_CHECKING:
    from gossiper.v1.admin_pb2 import GetNodeInfoResponse

_SERIES: Final = re.compile(r"(\w+)(?:\{(.*)\})?")
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')
#: In the order of an exchange; whatever a newer node counts beside them comes last.
_KINDS: Final = ("syn", "ack", "ack2", "ack2_reply", "echo_request", "echo_reply")
_FORMS: Final = ("compact", "plain", "unknown")
#: What an exchange needed, cheapest first.
_EXCHANGES: Final = ("compact", "states_buckets", "roster_buckets", "plain")


@dataclass(slots=True)
class Traffic:
    """Messages of one kind and form."""

    sent: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0

    def __iadd__(self, other: Traffic) -> Traffic:
        """Their sum."""
        self.sent += other.sent
        self.sent_bytes += other.sent_bytes
        self.received += other.received
        self.received_bytes += other.received_bytes
        return self


class NetworkStatistics:
    """The counters of a node that concern its network."""

    def __init__(self, info: GetNodeInfoResponse) -> None:
        found: dict[tuple[str, str], Traffic] = {}
        self.exchanges: dict[str, int] = dict.fromkeys(_EXCHANGES, 0)
        self.refused: dict[str, int] = {}
        self.send_failures: dict[str, int] = {}
        for counter in info.counters:
            name, labels = _series(counter.name)
            value = int(counter.value)
            match name:
                case "gossiper_messages_total" | "gossiper_message_bytes_total":
                    one = found.setdefault((labels.get("kind", ""), labels.get("form", "unknown")), Traffic())
                    what = labels.get("direction", "sent") + ("_bytes" if "bytes" in name else "")
                    if hasattr(one, what):
                        setattr(one, what, value)
                case "gossiper_exchanges_total":
                    self.exchanges[labels.get("kind", "unknown")] = value
                case "gossiper_refused_total":
                    self.refused[labels.get("reason", "unknown")] = value
                case "gossiper_send_failures_total":
                    self.send_failures[labels.get("reason", "unknown")] = value
        order = {key: index for index, key in enumerate(_KINDS + _FORMS)}
        last = len(order)
        self.messages = dict(
            sorted(found.items(), key=lambda item: (*(order.get(word, last) for word in item[0]), *item[0]))
        )

    @property
    def exchange_count(self) -> int:
        """All exchanges that were counted."""
        return sum(self.exchanges.values())

    @property
    def fell_back(self) -> int:
        """Those that needed more than one round trip in the compact form."""
        return self.exchange_count - self.exchanges["compact"]

    def ratio(self, count: int) -> float:
        """The share of all exchanges; 0 when there was none."""
        return count / self.exchange_count if self.exchange_count else 0.0

    def total(self) -> Traffic:
        """All kinds and forms together."""
        total = Traffic()
        for one in self.messages.values():
            total += one
        return total


def _series(text: str) -> tuple[str, dict[str, str]]:
    """Name and labels of a counter, as Prometheus writes them."""
    match = _SERIES.fullmatch(text)
    return (match[1], dict(_LABEL.findall(match[2] or ""))) if match else (text, {})


def netstats_text(info: GetNodeInfoResponse) -> str:
    """Two tables, as people compare them."""
    statistics = NetworkStatistics(info)
    lines = [f"Mode: {printable(info.status) or 'STARTING'}"]
    if not info.gossip_active:
        lines.append("Gossip is not running.")
    rows = [("Exchanges", "Count", "Share")]
    rows += [_exchange_row(kind, count, statistics) for kind, count in statistics.exchanges.items()]
    rows.append(_exchange_row("fell back", statistics.fell_back, statistics))
    lines += ["", *table(rows)]
    messages: list[tuple[str, ...]] = [("Messages", "Form", "Sent", "Bytes sent", "Received", "Bytes received")]
    messages += [_row(kind, form, one) for (kind, form), one in statistics.messages.items()]
    messages.append(_row("total", "", statistics.total()))
    lines += ["", *table(messages)]
    for label, counts in (("Refused", statistics.refused), ("Not delivered", statistics.send_failures)):
        listed = ", ".join(f"{printable(reason)} {count}" for reason, count in counts.items())
        lines += ([""] if label == "Refused" else []) + [labelled(label, listed or 0, 14)]
    return "\n".join(line.rstrip() for line in lines)


def _exchange_row(kind: str, count: int, statistics: NetworkStatistics) -> tuple[str, str, str]:
    return printable(kind), str(count), f"{statistics.ratio(count):.1%}"


def _row(kind: str, form: str, one: Traffic) -> tuple[str, ...]:
    counts = (str(one.sent), byte_size(one.sent_bytes), str(one.received), byte_size(one.received_bytes))
    return (printable(kind), printable(form), *counts)


def netstats_json(info: GetNodeInfoResponse) -> str:
    """The same for programs."""
    statistics = NetworkStatistics(info)
    total = statistics.total()
    return json_text(
        {
            "time": rfc3339(datetime.now(tz=UTC)),
            "endpoint": info.endpoint,
            "status": info.status or None,
            "gossip_active": info.gossip_active,
            "exchanges": [
                {"kind": kind, "count": count, "share_ratio": statistics.ratio(count)}
                for kind, count in statistics.exchanges.items()
            ],
            "exchange_count": statistics.exchange_count,
            "fell_back_count": statistics.fell_back,
            "fell_back_ratio": statistics.ratio(statistics.fell_back),
            "messages": [
                {"kind": kind, "form": form, **_numbers(one)} for (kind, form), one in statistics.messages.items()
            ],
            **{f"total_{key}": value for key, value in _numbers(total).items()},
            "refused": _reasons(statistics.refused),
            "send_failures": _reasons(statistics.send_failures),
        }
    )


def _numbers(one: Traffic) -> dict[str, int]:
    return {
        "sent_count": one.sent,
        "sent_bytes": one.sent_bytes,
        "received_count": one.received,
        "received_bytes": one.received_bytes,
    }


def _reasons(counts: dict[str, int]) -> list[dict[str, Any]]:
    return [{"reason": reason, "count": count} for reason, count in counts.items()]


@click.command(epilog=examples("nodetool netstats", "nodetool netstats --output json | jq .fell_back_ratio"))
@node_options
@pass_options
def netstats(options: Options) -> None:
    """Show what gossip costs: messages and bytes by kind and form, and how many exchanges fell back.

    Bytes are those of the messages before compression, without gRPC's and TCP's own.
    """
    with connect(options) as node:
        info = node.node_info()
    click.echo(netstats_json(info) if options.json else netstats_text(info))
