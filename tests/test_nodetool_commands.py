"""nodetool against nodes whose answers are known: exact output, JSON, errors and exit statuses.

The names of the fakes' methods (N802) are those of the generated code.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from unserved_admin import UnservedAdmin
from unserved_repair import UnservedRepairAdmin

from antientropy.v1 import admin_pb2 as repair_pb2
from antientropy.v1 import admin_pb2_grpc as repair_grpc
from gossiper.v1 import admin_pb2 as gossip_pb2
from gossiper.v1 import admin_pb2_grpc as gossip_grpc
from nodetool.main import main

HOST_IDS = [f"00000000-0000-4000-8000-00000000000{number}" for number in range(1, 6)]
ROOT = bytes(range(16))
DOCUMENT = Path(__file__).parent.parent / "docs" / "nodetool.md"


def endpoint_view(
    endpoint: str, number: int, *, status: str | None = "NORMAL,5", liveness: int = 1, **states: str
) -> gossip_pb2.EndpointView:
    values = {
        "DC": "datacenter1",
        "RACK": "rack1",
        "HOST_ID": HOST_IDS[number - 1],
        "LOAD": "135690.0",
        "TOKENS": "5",
        "RELEASE_VERSION": "0.1.0",
        "SCHEMA": "aaaa",
        **states,
    }
    if status is not None:
        values["STATUS"] = status
    return gossip_pb2.EndpointView(
        endpoint=endpoint,
        generation=1_700_000_000 + number,
        heartbeat=100 + number,
        states_version=160,
        interval_ms=1000,
        liveness=gossip_pb2.Liveness.Name(liveness),  # type: ignore[arg-type] # the wrapper takes names, too
        states=[
            gossip_pb2.StateView(key=key, version=16 + index, value=value)
            for index, (key, value) in enumerate(sorted(values.items()))
            if value != "(absent)"
        ],
        evidence_age_seconds=0.5 if liveness == 1 else -1.0,
    )


def three_nodes(*endpoints: gossip_pb2.EndpointView) -> gossip_pb2.GetClusterViewResponse:
    views = endpoints or (
        endpoint_view("127.0.0.1:7000", 1),
        endpoint_view("127.0.0.1:7001", 2, liveness=2, status="shutdown,true"),
        endpoint_view("127.0.0.1:7002", 3, liveness=3, LOAD="(absent)", status="BOOT,7", TOKENS="(absent)"),
    )
    return gossip_pb2.GetClusterViewResponse(
        cluster_name="demo", local_endpoint=views[0].endpoint, endpoints=sorted(views, key=lambda view: view.endpoint)
    )


def replica() -> repair_pb2.DescribeReplicaResponse:
    return repair_pb2.DescribeReplicaResponse(
        keyspace="kv",
        row_count=1_100,
        tombstone_count=100,
        root_digest=ROOT,
        tree_depth=5,
        replication_factor=3,
        replicas=["127.0.0.1:7000", "127.0.0.1:7001", "127.0.0.1:7002"],
        stored_bytes=2048,
    )


@dataclass
class Fault:
    code: grpc.StatusCode
    details: str


@dataclass
class FakeGossip(UnservedAdmin):
    view: gossip_pb2.GetClusterViewResponse = field(default_factory=three_nodes)
    detector: gossip_pb2.GetFailureDetectorResponse = field(default_factory=gossip_pb2.GetFailureDetectorResponse)
    info: gossip_pb2.GetNodeInfoResponse = field(default_factory=gossip_pb2.GetNodeInfoResponse)
    fault: Fault | None = None
    silent: bool = False
    views_before_all_alive: int = 0

    async def _answer(self, context: Any) -> None:
        if self.silent:
            await asyncio.Event().wait()
        if self.fault is not None:
            await context.abort(self.fault.code, self.fault.details)

    async def GetClusterView(self, request: Any, context: Any) -> gossip_pb2.GetClusterViewResponse:  # noqa: N802
        await self._answer(context)
        if self.views_before_all_alive > 0:
            self.views_before_all_alive -= 1
            if self.views_before_all_alive == 0:
                for view in self.view.endpoints:
                    view.CopyFrom(endpoint_view(view.endpoint, 1))
        return self.view

    async def GetFailureDetector(self, request: Any, context: Any) -> gossip_pb2.GetFailureDetectorResponse:  # noqa: N802
        await self._answer(context)
        return self.detector

    async def GetNodeInfo(self, request: Any, context: Any) -> gossip_pb2.GetNodeInfoResponse:  # noqa: N802
        await self._answer(context)
        return self.info


@dataclass
class FakeRepair(UnservedRepairAdmin):
    """Describes a replica; repairing has its own tests."""

    replica: repair_pb2.DescribeReplicaResponse = field(default_factory=replica)
    fault: Fault | None = None

    async def DescribeReplica(self, request: Any, context: Any) -> repair_pb2.DescribeReplicaResponse:  # noqa: N802
        if self.fault is not None:
            await context.abort(self.fault.code, self.fault.details)
        return self.replica

    async def Repair(self, request: Any, context: Any) -> AsyncIterator[repair_pb2.RepairUpdate]:  # noqa: N802
        await context.abort(grpc.StatusCode.INTERNAL, "not part of these tests")
        yield repair_pb2.RepairUpdate()


@asynccontextmanager
async def serving(gossip: FakeGossip | None, repair: FakeRepair | None = None) -> AsyncIterator[int]:
    """A node's administration listener on a free port of loopback."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    if gossip is not None:
        gossip_grpc.add_GossipAdminServiceServicer_to_server(gossip, server)
    if repair is not None:
        repair_grpc.add_RepairAdminServiceServicer_to_server(repair, server)
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
        assert content["schema_version"] == 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", content.pop("time"))
        return content


