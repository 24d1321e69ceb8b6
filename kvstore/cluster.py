"""A local cluster: one ``kvstore serve`` process per node, watched in the foreground.

Every node gets a pipe as its stdin and stops at its end, so that none outlives this process, even when it is killed
with SIGKILL.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click

from kvstore.client import KeyValueClient
from kvstore.config import ADMIN_PORT, CLIENTS_PORT, PEERS_PORT
from kvstore.errors import KvStoreError, StartError

#: A cold start with a large store to read takes a second per million rows.
READY_SECONDS_MAX: Final = 60.0
#: Until every node sees every other alive.
JOINED_SECONDS_MAX: Final = 60.0
#: More than two graces of two seconds.
STOP_SECONDS_MAX: Final = 15.0
_POLL_SECONDS: Final = 0.05
_HOST: Final = "127.0.0.1"
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOG_LINES_SHOWN: Final = 5


@dataclass(slots=True)
class LocalNode:
    """A node and its process."""

    name: str
    directory: Path
    process: subprocess.Popen[bytes]
    addresses: dict[str, str] = field(default_factory=dict)
    ended: bool = False

    @property
    def log_file(self) -> Path:
        """What it writes to stderr."""
        return self.directory / "node.log"

    @property
    def ready_file(self) -> Path:
        """Where it says that it is ready."""
        return self.directory / "ready.json"

    def last_words(self) -> str:
        """The end of its log."""
        try:
            lines = self.log_file.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-_LOG_LINES_SHOWN:])


def ports_of(number: int, base_port: int | None) -> tuple[int, int, int]:
    """The ports of the ``number``-th node, counted from 1: peers, clients, admin; 0 takes a free one."""
    if base_port == 0:
        return 0, 0, 0
    offset = number - 1
    if base_port is None:
        return PEERS_PORT + offset, CLIENTS_PORT + offset, ADMIN_PORT + offset
    return base_port + offset, base_port + 100 + offset, base_port + 200 + offset


class LocalCluster:
    """Nodes on loopback, each with a directory of its own below ``data_dir``.

    Args:
        nodes: How many; also the replication factor, as every node holds every row.
        data_dir: Kept over restarts.
        base_port: See :func:`ports_of`.
        cluster_name: Of all nodes.
        interval_seconds: Gossip interval.
        log_level: Of the nodes.
    """

    def __init__(
        self,
        *,
        nodes: int,
        data_dir: Path,
        base_port: int | None,
        cluster_name: str,
        interval_seconds: float,
        log_level: str,
    ) -> None:
        self._count = nodes
        self._data_dir = data_dir
        self._base_port = base_port
        self._cluster_name = cluster_name
        self._interval_seconds = interval_seconds
        self._log_level = log_level
        self._nodes: list[LocalNode] = []
        self._stop_signal: int | None = None

    def run(self, *, as_json: bool) -> int:
        """Start all nodes, say how to talk to them, and wait for a signal; returns the exit status.

        Raises:
            StartError: a node did not start; all others have been stopped.
        """
        handlers = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            self._start_all()
            if self._stop_signal is None:
                self._print_addresses(as_json=as_json)
            return self._watch()
        finally:
            self._stop_all()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._stop_signal is not None:
            # The second one: not waited for any longer.
            for node in self._nodes:
                with suppress(OSError):
                    node.process.kill()
        self._stop_signal = number

    def _start_all(self) -> None:
        for number in range(1, self._count + 1):
            if self._stop_signal is not None:
                return
            node = self._start(number)
            # The first is the seed of the others; each is waited for, so that a fault is told at once.
            self._until(lambda node=node: self._is_ready(node), READY_SECONDS_MAX, f"{node.name} is not ready")  # type: ignore[misc]
        self._until(self._all_alive, JOINED_SECONDS_MAX, "the nodes do not see each other")

    def _start(self, number: int) -> LocalNode:
        name = f"node{number}"
        directory = self._data_dir / name
        peers, clients, admin = ports_of(number, self._base_port)
        command = [sys.executable, "-m", "kvstore", "serve", "--stop-on-stdin-eof"]
        command += ["--cluster-name", self._cluster_name, "--data-dir", str(directory / "data")]
        command += ["--listen-peers", f"{_HOST}:{peers}", "--listen-clients", f"{_HOST}:{clients}"]
        command += ["--listen-admin", f"{_HOST}:{admin}", "--replication-factor", str(self._count)]
        command += ["--interval-seconds", str(self._interval_seconds), "--log-level", self._log_level]
        command += ["--ready-file", str(directory / "ready.json")]
        if self._nodes:
            command += ["--seeds", self._nodes[0].addresses["peers"]]
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "ready.json").unlink(missing_ok=True)
            with (directory / "node.log").open("ab") as log:
                # A group of its own: Ctrl-C reaches this process only, which passes it on once.
                process = subprocess.Popen(  # noqa: S603 - this program, with checked numbers and paths
                    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log, process_group=0
                )
        except OSError as error:
            raise StartError(f"{directory} cannot be used: {error.strerror or error}") from None
        node = LocalNode(name, directory, process)
        self._nodes.append(node)
        return node

    def _is_ready(self, node: LocalNode) -> bool:
        if node.process.poll() is not None:
            raise StartError(f"{node.name} did not start (its log: {node.log_file})\n{node.last_words()}")
        try:
            ready: dict[str, Any] = json.loads(node.ready_file.read_text())
        except FileNotFoundError:
            return False
        node.addresses = {key: ready[key] for key in ("peers", "clients", "admin")}
        return True

    def _all_alive(self) -> bool:
        for node in self._nodes:
            self._is_ready(node)
            with KeyValueClient(node.addresses["clients"], timeout_seconds=2.0) as client:
                try:
                    if client.describe().alive_count < self._count:
                        return False
                except KvStoreError:
                    return False
        return True

    def _until(self, holds: Callable[[], bool], seconds_max: float, fault: str) -> None:
        ends_at = time.monotonic() + seconds_max
        while self._stop_signal is None and not holds():
            if time.monotonic() > ends_at:
                raise StartError(f"{fault} after {seconds_max:g} s; see the logs below {self._data_dir}")
            time.sleep(_POLL_SECONDS)

    def _watch(self) -> int:
        """Until a signal comes, or no node is left; a node that ends is reported, the others go on."""
        while self._stop_signal is None:
            running = 0
            for node in self._nodes:
                status = node.process.poll()
                if status is None:
                    running += 1
                elif not node.ended:
                    node.ended = True
                    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
                    click.echo(f"{node.name} ({node.addresses['peers']}) ended {how}; log: {node.log_file}", err=True)
            if not running:
                click.echo("no node is left", err=True)
                return 1
            time.sleep(_POLL_SECONDS)
        click.echo("stopping all nodes", err=True)
        return 0

    def _stop_all(self) -> None:
        for node in self._nodes:
            if node.process.poll() is None:
                node.process.send_signal(signal.SIGTERM)
        ends_at = time.monotonic() + STOP_SECONDS_MAX
        for node in self._nodes:
            try:
                node.process.wait(max(0.0, ends_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                click.echo(f"{node.name} did not stop in {STOP_SECONDS_MAX:g} s and is killed", err=True)
                node.process.kill()
                node.process.wait()
            if node.process.stdin is not None:
                node.process.stdin.close()

    def _print_addresses(self, *, as_json: bool) -> None:
        if as_json:
            nodes = [{"name": node.name, "pid": node.process.pid, **node.addresses} for node in self._nodes]
            click.echo(json.dumps({"cluster_name": self._cluster_name, "nodes": nodes}))
            return
        rows = [("node", "peers", "clients", "admin", "pid")]
        rows += [
            (
                node.name,
                node.addresses["peers"],
                node.addresses["clients"],
                node.addresses["admin"],
                str(node.process.pid),
            )
            for node in self._nodes
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        click.echo(f"Cluster {self._cluster_name!r}: {self._count} nodes, data in {self._data_dir}\n")
        for row in rows:
            click.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        first = self._nodes[0].addresses
        client_option = "" if first["clients"].endswith(f":{CLIENTS_PORT}") else f" --node {first['clients']}"
        admin_option = "" if first["admin"].endswith(f":{ADMIN_PORT}") else f" -p {first['admin'].rpartition(':')[2]}"
        click.echo(
            f"\nTalk to it from another terminal:\n"
            f"  kvstore put city Paris{client_option}\n"
            f"  kvstore get city{client_option}\n"
            f"  nodetool{admin_option} status\n"
            f"  nodetool{admin_option} repair\n"
            f"\nCtrl-C stops all nodes; the data is kept."
        )
