"""Processes in virtual time: which tasks and which work in threads belong to which node, so that a node can be killed.

A process is a mark in the context of its tasks: every task that one of them makes has it too. When a process is killed,
work in threads that has not begun never happens, its tasks are cancelled, and whatever they do while they end reaches
neither disk nor network, as those ask whether the process is alive.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, Final, Self, TypeVar, TypeVarTuple

from gossiper.simulation.virtual_loop import VirtualEventLoop

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_PROCESS: Final[contextvars.ContextVar[Process | None]] = contextvars.ContextVar("process", default=None)
#: Work in threads of whoever is no node: the harness itself.
_HARNESS_THREAD_SECONDS: Final = 0.0
#: What is cancelled may take so long to end; longer is a defect.
_END_SECONDS: Final = 300.0


class KilledError(Exception):
    """The process was killed before its work was done; whatever the work raised on its way out means nothing."""


class Process:
    """One run of a node, from its start to its end.

    Args:
        name: For people.
        thread_seconds: Draws how long a piece of work in a thread takes; a disk that is slow is this.
    """

    def __init__(self, name: str, thread_seconds: Callable[[], float]) -> None:
        self.name = name
        self.thread_seconds = thread_seconds
        self.alive = True
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.jobs: dict[asyncio.Future[Any], None] = {}
        self._context = contextvars.copy_context()
        self._context.run(_PROCESS.set, self)

    def spawn(self, coroutine: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """Run a coroutine as a task of this process."""
        return asyncio.get_running_loop().create_task(coroutine, name=name, context=self._context.copy())

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The same, and wait for it; whoever stops waiting cancels it.

        Raises:
            KilledError: the process ended meanwhile.
        """
        task = self.spawn(coroutine)
        waiting = asyncio.current_task()
        try:
            return await task
        except (Exception, asyncio.CancelledError):
            if self.alive or (waiting is not None and waiting.cancelling()):
                raise
            raise KilledError(self.name) from None
        finally:
            if not task.done():
                task.cancel()

    def stop_work(self, rng: Random, *, lose: bool) -> None:
        """The power fails: no later work in threads happens, nor anything on disk or network.

        Args:
            rng: Draws how much of the work that had begun still reached the disk.
            lose: Nothing of it did.
        """
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ProcessLoop)  # noqa: S101 - there is no other one in a simulation
        pending = [job for job in self.jobs if not job.done()]
        kept = 0 if lose else rng.randint(0, len(pending))
        for job in pending[:kept]:
            loop.finish_job(job)
        self.alive = False
        for job in pending[kept:]:
            loop.drop_job(job)

    async def end_tasks(self) -> None:
        """Cancel what still runs, and wait for its end."""
        own = asyncio.current_task()
        while tasks := [task for task in self.tasks if task is not own]:
            for task in tasks:
                task.cancel()
            _done, pending = await asyncio.wait(tasks, timeout=_END_SECONDS)
            if pending:
                names = ", ".join(sorted(task.get_name() for task in pending))
                raise AssertionError(f"{self.name}: {names} did not end when cancelled")


class ProcessLoop(VirtualEventLoop):
    """A loop of virtual time that knows whose tasks are whose."""

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        """As every loop does."""
        task = super().create_task(coro, **options)
        context: contextvars.Context | None = options.get("context")
        process = _PROCESS.get() if context is None else context.get(_PROCESS)
        if process is not None:
            process.tasks[task] = None
            task.add_done_callback(lambda done: process.tasks.pop(done, None))
        return task

    def run_in_executor(self, _executor: Any, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """As on a loop of virtual time, in a time that the process draws."""
        process = _PROCESS.get()
        self.thread_seconds = _HARNESS_THREAD_SECONDS if process is None else process.thread_seconds()
        future = super().run_in_executor(_executor, func, *args)
        if process is not None:
            process.jobs[future] = None
            future.add_done_callback(lambda done: process.jobs.pop(done, None))
        return future

    def finish_job(self, future: asyncio.Future[Any]) -> None:
        """Do a piece of work now."""
        job = self._jobs.get(future)
        if job is not None:
            job()

    def drop_job(self, future: asyncio.Future[Any]) -> None:
        """Never do a piece of work."""
        self._jobs.pop(future, None)
        future.cancel()


class ProcessRunner:
    """Runs one coroutine on a :class:`ProcessLoop`; a context manager."""

    def __init__(self, *, limit_seconds: float) -> None:
        self.loop = ProcessLoop(limit_seconds=limit_seconds)
        self._runner = asyncio.Runner(loop_factory=lambda: self.loop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()
        self.loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it to its end; return or raise what it does."""
        return self._runner.run(coroutine)
