"""The real coroutines of a gossiper in virtual time: whole clusters under seeded faults, and one fault at a time.

Each seed is 60 virtual seconds of ten nodes. Until second 30 links are cut and healed, nodes hang, are killed and
restarted, wall clocks jump, publishes are cancelled, subscribers are slow; nodes leave for good, are removed, replaced
(at the same address and at another one), and new ones join. Then the faults stop, but for one node that stays dead and
one that stays hanging, and the others must agree. The driver draws every number from the seed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gossiper import (
    EndpointAlive,
    EndpointDead,
    EndpointForgotten,
    EndpointJoined,
    EndpointLeft,
    EndpointRemoved,
    EndpointReplaced,
    EndpointRestarted,
    Event,
    EventsMissed,
    GossipConfig,
    Gossiper,
    JoinError,
    LifecycleError,
    LocalStateError,
    LocalStopped,
    NotRunningError,
    PeerProtocolError,
    PublishError,
    StateChanged,
    TransportError,
)
from gossiper.core.application_states import ApplicationState
from gossiper.core.io import SeedsChanged
from gossiper.core.messages import (
    EchoRequest,
    EndpointState,
    GossipDigestAck2,
    GossipDigestAck2Reply,
    Reply,
    Request,
    Sender,
    VersionedValue,
)
from gossiper.core.versions import version_of
from gossiper.limits import EVENT_QUEUE_MAX, SENDS_IN_FLIGHT_MAX, SENDS_IN_FLIGHT_PER_PEER_MAX
from gossiper.shell import system_clock
from gossiper.simulation.virtual_loop import START_WALL_SECONDS, VirtualClock, VirtualEventLoop, run
from gossiper.storage import NodeStorage
from gossiper.testing import MemoryCluster
from gossiper.transport.base import Handler
from gossiper.transport.memory import MemoryNetwork, MemoryTransport

NODES = 10
INTERVAL_SECONDS = 0.5
# A silent node is convicted after at most 18.4 times two intervals.
FAULTS_UNTIL_SECONDS = 30.0
END_SECONDS = 60.0
SEEDS = range(20)


# -- what a subscriber may be told ----------------------------------------------------------------------------------


@dataclass
class Told:
    """What one subscription has said of one endpoint."""

    generation: int = 0
    alive: bool = False
    gone: bool = False


class EventOrder:
    """Checks the events of one subscription: for each endpoint a legal sequence."""

    def __init__(self, local: str = "") -> None:
        self.local = local
        self.told: dict[str, Told] = {}

    def check(self, event: Event) -> None:
        assert not isinstance(event, LocalStopped | EventsMissed), (
            f"nobody has to stop here, nothing is missed: {event}"
        )
        if isinstance(event, EndpointForgotten):
            told = self.told.pop(event.endpoint, None)
            assert told is not None, f"forgotten, but never told: {event}"
            assert not told.alive, f"forgotten alive: {event}"
            return
        told = self.told.get(event.endpoint)
        if isinstance(event, EndpointJoined):
            assert told is None, f"joined twice: {event}"
            told = self.told[event.endpoint] = Told()
        assert told is not None or event.endpoint == self.local, f"before joined: {event}"
        if told is None:  # the local endpoint never joins
            told = self.told[event.endpoint] = Told()
        assert event.new.generation >= told.generation, f"the generation went back from {told.generation}: {event}"
        self._check_kind(event, told)
        told.generation = event.new.generation

    def _check_kind(self, event: Event, told: Told) -> None:
        if isinstance(event, EndpointReplaced) and event.old.endpoint != event.endpoint:
            assert self.told.pop(event.old.endpoint, None) is not None, f"replaced, but never told: {event}"
        elif isinstance(event, EndpointRestarted | EndpointReplaced):
            assert event.new.generation > told.generation, event
            assert event.old.generation < event.new.generation, event
            # A node that restarted and is down at once is told to have died after the restart.
            told.alive = told.alive and event.new.liveness.value == "down"
            told.gone = False
        elif isinstance(event, EndpointAlive):
            assert not told.alive, f"alive twice: {event}"
            assert not told.gone, f"alive after it was gone for good: {event}"
            assert event.new.generation == told.generation, f"alive in a generation that was not told: {event}"
            told.alive = True
        elif isinstance(event, EndpointDead):
            assert told.alive, f"dead, but was not alive: {event}"
            told.alive = False
        elif isinstance(event, EndpointLeft | EndpointRemoved):
            assert not told.gone, f"gone twice: {event}"
            assert not told.alive, f"gone before it was told to be dead: {event}"
            told.gone = True


def test_the_order_is_really_checked() -> None:
    cluster_event = run(two_events())
    joined, alive = cluster_event
    for wrong in ([alive], [joined, joined], [joined, alive, alive]):
        with pytest.raises(AssertionError):
            check_all(wrong)
    check_all(cluster_event)


def check_all(events: list[Event]) -> None:
    order = EventOrder()
    for event in events:
        order.check(event)


async def two_events() -> list[Event]:
    async with MemoryCluster() as cluster:
        await cluster.start_node()
        await cluster.start_node()
        await cluster.converged()
        subscription = cluster.nodes[0].events()
        return [await anext(subscription), await anext(subscription)]


# -- ten nodes under faults -----------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What one run did, for comparison with another of the same seed."""

    trace: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    internal_errors: float = 0
    published: int = 0
    refused: int = 0
    differences: list[str] = field(default_factory=list)
    stop_seconds: list[float] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()


