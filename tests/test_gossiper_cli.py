"""The ``gossiper`` command: usage and configuration in this process, members as real processes on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gossiper.cli import main
from gossiper.cli_run import described, is_loopback, json_line, text_line
from gossiper.core.messages import VersionedValue
from gossiper.events import (
    EndpointAlive,
    EndpointDead,
    EndpointJoined,
    EndpointRestarted,
    EndpointView,
    Event,
    EventsMissed,
    Liveness,
    StateChanged,
)
from gossiper.storage import FILE_NAME, NodeStorage

WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def gossiper(*args: str) -> Ran:
        capsys.readouterr()
        status = main(list(args))
        return Ran(status, *capsys.readouterr())

    return gossiper


# --- usage and configuration


def test_without_arguments_it_shows_its_help(run: Run) -> None:
    ran = run()
    assert ran.status == 0
    assert ran.out.startswith("Usage: gossiper [OPTIONS] ")
    for line in ("0    done", "1    the operation failed", "2    wrong usage", "130  aborted"):
        assert line in ran.out


@pytest.mark.parametrize("command", [["run"], ["generation", "show"], ["generation", "reset"]])
def test_every_command_has_examples(run: Run, command: list[str]) -> None:
    ran = run(*command, "--help")
    assert ran.status == 0
    assert f"Examples:\n    gossiper {' '.join(command)} --" in ran.out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["rum"], "'rum' is not a command of gossiper; did you mean 'run'? See 'gossiper --help'."),
        (["xyzzy"], "'xyzzy' is not a command of gossiper. See 'gossiper --help'."),
        (
            ["generation", "shw"],
            "'shw' is not a command of gossiper generation; did you mean 'show'? See 'gossiper generation --help'.",
        ),
        (["generation", "show"], "Missing option '--data'. See 'gossiper generation show --help'."),
        (
            ["run", "--set", "Role=db"],
            (
                "Invalid value for '--set': 'Role=db' is not key=value with a key that begins with a lower-case "
                "letter. See 'gossiper run --help'."
            ),
        ),
        (
            ["run", "--set", "role=" + "x" * 20_000],
            "Invalid value for '--set': the value of role is longer than 16384 bytes. See 'gossiper run --help'.",
        ),
        (
            ["run", "--admin", "7199"],
            "Invalid value for '--admin': '7199' is not host:port. See 'gossiper run --help'.",
        ),
    ],
)
def test_wrong_usage_is_one_line(run: Run, arguments: list[str], line: str) -> None:
    assert run(*arguments) == Ran(2, "", f"gossiper: {line}\n")


def test_all_faults_of_the_options_at_once(run: Run) -> None:
    ran = run("run", "--listen", "foo", "--interval", "0", "--seed", "bar")
    assert ran == Ran(
        2,
        "",
        "gossiper: --cluster-name: is missing; it must be a text\n"
        "gossiper: --listen: 'foo' is not host:port\n"
        "gossiper: --seed: 'bar' is not host:port\n"
        "gossiper: --interval: must be 0.01 to 3600.0, is 0.0\n",
    )


def test_all_faults_of_file_and_options_at_once(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('cluster_name = 7\nlisten = "127.0.0.1:0"\nphi_treshold = 8\nrack = ""\n')
    ran = run("run", "--config", str(file), "--interval", "0")
    assert ran == Ran(
        2,
        "",
        f"gossiper: {file}: cluster_name: must be a text, is 7\n"
        f"gossiper: {file}: phi_treshold: unknown key; did you mean phi_threshold?\n"
        f"gossiper: {file}: rack: must be printable text, is ''\n"
        "gossiper: --interval: must be 0.01 to 3600.0, is 0.0\n",
    )


def test_a_settings_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    ran = run("run", "--config", str(tmp_path / "none.toml"))
    assert ran == Ran(2, "", f"gossiper: {tmp_path}/none.toml: cannot be read: No such file or directory\n")


def test_version(run: Run) -> None:
    assert re.fullmatch(r"gossiper (\d+\.\d+\.\d+\S*|unknown)\n", run("version").out)
    content = json.loads(run("version", "--output", "json").out)
    assert content.keys() == {"schema_version", "version"}


# --- generation


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    with NodeStorage(tmp_path) as storage:
        storage.store_generation(1_700_000_000, "00000000-0000-4000-8000-000000000001")
    return tmp_path


def test_show_generation(run: Run, data_dir: Path) -> None:
    ran = run("generation", "show", "--data", str(data_dir))
    assert ran == Ran(
        0,
        "generation: 1700000000 (2023-11-14T22:13:20Z)\nhost id:    00000000-0000-4000-8000-000000000001\n",
        "",
    )
    as_json = run("generation", "show", "--data", str(data_dir), "--output", "json")
    assert json.loads(as_json.out) == {
        "schema_version": 1,
        "generation": 1_700_000_000,
        "generation_time": "2023-11-14T22:13:20Z",
        "host_id": "00000000-0000-4000-8000-000000000001",
    }


def test_show_where_no_node_has_run(run: Run, tmp_path: Path) -> None:
    ran = run("generation", "show", "--data", str(tmp_path))
    assert ran == Ran(1, "", f"gossiper: no generation is stored in {tmp_path}: no node has run there\n")


def test_a_corrupt_generation_is_named_and_can_be_set_aside(run: Run, data_dir: Path) -> None:
    file = data_dir / FILE_NAME
    file.write_bytes(file.read_bytes().replace(b"17", b"18"))
    shown = run("generation", "show", "--data", str(data_dir))
    assert shown.status == 1
    assert f"{file} is corrupt (wrong checksum)" in shown.err
    assert f"`gossiper generation reset --data {data_dir}`" in shown.err
    assert shown.err.count("\n") == 1
    done = run("generation", "reset", "--data", str(data_dir))
    assert done == Ran(0, f"moved to {file}.corrupt; the next start begins with a new host id\n", "")
    assert not file.exists()
    again = run("generation", "reset", "--data", str(data_dir))
    assert again == Ran(0, f"nothing to reset: no generation is stored in {data_dir}\n", "")


def test_reset_json(run: Run, data_dir: Path) -> None:
    arguments = ("generation", "reset", "--data", str(data_dir), "--output", "json")
    assert json.loads(run(*arguments).out) == {
        "schema_version": 1,
        "moved_to": str(data_dir / f"{FILE_NAME}.corrupt"),
    }
    assert json.loads(run(*arguments).out) == {"schema_version": 1, "moved_to": None}


def test_a_running_node_keeps_its_generation(run: Run, data_dir: Path) -> None:
    with NodeStorage(data_dir) as storage:
        storage.load()
        for command in ("show", "reset"):
            ran = run("generation", command, "--data", str(data_dir))
            assert (ran.status, ran.out) == (1, "")
            assert f"{data_dir} is in use by another node" in ran.err


# --- the lines of events


def view(generation: int = 5, **states: str) -> EndpointView:
    values = {"HOST_ID": "h-1", **states}
    return EndpointView(
        endpoint="127.0.0.1:7001",
        generation=generation,
        heartbeat=1,
        states_version=16,
        interval_ms=100,
        liveness=Liveness.ALIVE,
        states={key: VersionedValue(16, value) for key, value in values.items()},
    )


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (EndpointJoined("127.0.0.1:7001", view()), "joined 127.0.0.1:7001 generation=5 host_id=h-1"),
        (EndpointAlive("127.0.0.1:7001", view(), view()), "alive 127.0.0.1:7001 generation=5"),
        (
            EndpointDead("127.0.0.1:7001", view(), view(), "convicted"),
            "dead 127.0.0.1:7001 generation=5 reason=convicted",
        ),
        (
            EndpointRestarted("127.0.0.1:7001", view(), view(9)),
            "restarted 127.0.0.1:7001 generation=9 host_id=h-1 generation_before=5",
        ),
        (
            StateChanged("127.0.0.1:7001", view(), view(role="d\x1bb"), ("role", "zone")),
            "changed 127.0.0.1:7001 role=d\\x1bb zone deleted",
        ),
        (EventsMissed(7), "missed count=7"),
    ],
)
def test_every_event_is_one_line(event: Event, line: str) -> None:
    stamped = {"time": "2026-01-02T03:04:05.678Z", **described(event)}
    assert text_line(stamped) == f"2026-01-02T03:04:05.678Z {line}"
    content = json.loads(json_line(stamped))
    assert content["schema_version"] == 1
    assert content["event"] == line.split(maxsplit=1)[0]


# --- members


@dataclass
class Member:
    """One ``gossiper run --output json`` and what it has printed."""

    process: asyncio.subprocess.Process
    lines: list[dict[str, Any]] = field(default_factory=list)

    async def until(self, **wanted: Any) -> dict[str, Any]:
        """The first line, printed or to come, with these fields."""

        async def find() -> dict[str, Any]:
            seen = 0
            while True:
                for line in self.lines[seen:]:
                    if wanted.items() <= line.items():
                        return line
                seen = len(self.lines)
                await self._read()

        return await asyncio.wait_for(find(), WAIT_SECONDS)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        assert line, f"ended; it had printed {self.lines}"
        self.lines.append(json.loads(line))

    async def end(self) -> tuple[int, str]:
        """Exit status, and what came on standard error; what is left of the lines is kept."""
        out, err = await asyncio.wait_for(self.process.communicate(), WAIT_SECONDS)
        self.lines += [json.loads(line) for line in out.splitlines()]
        return self.process.returncode or 0, err.decode()


COMMAND = [sys.executable, "-m", "gossiper"]


@asynccontextmanager
async def member(*arguments: str) -> AsyncIterator[Member]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        "run",
        "--output",
        "json",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Member(process)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


LOCAL = ("--cluster-name", "test", "--listen", "127.0.0.1:0", "--interval", "0.1")


@pytest.mark.process
async def test_two_members_meet_and_a_sigterm_is_announced(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(member(*LOCAL, "--admin", "127.0.0.1:0"))
        started = await first.until(event="started")
        second = await stack.enter_async_context(
            member(*LOCAL, "--seed", started["endpoint"], "--data", str(tmp_path), "--set", "role=db")
        )
        other = await second.until(event="started")
        joined = await first.until(event="joined", endpoint=other["endpoint"])
        assert joined["host_id"] == other["host_id"]
        assert joined["generation"] == other["generation"]
        await first.until(event="alive", endpoint=other["endpoint"])
        await second.until(event="alive", endpoint=started["endpoint"])

        port = started["admin"].rpartition(":")[2]
        command = [sys.executable, "-m", "nodetool", "-p", port]
        status = await _output([*command, "status", "--wait-alive", "2"])
        assert status.count("\nUN  127.0.0.1:") == 2
        gossipinfo = json.loads(await _output([*command, "gossipinfo", "--output", "json"]))
        values = {
            endpoint["endpoint"]: {state["key"]: state["value"] for state in endpoint["states"]}
            for endpoint in gossipinfo["endpoints"]
        }
        assert values[other["endpoint"]]["role"] == "db"
        detector = await _output([*command, "failuredetector"])
        assert re.search(rf"(?m)^ */{other['endpoint']}, +\d+\.\d{{8}}$", detector)
        info = await _output([*command, "info"])
        assert f"ID                     : {started['host_id']}\n" in info
        assert "\tLive: 2\n" in await _output([*command, "describecluster"])

        second.process.send_signal(signal.SIGTERM)
        dead = await first.until(event="dead", endpoint=other["endpoint"])
        assert dead["reason"] == "shutdown"
        assert await second.end() == (0, "")
        assert second.lines[-1]["event"] == "stopped"
        assert second.lines[-1]["endpoint"] == other["endpoint"]
        first.process.send_signal(signal.SIGINT)
        assert await first.end() == (0, "")
    with NodeStorage(tmp_path) as storage:
        assert storage.load().generation == other["generation"]


@pytest.mark.process
async def test_of_two_live_members_with_one_host_id_the_later_stays_and_the_other_is_told(tmp_path: Path) -> None:
    """A data directory was copied, and the copy started where it could not see the original."""
    first, second = tmp_path / "original", tmp_path / "copy"
    async with AsyncExitStack() as stack:
        original = await stack.enter_async_context(member(*LOCAL, "--data", str(first)))
        loser = await original.until(event="started")
        second.mkdir()
        (second / FILE_NAME).write_bytes((first / FILE_NAME).read_bytes())
        copy = await stack.enter_async_context(member(*LOCAL, "--data", str(second)))
        winner = await copy.until(event="started")
        assert winner["host_id"] == loser["host_id"]
        assert winner["generation"] > loser["generation"]
        seeds = ("--seed", loser["endpoint"], "--seed", winner["endpoint"])
        witness = await stack.enter_async_context(member(*LOCAL, *seeds))
        third = (await witness.until(event="started"))["endpoint"]

        why = (
            f"{winner['endpoint']} has the same host id and a greater generation, so it is the one that stays; "
            "was a data directory copied, or this node replaced?"
        )
        status, said = await original.end()
        log, last = said.splitlines()
        assert (status, last) == (1, f"gossiper: {why}")
        assert log.startswith("gossiper: ERROR stopped ")
        assert original.lines[-1]["event"] == "stopped"
        assert original.lines[-1]["reason"] == why
        await witness.until(event="alive", endpoint=winner["endpoint"])
        await copy.until(event="alive", endpoint=third)
        # It stays the one: the other is not let in again.
        again = await stack.enter_async_context(member(*LOCAL, *seeds, "--data", str(first)))
        status, said = await again.end()
        assert (status, said.count("\n")) == (1, 1)
        assert "two nodes cannot have one host id" in said
        for one in (copy, witness):
            one.process.send_signal(signal.SIGTERM)
            assert await one.end() == (0, "")


async def _output(command: list[str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), WAIT_SECONDS)
    assert (process.returncode, err) == (0, b"")
    return out.decode()


@pytest.mark.process
async def test_a_second_ctrl_c_aborts(tmp_path: Path) -> None:
    settings = tmp_path / "node.toml"
    settings.write_text(
        'cluster_name = "test"\nlisten = "127.0.0.1:0"\ninterval_seconds = 0.1\n'
        "shutdown_grace_seconds = 600\nrpc_timeout_seconds = 600\nphi_threshold = 1000\n[states]\nrole = 'db'\n"
    )
    async with AsyncExitStack() as stack:
        patient = await stack.enter_async_context(member("--config", str(settings), "--set", "zone=z"))
        started = await patient.until(event="started")
        frozen = await stack.enter_async_context(member(*LOCAL, "--seed", started["endpoint"]))
        endpoint = (await frozen.until(event="started"))["endpoint"]
        await patient.until(event="alive", endpoint=endpoint)
        frozen.process.send_signal(signal.SIGSTOP)
        patient.process.send_signal(signal.SIGINT)
        # It says so before it waits for the peer that cannot answer.
        await patient.until(event="changed", endpoint=started["endpoint"])
        patient.process.send_signal(signal.SIGINT)
        assert await patient.end() == (130, "")


@pytest.mark.process
def test_lines_for_people() -> None:
    with subprocess.Popen(
        [*COMMAND, "run", *LOCAL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
            assert re.match(stamp + r" started 127\.0\.0\.1:\d+ cluster_name=test generation=\d+ host_id=", line)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=WAIT_SECONDS)
            assert re.search(stamp + r" stopped 127\.0\.0\.1:[1-9]\d*\n\Z", out)
            assert (process.returncode, err) == (0, "")
        finally:
            process.kill()


@pytest.mark.process
@pytest.mark.parametrize("option", ["--listen", "--admin"])
def test_a_port_in_use_is_one_line(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = f"127.0.0.1:{listener.getsockname()[1]}"
        done = subprocess.run(
            [*COMMAND, "run", *LOCAL, option, taken],
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"gossiper: cannot listen on {taken}")
    assert "Address already in use" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.process
def test_a_corrupt_generation_is_refused_with_the_way_out(data_dir: Path) -> None:
    (data_dir / FILE_NAME).write_text("nonsense\n")
    done = subprocess.run(
        [*COMMAND, "run", *LOCAL, "--data", str(data_dir)],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"gossiper generation reset --data {data_dir}" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.process
async def test_it_leaves_when_nobody_reads_its_events_any_more() -> None:
    reader, writer = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "run", *LOCAL, stdout=writer, stderr=asyncio.subprocess.PIPE
    )
    try:
        os.close(writer)
        os.close(reader)
        _out, err = await asyncio.wait_for(process.communicate(), WAIT_SECONDS)
        assert (process.returncode, err) == (1, b"")
    finally:
        if process.returncode is None:
            process.kill()


def test_every_option_of_gossip_is_checked_under_its_own_name(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('cluster_name = "test"\nlisten = "127.0.0.1:0"\nrejoin = true\n')
    ran = run(
        "run", "--config", str(file), "--seed", "file:relative", "--seed-reload-seconds", "0.1", "--rack", "",
        "--datacenter", "\n", "--push-fanout", "-1", "--own-zone-probability", "2", "--shadow-timeout-seconds", "0",
        "--remote-exchanges-per-second", "0",
    )  # fmt: skip
    assert ran == Ran(
        2,
        "",
        "gossiper: --seed: 'file:relative': the path must be absolute\n"
        "gossiper: --datacenter: must be printable text, is '\\n'\n"
        "gossiper: --rack: must be printable text, is ''\n"
        "gossiper: --push-fanout: must be 0 to 64, is -1\n"
        "gossiper: --own-zone-probability: must be 0 to 1, is 2.0\n"
        "gossiper: --remote-exchanges-per-second: must be above 0 and at most 1000, is 0.0\n"
        "gossiper: --seed-reload-seconds: must be 1 to 86400, is 0.1\n"
        "gossiper: --shadow-timeout-seconds: must be above 0 and at most 86400, is 0.0\n",
    )


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("0.0.0.0", False), ("db1", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.process
async def test_an_administration_that_others_reach_is_warned_about() -> None:
    async with member(*LOCAL, "--admin", "0.0.0.0:0") as first:
        await first.until(event="started")
        first.process.terminate()
        status, err = await first.end()
    assert status == 0
    assert "--admin is 0.0.0.0:0: whoever reaches it may remove nodes" in err


def test_the_settings_of_the_file_stand_where_no_option_is_given(tmp_path: Path) -> None:
    from gossiper.cli import _config

    file = tmp_path / "node.toml"
    file.write_text(
        'cluster_name = "test"\nlisten = "127.0.0.1:0"\nrejoin = true\npush_fanout = 2\ndigest_form = "plain"\n'
    )
    config = _config(file, {"replace": "x", "initial_status": "hibernate", "own_zone_probability": 0.5})
    assert (config.rejoin, config.push_fanout, config.digest_form) == (True, 2, "plain")
    assert (config.replace, config.initial_status, config.own_zone_probability) == ("x", "hibernate", 0.5)


@pytest.mark.process
async def test_a_member_that_is_removed_says_why_and_fails(tmp_path: Path) -> None:
    from gossiper.v1 import admin_pb2, admin_pb2_grpc

    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(member(*LOCAL, "--admin", "127.0.0.1:0"))
        started = await first.until(event="started")
        victim = await stack.enter_async_context(
            member(*LOCAL, "--seed", started["endpoint"], "--data", str(tmp_path), "--rack", "r2")
        )
        other = await victim.until(event="started")
        await first.until(event="alive", endpoint=other["endpoint"])
        import grpc.aio

        channel = await stack.enter_async_context(grpc.aio.insecure_channel(started["admin"]))
        admin = admin_pb2_grpc.GossipAdminServiceStub(channel)
        await admin.Assassinate(admin_pb2.AssassinateRequest(endpoint=other["endpoint"], force=True), timeout=10)
        removed = await first.until(event="removed", endpoint=other["endpoint"])
        assert removed["removed_by"] == started["host_id"]

        status, err = await victim.end()

        assert status == 1
        assert err.splitlines()[-1].startswith(
            f"gossiper: an operator removed this node (on the node with host id {started['host_id']})"
        )
        stopped = [line for line in victim.lines if line["event"] == "stopped"]
        assert len(stopped) == 1
        assert stopped[0]["reason"] in err
        # It may come back only as a new one.
        again = await stack.enter_async_context(
            member("--cluster-name", "test", "--listen", other["endpoint"], "--interval", "0.1",
                   "--seed", started["endpoint"], "--data", str(tmp_path))
        )  # fmt: skip
        status, err = await again.end()
        assert (status, again.lines) == (1, [])
        assert f"was removed from the cluster by {started['host_id']}" in err
