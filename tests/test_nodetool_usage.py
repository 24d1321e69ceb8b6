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
    for line in ("0    done", "1    the operation failed", "2    wrong usage", "3    reserved", "4    partly done"):
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
        (["repair", "-et", "0"], "a range of token 0 alone cannot be named. See 'nodetool help repair'."),
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
