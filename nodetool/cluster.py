"""What a node believes of the whole cluster: ``status``, ``describecluster``, ``gossipinfo``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from nodetool.connect import connect
from nodetool.errors import NodetoolError, UnreachableError
from nodetool.options import Options, examples, node_options, pass_options
from nodetool.render import (
    AddressBook,
    address_order,
    age_seconds,
    byte_size,
    colour_wanted,
    generation_time,
    json_text,
    narrow_table,
    printable,
    resolved_name,
    rfc3339,
    width_wanted,
)

if TYPE_CHECKING:
    from antientropy.v1.admin_pb2 import DescribeReplicaResponse
    from gossiper.v1.admin_pb2 import EndpointView, GetClusterViewResponse

#: Between two looks of ``--wait-alive``: well below what a person notices, well above what a look costs.
WAIT_POLL_SECONDS: Final = 0.2
WAIT_SECONDS_DEFAULT: Final = 30.0

#: Order of Cassandra's ``ApplicationState``; what it does not have comes after, TOKENS always last.
_STATE_ORDER: Final = (
    "STATUS",
    "LOAD",
    "SCHEMA",
    "DC",
    "RACK",
    "RELEASE_VERSION",
    "NET_VERSION",
    "HOST_ID",
    "RPC_READY",
    "INTERNAL_ADDRESS_AND_PORT",
    "NATIVE_ADDRESS_AND_PORT",
)
_STATE_LETTERS: Final = {
    "NORMAL": ("N", "normal"),
    "shutdown": ("N", "normal"),
    "hibernate": ("N", "normal"),
    "LEAVING": ("L", "leaving"),
    "removing": ("L", "leaving"),
    "BOOT": ("J", "joining"),
    "BOOT_REPLACE": ("J", "joining"),
    "MOVING": ("M", "moving"),
}
#: Said by endpoints that have stopped, whatever was last heard of them.
_STOPPED: Final = frozenset({"shutdown", "hibernate", "removing"})
#: No longer members, only remembered for a while.
_GONE: Final = frozenset({"LEFT", "removed"})
_LIVENESS: Final = {1: ("U", "up"), 2: ("D", "down"), 4: ("?", "suspect")}


@dataclass(frozen=True, slots=True)
class Member:
    """One endpoint of a cluster view in nodetool's terms."""

    view: EndpointView
    values: Mapping[str, str]

    @classmethod
    def of(cls, view: EndpointView) -> Member:
        """The member that ``view`` describes."""
        return cls(view, {state.key: state.value for state in view.states})

    @property
    def endpoint(self) -> str:
        """``host:port``, canonical."""
        return self.view.endpoint

    @property
    def status(self) -> str:
        """First piece of STATUS; "" while it is not known."""
        return self.values.get("STATUS", "").partition(",")[0]

    @property
    def liveness(self) -> tuple[str, str]:
        """Letter and word: up, down, or unknown (heard of, not confirmed)."""
        if self.status in _STOPPED:
            return "D", "down"
        return _LIVENESS.get(self.view.liveness, ("?", "unknown"))

    @property
    def state(self) -> tuple[str, str]:
        """Letter and word: normal, leaving, joining, moving; unknown while no STATUS has come."""
        return _STATE_LETTERS.get(self.status, ("?", "unknown"))

    @property
    def alive(self) -> bool:
        """Whether the answering node holds it to be alive."""
        return self.liveness[0] == "U"

    @property
    def load_bytes(self) -> float | None:
        """LOAD as a number; None if it is missing or no number."""
        try:
            load = float(self.values["LOAD"])
        except (KeyError, ValueError):
            return None
        return load if 0 <= load < float("inf") else None

    @property
    def tokens(self) -> list[str]:
        """TOKENS, which are separated by commas."""
        return [token for token in self.values.get("TOKENS", "").split(",") if token]

    @property
    def datacenter(self) -> str:
        """DC; Cassandra's word for a node that has not said."""
        return self.values.get("DC", "UNKNOWN_DC")

    @property
    def rack(self) -> str:
        """RACK; Cassandra's word for a node that has not said."""
        return self.values.get("RACK", "UNKNOWN_RACK")

    @property
    def host_id(self) -> str | None:
        """HOST_ID."""
        return self.values.get("HOST_ID")

    @property
    def serving(self) -> bool:
        """Whether it says that it can serve; one that says nothing can."""
        return self.values.get("HEALTH", "serving").partition(",")[0] == "serving"

    @property
    def health_reason(self) -> str | None:
        """Why it cannot serve; None if it can, or does not say."""
        return None if self.serving else self.values["HEALTH"].partition(",")[2] or None


