"""What a replica answers to a coordinator: sessions, leases, rows, what it records, and what it refuses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from repair_peers import FULL, NOW, Node, World, gone, opening, raw, row, until

from antientropy.core import deletes
from antientropy.core.locate import Locator
from antientropy.core.merkle import EMPTY_ROOT
from antientropy.core.reconcile import Difference
from antientropy.core.rows import Row
from antientropy.core.tokens import TokenRange
from antientropy.errors import PeerError, SessionLostError, StoreCorruptError, StoreFullError
from antientropy.leases import Lease, LeaseDenied
from antientropy.limits import EPOCH_STEP_MAX
from antientropy.membership import ReplicatedRange
from antientropy.peer_client import OpenSession, PeerClient, RefusalKind
from antientropy.replica import Replica
from antientropy.v1 import repair_pb2 as pb

HOUR = 3600.0
HALF = TokenRange(0, 2**63 - 1)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.close()


def version(seconds_ago: float) -> int:
    return int((NOW - seconds_ago) * 1000) << 16


async def located(client: PeerClient, here: Node, answer: Any) -> Difference:
    """The difference of the peer's rows to those of ``here``, by the locator."""
    snapshot = here.replica.snapshot(client._range)
    try:
        locator = Locator(snapshot, remote_count=answer.root_count, first=answer.symbols)
        while (request := locator.next_request()) is not None:
            locator.feed(await client.locate(request))
        return locator.difference
    finally:
        snapshot.close()


async def fetched(client: PeerClient, tokens: Any) -> list[Row]:
    return [one async for rows in client.fetch(np.array(sorted(tokens), np.uint64)) for one in rows]


def in_order(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda one: one.token)


# --- comparing, and what it costs ---


async def test_equal_replicas_take_one_short_round_trip_and_leave_nothing_behind(world: World) -> None:
    rows = [row(number) for number in range(20_000)]
    here, there = world.node(rows), world.node(rows)
    client = world.client(there)
    answer = await client.compare(here.root())
    assert answer.equal
    assert answer.root_count == 20_000
    assert world.statistics.find_bytes <= 62
    assert (client.requests, there.service.session_count, client.session_open) == (1, 0, False)
    assert isinstance(there.service.hold("kv", FULL, 1), Lease)


async def test_equal_replicas_with_all_that_can_be_told_stay_below_100_bytes(world: World) -> None:
    rows = [row(number, version(30 * HOUR)) for number in range(20_000)]
    here, there = world.node(rows), world.node(rows)
    first = world.client(there)
    assert (await first.compare(here.root(), repaired_version=version(9 * HOUR))).equal
    world.statistics.find_bytes = 0
    answer = await world.client(there).compare(
        here.root(),
        np.full(256, version(20 * HOUR), np.uint64),
        repaired_version=version(HOUR),
        confirmed_session=first.session,
        purge_version=version(10 * HOUR),
        replicas=(here.endpoint, there.endpoint),
    )
    assert answer.equal
    assert answer.repaired_version == version(9 * HOUR)
    assert world.statistics.find_bytes <= 100, world.statistics.find_bytes


@pytest.mark.parametrize("kind", ["missing here", "missing there", "updated there", "updated here", "deleted there"])
async def test_one_difference_is_located_moved_and_verified_in_300_bytes(world: World, kind: str) -> None:
    rows = [row(number, version(HOUR)) for number in range(20_000)]
    changed = {"updated there": replace(rows[7], version=version(1)), "deleted there": gone(7, version(1))}
    here_rows, there_rows = rows[:], rows[:]
    if kind == "missing here":
        del here_rows[7]
    elif kind == "missing there":
        del there_rows[7]
    elif kind == "updated here":
        here_rows[7] = changed["updated there"]
    else:
        there_rows[7] = changed[kind]
    here, there = world.node(here_rows), world.node(there_rows)
    client = world.client(there)
    answer = await client.compare(here.root())
    difference = await located(client, here, answer)
    assert len(difference) == 1
    if len(difference.fetch_tokens):
        here.store.apply(await fetched(client, difference.fetch_tokens), from_repair=True)
    else:
        winner = here_rows[7]
        moved = await client.push(lambda: iter([winner]))
        assert (moved.sent, moved.applied, moved.row_bytes) == (1, 1, len(winner.key) + len(winner.value))
    assert (await client.compare(here.root())).equal
    assert here.rows() == there.rows()
    assert world.statistics.find_bytes <= 300
    assert (there.service.session_count, there.service.snapshot_count, client.session_open) == (0, 0, False)


