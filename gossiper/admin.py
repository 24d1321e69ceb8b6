"""The administration service of a running node: what ``nodetool`` asks and orders; served on its own listener.

Whoever reaches that listener may remove nodes from the cluster: keep it on loopback.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import grpc.aio

from gossiper.core.application_states import ApplicationState
from gossiper.core.endpoints import canonical_endpoint
from gossiper.core.lifecycle import Status, may_follow
from gossiper.errors import GossipError, LifecycleError, NotRunningError
from gossiper.events import EndpointView, Liveness
from gossiper.reports import AdminSource, Application
from gossiper.transport.strict import strict
from gossiper.v1 import admin_pb2, admin_pb2_grpc

logger = logging.getLogger(__name__)

NOT_READY: Final = "node is not ready"
GOSSIP_OFF: Final = "gossip is off on this node; switch it on first (nodetool enablegossip)"
DRAINED: Final = "this node was drained and serves no more; start it anew"
#: Longer waits are given up by whoever asked, or by the machines between, before they end.
WAIT_SECONDS_MAX: Final = 3_600.0

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
    """Answers from ``source``; UNAVAILABLE "node is not ready" while that raises ``NotRunningError``.

    Operations run one at a time, and to their end even when the caller goes away.

    Args:
        source: The node.
        application: What serves on top of it: asked before the node leaves, and told to stop serving before it leaves
            or is drained.
    """

    def __init__(self, source: AdminSource, application: Application | None = None) -> None:
        self._source = source
        self._application = application
        self._operation: asyncio.Task[object] | None = None
        self._drained = False

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to a server that has not started; what is no protobuf is refused without a traceback."""
        admin_pb2_grpc.add_GossipAdminServiceServicer_to_server(self, strict(server))

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

    async def GetSeeds(  # noqa: N802 - generated name
        self,
        request: admin_pb2.GetSeedsRequest,  # noqa: ARG002 - has no fields
        context: grpc.aio.ServicerContext[admin_pb2.GetSeedsRequest, admin_pb2.GetSeedsResponse],
    ) -> admin_pb2.GetSeedsResponse:
        """Seeds in force."""
        return await _answer(context, lambda: admin_pb2.GetSeedsResponse(seeds=self._others(self._source.info().seeds)))

    async def Leave(  # noqa: N802 - generated name
        self,
        request: admin_pb2.LeaveRequest,
        context: grpc.aio.ServicerContext[admin_pb2.LeaveRequest, admin_pb2.LeaveResponse],
    ) -> admin_pb2.LeaveResponse:
        """Leave for good."""
        return await self._operate(context, "leave", self._leave(request.timeout_seconds, force=request.force))

    async def Drain(  # noqa: N802 - generated name
        self,
        request: admin_pb2.DrainRequest,  # noqa: ARG002 - has no fields
        context: grpc.aio.ServicerContext[admin_pb2.DrainRequest, admin_pb2.DrainResponse],
    ) -> admin_pb2.DrainResponse:
        """Stop serving, then announce the shutdown."""
        return await self._operate(context, "drain", self._drain())

    async def DisableGossip(  # noqa: N802 - generated name
        self,
        request: admin_pb2.DisableGossipRequest,  # noqa: ARG002 - has no fields
        context: grpc.aio.ServicerContext[admin_pb2.DisableGossipRequest, admin_pb2.DisableGossipResponse],
    ) -> admin_pb2.DisableGossipResponse:
        """Announce the shutdown."""
        return await self._operate(context, "disable_gossip", self._disable_gossip())

    async def EnableGossip(  # noqa: N802 - generated name
        self,
        request: admin_pb2.EnableGossipRequest,  # noqa: ARG002 - has no fields
        context: grpc.aio.ServicerContext[admin_pb2.EnableGossipRequest, admin_pb2.EnableGossipResponse],
    ) -> admin_pb2.EnableGossipResponse:
        """Take part again."""
        return await self._operate(context, "enable_gossip", self._enable_gossip())

    async def Remove(  # noqa: N802 - generated name
        self,
        request: admin_pb2.RemoveRequest,
        context: grpc.aio.ServicerContext[admin_pb2.RemoveRequest, admin_pb2.RemoveResponse],
    ) -> admin_pb2.RemoveResponse:
        """Remove a dead node."""
        return await self._operate(context, "remove", self._remove(request.host_id))

    async def Assassinate(  # noqa: N802 - generated name
        self,
        request: admin_pb2.AssassinateRequest,
        context: grpc.aio.ServicerContext[admin_pb2.AssassinateRequest, admin_pb2.AssassinateResponse],
    ) -> admin_pb2.AssassinateResponse:
        """Remove what is at an endpoint."""
        return await self._operate(context, "assassinate", self._assassinate(request.endpoint, force=request.force))

    async def ReloadSeeds(  # noqa: N802 - generated name
        self,
        request: admin_pb2.ReloadSeedsRequest,  # noqa: ARG002 - has no fields
        context: grpc.aio.ServicerContext[admin_pb2.ReloadSeedsRequest, admin_pb2.ReloadSeedsResponse],
    ) -> admin_pb2.ReloadSeedsResponse:
        """Read all sources of seeds."""
        return await self._tell(context, self._reload_seeds())

    async def WaitSettled(  # noqa: N802 - generated name
        self,
        request: admin_pb2.WaitSettledRequest,
        context: grpc.aio.ServicerContext[admin_pb2.WaitSettledRequest, admin_pb2.WaitSettledResponse],
    ) -> admin_pb2.WaitSettledResponse:
        """Wait until the view stays the same."""
        return await self._tell(context, self._wait_settled(request.timeout_seconds))

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
        own = self._own()
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
            status=own.status,
            serving=own.serving,
            health_reason=_health_reason(own),
            failure=self._source.failure or "",
        )

    # -- operations --------------------------------------------------------------------------------------------------

    async def _operate(
        self, context: grpc.aio.ServicerContext[Any, _T], name: str, work: Coroutine[Any, Any, _T]
    ) -> _T:
        """Run one operation to its end, whether the caller waits for it or not."""
        if self._operation is not None:
            work.close()
            busy = f"another operation is under way: {self._operation.get_name()}; try again when it has ended"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, busy)
        logger.info("operation=%s begins", name)
        task = asyncio.create_task(work, name=name)
        self._operation = task
        task.add_done_callback(self._operation_ended)
        return await self._tell(context, asyncio.shield(task))

    def _operation_ended(self, task: asyncio.Task[_T]) -> None:
        self._operation = None
        # Retrieved here as well: the caller may have gone.
        error = None if task.cancelled() else task.exception()
        logger.info("operation=%s ended%s", task.get_name(), "" if error is None else f": {error}")

    async def _tell(self, context: grpc.aio.ServicerContext[Any, _T], work: Awaitable[_T]) -> _T:
        """The answer of ``work``, or its error as a status with its text."""
        try:
            return await work
        except LifecycleError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except NotRunningError:
            started = self._has_started()
            code = grpc.StatusCode.FAILED_PRECONDITION if started else grpc.StatusCode.UNAVAILABLE
            await context.abort(code, GOSSIP_OFF if started else NOT_READY)
        except GossipError as error:
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    def _has_started(self) -> bool:
        try:
            return bool(self._source.endpoint)
        except NotRunningError:
            return False

    def _own(self) -> EndpointView:
        own = self._source.member(self._source.endpoint)
        if own is None:
            raise NotRunningError("a node knows itself")
        return own

    def _others(self, seeds: tuple[str, ...]) -> list[str]:
        own = self._source.endpoint
        return [seed for seed in seeds if seed != own]

    async def _leave(self, timeout_seconds: float, *, force: bool) -> admin_pb2.LeaveResponse:
        _check_wait(timeout_seconds)
        status = self._own().status
        if status == Status.LEFT:
            raise LifecycleError("this node has left already")
        self._require_gossip()
        if not may_follow(status, Status.LEFT):
            raise LifecycleError(f"a node that is {status} cannot leave")
        if self._application is not None and not force:
            self._application.check_leave()
        # The application refuses first, then the cluster is told, then it is left.
        if self._application is not None:
            await self._application.stop_serving("leaving")
        self._source.set_health(serving=False, reason="leaving")
        report = await self._source.leave(timeout_seconds=timeout_seconds)
        return admin_pb2.LeaveResponse(
            endpoint=self._source.endpoint, knowing=sorted(report.knowing), unaware=sorted(report.unaware)
        )

    def _require_gossip(self) -> None:
        if self._source.failure is not None:
            raise LifecycleError(self._source.failure)
        if not self._source.info().gossip_active:
            raise LifecycleError(DRAINED if self._drained else GOSSIP_OFF)

    async def _drain(self) -> admin_pb2.DrainResponse:
        endpoint = self._source.endpoint
        self._drained = True
        if self._application is not None:
            await self._application.stop_serving("draining")
        if self._source.info().gossip_active:
            await self._source.drain()
        return admin_pb2.DrainResponse(endpoint=endpoint)

    async def _disable_gossip(self) -> admin_pb2.DisableGossipResponse:
        own = self._own()
        active = self._source.info().gossip_active
        if active and own.status != Status.NORMAL:
            status = own.status or "not yet a member"
            raise LifecycleError(f"gossip stays on while the node is {status}; stop the node instead")
        if active:
            await self._source.disable_gossip()
        return admin_pb2.DisableGossipResponse(endpoint=own.endpoint, changed=active)

    async def _enable_gossip(self) -> admin_pb2.EnableGossipResponse:
        active = self._source.info().gossip_active
        if self._drained:
            raise LifecycleError(DRAINED)
        if not active:
            await self._source.enable_gossip()
        info = self._source.info()
        return admin_pb2.EnableGossipResponse(endpoint=info.endpoint, changed=not active, generation=info.generation)

    async def _remove(self, host_id: str) -> admin_pb2.RemoveResponse:
        by_host_id = {view.host_id: view.endpoint for view in self._source.members() if view.host_id is not None}
        if host_id not in by_host_id:
            try:
                host_id = str(uuid.UUID(host_id))
            except ValueError:
                raise ValueError(f"{host_id!r} is no host id, which is a UUID") from None
        self._source.remove(host_id)
        return admin_pb2.RemoveResponse(endpoint=by_host_id.get(host_id, ""), host_id=host_id)

    async def _assassinate(self, endpoint: str, *, force: bool) -> admin_pb2.AssassinateResponse:
        canonical = canonical_endpoint(endpoint)
        self._source.assassinate(canonical, force=force)
        return admin_pb2.AssassinateResponse(endpoint=canonical)

    async def _reload_seeds(self) -> admin_pb2.ReloadSeedsResponse:
        own = self._source.endpoint
        result = await self._source.reload_seeds()
        logger.info("operation=reload_seeds endpoint=%s seeds=%d faults=%d", own, len(result.seeds), len(result.faults))
        return admin_pb2.ReloadSeedsResponse(
            seeds=self._others(result.seeds),
            added=self._others(result.added),
            removed=self._others(result.removed),
            faults=result.faults,
        )

    async def _wait_settled(self, timeout_seconds: float) -> admin_pb2.WaitSettledResponse:
        _check_wait(timeout_seconds)
        self._require_gossip()
        return admin_pb2.WaitSettledResponse(settled=await self._source.wait_settled(timeout_seconds=timeout_seconds))


def _check_wait(timeout_seconds: float) -> None:
    if not 0 < timeout_seconds <= WAIT_SECONDS_MAX:
        raise ValueError(f"timeout_seconds must be above 0 and at most {WAIT_SECONDS_MAX:g}, is {timeout_seconds:g}")


def _health_reason(view: EndpointView) -> str:
    """Why it does not serve; "" when it does, or did not say."""
    return "" if view.serving else (view.get(ApplicationState.HEALTH) or "").partition(",")[2]


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
