"""Tombstones go when every replica has acknowledged a repair that began after them, and deleted rows stay deleted."""

from __future__ import annotations

import pytest
from repair_cluster import Cluster, Store, cluster, collected, messages, repaired, rows_named, until

from antientropy import (
    ConfigError,
    MemoryRowStore,
    RepairConfig,
    RepairError,
    RepairMode,
    RepairOptions,
    RepairUpdate,
    Row,
    SessionState,
)
from antientropy.core.deletes import PurgeMode


def version_at(seconds: float) -> int:
    return int(seconds * 1_000)


def version_time(version: int) -> float:
    return version / 1_000


def config(purge: PurgeMode = PurgeMode.REPAIR, **changes: float) -> RepairConfig:
    return RepairConfig(
        version_at=version_at,
        version_time=version_time,
        propagation_delay_seconds=600,
        purge_interval_seconds=0.02,
        purge=purge,
        in_flight_waits_max=0,
        **changes,  # type: ignore[arg-type] # numbers of any kind
    )


def deleted_everywhere(made: Cluster, count: int = 50) -> int:
    """Rows and then their tombstones on all replicas, an hour ago. Returns the version of the tombstones."""
    version = version_at(made.clock() - 3_600)
    for node in made.nodes:
        # An hour is the past, which is closed to all but repair.
        node.store.apply(rows_named(200, version=version - 1), from_repair=True)
        tombs = [Row(b"key%d" % number, version, b"", deleted=True) for number in range(count)]
        node.store.apply(tombs, from_repair=True)
    return version


def tombstones(made: Cluster) -> list[int]:
    return [node.store.tombstone_count for node in made.nodes]


async def settled(made: Cluster) -> None:
    """Until the purge of every node had a turn with nothing left to do: its floors and its store stay as they are."""
    for node in made.nodes:
        reads = 0
        purger = node.service._purger
        purge = purger.purge

        def counted(*arguments, purge=purge):  # type: ignore[no-untyped-def] # a spy
            nonlocal reads
            gone = purge(*arguments)
            reads += gone == 0
            return gone

        purger.purge = counted  # type: ignore[method-assign]
        await until(lambda: reads >= 3)  # noqa: B023 - waited for at once
        purger.purge = purge  # type: ignore[method-assign]


@pytest.mark.parametrize("replicas", [2, 3])
async def test_tombstones_go_after_all_have_acknowledged(replicas: int) -> None:
    stores: list[Store] = [MemoryRowStore() for _ in range(replicas)]
    async with cluster(*stores, config=config()) as made:
        deleted_everywhere(made)
        others = replicas - 1
        for expected in ([50] * replicas, [0] + [50] * others, [0] * replicas):
            # The first repair vouches; in the second one the others acknowledge it, and the coordinator knows; with the
            # third they know.
            updates = await repaired(made[0])
            assert updates[-1].state is SessionState.COMPLETED
            assert updates[-1].statistics.round_trips == 1
            await settled(made)
            await until(lambda: tombstones(made) == expected)  # noqa: B023 - waited for at once
            made.clock.ahead += 120
        assert made.equal()
        # A repair still costs one round trip.
        assert (await repaired(made[1]))[-1].statistics.round_trips == 1


async def test_a_deleted_row_that_comes_late_is_refused_after_the_purge() -> None:
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    async with cluster(*stores, config=config()) as made:
        version = deleted_everywhere(made)
        for _ in range(3):
            await repaired(made[0])
            made.clock.ahead += 120
        await until(lambda: tombstones(made) == [0, 0])
        assert stores[0].apply([Row(b"key3", version - 1, b"back")]) == 0
        assert stores[0].rows_refused == 1


async def test_a_replica_that_is_down_keeps_all_tombstones_alive() -> None:
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore(), MemoryRowStore()]
    async with cluster(*stores, config=config()) as made:
        deleted_everywhere(made)
        made.ring.dead.add(made.ring.endpoints[2])
        for options in (RepairOptions(), RepairOptions(force=True), RepairOptions(peers=(made.ring.endpoints[1],))):
            for _ in range(4):
                await repaired(made[0], options)
                made.clock.ahead += 120
        await settled(made)
        assert tombstones(made) == [50, 50, 50]
        assert (await made[0].service.summarize("kv"))[0].repaired_at is None


