"""Does what the commands of a scenario say, on any backend, and writes the transcript."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from gossiper.errors import GossipError
from gossiper.scenario.backend import Backend, Link
from gossiper.scenario.language import HEALTH_WORDS, Command, Condition, Scenario, ScenarioError, Start
from gossiper.scenario.member import StartPlan
from gossiper.scenario.transcript import LIVENESS_WORD, Names, seen_words, transcript

#: Both backends gossip ten times a second, so that one file has one meaning. Deadlines are in proportion.
INTERVAL_SECONDS: Final = 0.1
_SETTINGS: Final[dict[str, Any]] = {
    "cluster_name": "scenario",
    "interval_seconds": INTERVAL_SECONDS,
    "rpc_timeout_seconds": 10 * INTERVAL_SECONDS,
    "shadow_timeout_seconds": 50 * INTERVAL_SECONDS,
    # As Cassandra's 5 s at one round per second: far below a conviction.
    "local_pause_seconds": 5 * INTERVAL_SECONDS,
    "shutdown_grace_seconds": 1.0,
}
#: The transcript is final once it has stayed the same for so long (looked at once in each of them), ...
_QUIET_INTERVALS: Final = 5
#: ... or as it is after so long.
_QUIET_INTERVALS_MAX: Final = 60


@dataclass(slots=True)
class _Node:
    name: str
    address: int = 0
    endpoint: str = ""
    files: int = 0
    host_id: str = ""
    clock_offset_seconds: float = 0.0
    running: bool = False
    paused: bool = False
    starting: asyncio.Task[None] | None = None
    start_refused: str | None = None
    settings: tuple[tuple[str, str], ...] = ()


class Runner:
    """One run of one scenario."""

    def __init__(self, scenario: Scenario, backend: Backend) -> None:
        self._scenario = scenario
        self._backend = backend
        self._names = Names(scenario.nodes)
        self._nodes = {name: _Node(name) for name in scenario.nodes}
        self._settings = dict(_SETTINGS)
        self._cut_links: set[Link] = set()
        self._delays: dict[Link, float] = {}
        self._refusal: str | None = None
        self._refused_where = ""
        self._notes: list[str] = []
        self._recorded: tuple[str, ...] = ()
        self._acts: dict[str, Callable[[Command], Awaitable[None]]] = {
            "configure": self._configure,
            "add": self._add,
            "begin": self._begin,
            "restart": self._restart,
            "replace": self._replace,
            "kill": self._kill,
            "shutdown": self._shutdown,
            "pause": self._pause,
            "resume": self._resume,
            "set": self._set,
            "status": self._status,
            "health": self._health,
            "clock": self._clock,
            "leave": self._leave,
            "drain": self._drain,
            "disable": self._disable,
            "enable": self._enable,
            "remove": self._remove,
            "assassinate": self._assassinate,
            "cut": self._cut,
            "isolate": self._isolate,
            "split": self._split,
            "delay": self._delay,
            "heal": self._heal,
            "lose": self._lose,
            "hold": self._hold,
            "copy": self._hold,
            "release": self._release,
            "wait": self._wait,
            "until": self._until,
            "expect": self._expect,
            "refused": self._refused,
            "record": self._record,
        }
        for node in self._nodes.values():
            node.endpoint = self._names.endpoint(node.name, 0)
            self._new_files(node)
        self._new_addresses = {
            name: sum(
                command.start.new_address and name in command.names
                for command in scenario.commands
                if command.verb == "restart"
            )
            for name in scenario.nodes
        }

    async def run(self) -> tuple[str, ...]:
        """Run all commands; the transcript.

        Raises:
            ScenarioError: it did not go as the scenario says; names the line.
        """
        addresses = {name: range(1 + new) for name, new in self._new_addresses.items()}
        endpoints = [self._names.endpoint(name, number) for name, numbers in addresses.items() for number in numbers]
        await self._backend.prepare(self._nodes, endpoints)
        try:
            for command in self._scenario.commands:
                await self._run_command(command)
            self._nothing_refused()
            return await self._quiet_transcript()
        finally:
            for node in self._nodes.values():
                if node.starting is not None:
                    node.starting.cancel()
            await self._backend.close()

    async def _run_command(self, command: Command) -> None:
        where = f"{self._scenario.name}:{command.line}: {command.text}"
        if command.verb != "refused":
            self._nothing_refused()
        try:
            await self._acts[command.verb](command)
        except ScenarioError as error:
            raise ScenarioError(f"{where}: {error}") from None
        except GossipError as error:
            self._refusal = str(error)
            self._refused_where = where
            self._notes.append(f"{command.text}: refused")

    def _nothing_refused(self) -> None:
        if self._refusal is not None:
            raise ScenarioError(f"{self._refused_where}: refused: {self._names.in_text(self._refusal)}")

    async def _refused(self, command: Command) -> None:
        refusal, self._refusal = self._refusal, None
        if refusal is None:
            raise ScenarioError("nothing was refused")
        if command.word not in self._names.in_text(refusal):
            raise ScenarioError(f"it was refused otherwise: {self._names.in_text(refusal)}")

    # -- life of nodes -----------------------------------------------------------------------------------------------

    async def _configure(self, command: Command) -> None:
        self._settings.update(_typed((key, value or "") for key, value in command.pairs))

    async def _add(self, command: Command) -> None:
        for name in command.names:
            node = self._nodes[name]
            self._prepare_start(node, command.start)
            await self._start(node)

    async def _begin(self, command: Command) -> None:
        for name in command.names:
            node = self._nodes[name]
            self._prepare_start(node, command.start)
            node.starting = asyncio.create_task(self._start_later(node), name=f"scenario begin {name}")

    async def _start_later(self, node: _Node) -> None:
        try:
            await self._start(node)
        except GossipError as error:
            node.start_refused = str(error)

    async def _restart(self, command: Command) -> None:
        for name in command.names:
            node = self._nodes[name]
            if node.running:
                raise ScenarioError(f"{name} runs; kill it, or shut it down")
            self._prepare_start(node, command.start)
            await self._start(node)

    async def _replace(self, command: Command) -> None:
        node = self._nodes[command.other]
        self._prepare_start(node, command.start)
        await self._start(node, {"replace": self._nodes[command.names[0]].host_id})

    def _prepare_start(self, node: _Node, start: Start) -> None:
        if start.clock_offset_seconds is not None:
            node.clock_offset_seconds = start.clock_offset_seconds
        if start.without_files:
            node.files += 1
            self._new_files(node)
        if start.new_address:
            node.endpoint = self._names.new_endpoint(node.name)
        if start.address_of is not None:
            node.endpoint = self._names.endpoint(start.address_of, 0)
        if start.files_of is not None:
            node.host_id = self._nodes[start.files_of].host_id
        node.settings = start.settings
        node.start_refused = None

    def _new_files(self, node: _Node) -> None:
        node.host_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{node.name}/{node.files}"))
        self._names.add_host_id(node.host_id, node.name, node.files)

    async def _start(self, node: _Node, more: dict[str, Any] | None = None) -> None:
        seeds = [self._nodes[name].endpoint for name in self._scenario.seeds]
        settings = {
            **self._settings,
            "seeds": list(dict.fromkeys(seeds)),
            "host_id": node.host_id,
            **(more or {}),
            **_typed(node.settings),
        }
        data_dir = self._backend.directory / f"{node.name}{node.files}"
        plan = StartPlan(node.endpoint, str(data_dir), node.clock_offset_seconds, settings)
        await self._backend.start(node.name, plan)
        node.running = True

    async def _kill(self, command: Command) -> None:
        for name in command.names:
            node = self._nodes[name]
            node.running = node.paused = False
            await self._backend.kill(name)
            if node.starting is not None:
                node.starting.cancel()
                node.starting = None

    async def _shutdown(self, command: Command) -> None:
        for name in command.names:
            self._must_run(name).running = False
            await self._backend.stop(name)

    async def _pause(self, command: Command) -> None:
        for name in command.names:
            self._must_run(name).paused = True
            await self._backend.pause(name)

    async def _resume(self, command: Command) -> None:
        for name in command.names:
            self._nodes[name].paused = False
            await self._backend.resume(name)

    def _must_run(self, name: str) -> _Node:
        node = self._nodes[name]
        if not node.running or node.paused:
            raise ScenarioError(f"{name} does not run")
        return node

    # -- operations --------------------------------------------------------------------------------------------------

    async def _do(self, name: str, operation: str, **arguments: object) -> Any:
        self._must_run(name)
        return await self._backend.do(name, operation, arguments)

    async def _set(self, command: Command) -> None:
        await self._do(command.names[0], "publish", values=dict(command.pairs))

    async def _status(self, command: Command) -> None:
        await self._do(command.names[0], "set_status", status=command.word)

    async def _health(self, command: Command) -> None:
        await self._do(command.names[0], "set_health", serving=command.word == "serving")

    async def _clock(self, command: Command) -> None:
        node = self._nodes[command.names[0]]
        node.clock_offset_seconds = command.intervals
        await self._do(node.name, "clock", offset_seconds=command.intervals)

    async def _leave(self, command: Command) -> None:
        report = await self._do(command.names[0], "leave")
        knowing, unaware = (
            ", ".join(sorted(map(self._names.of_endpoint, report[key]))) for key in ("knowing", "unaware")
        )
        self._notes.append(f"{command.text}: known to {knowing or 'nobody'}; unknown to {unaware or 'nobody'}")

    async def _drain(self, command: Command) -> None:
        for name in command.names:
            await self._do(name, "drain")

    async def _disable(self, command: Command) -> None:
        for name in command.names:
            await self._do(name, "disable")

    async def _enable(self, command: Command) -> None:
        for name in command.names:
            await self._do(name, "enable")

    async def _remove(self, command: Command) -> None:
        await self._do(command.other, "remove", host_id=self._nodes[command.names[0]].host_id)

    async def _assassinate(self, command: Command) -> None:
        victim = self._nodes[command.names[0]].endpoint
        await self._do(command.other, "assassinate", endpoint=victim, force=command.flag)

    # -- faults ------------------------------------------------------------------------------------------------------

    def _set_links(self) -> None:
        self._backend.set_links(self._cut_links, {link: n * INTERVAL_SECONDS for link, n in self._delays.items()})

    async def _cut(self, command: Command) -> None:
        self._cut_links |= _links(command)
        self._set_links()

    async def _isolate(self, command: Command) -> None:
        for name in command.names:
            others = self._nodes.keys() - {name}
            self._cut_links |= {(name, other) for other in others} | {(other, name) for other in others}
        self._set_links()

    async def _split(self, command: Command) -> None:
        for group in command.groups:
            others = {name for other in command.groups if other is not group for name in other}
            self._cut_links |= {(name, other) for name in group for other in others}
        self._set_links()

    async def _delay(self, command: Command) -> None:
        self._delays.update(dict.fromkeys(_links(command), command.intervals))
        self._set_links()

    async def _heal(self, command: Command) -> None:
        """Links of the named nodes (of all, if none is named) are whole again, and no kind of message is lost."""
        healed = set(command.names or self._nodes)
        self._cut_links = {link for link in self._cut_links if not healed & set(link)}
        self._delays = {link: n for link, n in self._delays.items() if not healed & set(link)}
        self._set_links()
        for node in self._nodes.values():
            if node.running and not node.paused and node.name in healed:
                await self._do(node.name, "heal")

    async def _lose(self, command: Command) -> None:
        sender, receiver = command.names[0], self._nodes[command.other]
        await self._do(sender, "fault", fault="lose", kind=command.word, peers=[receiver.endpoint])

    async def _hold(self, command: Command) -> None:
        sender, receiver = self._nodes[command.names[0]], command.other
        await self._do(receiver, "fault", fault=command.verb, kind=command.word, peers=[sender.endpoint])

    async def _release(self, command: Command) -> None:
        if not await self._do(command.names[0], "release"):
            raise ScenarioError("there was nothing to release")

    # -- waiting and seeing ------------------------------------------------------------------------------------------

    async def _wait(self, command: Command) -> None:
        await asyncio.sleep(command.intervals * INTERVAL_SECONDS)

    async def _until(self, command: Command) -> None:
        patience_seconds = self._backend.deadline_seconds(command.intervals * INTERVAL_SECONDS)
        loop = asyncio.get_running_loop()
        end = loop.time() + patience_seconds
        while missing := await self._missing(command):
            if loop.time() >= end:
                raise ScenarioError(f"not within {patience_seconds:g} s: {'; '.join(missing)}")
            await asyncio.sleep(INTERVAL_SECONDS / 2)

    async def _expect(self, command: Command) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + command.intervals * INTERVAL_SECONDS
        while True:
            if missing := await self._missing(command):
                raise ScenarioError("; ".join(missing))
            if loop.time() >= end:
                return
            await asyncio.sleep(INTERVAL_SECONDS / 2)

    async def _missing(self, command: Command) -> list[str]:
        """What keeps the condition of a command from being true."""
        condition = command.condition
        if condition is None:
            raise AssertionError("the command has a condition")
        if condition.kind == "see":
            return await self._unseen(condition)
        node = self._nodes[condition.observers[0]]
        if condition.kind == "refused":
            refusal = None if node.start_refused is None else self._names.in_text(node.start_refused)
            return [] if refusal is not None and condition.reason in refusal else [f"its start: {refusal}"]
        if condition.kind == "runs":
            return [] if node.running else [f"{node.name} does not run"]
        self._must_run(node.name)
        one = await self._backend.observe(node.name)
        if condition.kind == "stopped":
            failure = None if one.failure is None else self._names.in_text(one.failure)
            return [] if failure is not None and condition.reason in failure else [f"it stopped because of {failure}"]
        return [] if one.settled is (condition.kind == "settled") else [f"settled: {one.settled}"]

    async def _unseen(self, condition: Condition) -> list[str]:
        missing: list[str] = []
        for observer in condition.observers or self._observers():
            self._must_run(observer)
            view = (await self._backend.observe(observer)).view
            for subject in condition.subjects or self._observers():
                endpoint = self._nodes[subject].endpoint
                seen = view.get(endpoint)
                if not all(self._is(test.word, seen) is not test.negated for test in condition.tests):
                    missing.append(f"{observer} sees {subject} {seen_words(endpoint, seen, self._names)}")
        return missing

    def _is(self, word: str, seen: dict[str, Any] | None) -> bool:
        if seen is None or word == "MISSING":
            return seen is None and word == "MISSING"
        key, equals, value = word.partition("=")
        if key == "host":
            return self._names.of_host_id(seen["host_id"]) == value
        if equals:
            return bool(seen["states"].get(key) == value)
        if word.startswith("no "):
            return word.removeprefix("no ") not in seen["states"]
        if word in HEALTH_WORDS:
            return bool(seen["serving"]) is (word == "serving")
        return word in {LIVENESS_WORD[seen["liveness"]], seen["status"]}

    def _observers(self) -> tuple[str, ...]:
        return tuple(name for name, node in self._nodes.items() if node.running and not node.paused)

    async def _record(self, command: Command) -> None:
        """Only what these saw goes into the transcript; what others saw is not determined."""
        self._recorded = command.names

    async def _quiet_transcript(self) -> tuple[str, ...]:
        """The transcript, once nothing changes any more.

        What differs from the expected one gets the patience of the world before it counts: on a machine with other
        work half a second without a change is not the end.
        """
        loop = asyncio.get_running_loop()
        patience_seconds = self._backend.deadline_seconds(_QUIET_INTERVALS * INTERVAL_SECONDS)
        end = loop.time() + self._backend.deadline_seconds(_QUIET_INTERVALS_MAX * INTERVAL_SECONDS)
        lines: tuple[str, ...] = ()
        since, quiet = loop.time(), 0
        while loop.time() < end:
            before, lines = lines, (*self._notes, *await self._transcript())
            quiet = quiet + 1 if lines == before else 0
            since = since if lines == before else loop.time()
            expected = lines == self._scenario.expected
            if quiet >= _QUIET_INTERVALS and (expected or loop.time() - since >= patience_seconds):
                break
            await asyncio.sleep(INTERVAL_SECONDS)
        return lines

    async def _transcript(self) -> tuple[str, ...]:
        observations = {name: await self._backend.observe(name) for name in self._recorded or self._observers()}
        own = {name: self._nodes[name].endpoint for name in observations}
        return transcript(observations, own, self._names)


def _links(command: Command) -> set[Link]:
    a, b = command.names[0], command.other
    return {(a, b), (b, a)} if command.both_ways else {(a, b)}


def _typed(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Settings as they would stand in a file: true, false and numbers are what they look like."""
    values: dict[str, Any] = {}
    for key, text in pairs:
        try:
            values[key] = {"true": True, "false": False}[text] if text in {"true", "false"} else float(text)
        except ValueError:
            values[key] = text
        if isinstance(values[key], float) and values[key].is_integer() and "." not in text:
            values[key] = int(values[key])
    return values
