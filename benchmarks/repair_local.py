"""What repair costs a node besides: upkeep of the index on write, building it, and the latency of writes."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import lmdb
import numpy as np

from antientropy.core.index import Index
from antientropy.core.rows import Changes, Row
from antientropy.core.tokens import TokenRange
from antientropy.replica import Replica
from antientropy.stores.lmdb import LmdbRowStore
from benchmarks.digest_exchange import environment
from benchmarks.repair_cluster import Cluster, say
from benchmarks.repair_data import Case, Values, key_of, stores, version_at

BATCH_ROWS: Final = 1000
BATCHES: Final = 30
SINGLE_PUTS: Final = 2000
BUILDS: Final = 3
LATENCY_ROUNDS: Final = 10
LATENCY_DIFFERENCES: Final = 2_000
LATENCY_WRITES_PER_SECOND: Final = 200.0
QUIET_SECONDS: Final = 2.0
#: Each in turn, in every round; in the last the repair is told of the latency, and goes slower when it rises.
_PHASES: Final = ("quiet", "repair", "repair_backing_off")

Json = dict[str, Any]
Local = Callable[[argparse.Namespace, Path], Json]


def chosen(options: argparse.Namespace) -> Local | None:
    """What was asked for instead of repairs."""
    asked = [
        part
        for name, part in (("upkeep", upkeep), ("cold_build", cold_build), ("write_latency", write_latency))
        if getattr(options, name)
    ]
    if not asked:
        return None

    def run(options: argparse.Namespace, directory: Path) -> Json:
        sums: Json = {"rows": options.rows, "environment": environment() | {"lmdb": ".".join(map(str, lmdb.version()))}}
        for number, part in enumerate(asked):
            within = directory / str(number)
            within.mkdir()
            sums |= part(options, within)
        return sums

    return run


# -- upkeep ---------------------------------------------------------------------------------------------------------


def upkeep(options: argparse.Namespace, directory: Path) -> Json:
    """CPU of tree and sketches for each row written: folding alone, and as it is felt by who writes to a store."""
    value_bytes = options.value_bytes[0]
    (path,) = _stores(options, directory, 1, value_bytes)
    with LmdbRowStore(path, durable=False) as store:
        values = Values.of(value_bytes, options.seed)
        with Replica(store) as replica:
            folds = _folds(replica, store, options.rows)
            with_index = {
                "batch": _writes(store, values, options.rows, 1, BATCH_ROWS, BATCHES, replica),
                "single": _writes(store, values, options.rows, 2, 1, SINGLE_PUTS, replica),
            }
        without = {
            "batch": _writes(store, values, options.rows, 3, BATCH_ROWS, BATCHES, None),
            "single": _writes(store, values, options.rows, 4, 1, SINGLE_PUTS, None),
        }
    return {
        "upkeep": {
            "fold_microseconds_per_row": folds,
            "write_microseconds_per_row": {"with_index": with_index, "without": without},
            "upkeep_microseconds_per_row": {name: round(with_index[name] - without[name], 2) for name in without},
        }
    }


def _folds(replica: Replica, store: LmdbRowStore, rows: int) -> Json:
    """The index's own work, on one like it: batches of inserted and of replaced rows, and single ones."""
    reader = store.read()
    try:
        index = Index.empty(replica.tree_depth, replica.epoch)
        for part in reader.digests([TokenRange.full()]):
            index.fold_rows(part)
    finally:
        reader.close()
    rng = np.random.default_rng(rows)

    def random_changes(count: int, *, replaced: bool) -> Changes:
        total = 2 * count if replaced else count
        tokens = rng.integers(0, 2**64, count, dtype=np.uint64)
        signs = np.repeat(np.array([-1, 1], np.int8), count) if replaced else np.ones(count, np.int8)
        return Changes(
            np.concatenate((tokens, tokens)) if replaced else tokens,
            rng.integers(0, 2**62, total, dtype=np.uint64),
            rng.integers(0, 2**63, (total, 2), dtype=np.uint64),
            signs,
        )

    found: Json = {}
    for name, count, repeats in (("batch", BATCH_ROWS, BATCHES), ("single", 1, SINGLE_PUTS // 4)):
        for replaced in (False, True):
            made = [random_changes(count, replaced=replaced) for _ in range(repeats)]
            times = []
            for changes in made:
                begun = time.perf_counter()
                index.fold(changes)
                times.append(time.perf_counter() - begun)
            found[f"{name}_{'replaced' if replaced else 'inserted'}"] = round(1e6 * median(times) / count, 3)
    return found


def _writes(
    store: LmdbRowStore, values: Values, rows: int, salt: int, count: int, repeats: int, replica: Replica | None
) -> float:
    """CPU in microseconds for each replaced row, all threads; with a replica: until its index has them."""
    version = version_at(time.time())
    numbers = np.random.default_rng(salt).integers(0, rows, count * repeats).tolist()
    made = [Row(key_of(number), version + at, values.value(number, salt)) for at, number in enumerate(numbers)]
    if replica is not None:
        replica.root(TokenRange.full())
    begun = time.process_time()
    for at in range(0, len(made), count):
        store.apply(made[at : at + count])
    if replica is not None:
        replica.root(TokenRange.full())
    return round(1e6 * (time.process_time() - begun) / len(made), 2)


# -- building -------------------------------------------------------------------------------------------------------


def cold_build(options: argparse.Namespace, directory: Path) -> Json:
    """From a closed store to an index that is ready: by a scan."""
    found = []
    for value_bytes in options.value_bytes:
        (path,) = _stores(options, directory, 1, value_bytes)
        times, cpu = [], []
        for _ in range(BUILDS):
            begun, used = time.perf_counter(), time.process_time()
            with LmdbRowStore(path) as store, Replica(store) as replica:
                count = replica.root(TokenRange.full()).count
                times.append(time.perf_counter() - begun)
                cpu.append(time.process_time() - used)
                depth = replica.tree_depth
        found.append(
            {
                "value_bytes": value_bytes,
                "rows": count,
                "tree_depth": depth,
                "seconds": round(median(times), 3),
                "seconds_all": [round(one, 3) for one in times],
                "cpu_seconds": round(median(cpu), 3),
                "rows_per_second": round(count / median(times)),
            }
        )
        say(f"index of {count:,} rows of {value_bytes} bytes in {median(times):.2f} s")
    return {"cold_build": found}


# -- latency of writes ----------------------------------------------------------------------------------------------


def write_latency(options: argparse.Namespace, directory: Path) -> Json:
    """Single durable puts at a steady rate, in turns without and with a repair that moves many rows."""
    return {"write_latency": asyncio.run(_write_latency(options, directory))}


async def _write_latency(options: argparse.Namespace, directory: Path) -> Json:
    value_bytes = options.value_bytes[0]
    paths = _stores(options, directory, 2, value_bytes)
    cluster = await Cluster.start(directory, paths, rtt_seconds=options.rtt_ms / 1000)
    samples: list[dict[str, list[float]]] = [{phase: [] for phase in _PHASES} for _ in cluster.replicas]
    seconds: dict[str, list[float]] = {phase: [] for phase in _PHASES}
    moved, differences, number = 0, min(LATENCY_DIFFERENCES, options.rows), 0
    try:
        for turn in range(LATENCY_ROUNDS):
            for phase in _PHASES:
                if phase != "quiet":
                    case = _latency_case(options, value_bytes, number, differences)
                    number += 1
                    for at, one in enumerate(cluster.replicas):
                        await one.do("apply", case=_plain(case), replica=at)
                    await cluster.all("ready")
                write = {"writes_per_second": LATENCY_WRITES_PER_SECOND, "value_bytes": value_bytes}
                await cluster.all("write", **write, tell_latency=phase == "repair_backing_off")
                await asyncio.sleep(QUIET_SECONDS)
                before = await cluster.all("written_so_far")
                if phase == "quiet":
                    await asyncio.sleep(QUIET_SECONDS)
                else:
                    repaired = await cluster.replicas[0].do("repair", strategy="auto")
                    seconds[phase].append(round(repaired["seconds"], 3))
                    moved += repaired["statistics"]["rows_moved"]
                for at, written in enumerate(await cluster.all("written")):
                    samples[at][phase] += written["seconds"][before[at]["writes"] :]
            say(f"round {turn + 1} of {LATENCY_ROUNDS}: repairs took {seconds['repair'][-1]:.2f} s")
    finally:
        await cluster.stop()
    return {
        "value_bytes": value_bytes,
        "writes_per_second": LATENCY_WRITES_PER_SECOND,
        "differences": differences,
        "rows_moved": moved,
        "repair_seconds": {phase: found for phase, found in seconds.items() if found},
        "replicas": [{phase: _quantiles(found) for phase, found in one.items()} | _ratio(one) for one in samples],
    }


def _latency_case(options: argparse.Namespace, value_bytes: int, number: int, differences: int) -> Case:
    return Case(
        number=number,
        kind="updated",
        differences=differences,
        before=number * differences,
        replicas=2,
        rows=options.rows,
        value_bytes=value_bytes,
        seed=options.seed,
        as_of_ms=int(time.time() * 1000),
    )


def _plain(case: Case) -> Json:
    return {name: getattr(case, name) for name in case.__slots__}


def _quantiles(seconds: list[float]) -> Json:
    p50, p90, p99 = (round(1000 * float(one), 3) for one in np.quantile(seconds, (0.5, 0.9, 0.99)))
    return {
        "writes": len(seconds),
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "max_ms": round(1000 * max(seconds), 3),
    }


def _ratio(found: dict[str, list[float]]) -> Json:
    quiet, repair, backing_off = (float(np.quantile(found[phase], 0.99)) for phase in _PHASES)
    return {"p99_ratio": round(repair / quiet, 3), "p99_ratio_backing_off": round(backing_off / quiet, 3)}


def _stores(options: argparse.Namespace, directory: Path, count: int, value_bytes: int) -> list[Path]:
    say(f"making {options.rows:,} rows of {value_bytes} bytes")
    return stores(
        directory,
        replicas=count,
        rows=options.rows,
        value_bytes=value_bytes,
        seed=options.seed,
        keep=options.data_dir,
    )
