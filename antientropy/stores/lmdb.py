"""A durable store on LMDB. Its files and their format: :mod:`antientropy.stores.lmdb_files`.

LMDB allows one writer at a time and any number of readers. One lock orders the writers; foreground writes come first,
see :mod:`antientropy.stores.background`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

import lmdb
import numpy as np
from numpy.typing import NDArray

from antientropy.core import floors as purge_floors
from antientropy.core import hashing
from antientropy.core.rows import Row
from antientropy.core.tokens import TokenRange
from antientropy.errors import StoreClosedError, StoreCorruptError, StoreError
from antientropy.limits import KEY_BYTES_MAX, LMDB_MAP_BYTES, LMDB_READERS_MAX, ROWS_PER_READ_MAX
from antientropy.store import ENFORCED_MARKS, Listener, check_mark, limits_of_marks
from antientropy.stores.background import SLICE_ROWS_MAX, BackgroundWrites, Job
from antientropy.stores.lmdb_batch import ArrivedRow, WriteBatch
from antientropy.stores.lmdb_files import (
    DATABASES_MAX,
    NAME_KEY,
    TOKEN,
    VERSION_KEY,
    lock_directory,
    open_databases,
    reserve_lock_file,
    translated,
)
from antientropy.stores.lmdb_reader import LmdbReader, row_of

#: A row of a repair, and the call that brought it.
_Rider = tuple[Job[ArrivedRow], ArrivedRow]


class LmdbRowStore:
    """Rows in an LMDB environment in the directory ``path``, which is made if it is missing. Thread-safe.

    Keeps the contract of :class:`~antientropy.store.RowStore`. ``map_bytes_max``: how far the file may grow.
    ``durable``: False gives up fsync (tests, rows that can be fetched again).

    Raises:
        StoreReadOnlyError: the directory cannot be made or written.
        StoreFullError: no room for the first page.
        StoreCorruptError: the files are damaged, not ours, or of an unknown format.
        StoreInUseError: somebody else has it open.
    """

    def __init__(self, path: str | Path, *, map_bytes_max: int = LMDB_MAP_BYTES, durable: bool = True) -> None:
        self.path: Final = Path(path)
        self._lock = threading.RLock()
        self._background: BackgroundWrites[ArrivedRow] = BackgroundWrites(self._lock, lambda row: row.size)
        self._readers: set[LmdbReader] = set()
        self._listener: Listener | None = None
        self._closed = False
        self._idle = threading.Condition()
        self._reads = 0
        self._refused = 0
        self._owner = lock_directory(self.path)
        try:
            with translated(self.path, "open"):
                reserve_lock_file(self.path)
                self._environment = lmdb.open(
                    str(self.path),
                    map_size=map_bytes_max,
                    max_dbs=DATABASES_MAX,
                    max_readers=LMDB_READERS_MAX,
                    sync=durable,
                    metasync=durable,
                    lock=True,
                )
        except BaseException:
            os.close(self._owner)
            raise
        try:
            with translated(self.path, "open"):
                self._environment.reader_check()
                self._databases = open_databases(self._environment, self.path)
                self._load()
        except BaseException:
            self._environment.close()
            os.close(self._owner)
            raise

    def _load(self) -> None:
        """The counters, without a scan."""
        databases = self._databases
        with self._environment.begin() as transaction:
            self._row_count: int = transaction.stat(databases.rows)["entries"]
            self._tombstone_count: int = transaction.stat(databases.tombstones)["entries"]
            version_max, name = (transaction.get(key, db=databases.meta) for key in (VERSION_KEY, NAME_KEY))
            if version_max is None or name is None:
                raise StoreCorruptError(f"{self.path}: the store has lost its name; restore or wipe this replica")
            self._version_max: int = TOKEN.unpack(version_max)[0]
            self._name = name
            marks = {name: transaction.get(name.encode(), db=databases.marks) for name in ENFORCED_MARKS}
        self._enforced: dict[str, bytes | None] = marks
        self._floors, self._past = limits_of_marks(marks)

    def __enter__(self) -> LmdbRowStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close readers and files. Idempotent; everything that was acknowledged is on disk already."""
        self._background.close()
        with self._lock:
            with self._idle:
                if self._closed:
                    return
                self._closed = True
                self._idle.wait_for(lambda: self._reads == 0)
            for reader in list(self._readers):
                reader.close()
            self._environment.close()
            os.close(self._owner)

    # --- writing ---

    def apply(self, rows: Iterable[Row], *, from_repair: bool = False) -> int:
        """See :class:`~antientropy.store.RowStore`: one transaction, durable on return.

        ``from_repair``: all or nothing holds for slices of at most ``SLICE_ROWS_MAX`` rows.

        Raises:
            RowRefusedError: a row is beyond a limit.
            StoreFullError: no room.
            StoreError: the disk failed. In each case nothing was applied and the store stays usable.
        """
        if from_repair:
            arrived = []
            for number, row in enumerate(rows, 1):
                arrived.append(ArrivedRow.of(row))
                self._background.breathe(number)
            self._check_open()
            return self._background.run(arrived, self._write_background)
        arrived = [ArrivedRow.of(row) for row in rows]
        with self._background.foreground():
            self._check_open()
            taken: list[_Rider] = []
            try:
                return self._write_foreground(arrived, self._background.riders(), taken)
            except StoreError:
                if not taken:
                    raise
                # Whether it was their fault or not: this write must not fail for them.
                self._background.refuse(taken)
                return self._write_foreground(arrived, iter(()), [])

    def _write_foreground(self, arrived: Sequence[ArrivedRow], riders: Iterator[_Rider], taken: list[_Rider]) -> int:
        """One durable transaction; ``taken`` gets the riders that it took along."""
        settled = []
        with self._writing() as batch:
            for row in arrived:
                batch.put(row, self._past)
            applied = batch.applied
            for job, row in riders:
                before = batch.applied
                taken.append((job, row))
                batch.put(row, None)
                settled.append((job, batch.applied - before))
        self._background.settle(settled)
        return applied

    def _write_background(self, arrived: Iterable[ArrivedRow]) -> int:
        self._check_open()
        with self._writing() as batch:
            for row in arrived:
                batch.put(row, None)
        return batch.applied

    @contextmanager
    def _writing(self) -> Iterator[WriteBatch]:
        """A write transaction; when it is durable, counters and listener are brought up to it. Holds the write lock."""
        with (
            translated(self.path, "write"),
            self._environment.begin(db=self._databases.rows, write=True, buffers=True) as transaction,
        ):
            batch = WriteBatch(transaction, self._databases)
            yield batch
            if batch.version_max > self._version_max:
                transaction.put(VERSION_KEY, TOKEN.pack(batch.version_max), db=self._databases.meta)
        self._row_count += batch.rows
        self._tombstone_count += batch.tombstones
        self._version_max = max(self._version_max, batch.version_max)
        self._refused += batch.refused
        if self._listener is not None:
            changes = batch.changes()
            if len(changes):
                self._listener(changes)

    def purge(self, floors: NDArray[np.uint64], rows_max: int) -> int:
        """See :class:`~antientropy.store.RowStore`. One transaction for every ``SLICE_ROWS_MAX`` tombstones.

        Raises:
            StoreError: the disk failed; what was removed before stays so.
        """
        with self._background.foreground():
            self._check_open()
            raised = np.maximum(purge_floors.check_floors(floors), self._floors)
            if bool((raised != self._floors).any()):
                self._write_mark(purge_floors.FLOORS_MARK, purge_floors.encode_floors(raised))
        removed = 0
        start: bytes | None = b"\0"
        while start is not None and removed < rows_max:
            self._background.wait_for_turn()
            try:
                self._check_open()
                count, start = self._purge_slice(raised, start, min(SLICE_ROWS_MAX, rows_max - removed))
            finally:
                self._background.end_turn()
            removed += count
        return removed

    def _purge_slice(self, floors: NDArray[np.uint64], start: bytes, rows_max: int) -> tuple[int, bytes | None]:
        """Remove some expired tombstones from ``start`` on; how many, and where to go on (None: at the end)."""
        end = TOKEN.pack(int(floors.max()))
        by_bucket = floors.tolist()
        found: list[bytes] = []
        looked = 0
        with (
            translated(self.path, "read"),
            self._environment.begin(db=self._databases.tombstones) as transaction,
            transaction.cursor() as cursor,
        ):
            more = cursor.set_range(start)
            while more and looked < 16 * rows_max and len(found) < rows_max and (listed := bytes(cursor.key())) < end:
                version, token = TOKEN.unpack_from(listed)[0], TOKEN.unpack_from(listed, 8)[0]
                if purge_floors.is_below(token, version, by_bucket):
                    found.append(listed)
                looked += 1
                more = cursor.next()
            following = bytes(cursor.key()) if more and bytes(cursor.key()) < end else None
        with self._writing() as batch:
            for listed in found:
                batch.remove_tombstone(listed)
        return len(found), following

    def quarantine(self, names: Sequence[bytes]) -> int:
        """Move rows that do not match their digest aside; see :class:`~antientropy.store.QuarantiningStore`."""
        moved = 0
        for first in range(0, len(names), SLICE_ROWS_MAX):
            self._background.wait_for_turn()
            try:
                self._check_open()
                with self._writing() as batch:
                    places = names[first : first + SLICE_ROWS_MAX]
                    gone = [place for place in places if batch.quarantine_if_damaged(place)]
                    if gone:
                        batch.unlist_tombstones({place[: TOKEN.size] for place in gone})
                moved += len(gone)
            finally:
                self._background.end_turn()
        return moved

    def quarantined(self) -> dict[bytes, bytes]:
        """Rows that were moved aside: by key, header and value as they were found."""
        with self._reading() as transaction, transaction.cursor(db=self._databases.quarantine) as cursor:
            return {place[TOKEN.size :]: stored for place, stored in cursor}

    def read_mark(self, name: str) -> bytes | None:
        """See :class:`~antientropy.store.RowStore`."""
        with self._reading() as transaction:
            return transaction.get(name.encode(), db=self._databases.marks)

    def write_mark(self, name: str, value: bytes) -> None:
        """See :class:`~antientropy.store.RowStore`."""
        check_mark(name, value)
        with self._background.foreground():
            self._check_open()
            self._write_mark(name, value)

    def _write_mark(self, name: str, value: bytes) -> None:
        enforced = {**self._enforced, name: value} if name in ENFORCED_MARKS else self._enforced
        limits = limits_of_marks(enforced)
        with self._writing() as batch:
            batch.transaction.put(name.encode(), value, db=self._databases.marks)
        self._enforced, (self._floors, self._past) = enforced, limits

    def subscribe(self, listener: Listener | None) -> bool:
        """See :class:`~antientropy.store.RowStore`."""
        with self._lock:
            self._listener = listener
        return True

    def state_id(self) -> bytes | None:
        """The random name of the store and the number of its last transaction."""
        with self._in_use():
            last: int = self._environment.info()["last_txnid"]
        return self._name + TOKEN.pack(last)

    # --- reading ---

    def read(self, on_open: Callable[[], None] = lambda: None) -> LmdbReader:
        """See :class:`~antientropy.store.RowStore`; holds the write lock only while the read transaction opens."""
        with self._lock:
            self._check_open()
            reader = LmdbReader(self.path, self._environment, self._databases, self._readers.discard)
            try:
                on_open()
            except BaseException:
                reader.close()
                raise
            self._readers.add(reader)
            return reader

    def get(self, key: bytes) -> Row | None:
        """The row of a key, a tombstone included; None if there never was one."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[bytes]) -> list[Row | None]:
        """The rows of some keys (at most ``ROWS_PER_READ_MAX``) at one point in time, in their order."""
        if len(keys) > ROWS_PER_READ_MAX:
            raise StoreError(f"{len(keys)} keys refused: one read takes at most {ROWS_PER_READ_MAX}")
        with self._reading() as transaction:
            stored = [
                transaction.get(TOKEN.pack(hashing.token_of(key)) + key) if 0 < len(key) <= KEY_BYTES_MAX else None
                for key in keys
            ]
        return [None if one is None else row_of(key, one) for key, one in zip(keys, stored, strict=True)]

    def scan(
        self, token_range: TokenRange | None = None, *, after_key: bytes | None = None, limit: int = ROWS_PER_READ_MAX
    ) -> list[Row]:
        """Up to ``limit`` rows of a range in token order, tombstones included; ``after_key``: those behind that key."""
        within = TokenRange.full() if token_range is None else token_range
        start = TOKEN.pack(within.first)
        if after_key is not None:
            # The smallest place behind a key is that key with a zero byte.
            start = max(start, TOKEN.pack(hashing.token_of(after_key)) + after_key + b"\0")
        found: list[Row] = []
        with self._reading() as transaction, transaction.cursor() as cursor:
            more = cursor.set_range(start)
            while more and len(found) < min(limit, ROWS_PER_READ_MAX):
                place = cursor.key()
                if TOKEN.unpack_from(place)[0] > within.last:
                    break
                found.append(row_of(bytes(place[TOKEN.size :]), cursor.value()))
                more = cursor.next()
        return found

    @property
    def row_count(self) -> int:
        """Rows, tombstones included."""
        return self._row_count

    @property
    def tombstone_count(self) -> int:
        """Rows that are tombstones."""
        return self._tombstone_count

    @property
    def stored_bytes(self) -> int:
        """Bytes of the file in use, free pages inside it included."""
        with self._in_use():
            pages: int = self._environment.info()["last_pgno"] + 1
            page_bytes: int = self._environment.stat()["psize"]
        return pages * page_bytes

    @property
    def rows_refused(self) -> int:
        """Rows that were not applied because they lay below a purge floor, since the store was opened."""
        return self._refused

    @property
    def version_max(self) -> int:
        """The greatest version ever stored, 0 when empty: a hybrid logical clock restarts above it."""
        return self._version_max

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError(f"{self.path}: the store has been closed")

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keeps the files open for a short read without the write lock, which a writer holds during its fsync."""
        with self._idle:
            self._check_open()
            self._reads += 1
        try:
            yield
        finally:
            with self._idle:
                self._reads -= 1
                self._idle.notify_all()

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction[bytes]]:
        with (
            self._in_use(),
            translated(self.path, "read"),
            self._environment.begin(db=self._databases.rows) as transaction,
        ):
            yield transaction
