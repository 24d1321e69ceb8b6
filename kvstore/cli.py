"""The command ``kvstore``. Nothing heavy is imported before a command needs it."""

# ruff: noqa: PLC0415 - gRPC alone takes longer to import than ``--help`` should take

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from kvstore.demo.command import demo

if TYPE_CHECKING:
    from kvstore.client import KeyValue, KeyValueClient
    from kvstore.replication import Consistency

_F = TypeVar("_F", bound=Callable[..., Any])

EXIT_FAILED: Final = 1
EXIT_UNREACHABLE: Final = 5
EXIT_INTERRUPTED: Final = 130


class _Command(click.Command):
    """A command whose epilog keeps its lines: examples."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - of click
        """Write the epilog as it is."""
        if self.epilog:
            formatter.write("\n" + self.epilog.rstrip() + "\n")


class _Group(click.Group):
    """A group that turns interruption and broken pipes into exit statuses, without a traceback."""

    command_class = _Command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run; ``standalone_mode=False`` hands every exception to the caller."""
        if not kwargs.get("standalone_mode", True):
            return super().main(*args, **kwargs)
        try:
            result = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            sys.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            # Whoever read the output has seen enough; nothing more may be written to it at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_FAILED)
        sys.exit(result if isinstance(result, int) else 0)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - of click
        """Write the epilog as it is."""
        if self.epilog:
            formatter.write("\n" + self.epilog.replace("\b\n", "").rstrip() + "\n")


def fail(message: str, status: int = EXIT_FAILED) -> NoReturn:
    """End with one line on stderr."""
    click.echo(f"kvstore: {message}", err=True)
    sys.exit(status)


@contextmanager
def errors_to_status() -> Iterator[None]:
    """Errors of the store become one line and an exit status."""
    from kvstore.errors import KvStoreError, UnreachableError

    try:
        yield
    except UnreachableError as error:
        fail(str(error), EXIT_UNREACHABLE)
    except KvStoreError as error:
        fail(str(error))


def _check_node(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    from gossiper.core.endpoints import canonical_endpoint

    try:
        return canonical_endpoint(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


node_option = click.option(
    "--node",
    metavar="HOST:PORT",
    default="127.0.0.1:9042",
    show_default=True,
    envvar="KVSTORE_NODE",
    show_envvar=True,
    callback=_check_node,
    help="Client address of any node; it coordinates the request.",
)
timeout_option = click.option(
    "--timeout",
    "timeout_seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Deadline of each call.",
)
output_option = click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="JSON has one object per line.",
)
consistency_option = click.option(
    "--consistency",
    type=click.Choice(["local", "quorum"]),
    default="quorum",
    show_default=True,
    help="Read only this node's replica, or a majority of which the newest wins.",
)


@contextmanager
def connected(node: str, timeout_seconds: float) -> Iterator[KeyValueClient]:
    """A client for one command."""
    from kvstore.client import KeyValueClient

    with errors_to_status(), KeyValueClient(node, timeout_seconds=timeout_seconds) as client:
        yield client


def _consistency(name: str) -> Consistency:
    from kvstore.replication import Consistency

    return Consistency(name)


def print_json(value: dict[str, Any]) -> None:
    """One object on one line of stdout."""
    import json

    click.echo(json.dumps(value, ensure_ascii=False))


def row_json(row: KeyValue) -> dict[str, Any]:
    """A row for ``--output json``: ``key`` and ``value`` as text, or in Base64 where they are not UTF-8."""
    from kvstore.transfer import encoded

    fields: dict[str, Any] = {**encoded("key", row.key)}
    if not row.deleted:
        fields |= encoded("value", row.value)
    return {**fields, "version": row.version, "deleted": row.deleted}


log_level_option = click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="How much goes to stderr.",
)


def _setting(name: str, metavar: str, text: str, kind: type[int] | type[float] | type[str] = str) -> Callable[[_F], _F]:
    """An option that, when it is given, wins over the setting of the same name in the file."""
    return click.option(name, metavar=metavar, type=kind, default=None, help=text)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\
