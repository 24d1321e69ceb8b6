"""The proof at the end of the demonstration: are all replicas the same, and are they what was written?

Lives here: comparing rows that were read from each replica, one by one, against what was written and against each
other, and the root hash computed again from these rows. Pure; reading them is the story's work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from antientropy.core.hashing import digest_columns, epoch_digests, row_digest
from antientropy.core.merkle import root_from

FAULTS_SHOWN_MAX = 10
"""A replica that lacks everything must not fill the screen."""


class ReadRow(Protocol):
    """A row as a replica gave it, tombstones included."""

    @property
    def key(self) -> bytes:
        """The key."""
        ...

    @property
    def version(self) -> int:
        """The hybrid timestamp of the write."""
        ...

    @property
    def value(self) -> bytes:
        """The value; empty for a tombstone."""
        ...

    @property
    def deleted(self) -> bool:
        """Whether this is a tombstone."""
        ...


@dataclass(frozen=True, slots=True)
class ReplicaSummary:
    """What one replica turned out to hold."""

    name: str
    row_count: int
    """Live rows and tombstones together."""
    tombstone_count: int
    root: bytes
    """16 bytes, computed from the rows that were read."""


@dataclass(slots=True)
class Verifier:
    """Takes the replicas one after the other and collects everything that is wrong.

    Every row of every replica is compared with ``expected`` (None: deleted) and with the first replica, versions
    included: hashes alone would hide two wrongs that agree.
    """

    expected: Mapping[bytes, bytes | None]
    summaries: list[ReplicaSummary] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    faults_left_out: int = 0
    _reference: dict[bytes, tuple[int, bytes, bool]] = field(default_factory=dict)

    def add(self, name: str, rows: Iterable[ReadRow], *, claimed_root: bytes, claimed_row_count: int) -> ReplicaSummary:
        """Compare all rows of one replica, and its own claims about them, with what they have to be."""
        first = not self.summaries
        seen: set[bytes] = set()
        tombstone_count = 0
        digests: list[bytes] = []
        for row in rows:
            if row.key in seen:
                self._fault(f"{name}: {_text(row.key)} was read twice")
                continue
            seen.add(row.key)
            tombstone_count += row.deleted
            digests.append(row_digest(row.key, row.version, row.deleted, row.value))
            self._compare_with_expected(name, row)
            content = (row.version, row.value, row.deleted)
            if first:
                self._reference[row.key] = content
            elif self._reference.get(row.key) != content:
                self._fault(f"{name}: {_text(row.key)} is not the same as on {self.summaries[0].name}")
        for key in self.expected:
            if key not in seen:
                self._fault(f"{name}: {_text(key)} is missing")
        summary = ReplicaSummary(name=name, row_count=len(seen), tombstone_count=tombstone_count, root=root_of(digests))
        if claimed_root != summary.root:
            self._fault(f"{name}: says its root hash is {claimed_root.hex()}, its rows give {summary.root.hex()}")
        if claimed_row_count != summary.row_count:
            self._fault(f"{name}: says that it holds {claimed_row_count:,} rows, {summary.row_count:,} were read")
        self.summaries.append(summary)
        return summary

    def _compare_with_expected(self, name: str, row: ReadRow) -> None:
        if row.key not in self.expected:
            self._fault(f"{name}: {_text(row.key)} was never written")
            return
        value = self.expected[row.key]
        if value is None:
            if not row.deleted:
                self._fault(f"{name}: {_text(row.key)} was deleted and is back")
        elif row.deleted:
            self._fault(f"{name}: {_text(row.key)} is deleted but never was")
        elif row.value != value:
            self._fault(f"{name}: {_text(row.key)} does not have the value that was written last")

    def _fault(self, text: str) -> None:
        if len(self.faults) < FAULTS_SHOWN_MAX:
            self.faults.append(text)
        else:
            self.faults_left_out += 1

    def report(self) -> list[str]:
        """Every fault as a line, at most ``FAULTS_SHOWN_MAX`` and one that counts the others; empty: all is well."""
        others = [f"and {self.faults_left_out:,} more"] if self.faults_left_out else []
        return self.faults + others


def root_of(digests: Sequence[bytes]) -> bytes:
    """The root hash over rows with these digests, in the seed epoch that new replicas have."""
    high, low = np.bitwise_xor.reduce(epoch_digests(digest_columns(b"".join(digests)), 0), axis=0).tolist()
    return root_from(high, low, len(digests)).digest


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")
