"""The flags of ``nodetool repair``: Cassandra's where they have a meaning here, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

#: A repair of everything; the session timeout of Cassandra's automatic repair.
SESSION_TIMEOUT_SECONDS_DEFAULT: Final = 3 * 3600.0
SESSION_TIMEOUT_SECONDS_MAX: Final = 7 * 86_400.0
TOKEN_MAX: Final = 2**64 - 1
#: The node takes no more.
JOBS_MAX: Final = 4

_F = TypeVar("_F", bound=Callable[..., Any])

#: Flags of Cassandra whose wish is granted anyway: they are taken, and a note says so.
ACCEPTED: Final[dict[tuple[str, ...], str]] = {
    ("-seq", "--sequential"): "no snapshot is made; 'nodetool repair_admin throttle' limits the load",
    ("-dcpar", "--dc-parallel"): "no snapshot is made; 'nodetool repair_admin throttle' limits the load",
    ("-os", "--optimise-streams"): "each row is always moved once, to those that lack it",
    ("-skip-paxos", "--skip-paxos"): "there is no Paxos",
    ("-iuk", "--ignore-unreplicated-keyspaces"): "a keyspace of one replica needs no repair and is no error",
}
#: And those that ask for what must not or cannot be done.
REFUSED: Final[dict[tuple[str, ...], str]] = {
    ("-paxos-only", "--paxos-only"): "there is no Paxos to repair",
    ("--include-gcgs-expired-tombstones",): (
        "tombstones that some replicas may have purged are never compared, or deleted rows would return"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairOrder:
    """What a node is asked to repair."""

    keyspace: str = ""
    token_range: tuple[int, int] | None = None
    """First and last token, inclusive; None: all that the node holds."""
    primary_only: bool = False
    peers: tuple[str, ...] = ()
    datacenters: tuple[str, ...] = ()
    mode: str = "repair"
    """Or preview, validate, pull."""
    full: bool = False
    force: bool = False
    jobs: int = 1
    strategy: str = "auto"
    trace: bool = False


def token(text: str) -> int:
    """A token in decimal or hexadecimal.

    Raises:
        click.BadParameter: it is none.
    """
    try:
        number = int(text, 0)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a decimal number, nor 0x and hexadecimal digits") from None
    if not 0 <= number <= TOKEN_MAX:
        raise click.BadParameter(f"{text} is not within 0 to {TOKEN_MAX}")
    return number


def _note_or_refuse(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value:
        return
    flags = tuple(param.opts)
    if flags in REFUSED:
        raise click.UsageError(f"{flags[0]} has no meaning here: {REFUSED[flags]}", ctx)
    click.echo(f"nodetool: {flags[0]} changes nothing here: {ACCEPTED[flags]}", err=True)


def _no_tables(ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]) -> None:
    if value:
        raise click.UsageError(f"a keyspace has no tables here; name the keyspace alone, without {value[0]}", ctx)


def repair_options(command: _F) -> _F:
    """Add the flags that are the repair's own."""
    flags = [
        click.argument("keyspace", default=""),
        click.argument("tables", nargs=-1, metavar="", expose_value=False, callback=_no_tables),
        click.option(
            "-pr", "--partitioner-range", "primary_only", is_flag=True, help="Only ranges whose first replica it is."
        ),
        click.option("-st", "--start-token", type=token, metavar="TOKEN", help="First token of the range, inclusive."),
        click.option("-et", "--end-token", type=token, metavar="TOKEN", help="Last token of the range, inclusive."),
        click.option(
            "-hosts",
            "--in-hosts",
            "hosts",
            multiple=True,
            metavar="HOST[:PORT]",
            help="Only this replica and the node itself, by its gossip endpoint; may be given again.  [default: all]",
        ),
        click.option(
            "-dc",
            "--in-dc",
            "datacenters",
            multiple=True,
            metavar="NAME",
            help="Only replicas of this data centre; may be given again.",
        ),
        click.option("-local", "--in-local-dc", "local", is_flag=True, help="Only replicas of the node's data centre."),
        click.option("-full", "--full", is_flag=True, help="Have every replica read all its rows first."),
        click.option(
            "-prv", "--preview", is_flag=True, help="Move nothing; show the rows and bytes that would move, and keys."
        ),
        click.option("-vd", "--validate", is_flag=True, help="Move nothing; only say whether the replicas are equal."),
        click.option("-pl", "--pull", is_flag=True, help="Fetch rows to this node, send it none."),
        click.option(
            "-force", "--force", is_flag=True, help="Leave out replicas that are down; does not count as repaired."
        ),
        click.option(
            "-j",
            "--job-threads",
            "jobs",
            type=click.IntRange(1, JOBS_MAX),
            default=1,
            metavar="N",
            help="Ranges at once.  [default: 1]",
        ),
        click.option("-tr", "--trace", is_flag=True, help="Show every request with its bytes and its time."),
        click.option(
            "--strategy",
            type=click.Choice(["auto", "sketch", "descent", "rows"]),
            default="auto",
            metavar="[auto|sketch|descent|rows]",
            help="How rows are found; for measurement.  [default: auto]",
        ),
        click.option(
            "--exit-code", is_flag=True, help="Exit with 3 if a preview or validation found that replicas differ."
        ),
        session_timeout_option,
    ]
    flags += [
        click.option(*names, is_flag=True, hidden=True, expose_value=False, callback=_note_or_refuse)
        for names in (*ACCEPTED, *REFUSED)
    ]
    for flag in reversed(flags):
        command = flag(command)
    return command