class Chaos:
    """One run: the cluster, its subscribers and publishers, and the driver of faults."""

    def __init__(self, seed: int, nodes: int) -> None:
        self.rng = Random(f"chaos {seed}")
        self.cluster = MemoryCluster(seed=seed, interval_seconds=INTERVAL_SECONDS)
        self.number = nodes
        self.outcome = Outcome()
        self.ever: list[Gossiper] = []
        self.dead: list[Gossiper] = []
        self.cuts: list[tuple[str, str, bool]] = []
        self.hanging: list[str] = []
        self.gone: dict[str, str] = {}
        """Host ids that are not to come back, and why."""
        self.starting: set[asyncio.Task[None]] = set()
        self.tasks: asyncio.TaskGroup

    @property
    def elapsed(self) -> float:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualEventLoop)
        return loop.elapsed_seconds

    async def run(self) -> Outcome:
        async with asyncio.TaskGroup() as self.tasks, self.cluster:
            for _ in range(self.number):
                g = await self.cluster.start_node()
                clock = self.cluster.clocks[g.endpoint]
                clock.offset_seconds, clock.drift = self.rng.uniform(-5, 5), self.rng.uniform(-1e-4, 1e-4)
                self.attend(g)
                await asyncio.sleep(self.rng.uniform(0.0, 0.5))
            while self.elapsed < FAULTS_UNTIL_SECONDS:
                await asyncio.sleep(self.rng.uniform(0.2, 1.5))
                await self.fault()
            await self.recover()
            await asyncio.sleep(END_SECONDS - self.elapsed)
            await self.judge()
        self.outcome.leaked = sorted(t.get_name() for t in asyncio.all_tasks() if t is not asyncio.current_task())
        for (source, target), count in sorted(self.cluster.network.messages.items()):
            self.outcome.trace.append(
                f"{source} -> {target} {count} {self.cluster.network.message_bytes[source, target]}"
            )
        return self.outcome

    # -- the application ---------------------------------------------------------------------------------------------

    def attend(self, g: Gossiper) -> None:
        self.ever.append(g)
        slow = self.rng.random() < 0.3
        self.tasks.create_task(self.subscribe(g, self.rng.uniform(0.05, 0.6) if slow else 0.0), name="subscriber")
        self.tasks.create_task(self.publish(g, Random(self.rng.random())), name="publisher")

    async def subscribe(self, g: Gossiper, pause_seconds: float) -> None:
        order = EventOrder(g.endpoint)
        async for event in g.events():
            order.check(event)
            self.record(g, event)
            if pause_seconds:
                await asyncio.sleep(pause_seconds)

    def record(self, g: Gossiper, event: Event) -> None:
        text = [f"{self.elapsed:.6f}", g.endpoint, type(event).__name__]
        if isinstance(event, (EndpointForgotten, LocalStopped)):
            text += [event.endpoint, event.reason]
        elif not isinstance(event, EventsMissed):
            text += [event.endpoint, str(event.new.generation), str(event.new.states_version), event.new.liveness]
        self.outcome.trace.append(" ".join(text))

    async def publish(self, g: Gossiper, rng: Random) -> None:
        """Publish one or many values now and then, and give up waiting for some of them."""
        sequence = 0
        while g.info().gossip_active:
            await asyncio.sleep(rng.expovariate(0.3))
            if self.elapsed > END_SECONDS - 20.0:
                return  # time for all to hear of the last one
            sequence = await self.publish_some(g, rng, sequence)

    async def publish_some(self, g: Gossiper, rng: Random, sequence: int) -> int:
        calls = []
        for _ in range(rng.choice((1, 1, 1, 25))):
            sequence += 1
            key = f"key{rng.randrange(5)}"
            value = None if rng.random() < 0.2 else str(sequence)
            calls.append(asyncio.create_task(g.publish({key: value}), name="publish"))
        if rng.random() < 0.3:
            await asyncio.sleep(0)
            for call in calls[:: rng.choice((1, 2))]:
                call.cancel()
        for result in await asyncio.gather(*calls, return_exceptions=True):
            self.outcome.published += isinstance(result, int)
            own = g.member(g.endpoint)
            has_left = own is not None and own.status == "LEFT"
            refusal = LifecycleError if has_left else NotRunningError
            assert isinstance(result, int | NotRunningError | refusal | asyncio.CancelledError), repr(result)
        return sequence

    # -- faults ------------------------------------------------------------------------------------------------------

    async def fault(self) -> None:
        kinds = (
            *("cut", "cut", "one_way", "heal", "heal", "hang", "resume", "jump"),
            *("kill", "kill", "stop", "restart", "restart", "leave", "remove", "replace", "replace", "join"),
        )
        kind = self.rng.choice(kinds)
        if await getattr(self, kind)():
            self.outcome.faults[kind] += 1

    def healthy(self) -> list[Gossiper]:
        return [g for g in self.cluster.nodes if g.endpoint not in self.hanging]

    async def cut(self, *, both: bool = True) -> bool:
        source, target = self.rng.sample([g.endpoint for g in self.cluster.nodes], 2)
        self.cluster.network.cut(source, target, both=both)
        self.cuts.append((source, target, both))
        return True

    async def one_way(self) -> bool:
        return await self.cut(both=False)

    async def heal(self) -> bool:
        if not self.cuts:
            return False
        source, target, both = self.cuts.pop(self.rng.randrange(len(self.cuts)))
        self.cluster.network.heal(source, target, both=both)
        return True

    async def hang(self) -> bool:
        if len(self.hanging) >= 3 or len(self.healthy()) < 4:
            return False
        endpoint = self.rng.choice(self.healthy()).endpoint
        self.cluster.network.hang(endpoint)
        self.hanging.append(endpoint)
        return True

    async def resume(self) -> bool:
        if not self.hanging:
            return False
        self.cluster.network.resume(self.hanging.pop(self.rng.randrange(len(self.hanging))))
        return True

    async def kill(self) -> bool:
        if len(self.healthy()) < 4:
            return False
        g = self.rng.choice(self.healthy())
        await self.cluster.kill(g)
        self.dead.append(g)
        return True

    async def stop(self) -> bool:
        if len(self.healthy()) < 4:
            return False
        g = self.rng.choice(self.healthy())
        await self.stop_in_time(g)
        self.dead.append(g)
        return True

    async def restart(self) -> bool:
        if not self.dead:
            return False
        self.attend(await self.cluster.restart(self.dead.pop(self.rng.randrange(len(self.dead)))))
        return True

    async def leave(self) -> bool:
        """For good: whoever hears of it keeps it as LEFT."""
        if len(self.healthy()) < 5:
            return False
        g = self.rng.choice(self.healthy())
        await g.leave(timeout_seconds=2.0)
        self.gone[g.host_id] = "LEFT"
        await self.stop_in_time(g)
        return True

    async def remove(self) -> bool:
        """An operator acts on any node, perhaps on one that does not hold it to be dead."""
        if not self.dead or not self.healthy():
            return False
        victim = self.rng.choice(self.dead)
        try:
            self.rng.choice(self.healthy()).remove(victim.host_id)
        except LifecycleError:
            return False
        self.dead.remove(victim)
        self.gone[victim.host_id] = "removed"
        return True

    async def replace(self) -> bool:
        if not self.dead:
            return False
        victim = self.dead.pop(self.rng.randrange(len(self.dead)))
        assert victim.config.data_dir is not None
        files = victim.config.data_dir / "successor"
        own: dict[str, object] = {"replace": victim.host_id}
        if self.rng.random() < 0.5:
            host_id = str(uuid.uuid5(uuid.UUID(victim.host_id), "successor"))
            own.update(endpoint=victim.endpoint, data_dir=files, host_id=host_id)
        self.start_later(victim, **own)
        return True

    async def join(self) -> bool:
        if len(self.healthy()) >= self.number:
            return False
        self.start_later(None)
        return True

    def start_later(self, victim: Gossiper | None, **settings: Any) -> None:
        """A replacement watches its victim for ten intervals; other things happen meanwhile."""
        seeds = tuple(g.endpoint for g in self.healthy())
        task = self.tasks.create_task(self.start_new(victim, {"seeds": seeds, **settings}), name="start")
        self.starting.add(task)
        task.add_done_callback(self.starting.discard)

    async def start_new(self, victim: Gossiper | None, settings: dict[str, Any]) -> None:
        try:
            g = await self.cluster.start_node(**settings)
        except JoinError as error:
            # Reached nobody, or the victim is not known to be dead.
            self.record_refusal(str(error))
            if victim is not None:
                self.dead.append(victim)
            return
        if victim is not None:
            self.gone[victim.host_id] = "replaced"
        self.attend(g)

    def record_refusal(self, text: str) -> None:
        self.outcome.refused += 1
        self.outcome.trace.append(f"{self.elapsed:.6f} refused {text}")

    async def jump(self) -> bool:
        self.rng.choice(list(self.cluster.clocks.values())).jump_wall(self.rng.choice((-3600.0, -30.0, 30.0, 3600.0)))
        return True

    # -- the end -----------------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """All is well again, but for one that stays dead and one that stays hanging."""
        while self.cuts:
            await self.heal()
        while len(self.hanging) > 1:
            await self.resume()
        if self.starting:
            await asyncio.wait(set(self.starting))
        while len(self.dead) > 1:
            await self.restart()
        if not self.dead:
            await self.kill()
        if not self.hanging:
            await self.hang()

    async def judge(self) -> None:
        for observer in self.healthy():
            self.outcome.trace += [f"{observer.endpoint} {view}" for view in observer.members()]
        self.outcome.differences = [*self.cluster.differences(*self.healthy()), *self.quarrels(), *self.revenants()]
        for g in self.healthy():
            await self.stop_in_time(g)
        self.outcome.internal_errors = sum(g.metrics.value("gossiper_internal_errors_total") for g in self.ever)

    def quarrels(self) -> list[str]:
        """Who is remembered as dead, left or removed: all must agree on that too."""
        views = {
            g.endpoint: {
                view.endpoint: (view.generation, view.status, view.alive) for view in g.members() if view.generation
            }
            for g in self.healthy()
        }
        said: dict[tuple[str, object], list[str]] = {}
        for observer, view in views.items():
            for endpoint in set().union(*views.values()):
                said.setdefault((endpoint, view.get(endpoint, "nothing")), []).append(observer)
        disputed = {endpoint for endpoint, count in Counter(endpoint for endpoint, _ in said).items() if count > 1}
        return sorted(f"of {one} {seen} is seen by {who}" for (one, seen), who in said.items() if one in disputed)

    def revenants(self) -> list[str]:
        """Who has gone for good is nowhere alive, and who was removed nowhere a member."""
        lines: list[str] = []
        for g in self.healthy():
            for view in g.members():
                why = self.gone.get(view.host_id or "")
                if view.alive and why is not None:
                    lines.append(f"{g.endpoint} holds {view.endpoint} alive, which is gone: {why}")
                if why == "removed" and view.status not in {"LEFT", "removed"}:
                    lines.append(f"{g.endpoint} still has {view.endpoint} as {view.status}, which was {why}")
        return lines

    async def stop_in_time(self, g: Gossiper) -> None:
        begun = self.elapsed
        await self.cluster.stop(g)
        self.outcome.stop_seconds.append(self.elapsed - begun)


