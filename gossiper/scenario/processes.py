"""Scenarios on real processes: one per node, gRPC on loopback, relays between them, signals as faults."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from gossiper.core.endpoints import parse_endpoint
from gossiper.errors import GossipError
from gossiper.scenario.backend import Link
from gossiper.scenario.language import ScenarioError
from gossiper.scenario.member import LISTENING, Observation, StartPlan
from gossiper.scenario.relay import Relays

#: A loaded machine may take that much longer than the scenario says.
PATIENCE_FACTOR: Final = 3.0
PATIENCE_SECONDS_MIN: Final = 20.0
#: For any answer of a process; leaving and joining are the longest.
_ANSWER_SECONDS_MAX: Final = 60.0
_STOP_SECONDS_MAX: Final = 20.0
#: Lines of a log in an error.
_LOG_LINES: Final = 15


class RefusedError(GossipError):
    """What a node in another process refused, in its own words."""


class _Process:
    """One node; answers are matched to commands by number."""

    def __init__(self, node: str, log: Path) -> None:
        self.node = node
        self._log = log
        self._numbers = itertools.count(LISTENING + 1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def spawn(self) -> asyncio.Future[str]:
        """Start the process; the future is where it listens, once it does."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gossiper.scenario.member"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={"GRPC_VERBOSITY": "ERROR", **os.environ},
                limit=4 * 1024 * 1024,
            )
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[LISTENING] = listening
        self._reading = asyncio.create_task(self._read(self._process), name=f"scenario process {self.node}")
        return listening

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        if process.stdout is None:
            raise AssertionError("it was opened as a pipe")
        while line := await process.stdout.readline():
            answer = json.loads(line)
            future = self._waiting.pop(answer["id"], None)
            if future is None or future.done():
                continue
            if "refused" in answer:
                future.set_exception(RefusedError(answer["refused"]))
            elif "broken" in answer:
                future.set_exception(ScenarioError(f"{self.node} failed: {answer['broken']}{self._log_end()}"))
            else:
                future.set_result(answer["result"])
        status = await process.wait()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ScenarioError(f"{self.node} ended with status {status}{self._log_end()}"))
                # Not everybody waits for where it listens.
                future.exception()

    def _log_end(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        return "".join(f"\n  {line}" for line in lines)

    async def ask(self, operation: str, arguments: Mapping[str, Any]) -> Any:
        """One command and its result.

        Raises:
            GossipError: it is refused, or there is no answer.
        """
        if self._process is None or self._process.stdin is None:
            raise AssertionError("it was spawned")
        number = next(self._numbers)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        line = json.dumps({"id": number, "do": operation, "arguments": dict(arguments)}) + "\n"
        try:
            self._process.stdin.write(line.encode())
            await self._process.stdin.drain()
            async with asyncio.timeout(_ANSWER_SECONDS_MAX):
                return await future
        except (OSError, TimeoutError) as error:
            raise ScenarioError(f"{self.node} does not answer {operation!r}: {error!r}{self._log_end()}") from None
        finally:
            self._waiting.pop(number, None)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def end(self) -> None:
        """End it if it has not ended, and wait for that."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            async with asyncio.timeout(_STOP_SECONDS_MAX):
                await self._process.wait()
        if self._reading is not None:
            await asyncio.wait({self._reading})


class ProcessBackend:
    """A :class:`~gossiper.scenario.backend.Backend`; lives on an ordinary loop."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._relays = Relays()
        self._routes: dict[str, dict[str, str]] = {}
        self._processes: dict[str, _Process] = {}
        self._endpoints: dict[str, str] = {}

    def deadline_seconds(self, seconds: float) -> float:
        """As the Protocol says."""
        return max(PATIENCE_FACTOR * seconds, PATIENCE_SECONDS_MIN)

    async def prepare(self, nodes: Iterable[str], endpoints: Iterable[str]) -> None:
        """Open all relays there will be."""
        for node, endpoint in itertools.product(nodes, list(endpoints)):
            self._routes.setdefault(node, {})[endpoint] = await self._relays.open(node, endpoint)

    async def start(self, node: str, plan: StartPlan) -> None:
        """As the Protocol says."""
        process = _Process(node, self.directory / f"{node}.log")
        self._processes[node] = process
        self._endpoints[node] = plan.endpoint
        try:
            listening = await process.spawn()
            listening.add_done_callback(lambda done: self._listens(node, plan.endpoint, done))
            await process.ask("start", {"plan": asdict(plan), "routes": self._routes[node]})
        except BaseException:
            if self._processes.get(node) is process:
                await self.kill(node)
            raise

    def _listens(self, node: str, endpoint: str, listening: asyncio.Future[str]) -> None:
        if not listening.cancelled() and listening.exception() is None:
            self._relays.occupy(endpoint, node, parse_endpoint(listening.result())[1])

    async def stop(self, node: str) -> None:
        """As the Protocol says."""
        await self._processes[node].ask("stop", {})
        await self.kill(node)

    async def kill(self, node: str) -> None:
        """As the Protocol says."""
        process = self._processes.pop(node, None)
        if process is not None:
            await process.end()
            self._relays.vacate(self._endpoints[node], node)

    async def pause(self, node: str) -> None:
        """As the Protocol says."""
        self._processes[node].signal(signal.SIGSTOP)

    async def resume(self, node: str) -> None:
        """As the Protocol says."""
        self._processes[node].signal(signal.SIGCONT)

    async def do(self, node: str, operation: str, arguments: Mapping[str, Any]) -> Any:
        """As the Protocol says."""
        return await self._processes[node].ask(operation, arguments)

    async def observe(self, node: str) -> Observation:
        """As the Protocol says."""
        return Observation(**await self._processes[node].ask("observe", {}))

    def set_links(self, cut: Iterable[Link], delays_seconds: Mapping[Link, float]) -> None:
        """As the Protocol says."""
        self._relays.set_links(cut, delays_seconds)

    async def close(self) -> None:
        """As the Protocol says."""
        for node in list(self._processes):
            await self.kill(node)
        await self._relays.close()
