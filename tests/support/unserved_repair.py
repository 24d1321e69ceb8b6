"""A servicer of the administration of repair that offers nothing; fakes override what they answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc

from antientropy.v1 import admin_pb2, admin_pb2_grpc


async def _unserved(context: Any) -> NoReturn:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not part of this test")
    raise AssertionError("abort raises")


class UnservedRepairAdmin(admin_pb2_grpc.RepairAdminServiceServicer):
    """The names (N802) are those of the generated code."""

    async def DescribeReplica(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def Repair(self, request: Any, context: Any) -> AsyncIterator[admin_pb2.RepairUpdate]:  # noqa: N802
        await _unserved(context)
        yield admin_pb2.RepairUpdate()

    async def ResumeRepair(self, request: Any, context: Any) -> AsyncIterator[admin_pb2.RepairUpdate]:  # noqa: N802
        await _unserved(context)
        yield admin_pb2.RepairUpdate()

    async def ListSessions(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def ListHistory(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def CancelRepairs(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def PauseRepair(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def SummarizeRepairs(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def GetThrottle(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def SetThrottle(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def GetSchedule(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def PauseSchedule(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)
