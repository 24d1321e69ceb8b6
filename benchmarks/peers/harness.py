"""Building and running the peers' harnesses: a copy of each is built under ``build/peers``, the sources stay clean."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent
SOURCES: Final = Path(__file__).resolve().parent
BUILD: Final = ROOT / "build" / "peers"
BUILD_TIMEOUT_SECONDS: Final = 1200.0
RUN_TIMEOUT_SECONDS: Final = 300.0

Json = dict[str, Any]


class PeerUnavailableError(Exception):
    """A peer cannot be built or run here; the text is one line that says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One published library: what its harness needs, and how it is built and run in its copy of the sources."""

    name: str
    tools: tuple[str, ...]
    build: tuple[str, ...]
    run: tuple[str, ...]

    @property
    def directory(self) -> Path:
        """Where its copy is."""
        return BUILD / self.name

    def make(self) -> None:
        """Copy the sources and build them.

        Raises:
            PeerUnavailableError: a tool is missing, or the build fails (packages out of reach among the reasons).
        """
        for tool in self.tools:
            if shutil.which(tool) is None:
                raise PeerUnavailableError(f"{tool} is not installed")
        shutil.copytree(SOURCES / self.name, self.directory, dirs_exist_ok=True)
        self._call(self.build, BUILD_TIMEOUT_SECONDS)

    def answer(self, *arguments: str) -> Json:
        """Run the harness and read the JSON object that it prints.

        Raises:
            PeerUnavailableError: it fails.
        """
        command = [word.replace("{classpath}", self._class_path()) for word in self.run]
        lines = self._call([*command, *arguments], RUN_TIMEOUT_SECONDS).splitlines()
        answer: Json = json.loads(lines[-1])
        return answer

    def _class_path(self) -> str:
        """The Java class path that Maven wrote down; empty for the others."""
        written = self.directory / "target" / "classpath.txt"
        return f"target/classes{os.pathsep}{written.read_text().strip()}" if written.exists() else ""

    def _call(self, command: Sequence[str], timeout_seconds: float) -> str:
        environment = {**os.environ, "GOFLAGS": "-mod=mod -buildvcs=false", "CARGO_TERM_COLOR": "never"}
        try:
            done = subprocess.run(
                command,
                cwd=self.directory,
                env=environment,
                text=True,
                capture_output=True,
                check=False,
                timeout=timeout_seconds,
            )
        except subprocess.TimeoutExpired as error:
            raise PeerUnavailableError(f"{command[0]} took longer than {timeout_seconds:.0f} s") from error
        if done.returncode != 0 or not (command is self.build or done.stdout.strip()):
            said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            errors = [line for line in said if "error" in line.lower()]
            why = (errors or said or ["no output"])[0].replace(f"{ROOT}{os.sep}", "").strip()[:200]
            raise PeerUnavailableError(f"{command[0]} failed: {why}")
        return done.stdout


#: Parts of the JDK that Cassandra reaches into, as its own start scripts open them.
_OPENED: Final = (
    "jdk.internal.misc",
    "jdk.internal.ref",
    "sun.nio.ch",
    "java.io",
    "java.nio",
    "java.lang",
    "java.util",
)
CASSANDRA: Final = Peer(
    "cassandra",
    ("java", "mvn"),
    ("mvn", "-q", "-B", "package"),
    # Thread validation: Cassandra changes state on its gossip stage only; here the one thread that is timed does it.
    (
        "java",
        *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED),
        *(f"--add-exports=java.base/{package}=ALL-UNNAMED" for package in _OPENED),
        *("-Xms512m", "-Xmx2g", "-Dcassandra.gossip.disable_thread_validation=true"),
        *("-cp", "{classpath}", "org.apache.cassandra.gms.PeerBenchmark"),
    ),
)
CHITCHAT: Final = Peer(
    "chitchat", ("cargo",), ("cargo", "build", "--release", "--quiet"), ("target/release/chitchat-peer",)
)
MEMBERLIST: Final = Peer("memberlist", ("go",), ("go", "build", "-o", "memberlist-peer", "."), ("./memberlist-peer",))
RECONCILIATION: Final = Peer(
    "reconciliation", ("cargo",), ("cargo", "build", "--release", "--quiet"), ("target/release/reconciliation-peer",)
)
