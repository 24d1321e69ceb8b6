"""nodetool's operations against a node whose answers are known: exact output, JSON, refusals, exit statuses.

The names of the fake's methods (N802) are those of the generated code.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from unserved_admin import UnservedAdmin

from gossiper.v1 import admin_pb2 as pb
from gossiper.v1 import admin_pb2_grpc as pb_grpc
from nodetool.main import main

DOCUMENT = Path(__file__).parent.parent / "docs" / "nodetool.md"
HOST_ID = "8b244cb0-135d-4745-b498-86f46187348f"
A, B, C = "10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000"


@dataclass
class FakeNode(UnservedAdmin):
    """Answers what it is told to; keeps the requests."""

    fault: tuple[grpc.StatusCode, str] | None = None
    active: bool = True
    left: pb.LeaveResponse = field(default_factory=lambda: pb.LeaveResponse(endpoint=A, knowing=[B, C]))
    seeds: tuple[str, ...] = (B, C)
    faults: tuple[str, ...] = ()
    settled: bool = True
    states: dict[str, str] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    async def _ask(self, request: Any, context: Any) -> None:
        self.asked.append(request)
        self.seconds.append(context.time_remaining())
        if self.fault is not None:
            await context.abort(*self.fault)

    async def GetNodeInfo(self, request: Any, context: Any) -> pb.GetNodeInfoResponse:  # noqa: N802
        await self._ask(request, context)
        return pb.GetNodeInfoResponse(
            endpoint=A, gossip_active=self.active, status="LEFT", health_reason="leaving", failure="removed\nby x"
        )

    async def GetClusterView(self, request: Any, context: Any) -> pb.GetClusterViewResponse:  # noqa: N802
        await self._ask(request, context)
        views = [
            pb.EndpointView(
                endpoint=endpoint,
                liveness=pb.LIVENESS_DOWN if endpoint == C else pb.LIVENESS_ALIVE,
                states=[
                    pb.StateView(key="STATUS", version=1, value="NORMAL"),
                    *(
                        pb.StateView(key="HEALTH", version=1, value=value)
                        for at, value in self.states.items()
                        if at == endpoint
                    ),
                ],
            )
            for endpoint in (A, B, C)
        ]
        return pb.GetClusterViewResponse(cluster_name="demo", local_endpoint=A, endpoints=views)

    async def Leave(self, request: Any, context: Any) -> pb.LeaveResponse:  # noqa: N802
        await self._ask(request, context)
        return self.left

    async def Drain(self, request: Any, context: Any) -> pb.DrainResponse:  # noqa: N802
        await self._ask(request, context)
        return pb.DrainResponse(endpoint=A)

    async def DisableGossip(self, request: Any, context: Any) -> pb.DisableGossipResponse:  # noqa: N802
        await self._ask(request, context)
        return pb.DisableGossipResponse(endpoint=A, changed=True)

    async def EnableGossip(self, request: Any, context: Any) -> pb.EnableGossipResponse:  # noqa: N802
        await self._ask(request, context)
        return pb.EnableGossipResponse(endpoint=A, changed=False, generation=17)

    async def Remove(self, request: Any, context: Any) -> pb.RemoveResponse:  # noqa: N802
        await self._ask(request, context)
        return pb.RemoveResponse(endpoint=B, host_id=request.host_id)

    async def Assassinate(self, request: Any, context: Any) -> pb.AssassinateResponse:  # noqa: N802
        await self._ask(request, context)
        return pb.AssassinateResponse(endpoint=request.endpoint)

    async def GetSeeds(self, request: Any, context: Any) -> pb.GetSeedsResponse:  # noqa: N802
        await self._ask(request, context)
        return pb.GetSeedsResponse(seeds=self.seeds)

    async def ReloadSeeds(self, request: Any, context: Any) -> pb.ReloadSeedsResponse:  # noqa: N802
        await self._ask(request, context)
        return pb.ReloadSeedsResponse(seeds=self.seeds, added=self.seeds[:1], removed=[A], faults=self.faults)

    async def WaitSettled(self, request: Any, context: Any) -> pb.WaitSettledResponse:  # noqa: N802
        await self._ask(request, context)
        return pb.WaitSettledResponse(settled=self.settled)


@asynccontextmanager
async def serving(node: FakeNode) -> AsyncIterator[int]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_GossipAdminServiceServicer_to_server(node, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.out)
        assert content.pop("schema_version") == 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", content.pop("time"))
        return content


Run = Callable[..., Awaitable[Ran]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run nodetool beside the loop of the server that it asks."""

    async def nodetool(node: FakeNode, *args: str) -> Ran:
        capsys.readouterr()
        async with serving(node) as port:
            status = await asyncio.to_thread(main, ["-p", str(port), *args])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Ran(status, out, re.sub(r"127\.0\.0\.1:\d+", "NODE", err))

    return nodetool


