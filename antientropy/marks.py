"""What a replica has promised about deletes, kept with its rows: the shell around the rules of ``core/deletes.py``."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from antientropy.core import deletes
from antientropy.core.floors import decode_floors
from antientropy.core.tokens import TokenRange
from antientropy.errors import StoreCorruptError
from antientropy.store import RowStore


class ReplicaMarks:
    """Fence, repaired versions and floors of one store. Thread-safe; methods may block.

    All methods raise StoreError when the store cannot read or write its marks; nothing is promised then.
    """

    def __init__(self, store: RowStore, mode: deletes.PurgeMode = deletes.PurgeMode.REPAIR) -> None:
        self._store = store
        self._mode = mode
        self._lock = threading.Lock()
        self._ledger = deletes.Ledger()

    def read(self) -> deletes.Marks:
        """As the store has them now."""
        fence, repaired = self._store.read_mark(deletes.FENCE_MARK), self._store.read_mark(deletes.REPAIRED_MARK)
        floors = self._store.read_mark(deletes.FLOORS_MARK)
        try:
            return deletes.Marks.of(fence, repaired, deletes.encode_versions(decode_floors(floors)))
        except ValueError as error:
            raise StoreCorruptError(
                f"a mark of the store is damaged: {error}; wipe the replica and repair it"
            ) from error

    def born(self, version: int) -> None:
        """Record the birth of a store that has neither rows nor marks; for every other one, do nothing.

        Args:
            version: That of the time when writes that are still under way began, see ``deletes.session_version``.
        """
        with self._lock:
            names = (deletes.FENCE_MARK, deletes.REPAIRED_MARK, deletes.FLOORS_MARK)
            if not version or self._store.row_count or any(self._store.read_mark(name) is not None for name in names):
                return
            before, after = self.read(), deletes.Marks.born(version)
            self._write(deletes.FENCE_MARK, before.fence, after.fence)
            self._write(deletes.REPAIRED_MARK, before.repaired, after.repaired)

    def fence(
        self, session: int, token_range: TokenRange, as_of: int, floors: NDArray[np.uint64] | None = None
    ) -> None:
        """Close the past of a range, before its rows are looked at, and take part in the session.

        Args:
            session: Its name.
            token_range: Its range.
            as_of: What it counts for; the past ends there.
            floors: Of the other side; the past does not end before them.
        """
        with self._lock:
            before = self.read()
            fence = before.fenced(as_of, deletes.buckets_touched(token_range)).fence
            self._write(deletes.FENCE_MARK, before.fence, fence if floors is None else deletes.merged(fence, floors))
            self._ledger.took_part(session, token_range, as_of)

    def failed(self, session: int) -> None:
        """The replica lost rows of the session that it was given."""
        with self._lock:
            self._ledger.failed(session)

    def confirm(self, session: int, held: Sequence[TokenRange], floors: NDArray[np.uint64] | None = None) -> None:
        """The session was complete: record it, if this replica took part since its last start.

        Args:
            session: Its name.
            held: The ranges that this node holds now.
            floors: The greatest of all participants; None: the own ones.
        """
        with self._lock:
            versions = self._ledger.confirm(session, held)
            if versions is None:
                return
            before = self.read()
            after = before.confirmed(versions, before.floors if floors is None else floors)
            self._write(deletes.REPAIRED_MARK, before.repaired, after.repaired)
            if not np.array_equal(before.floors, after.floors):
                self._store.purge(after.floors, 0)

    def repaired_version(self, token_range: TokenRange) -> int:
        """Up to which version all buckets of a range are recorded as repaired."""
        return int(self.read().repaired[deletes.buckets_touched(token_range)].min())

    def floors_permitted(self, version: int, token_range: TokenRange, held: Sequence[TokenRange]) -> NDArray[np.uint64]:
        """The floors below which tombstones may be purged now that all replicas are repaired up to ``version``.

        A bucket of which this node holds tokens outside of the range keeps its floor: those may have other replicas.
        """
        permitted = deletes.bucket_versions([(token_range, version)], held)
        return self.read().purged(permitted, self._mode).floors

    def _write(self, name: str, before: NDArray[np.uint64], after: NDArray[np.uint64]) -> None:
        if not np.array_equal(before, after):
            self._store.write_mark(name, deletes.encode_versions(after))
