"""What clients did, what may be anywhere because of it, and what must never be seen.

Every value is derived from the seed and the number of its operation, so a row that is found anywhere can be checked
without having been remembered. By the order of versions (last write wins), not by that of time:

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

from antientropy.store import Row
from kvstore.replication import Mutation


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
    acknowledged: int = 0
    """The greatest version that was acknowledged."""
    acknowledged_delete: int = 0
    """The same, of deletions only."""
    issued: dict[int, Row] = field(default_factory=dict)
    """Every row that a coordinator has sent, by version."""


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
        history.acknowledged = max(history.acknowledged, version)
        if mutation.deleted:
            history.acknowledged_delete = max(history.acknowledged_delete, version)
        if version not in history.issued:
            raise ViolationError("phantom_version", f"{mutation.key!r}: version {version} was never sent to a replica")

    def seen_on_the_way(self, row: Row, from_repair: bool) -> None:
        """A row is sent to a replica, or is about to be applied by one; what is wrong with it is remembered."""
        try:
            self._check_row(row, from_repair)
        except ViolationError as violation:
            self.violations.append(violation)

    def seen_on_disk(self, row: Row, greatest: int) -> None:
        """What a replica holds of a key never becomes older, not even after a deletion has been purged."""
        if row.version < greatest:
            self.violations.append(
                ViolationError(
                    "older_row", f"a replica has version {row.version} of {row.key!r} now, and has had {greatest}"
                )
            )

    def _check_row(self, row: Row, from_repair: bool) -> None:
        history = self.keys.get(row.key)
        if history is None:
            raise ViolationError("phantom_row", f"nobody has ever written {row.key!r}, but a replica is given it")
        known = history.issued.get(row.version)
        if known is not None:
            if (known.value, known.deleted) != (row.value, row.deleted):
                raise ViolationError("damaged_row", f"{row.key!r} version {row.version}: not what was written")
            return
        if from_repair:
            raise ViolationError("phantom_row", f"repair brings {row.key!r} version {row.version}, which nobody wrote")
        self._check_value(row, history)
        history.issued[row.version] = row

    def _check_value(self, row: Row, history: KeyHistory) -> None:
        if row.deleted:
            if not history.deletions:
                raise ViolationError("phantom_row", f"nobody has ever deleted {row.key!r}")
            return
        number = int(row.value[:8]) if row.value[:8].isdigit() else -1
        if number not in history.operations or row.value != value_of(self._seed, number):
            raise ViolationError("damaged_row", f"{row.key!r} version {row.version}: no value of this seed")

    def expected(self, key: bytes) -> tuple[int, int]:
        """What a read that begins now must at least show: the greatest version acknowledged, and that of deletions."""
        history = self.keys.get(key, KeyHistory())
        return history.acknowledged, history.acknowledged_delete

    def check_read(self, key: bytes, row: Row | None, expected: tuple[int, int], where: str) -> None:
        """Whether what was read is as new as was known when the read began.

        Raises:
            ViolationError: it is not.
        """
        acknowledged, acknowledged_delete = expected
        history = self.keys.get(key, KeyHistory())
        if row is None:
            # A purged deletion shows as nothing.
            deleted_at = max((version for version, one in history.issued.items() if one.deleted), default=0)
            if acknowledged > deleted_at:
                raise ViolationError("lost_write", f"{where}: {key!r} is gone; version {acknowledged} was acknowledged")
            return
        known = history.issued.get(row.version)
        if known is None or (known.value, known.deleted) != (row.value, row.deleted):
            raise ViolationError("damaged_row", f"{where}: {key!r} version {row.version} is not what was written")
        if not row.deleted and row.version < acknowledged_delete:
            raise ViolationError(
                "returned_row",
                f"{where}: {key!r} has version {row.version} again; version {acknowledged_delete} had deleted it",
            )
        if row.version < acknowledged:
            raise ViolationError(
                "lost_write",
                f"{where}: {key!r} has version {row.version}; version {acknowledged} was acknowledged",
            )
