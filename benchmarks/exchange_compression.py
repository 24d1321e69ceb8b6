"""Bytes and CPU of compressing each kind of message: none, gzip, deflate."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.exchange_parts import FORMS, Meeting, gunzip, gzip, steady
from gossiper.core.digest import endpoint_state
from gossiper.core.messages import EchoRequest, EndpointState, GossipDigestAck2, Message, Sender
from gossiper.transport.compression import compression_of
from gossiper.wire import codec

_SIZES = (10, 100, 1000, 10_000)


def _messages() -> list[tuple[str, int, Message]]:
    """(kind, endpoints, message) of everything that travels."""
    found: list[tuple[str, int, Message]] = []
    whole: tuple[EndpointState, ...] = ()
    for size in _SIZES:
        meeting = Meeting(next(steady(size, 1)))
        for form in FORMS:
            traced = meeting.exchange(form, meeting.at(0))
            found += [(f"syn {form}", size, traced.syn), (f"ack {form}", size, traced.ack)]
        state = meeting.other.state
        whole = tuple(endpoint_state(state, int(row), 0) for row in state.table.rows()[:1000])
    sender = Sender("Test Cluster", 1, "10.0.0.1:7000", 1_700_000_000)
    for count in (1, 3, 10, 100, 1000):
        found.append(("ack2 whole states", count, GossipDigestAck2(sender, whole[:count])))
    for count in (1, 10, 100):
        deltas = tuple(_delta(one) for one in whole[:count])
        found.append(("ack2 one value each", count, GossipDigestAck2(sender, deltas)))
    found.append(("echo", 1, EchoRequest(sender, 1_700_000_000)))
    return found


def _delta(state: EndpointState) -> EndpointState:
    values = tuple(pair for pair in state.values if pair[0] == "LOAD")
    version = state.states_version
    return EndpointState(state.endpoint, state.generation, 1000, state.heartbeat, version - 1, version, values)


def _least(action: Callable[[], object], repeats: int) -> float:
    least = 1 << 62
    for _ in range(repeats):
        began = time.process_time_ns()
        action()
        least = min(least, time.process_time_ns() - began)
    return round(least / 1000, 1)


def measure() -> list[dict[str, Any]]:
    """One row per kind of message and size."""
    rows = []
    for kind, endpoints, message in _messages():
        data = codec.encode(message)
        packed, deflated = gzip(data), zlib.compress(data)
        repeats = 100 if len(data) < 50_000 else 10
        rows.append(
            {
                "case": "compression",
                "message": kind,
                "endpoints": endpoints,
                "protobuf_bytes": len(data),
                "gzip_bytes": len(packed),
                "deflate_bytes": len(deflated),
                "saved_bytes": len(data) - len(packed),
                "gzip_microseconds": _least(partial(gzip, data), repeats),
                "deflate_microseconds": _least(partial(zlib.compress, data), repeats),
                "gunzip_microseconds": _least(partial(gunzip, packed), repeats),
                "sent_as": compression_of(message, len(data)).name,
            }
        )
    return rows
