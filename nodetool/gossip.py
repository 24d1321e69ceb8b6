"""Gossip itself, on one node: ``statusgossip``, ``disablegossip``, ``enablegossip``, ``getseeds``, ``reloadseeds``.

Texts are Cassandra's where it has the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click

from nodetool.connect import connect
from nodetool.errors import ExitStatus, NodetoolError
from nodetool.options import Options, examples, node_options, pass_options
from nodetool.render import json_text, one_line, printable, rfc3339

WAIT_SETTLED_SECONDS_DEFAULT: Final = 60.0
#: The node gives up then, so that no call is held for ever.
WAIT_SECONDS_MAX: Final = 3_600.0
_NO_SEEDS: Final = "Seed node list does not contain any remote node IPs"


def stamped_json(content: dict[str, Any]) -> str:
    """``content`` as the object that ``--output json`` writes, with its time."""
    return json_text({"time": rfc3339(datetime.now(tz=UTC)), **content})


@click.command(epilog=examples("nodetool statusgossip", "nodetool statusgossip --output json | jq .gossip_active"))
@node_options
@pass_options
def statusgossip(options: Options) -> None:
    """Show whether gossip is running on the node."""
    with connect(options) as node:
        info = node.node_info()
    if options.json:
        click.echo(stamped_json({"endpoint": info.endpoint, "gossip_active": info.gossip_active}))
    else:
        click.echo("running" if info.gossip_active else "not running")


@click.command(epilog=examples("nodetool disablegossip"))
@node_options
@pass_options
def disablegossip(options: Options) -> None:
    """Announce the node's shutdown and stop its gossip; others see it DOWN. Undone by enablegossip.

    The node goes on serving clients. Nothing happens if gossip is off already.
    """
    with connect(options) as node:
        answer = node.disable_gossip()
    if options.json:
        click.echo(stamped_json({"endpoint": answer.endpoint, "gossip_active": False, "changed": answer.changed}))


@click.command(epilog=examples("nodetool enablegossip"))
@node_options
@pass_options
def enablegossip(options: Options) -> None:
    """Have the node gossip again, in a new generation. Nothing happens if gossip is on already.

    A node that was drained or has left does not come back in this way.
    """
    with connect(options) as node:
        answer = node.enable_gossip()
    if options.json:
        content = {"endpoint": answer.endpoint, "gossip_active": True, "changed": answer.changed}
        click.echo(stamped_json({**content, "generation": answer.generation}))


def _listed(what: str, seeds: Sequence[str]) -> str:
    if not seeds:
        return _NO_SEEDS
    return f"{what}, excluding the current node's IP: {printable(' '.join(seeds))}"


@click.command(epilog=examples("nodetool getseeds", "nodetool getseeds --output json | jq -r '.seeds[]'"))
@node_options
@pass_options
def getseeds(options: Options) -> None:
    """Show the seeds in force, without the node's own address."""
    with connect(options) as node:
        answer = node.seeds()
    if options.json:
        click.echo(stamped_json({"seeds": list(answer.seeds)}))
    else:
        click.echo(_listed("Current list of seed node IPs", answer.seeds))


@click.command(epilog=examples("nodetool reloadseeds", "nodetool reloadseeds --output json | jq .added"))
@node_options
@pass_options
def reloadseeds(options: Options) -> None:
    """Have the node read its seed sources (files, DNS names) now, without waiting for the next time.

    A source that fails is named, and what it gave before stays in force; the exit status is then 4.
    """
    with connect(options) as node:
        answer = node.reload_seeds()
    if options.json:
        content = {"seeds": answer.seeds, "added": answer.added, "removed": answer.removed, "faults": answer.faults}
        click.echo(stamped_json({key: list(value) for key, value in content.items()}))
    else:
        click.echo(_listed("Updated seed node IP list", answer.seeds))
    if answer.faults:
        faults = "; ".join(map(one_line, answer.faults))
        raise NodetoolError(f"Failed to reload the seed node list. {faults}", ExitStatus.PARTLY_DONE)


@click.command(epilog=examples("nodetool waitsettled", "nodetool waitsettled --wait-seconds 120 && deploy.sh"))
@click.option(
    "--wait-seconds",
    type=click.FloatRange(min=0, min_open=True, max=WAIT_SECONDS_MAX),
    default=WAIT_SETTLED_SECONDS_DEFAULT,
    metavar="SECONDS",
    help=f"Exit 1 if it has not settled by then.  [default: {WAIT_SETTLED_SECONDS_DEFAULT:g}]",
)
@node_options
@pass_options
def waitsettled(options: Options, wait_seconds: float) -> None:
    """Wait until the node's view has settled: the same nodes, alike alive or dead, in three gossip rounds."""
    with connect(options) as node:
        settled = node.wait_settled(wait_seconds).settled
    if options.json:
        click.echo(stamped_json({"settled": settled}))
    elif settled:
        click.echo("settled")
    if not settled:
        raise NodetoolError(f"gossip has not settled after {wait_seconds:g} s; see 'nodetool status'")
