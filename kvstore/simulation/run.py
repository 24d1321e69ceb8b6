"""One seed from beginning to end: faults, then healing, a last repair, and a look at everything."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import tempfile
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from antientropy.store import Row
from kvstore.errors import ClockDriftError, KvStoreError, NotEnoughReplicasError, StoppingError
from kvstore.replication import Consistency
from kvstore.simulation.cluster import SimulatedNode
from kvstore.simulation.faults import FaultDriver
from kvstore.simulation.machine import PROPAGATION_DELAY_SECONDS
from kvstore.simulation.network import SimulatedNetwork
from kvstore.simulation.options import SimulationOptions, draw
from kvstore.simulation.process import KilledError, ProcessRunner
from kvstore.simulation.repairs import RepairDriver, repair_everything
from kvstore.simulation.truth import Truth, ViolationError

#: Virtual time beyond the phase of faults in which everything must have ended.
_END_SECONDS: Final = 3_600.0
#: For all to see each other again: a conviction takes 18 intervals, and as long may pass until it is revoked.
_HEAL_SECONDS: Final = 120.0
_CLIENTS: Final = 3
#: Repairs of everything after the last write, until no tombstone may be left: one to record what all have, one for
#: each other node that coordinates, so that it learns what may go; and the pause for the purge itself.
_PURGE_TRIES: Final = 8
_PURGE_SECONDS: Final = 5.0
_TRACE_LINES_KEPT: Final = 40


@dataclass(frozen=True, slots=True)
class SeedResult:
    """What one seed gave."""

    seed: int
    violation: str | None
    """Invariant and what was seen; None: all hold."""
    virtual_seconds: float
    nodes: int
    outcomes: dict[str, int]
    """Operations of clients by how they ended."""
    faults: dict[str, int]
    repairs: dict[str, int]
    rows: int
    """Live rows at the end."""
    digest: str
    """Equal for equal runs."""
    command: str
    trace: list[str] = field(default_factory=list)
    """The last lines, when there is a violation."""

    def to_json(self) -> dict[str, object]:
        """As plain values."""
        return asdict(self)


class Run:
    """One seed."""

    def __init__(self, options: SimulationOptions, directory: Path) -> None:
        self.options = options
        self.swarm = draw(options, self._stream("swarm"))
        self.truth = Truth(options.seed)
        self.network = SimulatedNetwork(self._stream("network"))
        self.nodes: list[SimulatedNode] = []
        self.trace: list[str] = []
        self._directory = directory
        self._hash = hashlib.sha256()
        self.fault_counts: dict[str, int] = {}
        self.repair_counts: dict[str, int] = {}
        self.rows = 0

    def _stream(self, name: str) -> Random:
        """Random numbers of one part: another part that draws more or less does not change them."""
        return Random(f"{self.options.seed}/{name}")  # noqa: S311 - repeatable on purpose, guards nothing

    def tell(self, line: str) -> None:
        """A line of the trace."""
        line = f"{asyncio.get_running_loop().time() - 1_000.0:10.4f} {line}"
        self._hash.update(line.encode())
        self.trace.append(line)
        del self.trace[:-_TRACE_LINES_KEPT]

    @property
    def digest(self) -> str:
        """Of the whole trace."""
        return self._hash.hexdigest()[:16]

    async def play(self) -> None:
        """Everything.

        Raises:
            ViolationError: an invariant does not hold.
        """
        await self._start_all()
        loop = asyncio.get_running_loop()
        until = loop.time() + self.options.duration_seconds
        driver = FaultDriver(self.nodes, self.network, self.swarm, self._stream("faults"), self.tell)
        repairs = RepairDriver(self.nodes, self.swarm, self._stream("repairs"), self.tell)
        async with asyncio.TaskGroup() as group:
            group.create_task(driver.run(until), name="faults")
            group.create_task(repairs.run(until), name="repairs")
            for number in range(_CLIENTS):
                group.create_task(self._client(self._stream(f"client {number}"), until), name=f"client {number}")
        self.fault_counts = dict(sorted((driver.counts + self.network.counts).items()))
        self.repair_counts = dict(sorted(repairs.counts.items()))
        await self._heal()
        await self._repair_all()
        self._judge()
        for node in self.nodes:
            await node.stop()
        self._check_so_far()
        leaked = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if leaked:
            raise ViolationError("leaked_task", ", ".join(sorted(leaked)))

    async def _start_all(self) -> None:
        settings = {
            "cluster_name": "simulation",
            "seeds": ("10.0.0.1:7000", "10.0.0.2:7000"),
            "replication_factor": self.swarm.nodes,
            "interval_seconds": 1.0,
            "shadow_timeout_seconds": 10.0,
            "repair_period_seconds": self.swarm.repair_period_seconds,
            "repair_throttle_cpu_share": 1.0,
        }
        for number in range(1, self.swarm.nodes + 1):
            directory = self._directory / str(number)
            directory.mkdir()
            self.nodes.append(
                SimulatedNode(
                    number,
                    self.network,
                    directory,
                    self.truth,
                    self._stream(f"node {number}"),
                    lmdb=self.options.lmdb,
                    settings=settings,
                )
            )
        await asyncio.gather(*(node.start() for node in self.nodes))
        await self._until_all_see_all()

    # --- clients ---

    async def _client(self, rng: Random, until: float) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(rng.expovariate(self.swarm.operations_per_second / _CLIENTS))
                if loop.time() >= until:
                    return
                self._check_so_far()
                key = b"key%d" % rng.randrange(self.swarm.keys)
                node = rng.choice(self.nodes)
                operate = self._read if rng.random() < 0.3 else self._write
                group.create_task(operate(key, node, Random(rng.random())), name="operation")  # noqa: S311 - as above

    async def _write(self, key: bytes, node: SimulatedNode, rng: Random) -> None:
        if node.node is None or node.process is None:
            self.truth.outcomes["refused"] += 1
            return
        mutation = self.truth.next_mutation(key, rng, self.swarm.delete_share)
        kind = "delete" if mutation.deleted else "put"
        try:
            version = await node.process.run(node.node.coordinator.write([mutation]))
        except (NotEnoughReplicasError, ClockDriftError, StoppingError) as error:
            self.truth.outcomes["refused"] += 1
            self.tell(f"{kind} {key!r} at {node.endpoint} refused: {error.reason}")
        except KvStoreError as error:
            self.truth.outcomes["failed"] += 1
            self.tell(f"{kind} {key!r} at {node.endpoint} failed: {error.reason}")
        except KilledError:
            self.truth.outcomes["cut off"] += 1
            self.tell(f"{kind} {key!r} at {node.endpoint} cut off")
        else:
            self.truth.acknowledged(mutation, version)
            self.truth.outcomes[kind] += 1
            self.tell(f"{kind} {key!r} at {node.endpoint} version {version}")

    async def _read(self, key: bytes, node: SimulatedNode, _rng: Random) -> None:
        if node.node is None or node.process is None:
            return
        expected = self.truth.expected(key)
        try:
            row = await node.process.run(node.node.coordinator.read(key, Consistency.QUORUM))
        except KvStoreError as error:
            self.tell(f"read {key!r} at {node.endpoint} failed: {error.reason}")
        except KilledError:
            self.tell(f"read {key!r} at {node.endpoint} cut off")
        else:
            self.truth.outcomes["read"] += 1
            self.tell(f"read {key!r} at {node.endpoint}: {'nothing' if row is None else row.version}")
            self.truth.check_read(key, row, expected, f"read at {node.endpoint}")

    # --- the end ---

    async def _heal(self) -> None:
        self.network.heal()
        self.tell("healed")
        await self._until_all_see_all()

    async def _until_all_see_all(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + _HEAL_SECONDS
        everybody = {node.endpoint for node in self.nodes}
        while True:
            seen = [
                set() if node.node is None else {one.endpoint for one in node.node.gossiper.members() if one.alive}
                for node in self.nodes
            ]
            if all(one == everybody for one in seen):
                return
            if loop.time() > until:
                raise ViolationError("never_healed", f"after {_HEAL_SECONDS:g} s nodes see {seen}")
            await asyncio.sleep(0.5)

    async def _repair_all(self) -> None:
        """Read everything at quorum; repair; then nothing differs any more, and all tombstones are purged."""
        reader = self.nodes[0]
        for key in self.truth.keys:
            await self._read(key, reader, Random(0))  # noqa: S311 - as above
        rng = self._stream("last repair")
        # Whatever was written is older then than what a repair vouches for.
        await asyncio.sleep(2 * PROPAGATION_DELAY_SECONDS)
        await repair_everything(rng.choice(self.nodes), self.tell)
        for _ in range(_PURGE_TRIES):
            last = await repair_everything(rng.choice(self.nodes), self.tell)
            if last.statistics.rows_differing:
                differing = last.statistics.rows_differing
                raise ViolationError("replicas_differ", f"{differing} rows right after a repair of everything")
            await asyncio.sleep(_PURGE_SECONDS)
            tombstones = [node.node.store.tombstone_count for node in self.nodes if node.node is not None]
            if not any(tombstones):
                return
        raise ViolationError("never_purged", f"after {_PURGE_TRIES} repairs of everything {tombstones} tombstones left")

    def _judge(self) -> None:
        self._check_so_far()
        contents = [{row.key: row for row in _rows_of(node)} for node in self.nodes]
        live = [{key: row for key, row in one.items() if not row.deleted} for one in contents]
        for node, one in zip(self.nodes[1:], live[1:], strict=True):
            for key in sorted(one.keys() ^ live[0].keys()) + [
                key for key in sorted(one) if key in live[0] and one[key] != live[0][key]
            ]:
                raise ViolationError(
                    "replicas_differ",
                    f"{key!r}: {_told(live[0].get(key))} at {self.nodes[0].endpoint}, "
                    f"{_told(one.get(key))} at {node.endpoint}",
                )
        for key in self.truth.keys:
            for node, content in zip(self.nodes, contents, strict=True):
                self.truth.check_read(key, content.get(key), self.truth.expected(key), f"at the end, {node.endpoint}")
        self.rows = len(live[0])
        self.tell(f"end: {sorted((key, row.version) for key, row in live[0].items())}")

    def _check_so_far(self) -> None:
        if self.truth.violations:
            raise self.truth.violations[0]


def _rows_of(node: SimulatedNode) -> list[Row]:
    assert node.node is not None  # noqa: S101 - healed: all run
    return node.node.store.scan()


def _told(row: Row | None) -> str:
    return "nothing" if row is None else f"version {row.version}"


def run_seed(options: SimulationOptions) -> SeedResult:
    """Run one seed; the same options always give the same result."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.CRITICAL + 1)
    try:
        return _run_seed(options)
    finally:
        logging.getLogger().setLevel(level)