def chaos(seed: int, nodes: int = NODES) -> Outcome:
    # Work for a thread takes a while, so that things happen meanwhile.
    return run(Chaos(seed, nodes).run(), thread_seconds=0.003)


@cache
def known_outcome(seed: int) -> Outcome:
    """Run once, looked at by several tests."""
    return chaos(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_healthy_agree_after_faults(seed: int) -> None:
    outcome = known_outcome(seed)
    assert outcome.differences == []
    assert outcome.internal_errors == 0
    assert outcome.leaked == []
    grace_seconds = GossipConfig.local().shutdown_grace_seconds
    assert max(outcome.stop_seconds) <= grace_seconds + 0.001
    assert sum(outcome.faults.values()) >= 10
    assert outcome.published >= 20


def test_the_seeds_cover_every_fault() -> None:
    faults = sum((known_outcome(seed).faults for seed in range(6)), Counter[str]())
    links = {"cut", "one_way", "heal", "hang", "resume"}
    assert set(faults) == links | {"kill", "stop", "restart", "jump", "leave", "remove", "replace", "join"}


@pytest.mark.parametrize("seed", [3, 7])
def test_the_same_seed_does_the_same_things(seed: int) -> None:
    first, second = known_outcome(seed), chaos(seed)
    assert first.trace == second.trace
    assert len(first.trace) > 500
    assert first.digest != known_outcome(2).digest


def test_the_hash_seed_changes_nothing() -> None:
    """Strings hash differently in each process; nothing may depend on it."""
    root = Path(__file__).resolve().parent.parent
    program = "import test_gossiper_shell_virtual as t; print(t.chaos(5, 6).digest)"
    path = os.pathsep.join([str(root), str(root / "tests")])
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
            timeout=50,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


# -- cancellation ---------------------------------------------------------------------------------------------------


def lone(network: MemoryNetwork, directory: Path | None = None, **changes: object) -> Gossiper:
    """A gossiper that is not started; in virtual time when a virtual loop is running."""
    endpoint = "10.0.0.1:7000"
    settings = {"interval_seconds": 1.0, "data_dir": directory, **changes}
    config = GossipConfig(cluster_name="test", listen=endpoint, **settings)  # type: ignore[arg-type]  # the checks of GossipConfig tell
    return Gossiper(config, transport=MemoryTransport(network, endpoint), clock=VirtualClock().now)


def others() -> list[str]:
    return sorted(task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task())


@pytest.mark.parametrize("turns", range(8))
def test_a_cancelled_start_leaves_nothing_behind(tmp_path: Path, turns: int) -> None:
    """Wherever the start is when it is cancelled, the address and the directory are free for another afterwards."""

    async def scenario() -> bool:
        network = MemoryNetwork()
        g = lone(network, tmp_path)
        task = asyncio.create_task(g.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        cancelled = task.cancel()
        result = (await asyncio.gather(task, return_exceptions=True))[0]
        assert isinstance(result, asyncio.CancelledError) == cancelled
        await g.stop()
        assert others() == []
        async with lone(network, tmp_path) as again:
            assert [view.endpoint for view in again.members()] == [again.endpoint]
        return cancelled

    assert run(scenario()) or turns > 2


def test_a_start_cancelled_during_work_in_a_thread_unlocks_the_directory(tmp_path: Path) -> None:
    async def scenario() -> None:
        network = MemoryNetwork()
        first = lone(network, tmp_path)
        task = asyncio.create_task(first.start())
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(1.0)  # the thread ends
        async with lone(network, tmp_path):
            pass

    run(scenario(), thread_seconds=1.0)


@pytest.mark.parametrize("victim", ["main", "start", "both"])
def test_a_main_task_cancelled_before_its_first_step_leaves_nothing_behind(tmp_path: Path, victim: str) -> None:
    """As when a loop that ends cancels all of its tasks."""

    async def scenario() -> None:
        network, loop = MemoryNetwork(), asyncio.get_running_loop()
        g = lone(network, tmp_path)
        begun: list[bool] = []

        def cancel_before_it_begins() -> None:
            if g._main is None:
                loop.call_soon(cancel_before_it_begins)
                return
            begun.append(g._entered.is_set())
            for task in ({g._main}, {starting}, {g._main, starting})[["main", "start", "both"].index(victim)]:
                task.cancel()

        # Asked before the start in every turn of the loop, so it sees the main task before that has its first step.
        loop.call_soon(cancel_before_it_begins)
        starting = asyncio.create_task(g.start())
        assert isinstance((await asyncio.gather(starting, return_exceptions=True))[0], asyncio.CancelledError)
        assert begun == [False]
        assert others() == []
        with pytest.raises(NotRunningError):
            await g.publish({"key": "1"})
        await g.stop()
        async with lone(network, tmp_path) as again:
            assert [view.endpoint for view in again.members()] == [again.endpoint]

    run(scenario())


def test_an_aborted_node_says_nothing_and_writes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with MemoryCluster() as cluster:
            one = await cluster.start_node()
            two = await cluster.start_node()
            await cluster.converged()
            events = two.events()
            stored = {path: path.read_bytes() for path in _files(two)}
            assert stored
            await two.publish({"key": "1"})
            late = [asyncio.create_task(two.publish({f"key{n}": str(n)})) for n in range(40)]
            await asyncio.sleep(0)
            await two.abort()
            await two.abort()
            await two.stop()
            assert {type(result) for result in await asyncio.gather(*late, return_exceptions=True)} <= {
                int,
                NotRunningError,
            }
            assert [event async for event in events], "the subscription ends"
            assert await two.wait_stopped() is None
            assert {path: path.read_bytes() for path in _files(two)} == stored
            seen = one.member(two.endpoint)
            assert seen is not None
            assert (seen.alive, seen.status) == (True, "NORMAL"), "nobody was told"
            await cluster.wait_until(lambda: not one.is_alive(two.endpoint))
            assert [view.status for view in one.members()] == ["NORMAL", "NORMAL"]

    run(scenario())


def test_an_abort_during_a_stop_writes_no_peers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with MemoryCluster(rpc_timeout_seconds=10.0, shutdown_grace_seconds=2.0) as cluster:
            one, two = await cluster.start_node(), await cluster.start_node()
            await cluster.converged()
            cluster.network.hang(two.endpoint)
            stopping = asyncio.create_task(one.stop())
            await asyncio.sleep(0.5)
            for path in _files(one):
                if "peers" in path.name:
                    path.unlink()
            one._stored_peers = None
            await one.abort()
            await asyncio.gather(stopping, return_exceptions=True)
            assert not [path for path in _files(one) if "peers" in path.name]

    run(scenario())


def test_an_abort_before_the_start_does_nothing() -> None:
    async def scenario() -> None:
        g = lone(MemoryNetwork())
        await g.abort()
        async with g:
            assert g.info().gossip_active

    run(scenario())


def _files(g: Gossiper) -> list[Path]:
    assert g.config.data_dir is not None
    return sorted(path for path in g.config.data_dir.rglob("*") if path.is_file())


def test_a_failed_start_leaves_nothing_behind(tmp_path: Path) -> None:
    async def scenario() -> None:
        network = MemoryNetwork()
        async with lone(network):
            second = lone(network, tmp_path)
            with pytest.raises(LocalStateError, match="in use"):
                await second.start()
            await second.stop()
        with NodeStorage(tmp_path) as storage:
            assert storage.load().generation is None, "nobody heard of it, so none was used; and it is unlocked"
        assert others() == []

    run(scenario())


def test_a_cancelled_stop_goes_on_and_a_second_one_waits_for_it() -> None:
    async def scenario() -> None:
        async with MemoryCluster(rpc_timeout_seconds=10.0, shutdown_grace_seconds=2.0) as cluster:
            one, two = await cluster.start_node(), await cluster.start_node()
            await cluster.converged()
            loop = asyncio.get_running_loop()
            cluster.network.hang(two.endpoint)
            begun = loop.time()
            task = asyncio.create_task(one.stop())
            await asyncio.sleep(0.5)
            task.cancel()
            assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
            assert loop.time() - begun == pytest.approx(0.5), "who cancels a stop does not wait for it"
            await one.stop()
            assert loop.time() - begun == pytest.approx(2.0)
            assert not one.info().gossip_active
            await one.stop()

    run(scenario())


@pytest.mark.parametrize("pause_seconds", [0.0, 0.1, 1.5])
def test_a_cancelled_publish_changes_nothing_for_the_others(pause_seconds: float) -> None:
    async def scenario() -> None:
        async with MemoryCluster() as cluster:
            g = await cluster.start_node()
            calls = [asyncio.create_task(g.publish({f"key{n}": str(n)})) for n in range(40)]
            await asyncio.sleep(pause_seconds)
            for call in calls[20:30]:
                call.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            kept = results[:20] + results[30:]
            assert all(isinstance(version, int) for version in kept)
            if pause_seconds == 0.1:
                assert all(isinstance(result, asyncio.CancelledError) for result in results[20:30])
            assert await g.publish({"after": "1"}) > max(version for version in kept if isinstance(version, int))
            with pytest.raises(PublishError):
                await g.publish({})
            assert g._tickets == {}, "nothing is kept for those that gave up"
            assert g.metrics.value("gossiper_internal_errors_total") == 0

    run(scenario())


def test_publishes_that_wait_are_done_by_a_stop() -> None:
    async def scenario() -> None:
        async with MemoryCluster() as cluster:
            g = await cluster.start_node()
            calls = [asyncio.create_task(g.publish({f"key{n}": str(n)})) for n in range(40)]
            await asyncio.sleep(0)
            await g.stop()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(version, int) for version in results)

    run(scenario())


def test_publishes_that_wait_when_a_node_is_killed_are_told_so() -> None:
    async def scenario() -> None:
        async with MemoryCluster() as cluster:
            g = await cluster.start_node()
            calls = [asyncio.create_task(g.publish({f"key{n}": str(n)})) for n in range(40)]
            await asyncio.sleep(0)
            await cluster.kill(g)
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(result) for result in results} <= {int, NotRunningError}

    run(scenario())


