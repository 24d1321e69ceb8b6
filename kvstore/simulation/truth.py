"""What clients did, what may be anywhere because of it, and what must never be seen.

Every value is derived from the seed and the number of its operation, so a row that is found anywhere can be checked
without having been remembered. By the order of (version, digest), as the last write wins, not by that of time (and two
coordinators may give one version to two rows of a key):

* an acknowledged write is lost when a quorum read that began later, or the end, shows something older or nothing;
* a deleted row has returned when such a read, or the end, shows a value older than an acknowledged deletion;
* what one replica holds of a key never becomes older, not even after its deletion has been purged;
* a row that nobody ever wrote, or with another value than was written, is damage.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Final

from antientropy.store import Row
from kvstore.replication import Mutation

Place = tuple[int, bytes]
"""Version and digest of a row: of two rows with one key the greater one wins."""
FIRST: Final[Place] = (0, b"")


def place_of(row: Row) -> Place:
    """Where it stands among the rows of its key."""
    return row.version, row.digest


class ViolationError(Exception):
    """An invariant does not hold. ``invariant`` names it."""

    def __init__(self, invariant: str, detail: str) -> None:
        self.invariant = invariant
        self.detail = detail
        super().__init__(f"{invariant}: {detail}")


def value_of(seed: int, operation: int) -> bytes:
    """The value that an operation writes: 9 to 300 bytes, which name the operation."""
    digest = hashlib.sha256(f"{seed}/{operation}".encode()).digest()
    return b"%08d:" % operation + digest[: digest[0] % 33] * (1 + digest[1] % 9)


@dataclass(slots=True)
class KeyHistory:
    """What clients know of one key."""

    operations: set[int] = field(default_factory=set)
    deletions: int = 0
    """Deletions that were tried."""
    acknowledged: Place = FIRST
    """The greatest place that was acknowledged."""
    acknowledged_delete: Place = FIRST
    """The same, of deletions only."""
    issued: dict[Place, Row] = field(default_factory=dict)
    """Every row that a coordinator has sent."""


class Truth:
    """All operations of one run."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._operations = 0
        self.keys: dict[bytes, KeyHistory] = {}
        self.outcomes: Counter[str] = Counter()
        self.violations: list[ViolationError] = []
        """Found where raising would only be one more error of a node."""

    def next_mutation(self, key: bytes, rng: Random, delete_share: float) -> Mutation:
        """What a client does next with a key."""
        history = self.keys.setdefault(key, KeyHistory())
        if rng.random() < delete_share:
            history.deletions += 1
            return Mutation(key, deleted=True)
        self._operations += 1
        history.operations.add(self._operations)
        return Mutation(key, value_of(self._seed, self._operations))

    def acknowledged(self, mutation: Mutation, version: int) -> None:
        """A client was told that its write is done."""
        history = self.keys[mutation.key]
        place = place_of(Row(mutation.key, version, mutation.value, mutation.deleted))
        history.acknowledged = max(history.acknowledged, place)
        if mutation.deleted:
            history.acknowledged_delete = max(history.acknowledged_delete, place)
        if place not in history.issued:
            raise ViolationError("phantom_version", f"{mutation.key!r}: version {version} was never sent to a replica")

    def seen_on_the_way(self, row: Row, from_repair: bool) -> None:
        """A row is sent to a replica, or is about to be applied by one; what is wrong with it is remembered."""
        try:
            self._check_row(row, from_repair)
        except ViolationError as violation:
            self.violations.append(violation)

    def seen_on_disk(self, row: Row, greatest: Place) -> None:
        """What a replica holds of a key never becomes older, not even after a deletion has been purged."""
        if place_of(row) < greatest:
            self.violations.append(
                ViolationError(
                    "older_row", f"a replica has version {row.version} of {row.key!r} now, and has had {greatest[0]}"
                )
            )

    def _check_row(self, row: Row, from_repair: bool) -> None:
        history = self.keys.get(row.key)
        if history is None:
            raise ViolationError("phantom_row", f"nobody has ever written {row.key!r}, but a replica is given it")
        if place_of(row) in history.issued:
            return
        self._check_value(row, history)
        if from_repair:
            raise ViolationError("phantom_row", f"repair brings {row.key!r} version {row.version}, which nobody wrote")
        history.issued[place_of(row)] = row

    def _check_value(self, row: Row, history: KeyHistory) -> None:
        if row.deleted:
            if not history.deletions:
                raise ViolationError("phantom_row", f"nobody has ever deleted {row.key!r}")
            return
        number = int(row.value[:8]) if row.value[:8].isdigit() else -1
        if number not in history.operations or row.value != value_of(self._seed, number):
            raise ViolationError("damaged_row", f"{row.key!r} version {row.version}: no value of this seed")

    def expected(self, key: bytes) -> tuple[Place, Place]:
        """What a read that begins now must at least show: the greatest place acknowledged, and that of deletions."""
        history = self.keys.get(key, KeyHistory())
        return history.acknowledged, history.acknowledged_delete

    def check_read(self, key: bytes, row: Row | None, expected: tuple[Place, Place], where: str) -> None:
        """Whether what was read is as new as was known when the read began.

        Raises:
            ViolationError: it is not.
        """
        acknowledged, acknowledged_delete = expected
        history = self.keys.get(key, KeyHistory())
        if row is None:
            # A purged deletion shows as nothing.
            deleted_at = max((place for place, one in history.issued.items() if one.deleted), default=FIRST)
            if acknowledged > deleted_at:
                raise ViolationError(
                    "lost_write", f"{where}: {key!r} is gone; version {acknowledged[0]} was acknowledged"
                )
            return
        place = place_of(row)
        if place not in history.issued:
            raise ViolationError("damaged_row", f"{where}: {key!r} version {row.version} is not what was written")
        if not row.deleted and place < acknowledged_delete:
            raise ViolationError(
                "returned_row",
                f"{where}: {key!r} has version {row.version} again; version {acknowledged_delete[0]} had deleted it",
            )
        if place < acknowledged:
            raise ViolationError(
                "lost_write", f"{where}: {key!r} has version {row.version}; version {acknowledged[0]} was acknowledged"
            )
