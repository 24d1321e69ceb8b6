"""docs/repair.md says what messages cost: its table is read here and compared with what crosses the network."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from repair_peers import World, row

from antientropy.transport.memory import Crossing

DOCUMENT = (Path(__file__).parent.parent / "docs" / "repair.md").read_text()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.close()


def documented() -> dict[str, tuple[str, str]]:
    """Request and answer of each message of the table."""
    rows = re.findall(r"(?m)^\| ((?:Compare|Heartbeat)[^|]*) \| ([^|]*) \| ([^|]*) \|$", DOCUMENT)
    return {name: (request, answer) for name, request, answer in rows}


async def test_messages_cost_what_the_table_says(world: World) -> None:
    # As many rows as make the number of them three bytes, as a million does.
    rows = [row(number) for number in range(20_000)]
    here, there = world.node(rows[:-1]), world.node(rows)
    sizes: list[tuple[str, bool, int]] = []

    def watch(crossing: Crossing) -> None:
        sizes.append((crossing.method, crossing.is_request, len(crossing.data)))

    world.network.faults = watch
    assert (await world.client(there).compare(there.root())).equal
    client = world.client(there)
    await client.compare(here.root())
    await client.heartbeat()
    _ = [rows async for rows in client.fetch(np.array([row(19_999).token], np.uint64))]
    assert (await client.compare(there.root())).equal
    pairs = [(str(sizes[at][2]), str(sizes[at + 1][2])) for at in range(0, len(sizes), 2)]
    equal, opening, heartbeat, _, verifying = pairs
    table = documented()
    assert equal == table["Compare, equal"]
    assert opening == table["Compare, unequal: opens a session"]
    assert heartbeat == table["Heartbeat, Close"]
    assert verifying == table["Compare with the session open, equal"]
