"""Fixtures that several test files share.

``node_factory`` and ``cluster_factory`` start real ``kvstore serve`` processes; for type hints::

    if TYPE_CHECKING:
        from tests.conftest import ClusterFactory, NodeFactory, NodeProcess

    @pytest.mark.process
    def test_something(cluster_factory: "ClusterFactory") -> None:
        one, two, three = cluster_factory(3)            # all joined: each sees three alive replicas
        with one.client() as client:
            client.put(b"city", b"Paris")
        two.kill()                                      # SIGKILL
        eventually(lambda: one.alive_count() == 2)      # the fixture of that name
        two.start()                                     # same directory, same ports

Everything is killed when the test ends, and the test fails if a process is left.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import pytest
from hypothesis import settings

# A slow machine is no failure: no test asserts how long something takes.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

# A script that runs the tests in the background has them ignore SIGINT, and so would every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if TYPE_CHECKING:
    from kvstore.client import KeyValueClient, NodeDescription

#: For a condition that is expected to become true; far beyond what a slow machine needs, only reached by failures.
WAIT_SECONDS_MAX: Final = 30.0
POLL_SECONDS: Final = 0.02
LISTENERS: Final = ("peers", "clients", "admin")
LOG_LINES_SHOWN: Final = 40


def wait_until(condition: Callable[[], Any], *, seconds: float = WAIT_SECONDS_MAX, what: str = "") -> None:
    """Poll until ``condition()`` is true; fail with ``what`` (or the condition's name) after ``seconds``."""
    ends_at = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends_at:
            pytest.fail(f"not true after {seconds:g} s: {what or getattr(condition, '__qualname__', condition)}")
        time.sleep(POLL_SECONDS)


class NodeProcess:
    """A ``kvstore serve`` process on loopback with a directory of its own; survives kills and starts again.

    ``options`` are those of ``serve`` with underscores: ``{"phi_threshold": 4, "rejoin": True}``. Ports are free ones
    at the first start and stay the same afterwards, as for a real node.
    """

    def __init__(self, name: str, directory: Path, options: dict[str, Any]) -> None:
        self.name = name
        self.directory = directory
        self.data_dir = directory / "data"
        self.log_path = directory / "log"
        self.ready_path = directory / "ready.json"
        self.options = options
        self.prefix: list[str] = []
        """Put before the command line: ``["sh", "-c", 'ulimit -f 8; exec "$@"', "sh"]``."""
        self.addresses: dict[str, str] = {}
        self.ready: dict[str, Any] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.pids: list[int] = []
        directory.mkdir()

    # -- life --------------------------------------------------------------------------------------------------------

    def command(self) -> list[str]:
        """The command line."""
        options: dict[str, Any] = {"data_dir": self.data_dir, "ready_file": self.ready_path}
        for listener in LISTENERS:
            options[f"listen_{listener}"] = self.addresses.get(listener, "127.0.0.1:0")
        words = [*self.prefix, sys.executable, "-m", "kvstore", "serve", "--stop-on-stdin-eof"]
        for name, value in {**options, **self.options}.items():
            words.append(f"--{name.replace('_', '-')}")
            if value is not True:
                words.append(",".join(value) if isinstance(value, list) else str(value))
        return words

    def spawn(self) -> None:
        """Start the process and do not wait."""
        self.ready_path.unlink(missing_ok=True)
        with self.log_path.open("ab") as log:
            # A group of its own: a signal to the test run does not reach it twice. Its stdin ends when the test run
            # ends, however that happens.
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.PIPE, stdout=log, stderr=log, process_group=0
            )
        self.pids.append(self.process.pid)

    def start(self) -> None:
        """Start the process and wait until it serves."""
        self.spawn()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until it serves; sets ``addresses`` and ``ready`` (the whole ready file)."""
        wait_until(self._is_ready, what=f"{self.name} is ready")

    def _is_ready(self) -> bool:
        if self.running.poll() is not None:
            pytest.fail(f"{self.name} ended with status {self.running.returncode}:\n{self.log}")
        try:
            self.ready = json.loads(self.ready_path.read_text())
        except FileNotFoundError:
            return False
        self.addresses = {listener: self.ready[listener] for listener in LISTENERS}
        return True

    @property
    def running(self) -> subprocess.Popen[bytes]:
        """The process."""
        assert self.process is not None, f"{self.name} was not started"
        return self.process

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.running.kill()
        self._reap()

    def terminate(self) -> int:
        """SIGTERM; the exit status."""
        self.running.terminate()
        return self.wait()

    def pause(self) -> None:
        """SIGSTOP: it hangs."""
        self.running.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.running.send_signal(signal.SIGCONT)

    def wait(self) -> int:
        """Wait until it ends by itself; the exit status."""
        try:
            return self._reap()
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} did not end in {WAIT_SECONDS_MAX:g} s:\n{self.log}")

    def _reap(self) -> int:
        status = self.running.wait(WAIT_SECONDS_MAX)
        if self.running.stdin is not None:
            self.running.stdin.close()
        return status

    def clean_up(self) -> None:
        """Kill it, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        elif self.process is not None:
            self._reap()

    # -- asking ------------------------------------------------------------------------------------------------------

    @property
    def peers(self) -> str:
        """Peer address: the endpoint."""
        return self.addresses["peers"]

    @property
    def clients(self) -> str:
        """Client address."""
        return self.addresses["clients"]

    @property
    def admin(self) -> str:
        """Administration address."""
        return self.addresses["admin"]

    @property
    def log(self) -> str:
        """Everything it wrote so far, over all starts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def client(self, *, timeout_seconds: float = 10.0) -> KeyValueClient:
        """A blocking client; use it in a ``with``."""
        from kvstore.client import KeyValueClient

        return KeyValueClient(self.clients, timeout_seconds=timeout_seconds)

    def describe(self) -> NodeDescription:
        """What it knows."""
        with self.client() as client:
            return client.describe()

    def alive_count(self) -> int:
        """Replicas that it holds to be alive, itself included."""
        return self.describe().alive_count

    def kvstore(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a command of ``kvstore`` against it: ``node.kvstore("get", "city")``."""
        command = [sys.executable, "-m", "kvstore", *arguments, "--node", self.clients]
        return subprocess.run(command, input=stdin, capture_output=True, timeout=WAIT_SECONDS_MAX, check=False)


