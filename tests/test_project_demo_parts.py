"""The parts of the demonstration that need no processes: its rows, its proof, its look.

Method: a perfect set of replicas must pass, and each single planted difference must be found and named.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import sys
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from kvstore.demo.data import DELETIONS, OVERWRITES, ROWS_MIN, changes_of, describe, expected_rows, unicode_rows
from kvstore.demo.render import Stage
from kvstore.demo.verify import FAULTS_SHOWN_MAX, ReplicaSummary, Verifier


@dataclass(frozen=True)
class PlainRow:
    key: bytes
    version: int
    value: bytes
    deleted: bool = False


ROWS = list(unicode_rows(ROWS_MIN))
CHANGES = changes_of(ROWS)
EXPECTED = expected_rows(ROWS, CHANGES)
REPLICA = [
    PlainRow(key, 7 + number, value or b"", value is None) for number, (key, value) in enumerate(EXPECTED.items())
]


def proven_root() -> ReplicaSummary:
    verifier = Verifier(EXPECTED)
    return verifier.add("probe", REPLICA, claimed_root=bytes(16), claimed_row_count=len(REPLICA))


def report_on(third: list[PlainRow]) -> list[str]:
    """The report when two replicas are right and the third is this; its claims agree with its rows."""
    truth = proven_root()
    claims = Verifier(EXPECTED).add("probe", third, claimed_root=bytes(16), claimed_row_count=0)
    verifier = Verifier(EXPECTED)
    verifier.add("node1", REPLICA, claimed_root=truth.root, claimed_row_count=truth.row_count)
    verifier.add("node2", reversed(REPLICA), claimed_root=truth.root, claimed_row_count=truth.row_count)
    verifier.add("node3", third, claimed_root=claims.root, claimed_row_count=claims.row_count)
    return verifier.report()


def test_all_named_characters_are_rows() -> None:
    named = sum(unicodedata.name(chr(code), None) is not None for code in range(sys.maxunicode + 1))
    rows = dict(unicode_rows())
    assert len(rows) == named > 100_000
    letter = json.loads(rows[b"U+0041"])
    assert letter["name"] == "LATIN CAPITAL LETTER A"
    assert letter["category"] == "Lu"
    assert letter["lowercase"] == "a"


def test_a_description_holds_what_applies() -> None:
    assert describe("½")["numeric"] == 0.5
    assert describe("(")["mirrored"] is True
    assert describe("\u0301")["combining"] == 230
    assert describe("é")["decomposition"] == "0065 0301"


def test_changes_are_many_apart_and_new() -> None:
    before = dict(ROWS)
    assert len(CHANGES.overwrites) == OVERWRITES
    assert len(set(CHANGES.deletions)) == DELETIONS
    assert not set(CHANGES.deletions) & set(CHANGES.overwrites)
    assert all(before[key] != value for key, value in CHANGES.overwrites.items())
    with pytest.raises(ValueError, match="at least"):
        changes_of(ROWS[: ROWS_MIN - 1])


def test_equal_replicas_pass_in_any_order() -> None:
    assert report_on(REPLICA[5:] + REPLICA[:5]) == []
    assert proven_root().tombstone_count == DELETIONS


def without_first(rows: list[PlainRow]) -> list[PlainRow]:
    return rows[1:]


def with_stranger(rows: list[PlainRow]) -> list[PlainRow]:
    return [*rows, PlainRow(b"U+FFFFFF", 1, b"{}")]


def with_first_twice(rows: list[PlainRow]) -> list[PlainRow]:
    return [rows[0], *rows]


def changed(**changes: object) -> Callable[[list[PlainRow]], list[PlainRow]]:
    def plant(rows: list[PlainRow]) -> list[PlainRow]:
        alive = next(index for index, row in enumerate(rows) if not row.deleted)
        return [*rows[:alive], replace(rows[alive], **changes), *rows[alive + 1 :]]  # type: ignore[arg-type] # by name

    return plant


def risen(rows: list[PlainRow]) -> list[PlainRow]:
    dead = next(index for index, row in enumerate(rows) if row.deleted)
    return [*rows[:dead], replace(rows[dead], deleted=False, value=b"{}"), *rows[dead + 1 :]]


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (without_first, "is missing"),
        (with_stranger, "was never written"),
        (with_first_twice, "was read twice"),
        (changed(value=b"stale"), "does not have the value"),
        (changed(version=6), "is not the same as on node1"),
        (changed(deleted=True, value=b""), "is deleted but never was"),
        (risen, "was deleted and is back"),
    ],
)
def test_one_planted_difference_is_found(plant: Callable[[list[PlainRow]], list[PlainRow]], words: str) -> None:
    report = report_on(plant(REPLICA))
    assert any(line.startswith("node3: U+") and words in line for line in report), report


def test_claims_of_a_node_are_checked_against_its_rows() -> None:
    verifier = Verifier(EXPECTED)
    verifier.add("node1", REPLICA, claimed_root=bytes(16), claimed_row_count=len(REPLICA) + 1)
    hash_fault, count_fault = verifier.report()
    assert "says its root hash is 0000" in hash_fault
    assert f"{len(REPLICA):,} were read" in count_fault


def test_two_replicas_that_agree_on_the_same_wrong_are_both_named() -> None:
    wrong = changed(value=b"stale")(REPLICA)
    summary = Verifier(EXPECTED).add("probe", wrong, claimed_root=bytes(16), claimed_row_count=0)
    verifier = Verifier(EXPECTED)
    for name in ("node1", "node2"):
        verifier.add(name, wrong, claimed_root=summary.root, claimed_row_count=summary.row_count)
    assert [line.split(":")[0] for line in verifier.report()] == ["node1", "node2"]


def test_an_empty_replica_gives_a_short_report() -> None:
    report = report_on([])
    assert len(report) == FAULTS_SHOWN_MAX + 1
    assert report[-1] == f"and {len(EXPECTED) - FAULTS_SHOWN_MAX:,} more"


def show_something(stage: Stage) -> None:
    stage.title("title")
    stage.section("section")
    stage.say("words " * 40)
    stage.command(["nodetool", "status"])
    stage.output("UN  127.0.0.1")
    with stage.progress("loading", 4000) as update:
        for done in range(0, 4001, 500):
            update(done)
    stage.table([("replica", "left"), ("rows", "right")], [["node1", "1,000"], ["node2", "10"]])
    stage.gauges("1.0 s", [("node1", 8.5)], full=8)
    stage.conclusion("all replicas identical: 1")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_plain_output_has_no_control_characters(encoding: str) -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding, write_through=True), highlight=False, width=80)
    seconds = itertools.count(0.0, 1.0)
    show_something(Stage(console=console, clock=lambda: next(seconds)))
    lines = raw.getvalue().decode(encoding).splitlines()
    assert all(line.isprintable() and line == line.rstrip() for line in lines)
    assert lines[-1] == "all replicas identical: 1"
    assert sum("loading" in line for line in lines) == 4
    assert max(len(line) for line in lines if "words" in line) <= 80


LONG = "  UN  127.0.0.1:33529  16 KiB  1       100.0%            49f27ce5-75ab-4b44-a653-659d958b1d99  rack1"


def test_a_long_line_breaks_at_a_word_on_a_terminal_and_nowhere_else() -> None:
    for terminal in (True, False):
        written = io.StringIO()
        stage = Stage(console=Console(file=written, width=80, force_terminal=terminal, no_color=True))
        stage.output(LONG)
        stage.output("UN  " + "x" * 100)
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in written.getvalue().splitlines()]
        if terminal:
            assert len(lines) == 4
            assert [line.split() for line in lines[:2]] == [LONG.split()[:6], LONG.split()[6:]]
            assert lines[1].startswith(" " * 6)
            assert all(len(line) <= 80 for line in lines[:3])
        else:
            assert lines == ["  " + LONG, "  UN  " + "x" * 100]


def test_the_picture_is_a_picture_without_links(tmp_path: Path) -> None:
    stage = Stage(console=Console(file=io.StringIO()), record=True)
    show_something(stage)
    path = tmp_path / "demo.svg"
    stage.save_svg(path, title="demo")
    text = path.read_text()
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert text.replace("http://www.w3.org/2000/svg", "").count("://") == 0
    assert "identical" in "".join(root.itertext())
    with pytest.raises(RuntimeError, match="record=True"):
        Stage(console=Console(file=io.StringIO())).save_svg(path, title="demo")
