"""An asyncio event loop with virtual time: real coroutines run unchanged, and nothing is ever waited for.

When nothing is ready, the clock jumps to the next timer. A minute of ten gossipers so takes about a second, and the
same program with the same seeds does the same things in the same order, every time:

* time is that of this loop alone; it begins at ``START_MONOTONIC_SECONDS`` and at a wall clock that is an argument;
* sets of tasks (``asyncio.TaskGroup``, ``asyncio.wait``) iterate in one order, because tasks hash by their number;
* work for a thread (``asyncio.to_thread``) runs in this very thread, one turn of the loop later, or
  ``thread_seconds`` of virtual time later. As with a real thread, cancelling the waiter does not stop the work.

What would make it wait for the real world is refused with a clear error: sockets, pipes, processes, signals, name
resolution, and callbacks from other threads. A program in which nothing can ever happen again is an error that names
the waiting tasks, as is one that goes beyond a limit of virtual time or of callbacks.

Loop internals used, all in this file and all pinned by ``tests/test_virtual_loop.py``: ``_selector`` with
``select(timeout)``, ``_process_events``, ``_clock_resolution``, ``_ready``, and ``asyncio.events._set_running_loop``.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from types import FrameType
from typing import Any, Final, NoReturn, Self, TypeVar, TypeVarTuple

from gossiper.core.versions import Now
from gossiper.errors import GossipError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Not zero: programs take a clock that says 0 for one that was never set.
START_MONOTONIC_SECONDS: Final = 1_000.0
#: 15 January 2027, 08:00 UTC: any fixed moment will do.
START_WALL_SECONDS: Final = 1_800_000_000.0
#: An hour of virtual time; beyond it a scenario most likely waits for what never comes.
LIMIT_SECONDS: Final = 3_600.0
#: About two minutes of a real CPU; a loop that spins without time passing is found by it.
CALLBACKS_MAX: Final = 20_000_000
#: Callbacks at one and the same instant: a thousand nodes that all speak with each other stay below.
CALLBACKS_PER_INSTANT_MAX: Final = 2_000_000
#: Once a limit was met, what is cancelled may still take so long to end.
CLEANUP_SECONDS: Final = 3_600.0
#: Tasks named in an error; more would bury it.
TASKS_NAMED_MAX: Final = 20
#: Timers closer than this fire together. Far above the rounding of additions at the greatest time (1e9 s: 1.2e-7 s).
_RESOLUTION_SECONDS: Final = 1e-6

_ASYNCIO_DIRECTORY: Final = os.path.dirname(asyncio.__file__)  # noqa: PTH120 - compared with names of code objects

_REFUSED: Final = (
    *("add_reader", "add_writer", "create_connection", "create_server", "create_unix_connection"),
    *("create_unix_server", "create_datagram_endpoint", "connect_accepted_socket", "start_tls", "sendfile"),
    *("sock_recv", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into", "sock_sendall", "sock_sendto"),
    *("sock_connect", "sock_accept", "sock_sendfile", "connect_read_pipe", "connect_write_pipe", "getaddrinfo"),
    *("getnameinfo", "subprocess_exec", "subprocess_shell", "add_signal_handler"),
)


class VirtualTimeError(GossipError):
    """A program cannot go on in virtual time."""


class VirtualDeadlockError(VirtualTimeError):
    """Nothing is ready and no timer is set: nothing can ever happen again."""


class VirtualLimitError(VirtualTimeError):
    """A limit of virtual time or of callbacks was met."""


class _NumberedTask(asyncio.Task[T]):
    """A task whose place in a set depends on its number and not on its address in memory."""

    def __init__(self, number: int, *args: Any, **options: Any) -> None:
        self._number = number  # first: the base class puts the task into a set
        super().__init__(*args, **options)

    def __hash__(self) -> int:
        return self._number

    @property
    def number(self) -> int:
        return self._number


class _Selector:
    """In place of waiting for sockets, lets virtual time pass."""

    def __init__(self, loop: VirtualEventLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        self._loop.pass_time(timeout)
        return []


class VirtualEventLoop(asyncio.BaseEventLoop):
    """The loop. Use :func:`run` or :class:`VirtualRunner`, which also clean up.

    Args:
        start_wall: the wall clock at the beginning, in seconds since the epoch.
        limit_seconds: virtual time after which it gives up.
        callbacks_max: callbacks after which it gives up.
        thread_seconds: how long work for a thread takes; it is done at the end of that time.
    """

    _ready: deque[asyncio.Handle]  # made by the base class

    def __init__(
        self,
        *,
        start_wall: float = START_WALL_SECONDS,
        limit_seconds: float = LIMIT_SECONDS,
        callbacks_max: int = CALLBACKS_MAX,
        thread_seconds: float = 0.0,
    ) -> None:
        super().__init__()
        self.start_wall = start_wall
        self.thread_seconds = thread_seconds
        self.callbacks = 0
        """Callbacks run so far; the same number in every run of the same program."""
        self._thread = threading.get_ident()
        self._now = START_MONOTONIC_SECONDS
        self._limit = self._now + limit_seconds
        self._callbacks_max = callbacks_max
        self._at_instant = 0
        self._tasks_made = 0
        self._jobs: dict[asyncio.Future[Any], Callable[[], None]] = {}
        self._clock_resolution = _RESOLUTION_SECONDS
        self._selector = _Selector(self)

    # -- time --------------------------------------------------------------------------------------------------------

    def time(self) -> float:
        """Virtual seconds; begins at ``START_MONOTONIC_SECONDS``."""
        return self._now

    @property
    def elapsed_seconds(self) -> float:
        """Virtual time since the beginning."""
        return self._now - START_MONOTONIC_SECONDS

    def stall(self, seconds: float) -> None:
        """Let time pass while this process stands still: a long collection of garbage, a suspended laptop.

        Nothing runs meanwhile; timers that became due run afterwards.
        """
        if seconds < 0:
            raise ValueError(f"time does not go back ({seconds} s)")
        self._now += seconds
        self._at_instant = 0

    def set_limit(self, limit_seconds: float) -> None:
        """Give up after this much virtual time from now."""
        self._limit = self._now + limit_seconds

    def pass_time(self, timeout: float | None) -> None:
        """Called once per turn, in place of waiting ``timeout`` seconds (None: for ever) for sockets.

        Raises:
            VirtualDeadlockError: it would wait for ever.
            VirtualLimitError: a limit was met.
        """
        waiting = max(1, len(self._ready))
        self.callbacks += waiting
        self._at_instant += waiting
        if timeout is None:
            raise VirtualDeadlockError(
                f"nothing can ever happen again after {self.elapsed_seconds:g} virtual seconds: "
                f"no callback is ready and no timer is set{self._waiting()}"
            )
        if timeout > 0:
            if self._now + timeout > self._limit:
                beyond = self._limit - START_MONOTONIC_SECONDS
                self.set_limit(CLEANUP_SECONDS)
                raise VirtualLimitError(
                    f"not done within {beyond:g} virtual seconds; raise limit_seconds, or look at what is waited for"
                    f"{self._waiting()}"
                )
            self._now += timeout
            self._at_instant = 0
        if self.callbacks > self._callbacks_max or self._at_instant > CALLBACKS_PER_INSTANT_MAX:
            stuck = "" if self.callbacks > self._callbacks_max else " at one instant: something runs in circles"
            count = self.callbacks if not stuck else self._at_instant
            self._callbacks_max = self.callbacks + CALLBACKS_PER_INSTANT_MAX
            self._at_instant = 0
            raise VirtualLimitError(
                f"{count} callbacks after {self.elapsed_seconds:g} virtual seconds{stuck}{self._waiting()}"
            )

    def _waiting(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=hash)
        lines = [f"\n  {task.get_name()}: {_place(task)}" for task in tasks[:TASKS_NAMED_MAX]]
        if len(tasks) > TASKS_NAMED_MAX:
            lines.append(f"\n  and {len(tasks) - TASKS_NAMED_MAX} more")
        return f"; {len(tasks)} tasks:{''.join(lines)}" if tasks else "; no task is left"

    # -- tasks and threads -------------------------------------------------------------------------------------------

    # The base class returns Task[T] too; typeshed's own signature has changed from version to version.
    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        """As every loop does; the task hashes by its number."""
        if self.get_task_factory() is not None:
            return super().create_task(coro, **options)
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        self._tasks_made += 1
        return _NumberedTask(self._tasks_made, coro, loop=self, **options)

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """As ``call_soon``, from this very thread only.

        Raises:
            VirtualTimeError: called from another thread: when it runs would be a matter of chance.
        """
        if threading.get_ident() != self._thread:
            raise VirtualTimeError(
                f"thread {threading.current_thread().name!r} called back into a loop of virtual time; "
                "give such work to asyncio.to_thread, which runs it here"
            )
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, _executor: Any, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Run ``func(*args)`` in this thread ``thread_seconds`` from now, whatever executor was meant."""
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        future: asyncio.Future[T] = self.create_future()
        job = self._jobs[future] = partial(self._run_job, future, func, args)
        context = contextvars.Context()  # a thread of a pool does not see the context of the caller
        if self.thread_seconds > 0:
            self.call_later(self.thread_seconds, job, context=context)
        else:
            self.call_soon(job, context=context)
        return future

    def _run_job(self, future: asyncio.Future[Any], func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if self._jobs.pop(future, None) is None:
            return
        outcome: Callable[[], None]
        running = asyncio.events._get_running_loop()  # noqa: SLF001 - pinned, see the module's docstring
        asyncio.events._set_running_loop(None)  # noqa: SLF001 - in a thread no loop is running
        try:
            outcome = partial(future.set_result, func(*args))
        except (KeyboardInterrupt, SystemExit):
            raise
        except StopIteration as error:
            outcome = partial(future.set_exception, RuntimeError(f"work for a thread raised {error!r}"))
        except BaseException as error:  # noqa: BLE001 - it belongs to the waiter
            outcome = partial(future.set_exception, error)
        finally:
            asyncio.events._set_running_loop(running)  # noqa: SLF001 - as above
        if not future.done():
            outcome()

    async def shutdown_default_executor(self, *_: Any, **__: Any) -> None:
        """Do what threads would still be doing."""
        for job in list(self._jobs.values()):
            job()

    def _process_events(self, event_list: list[Any]) -> None:
        """There never are any."""


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise VirtualTimeError(
            f"{name} needs the real world, which a loop of virtual time does not wait for; "
            "use an in-memory twin (for gossip: gossiper.transport.memory), or a real loop for this test"
        )

    refuse.__name__ = name
    return refuse


for _name in _REFUSED:
    setattr(VirtualEventLoop, _name, _refusal(_name))


def _place(task: asyncio.Task[Any]) -> str:
    """Where a task waits: the innermost line that is not asyncio's own."""
    awaited: Any = task.get_coro()
    place = getattr(awaited, "__qualname__", repr(awaited))
    while awaited is not None:
        frame: FrameType | None = next(
            (found for key in ("cr_frame", "gi_frame", "ag_frame") if (found := getattr(awaited, key, None))), None
        )
        if frame is not None and not frame.f_code.co_filename.startswith(_ASYNCIO_DIRECTORY):
            place = f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})"
        awaited = next(
            (found for key in ("cr_await", "gi_yieldfrom", "ag_await") if (found := getattr(awaited, key, None))), None
        )
    return place


