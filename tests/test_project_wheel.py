"""The wheel, not the checkout: what ``pip install .`` gives a user.

Method: build the wheel, install it with the newest dependencies into a clean environment, and use it from an empty
directory, so that nothing of the checkout can be found. The newest dependencies also prove that the generated code,
made for the oldest supported protobuf and grpcio, works with what users get today.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("gossiper", "antientropy", "kvstore", "nodetool")
COMMANDS = ("kvstore", "nodetool", "gossiper")

pytestmark = [pytest.mark.wheel, pytest.mark.process, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Installation:
    """A clean environment with the wheel in it."""

    wheel: Path
    programs: Path
    elsewhere: Path

    def run(self, *command: str, timeout_seconds: float = 30) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.programs / command[0]), *command[1:]],
            cwd=self.elsewhere,
            env=self.environment(),
            text=True,
            capture_output=True,
            check=False,
            timeout=timeout_seconds,
        )

    def environment(self) -> dict[str, str]:
        """Ours, but for what could lead back to the checkout."""
        return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    scratch = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(scratch / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = (scratch / "dist").glob("*.whl")
    venv.create(scratch / "venv", with_pip=True)
    programs = scratch / "venv" / "bin"
    elsewhere = scratch / "elsewhere"
    elsewhere.mkdir()
    installed = Installation(wheel=wheel, programs=programs, elsewhere=elsewhere)
    pip = ("python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install", str(wheel))
    result = installed.run(*pip, timeout_seconds=240)
    assert result.returncode == 0, f"pip could not install the wheel (is there a network?): {result.stderr}"
    return installed


def test_it_holds_the_packages_and_nothing_else(installation: Installation) -> None:
    with zipfile.ZipFile(installation.wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    for source in (ROOT / "proto").rglob("*.proto"):
        stem = source.relative_to(ROOT / "proto").with_suffix("").as_posix()
        assert {f"{stem}_pb2.py", f"{stem}_pb2.pyi", f"{stem}_pb2_grpc.py", f"{stem}_pb2_grpc.pyi"} <= set(names)


def test_every_module_can_be_imported(installation: Installation) -> None:
    program = (
        "import importlib, pkgutil, sys, warnings\n"
        "warnings.simplefilter('error')\n"
        f"for package in {PACKAGES!r}:\n"
        "    top = importlib.import_module(package)\n"
        "    assert 'site-packages' in top.__file__, top.__file__\n"
        "    for module in pkgutil.walk_packages(top.__path__, package + '.'):\n"
        # Helpers for a user's own tests need the user's pytest.
        "        name = module.name\n"
        "        if not (name.endswith(('__main__', 'testing.plugin')) or name.startswith('antientropy.testing')):\n"
        "            importlib.import_module(module.name)\n"
    )
    result = installation.run("python", "-c", program)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_say_how_they_are_used(installation: Installation, command: str) -> None:
    result = installation.run(command, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Usage:")


@pytest.fixture
def node(installation: Installation, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A cluster of one; gives the contents of its ready file."""
    ready = tmp_path / "ready.json"
    log = tmp_path / "node.log"
    command = [str(installation.programs / "kvstore"), "serve", "--data-dir", str(tmp_path / "data")]
    command += ["--replication-factor", "1", "--interval-seconds", "0.1", "--ready-file", str(ready)]
    for listener in ("peers", "clients", "admin"):
        command += [f"--listen-{listener}", "127.0.0.1:0"]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=installation.elsewhere, env=installation.environment(), stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 30
        while not ready.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ready.exists(), log.read_text()
        yield json.loads(ready.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def test_a_node_can_be_run_and_asked(installation: Installation, node: dict[str, str]) -> None:
    client = ("--node", node["clients"])
    put = installation.run("kvstore", "put", *client, "greeting", "hello")
    assert put.returncode == 0, put.stderr
    get = installation.run("kvstore", "get", *client, "greeting")
    assert (get.returncode, get.stdout) == (0, "hello\n"), get.stderr
    host, port = node["admin"].rsplit(":", 1)
    status = installation.run("nodetool", "-h", host, "-p", port, "status")
    assert status.returncode == 0, status.stderr
    assert sum(line.startswith("UN ") for line in status.stdout.splitlines()) == 1
