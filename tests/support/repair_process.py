"""A node of a repair in a process of its own, killed at a durable step.

Run as ``python repair_process.py ROLE DIRECTORY PORT OWN ENDPOINT,ENDPOINT,... STEP BEFORE``: ROLE is ``coordinator``
(begins a repair) or ``replica`` (serves until it is killed). At durable step number STEP (a commit of the journal, or
rows applied to the store) it kills itself, before it (BEFORE = 1) or just behind it; 0: never.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import Iterable
from pathlib import Path

import grpc.aio

from antientropy import LmdbRowStore, RepairConfig, RepairService, ReplicatedRange, Row, TokenRange
from antientropy.journal import RepairJournal

UNIT_ROWS = 100


def config_of(directory: Path) -> RepairConfig:
    return RepairConfig(data_dir=directory / "repair", unit_rows_max=UNIT_ROWS, replica_retry_seconds=0.2)


class Everybody:
    def __init__(self, own: str, endpoints: list[str]) -> None:
        self.local_endpoint = own
        self._ranges = [ReplicatedRange(TokenRange.full(), tuple(sorted(endpoints)), min(endpoints))]

    def ranges(self, keyspace: str) -> list[ReplicatedRange]:
        return self._ranges

    def is_alive(self, endpoint: str) -> bool:
        return True

    def datacenter(self, endpoint: str) -> str:
        return ""


class Fuse:
    """Counts durable steps and kills the process at one of them."""

    def __init__(self, step: int, before: bool) -> None:
        self._step = step
        self._before = before
        self._count = 0

    def enter(self) -> int:
        self._count += 1
        if self._count == self._step and self._before:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._count

    def leave(self, number: int) -> None:
        if number == self._step:
            os.kill(os.getpid(), signal.SIGKILL)


async def main(role: str, directory: Path, port: int, own: str, endpoints: list[str], fuse: Fuse) -> None:
    commit = RepairJournal._commit

    def committed(journal: RepairJournal, connection: sqlite3.Connection) -> None:
        number = fuse.enter()
        commit(journal, connection)
        fuse.leave(number)

    class FusedStore(LmdbRowStore):
        def apply(self, rows: Iterable[Row], *, from_repair: bool = False) -> int:
            number = fuse.enter()
            applied = super().apply(rows, from_repair=from_repair)
            fuse.leave(number)
            return applied

    store = FusedStore(directory / "store")
    service = RepairService({"kv": store}, Everybody(own, endpoints), config_of(directory))
    if role == "replica":
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        service.register(server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        await service.start()
        await server.start()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()
    await service.start()
    setattr(RepairJournal, "_commit", committed)  # noqa: B010 - a method is replaced
    async for _ in service.repair("kv"):
        pass
    await service.stop()
    store.close()


if __name__ == "__main__":
    role, directory, port, own, endpoints, step, before = sys.argv[1:]
    asyncio.run(main(role, Path(directory), int(port), own, endpoints.split(","), Fuse(int(step), before == "1")))
