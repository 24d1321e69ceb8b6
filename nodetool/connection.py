"""One connection to a node, and the one place where its errors become lines for people and exit statuses.

Imported only when a command runs (``nodetool.connect``): gRPC takes longer to import than a help page to read.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Final, NoReturn, Protocol, Self, TypeVar

import grpc

from antientropy.v1 import admin_pb2 as repair_pb2
from antientropy.v1.admin_pb2_grpc import RepairAdminServiceStub
from gossiper.v1 import admin_pb2 as gossip_pb2
from gossiper.v1.admin_pb2_grpc import GossipAdminServiceStub
from nodetool.errors import ExitStatus, NodetoolError, NotOfferedError, UnreachableError
from nodetool.options import Options
from nodetool.render import one_line
from nodetool.repair_flags import RepairOrder

#: A view of 100,000 endpoints with ten short values each is about 40 MB; gRPC's own limit is 4 MiB.
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
_NAMES: Final[dict[type[Exception], str]] = {
    ConnectionRefusedError: "ConnectionRefused",
    TimeoutError: "Timeout",
    socket.gaierror: "UnknownHost",
}

_Request_contra = TypeVar("_Request_contra", contravariant=True)
_Answer_co = TypeVar("_Answer_co", covariant=True)
_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


class _Method(Protocol[_Request_contra, _Answer_co]):
    def __call__(self, request: _Request_contra, /, *, timeout: float | None = None) -> _Answer_co: ...


class UpdateStream(Protocol):
    """A repair under way: its updates, and the way to end it."""

    def __iter__(self) -> Iterator[repair_pb2.RepairUpdate]:
        """Updates as they arrive; raises ``grpc.RpcError`` when the call fails."""
        ...

    def cancel(self) -> bool:
        """End the repair."""
        ...


class Node:
    """A node's administration listener; every call has the deadline of ``--timeout``.

    Raises:
        UnreachableError: on entry, when nothing listens there; from a call, when the node is not ready or silent.
        NotOfferedError: from a call, when the node does not have that service.
        NodetoolError: from a call, when the node reports a failure.
    """

    def __init__(self, options: Options) -> None:
        self.address = options.address
        self.timeout_seconds = options.timeout_seconds
        self._host = options.host
        self._port = options.port
        # The C core would write lines of its own to standard error, beside ours.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        self._channel = grpc.insecure_channel(
            self.address,
            options=[("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", ANSWER_BYTES_MAX)],
        )
        self._gossip = GossipAdminServiceStub(self._channel)
        self._repair = RepairAdminServiceStub(self._channel)

    def __enter__(self) -> Self:
        try:
            self._probe()
        except UnreachableError:
            self._channel.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def _probe(self) -> None:
        """Connect once without gRPC, which would say only that it is unavailable, not why."""
        try:
            socket.create_connection((self._host, self._port), timeout=self.timeout_seconds).close()
        except (OSError, UnicodeError) as error:
            name = _NAMES.get(type(error), type(error).__name__.removesuffix("Error"))
            reason = getattr(error, "strerror", None) or str(error)
            if isinstance(error, TimeoutError):
                reason = f"no answer within {self.timeout_seconds:g} s"
            raise UnreachableError(f"Failed to connect to '{self.address}' - {name}: '{one_line(reason)}'.") from None

    def _call(self, method: _Method[_Request, _Answer], request: _Request, service: str) -> _Answer:
        try:
            return method(request, timeout=self.timeout_seconds)
        except grpc.RpcError as error:
            self.raise_for(error, service)

    def cluster_view(self) -> gossip_pb2.GetClusterViewResponse:
        """Everything the node believes of the cluster."""
        return self._call(self._gossip.GetClusterView, gossip_pb2.GetClusterViewRequest(), "gossip")

    def failure_detector(self) -> gossip_pb2.GetFailureDetectorResponse:
        """Phi of every endpoint but the node's own."""
        return self._call(self._gossip.GetFailureDetector, gossip_pb2.GetFailureDetectorRequest(), "gossip")

    def node_info(self) -> gossip_pb2.GetNodeInfoResponse:
        """What the node says about itself."""
        return self._call(self._gossip.GetNodeInfo, gossip_pb2.GetNodeInfoRequest(), "gossip")

    def seeds(self) -> gossip_pb2.GetSeedsResponse:
        """Seeds in force, without the node's own."""
        return self._call(self._gossip.GetSeeds, gossip_pb2.GetSeedsRequest(), "gossip")

    def reload_seeds(self) -> gossip_pb2.ReloadSeedsResponse:
        """Have it read all sources of seeds now."""
        return self._order(self._gossip.ReloadSeeds, gossip_pb2.ReloadSeedsRequest())

    def wait_settled(self, wait_seconds: float) -> gossip_pb2.WaitSettledResponse:
        """Have it wait until its view of the cluster stays the same."""
        request = gossip_pb2.WaitSettledRequest(timeout_seconds=wait_seconds)
        return self._order(self._gossip.WaitSettled, request, wait_seconds)

    def leave(self, wait_seconds: float, *, force: bool) -> gossip_pb2.LeaveResponse:
        """Have it leave for good."""
        request = gossip_pb2.LeaveRequest(timeout_seconds=wait_seconds, force=force)
        return self._order(self._gossip.Leave, request, wait_seconds)

    def drain(self) -> gossip_pb2.DrainResponse:
        """Have it stop serving and gossiping."""
        return self._order(self._gossip.Drain, gossip_pb2.DrainRequest())

    def disable_gossip(self) -> gossip_pb2.DisableGossipResponse:
        """Have it stop gossiping."""
        return self._order(self._gossip.DisableGossip, gossip_pb2.DisableGossipRequest())

    def enable_gossip(self) -> gossip_pb2.EnableGossipResponse:
        """Have it gossip again."""
        return self._order(self._gossip.EnableGossip, gossip_pb2.EnableGossipRequest())

    def remove(self, host_id: str) -> gossip_pb2.RemoveResponse:
        """Have it remove a dead node."""
        return self._order(self._gossip.Remove, gossip_pb2.RemoveRequest(host_id=host_id))

    def assassinate(self, endpoint: str, *, force: bool) -> gossip_pb2.AssassinateResponse:
        """Have it remove whatever is at an endpoint."""
        return self._order(self._gossip.Assassinate, gossip_pb2.AssassinateRequest(endpoint=endpoint, force=force))

    def _order(self, method: _Method[_Request, _Answer], request: _Request, wait_seconds: float = 0.0) -> _Answer:
        """An operation, which the node may refuse; it may take ``wait_seconds`` longer than an answer."""
        try:
            return method(request, timeout=self.timeout_seconds + wait_seconds)
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                details = one_line(error.details() or "no reason given")
                raise NodetoolError(f"refused by {self.address}: {details}") from None
            self.raise_for(error, "gossip operations")

    def replica(self, keyspace: str = "") -> repair_pb2.DescribeReplicaResponse:
        """What the node's replica of a keyspace holds; "": the only keyspace there is."""
        return self._call(self._repair.DescribeReplica, repair_pb2.DescribeReplicaRequest(keyspace=keyspace), "repair")

    def replica_if_any(self) -> tuple[repair_pb2.DescribeReplicaResponse | None, str]:
        """As :meth:`replica`, but (None, reason) where there is none, for commands that can do without."""
        try:
            return self.replica(), ""
        except NodetoolError as error:
            return None, error.message

    def start_repair(self, order: RepairOrder, timeout_seconds: float) -> UpdateStream:
        """Begin a repair that this node coordinates; it ends with the stream, or when the stream is cancelled."""
        ranges = () if order.token_range is None else (order.token_range,)
        request = repair_pb2.RepairRequest(
            keyspace=order.keyspace,
            token_ranges=(repair_pb2.TokenRange(first=first, last=last) for first, last in ranges),
            primary_only=order.primary_only,
            peers=order.peers,
            datacenters=order.datacenters,
            mode=repair_pb2.RepairMode.Value(f"REPAIR_MODE_{order.mode.upper()}"),
            full=order.full,
            force=order.force,
            jobs=order.jobs,
            strategy=repair_pb2.RepairStrategy.Value(f"REPAIR_STRATEGY_{order.strategy.upper()}"),
            trace=order.trace,
        )
        return self._repair.Repair(request, timeout=timeout_seconds)

    def resume_repair(self, session_id: str, timeout_seconds: float) -> UpdateStream:
        """Go on with a repair that was paused or interrupted; as :meth:`start_repair`."""
        return self._repair.ResumeRepair(repair_pb2.ResumeRepairRequest(session_id=session_id), timeout=timeout_seconds)

    def repair_sessions(self) -> repair_pb2.ListSessionsResponse:
        """Sessions that have not ended."""
        return self._call(self._repair.ListSessions, repair_pb2.ListSessionsRequest(), "repair")

    def repair_history(self, limit: int) -> repair_pb2.ListHistoryResponse:
        """Sessions that have ended, the last one first."""
        return self._call(self._repair.ListHistory, repair_pb2.ListHistoryRequest(limit=limit), "repair")

    def session_state(self, session_id: str, timeout_seconds: float) -> int | None:
        """The state of a session by its whole id; None if the node does not know or does not say it in time."""
        try:
            active = self._repair.ListSessions(repair_pb2.ListSessionsRequest(), timeout=timeout_seconds)
            ended = self._repair.ListHistory(repair_pb2.ListHistoryRequest(), timeout=timeout_seconds)
        except grpc.RpcError:
            return None
        sessions = {one.session_id: int(one.state) for one in (*ended.sessions, *active.sessions)}
        return sessions.get(session_id)

    def cancel_repairs(self, session_id: str, *, force: bool) -> repair_pb2.CancelRepairsResponse:
        """End one session; "": all."""
        request = repair_pb2.CancelRepairsRequest(session_id=session_id, all=not session_id, force=force)
        return self._call(self._repair.CancelRepairs, request, "repair")

    def pause_repair(self, session_id: str) -> repair_pb2.PauseRepairResponse:
        """Hold a session up."""
        return self._call(self._repair.PauseRepair, repair_pb2.PauseRepairRequest(session_id=session_id), "repair")

    def repair_summaries(self, keyspace: str) -> repair_pb2.SummarizeRepairsResponse:
        """How long ago each range was repaired; "": of every keyspace."""
        request = repair_pb2.SummarizeRepairsRequest(keyspace=keyspace)
        return self._call(self._repair.SummarizeRepairs, request, "repair")

    def repair_summaries_if_any(self) -> repair_pb2.SummarizeRepairsResponse | None:
        """As :meth:`repair_summaries` of every keyspace, but None where they cannot be had."""
        try:
            return self.repair_summaries("")
        except NodetoolError:
            return None

    def throttle(self) -> repair_pb2.Throttle:
        """The limits that repair keeps on the node."""
        return self._call(self._repair.GetThrottle, repair_pb2.GetThrottleRequest(), "a throttle of repair").throttle

    def set_throttle(
        self, *, bytes_per_second: float | None, rows_per_second: float | None, cpu_share: float | None
    ) -> repair_pb2.Throttle:
        """Other limits; None: as it is."""
        request = repair_pb2.SetThrottleRequest(
            bytes_per_second=bytes_per_second, rows_per_second=rows_per_second, cpu_share=cpu_share
        )
        return self._call(self._repair.SetThrottle, request, "a throttle of repair").throttle

    def schedule(self) -> repair_pb2.Schedule:
        """The automatic repair of the node."""
        return self._call(self._repair.GetSchedule, repair_pb2.GetScheduleRequest(), "automatic repair").schedule

    def pause_schedule(self, *, paused: bool) -> repair_pb2.Schedule:
        """Have it begin nothing more, or begin again."""
        request = repair_pb2.PauseScheduleRequest(paused=paused)
        return self._call(self._repair.PauseSchedule, request, "automatic repair").schedule

    def is_answering(self) -> bool:
        """Whether the node answers anything at all within the timeout; a refusal is an answer."""
        try:
            self.node_info()
        except UnreachableError:
            return False
        except NodetoolError:
            return True
        return True

    def raise_for_repair(self, error: Exception) -> NoReturn:
        """Translate what ended a stream of updates; what is no failure of the call is raised as it is.

        Raises:
            NodetoolError: the call failed.
        """
        if not isinstance(error, grpc.RpcError):
            raise error
        if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise NodetoolError("the repair did not end within --session-timeout and was cancelled") from None
        self.raise_for(error, "repair")

    def raise_for(self, error: grpc.RpcError, service: str) -> NoReturn:
        """Translate a failed call.

        Raises:
            NodetoolError: always.
        """
        code, details = grpc.StatusCode.UNKNOWN, "no reason given"
        if isinstance(error, grpc.Call):
            code, details = error.code(), one_line(error.details() or details)
        node = self.address
        if code is grpc.StatusCode.UNIMPLEMENTED:
            # Every administration listener offers gossip, so this is another one.
            way_out = "; give its administration port with -p" if service == "gossip" else ""
            raise NotOfferedError(f"the node at {node} does not offer {service}{way_out}") from None
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise UnreachableError(f"no answer from {node} within {self.timeout_seconds:g} s (see --timeout)") from None
        if code is grpc.StatusCode.UNAVAILABLE and "failed to connect to all addresses" in details:
            raise UnreachableError(f"Failed to connect to '{node}' - Unavailable: '{details}'.") from None
        if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION}:
            raise UnreachableError(f"the node at {node} is not ready: {details}") from None
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            raise NodetoolError(f"refused by {node}: {details}", ExitStatus.USAGE) from None
        if code in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ABORTED}:
            raise NodetoolError(f"refused by {node}: {details}") from None
        raise NodetoolError(f"{node} answered {code.name}: {details}") from None
