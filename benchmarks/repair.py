"""What a repair costs: bytes to find the difference, round trips, seconds, CPU, memory, rows moved.

Usage::

    python -m benchmarks.repair --rows 1000000 --differences 0,1,10,100,1000,10000 --json
    python -m benchmarks.repair --rows 1000000 --value-bytes 100 --strategy sketch,descent,rows
    python -m benchmarks.repair --rows 1000000 --replicas 3
    python -m benchmarks.repair --rows 10000000 --differences 0
    python -m benchmarks.repair --rows 1000000 --rtt-ms 5
    python -m benchmarks.repair --upkeep | --cold-build | --write-latency [--rows N] [--json]

Each replica is a process with an LMDB store, its journal on disk and its settings at their defaults; they speak gRPC
through a relay in this process that counts bytes. Both are brought to the same rows, the differences of a case are made
(each half at one side), the first replica repairs, and then all rows of all stores are hashed and compared. Repairs
without differences go before, and a tombstone is purged: connections are warm, and what is known of earlier repairs and
purges travels along, as it does ever after.

The JSON has ``rows``, ``replicas``, ``environment`` and ``results``, a list with, among others, ``differences``,
``kind`` (missing, updated, deleted; none for d = 0), ``value_bytes``, ``strategy`` (what was taken),
``find_payload_bytes`` (all that travelled but keys and values of rows: by the statistics of the library),
``find_payload_bytes_counted`` (the same by taking HTTP/2 apart in the relay), ``find_wire_bytes`` (all bytes both ways,
less keys and values), ``round_trips``, ``seconds``, ``cpu_seconds`` (all replicas), ``peak_memory_bytes`` and
``memory_bytes_before`` (the largest replica; mapped pages of the store are part of it), ``rows_moved``,
``rows_optimal`` (counted when the case was made) and ``bound_bytes``. Exit status 1: replicas differed in the end, or
what the library says of its bytes is not what was counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import lmdb

from benchmarks import repair_local
from benchmarks.digest_exchange import environment
from benchmarks.repair_cluster import Cluster, say
from benchmarks.repair_data import KINDS, Case, stores
from benchmarks.repair_report import as_text

DIFFERENCES: Final = (0, 1, 10, 100, 1000, 10_000)
STRATEGIES: Final = ("auto", "sketch", "descent", "rows")

Json = dict[str, Any]


async def run(options: argparse.Namespace, directory: Path) -> Json:
    """All cases at all sizes of values."""
    results: list[Json] = []
    opened: list[Json] = []
    for value_bytes in options.value_bytes:
        say(f"making {options.rows:,} rows of {value_bytes} bytes")
        paths = stores(
            directory,
            replicas=options.replicas,
            rows=options.rows,
            value_bytes=value_bytes,
            seed=options.seed,
            keep=options.data_dir,
        )
        cluster = await Cluster.start(directory, paths, rtt_seconds=options.rtt_ms / 1000)
        try:
            opened += [{"value_bytes": value_bytes, **one} for one in cluster.joined]
            say(f"the index of {options.rows:,} rows was ready in {cluster.joined[0]['index_seconds']:.2f} s")
            results += await _cases(options, cluster, value_bytes)
        finally:
            await cluster.stop()
    return {
        "rows": options.rows,
        "replicas": options.replicas,
        "rtt_milliseconds": options.rtt_ms,
        "opened": opened,
        "environment": environment() | {"lmdb": ".".join(map(str, lmdb.version()))},
        "results": results,
    }


async def _cases(options: argparse.Namespace, cluster: Cluster, value_bytes: int) -> list[Json]:
    results, before, number = [], 0, 0
    wanted = [
        (strategy, d, kind) for strategy in options.strategy for d in options.differences for kind in _kinds(options, d)
    ]
    await cluster.warm_up()
    for strategy, differences, kind in wanted:
        case = Case(
            number=number,
            kind=kind,
            differences=differences,
            before=before,
            replicas=options.replicas,
            rows=options.rows,
            value_bytes=value_bytes,
            seed=options.seed,
            as_of_ms=int(time.time() * 1000),
        )
        found = await cluster.measure(case, strategy)
        before, number = before + differences, number + 1
        results.append(found)
        say(
            f"{differences:,} {kind} by {found['strategy']}: {found['find_payload_bytes']:,} bytes to find, "
            f"{found['rows_moved']:,} of {found['rows_optimal']:,} rows, {found['seconds']:.3f} s"
        )
    return results


def _kinds(options: argparse.Namespace, differences: int) -> list[str]:
    return options.kinds if differences else ["none"]


def faults(result: Json) -> list[str]:
    """What is wrong with a result, whatever its numbers."""
    found = []
    for one in result["results"]:
        name = f"{one['differences']} {one['kind']}, {one['value_bytes']} bytes, {one['strategy_asked']}"
        if one["state"] != "completed" or not one["equal"]:
            found.append(f"{name}: {one['state']}, replicas {'equal' if one['equal'] else 'differ'}: {one['said']}")
        if one["rows_moved"] != one["rows_optimal"]:
            found.append(f"{name}: {one['rows_moved']} rows moved, {one['rows_optimal']} are the fewest")
        if one["find_payload_bytes"] != one["find_payload_bytes_counted"]:
            counted = one["find_payload_bytes_counted"]
            found.append(f"{name}: {one['find_payload_bytes']} bytes by the library, {counted} by the relay")
    return found


def _numbers(least: int) -> Any:
    def parse(text: str) -> list[int]:
        numbers = [int(part) for part in text.split(",")]
        if min(numbers) < least:
            raise argparse.ArgumentTypeError(f"numbers from {least} on are needed")
        return numbers

    return parse


def _names(known: tuple[str, ...]) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return names

    return parse


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rows", type=int, default=1_000_000)
    made.add_argument("--differences", type=_numbers(0), default=list(DIFFERENCES), metavar="D[,D...]")
    made.add_argument("--kinds", type=_names(KINDS), default=list(KINDS), help=", ".join(KINDS))
    made.add_argument("--value-bytes", type=_numbers(16), default=[100, 1000], metavar="N[,N...]")
    made.add_argument("--strategy", type=_names(STRATEGIES), default=["auto"], help=", ".join(STRATEGIES))
    made.add_argument("--replicas", type=int, choices=(2, 3), default=2)
    made.add_argument("--rtt-ms", type=float, default=0.0, help="the wire's round trip; loopback's own if 0")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--data-dir", type=Path, help="keep the made rows here for later runs")
    made.add_argument("--json", action="store_true")
    made.add_argument("--upkeep", action="store_true", help="tree and sketches on write, in batches and by single puts")
    made.add_argument("--cold-build", action="store_true", help="the index from a store that has none")
    made.add_argument("--write-latency", action="store_true", help="of the store with and without a repair")
    return made


def main() -> int:
    """Entry point."""
    options = parser().parse_args()
    if options.data_dir is not None:
        options.data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-repair-") as directory:
        local = repair_local.chosen(options)
        result = local(options, Path(directory)) if local else asyncio.run(run(options, Path(directory)))
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print(as_text(result))
    wrong = faults(result) if "results" in result else []
    for fault in wrong:
        say(fault)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