def members_of(view: GetClusterViewResponse) -> list[Member]:
    """The endpoints that belong to the cluster, by address; those that have left are not among them."""
    members = [Member.of(endpoint) for endpoint in view.endpoints]
    return sorted(
        (member for member in members if member.status not in _GONE), key=lambda member: address_order(member.endpoint)
    )


def owned_shares(replica: DescribeReplicaResponse | None, members: Sequence[Member]) -> dict[str, float] | None:
    """The share of all rows that each endpoint holds, 0 to 1; None if the node that answered holds no replica.

    Endpoints with tokens hold rows; those without (a bare gossiper that has joined) hold none.
    """
    if replica is None or replica.replication_factor == 0:
        return None
    holders = {member.endpoint for member in members if member.tokens} or {member.endpoint for member in members}
    share = min(1.0, replica.replication_factor / max(1, len(holders)))
    return {member.endpoint: share if member.endpoint in holders else 0.0 for member in members}


@dataclass(frozen=True, slots=True)
class StatusView:
    """All that ``status`` shows, in the order of its lines."""

    cluster_name: str
    local_endpoint: str
    members: Sequence[Member]
    owns: Mapping[str, float] | None
    """Share of all rows by endpoint; None if it is not known, for ``owns_unknown_reason``."""
    owns_unknown_reason: str

    @property
    def alive_count(self) -> int:
        """Members that the answering node holds to be alive, itself included."""
        return sum(member.alive for member in self.members)


_SortKey = Callable[[Member, AddressBook, Mapping[str, float]], Any]
#: Key and whether its own order is descending (CASSANDRA-20104).
_SORT_KEYS: Final[dict[str, tuple[_SortKey, bool]]] = {
    "ip": (lambda member, _book, _owns: address_order(member.endpoint), False),
    "host": (lambda member, book, _owns: book.plain(member.endpoint), False),
    "load": (lambda member, _book, _owns: -1.0 if member.load_bytes is None else member.load_bytes, True),
    "tokens": (lambda member, _book, _owns: len(member.tokens), True),
    "owns": (lambda member, _book, owns: owns.get(member.endpoint, 0.0), True),
    "id": (lambda member, _book, _owns: member.host_id or "", False),
    "rack": (lambda member, _book, _owns: member.rack, False),
    "state": (lambda member, _book, _owns: member.liveness[0] + member.state[0], True),
}


def sorted_view(view: StatusView, book: AddressBook, key: str, order: str | None) -> StatusView:
    """``view`` with its members by ``key``; equal ones keep the order of their addresses."""
    by, descends = _SORT_KEYS[key]
    owns = view.owns or {}
    members = sorted(
        view.members,
        key=lambda member: by(member, book, owns),
        reverse=descends if order is None else order == "desc",
    )
    return replace(view, members=members)


def status_text(view: StatusView, book: AddressBook, *, colour: bool = False, width: int | None = None) -> str:
    """Cassandra's ``nodetool status``: a block per data centre, its columns as wide as the widest of all of them.

    A terminal of ``width`` columns that is too narrow for it gets a narrower table; addresses are never cut.
    """
    title = "Owns" if view.owns is None else "Owns (effective)"
    rows = [("--", "Address", "Load", "Tokens", title, "Host ID", "Rack")]
    rows += [
        (
            member.liveness[0] + member.state[0],
            book.plain(member.endpoint),
            byte_size(member.load_bytes),
            str(len(member.tokens)) if "TOKENS" in member.values else "?",
            "?" if view.owns is None else f"{view.owns[member.endpoint]:.1%}",
            printable(member.host_id or "?"),
            printable(member.rack),
        )
        for member in view.members
    ]
    host_ids = rows[0].index("Host ID")
    header, *lines = narrow_table(rows, width, short_titles={"Owns (effective)": "Owns"}, shortened=host_ids)
    blocks = []
    for datacenter in sorted({member.datacenter for member in view.members}):
        block = [f"Datacenter: {printable(datacenter)}"]
        block += ["=" * len(block[0]), "Status=Up/Down", "|/ State=Normal/Leaving/Joining/Moving", header]
        for member, line in zip(view.members, lines, strict=True):
            if member.datacenter == datacenter:
                block.append(_coloured(line, member) if colour else line)
        blocks.append("\n".join(block) + "\n")
    return "\n".join(blocks) + "".join(f"\nNote: {note}" for note in _notes(view, book))