async def test_many_differences_are_found_over_the_wire_and_repaired_both_ways(world: World) -> None:
    common = [row(number) for number in range(5_000)]
    here = world.node(common[:4_800] + [row(number, 3) for number in range(100)])
    there = world.node(common[150:] + [gone(number, 2) for number in range(200, 260)])
    client = world.client(there)
    difference = await located(client, here, await client.compare(here.root()))
    fetch, push = difference.fetch_tokens, difference.push_tokens
    assert (len(fetch), len(push)) == (200 + 60, 150)
    rows = await fetched(client, fetch)
    assert [one.token for one in rows] == fetch.tolist()
    here.store.apply(rows, from_repair=True)
    snapshot = here.replica.snapshot(FULL)
    moved = await client.push(lambda: snapshot.rows_at(push.tolist()))
    snapshot.close()
    assert (moved.sent, moved.applied) == (150, 150)
    assert (await client.compare(here.root())).equal
    assert here.rows() == there.rows()


async def test_a_range_is_compared_and_repaired_alone(world: World) -> None:
    here, there = world.node(), world.node([row(number) for number in range(500)])
    client = world.client(there, token_range=HALF)
    difference = await located(client, here, await client.compare(EMPTY_ROOT))
    assert len(difference) == sum(HALF.contains(row(number).token) for number in range(500))
    outside = next(row(number) for number in range(500) if not HALF.contains(row(number).token))
    with pytest.raises(PeerError, match="outside"):
        await fetched(client, [outside.token])
    with pytest.raises(PeerError, match="outside"):
        await client.push(lambda: iter([replace(outside, version=9)]))
    assert outside in there.rows()


async def test_comparing_without_a_session_opens_none(world: World) -> None:
    here, there = world.node([row(1)]), world.node([row(2)])
    client = world.client(there)
    answer = await client.compare(here.root(), open_session=OpenSession.NEVER)
    assert (answer.equal, answer.root_count, answer.symbols) == (False, 1, None)
    assert there.service.session_count == 0
    assert (await client.compare(there.root(), open_session=OpenSession.NEVER)).equal
    await client.compare(here.root())
    assert there.service.session_count == 1
    await client.compare(here.root(), open_session=OpenSession.NEVER)
    assert (there.service.session_count, client.session_open) == (0, False)


async def test_an_equal_replica_can_be_given_rows_of_others_in_a_session_without_a_snapshot(world: World) -> None:
    here, there = world.node([row(1)]), world.node([row(1)])
    client = world.client(there)
    assert (await client.compare(here.root())).equal
    assert (await client.compare(here.root(), open_session=OpenSession.ALWAYS)).equal
    assert (there.service.session_count, there.service.snapshot_count) == (1, 0)
    assert (await client.push(lambda: iter([row(2)]))).applied == 1
    with pytest.raises(SessionLostError):
        await fetched(client, [row(1).token])


async def test_a_session_sees_its_snapshot_until_it_compares_again(world: World) -> None:
    here, there = world.node(), world.node([row(1)])
    client = world.client(there)
    await client.compare(here.root())
    there.store.apply([row(1, 5), row(2)])
    assert await fetched(client, [row(1).token]) == [row(1)]
    answer = await client.compare(here.root())
    assert answer.root_count == 2
    assert await fetched(client, [row(1).token]) == [row(1, 5)]
    assert there.service.snapshot_count == 1


# --- leases and the life of sessions ---


