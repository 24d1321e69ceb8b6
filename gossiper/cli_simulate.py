"""``gossiper simulate``: whole clusters in virtual time, from seeds, with faults; it looks for what must never happen.

Exit statuses: 0 no violation, 1 at least one, 2 wrong usage, 130 interrupted (what was done so far is printed).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from gossiper.simulation.options import DURATION_SECONDS_MAX, NODES_MAX, SimulationOptions
from gossiper.simulation.pairs import PAIRS
from gossiper.simulation.pool import FinishedSeeds, ResumeError, run_all
from gossiper.simulation.report import summary, summary_lines, violation_lines
from gossiper.simulation.run import run_seed

OK, VIOLATED, USAGE, INTERRUPTED = 0, 1, 2, 130
#: Seeds of one command; the results of all are kept in memory, about 3 kB each.
SEEDS_MAX: Final = 1_000_000
#: Violations that are shown whole as text; the JSON has all of them.
_SHOWN_MAX: Final = 3

_EPILOG = """\b
Exit status: 0 no violation, 1 at least one, 2 wrong usage, 130 interrupted.

\b
Examples:
  gossiper simulate --seeds 0-199 --nodes 30 --duration 300
  gossiper simulate --seeds 17 --nodes 30 --duration 300 --trace trace.txt
  gossiper simulate --seeds 0-19999 --resume soak.jsonl --output json
  gossiper simulate pairs --seeds 0-19
"""


def _seeds(ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, ...]:
    """``N`` or ``FIRST-LAST``, comma-separated: a tuple without duplicates, in the order given."""
    seeds: dict[int, None] = {}
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise click.BadParameter(f"{piece.strip()!r} is neither a number nor a range such as 0-199", ctx, param)
        low, high = int(first), int(last or first)
        if low > high or high - low >= SEEDS_MAX:
            fault = f"{piece.strip()!r}: a range ascends and has at most {SEEDS_MAX:,} seeds"
            raise click.BadParameter(fault, ctx, param)
        seeds.update(dict.fromkeys(range(low, high + 1)))
    return tuple(seeds)


class Progress:
    """One line on a terminal's standard error, nothing elsewhere."""

    def __init__(self, total: int, done: int) -> None:
        self._total = total
        self._done = done
        self._violations = 0
        self._began = time.monotonic()
        self._shown = sys.stderr.isatty()
        self._here = 0

    def add(self, result: Mapping[str, Any]) -> None:
        """One more seed is finished."""
        self._done += 1
        self._here += 1
        self._violations += result["violation"] is not None
        if self._shown:
            left_seconds = (time.monotonic() - self._began) / self._here * (self._total - self._done)
            text = f"{self._done}/{self._total} seeds, {self._violations} violations, {left_seconds:.0f} s left"
            click.echo(f"\r\x1b[K{text}", err=True, nl=False)

    def end(self) -> None:
        """Clear the line."""
        if self._shown:
            click.echo("\r\x1b[K", err=True, nl=False)


_COMMON = (
    click.option("--nodes", type=click.IntRange(2, NODES_MAX), default=30, show_default=True, help="Machines."),
    click.option(
        "--duration",
        type=click.FloatRange(1, DURATION_SECONDS_MAX),
        default=300.0,
        show_default=True,
        help="Virtual seconds with faults; those of convergence follow.",
    ),
    click.option("--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, help="Processes; default: all cores."),
    click.option("--resume", type=click.Path(dir_okay=False, path_type=Path), help="Keep finished seeds in this file."),
    click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True),
)


def _common(command: Any) -> Any:
    for option in reversed(_COMMON):
        command = option(command)
    return command