def _notes(view: StatusView, book: AddressBook) -> list[str]:
    """What the two letters do not tell: who is up and cannot serve, and what is not known."""
    notes = [
        f"{book.plain(member.endpoint)} is up and does not serve: {printable(member.health_reason or '(no reason)')}"
        for member in view.members
        if member.alive and not member.serving
    ]
    return notes + ([f"ownership is not known: {view.owns_unknown_reason}"] if view.owns is None else [])


def _coloured(line: str, member: Member) -> str:
    colour = {"U": "green", "D": "red"}.get(member.liveness[0], "yellow")
    return click.style(line[:2], fg=colour, bold=True) + line[2:]


def status_json(view: StatusView) -> str:
    """The same for programs."""
    nodes = [
        {
            "endpoint": member.endpoint,
            "datacenter": member.datacenter,
            "rack": member.rack,
            "liveness": member.liveness[1],
            "state": member.state[1],
            "status": member.liveness[0] + member.state[0],
            "load_bytes": member.load_bytes if member.load_bytes is None else int(member.load_bytes),
            "token_count": len(member.tokens) if "TOKENS" in member.values else None,
            "owns_ratio": None if view.owns is None else view.owns[member.endpoint],
            "host_id": member.host_id,
            "generation": member.view.generation,
            "evidence_age_seconds": age_seconds(member.view.evidence_age_seconds),
            "serving": member.serving,
            "health_reason": member.health_reason,
        }
        for member in view.members
    ]
    return json_text(
        {
            "time": rfc3339(datetime.now(tz=UTC)),
            "cluster_name": view.cluster_name,
            "local_endpoint": view.local_endpoint,
            "alive_count": view.alive_count,
            "nodes": nodes,
        }
    )


def _ask_status(options: Options) -> StatusView:
    with connect(options) as node:
        view = node.cluster_view()
        replica, reason = node.replica_if_any()
    members = members_of(view)
    return StatusView(view.cluster_name, view.local_endpoint, members, owned_shares(replica, members), reason)


def _wait_alive(options: Options, alive_count: int, wait_seconds: float) -> tuple[StatusView | None, str]:
    """Look until so many are alive. Returns the last view and, if the time ran out, what was wrong ("" otherwise)."""
    deadline = time.monotonic() + wait_seconds
    while True:
        view = None
        try:
            view = _ask_status(options)
            problem = f"{view.alive_count} of {alive_count} nodes are alive"
            if view.alive_count >= alive_count:
                return view, ""
        except UnreachableError as error:
            problem = error.message.rstrip(".")
        if time.monotonic() >= deadline:
            return view, problem
        time.sleep(WAIT_POLL_SECONDS)


@click.command(
    epilog=examples(
        "nodetool status",
        "nodetool status --sort load --order desc",
        "nodetool status --wait-alive 3 --wait-seconds 60",
        "nodetool status --output json | jq '.nodes[] | select(.liveness != \"up\")'",
    )
)
@click.option("-r", "--resolve-ip", is_flag=True, help="Show names instead of addresses.")
@click.option("-s", "--sort", "sort_key", type=click.Choice(list(_SORT_KEYS)), default="ip", show_default=True)
@click.option(
    "-o",
    "--order",
    type=click.Choice(["asc", "desc"]),
    help="Default: asc for ip, host, id and rack; desc for the others.",
)
@click.option(
    "--wait-alive",
    type=click.IntRange(min=1),
    metavar="N",
    help="Wait until N nodes are alive; exit 1 if they are not.",
)
@click.option(
    "--wait-seconds",
    type=click.FloatRange(min=0, max=86_400),
    metavar="SECONDS",
    help=f"How long --wait-alive waits.  [default: {WAIT_SECONDS_DEFAULT:g}]",
)
@node_options
@pass_options
def status(
    options: Options,
    *,
    resolve_ip: bool,
    sort_key: str,
    order: str | None,
    wait_alive: int | None,
    wait_seconds: float | None,
) -> None:
    """Show every node: up or down, load, tokens, ownership, host id, rack.

    The first letter is U for up, D for down, ? for not confirmed; the second N for normal, L for leaving, J for
    joining, M for moving, ? while the node has not said. It is what the answering node believes; others may differ.
    A note below names nodes that are up and say that they cannot serve.
    """
    if wait_seconds is not None and wait_alive is None:
        raise click.UsageError("--wait-seconds needs --wait-alive", click.get_current_context())
    problem = ""
    if wait_alive is None:
        view: StatusView | None = _ask_status(options)
    else:
        seconds = WAIT_SECONDS_DEFAULT if wait_seconds is None else wait_seconds
        view, problem = _wait_alive(options, wait_alive, seconds)
        problem = f"after {seconds:g} s: {problem}" if problem else ""
    if view is not None:
        book = AddressBook(
            [member.endpoint for member in view.members],
            print_port=options.print_port,
            resolve=resolved_name if resolve_ip else None,
        )
        ordered = sorted_view(view, book, sort_key, order)
        if options.json:
            click.echo(status_json(ordered))
        else:
            colour, width = colour_wanted(sys.stdout), width_wanted(sys.stdout)
            click.echo(status_text(ordered, book, colour=colour, width=width))
    if problem:
        raise NodetoolError(problem)