Examples:
  kvstore cluster --nodes 3 --data ./cluster        a local cluster, until Ctrl-C
  kvstore put city Paris && kvstore get city
  kvstore load people.csv --key-column id
  kvstore dump --file backup.jsonl
  nodetool status                                   what the nodes think of each other

Exit status: 0 ok; 1 failed (also: no such key); 2 usage; 5 cannot reach the node; 130 interrupted.""",
)
@click.version_option(package_name="gossiper", prog_name="kvstore")
def main() -> None:
    """A small replicated key-value store."""


@main.command(
    epilog="""\
The TOML file has the same names with underscores:
  cluster_name = "orders"
  data_dir = "/var/lib/kvstore"
  listen_peers = "10.0.0.1:7000"
  seeds = ["10.0.0.1:7000", "10.0.0.2:7000"]

Examples:
  kvstore serve --data-dir ./data --replication-factor 1        a node on its own
  kvstore serve --config node.toml --listen-clients 127.0.0.1:9043

Exit status: 0 stopped by SIGTERM or Ctrl-C; 1 cannot start, or was removed from the cluster; 2 usage or
configuration.""",
)
@click.option("--config", "config_path", metavar="FILE.toml", type=click.Path(path_type=Path), help="Settings file.")
@_setting("--data-dir", "DIR", "Rows, generation and host id; made if missing. Required, here or in the file.")
@_setting("--cluster-name", "NAME", "Nodes of another cluster are refused.  [default: kvstore]")
@_setting("--listen-peers", "HOST:PORT", "For other nodes; port 0 takes a free one.  [default: 127.0.0.1:7000]")
@_setting("--listen-clients", "HOST:PORT", "For applications.  [default: 127.0.0.1:9042]")
@_setting("--listen-admin", "HOST:PORT", "For nodetool; keep it on loopback.  [default: 127.0.0.1:7199]")
@_setting("--advertise", "HOST:PORT", "What other nodes use, if not --listen-peers.")
@_setting("--advertise-clients", "HOST:PORT", "What applications use, if not --listen-clients.")
@click.option(
    "--seeds",
    metavar="HOST:PORT,...",
    multiple=True,
    help="Peer addresses asked first, or where they are: file:PATH, dns:NAME:PORT, srv:NAME; with commas or repeated. "
    "None: this node begins a cluster.",
)
@_setting("--datacenter", "NAME", "[default: datacenter1]")
@_setting("--rack", "NAME", "[default: rack1]")
@_setting(
    "--replication-factor",
    "N",
    "Nodes that the cluster is meant to have: a majority of N must acknowledge. 1: a node on its own.  [default: 3]",
    int,
)
@_setting("--write-timeout-seconds", "SECONDS", "For a majority to acknowledge.  [default: 2]", float)
@_setting("--read-timeout-seconds", "SECONDS", "For a majority to answer.  [default: 5]", float)
@_setting("--clock-drift-seconds-max", "SECONDS", "Refuse rows dated further ahead.  [default: 5]", float)
@_setting("--map-bytes-max", "BYTES", "The most room for rows on disk.  [default: 16 GiB]", int)
@_setting("--interval-seconds", "SECONDS", "Gossip interval.  [default: 1]", float)
@_setting("--phi-threshold", "PHI", "Convict a node above it.  [default: 8]", float)
@_setting("--replace", "HOST_ID", "Take the place of this dead node, by host id or address, at the first start.")
@click.option("--rejoin", is_flag=True, default=None, help="Come back although this node has left for good.")
@_setting("--seed-reload-seconds", "SECONDS", "Read seeds from files and DNS again.  [default: 60]", float)
@_setting("--shadow-timeout-seconds", "SECONDS", "Look for the cluster so long.  [default: 30 intervals]", float)
@_setting("--push-fanout", "N", "Nodes told at once of a change of status.  [default: 4]", int)
@_setting("--own-zone-probability", "P", "How often a round stays in the own rack, 0 to 1.  [default: 0]", float)
@_setting("--remote-exchanges-per-second", "N", "Bound per other data centre.  [default: none]", float)
@_setting("--digest-form", "FORM", "compact or plain gossip digests.  [default: compact]")
@_setting("--partners", "N", "Peers from whom a gossip round chooses; 0: all.  [default: 32]", int)
@_setting("--repair-period-seconds", "SECONDS", "Repair every range so often; 0: when asked.  [default: 3600]", float)
@_setting("--scrub-period-seconds", "SECONDS", "Check all rows once in this time; 0: never.  [default: 604800]", float)
@_setting("--repair-window", "HH:MM-HH:MM", "Begin automatic repairs only then, local time.  [default: any time]")
@_setting("--repair-throttle-bytes-per-second", "N", "The most that repairs move; 0: all.  [default: 64 MiB]", float)
@_setting("--repair-throttle-rows-per-second", "N", "The most rows that repairs move; 0: all.  [default: 0]", float)
@_setting("--repair-throttle-cpu-share", "SHARE", "The most of one core, up to 1.  [default: 0.5]", float)
@_setting("--gc-mode", "MODE", "Purge tombstones by repair (safe) or by time.  [default: repair]")
@_setting("--gc-grace-seconds", "SECONDS", "Their age, with --gc-mode time.  [default: 864000]", float)
@_setting("--shutdown-grace-seconds", "SECONDS", "How long a clean stop waits for others.  [default: 2]", float)
@click.option(
    "--ready-file", type=click.Path(path_type=Path), metavar="FILE", help="Written as JSON once the node serves."
)
@log_level_option
@click.option(
    "--stop-on-stdin-eof", is_flag=True, help="Stop when stdin ends: for a parent that must leave nothing behind."
)
def serve(
    *, config_path: Path | None, ready_file: Path | None, log_level: str, stop_on_stdin_eof: bool, **options: Any
) -> None:
    """Run one node in the foreground.

    SIGTERM or Ctrl-C announces the shutdown and leaves cleanly; a second one aborts. Logs go to stderr.
    """
    from gossiper.errors import ConfigError
    from kvstore.config import load_config
    from kvstore.serve import run_node

    given = {key: value for key, value in options.items() if value is not None and value != ()}
    if "data_dir" in given:
        given["data_dir"] = Path(given["data_dir"])
    if "seeds" in given:
        given["seeds"] = [seed.strip() for text in given["seeds"] for seed in text.split(",") if seed.strip()]
    try:
        config = load_config(config_path, given)
    except ConfigError as error:
        for fault in error.faults:
            click.echo(f"kvstore serve: {fault}", err=True)
        sys.exit(2)
    sys.exit(run_node(config, ready_file=ready_file, log_level=log_level, stop_on_stdin_eof=stop_on_stdin_eof))


@main.command(
    epilog="""\
