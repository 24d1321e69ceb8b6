"""The administration service over a real listener, in front of a made-up node."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from gossiper.admin import GossipAdmin, resident_memory_bytes
from gossiper.core.messages import VersionedValue
from gossiper.discovery import ReloadResult
from gossiper.errors import LifecycleError, LocalStateError, NotRunningError
from gossiper.events import EndpointView, Liveness
from gossiper.limits import LOG_INTERVAL_SECONDS
from gossiper.reports import AdminSource, FailureDetectorReport, NodeInfo, PhiReport
from gossiper.transport.strict import strict
from gossiper.v1 import admin_pb2, admin_pb2_grpc

if TYPE_CHECKING:
    Stub = admin_pb2_grpc.GossipAdminServiceAsyncStub

A, B, C = "10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000"
TIMEOUT_SECONDS = 5.0
HOST_ID = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
OTHER_HOST_ID = "00000000-0000-4000-8000-0000000000bb"


def view(endpoint: str, liveness: Liveness, **states: VersionedValue) -> EndpointView:
    return EndpointView(endpoint, 100, 9, 130, 1000, liveness, MappingProxyType(states))


@dataclass(frozen=True)
class Left:
    knowing: tuple[str, ...]
    unaware: tuple[str, ...]


class FakeNode:
    """A node as the service sees it; not running until ``ready``. ``done`` is what it was told to do, in order."""

    def __init__(self) -> None:
        self.ready = True
        self.active = True
        self.status = "NORMAL"
        self.health: str | None = None
        self.failure: str | None = None
        self.refusal: Exception | None = None
        self.left = Left((C, B), ())
        self.gate = asyncio.Event()
        self.gate.set()
        self.done: list[str] = []

    async def _operation(self, name: str) -> None:
        self._check()
        await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        self.done.append(name)

    def member(self, endpoint: str) -> EndpointView | None:
        self._check()
        return next((one for one in self.members() if one.endpoint == endpoint), None)

    def set_health(self, *, serving: bool, reason: str = "") -> None:
        self.health = "serving" if serving else f"not_serving,{reason}"
        self.done.append(f"health {self.health}")

    async def leave(self, *, timeout_seconds: float = 10.0) -> Left:
        await self._operation(f"leave {timeout_seconds:g}")
        self.status, self.active = "LEFT,1", False
        return self.left

    async def drain(self) -> None:
        await self._operation("drain")
        self.active = False

    async def disable_gossip(self) -> None:
        await self._operation("disable")
        self.active = False

    async def enable_gossip(self) -> None:
        await self._operation("enable")
        self.active = True

    def remove(self, host_id: str) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.done.append(f"remove {host_id}")

    def assassinate(self, endpoint: str, *, force: bool = False) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.done.append(f"assassinate {endpoint} {force}")

    async def reload_seeds(self) -> ReloadResult:
        await self._operation("reload")
        return ReloadResult(seeds=(A, B), added=(B,), removed=(C,), faults=("seeds: line 1: bad",))

    async def wait_settled(self, *, timeout_seconds: float = 60.0) -> bool:
        await self._operation(f"settle {timeout_seconds:g}")
        return True

    def _check(self) -> None:
        if not self.ready:
            raise NotRunningError("not started")

    @property
    def cluster_name(self) -> str:
        self._check()
        return "test"

    @property
    def endpoint(self) -> str:
        self._check()
        return A

    def members(self) -> tuple[EndpointView, ...]:
        self._check()
        return (
            view(C, Liveness.UNKNOWN),
            view(A, Liveness.ALIVE, DC=VersionedValue(17, "dc1"), **self._own_states()),
            view(
                B, Liveness.DOWN, zone=VersionedValue(18, "", deleted=True), HOST_ID=VersionedValue(18, OTHER_HOST_ID)
            ),
        )

    def _own_states(self) -> dict[str, VersionedValue]:
        states = {} if self.health is None else {"HEALTH": VersionedValue(129, self.health)}
        return states if not self.status else {**states, "STATUS": VersionedValue(130, self.status)}

    def evidence_ages(self) -> Mapping[str, float]:
        self._check()
        return {A: 0.0, B: 12.5}

    def failure_detector(self) -> FailureDetectorReport:
        self._check()
        return FailureDetectorReport(
            8.0,
            1.5,
            (PhiReport(C, 0.0, 2.0, 0, -1.0, Liveness.UNKNOWN), PhiReport(B, 9.25, 1.0, 42, 12.5, Liveness.DOWN)),
        )

    def info(self) -> NodeInfo:
        self._check()
        return NodeInfo(
            endpoint=A,
            host_id="6f9619ff-8b86-4d01-b42d-00cf4fc964ff",
            generation=100,
            heartbeat=9,
            gossip_active=self.active,
            uptime_seconds=9.5,
            datacenter="dc1",
            rack="r1",
            release_version="1.2.3",
            interval_seconds=1.0,
            seeds=(B, A),
            counters=(("b", 2.0), ("a", 1.0)),
        )


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


class FakeApplication:
    """What serves on top of it; tells in the node's list what it was told."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.refusal: LifecycleError | None = None

    def check_leave(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    async def stop_serving(self, reason: str) -> None:
        self.node.done.append(f"stop {reason}")


@pytest.fixture
def application(node: FakeNode) -> FakeApplication:
    return FakeApplication(node)


@pytest.fixture
async def stub(node: FakeNode, application: FakeApplication) -> AsyncIterator[Stub]:
    source: AdminSource = node
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    GossipAdmin(source, application).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield admin_pb2_grpc.GossipAdminServiceStub(channel)
    await server.stop(None)


async def test_what_is_no_protobuf_is_refused_in_one_line(
    node: FakeNode, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    monkeypatch.setattr("gossiper.admin.strict", lambda it: strict(it, lambda: now))
    GossipAdmin(node).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:

        async def call(method: str, content: bytes) -> grpc.StatusCode:
            multi: Any = channel.unary_unary(f"/gossiper.v1.GossipAdminService/{method}")
            try:
                await multi(content, timeout=TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        noise = b"\xff\xff\xff\xff noise"
        for _ in range(20):
            assert await call("Remove", noise) is grpc.StatusCode.INVALID_ARGUMENT
        assert await call("Drain", noise) is grpc.StatusCode.INVALID_ARGUMENT
        now += LOG_INTERVAL_SECONDS
        assert await call("Remove", noise) is grpc.StatusCode.INVALID_ARGUMENT
        assert await call("GetSeeds", b"") is grpc.StatusCode.OK
        assert await call("Nothing", b"") is grpc.StatusCode.UNIMPLEMENTED
    await server.stop(None)
    said = [record.getMessage() for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]
    assert [text.partition("method=/gossiper.v1.GossipAdminService/")[2].split()[0] for text in said] == [
        "Remove",
        "Drain",
        "Remove",
    ]
    assert [text.rpartition("=")[2] for text in said] == ["0", "0", "19"]
    assert not [record for record in caplog.records if record.exc_info]


async def test_the_cluster_view_is_ordered_and_leaves_tombstones_out(stub: Stub) -> None:
    answer = await stub.GetClusterView(admin_pb2.GetClusterViewRequest(), timeout=TIMEOUT_SECONDS)
    common: dict[str, Any] = {"generation": 100, "heartbeat": 9, "states_version": 130, "interval_ms": 1000}
    states = [
        admin_pb2.StateView(key="DC", version=17, value="dc1"),
        admin_pb2.StateView(key="STATUS", version=130, value="NORMAL"),
    ]
    assert answer == admin_pb2.GetClusterViewResponse(
        cluster_name="test",
        local_endpoint=A,
        endpoints=[
            admin_pb2.EndpointView(
                endpoint=A, liveness=admin_pb2.LIVENESS_ALIVE, states=states, evidence_age_seconds=0.0, **common
            ),
            admin_pb2.EndpointView(
                endpoint=B,
                liveness=admin_pb2.LIVENESS_DOWN,
                evidence_age_seconds=12.5,
                states=[admin_pb2.StateView(key="HOST_ID", version=18, value=OTHER_HOST_ID)],
                **common,
            ),
            admin_pb2.EndpointView(
                endpoint=C, liveness=admin_pb2.LIVENESS_UNKNOWN, evidence_age_seconds=-1.0, **common
            ),
        ],
    )


async def test_the_failure_detector(stub: Stub) -> None:
    answer = await stub.GetFailureDetector(admin_pb2.GetFailureDetectorRequest(), timeout=TIMEOUT_SECONDS)
    assert answer == admin_pb2.GetFailureDetectorResponse(
        phi_threshold=8.0,
        local_pause_remaining_seconds=1.5,
        endpoints=[
            admin_pb2.PhiView(
                endpoint=B,
                phi=9.25,
                interval_mean_seconds=1.0,
                sample_count=42,
                last_arrival_age_seconds=12.5,
                liveness=admin_pb2.LIVENESS_DOWN,
            ),
            admin_pb2.PhiView(
                endpoint=C,
                interval_mean_seconds=2.0,
                last_arrival_age_seconds=-1.0,
                liveness=admin_pb2.LIVENESS_UNKNOWN,
            ),
        ],
    )


async def test_the_node_itself(stub: Stub) -> None:
    answer = await stub.GetNodeInfo(admin_pb2.GetNodeInfoRequest(), timeout=TIMEOUT_SECONDS)
    assert 2**20 < answer.memory_resident_bytes < 2**40
    answer.ClearField("memory_resident_bytes")
    assert answer == admin_pb2.GetNodeInfoResponse(
        endpoint=A,
        host_id="6f9619ff-8b86-4d01-b42d-00cf4fc964ff",
        generation=100,
        heartbeat=9,
        gossip_active=True,
        uptime_seconds=9.5,
        datacenter="dc1",
        rack="r1",
        release_version="1.2.3",
        interval_seconds=1.0,
        seeds=[B, A],
        counters=[admin_pb2.CounterView(name="a", value=1.0), admin_pb2.CounterView(name="b", value=2.0)],
        status="NORMAL",
        serving=True,
    )


async def test_the_node_itself_says_that_it_cannot_serve_and_that_it_failed(stub: Stub, node: FakeNode) -> None:
    node.health, node.failure = "not_serving,disk, full", "removed"
    answer = await stub.GetNodeInfo(admin_pb2.GetNodeInfoRequest(), timeout=TIMEOUT_SECONDS)
    assert (answer.serving, answer.health_reason, answer.failure) == (False, "disk, full", "removed")


async def test_a_node_that_is_not_ready_says_so_until_it_is(stub: Stub, node: FakeNode) -> None:
    node.ready = False
    with pytest.raises(grpc.aio.AioRpcError) as view_error:
        await stub.GetClusterView(admin_pb2.GetClusterViewRequest(), timeout=TIMEOUT_SECONDS)
    with pytest.raises(grpc.aio.AioRpcError) as detector_error:
        await stub.GetFailureDetector(admin_pb2.GetFailureDetectorRequest(), timeout=TIMEOUT_SECONDS)
    with pytest.raises(grpc.aio.AioRpcError) as info_error:
        await stub.GetNodeInfo(admin_pb2.GetNodeInfoRequest(), timeout=TIMEOUT_SECONDS)
    for caught in (view_error, detector_error, info_error):
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "node is not ready"
    node.ready = True
    answer = await stub.GetNodeInfo(admin_pb2.GetNodeInfoRequest(), timeout=TIMEOUT_SECONDS)
    assert answer.endpoint == A


def test_every_liveness_has_its_word_on_the_wire() -> None:
    from gossiper.admin import _LIVENESS

    assert set(_LIVENESS) == set(Liveness)
    assert admin_pb2.LIVENESS_UNSPECIFIED not in _LIVENESS.values()


def test_resident_memory_with_and_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    now = resident_memory_bytes()
    assert now > 2**20
    assert now % os.sysconf("SC_PAGE_SIZE") == 0
    monkeypatch.setattr("gossiper.admin._STATM", Path("/no/such/file"))
    assert resident_memory_bytes() >= now // 2


# --- operations


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_leaving_stops_the_service_first_and_tells_who_knows(stub: Stub, node: FakeNode) -> None:
    node.left = Left((C,), (B,))
    answer = await stub.Leave(admin_pb2.LeaveRequest(timeout_seconds=3), timeout=TIMEOUT_SECONDS)
    assert answer == admin_pb2.LeaveResponse(endpoint=A, knowing=[C], unaware=[B])
    assert node.done == ["stop leaving", "health not_serving,leaving", "leave 3"]
    again = await refused(stub.Leave(admin_pb2.LeaveRequest(timeout_seconds=3), timeout=TIMEOUT_SECONDS))
    assert again == (grpc.StatusCode.FAILED_PRECONDITION, "this node has left already")
    assert len(node.done) == 3


async def test_an_application_that_is_needed_does_not_leave_unless_forced(
    stub: Stub, node: FakeNode, application: FakeApplication
) -> None:
    application.refusal = LifecycleError("the last copy is here")
    answer = await refused(stub.Leave(admin_pb2.LeaveRequest(timeout_seconds=3), timeout=TIMEOUT_SECONDS))
    assert answer == (grpc.StatusCode.FAILED_PRECONDITION, "the last copy is here")
    assert node.done == []
    await stub.Leave(admin_pb2.LeaveRequest(timeout_seconds=3, force=True), timeout=TIMEOUT_SECONDS)
    assert node.done[-1] == "leave 3"


@pytest.mark.parametrize("seconds", [0.0, -1.0, 3601.0, float("nan")])
async def test_a_wait_has_bounds(stub: Stub, node: FakeNode, seconds: float) -> None:
    expected = f"timeout_seconds must be above 0 and at most 3600, is {seconds:g}"
    leave = await refused(stub.Leave(admin_pb2.LeaveRequest(timeout_seconds=seconds), timeout=TIMEOUT_SECONDS))
    settle = admin_pb2.WaitSettledRequest(timeout_seconds=seconds)
    wait = await refused(stub.WaitSettled(settle, timeout=TIMEOUT_SECONDS))
    assert leave == wait == (grpc.StatusCode.INVALID_ARGUMENT, expected)
    assert node.done == []


async def test_what_the_state_of_the_node_does_not_allow(stub: Stub, node: FakeNode) -> None:
    node.active = False
    leave = admin_pb2.LeaveRequest(timeout_seconds=3)
    off = "gossip is off on this node; switch it on first (nodetool enablegossip)"
    assert await refused(stub.Leave(leave, timeout=TIMEOUT_SECONDS)) == (grpc.StatusCode.FAILED_PRECONDITION, off)
    node.failure = "an operator removed this node"
    answer = await refused(stub.Leave(leave, timeout=TIMEOUT_SECONDS))
    assert answer == (grpc.StatusCode.FAILED_PRECONDITION, node.failure)
    node.failure, node.active, node.status = None, True, "removed,x,1"
    answer = await refused(stub.Leave(leave, timeout=TIMEOUT_SECONDS))
    assert answer == (grpc.StatusCode.FAILED_PRECONDITION, "a node that is removed cannot leave")
    node.status = "BOOT"
    answer = await refused(stub.DisableGossip(admin_pb2.DisableGossipRequest(), timeout=TIMEOUT_SECONDS))
    assert answer[1] == "gossip stays on while the node is BOOT; stop the node instead"
    node.status = ""
    answer = await refused(stub.DisableGossip(admin_pb2.DisableGossipRequest(), timeout=TIMEOUT_SECONDS))
    assert answer[1] == "gossip stays on while the node is not yet a member; stop the node instead"
    assert node.done == []


async def test_gossip_off_and_on_is_idempotent(stub: Stub, node: FakeNode) -> None:
    for changed in (True, False):
        off = await stub.DisableGossip(admin_pb2.DisableGossipRequest(), timeout=TIMEOUT_SECONDS)
        assert off == admin_pb2.DisableGossipResponse(endpoint=A, changed=changed)
    for changed in (True, False):
        on = await stub.EnableGossip(admin_pb2.EnableGossipRequest(), timeout=TIMEOUT_SECONDS)
        assert on == admin_pb2.EnableGossipResponse(endpoint=A, changed=changed, generation=100)
    assert node.done == ["disable", "enable"]


async def test_a_drained_node_stays_drained(stub: Stub, node: FakeNode) -> None:
    for _ in range(2):
        answer = await stub.Drain(admin_pb2.DrainRequest(), timeout=TIMEOUT_SECONDS)
        assert answer.endpoint == A
    assert node.done == ["stop draining", "drain", "stop draining"]
    enable = await refused(stub.EnableGossip(admin_pb2.EnableGossipRequest(), timeout=TIMEOUT_SECONDS))
    leave = await refused(stub.Leave(admin_pb2.LeaveRequest(timeout_seconds=3), timeout=TIMEOUT_SECONDS))
    assert leave == enable
    assert enable == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "this node was drained and serves no more; start it anew",
    )


async def test_removing_by_host_id(stub: Stub, node: FakeNode) -> None:
    for text in (OTHER_HOST_ID, OTHER_HOST_ID.upper(), f"{{{OTHER_HOST_ID}}}"):
        removed = await stub.Remove(admin_pb2.RemoveRequest(host_id=text), timeout=TIMEOUT_SECONDS)
        assert removed == admin_pb2.RemoveResponse(endpoint=B, host_id=OTHER_HOST_ID)
    assert node.done == [f"remove {OTHER_HOST_ID}"] * 3
    answer = await refused(stub.Remove(admin_pb2.RemoveRequest(host_id="status"), timeout=TIMEOUT_SECONDS))
    assert answer == (grpc.StatusCode.INVALID_ARGUMENT, "'status' is no host id, which is a UUID")
    node.refusal = LifecycleError("it is alive")
    answer = await refused(stub.Remove(admin_pb2.RemoveRequest(host_id=HOST_ID), timeout=TIMEOUT_SECONDS))
    assert answer == (grpc.StatusCode.FAILED_PRECONDITION, "it is alive")


async def test_assassinating(stub: Stub, node: FakeNode) -> None:
    request = admin_pb2.AssassinateRequest(endpoint="[::1]:07000", force=True)
    answer = await refused(stub.Assassinate(admin_pb2.AssassinateRequest(endpoint="x"), timeout=TIMEOUT_SECONDS))
    assert answer[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert "'x' is not host:port" in answer[1]
    assert (await stub.Assassinate(request, timeout=TIMEOUT_SECONDS)).endpoint == "[::1]:7000"
    assert node.done == ["assassinate [::1]:7000 True"]


async def test_seeds_without_the_node_itself(stub: Stub, node: FakeNode) -> None:
    seeds = await stub.GetSeeds(admin_pb2.GetSeedsRequest(), timeout=TIMEOUT_SECONDS)
    assert list(seeds.seeds) == [B]
    reloaded = await stub.ReloadSeeds(admin_pb2.ReloadSeedsRequest(), timeout=TIMEOUT_SECONDS)
    assert reloaded == admin_pb2.ReloadSeedsResponse(seeds=[B], added=[B], removed=[C], faults=["seeds: line 1: bad"])


async def test_waiting_until_settled(stub: Stub, node: FakeNode) -> None:
    answer = await stub.WaitSettled(admin_pb2.WaitSettledRequest(timeout_seconds=2.5), timeout=TIMEOUT_SECONDS)
    assert answer.settled
    assert node.done == ["settle 2.5"]


async def test_errors_of_the_node_have_their_statuses(stub: Stub, node: FakeNode) -> None:
    node.active = False
    node.refusal = LocalStateError("the disk is full")
    answer = await refused(stub.EnableGossip(admin_pb2.EnableGossipRequest(), timeout=TIMEOUT_SECONDS))
    assert answer == (grpc.StatusCode.INTERNAL, "the disk is full")
    node.refusal = NotRunningError("it has stopped meanwhile")
    answer = await refused(stub.EnableGossip(admin_pb2.EnableGossipRequest(), timeout=TIMEOUT_SECONDS))
    assert answer[0] is grpc.StatusCode.FAILED_PRECONDITION
    assert answer[1].startswith("gossip is off on this node")
    node.ready = False
    for call in (
        stub.Leave(admin_pb2.LeaveRequest(timeout_seconds=1), timeout=TIMEOUT_SECONDS),
        stub.ReloadSeeds(admin_pb2.ReloadSeedsRequest(), timeout=TIMEOUT_SECONDS),
        stub.GetSeeds(admin_pb2.GetSeedsRequest(), timeout=TIMEOUT_SECONDS),
    ):
        assert await refused(call) == (grpc.StatusCode.UNAVAILABLE, "node is not ready")


async def test_one_operation_at_a_time_which_goes_on_when_the_caller_has_gone(stub: Stub, node: FakeNode) -> None:
    node.gate.clear()
    impatient = await refused(stub.Leave(admin_pb2.LeaveRequest(timeout_seconds=3), timeout=0.2))
    assert impatient[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    answer = await refused(stub.Drain(admin_pb2.DrainRequest(), timeout=TIMEOUT_SECONDS))
    assert answer == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "another operation is under way: leave; try again when it has ended",
    )
    node.gate.set()
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while "leave 3" not in node.done:
            await asyncio.sleep(0.01)
    assert node.done.count("leave 3") == 1
