"""A store together with its index: hash tree and sketches, kept up to date on write, so that comparing scans nothing.

The store reports each change under its write lock (:meth:`~antientropy.store.RowStore.subscribe`); there it is only
appended to a log. The log is taken into the index by whoever needs the index next, or by a thread of the replica when
it has grown, never by a writer (but see ``PENDING_CHANGES_HARD_MAX``). A snapshot takes the store's lock only for as
long as a read transaction opens; what it must copy, it copies outside of that lock.

Locks, in the order in which they are taken: ``_index_lock`` (the index; held while it is folded, copied, swapped), the
store's own, ``_log_lock`` (the logs; held for an append or a swap of lists). The listener runs under the store's lock
and so only ever tries for ``_index_lock``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from antientropy.core import hashing
from antientropy.core.floors import check_floors, expired
from antientropy.core.index import Index
from antientropy.core.merkle import Root, depth_for, outgrown, root_from
from antientropy.core.rows import Changes, RowDigests
from antientropy.core.tokens import BUCKET_LEVEL, LEVEL_BITS, TokenRange, node_range
from antientropy.errors import StoreClosedError, StoreCorruptError, StoreError
from antientropy.index_file import FILE_NAME, take_index, write_index
from antientropy.limits import PENDING_CHANGES_HARD_MAX, PENDING_CHANGES_MAX
from antientropy.snapshots import ReplicaSnapshot
from antientropy.store import RowReader, RowStore, quarantining, rereading

logger = logging.getLogger(__name__)

#: The mark under which a replica keeps its seed epoch.
EPOCH_MARK: Final = "epoch"
#: After so long without a change the index is kept as it is, for a process that is killed.
SAVE_QUIET_SECONDS: Final = 60.0
#: Rows that a scan takes into the index at once: sorting and reducing many is cheaper a row, and 5 MB are little.
_ROWS_PER_FOLD: Final = 131_072

Progress = Callable[[float], None]


class _StoppedError(Exception):
    """The replica was closed during a scan."""


class Replica:
    """A store and its index. Thread-safe; methods may block and are called from worker threads.

    ``tree_depth``: fixed depth of the hash tree; None: by the number of rows, deepened while it grows. ``epoch``: seed
    epoch of all hashes; None: the one that was used last, 0 at first. Replicas compare under one epoch.

    ``index_dir``: a directory for the index, of this replica only; None: it is made anew at every start.

    A store that cannot report its changes is scanned for every snapshot and root, unless its ``state_id`` says that
    nothing has changed since the last scan.
    """

    def __init__(
        self,
        store: RowStore,
        *,
        index_dir: Path | None = None,
        tree_depth: int | None = None,
        epoch: int | None = None,
    ) -> None:
        if epoch is not None and not 0 <= epoch <= hashing.EPOCH_MAX:
            raise ValueError(f"epoch {epoch}: allowed is 0 to {hashing.EPOCH_MAX}")
        self.store: Final = store
        self._index_path = None if index_dir is None else Path(index_dir) / FILE_NAME
        self._saved_changes = -1
        self._depth_wanted = tree_depth
        self._epoch_wanted = epoch
        self._open_lock = threading.Lock()
        self._index_lock = threading.Lock()
        self._index: Index | None = None
        self._reports = False
        self._scanned_state: bytes | None = None
        self._log_lock = threading.RLock()
        self._log: list[Changes] = []
        self._log_rows = 0
        self._log_of_rebuild: list[Changes] | None = None
        self._changes_seen = 0
        self._expired_root: tuple[tuple[bytes, int, int, int], Root] | None = None
        self._wake = threading.Event()
        self._keeper: threading.Thread | None = None
        self._rebuild_lock = threading.Lock()
        self._rebuilding: Future[None] | None = None
        self._stopping = False
        self._closed = False

    def __enter__(self) -> Replica:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- opening and closing ---

    def open(self, progress: Progress | None = None) -> None:
        """Make the index ready: the kept one, if it is of just this content, else by a scan in bounded memory.

        Idempotent; every other method does it when needed. ``progress`` is told the share of the token line that has
        been scanned, 0 to 1.

        Raises:
            StoreError: the store cannot be read.
        """
        with self._open_lock:
            if self._closed:
                raise StoreClosedError("the replica has been closed")
            if self._index is not None:
                return
            epoch = self._epoch_wanted
            if epoch is None:
                epoch = int.from_bytes(self.store.read_mark(EPOCH_MARK) or b"", "big")
            self._reports = self.store.subscribe(self._record)
            try:
                with self._index_lock:
                    try:
                        self._index = self._first_index(epoch, progress)
                    except StoreCorruptError:
                        if not self._moved_damage_aside():
                            raise
                        self._index = self._first_index(epoch, progress)
            except BaseException:
                self.store.subscribe(None)
                raise
            if self._index_path is not None and self._reports:
                self._wake_keeper()

    def _moved_damage_aside(self) -> bool:
        """Rows that cannot even be counted must not keep the others from being served and repaired."""
        store, reader = quarantining(self.store), self.store.read()
        try:
            again = rereading(reader)
            if store is None or again is None:
                return False
            damaged = [name for turn in again.reread(TokenRange.full()) for name in turn.damaged]
        finally:
            reader.close()
        logger.error("%d damaged rows were moved aside; repair this replica", store.quarantine(damaged))
        return True

    def _first_index(self, epoch: int, progress: Progress | None) -> Index:
        state: list[bytes | None] = []

        def at_open() -> None:
            self._forget_log()
            state.append(self.store.state_id())

        reader = self.store.read(at_open)
        try:
            index = None if self._index_path is None else take_index(self._index_path, state[0])
            if index is not None and self._fits(index, epoch):
                self._scanned_state = state[0]
                if progress is not None:
                    progress(1.0)
                return index
            index = self._scan(reader, self._empty_index(epoch, self._depth_wanted), progress)
            self._scanned_state = state[0]
            return index
        finally:
            reader.close()

    def _fits(self, index: Index, epoch: int) -> bool:
        depth_fits = self._depth_wanted is None or self._depth_wanted == index.depth
        return index.epoch == epoch and depth_fits and index.tree.root.count == self.store.row_count

    def close(self) -> None:
        """Keep the index for the next start and stop following the store, which stays the caller's.

        Idempotent; waits for threads of the replica to end.
        """
        with self._open_lock:
            if self._closed:
                return
            self._stopping = True
            self._wake.set()
            if self._keeper is not None:
                self._keeper.join()
            rebuilding = self._rebuilding
            if rebuilding is not None:
                rebuilding.exception()
            self._save()
            self._closed = True
            if self._reports:
                self.store.subscribe(None)

    def _save(self) -> None:
        """Write the index to its file, if there is one and the store names what it is over."""
        path = self._index_path
        if path is None or self._index is None:
            return
        state: list[bytes | None] = []

        def at_open() -> None:
            state.append(self.store.state_id())
            self._saved_changes = self._changes_seen

        try:
            with self._index_lock:
                self._read(at_open).close()
                index = self._current()
                # The copy costs milliseconds; nobody waits for the disk.
                index = index if self._stopping else index.copy()
        except StoreError as error:
            logger.info("the index is not kept: %s", error)
            return
        if state[0] is not None:
            write_index(path, index, state[0])

    @property
    def is_ready(self) -> bool:
        """Whether the index is made: what needs it does not wait then."""
        return self._index is not None

    # --- what a repair needs ---

    @property
    def epoch(self) -> int:
        """The seed epoch of all hashes."""
        return self._opened().epoch

    @property
    def tree_depth(self) -> int:
        """Levels of the tree below its root."""
        return self._opened().depth

    @property
    def row_count(self) -> int:
        """Rows, tombstones included: what the index covers, as of its last use."""
        return self._opened().tree.root.count

    def root(self, token_range: TokenRange, floors: NDArray[np.uint64] | None = None) -> Root:
        """All rows of a range in 16 bytes and their number, without tombstones below the floor of their bucket.

        The full range costs no scan and no copy; where tombstones have expired, they are read once for each change.

        Raises:
            StoreError: the store cannot be read.
        """
        self._opened()
        wanted = _some(floors)
        if wanted is not None and not self.store.tombstone_count:
            wanted = None
        if token_range.is_full and wanted is None and self._reports and not self._closed:
            with self._index_lock:
                return self._folded().tree.root
        seen: list[int] = []
        with self._index_lock:
            # What has been seen is named while nothing can change: a root is only remembered for just these rows.
            reader = self._read(lambda: seen.append(self._changes_seen))
            try:
                index = self._current()
                name = (b"" if wanted is None else wanted.tobytes(), token_range.first, token_range.last, seen[0])
                if self._expired_root is not None and self._expired_root[0] == name:
                    reader.close()
                    return self._expired_root[1]
                edges = RowDigests.concatenate([*reader.digests(index.edges(token_range))])
                root = index.root_of(token_range, edges)
            except BaseException:
                reader.close()
                raise
        try:
            if wanted is not None:
                root = _without_expired(root, reader, token_range, wanted, index.epoch)
                self._expired_root = (name, root)
        finally:
            reader.close()
        return root

    def snapshot(self, token_range: TokenRange, floors: NDArray[np.uint64] | None = None) -> ReplicaSnapshot:
        """Index and rows of a range at one point in time, without tombstones below the floor of their bucket.

        Raises:
            StoreError: the store cannot be read.
        """
        self._opened()
        wanted = _some(floors)
        with self._index_lock:
            reader = self._read()
            try:
                index = self._current().cut(token_range)
            except BaseException:
                reader.close()
                raise
        snapshot = ReplicaSnapshot(reader, index, token_range, wanted)
        try:
            snapshot.prepare()
        except BaseException:
            snapshot.close()
            raise
        return snapshot

    def rebuild(self, epoch: int | None = None, *, tree_depth: int | None = None) -> Future[None]:
        """Make the index anew from the rows, in a thread, while writes go on; the old one serves until it is ready.

        ``epoch``: from now on another seed epoch, also after a restart. Returns a future that ends with it; one rebuild
        runs at a time, and a further call waits for its turn. Errors of the store end the future and change nothing.
        """
        if epoch is not None and not 0 <= epoch <= hashing.EPOCH_MAX:
            raise ValueError(f"epoch {epoch}: allowed is 0 to {hashing.EPOCH_MAX}")
        self._opened()
        with self._rebuild_lock:
            before = self._rebuilding
            done: Future[None] = Future()
            self._rebuilding = done
        arguments = (before, done, epoch, tree_depth)
        threading.Thread(
            target=self._rebuild_in_thread, args=arguments, name="antientropy rebuild", daemon=True
        ).start()
        return done

    def bucket_is_sound(self, bucket: int) -> bool:
        """Whether the index of a bucket is that of its rows, made anew: a scrub asks. Reads the bucket's digests.

        In a tree of depth 1 a leaf has 16 buckets, so it looks at all of them.

        Raises:
            StoreError: the store cannot be read.
        """
        self._opened()
        with self._index_lock:
            reader = self._read()
            try:
                index = self._current()
                level = min(BUCKET_LEVEL, index.depth)
                node = bucket >> LEVEL_BITS * (BUCKET_LEVEL - level)
                token_range = node_range(level, node)
                adds_up = index.tree.adds_up(BUCKET_LEVEL)
                kept = index.cut(token_range)
            except BaseException:
                reader.close()
                raise
        try:
            made = Index.empty(kept.depth, kept.epoch)
            for part in reader.digests([token_range]):
                made.fold_rows(part)
        finally:
            reader.close()
        kept.trim(token_range, RowDigests.empty())
        return adds_up and made.tree.same_below(kept.tree, level, node) and made.bank.same_as(kept.bank)

    def settle(self) -> None:
        """Wait until no rebuild is under way, and take in what was written so far."""
        self._opened()
        while (rebuilding := self._rebuilding) is not None and not rebuilding.done():
            rebuilding.exception()
        with self._index_lock:
            index = self._folded()
        if self._has_outgrown(index):
            self.rebuild().result()

    # --- following the store ---

    def _record(self, changes: Changes) -> None:
        """The listener: called under the store's write lock."""
        with self._log_lock:
            self._log.append(changes)
            self._log_rows += len(changes)
            self._changes_seen += 1
            if self._log_of_rebuild is not None:
                self._log_of_rebuild.append(changes)
            waiting = self._log_rows
        if waiting >= PENDING_CHANGES_HARD_MAX:
            if self._index_lock.acquire(blocking=False):
                try:
                    self._folded()
                finally:
                    self._index_lock.release()
        elif waiting >= PENDING_CHANGES_MAX:
            self._wake_keeper()

    def _wake_keeper(self) -> None:
        if self._keeper is None and not self._stopping:
            self._keeper = threading.Thread(target=self._keep, name="antientropy index", daemon=True)
            self._keeper.start()
        self._wake.set()

    def _keep(self) -> None:
        """The replica's thread: takes changes in that nobody has asked for, and keeps the index of a quiet store."""
        seen = self._changes_seen
        while True:
            woken = self._wake.wait(None if self._index_path is None else SAVE_QUIET_SECONDS)
            self._wake.clear()
            if self._stopping:
                return
            if self._index is None:
                continue
            if not woken and self._changes_seen == seen != self._saved_changes:
                self._save()
                continue
            seen = self._changes_seen
            with self._index_lock:
                index = self._folded()
            if self._has_outgrown(index) and (self._rebuilding is None or self._rebuilding.done()):
                self.rebuild()

    def _folded(self) -> Index:
        """The index with every logged change taken in; the caller holds ``_index_lock``."""
        index = self._current()
        with self._log_lock:
            log, self._log, self._log_rows = self._log, [], 0
        self._fold(index, log)
        return index

    def _fold(self, index: Index, log: list[Changes]) -> None:
        if log:
            index.fold(Changes.concatenate(log))
            if self._has_outgrown(index):
                self._wake_keeper()

    def _has_outgrown(self, index: Index) -> bool:
        return self._depth_wanted is None and self._reports and outgrown(index.depth, index.tree.root.count)

    def _current(self) -> Index:
        index = self._index
        if index is None or self._closed:
            raise StoreClosedError("the replica is not open")
        return index

    def _forget_log(self) -> None:
        with self._log_lock:
            self._log, self._log_rows = [], 0

    def _opened(self) -> Index:
        index = self._index
        if index is None or self._closed:
            self.open()
            index = self._index
            if index is None:
                raise StoreClosedError("the replica has been closed")
        return index

    def _read(self, at_open: Callable[[], object] = lambda: None) -> RowReader:
        """A reader at the point in time that the index is then folded to; the caller holds ``_index_lock``.

        The log is taken out while nothing can change, and folded outside of the store's lock.
        """
        index = self._current()
        taken: list[Changes] = []

        def take_log() -> None:
            nonlocal taken
            with self._log_lock:
                taken, self._log, self._log_rows = self._log, [], 0
            at_open()

        if not self._reports:
            return self._rescan(index, at_open)
        reader = self.store.read(take_log)
        self._fold(index, taken)
        return reader

    # --- scanning ---

    def _empty_index(self, epoch: int, depth: int | None) -> Index:
        return Index.empty(depth_for(self.store.row_count) if depth is None else depth, epoch)

    def _scan(self, reader: RowReader, index: Index, progress: Progress | None) -> Index:
        """An index from the rows themselves, in bounded memory."""
        parts: list[RowDigests] = []
        rows = 0
        for part in reader.digests([TokenRange.full()]):
            if self._stopping:
                raise _StoppedError
            parts.append(part)
            rows += len(part)
            if rows >= _ROWS_PER_FOLD:
                index.fold_rows(RowDigests.concatenate(parts))
                if progress is not None:
                    progress(int(part.tokens[-1]) / 2**64)
                parts, rows = [], 0
        index.fold_rows(RowDigests.concatenate(parts))
        if progress is not None:
            progress(1.0)
        return index

    def _rescan(self, index: Index, at_open: Callable[[], object]) -> RowReader:
        """For a store that reports nothing: a reader, and the index made of just its rows; holds ``_index_lock``."""
        state: list[bytes | None] = []

        def note_state() -> None:
            state.append(self.store.state_id())
            at_open()

        reader = self.store.read(note_state)
        try:
            if state[0] is None or state[0] != self._scanned_state:
                self._index = self._scan(reader, self._empty_index(index.epoch, self._depth_wanted), None)
                self._scanned_state = state[0]
                self._changes_seen += 1
        except BaseException:
            reader.close()
            raise
        return reader

    def _rebuild_in_thread(
        self, before: Future[None] | None, done: Future[None], epoch: int | None, depth: int | None
    ) -> None:
        if before is not None:
            before.exception()
        try:
            self._rebuild(epoch, depth)
        except _StoppedError:
            done.set_exception(StoreClosedError("the replica has been closed"))
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to whoever waits
            logger.warning("the index could not be made anew: %s", error)
            done.set_exception(error)
        else:
            done.set_result(None)

    def _rebuild(self, epoch: int | None, depth: int | None) -> None:
        def begin_log() -> None:
            self._swap_log_of_rebuild([])

        if depth is not None:
            self._depth_wanted = depth
        epoch = self._opened().epoch if epoch is None else epoch
        try:
            reader = self.store.read(begin_log)
            try:
                index = self._scan(reader, self._empty_index(epoch, self._depth_wanted), None)
            finally:
                reader.close()
            if epoch != self._current().epoch:
                self.store.write_mark(EPOCH_MARK, epoch.to_bytes(4, "big"))
            with self._index_lock:
                # Most of what was written meanwhile is taken in here, the rest under the lock of the logs.
                index.fold(Changes.concatenate(self._swap_log_of_rebuild([])))
                with self._log_lock:
                    self._log = self._swap_log_of_rebuild(None)
                    self._log_rows = sum(map(len, self._log))
                    self._index = index
                    self._changes_seen += 1
        finally:
            self._swap_log_of_rebuild(None)

    def _swap_log_of_rebuild(self, log: list[Changes] | None) -> list[Changes]:
        with self._log_lock:
            before = self._log_of_rebuild
            self._log_of_rebuild = log
        return [] if before is None else before


def _some(floors: NDArray[np.uint64] | None) -> NDArray[np.uint64] | None:
    """Floors that make a difference."""
    if floors is None or not bool(check_floors(floors).any()):
        return None
    return floors


def _without_expired(
    root: Root, reader: RowReader, token_range: TokenRange, floors: NDArray[np.uint64], epoch: int
) -> Root:
    """A root with the expired tombstones of its range taken out."""
    high, low, count = int.from_bytes(root.digest[:8], "big"), int.from_bytes(root.digest[8:], "big"), root.count
    for part in reader.tombstones(int(floors.max())):
        gone = part.take(expired(part, floors) & token_range.holds(part.tokens))
        mixed = hashing.epoch_digests(gone.digests, epoch)
        high ^= int(np.bitwise_xor.reduce(mixed[:, 0]))
        low ^= int(np.bitwise_xor.reduce(mixed[:, 1]))
        count -= len(gone)
    return root_from(high, low, count)
