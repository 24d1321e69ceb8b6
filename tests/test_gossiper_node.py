"""Whole gossipers: the real coroutines, over gRPC on loopback and over the in-memory transport."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from gossiper import (
    EndpointAlive,
    EndpointDead,
    EndpointJoined,
    EndpointRestarted,
    Event,
    EventsMissed,
    GossipConfig,
    Gossiper,
    JoinError,
    LocalStateError,
    NotRunningError,
    PublishError,
    StateChanged,
)
from gossiper.admin import GossipAdmin
from gossiper.core.io import SeedsChanged
from gossiper.core.versions import Now
from gossiper.limits import EVENT_QUEUE_MAX
from gossiper.shell import system_clock
from gossiper.storage import NodeStorage
from gossiper.subscriptions import Subscription
from gossiper.transport.memory import MemoryNetwork, MemoryTransport
from gossiper.v1 import admin_pb2, admin_pb2_grpc

DEADLINE_SECONDS = 30.0

Start = Callable[..., Awaitable[Gossiper]]


async def until(what: str, condition: Callable[[], bool]) -> None:
    """Wait for a condition, not for a time."""
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"did not happen within {DEADLINE_SECONDS} s: {what}")


def sees(g: Gossiper, endpoint: str, liveness: str) -> Callable[[], bool]:
    def check() -> bool:
        view = g.member(endpoint)
        return view is not None and view.liveness.value == liveness

    return check


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start gossipers over gRPC; all are stopped at the end, and none may have had an internal error."""
    started: list[Gossiper] = []

    async def begin(config: GossipConfig | None = None, **changes: Any) -> Gossiper:
        services = changes.pop("services", ())
        g = Gossiper(replace(config or GossipConfig.local(), **changes), services=services)
        await g.start()
        started.append(g)
        return g

    yield begin
    for g in reversed(started):
        await g.stop()
        assert g.metrics.value("gossiper_internal_errors_total") == 0


async def test_join_publish_leave_over_grpc(start: Start) -> None:
    seed = await start()
    second = await start(seeds=(seed.endpoint,))
    third = await start(seeds=(seed.endpoint,), states=(("role", "reader"),))
    everybody = (seed, second, third)
    for one in everybody:
        for other in everybody:
            await until("all see all alive", sees(one, other.endpoint, "alive"))
    view = second.member(third.endpoint)
    assert view is not None
    assert (view.get("role"), view.status, view.host_id) == ("reader", "NORMAL", third.host_id)

    version = await third.publish({"role": "writer", "zone": "x"})
    await until("the value arrives", lambda: second.members()[0] is not None and role(second, third) == "writer")
    arrived = second.member(third.endpoint)
    assert arrived is not None
    assert arrived.states["zone"].version == arrived.states["role"].version == version

    events = second.events()
    await third.stop()
    await until("the shutdown is known", sees(second, third.endpoint, "down"))
    await until("the shutdown is known", sees(seed, third.endpoint, "down"))
    seen = await collect(events, lambda event: isinstance(event, EndpointDead))
    assert [type(event) for event in seen[:4]] == [EndpointJoined, EndpointAlive, EndpointJoined, EndpointAlive]
    dead = seen[-1]
    assert isinstance(dead, EndpointDead)
    assert (dead.endpoint, dead.reason) == (third.endpoint, "shutdown")


def role(observer: Gossiper, subject: Gossiper) -> str | None:
    view = observer.member(subject.endpoint)
    return None if view is None else view.get("role")


async def collect(events: Subscription, last: Callable[[Event], bool]) -> list[Event]:
    seen: list[Event] = []
    async with asyncio.timeout(DEADLINE_SECONDS):
        async for event in events:
            seen.append(event)
            if last(event):
                await events.aclose()
                break
    return seen


