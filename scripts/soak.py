"""Hunt for rare faults for hours; ``make soak`` calls this.

Usage: ``python -m scripts.soak [--seeds N] [--repeat N] [--only seeds|scenarios]``. First every scenario file runs on
the simulator under several seeds and on real processes, then N clusters are simulated over all cores. What has
finished is kept under ``build/soak``, apart for each state of the code: started again, it goes on where it was
interrupted, and a change of the code begins anew. The exit status is 1 if anything was found, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCENARIOS = ROOT / "tests" / "scenarios"
#: A directory for each state of the code.
BUILD = ROOT / "build" / "soak"
#: About a night on 8 cores.
SEEDS = 20_000
#: Seeds of each scenario on the simulator; about 20 s of CPU each.
SCENARIO_SEEDS = 20
INTERRUPTED = 130


@dataclass(frozen=True)
class Part:
    """One command, and what its exit status meant."""

    title: str
    command: list[str]

    def run(self) -> int:
        """Run it to its end; Ctrl-C reaches it too, as both are in one group of processes."""
        child = subprocess.Popen(self.command, cwd=ROOT)
        interrupts = 0
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts == 1:
                    print(
                        "\nfinishing what has begun, perhaps a minute or two; Ctrl-C again ends it at once", flush=True
                    )
                else:
                    child.terminate()
                    child.wait()
                    return INTERRUPTED


def fingerprint(roots: Iterable[Path]) -> str:
    """Of all the code that is hunted in: what was found, or not, belongs to it."""
    digest = hashlib.sha256()
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def parts(seeds: int, repeat: int, only: str | None, directory: Path) -> list[Part]:
    """All there is to do; finished runs are kept in ``directory``."""
    gossiper = [sys.executable, "-m", "gossiper"]
    files = [str(path.relative_to(ROOT)) for path in sorted(SCENARIOS.glob("*.txt"))]
    scenario = [*gossiper, "scenario", "run", "--resume", str(directory / "scenarios.jsonl")]
    todo: list[Part] = []
    if only != "seeds":
        on_simulator = [*scenario, "--seeds", str(SCENARIO_SEEDS), *files]
        todo.append(Part(f"{len(files)} scenarios on the simulator, {SCENARIO_SEEDS} seeds each", on_simulator))
        on_processes = [*scenario, "--on", "processes", "--seeds", str(repeat), *files]
        todo.append(Part(f"{len(files)} scenarios on real processes, {repeat} of each", on_processes))
    if only != "scenarios":
        simulate = ["simulate", "--seeds", f"0-{seeds - 1}", "--resume", str(directory / "seeds.jsonl")]
        todo.append(Part(f"{seeds} simulated clusters", [*gossiper, *simulate]))
    return todo


def hunt(todo: list[Part]) -> int:
    """Run all parts, and say in the end how each went; the exit status."""
    said: list[str] = []
    status = 0
    for number, part in enumerate(todo, start=1):
        print(f"== {number} of {len(todo)}: {part.title}", flush=True)
        begun = time.monotonic()
        code = part.run()
        words = {0: "nothing found", 1: "FOUND SOMETHING, see above", INTERRUPTED: "interrupted", -2: "interrupted"}
        minutes = (time.monotonic() - begun) / 60
        said.append(f"   {part.title}: {words.get(code, f'BROKEN, exit status {code}')} ({minutes:.1f} min)")
        if code in {INTERRUPTED, -signal.SIGINT}:
            said += [f"   {rest.title}: not begun" for rest in todo[number:]]
            status = INTERRUPTED
            break
        status = status or int(code != 0)
    print("== summary", *said, sep="\n", flush=True)
    if status == INTERRUPTED:
        print("interrupted; the same command goes on from here", flush=True)
    return status


def main() -> int:
    """Entry point; the exit status is 0 only if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="clusters to simulate (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each scenario on processes (default: 1)")
    parser.add_argument("--only", choices=["seeds", "scenarios"], help="only one of the two")
    options = parser.parse_args()
    if options.seeds < 1 or options.repeat < 1:
        parser.error("--seeds and --repeat are at least 1")
    directory = BUILD / fingerprint([ROOT / "gossiper"])
    known = directory.is_dir()
    directory.mkdir(parents=True, exist_ok=True)
    print(f"{'going on with' if known else 'finished runs are kept in'} {directory.relative_to(ROOT)}", flush=True)
    try:
        return hunt(parts(options.seeds, options.repeat, options.only, directory))
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