async def test_a_range_that_is_being_repaired_is_refused_with_holder_and_time(world: World) -> None:
    here, there = world.node(), world.node([row(1)])
    first = world.client(there, token_range=HALF, owner="127.0.0.1:9001")
    await first.compare(EMPTY_ROOT)
    refusal = (await world.client(there, owner="127.0.0.1:9002").compare(here.root())).refusal
    assert refusal is not None
    assert (refusal.kind, refusal.holder) == (RefusalKind.LEASED, "127.0.0.1:9001")
    assert 0 < refusal.retry_after_seconds <= 15
    assert isinstance(there.service.hold("kv", FULL, 1), LeaseDenied)
    await first.close_session()
    assert not (await world.client(there, owner="127.0.0.1:9002").compare(here.root())).refusal


async def test_a_coordinator_refuses_others_while_it_repairs_itself(world: World) -> None:
    there = world.node([row(1)])
    session = world.session()
    assert isinstance(there.service.hold("kv", FULL, session), Lease)
    refusal = (await world.client(there).compare(EMPTY_ROOT)).refusal
    assert refusal is not None
    assert refusal.holder == there.endpoint
    assert there.service.keep(session)
    there.service.release(session)
    assert not there.service.keep(session)
    assert not (await world.client(there).compare(EMPTY_ROOT)).refusal


async def test_a_silent_coordinator_loses_lease_and_snapshot(world: World) -> None:
    there = world.node([row(1)], lease_seconds=0.05, heartbeat_seconds=0.01)
    client = world.client(there)
    await client.compare(EMPTY_ROOT)
    assert there.service.snapshot_count == 1

    async def swept() -> None:
        while there.service.session_count:
            await there.service.sweep()
            await asyncio.sleep(0.002)

    await asyncio.wait_for(swept(), 10)
    assert there.service.snapshot_count == 0
    for call in (client.heartbeat(), fetched(client, [row(1).token]), client.push(lambda: iter([row(2)]))):
        client.join_session()
        with pytest.raises(SessionLostError):
            await call
        assert not client.session_open
    assert there.rows() == [row(1)]
    assert (await client.compare(EMPTY_ROOT)).symbols is not None


async def test_heartbeats_keep_a_session(world: World) -> None:
    there = world.node([row(1)], lease_seconds=0.2, heartbeat_seconds=0.01)
    client = world.client(there)
    await client.compare(EMPTY_ROOT)
    loop = asyncio.get_running_loop()
    until_time = loop.time() + 0.5
    while loop.time() < until_time:
        await client.heartbeat()
        await there.service.sweep()
        await asyncio.sleep(0.01)
    assert await fetched(client, [row(1).token]) == [row(1)]


async def test_a_restarted_coordinator_takes_over_and_its_earlier_messages_do_nothing(world: World) -> None:
    there = world.node([row(1)])
    before, after = world.client(there), world.client(there)
    assert before.session < after.session
    await before.compare(EMPTY_ROOT)
    answer = await after.compare(EMPTY_ROOT)
    assert answer.refusal is None
    assert (there.service.session_count, there.service.snapshot_count) == (1, 1)
    with pytest.raises(SessionLostError):
        await before.push(lambda: iter([row(2)]))
    repeated = await raw(world, there, "Compare", opening(EMPTY_ROOT, before.session))
    assert not repeated.equal
    refused = await raw(world, there, "Compare", opening(EMPTY_ROOT, before.session, turn=1))
    assert refused.refusal.kind == pb.Refusal.KIND_LEASED
    assert there.rows() == [row(1)]
    assert await fetched(after, [row(1).token]) == [row(1)]


async def test_no_more_snapshots_than_allowed(world: World) -> None:
    there = world.node([row(number) for number in range(100)], sessions_max=1)
    first = world.client(there, token_range=HALF)
    await first.compare(EMPTY_ROOT)
    other = world.client(there, token_range=TokenRange(HALF.last + 1, FULL.last), owner="127.0.0.1:9002")
    refusal = (await other.compare(EMPTY_ROOT)).refusal
    assert refusal is not None
    assert refusal.kind is RefusalKind.BUSY
    assert (await other.compare(there.root(other._range))).equal
    await first.close_session()
    assert (await other.compare(EMPTY_ROOT)).symbols is not None


