"""No deleted row returns, over real replicas and sessions: histories of deletes on the in-memory network.

Method: three nodes and a clock that jumps. Writes and deletes reach some replicas, the rest of them later or never;
repairs run with all or some nodes, from any coordinator; nodes restart, are restored from backups, are wiped. After
each step no disk may show a row that it has seen deleted. In the end everything arrives, who is refused is wiped as the
refusal says, and each key must hold what was written to it last. ``test_antientropy_deletes_model`` runs far more
histories over the same rules without services.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

import numpy as np
import pytest
from repair_cluster import Cluster, cluster, messages, repaired

from antientropy import MemoryRowStore, RepairConfig, RepairError, RepairOptions, Row, SessionState
from antientropy.core import deletes
from antientropy.core.floors import decode_floors
from antientropy.replica import EPOCH_MARK

MARKS = (deletes.FENCE_MARK, deletes.REPAIRED_MARK, deletes.FLOORS_MARK, EPOCH_MARK)
KEYS = [b"key %d" % number for number in range(6)]
EVERYBODY = (0, 1, 2)
DELAY_SECONDS = 100.0


def version_at(seconds: float) -> int:
    return int(seconds * 1_000) << 16


CONFIG = RepairConfig(
    version_at=version_at,
    version_time=lambda version: (version >> 16) / 1_000,
    propagation_delay_seconds=DELAY_SECONDS,
    vouch_step_seconds=1.0,
    purge_interval_seconds=0.01,
    in_flight_seconds=0.0,
    lease_wait_seconds=5.0,
    replica_retries_max=0,
    rpc_timeout_seconds=2.0,
)


def copied(store: MemoryRowStore, *, with_marks: bool = True) -> MemoryRowStore:
    """A backup."""
    copy = MemoryRowStore()
    copy.apply(store.scan(), from_repair=True)
    for name in MARKS:
        mark = store.read_mark(name)
        if mark is not None and (with_marks or name == EPOCH_MARK):
            copy.write_mark(name, mark)
    return copy


@dataclass
class History:
    made: Cluster
    random: random.Random = field(default_factory=lambda: random.Random(0))
    late: list[tuple[int, Row]] = field(default_factory=list)
    backups: list[tuple[int, MemoryRowStore, dict[bytes, int]]] = field(default_factory=list)
    seen: list[dict[bytes, int]] = field(default_factory=lambda: [{}, {}, {}])
    written: dict[int, Row] = field(default_factory=dict)
    happened: list[str] = field(default_factory=list)

    def store(self, node: int) -> MemoryRowStore:
        store = self.made[node].store
        assert isinstance(store, MemoryRowStore)
        return store

    def write(self, key: bytes, *, delete: bool = False, to: tuple[int, ...] = EVERYBODY, drop: bool = False) -> Row:
        """Now; replicas that are not named get it later, or never."""
        self.made.clock.ahead += 0.01
        version = version_at(self.made.clock())
        row = Row(key, version, b"" if delete else b"%d" % version, deleted=delete)
        self.written[version] = row
        for node in to:
            self.store(node).apply([row])
        if not drop:
            self.late += [(node, row) for node in EVERYBODY if node not in to]
        self.check()
        return row

    def pass_time(self, seconds: float = 2 * DELAY_SECONDS) -> None:
        self.made.clock.ahead += seconds

    async def repair(self, coordinator: int, options: RepairOptions | None = None) -> SessionState:
        try:
            updates = await repaired(self.made[coordinator], options)
            state, said = updates[-1].state, messages(updates)
        except RepairError as error:
            state, said = SessionState.FAILED, str(error)
        self.happened.append(f"{state.value}: {said}")
        self.check()
        return state

    async def purge(self) -> int:
        """As the background does it, on every node; how many tombstones went."""
        gone = 0
        for node in self.made.nodes:
            service = node.service
            journal = await service._opened_journal()
            gone += service._purger.purge("kv", journal.repaired_parts("kv"))
        self.check()
        return gone

    async def replace(self, node: int, store: MemoryRowStore, seen: dict[bytes, int]) -> None:
        """The node's disk is another one now."""
        self.made[node].store = store
        self.seen[node] = seen
        await self.made.restart(node)

    def back_up(self, node: int) -> None:
        self.check()
        self.backups.append((node, copied(self.store(node)), dict(self.seen[node])))

    async def restore(self, number: int = -1) -> int:
        node, store, seen = self.backups.pop(number)
        await self.replace(node, store, seen)
        return node

    def last_to_know(self, node: int) -> bool:
        """Whether what was purged would be forgotten with this disk."""
        floors = [decode_floors(self.store(one).read_mark(deletes.FLOORS_MARK)) for one in EVERYBODY]
        others = [floors[one] for one in EVERYBODY if one != node]
        return bool((deletes.merged(*others) < floors[node]).any())

    def check(self) -> None:
        """No disk shows a live row that is older than what this disk has held."""
        for node in EVERYBODY:
            for row in self.store(node).scan():
                before = self.seen[node].get(row.key, 0)
                assert row.deleted or row.version >= before, f"{row} is back on {node}; {self.happened}"
                self.seen[node][row.key] = max(before, row.version)

    async def heal(self) -> None:
        """Everything arrives, who is refused is wiped, all is repaired, and nothing wrong is left."""
        self.made.network.faults = lambda _crossing: None
        self.made.ring.dead.clear()
        for node, row in self.late:
            self.store(node).apply([row])
        self.check()
        self.pass_time()
        for _ in EVERYBODY:
            if await self.repair(0) is SessionState.COMPLETED:
                break
            refused = [node for node in EVERYBODY if f"{self.made[node].endpoint} has not been" in self.happened[-1]]
            assert refused, self.happened[-1]
            for node in refused:
                await self.replace(node, MemoryRowStore(), {})
        for _ in range(3):
            self.pass_time()
            assert await self.repair(0) is SessionState.COMPLETED, self.happened[-1]
            await self.purge()
        assert self.made.equal()
        newest = {key: max(seen.get(key, 0) for seen in self.seen) for key in KEYS}
        expected = {key: self.written[version] for key, version in newest.items() if version}
        rows = self.made[0].rows()
        assert {key: row for key, row in rows.items() if not row.deleted} == {
            key: row for key, row in expected.items() if not row.deleted
        }, self.happened
        assert not any(row.deleted for row in rows.values()), "what all have seen is purged"