# --- leaving


async def test_decommission_says_how_many_know(run: Run) -> None:
    node = FakeNode()
    assert await run(node, "decommission") == Ran(0, "Left the cluster: 2 of 2 live peers know\n", "")
    assert node.asked == [pb.LeaveRequest(timeout_seconds=10.0)]
    assert 10.0 < node.seconds[0] < 21.0, "the wait of the node and that of nodetool add up"
    await run(node, "decommission", "-f", "--wait-seconds", "2.5")
    assert node.asked[1] == pb.LeaveRequest(timeout_seconds=2.5, force=True)


async def test_decommission_that_not_all_are_known_to_know_is_partly_done(run: Run) -> None:
    unaware = [f"10.0.1.{number}:7000" for number in range(1, 8)]
    node = FakeNode(left=pb.LeaveResponse(endpoint=A, knowing=[B], unaware=unaware))
    ran = await run(node, "decommission")
    assert ran == Ran(
        4,
        "Left the cluster: 1 of 8 live peers know\n",
        "nodetool: left, but after 10 s not known to know: 10.0.1.1:7000, 10.0.1.2:7000, 10.0.1.3:7000, "
        "10.0.1.4:7000, 10.0.1.5:7000 and 2 more; they hear it from the others\n",
    )
    as_json = await run(node, "decommission", "--output", "json")
    assert as_json.status == 4
    assert as_json.json == {"endpoint": A, "live_peer_count": 8, "knowing": [B], "unaware": unaware}


# --- the others


@pytest.mark.parametrize(
    ("arguments", "out", "content"),
    [
        (["drain"], "", {"endpoint": A, "gossip_active": False}),
        (["disablegossip"], "", {"endpoint": A, "gossip_active": False, "changed": True}),
        (["enablegossip"], "", {"endpoint": A, "gossip_active": True, "changed": False, "generation": 17}),
        (["statusgossip"], "running\n", {"endpoint": A, "gossip_active": True}),
        (
            ["removenode", HOST_ID.upper()],
            f"Removed {B} (host id {HOST_ID})\n",
            {"endpoint": B, "host_id": HOST_ID},
        ),
        (["assassinate", C], f"Assassinated {C}\n", {"endpoint": C, "forced": False}),
        (["assassinate", "--force", C], f"Assassinated {C}\n", {"endpoint": C, "forced": True}),
        (["getseeds"], f"Current list of seed node IPs, excluding the current node's IP: {B} {C}\n", {"seeds": [B, C]}),
        (
            ["reloadseeds"],
            f"Updated seed node IP list, excluding the current node's IP: {B} {C}\n",
            {"seeds": [B, C], "added": [B], "removed": [A], "faults": []},
        ),
        (["waitsettled"], "settled\n", {"settled": True}),
    ],
)
async def test_what_an_operation_prints(run: Run, arguments: list[str], out: str, content: dict[str, Any]) -> None:
    assert await run(FakeNode(), *arguments) == Ran(0, out, "")
    as_json = await run(FakeNode(), *arguments, "--output", "json")
    assert (as_json.status, as_json.err) == (0, "")
    assert as_json.json == content


async def test_gossip_that_is_off(run: Run) -> None:
    assert await run(FakeNode(active=False), "statusgossip") == Ran(0, "not running\n", "")


async def test_no_seed_but_the_node_itself(run: Run) -> None:
    text = "Seed node list does not contain any remote node IPs\n"
    assert await run(FakeNode(seeds=()), "getseeds") == Ran(0, text, "")
    assert await run(FakeNode(seeds=()), "reloadseeds") == Ran(0, text, "")


async def test_bad_seed_sources_are_named(run: Run) -> None:
    node = FakeNode(faults=("seeds.txt: line 2: 'x' is not host:port", "db.example: no such name"))
    ran = await run(node, "reloadseeds")
    assert ran == Ran(
        4,
        f"Updated seed node IP list, excluding the current node's IP: {B} {C}\n",
        "nodetool: Failed to reload the seed node list. seeds.txt: line 2: 'x' is not host:port; "
        "db.example: no such name\n",
    )
    as_json = await run(node, "reloadseeds", "--output", "json")
    assert as_json.status == 4
    assert as_json.json["faults"] == list(node.faults)