Without --base-port node 1 has the default ports, so that the other commands need no --node:
  node i: peers 6999+i, clients 9041+i, admin 7198+i
With --base-port P, node i: peers P+i-1, clients P+99+i, admin P+199+i. With --base-port 0 all ports are free ones.

Examples:
  kvstore cluster --nodes 3 --data ./cluster
  kvstore cluster --nodes 5 --data /tmp/five --base-port 0""",
)
@click.option("--nodes", type=click.IntRange(1, 20), default=3, show_default=True, metavar="N")
@click.option(
    "--data",
    "data_dir",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="One directory per node is made in it; kept.",
)
@click.option("--base-port", type=click.IntRange(0, 65_000), metavar="P", help="See below.")
@click.option("--cluster-name", default="kvstore", show_default=True, metavar="NAME")
@click.option(
    "--interval-seconds", type=float, default=1.0, show_default=True, metavar="SECONDS", help="Gossip interval."
)
@log_level_option
@output_option
def cluster(
    *,
    nodes: int,
    data_dir: Path,
    base_port: int | None,
    cluster_name: str,
    interval_seconds: float,
    log_level: str,
    output: str,
) -> None:
    """Run a local cluster in the foreground until Ctrl-C.

    Every node is a process of its own. The replication factor is the number of nodes.
    """
    from kvstore.cluster import LocalCluster

    local = LocalCluster(
        nodes=nodes,
        data_dir=data_dir,
        base_port=base_port,
        cluster_name=cluster_name,
        interval_seconds=interval_seconds,
        log_level=log_level,
    )
    with errors_to_status():
        sys.exit(local.run(as_json=output == "json"))


@main.command(
    epilog="""\
