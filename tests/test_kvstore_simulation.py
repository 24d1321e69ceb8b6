"""Whole clusters of real nodes in virtual time: what must hold under faults, that a seed decides all, and that guards
that are taken out are found."""

from __future__ import annotations
import __future__

import inspect
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner

from antientropy.core import deletes
from antientropy.purging import Purger
from antientropy.store import Row
from antientropy.stores.memory import MemoryRowStore
from kvstore import replication
from kvstore.simulation.__main__ import main
from kvstore.simulation.options import SimulationOptions
from kvstore.simulation.run import SeedResult, run_seed
from kvstore.simulation.truth import Truth, ViolationError, place_of, value_of

#: Virtual time with faults in each of the seeds below.
DURATION_SECONDS = 40.0
SEEDS = range(1, 21)


def options_of(seed: int, **more: Any) -> SimulationOptions:
    return SimulationOptions(seed=seed, duration_seconds=DURATION_SECONDS, **more)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_write_is_lost_nothing_deleted_returns_replicas_are_equal(seed: int) -> None:
    result = run_seed(options_of(seed))
    assert result.violation is None, "\n".join([str(result.violation), *result.trace, result.command])
    assert result.outcomes["put"] > 0


def test_a_seed_decides_everything() -> None:
    """In another process too, where hashes of texts are others."""
    here = run_seed(options_of(3))
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [
        sys.executable,
        "-m",
        "kvstore.simulation",
        "--seeds",
        "3",
        "--duration",
        str(DURATION_SECONDS),
        "--json",
    ]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=True).stdout
    there, summary = map(json.loads, output.splitlines())
    assert there == json.loads(json.dumps(here.to_json()))
    assert (summary["seeds"], summary["violations"]) == (1, 0)
    assert summary["totals"]["put"] == here.outcomes["put"]
    other = run_seed(options_of(4))
    assert other.digest != here.digest


def test_rows_may_lie_in_lmdb() -> None:
    result = run_seed(replace(options_of(2, lmdb=True), duration_seconds=10.0))
    assert result.violation is None, result.violation


# --- guards that are taken out ---


@dataclass(frozen=True)
class Removal:
    """A place in a function, and what is put there."""

    owner: Any
    function: str
    old: str
    new: str

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        source = textwrap.dedent(inspect.getsource(getattr(self.owner, self.function)))
        assert source.count(self.old) == 1, f"{self.function} has no longer one {self.old!r}: plant this bug anew"
        source = source.replace(self.old, self.new)
        module = self.owner if inspect.ismodule(self.owner) else sys.modules[self.owner.__module__]
        namespace: dict[str, Any] = dict(vars(module))
        exec(compile(source, "<planted>", "exec", flags=__future__.annotations.compiler_flag), namespace)
        monkeypatch.setattr(self.owner, self.function, namespace[self.function])


@dataclass(frozen=True)
class Planted:
    """A guard: what takes it out, which seeds find that and as what. The first is enough; the others are for the day on
    which a change elsewhere has another thing happen in it."""

    guard: str
    removals: tuple[Removal, ...]
    seeds: tuple[int, ...]
    caught_by: str