def test_who_publishes_while_it_leaves_harms_nobody() -> None:
    async def scenario() -> None:
        async with MemoryCluster() as cluster:
            one, leaving, two, deaf = [await cluster.start_node() for _ in range(4)]
            await cluster.converged()
            cluster.network.hang(deaf.endpoint)  # so the leave waits
            task = asyncio.create_task(leaving.leave(timeout_seconds=5.0))
            for number in range(4):
                await asyncio.sleep(1.0)
                await asyncio.gather(leaving.publish({"key": str(number)}), return_exceptions=True)
            await task
            await asyncio.sleep(60.0)
            assert cluster.differences(one, two) == []

    run(scenario())


# -- timers ---------------------------------------------------------------------------------------------------------


async def rounds_around_a_pause() -> list[float]:
    """Rounds run before a pause of 100 intervals, at its end, and ten intervals later."""
    async with MemoryCluster() as cluster:
        g = await cluster.start_node()
        await asyncio.sleep(10.5)
        rounds = [g.metrics.value("gossiper_rounds_total")]
        cluster.clocks[g.endpoint].stall(100.0)
        await asyncio.sleep(0.1)
        rounds.append(g.metrics.value("gossiper_rounds_total"))
        assert g.info().heartbeat >= 110, "the heartbeat tells the time, not the rounds"
        await asyncio.sleep(10.0)
        return [*rounds, g.metrics.value("gossiper_rounds_total")]