async def test_deleted_rows_are_purged_when_all_have_been_repaired() -> None:
    async with cluster(*[MemoryRowStore() for _ in EVERYBODY], config=CONFIG) as made:
        history = History(made)
        history.write(KEYS[0])
        history.write(KEYS[1])
        history.write(KEYS[0], delete=True, to=(1,), drop=True)
        assert await history.repair(0) is SessionState.COMPLETED
        assert await history.purge() == 0, "younger than the propagation delay"
        history.pass_time()
        for _ in range(2):
            assert await history.repair(0) is SessionState.COMPLETED
            assert [node.store.tombstone_count for node in made.nodes] == [1, 1, 1]
            history.pass_time(5)
        assert await history.repair(0) is SessionState.COMPLETED
        await history.purge()
        assert [node.store.tombstone_count for node in made.nodes] == [0, 0, 0]
        await history.heal()


async def test_a_dead_replica_keeps_tombstones_alive() -> None:
    async with cluster(*[MemoryRowStore() for _ in EVERYBODY], config=CONFIG) as made:
        history = History(made)
        history.write(KEYS[0])
        made.ring.dead.add(made[2].endpoint)
        history.write(KEYS[0], delete=True, to=(0, 1), drop=True)
        for _ in range(4):
            history.pass_time()
            assert await history.repair(0) is not SessionState.COMPLETED
            assert await history.repair(0, RepairOptions(force=True)) is SessionState.COMPLETED
            assert await history.purge() == 0
        assert history.store(0).tombstone_count == 1
        await history.heal()
        assert KEYS[0] not in made[2].rows()


