"""Follows a repair that a node carries out: stamped lines, a bar on a terminal, and how it ended.

A reader thread takes the updates from the call, so that the main thread can show a progress that moves, be
interrupted, and notice a node that has fallen silent.
"""

from __future__ import annotations

import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NoReturn, TextIO

import click

from nodetool.errors import InterruptedCommandError, NodetoolError, UnreachableError
from nodetool.options import Options
from nodetool.render import byte_size, colour_wanted, one_line

if TYPE_CHECKING:
    from rich.console import Console

    from antientropy.v1.admin_pb2 import RepairUpdate
    from nodetool.connection import Node, UpdateStream

#: Updates that wait to be shown; a node that reports faster than a terminal draws is slowed down.
UPDATES_WAITING_MAX: Final = 1024
#: Lines are for logs: when only numbers change, one in this time says them.
QUIET_SECONDS_MAX: Final = 10.0
#: How long an interrupted nodetool waits for the node to say what became of its repair.
CANCEL_SECONDS_MAX: Final = 3.0
_CANCEL_POLL_SECONDS: Final = 0.05
#: A terminal with fewer columns has room for less beside the bar.
_BAR_COLUMNS_MIN: Final = 72
#: Of the bar, until it is verified that the moved rows have made the replicas equal.
_MOVING_SHARE: Final = 0.9
#: Digits of a session id that commands show and take; more only where two sessions share them.
ID_LENGTH: Final = 8
STATES: Final = {
    1: "preparing",
    2: "comparing",
    3: "streaming",
    4: "verifying",
    5: "paused",
    6: "interrupted",
    7: "completed",
    8: "partial",
    9: "failed",
    10: "cancelled",
}
#: What ends an update stream for good, and what ends it until the session is resumed.
FINAL: Final = frozenset({"completed", "partial", "failed", "cancelled"})
RESUMABLE: Final = frozenset({"paused", "interrupted"})
_Show = Callable[["RepairUpdate"], None]


def state_of(number: int) -> str:
    """The name of a state; "unknown" for one of a newer node."""
    return STATES.get(number, "unknown")


def stamped(message: str, moment: datetime) -> str:
    """A line of progress as Cassandra writes it: ``[2026-01-02 03:04:05,678] message``, in local time."""
    local = moment.astimezone()
    return f"[{local:%Y-%m-%d %H:%M:%S},{local.microsecond // 1000:03d}] {message}"


def duration(seconds: float) -> str:
    """``85 ms``, ``9.1 s``, ``4:05``, ``3:04:05``; ``?`` for what is no time."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 0.9995:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds < 9.95 else "10 s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def share_of(progress: float) -> float:
    """A share from 0 to 1, whatever the node said."""
    return min(max(progress, 0.0), 1.0) if math.isfinite(progress) else 0.0


def percent(progress: float) -> str:
    """Never 100% before everything is verified."""
    return f"{share_of(progress) * 100 // 1:.0f}%"


def short_count(count: int) -> str:
    """Up to six characters: ``99,999``, ``1.23M``."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size and count >= 100_000:
            return f"{count / size:.3g}{unit}" if count < 999.5 * size else f"{count // size}{unit}"
    return f"{count:,}"


def moved_text(update: RepairUpdate) -> str:
    """Rows that have moved, and of how many where that is known."""
    moved = update.statistics.rows_moved
    known = max(update.rows_to_move, moved)
    return f"{short_count(moved)} of {short_count(known)} rows" if known > moved else f"{short_count(moved)} rows"


def numbers_text(update: RepairUpdate) -> str:
    """What changes while nothing is said."""
    statistics = update.statistics
    parts = [
        f"{percent(update.progress)} verified",
        f"{moved_text(update)} moved",
        byte_size(statistics.find_bytes + statistics.move_bytes),
    ]
    if update.HasField("eta_seconds"):
        parts.append(f"{duration(update.eta_seconds)} left")
    return ", ".join(parts)


