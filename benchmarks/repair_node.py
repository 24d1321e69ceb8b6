"""One replica in a process of its own: a repair service over LMDB, told what to do by lines of JSON on its input.

Started by ``python -m benchmarks.repair``. Every line is an object with ``do`` and arguments; every answer is a line,
``{"error": ...}`` when it failed. The first line that it writes names its port.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import grpc.aio
import numpy as np

from antientropy.config import RepairConfig
from antientropy.core.rows import Row
from antientropy.core.tokens import TokenRange
from antientropy.membership import ReplicatedRange
from antientropy.options import RepairOptions, Strategy
from antientropy.reports import RepairUpdate
from antientropy.service import RepairService
from antientropy.stores.lmdb import LmdbRowStore
from benchmarks.repair_data import Case, Values, version_at, version_time

KEYSPACE: Final = "bench"
#: What is written while a repair runs looks older than a write under way, so that the repair does not wait for it.
_WRITER_AGE_SECONDS: Final = 600.0
_OLD_VERSION: Final = 1_780_000_000_000 << 16
_RECENT_SECONDS: Final = 2.0
#: Often, so that what is purged soon is what will ever be purged.
_PURGE_INTERVAL_SECONDS: Final = 0.2
_LINE_BYTES_MAX: Final = 1 << 20
_TRACE: Final = re.compile(r"(\w+) to \S+: (\d+) bytes, (\d+) bytes of rows")

Json = dict[str, Any]


class FixedMembership:
    """Everybody holds everything and is alive."""

    def __init__(self, local: str, replicas: Sequence[str]) -> None:
        self._local = local
        ordered = tuple(sorted(replicas))
        self._ranges = (ReplicatedRange(TokenRange.full(), ordered, ordered[0]),)

    @property
    def local_endpoint(self) -> str:
        """This node."""
        return self._local

    def ranges(self, keyspace: str) -> Sequence[ReplicatedRange]:
        """The one range."""
        return self._ranges if keyspace == KEYSPACE else ()

    def is_alive(self, endpoint: str) -> bool:
        """Always."""
        return endpoint in self._ranges[0].replicas

    def datacenter(self, endpoint: str) -> str:
        """Unknown."""
        del endpoint
        return ""


class SteadyWriter:
    """Puts single rows in a thread of its own, at a steady rate, and notes how long each took."""

    def __init__(self, store: LmdbRowStore, writes_per_second: float, value_bytes: int) -> None:
        self._store = store
        self._interval = 1 / writes_per_second
        self._values = Values.of(value_bytes, 99)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer")
        self.samples: list[float] = []

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def recent_seconds(self) -> float | None:
        """Mean of the writes of the last seconds, as the key-value store tells its throttle."""
        recent = self.samples[-int(_RECENT_SECONDS / self._interval) :]
        return sum(recent) / len(recent) if recent else None

    def stop(self) -> list[float]:
        """End; seconds that each write took."""
        self._stopping.set()
        self._thread.join()
        return self.samples

    def _run(self) -> None:
        due, number = time.perf_counter(), 0
        while not self._stopping.is_set():
            version = version_at(time.time() - _WRITER_AGE_SECONDS) | number & 0xFFFF
            row = Row(b"write%011d" % (number % 5000), version, self._values.value(number))
            begun = time.perf_counter()
            self._store.apply([row])
            now = time.perf_counter()
            self.samples.append(now - begun)
            number += 1
            due = max(due + self._interval, now - self._interval)
            time.sleep(max(0.0, due - now))


class Node:
    """What the commands work on."""

    def __init__(self, path: Path, journal: Path) -> None:
        begun = time.perf_counter()
        self.store = LmdbRowStore(path)
        self._store_seconds = time.perf_counter() - begun
        self._journal = journal
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._service: RepairService | None = None
        self._writer: SteadyWriter | None = None
        self._tells_latency = False

    def _latency(self) -> float | None:
        return self._writer.recent_seconds() if self._writer is not None and self._tells_latency else None

    @property
    def service(self) -> RepairService:
        """The service, once it has joined."""
        if self._service is None:
            raise RuntimeError("not joined")
        return self._service

    async def join(self, local: str, replicas: list[str]) -> Json:
        """Begin to serve; the index is ready when this returns."""
        config = RepairConfig(
            data_dir=self._journal,
            version_at=version_at,
            version_time=version_time,
            purge_interval_seconds=_PURGE_INTERVAL_SECONDS,
        )
        membership = FixedMembership(local, replicas)
        self._service = RepairService({KEYSPACE: self.store}, membership, config, latency=self._latency)
        self._service.register(self._server)
        await self._service.start()
        await self._server.start()
        begun = time.perf_counter()
        described = await self._service.describe(KEYSPACE)
        return {
            "rows": described.root.count,
            "tree_depth": described.tree_depth,
            "index_seconds": round(time.perf_counter() - begun + self._store_seconds, 3),
        }

    async def apply(self, case: Json, replica: int) -> Json:
        """Make the differences of a case that this replica has before the others."""
        rows = list(Case(**case).rows_of(replica))
        return {"applied": await asyncio.to_thread(self.store.apply, rows) if rows else 0}

    async def ready(self) -> Json:
        """Take all changes into the index, as a schedule that repairs every minute has done."""
        found = await self.service.describe(KEYSPACE)
        return {"digest": found.root.digest.hex(), "count": found.root.count, "tombstones": found.tombstone_count}

    async def delete_old(self) -> Json:
        """Have a tombstone that is due to be purged as soon as all replicas are known to have it."""
        row = Row(b"deleted long ago", _OLD_VERSION, b"", deleted=True)
        return {"applied": await asyncio.to_thread(self.store.apply, [row])}

    async def repair(self, strategy: str) -> Json:
        """Repair with all replicas; statistics, and bytes by method."""
        last: RepairUpdate | None = None
        parts: dict[str, dict[str, int]] = {}
        lines: list[str] = []
        begun = time.perf_counter()
        options = RepairOptions(strategy=Strategy(strategy), trace=True)
        async for update in self.service.repair(KEYSPACE, options):
            last = update
            if (found := _TRACE.match(update.message)) is not None:
                part = parts.setdefault(found[1], {"requests": 0, "find_bytes": 0, "row_bytes": 0})
                part["requests"] += 1
                part["find_bytes"] += int(found[2])
                part["row_bytes"] += int(found[3])
            elif update.message:
                lines.append(update.message)
        seconds = time.perf_counter() - begun
        if last is None:
            raise RuntimeError("a repair without updates")
        return {
            "seconds": seconds,
            "state": last.state.value,
            "statistics": {name: getattr(last.statistics, name) for name in last.statistics.__slots__},
            "parts": parts,
            "said": lines[-8:],
        }

    async def digest(self) -> Json:
        """Hash of all rows, read from the store and not from the index."""

        def read() -> Json:
            reader = self.store.read()
            try:
                hashed, count = hashlib.blake2b(digest_size=16), 0
                for rows in reader.digests([TokenRange.full()]):
                    count += len(rows)
                    for column in (rows.tokens, rows.versions, rows.digests):
                        hashed.update(np.ascontiguousarray(column).tobytes())
                return {"digest": hashed.hexdigest(), "count": count}
            finally:
                reader.close()

        return await asyncio.to_thread(read)

    async def usage(self, reset: bool) -> Json:
        """Processor time so far, and the most memory since the last reset."""
        return await asyncio.to_thread(_usage, reset)

    async def write(self, writes_per_second: float, value_bytes: int, tell_latency: bool) -> Json:
        """Begin to write single rows; ``tell_latency``: repair is told how long they take."""
        self._tells_latency = tell_latency
        self._writer = SteadyWriter(self.store, writes_per_second, value_bytes)
        self._writer.start()
        return {}

    async def written_so_far(self) -> Json:
        """How many writes there were."""
        return {"writes": 0 if self._writer is None else len(self._writer.samples)}

    async def written(self) -> Json:
        """End that; how long each write took."""
        writer, self._writer = self._writer, None
        return {"seconds": [] if writer is None else await asyncio.to_thread(writer.stop)}

    async def stop(self) -> Json:
        """End."""
        if self._service is not None:
            await self._service.stop()
        await self._server.stop(0.1)
        await asyncio.to_thread(self.store.close)
        return {}


def _usage(reset: bool) -> Json:
    status = Path("/proc/self/status").read_text()
    sizes = {name: int(kb) * 1024 for name, kb in re.findall(r"(VmHWM|VmRSS):\s+(\d+) kB", status)}
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return {"cpu_seconds": time.process_time(), "peak_bytes": sizes["VmHWM"], "now_bytes": sizes["VmRSS"]}


async def serve(path: Path, journal: Path) -> None:
    """Do what the lines say, until the input ends."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=_LINE_BYTES_MAX)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    node = Node(path, journal)
    _answer({"port": node.port})
    while line := await lines.readline():
        asked = json.loads(line)
        try:
            _answer(await getattr(node, asked.pop("do"))(**asked))
        except Exception as error:  # noqa: BLE001 - whoever asked has to know
            _answer({"error": f"{type(error).__name__}: {error}"})
    await node.stop()


def _answer(found: Json) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("journal", type=Path)
    options = parser.parse_args()
    asyncio.run(serve(options.store, options.journal))


if __name__ == "__main__":
    main()
