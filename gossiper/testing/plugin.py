"""pytest fixtures: ``pytest_plugins = ["gossiper.testing.plugin"]`` in the topmost ``conftest.py`` makes them known.

Not registered by itself when the library is installed: fixtures that nobody asked for, and an import in each run of
pytest, are no business of a library.

Tests that use them are plain functions, and what is asynchronous is a coroutine inside::

    def test_two_find_each_other(run_virtual, memory_cluster):
        async def scenario():
            await memory_cluster.start_node()
            await memory_cluster.start_node()
            await memory_cluster.converged()

        run_virtual(scenario())

So they need no other plugin, and do not mind one that runs ``async def`` tests on a real loop.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gossiper.testing import MemoryCluster, RunVirtual, VirtualClock, VirtualRunner


@pytest.fixture
def virtual_runner() -> Iterator[VirtualRunner]:
    """The loop of virtual time of this test, and what runs coroutines on it; closed at the end."""
    with VirtualRunner() as runner:
        yield runner


@pytest.fixture
def run_virtual(virtual_runner: VirtualRunner) -> RunVirtual:
    """``run_virtual(coroutine, limit_seconds=...)``: run it in virtual time; return or raise what it does.

    May be called several times in a test: time and background tasks go on where they were.
    """
    return virtual_runner.run


@pytest.fixture
def virtual_clock(virtual_runner: VirtualRunner) -> VirtualClock:
    """A clock of this test's virtual time; ``virtual_clock.now`` is what ``Gossiper(clock=...)`` takes."""
    return VirtualClock(virtual_runner.loop)


@pytest.fixture
def memory_cluster(virtual_runner: VirtualRunner) -> Iterator[MemoryCluster]:
    """A cluster without nodes in this test's virtual time; what was started is stopped at the end."""
    cluster = MemoryCluster()
    yield cluster
    virtual_runner.run(cluster.close())
