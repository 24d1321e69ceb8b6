"""The administration service of a running node: what ``nodetool`` asks. Read-only; served on its own listener."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import grpc.aio

from gossiper.errors import NotRunningError
from gossiper.events import EndpointView, Liveness
from gossiper.reports import AdminSource
from gossiper.v1 import admin_pb2, admin_pb2_grpc

NOT_READY: Final = "node is not ready"

_LIVENESS: Final = {
    Liveness.ALIVE: admin_pb2.LIVENESS_ALIVE,
    Liveness.DOWN: admin_pb2.LIVENESS_DOWN,
    Liveness.UNKNOWN: admin_pb2.LIVENESS_UNKNOWN,
    Liveness.SUSPECT: admin_pb2.LIVENESS_SUSPECT,
}
_STATM: Final = Path("/proc/self/statm")
_T = TypeVar("_T")


def resident_memory_bytes() -> int:
    """Physical memory of this process now; where the system does not tell (no /proc), the most it ever had."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


class GossipAdmin(admin_pb2_grpc.GossipAdminServiceServicer):
    """Answers from ``source``; UNAVAILABLE "node is not ready" while that raises ``NotRunningError``."""

    def __init__(self, source: AdminSource) -> None:
        self._source = source

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to a server that has not started."""
        admin_pb2_grpc.add_GossipAdminServiceServicer_to_server(self, server)

    async def GetClusterView(  # noqa: N802 - generated name
        self,
        request: admin_pb2.GetClusterViewRequest,  # noqa: ARG002 - has no fields
        context: grpc.aio.ServicerContext[admin_pb2.GetClusterViewRequest, admin_pb2.GetClusterViewResponse],
    ) -> admin_pb2.GetClusterViewResponse:
        """All endpoints as this node sees them, ordered by endpoint."""
        return await _answer(context, self._cluster_view)

    async def GetFailureDetector(  # noqa: N802 - generated name
        self,
        request: admin_pb2.GetFailureDetectorRequest,  # noqa: ARG002 - has no fields
        context: grpc.aio.ServicerContext[admin_pb2.GetFailureDetectorRequest, admin_pb2.GetFailureDetectorResponse],
    ) -> admin_pb2.GetFailureDetectorResponse:
        """Phi of every other endpoint."""
        return await _answer(context, self._failure_detector)

    async def GetNodeInfo(  # noqa: N802 - generated name
        self,
        request: admin_pb2.GetNodeInfoRequest,  # noqa: ARG002 - has no fields
        context: grpc.aio.ServicerContext[admin_pb2.GetNodeInfoRequest, admin_pb2.GetNodeInfoResponse],
    ) -> admin_pb2.GetNodeInfoResponse:
        """This node, its settings and counters."""
        return await _answer(context, self._node_info)

    def _cluster_view(self) -> admin_pb2.GetClusterViewResponse:
        ages = self._source.evidence_ages()
        members = sorted(self._source.members(), key=lambda view: view.endpoint)
        return admin_pb2.GetClusterViewResponse(
            cluster_name=self._source.cluster_name,
            local_endpoint=self._source.endpoint,
            endpoints=(_endpoint_view(view, ages.get(view.endpoint, -1.0)) for view in members),
        )

    def _failure_detector(self) -> admin_pb2.GetFailureDetectorResponse:
        report = self._source.failure_detector()
        return admin_pb2.GetFailureDetectorResponse(
            phi_threshold=report.phi_threshold,
            local_pause_remaining_seconds=report.local_pause_remaining_seconds,
            endpoints=(
                admin_pb2.PhiView(
                    endpoint=one.endpoint,
                    phi=one.phi,
                    interval_mean_seconds=one.interval_mean_seconds,
                    sample_count=one.sample_count,
                    last_arrival_age_seconds=one.last_arrival_age_seconds,
                    liveness=_LIVENESS[one.liveness],
                )
                for one in sorted(report.endpoints, key=lambda one: one.endpoint)
            ),
        )

    def _node_info(self) -> admin_pb2.GetNodeInfoResponse:
        info = self._source.info()
        return admin_pb2.GetNodeInfoResponse(
            endpoint=info.endpoint,
            host_id=info.host_id,
            generation=info.generation,
            heartbeat=info.heartbeat,
            gossip_active=info.gossip_active,
            uptime_seconds=info.uptime_seconds,
            datacenter=info.datacenter,
            rack=info.rack,
            release_version=info.release_version,
            interval_seconds=info.interval_seconds,
            seeds=info.seeds,
            counters=(admin_pb2.CounterView(name=name, value=value) for name, value in sorted(info.counters)),
            memory_resident_bytes=resident_memory_bytes(),
        )


def _endpoint_view(view: EndpointView, age_seconds: float) -> admin_pb2.EndpointView:
    return admin_pb2.EndpointView(
        endpoint=view.endpoint,
        generation=view.generation,
        heartbeat=view.heartbeat,
        states_version=view.states_version,
        interval_ms=view.interval_ms,
        liveness=_LIVENESS[view.liveness],
        states=(
            admin_pb2.StateView(key=key, version=value.version, value=value.value)
            for key, value in sorted(view.states.items(), key=lambda item: item[0])
            if not value.deleted
        ),
        evidence_age_seconds=age_seconds,
    )


async def _answer(context: grpc.aio.ServicerContext[Any, _T], make: Callable[[], _T]) -> _T:
    try:
        return make()
    except NotRunningError:
        await context.abort(grpc.StatusCode.UNAVAILABLE, NOT_READY)