def _run_seed(options: SimulationOptions) -> SeedResult:
    violation: str | None = None
    with tempfile.TemporaryDirectory(prefix="kvstore-simulation-") as directory:
        run = Run(options, Path(directory))
        with ProcessRunner(limit_seconds=options.duration_seconds + _END_SECONDS) as runner:
            try:
                runner.run(run.play())
            except ViolationError as found:
                violation = str(found)
            except ExceptionGroup as group:
                found_first = _first_violation(group)
                violation = str(found_first) if found_first else "internal_error: " + traceback.format_exc(limit=-8)
            except Exception:  # noqa: BLE001 - whatever the code under test raises is a finding of this seed
                violation = "internal_error: " + traceback.format_exc(limit=-8)
            elapsed = runner.loop.elapsed_seconds
    return SeedResult(
        seed=options.seed,
        violation=violation,
        virtual_seconds=round(elapsed, 6),
        nodes=run.swarm.nodes,
        outcomes=dict(sorted(run.truth.outcomes.items())),
        faults=run.fault_counts,
        repairs=run.repair_counts,
        rows=run.rows,
        digest=run.digest,
        command=options.command(),
        trace=run.trace if violation else [],
    )


def _first_violation(group: BaseExceptionGroup[BaseException]) -> ViolationError | None:
    for error in group.exceptions:
        if isinstance(error, ViolationError):
            return error
        if isinstance(error, BaseExceptionGroup) and (found := _first_violation(error)):
            return found
    return None
