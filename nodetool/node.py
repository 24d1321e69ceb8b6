"""What a node says of itself and what it measures: ``info``, ``failuredetector``, ``replicas``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from nodetool.cluster import Member
from nodetool.connect import connect
from nodetool.options import Options, examples, node_options, pass_options
from nodetool.render import (
    AddressBook,
    address_order,
    age_seconds,
    byte_size,
    generation_time,
    json_text,
    labelled,
    printable,
    rfc3339,
)
from nodetool.repair_tables import ago

if TYPE_CHECKING:
    from antientropy.v1.admin_pb2 import DescribeReplicaResponse, SummarizeRepairsResponse
    from gossiper.v1.admin_pb2 import GetClusterViewResponse, GetFailureDetectorResponse, GetNodeInfoResponse

_BOOTSTRAP_STATES: Final = {
    "NORMAL": "COMPLETED",
    "LEAVING": "COMPLETED",
    "MOVING": "COMPLETED",
    "BOOT": "IN_PROGRESS",
    "BOOT_REPLACE": "IN_PROGRESS",
    "LEFT": "DECOMMISSIONED",
}
_LIVENESS: Final = {1: "up", 2: "down", 4: "suspect"}


def _own(view: GetClusterViewResponse) -> Member | None:
    """The member that answered."""
    for endpoint in view.endpoints:
        if endpoint.endpoint == view.local_endpoint:
            return Member.of(endpoint)
    return None


def _number(value: float) -> str:
    """Counters are whole numbers, nearly always."""
    return str(int(value)) if math.isfinite(value) and value == int(value) else f"{value:g}"


@dataclass(frozen=True, slots=True)
class Holding:
    """What the node's replica holds, where it has one."""

    row_count: int
    tombstone_count: int
    repaired_at: float | None
    """Of the range whose last complete repair is longest ago, in seconds since the epoch; None: one never had any."""
    now: float
    """By the node's clock."""

    @classmethod
    def of(cls, replica: DescribeReplicaResponse, summaries: SummarizeRepairsResponse | None) -> Holding:
        """From what the node answered; None: it cannot say when it was repaired."""
        if summaries is None:
            return cls(replica.row_count, replica.tombstone_count, None, 0.0)
        times = [one.repaired_at if one.HasField("repaired_at") else None for one in summaries.ranges]
        known = [time for time in times if time is not None]
        oldest = min(known) if known and len(known) == len(times) else None
        return cls(replica.row_count, replica.tombstone_count, oldest, summaries.now)

    def lines(self) -> list[str]:
        """For people; rows are what a client sees, without tombstones."""
        repaired = "(not all tokens yet)" if self.repaired_at is None else ago(self.repaired_at, self.now)
        return [
            labelled("Rows", f"{self.row_count - self.tombstone_count:,}"),
            labelled("Tombstones", f"{self.tombstone_count:,}"),
            labelled("Last repair", repaired),
        ]

    def fields(self) -> dict[str, object]:
        """For programs."""
        return {
            "row_count": self.row_count - self.tombstone_count,
            "tombstone_count": self.tombstone_count,
            "repaired_at": None
            if self.repaired_at is None
            else rfc3339(datetime.fromtimestamp(self.repaired_at, tz=UTC)),
        }


