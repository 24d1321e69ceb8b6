"""nodetool's help, and wrong usage: one line, exit status 2. No node is asked here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from nodetool.main import main


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def nodetool(*args: str) -> Ran:
        capsys.readouterr()
        status = main(list(args))
        return Ran(status, *capsys.readouterr())

    return nodetool


def test_without_arguments_it_shows_its_help(run: Run) -> None:
    ran = run()
    assert ran.status == 0
    assert ran.out.startswith("Usage: nodetool [OPTIONS] [COMMAND]")
    assert (run("help")).out == ran.out
    assert (run("--help")).out == ran.out
    for line in (
        "0    done",
        "1    the operation failed",
        "2    wrong usage",
        "3    replicas differ",
        "4    partly done",
    ):
        assert line in ran.out
    assert "5    the node cannot be reached" in ran.out
    assert "130  interrupted" in ran.out


COMMANDS = (
    "status",
    "gossipinfo",
    "failuredetector",
    "info",
    "netstats",
    "describecluster",
    "replicas",
    "repair",
    "repair_admin",
    "statusgossip",
    "disablegossip",
    "enablegossip",
    "getseeds",
    "reloadseeds",
    "waitsettled",
    "decommission",
    "drain",
    "removenode",
    "assassinate",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples(run: Run, command: str) -> None:
    ran = run("help", command)
    assert ran.status == 0
    assert f"Usage: nodetool {command} " in ran.out
    assert f"Examples:\n    nodetool {command}" in ran.out
    assert (run(command, "--help")).out == ran.out


@pytest.mark.parametrize(
    "command", ["list", "history", "cancel", "pause", "resume", "summarize", "throttle", "schedule"]
)
def test_every_command_of_repair_admin_has_examples(run: Run, command: str) -> None:
    ran = run("help", "repair_admin", command)
    assert ran.status == 0
    assert f"Usage: nodetool repair_admin {command} " in ran.out
    assert f"Examples:\n    nodetool repair_admin {command}" in ran.out
    assert run("repair_admin", command, "--help").out == ran.out
    assert f"\n  {command} " in run("repair_admin").out


@pytest.mark.parametrize("command", [["repair"], ["repair_admin"], ["repair_admin", "schedule"]])
def test_help_fits_80_columns(run: Run, command: list[str]) -> None:
    assert max(map(len, run("help", *command).out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["staus"], "'staus' is not a nodetool command; did you mean 'status'? See 'nodetool help'."),
        (["xyzzy"], "'xyzzy' is not a nodetool command. See 'nodetool help'."),
        (["help", "repiar"], "'repiar' is not a nodetool command; did you mean 'repair'? See 'nodetool help'."),
        (
            ["-p", "0", "status"],
            "Invalid value for '-p' / '--port': '0' is not a port, a number from 1 to 65535. See 'nodetool help'.",
        ),
        (
            ["status", "-p", "x"],
            (
                "Invalid value for '-p' / '--port': 'x' is not a port, a number from 1 to 65535. "
                "See 'nodetool help status'."
            ),
        ),
        (
            ["-h", "10.0.0.1/x", "status"],
            (
                "Invalid value for '-h' / '--host': '10.0.0.1/x' is not a host name or an IP address; "
                "the port goes into -p. See 'nodetool help'."
            ),
        ),
        (
            ["status", "--wait-seconds", "3"],
            "--wait-seconds needs --wait-alive. See 'nodetool help status'.",
        ),
        (
            ["repair", "-st", "9", "-et", "8"],
            "--start-token is greater than --end-token. See 'nodetool help repair'.",
        ),
        (
            ["repair", "--preview", "--pull"],
            "--preview and --pull exclude one another. See 'nodetool help repair'.",
        ),
        (["repair", "--exit-code"], "--exit-code needs --preview or --validate. See 'nodetool help repair'."),
        (
            ["repair", "-vd", "--strategy", "rows"],
            "--strategy says how rows are found, and --validate looks for none. See 'nodetool help repair'.",
        ),
        (
            ["repair", "-hosts", "10.0.0.1", "-local"],
            (
                "-hosts names replicas and -dc, -local choose them by data centre; give one of these only. "
                "See 'nodetool help repair'."
            ),
        ),
        (
            ["repair", "-dc", "dc1", "-local"],
            (
                "-local is the node's own data centre and -dc names one; give one of these only. "
                "See 'nodetool help repair'."
            ),
        ),
        (
            ["repair", "-pr", "-dc", "dc1"],
            (
                "-pr repairs each range once if all nodes do it with all replicas; leave -hosts and -dc out. "
                "See 'nodetool help repair'."
            ),
        ),
        (
            ["repair", "kv", "users"],
            "a keyspace has no tables here; name the keyspace alone, without users. See 'nodetool help repair'.",
        ),
        (
            ["repair", "-paxos-only"],
            "-paxos-only has no meaning here: there is no Paxos to repair. See 'nodetool help repair'.",
        ),
        (
            ["repair", "--include-gcgs-expired-tombstones"],
            (
                "--include-gcgs-expired-tombstones has no meaning here: tombstones that some replicas may have purged "
                "are never compared, or deleted rows would return. See 'nodetool help repair'."
            ),
        ),
        (
            ["repair_admin", "canel"],
            "'canel' is not a command of repair_admin; did you mean 'cancel'? See 'nodetool help repair_admin'.",
        ),
        (
            ["help", "repair_admin", "lst"],
            "'lst' is not a command of repair_admin; did you mean 'list'? See 'nodetool help repair_admin'.",
        ),
        (["repair_admin", "xyz"], "'xyz' is not a command of repair_admin. See 'nodetool help repair_admin'."),
        (["help", "repair", "more"], "'more' is not a nodetool command. See 'nodetool help'."),
        (["repair_admin", "cancel"], "name one session, or give --all. See 'nodetool help repair_admin cancel'."),
        (
            ["repair_admin", "cancel", "47", "--all"],
            "name one session, or give --all. See 'nodetool help repair_admin cancel'.",
        ),
        (
            ["repair_admin", "cancel", "47", "-s", "48"],
            "name one session, or give --all. See 'nodetool help repair_admin cancel'.",
        ),
        (
            ["repair_admin", "throttle", "--bytes-per-second", "fast"],
            (
                "Invalid value for '--bytes-per-second': 'fast' is not a number of bytes such as 500000, 512KiB or "
                "16MiB, nor 'none'. See 'nodetool help repair_admin throttle'."
            ),
        ),
        (
            ["repair", "-st", "zz"],
            (
                "Invalid value for '-st' / '--start-token': 'zz' is not a decimal number, "
                "nor 0x and hexadecimal digits. See 'nodetool help repair'."
            ),
        ),
    ],
)
def test_wrong_usage_is_one_line(run: Run, arguments: list[str], line: str) -> None:
    assert run(*arguments) == Ran(2, "", f"nodetool: {line}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "--bogus"],
        ["status", "extra"],
        ["status", "--sort", "size"],
        ["status", "--output", "xml"],
        ["--timeout", "0", "status"],
        ["status", "--wait-alive", "0"],
        ["repair", "-st", "-1"],
        ["repair", "-et", str(2**64)],
        ["repair", "-j", "0"],
        ["repair", "-j", "5"],
        ["repair", "--strategy", "best"],
        ["repair", "--session-timeout", "0"],
        ["repair_admin", "--bogus"],
        ["repair_admin", "pause"],
        ["repair_admin", "resume"],
        ["repair_admin", "history", "--limit", "1001"],
        ["repair_admin", "throttle", "--bytes-per-second", "-1"],
        ["repair_admin", "throttle", "--bytes-per-second", "0.0k"],
        ["repair_admin", "throttle", "--rows-per-second", "1.5"],
        ["repair_admin", "throttle", "--rows-per-second", "00"],
        ["repair_admin", "throttle", "--cpu-share", "0"],
        ["repair_admin", "throttle", "--cpu-share", "101%"],
        ["repair_admin", "throttle", "--cpu-share", "half"],
        ["repair_admin", "schedule", "stop"],
        ["-p"],
    ],
)
def test_other_wrong_usage_is_one_line_too(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("nodetool: ")
    assert ran.err.count("\n") == 1
    assert "See 'nodetool help" in ran.err


def test_help_imports_neither_grpc_nor_rich() -> None:
    code = (
        "import sys; from nodetool.main import main; main(['--help']); "
        "print([name for name in ('grpc', 'rich', 'google.protobuf', 'gossiper', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("nodetool help repair\n[]\n")


@pytest.mark.process
def test_ctrl_c_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        command = [sys.executable, "-m", "nodetool", "-p", str(listener.getsockname()[1]), "status", "--timeout", "60"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                # The second connection is that of the call, which nobody answers.
                connections = [listener.accept()[0] for _ in range(2)]
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=30)
                for connection in connections:
                    connection.close()
            finally:
                process.kill()
    assert (process.returncode, out, err) == (130, "", "nodetool: interrupted\n")


@pytest.mark.process
def test_a_reader_that_has_gone_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "nodetool", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