class VirtualClock:
    """The clock of one node on a virtual loop; pass ``clock.now`` as ``clock=`` to a Gossiper.

    The monotonic part is the loop's own time. The wall part may be wrong, as that of a machine may be.

    Args:
        loop: default: the running one.
        offset_seconds: how far the wall clock is ahead of the true time.
        drift: seconds that it gains per second: 0.0001 is a bad quartz, negative ones lose.

    Raises:
        VirtualTimeError: no ``loop`` was given, and the running one has no virtual time.
    """

    def __init__(
        self, loop: VirtualEventLoop | None = None, *, offset_seconds: float = 0.0, drift: float = 0.0
    ) -> None:
        self._loop = running_virtual_loop() if loop is None else loop
        self.offset_seconds = offset_seconds
        """May be changed at any time: that is how a wall clock jumps."""
        self.drift = drift

    def now(self) -> Now:
        """Both clocks."""
        elapsed = self._loop.elapsed_seconds
        wall = self._loop.start_wall + elapsed * (1.0 + self.drift) + self.offset_seconds
        return Now(self._loop.time(), wall)

    @property
    def elapsed_seconds(self) -> float:
        """True virtual time since the beginning."""
        return self._loop.elapsed_seconds

    def jump_wall(self, seconds: float) -> None:
        """Step the wall clock, as an administrator or NTP does; the monotonic part does not notice."""
        self.offset_seconds += seconds

    def stall(self, seconds: float) -> None:
        """Let time pass while the whole process stands still: see :meth:`VirtualEventLoop.stall`."""
        self._loop.stall(seconds)