def test_after_a_pause_the_missed_rounds_are_not_made_up_for() -> None:
    before, at_once, later = run(rounds_around_a_pause())
    assert before == 10
    assert 1 <= at_once - before <= 2
    assert later - at_once <= 10


def test_after_a_pause_one_round_is_run() -> None:
    before, at_once, later = run(rounds_around_a_pause())
    assert (at_once - before, later - at_once) == (1, 10)


def test_who_stood_still_convicts_nobody() -> None:
    async def scenario() -> None:
        async with MemoryCluster() as cluster:
            nodes = [await cluster.start_node() for _ in range(3)]
            await cluster.converged()
            await asyncio.sleep(30.0)
            cluster.clocks[nodes[0].endpoint].stall(60.0)
            for _ in range(40):
                await asyncio.sleep(0.25)
                assert cluster.differences() == []
            assert all(g.metrics.value("gossiper_local_pauses_total") == 1 for g in nodes)

    run(scenario())


def test_rounds_keep_their_rhythm_whatever_the_wall_clock_does() -> None:
    async def scenario() -> None:
        async with MemoryCluster() as cluster:
            g = await cluster.start_node()
            clock = cluster.clocks[g.endpoint]
            await asyncio.sleep(0.5)  # between two rounds
            for jump in (3600.0, -7200.0, 86_400.0, -1e6):
                before = g.metrics.value("gossiper_rounds_total")
                clock.jump_wall(jump)
                await asyncio.sleep(20.0)
                assert g.metrics.value("gossiper_rounds_total") == before + 20

    run(scenario())


