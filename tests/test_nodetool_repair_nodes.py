"""nodetool against nodes that really repair: three services over gRPC on loopback, nodetool as a process."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest
from repair_cluster import Cluster, grpc_cluster, rows_named

from antientropy import MemoryRowStore, RepairAdmin, RepairConfig, Row

pytestmark = pytest.mark.process


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.out)
        return content


@dataclass
class Operator:
    cluster: Cluster
    port: int
    running: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def begin(self, *args: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nodetool", "-p", str(self.port), *args),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self.running.append(process)
        return process

    async def end(self, process: asyncio.subprocess.Process) -> Ran:
        out, err = await asyncio.wait_for(process.communicate(), 40)
        assert b"Traceback" not in err
        return Ran(process.returncode or 0, out.decode(), err.decode())

    async def run(self, *args: str) -> Ran:
        return await self.end(await self.begin(*args))

    async def session(self, state: str) -> str:
        """The id of the only session, as soon as it is in this state."""
        async with asyncio.timeout(20):
            while True:
                sessions = await self.cluster[0].service.sessions()
                if [one.state.value for one in sessions] == [state]:
                    return sessions[0].session_id
                await asyncio.sleep(0.01)


VERSIONS = RepairConfig(version_at=lambda seconds: int(seconds * 1000) << 16, version_time=lambda v: (v >> 16) / 1000)
#: Written a minute ago: no write that is still under way.
VERSION = int(time.time() - 60) * 1000 << 16


@asynccontextmanager
async def operated(*stores: MemoryRowStore) -> AsyncIterator[Operator]:
    async with grpc_cluster(*stores, config=VERSIONS) as cluster:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        RepairAdmin(cluster[0].service).register(server)
        operator = Operator(cluster, server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        try:
            yield operator
        finally:
            for process in operator.running:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            await server.stop(None)


def three_stores(missing: int, value: bytes = b"value") -> list[MemoryRowStore]:
    """The last one lacks some rows, and one is deleted on it alone."""
    stores = [MemoryRowStore() for _ in range(3)]
    rows = rows_named(200 + missing, VERSION, value)
    for store in stores[:2]:
        store.apply(rows)
    stores[2].apply(rows[:200])
    stores[2].apply([Row(b"key7", VERSION + 1, b"", deleted=True)])
    return stores


async def test_what_differs_is_previewed_repaired_and_recorded() -> None:
    async with operated(*three_stores(40)) as operator:
        assert (await operator.run("repair", "--validate", "--exit-code")).status == 3
        preview = await operator.run("repair", "--preview", "--exit-code", "--output", "json")
        assert not operator.cluster.equal()
        repair = await operator.run("repair", "--output", "json")
        assert operator.cluster.equal()
        again = await operator.run("repair", "kv")
        validation = await operator.run("repair", "--validate", "--exit-code")
        history = await operator.run("repair_admin", "history", "--output", "json")
        summary = await operator.run("repair_admin", "summarize", "--output", "json")
    assert preview.status == 3
    flows = {(one["source"], one["target"]): one for one in preview.json["previews"]}
    assert sum(one["rows"] for one in flows.values()) == 42
    assert sum(one["tombstones"] for one in flows.values()) == 2
    assert all(one["first_keys"][0].startswith("key") for one in flows.values())
    assert repair.status == 0
    numbers = repair.json
    assert (numbers["outcome"], numbers["rows_differing"]) == ("completed", 41)
    assert numbers["rows_moved"] == numbers["rows_optimal"] == 42
    assert (again.status, again.err) == (0, "")
    assert "\n  Rows that differed   : 0\n" in again.out
    assert "\n  Pairs compared       : 2, of them equal: 2\n" in again.out
    assert validation.status == 0
    assert validation.out.endswith("\nValidated data is in sync\n")
    sessions = history.json["sessions"]
    assert [one["state"] for one in sessions] == ["completed"] * 5
    assert [one["rows_moved"] for one in sessions] == [0, 0, 42, 0, 0]
    (found,) = summary.json["ranges"]
    assert found["repaired_time"] is not None


async def test_a_dead_replica_makes_it_partial_unless_it_is_left_out_on_purpose() -> None:
    async with operated(*three_stores(5)) as operator:
        cluster = operator.cluster
        cluster.ring.dead.add(cluster[2].endpoint)
        partial = await operator.run("repair")
        forced = await operator.run("repair", "--force")
        unknown = await operator.run("repair", "-hosts", "127.0.0.1:1")
        elsewhere = await operator.run("repair", "-dc", "nowhere")
    assert partial.status == 4
    assert f"Endpoint {cluster[2].endpoint} is not alive" in partial.out
    assert cluster[2].endpoint in partial.err
    assert forced.status == 0
    assert (unknown.status, elsewhere.status) == (2, 2)
    assert unknown.err.startswith("nodetool: refused by ")
    assert "nowhere" in elsewhere.err


#: Rows for several chunks: at this rate the second one waits for 25 seconds.
MUCH = 4000
SLOW = "40KiB"


async def test_a_repair_is_slowed_down_paused_and_resumed() -> None:
    stores = three_stores(MUCH, b"v" * 1000)
    async with operated(*stores) as operator:
        slow = await operator.run("repair_admin", "throttle", "--bytes-per-second", SLOW)
        assert slow.status == 0
        first = await operator.begin("repair")
        session_id = await operator.session("streaming")
        paused = await operator.run("repair_admin", "pause", session_id[:6])
        listed = await operator.run("repair_admin", "list", "--output", "json")
        assert (await operator.run("repair_admin", "throttle", "--bytes-per-second", "none")).status == 0
        resumed = await operator.run("repair_admin", "resume", session_id[:6], "--output", "json")
        begun = await operator.end(first)
        assert operator.cluster.equal()
    assert paused.out.startswith(f"Paused {session_id[:8]} at ")
    assert [(one["session_id"], one["state"]) for one in listed.json["sessions"]] == [(session_id, "paused")]
    assert (resumed.status, resumed.json["outcome"]) == (0, "completed")
    assert begun.status == 0
    assert "Repair completed successfully in " in begun.out


async def test_a_repair_that_is_cancelled_leaves_nothing_behind() -> None:
    async with operated(*three_stores(MUCH, b"v" * 1000)) as operator:
        await operator.run("repair_admin", "throttle", "--bytes-per-second", SLOW)
        first = await operator.begin("repair")
        session_id = await operator.session("streaming")
        cancelled = await operator.run("repair_admin", "cancel", session_id[:6])
        begun = await operator.end(first)
        history = await operator.run("repair_admin", "history")
        async with asyncio.timeout(20):
            while any(node.service.session_count for node in operator.cluster.nodes):
                await asyncio.sleep(0.01)
    assert cancelled.out.startswith(f"Cancelled {session_id[:8]} (kv, at ")
    assert begun.status == 1
    assert begun.err == "nodetool: repair was cancelled; rows that were moved stay\n"
    assert f"{session_id[:8]}  kv        cancelled" in history.out
