"""Generate the protobuf code from ``proto/`` into the packages, or check that it is up to date.

Usage: ``python -m scripts.generate`` or ``python -m scripts.generate --check`` (exit status 1 when stale).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def generate(target: Path) -> list[Path]:
    """Write the generated modules below ``target``; return their paths relative to it.

    Nested ``proto/<package>/v1/x.proto`` with ``-I proto`` gives ``<package>/v1/x_pb2.py`` with absolute imports that
    match, so nothing has to be rewritten (protobuf#1491).
    """
    from grpc_tools import protoc  # noqa: PLC0415 - a development tool; --help must work without it

    sources = sorted(path.relative_to(ROOT / "proto").as_posix() for path in (ROOT / "proto").rglob("*.proto"))
    well_known = resources.files("grpc_tools") / "_proto"
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{well_known}"]
    arguments += [f"--{kind}_out={target}" for kind in ("python", "grpc_python")]
    # Named by path: the environment that runs this need not be activated.
    tools = Path(sys.executable).parent
    arguments += [f"--plugin={name}={tools / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    arguments += [f"--mypy_out=quiet:{target}", f"--mypy_grpc_out=quiet:{target}", *sources]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    return sorted(path.relative_to(target) for path in target.rglob("*_pb2*.py*") if path.suffix in {".py", ".pyi"})


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare, write nothing")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        produced = generate(Path(scratch))
        committed = {
            path.relative_to(ROOT)
            for package in ("gossiper", "antientropy", "kvstore", "nodetool")
            for path in (ROOT / package).rglob("*_pb2*.py*")
            if path.suffix in {".py", ".pyi"}
        }
        stale = [
            p for p in produced if p not in committed or (ROOT / p).read_bytes() != (Path(scratch) / p).read_bytes()
        ]
        orphaned = sorted(committed - set(produced))
        if check:
            for path in stale:
                print(f"out of date: {path} (run: python -m scripts.generate)", file=sys.stderr)
            for path in orphaned:
                print(f"has no source in proto/: {path}", file=sys.stderr)
            return 1 if stale or orphaned else 0
        for path in produced:
            (ROOT / path).write_bytes((Path(scratch) / path).read_bytes())
        for path in orphaned:
            (ROOT / path).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