async def test_an_equal_replica_is_not_enough_while_another_brings_something_new() -> None:
    """The replica that is equal at first records nothing in that session's name before all are settled."""
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore(), MemoryRowStore()]
    async with cluster(*stores, config=config()) as made:
        version = deleted_everywhere(made)
        stores[2].apply([Row(b"key100", version, b"", deleted=True)], from_repair=True)
        born = [node.service.peers.marks["kv"].read().repaired for node in made.nodes]
        updates = await repaired(made[0])
        assert updates[-1].statistics.rows_moved == 2
        marks = [node.service.peers.marks["kv"].read() for node in made.nodes]
        assert marks[0].repaired.min() > version
        assert (marks[1].repaired == born[1]).all()
        assert (marks[2].repaired == born[2]).all()
        made.clock.ahead += 120
        await repaired(made[0])
        marks = [node.service.peers.marks["kv"].read() for node in made.nodes]
        assert all(one.repaired.min() > version for one in marks)


async def test_modes_that_are_no_repair_vouch_for_nothing() -> None:
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    async with cluster(*stores, config=config()) as made:
        deleted_everywhere(made)
        born = made[0].service.peers.marks["kv"].read().repaired
        for mode in (RepairMode.PREVIEW, RepairMode.VALIDATE, RepairMode.PULL):
            await repaired(made[0], RepairOptions(mode=mode))
        assert (await made[0].service.summarize("kv"))[0].repaired_at is None
        assert (made[0].service.peers.marks["kv"].read().repaired == born).all()


async def test_a_replica_that_was_away_while_others_purged_is_refused_with_the_way_out() -> None:
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    async with cluster(*stores, config=config()) as made:
        deleted_everywhere(made)
        for _ in range(3):
            await repaired(made[0])
            made.clock.ahead += 120
        await until(lambda: tombstones(made) == [0, 0])
        # A store with rows of before and without marks takes the place of the second one.
        old = MemoryRowStore()
        old.apply(rows_named(200, version=1))
        made.nodes[1].store = old
        await made.restart(1)
        for coordinator in (0, 1):
            updates = await repaired(made[coordinator]) if coordinator == 0 else await failing(made)
            assert updates[-1].state is SessionState.FAILED
            assert "Wipe its store" in messages(updates)
        assert made[0].rows().keys() == {b"key%d" % number for number in range(50, 200)}
        forced = await repaired(made[0], RepairOptions(force=True))
        assert forced[-1].state is SessionState.COMPLETED, messages(forced)
        assert made.equal()


async def failing(made: Cluster) -> list[RepairUpdate]:
    updates: list[RepairUpdate] = []
    with pytest.raises(RepairError, match="Wipe its store"):
        await collected(made[1].service.repair("kv"), updates)
    return updates


async def test_purge_by_time() -> None:
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    async with cluster(*stores, config=config(PurgeMode.TIME, gc_grace_seconds=7_200)) as made:
        deleted_everywhere(made)
        await settled(made)
        assert tombstones(made) == [50, 50]
        made.clock.ahead += 7_200
        await until(lambda: tombstones(made) == [0, 0])
        # One more where a replica has not purged as far as the other yet.
        assert (await repaired(made[0]))[-1].statistics.round_trips <= 2
    with pytest.raises(ConfigError, match="version_at"):
        RepairConfig(purge=PurgeMode.TIME)


async def test_nothing_is_purged_without_permission() -> None:
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    async with cluster(*stores, config=config(PurgeMode.NEVER)) as made:
        deleted_everywhere(made)
        for _ in range(4):
            await repaired(made[0])
            made.clock.ahead += 120
        await settled(made)
        assert tombstones(made) == [50, 50]


async def test_purging_goes_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antientropy.purging.PURGE_ROWS_PER_SLICE_MAX", 20)
    stores: list[Store] = [MemoryRowStore(), MemoryRowStore()]
    slices: list[int] = []
    async with cluster(*stores, config=config()) as made:
        deleted_everywhere(made)
        purge = stores[0].purge

        def counted(floors, rows_max):  # type: ignore[no-untyped-def] # a spy
            slices.append(rows_max)
            return purge(floors, rows_max)

        monkeypatch.setattr(stores[0], "purge", counted)
        for _ in range(3):
            await repaired(made[0])
            made.clock.ahead += 120
        await until(lambda: tombstones(made) == [0, 0])
        assert len([one for one in slices if one == 20]) >= 3
