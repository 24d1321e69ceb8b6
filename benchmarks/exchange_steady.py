"""What one exchange costs in the steady state, compact and plain: bytes, CPU, and the floor by entropy."""

from __future__ import annotations

import cProfile
import pstats
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.exchange_parts import (
    FORMS,
    LEGS,
    STEPS,
    Meeting,
    Traced,
    compressed_bytes,
    gunzip,
    gzip,
    source_of,
    steady,
)
from benchmarks.exchange_wire import wire_bytes
from benchmarks.steady_cluster import Lags, entropy_bits
from gossiper.v1 import gossip_pb2

#: Meetings whose bytes are averaged, exchanges whose CPU is measured, exchanges on the wire; fewer of large ones.
_MEETINGS: Final = {10: 40, 100: 20, 1000: 8}
_MEETINGS_LARGE: Final = 2
_REPEATS: Final = 300
_REPEATS_LARGE: Final = 60
_WIRE_MEETINGS: Final = 8
_WIRE_EXCHANGES: Final = 10
_LARGE: Final = 2_000
_HASH_BYTES: Final = 8


def measure(endpoints: int) -> dict[str, Any]:
    """Everything about exchanges between nodes that know so many endpoints, as the JSON has it."""
    count = next((count for size, count in _MEETINGS.items() if endpoints <= size), _MEETINGS_LARGE)
    found = list(steady(endpoints, count))
    traced: dict[str, list[Traced]] = {form: [] for form in FORMS}
    for one in found:
        for form in FORMS:
            meeting = Meeting(one)
            traced[form].append(meeting.exchange(form, meeting.at(0)))
    processor = cpu(Meeting(_typical(found, traced["compact"])), _REPEATS_LARGE if endpoints > _LARGE else _REPEATS)
    forms = {}
    for form in FORMS:
        wire = [wire_bytes(Meeting(one), form, _WIRE_EXCHANGES) for one in found[:_WIRE_MEETINGS]]
        legs = {leg: _leg(traced[form], leg) for leg in LEGS}
        for leg in LEGS:
            legs[leg]["wire_bytes"] = statistics.fmean(one.warm[leg] for one in wire)
            legs[leg]["wire_bytes_cold"] = statistics.fmean(one.cold[leg] for one in wire)
            legs[leg]["cpu_microseconds"] = processor[form].legs[leg]
        total = {key: sum(leg[key] for leg in legs.values()) for key in legs["syn"]}
        total["cpu_microseconds_median"] = processor[form].median
        forms[form] = {
            name: {key: round(value, 1) for key, value in row.items()}
            for name, row in (legs | {"total": total}).items()
        }
        forms[form]["steps_microseconds"] = {step: round(us, 1) for step, us in processor[form].steps.items()}
    entropy = column_entropy(traced["compact"])
    return {
        "endpoints": endpoints,
        "case": "steady",
        "states": source_of(endpoints),
        "meetings": len(found),
        "entropy_bytes": entropy["syn_bytes"] + entropy["ack_bytes"],
        "entropy": entropy,
        "composition_bytes": composition(traced["compact"]),
        "forms": forms,
    }


def _typical(found: list[Lags], traced: list[Traced]) -> Lags:
    """The meeting whose bytes are in the middle: lags grow and shrink within a round."""
    sizes = [sum(map(len, one.messages.values())) for one in traced]
    return found[sizes.index(statistics.median_low(sizes))]


def _leg(traced: list[Traced], leg: str) -> dict[str, float]:
    messages = [one.messages[leg] for one in traced]
    packed = [gzip(data) if data else b"" for data in messages]
    row = {
        "protobuf_bytes": statistics.fmean(map(len, messages)),
        "compressed_bytes": statistics.fmean(map(compressed_bytes, messages)),
        "gzip_bytes": statistics.fmean(map(len, packed)),
        "gzip_microseconds": 0.0,
    }
    if messages[0]:
        row["gzip_microseconds"] = _least(lambda: gzip(messages[0])) + _least(lambda: gunzip(packed[0]))
    return row


def _least(action: Any, repeats: int = 50) -> float:
    """Microseconds of CPU, the least of many."""
    least = 1 << 62
    for _ in range(repeats):
        began = time.process_time_ns()
        action()
        least = min(least, time.process_time_ns() - began)
    return least / 1000


# ------------------------------------------------------------------------------------------------------------- CPU


