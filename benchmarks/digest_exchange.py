"""What a digest exchange costs: bytes, CPU, the floor; compact beside plain.

Usage::

    python -m benchmarks.digest_exchange --endpoints 1000 --json
    python -m benchmarks.digest_exchange --endpoints 10,100,1000,10000 [--profile]
    python -m benchmarks.digest_exchange --case joins,rolling-restart,state-change --endpoints 100 [--json]
    python -m benchmarks.digest_exchange --compression [--json]
    python -m benchmarks.digest_exchange --partners --endpoints 100,300 [--json]
    python -m benchmarks.digest_exchange --report docs/digests-measured.md

The steady case of one size is one JSON object with ``endpoints``, ``entropy_bytes``, and under ``forms.compact`` and
``forms.plain`` each of ``syn``, ``ack``, ``ack2``, ``total`` with ``protobuf_bytes``, ``compressed_bytes``,
``wire_bytes`` and ``cpu_microseconds``; everything else is an object with ``results``. CPU is process time, the least
of many repeats, both sides together, without transport and without compression.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import google.protobuf
import grpc
import numpy as np

from benchmarks import exchange_cases, exchange_compression, exchange_report, exchange_steady, partner_sets

CASES: Final = ("steady", *exchange_cases.CASES)


def environment() -> dict[str, Any]:
    """Versions and machine; no names and no paths."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "protobuf": google.protobuf.__version__,
        "grpcio": grpc.__version__,
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "commit": _commit(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Everything that was asked for, one result after the other."""
    results: list[dict[str, Any]] = []
    if options.compression:
        return exchange_compression.measure()
    if options.partners:
        return [partner_sets.measure(size) for size in options.endpoints]
    for size in options.endpoints:
        for case in options.case:
            results.append(exchange_steady.measure(size) if case == "steady" else exchange_cases.measure(case, size))
            if options.profile and case == "steady":
                results[-1]["profile"] = exchange_steady.profile(size, "compact")
    return results


def _sizes(text: str) -> list[int]:
    sizes = [int(part) for part in text.split(",")]
    if any(size < 3 for size in sizes):
        raise argparse.ArgumentTypeError("an exchange needs at least 3 endpoints")
    return sizes


def _cases(text: str) -> list[str]:
    wanted = list(CASES) if text == "all" else text.split(",")
    unknown = set(wanted) - set(CASES)
    if unknown:
        raise argparse.ArgumentTypeError(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    return wanted


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", type=_sizes, default=[1000], metavar="N[,N...]")
    parser.add_argument("--case", type=_cases, default=["steady"], help=f"{', '.join(CASES)}, or all")
    parser.add_argument("--compression", action="store_true", help="none, gzip and deflate per kind of message")
    parser.add_argument("--partners", action="store_true", help="a rotating set of partners against all live peers")
    parser.add_argument("--profile", action="store_true", help="where the CPU of the compact form goes")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--report", type=Path, metavar="FILE", help="measure everything and write it as Markdown")
    options = parser.parse_args()
    if options.report:
        options.report.write_text(exchange_report.report(environment()))
        return
    results = run(options)
    if options.json:
        alone = len(results) == 1 and not options.compression
        print(json.dumps((results[0] if alone else {"results": results}) | {"environment": environment()}, indent=1))
        return
    shown: Callable[[dict[str, Any]], str] = exchange_report.as_text
    print("\n\n".join(map(shown, results)))
    print("\n" + ", ".join(f"{key} {value}" for key, value in environment().items()))


if __name__ == "__main__":
    main()
