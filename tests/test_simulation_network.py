"""What the simulated world itself does: time, clocks, disks, links. A simulation that lies finds nothing."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from gossiper.errors import LocalStateError
from gossiper.simulation.loop import VirtualLoop
from gossiper.simulation.machine import EPOCH_SECONDS, GenerationFile, Machine, MachineClock
from gossiper.simulation.network import Network
from gossiper.simulation.options import Swarm, quiet
from gossiper.simulation.violation import InvariantViolation


class FakeProcess:
    """Records what the network brings."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.requests: list[bytes] = []
        self.answers: list[tuple[int, bytes]] = []
        self.failures: list[tuple[int, str]] = []

    def requested(self, kind: str, data: bytes, source: int, caller: Any, call: int) -> None:
        self.requests.append(data)

    def answered(self, call: int, data: bytes) -> None:
        self.answers.append((call, data))

    def failed(self, call: int, reason: str) -> None:
        self.failures.append((call, reason))


class World:
    """Two machines with a process each."""

    def __init__(self, **swarm: float) -> None:
        self.loop = VirtualLoop(1)
        settings: Swarm = replace(quiet(2), **swarm)  # type: ignore[arg-type]  # only numbers are given here
        self.network = Network(self.loop, settings)
        self.machines = [self._machine(index) for index in range(2)]
        self.processes = [FakeProcess(machine) for machine in self.machines]
        for machine, process in zip(self.machines, self.processes, strict=True):
            machine.process = process  # type: ignore[assignment]  # has all that the network uses

    def _machine(self, index: int) -> Machine:
        machine = Machine(
            index=index,
            endpoint=f"10.0.0.{index + 1}:7000",
            seeds=(),
            clock=MachineClock(0.0, 0.0),
            disk=GenerationFile(Random(index)),
        )
        self.network.register(machine.endpoint, machine)
        return machine

    def send(self, times: int = 1) -> None:
        caller: Any = self.processes[0]
        for call in range(times):
            self.network.request(caller, call, self.machines[1].endpoint, "syn", b"%d" % call)

    @property
    def arrived(self) -> list[bytes]:
        return self.processes[1].requests


def test_actions_run_in_order_of_time_then_of_scheduling() -> None:
    loop = VirtualLoop(0)
    seen: list[str] = []
    loop.at(2.0, seen.append, "late")
    loop.at(1.0, seen.append, "first")
    loop.at(1.0, seen.append, "second")
    loop.at(-5.0, seen.append, "past is now")
    loop.run_until(1.5)
    assert seen == ["past is now", "first", "second"]
    assert loop.now == 1.5


def test_time_that_stands_still_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossiper.simulation.loop.ACTIONS_PER_INSTANT_MAX", 100)
    loop = VirtualLoop(0)

    def again() -> None:
        loop.after(0.0, again)

    again()
    with pytest.raises(InvariantViolation, match="time_stands_still"):
        loop.run_until(1.0)


def test_streams_are_repeatable_and_apart() -> None:
    first, same, other = VirtualLoop(7).stream("a"), VirtualLoop(7).stream("a"), VirtualLoop(7).stream("b")
    draws = [stream.random() for stream in (first, same, other)]
    assert draws[0] == draws[1] != draws[2]


def test_a_packet_arrives_after_its_latency() -> None:
    world = World()
    world.send()
    assert not world.arrived
    world.loop.run_until(1.0)
    assert world.arrived == [b"0"]


def test_a_blocked_link_is_one_way() -> None:
    world = World()
    world.network.block([(0, 1)])
    world.send()
    world.network.answer(world.machines[1], world.processes[0], 1, b"answer")  # type: ignore[arg-type]
    world.loop.run_until(1.0)
    assert not world.arrived
    assert world.processes[0].answers == [(1, b"answer")]
    assert world.network.counts["packets_blocked"] == 1


def test_overlapping_blocks_are_undone_one_by_one() -> None:
    world = World()
    world.network.block([(0, 1)])
    world.network.block([(0, 1)])
    world.network.unblock([(0, 1)])
    world.send()
    world.loop.run_until(1.0)
    assert not world.arrived
    world.network.unblock([(0, 1)])
    world.send()
    world.loop.run_until(2.0)
    assert world.arrived == [b"0"]


def test_a_clogged_link_holds_packets_back() -> None:
    world = World()
    world.network.clog([(0, 1)], until=10.0)
    world.send(3)
    world.loop.run_until(9.9)
    assert not world.arrived
    world.loop.run_until(11.0)
    assert sorted(world.arrived) == [b"0", b"1", b"2"]


def test_loss_and_duplicates_come_at_their_share() -> None:
    world = World(loss=0.3, duplicate=0.2)
    world.send(5000)
    world.loop.run_until(60.0)
    lost, doubled = world.network.counts["packets_lost"], world.network.counts["packets_duplicated"]
    assert 1300 < lost < 1700
    assert 600 < doubled < 800
    assert len(world.arrived) == 5000 - lost + doubled


def test_reordering_really_reorders() -> None:
    world = World(reorder=0.5)
    world.send(100)
    world.loop.run_until(60.0)
    assert len(world.arrived) == 100
    assert world.arrived != sorted(world.arrived, key=int)


def test_calm_links_have_no_faults() -> None:
    world = World(loss=1.0)
    world.network.block([(0, 1)])
    world.network.calm([0, 1])
    world.send(10)
    world.loop.run_until(1.0)
    assert len(world.arrived) == 10


def test_a_recorded_request_is_replayed_to_whoever_listens_then() -> None:
    world = World(record=1.0)
    assert not world.network.replay()
    world.send()
    world.loop.run_until(1.0)
    successor = FakeProcess(world.machines[1])
    world.machines[1].process = successor  # type: ignore[assignment]
    assert world.network.replay()
    world.loop.run_until(2.0)
    assert successor.requests == [b"0"]


@pytest.mark.parametrize(("powered", "failures"), [(True, [(0, "unavailable")]), (False, [])])
def test_a_dead_process_refuses_and_a_dead_machine_is_silent(powered: bool, failures: list[tuple[int, str]]) -> None:
    world = World()
    world.machines[1].process = None
    world.machines[1].powered = powered
    world.send()
    world.loop.run_until(5.0)
    assert world.processes[0].failures == failures


def test_clocks_jump_and_drift_within_an_hour_and_the_monotonic_one_never_moves_with_them() -> None:
    clock = MachineClock(100.0, 0.0)
    clock.jump(10.0, -1800.0)
    assert clock.now(10.0) == (110.0, EPOCH_SECONDS + 10.0 - 1800.0)
    clock.drift(10.0, 0.5)
    assert clock.now(110.0).wall == EPOCH_SECONDS + 110.0 - 1800.0 + 50.0
    assert clock.now(110.0).monotonic == 210.0
    assert clock.offset(1e6) == 3600.0


def test_the_generation_file_fails_like_a_disk() -> None:
    disk = GenerationFile(Random(0))
    assert disk.load() is None
    disk.store(5)
    host_id = disk.host_id
    with pytest.raises(LocalStateError, match="not greater"):
        disk.store(5)
    disk.writes_fail = True
    with pytest.raises(LocalStateError, match="no space"):
        disk.store(6)
    assert disk.load() == 5
    disk.corrupt = True
    with pytest.raises(LocalStateError, match="corrupt"):
        disk.load()
    disk.restore_writes()
    assert disk.load() is None
    assert disk.host_id != host_id, "a new node"
    disk.restore(9, host_id)
    assert (disk.load(), disk.host_id) == (9, host_id)
