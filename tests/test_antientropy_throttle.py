"""The throttle in virtual time: limits, changes while somebody waits, latency, cancellation, metrics."""

from __future__ import annotations

import asyncio

import pytest

from antientropy.core.pacing import ThrottleSettings
from antientropy.errors import ConfigError, RepairRequestError
from antientropy.limits import CHUNK_BYTES_MAX
from antientropy.metrics import RepairMetrics
from antientropy.throttle import Throttle
from gossiper.simulation.virtual_loop import run, running_virtual_loop


async def spent(throttle: Throttle, *amounts: tuple[int, int]) -> float:
    """Spend one after the other; virtual seconds that it took."""
    begun = running_virtual_loop().elapsed_seconds
    for amount, rows in amounts:
        await throttle.spend(amount, rows)
    return running_virtual_loop().elapsed_seconds - begun


def test_without_limits_nothing_waits() -> None:
    assert run(spent(Throttle(), *[(10**9, 10**6)] * 100)) == 0.0


def test_bytes_and_rows_are_both_kept() -> None:
    assert run(spent(Throttle(1000.0, None), *[(1000, 1)] * 11)) == pytest.approx(9.5)
    assert run(spent(Throttle(None, 10.0), *[(1000, 1)] * 106)) == pytest.approx(10.0)
    assert run(spent(Throttle(1000.0, 1.0), *[(1000, 1)] * 11)) == pytest.approx(9.5)


def test_many_at_once_share_one_rate_and_pass_in_order() -> None:
    async def scenario() -> tuple[list[int], float]:
        throttle, order = Throttle(1000.0), []

        async def one(number: int) -> None:
            await throttle.spend(1000, 1)
            order.append(number)

        begun = running_virtual_loop().elapsed_seconds
        await asyncio.gather(*(one(number) for number in range(20)))
        return order, running_virtual_loop().elapsed_seconds - begun

    order, seconds = run(scenario())
    assert order == list(range(20))
    assert seconds == pytest.approx(18.5)


@pytest.mark.parametrize(("rate", "seconds"), [(None, 10.0), (1_000_000.0, 10.98), (500.0, 1970.0)])
def test_another_limit_holds_at_once_for_who_waits(rate: float | None, seconds: float) -> None:
    async def scenario() -> float:
        throttle = Throttle(1000.0)
        await throttle.spend(1_000_000 - 5_000, 1)
        waiting = asyncio.create_task(spent(throttle, (1, 1)))
        await asyncio.sleep(10)
        throttle.update(bytes_per_second=rate, rows_per_second=None, cpu_share=None)
        return await waiting

    assert run(scenario(), limit_seconds=10_000) == pytest.approx(seconds, rel=0.01)


def test_limits_that_are_none_are_refused_and_change_nothing() -> None:
    async def scenario() -> None:
        throttle = Throttle(1000.0, 10.0, 0.5)
        before = throttle.status()
        for bytes_per_second, rows, share in ((0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, 2.0)):
            with pytest.raises(RepairRequestError, match="is needed"):
                throttle.update(bytes_per_second=bytes_per_second, rows_per_second=rows, cpu_share=share)
        assert throttle.status() == before
        with pytest.raises(ValueError, match="0 or more"):
            await throttle.spend(-1, 0)

    run(scenario())
    with pytest.raises(ConfigError, match="cpu_share"):
        Throttle(cpu_share=7)


def test_the_share_of_the_cpu_is_kept() -> None:
    async def scenario() -> float:
        loop = running_virtual_loop()
        throttle = Throttle(cpu_share=0.25, cpu_clock=lambda: loop.elapsed_seconds - idle)
        begun = loop.elapsed_seconds
        for _ in range(101):
            await throttle.spend(1, 1)
            at = loop.elapsed_seconds
            loop.stall(0.01)
            worked.append(loop.elapsed_seconds - at)
        return loop.elapsed_seconds - begun

    idle, worked = 0.0, [0.0]
    seconds = run(scenario())
    assert sum(worked) / seconds == pytest.approx(0.25, rel=0.03)


def test_waiting_for_the_network_is_no_work() -> None:
    async def scenario() -> float:
        throttle = Throttle(cpu_share=0.1, cpu_clock=lambda: 0.0)
        for _ in range(10):
            await throttle.spend(1, 1)
            await asyncio.sleep(1)
        return running_virtual_loop().elapsed_seconds

    assert run(scenario()) == pytest.approx(10.0)


def test_a_slow_application_slows_repair_down_and_no_more_when_it_has_recovered() -> None:
    async def scenario() -> list[float]:
        latency = 0.010
        throttle = Throttle(1000.0, latency=lambda: latency)
        for _ in range(10):
            await throttle.spend(1000, 1)
        normal = await spent(throttle, *[(1000, 1)] * 20)
        latency = 0.060
        await throttle.spend(1000, 1)
        slow = await spent(throttle, *[(1000, 1)] * 4)
        said = throttle.describe()
        assert "held to 10 % by the application's latency" in said
        assert throttle.status().pace == 0.1
        assert throttle.status().latency_seconds == 0.060
        latency = 0.010
        for _ in range(10):
            await throttle.spend(1000, 1)
        return [normal, slow, await spent(throttle, *[(1000, 1)] * 20)]

    normal, slow, again = run(scenario(), limit_seconds=10_000)
    assert normal == pytest.approx(20, abs=1)
    assert slow == pytest.approx(40, abs=2)
    assert again == pytest.approx(20, abs=1)


def test_cancelled_while_it_waits() -> None:
    async def scenario() -> float:
        throttle = Throttle(1000.0)
        await throttle.spend(100_000, 1)
        waiting = asyncio.create_task(throttle.spend(1000, 1))
        await asyncio.sleep(1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await throttle.spend(0, 1)
        return running_virtual_loop().elapsed_seconds

    assert run(scenario()) == pytest.approx(100.5)


def test_chunks_take_half_a_second_of_the_rate() -> None:
    assert Throttle().chunk_bytes == CHUNK_BYTES_MAX
    assert Throttle(1e9).chunk_bytes == CHUNK_BYTES_MAX
    assert Throttle(200_000.0).chunk_bytes == 100_000
    assert Throttle(1.0).chunk_bytes == 16 * 1024


def test_what_it_tells() -> None:
    metrics = RepairMetrics()
    throttle = Throttle.of(ThrottleSettings(bytes_per_second=2e6, rows_per_second=1000, cpu_share=0.5), metrics=metrics)
    assert throttle.describe() == "2 MB/s, 1,000 rows/s, 50 % of a core"
    throttle.update(bytes_per_second=None, rows_per_second=None, cpu_share=None)
    assert throttle.describe() == "no limit of bytes, no limit of rows, no limit of CPU"
    throttle.update(bytes_per_second=1000, rows_per_second=None, cpu_share=None)
    run(spent(throttle, (1000, 3), (1500, 4), (0, 0)))
    assert metrics.value("antientropy_throttled_bytes_total") == 2500
    assert metrics.value("antientropy_throttled_rows_total") == 7
    assert metrics.value("antientropy_throttle_waits_total") == 2
    assert metrics.value("antientropy_throttle_wait_seconds_total") == pytest.approx(2.0)
