"""The ``nodetool`` command: its group, its help, and how every error ends as one line and an exit status."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from nodetool import cluster, gossip, membership, netstats, node, repair, repair_admin
from nodetool.errors import ExitStatus, InterruptedCommandError, NodetoolError
from nodetool.options import node_options
from nodetool.render import one_line

_EPILOG = """\b
Exit status:
  0    done
  1    the operation failed
  2    wrong usage
  3    replicas differ (repair --preview or --validate with --exit-code)
  4    partly done (a repair that left out replicas, a leave that not all are known to know)
  5    the node cannot be reached, is silent, or is not ready
  130  interrupted

\b
Examples:
  nodetool status
  nodetool -h 10.0.0.1 -p 7199 failuredetector
  nodetool status --wait-alive 3 --wait-seconds 60
  nodetool gossipinfo --output json | jq '.endpoints[].endpoint'
  nodetool help repair
"""


class _Nodetool(click.Group):
    """Suggests the nearest command for an unknown one, and makes Ctrl-C an ordinary error."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None:
            raise _unknown_command(args[0], ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise InterruptedCommandError from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of their use, not of the alphabet."""
        del ctx
        return list(self.commands)


def _unknown_command(name: str, ctx: click.Context) -> click.UsageError:
    near = difflib.get_close_matches(name, list(nodetool.commands), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return click.UsageError(f"{name!r} is not a nodetool command{hint}", ctx)


@click.group(cls=_Nodetool, invoke_without_command=True, epilog=_EPILOG, options_metavar="[OPTIONS]")
@node_options
@click.pass_context
def nodetool(ctx: click.Context) -> None:
    """Ask a running node about its cluster, and have it repair its replicas, leave, remove others.

    The options below may also stand after the command.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@nodetool.command("help")
@click.argument("command", nargs=-1)
@click.pass_context
def help_command(ctx: click.Context, command: tuple[str, ...]) -> None:
    """Show this help, or that of a command."""
    context = ctx.parent or ctx
    for name in command:
        group = context.command
        found = group.get_command(context, name) if isinstance(group, click.Group) else None
        if found is None and isinstance(group, click.Group) and group is not nodetool:
            group.resolve_command(context, [name])
        if found is None:
            raise _unknown_command(name, ctx.parent or ctx)
        context = click.Context(found, info_name=name, parent=context)
    click.echo(context.get_help())


for _command in (
    cluster.status,
    cluster.describecluster,
    cluster.gossipinfo,
    node.info,
    node.failuredetector,
    netstats.netstats,
    node.replicas,
    repair.repair,
    repair_admin.repair_admin,
    gossip.statusgossip,
    gossip.disablegossip,
    gossip.enablegossip,
    gossip.getseeds,
    gossip.reloadseeds,
    gossip.waitsettled,
    membership.decommission,
    membership.drain,
    membership.removenode,
    membership.assassinate,
):
    nodetool.add_command(_command)


def _usage_line(error: click.UsageError) -> str:
    path = error.ctx.command_path.split(" ", 1)[1:] if error.ctx is not None else []
    see = " ".join(["nodetool help", *path])
    message = one_line(error.format_message())
    return f"{message}{'' if message.endswith(('.', '?')) else '.'} See '{see}'."


def main(args: Sequence[str] | None = None) -> int:
    """Run nodetool with ``args`` (default: those of the process) and return its exit status."""
    try:
        result = nodetool.main(args=args, prog_name="nodetool", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        click.echo(f"nodetool: {_usage_line(error)}", err=True)
        return int(ExitStatus.USAGE)
    except NodetoolError as error:
        click.echo(f"nodetool: {error.format_message()}", err=True)
        return int(error.status)
    except click.Abort:
        click.echo("nodetool: interrupted", err=True)
        return int(ExitStatus.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone (`nodetool status | head -1`); Python must not complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitStatus.FAILED)
    return result if isinstance(result, int) else int(ExitStatus.DONE)


if __name__ == "__main__":
    sys.exit(main())