async def test_gossip_that_does_not_settle(run: Run) -> None:
    node = FakeNode(settled=False)
    text = "nodetool: gossip has not settled after 0.5 s; see 'nodetool status'\n"
    assert await run(node, "waitsettled", "--wait-seconds", "0.5") == Ran(1, "", text)
    assert node.asked == [pb.WaitSettledRequest(timeout_seconds=0.5)]
    as_json = await run(node, "waitsettled", "--output", "json")
    assert (as_json.status, as_json.json) == (1, {"settled": False})


OPERATIONS = (
    ["decommission"],
    ["drain"],
    ["disablegossip"],
    ["enablegossip"],
    ["removenode", HOST_ID],
    ["assassinate", B],
    ["reloadseeds"],
    ["waitsettled"],
)


@pytest.mark.parametrize("arguments", OPERATIONS, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize(
    ("code", "status", "line"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, 1, "refused by NODE: why not"),
        (grpc.StatusCode.INVALID_ARGUMENT, 2, "refused by NODE: why not"),
        (grpc.StatusCode.UNAVAILABLE, 5, "the node at NODE is not ready: why not"),
        (grpc.StatusCode.INTERNAL, 1, "NODE answered INTERNAL: why not"),
        (grpc.StatusCode.UNIMPLEMENTED, 1, "the node at NODE does not offer gossip operations"),
    ],
    ids=lambda value: value.name if isinstance(value, grpc.StatusCode) else None,
)
async def test_an_operation_that_is_refused_is_one_line(
    run: Run, arguments: list[str], code: grpc.StatusCode, status: int, line: str
) -> None:
    node = FakeNode(fault=(code, "why\n  not"))
    assert await run(node, *arguments) == Ran(status, "", f"nodetool: {line}\n")


async def test_a_host_id_is_checked_before_the_node_is_asked(run: Run) -> None:
    node = FakeNode()
    ran = await run(node, "removenode", "status")
    assert (ran.status, ran.out, node.asked) == (2, "", [])
    assert ran.err == (
        "nodetool: Invalid value for 'HOST_ID': 'status' is no host id, which is a UUID; 'nodetool status' shows them. "
        "See 'nodetool help removenode'.\n"
    )
    for arguments in (
        ["removenode"],
        ["assassinate"],
        ["decommission", "--wait-seconds", "0"],
        ["waitsettled", "--wait-seconds", "3601"],
    ):
        ran = await run(node, *arguments)
        assert (ran.status, ran.out, node.asked) == (2, "", [])
        assert ran.err.count("\n") == 1


# --- health


async def test_status_names_who_is_up_and_does_not_serve(run: Run) -> None:
    node = FakeNode(
        states={A: "serving", B: "not_serving,no space left, \x1b[2J free some", C: "not_serving,down anyway"}
    )
    ran = await run(node, "status")
    first, second = re.findall(r"(?m)^Note: (.*)$", ran.out)
    assert first == r"10.0.0.2 is up and does not serve: no space left, \x1b[2J free some"
    assert second.startswith("ownership is not known: ")
    assert re.findall(r"(?m)^([UD?][N?]) ", ran.out) == ["UN", "UN", "DN"]
    content = (await run(node, "status", "--output", "json")).json
    assert [one["serving"] for one in content["nodes"]] == [True, False, False]
    assert content["nodes"][1]["health_reason"] == "no space left, \x1b[2J free some"
    assert (await run(FakeNode(states={B: "not_serving"}), "status")).out.count("does not serve: (no reason)") == 1


async def test_info_of_a_node_that_does_not_serve_and_has_stopped(run: Run) -> None:
    node = FakeNode(active=False)
    ran = await run(node, "info")
    assert ran.out.endswith(
        "Status                 : LEFT\n"
        "Health                 : not serving: leaving\n"
        "Stopped because        : removed\\x0aby x\n"
    )
    content = (await run(node, "info", "--output", "json")).json
    assert {key: content[key] for key in ("status", "serving", "health_reason", "failure")} == {
        "status": "LEFT",
        "serving": False,
        "health_reason": "leaving",
        "failure": "removed\nby x",
    }


# --- the document


async def test_every_operation_and_its_json_is_documented(run: Run) -> None:
    text = DOCUMENT.read_text()
    rows = {
        match[1]: set(re.findall(r"`(\w+)[\[\]{}]*`", match[2]))
        for match in re.finditer(r"(?m)^\| `(\w+)` \| (`.*) \|$", text)
    }
    for arguments in (*OPERATIONS, ["statusgossip"], ["getseeds"]):
        ran = await run(FakeNode(), *arguments, "--output", "json")
        assert set(ran.json) == rows[arguments[0]], arguments[0]
        assert re.search(rf"(?m)^\| .*`{arguments[0]}[` ].* \| [^`]", text), f"{arguments[0]} is in the table"
