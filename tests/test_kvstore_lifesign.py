"""The check of a start where tombstones are purged by their age: whoever was away for too long is refused."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from gossiper.simulation.virtual_loop import run
from kvstore import KvStoreConfig, KvStoreNode
from kvstore.errors import StartError
from kvstore.lifesign import FILE_NAME, SignOfLife
from kvstore.machine import ThisMachine

NOW = 1_800_000_000.0
DAY = 86_400.0


def config_of(directory: Path, **options: object) -> KvStoreConfig:
    free = "127.0.0.1:0"
    settings: dict[str, object] = {
        "data_dir": directory,
        "listen_peers": free,
        "listen_clients": free,
        "listen_admin": free,
        "replication_factor": 1,
        "interval_seconds": 0.1,
        "gc_mode": "time",
        **options,
    }
    return KvStoreConfig(**settings)  # type: ignore[arg-type]  # options of the tests


async def started_at(directory: Path, wall: float, **options: object) -> None:
    async with KvStoreNode(config_of(directory, **options), machine=ThisMachine(wall=lambda: wall)):
        assert SignOfLife(directory, directory / "rows").last() == pytest.approx(wall)


async def test_a_node_away_for_longer_than_tombstones_live_does_not_start(tmp_path: Path) -> None:
    await started_at(tmp_path, NOW)
    await started_at(tmp_path, NOW + 10 * DAY)
    with pytest.raises(StartError, match=r"last alive 10\.1 days ago, .*run nodetool repair") as refusal:
        await started_at(tmp_path, NOW + 20.1 * DAY)
    assert "\n" not in str(refusal.value)
    # The ways out that it names.
    await started_at(tmp_path, NOW + 20.1 * DAY, gc_grace_seconds=30 * DAY)
    with pytest.raises(StartError):
        await started_at(tmp_path, NOW + 40 * DAY)
    (tmp_path / "rows").rename(tmp_path / "rows.old")
    (tmp_path / FILE_NAME).unlink()
    await started_at(tmp_path, NOW + 40 * DAY)


async def test_where_repair_purges_nobody_is_away_for_too_long(tmp_path: Path) -> None:
    await started_at(tmp_path, NOW, gc_mode="repair")
    await started_at(tmp_path, NOW + 365 * DAY, gc_mode="repair")


def test_without_the_file_or_with_half_of_it_the_rows_tell(tmp_path: Path) -> None:
    sign = SignOfLife(tmp_path, tmp_path / "rows", lambda: NOW)
    assert sign.last() is None
    sign.check(1.0)
    (tmp_path / "rows").mkdir()
    rows = tmp_path / "rows" / "data.mdb"
    rows.touch()
    os.utime(rows, (NOW - 7_200, NOW - 7_200))
    assert sign.last() == NOW - 7_200
    for text in ("", "soon", "\x00\x00"):
        (tmp_path / FILE_NAME).write_text(text)
        assert sign.last() == NOW - 7_200
    with pytest.raises(StartError, match=r"2\.0 hours"):
        sign.check(3_600)
    sign.check(7_200)
    sign.write()
    assert sign.last() == NOW


def test_a_disk_that_refuses_is_logged_once_and_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "data").write_text("a file where a directory is wanted")
    sign = SignOfLife(tmp_path / "data", tmp_path / "data" / "rows", lambda: NOW)
    with caplog.at_level(logging.WARNING):
        sign.write()
        sign.write()
    assert len(caplog.records) == 1
    assert "was not written" in caplog.text


def test_the_file_follows_the_clock(tmp_path: Path) -> None:
    """In virtual time, as an hour is long."""

    async def main() -> list[float | None]:
        loop = asyncio.get_running_loop()
        sign = SignOfLife(tmp_path, tmp_path / "rows", lambda: NOW + loop.time())
        keeping = asyncio.create_task(sign.keep())
        seen = []
        for _ in range(3):
            await asyncio.sleep(3_000 / 3)
            seen.append(sign.last())
        keeping.cancel()
        return seen

    one, two, three = run(main())
    assert one is not None
    assert two is not None
    assert three is not None
    assert two - one > 900
    assert three - two > 900