def gossipinfo_text(view: GetClusterViewResponse, book: AddressBook) -> str:
    """Cassandra's ``nodetool gossipinfo``: an address, then its states, two columns in."""
    lines = []
    for endpoint in sorted(view.endpoints, key=lambda endpoint: address_order(endpoint.endpoint)):
        lines += [
            book.java(endpoint.endpoint),
            f"  generation:{endpoint.generation}",
            f"  heartbeat:{endpoint.heartbeat}",
        ]
        tokens = "not present"
        for state in sorted(endpoint.states, key=lambda state: _state_rank(state.key)):
            if state.key == "TOKENS":
                tokens = f"{state.version}:<hidden>"
            else:
                lines.append(f"  {printable(state.key)}:{state.version}:{printable(state.value)}")
        lines.append(f"  TOKENS:{tokens}" if tokens.endswith(">") else f"  TOKENS: {tokens}")
    return "\n".join(lines) + "\n"


def _state_rank(key: str) -> tuple[int, str]:
    return (_STATE_ORDER.index(key) if key in _STATE_ORDER else len(_STATE_ORDER), key)


def gossipinfo_json(view: GetClusterViewResponse) -> str:
    """The same for programs; nothing is hidden, TOKENS included."""
    endpoints = [
        {
            "endpoint": endpoint.endpoint,
            "generation": endpoint.generation,
            "generation_time": generation_time(endpoint.generation),
            "heartbeat": endpoint.heartbeat,
            "interval_seconds": endpoint.interval_ms / 1000,
            "states_version": endpoint.states_version,
            "liveness": _LIVENESS.get(endpoint.liveness, ("?", "unknown"))[1],
            "evidence_age_seconds": age_seconds(endpoint.evidence_age_seconds),
            "states": [
                {"key": state.key, "version": state.version, "value": state.value}
                for state in sorted(endpoint.states, key=lambda state: _state_rank(state.key))
            ],
        }
        for endpoint in sorted(view.endpoints, key=lambda endpoint: address_order(endpoint.endpoint))
    ]
    return json_text(
        {
            "time": rfc3339(datetime.now(tz=UTC)),
            "cluster_name": view.cluster_name,
            "local_endpoint": view.local_endpoint,
            "endpoints": endpoints,
        }
    )


@click.command(
    epilog=examples(
        "nodetool gossipinfo",
        "nodetool gossipinfo -pp",
        "nodetool gossipinfo --output json | jq '.endpoints[] | {endpoint, generation}'",
    )
)
@click.option("-r", "--resolve-ip", is_flag=True, help="Show names instead of addresses.")
@node_options
@pass_options
def gossipinfo(options: Options, resolve_ip: bool) -> None:
    """Show what has been gossiped: generation, heartbeat and application states of every endpoint.

    A state is shown as KEY:version:value. Endpoints that have left are shown until they are forgotten.
    """
    with connect(options) as node:
        view = node.cluster_view()
    if options.json:
        click.echo(gossipinfo_json(view))
        return
    book = AddressBook(
        [endpoint.endpoint for endpoint in view.endpoints],
        print_port=options.print_port,
        resolve=resolved_name if resolve_ip else None,
    )
    click.echo(gossipinfo_text(view, book))


