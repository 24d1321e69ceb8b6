"""A whole cluster: machines, network, truth, trace, and what an operator can do to it.

Lives here: what there is and its beginning and end. Not here: which faults come when (``faults``), what must hold
(``checkers``, ``convergence``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Final

import xxhash

from gossiper.core.io import (
    Notify,
)
from gossiper.errors import GossipError, LocalStateError
from gossiper.events import (
    EndpointAlive,
    EndpointDead,
    EndpointForgotten,
    EndpointJoined,
    EndpointLeft,
    EndpointRemoved,
    EndpointReplaced,
    EndpointRestarted,
    StateChanged,
)
from gossiper.simulation.checkers import Checkers
from gossiper.simulation.loop import VirtualLoop
from gossiper.simulation.machine import OFFSET_SECONDS_MAX, GenerationFile, Machine, MachineClock
from gossiper.simulation.network import Network
from gossiper.simulation.options import SimulationOptions, Swarm
from gossiper.simulation.process import Process
from gossiper.simulation.trace import Trace
from gossiper.simulation.truth import Truth
from gossiper.simulation.violation import InvariantViolation

PORT: Final = 7000
_HOST_ID: Final = re.compile(r"host id ([0-9a-f-]{36})")
#: Share of machines whose host id stands in their configuration.
HOST_ID_CONFIGURED: Final = 0.3
#: Nodes present at the start begin within so many seconds of each other.
START_SPREAD_SECONDS: Final = 2.0


class Cluster:
    """Everything that one seed brings about."""

    def __init__(
        self, options: SimulationOptions, swarm: Swarm, *, trace_sink: Callable[[str], object] | None = None
    ) -> None:
        self.options = options
        self.swarm = swarm
        self.loop = VirtualLoop(options.seed)
        self.trace = Trace(self.loop, trace_sink)
        self.truth = Truth()
        self.checkers = Checkers(self.truth)
        self.network = Network(self.loop, swarm)
        self.faults: Counter[str] = Counter()
        """Operations and faults that really happened, by kind."""
        self.counters: Counter[str] = Counter()
        """Counters of all engines and shells together."""
        self.machines: list[Machine] = []
        self.node_seconds = 0.0
        """Virtual time that processes ran, summed over them."""
        self.faults_over = False
        """From now on nothing new happens; what is broken outside the core stays so."""
        self._core: frozenset[int] = frozenset()
        self._rng = self.loop.stream("cluster")
        self._started: dict[int, float] = {}
        self._addresses = 0
        self._seeds = tuple(self._new_endpoint(index) for index in range(swarm.seeds))
        for _ in range(swarm.nodes_at_start):
            machine = self.add_machine()
            self.loop.at(self._rng.uniform(0.0, START_SPREAD_SECONDS), self.start, machine)

    # -- machines ----------------------------------------------------------------------------------------------------

    def _new_endpoint(self, index: int) -> str:
        """An address that nobody had before."""
        self._addresses += 1
        return f"10.{self._addresses >> 8 & 255}.{self._addresses & 255}.{index % 250 + 1}:{PORT}"

    def add_machine(self) -> Machine:
        """One more machine, on which nothing runs yet."""
        index = len(self.machines)
        endpoint = self._seeds[index] if index < len(self._seeds) else self._new_endpoint(index)
        rng = self.loop.stream(f"machine/{index}")
        right = rng.random() >= self.swarm.wrong_clocks
        offset = rng.uniform(-2.0, 2.0) if right else rng.uniform(-OFFSET_SECONDS_MAX, OFFSET_SECONDS_MAX)
        machine = Machine(
            index=index,
            endpoint=endpoint,
            seeds=self._seeds,
            clock=MachineClock(rng.uniform(0.0, 1e6), offset),
            disk=GenerationFile(rng, host_id_configured=rng.random() < HOST_ID_CONFIGURED),
        )
        self.machines.append(machine)
        self.network.register(endpoint, machine)
        return machine

    def move(self, machine: Machine) -> None:
        """Give a machine without a process a new address; the old one leads nowhere from now on."""
        machine.former_endpoints.append(machine.endpoint)
        machine.endpoint = self._new_endpoint(machine.index)
        self.network.register(machine.endpoint, machine)
        self.trace.line(f"move {machine.former_endpoints[-1]} to {machine.endpoint}")

    def running(self) -> list[Machine]:
        """Machines on which a process takes part in gossip, by index."""
        return [m for m in self.machines if m.process is not None and m.process.gossips]

    def free(self) -> list[Machine]:
        """Machines without a process, by index."""
        return [machine for machine in self.machines if machine.process is None]

    def end_faults(self, core: list[Machine]) -> None:
        """Faults end among ``core``; everything else stays as it is at this moment, for good."""
        self.faults_over = True
        self._core = frozenset(machine.index for machine in core)
        self.network.calm(self._core)
        self.trace.line(f"faults end among {sorted(self._core)}")
        for machine in core:
            process = machine.process
            machine.disk.restore_writes()
            if process is None:
                self.start(machine)
            else:
                process.slow_seconds = 0.0
                if process.paused:
                    process.resume()
                process.enable()

    def frozen(self, machine: Machine) -> bool:
        """Whether what is wrong with this machine stays so."""
        return self.faults_over and machine.index not in self._core

    # -- processes ---------------------------------------------------------------------------------------------------

    def start(self, machine: Machine) -> bool:
        """Start a process; False when one runs already or the disk does not let it."""
        if machine.process is not None or machine.retired or self.frozen(machine):
            return False
        machine.powered = True
        machine.incarnations += 1
        try:
            machine.process = Process(self, machine)
        except LocalStateError as error:
            self.trace.line(f"start {machine.endpoint} fails: {error}")
            self.faults["start_failed"] += 1
            return False
        self._started[machine.index] = self.loop.now
        self.truth.add(machine.endpoint)
        self.trace.line(f"start {machine.endpoint} host id {machine.disk.host_id}")
        return True

    def joined(self, process: Process) -> None:
        """A process has ended its shadow round and gossips."""
        self.trace.line(f"join {process.endpoint} generation {process.engine.generation}")

    def refused(self, process: Process, error: GossipError) -> None:
        """A process may not or cannot join: it ends, somebody puts right what is wrong, and it is tried again."""
        machine = process.machine
        self.trace.line(f"refused {machine.endpoint}: {error}")
        self.faults["join_refused"] += 1
        self._ended(machine)
        if self.frozen(machine):
            return
        text = str(error)
        if isinstance(error, LocalStateError):
            machine.disk.restore_writes()
        elif "already exists" in text:
            self._settle_collision(machine, text)
        elif "cannot replace" in text and "moves" not in text:
            machine.replaces = None
        elif "was removed" in text or "has left" in text:
            machine.disk.renew()
        self.try_again(machine)

    def doubled(self, process: Process, text: str) -> None:
        """The cluster remembers another host id at its address, in a greater generation: nobody listens to it.

        That is how a node ends that lost its directory, found its clock behind and reached nobody at its start. It can
        only warn; an operator has to decide which of the two it is.
        """
        if not process.alive or self.frozen(process.machine):
            return
        self.kill(process.machine)
        self.faults["doubled"] += 1
        self._settle_collision(process.machine, text)
        self.try_again(process.machine)

    def _settle_collision(self, machine: Machine, text: str) -> None:
        """Its directory was lost, and the cluster knows its address under another host id, which the text names."""
        named = _HOST_ID.search(text)
        known_host_id = named.group(1) if named else None
        remedy = self._rng.choice(("backup", "replace", "move"))
        if remedy == "backup" or machine.index in self._core:
            machine.disk.restore(self.truth.greatest_generation(machine.endpoint), known_host_id)
            self.faults["backup_restored"] += 1
        elif remedy == "replace" or machine.is_seed:
            machine.replaces = machine.endpoint
            self.faults["replace_self"] += 1
        else:
            self.move(machine)
            self.faults["new_address"] += 1

    def try_again(self, machine: Machine) -> None:
        """A supervisor starts a process that ended, after a while."""
        in_core = machine.index in self._core
        self.loop.after(1.0 if in_core else self._rng.uniform(1.0, 10.0), self.start, machine)

    def stopped_itself(self, process: Process, reason: str) -> None:
        """The engine says that this node may not go on."""
        machine = process.machine
        self.trace.line(f"stopped itself {machine.endpoint}: {reason}")
        self.faults["stopped_itself"] += 1
        if not self.truth.removed(machine.endpoint):
            raise InvariantViolation("stopped_without_reason", f"{machine.endpoint}: {reason}")
        self._ended(machine)
        machine.disk.renew()
        self.try_again(machine)

    def kill(self, machine: Machine, *, power_off: bool = False) -> None:
        """End a process without a word."""
        if machine.process is None:
            return
        self.trace.line(f"kill {machine.endpoint}{' with its machine' if power_off else ''}")
        self._ended(machine)
        machine.powered = not power_off

    def stopped(self, process: Process) -> None:
        """A process has shut down in good order."""
        self.trace.line(f"stop {process.endpoint}")
        self._ended(process.machine)
        if process.machine.index in self._core:
            self.try_again(process.machine)

    def _ended(self, machine: Machine) -> None:
        if machine.process is not None:
            machine.process.kill()
            machine.process = None
            self.node_seconds += self.loop.now - self._started.pop(machine.index)

    def generation_used_before(self, process: Process) -> None:
        """A node without its file is about to repeat a generation: it dies, and an operator restores a backup."""
        machine = process.machine
        self.faults["backup_restored"] += 1
        self.kill(machine)
        machine.disk.restore(self.truth.greatest_generation(machine.endpoint))
        self.try_again(machine)

    def finish(self) -> None:
        """Account for the processes that still run."""
        for started in self._started.values():
            self.node_seconds += self.loop.now - started
        self._started.clear()

    # -- what processes report ---------------------------------------------------------------------------------------

    def delivered(self, kind: str, source: int | str, destination: str, data: bytes) -> None:
        """A process has taken a packet."""
        network = self.network
        network.messages += 1
        network.bytes += len(data)
        self.trace.line(f"{kind} {source} > {destination} {len(data)} {xxhash.xxh3_64_hexdigest(data)}")

    def notified(self, effect: Notify) -> None:
        """An engine told its subscribers."""
        event = effect.event
        match event:
            case EndpointJoined(endpoint, new):
                self.trace.line(f"joined {endpoint} generation {new.generation}")
            case EndpointAlive(endpoint, _, new):
                self.counters["alive"] += 1
                self.trace.line(f"alive {endpoint} generation {new.generation}")
            case EndpointDead(endpoint, old, _, reason):
                self.counters["convicted" if reason == "convicted" else "dead_by_status"] += 1
                self.trace.line(f"dead {endpoint} generation {old.generation} {reason}")
            case EndpointRestarted(endpoint, old, new):
                self.trace.line(f"restarted {endpoint} generation {old.generation} to {new.generation}")
            case StateChanged(endpoint, _, new, keys):
                self.trace.line(f"changed {endpoint} version {new.states_version} {','.join(keys)}")
            case EndpointReplaced(endpoint, old, new):
                self.trace.line(f"replaced {old.endpoint} generation {old.generation} by {endpoint} {new.generation}")
            case EndpointLeft(endpoint, _, new) | EndpointRemoved(endpoint, _, new):
                self.trace.line(f"gone {endpoint} generation {new.generation} {new.status}")
            case EndpointForgotten(endpoint, old, reason):
                self.trace.line(f"forgotten {endpoint} generation {old.generation} {reason}")
            case _:
                self.trace.line(type(event).__name__)
