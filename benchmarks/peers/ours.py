"""This project's side of the comparison: one whole exchange between two engines, through real bytes.

A form of the exchange is one entry of ``FORMS``: a function that runs an exchange and says what each message took.
What is timed is what the peers' harnesses time: making, encoding and decoding each message, examining, applying.
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

import numpy as np

from gossiper.core.engine import EngineConfig, GossipEngine
from gossiper.core.exchange import DigestExchange
from gossiper.core.io import Answer, ReplyReceived, RequestReceived, Send
from gossiper.core.messages import (
    EndpointState,
    GossipDigestAck,
    GossipDigestAck2,
    GossipDigestSyn,
    Reply,
    Sender,
    VersionedValue,
)
from gossiper.core.table import LivenessCode
from gossiper.core.versions import Now
from gossiper.wire import codec

ROOT: Final = Path(__file__).resolve().parent.parent.parent
WARM_UPS: Final = 30
REPEATS: Final = 5
REPEAT_SECONDS: Final = 0.5
MONOTONIC: Final = 1e6

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Leg:
    """One message of an exchange: its bytes, and the CPU of making, encoding, decoding and handling it."""

    name: str
    bytes: int
    cpu_nanoseconds: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Two engines as they are just before an exchange, and when that is."""

    a: GossipEngine
    b: GossipEngine
    now: Now


def endpoint_state(row: Json) -> EndpointState:
    """One row of a view in the state file, whole."""
    values = tuple((one["key"], VersionedValue(one["version"], one["value"])) for one in row["values"])
    return EndpointState(
        row["endpoint"], row["generation"], row["interval_ms"], row["heartbeat"], 0, row["states_version"], values
    )


def engine(cluster_name: str, side: Json, now: Now) -> GossipEngine:
    """An engine that knows exactly one side's view, everybody alive."""
    own = next(row for row in side["view"] if row["endpoint"] == side["endpoint"])
    made = GossipEngine(
        EngineConfig(cluster_name=cluster_name, endpoint=side["endpoint"], interval_ms=own["interval_ms"]),
        generation=own["generation"],
        values={one["key"]: one["value"] for one in own["values"]},
        rng=Random(1),
        now=now,
    )
    sender = Sender(cluster_name, 1, "192.0.2.1:7000", 1)
    states = tuple(endpoint_state(row) for row in side["view"] if row is not own)
    made.handle(RequestReceived(GossipDigestAck2(sender, states)), now)
    table = made.state.table
    table.heartbeat[made.state.local_row] = own["heartbeat"]
    table.states_version[made.state.local_row] = own["states_version"]
    table.states[made.state.local_row] = dict(endpoint_state(own).values)
    table.liveness[table.rows()] = LivenessCode.ALIVE
    table.echo_wanted[:] = False
    if len(table) != len(side["view"]):
        raise RuntimeError(f"{side['endpoint']} knows {len(table)} of {len(side['view'])} endpoints")
    return made


def pair(state: Json) -> Pair:
    """Both engines of a state file."""
    now = Now(MONOTONIC, state["as_of_ms"] / 1000)
    a, b = (engine(state["cluster_name"], state[side], now) for side in "ab")
    return Pair(a, b, now)


def plain(two: Pair) -> list[Leg]:
    """The form that any protobuf client can speak."""
    return _exchange(two, DigestExchange(two.a.state, lambda: _sender(two), compact=False))


def compact(two: Pair) -> list[Leg]:
    """The form that nodes of this library speak with each other."""
    return _exchange(two, DigestExchange(two.a.state, lambda: _sender(two), compact=True))


def _sender(two: Pair) -> Sender:
    return Sender(two.a.config.cluster_name, 1, two.a.config.endpoint, two.a.generation)


