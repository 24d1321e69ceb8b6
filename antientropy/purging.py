"""Removing tombstones of the own stores: by what all replicas have acknowledged, or by age."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from antientropy.config import RepairConfig
from antientropy.core import deletes
from antientropy.journal import RepairedPart
from antientropy.limits import PURGE_ROWS_PER_SLICE_MAX
from antientropy.marks import ReplicaMarks
from antientropy.membership import Membership
from antientropy.replica import Replica

logger = logging.getLogger(__name__)


class Purger:
    """Purges the stores of a node. Blocks; called from a worker thread."""

    def __init__(
        self,
        replicas: Mapping[str, Replica],
        marks: Mapping[str, ReplicaMarks],
        membership: Membership,
        config: RepairConfig,
        clock: Callable[[], float],
    ) -> None:
        self._replicas = replicas
        self._marks = marks
        self._membership = membership
        self._config = config
        self._clock = clock

    def purge(self, keyspace: str, parts: Sequence[RepairedPart]) -> int:
        """One slice of a keyspace: at most ``PURGE_ROWS_PER_SLICE_MAX`` tombstones. Returns how many went.

        Raises:
            StoreError: the store failed; what is gone is gone, the floors hold.
        """
        store = self._replicas[keyspace].store
        if not store.tombstone_count:
            return 0
        marks = self._marks[keyspace].read()
        floors = marks.purged(self._permitted(keyspace, parts), self._config.purge).floors
        if not floors.any():
            return 0
        gone = store.purge(floors, PURGE_ROWS_PER_SLICE_MAX)
        if gone:
            logger.info("purged %d tombstones of keyspace %s", gone, keyspace)
        return gone

    def _permitted(self, keyspace: str, parts: Sequence[RepairedPart]) -> deletes.Versions:
        """Below which versions tombstones may go."""
        if self._config.purge is deletes.PurgeMode.TIME and self._config.version_at is not None:
            return deletes.purge_by_time(
                self._clock(), self._config.version_at, gc_grace_seconds=self._config.gc_grace_seconds
            )
        held = self._membership.ranges(keyspace)
        completed = [
            (inside, part.acknowledged_version)
            for part in parts
            for one in held
            if part.replicas == tuple(sorted(one.replicas))
            and (inside := part.token_range.intersection(one.token_range)) is not None
        ]
        return deletes.bucket_versions(completed, [one.token_range for one in held])
