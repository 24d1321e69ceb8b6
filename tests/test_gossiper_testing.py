"""The public test helpers: the memory cluster, the fixtures, and that their documentation is true."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gossiper import ConfigError, EndpointRestarted, Gossiper, LocalStateError, NotRunningError
from gossiper.core.versions import GENERATION_STEP, Now
from gossiper.testing import MemoryCluster, RunVirtual, VirtualClock, VirtualTimeError, run

pytest_plugins = ["gossiper.testing.plugin"]

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs" / "testing.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", DOCUMENT, re.DOTALL))


def test_helpers_need_no_simulator() -> None:
    program = "import sys, gossiper.testing.plugin; print(*(m for m in sys.modules if m.startswith('gossiper.simul')))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    loaded = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True, timeout=50)
    assert loaded.split() == ["gossiper.simulation", "gossiper.simulation.virtual_loop"]


# -- the documentation ----------------------------------------------------------------------------------------------


AUTO = ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]


@pytest.mark.parametrize("plugins", [AUTO, ["-p", "no:asyncio"]], ids=["auto", "without"])
def test_the_example_of_the_documentation_works(tmp_path: Path, plugins: list[str]) -> None:
    assert set(FILES) == {"conftest.py", "leader.py", "test_leader.py"}
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-W", "error", "--rootdir", str(tmp_path)]
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *plugins, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "2 passed" in completed.stdout


def test_the_documentation_names_what_there_is() -> None:
    for name in re.findall(r"^\| `(?:await )?([a-z_]+)\(", DOCUMENT, re.MULTILINE):
        assert hasattr(MemoryCluster, name) or name == "run_virtual", name
    for name in ("now", "elapsed_seconds", "jump_wall", "stall"):
        assert hasattr(VirtualClock, name)
        assert name in DOCUMENT


# -- the fixtures ---------------------------------------------------------------------------------------------------


def test_the_fixtures_share_one_time(
    run_virtual: RunVirtual, memory_cluster: MemoryCluster, virtual_clock: VirtualClock
) -> None:
    async def begin() -> Gossiper:
        assert VirtualClock().now() == virtual_clock.now()
        return await memory_cluster.start_node()

    async def go_on(g: Gossiper) -> float:
        await asyncio.sleep(10.5)
        return g.metrics.value("gossiper_rounds_total")

    g = run_virtual(begin())
    assert run_virtual(go_on(g)) == 10.0
    assert virtual_clock.elapsed_seconds == 10.5
    assert g.info().gossip_active, "it is the fixture that stops it"


async def test_the_fixture_says_what_is_wrong_with_an_async_test(run_virtual: RunVirtual) -> None:
    with pytest.raises(VirtualTimeError, match="plain function"):
        run_virtual(asyncio.sleep(0))


# -- the cluster ----------------------------------------------------------------------------------------------------


def test_nodes_get_endpoints_seeds_identities_and_settings() -> None:
    async def scenario() -> None:
        async with MemoryCluster(datacenter="dc1", states=(("role", "x"),)) as cluster:
            first = await cluster.start_node()
            named = await cluster.start_node("10.9.0.1:7001", datacenter="dc2")
            third = await cluster.start_node()
            assert [g.endpoint for g in cluster.nodes] == ["10.0.0.1:7000", "10.9.0.1:7001", "10.0.0.2:7000"]
            assert cluster.node("10.9.0.1:7001") is named
            await cluster.converged()
            view = third.member(named.endpoint)
            assert view is not None
            assert (view.get("DC"), view.get("role")) == ("dc2", "x")
            assert named.config.seeds == (first.endpoint,)
            assert len({g.host_id for g in cluster.nodes}) == 3
            with pytest.raises(LocalStateError, match="in use"):
                await cluster.start_node(first.endpoint)
            with pytest.raises(ConfigError, match="phi_threshold"):
                await cluster.start_node(phi_threshold=-1.0)
            with pytest.raises(KeyError):
                cluster.node("10.0.0.99:7000")
            assert len(cluster.nodes) == 3

    run(scenario())


def test_kill_tells_nobody_stop_tells_all_and_restart_keeps_the_identity() -> None:
    async def scenario() -> None:
        async with MemoryCluster() as cluster:
            one, two, three = [await cluster.start_node() for _ in range(3)]
            await cluster.converged()
            await cluster.kill(three)
            await asyncio.sleep(1.0)
            assert one.is_alive(three.endpoint), "not known yet"
            with pytest.raises(NotRunningError):
                await three.publish({"key": "1"})
            assert [g.endpoint for g in cluster.nodes] == [one.endpoint, two.endpoint]
            await cluster.stop(two)
            assert not one.is_alive(two.endpoint), "known at once"

            events = one.events()
            again = await cluster.restart(three)
            assert (again.endpoint, again.host_id) == (three.endpoint, three.host_id)
            assert again.generation > three.generation
            async for event in events:
                if isinstance(event, EndpointRestarted):
                    assert event.new.generation == again.generation
                    break
            with pytest.raises(LocalStateError, match="in use"):
                await cluster.restart(again)
            await cluster.restart(two, datacenter="elsewhere")
            await cluster.converged()
            assert len(cluster.nodes) == 3

    run(scenario())


def test_kill_works_at_any_moment() -> None:
    async def scenario() -> None:
        async with MemoryCluster() as cluster:
            first = await cluster.start_node()
            for _ in range(3):
                g = await cluster.start_node("10.0.0.50:7000")
                await cluster.kill(g)
                await cluster.kill(g)
                await g.stop()
            stopping = asyncio.create_task(cluster.stop(first))
            await asyncio.sleep(0)
            await cluster.kill(first)
            await stopping
            assert cluster.nodes == ()
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    run(scenario())


def test_a_clock_outlives_its_node_and_may_be_given() -> None:
    async def scenario() -> None:
        readings: list[Now] = []

        async with MemoryCluster() as cluster:
            first = await cluster.start_node()
            cluster.clocks[first.endpoint].jump_wall(-1000.0)
            await cluster.kill(first)
            again = await cluster.restart(first)
            assert again.generation == first.generation + GENERATION_STEP, "the wall clock is still behind"
            true = VirtualClock()

            def counting() -> Now:
                readings.append(true.now())
                return readings[-1]

            await cluster.start_node(clock=counting)
            await cluster.converged()
        assert len(readings) > 5

    run(scenario())


def test_what_was_waited_for_in_vain_is_told() -> None:
    async def scenario() -> None:
        async with MemoryCluster() as cluster:
            one, two = [await cluster.start_node() for _ in range(2)]
            await cluster.converged()
            begun = asyncio.get_running_loop().time()
            with pytest.raises(
                TimeoutError, match=r"not within 5 s:\n  the moon is green is not true\n  .* sees .* alive"
            ):
                await cluster.wait_until(lambda: False, 5.0, what="the moon is green")
            assert asyncio.get_running_loop().time() - begun == pytest.approx(5.0)
            cluster.network.hang(two.endpoint)
            await cluster.wait_until(lambda: not one.is_alive(two.endpoint))
            with pytest.raises(TimeoutError, match=f"{one.endpoint} does not hold {two.endpoint} alive"):
                await cluster.converged(timeout_seconds=1.0)
            with pytest.raises(TimeoutError, match="not within 60 s"):
                await cluster.wait_until(lambda: False)

    run(scenario())


def test_differences_of_all_kinds_are_seen() -> None:
    async def scenario() -> None:
        async with MemoryCluster() as cluster:
            one, two = [await cluster.start_node() for _ in range(2)]
            await cluster.converged()
            assert cluster.differences() == []
            assert cluster.differences(one) == [f"{one.endpoint} holds {two.endpoint} alive"]
            version = await two.publish({"key": "1"})
            (stale,) = cluster.differences()
            assert re.fullmatch(f"{one.endpoint} knows {two.endpoint} up to version [0-9]+, not {version}", stale)
            await cluster.converged()
            await cluster.kill(two)
            await cluster.restart(two)
            assert any(f"knows generation {two.generation} of" in line for line in cluster.differences())

    run(scenario())


def test_the_same_seed_is_the_same_cluster() -> None:
    async def scenario(seed: int) -> list[tuple[tuple[str, str], int]]:
        async with MemoryCluster(seed=seed) as cluster:
            for _ in range(5):
                await cluster.start_node()
            await asyncio.sleep(20.0)
            return sorted(cluster.network.message_bytes.items())

    assert run(scenario(1)) == run(scenario(1)) != run(scenario(2))


def test_close_stops_what_hangs_and_removes_the_files() -> None:
    async def scenario() -> Path:
        cluster = MemoryCluster()
        one, two = [await cluster.start_node() for _ in range(2)]
        await cluster.converged()
        cluster.network.hang(one.endpoint)
        directory = one.config.data_dir
        assert directory is not None
        assert directory.is_dir()
        await cluster.close()
        await cluster.close()
        assert not two.info().gossip_active
        return directory

    assert not run(scenario()).exists()


async def test_in_real_time_too() -> None:
    async with MemoryCluster(interval_seconds=0.02) as cluster:
        one, two = [await cluster.start_node() for _ in range(2)]
        await cluster.converged(timeout_seconds=20.0)
        assert cluster.clocks == {}
        await cluster.stop(two)
        await cluster.wait_until(lambda: not one.is_alive(two.endpoint), timeout_seconds=20.0)
