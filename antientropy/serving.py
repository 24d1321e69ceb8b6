"""What the answering side of a repair works with: replicas, their marks, who else there is, and threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar, TypeVarTuple

import grpc

from antientropy.config import RepairConfig
from antientropy.core.tokens import TokenRange
from antientropy.marks import ReplicaMarks
from antientropy.membership import Membership
from antientropy.peer_client import Spend
from antientropy.replica import Replica
from antientropy.served import ServedSessions
from antientropy.transport.base import CallError, PeerTransport

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class Serving:
    """One node's answering side."""

    replicas: Mapping[str, Replica]
    marks: Mapping[str, ReplicaMarks]
    membership: Membership
    config: RepairConfig
    transport: PeerTransport
    executor: Executor
    random: Random
    spend: Spend
    epoch_seconds: Callable[[], float]
    sessions: ServedSessions
    stopped: bool = field(default=False)

    async def in_thread(self, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Run work on a store in a worker thread.

        Raises:
            CallError: the node is shutting down.
        """
        if self.stopped:
            raise shutting_down()
        result: Result = await asyncio.get_running_loop().run_in_executor(self.executor, function, *arguments)
        return result

    def holds(self, keyspace: str, token_range: TokenRange, endpoint: str = "") -> bool:
        """Whether this node, and ``endpoint`` with it, holds every token of a range."""
        next_token = token_range.first
        for held in self.membership.ranges(keyspace):
            part = held.token_range
            if part.contains(next_token) and (not endpoint or endpoint in held.replicas):
                next_token = part.last + 1
        return next_token > token_range.last


def shutting_down() -> CallError:
    """What calls get when the node stops."""
    return CallError(grpc.StatusCode.UNAVAILABLE, "this node is shutting down")
