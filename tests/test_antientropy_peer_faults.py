"""Calls between replicas over a network that loses, delays, repeats, reorders and replays, and with peers that lie."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from repair_peers import FULL, Node, World, gone, row, until

from antientropy import wire
from antientropy.core import hashing
from antientropy.core.hashing import HASH_VERSION
from antientropy.core.locate import Locator
from antientropy.core.merkle import EMPTY_ROOT
from antientropy.core.rows import Row
from antientropy.errors import PeerError, SessionLostError
from antientropy.peer_client import CallTrace, OpenSession, PeerClient, RetryPolicy
from antientropy.transport.base import CallError
from antientropy.transport.memory import Crossing, Fault, FaultKind
from antientropy.v1 import repair_pb2 as pb

SHORT: dict[str, Any] = {"rpc_timeout_seconds": 0.1}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.close()


@dataclass
class Once:
    """A fault for the first message of a method on one way, of some index where it is a stream."""

    kind: FaultKind
    method: str
    is_request: bool = True
    index: int = 0
    seconds: float = 0.0
    times: int = 1

    def __call__(self, crossing: Crossing) -> Fault | None:
        if (crossing.method, crossing.is_request, crossing.index) != (self.method, self.is_request, self.index):
            return None
        self.times -= 1
        return Fault(self.kind, self.seconds) if self.times >= 0 else None


def watch(world: World) -> list[Crossing]:
    """The requests that cross from now on."""
    seen: list[Crossing] = []

    def faults(crossing: Crossing) -> None:
        if crossing.is_request:
            seen.append(crossing)

    world.network.faults = faults
    return seen


def in_order(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda one: one.token)


def tokens_of(rows: list[Row]) -> Any:
    return np.unique(np.array([one.token for one in rows], np.uint64))


async def fetched(client: PeerClient, rows: list[Row]) -> list[Row]:
    return [one async for some in client.fetch(tokens_of(rows)) for one in some]


async def repaired(client: PeerClient, here: Node) -> None:
    """Everything that one session does: compare, locate, fetch, push, verify; ``here`` and the peer are equal then."""
    answer = await client.compare(here.root())
    snapshot = here.replica.snapshot(FULL)
    try:
        locator = Locator(snapshot, remote_count=answer.root_count, first=answer.symbols)
        while (request := locator.next_request()) is not None:
            locator.feed(await client.locate(request))
        found = locator.difference
        if len(found.push_tokens):
            moved = await client.push(lambda: snapshot.rows_at(found.push_tokens.tolist()))
            assert (moved.sent, moved.applied) == (len(found.push_tokens),) * 2
        if len(found.fetch_tokens):
            rows = [one async for some in client.fetch(found.fetch_tokens) for one in some]
            assert [one.token for one in rows] == found.fetch_tokens.tolist()
            here.store.apply(rows, from_repair=True)
    finally:
        snapshot.close()
    assert (await client.compare(here.root())).equal


# --- every fault, at every step ---

CALLS = ["Compare", "Locate", "Push", "Fetch"]


@pytest.mark.parametrize("is_request", [True, False], ids=["request", "answer"])
@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("kind", [FaultKind.DROP, FaultKind.DELAY, FaultKind.DUPLICATE, FaultKind.REPLAY])
async def test_one_fault_anywhere_changes_nothing_but_the_time(
    world: World, kind: FaultKind, method: str, is_request: bool
) -> None:
    common = [row(number) for number in range(300)]
    here = world.node(common + [row(number) for number in range(1_000, 1_050)])
    there = world.node(common + [row(number) for number in range(2_000, 2_050)] + [gone(5, 9)])
    world.network.faults = Once(kind, method, is_request, seconds=0.02)
    client = world.client(there, **SHORT)
    await repaired(client, here)
    assert here.rows() == there.rows()
    assert (there.service.session_count, there.service.snapshot_count, client.session_open) == (0, 0, False)
    await asyncio.sleep(0.03)
    assert (there.service.session_count, there.service.snapshot_count) == (0, 0)
    assert here.rows() == there.rows()


@pytest.mark.parametrize("seed", range(6))
async def test_many_faults_at_random_change_nothing_either(world: World, seed: int) -> None:
    random = Random(seed)
    kinds = [FaultKind.DROP, FaultKind.DELAY, FaultKind.DUPLICATE, FaultKind.REPLAY, FaultKind.REORDER]

    def faults(_crossing: Crossing) -> Fault | None:
        return Fault(random.choice(kinds), 0.01) if random.random() < 0.15 else None

    common = [row(number) for number in range(500)]
    here = world.node([*common, *(row(number, 2) for number in range(0, 500, 7))])
    there = world.node([*common, *(gone(number, 3) for number in range(0, 500, 11))])
    world.network.faults = faults
    client = world.client(there, retry=RetryPolicy(30, 0.001, 0.002), rpc_timeout_seconds=0.05)
    await repaired(client, here)
    assert here.rows() == there.rows()
    world.network.faults = lambda _crossing: None
    await client.close_session()
    await until(lambda: there.service.session_count == 0)


# --- what is repeated is answered as before ---


async def test_rows_of_a_push_whose_answer_was_lost_count_once(world: World) -> None:
    there = world.node([row(1)])
    client = world.client(there, **SHORT)
    await client.compare(EMPTY_ROOT)
    world.network.faults = Once(FaultKind.DROP, "Push", is_request=False)
    traces: list[CallTrace] = []
    client._trace = traces.append
    moved = await client.push(lambda: iter(in_order([row(2), row(3)])))
    assert (moved.sent, moved.applied) == (2, 2)
    assert [(one.method, one.attempts) for one in traces] == [("Push", 1), ("Push", 2)]


async def test_chunks_that_are_repeated_or_swapped_within_a_stream_count_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("antientropy.wire.CHUNK_ROWS_MAX", 10)
    there = world.node([row(1)])
    client = world.client(there)
    await client.compare(EMPTY_ROOT)
    rows = in_order([row(number) for number in range(100, 150)])
    for number, kind in enumerate((FaultKind.DUPLICATE, FaultKind.REORDER)):
        world.network.faults = Once(kind, "Push", index=2)
        newer = [replace(one, version=2 + number) for one in rows]
        moved = await client.push(newer.__iter__)
        assert (moved.sent, moved.applied) == (50, 50)


async def test_a_fetch_that_is_cut_off_goes_on_where_it_was_and_gives_no_row_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("antientropy.wire.CHUNK_ROWS_MAX", 10)
    monkeypatch.setattr(hashing, "token_of", lambda key: int(key[3:]) // 4)
    rows = in_order([row(number) for number in range(100)])
    there = world.node(rows)
    client = world.client(there, **SHORT)
    await client.compare(EMPTY_ROOT)
    world.network.faults = Once(FaultKind.DROP, "Fetch", is_request=False, index=4)
    got = await fetched(client, rows)
    assert sorted(one.key for one in got) == sorted(one.key for one in rows)
    assert client.requests == 3


async def test_a_send_that_is_repeated_moves_the_rows_once(world: World) -> None:
    rows = in_order([row(number) for number in range(50)])
    holder, target = world.node(rows), world.node()
    session = world.session()
    client, at_target = world.client(holder, session=session), world.client(target, session=session)
    await client.compare(EMPTY_ROOT)
    await at_target.compare(EMPTY_ROOT, open_session=OpenSession.ALWAYS)
    request = pb.SendRequest(
        session=session, stream=1, target=target.endpoint, tokens=wire.encode_tokens(tokens_of(rows))
    )
    calls = world.network.transport("127.0.0.1:9000").calls(holder.endpoint)
    seen = watch(world)
    answers = await asyncio.gather(*(calls.unary("Send", request, 5) for _ in range(3)))
    answers.append(await calls.unary("Send", request, 5))
    assert all(answer == answers[0] for answer in answers)
    assert sum(crossing.method == "Push" for crossing in seen) == 1
    assert target.rows() == holder.rows()


async def test_a_holder_that_could_not_reach_the_target_tries_again_within_the_call(world: World) -> None:
    rows = in_order([row(number) for number in range(50)])
    holder, target = world.node(rows, **SHORT), world.node()
    session = world.session()
    client, at_target = world.client(holder, session=session), world.client(target, session=session)
    await client.compare(EMPTY_ROOT)
    await at_target.compare(EMPTY_ROOT, open_session=OpenSession.ALWAYS)
    world.network.faults = Once(FaultKind.DROP, "Push", is_request=False)
    moved = await client.send_rows(target.endpoint, tokens_of(rows))
    assert (moved.sent, moved.applied) == (50, 50)


async def test_a_transfer_ends_with_its_session(world: World) -> None:
    rows = in_order([row(number) for number in range(50)])
    holder, target = world.node(rows), world.node()
    client, at_target = (
        world.client(node, session=session) for session in [world.session()] for node in (holder, target)
    )
    await client.compare(EMPTY_ROOT)
    await at_target.compare(EMPTY_ROOT, open_session=OpenSession.ALWAYS)
    world.network.faults = Once(FaultKind.DROP, "Push", times=100)
    sending = asyncio.ensure_future(client.send_rows(target.endpoint, tokens_of(rows)))
    seen = world.network.messages
    await until(lambda: seen[holder.endpoint, target.endpoint] > 0)
    await client.close_session()
    with pytest.raises(SessionLostError):
        await sending
    assert holder.service.session_count == 0
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "antientropy send"]


# --- late and replayed messages ---


async def test_messages_of_a_closed_session_are_refused_or_answered_as_then(world: World) -> None:
    here, there = world.node(), world.node([row(1)])
    seen = watch(world)
    client = world.client(there)
    await repaired(client, here)
    await client.compare(EMPTY_ROOT)
    await client.push(lambda: iter([row(2)]))
    await client.close_session()
    there.store.apply([replace(row(2), version=5, value=b"newer")])
    rows = there.rows()
    world.network.faults = lambda _crossing: None
    calls = world.network.transport("127.0.0.1:9000").calls(there.endpoint)
    statuses = set()
    for crossing in seen:
        if crossing.method == "Push":
            statuses.add(await status(replayed_push(calls, crossing.data)))
        elif crossing.method == "Fetch":
            stream = calls.response_stream("Fetch", pb.FetchRequest.FromString(crossing.data), 5, 5)
            statuses.add(await status(anext(stream)))
        elif crossing.method == "Compare":
            await status(calls.unary("Compare", pb.CompareRequest.FromString(crossing.data), 5))
        elif crossing.method == "Locate":
            statuses.add(await status(calls.unary("Locate", pb.LocateRequest.FromString(crossing.data), 5)))
    assert statuses == {grpc.StatusCode.ABORTED}
    assert there.rows() == rows
    assert (there.service.session_count, there.service.snapshot_count) == (0, 0)


async def replayed_push(calls: Any, data: bytes) -> Message:
    async def requests() -> AsyncIterator[Message]:
        yield pb.PushRequest.FromString(data)

    answer: Message = await calls.request_stream("Push", requests(), 5, 5)
    return answer


async def status(call: Any) -> grpc.StatusCode | None:
    try:
        await call
    except CallError as error:
        return error.code
    return None


async def test_a_comparison_that_arrives_after_a_later_one_is_refused(world: World) -> None:
    there = world.node([row(1)])
    client = world.client(there)
    await client.compare(EMPTY_ROOT)
    calls = world.network.transport("127.0.0.1:9000").calls(there.endpoint)
    second = pb.CompareRequest(session=client.session, turn=1)
    first_answer = await calls.unary("Compare", second, 5)
    assert await calls.unary("Compare", second, 5) == first_answer
    await calls.unary("Compare", pb.CompareRequest(session=client.session, turn=2), 5)
    assert await status(calls.unary("Compare", second, 5)) is grpc.StatusCode.ABORTED
    assert there.service.session_count == 1


async def test_the_verification_that_closed_a_session_is_answered_again_when_its_answer_was_lost(world: World) -> None:
    here, there = world.node([row(1)]), world.node([row(1), row(2)])
    client = world.client(there, **SHORT)
    await client.compare(here.root())
    here.store.apply([row(2)])
    world.network.faults = Once(FaultKind.DROP, "Compare", is_request=False)
    assert (await client.compare(here.root())).equal
    assert there.service.session_count == 0


# --- retries ---


async def test_attempts_are_bounded_and_their_pauses_double_with_jitter(world: World) -> None:
    policy = RetryPolicy(attempts_max=5, first_seconds=1.0, pause_seconds_max=4.0)
    for attempt, whole in enumerate((1, 2, 4, 4)):
        pauses = {policy.pause_seconds(attempt, Random(seed)) for seed in range(20)}
        assert len(pauses) > 10
        assert all(whole / 2 <= pause <= whole for pause in pauses)
    there = world.node([row(1)])
    client = world.client(there, retry=RetryPolicy(5, 0.001, 0.002))
    world.network.kill(there.endpoint)
    with pytest.raises(PeerError, match="cannot be reached"):
        await client.compare(EMPTY_ROOT)
    assert client.requests == 5


async def test_a_peer_that_is_known_to_be_dead_is_not_tried_again(world: World) -> None:
    there = world.node([row(1)])
    client = world.client(there, alive=lambda: False)
    world.network.kill(there.endpoint)
    with pytest.raises(PeerError, match="cannot be reached"):
        await client.compare(EMPTY_ROOT)
    assert client.requests == 1


async def test_refusals_are_not_repeated(world: World) -> None:
    there = world.node([row(1)])
    client = world.client(there)
    client._keyspace = "other"
    with pytest.raises(PeerError, match="NOT_FOUND"):
        await client.compare(EMPTY_ROOT)
    assert client.requests == 1


async def test_a_peer_that_was_restarted_has_lost_the_session_and_is_compared_anew(world: World) -> None:
    there = world.node([row(1)])
    client = world.client(there)
    await client.compare(EMPTY_ROOT)
    world.network.kill(there.endpoint)
    await there.service.stop()
    restarted = world.node(store=there.store)
    world.network.serve(there.endpoint, restarted.service)
    with pytest.raises(SessionLostError):
        await client.push(lambda: iter([row(2)]))
    assert (await client.compare(EMPTY_ROOT)).symbols is not None
    assert (await client.push(lambda: iter([row(2)]))).applied == 1


async def test_a_session_that_may_have_been_opened_is_closed(world: World) -> None:
    there = world.node([row(1)])
    client = world.client(there, retry=RetryPolicy(attempts_max=1), **SHORT)
    world.network.faults = Once(FaultKind.DROP, "Compare", is_request=False)
    with pytest.raises(PeerError, match="in time"):
        await client.compare(EMPTY_ROOT)
    assert there.service.session_count == 1
    await client.close_session()
    assert there.service.session_count == 0


async def test_a_caller_that_gives_up_leaves_no_snapshot(world: World) -> None:
    there = world.node([row(number) for number in range(100)])
    for _ in range(5):
        client = world.client(there)
        comparing = asyncio.ensure_future(client.compare(EMPTY_ROOT))
        await asyncio.sleep(0)
        comparing.cancel()
        await asyncio.gather(comparing, return_exceptions=True)
        await client.close_session()
    await until(lambda: there.service.snapshot_count == 0 and there.service.session_count == 0)


# --- peers that lie ---


@dataclass
class Liar:
    """Answers what it is told to."""

    answer: Message
    rows: list[Message]

    async def unary(self, method: str, request: Message, caller: str) -> Message:
        return self.answer

    async def response_stream(self, method: str, request: Message, caller: str) -> AsyncGenerator[Message, None]:
        for message in self.rows:
            yield message

    async def request_stream(self, method: str, requests: AsyncIterator[Message], caller: str) -> Message:
        async for _ in requests:
            pass
        return self.answer


def chunk(*rows: Row) -> pb.RowColumns:
    [message] = wire.encode_rows(rows)
    return message.message


@pytest.mark.parametrize(
    ("lie", "match"),
    [
        (pb.CompareResponse(symbols=bytes(7)), "first symbols"),
        (pb.CompareResponse(floors=b"\x08"), "cut short"),
        (pb.CompareResponse(rows_more=-5), "replica of -5 rows"),
        (pb.CompareResponse(repaired_version=bytes(9)), "version"),
        (pb.CompareResponse(refusal=pb.Refusal()), "unknown kind"),
    ],
)
async def test_lies_about_roots(world: World, lie: Message, match: str) -> None:
    there = world.node()
    world.network.serve(there.endpoint, Liar(lie, []))
    client = world.client(there)
    with pytest.raises(PeerError, match=match):
        await client.compare(EMPTY_ROOT)
    assert not client.session_open


@pytest.mark.parametrize(
    ("lies", "match"),
    [
        ([chunk(row(3))], "not asked for"),
        ([chunk(row(1)), chunk(row(2), row(3))], "not asked for|out of order"),
        ([pb.RowColumns(columns=chunk(row(1)).columns, content=b"another content")], "broke the protocol"),
        ([pb.RowColumns()], "absurd"),
    ],
)
async def test_lies_about_rows(world: World, lies: list[Message], match: str) -> None:
    there = world.node()
    world.network.serve(there.endpoint, Liar(pb.CloseResponse(), lies))
    with pytest.raises(PeerError, match=match):
        await fetched(world.client(there), [row(1), row(2)])


@pytest.mark.parametrize("answer", [(2, 1), (0, 0), (1, 2)])
async def test_lies_about_what_was_taken(world: World, answer: tuple[int, int]) -> None:
    there = world.node()
    received, applied = answer
    world.network.serve(there.endpoint, Liar(pb.PushResponse(rows_received=received, rows_applied=applied), []))
    with pytest.raises(PeerError, match="acknowledged"):
        await world.client(there).push(lambda: iter([row(1)]))
    world.network.serve(there.endpoint, Liar(pb.SendResponse(rows_sent=1, rows_applied=2), []))
    with pytest.raises(PeerError, match="more rows applied"):
        await world.client(there).send_rows("127.0.0.1:1", tokens_of([row(1)]))


async def test_an_answer_about_differences_that_is_none_is_refused(world: World) -> None:
    here, there = world.node([row(1)]), world.node([row(2)])
    client = world.client(there)
    await client.compare(here.root())
    snapshot = here.replica.snapshot(FULL)
    locator = Locator(snapshot, remote_count=5)
    request = locator.next_request()
    assert request is not None
    world.network.serve(there.endpoint, Liar(pb.LocateResponse(body=b"no answer"), []))
    with pytest.raises(PeerError, match="broke the protocol"):
        await client.locate(request)
    snapshot.close()


def test_the_version_of_hashes_fits_its_number() -> None:
    assert 0 < HASH_VERSION < 16