async def test_a_node_that_stops_closes_its_sessions_and_answers_no_more(world: World) -> None:
    there = world.node([row(1)])
    client = world.client(there)
    await client.compare(EMPTY_ROOT)
    await there.service.stop()
    await there.service.stop()
    assert there.service.snapshot_count == 0
    with pytest.raises(PeerError, match="cannot be reached"):
        await client.heartbeat()


async def test_closing_twice_or_what_was_never_open_is_no_error(world: World) -> None:
    there = world.node([row(1)])
    client = world.client(there)
    await client.close_session()
    assert client.requests == 0
    await client.compare(EMPTY_ROOT)
    for _ in range(2):
        await raw(world, there, "Close", pb.CloseRequest(session=client.session))
    assert there.service.session_count == 0


# --- epochs, floors, what is recorded ---


async def test_whose_epoch_is_less_makes_its_hashes_anew(world: World) -> None:
    here, there = world.node([row(1), row(2)]), world.node([row(1), row(3)])
    here.replica.rebuild(3).result()
    client = world.client(there)
    answer = await client.compare(here.root(), epoch=3)
    assert (answer.equal, answer.epoch, answer.symbols, client.session_open) == (False, 0, None, False)
    await until(lambda: there.replica.epoch == 3)
    assert (await client.compare(here.root(), epoch=3)).symbols is not None
    behind = world.client(there, owner="127.0.0.1:9002", token_range=HALF)
    await client.close_session()
    assert (await behind.compare(EMPTY_ROOT, epoch=1)).epoch == 3
    assert there.replica.epoch == 3
    with pytest.raises(PeerError, match="epoch"):
        await client.compare(here.root(), epoch=4 + EPOCH_STEP_MAX)


