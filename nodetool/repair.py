"""``repair``: have the node compare its replica with the others and move exactly the rows that differ.

A reader thread takes the updates from the call, so that the main thread can show a progress that moves, be
interrupted, and notice a node that has fallen silent.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TextIO

import click

from nodetool.connect import connect
from nodetool.errors import ExitStatus, InterruptedCommandError, NodetoolError, UnreachableError
from nodetool.options import Options, examples, node_options, pass_options
from nodetool.render import byte_size, colour_wanted, json_text, labelled, one_line, rfc3339

if TYPE_CHECKING:
    from antientropy.v1.admin_pb2 import RepairUpdate
    from nodetool.connection import Node, UpdateStream

#: A repair of everything; the session timeout of Cassandra's automatic repair.
SESSION_TIMEOUT_SECONDS_DEFAULT: Final = 3 * 3600.0
TOKEN_MAX: Final = 2**64 - 1
#: Updates that wait to be shown; a node that reports faster than a terminal draws is slowed down.
UPDATES_WAITING_MAX: Final = 1024
_PHASES: Final = {1: "preparing", 2: "comparing", 3: "streaming", 4: "verifying", 7: "finished"}
_COMPLETED, _PARTIAL, _FAILED = 7, 8, 9
_OUTCOMES: Final = {_COMPLETED: "completed", _PARTIAL: "partial", _FAILED: "failed"}
_Show = Callable[["RepairUpdate"], None]


def _token(text: str) -> int:
    try:
        token = int(text, 0)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a decimal number, nor 0x and hexadecimal digits") from None
    if not 0 <= token <= TOKEN_MAX:
        raise click.BadParameter(f"{text} is not within 0 to {TOKEN_MAX}")
    return token


def _stamped(message: str, moment: datetime) -> str:
    """A line of progress as Cassandra writes it: ``[2026-01-02 03:04:05,678] message``, in local time."""
    local = moment.astimezone()
    return f"[{local:%Y-%m-%d %H:%M:%S},{local.microsecond // 1000:03d}] {message}"


def _follow(node: Node, stream: UpdateStream, show: _Show) -> RepairUpdate:
    """Show every update; return the one that carries the outcome.

    Raises:
        NodetoolError: the call failed, ended without an outcome, or the node fell silent.
    """
    updates: queue.Queue[RepairUpdate | Exception | None] = queue.Queue(UPDATES_WAITING_MAX)

    def read() -> None:
        try:
            for update in stream:
                updates.put(update)
            updates.put(None)
        except Exception as error:  # noqa: BLE001 - handed to the main thread, which raises it
            updates.put(error)

    threading.Thread(target=read, name="repair-updates", daemon=True).start()
    last: RepairUpdate | None = None
    while True:
        try:
            update = updates.get(timeout=node.timeout_seconds)
        except queue.Empty:
            # Comparing a large replica may be silent for long; a node that does not answer anything is gone.
            if not node.is_answering():
                raise UnreachableError(f"{node.address} fell silent; the outcome of the repair is not known") from None
            continue
        if update is None:
            break
        if isinstance(update, Exception):
            node.raise_for_repair(update)
        last = update
        show(update)
    if last is None or last.state not in _OUTCOMES:
        raise NodetoolError(f"{node.address} ended the repair without saying its outcome")
    return last


def _lines(stream: TextIO) -> _Show:
    """Shows an update as one stamped line on ``stream``; the same words twice in a row are shown once."""
    shown = ""

    def show(update: RepairUpdate) -> None:
        nonlocal shown
        message = one_line(update.message)
        if message and message != shown:
            shown = message
            click.echo(_stamped(message, datetime.now(tz=UTC)), file=stream)

    return show


@contextmanager
def _progress_bar() -> Iterator[_Show]:
    """Shows updates as a bar on standard error, which must be a terminal."""
    from rich.console import Console  # noqa: PLC0415 - only here, and slow to import
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[moved]}", markup=False),
    )
    console = Console(stderr=True, no_color=not colour_wanted(sys.stderr))
    # The lines that may go to a piped standard output must not be drawn above the bar instead.
    with Progress(*columns, console=console, redirect_stdout=False) as progress:
        task = progress.add_task("preparing", total=1.0, moved="")

        def show(update: RepairUpdate) -> None:
            statistics = update.statistics
            progress.update(
                task,
                completed=min(max(update.progress, 0.0), 1.0),
                description=_PHASES.get(update.state, "repairing"),
                moved=f"{statistics.rows_moved:,} rows moved, {byte_size(statistics.move_bytes)}",
            )

        yield show


@contextmanager
def _display(options: Options) -> Iterator[_Show]:
    """A bar on a terminal, lines elsewhere; with ``--output json`` standard output stays free for the result."""
    # NO_COLOR forbids colour, not movement.
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _progress_bar() as bar:
            log = _lines(sys.stdout) if not options.json and not sys.stdout.isatty() else None

            def show(update: RepairUpdate) -> None:
                bar(update)
                if log is not None:
                    log(update)

            yield show
    else:
        yield _lines(sys.stderr if options.json else sys.stdout)


def repair_text(update: RepairUpdate) -> str:
    """The closing summary."""
    statistics = update.statistics
    outcome = {
        _COMPLETED: "Repair completed successfully",
        _PARTIAL: "Repair partly done",
        _FAILED: "Repair failed",
    }[update.state]
    rows = (
        ("Rows that differed", f"{statistics.rows_differing:,}"),
        ("Rows moved", f"{statistics.rows_moved:,}"),
        ("Rows moved at best", f"{statistics.rows_optimal:,}"),
        ("Bytes for finding", _bytes(statistics.find_bytes)),
        ("Bytes for moving", _bytes(statistics.move_bytes)),
        ("Round trips", f"{statistics.round_trips:,}"),
        ("Pairs compared", f"{statistics.pairs_compared:,}, of them equal: {statistics.pairs_equal:,}"),
        ("Session", one_line(update.session_id)),
    )
    head = f"{outcome} in {statistics.elapsed_seconds:.2f} s"
    return "\n".join([head, *(labelled(f"  {label}", value) for label, value in rows)])


def _bytes(count: int) -> str:
    return f"{count:,} ({byte_size(count)})" if count >= 1024 else str(count)


def repair_json(update: RepairUpdate, keyspace: str) -> str:
    """The same for programs: one object, printed when the repair has ended."""
    statistics = update.statistics
    return json_text(
        {
            "time": rfc3339(datetime.now(tz=UTC)),
            "session_id": update.session_id,
            "keyspace": keyspace or None,
            "outcome": _OUTCOMES[update.state],
            "message": update.message,
            "progress_ratio": update.progress,
            "rows_differing": statistics.rows_differing,
            "rows_moved": statistics.rows_moved,
            "rows_optimal": statistics.rows_optimal,
            "find_bytes": statistics.find_bytes,
            "move_bytes": statistics.move_bytes,
            "round_trips": statistics.round_trips,
            "pairs_compared": statistics.pairs_compared,
            "pairs_equal": statistics.pairs_equal,
            "elapsed_seconds": statistics.elapsed_seconds,
        }
    )


def _range(start: int | None, end: int | None) -> tuple[int, int]:
    """First and last token; both 0 stand for every token on the wire."""
    if start is None and end is None:
        return 0, 0
    first, last = start or 0, TOKEN_MAX if end is None else end
    if first > last:
        raise click.UsageError("--start-token is greater than --end-token", click.get_current_context())
    if last == 0:
        raise click.UsageError("a range of token 0 alone cannot be named", click.get_current_context())
    return first, last


@click.command(
    epilog=examples(
        "nodetool repair",
        "nodetool repair -hosts 10.0.0.2:7000 -hosts 10.0.0.3:7000",
        "nodetool repair -st 0x0000000000000000 -et 0x00ffffffffffffff",
        "nodetool repair --output json | jq .rows_moved",
    )
)
@click.argument("keyspace", default="")
@click.option(
    "-hosts",
    "--in-hosts",
    "peers",
    multiple=True,
    metavar="HOST:PORT",
    help="Repair with this replica only, by its gossip endpoint; may be given again.  [default: all]",
)
@click.option("-st", "--start-token", type=_token, metavar="TOKEN", help="First token of the range, inclusive.")
@click.option("-et", "--end-token", type=_token, metavar="TOKEN", help="Last token of the range, inclusive.")
@click.option(
    "--session-timeout",
    "session_timeout_seconds",
    type=click.FloatRange(min=0.0, min_open=True, max=7 * 86_400.0),
    default=SESSION_TIMEOUT_SECONDS_DEFAULT,
    metavar="SECONDS",
    help=f"Cancel the repair after this time.  [default: {SESSION_TIMEOUT_SECONDS_DEFAULT:g}]",
)
@node_options
@pass_options
def repair(
    options: Options,
    *,
    keyspace: str,
    peers: tuple[str, ...],
    start_token: int | None,
    end_token: int | None,
    session_timeout_seconds: float,
) -> None:
    """Make the replicas of a keyspace equal, with this node as the coordinator.

    Shows a progress bar on a terminal, stamped lines elsewhere, and a summary: rows that differed, rows moved, bytes
    for finding and for moving them. Ctrl-C cancels the repair. Exits with 4 if only a part could be repaired.
    """
    first, last = _range(start_token, end_token)
    with connect(options) as node:
        stream = node.start_repair(
            keyspace=keyspace, first_token=first, last_token=last, peers=peers, timeout_seconds=session_timeout_seconds
        )
        try:
            with _display(options) as show:
                update = _follow(node, stream, show)
        except KeyboardInterrupt:
            raise InterruptedCommandError("the repair was cancelled") from None
        finally:
            stream.cancel()
    click.echo(repair_json(update, keyspace) if options.json else repair_text(update))
    if update.state == _PARTIAL:
        raise NodetoolError(f"repair partly done: {one_line(update.message)}", ExitStatus.PARTLY_DONE)
    if update.state == _FAILED:
        raise NodetoolError(f"repair failed: {one_line(update.message)}")
