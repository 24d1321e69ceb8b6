"""``gossiper scenario``: run scenario files, in virtual time or on real processes; write what they are to expect."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import click

#: For a scenario whose file has no expected transcript yet.
_EPILOG = """\b
Exit status:
  0    every scenario went as its file says (or was rewritten)
  1    one did not, or a file has faults

\b
Examples:
  gossiper scenario run tests/scenarios/*.txt
  gossiper scenario run --on processes tests/scenarios/pause.txt
  gossiper scenario run --rewrite mine.txt
"""
_FILES = click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE..."
)


@click.group()
def scenario() -> None:
    """Run scenario files: what is done to a small cluster, and what its members must see."""


@scenario.command(epilog=_EPILOG)
@_FILES
@click.option(
    "--on",
    "world",
    type=click.Choice(["simulator", "processes"]),
    default="simulator",
    show_default=True,
    help="Gossipers of this process in virtual time, or one process each on loopback in real time.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Runs on the simulator, each.")
@click.option("--rewrite", is_flag=True, help="Write the transcript of this run into the files as what is expected.")
def run(*, files: tuple[Path, ...], world: str, seeds: int, rewrite: bool) -> int:
    """Run each FILE to its end and compare the transcript with the expected one."""
    # Nodes that are refused or removed say so; here that is what the scenario wants.
    logging.basicConfig(level=logging.CRITICAL)
    failed = 0
    for path in files:
        for seed in range(seeds if world == "simulator" else 1):
            failed += not _run_one(path, world, seed, rewrite=rewrite)
    if failed:
        click.echo(f"gossiper: {failed} of {len(files) * (seeds if world == 'simulator' else 1)} runs failed", err=True)
    return 1 if failed else 0


def _run_one(path: Path, world: str, seed: int, *, rewrite: bool) -> bool:
    """Run one file once and print a line; whether it went as expected."""
    from gossiper import scenario as scenarios  # noqa: PLC0415 - gRPC takes longer to import than `--help` may take

    begun = time.monotonic()
    try:
        one = scenarios.load(path, complete=not rewrite)
        outcome = scenarios.run_in_memory(one, seed=seed) if world == "simulator" else scenarios.run_on_processes(one)
    except scenarios.ScenarioError as error:
        click.echo(f"FAILED {path} (seed {seed})\n{error}")
        return False
    if rewrite and not outcome.as_expected:
        path.write_text(one.rewritten(outcome.transcript), encoding="utf-8")
        click.echo(f"rewritten {path}")
        return True
    if not outcome.as_expected:
        click.echo(f"FAILED {path} (seed {seed})\n{outcome.difference()}")
        return False
    click.echo(f"ok {path} ({time.monotonic() - begun:.1f} s)")
    return True


@scenario.command()
def commands() -> None:
    """List what a line of a scenario may say."""
    from gossiper.scenario.language import usages  # noqa: PLC0415 - as above

    for usage in usages():
        click.echo(usage)
