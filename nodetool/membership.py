"""Who belongs to the cluster: ``decommission``, ``drain``, ``removenode``, ``assassinate``."""

from __future__ import annotations

import uuid
from typing import Final

import click

from nodetool.connect import connect
from nodetool.errors import ExitStatus, NodetoolError
from nodetool.gossip import WAIT_SECONDS_MAX, stamped_json
from nodetool.options import Options, examples, node_options, pass_options
from nodetool.render import printable

WAIT_KNOWN_SECONDS_DEFAULT: Final = 10.0
#: Names in an error line; the rest is counted.
_NAMED_MAX: Final = 5


@click.command(
    epilog=examples(
        "nodetool decommission",
        "nodetool decommission --wait-seconds 60",
        "nodetool decommission --output json | jq '.unaware'",
    )
)
@click.option("-f", "--force", is_flag=True, help="Leave even if the rest cannot serve without this node.")
@click.option(
    "--wait-seconds",
    type=click.FloatRange(min=0, min_open=True, max=WAIT_SECONDS_MAX),
    default=WAIT_KNOWN_SECONDS_DEFAULT,
    metavar="SECONDS",
    help=f"How long to wait until all live peers know.  [default: {WAIT_KNOWN_SECONDS_DEFAULT:g}]",
)
@node_options
@pass_options
def decommission(options: Options, *, force: bool, wait_seconds: float) -> None:
    """Have the node leave the cluster for good. It serves no more; its process goes on until it is stopped.

    Prints how many of its live peers are known to know. Exits with 4 if not all of them are: the others tell them.
    A node that has left starts again only with rejoin, or as a new one with an empty data directory.
    """
    with connect(options) as node:
        answer = node.leave(wait_seconds, force=force)
    total = len(answer.knowing) + len(answer.unaware)
    if options.json:
        content = {"endpoint": answer.endpoint, "live_peer_count": total}
        click.echo(stamped_json({**content, "knowing": list(answer.knowing), "unaware": list(answer.unaware)}))
    else:
        click.echo(f"Left the cluster: {len(answer.knowing)} of {total} live peers know")
    if answer.unaware:
        more = len(answer.unaware) - _NAMED_MAX
        names = ", ".join(map(printable, answer.unaware[:_NAMED_MAX])) + (f" and {more} more" if more > 0 else "")
        raise NodetoolError(
            f"left, but after {wait_seconds:g} s not known to know: {names}; they hear it from the others",
            ExitStatus.PARTLY_DONE,
        )


@click.command(epilog=examples("nodetool drain"))
@node_options
@pass_options
def drain(options: Options) -> None:
    """Have the node take no more work and stop gossiping, as before an upgrade; start it anew afterwards."""
    with connect(options) as node:
        answer = node.drain()
    if options.json:
        click.echo(stamped_json({"endpoint": answer.endpoint, "gossip_active": False}))


def _host_id(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no host id, which is a UUID; 'nodetool status' shows them") from None


@click.command(
    epilog=examples("nodetool removenode 8b244cb0-135d-4745-b498-86f46187348f", "nodetool removenode HOST_ID")
)
@click.argument("host_id", type=_host_id)
@node_options
@pass_options
def removenode(options: Options, host_id: str) -> None:
    """Remove a dead node from the cluster for good, by its host id.

    Takes effect at once, so there is no 'removenode status' and nothing to force: no data is moved. A node that lives
    is refused. A removed one that starts again is told so; it may come back as a new one, with an empty data directory.
    """
    with connect(options) as node:
        answer = node.remove(host_id)
    if options.json:
        click.echo(stamped_json({"endpoint": answer.endpoint, "host_id": answer.host_id}))
    else:
        click.echo(f"Removed {printable(answer.endpoint)} (host id {printable(answer.host_id)})")


@click.command(epilog=examples("nodetool assassinate 10.0.0.7:7000", "nodetool assassinate --force 10.0.0.7:7000"))
@click.argument("endpoint", metavar="HOST:PORT")
@click.option("-f", "--force", is_flag=True, help="Even if its heartbeat moves: a node that lives is stopped by it.")
@node_options
@pass_options
def assassinate(options: Options, *, endpoint: str, force: bool) -> None:
    """Remove whatever is known of an endpoint, for good and without asking it. The last resort; try removenode first.

    Refused while its heartbeat moves. Never holds up gossip.
    """
    with connect(options) as node:
        answer = node.assassinate(endpoint, force=force)
    if options.json:
        click.echo(stamped_json({"endpoint": answer.endpoint, "forced": force}))
    else:
        click.echo(f"Assassinated {printable(answer.endpoint)}")
