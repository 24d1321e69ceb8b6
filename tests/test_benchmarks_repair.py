"""The benchmark of repair measures what it says: rows by seed, bytes by frames, and a small run in real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antientropy.core.rows import Row
from antientropy.stores.memory import MemoryRowStore
from benchmarks.repair_data import KINDS, Case, Values, bound_bytes, key_of
from benchmarks.repair_wire import FrameReader, WireCounts

ROOT = Path(__file__).resolve().parent.parent


def case_of(**changes: Any) -> Case:
    whole: dict[str, Any] = {
        "number": 0,
        "kind": "updated",
        "differences": 11,
        "before": 0,
        "replicas": 2,
        "rows": 100,
        "value_bytes": 40,
        "seed": 5,
        "as_of_ms": 1_800_000_000_000,
    }
    return Case(**(whole | changes))


# -- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replicas", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("differences", [1, 2, 11, 60])
def test_what_is_said_to_be_optimal_is_what_brute_force_finds(kind: str, replicas: int, differences: int) -> None:
    case = case_of(kind=kind, replicas=replicas, differences=differences)
    values = Values.of(40, 5)
    stores = [MemoryRowStore() for _ in range(replicas)]
    for number, store in enumerate(stores):
        store.apply([Row(key_of(at), 7, values.value(at)) for at in range(100)])
        made = list(case.rows_of(number))
        assert store.apply(made) == len(made)
        assert all(row.deleted == (kind == "deleted") for row in made)
    everything = [{row.key: row for row in store.scan()} for store in stores]
    keys = set().union(*everything)
    copies = row_bytes = differing = 0
    for key in keys:
        held = [one.get(key) for one in everything]
        winner = max((row for row in held if row is not None), key=lambda row: (row.version, row.digest))
        lacking = sum(row is None or row.digest != winner.digest for row in held)
        copies += lacking
        row_bytes += lacking * (len(winner.key) + len(winner.value))
        differing += lacking > 0
    assert (case.copies, case.copy_bytes, case.differences) == (copies, row_bytes, differing)


def test_cases_of_a_run_touch_different_rows_and_newer_ones_win() -> None:
    touched: Counter[bytes] = Counter()
    for number in range(5):
        case = case_of(number=number, before=20 * number, differences=20)
        rows = [row for replica in range(2) for row in case.rows_of(replica)]
        touched.update(row.key for row in rows)
        assert rows == [row for replica in range(2) for row in case.rows_of(replica)]
    assert len(touched) == 100
    versions = [next(case_of(number=number).rows_of(1)).version for number in range(3)]
    assert versions == sorted(set(versions))


def test_values_have_their_size_and_differ() -> None:
    values = Values.of(16, 1)
    made = {Values.of(100, 1).value(number, salt) for number in range(500) for salt in range(3)}
    assert {len(one) for one in made} == {100}
    assert len(made) == 1500
    assert len({values.value(number) for number in range(100)}) == 100


def test_the_bound_is_that_of_the_facts() -> None:
    assert [round(bound_bytes(d, 64)) for d in (0, 1, 10, 100, 1000, 10_000)] == [0, 8, 78, 735, 6934, 65_190]


# -- frames ---------------------------------------------------------------------------------------------------------


def frame(kind: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, 0]) + stream.to_bytes(4, "big") + payload


def message(size: int) -> bytes:
    return b"\0" + size.to_bytes(4, "big") + b"x" * size


@given(
    sizes=st.lists(st.integers(0, 300), max_size=8),
    cuts=st.lists(st.integers(1, 200), max_size=30),
    frame_bytes=st.integers(1, 150),
)
def test_messages_are_counted_however_they_are_cut_up(sizes: list[int], cuts: list[int], frame_bytes: int) -> None:
    streams = {1: b"", 3: b""}
    for at, size in enumerate(sizes):
        streams[1 + 2 * (at % 2)] += message(size)
    pieces = [
        frame(0, stream, data[at : at + frame_bytes])
        for stream, data in streams.items()
        for at in range(0, len(data), frame_bytes)
    ]
    sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, b"s" * 6) + frame(1, 1, b"h" * 20) + frame(1, 3, b"h" * 9)
    sent += b"".join(pieces) + frame(8, 0, b"w" * 4)
    reader = FrameReader(from_client=True)
    while sent:
        cut = cuts.pop() if cuts else 64
        reader.feed(sent[:cut])
        sent = sent[cut:]
    counts = reader.counts
    assert (counts.messages, counts.message_bytes) == (len(sizes), sum(sizes))
    assert (counts.calls, counts.header_bytes, counts.control_bytes) == (2, 29, 10)
    assert counts.frames == len(pieces) + 4
    assert counts.total == 24 + 9 * counts.frames + 29 + 10 + sum(sizes) + 5 * len(sizes)


def test_sums_of_counts() -> None:
    sums = WireCounts(total=3, calls=1)
    sums.add(WireCounts(total=4, messages=2))
    assert sums == WireCounts(total=7, calls=1, messages=2)


# -- a small run ----------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("replicas", [2, 3])
def test_a_small_run_finds_and_moves_exactly_what_differs(replicas: int) -> None:
    found = run("--rows", "3000", "--differences", "0,1,40", "--value-bytes", "100", "--replicas", str(replicas))
    assert (found["rows"], found["replicas"]) == (3000, replicas)
    assert {"cpu", "python", "grpcio", "commit"} <= set(found["environment"])
    results = found["results"]
    assert [(one["differences"], one["kind"]) for one in results] == [
        (0, "none"),
        *((d, kind) for d in (1, 40) for kind in KINDS),
    ]
    for one in results:
        assert one["state"] == "completed"
        assert one["equal"]
        assert (
            one["rows_moved"]
            == one["rows_optimal"]
            == case_of(**{k: one[k] for k in ("differences", "replicas")}).copies
        )
        assert one["find_payload_bytes"] == one["find_payload_bytes_counted"] < one["find_wire_bytes"]
        assert one["round_trips"] >= 1
        assert one["seconds"] > 0
        assert one["cpu_seconds"] > 0
        assert one["peak_memory_bytes"] >= one["memory_bytes_before"] // 2 > 0
    assert results[0]["strategy"] == "none"
    assert results[0]["round_trips"] == 1
    assert results[0]["find_payload_bytes"] <= 100 * (replicas - 1)


@pytest.mark.process
def test_every_strategy_can_be_asked_for() -> None:
    asked = ("sketch", "descent", "rows")
    found = run("--rows", "2000", "--differences", "5", "--kinds", "updated", "--strategy", ",".join(asked))
    assert [one["strategy_asked"] for one in found["results"]] == [one for _ in range(2) for one in asked]
    assert all(one["strategy"] == one["strategy_asked"] for one in found["results"])
    assert {one["value_bytes"] for one in found["results"]} == {100, 1000}


@pytest.mark.process
def test_upkeep_and_cold_build_of_a_few_rows() -> None:
    found = run("--rows", "3000", "--value-bytes", "100", "--upkeep", "--cold-build")
    assert found["upkeep"]["fold_microseconds_per_row"]["batch_inserted"] > 0
    assert found["cold_build"][0]["rows"] == 3000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--differences", "-1"), "numbers from 0 on"),
        (("--strategy", "guess"), "no guess"),
        (("--kinds", "lost"), "no lost"),
        (("--replicas", "5"), "invalid choice"),
    ],
)
def test_wrong_usage_is_told(arguments: tuple[str, ...], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.repair", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr


def run(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.repair", "--json", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
