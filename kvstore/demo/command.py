"""The command ``kvstore demo``: its options and its exit status. Nothing heavy is imported before it runs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kvstore.demo.data import ROWS_MIN


@click.command(
    epilog="""\
\b
Examples:
  kvstore demo
  kvstore demo --rows 5000 --interval-seconds 0.1      quickly
  kvstore demo --svg docs/demo.svg                     with a picture of its output

\b
Exit status: 0 all replicas identical; 1 something does not hold; 2 usage; 130 interrupted.
No process and no file is left behind in any case."""
)
@click.option(
    "--interval-seconds",
    type=click.FloatRange(min=0.05, max=2.0),
    default=0.25,
    show_default=True,
    metavar="SECONDS",
    help="Gossip interval; a dead node is noticed after about 18 of them.",
)
@click.option(
    "--rows",
    "rows_max",
    type=click.IntRange(min=ROWS_MIN),
    metavar="N",
    help="Load the first N named characters only.  [default: all of them]",
)
@click.option(
    "--svg",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Write what is shown as a picture, too.",
)
def demo(interval_seconds: float, rows_max: int | None, svg: Path | None) -> None:
    """Show everything on three real nodes, and prove that it worked.

    Starts them on free loopback ports in a temporary directory, loads the Unicode database, kills a node, writes on,
    brings the node back, repairs it, and compares every row of all replicas.
    """
    if svg is not None and not svg.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no directory {svg.absolute().parent}", param_hint="--svg")
    import asyncio  # noqa: PLC0415 - as the next line

    from kvstore.demo.story import tell  # noqa: PLC0415 - brings gRPC and numpy, which --help does not need

    sys.exit(asyncio.run(tell(interval_seconds=interval_seconds, rows_max=rows_max, svg=svg)))
