"""Many seeds over several processes, each finished one kept in a file, so that a long soak goes on where it stopped."""

from __future__ import annotations

import json
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from gossiper.simulation.options import SimulationOptions
from gossiper.simulation.run import run_seed

#: Seeds handed to the processes ahead of time, per process; few, so that an interrupt waits for few.
_AHEAD: Final = 2

Finished = Callable[[dict[str, Any]], None]
_R = TypeVar("_R")


class ResumeError(ValueError):
    """The file of finished seeds cannot be used."""


def run_all(todo: Sequence[SimulationOptions], *, jobs: int, finished: Finished) -> bool:
    """Run all of ``todo``, over ``jobs`` processes; ``finished`` gets each result as plain values as it comes.

    Returns:
        False when it was interrupted (Ctrl-C): then what was begun is finished and the rest left.
    """
    with _Interrupts() as interrupts:
        if jobs <= 1 or len(todo) <= 1:
            return _run_here(todo, finished, interrupts)
        return _run_spawned(todo, jobs, finished, interrupts)


class _Interrupts:
    """Ctrl-C ends a run at once where that is harmless, and is kept in mind everywhere else.

    Python may raise KeyboardInterrupt between any two instructions: also while a result is on disk but not counted yet,
    and in a callback that swallows it.
    """

    def __init__(self) -> None:
        self.noticed = False
        self._harmless = False
        self._before: Any = None

    def __enter__(self) -> Self:
        # Who ignores interrupts (a job in the background of a script) or has a handler of his own is left alone, and
        # so are threads other than the main one, which get none.
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._before = signal.signal(signal.SIGINT, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _notice(self, *_: object) -> None:
        self.noticed = True
        if self._harmless:
            raise KeyboardInterrupt

    def may_end(self, function: Callable[..., _R], *arguments: Any, **named: Any) -> _R:
        """``function(...)``, which may be left half done.

        Raises:
            KeyboardInterrupt: it was.
        """
        try:
            self._harmless = True
            return function(*arguments, **named)
        finally:
            self._harmless = False


def _run_here(todo: Sequence[SimulationOptions], finished: Finished, interrupts: _Interrupts) -> bool:
    for options in todo:
        if interrupts.noticed:
            return False
        try:
            result = interrupts.may_end(_run_to_json, options)
        except KeyboardInterrupt:
            return False
        finished(result)
    return True


def _run_spawned(todo: Sequence[SimulationOptions], jobs: int, finished: Finished, interrupts: _Interrupts) -> bool:
    waiting = iter(todo)
    running: set[Future[dict[str, Any]]] = set()
    stopping = False
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(todo)), mp_context=context, initializer=_ignore_interrupts) as pool:

        def submit(count: int) -> None:
            with _interrupts_wait():
                for _, options in zip(range(count), waiting, strict=False):
                    running.add(pool.submit(_run_to_json, options))

        submit(_AHEAD * jobs)
        while running:
            done: set[Future[dict[str, Any]]] = set()
            with suppress(KeyboardInterrupt):
                done = interrupts.may_end(wait, running, return_when=FIRST_COMPLETED).done
            for future in done:
                running.discard(future)
                finished(future.result())
            if not interrupts.noticed:
                submit(len(done))
            elif not stopping:
                stopping = True
                running = {future for future in running if not future.cancel()}
    return not interrupts.noticed


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Around what may start a worker, which inherits it: Ctrl-C would end one that has not come to ignoring it yet.

    Blocked, not ignored: the parent hears of it afterwards.
    """
    # Starting the tracker of shared semaphores, which the first worker would do otherwise, unblocks interrupts.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
