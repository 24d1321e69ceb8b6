"""The demonstration as a user runs it, with fewer rows.

Method: run the command with a temporary directory of its own; whatever way it ends, that directory must be empty and no
process that names it may be left.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

ROWS = 3000


class Run:
    """A demonstration under way."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.scratch = directory / "scratch"
        self.scratch.mkdir()
        command = [
            sys.executable,
            "-m",
            "kvstore",
            "demo",
            "--rows",
            str(ROWS),
            "--interval-seconds",
            "0.1",
            *arguments,
        ]
        self.process = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": str(self.scratch)},
        )
        self.lines: list[str] = []

    def read_until(self, words: str) -> str:
        """The first line with these words."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if words in line:
                return line
        raise AssertionError(f"ended without {words!r}:\n" + "\n".join(self.lines))

    def end(self) -> int:
        """Read the rest; the exit status."""
        assert self.process.stdout is not None
        self.lines += [line.rstrip("\n") for line in self.process.stdout]
        return self.process.wait(timeout=60)

    def left_processes(self) -> list[str]:
        """Command lines of processes that name the temporary directory (zombies have none)."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.scratch) in command:
                found.append(command)
        return found

    def assert_nothing_left(self, *, patience_seconds: float = 0.0) -> None:
        deadline = time.monotonic() + patience_seconds
        while (self.left_processes() or any(self.scratch.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self.left_processes() == []
        assert list(self.scratch.iterdir()) == []


@pytest.fixture
def runs() -> Iterator[list[Run]]:
    """Whatever is put in is ended; SIGTERM first, so that a failing test leaves nothing either."""
    started: list[Run] = []
    yield started
    for run in started:
        if run.process.poll() is None:
            run.process.terminate()
            run.end()
        if run.process.stdout is not None:
            run.process.stdout.close()


def test_it_shows_everything_and_proves_it(tmp_path: Path, runs: list[Run]) -> None:
    picture = tmp_path / "demo.svg"
    run = Run(tmp_path, "--svg", str(picture))
    runs.append(run)
    status = run.end()
    output = "\n".join(run.lines)
    assert status == 0, output
    assert re.fullmatch(
        r"all replicas identical: 2,900 rows, 100 tombstones, root hash [0-9a-f]{32}",
        run.lines[-1],
    )
    assert all(line.isprintable() for line in run.lines)
    assert sum(line.strip().startswith("UN ") for line in run.lines) >= 6
    assert sum(line.strip().startswith("DN ") for line in run.lines) == 2
    assert len(re.findall(r"phi at node1 +[\d.]+", output)) >= 3
    assert re.search(r"Rows that differed +: 600\b", output)
    assert re.search(r"Rows moved +: 600\b", output)
    assert "nothing but repair can heal it" in re.sub(r"\s+", " ", output)
    generations = re.search(r"generation went from (\d+) to (\d+)", re.sub(r"\s+", " ", output))
    assert generations is not None
    assert int(generations[1]) < int(generations[2])
    run.assert_nothing_left()
    drawing = picture.read_text()
    assert len(drawing) < 1_000_000
    assert "all\u00a0replicas\u00a0identical" in "".join(ET.fromstring(drawing).itertext())


@pytest.mark.parametrize(
    ("number", "moment", "status"),
    [
        (signal.SIGINT, "Load the Unicode database", 130),
        (signal.SIGTERM, "phi at node1", 143),
        (signal.SIGHUP, "$ nodetool", 129),
        (signal.SIGKILL, "Load the Unicode database", -signal.SIGKILL),
    ],
)
def test_interrupted_it_leaves_nothing(
    number: signal.Signals, moment: str, status: int, tmp_path: Path, runs: list[Run]
) -> None:
    run = Run(tmp_path)
    runs.append(run)
    run.read_until(moment)
    assert len(run.left_processes()) >= 3, "the test looks for the wrong processes"
    assert list(run.scratch.iterdir())
    run.process.send_signal(number)
    assert run.end() == status
    assert not any("Traceback" in line for line in run.lines), run.lines
    # Nobody handles SIGKILL; then the guardian cleans up a moment later.
    run.assert_nothing_left(patience_seconds=20.0 if number == signal.SIGKILL else 0.0)


def test_a_node_that_dies_unasked_is_a_clear_failure(tmp_path: Path, runs: list[Run]) -> None:
    run = Run(tmp_path)
    runs.append(run)
    run.read_until(" clients ")
    pid = int(run.read_until("node2 ").split()[1])
    run.read_until("kill -KILL")
    os.kill(pid, signal.SIGKILL)
    assert run.end() == 1
    assert "demo failed: node2 ended with status -9" in run.lines
    assert not any(line.startswith("all replicas identical") for line in run.lines)
    assert not any("Traceback" in line for line in run.lines), run.lines
    run.assert_nothing_left()


def test_a_picture_that_cannot_be_written_is_refused_at_once(tmp_path: Path, runs: list[Run]) -> None:
    run = Run(tmp_path, "--svg", str(tmp_path / "nowhere" / "demo.svg"))
    runs.append(run)
    assert run.end() == 2
    assert "--svg: there is no directory" in " ".join(run.lines)
    run.assert_nothing_left()
