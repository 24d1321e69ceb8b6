"""A servicer of the gossiper's administration that offers nothing; fakes override what they answer."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc

from gossiper.v1 import admin_pb2_grpc


async def _unserved(context: Any) -> NoReturn:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not part of this test")
    raise AssertionError("abort raises")


class UnservedAdmin(admin_pb2_grpc.GossipAdminServiceServicer):
    """The names (N802) are those of the generated code."""

    async def GetClusterView(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def GetFailureDetector(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def GetNodeInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def GetSeeds(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def Leave(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def Drain(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def DisableGossip(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def EnableGossip(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def Remove(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def Assassinate(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def ReloadSeeds(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)

    async def WaitSettled(self, request: Any, context: Any) -> Any:  # noqa: N802
        await _unserved(context)
