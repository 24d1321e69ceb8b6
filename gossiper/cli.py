"""The ``gossiper`` command: run a stand-alone member of a cluster, look after its generation file.

Exit statuses: 0 done (a member that was told to stop, too), 1 failed, 2 wrong usage or configuration, 130 or 143
aborted by a second Ctrl-C or SIGTERM. An error is one line on standard error; of a configuration each fault is one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import click

from gossiper.cli_scenario import scenario
from gossiper.cli_simulate import simulate
from gossiper.config import GossipConfig
from gossiper.core.application_states import is_user_key
from gossiper.core.endpoints import canonical_endpoint
from gossiper.errors import ConfigError, GossipError
from gossiper.limits import VALUE_BYTES_MAX
from gossiper.settings import build, nearest, read_toml
from gossiper.storage import NodeStorage, reset

#: Raised when a key of the JSON output is renamed or removed, or changes its meaning; additions leave it.
SCHEMA_VERSION: Final = 1
DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_EPILOG = """\b
Exit status:
  0    done; a member that was told to stop has left cleanly
  1    the operation failed: a port in use, an unusable data directory, refused or removed by the cluster
  2    wrong usage or configuration
  130  aborted by a second Ctrl-C (143: by a second SIGTERM)

\b
Examples:
  gossiper run --cluster-name demo --listen 127.0.0.1:7000
  gossiper generation show --data ./data
  gossiper version
"""
_OPTION_OF_KEY: Final = {
    "cluster_name": "--cluster-name",
    "listen": "--listen",
    "seeds": "--seed",
    "data_dir": "--data",
    "interval_seconds": "--interval",
    "states": "--set",
    "datacenter": "--datacenter",
    "rack": "--rack",
    "replace": "--replace",
    "rejoin": "--rejoin",
    "initial_status": "--initial-status",
    "seed_reload_seconds": "--seed-reload-seconds",
    "shadow_timeout_seconds": "--shadow-timeout-seconds",
    "push_fanout": "--push-fanout",
    "digest_form": "--digest-form",
    "own_zone_probability": "--own-zone-probability",
    "remote_exchanges_per_second": "--remote-exchanges-per-second",
}


class _Group(click.Group):
    """Suggests the nearest command for an unknown one, in one line."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None:
            near = nearest(args[0], self.commands)
            hint = f"; did you mean {near!r}?" if near else "."
            raise click.UsageError(f"{args[0]!r} is not a command of {ctx.command_path}{hint}", ctx)
        return super().resolve_command(ctx, args)


_output = click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, metavar="[text|json]"
)


@click.group(cls=_Group, invoke_without_command=True, epilog=_EPILOG)
@click.pass_context
def gossiper(ctx: click.Context) -> None:
    """Run and look after a stand-alone member of a gossiping cluster. Ask a running one with nodetool."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _pairs(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not is_user_key(key):
            raise click.BadParameter(
                f"{text!r} is not key=value with a key that begins with a lower-case letter", ctx, param
            )
        if len(value.encode()) > VALUE_BYTES_MAX:
            raise click.BadParameter(f"the value of {key} is longer than {VALUE_BYTES_MAX} bytes", ctx, param)
        pairs[key] = value
    return pairs


def _endpoint(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return canonical_endpoint(text)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _config(file: Path | None, given: Mapping[str, Any]) -> GossipConfig:
    """The settings of the file, what was given on the command line in their place, all faults of both at once.

    ``states`` are merged by key instead of being replaced.
    """
    values = {} if file is None else read_toml(file)
    states = values.get("states", {})
    for key, value in given.items():
        if key == "states" and isinstance(states, dict):
            values[key] = {**states, **value}
        else:
            values[key] = value
    origins = {key: _OPTION_OF_KEY[key] for key in given if key != "states" or file is None}
    if file is None:
        origins = _OPTION_OF_KEY
    base_dir = None if file is None else file.parent
    return build(GossipConfig, values, source=str(file or "command line"), origins=origins, base_dir=base_dir)


@gossiper.command(
    epilog="""\b
Examples:
  gossiper run --cluster-name demo --listen 127.0.0.1:7000 --admin 127.0.0.1:7199
  gossiper run --cluster-name demo --listen 127.0.0.1:7001 --seed 127.0.0.1:7000 --set role=db
  gossiper run --config node.toml --output json | jq 'select(.event == "dead")'

\b
node.toml has the names of GossipConfig:
  cluster_name = "demo"
  listen = "10.0.0.1:7000"
  seeds = ["10.0.0.1:7000", "10.0.0.2:7000"]
  data_dir = "/var/lib/gossiper"
  [states]
  role = "db"
