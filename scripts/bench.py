"""Run the benchmarks and print the sizes that they recorded beside the times.

Usage: ``python -m scripts.bench [PYTEST ARGUMENT ...]``. Everything is also written to ``.benchmarks/latest.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".benchmarks" / "latest.json"
TIMEOUT_SECONDS = 600
"""For one benchmark with its set-up, which may build a million rows."""


def size_lines(results: Path) -> list[str]:
    """One line per benchmark that recorded sizes: its name, median time and what it recorded."""
    benchmarks = json.loads(results.read_text())["benchmarks"]
    lines = []
    for benchmark in benchmarks:
        recorded = ", ".join(f"{key} {_number(value)}" for key, value in benchmark["extra_info"].items())
        if recorded:
            lines.append(f"{benchmark['name']:<58} {benchmark['stats']['median'] * 1e6:>14,.1f} us  {recorded}")
    return lines


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def main() -> int:
    """Entry point; the exit status is pytest's."""
    RESULTS.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", f"--benchmark-json={RESULTS}"]
    command += [f"--timeout={TIMEOUT_SECONDS}", "--benchmark-columns=min,median,max,rounds", "-p", "no:randomly"]
    status = subprocess.run([*command, *sys.argv[1:]], cwd=ROOT, check=False).returncode
    if status == 0:
        print("\nmedian time and sizes", *size_lines(RESULTS), sep="\n")
        print(f"\nall numbers: {RESULTS.relative_to(ROOT)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
