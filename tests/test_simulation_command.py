"""``gossiper simulate``: what it prints, its exit statuses, resuming, interrupting, replaying."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gossiper.cli_simulate import INTERRUPTED, OK, USAGE, VIOLATED, simulate
from gossiper.core.state import ClusterState
from gossiper.simulation import SimulationOptions, run_seed
from gossiper.simulation.pool import run_all

SMALL = ["--nodes", "4", "--duration", "20", "--jobs", "1"]


def run(*args: str) -> Result:
    return CliRunner().invoke(simulate, list(args))


def report(result: Result) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody who was silent for a moment is alive again at once, and nobody asked."""
    original = ClusterState._install

    def install(self: ClusterState, row: int, *rest: Any) -> None:
        original(self, row, *rest)
        self.table.liveness[row] = 1

    monkeypatch.setattr(ClusterState, "_install", install)


def test_json_has_what_is_promised() -> None:
    result = run("--seeds", "0-2", *SMALL, "--output", "json")
    assert result.exit_code == OK, result.output
    found = report(result)
    assert found["seeds"] == 3
    assert found["violations"] == 0
    assert found["findings"] == []
    assert found["messages"] > 100
    assert found["node_hours"] > 0
    assert all(isinstance(count, int) for count in found["faults"].values())


def test_text_has_the_same_numbers() -> None:
    found = report(run("--seeds", "1", *SMALL, "--output", "json"))
    text = run("--seeds", "1", *SMALL).output
    assert f"messages    {found['messages']:,}" in text
    assert "violations  0" in text


@pytest.mark.usefixtures("planted")
def test_a_violation_shows_all_that_is_needed_and_the_status_is_1() -> None:
    result = run("--seeds", "0-1", *SMALL)
    assert result.exit_code == VIOLATED
    assert "seed 0 breaks alive_unconfirmed" in result.output
    assert "options: seeds=" in result.output
    assert "events:" in result.output
    assert "replay: gossiper simulate --seeds 0 --nodes 4 --duration 20" in result.output
    found = report(run("--seeds", "0-1", *SMALL, "--output", "json"))
    assert found["violations"] == 2
    finding = found["findings"][0]
    assert finding["options"]["swarm"]["latency"] in {"lan", "wan", "heavy_tail"}
    assert 0 < len(finding["trace"]) <= 200


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("pair", [None, "restart-kill"])
def test_the_replay_command_replays(pair: str | None) -> None:
    violation = run_seed(SimulationOptions(seed=3, nodes=5, duration_seconds=20.5, pair=pair)).violation
    assert violation is not None
    words = shlex.split(violation.command)
    assert words[:2] == ["gossiper", "simulate"]
    again = report(run(*words[2:], "--output", "json", "--jobs", "1"))["findings"][0]
    assert (again["invariant"], again["at_seconds"]) == (violation.invariant, violation.at_seconds)
    assert again["trace"] == list(violation.trace)


def test_pairs_runs_the_matrix() -> None:
    result = run("pairs", "--seeds", "0", "--nodes", "4", "--duration", "16", "--output", "json")
    assert result.exit_code == OK, result.output
    assert report(result)["seeds"] == 25


def test_the_whole_trace_of_one_seed(tmp_path: Path) -> None:
    file = tmp_path / "trace.txt"
    assert run("--seeds", "5", *SMALL, "--trace", str(file)).exit_code == OK
    expected = run_seed(SimulationOptions(seed=5, nodes=4, duration_seconds=20.0))
    assert len(file.read_text().splitlines()) == expected.trace_lines
    refused = run("--seeds", "5-6", *SMALL, "--trace", str(file))
    assert refused.exit_code == USAGE
    assert "one seed" in refused.output


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--seeds", "x"], "neither a number nor a range"),
        (["--seeds", "9-3"], "ascends"),
        (["--seeds", "1", "--nodes", "1"], "2<=x"),
        (["--seeds", "1", "--pair", "join-flood"], "join-flood"),
    ],
)
def test_wrong_usage(args: list[str], says: str) -> None:
    result = run(*args)
    assert result.exit_code == USAGE
    assert says in result.output


def test_resume_runs_only_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "soak.jsonl"
    first = report(run("--seeds", "0-1", *SMALL, "--resume", str(file), "--output", "json"))
    kept = file.read_text()
    assert len(kept.splitlines()) == 3
    whole = report(run("--seeds", "0-2", *SMALL, "--resume", str(file), "--output", "json"))
    assert file.read_text().startswith(kept), "nothing was run twice"
    assert (first["seeds"], whole["seeds"]) == (2, 3)
    assert whole == report(run("--seeds", "0-2", *SMALL, "--output", "json"))