def _exchange(two: Pair, digests: DigestExchange) -> list[Leg]:
    began = time.thread_time_ns()
    syn = digests.syn(two.b.config.endpoint, two.now)
    syn_bytes = codec.encode(syn)
    answer = _answer(two.b, RequestReceived(codec.decode_syn(syn_bytes)), two.now)
    examined = time.thread_time_ns()
    ack_bytes = codec.encode(answer)
    ack = codec.decode_reply_to(syn, ack_bytes)
    effects = two.a.handle(ReplyReceived(two.b.config.endpoint, syn, ack), two.now)
    applied = time.thread_time_ns()
    ack2_bytes = 0
    for effect in effects:
        if isinstance(effect, Send) and isinstance(effect.request, GossipDigestSyn):
            raise RuntimeError("a steady exchange that needs a second SYN")  # noqa: TRY004 - it is no matter of types
        if isinstance(effect, Send) and isinstance(effect.request, GossipDigestAck2):
            data = codec.encode(effect.request)
            ack2_bytes += len(data)
            two.b.handle(RequestReceived(codec.decode_ack2(data)), two.now)
    ended = time.thread_time_ns() if ack2_bytes else applied
    return [
        Leg("syn", len(syn_bytes), examined - began),
        Leg("ack", len(ack_bytes), applied - examined),
        Leg("ack2", ack2_bytes, ended - applied),
    ]


def _answer(node: GossipEngine, event: RequestReceived, now: Now) -> Reply:
    reply = next(effect.reply for effect in node.handle(event, now) if isinstance(effect, Answer))
    if not isinstance(reply, GossipDigestAck):
        raise TypeError(f"a SYN was answered with {type(reply).__name__}")
    return reply


#: Every form of the exchange that this project speaks. Another one is one more entry.
FORMS: Final[Mapping[str, Callable[[Pair], list[Leg]]]] = {"compact": compact, "plain": plain}


def measure(state: Json, form: str) -> Json:
    """Bytes and CPU of one form, in the shape that the peers print."""
    two, exchange = pair(state), FORMS[form]
    tables = [two.a.state.table, two.b.state.table]
    heartbeats = [table.heartbeat.copy() for table in tables]

    def once() -> list[Leg]:
        for table, column in zip(tables, heartbeats, strict=True):
            table.heartbeat[:] = column
        return exchange(two)

    first = once()
    _check(two)
    began = time.thread_time()
    for _ in range(WARM_UPS):
        legs = once()
    exchanges = max(20, round(REPEAT_SECONDS * WARM_UPS / (time.thread_time() - began)))
    repeats = []
    for _ in range(REPEATS):
        sums = np.zeros(len(legs))
        for _ in range(exchanges):
            legs = once()
            sums += [leg.cpu_nanoseconds / 1000 / exchanges for leg in legs]
        repeats.append(sums)
    _check(two)
    totals = [round(float(sums.sum()), 1) for sums in repeats]
    return {
        "peer": "gossiper",
        "version": version(),
        "form": form,
        "endpoints": state["endpoints"],
        "messages": {
            leg.name: {"bytes": leg.bytes, "cpu_microseconds": round(float(median(sums[at] for sums in repeats)), 1)}
            for at, leg in enumerate(legs)
        },
        "total_bytes": sum(leg.bytes for leg in legs),
        "total_cpu_microseconds": median(totals),
        "repeats_cpu_microseconds": totals,
        "repeats": REPEATS,
        "exchanges_per_repeat": exchanges,
        "warm_up": {
            "exchanges": WARM_UPS + 1,
            "first_exchange_cpu_microseconds": sum(leg.cpu_nanoseconds for leg in first) / 1000,
        },
        "notes": ["protobuf bytes before compression, without gRPC and HTTP/2 framing"],
    }


def version() -> str:
    """The version of this checkout, as ``pyproject.toml`` has it."""
    project: Json = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def _check(two: Pair) -> None:
    """After an exchange both know the same heartbeats."""
    known = [dict(zip(d.endpoints, d.heartbeats.tolist(), strict=True)) for d in map(_digests, (two.a, two.b))]
    if known[0] != known[1]:
        raise RuntimeError("heartbeats still differ after the exchange")


def _digests(node: GossipEngine) -> Any:
    return node.state.table.digests()
