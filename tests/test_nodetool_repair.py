"""``nodetool repair``: progress, summary, outcomes, cancellation, on pipes and on a terminal.

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
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from unserved_admin import UnservedAdmin
from unserved_repair import UnservedRepairAdmin

from antientropy.v1 import admin_pb2, admin_pb2_grpc
from gossiper.v1 import admin_pb2 as gossip_pb2
from gossiper.v1 import admin_pb2_grpc as gossip_grpc
from nodetool.main import main

STAMP = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\] "
STATISTICS = admin_pb2.RepairStatistics(
    rows_differing=600,
    rows_moved=1200,
    rows_optimal=1200,
    find_bytes=12_345,
    move_bytes=98_765,
    round_trips=14,
    pairs_compared=3,
    pairs_equal=1,
    elapsed_seconds=1.2345,
)
BEGUN = admin_pb2.RepairUpdate(
    session_id="s-1", message="Starting repair\nof kv", state=admin_pb2.SESSION_STATE_PREPARING
)
STREAMING = admin_pb2.RepairUpdate(
    session_id="s-1",
    message="Streaming 1200 rows",
    state=admin_pb2.SESSION_STATE_STREAMING,
    progress=0.5,
    statistics=STATISTICS,
)


def ended(outcome: admin_pb2.SessionState.ValueType, message: str) -> admin_pb2.RepairUpdate:
    return admin_pb2.RepairUpdate(
        session_id="s-1",
        message=message,
        progress=1.0,
        statistics=STATISTICS,
        state=outcome,
    )


COMPLETED = ended(admin_pb2.SESSION_STATE_COMPLETED, "Repair completed successfully")


@dataclass
class Fault:
    code: grpc.StatusCode
    details: str


@dataclass
class FakeNode(UnservedRepairAdmin, UnservedAdmin):
    updates: Sequence[admin_pb2.RepairUpdate] = (BEGUN, STREAMING, STREAMING, COMPLETED)
    fault: Fault | None = None
    endless: bool = False
    silent: bool = False
    requests: list[admin_pb2.RepairRequest] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    questions: int = 0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def DescribeReplica(self, request: Any, context: Any) -> admin_pb2.DescribeReplicaResponse:  # noqa: N802
        return admin_pb2.DescribeReplicaResponse()

    async def Repair(self, request: Any, context: Any) -> AsyncIterator[admin_pb2.RepairUpdate]:  # noqa: N802
        self.requests.append(request)
        try:
            for update in self.updates:
                yield update
            if self.endless:
                await self.go_on.wait()
                yield COMPLETED
            if self.fault is not None:
                await context.abort(self.fault.code, self.fault.details)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def GetClusterView(self, request: Any, context: Any) -> gossip_pb2.GetClusterViewResponse:  # noqa: N802
        return gossip_pb2.GetClusterViewResponse()

    async def GetFailureDetector(self, request: Any, context: Any) -> gossip_pb2.GetFailureDetectorResponse:  # noqa: N802
        return gossip_pb2.GetFailureDetectorResponse()

    async def GetNodeInfo(self, request: Any, context: Any) -> gossip_pb2.GetNodeInfoResponse:  # noqa: N802
        if self.silent:
            await asyncio.Event().wait()
        self.questions += 1
        if self.questions == 2:
            self.go_on.set()
        return gossip_pb2.GetNodeInfoResponse()


@asynccontextmanager
async def serving(node: FakeNode) -> AsyncIterator[int]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    admin_pb2_grpc.add_RepairAdminServiceServicer_to_server(node, server)
    gossip_grpc.add_GossipAdminServiceServicer_to_server(node, server)
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


SUMMARY = (
    "Repair completed successfully in 1.23 s\n"
    "  Rows that differed   : 600\n"
    "  Rows moved           : 1,200\n"
    "  Rows moved at best   : 1,200\n"
    "  Bytes for finding    : 12,345 (12.06 KiB)\n"
    "  Bytes for moving     : 98,765 (96.45 KiB)\n"
    "  Round trips          : 14\n"
    "  Pairs compared       : 3, of them equal: 1\n"
    "  Session              : s-1\n"
)


async def test_lines_and_summary(repair: Run) -> None:
    node = FakeNode()
    async with serving(node) as port:
        ran = await repair(port)
    assert (ran.status, ran.err) == (0, "")
    first, second, third, summary = ran.out.split("\n", 3)
    assert re.fullmatch(STAMP + "Starting repair of kv", first)
    assert re.fullmatch(STAMP + "Streaming 1200 rows", second)
    assert re.fullmatch(STAMP + "Repair completed successfully", third)
    assert summary == SUMMARY
    assert node.requests == [admin_pb2.RepairRequest()]


async def test_few_bytes_are_said_once(repair: Run) -> None:
    statistics = admin_pb2.RepairStatistics(find_bytes=118)
    equal = admin_pb2.RepairUpdate(state=admin_pb2.SESSION_STATE_COMPLETED, statistics=statistics)
    async with serving(FakeNode(updates=[equal])) as port:
        ran = await repair(port)
    assert "  Bytes for finding    : 118\n  Bytes for moving     : 0\n" in ran.out


async def test_what_is_asked_for(repair: Run) -> None:
    node = FakeNode()
    async with serving(node) as port:
        await repair(port, "kv", "-hosts", "127.0.0.1:7001", "--in-hosts", "127.0.0.1:7002", "-st", "0x10")
        await repair(port, "-et", "0xff")
    assert node.requests == [
        admin_pb2.RepairRequest(
            keyspace="kv",
            token_ranges=[admin_pb2.TokenRange(first=16, last=2**64 - 1)],
            peers=["127.0.0.1:7001", "127.0.0.1:7002"],
        ),
        admin_pb2.RepairRequest(token_ranges=[admin_pb2.TokenRange(first=0, last=255)]),
    ]


async def test_json_is_one_object_and_progress_goes_to_standard_error(repair: Run) -> None:
    async with serving(FakeNode()) as port:
        ran = await repair(port, "--output", "json")
    content = json.loads(ran.out)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", content.pop("time"))
    assert content == {
        "schema_version": 1,
        "session_id": "s-1",
        "keyspace": None,
        "outcome": "completed",
        "message": "Repair completed successfully",
        "progress_ratio": 1.0,
        "rows_differing": 600,
        "rows_moved": 1200,
        "rows_optimal": 1200,
        "find_bytes": 12_345,
        "move_bytes": 98_765,
        "round_trips": 14,
        "pairs_compared": 3,
        "pairs_equal": 1,
        "elapsed_seconds": 1.2345,
    }
    assert len(re.findall(f"(?m)^{STAMP}", ran.err)) == 3


@pytest.mark.parametrize(
    ("outcome", "status", "head", "line"),
    [
        (admin_pb2.SESSION_STATE_PARTIAL, 4, "Repair partly done in 1.23 s", "repair partly done: one is down"),
        (admin_pb2.SESSION_STATE_FAILED, 1, "Repair failed in 1.23 s", "repair failed: one is down"),
    ],
)
async def test_other_outcomes(
    repair: Run, outcome: admin_pb2.SessionState.ValueType, status: int, head: str, line: str
) -> None:
    async with serving(FakeNode(updates=[BEGUN, ended(outcome, "one\nis down")])) as port:
        ran = await repair(port)
        as_json = await repair(port, "--output", "json")
    assert (ran.status, ran.err) == (status, f"nodetool: {line}\n")
    assert f"\n{head}\n  Rows that differed   : 600\n" in ran.out
    assert as_json.status == status
    assert json.loads(as_json.out)["outcome"] == {4: "partial", 1: "failed"}[status]


@pytest.mark.parametrize(
    ("code", "status", "line"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 2, "refused by {node}: no such peer"),
        (grpc.StatusCode.NOT_FOUND, 1, "{node} answered NOT_FOUND: no such peer"),
        (grpc.StatusCode.ABORTED, 1, "{node} answered ABORTED: no such peer"),
        (grpc.StatusCode.UNAVAILABLE, 5, "the node at {node} is not ready: no such peer"),
    ],
)
async def test_a_call_that_fails(repair: Run, code: grpc.StatusCode, status: int, line: str) -> None:
    async with serving(FakeNode(updates=[BEGUN], fault=Fault(code, "no such peer"))) as port:
        ran = await repair(port)
    assert (ran.status, ran.err) == (status, f"nodetool: {line.format(node=f'127.0.0.1:{port}')}\n")


async def test_an_end_without_an_outcome_is_a_failure(repair: Run) -> None:
    async with serving(FakeNode(updates=[BEGUN])) as port:
        ran = await repair(port)
    line = f"nodetool: 127.0.0.1:{port} ended the repair without saying its outcome\n"
    assert (ran.status, ran.err) == (1, line)


async def test_a_node_that_falls_silent_is_given_up_and_the_repair_cancelled(repair: Run) -> None:
    node = FakeNode(updates=[BEGUN], endless=True, silent=True)
    async with serving(node) as port:
        ran = await repair(port, "--timeout", "0.2")
        await asyncio.wait_for(node.cancelled.wait(), 10)
    line = f"nodetool: 127.0.0.1:{port} fell silent; the outcome of the repair is not known\n"
    assert (ran.status, ran.err) == (5, line)


async def test_a_repair_that_is_silent_at_work_is_waited_for_while_the_node_answers(repair: Run) -> None:
    node = FakeNode(updates=[BEGUN], endless=True)
    async with serving(node) as port:
        ran = await repair(port, "--timeout", "0.2")
    assert (ran.status, ran.err) == (0, "")
    assert node.questions == 2


async def test_a_repair_that_takes_too_long_is_cancelled(repair: Run) -> None:
    node = FakeNode(updates=[BEGUN], endless=True)
    async with serving(node) as port:
        ran = await repair(port, "--session-timeout", "0.3")
        await asyncio.wait_for(node.cancelled.wait(), 10)
    line = "nodetool: the repair did not end within --session-timeout and was cancelled\n"
    assert (ran.status, ran.err) == (1, line)


def command(port: int, *args: str) -> list[str]:
    return [sys.executable, "-m", "nodetool", "-p", str(port), *args]


@pytest.mark.process
async def test_ctrl_c_cancels_the_repair() -> None:
    node = FakeNode(updates=[BEGUN], endless=True)
    async with serving(node) as port:
        process = await asyncio.create_subprocess_exec(
            *command(port, "repair"), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        assert line.endswith(b"Starting repair of kv\n")
        process.send_signal(signal.SIGINT)
        _out, err = await asyncio.wait_for(process.communicate(), 30)
        await asyncio.wait_for(node.cancelled.wait(), 10)
    assert (process.returncode, err) == (130, b"nodetool: the repair was cancelled\n")


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
async def test_a_terminal_gets_a_bar_and_a_pipe_the_lines() -> None:
    async with serving(FakeNode()) as port:
        status, out, shown = await on_terminal(command(port, "repair"), stdout_too=False)
        plain = await on_terminal(command(port, "repair"), stdout_too=True, NO_COLOR="1")
    assert status == 0
    assert out.endswith(SUMMARY)
    assert re.search(STAMP + "Streaming 1200 rows\n", out)
    assert "finished" in shown
    assert "100%" in shown
    assert "1,200 rows moved, 96.45 KiB" in shown
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", shown)
    assert plain[2].endswith(SUMMARY)
    assert "100%" in plain[2]
    assert not re.search(STAMP, plain[2])
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", plain[2])


@pytest.mark.process
async def test_status_is_coloured_on_a_terminal_only() -> None:
    class Up(FakeNode):
        async def GetClusterView(self, request: Any, context: Any) -> gossip_pb2.GetClusterViewResponse:  # noqa: N802
            view = gossip_pb2.EndpointView(endpoint="127.0.0.1:7000", liveness=gossip_pb2.LIVENESS_ALIVE)
            view.states.add(key="STATUS", value="NORMAL,5", version=16)
            return gossip_pb2.GetClusterViewResponse(endpoints=[view])

    async with serving(Up()) as port:
        coloured = await on_terminal(command(port, "status"), stdout_too=True)
        plain = await on_terminal(command(port, "status"), stdout_too=True, NO_COLOR="1")
        _, piped, _ = await on_terminal(command(port, "status"), stdout_too=False)
    assert "\x1b[32m\x1b[1mUN\x1b[0m  127.0.0.1" in coloured[2]
    assert "\nUN  127.0.0.1" in plain[2]
    assert plain[2] == piped
