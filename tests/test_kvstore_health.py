"""What a node says of its disk: once when it is full, once when it has been well for a while; never in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from antientropy.errors import RowRefusedError, StoreClosedError, StoreError, StoreFullError, StoreReadOnlyError
from gossiper import NotRunningError
from gossiper.testing import run
from kvstore.health import REASON_LENGTH_MAX, StorageHealth

HOLD_SECONDS = 10.0
FULL = StoreFullError("rows: cannot write rows: no space left")
REASON = f"writes fail: {FULL}"


class Said:
    """Keeps what was said and when; while ``off``, gossip is."""

    def __init__(self) -> None:
        self.words: list[tuple[float, bool, str]] = []
        self.off = False
        self.health = StorageHealth(self.tell, hold_seconds=HOLD_SECONDS)
        self.began = asyncio.get_running_loop().time()

    def tell(self, serving: bool, reason: str) -> None:
        if self.off:
            raise NotRunningError("gossip is off")
        self.words.append((round(asyncio.get_running_loop().time() - self.began, 3), serving, reason))


def play(scenario: Callable[[Said], Awaitable[None]]) -> list[tuple[float, bool, str]]:
    async def whole() -> list[tuple[float, bool, str]]:
        said = Said()
        await scenario(said)
        return said.words

    return run(whole())


def test_a_full_disk_is_said_once_and_its_end_after_a_while_without_failures() -> None:
    async def scenario(said: Said) -> None:
        said.health.committed(None)
        await asyncio.sleep(1)
        for _ in range(3):
            said.health.committed(FULL)
        await asyncio.sleep(2)
        said.health.committed(None)
        said.health.committed(None)
        await asyncio.sleep(60)
        said.health.committed(None)
        await asyncio.sleep(60)

    assert play(scenario) == [(1.0, False, REASON), (11.0, True, "")]


def test_a_disk_at_its_limit_does_not_make_a_fuss() -> None:
    async def scenario(said: Said) -> None:
        for _ in range(20):
            said.health.committed(FULL)
            said.health.committed(None)
            await asyncio.sleep(4)
        await asyncio.sleep(60)

    # The last failure was after 76 s.
    assert play(scenario) == [(0.0, False, REASON), (86.0, True, "")]


def test_a_success_long_after_the_failure_is_believed_at_once() -> None:
    async def scenario(said: Said) -> None:
        said.health.committed(StoreReadOnlyError("read-only"))
        await asyncio.sleep(100)
        said.health.committed(None)
        await asyncio.sleep(0.001)

    assert play(scenario) == [(0.0, False, "writes fail: read-only"), (100.0, True, "")]


def test_another_reason_is_told_after_a_while() -> None:
    async def scenario(said: Said) -> None:
        said.health.committed(StoreError("input/output error"))
        for _ in range(3):
            await asyncio.sleep(4)
            said.health.committed(FULL)

    assert play(scenario) == [(0.0, False, "writes fail: input/output error"), (12.0, False, REASON)]


@pytest.mark.parametrize("error", [RowRefusedError("too long"), StoreClosedError("closed"), ValueError("a defect")])
def test_what_is_not_the_disks_fault_says_nothing_of_it(error: Exception) -> None:
    async def scenario(said: Said) -> None:
        said.health.committed(error)
        said.health.committed(None)
        await asyncio.sleep(60)

    assert play(scenario) == []


def test_while_gossip_is_off_the_next_commit_tries_again() -> None:
    async def scenario(said: Said) -> None:
        said.off = True
        said.health.committed(FULL)
        said.off = False
        await asyncio.sleep(1)
        said.health.committed(FULL)
        said.off = True
        said.health.committed(None)
        await asyncio.sleep(20)
        said.off = False
        said.health.committed(None)
        await asyncio.sleep(1)

    assert play(scenario) == [(1.0, False, REASON), (21.0, True, "")]


def test_after_the_end_nothing_is_said() -> None:
    async def scenario(said: Said) -> None:
        said.health.committed(FULL)
        said.health.committed(None)
        said.health.close()
        said.health.committed(FULL)
        await asyncio.sleep(60)

    assert play(scenario) == [(0.0, False, REASON)]


def test_a_long_reason_is_cut() -> None:
    async def scenario(said: Said) -> None:
        said.health.committed(StoreFullError("x" * 1000))

    ((_, _, reason),) = play(scenario)
    assert len(reason) == REASON_LENGTH_MAX
