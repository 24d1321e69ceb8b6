"""One exchange between two nodes, step by step: its messages, and the CPU time of each step.

The two are a :class:`Meeting`. Time goes on by a second from one exchange to the next, and every heartbeat by a tick,
so that each exchange finds the lags of the first one, another cut now and then, and arrival windows that fill.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Final

from benchmarks.steady_cluster import CLUSTER, Lags, engines, meetings
from benchmarks.virtual_cluster import VirtualCluster, meeting
from gossiper.core.engine import PROTOCOL_VERSION
from gossiper.core.exchange import DigestExchange
from gossiper.core.io import Answer, Effect, ReplyReceived, RequestReceived, Send
from gossiper.core.messages import GossipDigestAck, GossipDigestAck2, GossipDigestSyn, Reply, Sender
from gossiper.core.versions import Now
from gossiper.wire import codec

FORMS: Final = ("compact", "plain")
LEGS: Final = ("syn", "ack", "ack2")
#: Up to this size a cluster of whole cores is run to get the states; beyond, the model of ``steady_cluster``.
WHOLE_CORE_MAX: Final = 100
#: Virtual seconds after which the lags of a settled cluster no longer change.
STEADY_SECONDS: Final = 30.0
#: Step of an exchange -> the leg that it belongs to: what a message costs from being made to being acted upon.
STEPS: Final = {
    "syn_make": "syn",
    "syn_encode": "syn",
    "syn_decode": "syn",
    "syn_examine_and_answer": "syn",
    "ack_encode": "ack",
    "ack_decode": "ack",
    "ack_apply": "ack",
    "ack2_encode": "ack2",
    "ack2_decode": "ack2",
    "ack2_apply": "ack2",
}
_GZIP_WINDOW: Final = 15 | 16


@dataclass(slots=True)
class Traced:
    """One whole exchange: bytes per leg, nanoseconds per step."""

    syn: GossipDigestSyn
    ack: GossipDigestAck
    messages: dict[str, bytes] = field(default_factory=lambda: dict.fromkeys(LEGS, b""))
    nanoseconds: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STEPS, 0))


class Meeting:
    """Two nodes of a steady cluster just before they meet."""

    def __init__(self, found: Lags) -> None:
        self.one, self.other, self.now = engines(found)
        self._heartbeats = [node.state.table.heartbeat.copy() for node in (self.one, self.other)]
        self._shape = {form: DigestExchange(self.one.state, self._sender, compact=form == "compact") for form in FORMS}

    def _sender(self) -> Sender:
        return Sender(CLUSTER, PROTOCOL_VERSION, self.one.config.endpoint, self.one.generation)

    def at(self, second: int) -> Now:
        """Both nodes so many seconds later, with the lags of the beginning."""
        for node, column in zip((self.one, self.other), self._heartbeats, strict=True):
            table = node.state.table
            table.heartbeat[:] = column
            table.heartbeat[table.rows()] += second
        return Now(self.now.monotonic + second, self.now.wall + second)

    def syn(self, form: str, now: Now) -> GossipDigestSyn:
        """The SYN of the first node."""
        return self._shape[form].syn(self.other.config.endpoint, now)

    def answer(self, syn: GossipDigestSyn | GossipDigestAck2, now: Now) -> Reply:
        """What the second node answers."""
        return _reply(self.other.handle(RequestReceived(syn), now))

    def conclude(self, syn: GossipDigestSyn, ack: GossipDigestAck, now: Now) -> list[GossipDigestAck2]:
        """What the first node sends next."""
        effects = self.one.handle(ReplyReceived(self.other.config.endpoint, syn, ack), now)
        requests = [effect.request for effect in effects if isinstance(effect, Send)]
        if any(isinstance(request, GossipDigestSyn) for request in requests):
            raise AssertionError("a second SYN: these two do not know the same")
        return [request for request in requests if isinstance(request, GossipDigestAck2)]

    def exchange(self, form: str, now: Now) -> Traced:
        """The whole exchange through real bytes."""
        clock = time.process_time_ns
        marks = [clock()]
        syn = self.syn(form, now)
        marks.append(clock())
        syn_bytes = codec.encode(syn)
        marks.append(clock())
        heard = codec.decode_syn(syn_bytes)
        marks.append(clock())
        answer = self.answer(heard, now)
        marks.append(clock())
        ack_bytes = codec.encode(answer)
        marks.append(clock())
        ack = codec.decode_reply_to(syn, ack_bytes)
        marks.append(clock())
        if not isinstance(ack, GossipDigestAck):
            raise TypeError(type(ack).__name__)
        requested = self.conclude(syn, ack, now)
        marks.append(clock())
        traced = Traced(syn, ack)
        traced.messages |= {"syn": syn_bytes, "ack": ack_bytes}
        if requested:
            traced.messages["ack2"] = codec.encode(requested[0])
            marks.append(clock())
            delivered = codec.decode_ack2(traced.messages["ack2"])
            marks.append(clock())
            self.answer(delivered, now)
            marks.append(clock())
        spent = (after - before for before, after in pairwise(marks))
        traced.nanoseconds |= dict(zip(STEPS, spent, strict=False))
        return traced


def _reply(effects: list[Effect]) -> Reply:
    return next(effect.reply for effect in effects if isinstance(effect, Answer))


def steady(endpoints: int, count: int) -> Iterator[Lags]:
    """So many meetings in a steady cluster, at different moments of a round; see ``source_of``."""
    if endpoints > WHOLE_CORE_MAX:
        yield from islice(meetings(endpoints), 0, endpoints, max(1, endpoints // count))
        return
    cluster = VirtualCluster(endpoints)
    cluster.loop.run_until(STEADY_SECONDS)
    for _ in range(count):
        yield meeting(cluster)
        cluster.loop.run_until(cluster.loop.now + 0.37)


def source_of(endpoints: int) -> str:
    """Where the states come from, in words."""
    if endpoints > WHOLE_CORE_MAX:
        return "model of heartbeats in a steady cluster (benchmarks/steady_cluster.py)"
    return "simulated cluster of whole cores (benchmarks/virtual_cluster.py)"


def gzip(data: bytes) -> bytes:
    """As gRPC compresses: zlib's default level in a gzip wrapper."""
    packer = zlib.compressobj(wbits=_GZIP_WINDOW)
    return packer.compress(data) + packer.flush()


def gunzip(data: bytes) -> bytes:
    """The reverse."""
    return zlib.decompress(data, wbits=_GZIP_WINDOW)


def compressed_bytes(data: bytes) -> int:
    """What gRPC sends when it is told to compress: the message as it is, where gzip does not make it shorter."""
    return min(len(data), len(gzip(data))) if data else 0
