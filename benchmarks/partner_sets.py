"""A rotating set of partners against all live peers: bytes and CPU per exchange, sockets, and how news spreads."""

from __future__ import annotations

import asyncio
import statistics
import time
from random import Random
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.exchange_parts import Meeting, steady
from benchmarks.exchange_wire import Relay
from benchmarks.virtual_cluster import Member, VirtualCluster
from gossiper.core.local import Publish
from gossiper.core.messages import GossipDigestAck, Reply, Request
from gossiper.core.peers import PARTNER_ROUNDS, PARTNERS_DEFAULT, Partners, PeerPolicy
from gossiper.metrics import GossipMetrics
from gossiper.transport.grpc import SERVER_OPTIONS, GrpcTransport

#: Up to this size whole cores tell how news spreads; the model does for all.
WHOLE_CORE_MAX: Final = 300
_TRIALS: Final = 8
_MODEL_TRIALS: Final = 40
_IDLE_SECONDS: Final = dict(SERVER_OPTIONS)["grpc.max_connection_idle_ms"] / 1000
_CONNECTIONS: Final = 40


def measure(endpoints: int) -> dict[str, Any]:
    """Both ways of choosing at one size."""
    wire = asyncio.run(_cold_and_warm(Meeting(next(steady(endpoints, 1)))))
    result: dict[str, Any] = {"case": "partners", "endpoints": endpoints, "exchange": wire}
    for name, partners in (("all", 0), ("partners", PARTNERS_DEFAULT)):
        row: dict[str, Any] = {"connections": connections(endpoints, partners)}
        cold = row["connections"]["cold_share"]
        row["wire_bytes"] = round(cold * wire["cold_bytes"] + (1 - cold) * wire["warm_bytes"], 1)
        row["cpu_microseconds"] = round(cold * wire["cold_microseconds"] + (1 - cold) * wire["warm_microseconds"])
        row["spreading_seconds_model"] = spreading(endpoints, partners)
        if endpoints <= WHOLE_CORE_MAX:
            row["spreading_seconds_whole_core"] = spreading_in_cores(endpoints, partners)
        result[name] = row
    return result


# ------------------------------------------------------------------------------------------- a connection, kept or not


async def _cold_and_warm(meeting: Meeting) -> dict[str, float]:
    """Bytes and CPU of both sides of an exchange over a connection that is there, and over a new one."""
    now = meeting.at(0)

    def handler(request: Request) -> Reply:
        if not hasattr(request, "states") and not hasattr(request, "digests"):
            raise TypeError(type(request).__name__)
        return meeting.answer(request, now)  # type: ignore[arg-type]  # checked above

    server = GrpcTransport("127.0.0.1:0", metrics=GossipMetrics())
    relay = Relay(await server.start(handler))
    at = await relay.start()
    warm: list[tuple[int, float]] = []
    cold: list[tuple[int, float]] = []
    second = 0
    try:
        for _ in range(_CONNECTIONS):
            client = GrpcTransport("127.0.0.1:0", metrics=GossipMetrics())
            await client.start(handler)
            for found in (cold, warm, warm):
                second += 1
                now = meeting.at(second)
                began = time.process_time()
                syn = meeting.syn("compact", now)
                ack = await client.send(at, syn, 10.0)
                if isinstance(ack, GossipDigestAck):
                    meeting.conclude(syn, ack, now)
                spent = time.process_time() - began
                found.append((sum(relay.taken().values()), 1e6 * spent))
            await client.stop(0.0)
            await relay.drained()
            relay.taken()
    finally:
        await server.stop(0.0)
        await relay.stop()
    return {
        "warm_bytes": round(statistics.fmean(size for size, _ in warm), 1),
        "cold_bytes": round(statistics.fmean(size for size, _ in cold), 1),
        # The relay's share included: it is the same in both.
        "warm_microseconds": round(statistics.median(spent for _, spent in warm)),
        "cold_microseconds": round(statistics.median(spent for _, spent in cold)),
    }