@dataclass(frozen=True, slots=True)
class ClusterSummary:
    """What ``describecluster`` counts."""

    name: str
    schema_versions: dict[str, list[str]]
    counts: dict[str, int]
    datacenters: dict[str, tuple[int, int]]
    """Nodes and, of them, down ones."""
    release_versions: dict[str, list[str]]
    replica: DescribeReplicaResponse | None

    @classmethod
    def of(cls, view: GetClusterViewResponse, replica: DescribeReplicaResponse | None) -> ClusterSummary:
        """Count the members of ``view``."""
        members = members_of(view)
        schemas: dict[str, list[str]] = {}
        releases: dict[str, list[str]] = {}
        datacenters: dict[str, tuple[int, int]] = {}
        for member in members:
            schema = member.values.get("SCHEMA", "UNKNOWN") if member.alive else "UNREACHABLE"
            schemas.setdefault(schema, []).append(member.endpoint)
            releases.setdefault(member.values.get("RELEASE_VERSION", "UNKNOWN"), []).append(member.endpoint)
            nodes, down = datacenters.get(member.datacenter, (0, 0))
            datacenters[member.datacenter] = (nodes + 1, down + (not member.alive))
        states = [member.state[1] for member in members]
        counts = {
            "live": sum(member.alive for member in members),
            "joining": states.count("joining"),
            "moving": states.count("moving"),
            "leaving": states.count("leaving"),
            "unreachable": sum(not member.alive for member in members),
        }
        by_name = dict(sorted(schemas.items(), key=lambda item: (item[0] == "UNREACHABLE", item[0])))
        return cls(
            view.cluster_name,
            by_name,
            counts,
            dict(sorted(datacenters.items())),
            dict(sorted(releases.items())),
            replica,
        )


def describecluster_text(summary: ClusterSummary, book: AddressBook) -> str:
    """Cassandra's ``nodetool describecluster`` without what exists only there (snitch, partitioner class)."""
    lines = ["Cluster Information:", f"\tName: {printable(summary.name)}", "\tSchema versions:"]
    for version, endpoints in summary.schema_versions.items():
        lines += [f"\t\t{printable(version)}: [{', '.join(map(book.plain, endpoints))}]", ""]
    lines.append("Stats for all nodes:")
    lines += [f"\t{name.capitalize()}: {count}" for name, count in summary.counts.items()]
    lines += ["", "Data Centers: "]
    for name, (nodes, down) in summary.datacenters.items():
        lines.append(f"\t{printable(name)} #Nodes: {nodes} #Down: {down}")
    lines += ["", "Database versions:"]
    for version, endpoints in summary.release_versions.items():
        lines += [f"\t{printable(version)}: [{', '.join(map(printable, endpoints))}]", ""]
    replica = summary.replica
    if replica is not None:
        lines.append("Keyspaces:")
        lines.append(f"\t{printable(replica.keyspace)} -> Replication factor: {replica.replication_factor}")
    return "\n".join(lines).rstrip("\n")


def describecluster_json(summary: ClusterSummary) -> str:
    """The same for programs."""
    replica = summary.replica
    keyspaces = (
        []
        if replica is None
        else [
            {
                "keyspace": replica.keyspace,
                "replication_factor": replica.replication_factor,
                "replicas": list(replica.replicas),
            }
        ]
    )
    return json_text(
        {
            "time": rfc3339(datetime.now(tz=UTC)),
            "cluster_name": summary.name,
            "schema_versions": [
                {"schema": version, "endpoints": endpoints} for version, endpoints in summary.schema_versions.items()
            ],
            "node_counts": summary.counts,
            "datacenters": [
                {"name": name, "node_count": nodes, "down_count": down}
                for name, (nodes, down) in summary.datacenters.items()
            ],
            "release_versions": [
                {"release_version": version, "endpoints": endpoints}
                for version, endpoints in summary.release_versions.items()
            ],
            "keyspaces": keyspaces,
        }
    )


@click.command(
    epilog=examples(
        "nodetool describecluster", "nodetool describecluster --output json | jq '.schema_versions | length'"
    )
)
@node_options
@pass_options
def describecluster(options: Options) -> None:
    """Show the cluster's name, schema versions, node counts, data centres, versions and keyspaces.

    More than one schema version besides UNREACHABLE means that the nodes do not agree.
    """
    with connect(options) as node:
        view = node.cluster_view()
        replica, _reason = node.replica_if_any()
    summary = ClusterSummary.of(view, replica)
    if options.json:
        click.echo(describecluster_json(summary))
        return
    book = AddressBook([endpoint.endpoint for endpoint in view.endpoints], print_port=options.print_port)
    click.echo(describecluster_text(summary, book))