async def test_hashes_that_are_ready_at_once_are_compared_with_the_next_request(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = world.node([row(1), row(2)]), world.node([row(1), row(3)])
    here.replica.rebuild(1).result()
    rebuild = there.replica.rebuild

    def at_once(epoch: int | None = None) -> Future[None]:
        made = rebuild(epoch)
        made.result()
        return made

    monkeypatch.setattr(there.replica, "rebuild", at_once)
    client = world.client(there)
    answer = await client.compare(here.root(), epoch=1)
    assert (answer.epoch, client.session_open, there.service.session_count) == (0, False, 0)
    answer = await client.compare(here.root(), epoch=1)
    assert (answer.epoch, client.session_open, there.service.session_count) == (1, True, 1)
    assert len(await located(client, here, answer)) == 2


async def test_an_index_that_is_being_built_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    there = world.node([row(1)])
    there.replica = there.service._node.replicas["kv"] = Replica(there.store)  # type: ignore[index] # a dict
    go_on = threading.Event()
    read = there.store.read

    def slow(*arguments: Any) -> Any:
        go_on.wait(30)
        return read(*arguments)

    monkeypatch.setattr(there.store, "read", slow)
    try:
        client = world.client(there)
        refusal = (await client.compare(EMPTY_ROOT)).refusal
        assert refusal is not None
        assert refusal.kind is RefusalKind.NOT_READY
        assert "is building its index of kv" in refusal.detail
        assert there.service.session_count == 0
    finally:
        go_on.set()
    await until(lambda: there.replica.is_ready)
    assert (await client.compare(EMPTY_ROOT)).refusal is None


async def test_tombstones_below_the_greatest_floor_of_both_are_left_out(world: World) -> None:
    common = [row(number) for number in range(100)]
    here = world.node(common)
    there = world.node([*common, *(gone(number, 5) for number in range(1_000, 1_020))])
    floors = np.full(256, 9, np.uint64)
    assert (await world.client(there).compare(here.root(floors=floors), floors)).equal
    there.store.write_mark(deletes.REPAIRED_MARK, deletes.encode_versions(floors))
    there.store.purge(floors, 0)
    answer = await world.client(there).compare(replace(here.root(), count=1))
    assert answer.floors.tolist() == [9] * 256
    assert answer.root_count == 100


async def test_floors_are_no_less_than_what_was_purged_before_the_snapshot(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = world.node([row(1), gone(2, 5)])
    raised = np.full(256, 9, np.uint64)
    there.store.write_mark(deletes.REPAIRED_MARK, deletes.encode_versions(raised))
    opened = there.replica.snapshot

    def purged_first(*arguments: Any) -> Any:
        there.store.purge(raised, 10)
        return opened(*arguments)

    monkeypatch.setattr(there.replica, "snapshot", purged_first)
    answer = await world.client(there).compare(EMPTY_ROOT)
    assert answer.floors.tolist() == raised.tolist()
    assert answer.root_count == 1
    assert there.service.snapshot_count == 1


async def test_a_complete_session_is_recorded_when_it_is_confirmed_and_then_purged(world: World) -> None:
    rows = [row(1, version(5 * HOUR)), gone(2, version(5 * HOUR)), gone(3, version(HOUR))]
    here, there = world.node(rows), world.node(rows)
    first, as_of = world.client(there), version(3 * HOUR)
    assert (await first.compare(here.root(), repaired_version=as_of)).repaired_version == 0
    marks = there.service.marks["kv"]
    assert marks.read().fence.tolist() == [as_of] * 256
    assert not marks.read().repaired.any()
    second = world.client(there)
    answer = await second.compare(here.root(), confirmed_session=first.session)
    assert answer.repaired_version == as_of
    assert marks.read().repaired.tolist() == [as_of] * 256
    assert gone(2, version(5 * HOUR)) in there.rows()
    await world.client(there).compare(here.root(), purge_version=as_of)
    await until(lambda: gone(2, version(5 * HOUR)) not in there.rows())
    assert gone(3, version(HOUR)) in there.rows()
    assert marks.read().floors.tolist() == [as_of] * 256


async def test_a_permission_to_purge_never_goes_beyond_what_was_recorded_here(world: World) -> None:
    there = world.node([gone(2, version(5 * HOUR))])
    await world.client(there).compare(there.root(), purge_version=version(HOUR))
    await until(lambda: not there.service._background)
    assert there.rows() == [gone(2, version(5 * HOUR))]
    assert not there.service.marks["kv"].read().floors.any()


async def test_a_bucket_is_purged_when_all_of_it_that_is_held_here_was_permitted(world: World) -> None:
    there = world.node([gone(number, version(5 * HOUR)) for number in range(200)])
    there.store.write_mark(deletes.REPAIRED_MARK, deletes.encode_versions(deletes.uniform(version(HOUR))))
    first_half_of_a_bucket = TokenRange(0, 2**55 - 1)
    client = world.client(there, token_range=first_half_of_a_bucket)
    await client.compare(there.root(first_half_of_a_bucket), purge_version=version(HOUR))
    await until(lambda: not there.service._background)
    assert not there.service.marks["kv"].read().floors.any()
    client = world.client(there, token_range=HALF)
    await client.compare(there.root(HALF), purge_version=version(HOUR))
    await until(lambda: not there.service._background)
    assert there.rows()
    assert not any(HALF.contains(one.token) for one in there.rows())


async def test_sessions_that_are_unknown_or_of_before_a_restart_are_not_recorded(world: World) -> None:
    rows = [row(1, version(5 * HOUR))]
    there = world.node(rows)
    first = world.client(there)
    await first.compare(there.root(), repaired_version=version(HOUR))
    restarted = world.node(store=there.store)
    answer = await world.client(restarted).compare(there.root(), confirmed_session=first.session)
    assert (answer.equal, answer.repaired_version) == (True, 0)


@pytest.mark.parametrize("seconds_ago", [-60.0, -1e9])
async def test_a_fence_in_the_future_is_refused(world: World, seconds_ago: float) -> None:
    there = world.node([row(1)])
    with pytest.raises(PeerError, match="future"):
        await world.client(there).compare(EMPTY_ROOT, repaired_version=version(seconds_ago))
    with pytest.raises(PeerError, match="future"):
        await world.client(there).compare(EMPTY_ROOT, purge_version=version(seconds_ago))
    floors = np.full(256, version(seconds_ago), np.uint64)
    with pytest.raises(PeerError, match="future"):
        await world.client(there).compare(EMPTY_ROOT, floors, repaired_version=version(HOUR))
    assert not there.service.marks["kv"].read().fence.any()
    assert there.service.session_count == 0


async def test_where_versions_tell_no_time_nothing_is_recorded(world: World) -> None:
    there = world.node([row(1)], version_at=None)
    with pytest.raises(PeerError, match="version_at"):
        await world.client(there).compare(EMPTY_ROOT, repaired_version=5)


async def test_a_replica_that_was_away_for_too_long_is_refused_with_the_way_out(world: World) -> None:
    here, there = world.node([row(1)]), world.node([row(1), row(2)])
    floors = np.full(256, version(HOUR), np.uint64)
    refusal = (await world.client(there).compare(here.root(), floors)).refusal
    assert refusal is not None
    assert refusal.kind is RefusalKind.TOO_LONG_AWAY
    assert "--force" in refusal.detail
    assert there.service.session_count == 0
    client = world.client(there)
    assert (await client.compare(here.root(), floors, forced=True)).symbols is not None
    await client.close_session()
    empty = world.node()
    assert (await world.client(empty).compare(here.root(), floors)).symbols is not None


async def test_damaged_marks_are_told(world: World) -> None:
    there = world.node([row(1)])
    there.store.write_mark(deletes.REPAIRED_MARK, b"\xff\xff")
    with pytest.raises(PeerError, match="mark of the store is damaged"):
        await world.client(there).compare(EMPTY_ROOT)


# --- rows to a third replica ---


async def test_a_holder_gives_rows_to_a_third_replica_directly(world: World) -> None:
    here, holder, target = world.node(), world.node([row(number) for number in range(300)]), world.node()
    session = world.session()
    at_holder, at_target = world.client(holder, session=session), world.client(target, session=session)
    await at_holder.compare(here.root())
    await at_target.compare(here.root(), open_session=OpenSession.ALWAYS)
    tokens = np.array(sorted(row(number).token for number in range(300)), np.uint64)
    moved = await at_holder.send_rows(target.endpoint, tokens)
    row_bytes = sum(len(one.key) + len(one.value) for one in holder.rows())
    assert (moved.sent, moved.applied, moved.row_bytes) == (300, 300, row_bytes)
    assert world.statistics.move_bytes == row_bytes
    assert target.rows() == holder.rows()
    assert (await at_target.compare(holder.root())).equal


async def test_a_target_that_fails_is_named(world: World) -> None:
    holder, target = world.node([row(1)]), world.node()
    client = world.client(holder)
    await client.compare(EMPTY_ROOT)
    with pytest.raises(PeerError, match="lost the session") as caught:
        await client.send_rows(target.endpoint, np.array([row(1).token], np.uint64))
    assert caught.value.endpoint == target.endpoint
    world.network.kill(target.endpoint)
    holder.ring.dead.add(target.endpoint)
    with pytest.raises(PeerError, match="cannot be reached") as caught:
        await client.send_rows(target.endpoint, np.array([row(1).token], np.uint64))
    assert caught.value.endpoint == target.endpoint
    assert await fetched(client, [row(1).token]) == [row(1)]


async def test_rows_are_sent_to_other_replicas_of_the_range_only(world: World) -> None:
    holder, target = world.node([row(1)]), world.node()
    client = world.client(holder)
    await client.compare(EMPTY_ROOT)
    for stranger in ("127.0.0.1:1", holder.endpoint, "", "x" * 300):
        with pytest.raises(PeerError, match="INVALID_ARGUMENT"):
            await client.send_rows(stranger, np.array([row(1).token], np.uint64))
    holder.ring.ring = [
        ReplicatedRange(HALF, (holder.endpoint, target.endpoint), holder.endpoint),
        ReplicatedRange(TokenRange(HALF.last + 1, FULL.last), (holder.endpoint,), holder.endpoint),
    ]
    with pytest.raises(PeerError, match="no other replica"):
        await client.send_rows(target.endpoint, np.array([row(1).token], np.uint64))


async def test_a_range_that_this_node_no_longer_holds_is_refused(world: World) -> None:
    there = world.node([row(1)])
    there.ring.ring = [ReplicatedRange(HALF, (there.endpoint,), there.endpoint)]
    refusal = (await world.client(there).compare(EMPTY_ROOT)).refusal
    assert refusal is not None
    assert refusal.kind is RefusalKind.NOT_A_REPLICA
    client = world.client(there, token_range=HALF)
    assert (await client.compare(EMPTY_ROOT)).refusal is None
    there.ring.ring = []
    refusal = (await client.compare(EMPTY_ROOT)).refusal
    assert refusal is not None
    assert refusal.kind is RefusalKind.NOT_A_REPLICA
    assert (there.service.session_count, client.session_open) == (0, False)


async def test_a_session_counts_only_for_replicas_that_both_sides_agree_on(world: World) -> None:
    here, there = world.node([row(1)]), world.node([row(1)])
    refusal = (
        await world.client(there).compare(here.root(), repaired_version=version(HOUR), replicas=(there.endpoint,))
    ).refusal
    assert refusal is not None
    assert refusal.kind is RefusalKind.NOT_A_REPLICA
    assert not there.service.marks["kv"].read().fence.any()
    agreed = (there.endpoint, here.endpoint)
    answer = await world.client(there).compare(here.root(), repaired_version=version(HOUR), replicas=agreed)
    assert answer.equal


# --- faults of the store, the throttle ---


async def test_faults_of_the_store_become_statuses_and_the_session_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = world.node([row(1)])
    client = world.client(there)
    await client.compare(EMPTY_ROOT)

    def full(*_arguments: Any, **_options: Any) -> int:
        raise StoreFullError("the disk is full; make room")

    def corrupt(*_arguments: Any) -> Any:
        raise StoreCorruptError("a row does not match its digest")

    with monkeypatch.context() as patch:
        patch.setattr(there.store, "apply", full)
        with pytest.raises(PeerError, match=r"RESOURCE_EXHAUSTED.*disk is full"):
            await client.push(lambda: iter([row(2)]))
    with monkeypatch.context() as patch:
        patch.setattr("antientropy.snapshots.ReplicaSnapshot.rows_at", corrupt)
        with pytest.raises(PeerError, match=r"FAILED_PRECONDITION.*digest"):
            await fetched(client, [row(1).token])
    assert (await client.push(lambda: iter([row(2)]))).applied == 1
    assert await fetched(client, [row(1).token]) == [row(1)]


async def test_chunks_are_paid_for_before_they_are_sent_or_applied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("antientropy.wire.CHUNK_ROWS_MAX", 40)
    rows = in_order([row(number) for number in range(100)])
    there = world.node(rows)
    client = world.client(there)
    await client.compare(EMPTY_ROOT)
    await fetched(client, [one.token for one in rows])
    assert [count for _, count in there.spent] == [40, 40, 20]
    await client.push(lambda: iter([replace(one, version=2) for one in rows]))
    assert [count for _, count in there.spent] == [40, 40, 20] * 2
    assert all(size > 0 for size, _ in there.spent)


async def test_the_owner_is_told_by_its_place_among_the_replicas(world: World) -> None:
    """15 bytes less; whoever is refused hears the name all the same."""
    here, there = world.node(), world.node([row(1)])
    agreed = (there.endpoint, here.endpoint)
    first = world.client(there, owner=here.endpoint)
    await first.compare(EMPTY_ROOT, repaired_version=version(HOUR), replicas=agreed)
    refusal = (await world.client(there, owner="127.0.0.1:9002").compare(here.root())).refusal
    assert refusal is not None
    assert refusal.holder == here.endpoint
