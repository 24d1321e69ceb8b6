"""Gives the repair service that has no sessions the face of the one that has, until it is gone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, cast

from antientropy.errors import RepairRequestError
from antientropy.options import RepairMode, RepairOptions, Strategy
from antientropy.reports import RangeSummary, RepairStatistics, RepairUpdate, SessionInfo, SessionState

if TYPE_CHECKING:
    from antientropy.admin import RepairOperations

_NOT_YET: Final = "this node's repair service keeps no sessions"


def bridged(service: object) -> RepairOperations:
    """The service itself if it keeps sessions."""
    found: Any = service if hasattr(service, "sessions") else _Bridge(service)
    return cast("RepairOperations", found)


class _Bridge:
    def __init__(self, service: Any) -> None:
        self._service = service

    @property
    def keyspaces(self) -> tuple[str, ...]:
        return cast("tuple[str, ...]", self._service.keyspaces)

    async def describe(self, keyspace: str) -> Any:
        return await self._service.describe(keyspace)

    async def repair(self, keyspace: str, options: RepairOptions) -> AsyncGenerator[RepairUpdate, None]:
        if options.mode is not RepairMode.REPAIR or options.strategy is not Strategy.AUTO or options.datacenters:
            raise RepairRequestError("this node's repair service can only repair")
        if len(options.token_ranges) > 1:
            raise RepairRequestError("this node's repair service takes one range of tokens")
        token_range = options.token_ranges[0] if options.token_ranges else None
        async with aclosing(self._service.repair(keyspace, token_range, options.peers)) as updates:
            async for update in updates:
                yield _update(update)

    async def sessions(self, active_only: bool = True) -> Sequence[SessionInfo]:
        del active_only
        return []

    async def history(self, limit: int) -> Sequence[SessionInfo]:
        del limit
        return []

    async def cancel(self, session_id: str, force: bool = False) -> None:
        raise RepairRequestError(f"{_NOT_YET}: {session_id}, {force}")

    async def pause(self, session_id: str) -> None:
        raise RepairRequestError(f"{_NOT_YET}: {session_id}")

    async def resume(self, session_id: str) -> AsyncGenerator[RepairUpdate, None]:
        if session_id:
            raise RepairRequestError(_NOT_YET)
        yield RepairUpdate(session_id, "", SessionState.FAILED, 0.0, RepairStatistics())

    async def summarize(self, keyspace: str) -> Sequence[RangeSummary]:
        del keyspace
        return []


def _update(update: Any) -> RepairUpdate:
    statistics = RepairStatistics()
    for one in fields(RepairStatistics):
        setattr(statistics, one.name, getattr(update.statistics, one.name, getattr(statistics, one.name)))
    name = update.phase.value if update.outcome is None else update.outcome.value
    state = SessionState({"done": "verifying"}.get(name, name))
    return RepairUpdate(update.session_id, update.message, state, update.progress, statistics)
