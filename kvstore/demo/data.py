"""The rows of the demonstration: every named character of the Unicode database that Python carries.

Lives here: what is loaded, and which rows are overwritten and deleted while a replica is away. Pure: the same Python
gives the same rows.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

OVERWRITES = 500
DELETIONS = 100
ROWS_MIN = 2 * (OVERWRITES + DELETIONS)
"""Fewer rows would leave nothing that stays untouched beside what changes."""


def key_of(code_point: int) -> bytes:
    """The code point as Unicode writes it: ``U+0041``."""
    return f"U+{code_point:04X}".encode()


def describe(character: str) -> dict[str, str | int | float | bool]:
    """What the Unicode database says of a character that has a name; what does not apply is left out."""
    properties: dict[str, str | int | float | bool] = {
        "name": unicodedata.name(character),
        "category": unicodedata.category(character),
        "bidirectional": unicodedata.bidirectional(character),
        "east_asian_width": unicodedata.east_asian_width(character),
    }
    if combining := unicodedata.combining(character):
        properties["combining"] = combining
    if unicodedata.mirrored(character):
        properties["mirrored"] = True
    if decomposition := unicodedata.decomposition(character):
        properties["decomposition"] = decomposition
    numeric = unicodedata.numeric(character, None)
    if numeric is not None:
        properties["numeric"] = numeric
    cases = {"uppercase": character.upper(), "lowercase": character.lower()}
    properties.update({title: other for title, other in cases.items() if other != character})
    return properties


def unicode_rows(rows_max: int | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of each named character in the order of code points, at most ``rows_max`` of them."""
    remaining = sys.maxunicode + 1 if rows_max is None else rows_max
    for code_point in range(sys.maxunicode + 1):
        if remaining <= 0:
            return
        character = chr(code_point)
        if unicodedata.name(character, None) is None:
            continue
        remaining -= 1
        yield key_of(code_point), json.dumps(describe(character), ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True)
class Changes:
    """What happens while one replica is away."""

    overwrites: dict[bytes, bytes]
    deletions: tuple[bytes, ...]


def changes_of(rows: Sequence[tuple[bytes, bytes]]) -> Changes:
    """Overwrite ``OVERWRITES`` rows and delete ``DELETIONS`` others, spread evenly over all rows.

    Raises:
        ValueError: there are fewer than ``ROWS_MIN`` rows.
    """
    if len(rows) < ROWS_MIN:
        raise ValueError(f"needs at least {ROWS_MIN} rows to change some of them, got {len(rows)}")
    total = OVERWRITES + DELETIONS
    chosen = [rows[index * len(rows) // total] for index in range(total)]
    every = total // DELETIONS
    deletions = tuple(key for index, (key, _) in enumerate(chosen) if index % every == 0)
    overwrites = {
        key: json.dumps({**json.loads(value), "revision": 2}, ensure_ascii=False).encode()
        for index, (key, value) in enumerate(chosen)
        if index % every != 0
    }
    return Changes(overwrites=overwrites, deletions=deletions)


def expected_rows(rows: Sequence[tuple[bytes, bytes]], changes: Changes) -> dict[bytes, bytes | None]:
    """What every replica must hold in the end: the value of each key, or None where it was deleted."""
    expected: dict[bytes, bytes | None] = dict(rows)
    expected.update(changes.overwrites)
    expected.update(dict.fromkeys(changes.deletions))
    return expected
