"""Ctrl-C while a command is being imported, while it runs and at its very end: one line, status 130, no traceback."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Interrupts itself when the module named first is imported ("exit": when all is done), and runs a command as -m does.
DRIVER = """
import atexit, os, runpy, signal, sys
moment, package = sys.argv.pop(1), sys.argv.pop(1)
interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)
waiting = {moment}
def heard(event, arguments):
    if event == "import" and arguments[0] in waiting:
        waiting.clear()
        interrupt()
sys.addaudithook(heard)
if moment == "exit":
    atexit.register(interrupt)
runpy.run_module(package, run_name="__main__", alter_sys=True)
"""
NODETOOL = ("nodetool", "status", "-p", "1", "--timeout", "1")
KVSTORE = ("kvstore", "get", "key", "--node", "127.0.0.1:1")
VERSION = ("gossiper", "version")
SIMULATE = ("gossiper", "simulate", "--seeds", "0", "--nodes", "3", "--duration", "1")
SCENARIO = ("gossiper", "scenario", "run", str(ROOT / "tests" / "scenarios" / "short_pause.txt"))


def interrupted(moment: str, command: tuple[str, ...], *before: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, sys.executable, "-c", DRIVER, moment, *command],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize(
    ("moment", "command"),
    [
        ("gossiper.cli", VERSION),
        ("click", VERSION),
        ("numpy", VERSION),
        ("gossiper.core.state", SIMULATE),
        ("importlib.metadata", VERSION),
        ("exit", VERSION),
        ("grpc", SCENARIO),
        ("gossiper.scenario.memory", SCENARIO),
        ("exit", SIMULATE),
        ("nodetool.main", NODETOOL),
        ("click", NODETOOL),
        ("grpc", NODETOOL),
        ("exit", NODETOOL),
        ("kvstore.cli", KVSTORE),
        ("click", KVSTORE),
        ("kvstore.client", KVSTORE),
        ("grpc", KVSTORE),
        ("exit", KVSTORE),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_an_interrupt_is_one_line(moment: str, command: tuple[str, ...]) -> None:
    result = interrupted(moment, command)
    lines = [line for line in result.stderr.splitlines() if line]  # click ends the line of ^C
    if moment == "exit" and len(lines) == 2:
        lines.pop(0)  # what the command itself said: nobody listens there
    assert len(lines) == 1, result.stderr
    assert re.fullmatch(rf"({command[0]}: )?interrupted( after 0 of 1 runs)?", lines[0])
    assert result.returncode == 130


def test_who_is_to_ignore_interrupts_goes_on_ignoring_them() -> None:
    ignoring = ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")
    result = interrupted("click", VERSION, *ignoring)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("gossiper ")


def test_a_signal_from_outside() -> None:
    """The same without a driver, while it waits for an answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(50)
        command = [sys.executable, "-m", "nodetool", "status", "-p", str(silent.getsockname()[1]), "--timeout", "50"]
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            with silent.accept()[0]:
                child.send_signal(signal.SIGINT)
                _, said = child.communicate(timeout=50)
        finally:
            child.kill()
            child.wait()
    assert (child.returncode, said) == (130, "nodetool: interrupted\n")