def session_timeout_option(command: _F) -> _F:
    """How long it may take."""
    return click.option(
        "--session-timeout",
        "session_timeout_seconds",
        type=click.FloatRange(min=0.0, min_open=True, max=SESSION_TIMEOUT_SECONDS_MAX),
        default=SESSION_TIMEOUT_SECONDS_DEFAULT,
        metavar="SECONDS",
        help=f"End the repair after this time.  [default: {SESSION_TIMEOUT_SECONDS_DEFAULT:g}]",
    )(command)


def mode_of(*, preview: bool, validate: bool, pull: bool, exit_code: bool, strategy: str) -> str:
    """The one thing to do.

    Raises:
        click.UsageError: two things were asked for, or what belongs to another.
    """
    chosen = [name for name, given in (("preview", preview), ("validate", validate), ("pull", pull)) if given]
    if len(chosen) > 1:
        raise _usage(f"--{chosen[0]} and --{chosen[1]} exclude one another")
    mode = chosen[0] if chosen else "repair"
    if exit_code and mode not in {"preview", "validate"}:
        raise _usage("--exit-code needs --preview or --validate")
    if strategy != "auto" and mode == "validate":
        raise _usage("--strategy says how rows are found, and --validate looks for none")
    return mode


def check_replicas(*, primary_only: bool, hosts: tuple[str, ...], datacenters: tuple[str, ...], local: bool) -> None:
    """Whether the flags that choose replicas go together.

    Raises:
        click.UsageError: they do not.
    """
    if hosts and (datacenters or local):
        raise _usage("-hosts names replicas and -dc, -local choose them by data centre; give one of these only")
    if datacenters and local:
        raise _usage("-local is the node's own data centre and -dc names one; give one of these only")
    if primary_only and (hosts or datacenters):
        raise _usage("-pr repairs each range once if all nodes do it with all replicas; leave -hosts and -dc out")


def range_of(start: int | None, end: int | None) -> tuple[int, int] | None:
    """First and last token; None stands for all that the node holds.

    Raises:
        click.UsageError: the range is empty.
    """
    if start is None and end is None:
        return None
    first, last = start or 0, TOKEN_MAX if end is None else end
    if first > last:
        raise _usage("--start-token is greater than --end-token")
    return first, last


def _usage(message: str) -> click.UsageError:
    return click.UsageError(message, click.get_current_context())