# -- back-pressure --------------------------------------------------------------------------------------------------


class SilentTransport:
    """A transport whose peers take every request and never answer; counts what is under way."""

    def __init__(self) -> None:
        self.handler: Handler | None = None
        self.under_way: Counter[tuple[str, type[Request]]] = Counter()
        self.sent: Counter[type[Request]] = Counter()
        self.most_to_one = 0
        self.most = 0

    async def start(self, handler: Handler) -> str:
        self.handler = handler
        return "10.0.0.1:7000"

    async def send(self, peer: str, request: Request, timeout_seconds: float) -> Reply:
        kind = (peer, type(request))
        self.under_way[kind] += 1
        self.sent[type(request)] += 1
        self.most_to_one = max(self.most_to_one, self.under_way[kind])
        self.most = max(self.most, self.under_way.total())
        try:
            await asyncio.sleep(timeout_seconds)
            raise TransportError(f"{peer}: no answer", reason="deadline")
        finally:
            self.under_way[kind] -= 1

    async def stop(self, grace_seconds: float) -> None:
        return

    def introduce(self, *, first: int, count: int, value: str = "", tick: int = 1) -> Reply:
        """As if 10.0.0.2 told of ``count`` endpoints from 10.1.0.``first`` on."""
        sender = Sender("test", 1, "10.0.0.2:7000", int(START_WALL_SECONDS))
        values = ((ApplicationState.STATUS, VersionedValue(version_of(1, 0), "NORMAL")),)
        if value:
            values = (*values, (value, VersionedValue(version_of(tick, 0), str(tick))))  # type: ignore[assignment]  # a longer tuple
        states = tuple(
            EndpointState(
                endpoint=f"10.1.0.{number}:7000",
                generation=int(START_WALL_SECONDS),
                interval_ms=1000,
                heartbeat=tick,
                from_version=0,
                states_version=version_of(tick, 0),
                values=values,
            )
            for number in range(first, first + count)
        )
        assert self.handler is not None
        return self.handler(GossipDigestAck2(sender, states))