@click.group(invoke_without_command=True, epilog=_EPILOG)
@click.option("--seeds", callback=_seeds, default="0-59", show_default=True, help="N, or FIRST-LAST, or a list.")
@click.option("--pair", type=click.Choice(PAIRS), metavar="OPERATION-FAULT", help="One pair instead of random faults.")
@click.option("--trace", type=click.Path(dir_okay=False, path_type=Path), help="Write the whole trace (of one seed).")
@_common
@click.pass_context
def simulate(
    context: click.Context,
    *,
    seeds: tuple[int, ...],
    pair: str | None,
    trace: Path | None,
    nodes: int,
    duration: float,
    jobs: int,
    resume: Path | None,
    output: str,
) -> None:
    """Simulate whole clusters in virtual time and look for broken invariants.

    Everything follows from a seed: which faults there are and how often, when they come, every latency. The same seed
    and options always give the same run.
    """
    if context.invoked_subcommand is not None:
        return
    todo = [SimulationOptions(seed=seed, nodes=nodes, duration_seconds=duration, pair=pair) for seed in seeds]
    if trace is not None:
        if len(todo) != 1:
            raise click.UsageError("--trace is for one seed; give one with --seeds N")
        with trace.open("w", encoding="utf-8") as file:
            result = run_seed(todo[0], trace_sink=file.write).to_json()
        context.exit(_report([result], output, complete=True))
    context.exit(_run(todo, jobs=jobs, resume=resume, output=output))


@simulate.command(epilog=_EPILOG)
@click.option("--seeds", callback=_seeds, default="0-9", show_default=True, help="For each pair.")
@_common
@click.pass_context
def pairs(
    context: click.Context,
    *,
    seeds: tuple[int, ...],
    nodes: int,
    duration: float,
    jobs: int,
    resume: Path | None,
    output: str,
) -> None:
    """Play every operation while every fault is there: the matrix of pairs, each over all seeds."""
    todo = [
        SimulationOptions(seed=seed, nodes=nodes, duration_seconds=duration, pair=pair)
        for pair in PAIRS
        for seed in seeds
    ]
    context.exit(_run(todo, jobs=jobs, resume=resume, output=output))


def _run(todo: Sequence[SimulationOptions], *, jobs: int, resume: Path | None, output: str) -> int:
    if resume is None:
        results: list[dict[str, Any]] = []
        complete = _run_rest(todo, results, jobs)
        return _report(results, output, complete=complete)
    signature = {"nodes": todo[0].nodes, "duration_seconds": todo[0].duration_seconds}
    try:
        kept = FinishedSeeds(resume, signature)
    except (ResumeError, OSError) as error:
        raise click.UsageError(str(error)) from None
    wanted = {(options.pair, options.seed): options for options in todo}
    results = [result for result in kept.results if (result["pair"], result["seed"]) in wanted]
    for result in results:
        del wanted[result["pair"], result["seed"]]
    with kept.append() as keep:
        complete = _run_rest(list(wanted.values()), results, jobs, keep)
    return _report(results, output, complete=complete)


def _run_rest(todo: Sequence[SimulationOptions], results: list[dict[str, Any]], jobs: int, *keep: Any) -> bool:
    progress = Progress(len(todo) + len(results), len(results))

    def finished(result: dict[str, Any]) -> None:
        for each in keep:
            each(result)
        results.append(result)
        progress.add(result)

    try:
        return run_all(todo, jobs=jobs, finished=finished)
    finally:
        progress.end()


def _report(results: Sequence[Mapping[str, Any]], output: str, *, complete: bool) -> int:
    report = summary(results)
    for finding in report["findings"][:_SHOWN_MAX]:
        click.echo("\n".join(violation_lines(finding)), err=output == "json")
    hidden = report["violations"] - _SHOWN_MAX
    if hidden > 0:
        click.echo(f"and {hidden} more; --output json has them all", err=output == "json")
    click.echo(json.dumps(report, indent=2) if output == "json" else "\n".join(summary_lines(report)))
    if not complete:
        click.echo(f"interrupted after {report['seeds']} seeds", err=True)
        return INTERRUPTED
    return VIOLATED if report["violations"] else OK
