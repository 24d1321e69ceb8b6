"""The README is true: its program runs, its commands work, its links and its picture exist.

Method: every Python block is run as a program, and every line of a console block as a command against a real cluster.
The ports of the README are the defaults; here free ones take their place, and nothing else of a line is changed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
FOREGROUND = "kvstore cluster --nodes 3 --data ./cluster"


def start(arguments: list[str], directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=directory, text=True, stdout=subprocess.PIPE, env=environment()
    )


def environment() -> dict[str, str]:
    """Programs run outside of the checkout find the packages of the checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """The first line with these words; the test's own timeout is the deadline."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return line
    raise AssertionError(f"ended without {words!r}: {lines}")


def stop(process: subprocess.Popen[str]) -> str:
    """End it as Ctrl-C does; what it still printed."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=30)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise


def test_the_embedding_is_short_and_the_only_program() -> None:
    (program,) = PYTHON_BLOCKS
    assert len(program.splitlines()) < 20


@pytest.mark.process
def test_the_embedding_works(tmp_path: Path) -> None:
    (tmp_path / "member.py").write_text(PYTHON_BLOCKS[0])
    first = start(["member.py", "127.0.0.1:0"], tmp_path)
    processes = [first]
    try:
        seed = first_line(first).split()[-1]
        second = start(["member.py", "127.0.0.1:0", seed], tmp_path)
        processes.append(second)
        endpoint = first_line(second).split()[-1]
        read_until(first, f"'{endpoint}': 'worker'")
        stop(second)
        assert second.returncode == 0, "Ctrl-C ends it without a traceback"
        farewell = read_until(first, "EndpointDead")
        assert f"'{seed}'" in farewell
        assert f"'{endpoint}'" not in farewell
    finally:
        for process in processes:
            if process.poll() is None:
                stop(process)
            if process.stdout is not None:
                process.stdout.close()


def test_the_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    papers = README + (ROOT / "CONTRIBUTING.md").read_text()
    mentioned = set(re.findall(r"(?:`|^)make ([a-z-]+)", papers, re.MULTILINE))
    assert {"demo", "test", "bench"} <= mentioned
    assert mentioned <= targets


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert "docs/demo.svg" in links
    for link in links:
        assert (ROOT / link).exists(), link
    for row in re.findall(r"^\| (`.*?) \|", README, re.MULTILINE):
        for path in re.findall(r"`([^`]+)`", row):
            assert (ROOT / path).exists(), path


def test_every_command_line_is_of_a_known_kind() -> None:
    assert FOREGROUND in COMMANDS
    # What `pip install .` gives is tested with the wheel.
    known = ("make ", "kvstore ", "nodetool ", "gossiper ")
    others = [line for line in COMMANDS if not line.startswith(known) and line]
    assert others == ["pip install ."]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("gossiper ")])
def test_the_gossiper_commands_work(line: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "gossiper", *shlex.split(line)[1:]],
        cwd=ROOT,
        env=environment(),
        text=True,
        capture_output=True,
        check=False,
        timeout=150,
    )
    assert result.returncode == 0, f"{line}: {result.stderr}{result.stdout}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The README's own cluster, on free ports; the addresses of its first node."""
    directory = tmp_path_factory.mktemp("readme")
    options = ["--base-port", "0", "--interval-seconds", "0.1", "--output", "json"]
    process = start(["-m", *shlex.split(FOREGROUND), *options], directory)
    try:
        addresses: dict[str, str] = json.loads(first_line(process))["nodes"][0]
        yield addresses
    finally:
        stop(process)


@pytest.mark.process
@pytest.mark.timeout(180)
def test_the_commands_work_in_their_order(cluster: dict[str, str], tmp_path: Path) -> None:
    ran = []
    for line in COMMANDS:
        words = shlex.split(line)
        if line == FOREGROUND or not line.startswith(("kvstore ", "nodetool ")):
            continue
        if words[0] == "nodetool":
            host, port = cluster["admin"].rsplit(":", 1)
            words = ["nodetool", "-h", host, "-p", port, *words[1:]]
        result = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env={**environment(), "KVSTORE_NODE": cluster["clients"]},
            text=True,
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert result.returncode == 0, f"{line}: {result.stderr}{result.stdout}"
        if line == "kvstore get city":
            assert result.stdout == "Paris\n"
        if line == "nodetool status":
            assert result.stdout.count("\nUN ") == 3
        ran.append(words[0])
    assert {"kvstore", "nodetool"} == set(ran)
