"""Operations of a whole gossiper (leave, replace, watch, settle, ...) in virtual time, over the in-memory network."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gossiper import (
    EndpointForgotten,
    EndpointLeft,
    EndpointRemoved,
    EndpointReplaced,
    Event,
    Gossiper,
    JoinError,
    LifecycleError,
    LocalStopped,
    NotRunningError,
    PublishError,
)
from gossiper.storage import NodeStorage
from gossiper.subscriptions import Subscription
from gossiper.testing import MemoryCluster, run

Scenario = Callable[[MemoryCluster], Awaitable[None]]


def play(scenario: Scenario, **config: object) -> None:
    async def whole() -> None:
        async with MemoryCluster(**config) as cluster:  # type: ignore[arg-type]
            await scenario(cluster)

    run(whole())


async def three(cluster: MemoryCluster) -> tuple[Gossiper, Gossiper, Gossiper]:
    nodes = [await cluster.start_node() for _ in range(3)]
    await cluster.converged()
    return nodes[0], nodes[1], nodes[2]


async def first(events: Subscription, kind: type[Event]) -> Event:
    async with asyncio.timeout(600):
        async for event in events:
            if isinstance(event, kind):
                return event
    raise AssertionError(f"no {kind.__name__}")


def test_leave_says_who_knows() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        one, two, gone = await three(cluster)
        events = one.events()
        report = await gone.leave(timeout_seconds=5.0)
        assert sorted(report.knowing) == [one.endpoint, two.endpoint]
        assert report.unaware == ()
        left = await first(events, EndpointLeft)
        assert isinstance(left, EndpointLeft)
        assert left.endpoint == gone.endpoint
        with pytest.raises(LifecycleError):
            await gone.enable_gossip()
        with pytest.raises(NotRunningError):
            await gone.leave()

    play(scenario)


def test_leave_behind_a_cut_link_ends_in_time_and_names_who_does_not_know() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        one, two, gone = await three(cluster)
        for other in (one, two):
            cluster.network.cut(gone.endpoint, other.endpoint)
        begun = asyncio.get_running_loop().time()
        report = await gone.leave(timeout_seconds=3.0)
        assert asyncio.get_running_loop().time() - begun <= 3.5
        assert (report.knowing, sorted(report.unaware)) == ((), [one.endpoint, two.endpoint])

    play(scenario)


def test_who_left_is_refused_when_it_starts_again_unless_it_asks_to_rejoin() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        _, _, gone = await three(cluster)
        await gone.leave()
        await cluster.stop(gone)
        with pytest.raises(JoinError, match="has left the cluster"):
            await cluster.start_node(gone.endpoint)
        again = await cluster.start_node(gone.endpoint, rejoin=True)
        await cluster.converged()
        assert again.generation > gone.generation

    play(scenario)


def test_a_removed_node_that_was_only_cut_off_stops_with_the_reason() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        one, two, victim = await three(cluster)
        for other in (one, two):
            cluster.network.cut(victim.endpoint, other.endpoint)
        await cluster.wait_until(lambda: not one.is_alive(victim.endpoint) and not two.is_alive(victim.endpoint))
        events, own = one.events(), victim.events()
        one.remove(victim.host_id)
        removed = await first(events, EndpointRemoved)
        assert isinstance(removed, EndpointRemoved)
        assert removed.removed_by == one.host_id
        for other in (one, two):
            cluster.network.heal(victim.endpoint, other.endpoint)
        stopped = await first(own, LocalStopped)
        assert isinstance(stopped, LocalStopped)
        assert one.host_id in stopped.reason
        assert await victim.wait_stopped() == stopped.reason == victim.failure
        with pytest.raises(JoinError, match="was removed from the cluster"):
            await cluster.start_node(victim.endpoint)

    play(scenario)


def test_assassinate_never_waits() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        one, _, victim = await three(cluster)
        heartbeat = one.info().heartbeat
        with pytest.raises(LifecycleError, match="it lives"):
            one.assassinate(victim.endpoint)
        one.assassinate(victim.endpoint, force=True)
        assert one.info().heartbeat == heartbeat
        assert await victim.wait_stopped() is not None
        with pytest.raises(ValueError, match="not host:port"):
            one.assassinate("nonsense")

    play(scenario)


@pytest.mark.parametrize("same_address", [True, False])
def test_a_dead_node_is_replaced(same_address: bool) -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        one, two, victim = await three(cluster)
        await cluster.kill(victim)
        await cluster.wait_until(lambda: not one.is_alive(victim.endpoint) and not two.is_alive(victim.endpoint))
        events = one.events()
        endpoint = victim.endpoint if same_address else "10.0.0.99:7000"
        new_host_id = str(uuid.uuid5(uuid.NAMESPACE_URL, "new"))
        new = await cluster.start_node(endpoint, host_id=new_host_id, data_dir=None, replace=victim.host_id)
        replaced = await first(events, EndpointReplaced)
        assert isinstance(replaced, EndpointReplaced)
        assert (replaced.endpoint, replaced.old.host_id, replaced.new.host_id) == (
            endpoint,
            victim.host_id,
            new_host_id,
        )
        await cluster.converged()
        assert len(new.members()) == 3

    play(scenario)


def test_a_live_node_is_not_replaced() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        _, _, victim = await three(cluster)
        with pytest.raises(JoinError, match="is alive"):
            await cluster.start_node(data_dir=None, replace=victim.endpoint)

    play(scenario)


def test_a_copied_data_directory_is_refused_while_the_original_lives() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        _, _, original = await three(cluster)
        with pytest.raises(JoinError, match="whose heartbeat moves"):
            await cluster.start_node(data_dir=None, host_id=original.host_id)

    play(scenario)


def test_an_address_that_belongs_to_another_host_id_is_refused() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        _, _, dead = await three(cluster)
        await cluster.kill(dead)
        with pytest.raises(JoinError, match="already exists"):
            await cluster.start_node(dead.endpoint, data_dir=None, host_id=str(uuid.UUID(int=7)))

    play(scenario)


def test_gossip_off_and_on_and_draining() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        one, _, node = await three(cluster)
        generation = node.generation
        await node.disable_gossip()
        await cluster.wait_until(lambda: not one.is_alive(node.endpoint))
        assert not node.info().gossip_active
        await node.enable_gossip()
        await cluster.wait_until(lambda: one.is_alive(node.endpoint))
        assert node.generation > generation
        with pytest.raises(LifecycleError, match="is running"):
            await node.enable_gossip()
        await node.drain()
        view = one.member(node.endpoint)
        assert view is not None
        assert (view.serving, view.status) == (False, "shutdown")

    play(scenario)


def test_the_generation_of_enabling_is_on_disk(tmp_path: Path) -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        node = await cluster.start_node(data_dir=tmp_path)
        await node.disable_gossip()
        await node.enable_gossip()
        generation = node.generation
        await cluster.stop(node)
        with NodeStorage(tmp_path) as storage:
            assert storage.load().generation == generation

    play(scenario)


def test_boot_until_the_application_is_ready() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        one, _, _ = await three(cluster)
        joining = await cluster.start_node(initial_status="BOOT")
        await cluster.wait_until(lambda: one.is_alive(joining.endpoint))
        view = one.member(joining.endpoint)
        assert view is not None
        assert view.status == "BOOT"
        joining.set_status("NORMAL")
        await cluster.wait_until(lambda: (v := one.member(joining.endpoint)) is not None and v.status == "NORMAL")
        with pytest.raises(LifecycleError):
            joining.set_status("BOOT")

    play(scenario)


def test_values_with_a_time_to_live_and_a_watch() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        one, two, _ = await three(cluster)
        await two.publish({"service/a": "1", "other": "x"})
        watch = one.watch("service/")
        seen: list[tuple[str, str, str | None]] = []

        async def follow() -> None:
            nonlocal seen
            async for watched in watch:
                seen += [(watched.endpoint, watched.key, watched.value)]

        task = asyncio.create_task(follow())
        await cluster.wait_until(lambda: len(seen) == 1)
        await two.publish({"service/b": "2"}, ttl_seconds=20.0)
        await one.publish({"service/own": "3"})
        await two.publish({"service/a": None})
        await cluster.wait_until(lambda: len(seen) == 5)
        task.cancel()
        await watch.aclose()
        assert sorted(seen, key=str) == sorted(
            [
                (two.endpoint, "service/a", "1"),
                (two.endpoint, "service/b", "2"),
                (one.endpoint, "service/own", "3"),
                (two.endpoint, "service/a", None),
                (two.endpoint, "service/b", None),
            ],
            key=str,
        )
        with pytest.raises(PublishError, match="ttl_seconds"):
            await one.publish({"a": "1"}, ttl_seconds=0.0)

    play(scenario)


def test_a_watch_forgets_who_is_replaced() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        one, two, victim = await three(cluster)
        await victim.publish({"role": "writer"})
        watch = one.watch("role")
        assert (await anext(watch)).value == "writer"
        await cluster.kill(victim)
        await cluster.wait_until(lambda: not one.is_alive(victim.endpoint) and not two.is_alive(victim.endpoint))
        new_host_id = str(uuid.UUID(int=9))
        await cluster.start_node(data_dir=None, host_id=new_host_id, replace=victim.host_id)
        gone = await anext(watch)
        assert (gone.endpoint, gone.value) == (victim.endpoint, None)

    play(scenario)


def test_settled_means_known_and_live() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        one, two, three_ = await three(cluster)
        assert await one.wait_settled(timeout_seconds=30.0)
        cluster.network.hang(two.endpoint)
        newcomer = await cluster.start_node()
        assert await newcomer.wait_settled(timeout_seconds=200.0), "in the end the hanging one is held DOWN"
        assert newcomer.is_alive(three_.endpoint)
        assert not newcomer.is_alive(two.endpoint)
        assert not await newcomer.wait_settled(timeout_seconds=1.0)

    play(scenario)


def test_a_whole_cluster_starts_again_without_its_seed() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        seed, two, three_ = await three(cluster)
        await cluster.wait_until(lambda: two.info().heartbeat > 25)
        for node in (seed, two, three_):
            await cluster.kill(node)
        starting = [asyncio.create_task(cluster.start_node(node.endpoint)) for node in (two, three_)]
        again = await asyncio.gather(*starting)
        await cluster.wait_until(lambda: again[0].is_alive(again[1].endpoint) and again[1].is_alive(again[0].endpoint))
        known = again[0].member(seed.endpoint)
        assert known is not None
        assert not known.alive

    play(scenario)


def test_a_guest_that_goes_is_forgotten() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        one, _, _ = await three(cluster)
        guest = await cluster.start_node(initial_status="BOOT")
        await cluster.wait_until(lambda: one.is_alive(guest.endpoint))
        events = one.events()
        await cluster.kill(guest)
        forgotten = await first(events, EndpointForgotten)
        assert isinstance(forgotten, EndpointForgotten)
        assert forgotten.reason == "silent"
        assert one.member(guest.endpoint) is None

    play(scenario)


def test_seeds_from_a_file_are_read_again(tmp_path: Path) -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        one = await cluster.start_node(seeds=())
        path = tmp_path / "seeds"
        path.write_text("10.0.0.2:7000\n")
        two = await cluster.start_node("10.0.0.2:7000", seeds=(f"file:{path}",))
        assert len(two.members()) == 1
        path.write_text(f"{one.endpoint}\n10.0.0.2:7000\n")
        result = await two.reload_seeds()
        assert result.added == (one.endpoint,)
        await cluster.wait_until(lambda: two.is_alive(one.endpoint) and one.is_alive(two.endpoint))
        path.write_text("nonsense\n")
        kept = await two.reload_seeds()
        assert kept.faults
        assert kept.seeds == (one.endpoint, "10.0.0.2:7000")

    play(scenario)