"""
)
@click.option("--cluster-name", metavar="NAME", help="Nodes of another cluster are refused.")
@click.option("--listen", metavar="HOST:PORT", help="For other members; port 0 takes a free one.")
@click.option(
    "--seed",
    "seeds",
    multiple=True,
    metavar="HOST:PORT",
    help="A member to ask first, or where they are: file:PATH, dns:NAME:PORT, srv:NAME; may be given again.",
)
@click.option(
    "--data",
    "data_dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keeps generation and host id. Without it a restart relies on the clock alone and is a new host.",
)
@click.option("--admin", metavar="HOST:PORT", callback=_endpoint, help="For nodetool; keep it on loopback.")
@click.option("--interval", "interval_seconds", type=float, metavar="SECONDS", help="Gossip interval.  [default: 1]")
@click.option(
    "--set", "states", multiple=True, metavar="KEY=VALUE", callback=_pairs, help="Publish a value; may be given again."
)
@click.option("--datacenter", metavar="NAME", help="[default: datacenter1]")
@click.option("--rack", metavar="NAME", help="[default: rack1]")
@click.option("--replace", metavar="HOST_ID", help="Take the place of this dead node, by host id or HOST:PORT.")
@click.option("--rejoin", is_flag=True, default=None, help="Come back although this node has left for good.")
@click.option(
    "--initial-status",
    type=click.Choice(["NORMAL", "hibernate"]),
    help="hibernate: only listen, never live for others.  [default: NORMAL]",
)
@click.option("--seed-reload-seconds", type=float, metavar="SECONDS", help="Read seed sources again.  [default: 60]")
@click.option(
    "--shadow-timeout-seconds",
    type=float,
    metavar="SECONDS",
    help="Look for the cluster so long before giving up.  [default: 30 intervals, at least 10]",
)
@click.option("--push-fanout", type=int, metavar="N", help="Members told at once of a change of status.  [default: 4]")
@click.option(
    "--digest-form",
    type=click.Choice(["compact", "plain"]),
    help="plain: name every endpoint in every digest.  [default: compact]",
)
@click.option(
    "--own-zone-probability", type=float, metavar="P", help="How often a round stays in the own rack.  [default: 0]"
)
@click.option(
    "--remote-exchanges-per-second", type=float, metavar="N", help="Bound per other data centre.  [default: none]"
)
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), metavar="FILE.toml", help="Settings; options win."
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    help="Logs go to standard error.",
)
@_output
def run(*, config_file: Path | None, admin: str | None, log_level: str, output: str, **options: Any) -> int:
    """Run a member in the foreground; print one line for every event.

    SIGTERM or Ctrl-C announces the shutdown and leaves cleanly; a second one aborts. A member that the cluster has
    removed, or whose host id another one has, ends with exit status 1 and the reason.
    """
    given = {key: value for key, value in options.items() if value not in (None, (), {})}
    config = _config(config_file, given)
    from gossiper.cli_run import run_member  # noqa: PLC0415 - gRPC takes longer to import than `--help` may take

    return run_member(config, admin=admin, as_json=output == "json", log_level=log_level)


@gossiper.group(cls=_Group)
def generation() -> None:
    """Look at the stored generation of a stopped node, or set a corrupt one aside."""


_data = click.option(
    "--data",
    "data_dir",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Data directory of the node, which must not be running.",
)


@generation.command(epilog="\b\nExamples:\n  gossiper generation show --data ./data")
@_data
@_output
def show(*, data_dir: Path, output: str) -> int:
    """Show generation and host id. Fails if the file is missing or corrupt."""
    with NodeStorage(data_dir) as storage:
        identity = storage.load()
    if identity.generation is None:
        click.echo(f"gossiper: no generation is stored in {data_dir}: no node has run there", err=True)
        return FAILED
    started = _time(identity.generation)
    if output == "json":
        content = {
            "schema_version": SCHEMA_VERSION,
            "generation": identity.generation,
            "generation_time": started,
            "host_id": identity.host_id,
        }
        click.echo(json.dumps(content, indent=2))
    else:
        click.echo(f"generation: {identity.generation}{f' ({started})' if started else ''}")
        click.echo(f"host id:    {identity.host_id}")
    return DONE


def _time(generation_seconds: int) -> str | None:
    """A generation is epoch seconds; None for one that no calendar has."""
    try:
        return datetime.fromtimestamp(generation_seconds, tz=UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return None


@generation.command("reset", epilog="\b\nExamples:\n  gossiper generation reset --data ./data")
@_data
@_output
def reset_command(*, data_dir: Path, output: str) -> int:
    """Set a corrupt generation file aside, so that the node can start again.

    It starts with a generation from the clock and what the cluster remembers, and with a new host id.
    """
    aside = reset(data_dir)
    if output == "json":
        click.echo(json.dumps({"schema_version": SCHEMA_VERSION, "moved_to": None if aside is None else str(aside)}))
    elif aside is None:
        click.echo(f"nothing to reset: no generation is stored in {data_dir}")
    else:
        click.echo(f"moved to {aside}; the next start begins with a new host id")
    return DONE


@gossiper.command()
@_output
def version(*, output: str) -> None:
    """Show the version of the library."""
    try:
        number = metadata.version("gossiper")
    except metadata.PackageNotFoundError:
        number = "unknown"
    if output == "json":
        click.echo(json.dumps({"schema_version": SCHEMA_VERSION, "version": number}))
    else:
        click.echo(f"gossiper {number}")


gossiper.add_command(scenario)
gossiper.add_command(simulate)


def _usage_line(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx is not None else "gossiper"
    message = " ".join(error.format_message().split())
    return f"{message}{'' if message.endswith(('.', '?')) else '.'} See '{command} --help'."


def main(args: Sequence[str] | None = None) -> int:
    """Run gossiper with ``args`` (default: those of the process) and return its exit status."""
    try:
        result = gossiper.main(args=args, prog_name="gossiper", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        click.echo(f"gossiper: {_usage_line(error)}", err=True)
        return USAGE
    except ConfigError as error:
        for fault in error.faults:
            click.echo(f"gossiper: {fault}", err=True)
        return USAGE
    except GossipError as error:
        click.echo(f"gossiper: {error}", err=True)
        return FAILED
    except click.Abort:
        click.echo("gossiper: interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone; Python must not complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return result if isinstance(result, int) else DONE


if __name__ == "__main__":
    sys.exit(main())