class Processor:
    """CPU of one form: the exchange that took least, by leg and step; the median of all."""

    def __init__(self, traced: list[dict[str, int]]) -> None:
        totals = [sum(one.values()) for one in traced]
        best = traced[totals.index(min(totals))]
        self.steps = {step: nanoseconds / 1000 for step, nanoseconds in best.items()}
        self.legs = {leg: sum(us for step, us in self.steps.items() if STEPS[step] == leg) for leg in LEGS}
        self.median = statistics.median(totals) / 1000


def cpu(meeting: Meeting, repeats: int) -> dict[str, Processor]:
    """Both forms in turns, so that what disturbs one disturbs the other."""
    spent: dict[str, list[dict[str, int]]] = {form: [] for form in FORMS}
    for number in range(repeats):
        for turn, form in enumerate(FORMS):
            spent[form].append(meeting.exchange(form, meeting.at(len(FORMS) * number + turn)).nanoseconds)
    return {form: Processor(steps) for form, steps in spent.items()}


def profile(endpoints: int, form: str, exchanges: int = 300, lines: int = 25) -> list[tuple[str, float]]:
    """Functions by their own time, as (name, share); the profiler itself slows Python down, so only shares count."""
    meeting = Meeting(next(steady(endpoints, 1)))
    # Its own clock is the wall.
    profiler = cProfile.Profile(time.process_time)
    for second in range(exchanges):
        now = meeting.at(second)
        profiler.runcall(meeting.exchange, form, now)
    entries: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]  # not in the stubs
    entries = {at: entry for at, entry in entries.items() if "process_time" not in at[2]}
    total = sum(entry[2] for entry in entries.values())
    rows = sorted(((entry[2] / total, at) for at, entry in entries.items()), key=lambda row: -row[0])
    return [(f"{Path(path).name} {name}".removeprefix("~ "), share) for share, (path, _, name) in rows[:lines]]


# ---------------------------------------------------------------------------------------------------------- entropy


def column_entropy(traced: list[Traced]) -> dict[str, float]:
    """Floors of the two columns, bytes per exchange: Shannon entropy of the symbols that were sent.

    ``ack_given_syn_bytes`` is what a code would need that makes use of the SYN, which both sides hold.
    """
    syns = [np.asarray(one.syn.compact.symbols, dtype=np.int64) for one in traced if one.syn.compact is not None]
    acks = [_answered(one) for one in traced]
    together = [256 * syn + ack for syn, ack in zip(syns, acks, strict=True)]

    def floor(columns: list[NDArray[np.int64]]) -> float:
        return statistics.fmean(len(column) * entropy_bits(column) / 8 for column in columns)

    return {
        "syn_bytes": round(floor(syns), 1),
        "ack_bytes": round(floor(acks), 1),
        "ack_given_syn_bytes": round(floor(together) - floor(syns), 1),
        "syn_bits_per_endpoint": round(8 * floor(syns) / len(syns[0]), 3),
        "ack_bits_per_endpoint": round(8 * floor(acks) / len(acks[0]), 3),
    }


def _answered(one: Traced) -> NDArray[np.int64]:
    """The symbols of an answer; without any, nothing was newer."""
    if one.ack.compact is None or one.syn.compact is None:
        raise TypeError("no compact exchange")
    symbols = one.ack.compact.symbols
    return np.asarray(symbols, dtype=np.int64) if len(symbols) else np.ones(one.syn.compact.count, dtype=np.int64)


def composition(traced: list[Traced]) -> dict[str, float]:
    """Of what the SYN and the ACK together consist, mean bytes per exchange."""
    parts: Counter[str] = Counter()
    for one in traced:
        syn = gossip_pb2.GossipDigestSyn.FromString(one.messages["syn"])
        ack = gossip_pb2.GossipDigestAck.FromString(one.messages["ack"])
        for message, column in ((syn, "syn_column"), (ack, "ack_column")):
            found = {
                "senders": message.sender.ByteSize(),
                column: len(message.compact.alphabet) + len(message.compact.bits),
            }
            if column == "syn_column":
                found |= {"roster_hash": len(syn.compact.roster_hash), "states_hash": _HASH_BYTES}
            parts.update(found)
            parts["clocks_counts_and_tags"] += message.ByteSize() - sum(found.values())
    return {name: round(total / len(traced), 1) for name, total in parts.items()}