async def test_restart_takes_a_greater_generation_and_keeps_the_host_id(start: Start, tmp_path: Path) -> None:
    seed = await start()
    first = await start(seeds=(seed.endpoint,), data_dir=tmp_path)
    endpoint, generation, host_id = first.endpoint, first.generation, first.host_id
    await until("joined", sees(seed, endpoint, "alive"))
    events = seed.events()
    await first.stop()
    again = await start(listen=endpoint, seeds=(seed.endpoint,), data_dir=tmp_path)
    assert again.generation > generation
    assert again.host_id == host_id
    seen = await collect(events, lambda event: isinstance(event, EndpointAlive) and event.new.generation > generation)
    kinds = [type(event) for event in seen if not isinstance(event, StateChanged)]
    assert kinds[-3:] == [EndpointDead, EndpointRestarted, EndpointAlive]


async def test_the_generation_is_on_disk_before_anybody_hears_of_it(start: Start, tmp_path: Path) -> None:
    g = await start(data_dir=tmp_path)
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert str(g.generation).encode() in content


async def test_the_clock_may_go_back(start: Start, tmp_path: Path) -> None:
    with NodeStorage(tmp_path) as storage:
        future = int(system_clock().wall) + 5000
        storage.load()
        storage.store_generation(future)
    g = await start(data_dir=tmp_path)
    assert g.generation == future + 2