Examples:
  kvstore put city Paris
  kvstore put page - < page.html
  kvstore put city Paris --node 127.0.0.1:9043 --output json"""
)
@click.argument("key")
@click.argument("value")
@node_option
@timeout_option
@output_option
def put(*, key: str, value: str, node: str, timeout_seconds: float, output: str) -> None:
    """Write VALUE under KEY; VALUE "-" reads it from stdin.

    When the command ends, a majority of the replicas has it on disk.
    """
    content = sys.stdin.buffer.read() if value == "-" else os.fsencode(value)
    with connected(node, timeout_seconds) as client:
        version = client.put(os.fsencode(key), content)
    if output == "json":
        print_json({"key": key, "version": version})


@main.command(
    epilog="""\
Examples:
  kvstore get city
  kvstore get city --consistency local --node 127.0.0.1:9044     what that node holds
  kvstore get city --output json"""
)
@click.argument("key")
@consistency_option
@node_option
@timeout_option
@output_option
def get(*, key: str, consistency: str, node: str, timeout_seconds: float, output: str) -> None:
    """Print the value of KEY; exit status 1 when there is none."""
    with connected(node, timeout_seconds) as client:
        row = client.get(os.fsencode(key), consistency=_consistency(consistency))
    if row is None:
        fail(f"no such key: {key}")
    if output == "json":
        print_json(row_json(row))
        return
    sys.stdout.buffer.write(row.value + b"\n")
    sys.stdout.buffer.flush()


@main.command(epilog="Example:\n  kvstore delete city")
@click.argument("key")
@node_option
@timeout_option
@output_option
def delete(*, key: str, node: str, timeout_seconds: float, output: str) -> None:
    """Delete KEY. Deleting what is not there is not an error."""
    with connected(node, timeout_seconds) as client:
        version = client.delete(os.fsencode(key))
    if output == "json":
        print_json({"key": key, "version": version})


@main.command(
    epilog="""\
Rows come in the order of their tokens (a hash of the key), which is the same on every node. With --prefix every row is
still looked at.

Examples:
  kvstore scan --limit 10
  kvstore scan --prefix user/ --output json
  kvstore scan --consistency local --node 127.0.0.1:9044 --tombstones --output json"""
)
@click.option("--prefix", default="", metavar="TEXT", help="Only keys that begin with it.")
@click.option("--limit", type=click.IntRange(min=0), default=0, metavar="ROWS", help="0: all.  [default: 0]")
@click.option("--tombstones", is_flag=True, help="Show deleted rows, too.")
@consistency_option
@node_option
@timeout_option
@output_option
def scan(
    *, prefix: str, limit: int, tombstones: bool, consistency: str, node: str, timeout_seconds: float, output: str
) -> None:
    """Print rows: key, a tab, value."""
    from kvstore.transfer import one_line

    with connected(node, timeout_seconds) as client:
        rows = client.scan(
            prefix=os.fsencode(prefix),
            rows_max=limit,
            consistency=_consistency(consistency),
            include_tombstones=tombstones,
        )
        for row in rows:
            if output == "json":
                print_json(row_json(row))
            else:
                click.echo(f"{one_line(row.key)}\t{'(deleted)' if row.deleted else one_line(row.value)}")


@main.command(
    epilog="""\