class NodeFactory(Protocol):
    """Makes nodes that are cleaned up."""

    def __call__(self, *, start: bool = True, **options: Any) -> NodeProcess:
        """A node; by default alone (replication factor 1) with a gossip interval of 0.1 s, started and ready."""
        ...


class ClusterFactory(Protocol):
    """Makes clusters that are cleaned up."""

    def __call__(self, nodes: int = 3, **options: Any) -> list[NodeProcess]:
        """Nodes that see each other; the first is the seed, the replication factor is their number."""
        ...


@pytest.fixture
def eventually() -> Callable[..., None]:
    """``eventually(condition, seconds=30, what="...")``: poll until it holds, or fail."""
    return wait_until


@pytest.fixture
def node_factory(tmp_path: Path) -> Iterator[NodeFactory]:
    """Starts single nodes; see the head of this file."""
    nodes: list[NodeProcess] = []

    def make(*, start: bool = True, **options: Any) -> NodeProcess:
        number = len(nodes) + 1
        settings = {"replication_factor": 1, "interval_seconds": 0.1, "cluster_name": "test", **options}
        node = NodeProcess(f"node{number}", tmp_path / f"node{number}", settings)
        nodes.append(node)
        if start:
            node.start()
        return node

    yield make
    for node in nodes:
        node.clean_up()
    for node in nodes:
        # Shown only when the test fails.
        print(f"--- log of {node.name}\n" + "\n".join(node.log.splitlines()[-LOG_LINES_SHOWN:]))  # noqa: T201
    left = [f"{node.name} (pid {pid})" for node in nodes for pid in node.pids if _group_exists(pid)]
    assert not left, f"processes were left behind: {', '.join(left)}"


@pytest.fixture
def cluster_factory(node_factory: NodeFactory) -> ClusterFactory:
    """Starts whole clusters; see the head of this file."""

    def make(nodes: int = 3, **options: Any) -> list[NodeProcess]:
        settings = {"replication_factor": nodes, **options}
        first = node_factory(**settings)
        others = [node_factory(start=False, seeds=[first.peers], **settings) for _ in range(nodes - 1)]
        for node in others:
            node.spawn()
        for node in others:
            node.wait_ready()
        members = [first, *others]
        wait_until(lambda: all(node.alive_count() == nodes for node in members), what=f"{nodes} nodes see each other")
        return members

    return make


def _group_exists(pid: int) -> bool:
    """Whether anything is left of the process group that ``pid`` led."""
    with suppress(ProcessLookupError):
        os.killpg(pid, 0)
        return True
    return False
