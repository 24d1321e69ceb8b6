"""What all parts of one repair share: who takes part, with what means, and how it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Protocol, TypeVar, TypeVarTuple

from antientropy.config import RepairConfig
from antientropy.core.tokens import TokenRange
from antientropy.errors import PeerError, RepairError
from antientropy.leases import Lease, LeaseDenied
from antientropy.marks import ReplicaMarks
from antientropy.membership import Membership
from antientropy.options import RepairOptions
from antientropy.peer_client import CallTrace, PeerClient, Spend
from antientropy.replica import Replica
from antientropy.reports import RepairStatistics, SessionState
from antientropy.transport.base import PeerTransport

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class HeldElsewhereError(RepairError):
    """Another repair holds an overlapping range, here or on a replica."""

    def __init__(self, holder: str, detail: str, retry_after_seconds: float) -> None:
        self.holder = holder
        self.retry_after_seconds = retry_after_seconds
        super().__init__(detail)


class Narrator(Protocol):
    """Tells whoever listens."""

    def say(self, message: str, *, trace: bool = False) -> None:
        """A line for people."""
        ...

    def entered(self, state: SessionState) -> None:
        """The repair does something else now."""
        ...

    def planned(self, copies: int) -> None:
        """So many more rows are to move (less, if negative)."""
        ...


class _Silent:
    def say(self, message: str, *, trace: bool = False) -> None:
        pass

    def entered(self, state: SessionState) -> None:
        pass

    def planned(self, copies: int) -> None:
        pass


def silent() -> Narrator:
    """Tells nobody."""
    return _Silent()


class OwnLeases(Protocol):
    """The leases that this node needs as a coordinator, in the same table as those of its peers."""

    def hold(self, keyspace: str, token_range: TokenRange, session: int) -> Lease | LeaseDenied:
        """Take or renew one."""
        ...

    def keep(self, session: int) -> bool:
        """Renew it; False: it is gone."""
        ...

    def release(self, session: int) -> None:
        """Give it back."""
        ...


@dataclass(slots=True)
class RunContext:
    """The means of one repair."""

    keyspace: str
    replica: Replica
    membership: Membership
    transport: PeerTransport
    leases: OwnLeases
    marks: ReplicaMarks
    """Fence, repaired versions and floors of the own store."""
    executor: Executor
    config: RepairConfig
    options: RepairOptions
    narrator: Narrator
    spend: Spend
    random: Random
    statistics: RepairStatistics
    clock: Callable[[], float] = time.time
    """Seconds since the epoch."""
    broken_links: set[tuple[str, str]] = field(default_factory=set)
    """Replicas that cannot reach each other, (source, target): their rows go another way."""

    @property
    def local(self) -> str:
        """This node."""
        return self.membership.local_endpoint

    def client(self, endpoint: str, token_range: TokenRange, session: int) -> PeerClient:
        """Calls to a peer about a unit."""
        return PeerClient(
            endpoint,
            self.transport.calls(endpoint),
            keyspace=self.keyspace,
            token_range=token_range,
            session=session,
            owner=self.local,
            config=self.config,
            statistics=self.statistics,
            random=self.random,
            alive=lambda: self.membership.is_alive(endpoint),
            spend=self.spend,
            trace=self._traced,
            executor=self.executor,
        )

    def _traced(self, trace: CallTrace) -> None:
        if self.options.trace:
            self.narrator.say(
                f"{trace.method} to {trace.endpoint}: {trace.find_bytes} bytes, {trace.row_bytes} bytes of rows, "
                f"{trace.seconds * 1000:.1f} ms, {trace.attempts} attempt{'s' if trace.attempts > 1 else ''}",
                trace=True,
            )

    async def in_thread(self, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Run what blocks for the store or the processor."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, function, *arguments)


async def close_clients(clients: Iterable[PeerClient], timeout_seconds: float) -> None:
    """Give the peers' sessions back. Best effort: what is not closed expires there."""

    async def close(client: PeerClient) -> None:
        with suppress(PeerError, TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await client.close_session()

    await asyncio.gather(*(close(client) for client in clients))
