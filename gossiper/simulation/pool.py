"""Many seeds over several processes, each finished one kept in a file, so that a long soak goes on where it stopped."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from gossiper.simulation.options import SimulationOptions
from gossiper.simulation.run import run_seed

#: Seeds handed to the processes ahead of time, per process; few, so that an interrupt waits for few.
_AHEAD: Final = 2

Finished = Callable[[dict[str, Any]], None]


class ResumeError(ValueError):
    """The file of finished seeds cannot be used."""


def run_all(todo: Sequence[SimulationOptions], *, jobs: int, finished: Finished) -> bool:
    """Run all of ``todo``, over ``jobs`` processes; ``finished`` gets each result as plain values as it comes.

    Returns:
        False when it was interrupted (Ctrl-C): then what was begun is finished and the rest left.
    """
    if jobs <= 1 or len(todo) <= 1:
        return _run_here(todo, finished)
    return _run_spawned(todo, jobs, finished)


def _run_here(todo: Sequence[SimulationOptions], finished: Finished) -> bool:
    try:
        for options in todo:
            finished(run_seed(options).to_json())
    except KeyboardInterrupt:
        return False
    return True


def _run_spawned(todo: Sequence[SimulationOptions], jobs: int, finished: Finished) -> bool:
    waiting = iter(todo)
    running: set[Future[dict[str, Any]]] = set()
    interrupted = False
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(todo)), mp_context=context, initializer=_ignore_interrupts) as pool:

        def submit(count: int) -> None:
            for _, options in zip(range(count), waiting, strict=False):
                running.add(pool.submit(_run_to_json, options))

        submit(_AHEAD * jobs)
        while running:
            try:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
            except KeyboardInterrupt:
                interrupted = True
                for future in list(running):
                    if future.cancel():
                        running.discard(future)
                continue
            for future in done:
                running.discard(future)
                finished(future.result())
            if not interrupted:
                submit(len(done))
    return not interrupted


def _ignore_interrupts() -> None:
    """Ctrl-C reaches the whole group of processes; the parent decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run_to_json(options: SimulationOptions) -> dict[str, Any]:
    return run_seed(options).to_json()


class FinishedSeeds:
    """Results of finished seeds as JSON lines: the first line says which options they belong to."""

    def __init__(self, path: Path, signature: dict[str, Any]) -> None:
        """Read what is there.

        Raises:
            ResumeError: it is of other options, or damaged.
        """
        self._path = path
        self._signature = signature
        self.results: list[dict[str, Any]] = []
        if path.exists():
            self.results = _read(path, signature)

    @contextmanager
    def append(self) -> Iterator[Finished]:
        """A function that adds one result; each is on disk before the next."""
        is_new = not self._path.exists() or not self._path.stat().st_size
        with self._path.open("a", encoding="utf-8") as file:
            if is_new:
                file.write(json.dumps(self._signature) + "\n")

            def add(result: dict[str, Any]) -> None:
                file.write(json.dumps(result) + "\n")
                file.flush()

            yield add


def _read(path: Path, signature: dict[str, Any]) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    if not lines:
        return []
    if not text.endswith("\n"):
        # The process died in the middle of a line: that seed is run again.
        path.write_text("".join(line + "\n" for line in lines[:-1]), encoding="utf-8")
        lines.pop()
    try:
        found, *results = [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise ResumeError(f"{path} is damaged in line {error.lineno}; remove it to begin again") from None
    if found != signature:
        raise ResumeError(f"{path} belongs to other options ({json.dumps(found)}); use them, or another file")
    return results
