"""Run the checks of the project; ``make test`` and ``make check`` call this.

Usage: ``python -m scripts.check [--tests] [-- PYTEST ARGUMENT ...]``. The static checks all run, so that every fault is
seen at once; the tests run only if none was found, and then the last line printed is pytest's summary.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 2
"""Test processes side by side: what the smallest machine of the checks has in cores."""


def static_checks() -> list[tuple[str, list[str]]]:
    """Title and command of each check that runs no code of the project."""
    python = [sys.executable, "-m"]
    return [
        ("lint", [*python, "ruff", "check", "--quiet"]),
        ("format", [*python, "ruff", "format", "--check", "--quiet"]),
        ("types", [*python, "mypy", "--no-error-summary"]),
        ("import contracts", [str(Path(sys.executable).parent / "lint-imports"), "--no-logo"]),
        ("generated code", [*python, "scripts.generate", "--check"]),
    ]


def run_static_checks() -> list[str]:
    """Run them one after the other; print the output of those that fail and return their titles."""
    failed = []
    for title, command in static_checks():
        begun = time.monotonic()
        result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
        verdict = "ok" if result.returncode == 0 else "FAILED"
        print(f"{title:<17} {verdict:<6} {time.monotonic() - begun:5.1f} s", flush=True)
        if result.returncode != 0:
            failed.append(title)
            print(result.stdout + result.stderr, flush=True)
    return failed


def run_tests(arguments: list[str]) -> int:
    """Run pytest; return its exit status."""
    # pytest-benchmark cannot measure beside other workers and says so with a warning; warnings are errors here.
    # A file stays with one worker, so that what is expensive (the wheel, a cluster) is set up once.
    command = [sys.executable, "-m", "pytest", "-p", "no:benchmark", "-n", str(WORKERS), "--dist", "loadfile"]
    # gRPC writes what it finds remarkable past pytest, possibly behind the summary line.
    environment = {"GRPC_VERBOSITY": "ERROR", **os.environ}
    return subprocess.run([*command, *arguments], cwd=ROOT, check=False, env=environment).returncode


def main() -> int:
    """Entry point; the exit status is 0 only if everything passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", action="store_true", help="run the tests, too")
    parser.add_argument("arguments", nargs="*", help="passed on to pytest")
    options = parser.parse_args()
    failed = run_static_checks()
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    return run_tests(options.arguments) if options.tests else 0


if __name__ == "__main__":
    sys.exit(main())