def follow(node: Node, stream: UpdateStream, options: Options) -> RepairUpdate:
    """Show a repair until it ends; returns its last update, whose state is final, paused or interrupted.

    Raises:
        NodetoolError: the call failed, ended without a result, or the node fell silent.
        InterruptedCommandError: Ctrl-C. The repair was ended; the message says what became of it.
    """
    reader = _Reader(node, stream)
    try:
        with _display(options) as show:
            return reader.run(show)
    except KeyboardInterrupt:
        stream.cancel()
        raise InterruptedCommandError(_aftermath(node, reader.last)) from None
    finally:
        stream.cancel()


class _Reader:
    """Takes updates until the last one."""

    def __init__(self, node: Node, stream: UpdateStream) -> None:
        self.last: RepairUpdate | None = None
        self._node = node
        self._stream = stream
        self._updates: queue.Queue[RepairUpdate | Exception | None] = queue.Queue(UPDATES_WAITING_MAX)

    def _read(self) -> None:
        try:
            for update in self._stream:
                self._updates.put(update)
            self._updates.put(None)
        except Exception as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self._updates.put(error)

    def run(self, show: _Show) -> RepairUpdate:
        node = self._node
        threading.Thread(target=self._read, name="repair-updates", daemon=True).start()
        while True:
            try:
                update = self._updates.get(timeout=node.timeout_seconds)
            except queue.Empty:
                # Comparing a large replica may be silent for long; a node that does not answer anything is gone.
                if not node.is_answering():
                    raise UnreachableError(f"{node.address} fell silent; {_later(self.last)}") from None
                continue
            if update is None:
                break
            if isinstance(update, Exception):
                self._raise(update)
            self.last = update
            show(update)
        if self.last is None or state_of(self.last.state) not in FINAL | RESUMABLE:
            raise NodetoolError(f"{node.address} ended the repair without saying its outcome")
        return self.last

    def _raise(self, error: Exception) -> NoReturn:
        try:
            self._node.raise_for_repair(error)
        except UnreachableError as failure:
            if self.last is not None:
                raise UnreachableError(f"{failure.message}; {_later(self.last)}") from None
            raise


def _later(last: RepairUpdate | None) -> str:
    """How to learn what became of a repair."""
    which = f" {one_line(last.session_id)[:ID_LENGTH]}" if last is not None and last.session_id else ""
    return f"the outcome of repair{which} is not known, see 'nodetool repair_admin list' when the node answers"


def _aftermath(node: Node, last: RepairUpdate | None) -> str:
    """What to say after Ctrl-C: the node is asked what became of the session, for a short time."""
    if last is None:
        return "the repair was cancelled"
    deadline = time.monotonic() + CANCEL_SECONDS_MAX
    state = "unknown"
    while time.monotonic() < deadline:
        found = node.session_state(last.session_id, CANCEL_SECONDS_MAX)
        state = "unknown" if found is None else state_of(found)
        if found is None or state in FINAL | RESUMABLE:
            break
        time.sleep(_CANCEL_POLL_SECONDS)
    done = f" at {percent(last.progress)}" if last.progress > 0 else ""
    if state not in FINAL | RESUMABLE | {"unknown"}:
        # A session that had been paused belongs to whoever began it: only this view of it has ended.
        name = one_line(last.session_id)[:ID_LENGTH]
        return f"the repair goes on unwatched{done}; 'nodetool repair_admin cancel {name}' ends it"
    if state in RESUMABLE:
        return f"the repair was {state}{done}; {resume_hint(last.session_id)}"
    again = "the same command again finds only what still differs"
    return f"the repair was cancelled{done}; rows that were moved stay, and {again}"


def resume_hint(session_id: str) -> str:
    """The way to go on."""
    return f"'nodetool repair_admin resume {one_line(session_id)[:ID_LENGTH]}' goes on from there"


def bar_share(update: RepairUpdate) -> float:
    """How much of the bar is full: what is verified, and of the rest the rows that have moved.

    A range is verified as a whole when all its rows have moved: without them the bar would stand still for long.
    """
    verified = share_of(update.progress)
    moved = update.statistics.rows_moved
    known = max(update.rows_to_move, moved, 1)
    return verified + (1 - verified) * _MOVING_SHARE * moved / known


