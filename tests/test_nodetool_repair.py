"""``nodetool repair``: flags, progress, summary, previews, outcomes, cancellation, on pipes and on a terminal.

The names of the fakes' methods (N802) are those of the generated code.
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from fake_repair import (
    BEGUN,
    COMPLETED,
    SESSION,
    STREAMING,
    FakeRepairService,
    FakeScheduler,
    served,
    statistics,
    update,
)
from unserved_admin import UnservedAdmin
from unserved_repair import UnservedRepairAdmin

from antientropy.core.tokens import TOKEN_MAX, TokenRange
from antientropy.errors import (
    RepairRequestError,
    RepairRunningError,
    ServiceStoppedError,
    StoreFullError,
    UnknownKeyspaceError,
)
from antientropy.options import RepairMode, RepairOptions, Strategy
from antientropy.reports import FlowPreview, RepairUpdate, SessionState
from antientropy.v1 import admin_pb2, admin_pb2_grpc
from gossiper.v1 import admin_pb2 as gossip_pb2
from gossiper.v1 import admin_pb2_grpc as gossip_grpc
from nodetool import repair_follow
from nodetool.main import main

STAMP = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\] "


@dataclass
class FakeGossip(UnservedAdmin):
    """A node that answers, until it is silent."""

    silent: bool = False
    datacenter: str = "dc1"
    on_second_question: Callable[[], None] = lambda: None
    questions: int = 0
    view: gossip_pb2.GetClusterViewResponse = field(default_factory=gossip_pb2.GetClusterViewResponse)

    async def GetClusterView(self, request: Any, context: Any) -> gossip_pb2.GetClusterViewResponse:  # noqa: N802
        return self.view

    async def GetFailureDetector(self, request: Any, context: Any) -> gossip_pb2.GetFailureDetectorResponse:  # noqa: N802
        return gossip_pb2.GetFailureDetectorResponse()

    async def GetNodeInfo(self, request: Any, context: Any) -> gossip_pb2.GetNodeInfoResponse:  # noqa: N802
        if self.silent:
            await asyncio.Event().wait()
        self.questions += 1
        if self.questions == 2:
            self.on_second_question()
        return gossip_pb2.GetNodeInfoResponse(endpoint="127.0.0.1:7000", datacenter=self.datacenter)


@asynccontextmanager
async def node_of(service: FakeRepairService, gossip: FakeGossip | None = None) -> AsyncIterator[int]:
    """The port of a node with gossip beside its repair."""
    own = FakeGossip() if gossip is None else gossip

    def register(server: grpc.aio.Server) -> None:
        gossip_grpc.add_GossipAdminServiceServicer_to_server(own, server)

    async with served(service, FakeScheduler(), register) as port:
        yield port


def ended(state: SessionState, message: str, **changes: Any) -> RepairUpdate:
    return update(message, state, 1.0, sums=statistics(**changes))


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


Run = Callable[..., Awaitable[Ran]]


@pytest.fixture
def repair(capsys: pytest.CaptureFixture[str]) -> Run:
    async def run(port: int, *args: str) -> Ran:
        capsys.readouterr()
        status = await asyncio.to_thread(main, ["-p", str(port), "repair", *args])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Ran(status, out, err)

    return run


def numbers(*, moving: bool = True) -> str:
    moved = "  Rows moved           : 1,200\n  Rows moved at best   : 1,200\n" if moving else ""
    bytes_moved = "  Bytes for moving     : 98,765 (96.45 KiB)\n" if moving else ""
    return (
        f"  Rows that differed   : 600\n{moved}"
        f"  Bytes for finding    : 12,345 (12.06 KiB)\n{bytes_moved}"
        "  Round trips          : 14 (20 requests)\n"
        "  Strategy             : sketch x2, descent\n"
        "  Pairs compared       : 3, of them equal: 1\n"
        f"  Session              : {SESSION}\n"
    )


SUMMARY = f"Repair completed successfully in 1.2 s\n{numbers()}"


async def test_lines_and_summary(repair: Run) -> None:
    service = FakeRepairService()
    async with node_of(service) as port:
        ran = await repair(port)
    assert (ran.status, ran.err) == (0, "")
    first, second, third, summary = ran.out.split("\n", 3)
    assert re.fullmatch(STAMP + "Starting repair of kv", first)
    assert re.fullmatch(STAMP + re.escape("Streaming 1200 rows (progress: 50%)"), second)
    assert re.fullmatch(STAMP + "Repair completed successfully", third)
    assert summary == SUMMARY
    assert service.calls == [("repair", "kv", RepairOptions())]


async def test_when_only_numbers_change_a_line_says_them_now_and_then(
    repair: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = [
        update("", SessionState.STREAMING, 0.1, sums=statistics(rows_moved=5), rows_to_move=10),
        update("", SessionState.STREAMING, 0.996, sums=statistics(), rows_to_move=1_234_567, eta_seconds=4000.0),
    ]
    async with node_of(FakeRepairService(updates=[BEGUN, *quiet, COMPLETED])) as port:
        seldom = await repair(port)
        monkeypatch.setattr(repair_follow, "QUIET_SECONDS_MAX", 0.0)
        always = await repair(port)
    assert "Progress" not in seldom.out
    lines = [re.sub(STAMP, "", line) for line in always.out.splitlines()[:4]]
    assert lines == [
        "Starting repair of kv",
        "Progress: 10% verified, 5 of 10 rows moved, 108.51 KiB",
        "Progress: 99% verified, 1,200 of 1.23M rows moved, 108.51 KiB, 1:06:40 left",
        "Repair completed successfully",
    ]


async def test_what_is_seldom_is_said_when_it_happens(repair: Run) -> None:
    last = ended(SessionState.COMPLETED, "done", rows_in_flight=3, rows_conflicting=2, find_bytes=118, move_bytes=0)
    async with node_of(FakeRepairService(updates=[last])) as port:
        ran = await repair(port)
    assert "  Settled by writes    : 3\n  Equal versions       : 2, of different content\n" in ran.out
    assert "  Bytes for finding    : 118\n  Bytes for moving     : 0\n" in ran.out


FULL_ORDER = RepairOptions(
    token_ranges=(TokenRange(16, TOKEN_MAX),),
    peers=("127.0.0.1:7001", "127.0.0.1:7002"),
    mode=RepairMode.PULL,
    full=True,
    force=True,
    jobs=3,
    strategy=Strategy.ROWS,
    trace=True,
)


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (
            [
                "-hosts",
                "127.0.0.1:7001",
                "--in-hosts",
                "127.0.0.1:7002",
                "-st",
                "0x10",
                "-pl",
                "-full",
                "-force",
                "-j",
                "3",
                "-tr",
                "--strategy",
                "rows",
            ],
            FULL_ORDER,
        ),
        (
            [
                "--in-hosts",
                "127.0.0.1:7001",
                "-hosts",
                "127.0.0.1:7002",
                "--start-token",
                "16",
                "--pull",
                "--full",
                "--force",
                "--job-threads",
                "3",
                "--trace",
                "--strategy",
                "rows",
            ],
            FULL_ORDER,
        ),
        (["-et", "0"], RepairOptions(token_ranges=(TokenRange(0, 0),))),
        (["-st", "0", "-et", str(TOKEN_MAX)], RepairOptions(token_ranges=(TokenRange(0, TOKEN_MAX),))),
        (["-pr", "-prv"], RepairOptions(primary_only=True, mode=RepairMode.PREVIEW)),
        (
            ["--partitioner-range", "--preview", "--in-local-dc"],
            RepairOptions(primary_only=True, mode=RepairMode.PREVIEW, datacenters=("dc1",)),
        ),
        (["-vd", "-local"], RepairOptions(mode=RepairMode.VALIDATE, datacenters=("dc1",))),
        (["--validate", "-dc", "a", "--in-dc", "b"], RepairOptions(mode=RepairMode.VALIDATE, datacenters=("a", "b"))),
        # The node itself may be named, as Cassandra demands it.
        (["-hosts", "127.0.0.1:7000", "-hosts", "127.0.0.1:7001"], RepairOptions(peers=("127.0.0.1:7001",))),
        # No replica is there: the service says so.
        (["-hosts", "[::1]:7001"], RepairOptions(peers=("[::1]:7001",))),
    ],
)
async def test_what_is_asked_for(repair: Run, arguments: list[str], asked: RepairOptions) -> None:
    service = FakeRepairService()
    async with node_of(service) as port:
        ran = await repair(port, "kv", *arguments)
    assert (ran.status, ran.err) == (0, "")
    assert service.calls == [("repair", "kv", asked)]


async def test_a_host_without_a_port_is_the_replica_there(repair: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fake_repair.REPLICAS", ("127.0.0.1:7000", "10.0.0.2:7000", "[::2]:7000", "[::2]:7001"))
    service = FakeRepairService()
    async with node_of(service) as port:
        found = await repair(port, "-hosts", "10.0.0.2")
        unknown = await repair(port, "-hosts", "10.0.0.3")
        several = await repair(port, "-hosts", "::2")
        itself = await repair(port, "-hosts", "127.0.0.1")
    assert found.status == 0
    assert service.calls == [("repair", "kv", RepairOptions(peers=("10.0.0.2:7000",)))]
    assert [(ran.status, ran.err) for ran in (unknown, several, itself)] == [
        (
            2,
            (
                "nodetool: no replica is at 10.0.0.3; the replicas are: "
                "127.0.0.1:7000, 10.0.0.2:7000, [::2]:7000, [::2]:7001\n"
            ),
        ),
        (2, "nodetool: 2 replicas are at ::2 ([::2]:7000, [::2]:7001); add a port\n"),
        (2, "nodetool: -hosts names only the node itself; name another replica too\n"),
    ]


async def test_a_node_that_does_not_say_its_data_centre(repair: Run) -> None:
    async with node_of(FakeRepairService(), FakeGossip(datacenter="")) as port:
        ran = await repair(port, "-local")
    assert (ran.status, ran.err) == (2, "nodetool: the node does not say its data centre; name it with -dc\n")


async def test_repair_without_gossip_needs_no_gossip(repair: Run) -> None:
    service = FakeRepairService()
    async with served(service) as port:
        ran = await repair(port, "-hosts", "127.0.0.1:7001")
    assert ran.status == 0
    assert service.calls == [("repair", "kv", RepairOptions(peers=("127.0.0.1:7001",)))]


@pytest.mark.parametrize("flag", ["-seq", "--sequential", "-dcpar", "--dc-parallel", "-os", "-skip-paxos", "-iuk"])
async def test_flags_that_change_nothing_are_taken_with_a_note(repair: Run, flag: str) -> None:
    service = FakeRepairService()
    async with node_of(service) as port:
        ran = await repair(port, flag)
    assert ran.status == 0
    assert re.fullmatch(r"nodetool: -\w+(-\w+)? changes nothing here: .+\n", ran.err)
    assert service.calls == [("repair", "kv", RepairOptions())]


async def test_json_is_one_object_and_progress_goes_to_standard_error(repair: Run) -> None:
    async with node_of(FakeRepairService()) as port:
        ran = await repair(port, "--output", "json")
    content = json.loads(ran.out)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", content.pop("time"))
    assert content == {
        "schema_version": 1,
        "session_id": SESSION,
        "keyspace": "kv",
        "mode": "repair",
        "outcome": "completed",
        "message": "Repair completed successfully",
        "progress_ratio": 1.0,
        "rows_differing": 600,
        "rows_moved": 1200,
        "rows_optimal": 1200,
        "rows_in_flight": 0,
        "rows_conflicting": 0,
        "find_bytes": 12_345,
        "move_bytes": 98_765,
        "round_trips": 14,
        "requests": 20,
        "pairs_compared": 3,
        "pairs_equal": 1,
        "strategies": {"descent": 1, "sketch": 2},
        "elapsed_seconds": 1.2345,
        "differences_found": True,
        "previews": [],
    }
    assert len(re.findall(f"(?m)^{STAMP}", ran.err)) == 3


# --- previews and validations

FLOWS = (
    FlowPreview("127.0.0.1:7000", "127.0.0.1:7001", 1200, 123_456, 12, (b"user:1", b"\xff\x00", b"k" * 40)),
    FlowPreview("127.0.0.1:7001", "127.0.0.1:7000", 1, 300, 0, (b"tab\there",)),
    FlowPreview("127.0.0.1:7002", "127.0.0.1:7000", 0, 0, 0, ()),
)
PREVIEW = update("Previewed", SessionState.COMPLETED, 1.0, sums=statistics(rows_moved=0), previews=FLOWS)
SAME = update("Previewed", SessionState.COMPLETED, 1.0, sums=statistics(rows_differing=0, pairs_equal=3))


async def test_a_preview_tells_rows_bytes_tombstones_and_keys_of_each_direction(repair: Run) -> None:
    async with node_of(FakeRepairService(updates=[PREVIEW])) as port:
        ran = await repair(port, "--preview")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.split("\n", 1)[1] == (
        f"Repair preview completed successfully in 1.2 s\n{numbers(moving=False)}\n"
        "From            To              Rows   Bytes    Tombstones\n"
        "127.0.0.1:7000  127.0.0.1:7001  1,200  123,456  12\n"
        "127.0.0.1:7001  127.0.0.1:7000  1      300      0\n"
        "Total                           1,201  123,756  12\n"
        "\n"
        "First keys:\n"
        "  127.0.0.1:7000 -> 127.0.0.1:7001\n"
        "    user:1\n"
        "    0xff00\n"
        "    kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk…\n"
        "    ... and 1,197 more\n"
        "  127.0.0.1:7001 -> 127.0.0.1:7000\n"
        "    0x7461620968657265\n"
    )


async def test_a_preview_for_programs(repair: Run) -> None:
    async with node_of(FakeRepairService(updates=[PREVIEW])) as port:
        ran = await repair(port, "--preview", "--output", "json")
    content = json.loads(ran.out)
    assert (content["mode"], content["differences_found"]) == ("preview", True)
    assert content["previews"][0] == {
        "source": "127.0.0.1:7000",
        "target": "127.0.0.1:7001",
        "rows": 1200,
        "row_bytes": 123_456,
        "tombstones": 12,
        "first_keys": ["user:1", None, "k" * 40],
        "first_keys_hex": [b"user:1".hex(), "ff00", b"k".hex() * 40],
    }
    assert len(content["previews"]) == 3


async def test_previews_and_validations_that_find_nothing_to_move(repair: Run) -> None:
    conflicting = update("Previewed", SessionState.COMPLETED, 1.0, sums=statistics())
    async with node_of(FakeRepairService(updates=[SAME])) as port:
        preview = await repair(port, "--preview", "--exit-code")
        validation = await repair(port, "--validate", "--exit-code")
    async with node_of(FakeRepairService(updates=[conflicting])) as port:
        odd = await repair(port, "--preview")
        differs = await repair(port, "--validate")
    assert [ran.status for ran in (preview, validation, odd, differs)] == [0, 0, 0, 0]
    assert preview.out.endswith("\n\nPreviewed data was in sync\n")
    assert validation.out.endswith("\n\nValidated data is in sync\n")
    assert odd.out.endswith("\n\nReplicas differ, but no row would move\n")
    assert differs.out.endswith("\n\nValidated data is inconsistent\n")
    assert "\nRepair validation completed successfully in " in differs.out


@pytest.mark.parametrize("mode", ["--preview", "--validate"])
async def test_differences_are_an_exit_status_for_those_who_ask(repair: Run, mode: str) -> None:
    partial = update("one is down", SessionState.PARTIAL, 1.0, sums=statistics())
    async with node_of(FakeRepairService(updates=[PREVIEW])) as port:
        silent = await repair(port, mode)
        told = await repair(port, mode, "--exit-code")
    async with node_of(FakeRepairService(updates=[partial])) as port:
        unknown = await repair(port, mode, "--exit-code")
    assert (silent.status, silent.err) == (0, "")
    assert (told.status, told.err) == (3, "nodetool: the replicas differ\n")
    assert told.out.splitlines()[1:] == silent.out.splitlines()[1:]
    assert (unknown.status, unknown.err) == (4, "nodetool: repair partly done: one is down\n")


# --- other ends


@pytest.mark.parametrize(
    ("state", "status", "head", "line"),
    [
        (SessionState.PARTIAL, 4, "Repair partly done", "repair partly done: one is down"),
        (SessionState.FAILED, 1, "Repair failed", "repair failed: one is down"),
        (SessionState.CANCELLED, 1, "Repair was cancelled at 100%", "repair was cancelled; rows that were moved stay"),
        (
            SessionState.PAUSED,
            4,
            "Repair paused at 100%",
            "repair paused: 'nodetool repair_admin resume 47249135' goes on from there",
        ),
        (
            SessionState.INTERRUPTED,
            4,
            "Repair interrupted at 100%",
            "repair interrupted: 'nodetool repair_admin resume 47249135' goes on from there",
        ),
    ],
)
async def test_other_outcomes(repair: Run, state: SessionState, status: int, head: str, line: str) -> None:
    async with node_of(FakeRepairService(updates=[BEGUN, ended(state, "one\nis down")])) as port:
        ran = await repair(port)
        as_json = await repair(port, "--output", "json")
    assert (ran.status, ran.err) == (status, f"nodetool: {line}\n")
    assert f"\n{head} in 1.2 s\n  Rows that differed   : 600\n" in ran.out
    assert as_json.status == status
    assert json.loads(as_json.out)["outcome"] == state.value


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (RepairRequestError("no such peer"), 2, "refused by {node}: no such peer"),
        (UnknownKeyspaceError("no such keyspace"), 1, "refused by {node}: no such keyspace"),
        (RepairRunningError("one is running"), 1, "refused by {node}: one is running"),
    ],
)
async def test_a_repair_that_is_refused(repair: Run, error: Exception, status: int, line: str) -> None:
    async with node_of(FakeRepairService(updates=[], error=error)) as port:
        ran = await repair(port)
    assert (ran.status, ran.err) == (status, f"nodetool: {line.format(node=f'127.0.0.1:{port}')}\n")


async def test_what_is_said_twice_is_said_once(repair: Run) -> None:
    last = ended(SessionState.PARTIAL, "Repair finished without 127.0.0.1:7002")
    async with node_of(FakeRepairService(updates=[last])) as port:
        ran = await repair(port)
        validation = await repair(port, "--validate")
    assert ran.err == "nodetool: repair finished without 127.0.0.1:7002\n"
    assert validation.out.endswith("\n\nValidated data is inconsistent, as far as replicas took part\n")
    assert "Rows" not in validation.out


def test_a_bar_is_filled_by_what_is_verified_and_by_rows_until_then() -> None:
    def full(progress: float, moved: int, known: int) -> float:
        sums = admin_pb2.RepairStatistics(rows_moved=moved)
        return repair_follow.bar_share(admin_pb2.RepairUpdate(progress=progress, statistics=sums, rows_to_move=known))

    assert full(0, 0, 0) == full(0, 0, 100) == 0
    assert full(0, 50, 100) == pytest.approx(0.45)
    assert full(0.5, 50, 100) == pytest.approx(0.725)
    assert full(0, 100, 50) == pytest.approx(0.9)
    assert full(1, 100, 100) == full(1, 0, 0) == full(7, 3, 9) == 1
    assert full(float("nan"), 1, 1) == pytest.approx(0.9)


@pytest.mark.parametrize("error", [ServiceStoppedError("going"), StoreFullError("no space left")])
async def test_a_node_that_goes_away_says_where_to_look(repair: Run, error: Exception) -> None:
    async with node_of(FakeRepairService(updates=[BEGUN], error=error)) as port:
        begun = await repair(port)
    async with node_of(FakeRepairService(updates=[], error=error)) as port_of_other:
        refused = await repair(port_of_other)
    assert (begun.status, begun.err) == (
        5,
        (
            f"nodetool: the node at 127.0.0.1:{port} is not ready: {error}; "
            "the outcome of repair 47249135 is not known, see 'nodetool repair_admin list' when the node answers\n"
        ),
    )
    assert (refused.status, refused.err) == (
        5,
        f"nodetool: the node at 127.0.0.1:{port_of_other} is not ready: {error}\n",
    )


async def test_an_end_without_an_outcome_is_a_failure(repair: Run) -> None:
    async with node_of(FakeRepairService(updates=[BEGUN])) as port:
        ran = await repair(port)
    line = f"nodetool: 127.0.0.1:{port} ended the repair without saying its outcome\n"
    assert (ran.status, ran.err) == (1, line)


async def test_a_state_of_a_newer_node_is_shown_and_is_no_outcome(repair: Run) -> None:
    class Newer(UnservedRepairAdmin):
        async def Repair(self, request: Any, context: Any) -> AsyncIterator[admin_pb2.RepairUpdate]:  # noqa: N802
            state: Any = 77
            yield admin_pb2.RepairUpdate(message="Doing something else", state=state)

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    admin_pb2_grpc.add_RepairAdminServiceServicer_to_server(Newer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ran = await repair(port)
    await server.stop(0)
    assert ran.out.endswith("Doing something else\n")
    assert (ran.status, ran.err) == (1, f"nodetool: 127.0.0.1:{port} ended the repair without saying its outcome\n")


async def test_a_node_that_falls_silent_is_given_up_and_the_repair_cancelled(repair: Run) -> None:
    service = FakeRepairService(updates=[BEGUN], endless=True)
    async with node_of(service, FakeGossip(silent=True)) as port:
        ran = await repair(port, "--timeout", "0.2")
        await asyncio.wait_for(service.closed.wait(), 10)
    assert (ran.status, ran.err) == (
        5,
        (
            f"nodetool: 127.0.0.1:{port} fell silent; the outcome of repair 47249135 is not known, "
            "see 'nodetool repair_admin list' when the node answers\n"
        ),
    )


async def test_a_repair_that_is_silent_at_work_is_waited_for_while_the_node_answers(repair: Run) -> None:
    service = FakeRepairService(updates=[BEGUN], endless=True)
    gossip = FakeGossip(on_second_question=service.go_on.set)
    async with node_of(service, gossip) as port:
        ran = await repair(port, "--timeout", "0.2")
    assert (ran.status, ran.err) == (0, "")
    assert gossip.questions == 2


async def test_a_repair_that_takes_too_long_is_cancelled(repair: Run) -> None:
    service = FakeRepairService(updates=[BEGUN], endless=True)
    async with node_of(service) as port:
        ran = await repair(port, "--session-timeout", "0.3")
        await asyncio.wait_for(service.closed.wait(), 10)
    line = "nodetool: the repair did not end within --session-timeout and was cancelled\n"
    assert (ran.status, ran.err) == (1, line)


def command(port: int, *args: str) -> list[str]:
    return [sys.executable, "-m", "nodetool", "-p", str(port), *args]


@pytest.mark.process
@pytest.mark.parametrize(
    ("state", "line"),
    [
        (
            SessionState.CANCELLED,
            (
                b"the repair was cancelled at 50%; rows that were moved stay, and "
                b"the same command again finds only what still differs"
            ),
        ),
        (
            SessionState.INTERRUPTED,
            b"the repair was interrupted at 50%; 'nodetool repair_admin resume 47249135' goes on from there",
        ),
        (
            SessionState.STREAMING,
            b"the repair goes on unwatched at 50%; 'nodetool repair_admin cancel 47249135' ends it",
        ),
    ],
)
async def test_ctrl_c_ends_the_repair_and_says_what_became_of_it(state: SessionState, line: bytes) -> None:
    service = FakeRepairService(updates=[BEGUN, STREAMING], endless=True, state_when_closed=state)
    async with node_of(service) as port:
        process = await asyncio.create_subprocess_exec(
            *command(port, "repair"), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        for end in (b"Starting repair of kv\n", b"Streaming 1200 rows (progress: 50%)\n"):
            assert (await asyncio.wait_for(process.stdout.readline(), 30)).endswith(end)
        process.send_signal(signal.SIGINT)
        _out, err = await asyncio.wait_for(process.communicate(), 30)
        await asyncio.wait_for(service.closed.wait(), 10)
    assert (process.returncode, err) == (130, b"nodetool: " + line + b"\n")


async def on_terminal(arguments: list[str], *, stdout_too: bool, **variables: str) -> tuple[int, str, str]:
    """Exit status, what came on a pipe as standard output (unless ``stdout_too``), and what came on the terminal."""
    controller, terminal = pty.openpty()
    shown = bytearray()
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()

    def read() -> None:
        try:
            chunk = os.read(controller, 65536)
        except OSError:
            chunk = b""
        shown.extend(chunk)
        if not chunk:
            loop.remove_reader(controller)
            gone.set()

    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=terminal if stdout_too else asyncio.subprocess.PIPE,
        stderr=terminal,
        env={**environment, "TERM": "xterm", "COLUMNS": "120", **variables},
    )
    os.close(terminal)
    loop.add_reader(controller, read)
    out, _err = await asyncio.wait_for(process.communicate(), 30)
    await asyncio.wait_for(gone.wait(), 10)
    os.close(controller)
    return process.returncode or 0, (out or b"").decode(), shown.decode().replace("\r\n", "\n")


@pytest.mark.process
async def test_a_terminal_gets_lines_and_a_bar_and_a_pipe_the_lines() -> None:
    async with node_of(FakeRepairService()) as port:
        status, out, shown = await on_terminal(command(port, "repair"), stdout_too=False)
        plain = await on_terminal(command(port, "repair"), stdout_too=True, NO_COLOR="1", COLUMNS="80")
        as_json = await on_terminal(command(port, "repair", "--output", "json"), stdout_too=False)
    assert status == 0
    assert out.endswith(SUMMARY)
    assert re.search(STAMP + re.escape("Streaming 1200 rows (progress: 50%)\n"), out)
    assert not re.search(STAMP, shown)
    assert "completed" in shown
    assert "100%" in shown
    assert "50% verified 1,200 of 2,400 rows 108.51 KiB" in shown or "100% verified 1,200 rows 108.51 KiB" in shown
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", shown)
    assert plain[2].endswith(SUMMARY)
    assert "100%" in plain[2]
    assert re.search(STAMP + re.escape("Streaming 1200 rows (progress: 50%)\n"), plain[2])
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", plain[2])
    bars = [line for line in re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", plain[2]) if "\u2501" in line]
    assert bars
    assert max(map(len, bars)) <= 80
    assert json.loads(as_json[1])["outcome"] == "completed"
    assert re.search(STAMP + "Starting repair of kv\n", as_json[2])


@pytest.mark.process
async def test_status_is_coloured_on_a_terminal_only() -> None:
    up = gossip_pb2.EndpointView(endpoint="127.0.0.1:7000", liveness=gossip_pb2.LIVENESS_ALIVE)
    up.states.add(key="STATUS", value="NORMAL,5", version=16)
    gossip = FakeGossip(view=gossip_pb2.GetClusterViewResponse(endpoints=[up]))
    async with node_of(FakeRepairService(), gossip) as port:
        coloured = await on_terminal(command(port, "status"), stdout_too=True)
        plain = await on_terminal(command(port, "status"), stdout_too=True, NO_COLOR="1")
        _, piped, _ = await on_terminal(command(port, "status"), stdout_too=False)
    assert "\x1b[32m\x1b[1mUN\x1b[0m  127.0.0.1" in coloured[2]
    assert "\nUN  127.0.0.1" in plain[2]
    assert plain[2] == piped
