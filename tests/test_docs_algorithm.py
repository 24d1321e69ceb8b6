"""docs/algorithm.md says what the code does: its tables are read here and compared with it."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from gossiper import limits
from gossiper.core import digest, lifecycle, rumours, shadow, state
from gossiper.core.lifecycle import Status
from gossiper.events import Liveness

DOCUMENT = (Path(__file__).parent.parent / "docs" / "algorithm.md").read_text()


def table(*header: str) -> list[list[str]]:
    """The cells of the one table with this header."""
    found = re.findall(rf"(?m)^\| {re.escape(' | '.join(header))} \|\n\|[-|]+\|\n((?:\|.*\|\n)+)", DOCUMENT)
    assert len(found) == 1, header
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines()]
    assert all(len(row) == len(header) for row in rows), header
    return rows


def statuses(text: str) -> frozenset[Status]:
    return frozenset(Status("" if word == "(none)" else word) for word in re.findall(r"[\w()]+", text))


STATUS_COLUMNS = ("status", "may become", "begins a generation", "dead", "stopped", "silent", "gone", "guest")


def test_the_statuses_and_their_transitions() -> None:
    rows = table(*STATUS_COLUMNS)
    (owners,) = zip(*(tuple(statuses(row[0])) for row in rows), strict=True)
    assert list(owners) == list(Status), "every status once, in the order of the code"
    assert {owner: statuses(row[1]) for owner, row in zip(owners, rows, strict=True)} == dict(lifecycle.TRANSITIONS)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("begins a generation", lifecycle.INITIAL_STATUSES),
        ("dead", lifecycle.DEAD_STATUSES),
        ("stopped", lifecycle.STOPPED_STATUSES),
        ("silent", lifecycle.SILENT_STATUSES),
        ("gone", lifecycle.GONE_STATUSES),
        ("guest", lifecycle.GUEST_STATUSES),
    ],
)
def test_the_sets_of_statuses(column: str, expected: frozenset[Status]) -> None:
    at = STATUS_COLUMNS.index(column)
    rows = table(*STATUS_COLUMNS)
    assert {row[at] for row in rows} == {"yes", ""}
    assert frozenset().union(*(statuses(row[0]) for row in rows if row[at] == "yes")) == expected


def test_the_transitions_of_liveness() -> None:
    rows = table("from", "to", "when")
    told = [(row[0], row[1]) for row in rows]
    code = [(start, end) for start, ends in lifecycle.LIVENESS_TRANSITIONS.items() for end in ends]
    assert sorted(told) == sorted(code)
    assert {word for pair in told for word in pair} == {str(liveness) for liveness in Liveness}
    assert all(row[2] for row in rows)


def test_the_digest_table_is_that_of_the_code() -> None:
    lines = inspect.getdoc(digest) or ""
    rows = [re.split(r" {2,}", line) for line in re.findall(r"(?m)^\w.* {2,}\w.*$", lines)]
    assert rows[0] == ["what the digest says", "what the receiver does"]
    assert table(*rows[0]) == rows[1:]


def test_there_are_as_many_invariants_as_in_the_code() -> None:
    section = DOCUMENT.partition("## Invariants")[2].partition("\n## ")[0]
    told = [int(number) for number in re.findall(r"(?m)^(\d+)\. ", section)]
    code = [int(number) for number in re.findall(r"(?m)^(\d+)\. ", inspect.getdoc(state) or "")]
    assert told == code == list(range(1, len(code) + 1))


def test_the_refusals_of_a_start_are_those_of_the_code() -> None:
    # Texts that go on in the next line are one.
    source = re.sub(r'"\s*\n\s*f?"', "", inspect.getsource(shadow))
    verdicts = [row[1] for row in table("what it finds", "verdict")]
    fragments = [text for verdict in verdicts for text in re.findall(r"refused[^`]*`([^`]+)`", verdict)]
    assert len(fragments) >= 10
    assert [text for text in fragments if text not in source] == []
    refusals = re.findall(r'raise JoinError\(\s*f?"([^"]+)"', source)
    assert len(refusals) == source.count("raise JoinError(")
    assert [refusal for refusal in refusals if not any(text in refusal for text in fragments)] == []


def test_rumours_are_of_the_keys_that_are_named() -> None:
    section = DOCUMENT.partition("## Rumours")[2].partition("\n## ")[0]
    named = re.search(r"A change of status \((.*?), an endpoint", section, re.DOTALL)
    assert named is not None
    assert frozenset(re.findall(r"`(\w+)`", named[1])) == rumours.URGENT_KEYS


def numbers(names: Iterable[str], values: Iterable[str]) -> dict[str, float]:
    return {name.strip("`"): float(value) for name, value in zip(names, values, strict=True)}


def test_the_constants_of_the_core() -> None:
    rows = table("name", "where", "value", "meaning")
    for name, where, value, meaning in rows:
        module = importlib.import_module(f"gossiper.core.{where}")
        assert getattr(module, name.strip("`")) == float(value), (where, name)
        assert meaning
    assert len({(name, where) for name, where, *_ in rows}) == len(rows)


def test_every_limit_with_its_value_and_reason() -> None:
    rows = table("name", "value", "reason")
    code = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert numbers((row[0] for row in rows), (row[1] for row in rows)) == code
    assert all(row[2] for row in rows)


def test_every_file_that_is_named_exists() -> None:
    root = Path(__file__).parent.parent
    for name in re.findall(r"`((?:gossiper|tests)/[\w/.]+)`", DOCUMENT):
        assert (root / name).exists(), name
    for name in re.findall(r"`(\w+\.py)`", DOCUMENT):
        assert (root / "gossiper" / "core" / name).exists(), name
