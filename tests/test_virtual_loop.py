"""The event loop with virtual time: time, order, threads, what it refuses, and the internals that it stands on."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from asyncio import base_events
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from gossiper.core.versions import Now
from gossiper.simulation.virtual_loop import (
    START_MONOTONIC_SECONDS,
    START_WALL_SECONDS,
    VirtualClock,
    VirtualDeadlockError,
    VirtualEventLoop,
    VirtualLimitError,
    VirtualRunner,
    VirtualTimeError,
    run,
    running_virtual_loop,
)

DAY_SECONDS = 86_400.0


# -- time -----------------------------------------------------------------------------------------------------------


def test_a_week_passes_without_waiting() -> None:
    async def scenario() -> float:
        for _ in range(7):
            await asyncio.sleep(DAY_SECONDS)
        return running_virtual_loop().elapsed_seconds

    begun = time.process_time()
    assert run(scenario(), limit_seconds=8 * DAY_SECONDS) == 7 * DAY_SECONDS
    assert time.process_time() - begun < DAY_SECONDS


def test_timers_fire_in_order_of_time_and_a_timeout_in_its() -> None:
    async def scenario() -> list[tuple[float, str]]:
        loop, seen = running_virtual_loop(), []

        async def at(seconds: float, name: str) -> None:
            await asyncio.sleep(seconds)
            seen.append((round(loop.elapsed_seconds, 6), name))

        async with asyncio.TaskGroup() as tasks:
            for seconds, name in ((3.0, "c"), (1.0, "a"), (0.1 + 0.2, "early"), (2.0, "b")):
                tasks.create_task(at(seconds, name))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2.5):
                    await asyncio.Event().wait()
            seen.append((loop.elapsed_seconds, "timeout"))
        return seen

    assert run(scenario()) == [(0.3, "early"), (1.0, "a"), (2.0, "b"), (2.5, "timeout"), (3.0, "c")]


def test_small_steps_far_from_the_beginning_still_pass() -> None:
    async def scenario() -> float:
        await asyncio.sleep(3e8)
        for _ in range(1000):
            await asyncio.sleep(0.001)
        return running_virtual_loop().elapsed_seconds

    assert run(scenario(), limit_seconds=1e9) == pytest.approx(3e8 + 1.0, abs=1e-3)


def test_both_clocks_and_how_a_wall_clock_may_be_wrong() -> None:
    async def scenario() -> None:
        true, wrong = VirtualClock(), VirtualClock(offset_seconds=-60.0, drift=0.01)
        assert true.now() == Now(START_MONOTONIC_SECONDS, START_WALL_SECONDS)
        assert wrong.now() == Now(START_MONOTONIC_SECONDS, START_WALL_SECONDS - 60.0)
        await asyncio.sleep(100.0)
        assert true.now() == Now(START_MONOTONIC_SECONDS + 100.0, START_WALL_SECONDS + 100.0)
        assert wrong.now() == Now(START_MONOTONIC_SECONDS + 100.0, START_WALL_SECONDS + 41.0)
        wrong.jump_wall(3600.0)
        assert wrong.now() == Now(START_MONOTONIC_SECONDS + 100.0, START_WALL_SECONDS + 3641.0)
        assert true.elapsed_seconds == 100.0

    run(scenario())
    assert run(wall(), start_wall=5.0) == 5.0


async def wall() -> float:
    return VirtualClock().now().wall


def test_a_stalled_process_runs_its_timers_late_and_in_order() -> None:
    async def scenario() -> list[tuple[float, str]]:
        loop = running_virtual_loop()
        seen: list[tuple[float, str]] = []

        def note(name: str) -> None:
            seen.append((loop.elapsed_seconds, name))

        for seconds, name in ((2.0, "b"), (1.0, "a"), (9.0, "c")):
            loop.call_later(seconds, note, name)
        VirtualClock().stall(5.0)
        assert seen == [], "nothing runs meanwhile"
        await asyncio.sleep(5.0)
        with pytest.raises(ValueError, match="does not go back"):
            loop.stall(-1.0)
        return seen

    assert run(scenario()) == [(5.0, "a"), (5.0, "b"), (9.0, "c")]


def test_a_runner_goes_on_where_it_was_and_cancels_what_is_left() -> None:
    ended: list[str] = []

    async def background() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("background")

    async def scenario(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return running_virtual_loop().elapsed_seconds

    async def begin() -> asyncio.Task[None]:
        return asyncio.create_task(background())

    with VirtualRunner() as runner:
        task = runner.run(begin())
        assert runner.run(scenario(1.0)) == 1.0
        assert runner.run(scenario(1.0), limit_seconds=1.5) == 2.0
        assert not task.done()
    assert task.cancelled()
    assert ended == ["background"]
    assert runner.loop.is_closed()
    runner.close()


# -- the same again -------------------------------------------------------------------------------------------------


def test_sets_of_tasks_have_one_order() -> None:
    async def scenario() -> list[int]:
        ended: list[int] = []

        async def wait(number: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(number)

        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(200):
                    tasks.create_task(wait(number))
                await asyncio.sleep(1.0)
                raise LookupError
        except* LookupError:
            pass
        return ended

    ballast = [object() for _ in range(1000)]
    first = run(scenario())
    del ballast[::2]
    assert first == run(scenario())
    assert sorted(first) == list(range(200))


def test_the_number_of_callbacks_is_the_same() -> None:
    async def scenario() -> int:
        queue: asyncio.Queue[int] = asyncio.Queue(maxsize=3)

        async def produce() -> None:
            for number in range(50):
                await queue.put(number)
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(produce())
            for _ in range(50):
                await queue.get()
        return running_virtual_loop().callbacks

    assert run(scenario()) == run(scenario()) > 100


# -- threads --------------------------------------------------------------------------------------------------------


def test_work_for_a_thread_runs_here_and_later() -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    main = threading.get_ident()

    def work() -> tuple[int, str]:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return threading.get_ident(), variable.get()

    async def scenario() -> None:
        variable.set("set")
        loop = asyncio.get_running_loop()
        order: list[str] = []
        loop.call_soon(order.append, "before")
        future = asyncio.create_task(asyncio.to_thread(order.append, "work"))
        assert order == []
        await future
        assert order == ["before", "work"]
        assert await asyncio.to_thread(work) == (main, "set"), "to_thread takes the context along"
        assert await loop.run_in_executor(None, work) == (main, "unset"), "an executor does not"
        assert asyncio.get_running_loop() is loop

    run(scenario())


def test_work_for_a_thread_takes_its_time_and_cannot_be_cancelled() -> None:
    done: list[float] = []

    async def scenario() -> None:
        loop = running_virtual_loop()
        task = asyncio.create_task(asyncio.to_thread(lambda: done.append(loop.elapsed_seconds)))
        await asyncio.sleep(0.25)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == []
        await asyncio.sleep(1.0)
        assert done == [0.5]
        # What is not done when the program ends is done before the loop is closed.
        loop.run_in_executor(None, lambda: done.append(loop.elapsed_seconds))

    run(scenario(), thread_seconds=0.5)
    assert done == [0.5, 1.25]


def fail(error: BaseException) -> NoReturn:
    raise error


def test_errors_of_work_for_a_thread_belong_to_the_waiter() -> None:
    async def scenario() -> None:
        with pytest.raises(LookupError, match="lost"):
            await asyncio.to_thread(fail, LookupError("lost"))
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.to_thread(fail, StopIteration())

    run(scenario())
    with pytest.raises(SystemExit):
        run(exit_in_thread())


async def exit_in_thread() -> None:
    await asyncio.to_thread(fail, SystemExit(3))


def test_a_real_thread_may_not_call_back() -> None:
    errors: list[BaseException] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()

        def call_back() -> None:
            try:
                loop.call_soon_threadsafe(print)
            except VirtualTimeError as error:
                errors.append(error)

        thread = threading.Thread(target=call_back, name="stranger")
        thread.start()
        thread.join()
        here: asyncio.Future[int] = loop.create_future()
        loop.call_soon_threadsafe(here.set_result, 1)
        assert await here == 1

    run(scenario())
    assert "thread 'stranger'" in str(errors[0])


# -- errors ---------------------------------------------------------------------------------------------------------


def test_a_deadlock_names_who_waits_and_where() -> None:
    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(25):
                tasks.create_task(wait_for_ever(), name=f"waiter {number}")

    with pytest.raises(VirtualDeadlockError, match=r"nothing can ever happen again") as caught:
        run(scenario())
    text = str(caught.value)
    assert "; 26 tasks:" in text
    line = inspect.getsourcelines(wait_for_ever)[1] + 1
    assert f"waiter 3: {wait_for_ever.__qualname__} ({__file__}:{line})" in text
    assert "and 6 more" in text


def test_the_limit_of_time_names_who_waits() -> None:
    ended: list[str] = []

    async def scenario() -> None:
        try:
            while True:
                await asyncio.sleep(1.0)
        finally:
            await asyncio.sleep(2.0)
            ended.append("cleaned up")

    with pytest.raises(VirtualLimitError, match=r"not done within 10 virtual seconds; .*\n.*scenario"):
        run(scenario(), limit_seconds=10.0)
    assert ended == ["cleaned up"]


def test_the_limits_of_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    async def spin(seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)

    with pytest.raises(VirtualLimitError, match=r"^100[0-9] callbacks after 0\.[0-9]+ virtual seconds; "):
        run(spin(0.001), callbacks_max=1000)
    monkeypatch.setattr("gossiper.simulation.virtual_loop.CALLBACKS_PER_INSTANT_MAX", 500)
    with pytest.raises(VirtualLimitError, match="at one instant: something runs in circles"):
        run(spin(0.0))


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("create_connection", lambda loop: asyncio.open_connection("127.0.0.1", 1)),
        ("create_server", lambda loop: asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)),
        ("getaddrinfo", lambda loop: loop.getaddrinfo("localhost", 1)),
        ("subprocess_exec", lambda loop: asyncio.create_subprocess_exec("true")),
        ("add_reader", lambda loop: loop.add_reader(0, print)),
        ("add_signal_handler", lambda loop: loop.add_signal_handler(10, print)),
        ("sock_recv", lambda loop: loop.sock_recv(None, 1)),
    ],
)
def test_what_needs_the_real_world_is_refused(name: str, use: Any) -> None:
    async def scenario() -> None:
        result = use(asyncio.get_running_loop())
        if inspect.isawaitable(result):
            await result

    with pytest.raises(VirtualTimeError, match=f"{name} needs the real world"):
        run(scenario())


def test_no_network_method_of_the_abstract_loop_is_forgotten() -> None:
    """What neither runs here nor is refused with our words would fail with none at all."""
    words = ("sock_", "connect", "server", "endpoint", "reader", "writer", "pipe", "subprocess", "addrinfo", "signal")
    for name, member in inspect.getmembers(asyncio.AbstractEventLoop, inspect.isfunction):
        if any(word in name for word in words) and not name.startswith(("remove_", "_")):
            assert getattr(VirtualEventLoop, name) is not member, name
            assert getattr(VirtualEventLoop, name).__qualname__.startswith("_refusal"), name


async def test_misuse_is_told_from_inside_a_real_loop() -> None:
    with pytest.raises(VirtualTimeError, match="no loop of virtual time is running"):
        VirtualClock()
    with pytest.raises(VirtualTimeError, match="plain function"):
        run(wall())


def test_misuse_is_told() -> None:
    with pytest.raises(VirtualTimeError, match="no loop of virtual time is running"):
        VirtualClock()
    with pytest.raises(TypeError, match=r"run\(scenario\(\)\)"):
        run(wall)  # type: ignore[arg-type]  # that is the mistake
    with VirtualRunner() as runner:
        loop = runner.loop
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_in_executor(None, print)
    coroutine = wall()
    with pytest.raises(RuntimeError, match="closed"):
        loop.create_task(coroutine)
    coroutine.close()


def test_a_task_factory_is_used() -> None:
    async def scenario() -> str:
        def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
            options.pop("name", None)
            return asyncio.Task(coroutine, loop=loop, name="made", **options)

        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        task = loop.create_task(asyncio.sleep(0))
        await task
        return type(task).__name__

    assert run(scenario()) == "Task"


def test_no_socket_is_opened_and_no_thread_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("not in virtual time")

    monkeypatch.setattr(socket, "socketpair", refuse)
    monkeypatch.setattr(threading.Thread, "start", refuse)

    async def scenario() -> int:
        await asyncio.sleep(1.0)
        return await asyncio.to_thread(lambda: 7)

    assert run(scenario()) == 7


# -- internals of asyncio that this stands on -----------------------------------------------------------------------


@pytest.fixture
def loop() -> Iterator[VirtualEventLoop]:
    made = VirtualEventLoop()
    yield made
    made.close()


def test_pins_of_the_base_loop(loop: VirtualEventLoop) -> None:
    """If a new Python breaks one of these, ``virtual_loop.py`` is the one file to look at."""
    assert isinstance(loop._ready, deque)
    assert isinstance(loop._clock_resolution, float)
    source = inspect.getsource(vars(base_events.BaseEventLoop)["_run_once"])
    for needed in ("self._selector.select(timeout)", "self._process_events(", "self._clock_resolution", "self.time()"):
        assert needed in source
    assert callable(asyncio._set_running_loop)
    assert asyncio.Task.__hash__ is object.__hash__, "tasks hash by address, hence our own"


def test_pins_of_select(loop: VirtualEventLoop) -> None:
    """It is called once per turn: with 0 when something is ready, else with the time to the next timer."""
    seen: list[float | None] = []
    passed = loop.pass_time

    def spy(timeout: float | None) -> None:
        seen.append(timeout)
        passed(timeout)

    loop.pass_time = spy  # type: ignore[method-assign]  # a spy
    loop.call_later(5.0, loop.stop)
    cancelled = loop.call_later(1.0, print)
    cancelled.cancel()
    loop.run_forever()
    assert seen[0] == pytest.approx(5.0), "a cancelled timer does not count"
    seen.clear()
    loop.call_soon(loop.call_soon, loop.stop)
    loop.run_forever()
    assert seen == [0, 0]
    with pytest.raises(VirtualDeadlockError):
        loop.run_forever()
    assert seen[-1] is None


PYTHONS = ("3.11", "3.12", "3.13")


def find_python(version: str) -> str | None:
    """An interpreter of that version that really starts: a shim on the path may stand for none."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{version}"), *map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))]
    for python in filter(None, candidates):
        if subprocess.run([python, "-c", ""], capture_output=True, timeout=20, check=False).returncode == 0:
            return python
    return None