PURGED_EARLY = Removal(
    Purger,
    "purge",
    "marks.purged(self._permitted(keyspace, parts), self._config.purge).floors",
    "deletes.purge_by_time(self._clock(), self._config.version_at, gc_grace_seconds=3.0)",
)
PLANTED = (
    Planted(
        "two majorities share a replica",
        (Removal(replication, "majority_of", "total // 2 + 1", "max(1, total // 2)"),),
        seeds=(6, 7, 11),
        caught_by="lost_write",
    ),
    Planted(
        "a quorum read takes the newest row",
        (
            Removal(
                replication.Coordinator, "read", "newest(row for rows in answers for row in rows)", "newest(answers[0])"
            ),
        ),
        seeds=(2, 3, 6),
        caught_by="lost_write",
    ),
    Planted(
        "rows are applied by compare-and-set",
        (
            Removal(
                MemoryRowStore,
                "_put",
                "(stored.row.version, stored.digest) <= (old.row.version, old.digest)",
                "stored.digest == old.digest",
            ),
        ),
        seeds=(2, 6, 12),
        caught_by="older_row",
    ),
    Planted(
        "a tombstone is purged when all have been repaired", (PURGED_EARLY,), seeds=(1, 2), caught_by="never_repaired"
    ),
    Planted(
        "whoever may hold what purged tombstones had deleted is refused",
        (PURGED_EARLY, Removal(deletes, "unclean", "(repaired < floors) & ~empty", "(repaired < floors) & False")),
        seeds=(9, 19, 20),
        caught_by="returned_row",
    ),
)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.guard)
def test_a_guard_that_is_taken_out_is_found(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    for removal in planted.removals:
        removal.plant(monkeypatch)
    found = []
    for seed in planted.seeds:
        result = run_seed(options_of(seed))
        found.append((result.violation or "nothing").partition(":")[0])
        if found[-1] == planted.caught_by:
            assert result.trace
            assert f"--seeds {seed} " in result.command
            return
    pytest.fail(f"seeds {planted.seeds} find {found}")


# --- the checkers ---


def checked() -> tuple[Truth, bytes, Any]:
    """A key with a put (version 10), a deletion (20) and a put (30), all acknowledged."""
    truth, key = Truth(1), b"key"
    rows = []
    for version, delete_share in ((10, 0.0), (20, 1.0), (30, 0.0)):
        mutation = truth.next_mutation(key, Random(0), delete_share)
        row = Row(key, version, mutation.value, mutation.deleted)
        truth.seen_on_the_way(row, False)
        truth.acknowledged(mutation, version)
        rows.append(row)
    assert truth.violations == []
    return truth, key, rows


def test_the_newest_acknowledged_row_is_right_and_what_is_older_is_not() -> None:
    truth, key, (first, deletion, last) = checked()
    expected = truth.expected(key)
    truth.check_read(key, last, expected, "here")
    for row, invariant in ((first, "returned_row"), (deletion, "lost_write"), (None, "lost_write")):
        with pytest.raises(ViolationError) as found:
            truth.check_read(key, row, expected, "here")
        assert found.value.invariant == invariant
    # What was known before the last put.
    before = (place_of(deletion), place_of(deletion))
    for row in (deletion, None, last):
        truth.check_read(key, row, before, "here")


def test_of_two_rows_with_one_version_the_greater_digest_is_the_newer() -> None:
    truth, key = Truth(1), b"key"
    mutations = [truth.next_mutation(key, Random(0), 0.0) for _ in range(2)]
    less, greater = sorted((Row(key, 7, one.value) for one in mutations), key=lambda row: row.digest)
    for row in (less, greater):
        truth.seen_on_the_way(row, False)
    for mutation in mutations:
        truth.acknowledged(mutation, 7)
    truth.check_read(key, greater, truth.expected(key), "here")
    with pytest.raises(ViolationError, match="lost_write"):
        truth.check_read(key, less, truth.expected(key), "here")
    truth.seen_on_disk(greater, place_of(less))
    assert truth.violations == []
    truth.seen_on_disk(less, place_of(greater))
    assert [violation.invariant for violation in truth.violations] == ["older_row"]


@pytest.mark.parametrize(
    ("row", "from_repair", "invariant"),
    [
        (Row(b"other", 5, b"x"), False, "phantom_row"),
        (Row(b"key", 15, b"x"), False, "damaged_row"),
        (Row(b"key", 10, b"x"), False, "damaged_row"),
        (Row(b"key", 15, value_of(1, 2)), True, "phantom_row"),
        (Row(b"key", 15, value_of(2, 2)), False, "damaged_row"),
        (Row(b"key", 10, b"", deleted=True), True, "phantom_row"),
    ],
)
def test_rows_that_nobody_wrote_are_found_on_the_way(row: Row, from_repair: bool, invariant: str) -> None:
    truth, _, _ = checked()
    truth.seen_on_the_way(row, from_repair)
    (violation,) = truth.violations
    assert violation.invariant == invariant


# --- the command ---


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--seeds", "5-3"], "the least one first"),
        (["--seeds", "one"], "write 7 or 1-100"),
        (["--seeds", "1-9999999"], "a range has 1 to 1000000 seeds"),
        (["--nodes", "1"], "--nodes"),
        (["--duration", "0"], "--duration"),
    ],
)
def test_wrong_usage_says_what_is_allowed(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert told in result.output


def test_a_broken_seed_is_an_exit_status_with_its_last_events_and_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = SeedResult(
        seed=7,
        violation="lost_write: gone",
        virtual_seconds=1.0,
        nodes=3,
        outcomes={"put": 2},
        faults={},
        repairs={},
        rows=0,
        digest="",
        command="python -m kvstore.simulation --seeds 7",
        trace=["what happened"],
    )
    monkeypatch.setattr("kvstore.simulation.__main__.run_seed", lambda options: broken)
    result = CliRunner().invoke(main, ["--seeds", "7"])
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "seed 7: lost_write: gone",
        "  what happened",
        "  replay: python -m kvstore.simulation --seeds 7",
        "1 seeds, 1 broken: 2 put",
    ]


def test_options_out_of_range_are_refused() -> None:
    for wrong in ({"nodes": 1}, {"nodes": 10}, {"duration_seconds": 0.5}):
        with pytest.raises(ValueError, match="must be"):
            SimulationOptions(seed=1, **wrong)