Run = Callable[..., Awaitable[Ran]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run nodetool beside the loop of the server that it asks."""

    async def nodetool(*args: str, port: int | None = None) -> Ran:
        capsys.readouterr()
        status = await asyncio.to_thread(main, [*(["-p", str(port)] if port else []), *args])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Ran(status, out, err)

    return nodetool


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


# --- status


async def test_status_of_three_nodes_on_one_host(run: Run) -> None:
    async with serving(FakeGossip(), FakeRepair()) as port:
        ran = await run("status", port=port)
    assert ran == Ran(
        0,
        "Datacenter: datacenter1\n"
        "=======================\n"
        "Status=Up/Down\n"
        "|/ State=Normal/Leaving/Joining/Moving\n"
        "--  Address         Load        Tokens  Owns (effective)  Host ID                               Rack \n"
        "UN  127.0.0.1:7000  132.51 KiB  1       100.0%            00000000-0000-4000-8000-000000000001  rack1\n"
        "DN  127.0.0.1:7001  132.51 KiB  1       100.0%            00000000-0000-4000-8000-000000000002  rack1\n"
        "?J  127.0.0.1:7002  ?           ?       0.0%              00000000-0000-4000-8000-000000000003  rack1\n"
        "\n",
        "",
    )


async def test_status_by_data_centre_without_ports_where_hosts_differ(run: Run) -> None:
    view = three_nodes(
        endpoint_view("10.0.0.10:7000", 1, status="LEAVING,5"),
        endpoint_view("10.0.0.9:7000", 2, status="MOVING,5", DC="east", RACK="r2", LOAD="512"),
        endpoint_view("10.0.0.8:7000", 3, DC="east", TOKENS="1,2,3", LOAD="many"),
        endpoint_view("10.0.0.7:7000", 4, status="LEFT,5,99"),
        endpoint_view("10.0.0.6:7000", 5, status=None, liveness=2, HOST_ID="(absent)"),
    )
    async with serving(FakeGossip(view)) as port:
        ran = await run("status", port=port)
    assert ran.out == (
        "Datacenter: datacenter1\n"
        "=======================\n"
        "Status=Up/Down\n"
        "|/ State=Normal/Leaving/Joining/Moving\n"
        "--  Address    Load        Tokens  Owns  Host ID                               Rack \n"
        "D?  10.0.0.6   132.51 KiB  1       ?     ?                                     rack1\n"
        "UL  10.0.0.10  132.51 KiB  1       ?     00000000-0000-4000-8000-000000000001  rack1\n"
        "\n"
        "Datacenter: east\n"
        "================\n"
        "Status=Up/Down\n"
        "|/ State=Normal/Leaving/Joining/Moving\n"
        "--  Address    Load        Tokens  Owns  Host ID                               Rack \n"
        "UN  10.0.0.8   ?           3       ?     00000000-0000-4000-8000-000000000003  rack1\n"
        "UM  10.0.0.9   512 bytes   1       ?     00000000-0000-4000-8000-000000000002  r2   \n"
        "\n"
        f"Note: ownership is not known: the node at 127.0.0.1:{port} does not offer repair\n"
    )


async def test_status_owns_less_where_there_are_more_nodes_than_copies(run: Run) -> None:
    view = three_nodes(*(endpoint_view(f"10.0.0.{number}:7000", number) for number in range(1, 6)))
    async with serving(FakeGossip(view), FakeRepair()) as port:
        ran = await run("status", port=port)
    assert ran.out.count("  60.0%  ") == 5


async def test_status_sorted(run: Run) -> None:
    view = three_nodes(
        endpoint_view("10.0.0.1:7000", 2, LOAD="10", RACK="b"),
        endpoint_view("10.0.0.2:7000", 3, LOAD="30", RACK="a"),
        endpoint_view("10.0.0.3:7000", 1, LOAD="20", RACK="c", liveness=2),
    )
    orders = {
        (): "123",
        ("-o", "desc"): "321",
        ("-s", "load"): "231",
        ("-s", "load", "-o", "asc"): "132",
        ("-s", "rack"): "213",
        ("-s", "id"): "312",
        ("-s", "owns"): "123",
        ("--sort", "state"): "123",
        ("-s", "tokens"): "123",
        ("-s", "host"): "123",
    }
    async with serving(FakeGossip(view), FakeRepair()) as port:
        for arguments, order in orders.items():
            ran = await run("status", *arguments, port=port)
            assert "".join(re.findall(r"10\.0\.0\.(\d)", ran.out)) == order, arguments


async def test_status_with_names(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostbyaddr", lambda host: (f"name-of-{host}", [], [host]))
    async with serving(FakeGossip(three_nodes(endpoint_view("10.0.0.1:7000", 1))), FakeRepair()) as port:
        ran = await run("status", "-r", port=port)
        ported = await run("status", "-r", "-pp", port=port)
    assert "UN  name-of-10.0.0.1  132.51 KiB" in ran.out
    assert "UN  name-of-10.0.0.1:7000  132.51 KiB" in ported.out


async def test_status_json(run: Run) -> None:
    async with serving(FakeGossip(), FakeRepair()) as port:
        ran = await run("status", "--output", "json", port=port)
    content = ran.json
    assert (ran.status, ran.err) == (0, "")
    nodes = content.pop("nodes")
    assert content == {
        "schema_version": 1,
        "cluster_name": "demo",
        "local_endpoint": "127.0.0.1:7000",
        "alive_count": 1,
    }
    assert nodes[0] == {
        "endpoint": "127.0.0.1:7000",
        "datacenter": "datacenter1",
        "rack": "rack1",
        "liveness": "up",
        "state": "normal",
        "status": "UN",
        "load_bytes": 135690,
        "token_count": 1,
        "owns_ratio": 1.0,
        "host_id": HOST_IDS[0],
        "generation": 1_700_000_001,
        "evidence_age_seconds": 0.5,
        "serving": True,
        "health_reason": None,
    }
    assert [node["liveness"] for node in nodes] == ["up", "down", "unknown"]
    assert nodes[2]["load_bytes"] is None
    assert nodes[2]["token_count"] is None
    assert nodes[2]["evidence_age_seconds"] is None


async def test_status_waits_until_enough_are_alive(run: Run) -> None:
    gossip = FakeGossip(views_before_all_alive=3)
    async with serving(gossip, FakeRepair()) as port:
        ran = await run("status", "--wait-alive", "3", "--wait-seconds", "20", port=port)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.count("\nUN  ") == 3
    assert gossip.views_before_all_alive == 0


async def test_status_that_waited_in_vain_shows_what_there_is_and_fails(run: Run) -> None:
    async with serving(FakeGossip(), FakeRepair()) as port:
        ran = await run("status", "--wait-alive", "3", "--wait-seconds", "0", port=port)
    assert (ran.status, ran.err) == (1, "nodetool: after 0 s: 1 of 3 nodes are alive\n")
    assert "UN  127.0.0.1:7000" in ran.out


async def test_status_that_waited_for_a_node_that_never_came(run: Run) -> None:
    port = free_port()
    ran = await run("status", "--wait-alive", "1", "--wait-seconds", "0.3", port=port)
    reason = f"Failed to connect to '127.0.0.1:{port}' - ConnectionRefused: 'Connection refused'"
    assert ran == Ran(1, "", f"nodetool: after 0.3 s: {reason}\n")


async def test_values_of_peers_cannot_command_the_terminal(run: Run) -> None:
    view = three_nodes(endpoint_view("10.0.0.1:7000", 1, RACK="\x1b[2Jrack", HOST_ID="a\nb"))
    async with serving(FakeGossip(view), FakeRepair()) as port:
        for command in ("status", "gossipinfo", "describecluster"):
            ran = await run(command, port=port)
            assert ran.status == 0
            assert "\x1b" not in ran.out
            assert "a\nb" not in ran.out


# --- gossipinfo, failuredetector, describecluster, info, replicas


async def test_gossipinfo(run: Run) -> None:
    view = three_nodes(
        endpoint_view("10.0.0.2:7000", 2, role="primary", ZONE="z"),
        endpoint_view("10.0.0.1:7000", 1, TOKENS="(absent)", LOAD="(absent)", SCHEMA="(absent)", RACK="(absent)"),
    )
    async with serving(FakeGossip(view)) as port:
        ran = await run("gossipinfo", port=port)
        ported = await run("gossipinfo", "-pp", port=port)
    assert ran == Ran(
        0,
        "/10.0.0.1\n"
        "  generation:1700000001\n"
        "  heartbeat:101\n"
        "  STATUS:22:NORMAL,5\n"
        "  DC:16:datacenter1\n"
        "  RELEASE_VERSION:20:0.1.0\n"
        "  HOST_ID:17:00000000-0000-4000-8000-000000000001\n"
        "  TOKENS: not present\n"
        "/10.0.0.2\n"
        "  generation:1700000002\n"
        "  heartbeat:102\n"
        "  STATUS:22:NORMAL,5\n"
        "  LOAD:18:135690.0\n"
        "  SCHEMA:21:aaaa\n"
        "  DC:16:datacenter1\n"
        "  RACK:19:rack1\n"
        "  RELEASE_VERSION:20:0.1.0\n"
        "  HOST_ID:17:00000000-0000-4000-8000-000000000002\n"
        "  ZONE:24:z\n"
        "  role:25:primary\n"
        "  TOKENS:23:<hidden>\n"
        "\n",
        "",
    )
    assert ported.out.startswith("/10.0.0.1:7000\n")


async def test_gossipinfo_json(run: Run) -> None:
    async with serving(FakeGossip()) as port:
        ran = await run("gossipinfo", "--output", "json", port=port)
    content = ran.json
    first = content["endpoints"][0]
    assert first["states"][0] == {"key": "STATUS", "version": 22, "value": "NORMAL,5"}
    assert {"key": "TOKENS", "version": 23, "value": "5"} in first["states"]
    del first["states"]
    assert first == {
        "endpoint": "127.0.0.1:7000",
        "generation": 1_700_000_001,
        "generation_time": "2023-11-14T22:13:21.000Z",
        "heartbeat": 101,
        "interval_seconds": 1.0,
        "states_version": 160,
        "liveness": "up",
        "evidence_age_seconds": 0.5,
    }


def detector(*endpoints: str, pause_seconds: float = 0.0) -> gossip_pb2.GetFailureDetectorResponse:
    return gossip_pb2.GetFailureDetectorResponse(
        phi_threshold=8.0,
        local_pause_remaining_seconds=pause_seconds,
        endpoints=[
            gossip_pb2.PhiView(
                endpoint=endpoint,
                phi=0.123456789 + index * 10,
                interval_mean_seconds=1.0,
                sample_count=7,
                last_arrival_age_seconds=-1.0 if index else 0.3,
                liveness=gossip_pb2.LIVENESS_ALIVE,
            )
            for index, endpoint in enumerate(endpoints)
        ],
    )


async def test_failuredetector_in_cassandras_columns(run: Run) -> None:
    async with serving(FakeGossip(detector=detector("10.0.0.2:1", "10.0.0.3:1"))) as port:
        ran = await run("failuredetector", port=port)
    assert ran == Ran(0, "  Endpoint,             Phi\n /10.0.0.2,      0.12345679\n /10.0.0.3,     10.12345679\n", "")


async def test_failuredetector_stays_aligned_with_long_addresses(run: Run) -> None:
    async with serving(FakeGossip(detector=detector("127.0.0.1:7001", "127.0.0.1:7002"))) as port:
        ran = await run("failuredetector", port=port)
    assert ran.out == (
        "       Endpoint,             Phi\n/127.0.0.1:7001,      0.12345679\n/127.0.0.1:7002,     10.12345679\n"
    )


async def test_failuredetector_shows_ports_when_the_node_itself_shares_the_host(run: Run) -> None:
    info = gossip_pb2.GetNodeInfoResponse(endpoint="127.0.0.1:7000")
    async with serving(FakeGossip(detector=detector("127.0.0.1:7001"), info=info)) as port:
        ran = await run("failuredetector", port=port)
    assert ran.out == "       Endpoint,             Phi\n/127.0.0.1:7001,      0.12345679\n"


async def test_failuredetector_says_that_it_is_paused_beside_its_data(run: Run) -> None:
    async with serving(FakeGossip(detector=detector(pause_seconds=3.21))) as port:
        ran = await run("failuredetector", port=port)
    assert ran.out == "  Endpoint,             Phi\n"
    assert ran.err.startswith("nodetool: the detector convicts nobody for another 3.2 s")


async def test_failuredetector_json(run: Run) -> None:
    async with serving(FakeGossip(detector=detector("10.0.0.2:1", "10.0.0.3:1"))) as port:
        ran = await run("failuredetector", "--output", "json", port=port)
    content = ran.json
    assert content["phi_threshold"] == 8.0
    assert content["local_pause_remaining_seconds"] == 0.0
    assert content["endpoints"][0] == {
        "endpoint": "10.0.0.2:1",
        "phi": 0.123456789,
        "liveness": "up",
        "interval_mean_seconds": 1.0,
        "sample_count": 7,
        "last_arrival_age_seconds": 0.3,
    }
    assert content["endpoints"][1]["last_arrival_age_seconds"] is None


async def test_describecluster(run: Run) -> None:
    async with serving(FakeGossip(), FakeRepair()) as port:
        ran = await run("describecluster", port=port)
    assert ran == Ran(
        0,
        "Cluster Information:\n"
        "\tName: demo\n"
        "\tSchema versions:\n"
        "\t\taaaa: [127.0.0.1:7000]\n"
        "\n"
        "\t\tUNREACHABLE: [127.0.0.1:7001, 127.0.0.1:7002]\n"
        "\n"
        "Stats for all nodes:\n"
        "\tLive: 1\n"
        "\tJoining: 1\n"
        "\tMoving: 0\n"
        "\tLeaving: 0\n"
        "\tUnreachable: 2\n"
        "\n"
        "Data Centers: \n"
        "\tdatacenter1 #Nodes: 3 #Down: 2\n"
        "\n"
        "Database versions:\n"
        "\t0.1.0: [127.0.0.1:7000, 127.0.0.1:7001, 127.0.0.1:7002]\n"
        "\n"
        "Keyspaces:\n"
        "\tkv -> Replication factor: 3\n",
        "",
    )


async def test_describecluster_json(run: Run) -> None:
    async with serving(FakeGossip(), FakeRepair()) as port:
        ran = await run("describecluster", "--output", "json", port=port)
    endpoints = ["127.0.0.1:7000", "127.0.0.1:7001", "127.0.0.1:7002"]
    assert ran.json == {
        "schema_version": 1,
        "cluster_name": "demo",
        "schema_versions": [
            {"schema": "aaaa", "endpoints": endpoints[:1]},
            {"schema": "UNREACHABLE", "endpoints": endpoints[1:]},
        ],
        "node_counts": {"live": 1, "joining": 1, "moving": 0, "leaving": 0, "unreachable": 2},
        "datacenters": [{"name": "datacenter1", "node_count": 3, "down_count": 2}],
        "release_versions": [{"release_version": "0.1.0", "endpoints": endpoints}],
        "keyspaces": [{"keyspace": "kv", "replication_factor": 3, "replicas": endpoints}],
    }


async def test_describecluster_of_bare_gossipers(run: Run) -> None:
    async with serving(FakeGossip()) as port:
        text = await run("describecluster", port=port)
        content = (await run("describecluster", "--output", "json", port=port)).json
    assert "Keyspaces" not in text.out
    assert content["keyspaces"] == []


def node_info(*, active: bool = True) -> gossip_pb2.GetNodeInfoResponse:
    return gossip_pb2.GetNodeInfoResponse(
        endpoint="127.0.0.1:7000",
        host_id=HOST_IDS[0],
        generation=1_700_000_001,
        heartbeat=101,
        gossip_active=active,
        uptime_seconds=61.7,
        datacenter="datacenter1",
        rack="rack1",
        release_version="0.1.0",
        interval_seconds=0.1,
        seeds=["127.0.0.1:7000", "127.0.0.1:7001"],
        counters=[gossip_pb2.CounterView(name="rounds", value=600.0), gossip_pb2.CounterView(name="share", value=0.5)],
        memory_resident_bytes=50 * 1024 * 1024,
        status="NORMAL",
        serving=True,
    )


async def test_info(run: Run) -> None:
    view = three_nodes(endpoint_view("127.0.0.1:7000", 1, TOKENS="1,2", RPC_READY="true"))
    async with serving(FakeGossip(view, info=node_info())) as port:
        ran = await run("info", port=port)
        tokens = await run("info", "-T", port=port)
        counters = await run("info", "--counters", port=port)
    assert ran == Ran(
        0,
        "ID                     : 00000000-0000-4000-8000-000000000001\n"
        "Gossip active          : true\n"
        "Native Transport active: true\n"
        "Load                   : 132.51 KiB\n"
        "Generation No          : 1700000001\n"
        "Uptime (seconds)       : 61\n"
        "Resident Memory (MB)   : 50.00\n"
        "Data Center            : datacenter1\n"
        "Rack                   : rack1\n"
        "Token                  : (invoke with -T/--tokens to see all 2 tokens)\n"
        "Bootstrap state        : COMPLETED\n"
        "Endpoint               : 127.0.0.1:7000\n"
        "Heartbeat              : 101\n"
        "Gossip interval (s)    : 0.1\n"
        "Seeds                  : 127.0.0.1:7000 127.0.0.1:7001\n"
        "Release version        : 0.1.0\n"
        "Status                 : NORMAL\n"
        "Health                 : serving\n",
        "",
    )
    assert "Token                  : 1\nToken                  : 2\n" in tokens.out
    assert counters.out == ran.out + "rounds 600\nshare 0.5\n"


async def test_info_of_a_node_that_is_not_in_its_own_view(run: Run) -> None:
    view = gossip_pb2.GetClusterViewResponse(cluster_name="demo", local_endpoint="127.0.0.1:7000")
    async with serving(FakeGossip(view, info=node_info(active=False))) as port:
        ran = await run("info", port=port)
    assert "Gossip active          : false\n" in ran.out
    assert "Native Transport active: false\n" in ran.out
    assert "Generation No          : 0\n" in ran.out
    assert "Load                   : ?\n" in ran.out
    assert "Token                  : (node is not joined to the cluster)\n" in ran.out
    assert "Bootstrap state        : NEEDS_BOOTSTRAP\n" in ran.out


async def test_info_json(run: Run) -> None:
    async with serving(FakeGossip(info=node_info())) as port:
        ran = await run("info", "--output", "json", port=port)
    assert ran.json == {
        "schema_version": 1,
        "endpoint": "127.0.0.1:7000",
        "host_id": HOST_IDS[0],
        "gossip_active": True,
        "native_transport_active": False,
        "load_bytes": 135690,
        "generation": 1_700_000_001,
        "generation_time": "2023-11-14T22:13:21.000Z",
        "heartbeat": 101,
        "uptime_seconds": 61.7,
        "memory_resident_bytes": 52_428_800,
        "datacenter": "datacenter1",
        "rack": "rack1",
        "tokens": ["5"],
        "interval_seconds": 0.1,
        "seeds": ["127.0.0.1:7000", "127.0.0.1:7001"],
        "release_version": "0.1.0",
        "status": "NORMAL",
        "serving": True,
        "health_reason": None,
        "failure": None,
        "counters": {"rounds": 600.0, "share": 0.5},
    }


def network_counters() -> list[gossip_pb2.CounterView]:
    from gossiper.metrics import GossipMetrics

    metrics = GossipMetrics()
    for kind, form, direction, count, size_bytes in (
        ("ack", "compact", "received", 97, 300),
        ("ack", "plain", "received", 3, 50_000),
        ("syn", "compact", "sent", 97, 350),
        ("syn", "plain", "sent", 3, 40_000),
        ("syn", "compact", "received", 90, 350),
        ("syn", "unknown", "received", 1, 7),
        ("echo_request", "plain", "sent", 2, 40),
    ):
        for _ in range(count):
            metrics.count_message(kind, form, direction, size_bytes)
    for kind, count in (("compact", 97), ("roster_buckets", 2), ("plain", 1)):
        metrics.increment("gossiper_exchanges_total", count, kind=kind)
    metrics.increment("gossiper_refused_total", reason="malformed")
    metrics.increment("gossiper_send_failures_total", 4, reason="deadline")
    return [gossip_pb2.CounterView(name=name, value=value) for name, value in metrics.snapshot()]


async def test_netstats(run: Run) -> None:
    info = node_info()
    info.counters.extend(network_counters())
    async with serving(FakeGossip(info=info)) as port:
        ran = await run("netstats", port=port)
        as_json = (await run("netstats", "--output", "json", port=port)).json
    assert ran == Ran(
        0,
        "Mode: NORMAL\n"
        "\n"
        "Exchanges       Count  Share\n"
        "compact         97     97.0%\n"
        "states_buckets  0      0.0%\n"
        "roster_buckets  2      2.0%\n"
        "plain           1      1.0%\n"
        "fell back       3      3.0%\n"
        "\n"
        "Messages      Form     Sent  Bytes sent  Received  Bytes received\n"
        "syn           compact  97    33.15 KiB   90        30.76 KiB\n"
        "syn           plain    3     117.19 KiB  0         0 bytes\n"
        "syn           unknown  0     0 bytes     1         7 bytes\n"
        "ack           compact  0     0 bytes     97        28.42 KiB\n"
        "ack           plain    0     0 bytes     3         146.48 KiB\n"
        "echo_request  plain    2     80 bytes    0         0 bytes\n"
        "total                  102   150.42 KiB  191       205.67 KiB\n"
        "\n"
        "Refused       : malformed 1\n"
        "Not delivered : deadline 4\n",
        "",
    )
    assert as_json["exchanges"] == [
        {"kind": "compact", "count": 97, "share_ratio": 0.97},
        {"kind": "states_buckets", "count": 0, "share_ratio": 0.0},
        {"kind": "roster_buckets", "count": 2, "share_ratio": 0.02},
        {"kind": "plain", "count": 1, "share_ratio": 0.01},
    ]
    assert (as_json["exchange_count"], as_json["fell_back_count"], as_json["fell_back_ratio"]) == (100, 3, 0.03)
    assert as_json["messages"][0] == {
        "kind": "syn",
        "form": "compact",
        "sent_count": 97,
        "sent_bytes": 33_950,
        "received_count": 90,
        "received_bytes": 31_500,
    }
    assert as_json["total_sent_bytes"] == 33_950 + 120_000 + 80
    assert as_json["refused"] == [{"reason": "malformed", "count": 1}]
    assert as_json["send_failures"] == [{"reason": "deadline", "count": 4}]


async def test_netstats_of_a_node_that_has_said_nothing_yet(run: Run) -> None:
    async with serving(FakeGossip(info=gossip_pb2.GetNodeInfoResponse())) as port:
        ran = await run("netstats", port=port)
        as_json = (await run("netstats", "--output", "json", port=port)).json
    assert ran.status == 0
    assert ran.out.startswith("Mode: STARTING\nGossip is not running.\n\nExchanges       Count  Share\n")
    assert ran.out.endswith("Refused       : 0\nNot delivered : 0\n")
    assert (as_json["status"], as_json["fell_back_ratio"], as_json["messages"]) == (None, 0.0, [])


async def test_replicas(run: Run) -> None:
    async with serving(FakeGossip(), FakeRepair()) as port:
        ran = await run("replicas", port=port)
        as_json = await run("replicas", "--output", "json", port=port)
    assert ran == Ran(
        0,
        "Keyspace               : kv\n"
        "Live rows              : 1000\n"
        "Tombstones             : 100\n"
        "Rows in the tree       : 1100\n"
        "Root hash              : 000102030405060708090a0b0c0d0e0f\n"
        "Tree depth             : 5\n"
        "Stored                 : 2 KiB\n"
        "Replication factor     : 3\n"
        "Replicas               : 127.0.0.1:7000, 127.0.0.1:7001, 127.0.0.1:7002\n",
        "",
    )
    assert as_json.json == {
        "schema_version": 1,
        "keyspace": "kv",
        "row_count": 1100,
        "live_row_count": 1000,
        "tombstone_count": 100,
        "root_digest": "000102030405060708090a0b0c0d0e0f",
        "tree_depth": 5,
        "stored_bytes": 2048,
        "replication_factor": 3,
        "replicas": ["127.0.0.1:7000", "127.0.0.1:7001", "127.0.0.1:7002"],
    }


# --- errors that every command shares


async def test_nothing_listens_there(run: Run) -> None:
    port = free_port()
    for command in (
        "status", "gossipinfo", "failuredetector", "info", "netstats", "describecluster", "replicas", "repair"
    ):  # fmt: skip
        ran = await run(command, "-p", str(port))
        assert ran == Ran(
            5, "", f"nodetool: Failed to connect to '127.0.0.1:{port}' - ConnectionRefused: 'Connection refused'.\n"
        )


async def test_a_host_without_an_address(run: Run) -> None:
    ran = await run("-h", "no-such-host.invalid", "status")
    assert ran.status == 5
    assert ran.err.startswith("nodetool: Failed to connect to 'no-such-host.invalid:7199' - UnknownHost: '")
    assert ran.err.count("\n") == 1


async def test_a_connection_that_times_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(address: tuple[str, int], timeout: float) -> socket.socket:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", never)
    ran = await run("--timeout", "0.5", "status")
    assert ran == Ran(5, "", "nodetool: Failed to connect to '127.0.0.1:7199' - Timeout: 'no answer within 0.5 s'.\n")


async def test_an_address_of_version_6_is_dialled_and_shown_in_brackets(run: Run) -> None:
    port = free_port()
    for host in ("::1", "[::1]"):
        ran = await run("-h", host, "status", port=port)
        assert ran.status == 5
        assert ran.err.startswith(f"nodetool: Failed to connect to '[::1]:{port}' - ")


@pytest.mark.parametrize(
    ("code", "status", "line"),
    [
        (grpc.StatusCode.UNAVAILABLE, 5, "the node at {node} is not ready: why not"),
        (grpc.StatusCode.FAILED_PRECONDITION, 5, "the node at {node} is not ready: why not"),
        (grpc.StatusCode.INVALID_ARGUMENT, 2, "refused by {node}: why not"),
        (grpc.StatusCode.INTERNAL, 1, "{node} answered INTERNAL: why not"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1, "{node} answered RESOURCE_EXHAUSTED: why not"),
        (
            grpc.StatusCode.UNIMPLEMENTED,
            1,
            "the node at {node} does not offer gossip; give its administration port with -p",
        ),
    ],
)
async def test_a_refusal_is_one_line_and_a_status(run: Run, code: grpc.StatusCode, status: int, line: str) -> None:
    async with serving(FakeGossip(fault=Fault(code, "why\n  not"))) as port:
        for command in ("status", "info", "failuredetector"):
            ran = await run(command, port=port)
            assert ran == Ran(status, "", f"nodetool: {line.format(node=f'127.0.0.1:{port}')}\n")


async def test_a_silent_node_costs_one_deadline(run: Run) -> None:
    async with serving(FakeGossip(silent=True)) as port:
        ran = await run("status", "--timeout", "0.2", port=port)
    assert ran == Ran(5, "", f"nodetool: no answer from 127.0.0.1:{port} within 0.2 s (see --timeout)\n")


async def test_a_listener_that_does_not_speak_grpc(run: Run) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        ran = await run("status", "--timeout", "5", port=server.sockets[0].getsockname()[1])
    assert ran.status == 5
    assert ran.err.startswith("nodetool: ")
    assert ran.err.count("\n") == 1


async def test_a_store_that_is_not_ready_costs_status_only_its_ownership(run: Run) -> None:
    fault = Fault(grpc.StatusCode.UNAVAILABLE, "the tree is being built")
    async with serving(FakeGossip(), FakeRepair(fault=fault)) as port:
        ran = await run("status", port=port)
        replicas = await run("replicas", port=port)
    reason = f"the node at 127.0.0.1:{port} is not ready: the tree is being built"
    assert ran.status == 0
    assert ran.out.endswith(f"\n\nNote: ownership is not known: {reason}\n")
    assert replicas == Ran(5, "", f"nodetool: {reason}\n")


async def test_a_gossiper_without_repair(run: Run) -> None:
    async with serving(FakeGossip()) as port:
        for command in (["repair"], ["replicas"], ["repair_admin", "list"], ["repair_admin", "cancel", "--all"]):
            ran = await run(*command, port=port)
            assert ran == Ran(1, "", f"nodetool: the node at 127.0.0.1:{port} does not offer repair\n")


async def test_common_options_may_stand_before_or_after_the_command_and_the_later_wins(run: Run) -> None:
    async with serving(FakeGossip(three_nodes(endpoint_view("10.0.0.1:7000", 1))), FakeRepair()) as port:
        ran = await run("-h", "no-such-host.invalid", "-p", "1", "status", "-h", "127.0.0.1", "-p", str(port), "-pp")
        attached = await run(f"-p{port}", "-pp", "--output", "json", "status")
    assert "10.0.0.1:7000" in ran.out
    assert attached.json["nodes"][0]["endpoint"] == "10.0.0.1:7000"


def _keys(content: object) -> set[str]:
    """All keys of a JSON value, but not the names of counters."""
    if isinstance(content, dict):
        below = [_keys(value) for key, value in content.items() if key != "counters"]
        return set(content).union(*below)
    return set().union(*map(_keys, content)) if isinstance(content, list) else set()


async def test_every_json_key_is_documented(run: Run) -> None:
    rows = {
        match[1]: set(re.findall(r"`(\w+)[\[\]{}]*`", match[2]))
        for match in re.finditer(r"(?m)^\| `(\w+)` \| (`.*) \|$", DOCUMENT.read_text())
    }
    gossip = FakeGossip(info=node_info(), detector=detector("10.0.0.2:1"))
    gossip.info.counters.extend(network_counters())
    async with serving(gossip, FakeRepair()) as port:
        for command in ("status", "gossipinfo", "failuredetector", "info", "netstats", "describecluster", "replicas"):
            ran = await run(command, "--output", "json", port=port)
            assert _keys(ran.json) - {"schema_version"} == rows[command] - {"UN"}, command
