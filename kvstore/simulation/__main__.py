"""The command ``python -m kvstore.simulation``: seeds, one line each, and an exit status."""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Final

import click

from kvstore.simulation.options import DURATION_SECONDS_MAX, NODES_MAX, SimulationOptions
from kvstore.simulation.run import SeedResult, run_seed

_SEEDS: Final = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
#: A mistyped range must not run for years.
_SEEDS_MAX: Final = 1_000_000


class _Seeds(click.ParamType[range]):
    """``A`` or ``A-B``, both included."""

    name = "A-B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> range:
        if isinstance(value, range):
            return value
        found = _SEEDS.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is no seed or range of seeds; write 7 or 1-100", param, ctx)
        first = int(found[1])
        last = int(found[2] or first)
        if not first <= last < first + _SEEDS_MAX:
            self.fail(f"{value}: a range has 1 to {_SEEDS_MAX} seeds, the least one first", param, ctx)
        return range(first, last + 1)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit status: 0 all invariants hold, 1 a seed breaks one, 2 usage.",
)
@click.option("--seeds", type=_Seeds(), default="1-20", show_default=True, help="One seed or a range.")
@click.option("--nodes", type=click.IntRange(2, NODES_MAX), metavar="N", help="Default: each seed draws it, 3 to 5.")
@click.option(
    "--duration",
    "duration_seconds",
    type=click.FloatRange(1, DURATION_SECONDS_MAX),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Virtual time with faults; healing and the last repair follow.",
)
@click.option("--lmdb", is_flag=True, help="Rows in LMDB instead of memory.")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N", help="Processes.")
@click.option("--json", "as_json", is_flag=True, help="One object per seed and line, then one of all.")
def main(*, seeds: range, nodes: int | None, duration_seconds: float, lmdb: bool, jobs: int, as_json: bool) -> None:
    """Gossip, key-value store and repair together under faults, in virtual time, for many seeds.

    Checked: acknowledged writes are not lost, deleted rows do not return, rows are what was written, replicas are
    equal at the end, nothing is left running.
    """
    todo = [SimulationOptions(seed=seed, nodes=nodes, duration_seconds=duration_seconds, lmdb=lmdb) for seed in seeds]
    totals: Counter[str] = Counter()
    broken = 0
    for result in _results(todo, jobs):
        broken += result.violation is not None
        for part in (result.outcomes, result.faults, result.repairs):
            totals.update(part)
        if as_json:
            click.echo(json.dumps(result.to_json()))
        else:
            _print(result)
    summary = {"seeds": len(todo), "violations": broken, "totals": dict(sorted(totals.items()))}
    if as_json:
        click.echo(json.dumps(summary))
    else:
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted(totals.items()))
        click.echo(f"{len(todo)} seeds, {broken} broken: {counts}")
    sys.exit(1 if broken else 0)


def _results(todo: list[SimulationOptions], jobs: int) -> Iterator[SeedResult]:
    if jobs == 1 or len(todo) == 1:
        yield from map(run_seed, todo)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(run_seed, todo)


def _print(result: SeedResult) -> None:
    if result.violation is None:
        click.echo(
            f"seed {result.seed}: ok, {result.nodes} nodes, {result.virtual_seconds:.0f} s, {result.rows} rows, "
            f"{sum(result.faults.values())} faults, trace {result.digest}"
        )
        return
    click.echo(f"seed {result.seed}: {result.violation}")
    for line in result.trace:
        click.echo(f"  {line}")
    click.echo(f"  replay: {result.command}")


if __name__ == "__main__":
    main()
