"""Hunt for rare faults for hours; ``make soak`` calls this.

Usage: ``python -m scripts.soak [--seeds N] [--repeat N] [--only seeds|scenarios]``. First every scenario file runs on
the simulator under several seeds and on real processes, then N clusters are simulated over all cores. Finished seeds
are kept in ``build/soak.jsonl``: started again, it goes on where it was interrupted. The exit status is 1 if anything
was found.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCENARIOS = ROOT / "tests" / "scenarios"
FINISHED = ROOT / "build" / "soak.jsonl"
#: About a night on 8 cores.
SEEDS = 20_000
#: Seeds of each scenario on the simulator; about 20 s of CPU each.
SCENARIO_SEEDS = 20


def commands(seeds: int, repeat: int, only: str | None) -> list[tuple[str, list[str]]]:
    """Title and command of each part."""
    gossiper = [sys.executable, "-m", "gossiper.cli"]
    files = [str(path) for path in sorted(SCENARIOS.glob("*.txt"))]
    parts: list[tuple[str, list[str]]] = []
    if only != "seeds":
        parts.append(("scenarios, simulator", [*gossiper, "scenario", "run", "--seeds", str(SCENARIO_SEEDS), *files]))
        processes = [*gossiper, "scenario", "run", "--on", "processes", *files]
        parts += [(f"scenarios, processes, {number + 1} of {repeat}", processes) for number in range(repeat)]
    if only != "scenarios":
        simulate = ["simulate", "--seeds", f"0-{seeds - 1}", "--resume", str(FINISHED)]
        parts.append((f"{seeds} seeds", [*gossiper, *simulate]))
    return parts


def main() -> int:
    """Entry point; the exit status is 0 only if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="clusters to simulate (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each scenario on processes (default: 1)")
    parser.add_argument("--only", choices=["seeds", "scenarios"], help="only one of the two parts")
    options = parser.parse_args()
    if options.seeds < 1 or options.repeat < 1:
        parser.error("--seeds and --repeat are at least 1")
    FINISHED.parent.mkdir(exist_ok=True)
    failed = []
    for title, command in commands(options.seeds, options.repeat, options.only):
        print(f"== {title}", flush=True)
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
            failed.append(title)
    print(f"failed: {', '.join(failed)}" if failed else "nothing was found", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