def info_text(
    info: GetNodeInfoResponse,
    own: Member | None,
    holding: Holding | None = None,
    *,
    show_tokens: bool = False,
    show_counters: bool = False,
) -> str:
    """Cassandra's ``nodetool info`` without the lines of a JVM; what only this system has comes after the token."""
    values = {} if own is None else own.values
    tokens = [] if own is None else own.tokens
    lines = [
        labelled("ID", printable(info.host_id)),
        labelled("Gossip active", str(info.gossip_active).lower()),
        labelled("Native Transport active", str(values.get("RPC_READY") == "true").lower()),
        labelled("Load", byte_size(None if own is None else own.load_bytes)),
        labelled("Generation No", info.generation if info.gossip_active else 0),
        labelled("Uptime (seconds)", int(info.uptime_seconds)),
        labelled("Resident Memory (MB)", f"{info.memory_resident_bytes / (1 << 20):.2f}"),
        labelled("Data Center", printable(info.datacenter)),
        labelled("Rack", printable(info.rack)),
    ]
    if not tokens:
        lines.append(labelled("Token", "(node is not joined to the cluster)"))
    elif show_tokens:
        lines += [labelled("Token", printable(token)) for token in tokens]
    elif len(tokens) == 1:
        lines.append(labelled("Token", printable(tokens[0])))
    else:
        lines.append(labelled("Token", f"(invoke with -T/--tokens to see all {len(tokens)} tokens)"))
    status = "" if own is None else own.status
    lines += [
        labelled("Bootstrap state", _BOOTSTRAP_STATES.get(status, "NEEDS_BOOTSTRAP")),
        labelled("Endpoint", printable(info.endpoint)),
        labelled("Heartbeat", info.heartbeat),
        labelled("Gossip interval (s)", f"{info.interval_seconds:g}"),
        labelled("Seeds", printable(" ".join(info.seeds)) or "(none)"),
        labelled("Release version", printable(info.release_version)),
        labelled("Status", printable(info.status) or "(none)"),
        labelled("Health", "serving" if info.serving else f"not serving: {printable(info.health_reason)}"),
    ]
    if holding is not None:
        lines += holding.lines()
    if info.failure:
        lines.append(labelled("Stopped because", printable(info.failure)))
    if show_counters:
        lines += [f"{printable(counter.name)} {_number(counter.value)}" for counter in info.counters]
    return "\n".join(lines)


def info_json(info: GetNodeInfoResponse, own: Member | None, holding: Holding | None = None) -> str:
    """The same for programs."""
    load_bytes = None if own is None else own.load_bytes
    return json_text(
        {
            "time": rfc3339(datetime.now(tz=UTC)),
            "endpoint": info.endpoint,
            "host_id": info.host_id,
            "gossip_active": info.gossip_active,
            "native_transport_active": own is not None and own.values.get("RPC_READY") == "true",
            "load_bytes": None if load_bytes is None else int(load_bytes),
            "generation": info.generation,
            "generation_time": generation_time(info.generation),
            "heartbeat": info.heartbeat,
            "uptime_seconds": info.uptime_seconds,
            "memory_resident_bytes": int(info.memory_resident_bytes),
            "datacenter": info.datacenter,
            "rack": info.rack,
            "tokens": [] if own is None else own.tokens,
            "interval_seconds": info.interval_seconds,
            "seeds": list(info.seeds),
            "release_version": info.release_version,
            "status": info.status or None,
            "serving": info.serving,
            "health_reason": info.health_reason or None,
            "failure": info.failure or None,
            "counters": {counter.name: counter.value for counter in info.counters},
            **({} if holding is None else holding.fields()),
        }
    )


@click.command(
    epilog=examples("nodetool info", "nodetool info --counters", "nodetool info --output json | jq .load_bytes")
)
@click.option("-T", "--tokens", "show_tokens", is_flag=True, help="Show all tokens.")
@click.option("-c", "--counters", "show_counters", is_flag=True, help="Show what the node counts, one per line.")
@node_options
@pass_options
def info(options: Options, *, show_tokens: bool, show_counters: bool) -> None:
    """Show the node itself: identity, load, generation, uptime, memory, rows and when they were last repaired."""
    with connect(options) as node:
        own_info = node.node_info()
        view = node.cluster_view()
        replica, _why = node.replica_if_any()
        holding = None if replica is None else Holding.of(replica, node.repair_summaries_if_any())
    own = _own(view)
    if options.json:
        click.echo(info_json(own_info, own, holding))
    else:
        click.echo(info_text(own_info, own, holding, show_tokens=show_tokens, show_counters=show_counters))


def failuredetector_text(response: GetFailureDetectorResponse, book: AddressBook) -> str:
    """Cassandra's ``nodetool failuredetector``; its first column grows with the addresses and so stays aligned."""
    endpoints = sorted(response.endpoints, key=lambda view: address_order(view.endpoint))
    names = [book.java(view.endpoint) for view in endpoints]
    width = max([10, *map(len, names)])
    lines = [f"{'Endpoint':>{width}},{'Phi':>16}"]
    lines += [f"{name:>{width}},{view.phi:>16.8f}" for name, view in zip(names, endpoints, strict=True)]
    return "\n".join(lines)