def test_a_hanging_peer_has_two_requests_of_a_kind_under_way_at_most() -> None:
    async def scenario() -> None:
        transport = SilentTransport()
        config = GossipConfig(
            cluster_name="test",
            listen="10.0.0.1:7000",
            interval_seconds=0.1,
            rpc_timeout_seconds=5.0,
        )
        async with Gossiper(config, transport=transport, clock=VirtualClock().now) as g:
            g._do_safely(SeedsChanged(("10.0.0.9:7000",)))
            await asyncio.sleep(20.0)
            assert transport.most_to_one == SENDS_IN_FLIGHT_PER_PEER_MAX
            skipped = g.metrics.value("gossiper_sends_skipped_total")
            # Two per five seconds go out, all other rounds skip theirs.
            assert skipped == g.metrics.value("gossiper_rounds_total") - 8
        assert transport.under_way.total() == 0

    run(scenario())


def test_a_failed_echo_is_reported_so_that_the_next_sign_of_life_tries_again() -> None:
    async def scenario() -> None:
        transport = SilentTransport()
        config = GossipConfig(cluster_name="test", listen="10.0.0.1:7000", echo_timeout_seconds=1.0)
        async with Gossiper(config, transport=transport, clock=VirtualClock().now):
            for tick in range(1, 31):
                transport.introduce(first=1, count=1, value="key", tick=tick)
                await asyncio.sleep(1.1)
            # Not reported, an ECHO would count as failed after two seconds only, and half as many would be sent.
            assert 25 <= transport.sent[EchoRequest] <= 30

    run(scenario())


def test_all_requests_under_way_are_bounded() -> None:
    async def scenario() -> None:
        transport = SilentTransport()
        config = GossipConfig(
            cluster_name="test",
            listen="10.0.0.1:7000",
            interval_seconds=0.1,
            echo_timeout_seconds=30.0,
            rpc_timeout_seconds=30.0,
        )
        async with Gossiper(config, transport=transport, clock=VirtualClock().now) as g:
            for block in range(6):
                assert transport.introduce(first=1 + 40 * block, count=40) == GossipDigestAck2Reply(40)
                await asyncio.sleep(1.0)
            assert transport.most == SENDS_IN_FLIGHT_MAX
            assert g.metrics.value("gossiper_sends_skipped_total") > 0
            assert len(g.members()) == 241
            await asyncio.sleep(25.0)
            assert EchoRequest in {kind for _, kind in transport.under_way}
        assert others() == []

    run(scenario())


