"""The administration of repair: what is asked is checked whole, what is reported arrives whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from typing import Any

import grpc
import pytest
from fake_repair import (
    BEGUN,
    COMPLETED,
    NOW,
    OTHER_SESSION,
    REPLICAS,
    SESSION,
    STREAMING,
    FakeRepairService,
    FakeScheduler,
    FakeThrottle,
    served,
    session,
    statistics,
    update,
)

from antientropy import admin_wire
from antientropy.core.tokens import TOKEN_MAX, TokenRange
from antientropy.errors import (
    RepairError,
    RepairRunningError,
    ServiceStoppedError,
    StoreFullError,
    UnknownKeyspaceError,
)
from antientropy.options import RepairMode, RepairOptions, Strategy
from antientropy.reports import (
    FlowPreview,
    RangeSummary,
    RepairStatistics,
    ScheduledRange,
    SessionState,
    ThrottleStatus,
)
from antientropy.v1 import admin_pb2 as pb
from antientropy.v1 import admin_pb2_grpc

SECONDS = 10.0
Code = grpc.StatusCode


@asynccontextmanager
async def stub_of(service: FakeRepairService, scheduler: FakeScheduler | None = None) -> AsyncIterator[Any]:
    async with (
        served(service, scheduler) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel,
    ):
        yield admin_pb2_grpc.RepairAdminServiceStub(channel)


async def refusal(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def repaired(stub: Any, request: pb.RepairRequest) -> list[pb.RepairUpdate]:
    return [one async for one in stub.Repair(request, timeout=SECONDS)]


# --- a repair


async def test_everything_that_is_asked_for_arrives() -> None:
    service = FakeRepairService()
    request = pb.RepairRequest(
        keyspace="kv",
        token_ranges=[pb.TokenRange(first=0, last=0), pb.TokenRange(first=16, last=TOKEN_MAX)],
        primary_only=True,
        peers=["b:1", "a:1", "b:1"],
        datacenters=["dc1"],
        mode=pb.REPAIR_MODE_PREVIEW,
        full=True,
        force=True,
        jobs=4,
        strategy=pb.REPAIR_STRATEGY_DESCENT,
        trace=True,
    )
    async with stub_of(service) as stub:
        await repaired(stub, request)
        await repaired(stub, pb.RepairRequest())
    asked = RepairOptions(
        token_ranges=(TokenRange(0, 0), TokenRange(16, TOKEN_MAX)),
        primary_only=True,
        peers=("b:1", "a:1"),
        datacenters=("dc1",),
        mode=RepairMode.PREVIEW,
        full=True,
        force=True,
        jobs=4,
        strategy=Strategy.DESCENT,
        trace=True,
    )
    assert service.calls == [("repair", "kv", asked), ("repair", "kv", RepairOptions())]


def test_every_mode_strategy_and_state_has_its_number() -> None:
    modes = {admin_wire.options_of(pb.RepairRequest(mode=mode)).mode for mode in pb.RepairMode.values()}
    ways = {admin_wire.options_of(pb.RepairRequest(strategy=way)).strategy for way in pb.RepairStrategy.values()}
    states = {
        pb.SessionState.Name(admin_wire.session_message(session(state=state)).state): state for state in SessionState
    }
    assert modes == set(RepairMode)
    assert ways == set(Strategy)
    assert states == {f"SESSION_STATE_{state.name}": state for state in SessionState}


RANGES = [pb.TokenRange(first=n, last=n) for n in range(admin_wire.ASKED_RANGES_MAX + 1)]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (pb.RepairRequest(token_ranges=[pb.TokenRange(first=9, last=3)]), "token range 9 to 3 ends before it begins"),
        (
            pb.RepairRequest(token_ranges=[pb.TokenRange(first=1, last=5), pb.TokenRange(first=5, last=6)]),
            "token range 5 to 6 overlaps one before it",
        ),
        (pb.RepairRequest(token_ranges=reversed(RANGES[:2])), "token range 0 to 0 overlaps one before it"),
        (pb.RepairRequest(token_ranges=RANGES), "1025 token ranges: at most 1024"),
        (pb.RepairRequest(peers=["a"] * 65), "65 names of a replica: at most 64"),
        (pb.RepairRequest(peers=[""]), "the name of a replica is empty"),
        (pb.RepairRequest(datacenters=["d" * 301]), "the name of a data centre is empty, not printable or over 300"),
        (pb.RepairRequest(datacenters=["dc\n1"]), "not printable"),
        (pb.RepairRequest(jobs=5), "5 jobs: 1 to 4"),
        (pb.RepairRequest(jobs=2**32 - 1), "4294967295 jobs: 1 to 4"),
        (pb.RepairRequest(mode=99), "repair mode number 99 is not known"),  # type: ignore[arg-type]  # that is it
        (pb.RepairRequest(strategy=99), "strategy number 99 is not known"),  # type: ignore[arg-type]  # that is it
        (pb.RepairRequest(keyspace="k" * 256), "at most 255 bytes"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_begins(request_: pb.RepairRequest, reason: str) -> None:
    service = FakeRepairService()
    async with stub_of(service) as stub:
        code, details = await refusal(repaired(stub, request_))
    assert code is Code.INVALID_ARGUMENT
    assert reason in details
    assert service.calls == []


async def test_what_is_no_protobuf_is_refused() -> None:
    async with (
        served(FakeRepairService()) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel,
    ):
        call: Any = channel.unary_unary("/antientropy.v1.RepairAdminService/CancelRepairs")
        code, details = await refusal(call(b"\xff\xff", timeout=SECONDS))
    assert code is Code.INVALID_ARGUMENT
    assert "no protobuf" in details or "not the protobuf message" in details


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnknownKeyspaceError("no"), Code.NOT_FOUND),
        (RepairRunningError("no"), Code.ABORTED),
        (RepairError("no"), Code.ABORTED),
        (ServiceStoppedError("no"), Code.UNAVAILABLE),
        (StoreFullError("no"), Code.FAILED_PRECONDITION),
    ],
)
async def test_a_repair_that_fails_says_whose_fault_it_is(error: Exception, code: grpc.StatusCode) -> None:
    async with stub_of(FakeRepairService(error=error)) as stub:
        assert await refusal(repaired(stub, pb.RepairRequest())) == (code, "no")


async def test_a_keyspace_is_named_where_there_are_several() -> None:
    service = FakeRepairService(keyspaces=("kv", "other"))
    async with stub_of(service) as stub:
        assert await refusal(repaired(stub, pb.RepairRequest())) == (
            Code.INVALID_ARGUMENT,
            "name a keyspace; there is: kv, other",
        )
        assert (await repaired(stub, pb.RepairRequest(keyspace="other")))[-1].keyspace == "other"
        code, _ = await refusal(repaired(stub, pb.RepairRequest(keyspace="third")))
    assert code is Code.NOT_FOUND


async def test_every_number_of_an_update_arrives() -> None:
    sums = RepairStatistics()
    for number, one in enumerate(fields(RepairStatistics), start=1):
        setattr(sums, one.name, {"sketch": 3, "rows": 4} if one.name == "strategies" else number)
    flow = FlowPreview("a:1", "b:1", 5, 600, 2, (b"\xff", b"key"))
    step = update("m", SessionState.VERIFYING, 0.25, sums=sums, rows_to_move=7, eta_seconds=1.5, previews=(flow,))
    async with stub_of(FakeRepairService(updates=[replace(step, trace=True), COMPLETED])) as stub:
        first, last = await repaired(stub, pb.RepairRequest())
    arrived = first.statistics
    for one in fields(RepairStatistics):
        value: object = getattr(arrived, one.name)
        if one.name == "strategies":
            value = {found.strategy: found.count for found in arrived.strategies}
        assert value == getattr(sums, one.name), one.name
    assert (first.session_id, first.keyspace, first.message, first.progress) == (SESSION, "kv", "m", 0.25)
    assert (first.state, first.rows_to_move, first.eta_seconds) == (pb.SESSION_STATE_VERIFYING, 7, 1.5)
    assert first.trace
    assert list(first.previews) == [
        pb.FlowPreview(source="a:1", target="b:1", rows=5, row_bytes=600, tombstones=2, first_keys=[b"\xff", b"key"])
    ]
    assert not last.HasField("eta_seconds")
    assert not last.trace


async def test_cancelling_the_call_closes_the_repair() -> None:
    service = FakeRepairService(updates=[BEGUN], endless=True, state_when_closed=SessionState.INTERRUPTED)
    async with stub_of(service) as stub:
        call = stub.Repair(pb.RepairRequest(), timeout=SECONDS)
        await call.read()
        call.cancel()
        await asyncio.wait_for(service.closed.wait(), SECONDS)
    assert service.known[SESSION].state is SessionState.INTERRUPTED


async def test_a_replica_is_described() -> None:
    async with stub_of(FakeRepairService()) as stub:
        found = await stub.DescribeReplica(pb.DescribeReplicaRequest(), timeout=SECONDS)
        code, _ = await refusal(stub.DescribeReplica(pb.DescribeReplicaRequest(keyspace="x"), timeout=SECONDS))
    assert found == pb.DescribeReplicaResponse(
        keyspace="kv",
        row_count=10,
        tombstone_count=1,
        root_digest=bytes(16),
        tree_depth=3,
        replication_factor=3,
        replicas=REPLICAS,
        stored_bytes=4096,
    )
    assert code is Code.NOT_FOUND


# --- sessions


def with_sessions() -> FakeRepairService:
    service = FakeRepairService()
    service.add(
        session(),
        session(OTHER_SESSION, SessionState.PAUSED, started_at=NOW - 900),
        session("a" * 36, SessionState.FAILED, detail="no replica took part", started_at=NOW - 100),
    )
    return service


async def test_sessions_are_listed_with_all_that_is_known() -> None:
    async with stub_of(with_sessions()) as stub:
        active = await stub.ListSessions(pb.ListSessionsRequest(), timeout=SECONDS)
        ended = await stub.ListHistory(pb.ListHistoryRequest(), timeout=SECONDS)
    assert active.now == ended.now == NOW
    assert [one.session_id for one in active.sessions] == [OTHER_SESSION, SESSION]
    assert active.sessions[1] == pb.SessionInfo(
        session_id=SESSION,
        keyspace="kv",
        state=pb.SESSION_STATE_STREAMING,
        coordinator=REPLICAS[0],
        replicas=REPLICAS,
        token_ranges=[pb.TokenRange(first=0, last=TOKEN_MAX)],
        started_at=NOW - 245,
        updated_at=NOW - 0.5,
        progress=0.43,
        statistics=admin_wire.statistics_message(statistics()),
    )
    assert [(one.detail, one.ended_at) for one in ended.sessions] == [("no replica took part", NOW)]


async def test_the_history_is_bounded() -> None:
    service = with_sessions()
    async with stub_of(service) as stub:
        await stub.ListHistory(pb.ListHistoryRequest(), timeout=SECONDS)
        await stub.ListHistory(pb.ListHistoryRequest(limit=1000), timeout=SECONDS)
        refused = await refusal(stub.ListHistory(pb.ListHistoryRequest(limit=1001), timeout=SECONDS))
    assert service.calls == [("history", 20), ("history", 1000)]
    assert refused == (Code.INVALID_ARGUMENT, "1001 sessions: at most 1000 can be listed")


@pytest.mark.parametrize("name", [SESSION, SESSION[:5], "4724", SESSION.upper()])
async def test_a_session_is_cancelled_by_the_beginning_of_its_id(name: str) -> None:
    service = with_sessions()
    async with stub_of(service) as stub:
        answer = await stub.CancelRepairs(pb.CancelRepairsRequest(session_id=name, force=True), timeout=SECONDS)
    assert [(one.session_id, one.state) for one in answer.cancelled] == [(SESSION, pb.SESSION_STATE_CANCELLED)]
    assert service.calls == [("cancel", SESSION, True)]
    assert service.known[OTHER_SESSION].state is SessionState.PAUSED


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("472", Code.INVALID_ARGUMENT, f"2 sessions begin with 472 ({SESSION}, {OTHER_SESSION}); give more of the id"),
        ("x", Code.NOT_FOUND, "no session begins with x; 'nodetool repair_admin list' shows them"),
        ("", Code.INVALID_ARGUMENT, "name a session by its id"),
        ("4" * 65, Code.INVALID_ARGUMENT, "name a session by its id"),
        ("4\n", Code.INVALID_ARGUMENT, "name a session by its id"),
        ("é", Code.INVALID_ARGUMENT, "name a session by its id"),
    ],
)
async def test_a_name_that_is_not_one_session_changes_nothing(name: str, code: grpc.StatusCode, reason: str) -> None:
    service = with_sessions()
    before = dict(service.known)
    async with stub_of(service) as stub:
        for call in (
            stub.PauseRepair(pb.PauseRepairRequest(session_id=name), timeout=SECONDS),
            stub.ResumeRepair(pb.ResumeRepairRequest(session_id=name), timeout=SECONDS).read(),
            *([stub.CancelRepairs(pb.CancelRepairsRequest(session_id=name), timeout=SECONDS)] if name else []),
        ):
            found, details = await refusal(call)
            assert found is code
            assert reason in details
    assert service.known == before
    assert service.calls == []


async def test_an_id_that_begins_another_is_itself() -> None:
    service = FakeRepairService()
    service.add(session("4724"), session("47245"))
    async with stub_of(service) as stub:
        answer = await stub.PauseRepair(pb.PauseRepairRequest(session_id="4724"), timeout=SECONDS)
    assert (answer.session.session_id, answer.session.state) == ("4724", pb.SESSION_STATE_PAUSED)


async def test_all_sessions_are_cancelled_and_those_that_resist_are_named() -> None:
    service = with_sessions()
    service.stubborn.add(OTHER_SESSION)
    async with stub_of(service) as stub:
        answer = await stub.CancelRepairs(pb.CancelRepairsRequest(all=True), timeout=SECONDS)
        assert [one.session_id for one in answer.cancelled] == [SESSION]
        assert list(answer.failures) == [f"{OTHER_SESSION}: a replica cannot be told; see --force"]
        one = await refusal(stub.CancelRepairs(pb.CancelRepairsRequest(session_id=OTHER_SESSION), timeout=SECONDS))
        assert one == (Code.ABORTED, "a replica cannot be told; see --force")
        forced = await stub.CancelRepairs(pb.CancelRepairsRequest(all=True, force=True), timeout=SECONDS)
        assert [one.session_id for one in forced.cancelled] == [OTHER_SESSION]
        again = await stub.CancelRepairs(pb.CancelRepairsRequest(all=True), timeout=SECONDS)
        assert again == pb.CancelRepairsResponse()


async def test_one_session_or_all_but_not_both_and_not_none() -> None:
    service = with_sessions()
    async with stub_of(service) as stub:
        for request in (pb.CancelRepairsRequest(), pb.CancelRepairsRequest(session_id=SESSION, all=True)):
            refused = await refusal(stub.CancelRepairs(request, timeout=SECONDS))
            assert refused == (Code.INVALID_ARGUMENT, "name one session, or ask for all")
    assert service.calls == []


async def test_what_has_ended_is_not_paused() -> None:
    async with stub_of(with_sessions()) as stub:
        code, details = await refusal(stub.PauseRepair(pb.PauseRepairRequest(session_id="aaaa"), timeout=SECONDS))
    assert (code, details) == (Code.INVALID_ARGUMENT, f"session {'a' * 36} has ended")


async def test_a_session_is_resumed_with_updates() -> None:
    service = with_sessions()
    service.updates = [STREAMING, COMPLETED]
    async with stub_of(service) as stub:
        call = stub.ResumeRepair(pb.ResumeRepairRequest(session_id="47251"), timeout=SECONDS)
        updates = [one async for one in call]
    assert service.calls == [("resume", OTHER_SESSION)]
    assert [one.state for one in updates] == [pb.SESSION_STATE_STREAMING, pb.SESSION_STATE_COMPLETED]
    assert {one.keyspace for one in updates} == {"kv"}


# --- summaries, throttle, schedule


async def test_ranges_are_summarized_for_one_keyspace_or_all() -> None:
    service = FakeRepairService(keyspaces=("other", "kv"))
    never = RangeSummary("kv", TokenRange(0, 9), None, 0, 0, None, stalled=True)
    known = RangeSummary("other", TokenRange(10, 19), NOW - 5, 77, 3, NOW + 5, stalled=False)
    service.summaries = (known, never)
    async with stub_of(service) as stub:
        everything = await stub.SummarizeRepairs(pb.SummarizeRepairsRequest(), timeout=SECONDS)
        one = await stub.SummarizeRepairs(pb.SummarizeRepairsRequest(keyspace="other"), timeout=SECONDS)
        refused = await refusal(stub.SummarizeRepairs(pb.SummarizeRepairsRequest(keyspace="x"), timeout=SECONDS))
    assert everything.now == NOW
    assert list(everything.ranges) == [
        pb.RangeSummary(keyspace="kv", token_range=pb.TokenRange(first=0, last=9), stalled=True),
        pb.RangeSummary(
            keyspace="other",
            token_range=pb.TokenRange(first=10, last=19),
            repaired_at=NOW - 5,
            purged_version=77,
            differences_last=3,
            due_at=NOW + 5,
        ),
    ]
    assert list(one.ranges) == [everything.ranges[1]]
    assert refused[0] is Code.NOT_FOUND


async def test_the_schedule_says_when_ranges_are_due() -> None:
    service = FakeRepairService()
    service.summaries = (RangeSummary("kv", TokenRange(0, 9), None, 0, 0, None, stalled=False),)
    scheduler = FakeScheduler((ScheduledRange("kv", TokenRange(0, 9), None, NOW + 7, stalled=True),))
    async with stub_of(service, scheduler) as stub:
        (one,) = (await stub.SummarizeRepairs(pb.SummarizeRepairsRequest(), timeout=SECONDS)).ranges
    assert (one.due_at, one.stalled) == (NOW + 7, True)


async def test_the_throttle_is_shown_and_set() -> None:
    service = FakeRepairService(throttle=FakeThrottle(ThrottleStatus(1000.0, None, 0.5, 0.25, 0.003)))
    async with stub_of(service) as stub:
        before = await stub.GetThrottle(pb.GetThrottleRequest(), timeout=SECONDS)
        some = await stub.SetThrottle(pb.SetThrottleRequest(rows_per_second=7), timeout=SECONDS)
        none = await stub.SetThrottle(
            pb.SetThrottleRequest(bytes_per_second=0, rows_per_second=0, cpu_share=1), timeout=SECONDS
        )
    shown = pb.Throttle(bytes_per_second=1000, cpu_share=0.5, pace=0.25, latency_seconds=0.003)
    assert before.throttle == shown
    shown.rows_per_second = 7
    assert some.throttle == shown
    assert none.throttle == pb.Throttle(cpu_share=1, pace=0.25, latency_seconds=0.003)
    assert service.throttle is not None
    assert service.throttle.limits == ThrottleStatus(None, None, None, 0.25, 0.003)


@pytest.mark.parametrize(
    "request_",
    [
        pb.SetThrottleRequest(bytes_per_second=-1, rows_per_second=5),
        pb.SetThrottleRequest(bytes_per_second=float("nan")),
        pb.SetThrottleRequest(rows_per_second=float("inf")),
        pb.SetThrottleRequest(cpu_share=0),
        pb.SetThrottleRequest(cpu_share=1.5),
        pb.SetThrottleRequest(rows_per_second=5, cpu_share=float("nan")),
    ],
)
async def test_limits_that_cannot_be_change_nothing(request_: pb.SetThrottleRequest) -> None:
    before = ThrottleStatus(1.0, 2.0, 0.5)
    service = FakeRepairService(throttle=FakeThrottle(before))
    async with stub_of(service) as stub:
        code, details = await refusal(stub.SetThrottle(request_, timeout=SECONDS))
    assert code is Code.INVALID_ARGUMENT
    assert "is needed" in details
    assert service.throttle is not None
    assert service.throttle.limits is before


async def test_the_schedule_is_shown_paused_and_resumed() -> None:
    ranges = (
        ScheduledRange("kv", TokenRange(0, 9), NOW - 60, NOW + 60, SESSION, stalled=True, failures=2, last_error="e"),
        ScheduledRange("kv", TokenRange(10, 19), None, NOW + 70),
    )
    async with stub_of(FakeRepairService(), FakeScheduler(ranges, ("22:00-06:00",))) as stub:
        shown = (await stub.GetSchedule(pb.GetScheduleRequest(), timeout=SECONDS)).schedule
        paused = (await stub.PauseSchedule(pb.PauseScheduleRequest(paused=True), timeout=SECONDS)).schedule
        resumed = (await stub.PauseSchedule(pb.PauseScheduleRequest(), timeout=SECONDS)).schedule
    assert shown == resumed
    assert shown == pb.Schedule(
        now=NOW,
        period_seconds=86_400,
        windows=["22:00-06:00"],
        in_window=True,
        ranges=[
            pb.ScheduledRange(
                keyspace="kv",
                token_range=pb.TokenRange(first=0, last=9),
                repaired_at=NOW - 60,
                due_at=NOW + 60,
                session_id=SESSION,
                stalled=True,
                failures=2,
                last_error="e",
            ),
            pb.ScheduledRange(keyspace="kv", token_range=pb.TokenRange(first=10, last=19), due_at=NOW + 70),
        ],
    )
    assert paused.paused


async def test_a_node_without_throttle_and_schedule_says_so() -> None:
    async with stub_of(FakeRepairService(throttle=None)) as stub:
        for call in (
            stub.GetThrottle(pb.GetThrottleRequest(), timeout=SECONDS),
            stub.SetThrottle(pb.SetThrottleRequest(), timeout=SECONDS),
        ):
            assert await refusal(call) == (Code.UNIMPLEMENTED, "repair on this node has no throttle")
        for call in (
            stub.GetSchedule(pb.GetScheduleRequest(), timeout=SECONDS),
            stub.PauseSchedule(pb.PauseScheduleRequest(), timeout=SECONDS),
        ):
            assert await refusal(call) == (Code.UNIMPLEMENTED, "repair on this node has no schedule")