def failuredetector_json(response: GetFailureDetectorResponse) -> str:
    """The same for programs, with what phi is made of."""
    return json_text(
        {
            "time": rfc3339(datetime.now(tz=UTC)),
            "phi_threshold": response.phi_threshold,
            "local_pause_remaining_seconds": response.local_pause_remaining_seconds,
            "endpoints": [
                {
                    "endpoint": view.endpoint,
                    "phi": view.phi,
                    "liveness": _LIVENESS.get(view.liveness, "unknown"),
                    "interval_mean_seconds": view.interval_mean_seconds,
                    "sample_count": view.sample_count,
                    "last_arrival_age_seconds": age_seconds(view.last_arrival_age_seconds),
                }
                for view in sorted(response.endpoints, key=lambda view: address_order(view.endpoint))
            ],
        }
    )


@click.command(
    epilog=examples(
        "nodetool failuredetector", "nodetool failuredetector --output json | jq '.endpoints[] | {endpoint, phi}'"
    )
)
@node_options
@pass_options
def failuredetector(options: Options) -> None:
    """Show phi, the level of suspicion, of every other endpoint.

    An endpoint is convicted above the threshold (8 by default: 18.4 mean intervals of silence).
    """
    with connect(options) as node:
        response = node.failure_detector()
        # Its own address is not among the rows, but decides as in `status` whether a host is shared.
        own = "" if options.json else node.node_info().endpoint
    if response.local_pause_remaining_seconds > 0:
        click.echo(
            f"nodetool: the detector convicts nobody for another {response.local_pause_remaining_seconds:.1f} s, "
            "because its own process was paused",
            err=True,
        )
    if options.json:
        click.echo(failuredetector_json(response))
        return
    book = AddressBook([own, *(view.endpoint for view in response.endpoints)], print_port=options.print_port)
    click.echo(failuredetector_text(response, book))


def replicas_text(replica: DescribeReplicaResponse, book: AddressBook) -> str:
    """What one replica holds, in the manner of ``nodetool info``."""
    rows: Sequence[tuple[str, Any]] = (
        ("Keyspace", printable(replica.keyspace)),
        ("Live rows", replica.row_count - replica.tombstone_count),
        ("Tombstones", replica.tombstone_count),
        ("Rows in the tree", replica.row_count),
        ("Root hash", replica.root_digest.hex()),
        ("Tree depth", replica.tree_depth),
        ("Stored", byte_size(replica.stored_bytes)),
        ("Replication factor", replica.replication_factor),
        ("Replicas", ", ".join(map(book.plain, replica.replicas))),
    )
    return "\n".join(labelled(label, value) for label, value in rows)


def replicas_json(replica: DescribeReplicaResponse) -> str:
    """The same for programs."""
    return json_text(
        {
            "time": rfc3339(datetime.now(tz=UTC)),
            "keyspace": replica.keyspace,
            "row_count": replica.row_count,
            "live_row_count": replica.row_count - replica.tombstone_count,
            "tombstone_count": replica.tombstone_count,
            "root_digest": replica.root_digest.hex(),
            "tree_depth": replica.tree_depth,
            "stored_bytes": replica.stored_bytes,
            "replication_factor": replica.replication_factor,
            "replicas": list(replica.replicas),
        }
    )


@click.command(epilog=examples("nodetool replicas", "nodetool replicas --output json | jq -r .root_digest"))
@click.argument("keyspace", default="")
@node_options
@pass_options
def replicas(options: Options, keyspace: str) -> None:
    """Show what the node's replica of a keyspace holds: rows, tombstones, root hash.

    Replicas with equal root hashes hold equal rows.
    """
    with connect(options) as node:
        replica = node.replica(keyspace)
    if options.json:
        click.echo(replicas_json(replica))
        return
    click.echo(replicas_text(replica, AddressBook(replica.replicas, print_port=options.print_port)))
