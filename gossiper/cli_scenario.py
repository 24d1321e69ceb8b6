"""``gossiper scenario``: run scenario files, in virtual time or on real processes; write what they are to expect."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

_INTERRUPTED: Final = 130
_EPILOG = """\b
Exit status:
  0    every scenario went as its file says (or was rewritten)
  1    one did not, or a file has faults
  130  interrupted

\b
Examples:
  gossiper scenario run tests/scenarios/*.txt
  gossiper scenario run --on processes tests/scenarios/pause.txt
  gossiper scenario run --on processes --resume runs.jsonl tests/scenarios/*.txt
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
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs of each; on the simulator each one with another seed.",
)
@click.option("--resume", type=click.Path(dir_okay=False, path_type=Path), help="Keep finished runs in this file.")
@click.option("--rewrite", is_flag=True, help="Write the transcript of this run into the files as what is expected.")
def run(*, files: tuple[Path, ...], world: str, seeds: int, resume: Path | None, rewrite: bool) -> int:
    """Run each FILE to its end and compare the transcript with the expected one.

    With --resume, what has finished is not run again, whether it went well or not, unless the file has changed.
    """
    # Nodes that are refused or removed say so; here that is what the scenario wants.
    logging.basicConfig(level=logging.CRITICAL)
    if rewrite and resume is not None:
        raise click.UsageError("--rewrite and --resume exclude each other")
    todo = [_Run(path, seed, world) for seed in range(seeds) for path in files]
    return _run_all(todo, resume, rewrite=rewrite)


@dataclass(frozen=True, slots=True)
class _Run:
    """One file, once."""

    path: Path
    seed: int
    world: str

    @property
    def key(self) -> str:
        """Tells it from all others; another content of the file is another run."""
        content = hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]
        return f"{self.path.name} {content} {self.world} {self.seed}"


def _run_all(todo: list[_Run], resume: Path | None, *, rewrite: bool) -> int:
    """Run what has not finished yet, and say how all of it went; the exit status."""
    from gossiper.simulation.pool import FinishedSeeds, ResumeError  # noqa: PLC0415 - heavy, as below

    results: dict[str, Mapping[str, Any]] = {}
    with ExitStack() as stack:
        keep: Callable[[dict[str, Any]], None] | None = None
        if resume is not None:
            try:
                kept = FinishedSeeds(resume, {"runs of": "scenarios"})
            except (ResumeError, OSError) as error:
                raise click.UsageError(str(error)) from None
            results = {result["key"]: result for result in kept.results}
            keep = stack.enter_context(kept.append())
        wanted = {one.key: one for one in todo}
        results = {key: result for key, result in results.items() if key in wanted}
        left = [one for key, one in wanted.items() if key not in results]
        if results:
            click.echo(f"{len(results)} of {len(wanted)} runs had finished before")
        try:
            for one in left:
                key, result = one.key, _run_one(one, rewrite=rewrite)
                results[key] = {"key": key, **result}
                click.echo(f"{result['text']} [{len(results)}/{len(wanted)}]")
                if keep is not None:
                    keep({"key": key, **result})
        except KeyboardInterrupt:
            click.echo(f"gossiper: interrupted after {len(results)} of {len(wanted)} runs", err=True)
            return _INTERRUPTED
    return _summary(list(results.values()), shown=len(left))


def _summary(results: list[Mapping[str, Any]], *, shown: int) -> int:
    """What failed, by name; in full where that was in an earlier run of this command. The exit status."""
    failed = [result for result in results if not result["ok"]]
    for result in results[: len(results) - shown]:
        if not result["ok"]:
            click.echo(f"{result['text']} (before)")
    if len(results) > 1:
        minutes = sum(result["seconds"] for result in results) / 60
        click.echo(f"{len(results)} runs, {len(results) - len(failed)} as expected, {minutes:.1f} min")
    if failed:
        names = ", ".join(dict.fromkeys(result["name"] for result in failed))
        click.echo(f"gossiper: {len(failed)} of {len(results)} runs failed: {names}", err=True)
    return 1 if failed else 0


def _run_one(one: _Run, *, rewrite: bool) -> dict[str, Any]:
    """Run one file once: whether it went as expected, and what to say of it."""
    from gossiper import scenario as scenarios  # noqa: PLC0415 - gRPC takes longer to import than `--help` may take

    begun = time.monotonic()
    seed = f" (seed {one.seed})" if one.world == "simulator" else ""
    fault = rewritten = ""
    try:
        it = scenarios.load(one.path, complete=not rewrite)
        on_simulator = one.world == "simulator"
        outcome = scenarios.run_in_memory(it, seed=one.seed) if on_simulator else scenarios.run_on_processes(it)
        if rewrite and not outcome.as_expected:
            one.path.write_text(it.rewritten(outcome.transcript), encoding="utf-8")
            rewritten = f"rewritten {one.path}"
        elif not outcome.as_expected:
            fault = outcome.difference()
    except scenarios.ScenarioError as error:
        fault = str(error)
    seconds = time.monotonic() - begun
    text = f"FAILED {one.path}{seed}\n{fault}\n  " if fault else rewritten or f"ok {one.path}{seed}"
    return {
        "ok": not fault,
        "name": one.path.name,
        "seconds": round(seconds, 3),
        "text": f"{text} ({seconds:.1f} s)",
    }


@scenario.command()
def commands() -> None:
    """List what a line of a scenario may say."""
    from gossiper.scenario.language import usages  # noqa: PLC0415 - as above

    for usage in usages():
        click.echo(usage)
