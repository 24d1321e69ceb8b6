"""How large a cluster of whole cores this process can run in virtual time, and a table of 10,000 rows.

Usage: ``python -m benchmarks.large_cluster [--nodes 1000] [--seconds 10] [--rows 10000] [--json]``. CPU is process
time. The cluster begins settled (``benchmarks.virtual_cluster``): each engine is given the states of all others as
alive, instead of the million ECHOs by which 1,000 nodes would find that out; the values themselves are shared in the
process, tables and windows are not.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import time
from collections import Counter
from typing import Any

import numpy as np

from benchmarks.exchange_parts import FORMS, LEGS, Meeting, compressed_bytes, steady
from benchmarks.exchange_steady import cpu
from benchmarks.virtual_cluster import Exchange, VirtualCluster
from gossiper.core.engine import GossipEngine
from gossiper.core.table import LivenessCode


def cluster(nodes: int, seconds: float) -> dict[str, Any]:
    """Build a settled cluster, let it run, say what it took."""
    before_bytes = _resident_bytes()
    began = time.process_time()
    running = VirtualCluster(nodes)
    built = time.process_time()
    kinds: Counter[str] = Counter()
    sizes: list[int] = []

    def done(exchange: Exchange) -> None:
        kinds[exchange.kind] += 1
        sizes.append(sum(len(data) for _, data in exchange.messages))

    # The first second builds the rosters of all nodes.
    running.loop.run_until(1.0)
    running.on_exchange = done
    settled_bytes = _resident_bytes()
    start = time.process_time()
    running.loop.run_until(1.0 + seconds)
    spent = time.process_time() - start
    alive = [
        int((member.engine.state.table.liveness == LivenessCode.ALIVE).sum()) for member in running.members.values()
    ]
    return {
        "nodes": nodes,
        "build_cpu_seconds": round(built - began, 1),
        "virtual_seconds": seconds,
        "cpu_seconds": round(spent, 2),
        "virtual_seconds_per_cpu_second": round(seconds / spent, 3),
        "exchanges": sum(kinds.values()),
        "cpu_microseconds_per_exchange": round(1e6 * spent / max(1, sum(kinds.values()))),
        "kinds": dict(kinds),
        "bytes_per_exchange": round(float(np.mean(sizes)), 1) if sizes else 0,
        "held_alive_min": min(alive),
        "memory_bytes_per_node": round((settled_bytes - before_bytes) / nodes),
        "memory_bytes_after": _resident_bytes() - before_bytes,
        "table_bytes_per_node": table_bytes(next(iter(running.members.values())).engine),
    }


def table_bytes(engine: GossipEngine) -> int:
    """Columns of one table and arrival windows of its detector; without names and values."""
    parts = (engine.state.table, engine.state.detector.windows)
    return sum(column.nbytes for part in parts for column in vars(part).values() if isinstance(column, np.ndarray))


def exchange(rows: int) -> dict[str, Any]:
    """One exchange between two nodes that know so many endpoints."""
    before_bytes = _resident_bytes()
    found = next(steady(rows, 1))
    modelled_bytes = _resident_bytes()
    meeting = Meeting(found)
    held = _resident_bytes() - modelled_bytes
    forms = {}
    processor = cpu(meeting, 30)
    for number, form in enumerate(FORMS):
        traced = meeting.exchange(form, meeting.at(1000 + number))
        forms[form] = {
            "bytes": {leg: len(traced.messages[leg]) for leg in LEGS},
            "total_bytes": sum(map(len, traced.messages.values())),
            "compressed_bytes": sum(map(compressed_bytes, traced.messages.values())),
            "cpu_microseconds": round(sum(processor[form].legs.values())),
        }
    return {
        "rows": rows,
        "forms": forms,
        "model_bytes": modelled_bytes - before_bytes,
        "memory_bytes_per_node": held // 2,
        "table_bytes": table_bytes(meeting.one),
    }


def _resident_bytes() -> int:
    gc.collect()
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123 - one line of the kernel
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        # The peak, in kB on Linux and bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000, help="0: no cluster")
    parser.add_argument("--seconds", type=float, default=10.0, help="virtual seconds")
    parser.add_argument("--rows", type=int, default=10_000, help="endpoints of the exchange; 0: none")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    if options.rows:
        result["exchange"] = exchange(options.rows)
    if options.nodes:
        result["cluster"] = cluster(options.nodes, options.seconds)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for part, found in result.items():
        print(part)
        for key, value in found.items():
            print(f"  {key:<32}{value}")


if __name__ == "__main__":
    main()
