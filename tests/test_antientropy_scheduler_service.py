"""The schedule over real repair services: what it repairs is equal, recorded, and known after a restart."""

from __future__ import annotations

from pathlib import Path
from random import Random

from repair_cluster import Cluster, Members, cluster, until

from antientropy import MemoryRowStore, RepairConfig, ReplicatedRange, Row, TokenRange
from antientropy.core.schedule import SchedulerSettings
from antientropy.core.tokens import TOKEN_MAX
from antientropy.scheduler import RepairScheduler, ScheduledRepairs

SETTINGS = SchedulerSettings(period_seconds=1000.0, initial_delay_seconds=0.0, check_interval_seconds=0.02)
HALVES = (TokenRange(0, TOKEN_MAX // 2), TokenRange(TOKEN_MAX // 2 + 1, TOKEN_MAX))


def scheduler_of(nodes: Cluster, index: int) -> RepairScheduler:
    service: ScheduledRepairs = nodes[index].service
    members = Members(nodes[index].endpoint, nodes.ring)
    return RepairScheduler(
        service,
        SETTINGS,
        members,
        metrics=nodes[index].service.metrics,
        random=Random(index),
        clock=nodes.clock,
        utc_offset=lambda _: 0.0,
    )


def rows(count: int, version: int) -> list[Row]:
    return [Row(b"key %d" % number, version, b"value %d" % version) for number in range(count)]


async def test_two_nodes_repair_their_primary_ranges_and_a_restart_remembers(tmp_path: Path) -> None:
    stores = MemoryRowStore(), MemoryRowStore()
    stores[0].apply(rows(50, 1))
    stores[1].apply(rows(80, 2))

    def config(index: int) -> RepairConfig:
        return RepairConfig(data_dir=tmp_path / str(index))

    async with cluster(*stores, config=config) as nodes:
        everybody = tuple(sorted(nodes.ring.endpoints))
        nodes.ring.parts = [
            ReplicatedRange(half, everybody, nodes[number].endpoint) for number, half in enumerate(HALVES)
        ]
        schedulers = [scheduler_of(nodes, 0), scheduler_of(nodes, 1)]
        for one in schedulers:
            await one.start()
        await until(lambda: all(len(one.status().ranges) == 1 for one in schedulers))
        assert [one.status().ranges[0].token_range for one in schedulers] == list(HALVES)
        nodes.clock.ahead += 600.0
        await until(lambda: all(one.status().ranges[0].repaired_at is not None for one in schedulers))
        assert nodes.equal()
        assert len(nodes[0].rows()) == 80
        snapshot = dict(nodes[0].service.metrics.snapshot())
        assert snapshot['antientropy_scheduled_repairs_total{outcome="completed"}'] == 1
        assert snapshot['antientropy_sessions_total{keyspace="kv",state="completed"}'] == 1
        before = schedulers[0].status().ranges[0].repaired_at
        for one in schedulers:
            await one.stop()

        await nodes.restart(0)
        again = scheduler_of(nodes, 0)
        await again.start()
        await until(lambda: len(again.status().ranges) == 1)
        found = again.status().ranges[0]
        assert found.repaired_at is not None
        assert before is not None
        assert abs(found.repaired_at - before) < 5.0
        assert found.due_at > nodes.clock()
        await again.stop()
        assert nodes.held() == 0


async def test_stopping_in_the_middle_leaves_nothing_held() -> None:
    stores = MemoryRowStore(), MemoryRowStore()
    stores[1].apply(rows(3000, 2))
    async with cluster(*stores) as nodes:
        scheduler = scheduler_of(nodes, 0 if nodes[0].endpoint == min(nodes.ring.endpoints) else 1)
        await scheduler.start()
        await until(lambda: len(scheduler.status().ranges) == 1)
        nodes.clock.ahead += 600.0
        await until(lambda: scheduler.status().ranges[0].session_id != "")
        await scheduler.stop()
        await until(lambda: nodes.held() == 0)
        assert not scheduler.is_running
