"""The process of one node: logging, signals, the ready file, exit statuses."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import click

from gossiper import GossipError
from kvstore.config import KvStoreConfig
from kvstore.errors import KvStoreError, StartError
from kvstore.node import KvStoreNode, process_info

_log = logging.getLogger(__name__)

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: What a shell says of a process that a signal ended.
_SIGNAL_STATUS_BASE: Final = 128
_LOG_FORMAT: Final = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s"


def configure_logging(level: str) -> None:
    """One line per record on stderr; times in local time with milliseconds."""
    logging.basicConfig(
        stream=sys.stderr, level=level.upper(), format=_LOG_FORMAT, datefmt="%Y-%m-%d %H:%M:%S", force=True
    )
    # At debug level they report every selector and every call.
    for name in ("asyncio", "grpc"):
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLogger().level))


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole, or not at all: whoever reads it never sees half of it.

    Raises:
        OSError: it cannot be written.
    """
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(file.name).unlink()
            raise


def run_node(config: KvStoreConfig, *, ready_file: Path | None, log_level: str, stop_on_stdin_eof: bool) -> int:
    """Run a node until it is told to stop; returns the exit status of the process."""
    configure_logging(log_level)
    try:
        asyncio.run(_serve(config, ready_file, stop_on_stdin_eof))
    except (KvStoreError, GossipError) as error:
        click.echo(f"kvstore serve: {error}", err=True)
        return 1
    return 0


async def _serve(config: KvStoreConfig, ready_file: Path | None, stop_on_stdin_eof: bool) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, _on_signal, number, stopping)
    if stop_on_stdin_eof:
        _watch_stdin(loop, stopping)
    if ready_file is not None:
        # An old one would say that this process is ready.
        _unlink(ready_file)
    node = KvStoreNode(config)
    starting = asyncio.create_task(node.start(), name="kvstore-start")
    interrupted = asyncio.create_task(stopping.wait(), name="kvstore-stop-requested")
    try:
        await asyncio.wait({starting, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            _log.info("stopped before it was ready")
            starting.cancel()
            with suppress(asyncio.CancelledError):
                await starting
            return
        await starting
        _write_ready_file(ready_file, node)
        await _until_stopped(node, interrupted)
    finally:
        interrupted.cancel()
        await node.stop()
        if ready_file is not None:
            _unlink(ready_file)
    _log.info("stopped")


async def _until_stopped(node: KvStoreNode, interrupted: asyncio.Task[bool]) -> None:
    """Wait for a signal, or for the gossiper to give up by itself."""
    ended = asyncio.create_task(node.wait_ended(), name="kvstore-gossip-ended")
    try:
        await asyncio.wait({interrupted, ended}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            await ended
    finally:
        ended.cancel()


def _on_signal(number: int, stopping: asyncio.Event) -> None:
    name = signal.Signals(number).name
    if stopping.is_set():
        _log.warning("%s again: aborted without a goodbye", name)
        logging.shutdown()
        os._exit(_SIGNAL_STATUS_BASE + number)
    _log.info("%s: announcing the shutdown and leaving; once more aborts", name)
    stopping.set()


def _watch_stdin(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> None:
    """Stop at the end of stdin: the parent, which holds the other end of the pipe, has gone, however it went.

    Raises:
        StartError: stdin is no pipe; the end of a file says nothing of a parent.
    """
    descriptor = sys.stdin.fileno()
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        raise StartError("--stop-on-stdin-eof: stdin is not a pipe; it is meant for a parent process that holds one")

    def on_readable() -> None:
        if os.read(descriptor, 4096):
            return
        loop.remove_reader(descriptor)
        if not stopping.is_set():
            _log.info("end of stdin: announcing the shutdown and leaving")
            stopping.set()

    loop.add_reader(descriptor, on_readable)


def _write_ready_file(path: Path | None, node: KvStoreNode) -> None:
    if path is None:
        return
    info: dict[str, Any] = process_info(node)
    try:
        write_atomically(path, json.dumps(info) + "\n")
    except OSError as error:
        raise StartError(f"the ready file {path} cannot be written: {error.strerror or error}") from None


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