def test_resume_runs_a_half_written_seed_again(tmp_path: Path) -> None:
    file = tmp_path / "soak.jsonl"
    run("--seeds", "0-1", *SMALL, "--resume", str(file))
    file.write_text(file.read_text()[:-20])
    assert report(run("--seeds", "0-1", *SMALL, "--resume", str(file), "--output", "json"))["seeds"] == 2
    assert len(file.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"nodes": 5, "duration_seconds": 20.0}\n', "other options"),
        ("nonsense\n", "damaged"),
        ("7\n", "other options"),
    ],
)
def test_resume_refuses_a_foreign_file(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "soak.jsonl"
    file.write_text(content)
    result = run("--seeds", "0", *SMALL, "--resume", str(file))
    assert result.exit_code == USAGE
    assert says in result.output
    assert file.read_text() == content


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, also when the test run itself ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "what was there before is there again"
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.process)])
def test_an_interrupt_splits_no_result(jobs: int) -> None:
    """One that comes while a result is being kept waits until it is counted too."""
    todo = [SimulationOptions(seed=seed, nodes=3, duration_seconds=5.0) for seed in range(9)]
    kept: list[int] = []
    counted: list[int] = []

    def finished(result: dict[str, Any]) -> None:
        kept.append(result["seed"])
        signal.raise_signal(signal.SIGINT)
        counted.append(result["seed"])

    assert not run_all(todo, jobs=jobs, finished=finished)
    assert kept == counted
    assert 1 <= len(kept) < len(todo)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_leaves_a_seed_half_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossiper.simulation.pool.run_seed", lambda _: signal.raise_signal(signal.SIGINT))
    kept: list[dict[str, Any]] = []
    assert not run_all([SimulationOptions(seed=0, nodes=3, duration_seconds=5.0)], jobs=1, finished=kept.append)
    assert kept == []


# Ctrl-C also works when the test run itself ignores SIGINT, as in the background of a script.
COMMAND = """
import signal, sys
from gossiper.cli import main
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
"""


# A worker imports this anew: each interrupts itself while it starts, as Ctrl-C in a terminal does to all of them.
STARTING = """
import os, signal, sys
if __name__ == "__mp_main__":
    os.kill(os.getpid(), signal.SIGINT)
from gossiper.simulation import SimulationOptions
from gossiper.simulation.pool import run_all
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seeds = []
    todo = [SimulationOptions(seed=seed, nodes=3, duration_seconds=2.0) for seed in range(6)]
    assert run_all(todo, jobs=2, finished=lambda result: seeds.append(result["seed"]))
    assert sorted(seeds) == [0, 1, 2, 3, 4, 5], seeds
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, []), "blocked for good"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


@pytest.mark.process
def test_an_interrupt_while_the_workers_start_does_not_break_them(tmp_path: Path) -> None:
    script = tmp_path / "starting.py"
    script.write_text(STARTING)
    root = Path(__file__).resolve().parent.parent
    result = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.process
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_of_the_parent_while_the_workers_start_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits until they have been started, and ends the run then."""
    submit = ProcessPoolExecutor.submit
    submitted: list[object] = []

    def interrupted(*arguments: Any, **named: Any) -> Any:
        submitted.append(arguments)
        signal.raise_signal(signal.SIGINT)
        return submit(*arguments, **named)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", interrupted)
    todo = [SimulationOptions(seed=seed, nodes=3, duration_seconds=2.0) for seed in range(50)]
    finished: list[dict[str, Any]] = []
    assert not run_all(todo, jobs=2, finished=finished.append)
    assert len(finished) <= len(submitted) < len(todo)


def wait_for_lines(file: Path, lines: int, deadline_seconds: float = 40.0) -> None:
    end = time.monotonic() + deadline_seconds
    while not file.exists() or len(file.read_text().splitlines()) < lines:
        assert time.monotonic() < end, f"{file} has not grown to {lines} lines"
        time.sleep(0.05)


@pytest.mark.process
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_interrupt_keeps_what_was_done(tmp_path: Path, jobs: str) -> None:
    file = tmp_path / "soak.jsonl"
    options = ["--seeds", "0-9999", "--nodes", "3", "--duration", "10", "--jobs", jobs]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "simulate", *options, "--resume", str(file), "--output", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_lines(file, 4)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode == INTERRUPTED, err
    assert "Traceback" not in err
    done = json.loads(out)["seeds"]
    assert done >= 3
    assert len(file.read_text().splitlines()) == done + 1