@pytest.mark.parametrize("version", PYTHONS)
def test_every_supported_python(version: str) -> None:
    """The file itself under each Python that is installed; a continuous integration with all of them runs all."""
    python = find_python(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    root = Path(__file__).resolve().parent.parent
    completed = subprocess.run(
        [python, "-c", PROBE, str(root)], capture_output=True, text=True, timeout=50, check=False
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.split() == ["3000.0", "5", "VirtualDeadlockError", "VirtualLimitError"]


#: Loads the file without the packages around it, since another Python need not have numpy.
PROBE = """
import asyncio, importlib.util, sys, types
root = sys.argv[1]
for name in ("gossiper", "gossiper.core", "gossiper.simulation"):
    package = types.ModuleType(name)
    package.__path__ = [root + "/" + name.replace(".", "/")]
    sys.modules[name] = package
from gossiper.simulation.virtual_loop import VirtualDeadlockError, VirtualLimitError, run, running_virtual_loop
async def good():
    async with asyncio.TaskGroup() as tasks:
        for seconds in (1000, 3000, 2000):
            tasks.create_task(asyncio.sleep(seconds), name=str(seconds))
    return running_virtual_loop().elapsed_seconds
async def thread():
    return await asyncio.to_thread(lambda: 5)
async def dead():
    await asyncio.Event().wait()
print(run(good()))
print(run(thread()))
for bad in (dead, lambda: asyncio.sleep(5000)):
    try:
        run(bad())
    except Exception as error:
        print(type(error).__name__)
"""
