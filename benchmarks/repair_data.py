"""Rows for repairs, made from a seed, so that every process makes the same ones without being told more than numbers.

Keys have 16 bytes. Rows that all replicas share are old; a difference is a row that
is ten minutes old at its winners: too old to be a write under way, too young for its tombstone to be purged.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import numpy as np

from antientropy.core.hashing import token_of
from antientropy.core.rows import Row
from antientropy.stores.lmdb import LmdbRowStore

KEY_BYTES: Final = 16
KINDS: Final = ("missing", "updated", "deleted")
_POOL_BYTES: Final = 1 << 20
_BATCH_ROWS: Final = 10_000
#: When shared rows were written: milliseconds since the epoch, so that stores can be kept from run to run.
_BASE_MS: Final = 1_780_000_000_000
_DAY_MS: Final = 86_400_000
_AGE_MS: Final = 600_000


def version_at(seconds: float) -> int:
    """Versions as of a hybrid logical clock: milliseconds, and 16 bits of a counter."""
    return int(seconds * 1000) << 16


def version_time(version: int) -> float:
    """The inverse."""
    return (version >> 16) / 1000


def key_of(number: int) -> bytes:
    """The key of a row."""
    return b"user%012d" % number


@dataclass(frozen=True, slots=True)
class Values:
    """Values of one size that do not compress: pieces of a random pool, and the row's number."""

    size: int
    pool: bytes

    @classmethod
    def of(cls, size: int, seed: int) -> Values:
        """Of so many bytes, at least 16."""
        return cls(size, Random(seed).randbytes(_POOL_BYTES + size))

    def value(self, number: int, salt: int = 0) -> bytes:
        """The value of a row; another one for each salt."""
        at = (number * 2_654_435_761 + salt * 40_503) % _POOL_BYTES
        return self.pool[at : at + self.size - 16] + (number << 64 | salt).to_bytes(16, "big")


@dataclass(frozen=True, slots=True)
class Case:
    """Differences to be made: the ``number``-th of a run, so that no two touch the same rows."""

    number: int
    kind: str
    differences: int
    before: int
    """Differences of all cases before it."""
    replicas: int
    rows: int
    value_bytes: int
    seed: int
    as_of_ms: int

    def holders(self, index: int) -> frozenset[int]:
        """Who has the winning row of a difference; with three replicas every second one is held by two."""
        first = (index + 1) % self.replicas
        second = (first + 1) % self.replicas if (index // self.replicas) % 2 else first
        return frozenset({first, second}) if self.replicas > 2 else frozenset({first})

    def rows_of(self, replica: int) -> Iterator[Row]:
        """The rows that one replica has before the others."""
        values = Values.of(self.value_bytes, self.seed)
        stride = _coprime(int(self.rows * 0.618), self.rows)
        for index in range(self.differences):
            if replica not in self.holders(index):
                continue
            at = self.before + index
            number = self.rows + at if self.kind == "missing" else (at * stride + self.seed) % self.rows
            version = (self.as_of_ms - _AGE_MS + self.number) << 16 | (index & 0xFFFF)
            deleted = self.kind == "deleted"
            yield Row(key_of(number), version, b"" if deleted else values.value(number, self.number + 1), deleted)

    @property
    def copies(self) -> int:
        """The fewest rows that must travel."""
        return sum(self.replicas - len(self.holders(index)) for index in range(self.differences))

    @property
    def copy_bytes(self) -> int:
        """Keys and values of those."""
        return self.copies * (KEY_BYTES + (0 if self.kind == "deleted" else self.value_bytes))


def bound_bytes(items: int, bits: int) -> float:
    """The fewest bytes that tell a set difference of so many items of so many bits: d (b - log2 d + 1.44)."""
    return items * (bits - math.log2(items) + 1.44) / 8 if items else 0.0


def build_store(path: Path, rows: int, value_bytes: int, seed: int) -> None:
    """A store with the shared rows, written in the order of its keys; not synced, as it can be made again."""
    values = Values.of(value_bytes, seed)
    tokens = np.fromiter((token_of(key_of(number)) for number in range(rows)), np.uint64, rows)
    order = np.argsort(tokens).tolist()
    ages = np.random.default_rng(seed).integers(0, 30 * _DAY_MS, rows).tolist()
    with LmdbRowStore(path, durable=False) as store:
        for begin in range(0, rows, _BATCH_ROWS):
            batch = order[begin : begin + _BATCH_ROWS]
            store.apply([Row(key_of(n), (_BASE_MS - ages[n]) << 16 | n & 0xFFFF, values.value(n)) for n in batch])


def stores(directory: Path, *, replicas: int, rows: int, value_bytes: int, seed: int, keep: Path | None) -> list[Path]:
    """Equal stores, one for each replica. ``keep``: where a made store is looked for and left for later runs."""
    name = f"rows-{rows}-{value_bytes}-{seed}"
    origin = (directory if keep is None else keep) / name
    if not origin.exists():
        fresh = origin.with_name(name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        build_store(fresh, rows, value_bytes, seed)
        fresh.rename(origin)
    made = []
    for replica in range(replicas):
        path = directory / f"{name}-replica-{replica}"
        shutil.copytree(origin, path)
        made.append(path)
    if keep is None:
        shutil.rmtree(origin)
    return made


def _coprime(near: int, to: int) -> int:
    candidate = max(1, near)
    while math.gcd(candidate, to) != 1:
        candidate += 1
    return candidate