async def test_late_writes_do_not_return_what_was_purged() -> None:
    async with cluster(*[MemoryRowStore() for _ in EVERYBODY], config=CONFIG) as made:
        history = History(made)
        late = history.write(KEYS[0], to=(0,), drop=True)
        delete = history.write(KEYS[1], delete=True, to=(), drop=True)
        history.write(KEYS[1])
        history.write(KEYS[0], delete=True)
        for _ in range(4):
            history.pass_time()
            assert await history.repair(1) is SessionState.COMPLETED
            await history.purge()
        assert history.store(2).get(KEYS[0]) is None
        for node in EVERYBODY:
            history.store(node).apply([late, delete])
        assert made.equal()
        assert [node.store.rows_refused for node in made.nodes] == [1, 1, 1], "the other one loses anyway"
        await history.heal()


@pytest.mark.parametrize("coordinator", EVERYBODY)
async def test_a_restored_backup_is_refused_and_told_the_way_out(coordinator: int) -> None:
    async with cluster(*[MemoryRowStore() for _ in EVERYBODY], config=CONFIG) as made:
        history = History(made)
        history.write(KEYS[0])
        history.back_up(2)
        history.write(KEYS[0], delete=True)
        for _ in range(4):
            history.pass_time()
            assert await history.repair(0) is SessionState.COMPLETED
            await history.purge()
        assert history.store(0).tombstone_count == 0
        assert await history.restore() == 2
        state = await history.repair(coordinator)
        assert state in (SessionState.PARTIAL, SessionState.FAILED)
        time = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\+00:00"
        refusal = rf"n2:1 has not been repaired since {time}, but tombstones older than {time} were purged"
        assert re.search(refusal, history.happened[-1])
        assert "Wipe its store and let repair rebuild it, or repair with --force" in history.happened[-1]
        assert KEYS[0] not in made[0].rows()
        assert KEYS[0] not in made[1].rows()
        await history.heal()
        assert KEYS[0] not in made[2].rows()


async def test_an_adopted_store_is_refused_once_something_was_purged() -> None:
    async with cluster(*[MemoryRowStore() for _ in EVERYBODY], config=CONFIG) as made:
        history = History(made)
        history.write(KEYS[0])
        history.write(KEYS[1])
        before = copied(history.store(1), with_marks=False)
        history.write(KEYS[0], delete=True)
        for _ in range(4):
            history.pass_time()
            assert await history.repair(0) is SessionState.COMPLETED
            await history.purge()
        await history.replace(1, before, {})
        assert await history.repair(0) in (SessionState.PARTIAL, SessionState.FAILED)
        assert "n1:1 has not been repaired ever" in history.happened[-1]
        assert KEYS[0] not in made[0].rows()
        await history.heal()


async def test_what_was_purged_is_known_although_all_who_purged_were_replaced() -> None:
    """And it is told by a replica that is equal to the coordinator, about a third one."""
    async with cluster(*[MemoryRowStore() for _ in EVERYBODY], config=CONFIG) as made:
        history = History(made)
        history.write(KEYS[0])
        history.write(KEYS[1])
        history.back_up(2)
        history.write(KEYS[0], delete=True)
        for _ in range(4):
            history.pass_time()
            assert await history.repair(0) is SessionState.COMPLETED
            await history.purge()
        for node in (0, 1):
            await history.replace(node, MemoryRowStore(), {})
            for _ in range(3):
                history.pass_time()
                assert await history.repair(node) is SessionState.COMPLETED
        floors = [decode_floors(history.store(node).read_mark(deletes.FLOORS_MARK)) for node in (0, 1)]
        assert all(bool(np.all(one > 0)) for one in floors)
        await history.restore()
        assert await history.repair(1) in (SessionState.PARTIAL, SessionState.FAILED)
        assert KEYS[0] not in made[1].rows()
        await history.heal()


