"""One node of a scenario: a real gossiper, told what to do by plain values, telling what it sees as plain values.

In virtual time it is an object beside others; as ``python -m gossiper.scenario.member`` it is a process of its own that
takes one JSON object per line on standard input and answers each with one on standard output. A command of ``gossiper
run`` would not do: a wall clock that is wrong cannot be had from outside without root.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from gossiper.cli_run import described
from gossiper.config import GossipConfig
from gossiper.core.application_states import is_user_key
from gossiper.core.versions import Now
from gossiper.errors import GossipError, NotRunningError
from gossiper.events import EndpointView
from gossiper.metrics import GossipMetrics
from gossiper.node import Gossiper
from gossiper.scenario.transport import ScenarioTransport
from gossiper.settings import build
from gossiper.shell import system_clock
from gossiper.transport.base import Handler, Transport
from gossiper.transport.grpc import GrpcTransport

#: No scenario lasts longer.
_SETTLE_SECONDS_MAX: Final = 3_600.0
#: The number of the line that says where a process listens; commands are numbered from 1.
LISTENING: Final = 0
#: Of one command: settings of a node with the routes to all others.
_LINE_BYTES_MAX: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class StartPlan:
    """All that a node needs to start; plain values, so that it can go to another process."""

    endpoint: str
    """Under which others know it."""
    data_dir: str
    clock_offset_seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    """Further settings of :class:`~gossiper.config.GossipConfig`."""

    def config(self, *, listen: str | None = None) -> GossipConfig:
        """The configuration; it listens at its endpoint or at ``listen``.

        Raises:
            ConfigError: the settings are unusable.
        """
        values = {
            "listen": listen or self.endpoint,
            "advertise": self.endpoint,
            "data_dir": Path(self.data_dir),
            **self.settings,
        }
        return build(GossipConfig, values, source="scenario")


@dataclass(frozen=True, slots=True)
class Observation:
    """What a node sees; plain values."""

    view: dict[str, dict[str, Any]]
    """By endpoint: liveness, status, host_id, serving, states (of the application)."""
    events: list[dict[str, Any]]
    """Since the start."""
    failure: str | None
    """Why it stopped by itself."""
    settled: bool


class WrongClock:
    """The clocks of this machine, of which the wall clock is wrong by an offset that may change."""

    def __init__(self, offset_seconds: float, clock: Callable[[], Now] = system_clock) -> None:
        self.offset_seconds = offset_seconds
        self._clock = clock

    def now(self) -> Now:
        """Both clocks."""
        now = self._clock()
        return Now(now.monotonic, now.wall + self.offset_seconds)


class Member:
    """A gossiper, its events so far, and what can be done to it."""

    def __init__(self, gossiper: Gossiper, transport: ScenarioTransport, clock: WrongClock) -> None:
        self.gossiper = gossiper
        self.transport = transport
        self.clock = clock
        self._events: list[dict[str, Any]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._settling: asyncio.Task[bool] | None = None

    async def start(self) -> None:
        """Start the gossiper and listen to it.

        Raises:
            GossipError: it cannot start.
        """
        await self.gossiper.start()
        self._tasks.add(asyncio.create_task(self._listen(), name="scenario events"))
        settling = self.gossiper.wait_settled(timeout_seconds=_SETTLE_SECONDS_MAX)
        self._settling = asyncio.create_task(settling, name="scenario settling")
        self._tasks.add(self._settling)

    async def _listen(self) -> None:
        async for event in self.gossiper.events():
            self._events.append(described(event))

    async def stop(self) -> None:
        """Stop cleanly."""
        self.drop_tasks()
        await self.gossiper.stop()

    def drop_tasks(self) -> None:
        """Listen no more."""
        for task in self._tasks:
            task.cancel()

    def observe(self) -> Observation:
        """What it sees now."""
        settled = self._settling is not None and self._settling.done() and self._settling.result()
        view = {one.endpoint: _seen(one) for one in self.gossiper.members() if one.generation}
        return Observation(view, list(self._events), self.gossiper.failure, settled)

    async def do(self, operation: str, arguments: Mapping[str, Any]) -> Any:
        """Do one operation; return its result, a plain value.

        Raises:
            GossipError: it is refused.
        """
        return await self._operations()[operation](**arguments)

    def _operations(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        return {
            "publish": self._publish,
            "leave": self._leave,
            "drain": self.gossiper.drain,
            "disable": self.gossiper.disable_gossip,
            "enable": self.gossiper.enable_gossip,
            "remove": self._remove,
            "assassinate": self._assassinate,
            "set_status": self._set_status,
            "set_health": self._set_health,
            "clock": self._set_clock,
            "fault": self._fault,
            "release": self._release,
            "heal": self._heal,
        }

    async def _publish(self, values: dict[str, str | None]) -> None:
        await self.gossiper.publish(values)

    async def _leave(self) -> dict[str, list[str]]:
        report = await self.gossiper.leave()
        return {"knowing": list(report.knowing), "unaware": list(report.unaware)}

    async def _remove(self, host_id: str) -> None:
        self.gossiper.remove(host_id)

    async def _assassinate(self, endpoint: str, force: bool) -> None:
        self.gossiper.assassinate(endpoint, force=force)

    async def _set_status(self, status: str) -> None:
        self.gossiper.set_status(status)

    async def _set_health(self, serving: bool) -> None:
        self.gossiper.set_health(serving=serving, reason="" if serving else "scenario")

    async def _set_clock(self, offset_seconds: float) -> None:
        self.clock.offset_seconds = offset_seconds

    async def _fault(self, fault: str, kind: str, peers: list[str]) -> None:
        act = {"lose": self.transport.lose, "hold": self.transport.hold, "copy": self.transport.copy}[fault]
        for peer in peers:
            act(kind, peer)

    async def _release(self) -> int:
        return self.transport.release()

    async def _heal(self) -> None:
        self.transport.heal()


def _seen(view: EndpointView) -> dict[str, Any]:
    return {
        "liveness": view.liveness.value,
        "status": view.status,
        "host_id": view.host_id,
        "serving": view.serving,
        "states": {key: value.value for key, value in view.states.items() if is_user_key(key)},
    }


# -- as a process of its own ------------------------------------------------------------------------------------------


class _Served:
    """Takes commands from a pipe until it is closed; every one is a task, because leaving takes a while."""

    def __init__(self) -> None:
        self._member: Member | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the end of standard input: then whoever started this process is gone."""
        reader = asyncio.StreamReader(limit=_LINE_BYTES_MAX)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            task = asyncio.create_task(self._answer(json.loads(line)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        # Nobody is there to whom a goodbye would matter.
        os._exit(0)

    async def _answer(self, command: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"id": command["id"]}
        try:
            answer["result"] = await self._do(command["do"], command["arguments"])
        except GossipError as error:
            answer["refused"] = str(error)
        except Exception as error:
            logging.getLogger(__name__).exception("command %s", command["do"])
            answer["broken"] = repr(error)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    async def _do(self, operation: str, arguments: dict[str, Any]) -> Any:
        if operation == "start":
            return await self._start(**arguments)
        if self._member is None:
            raise NotRunningError("not started")
        if operation == "observe":
            return asdict(self._member.observe())
        if operation == "stop":
            return await self._member.stop()
        return await self._member.do(operation, arguments)

    async def _start(self, plan: dict[str, Any], routes: dict[str, str]) -> None:
        start = StartPlan(**plan)
        config = start.config(listen="127.0.0.1:0")
        metrics = GossipMetrics()
        listener = _Listener(GrpcTransport(config.listen, metrics=metrics))
        transport = ScenarioTransport(listener, routes)
        clock = WrongClock(start.clock_offset_seconds)
        gossiper = Gossiper(config, transport=transport, clock=clock.now)
        gossiper.metrics = metrics
        member = Member(gossiper, transport, clock)
        await member.start()
        self._member = member


class _Listener:
    """Tells the one who started this process where the transport listens, before anybody is asked to join."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.send = inner.send
        self.stop = inner.stop

    async def start(self, handler: Handler) -> str:
        bound = await self._inner.start(handler)
        sys.stdout.write(json.dumps({"id": LISTENING, "result": bound}) + "\n")
        sys.stdout.flush()
        return bound


def main() -> None:
    """Entry point of the process."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    asyncio.run(_Served().run())


if __name__ == "__main__":
    main()