CSV (by the ending .csv, or --format csv) needs --key-column; the value is a JSON object of the other columns.
JSON lines are what `kvstore dump` writes: {"key": ..., "value": ...}, or key_base64 and value_base64; a value that
is not a text is kept as JSON. With --key-column COLUMN any objects are taken, as in CSV.

Examples:
  kvstore load people.csv --key-column id
  kvstore load backup.jsonl
  zcat events.jsonl.gz | kvstore load - --key-column event_id --batch-rows 200"""
)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--format", "file_format", type=click.Choice(["csv", "jsonl"]), help="Default: by the ending of the name."
)
@click.option("--key-column", metavar="COLUMN", help="The column, or field, that is the key.")
@click.option(
    "--batch-rows", type=click.IntRange(1, 1000), default=500, show_default=True, metavar="ROWS", help="Rows per call."
)
@click.option(
    "--calls", type=click.IntRange(1, 64), default=4, show_default=True, metavar="N", help="Calls under way at once."
)
@node_option
@timeout_option
@output_option
def load(
    *,
    file: Path,
    file_format: str | None,
    key_column: str | None,
    batch_rows: int,
    calls: int,
    node: str,
    timeout_seconds: float,
    output: str,
) -> None:
    """Write all rows of FILE ("-": stdin), with a progress bar on a terminal.

    A faulty line ends the command; the rows before it are kept.
    """
    from kvstore.transfer import InputError, load_file

    with connected(node, timeout_seconds) as client:
        try:
            summary = load_file(
                client, file, file_format=file_format, key_column=key_column, batch_rows=batch_rows, calls=calls
            )
        except InputError as error:
            fail(str(error), 2 if error.usage else EXIT_FAILED)
    if output == "json":
        print_json(summary.as_json())
    else:
        click.echo(str(summary))


@main.command(
    epilog="""\
Examples:
  kvstore dump --file backup.jsonl && kvstore load backup.jsonl --node 127.0.0.1:9142
  kvstore dump --prefix user/ | head"""
)
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Written atomically.  [default: stdout]",
)
@click.option("--prefix", default="", metavar="TEXT", help="Only keys that begin with it.")
@consistency_option
@node_option
@timeout_option
def dump(*, path: Path | None, prefix: str, consistency: str, node: str, timeout_seconds: float) -> None:
    """Write all rows as JSON lines, which `kvstore load` reads back."""
    from kvstore.transfer import InputError, dump_rows

    with connected(node, timeout_seconds) as client:
        rows = client.scan(prefix=os.fsencode(prefix), consistency=_consistency(consistency))
        try:
            dump_rows(rows, path)
        except InputError as error:
            fail(str(error))


@main.command(
    epilog="""\
Example:
  kvstore describe --node 127.0.0.1:9043"""
)
@node_option
@timeout_option
@output_option
def describe(*, node: str, timeout_seconds: float, output: str) -> None:
    """Say what a node knows of itself and of the replicas."""
    from dataclasses import asdict

    with connected(node, timeout_seconds) as client:
        description = client.describe()
    if output == "json":
        print_json(asdict(description))
        return
    click.echo(f"Cluster:            {description.cluster_name}")
    click.echo(f"Endpoint:           {description.endpoint}")
    click.echo(f"Host ID:            {description.host_id}")
    click.echo(f"Generation:         {description.generation}")
    click.echo(f"Replication factor: {description.replication_factor} ({description.replicas_required} must answer)")
    click.echo(f"Rows:               {description.row_count} ({description.tombstone_count} of them deleted)")
    click.echo(f"Stored bytes:       {description.stored_bytes}")
    for replica in description.replicas:
        click.echo(f"Replica:            {replica.endpoint} {'up' if replica.alive else 'DOWN'}")


main.add_command(demo)

if __name__ == "__main__":
    main()