def running_virtual_loop() -> VirtualEventLoop:
    """The loop that is running.

    Raises:
        VirtualTimeError: it is none of virtual time.
    """
    loop = asyncio.events._get_running_loop()  # noqa: SLF001 - as get_running_loop, without its own error
    if not isinstance(loop, VirtualEventLoop):
        raise VirtualTimeError("no loop of virtual time is running; start the coroutine with run() of this module")
    return loop


class VirtualRunner:
    """Runs coroutines one after the other on one virtual loop; time goes on from one to the next.

    A context manager: at its end remaining tasks are cancelled and awaited, as ``asyncio.run`` does. Takes the options
    of :class:`VirtualEventLoop`.
    """

    def __init__(self, **options: Any) -> None:
        self.loop = VirtualEventLoop(**options)
        self._runner = asyncio.Runner(loop_factory=lambda: self.loop)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def run(self, coroutine: Coroutine[Any, Any, T], *, limit_seconds: float | None = None) -> T:
        """Run one coroutine to its end; return or raise what it does.

        Raises:
            TypeError: it is no coroutine.
            VirtualTimeError: called where a loop is running already.
            VirtualDeadlockError: nothing can ever happen again; the tasks that wait are named.
            VirtualLimitError: a limit was met.
        """
        if not asyncio.iscoroutine(coroutine):
            raise TypeError(f"a coroutine is needed, not {coroutine!r}; call the async function: run(scenario())")
        if asyncio.events._get_running_loop() is not None:  # noqa: SLF001 - as in running_virtual_loop
            coroutine.close()
            raise VirtualTimeError("a loop is running here already; call this from a plain function, not an async one")
        if limit_seconds is not None:
            self.loop.set_limit(limit_seconds)
        return self._runner.run(coroutine)

    def close(self) -> None:
        """Cancel what is left, wait for it, close the loop. Idempotent."""
        self._runner.close()
        self.loop.close()


def run(
    coroutine: Coroutine[Any, Any, T],
    *,
    start_wall: float = START_WALL_SECONDS,
    limit_seconds: float = LIMIT_SECONDS,
    callbacks_max: int = CALLBACKS_MAX,
    thread_seconds: float = 0.0,
) -> T:
    """Run ``coroutine`` on a virtual loop of its own, as ``asyncio.run`` does on a real one.

    Raises:
        VirtualDeadlockError: nothing can ever happen again; the tasks that wait are named.
        VirtualLimitError: more than ``limit_seconds`` of virtual time or ``callbacks_max`` callbacks.
    """
    with VirtualRunner(
        start_wall=start_wall, limit_seconds=limit_seconds, callbacks_max=callbacks_max, thread_seconds=thread_seconds
    ) as runner:
        return runner.run(coroutine)
