"""``repair_admin``: sessions of repair that are under way or have ended, limits, and the automatic repair."""

from __future__ import annotations

import difflib
import re
from typing import Final

import click

from nodetool.connect import connect
from nodetool.errors import ExitStatus, NodetoolError
from nodetool.gossip import stamped_json
from nodetool.options import Options, examples, node_options, pass_options
from nodetool.render import one_line, printable
from nodetool.repair_flags import session_timeout_option
from nodetool.repair_follow import ID_LENGTH, follow, percent, resume_hint
from nodetool.repair_report import raise_unless_done, repair_json, repair_text
from nodetool.repair_tables import (
    history_text,
    schedule_content,
    schedule_text,
    session_content,
    sessions_text,
    summary_content,
    summary_text,
    throttle_content,
    throttle_text,
)

HISTORY_LIMIT_DEFAULT: Final = 20
#: The node lists no more.
HISTORY_LIMIT_MAX: Final = 1_000
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) ?(?:([kmgt])(?:i?b)?|b)?", re.IGNORECASE)
_NO_LIMIT: Final = ("0", "none", "unlimited")


class _RepairAdmin(click.Group):
    """Suggests the nearest subcommand for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], list(self.commands), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise click.UsageError(f"{args[0]!r} is not a command of repair_admin{hint}", ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of their use, not of the alphabet."""
        del ctx
        return list(self.commands)


