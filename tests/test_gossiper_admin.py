"""The administration service over a real listener, in front of a made-up node."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from gossiper.admin import GossipAdmin, resident_memory_bytes
from gossiper.core.messages import VersionedValue
from gossiper.errors import NotRunningError
from gossiper.events import EndpointView, Liveness
from gossiper.reports import AdminSource, FailureDetectorReport, NodeInfo, PhiReport
from gossiper.v1 import admin_pb2, admin_pb2_grpc

if TYPE_CHECKING:
    Stub = admin_pb2_grpc.GossipAdminServiceAsyncStub

A, B, C = "10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000"
TIMEOUT_SECONDS = 5.0


def view(endpoint: str, liveness: Liveness, **states: VersionedValue) -> EndpointView:
    return EndpointView(endpoint, 100, 9, 130, 1000, liveness, MappingProxyType(states))


class FakeNode:
    """A node as the service sees it; not running until ``ready``."""

    def __init__(self) -> None:
        self.ready = True

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
            view(A, Liveness.ALIVE, STATUS=VersionedValue(130, "NORMAL"), DC=VersionedValue(17, "dc1")),
            view(B, Liveness.DOWN, zone=VersionedValue(18, "", deleted=True)),
        )

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
            gossip_active=True,
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


@pytest.fixture
async def stub(node: FakeNode) -> AsyncIterator[Stub]:
    source: AdminSource = node
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    GossipAdmin(source).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield admin_pb2_grpc.GossipAdminServiceStub(channel)
    await server.stop(None)


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
            admin_pb2.EndpointView(endpoint=B, liveness=admin_pb2.LIVENESS_DOWN, evidence_age_seconds=12.5, **common),
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
    )


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
