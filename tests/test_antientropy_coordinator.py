"""Whole repairs over the in-memory network: what moves, what is told, and what breaks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import aclosing
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repair_cluster import (
    FULL,
    Cluster,
    Store,
    check,
    cluster,
    collected,
    copies_needed,
    diverge,
    grpc_cluster,
    messages,
    repaired,
    rows_named,
    until,
)

from antientropy import (
    MemoryRowStore,
    RepairConfig,
    RepairMode,
    RepairOptions,
    RepairRequestError,
    RepairRunningError,
    RepairUpdate,
    ReplicatedRange,
    Row,
    RowStore,
    SessionState,
    StoreFullError,
    Strategy,
    TokenRange,
    UnknownKeyspaceError,
)
from antientropy.core.tokens import TOKEN_MAX
from antientropy.transport.memory import Crossing, Fault, FaultKind

HLC = 2**16


def version_at(seconds: float) -> int:
    return int(seconds * 1000) * HLC


def version_time(version: int) -> float:
    return version / HLC / 1000


def stores_of(count: int, rows: int = 3_000) -> list[Store]:
    stores: list[Store] = [MemoryRowStore() for _ in range(count)]
    for store in stores:
        store.apply(rows_named(rows))
    return stores


# --- what moves ---


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("replicas", [2, 3, 4])
async def test_replicas_become_equal_and_exactly_what_differs_moves(replicas: int, strategy: Strategy) -> None:
    stores = stores_of(replicas)
    diverge(stores, replicas, 400)
    async with cluster(*stores) as made:
        differing, copies = copies_needed(made.nodes)
        last = (await repaired(made[0], RepairOptions(strategy=strategy)))[-1]
        assert (last.state, last.progress) == (SessionState.COMPLETED, 1.0)
        statistics = last.statistics
        assert (statistics.rows_differing, statistics.rows_moved, statistics.rows_optimal) == (
            differing,
            copies,
            copies,
        )
        assert made.equal()
        assert made.held() == 0
        if strategy is not Strategy.AUTO:
            assert set(statistics.strategies) == {strategy.value}
        assert statistics.pairs_compared == replicas - 1
        assert statistics.pairs_equal == 0
        assert last.rows_to_move == copies


async def test_replicas_become_equal_over_grpc() -> None:
    stores = stores_of(3)
    diverge(stores, 7, 300)
    async with grpc_cluster(*stores) as made:
        differing, copies = copies_needed(made.nodes)
        statistics = (await repaired(made[0]))[-1].statistics
        assert (statistics.rows_differing, statistics.rows_moved, statistics.rows_optimal) == (
            differing,
            copies,
            copies,
        )
        assert made.equal()
        assert made.held() == 0
        again = (await repaired(made[2]))[-1].statistics
        assert (again.round_trips, again.requests, again.find_bytes < 200) == (1, 2, True)


async def test_equal_replicas_cost_one_round_trip_each_and_nothing_is_opened() -> None:
    async with cluster(*stores_of(3)) as made:
        methods: list[str] = []

        def note(crossing: Crossing) -> None:
            if crossing.is_request:
                methods.append(crossing.method)

        made.network.faults = note
        last = (await repaired(made[0]))[-1]
        assert methods == ["Compare", "Compare"]
        assert (last.statistics.round_trips, last.statistics.requests) == (1, 2)
        assert (last.statistics.pairs_compared, last.statistics.pairs_equal) == (2, 2)
        assert last.statistics.find_bytes <= 2 * 100
        assert last.progress == 1.0
        assert made.held() == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.sampled_from(list(Strategy)), st.integers(2, 4))
def test_any_strategy_and_any_interleaving_of_writes_end_equal(seed: int, strategy: Strategy, replicas: int) -> None:
    """Writes that reach some replicas only happen at random messages of a repair; another repair then ends it."""
    # A seed: how many numbers are drawn depends on how threads meet, which hypothesis would hold against the test.
    rng = random.Random(seed)
    stores = stores_of(replicas, rng.choice([0, 10, 300]))
    diverge(stores, rng.randrange(10**6), rng.randrange(100), keys=300)

    async def run() -> None:
        async with cluster(*stores, config=RepairConfig(in_flight_seconds=0.01)) as made:

            def write(_crossing: Crossing) -> None:
                if rng.random() < 0.2:
                    diverge(stores, rng.randrange(10**6), rng.randrange(1, 4), keys=300)

            made.network.faults = write
            updates = await repaired(made[rng.randrange(replicas)], RepairOptions(strategy=strategy))
            assert updates[-1].state is SessionState.COMPLETED, messages(updates)
            made.network.faults = lambda _crossing: None
            _, copies = copies_needed(made.nodes)
            last = (await repaired(made[0], RepairOptions(strategy=strategy)))[-1]
            assert made.equal()
            assert last.statistics.rows_moved == last.statistics.rows_optimal == copies
            assert made.held() == 0

    asyncio.run(run())


async def test_rows_go_straight_from_their_holder_to_who_lacks_them() -> None:
    stores = stores_of(3)
    stores[1].apply(rows_named(200, version=5))
    async with cluster(*stores) as made:
        await repaired(made[0])
        network, names = made.network.message_bytes, made.ring.endpoints
        assert network[names[1], names[2]] > 200 * 5
        assert network[names[2], names[1]] < 200
        assert made.equal()


async def test_a_broken_way_between_two_replicas_is_gone_around() -> None:
    stores = stores_of(3)
    stores[1].apply(rows_named(200, version=5))
    async with cluster(*stores, config=RepairConfig(rpc_timeout_seconds=0.1)) as made:
        names = made.ring.endpoints

        def cut(crossing: Crossing) -> Fault | None:
            return Fault(FaultKind.DROP) if (crossing.origin, crossing.destination) == (names[1], names[2]) else None

        made.network.faults = cut
        updates = await repaired(made[0])
        assert updates[-1].state is SessionState.COMPLETED, messages(updates)
        assert "they will go another way" in messages(updates)
        assert made.equal()
        assert updates[-1].statistics.rows_moved == 400


async def test_equal_versions_with_different_content_are_found_decided_and_counted() -> None:
    stores = stores_of(3)
    stores[0].apply([Row(b"key7", 9, b"left"), Row(b"key8", 9, b"left")])
    stores[1].apply([Row(b"key7", 9, b"right"), Row(b"key8", 9, b"", deleted=True)])
    async with cluster(*stores) as made:
        _, copies = copies_needed(made.nodes)
        statistics = (await repaired(made[0]))[-1].statistics
        assert made.equal()
        assert made[0].rows()[b"key8"].deleted
        assert statistics.rows_conflicting == 2
        assert statistics.rows_moved == statistics.rows_optimal
        assert statistics.rows_moved <= copies + 2


async def test_part_of_the_token_line_is_repaired_and_the_rest_left_alone() -> None:
    stores = stores_of(2, 0)
    rows = rows_named(1_000)
    stores[0].apply(rows[:500])
    stores[1].apply(rows[400:])
    part = TokenRange(TOKEN_MAX // 3 + 12_345, TOKEN_MAX // 2 + 999)
    async with cluster(*stores) as made:
        last = (await repaired(made[0], RepairOptions(token_ranges=(part,))))[-1]
        missing = [row for row in rows if part.contains(row.token) and row not in rows[400:500]]
        assert last.statistics.rows_moved == len(missing) > 50
        assert stores[0].row_count == 500 + len([row for row in missing if row in rows[500:]])
        again = (await repaired(made[0], RepairOptions(token_ranges=(part,))))[-1]
        assert again.statistics.round_trips == 1


# --- units ---


@pytest.mark.parametrize("jobs", [1, 3])
async def test_many_differences_are_repaired_part_by_part(jobs: int) -> None:
    stores = stores_of(3, 0)
    for number, store in enumerate(stores):
        store.apply(rows_named(2_000, start=number * 1_000))
    async with cluster(*stores, config=RepairConfig(unit_rows_max=300)) as made:
        _, copies = copies_needed(made.nodes)
        updates = await repaired(made[0], RepairOptions(jobs=jobs))
        last = updates[-1]
        assert last.state is SessionState.COMPLETED, messages(updates)
        assert last.statistics.rows_moved == last.statistics.rows_optimal == copies
        assert made.equal()
        seen = {update.progress for update in updates}
        assert len(seen) > 10
        assert any(update.eta_seconds for update in updates)
        assert made.held() == 0


@pytest.mark.parametrize("mode", [RepairMode.PREVIEW, RepairMode.PULL, RepairMode.VALIDATE])
async def test_differences_that_stay_on_purpose_do_not_keep_a_repair_in_parts_going(mode: RepairMode) -> None:
    stores = stores_of(2, 0)
    stores[0].apply(rows_named(2_000))
    async with cluster(*stores, config=RepairConfig(unit_rows_max=300)) as made:
        async with asyncio.timeout(30):
            last = (await repaired(made[0], RepairOptions(mode=mode)))[-1]
        assert (last.state, last.progress, last.statistics.rows_moved) == (SessionState.COMPLETED, 1.0, 0)
        if mode is RepairMode.PREVIEW:
            assert sum(flow.rows for flow in last.previews) == last.statistics.rows_differing == 2_000
            assert last.message == "Preview completed: 2000 rows differ, nothing was moved"
        if mode is RepairMode.VALIDATE:
            assert last.message == "Validation completed: 1 of 1 pairs of replicas differ"
        assert (await made[0].service.summarize("kv"))[0].repaired_at is None


async def test_rows_that_a_pause_left_are_not_counted_twice() -> None:
    stores = stores_of(2, 0)
    stores[0].apply(rows_named(2_000, value=b"x" * 1_000))
    async with cluster(*stores) as made:
        pausing: list[asyncio.Task[None]] = []

        async def rest() -> None:
            [session] = await made[0].service.sessions()
            await made[0].service.pause(session.session_id)
            async for _ in made[0].service.resume(session.session_id):
                pass

        def pause(crossing: Crossing) -> None:
            if crossing.method == "Push" and not pausing:
                pausing.append(asyncio.create_task(rest()))

        made.network.faults = pause
        last = (await repaired(made[0]))[-1]
        await pausing[0]
        assert last.state is SessionState.COMPLETED
        assert last.rows_to_move == last.statistics.rows_moved >= 2_000
        assert made.equal()


async def test_a_unit_is_bounded_in_bytes_too() -> None:
    stores = stores_of(2, 0)
    stores[0].apply(rows_named(200, value=b"x" * 1_000))
    async with cluster(*stores, config=RepairConfig(unit_bytes_max=50_000)) as made:
        updates = await repaired(made[0])
        assert "repairing it in" in messages(updates)
        assert made.equal()


# --- in-flight writes ---


async def test_rows_that_are_being_written_are_left_to_their_writes() -> None:
    config = RepairConfig(version_at=version_at, version_time=version_time, in_flight_seconds=0.3)
    stores = stores_of(2)
    async with cluster(*stores, config=config) as made:
        young = [Row(b"new%d" % number, version_at(made.clock()), b"v") for number in range(5)]
        old = Row(b"old", version_at(made.clock() - 10), b"v")
        stores[0].apply([*young, old])
        moved: list[bytes] = []

        def arrive(crossing: Crossing) -> None:
            if crossing.is_request and crossing.method == "Push":
                moved.append(crossing.data)
                stores[1].apply(young)

        made.network.faults = arrive
        last = (await repaired(made[0]))[-1]
        assert last.state is SessionState.COMPLETED
        assert len(moved) == 1
        assert (last.statistics.rows_moved, last.statistics.rows_differing, last.statistics.rows_in_flight) == (1, 1, 5)
        assert made.equal()


async def test_a_row_that_never_arrives_by_its_write_moves_when_it_is_old_enough() -> None:
    config = RepairConfig(version_at=version_at, version_time=version_time, in_flight_seconds=0.05)
    stores = stores_of(2)
    async with cluster(*stores, config=config) as made:
        stores[0].apply([Row(b"new", version_at(made.clock()), b"v")])
        last = (await repaired(made[0]))[-1]
        assert (last.statistics.rows_moved, last.statistics.rows_in_flight) == (1, 0)
        assert made.equal()


async def test_writes_without_end_do_not_hold_a_repair_up() -> None:
    config = RepairConfig(
        version_at=version_at, version_time=version_time, in_flight_seconds=0.02, in_flight_waits_max=3
    )
    stores = stores_of(2)
    async with cluster(*stores, config=config) as made:
        count = 0

        def write(crossing: Crossing) -> None:
            nonlocal count
            count += 1
            stores[1].apply([Row(b"w%d" % count, version_at(made.clock()), b"v")])

        made.network.faults = write
        updates = await repaired(made[0])
        assert updates[-1].state is SessionState.COMPLETED
        assert "got new writes during this repair" in messages(updates)


async def test_a_version_of_a_clock_far_ahead_is_not_waited_for() -> None:
    config = RepairConfig(version_at=version_at, version_time=version_time, in_flight_seconds=30)
    stores = stores_of(2)
    async with cluster(*stores, config=config) as made:
        stores[0].apply([Row(b"ahead", version_at(made.clock() + 10_000), b"v")])
        assert (await repaired(made[0]))[-1].statistics.rows_moved == 1
        assert made.equal()


async def test_a_row_that_a_foreground_write_changes_before_it_moves_does_not_travel() -> None:
    stores = stores_of(2)
    stores[1].apply([Row(b"key5", 2, b"theirs")])
    stores[0].apply([Row(b"key6", 2, b"ours"), Row(b"key9", 2, b"ours")])
    async with cluster(*stores) as made:
        travelled: list[str] = []

        def overtake(crossing: Crossing) -> None:
            if crossing.is_request and crossing.method == "Locate":
                for store in stores:
                    store.apply([Row(b"key5", 3, b"new"), Row(b"key6", 3, b"new")])
            if crossing.is_request and crossing.method in ("Fetch", "Push"):
                travelled.append(crossing.method)

        made.network.faults = overtake
        statistics = (await repaired(made[0]))[-1].statistics
        assert travelled == ["Push"]
        assert (statistics.rows_moved, statistics.rows_optimal) == (1, 1)
        assert statistics.rows_in_flight == 2
        assert made.equal()


# --- modes ---


async def test_a_preview_tells_exactly_what_a_repair_then_does_and_moves_nothing() -> None:
    stores = stores_of(3)
    diverge(stores, 3, 300)
    async with cluster(*stores) as made:
        before = [node.rows() for node in made.nodes]
        differing, copies = copies_needed(made.nodes)
        last = (await repaired(made[0], RepairOptions(mode=RepairMode.PREVIEW)))[-1]
        assert [node.rows() for node in made.nodes] == before
        assert last.state is SessionState.COMPLETED
        assert last.statistics.rows_differing == differing
        assert sum(flow.rows for flow in last.previews) == copies
        winners = {
            key: max((rows[key] for rows in before if key in rows), key=lambda row: (row.version, row.digest))
            for key in set().union(*before)
        }
        by_name = dict(zip(made.ring.endpoints, before, strict=True))
        for target, rows in by_name.items():
            lacking = [row for key, row in winners.items() if rows.get(key) != row]
            flows = [flow for flow in last.previews if flow.target == target]
            assert sum(flow.rows for flow in flows) == len(lacking)
            assert sum(flow.row_bytes for flow in flows) == sum(len(row.key) + len(row.value) for row in lacking)
            assert sum(flow.tombstones for flow in flows) == sum(row.deleted for row in lacking)
            for flow in flows:
                assert flow.source != target
                assert len(flow.first_keys) == min(10, flow.rows)
                assert all(by_name[flow.source][key] == winners[key] for key in flow.first_keys)
        assert made.held() == 0


async def test_a_peer_that_is_lost_during_a_preview_fails_alone() -> None:
    stores = stores_of(3)
    diverge(stores, 3, 300)
    async with cluster(*stores, config=RepairConfig(replica_retries_max=0)) as made:
        names = made.ring.endpoints

        def die(crossing: Crossing) -> Fault | None:
            lost = crossing.method == "Fetch" and crossing.destination == names[2]
            return Fault(FaultKind.KILL) if lost else None

        made.network.faults = die
        _, copies = copies_needed(made.nodes[:2])
        updates = await repaired(made[0], RepairOptions(mode=RepairMode.PREVIEW))
        assert updates[-1].state is SessionState.PARTIAL
        assert sum(flow.rows for flow in updates[-1].previews) == copies
        assert {flow.source for flow in updates[-1].previews} == set(names[:2])


async def test_validation_compares_parts_only() -> None:
    stores = stores_of(2, 60_000)
    changed = rows_named(3, version=2)
    stores[1].apply(changed)
    async with cluster(*stores) as made:
        updates = await repaired(made[0], RepairOptions(mode=RepairMode.VALIDATE))
        parts = sorted({row.token >> 56 for row in changed})
        assert f"differ in {len(parts)} of 256 parts" in messages(updates)
        assert ", ".join(map(str, parts)) in messages(updates)
        assert updates[-1].statistics.round_trips == 2
        assert (updates[-1].statistics.pairs_compared, updates[-1].statistics.pairs_equal) == (1, 0)
        assert updates[-1].statistics.rows_moved == 0
        assert made[0].rows()[b"key1"].version == 1
        assert made.held() == 0


async def test_pull_brings_rows_to_the_coordinator_only() -> None:
    stores = stores_of(3)
    diverge(stores, 11, 300)
    async with cluster(*stores) as made:
        others = [node.rows() for node in made.nodes[1:]]
        last = (await repaired(made[0], RepairOptions(mode=RepairMode.PULL)))[-1]
        assert last.state is SessionState.COMPLETED
        assert [node.rows() for node in made.nodes[1:]] == others
        everything = [made[0].rows(), *others]
        for key in set().union(*others):
            newest = max((rows[key] for rows in everything if key in rows), key=lambda row: (row.version, row.digest))
            assert made[0].rows()[key] == newest
        assert last.statistics.rows_moved == last.statistics.rows_optimal > 50


async def test_full_builds_every_index_anew_first() -> None:
    stores = stores_of(2)
    async with cluster(*stores) as made:
        replicas = [node.service._replicas["kv"] for node in made.nodes]
        epochs = [replica.epoch for replica in replicas]
        updates = await repaired(made[0], RepairOptions(full=True))
        assert updates[-1].state is SessionState.COMPLETED
        assert [replica.epoch for replica in replicas] == [epoch + 1 for epoch in epochs]


async def test_trace_tells_every_request() -> None:
    stores = stores_of(2)
    stores[0].apply(rows_named(3, version=2))
    async with cluster(*stores) as made:
        updates = await repaired(made[0], RepairOptions(trace=True))
        traced = [update for update in updates if update.trace]
        assert len(traced) == updates[-1].statistics.requests
        assert any("Push to n1:1" in update.message and "bytes" in update.message for update in traced)
        assert not [update for update in await repaired(made[0]) if update.trace]


# --- who takes part ---


async def test_chosen_peers_data_centres_and_dead_replicas() -> None:
    async with cluster(*stores_of(4, 10)) as made:
        names = made.ring.endpoints
        made.ring.datacenters = {names[0]: "a", names[1]: "a", names[2]: "b", names[3]: "b"}
        made[0].store.apply([Row(b"new", 1, b"")])

        async def reached(options: RepairOptions) -> set[str]:
            seen: set[str] = set()
            made.network.faults = lambda crossing: seen.add(crossing.destination)
            assert (await repaired(made[0], options))[-1].state is SessionState.COMPLETED
            return seen - {names[0]}

        assert await reached(RepairOptions(peers=(names[3],))) == {names[3]}
        assert await reached(RepairOptions(datacenters=("a",))) == {names[1]}
        assert await reached(RepairOptions()) == set(names[1:])
        made.ring.dead.add(names[2])
        assert await reached(RepairOptions(force=True)) == {names[1], names[3]}
        updates = await repaired(made[0])
        assert updates[-1].state is SessionState.PARTIAL
        assert f"Endpoint {names[2]} is not alive" in messages(updates)
        assert names[2] in updates[-1].message


async def test_primary_ranges_only_and_neighbours_with_the_same_replicas_are_one() -> None:
    async with cluster(*stores_of(2, 500)) as made:
        both = tuple(made.ring.endpoints)
        cuts = [0, 2**62, 2**63, 2**63 + 2**62, 2**64]
        made.ring.parts = [
            ReplicatedRange(TokenRange(first, last - 1), both, both[number % 2])
            for number, (first, last) in enumerate(pairwise(cuts))
        ]
        assert (await repaired(made[0]))[-1].statistics.requests == 1
        made[1].store.apply(rows_named(500, version=2))
        last = (await repaired(made[0], RepairOptions(primary_only=True)))[-1]
        assert last.statistics.pairs_compared == 2
        for row in made[0].store.scan():
            assert row.version == (2 if (row.token >> 62) % 2 == 0 else 1)


async def test_wrong_requests() -> None:
    async with cluster(*stores_of(2, 1)) as made:
        service, names = made[0].service, made.ring.endpoints
        half = TokenRange(0, 2**63)
        made.ring.parts = [ReplicatedRange(half, tuple(names), names[1])]
        for options, words in (
            (RepairOptions(peers=("stranger:1",)), "no other replica of kv"),
            (RepairOptions(datacenters=("mars",)), "data centre mars"),
            (RepairOptions(token_ranges=(TokenRange(5, 2**63 + 1),)), "not held by this node"),
            (RepairOptions(token_ranges=(TokenRange(5, 9), TokenRange(9, 10))), "overlap"),
            (RepairOptions(primary_only=True), "no primary range"),
            (RepairOptions(jobs=0), "0 jobs"),
            (RepairOptions(jobs=5), "5 jobs"),
        ):
            with pytest.raises(RepairRequestError, match=words):
                await anext(service.repair("kv", options))
        with pytest.raises(UnknownKeyspaceError, match="there is: kv"):
            await anext(service.repair("other"))
        with pytest.raises(RepairRequestError, match="not known"):
            await anext(service.resume("nonsense"))
        with pytest.raises(RepairRequestError, match="not running"):
            await service.pause("nonsense")
        with pytest.raises(RepairRequestError, match="not known"):
            await service.cancel("nonsense")
        assert await service.sessions(active_only=False) == []


# --- what breaks ---


async def test_a_replica_that_dies_fails_alone_and_is_tried_again_when_it_is_back() -> None:
    stores = stores_of(3)
    diverge(stores, 21, 300)
    config = RepairConfig(replica_retry_seconds=0.05, rpc_timeout_seconds=0.5)
    async with cluster(*stores, config=config) as made:
        killed = False

        def die(crossing: Crossing) -> Fault | None:
            nonlocal killed
            if not killed and crossing.method == "Fetch" and crossing.destination == made.ring.endpoints[2]:
                killed = True
                return Fault(FaultKind.KILL)
            return None

        made.network.faults = die

        async def bring_back() -> None:
            await until(lambda: killed)
            await made.restart(2)

        back = asyncio.create_task(bring_back())
        updates = await repaired(made[0])
        await back
        assert updates[-1].state is SessionState.COMPLETED, messages(updates)
        assert f"Repair with {made.ring.endpoints[2]} failed" in messages(updates)
        assert made.equal()
        assert updates[-1].statistics.rows_moved >= updates[-1].statistics.rows_optimal > 100


async def test_a_replica_that_stays_dead_makes_the_repair_partial() -> None:
    stores = stores_of(3)
    diverge(stores, 22, 300)
    config = RepairConfig(replica_retry_seconds=0.01, replica_retries_max=2, version_at=version_at)
    async with cluster(*stores, config=config) as made:
        made.network.kill(made.ring.endpoints[2])
        updates = await repaired(made[0])
        assert updates[-1].state is SessionState.PARTIAL
        assert made.ring.endpoints[2] in updates[-1].message
        assert "cannot be reached" in messages(updates)
        assert made[0].rows() == made[1].rows()
        assert (await made[0].service.summarize("kv"))[0].repaired_at is None
        made.network.kill(made.ring.endpoints[1])
        updates = await repaired(made[0])
        assert updates[-1].state is SessionState.FAILED
        assert "no replica took part" in updates[-1].message
        assert made[0].held == 0


@pytest.mark.parametrize("method", ["Compare", "Locate", "Fetch", "Push", "Send"])
@pytest.mark.parametrize("kind", [FaultKind.KILL, FaultKind.DROP])
async def test_a_replica_that_is_lost_at_any_call_fails_alone(method: str, kind: FaultKind) -> None:
    stores = stores_of(3)
    diverge(stores, 23, 200)
    config = RepairConfig(replica_retries_max=0, rpc_timeout_seconds=0.05, stream_timeout_seconds=0.2)
    async with cluster(*stores, config=config) as made:
        lost = made.ring.endpoints[2]
        silent = False

        def die(crossing: Crossing) -> Fault | None:
            nonlocal silent
            silent = silent or (crossing.method == method and crossing.destination == lost)
            return Fault(kind) if silent and lost == crossing.destination else None

        made.network.faults = die
        updates = await repaired(made[0])
        assert silent
        assert updates[-1].state is SessionState.PARTIAL, messages(updates)
        assert made[0].rows() == made[1].rows()
        assert made[0].held == made[1].held == 0


@pytest.mark.parametrize("seed", range(6))
async def test_dropped_delayed_repeated_and_reordered_messages_change_nothing(seed: int) -> None:
    rng = random.Random(seed)
    stores = stores_of(3, 500)
    diverge(stores, seed, 200, keys=600)
    config = RepairConfig(rpc_timeout_seconds=0.05, stream_timeout_seconds=1, replica_retry_seconds=0.01)
    async with cluster(*stores, config=config) as made:

        def disturb(_crossing: Crossing) -> Fault | None:
            if rng.random() < 0.85:
                return None
            kinds = (FaultKind.DROP, FaultKind.DELAY, FaultKind.DUPLICATE, FaultKind.REORDER, FaultKind.REPLAY)
            return Fault(rng.choice(kinds), rng.random() * 0.02)

        made.network.faults = disturb
        updates = await repaired(made[0])
        assert updates[-1].state in (SessionState.COMPLETED, SessionState.PARTIAL), messages(updates)
        made.network.faults = lambda _crossing: None
        last = (await repaired(made[0]))[-1]
        assert last.state is SessionState.COMPLETED
        assert made.equal()
        await until(lambda: made[0].held == 0)


async def test_the_own_store_failing_ends_the_repair() -> None:
    class FullStore(MemoryRowStore):
        def apply(self, rows: Iterable[Row], *, from_repair: bool = False) -> int:
            raise StoreFullError("no space left")

    one, other = FullStore(), MemoryRowStore()
    other.apply(rows_named(10))
    async with cluster(one, other) as made:
        updates: list[RepairUpdate] = []
        with pytest.raises(StoreFullError):
            await collected(made[0].service.repair("kv"), updates)
        assert updates[-1].state is SessionState.FAILED
        assert made.held() == 0
        [session] = await made[0].service.history()
        assert "no space left" in session.detail


async def test_a_peer_whose_store_is_full_fails_alone() -> None:
    class FullStore(MemoryRowStore):
        def apply(self, rows: Iterable[Row], *, from_repair: bool = False) -> int:
            raise StoreFullError("no space left")

    stores = [MemoryRowStore(), FullStore(), MemoryRowStore()]
    stores[0].apply(rows_named(10))
    async with cluster(*stores, config=RepairConfig(replica_retries_max=0)) as made:
        updates = await repaired(made[0])
        assert updates[-1].state is SessionState.PARTIAL
        assert "no space left" in messages(updates)
        assert made[2].rows() == made[0].rows()


async def test_rows_that_do_not_take_fail_clearly_after_a_rebuild() -> None:
    class Forgetful(MemoryRowStore):
        def apply(self, rows: Iterable[Row], *, from_repair: bool = False) -> int:
            return 0

    one, other = MemoryRowStore(), Forgetful()
    one.apply(rows_named(10))
    async with cluster(one, other, config=RepairConfig(replica_retries_max=0)) as made:
        updates = await repaired(made[0])
        assert updates[-1].state is SessionState.FAILED
        assert "rows that were moved differ as before: building the index anew" in messages(updates)
        assert "check the disks" in messages(updates)


async def test_an_index_that_has_drifted_is_rebuilt_and_the_repair_completes() -> None:
    stores = stores_of(2, 100)
    async with cluster(*stores) as made:
        replica = made[1].service._replicas["kv"]
        await asyncio.to_thread(replica.open)
        from antientropy import Changes

        replica._record(Changes.of([12_345], [1], [b"\x01" * 16], [1]))
        updates = await repaired(made[0])
        assert updates[-1].state is SessionState.COMPLETED, messages(updates)
        assert "building the index anew" in messages(updates)
        assert updates[-1].statistics.rows_moved == 0


async def test_a_replica_whose_hashes_stay_behind_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stores = stores_of(2, 10)
    async with cluster(*stores, config=RepairConfig(replica_retries_max=0, not_ready_wait_seconds=0.3)) as made:
        failed: Future[None] = Future()
        failed.set_exception(StoreFullError("no space left"))
        monkeypatch.setattr(made[1].service._replicas["kv"], "rebuild", lambda _epoch: failed)
        updates = await repaired(made[0], RepairOptions(full=True))
        assert updates[-1].state is SessionState.FAILED
        assert "its hashes are still those of epoch 0, not 1" in updates[-1].message
        assert made.held() == 0


async def test_a_ring_that_changes_in_mid_repair_is_noticed_and_nothing_counts_as_repaired() -> None:
    stores = stores_of(3, 0)
    stores[0].apply(rows_named(2_000))
    async with cluster(*stores, config=RepairConfig(unit_rows_max=200)) as made:
        names = made.ring.endpoints
        pushes = 0

        def change(crossing: Crossing) -> None:
            nonlocal pushes
            pushes += crossing.method == "Push" and crossing.is_request
            if pushes == 6:
                made.ring.parts = [
                    ReplicatedRange(TokenRange(0, 2**63 - 1), tuple(names), names[0]),
                    ReplicatedRange(TokenRange(2**63, TOKEN_MAX), (names[0], names[1]), names[0]),
                ]

        made.network.faults = change
        updates = await repaired(made[0])
        assert updates[-1].state is SessionState.PARTIAL, messages(updates)
        assert "the ring has changed" in updates[-1].message
        assert all(one.repaired_at is None for one in await made[0].service.summarize("kv"))
        assert made.held() == 0


# --- several at once ---


async def test_one_repair_of_the_same_tokens_at_a_time_on_a_node() -> None:
    stores = stores_of(2, 100)
    stores[1].apply(rows_named(100, version=2))
    async with cluster(*stores) as made:
        reached, go_on = asyncio.Event(), asyncio.Event()
        hold(made, "Locate", reached, go_on)
        first = asyncio.create_task(repaired(made[0], RepairOptions(token_ranges=(TokenRange(0, 2**63 - 1),))))
        await reached.wait()
        with pytest.raises(RepairRunningError, match="is running on this node"):
            await anext(made[0].service.repair("kv"))
        other = await repaired(made[0], RepairOptions(token_ranges=(TokenRange(2**63, TOKEN_MAX),)))
        assert other[-1].state is SessionState.COMPLETED
        go_on.set()
        assert (await first)[-1].state is SessionState.COMPLETED
        assert made.equal()


def hold(made: Cluster, method: str, reached: asyncio.Event, go_on: asyncio.Event) -> None:
    """The first request of a kind waits at every peer until it may go on."""
    for node in made.nodes:
        original = node.service.peers.unary

        async def unary(name: str, request: object, caller: str, original: object = original) -> object:
            if name == method and not reached.is_set():
                reached.set()
                await go_on.wait()
            return await original(name, request, caller)  # type: ignore[operator] # bound above

        node.service.peers.unary = unary  # type: ignore[method-assign,assignment] # a spy


async def test_two_coordinators_back_off_and_both_succeed() -> None:
    stores = stores_of(3)
    diverge(stores, 31, 500)
    async with cluster(*stores) as made:
        results = await asyncio.gather(*(repaired(node) for node in made.nodes))
        for updates in results:
            assert updates[-1].state is SessionState.COMPLETED, messages(updates)
        assert made.equal()
        assert made.held() == 0


async def test_a_coordinator_that_waits_too_long_for_another_fails_clearly() -> None:
    stores = stores_of(2)
    stores[0].apply(rows_named(10, version=2))
    async with cluster(*stores, config=RepairConfig(lease_wait_seconds=0.0)) as made:
        reached, go_on = asyncio.Event(), asyncio.Event()
        hold(made, "Locate", reached, go_on)
        first = asyncio.create_task(repaired(made[0]))
        await reached.wait()
        updates = await repaired(made[1])
        assert updates[-1].state is SessionState.FAILED
        assert "n0:1" in updates[-1].message
        assert "wait for it to end, or cancel it" in updates[-1].message
        go_on.set()
        assert (await first)[-1].state is SessionState.COMPLETED


async def test_heartbeats_keep_a_session_during_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    stores = stores_of(2)
    stores[1].apply(rows_named(10, version=2))
    config = RepairConfig(lease_seconds=0.3, heartbeat_seconds=0.05)
    async with cluster(*stores, config=config) as made:
        applied = stores[0].apply
        beats = 0

        def note(crossing: Crossing) -> None:
            nonlocal beats
            beats += crossing.method == "Heartbeat" and crossing.is_request

        made.network.faults = note

        def slow(rows: Iterable[Row], *, from_repair: bool = False) -> int:
            import time

            deadline = time.monotonic() + 10
            while beats < 15 and time.monotonic() < deadline:
                time.sleep(0.005)
            return applied(rows, from_repair=from_repair)

        monkeypatch.setattr(stores[0], "apply", slow)
        updates = await repaired(made[0])
        assert updates[-1].state is SessionState.COMPLETED, messages(updates)
        assert beats >= 15
        assert made.equal()


async def test_a_closed_stream_of_updates_cancels_the_repair() -> None:
    stores = stores_of(2)
    stores[1].apply(rows_named(10, version=2))
    async with cluster(*stores) as made:
        async with aclosing(made[0].service.repair("kv")) as updates:
            first = await anext(updates)
        assert made.held() == 0
        [session] = await made[0].service.history()
        assert (session.session_id, session.state) == (first.session_id, SessionState.CANCELLED)


async def test_sessions_history_and_summaries() -> None:
    stores = stores_of(2)
    stores[1].apply(rows_named(10, version=2))
    async with cluster(*stores) as made:
        service = made[0].service
        [summary] = await service.summarize("kv")
        assert (summary.token_range, summary.repaired_at, summary.differences_last) == (FULL, None, 0)
        updates = await repaired(made[0])
        check(updates)
        assert await service.sessions() == []
        [session] = await service.history()
        assert session.state is SessionState.COMPLETED
        assert session.session_id == updates[0].session_id
        assert session.replicas == tuple(made.ring.endpoints)
        assert session.statistics.rows_moved == 10
        assert session.ended_at is not None
        assert session.ended_at >= session.started_at
        [summary] = await service.summarize("kv")
        assert summary.repaired_at == session.started_at
        assert summary.differences_last == 10
        assert await made[1].service.history() == []
        assert service.metrics.value("antientropy_rows_moved_total", keyspace="kv") == 10


async def test_a_store_is_named_by_a_protocol() -> None:
    store: RowStore = MemoryRowStore()
    async with cluster(store) as made:  # type: ignore[arg-type]
        updates = await repaired(made[0])
        assert updates[-1].message == "Replication factor is 1. No repair is needed for keyspace 'kv'"
        assert updates[-1].state is SessionState.COMPLETED