class _Lines:
    """Writes updates as stamped lines; the same words twice in a row are written once."""

    def __init__(self, write: Callable[[str], None], *, numbers: bool) -> None:
        self._write = write
        self._numbers = numbers
        self._shown = ""
        self._percent = "0%"
        self._shown_at = time.monotonic()

    def __call__(self, update: RepairUpdate) -> None:
        message = one_line(update.message)
        if message and message != self._shown:
            self._shown = message
            share = percent(update.progress)
            if share != self._percent and state_of(update.state) not in FINAL:
                self._percent = share
                message = f"{message} (progress: {share})"
        elif self._numbers and not message and time.monotonic() - self._shown_at >= QUIET_SECONDS_MAX:
            self._percent = percent(update.progress)
            message = f"Progress: {numbers_text(update)}"
        else:
            return
        self._shown_at = time.monotonic()
        self._write(stamped(message, datetime.now(tz=UTC)))


def _to(stream: TextIO) -> Callable[[str], None]:
    return lambda line: click.echo(line, file=stream)


@contextmanager
def _display(options: Options) -> Iterator[_Show]:
    """Lines, and below them a bar on a terminal; with ``--output json`` standard output stays free for the result."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _Lines(_to(sys.stderr if options.json else sys.stdout), numbers=True)
        return
    from rich.console import Console  # noqa: PLC0415 - only here, and slow to import

    # NO_COLOR forbids colour, not movement.
    console = Console(stderr=True, no_color=not colour_wanted(sys.stderr), highlight=False)
    piped = not options.json and not sys.stdout.isatty()
    # A terminal has the lines above the bar; a piped standard output has them in the pipe instead.
    write = _to(sys.stdout) if piped else lambda line: console.print(line, markup=False, soft_wrap=True)
    lines = _Lines(write, numbers=piped)
    with _progress_bar(console) as bar:

        def show(update: RepairUpdate) -> None:
            lines(update)
            bar(update)

        yield show


@contextmanager
def _progress_bar(console: Console) -> Iterator[_Show]:
    """Shows updates as a bar at the bottom of a terminal."""
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn  # noqa: PLC0415 - only here, slow
    from rich.text import Text  # noqa: PLC0415 - likewise

    class TimeColumn(ProgressColumn):
        """Goes on while the node says nothing."""

        def render(self, task: Task) -> Text:
            del task
            return Text(clock.text())

    clock = _BarClock()
    texts = ["{task.fields[share]:>4} verified", "{task.fields[moved]}", "{task.fields[size]}"]
    if console.width < _BAR_COLUMNS_MIN:
        texts = ["{task.fields[share]:>4}", "{task.fields[moved]}"]
    columns = (
        TextColumn("{task.description:<9}", markup=False),
        BarColumn(bar_width=None, complete_style="green", finished_style="green"),
        *(TextColumn(text, markup=False) for text in texts),
        *([] if console.width < _BAR_COLUMNS_MIN else [TimeColumn()]),
    )
    # The lines that may go to a piped standard output must not be drawn above the bar instead.
    with Progress(*columns, console=console, redirect_stdout=False, expand=True, transient=True) as progress:
        task = progress.add_task("preparing", total=1.0, share="0%", moved="", size="")
        full = 0.0

        def show(update: RepairUpdate) -> None:
            nonlocal full
            # More rows to move may become known: the bar waits then, it does not go back.
            full = max(full, bar_share(update))
            statistics = update.statistics
            clock.update(update)
            progress.update(
                task,
                completed=full,
                description=state_of(update.state),
                share=percent(update.progress),
                moved=moved_text(update),
                size=byte_size(statistics.find_bytes + statistics.move_bytes),
            )

        yield show


class _BarClock:
    """The time that is left, or else the time that was spent: by the last update and what has passed since."""

    def __init__(self) -> None:
        self._spent = 0.0
        self._left: float | None = None
        self._at = time.monotonic()

    def update(self, update: RepairUpdate) -> None:
        self._at = time.monotonic()
        self._spent = update.statistics.elapsed_seconds
        known = update.HasField("eta_seconds") and state_of(update.state) not in FINAL
        self._left = update.eta_seconds if known else None

    def text(self) -> str:
        since = time.monotonic() - self._at
        if self._left is None:
            return duration(self._spent + since)
        return f"{duration(max(0.0, self._left - since))} left"