async def test_two_gossipers_do_not_share_a_port_or_a_directory(start: Start, tmp_path: Path) -> None:
    first = await start(data_dir=tmp_path)
    with pytest.raises(LocalStateError, match=r"in use"):
        await start(listen=first.endpoint)
    with pytest.raises(LocalStateError, match=str(tmp_path)):
        await start(data_dir=tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


async def test_another_cluster_is_refused_and_logged_once(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    seed = await start()
    with pytest.raises(JoinError, match=r"this is cluster 'test', not 'other'"):
        await start(cluster_name="other", seeds=(seed.endpoint,))
    stranger = await start(cluster_name="other")
    stranger._do_safely(SeedsChanged((seed.endpoint,)))

    def refusals() -> float:
        return seed.metrics.value("gossiper_refused_total", reason="cluster_mismatch")

    await until("several are refused", lambda: refusals() >= 5)
    assert [view.endpoint for view in seed.members()] == [seed.endpoint]
    assert [view.endpoint for view in stranger.members()] == [stranger.endpoint]
    lines = [record.getMessage() for record in caplog.records if "cluster" in record.getMessage()]
    assert 1 <= len(lines) <= 2, f"one line at each side at most, not one per round: {lines}"


async def test_what_cannot_be_published(start: Start) -> None:
    g = await start()
    with pytest.raises(PublishError, match="gossiper itself"):
        await g.publish({"STATUS": "NORMAL"})
    await g.stop()
    with pytest.raises(NotRunningError):
        await g.publish({"a": "1"})
    with pytest.raises(NotRunningError):
        await Gossiper(GossipConfig.local()).publish({"a": "1"})


async def test_many_publishes_in_one_round_all_get_versions(start: Start) -> None:
    g = await start()
    versions = await asyncio.gather(*(g.publish({f"key{n}": str(n)}) for n in range(40)))
    assert len(set(versions)) >= 16
    assert all(f"key{n}" in g.members()[0].states for n in range(40))


async def test_stop_is_idempotent_and_a_stopped_one_stays_stopped(start: Start) -> None:
    g = await start()
    await asyncio.gather(g.stop(), g.stop())
    await g.stop()
    with pytest.raises(LocalStateError, match="started once"):
        await g.start()
    assert [event async for event in g.events()] == []


async def test_a_cancelled_start_of_the_application_stops_the_gossiper() -> None:
    entered = asyncio.Event()
    inside: list[Gossiper] = []

    async def application() -> None:
        async with Gossiper(GossipConfig.local()) as g:
            inside.append(g)
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(application())
    await entered.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert inside[0].info().gossip_active is False
    assert [t for t in asyncio.all_tasks() if "gossip" in t.get_name() or "send" in t.get_name()] == []


async def test_administration_of_a_running_node(start: Start) -> None:
    g = await start(datacenter="dc7")
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    GossipAdmin(g).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = admin_pb2_grpc.GossipAdminServiceStub(channel)
        view = await stub.GetClusterView(admin_pb2.GetClusterViewRequest(), timeout=10)
        info = await stub.GetNodeInfo(admin_pb2.GetNodeInfoRequest(), timeout=10)
        detector = await stub.GetFailureDetector(admin_pb2.GetFailureDetectorRequest(), timeout=10)
    await server.stop(None)
    assert [endpoint.endpoint for endpoint in view.endpoints] == [g.endpoint]
    assert (info.generation, info.datacenter, info.gossip_active) == (g.generation, "dc7", True)
    assert detector.phi_threshold == 8.0


# -- faults, over the in-memory transport ---------------------------------------------------------------------------


class Memory:
    """Gossipers on one in-memory network, a tenth of a second per round."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.running: list[Gossiper] = []
        self.offset_seconds = 0.0

    def clock(self) -> Now:
        now = system_clock()
        return Now(now.monotonic + self.offset_seconds, now.wall)

    async def start(self, endpoint: str, **changes: Any) -> Gossiper:
        settings: dict[str, Any] = {"seeds": ("10.0.0.1:7000",), "rpc_timeout_seconds": 0.3, **changes}
        config = replace(GossipConfig.local(listen=endpoint), interval_seconds=0.05, **settings)
        transport = MemoryTransport(self.network, endpoint)
        g = Gossiper(config, transport=transport, clock=self.clock)
        await g.start()
        self.running.append(g)
        return g


@pytest.fixture
async def memory() -> AsyncIterator[Memory]:
    cluster = Memory()
    yield cluster
    for g in cluster.running:
        await g.stop()
        assert g.metrics.value("gossiper_internal_errors_total") == 0


async def test_a_hanging_peer_costs_a_deadline_and_no_round(memory: Memory) -> None:
    one, two, three = [await memory.start(f"10.0.0.{n}:7000") for n in (1, 2, 3)]
    await until("joined", sees(one, three.endpoint, "alive"))
    await until("joined", sees(two, three.endpoint, "alive"))
    memory.network.hang(three.endpoint)
    before = one.info().heartbeat
    await until("it is convicted", sees(one, three.endpoint, "down"))
    await until("it is convicted", sees(two, three.endpoint, "down"))
    assert one.info().heartbeat > before + 10, "rounds went on"
    assert sees(one, two.endpoint, "alive")()
    memory.network.resume(three.endpoint)
    await until("it is back", sees(one, three.endpoint, "alive"))


async def test_a_broken_link_is_no_death_while_others_relay_but_up_needs_the_link(memory: Memory) -> None:
    one, two, three = [await memory.start(f"10.0.0.{n}:7000") for n in (1, 2, 3)]
    await until("joined", sees(one, three.endpoint, "alive"))
    await until("joined", sees(three, one.endpoint, "alive"))
    memory.network.cut(one.endpoint, three.endpoint)
    ticks = one.info().heartbeat + 60
    await until("three seconds of gossip", lambda: one.info().heartbeat > ticks)
    assert sees(one, three.endpoint, "alive")(), "its heartbeats come through the other one"
    assert sees(two, three.endpoint, "alive")()


async def test_this_process_stood_still(memory: Memory) -> None:
    one = await memory.start("10.0.0.1:7000", local_pause_seconds=1.0)
    two = await memory.start("10.0.0.2:7000")
    await until("joined", sees(one, two.endpoint, "alive"))
    memory.network.cut(one.endpoint, two.endpoint)
    memory.offset_seconds += 100.0
    await until("the pause is seen", lambda: one.metrics.value("gossiper_local_pauses_total") == 1)
    assert sees(one, two.endpoint, "alive")(), "nobody is convicted at waking up"
    await until("later it is", sees(one, two.endpoint, "down"))


async def test_a_lost_data_directory_and_a_clock_that_is_behind(memory: Memory, tmp_path: Path) -> None:
    one = await memory.start("10.0.0.1:7000")
    future = int(system_clock().wall) + 3600
    with NodeStorage(tmp_path) as storage:
        storage.load()
        storage.store_generation(future)
    two = await memory.start("10.0.0.2:7000", data_dir=tmp_path)
    await until("joined", sees(one, two.endpoint, "alive"))
    await two.stop()
    again = await memory.start("10.0.0.2:7000", data_dir=tmp_path / "lost", host_id=two.host_id)
    await until("it outran its past", sees(one, again.endpoint, "alive"))
    assert again.generation > future + 1
    with NodeStorage(tmp_path / "copy") as storage:
        storage.load()
    await again.stop()
    with NodeStorage(tmp_path / "lost") as storage:
        assert storage.load().generation == again.generation, "on disk as well"


async def test_a_slow_subscriber_misses_events_and_is_told() -> None:
    closed: list[Subscription] = []
    subscription = Subscription([], closed.append)
    for number in range(EVENT_QUEUE_MAX + 3):
        subscription.put(EventsMissed(number))
    first = await anext(subscription)
    second = await anext(subscription)
    assert first == EventsMissed(3)
    assert second == EventsMissed(3), "the oldest that was kept"
    subscription.close()
    assert len([event async for event in subscription]) == EVENT_QUEUE_MAX - 1
    assert closed == [subscription]


async def test_a_generation_that_could_not_be_written_is_tried_again(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = await memory.start("10.0.0.1:7000")
    future = int(system_clock().wall) + 3600
    with NodeStorage(tmp_path) as storage:
        storage.load()
        storage.store_generation(future)
    two = await memory.start("10.0.0.2:7000", data_dir=tmp_path)
    await until("joined", sees(one, two.endpoint, "alive"))
    await two.stop()
    # Its directory was lost, and it asks nobody who knows it before it begins.
    again = await memory.start("10.0.0.2:7000", seeds=(), host_id=two.host_id, data_dir=tmp_path / "lost")
    full = True
    store = NodeStorage.store_generation

    def fails(self: NodeStorage, generation: int, host_id: str | None = None) -> None:
        if full:
            raise LocalStateError("no space left on device")
        store(self, generation, host_id)

    monkeypatch.setattr(NodeStorage, "store_generation", fails)
    again._do(SeedsChanged((one.endpoint,)))
    failures = "gossiper_generations_not_persisted_total"
    await until("it failed twice", lambda: again.metrics.value(failures) >= 2)
    assert again.generation < future
    assert "cannot be kept, tried again in 0.25 s; until then peers ignore this node: no space left" in caplog.text
    full = False
    await until("it is heard of", sees(one, again.endpoint, "alive"))
    assert again.generation > future


async def test_a_wrong_clock_is_said_at_the_start(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    one = await memory.start("10.0.0.1:7000")
    right = memory.clock
    wrong_seconds = 2 * 86_400.0

    def clock() -> Now:
        now = right()
        return Now(now.monotonic, now.wall + wrong_seconds)

    memory.clock = clock  # type: ignore[method-assign]  # of this one node
    with pytest.raises(JoinError, match="the clock of this node is 172800 s") as refused:
        await memory.start("10.0.0.2:7000")
    assert one.endpoint in str(refused.value)
    wrong_seconds = 300.0
    two = await memory.start("10.0.0.2:7000")
    assert "the clock of this node is 300 s ahead of the clocks of 1 nodes that answered" in caplog.text
    await until("it joins", sees(one, two.endpoint, "alive"))


async def test_a_generation_on_disk_that_peers_would_refuse(memory: Memory, tmp_path: Path) -> None:
    await memory.start("10.0.0.1:7000")
    with NodeStorage(tmp_path) as storage:
        storage.load()
        storage.store_generation(int(system_clock().wall) + 3 * 86_400)
    with pytest.raises(LocalStateError, match=r"lies 3\.0 days ahead of the clocks .*`gossiper generation reset`"):
        await memory.start("10.0.0.2:7000", data_dir=tmp_path)
    alone = await memory.start("10.0.0.3:7000", seeds=(), data_dir=tmp_path)
    assert alone.generation > system_clock().wall + 86_400, "nobody is there who would refuse it"