async def test_a_forced_repair_lets_everybody_in_at_their_own_risk() -> None:
    async with cluster(*[MemoryRowStore() for _ in EVERYBODY], config=CONFIG) as made:
        history = History(made)
        history.write(KEYS[0])
        history.back_up(2)
        history.write(KEYS[0], delete=True)
        for _ in range(4):
            history.pass_time()
            assert await history.repair(0) is SessionState.COMPLETED
            await history.purge()
        await history.restore()
        history.seen = [{}, {}, {}]
        assert await history.repair(0, RepairOptions(force=True)) is SessionState.COMPLETED
        assert not made[0].rows()[KEYS[0]].deleted, "the named risk"
        assert made.equal()


async def test_births_are_recorded_and_stores_with_rows_have_none() -> None:
    full = MemoryRowStore()
    full.apply([Row(KEYS[0], 5, b"")])
    async with cluster(MemoryRowStore(), full, config=CONFIG) as made:
        empty, adopted = (node.service.peers.marks["kv"].read() for node in made.nodes)
        assert version_at(made.clock() - 2 * DELAY_SECONDS) < int(empty.repaired.min()) <= version_at(made.clock())
        assert (empty.fence == empty.repaired).all()
        assert not adopted.fence.any()
        assert not adopted.repaired.any()
        assert made[0].store.apply([Row(KEYS[1], 5, b"from before its birth")]) == 0


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(6))
async def test_histories(seed: int) -> None:
    rng = random.Random(seed)
    async with cluster(*[MemoryRowStore() for _ in EVERYBODY], config=CONFIG) as made:
        history = History(made, rng)
        for _ in range(40):
            await random_step(history, rng)
        await history.heal()


async def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without refusals, a restored backup brings a deleted row back."""
    monkeypatch.setattr(deletes, "unclean", lambda _repaired, empty, _floors: np.zeros_like(empty))
    async with cluster(*[MemoryRowStore() for _ in EVERYBODY], config=CONFIG) as made:
        history = History(made)
        history.write(KEYS[0])
        history.back_up(2)
        history.write(KEYS[0], delete=True)
        for _ in range(4):
            history.pass_time()
            await history.repair(0)
            await history.purge()
        await history.restore()
        with pytest.raises(AssertionError, match="is back on"):
            await history.repair(0)


async def random_step(history: History, rng: random.Random) -> None:
    """Anything that may happen."""
    made = history.made
    kind = rng.choices(
        ["write", "late", "time", "repair", "partial", "purge", "restart", "back up", "restore", "wipe"],
        [10, 4, 5, 9, 2, 4, 1, 1, 1, 1],
    )[0]
    node = rng.choice(EVERYBODY)
    if kind == "write":
        to = rng.choice([EVERYBODY, (0,), (1,), (2,), (0, 1), (1, 2)])
        history.write(rng.choice(KEYS), delete=rng.random() < 0.5, to=to, drop=rng.random() < 0.3)
    elif kind == "late" and history.late:
        target, row = history.late.pop(rng.randrange(len(history.late)))
        history.store(target).apply([row])
        history.check()
    elif kind == "time":
        history.pass_time(rng.choice([1.0, 60.0, 300.0]))
    elif kind == "repair":
        await history.repair(node)
    elif kind == "partial":
        made.ring.dead.add(made[(node + 1) % 3].endpoint)
        await history.repair(node, RepairOptions(force=rng.random() < 0.5 and not refusable(history)))
        made.ring.dead.clear()
    elif kind == "purge":
        await history.purge()
    elif kind == "restart":
        await made.restart(node)
    elif kind == "back up" and len(history.backups) < 3:
        history.back_up(node)
    elif kind == "restore" and history.backups and not history.last_to_know(history.backups[-1][0]):
        await history.restore()
    elif kind == "wipe" and not history.last_to_know(node):
        history.backups = [one for one in history.backups if one[0] != node]
        await history.replace(node, MemoryRowStore(), {})


def refusable(history: History) -> bool:
    """Whether force would let an unclean replica in: what it brings back is its named risk, not a fault."""
    marks = [node.service.peers.marks["kv"].read() for node in history.made.nodes]
    floors = deletes.merged(*[one.floors for one in marks])
    return any(bool((one.repaired < floors).any()) for one in marks)
