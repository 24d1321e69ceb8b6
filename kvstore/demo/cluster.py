"""The processes of the demonstration: nodes, and the commands of the operator.

Lives here: starting, killing and restarting real ``kvstore serve`` processes in a directory of their own, running
``nodetool``, and leaving nothing behind. All of them join the process group of a guardian that kills the group and
removes the directory if the demonstration itself is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kvstore.demo import guardian

CLUSTER_NAME: Final = "demo"
NODES: Final = 3
READY_SECONDS_MAX: Final = 30.0
"""From the start of a node's process until all its listeners are open: imports on a cold disk take most of it."""
COMMAND_SECONDS_MAX: Final = 60.0
"""For one command of the operator, a repair of everything included."""
STOP_SECONDS_MAX: Final = 5.0
"""For killed processes to be gone."""
POLL_SECONDS: Final = 0.05
LOG_LINES_SHOWN: Final = 8
"""Of each node, after a failure: the files are gone by then."""
_LISTENERS: Final = ("peers", "clients", "admin")


class DemoError(Exception):
    """Something does not hold; the message is one line for people, ``details`` are more of them."""

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details = list(details)


@dataclass(slots=True)
class Node:
    """One node: a directory that stays, and a process that comes and goes."""

    name: str
    directory: Path
    addresses: dict[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None

    @property
    def log(self) -> Path:
        """What its processes printed."""
        return self.directory / "log"

    @property
    def pid(self) -> int:
        """Of the running process."""
        return self._running().pid

    def _running(self) -> asyncio.subprocess.Process:
        if self.process is None:
            raise DemoError(f"{self.name} is not running")
        return self.process

    async def kill(self) -> None:
        """SIGKILL: no goodbye, nothing flushed."""
        process = self._running()
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        self.process = None

    def last_words(self) -> list[str]:
        """The end of its log, for a failure report."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return []
        return [f"{self.name}: {line}" for line in lines[-LOG_LINES_SHOWN:]]


@dataclass(slots=True)
class LocalCluster:
    """Three nodes on loopback, in a temporary directory; made by :func:`local_cluster`."""

    directory: Path
    interval_seconds: float
    _guardian: asyncio.subprocess.Process
    nodes: list[Node] = field(default_factory=list)

    async def start_node(self, node: Node) -> None:
        """Start a node and wait until it listens; a node that ran before gets the ports it had.

        Raises:
            DemoError: it ended, or is not ready in time.
        """
        node.directory.mkdir(exist_ok=True)
        ready = node.directory / "ready.json"
        ready.unlink(missing_ok=True)
        seed = self.nodes[0].addresses.get("peers")
        command = ["kvstore", "serve", "--cluster-name", CLUSTER_NAME, "--data-dir", str(node.directory / "data")]
        command += ["--replication-factor", str(NODES), "--interval-seconds", str(self.interval_seconds)]
        # Nothing is to heal before the demonstration has shown what is ill.
        command += ["--ready-file", str(ready), "--repair-period-seconds", "0"]
        for listener in _LISTENERS:
            command += [f"--listen-{listener}", node.addresses.get(listener, "127.0.0.1:0")]
        if seed is not None:
            command += ["--seeds", seed]
        with node.log.open("ab") as log:
            node.process = await self._spawn(command, stdout=log.fileno(), stderr=log.fileno())
        node.addresses = await self._addresses(node, ready)

    async def _addresses(self, node: Node, ready: Path) -> dict[str, str]:
        try:
            async with asyncio.timeout(READY_SECONDS_MAX):
                while (addresses := _addresses_in(ready)) is None:
                    if node.process is None or node.process.returncode is not None:
                        raise DemoError(f"{node.name} ended instead of becoming ready")
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise DemoError(f"{node.name} was not ready after {READY_SECONDS_MAX:g} s") from None
        return addresses

    async def _spawn(self, command: Sequence[str], *, stdout: int, stderr: int) -> asyncio.subprocess.Process:
        """Start a program of this project with the Python that runs this, whatever the search path says."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            process_group=self._guardian.pid,
        )

    async def nodetool(self, node: Node, *arguments: str, on_line: Callable[[str], None] | None = None) -> list[str]:
        """Run ``nodetool`` against a node; return its output, each line given to ``on_line`` as it comes.

        Raises:
            DemoError: its exit status is not 0, or it takes too long.
        """
        command = [*self.nodetool_words(node), *arguments]
        process = await self._spawn(command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
        lines: list[str] = []
        try:
            async with asyncio.timeout(COMMAND_SECONDS_MAX):
                if process.stdout is None:
                    raise DemoError("nodetool has no output")  # Cannot be: a pipe was asked for.
                async for raw in process.stdout:
                    lines.append(raw.decode(errors="replace").rstrip())
                    if on_line is not None:
                        on_line(lines[-1])
                status = await process.wait()
        except TimeoutError:
            raise DemoError(f"{' '.join(command)} took more than {COMMAND_SECONDS_MAX:g} s") from None
        finally:
            await _end(process)
        if status != 0:
            raise DemoError(f"{' '.join(command)} ended with status {status}", lines[-LOG_LINES_SHOWN:])
        return lines

    def nodetool_words(self, node: Node) -> list[str]:
        """The command line up to the command's name."""
        host, port = node.addresses["admin"].rsplit(":", 1)
        return ["nodetool", "-h", host, "-p", port]

    def check_running(self) -> None:
        """Raise DemoError if a node ended that should run."""
        for node in self.nodes:
            if node.process is not None and node.process.returncode is not None:
                raise DemoError(f"{node.name} ended with status {node.process.returncode}")

    async def close(self) -> None:
        """End every process and remove the directory. Idempotent; takes at most a few seconds."""
        for node in self.nodes:
            if node.process is not None:
                await _end(node.process)
                node.process = None
        shutil.rmtree(self.directory, ignore_errors=True)
        # The guardian last, and with it whatever was started and not noted because of an interruption.
        with suppress(ProcessLookupError):
            os.killpg(self._guardian.pid, signal.SIGKILL)
        await _end(self._guardian)
        shutil.rmtree(self.directory, ignore_errors=True)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill a process, unless it has ended, and reap it."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), STOP_SECONDS_MAX)


def _addresses_in(ready: Path) -> dict[str, str] | None:
    """What a node wrote when it was ready, or None."""
    try:
        addresses = json.loads(ready.read_text())
    except FileNotFoundError:
        return None
    return {listener: addresses[listener] for listener in _LISTENERS}


@asynccontextmanager
async def local_cluster(*, interval_seconds: float) -> AsyncIterator[LocalCluster]:
    """A directory, a guardian and three nodes that are not started yet; nothing of it remains afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="kvstore-demo-"))
    try:
        # -I: the guardian must start, whatever the environment says. Its group is its own: Ctrl-C does not reach it.
        watcher = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", guardian.__file__, str(directory)), stdin=asyncio.subprocess.PIPE, process_group=0
        )
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    cluster = LocalCluster(directory, interval_seconds, watcher)
    cluster.nodes = [Node(f"node{number}", directory / f"node{number}") for number in range(1, NODES + 1)]
    try:
        yield cluster
    except DemoError as error:
        for node in cluster.nodes:
            if node.process is not None and node.process.returncode is not None:
                error.details.append(f"{node.name} has ended with status {node.process.returncode}")
            error.details += node.last_words()
        raise
    finally:
        await cluster.close()
