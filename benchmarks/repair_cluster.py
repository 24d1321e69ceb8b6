"""Replicas for benchmarks of repair: processes on loopback, a counting relay before each, and one measured case."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks.repair_data import Case, bound_bytes
from benchmarks.repair_wire import CountingRelay, WireCounts, settled

#: The first makes the rows known as repaired, the second tells the others, the third lets them purge.
_WARM_UPS_MAX: Final = 6
_PURGE_SECONDS: Final = 0.5
_ANSWER_BYTES_MAX: Final = 1 << 24
_ANSWER_SECONDS_MAX: Final = 900.0

Json = dict[str, Any]


class ReplicaError(Exception):
    """A replica's process said that something failed."""


class ReplicaProcess:
    """A replica and the relay in front of it."""

    def __init__(self, process: asyncio.subprocess.Process, relay: CountingRelay, endpoint: str) -> None:
        self._process = process
        self.relay = relay
        self.endpoint = endpoint

    @classmethod
    async def start(cls, store: Path, journal: Path, *, delay_seconds: float) -> ReplicaProcess:
        """Start both; the replica does not serve yet."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.repair_node", str(store), str(journal)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_ANSWER_BYTES_MAX,
        )
        port = (await _answer(process))["port"]
        relay = CountingRelay(port, delay_seconds=delay_seconds)
        return cls(process, relay, await relay.start())

    async def do(self, command: str, **arguments: Any) -> Json:
        """Ask it, and wait for its answer.

        Raises:
            ReplicaError: it failed, or ended.
        """
        if self._process.stdin is None:
            raise ReplicaError("the process has no input")
        self._process.stdin.write(json.dumps({"do": command, **arguments}).encode() + b"\n")
        await self._process.stdin.drain()
        return await _answer(self._process)

    async def stop(self) -> None:
        """End both."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 30)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self.relay.stop()


async def _answer(process: asyncio.subprocess.Process) -> Json:
    if process.stdout is None:
        raise ReplicaError("the process has no output")
    line = await asyncio.wait_for(process.stdout.readline(), _ANSWER_SECONDS_MAX)
    if not line:
        raise ReplicaError(f"a replica's process ended with status {await process.wait()}")
    answer: Json = json.loads(line)
    if "error" in answer:
        raise ReplicaError(answer["error"])
    return answer


class Cluster:
    """Replicas that hold the same rows."""

    def __init__(self, replicas: list[ReplicaProcess], joined: list[Json]) -> None:
        self.replicas = replicas
        self.joined = joined

    @classmethod
    async def start(cls, directory: Path, paths: list[Path], *, rtt_seconds: float) -> Cluster:
        """Start them all."""
        replicas: list[ReplicaProcess] = []
        try:
            for number, path in enumerate(paths):
                journal = directory / f"{path.name}-journal"
                started = await ReplicaProcess.start(path, journal, delay_seconds=rtt_seconds / 2)
                say(f"replica {number + 1} of {len(paths)} is up")
                replicas.append(started)
            endpoints = [one.endpoint for one in replicas]
            joined = [await one.do("join", local=one.endpoint, replicas=endpoints) for one in replicas]
        except BaseException:
            for one in replicas:
                await one.stop()
            raise
        return cls(replicas, joined)

    async def all(self, command: str, **arguments: Any) -> list[Json]:
        """Ask all."""
        return list(await asyncio.gather(*(one.do(command, **arguments) for one in self.replicas)))

    async def stop(self) -> None:
        """End them all."""
        for one in self.replicas:
            await one.stop()

    async def warm_up(self) -> None:
        """As in a cluster that has been repaired before: warm connections, marks, and tombstones that were purged.

        What is known of earlier repairs and purges travels with each comparison, so a first repair costs less.

        Raises:
            ReplicaError: a tombstone is not purged.
        """
        await self.all("delete_old")
        for _ in range(_WARM_UPS_MAX):
            await self.replicas[0].do("repair", strategy="auto")
            await asyncio.sleep(_PURGE_SECONDS)
            if not any(one["tombstones"] for one in await self.all("ready")):
                await self.replicas[0].do("repair", strategy="auto")
                return
        raise ReplicaError("a tombstone that all replicas have is not purged")

    async def measure(self, case: Case, strategy: str) -> Json:
        """Make the differences, repair, compare."""
        for number, one in enumerate(self.replicas):
            await one.do("apply", case=asdict(case), replica=number)
        await self.all("ready")
        relays = [one.relay for one in self.replicas]
        await settled(relays)
        before = await self.all("usage", reset=True)
        repaired = await self.replicas[0].do("repair", strategy=strategy)
        after = await self.all("usage", reset=False)
        counts = await settled(relays)
        digests = await self.all("digest")
        return _result(case, strategy, repaired, (before, after), counts, digests)


def _result(
    case: Case,
    strategy: str,
    repaired: Json,
    usage: tuple[list[Json], list[Json]],
    counts: WireCounts,
    digests: list[Json],
) -> Json:
    statistics, (before, after) = repaired["statistics"], usage
    exact = statistics["rows_moved"] == case.copies
    row_bytes = case.copy_bytes if exact else statistics["move_bytes"]
    items = case.differences * (2 if case.kind in ("updated", "deleted") else 1)
    return {
        "differences": case.differences,
        "kind": case.kind,
        "value_bytes": case.value_bytes,
        "replicas": case.replicas,
        "strategy_asked": strategy,
        "strategy": "+".join(sorted(statistics["strategies"])) or "none",
        "state": repaired["state"],
        "equal": len({one["digest"] for one in digests}) == 1,
        "rows": digests[0]["count"],
        "find_payload_bytes": statistics["find_bytes"],
        "find_payload_bytes_counted": counts.message_bytes - row_bytes,
        "find_wire_bytes": counts.total - row_bytes,
        "bound_bytes": round(bound_bytes(items, 128)),
        "bound_bytes_of_tokens": round(bound_bytes(case.differences, 64)),
        "round_trips": statistics["round_trips"],
        "requests": statistics["requests"],
        "calls": counts.calls,
        "messages": counts.messages,
        "seconds": round(repaired["seconds"], 4),
        "cpu_seconds": round(sum(b["cpu_seconds"] - a["cpu_seconds"] for a, b in zip(before, after, strict=True)), 4),
        "peak_memory_bytes": max(one["peak_bytes"] for one in after),
        "memory_bytes_before": max(one["now_bytes"] for one in before),
        "rows_differing": statistics["rows_differing"],
        "rows_moved": statistics["rows_moved"],
        "rows_optimal": case.copies,
        "row_bytes": row_bytes,
        "parts": repaired["parts"],
        "wire": asdict(counts),
    } | ({} if exact and repaired["state"] == "completed" else {"said": repaired["said"]})


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)