def test_a_subscriber_that_does_not_read_is_told_how_much_it_missed() -> None:
    async def scenario() -> None:
        transport = SilentTransport()
        config = GossipConfig(cluster_name="test", listen="10.0.0.1:7000")
        async with Gossiper(config, transport=transport, clock=VirtualClock().now) as g:
            transport.introduce(first=1, count=1)
            slow, fast = g.events(), g.events()
            extra = 10
            reader = asyncio.create_task(count(fast))
            for tick in range(2, EVENT_QUEUE_MAX + extra + 2):
                transport.introduce(first=1, count=1, value="key", tick=tick)
                if tick % 1000 == 0:
                    await asyncio.sleep(0.0)
            assert isinstance(await anext(slow), EndpointJoined), "the snapshot is never dropped"
            assert await anext(slow) == EventsMissed(extra)
            oldest = await anext(slow)
            assert isinstance(oldest, StateChanged)
            assert oldest.new.get("key") == str(extra + 2)
        rest = [event async for event in slow]
        last = rest[-1]
        assert isinstance(last, StateChanged)
        assert (last.endpoint, last.new.status) == (g.endpoint, "shutdown"), "what came after a place was free"
        assert len(rest) == EVENT_QUEUE_MAX
        kinds = await reader
        assert kinds[EventsMissed] == 0, "a slow one costs the others nothing"
        assert kinds[StateChanged] == EVENT_QUEUE_MAX + extra

    run(scenario())


async def count(events: object) -> Counter[type]:
    kinds: Counter[type] = Counter()
    async for event in events:  # type: ignore[attr-defined]  # a Subscription
        if getattr(event, "endpoint", "") != "10.0.0.1:7000":
            kinds[type(event)] += 1
    return kinds


# -- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grace_seconds", [0.25, 2.0])
def test_a_stop_takes_its_grace_with_a_hanging_peer_and_tells_the_others(grace_seconds: float) -> None:
    async def scenario() -> None:
        async with MemoryCluster(shutdown_grace_seconds=grace_seconds, rpc_timeout_seconds=30.0) as cluster:
            one, two, three = [await cluster.start_node() for _ in range(3)]
            await cluster.converged()
            cluster.network.hang(three.endpoint)
            loop = asyncio.get_running_loop()
            begun = loop.time()
            await cluster.stop(one)
            assert loop.time() - begun == pytest.approx(grace_seconds)
            view = two.member(one.endpoint)
            assert view is not None
            assert (view.liveness.value, view.status) == ("down", "shutdown")
            cluster.network.resume(three.endpoint)

    run(scenario())


def test_a_stop_with_nobody_to_wait_for_takes_no_time() -> None:
    async def scenario() -> None:
        async with MemoryCluster() as cluster:
            one, _ = await cluster.start_node(), await cluster.start_node()
            await cluster.converged()
            loop = asyncio.get_running_loop()
            begun = loop.time()
            await cluster.stop(one)
            assert loop.time() == begun

    run(scenario())


class BrokenTransport(SilentTransport):
    """Has a defect: it raises what the Protocol does not allow."""

    async def send(self, peer: str, request: Request, timeout_seconds: float) -> Reply:
        raise ValueError("a defect of the transport")


def test_a_defect_of_the_transport_is_counted_and_gossip_goes_on() -> None:
    async def scenario() -> None:
        transport = BrokenTransport()
        config = GossipConfig(cluster_name="test", listen="10.0.0.1:7000")
        async with Gossiper(config, transport=transport, clock=VirtualClock().now) as g:
            transport.introduce(first=1, count=1)
            await asyncio.sleep(10.5)
            assert g.info().gossip_active
            assert g.metrics.value("gossiper_rounds_total") == 10
            assert g.metrics.value("gossiper_internal_errors_total") >= 10, "each round sends to the one it knows"

    run(scenario())


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_node_that_is_being_cancelled_answers_nothing_more() -> None:
    async def scenario() -> set[str]:
        transport = SilentTransport()
        config = GossipConfig(cluster_name="test", listen="10.0.0.1:7000")
        g = Gossiper(config, transport=transport, clock=VirtualClock().now)
        await g.start()
        await asyncio.sleep(1.5)
        assert g._main is not None
        g._main.cancel()
        await asyncio.sleep(0)
        answers = set()
        number = 0
        while not g._main.done():
            number += 1
            try:
                transport.introduce(first=number, count=1)
                answers.add("answered")
            except PeerProtocolError as error:
                answers.add(error.reason)
            except RuntimeError as error:
                answers.add(str(error))
            await asyncio.sleep(0)
        return answers

    assert run(scenario()) == {"not_running"}


def test_two_starts_at_once_do_not_harm_each_other() -> None:
    async def scenario() -> None:
        network = MemoryNetwork()
        g = lone(network)
        results = await asyncio.gather(g.start(), g.start(), return_exceptions=True)
        errors = [result for result in results if result is not None]
        assert [type(error) for error in errors] == [LocalStateError]
        peer = Gossiper(
            GossipConfig(cluster_name="test", listen="10.0.0.2:7000", seeds=("10.0.0.1:7000",)),
            transport=MemoryTransport(network, "10.0.0.2:7000"),
            clock=VirtualClock().now,
        )
        async with peer:
            await asyncio.sleep(5.0)
            heard = peer.is_alive("10.0.0.1:7000")
        await g.stop()
        assert heard, "the first is still listening"

    run(scenario())


def test_virtual_and_real_clocks_have_the_same_form() -> None:
    async def scenario() -> Callable[[], tuple[float, float]]:
        return VirtualClock().now

    assert type(run(scenario())()) is type(system_clock())