@click.group(
    "repair_admin",
    cls=_RepairAdmin,
    invoke_without_command=True,
    options_metavar="[OPTIONS]",
    epilog=examples(
        "nodetool repair_admin list",
        "nodetool repair_admin pause 47249135",
        "nodetool repair_admin resume 47249135",
        "nodetool repair_admin cancel --all",
        "nodetool repair_admin summarize kv",
        "nodetool repair_admin throttle --bytes-per-second 16MiB",
        "nodetool help repair_admin throttle",
    ),
)
@node_options
@click.pass_context
def repair_admin(ctx: click.Context) -> None:
    """Look after repairs: what runs, what ran, how fast it may go, and what the node repairs by itself.

    Sessions are named by their id or by the beginning of it. A node knows the sessions that it coordinates; ask the
    coordinator.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@repair_admin.command(
    "list",
    epilog=examples(
        "nodetool repair_admin list", "nodetool repair_admin list --output json | jq '.sessions[].progress_ratio'"
    ),
)
@click.option("-a", "--all", "ended_too", is_flag=True, help="Also the last sessions that have ended.")
@node_options
@pass_options
def list_command(options: Options, *, ended_too: bool) -> None:
    """List sessions that have not ended: under way, paused, interrupted."""
    with connect(options) as node:
        answer = node.repair_sessions()
        sessions = list(answer.sessions)
        if ended_too:
            sessions += node.repair_history(HISTORY_LIMIT_DEFAULT).sessions
    if options.json:
        click.echo(stamped_json({"sessions": [session_content(one) for one in sessions]}))
    else:
        click.echo(sessions_text(sessions, answer.now))


@repair_admin.command(
    epilog=examples("nodetool repair_admin history", "nodetool repair_admin history --limit 100 --output json")
)
@click.option(
    "--limit",
    type=click.IntRange(1, HISTORY_LIMIT_MAX),
    default=HISTORY_LIMIT_DEFAULT,
    metavar="N",
    help=f"How many.  [default: {HISTORY_LIMIT_DEFAULT}]",
)
@node_options
@pass_options
def history(options: Options, *, limit: int) -> None:
    """List sessions that have ended, the last one first, and why they failed if they did."""
    with connect(options) as node:
        sessions = node.repair_history(limit).sessions
    if options.json:
        click.echo(stamped_json({"sessions": [session_content(one) for one in sessions]}))
    else:
        click.echo(history_text(sessions))


@repair_admin.command(
    epilog=examples("nodetool repair_admin cancel 47249135", "nodetool repair_admin cancel --all --force")
)
@click.argument("session", required=False, default="")
@click.option("-s", "--session", "named", default="", metavar="ID", help="As the argument, in Cassandra's way.")
@click.option("-a", "--all", "everything", is_flag=True, help="All sessions that have not ended.")
@click.option("-f", "--force", is_flag=True, help="Even if its replicas cannot be told; they forget it by themselves.")
@node_options
@pass_options
def cancel(options: Options, *, session: str, named: str, everything: bool, force: bool) -> None:
    """End a session for good, or all. Rows that were moved stay. Exits with 4 if some could not be cancelled."""
    asked = session or named
    if bool(asked) == everything or (session and named):
        raise click.UsageError("name one session, or give --all", click.get_current_context())
    with connect(options) as node:
        answer = node.cancel_repairs(asked, force=force)
    if options.json:
        cancelled = [session_content(one) for one in answer.cancelled]
        click.echo(stamped_json({"cancelled": cancelled, "failures": list(answer.failures)}))
    else:
        for one in answer.cancelled:
            where = f"{printable(one.keyspace)}, at {percent(one.progress)}"
            click.echo(f"Cancelled {printable(one.session_id[:ID_LENGTH])} ({where})")
        if not answer.cancelled and not answer.failures:
            click.echo("no sessions")
    if answer.failures:
        reasons = "; ".join(map(one_line, answer.failures))
        raise NodetoolError(f"not all sessions were cancelled: {reasons}", ExitStatus.PARTLY_DONE)


@repair_admin.command(epilog=examples("nodetool repair_admin pause 47249135"))
@click.argument("session")
@node_options
@pass_options
def pause(options: Options, *, session: str) -> None:
    """Hold a session up until it is resumed. What is verified by then is not looked at again."""
    with connect(options) as node:
        paused = node.pause_repair(session).session
    if options.json:
        click.echo(stamped_json({"session": session_content(paused)}))
    else:
        name = printable(paused.session_id[:ID_LENGTH])
        click.echo(f"Paused {name} at {percent(paused.progress)}; {resume_hint(paused.session_id)}")


@repair_admin.command(epilog=examples("nodetool repair_admin resume 47249135"))
@click.argument("session")
@session_timeout_option
@node_options
@pass_options
def resume(options: Options, *, session: str, session_timeout_seconds: float) -> None:
    """Go on with a session that was paused or interrupted. Shows the same as repair, and ends in the same way."""
    with connect(options) as node:
        update = follow(node, node.resume_repair(session, session_timeout_seconds), options)
    mode = "preview" if update.previews else "repair"
    click.echo(repair_json(update, mode) if options.json else repair_text(update, mode))
    raise_unless_done(update, exit_code=False)


@repair_admin.command(
    epilog=examples(
        "nodetool repair_admin summarize",
        "nodetool repair_admin summarize kv --output json | jq '.ranges[] | select(.stalled)'",
    )
)
@click.argument("keyspace", default="")
@click.option("-v", "--verbose", "everything", is_flag=True, help="All ranges, however many there are.")
@node_options
@pass_options
def summarize(options: Options, *, keyspace: str, everything: bool) -> None:
    """Show when each range was last repaired with all its replicas, what was found, and when it is due."""
    with connect(options) as node:
        answer = node.repair_summaries(keyspace)
    if options.json:
        click.echo(stamped_json({"ranges": [summary_content(one) for one in answer.ranges]}))
    else:
        click.echo(summary_text(answer.ranges, answer.now, everything=everything))


def _size(text: str) -> float:
    if text.lower() in _NO_LIMIT:
        return 0.0
    match = _SIZE.fullmatch(text)
    if match is None or not float(match[1]):
        raise click.BadParameter(f"{text!r} is not a number of bytes such as 500000, 512KiB or 16MiB, nor 'none'")
    return float(match[1]) * _UNITS[(match[2] or "").lower()]


def _rate(text: str) -> float:
    if text.lower() in _NO_LIMIT:
        return 0.0
    if not (text.isascii() and text.isdigit() and len(text) <= 15 and int(text)):
        raise click.BadParameter(f"{text!r} is not a number of rows above 0, nor 'none'")
    return float(text)


def _share(text: str) -> float:
    if text.lower() in _NO_LIMIT[1:]:
        return 1.0
    match = re.fullmatch(r"(\d*\.?\d+)(%?)", text)
    share = 0.0 if match is None else float(match[1]) / (100 if match[2] else 1)
    if not 0 < share <= 1:
        raise click.BadParameter(f"{text!r} is not a share above 0 and up to 1, such as 0.25 or 25%, nor 'none'")
    return share


@repair_admin.command(
    epilog=examples(
        "nodetool repair_admin throttle",
        "nodetool repair_admin throttle --bytes-per-second 16MiB --cpu-share 25%",
        "nodetool repair_admin throttle --bytes-per-second none",
    )
)
@click.option("--bytes-per-second", type=_size, metavar="SIZE|none", help="What repair may send and receive.")
@click.option("--rows-per-second", type=_rate, metavar="N|none", help="Rows that it may read or write.")
@click.option("--cpu-share", type=_share, metavar="SHARE|none", help="Of one core: 0.25, or 25%.")
@node_options
@pass_options
def throttle(
    options: Options, *, bytes_per_second: float | None, rows_per_second: float | None, cpu_share: float | None
) -> None:
    """Show how fast repair may go on this node, or set it: at once, and until the node is restarted."""
    with connect(options) as node:
        if (bytes_per_second, rows_per_second, cpu_share) == (None, None, None):
            found = node.throttle()
        else:
            found = node.set_throttle(
                bytes_per_second=bytes_per_second, rows_per_second=rows_per_second, cpu_share=cpu_share
            )
    click.echo(stamped_json(throttle_content(found)) if options.json else throttle_text(found))


@repair_admin.command(
    epilog=examples(
        "nodetool repair_admin schedule",
        "nodetool repair_admin schedule pause",
        "nodetool repair_admin schedule --output json | jq .stalled_count",
    )
)
@click.argument("action", type=click.Choice(["status", "pause", "resume"]), default="status")
@click.option("-v", "--verbose", "everything", is_flag=True, help="All ranges, however many there are.")
@node_options
@pass_options
def schedule(options: Options, *, action: str, everything: bool) -> None:
    """Show what the node repairs by itself: running, stalled, next. Or pause and resume that.

    Pausing begins nothing more; what is under way goes on.
    """
    with connect(options) as node:
        found = node.schedule() if action == "status" else node.pause_schedule(paused=action == "pause")
    if options.json:
        click.echo(stamped_json(schedule_content(found)))
    else:
        click.echo(schedule_text(found, everything=everything))
