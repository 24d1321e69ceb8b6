"""The committed protobuf code is what ``proto/`` gives, and the check that says so can say no.

Method: run the check on the checkout, and on a copy in which one generated file was edited and another has no source.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("gossiper", "antientropy", "kvstore", "nodetool")


def check(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.generate", "--check"]
    return subprocess.run(command, cwd=root, text=True, capture_output=True, check=False, timeout=50)


def test_the_committed_code_is_up_to_date() -> None:
    result = check(ROOT)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout with nothing but sources and generated code."""
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    (tmp_path / "scripts").mkdir()
    for name in ("__init__.py", "generate.py"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts" / name)
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        for source in (ROOT / package).rglob("*_pb2*.py*"):
            if source.suffix in {".py", ".pyi"}:
                target = tmp_path / source.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    return tmp_path


def test_edited_and_orphaned_files_are_found(copy: Path) -> None:
    assert check(copy).returncode == 0
    edited = copy / "gossiper" / "v1" / "gossip_pb2.pyi"
    edited.write_text(edited.read_text() + "\n# by hand\n")
    (copy / "kvstore" / "v1").mkdir(parents=True, exist_ok=True)
    (copy / "kvstore" / "v1" / "old_pb2.py").write_text("")
    result = check(copy)
    assert result.returncode == 1
    assert "out of date: gossiper/v1/gossip_pb2.pyi" in result.stderr
    assert "has no source in proto/: kvstore/v1/old_pb2.py" in result.stderr
