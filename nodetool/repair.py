"""``repair``: have the node compare its replica with the others and move exactly the rows that differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nodetool.connect import connect
from nodetool.errors import ExitStatus, NodetoolError, NotOfferedError
from nodetool.options import Options, examples, node_options, pass_options
from nodetool.render import printable, split_endpoint
from nodetool.repair_flags import RepairOrder, check_replicas, mode_of, range_of, repair_options
from nodetool.repair_follow import follow
from nodetool.repair_report import raise_unless_done, repair_json, repair_text

if TYPE_CHECKING:
    from nodetool.connection import Node


def _has_port(host: str) -> bool:
    return host.startswith("[") and "]:" in host if host.count(":") > 1 else ":" in host


def _peers(node: Node, keyspace: str, hosts: tuple[str, ...]) -> tuple[str, ...]:
    """The endpoints that are meant: a host without a port is the replica there, the node itself takes part anyway.

    Raises:
        NodetoolError: no replica, or several, are at a host; or the node itself was named alone.
    """
    if not hosts:
        return ()
    replicas = [] if all(map(_has_port, hosts)) else list(node.replica(keyspace).replicas)
    found = dict.fromkeys(host if _has_port(host) else _replica_at(host, replicas) for host in hosts)
    try:
        found.pop(node.node_info().endpoint, None)
    except NotOfferedError:
        # Repair without gossip: the node cannot say who it is, and refuses its own name by itself.
        return tuple(found)
    if not found:
        raise NodetoolError("-hosts names only the node itself; name another replica too", ExitStatus.USAGE)
    return tuple(found)


def _replica_at(host: str, replicas: list[str]) -> str:
    there = [endpoint for endpoint in replicas if split_endpoint(endpoint)[0] == host.strip("[]")]
    if len(there) == 1:
        return there[0]
    if there:
        raise NodetoolError(f"{len(there)} replicas are at {host} ({', '.join(there)}); add a port", ExitStatus.USAGE)
    known = printable(", ".join(replicas))
    raise NodetoolError(f"no replica is at {printable(host)}; the replicas are: {known}", ExitStatus.USAGE)


def _own_datacenter(node: Node) -> str:
    datacenter = node.node_info().datacenter
    if not datacenter:
        raise NodetoolError("the node does not say its data centre; name it with -dc", ExitStatus.USAGE)
    return datacenter


@click.command(
    options_metavar="[OPTIONS]",
    epilog=examples(
        "nodetool repair",
        "nodetool repair --preview                # what would move, to the row",
        "nodetool repair --validate --exit-code   # 3 if the replicas differ",
        "nodetool repair -pr                      # on every node: each range once",
        "nodetool repair kv -hosts 10.0.0.2 -hosts 10.0.0.3:7000",
        "nodetool repair -st 0x0000000000000000 -et 0x00ffffffffffffff",
        "nodetool repair --output json | jq .rows_moved",
    ),
)
@repair_options
@node_options
@pass_options
def repair(
    options: Options,
    *,
    keyspace: str,
    primary_only: bool,
    start_token: int | None,
    end_token: int | None,
    hosts: tuple[str, ...],
    datacenters: tuple[str, ...],
    local: bool,
    full: bool,
    preview: bool,
    validate: bool,
    pull: bool,
    force: bool,
    jobs: int,
    trace: bool,
    strategy: str,
    exit_code: bool,
    session_timeout_seconds: float,
) -> None:
    """Make the replicas of a keyspace equal, with this node as the coordinator.

    Finds exactly the rows that differ and moves each once. Shows what happens in stamped lines, on a terminal with a
    bar below them, and then a summary. Ctrl-C ends the repair and says how to go on; rows that were moved stay. Exits
    with 4 if only a part could be repaired.

    Cassandra's -seq, -dcpar, -os, -iuk and -skip-paxos are taken and change nothing.
    """
    mode = mode_of(preview=preview, validate=validate, pull=pull, exit_code=exit_code, strategy=strategy)
    check_replicas(primary_only=primary_only, hosts=hosts, datacenters=datacenters, local=local)
    token_range = range_of(start_token, end_token)
    with connect(options) as node:
        order = RepairOrder(
            keyspace=keyspace,
            token_range=token_range,
            primary_only=primary_only,
            peers=_peers(node, keyspace, hosts),
            datacenters=(_own_datacenter(node),) if local else datacenters,
            mode=mode,
            full=full,
            force=force,
            jobs=jobs,
            strategy=strategy,
            trace=trace,
        )
        update = follow(node, node.start_repair(order, session_timeout_seconds), options)
    click.echo(repair_json(update, mode) if options.json else repair_text(update, mode))
    raise_unless_done(update, exit_code=exit_code)
