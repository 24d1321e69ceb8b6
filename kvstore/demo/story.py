"""What happens in the demonstration, in order; each step checks what it claims and raises ``DemoError`` otherwise."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from antientropy.v1 import admin_pb2 as repair_pb
from antientropy.v1 import admin_pb2_grpc as repair_grpc
from gossiper.v1 import admin_pb2 as gossip_pb
from gossiper.v1 import admin_pb2_grpc as gossip_grpc
from kvstore.client import AsyncKeyValueClient
from kvstore.demo.cluster import NODES, DemoError, LocalCluster, Node, local_cluster
from kvstore.demo.data import DELETIONS, OVERWRITES, Changes, changes_of, expected_rows, unicode_rows
from kvstore.demo.render import Stage
from kvstore.demo.verify import Verifier
from kvstore.errors import KvStoreError
from kvstore.replication import Consistency, Mutation
from kvstore.wire import CHANNEL_OPTIONS

BATCH_ROWS: Final = 500
WRITES_IN_FLIGHT: Final = 4
"""Batches under way at once: one is on its way while the disk writes another."""
RPC_SECONDS_MAX: Final = 5.0
JOIN_SECONDS_MAX: Final = 30.0
DETECTION_INTERVALS_MAX: Final = 120.0
"""Silence after which a node must be DOWN; 18 intervals are expected, a busy machine may need more."""
GAUGE_SECONDS: Final = 0.5
POLL_SECONDS: Final = 0.1

SETTLE_SECONDS_MAX: Final = 10.0
"""For the replicas whose acknowledgement was not needed."""

Rows = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Replica:
    """What a node says of its replica."""

    name: str
    row_count: int
    tombstone_count: int
    root: bytes

    def cells(self) -> list[str]:
        """As a line of a table."""
        live = self.row_count - self.tombstone_count
        return [self.name, f"{live:,}", f"{self.tombstone_count:,}", self.root.hex()]


REPLICA_COLUMNS: Final = (("replica", "left"), ("live rows", "right"), ("tombstones", "right"), ("root hash", "left"))


class Story:
    """The steps; they share the stage, the cluster and the rows."""

    def __init__(self, stage: Stage, cluster: LocalCluster, rows: Rows) -> None:
        self._stage = stage
        self._cluster = cluster
        self._rows = rows
        self._changes: Changes = changes_of(rows)
        self._begun = time.monotonic()
        self.first, self.second, self.third = cluster.nodes

    async def run(self) -> None:
        """Everything from the first start to the proof.

        Raises:
            DemoError: something does not hold.
        """
        try:
            await self.start_nodes()
            await self.load()
            await self.kill_third()
            await self.write_meanwhile()
            await self.restart_third()
            await self.repair()
            await self.prove()
        except (KvStoreError, grpc.aio.AioRpcError, ExceptionGroup) as error:
            # A node that is gone explains more than the call that failed because of it.
            await asyncio.sleep(POLL_SECONDS)
            self._cluster.check_running()
            raise _told(error) from error

    async def start_nodes(self) -> None:
        """Three processes that find each other through one seed."""
        self._stage.section("Start three nodes")
        for node in self._cluster.nodes:
            await self._cluster.start_node(node)
        self._stage.say(
            f"Each is a process with its own data directory and generation file; the seed of all is {self.first.name}."
        )
        listeners = ("peers", "clients", "admin")
        self._stage.table(
            [("node", "left"), ("pid", "right"), *((name, "left") for name in listeners)],
            [[node.name, str(node.pid), *(node.addresses[name] for name in listeners)] for node in self._cluster.nodes],
        )
        for node in (self.second, self.third):
            await self._status(node, "UN", NODES)
        await self._show_status(self.first, "UN", NODES)

    async def load(self) -> None:
        """Write every row through one node, in batches."""
        self._stage.section("Load the Unicode database")
        self._stage.say(
            "Key: the code point. Value: name, category and more as JSON. A batch is acknowledged when a majority of "
            "the replicas has it on disk."
        )
        await self._write(self.first, "loading", [Mutation(key, value) for key, value in self._rows])
        replicas = await self._settled_replicas()
        if len({replica.root for replica in replicas}) > 1:
            self._stage.say("Some batches came too late for one replica; that is what repair is for:")
            await self.repair_now()
            replicas = await self._replicas()
        for replica in replicas:
            if replica.row_count != len(self._rows):
                raise DemoError(f"{replica.name} holds {replica.row_count:,} rows of {len(self._rows):,}")
        self._stage.table(REPLICA_COLUMNS, [replica.cells() for replica in replicas])

    async def kill_third(self) -> None:
        """SIGKILL, and what the failure detectors of the others make of the silence."""
        victim, observers = self.third, (self.first, self.second)
        self._stage.section(f"Kill {victim.name} and watch the failure detector")
        self._stage.say(f"kill -KILL {victim.pid}   ({victim.name} has no time to say goodbye)")
        endpoint = victim.addresses["peers"]
        await victim.kill()
        begun = time.monotonic()
        gauge_due = 0.0
        deadline_seconds = max(JOIN_SECONDS_MAX, DETECTION_INTERVALS_MAX * self._cluster.interval_seconds)
        while True:
            reports = [await self._failure_detector(node) for node in observers]
            silence_seconds = time.monotonic() - begun
            views = [_phi_of(report, endpoint) for report in reports]
            convicted = all(view.liveness == gossip_pb.LIVENESS_DOWN for view in views)
            if convicted or silence_seconds >= gauge_due:
                phis = [(f"phi at {node.name}", view.phi) for node, view in zip(observers, views, strict=True)]
                self._stage.gauges(f"{silence_seconds:4.1f} s", phis, full=reports[0].phi_threshold)
                gauge_due += GAUGE_SECONDS
            if convicted:
                break
            if silence_seconds > deadline_seconds:
                raise DemoError(f"{victim.name} is dead for {silence_seconds:.0f} s and not everybody noticed")
            await asyncio.sleep(POLL_SECONDS)
        self._stage.say(
            f"Phi passed {reports[0].phi_threshold:g} at both: {victim.name} is convicted after "
            f"{silence_seconds:.1f} s, {silence_seconds / self._cluster.interval_seconds:.0f} gossip intervals."
        )
        await self._show_status(self.first, "DN", 1)
        for line in await self._status(self.second, "DN", 1):
            if line.startswith("DN "):
                self._stage.say(f"{self.second.name} says the same:")
                self._stage.output(line)

    async def write_meanwhile(self) -> None:
        """Changes that the dead replica misses."""
        self._stage.section(f"Write while {self.third.name} is down")
        mutations = [Mutation(key, value) for key, value in self._changes.overwrites.items()]
        await self._write(self.second, f"overwriting {OVERWRITES}", mutations)
        mutations = [Mutation(key, b"", deleted=True) for key in self._changes.deletions]
        await self._write(self.second, f"deleting {DELETIONS}", mutations)
        async with self._client(self.second) as client:
            described = await client.describe()
        self._stage.say(
            f"Acknowledged: {described.alive_count} of {len(described.replicas)} replicas have them, "
            f"{described.replicas_required} are enough. Nobody keeps hints for {self.third.name}: nothing but repair "
            "can heal it."
        )

    async def restart_third(self) -> None:
        """The node comes back with a greater generation, and stale."""
        node = self.third
        self._stage.section(f"Start {node.name} again")
        before = await self._generation_seen(self.first, node)
        await self._cluster.start_node(node)
        await self._status(self.second, "UN", NODES)
        await self._show_status(self.first, "UN", NODES)
        after = await self._generation_seen(self.first, node)
        if after <= before:
            raise DemoError(f"{node.name} came back with generation {after}, which is not greater than {before}")
        self._stage.say(f"Its generation went from {before} to {after}: a new life of the same node.")
        replicas = await self._replicas()
        self._stage.table(REPLICA_COLUMNS, [replica.cells() for replica in replicas])
        first, second, third = replicas
        if first.root != second.root:
            raise DemoError(f"{self.first.name} and {self.second.name} differ, although both were up all the time")
        if third.root == first.root:
            raise DemoError(f"{node.name} has what was written while it was down, although nothing was repaired")
        self._stage.say(f"{node.name} is up, and its replica is stale: another root hash, no tombstones.")

    async def repair(self) -> None:
        """``nodetool repair``."""
        self._stage.section("Repair")
        lines = await self.repair_now()
        changed = OVERWRITES + DELETIONS
        for label in ("Rows that differed", "Rows moved"):
            if (number := _number_after(label, lines)) != changed:
                raise DemoError(f"nodetool repair says '{label}': {number:,}; {changed:,} rows were changed")
        found = _number_after("Bytes for finding", lines)
        self._stage.say(
            f"Exactly the {changed:,} rows that differ moved, each once; finding them among {len(self._rows):,} took "
            f"{found:,} bytes. Once more, now that nothing differs:"
        )
        again = await self.repair_now()
        if moved := _number_after("Rows moved", again):
            raise DemoError(f"nothing differed any more, and nodetool repair says that {moved:,} rows moved")
        self._stage.say(
            f"{_number_after('Bytes for finding', again):,} bytes in {_number_after('Round trips', again)} round trip "
            f"to know that {NODES} replicas are equal: the trees are kept up to date with every write."
        )

    async def repair_now(self) -> list[str]:
        """Run the command and show what it prints."""
        self._stage.command([*self._cluster.nodetool_words(self.first), "repair"])
        return await self._cluster.nodetool(self.first, "repair", on_line=self._stage.output)

    async def prove(self) -> None:
        """Read all replicas and compare every row; the last line says so."""
        self._stage.section("Read all three replicas and compare every row")
        verifier = Verifier(expected_rows(self._rows, self._changes))
        for node, replica in zip(self._cluster.nodes, await self._replicas(), strict=True):
            rows = []
            with self._stage.progress(f"reading {node.name}", replica.row_count) as update:
                async with self._client(node) as client:
                    async for row in client.scan(consistency=Consistency.LOCAL, include_tombstones=True):
                        rows.append(row)
                        if len(rows) % BATCH_ROWS == 0:
                            update(len(rows))
                update(len(rows))
            verifier.add(node.name, rows, claimed_root=replica.root, claimed_row_count=replica.row_count)
        self._stage.table(
            REPLICA_COLUMNS,
            [
                Replica(each.name, each.row_count, each.tombstone_count, each.root).cells()
                for each in verifier.summaries
            ],
        )
        if faults := verifier.report():
            raise DemoError("the replicas are not what was written", faults)
        self._stage.say(
            f"Every row is the same on all three and is what was written last; the {OVERWRITES} overwritten rows are "
            f"new everywhere, the {DELETIONS} deleted rows stayed deleted. The root hashes above are computed from the "
            "rows that were read, and are the ones the nodes keep. "
            f"Everything took {time.monotonic() - self._begun:.0f} s."
        )
        truth = verifier.summaries[0]
        self._stage.conclusion(
            f"all replicas identical: {truth.row_count - truth.tombstone_count:,} rows, {truth.tombstone_count:,} "
            f"tombstones, root hash {truth.root.hex()}"
        )

    async def _write(self, node: Node, label: str, mutations: Sequence[Mutation]) -> None:
        """Write in batches, a few of them at once."""
        batches = [mutations[begin : begin + BATCH_ROWS] for begin in range(0, len(mutations), BATCH_ROWS)]
        waiting = iter(batches)
        written = 0
        with self._stage.progress(label, len(mutations)) as update:
            async with self._client(node) as client, asyncio.TaskGroup() as group:

                async def work() -> None:
                    nonlocal written
                    for batch in waiting:
                        await client.write(batch)
                        written += len(batch)
                        update(written)

                for _ in range(WRITES_IN_FLIGHT):
                    group.create_task(work())

    def _client(self, node: Node) -> AsyncKeyValueClient:
        return AsyncKeyValueClient(node.addresses["clients"])

    async def _status(self, node: Node, state: str, count: int) -> list[str]:
        """Run ``nodetool status`` until ``count`` lines begin with ``state``; return its output."""
        deadline = time.monotonic() + JOIN_SECONDS_MAX
        while True:
            lines = await self._cluster.nodetool(node, "-pp", "status")
            found = sum(line.startswith(f"{state} ") for line in lines)
            if found == count:
                return lines
            self._cluster.check_running()
            if time.monotonic() > deadline:
                raise DemoError(f"nodetool status at {node.name} shows {found} {state} lines, not {count}", lines)
            await asyncio.sleep(POLL_SECONDS)

    async def _show_status(self, node: Node, state: str, count: int) -> None:
        lines = await self._status(node, state, count)
        self._stage.command([*self._cluster.nodetool_words(node), "-pp", "status"])
        for line in lines:
            self._stage.output(line)

    async def _failure_detector(self, node: Node) -> gossip_pb.GetFailureDetectorResponse:
        async with _admin_channel(node) as channel:
            stub: gossip_grpc.GossipAdminServiceAsyncStub = gossip_grpc.GossipAdminServiceStub(channel)
            return await stub.GetFailureDetector(gossip_pb.GetFailureDetectorRequest(), timeout=RPC_SECONDS_MAX)

    async def _generation_seen(self, observer: Node, node: Node) -> int:
        async with _admin_channel(observer) as channel:
            stub: gossip_grpc.GossipAdminServiceAsyncStub = gossip_grpc.GossipAdminServiceStub(channel)
            view = await stub.GetClusterView(gossip_pb.GetClusterViewRequest(), timeout=RPC_SECONDS_MAX)
        for endpoint in view.endpoints:
            if endpoint.endpoint == node.addresses["peers"]:
                return endpoint.generation
        raise DemoError(f"{observer.name} does not know {node.name}")

    async def _replicas(self) -> list[Replica]:
        return [await self._replica(node) for node in self._cluster.nodes]

    async def _replica(self, node: Node) -> Replica:
        async with _admin_channel(node) as channel:
            stub: repair_grpc.RepairAdminServiceAsyncStub = repair_grpc.RepairAdminServiceStub(channel)
            reply = await stub.DescribeReplica(repair_pb.DescribeReplicaRequest(), timeout=RPC_SECONDS_MAX)
        return Replica(node.name, reply.row_count, reply.tombstone_count, reply.root_digest)

    async def _settled_replicas(self) -> list[Replica]:
        """The replicas when they are equal, or when waiting for those that were not waited for makes no sense."""
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while True:
            replicas = await self._replicas()
            if len({replica.root for replica in replicas}) == 1 or time.monotonic() > deadline:
                return replicas
            await asyncio.sleep(POLL_SECONDS)


def _number_after(label: str, lines: Sequence[str]) -> int:
    """The number in the line of a summary with this label; -1 when there is none."""
    for line in lines:
        if match := re.match(rf"\s*{re.escape(label)}\s*:\s*([\d,]+)", line):
            return int(match[1].replace(",", ""))
    return -1


def _told(error: Exception) -> Exception:
    """An error of a node or of a group of tasks as one line for people; anything else is a bug and stays what it is."""
    if isinstance(error, ExceptionGroup):
        return _told(error.exceptions[0])
    if isinstance(error, KvStoreError):
        return DemoError(str(error))
    if isinstance(error, grpc.aio.AioRpcError):
        return DemoError(f"a node did not answer: {error.code().name}: {error.details()}")
    return error


@asynccontextmanager
async def _admin_channel(node: Node) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(node.addresses["admin"], options=CHANNEL_OPTIONS) as channel:
        yield channel


def _phi_of(report: gossip_pb.GetFailureDetectorResponse, endpoint: str) -> gossip_pb.PhiView:
    for view in report.endpoints:
        if view.endpoint == endpoint:
            return view
    raise DemoError(f"a failure detector does not know {endpoint}")


async def tell(*, interval_seconds: float, rows_max: int | None, svg: Path | None) -> int:
    """Run the demonstration and return the exit status: 0, 1 when something does not hold, 128 + signal number.

    To be the only thing in its event loop: SIGINT, SIGTERM and SIGHUP end it in an orderly way.
    """
    stage = Stage(record=svg is not None)
    task = asyncio.current_task()
    signals: list[int] = []

    def interrupt(number: int) -> None:
        # Only the first: another one must not disturb the cleaning up, which is bounded.
        signals.append(number)
        if len(signals) == 1 and task is not None:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, interrupt, number)
    try:
        await _tell(stage, interval_seconds=interval_seconds, rows_max=rows_max)
        if svg is not None:
            stage.save_svg(svg, title="make demo")
    except DemoError as error:
        stage.failure([str(error), *error.details])
        return 1
    except OSError as error:
        stage.failure([f"{error.strerror}: {error.filename}" if error.filename else str(error)])
        return 1
    except asyncio.CancelledError:
        if not signals:
            raise
        stage.failure(["interrupted; all processes are ended and all files removed"])
        return 128 + signals[0]
    return 0


async def _tell(stage: Stage, *, interval_seconds: float, rows_max: int | None) -> None:
    stage.title("gossiper: three nodes, one dies, misses writes, comes back, is repaired")
    rows = list(unicode_rows(rows_max))
    async with local_cluster(interval_seconds=interval_seconds) as cluster:
        await Story(stage, cluster, rows).run()