def connections(endpoints: int, partners: int, rounds: int = 3600, seed: int = 1) -> dict[str, float]:
    """Share of exchanges that need a new connection, and how many a node has begun that are open, over an hour."""
    rng = Random(seed)
    kept = Partners(partners)
    live = np.arange(endpoints - 1, dtype=np.intp)
    last: dict[int, int] = {}
    cold = open_sum = measured = 0
    for number in range(rounds):
        rows = kept.of_round(rng, live)
        peer = int(rows[rng.randrange(len(rows))])
        if number >= rounds // 4:
            measured += 1
            cold += number - last.get(peer, -(10**9)) > _IDLE_SECONDS
            open_sum += sum(number - when <= _IDLE_SECONDS for when in last.values())
        last[peer] = number
    return {"cold_share": round(cold / measured, 4), "open_mean": round(open_sum / measured, 1)}


# ------------------------------------------------------------------------------------------------ how news spreads


def spreading(endpoints: int, partners: int, trials: int = _MODEL_TRIALS) -> dict[str, float]:
    """Seconds until all know one change, by digests alone: everybody exchanges once a second, push and pull."""
    took = [_spread_once(Random(trial), endpoints, partners) for trial in range(trials)]
    return _quantiles(took)


def _spread_once(rng: Random, endpoints: int, partners: int) -> float:
    sets: list[Partners] = [Partners(partners) for _ in range(endpoints)]
    # Sets have changed for a while, each at its own time.
    rows = np.arange(endpoints, dtype=np.intp)
    others: list[NDArray[np.intp]] = [np.delete(rows, node) for node in range(endpoints)] if partners else []
    phases = sorted((rng.random(), node) for node in range(endpoints))
    knows = bytearray(endpoints)
    owner = rng.randrange(endpoints)
    began = rng.random()
    left = endpoints
    for number in range(10 * PARTNER_ROUNDS):
        for phase, node in phases:
            if number + phase < began:
                continue
            if left == endpoints:
                knows[owner] = 1
                left -= 1
            if partners:
                among = sets[node].of_round(rng, others[node])
                peer = int(among[rng.randrange(len(among))])
            else:
                peer = rng.randrange(endpoints - 1)
                peer += peer >= node
            if knows[node] != knows[peer]:
                knows[node] = knows[peer] = 1
                left -= 1
                if not left:
                    return number + phase - began
    raise AssertionError("news did not reach everybody")


def spreading_in_cores(endpoints: int, partners: int) -> dict[str, float]:
    """The same with whole cores in virtual time, pushes switched off: a value that is no news to push."""
    cluster = VirtualCluster(endpoints, policy=PeerPolicy(partners=partners), fanout=0, seeds=0)
    rng = cluster.loop.stream("changes")
    took = []
    cluster.loop.run_until(2.0)
    for trial in range(_TRIALS):
        owner = rng.choice(list(cluster.members.values()))
        cluster.loop.run_until(cluster.loop.now + rng.random())
        cluster.do(owner, Publish({"key": str(trial)}, trial))
        began, version = cluster.loop.now, owner.engine.local.states_version
        while not all(_knows(member, owner, version) for member in cluster.members.values()):
            cluster.loop.run_until(cluster.loop.now + 0.05)
        took.append(cluster.loop.now - began)
    return _quantiles(took)


def _knows(member: Member, owner: Member, version: int) -> bool:
    table = member.engine.state.table
    row = table.row(owner.endpoint)
    return row is not None and int(table.states_version[row]) >= version


def _quantiles(took: list[float]) -> dict[str, float]:
    ordered = sorted(took)
    return {
        "trials": len(ordered),
        "median": round(statistics.median(ordered), 2),
        "mean": round(statistics.fmean(ordered), 2),
        "max": round(ordered[-1], 2),
    }
