"""A durable store on LMDB, with a hash tree in memory that is kept up to date on write.

Format 1: database ``rows`` maps token (8 bytes, big-endian) and key to a header (version 8 bytes, flags 1 byte, digest
16 bytes, all big-endian) and the value, so that rows lie in token order and a cold build of the tree reads digests and
hashes nothing. Database ``meta`` names the format. The tree and the counters are made anew on every open (about a
second for a million rows), so they cannot drift from the rows over restarts.

LMDB allows one writer at a time and any number of snapshot readers; py-lmdb opens every environment with MDB_NOTLS, so
a read transaction is not tied to a thread, but must not be used by two at once: snapshots hold a lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

import lmdb
import numpy as np

from antientropy.core import hashing
from antientropy.core.merkle import HashTree, MaintainedTree, Root
from antientropy.core.rows import Row, RowDigests
from antientropy.core.tokens import TOKEN_MAX, TokenRange
from antientropy.errors import (
    StoreClosedError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreInUseError,
    StoreReadOnlyError,
)
from antientropy.limits import (
    DIGESTS_PER_CHUNK_MAX,
    KEY_BYTES_MAX,
    LMDB_MAP_BYTES,
    LMDB_READERS_MAX,
    ROWS_PER_READ_MAX,
)
from antientropy.store import check_row

FORMAT: Final = b"antientropy rows 1"
_FORMAT_KEY: Final = b"format"
_HEADER: Final = struct.Struct(">QB16s")
_TOKEN: Final = struct.Struct(">Q")
_TOMBSTONE: Final = 1
#: A header as a numpy record, for cold builds.
_HEADER_TYPE: Final = np.dtype([("version", ">u8"), ("flags", "u1"), ("digest", ">u8", (2,))])
#: Rows that a snapshot reads while it holds its lock; their values are in memory together.
_ROWS_PER_TURN: Final = 64
#: The head of LMDB's lock file and a slot for every reader, as lmdb 0.9 lays it out on 64 bits: it takes a file that is
#: larger as it is, and as many readers as that holds.
_LOCK_FILE_BYTES: Final = 256 + 64 * LMDB_READERS_MAX
#: Less free disk than this explains a failed write.
_DISK_BYTES_LEFT_MIN: Final = 1024 * 1024
_FULL_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ_ONLY_ERRNOS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class LmdbRowStore:
    """Rows in an LMDB environment in the directory ``path``, which is made if it is missing. Thread-safe.

    ``map_bytes_max``: how far the file may grow. ``tree_depth``: fixed depth of the hash tree; None: by the number of
    rows, deepened while it grows. ``durable``: False gives up fsync (tests, rows that can be fetched again).

    Raises:
        StoreReadOnlyError: the directory cannot be made or written.
        StoreFullError: no room for the first page.
        StoreCorruptError: the files are damaged, not ours, or of an unknown format.
        StoreInUseError: somebody else has it open.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        map_bytes_max: int = LMDB_MAP_BYTES,
        tree_depth: int | None = None,
        durable: bool = True,
    ) -> None:
        self.path: Final = Path(path)
        self._tree_depth = tree_depth
        self._lock = threading.RLock()
        self._snapshots: set[LmdbSnapshot] = set()
        self._closed = False
        self._idle = threading.Condition()
        self._readers = 0
        self._row_count = self._tombstone_count = self._version_max = 0
        self._owner = _lock_directory(self.path)
        try:
            with _translated(self.path, "open"):
                _reserve_lock_file(self.path)
                self._environment = lmdb.open(
                    str(self.path),
                    map_size=map_bytes_max,
                    max_dbs=2,
                    max_readers=LMDB_READERS_MAX,
                    sync=durable,
                    metasync=durable,
                    lock=True,
                )
        except BaseException:
            os.close(self._owner)
            raise
        try:
            with _translated(self.path, "open"):
                self._environment.reader_check()
                self._rows = self._open_databases()
                self._build()
        except BaseException:
            self._environment.close()
            os.close(self._owner)
            raise

    def __enter__(self) -> LmdbRowStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close snapshots and files. Idempotent; everything that was acknowledged is on disk already."""
        with self._lock:
            with self._idle:
                if self._closed:
                    return
                self._closed = True
                self._idle.wait_for(lambda: self._readers == 0)
            for snapshot in list(self._snapshots):
                snapshot.close()
            self._environment.close()
            os.close(self._owner)

    # --- writing ---

    def apply(self, rows: Iterable[Row]) -> int:
        """See :class:`~antientropy.store.RowStore`: one transaction, durable on return.

        Raises:
            RowRefusedError: a row is beyond a limit.
            StoreFullError: no room.
            StoreError: the disk failed. In each case nothing was applied and the store stays usable.
        """
        arrived = []
        for row in rows:
            check_row(row)
            token, digest = row.token, row.digest
            flags = _TOMBSTONE if row.deleted else 0
            arrived.append((token, _TOKEN.pack(token) + row.key, _HEADER.pack(row.version, flags, digest), row))
        changes = _Changes()
        with self._lock:
            self._check_open()
            with (
                _translated(self.path, "write"),
                self._environment.begin(db=self._rows, write=True, buffers=True) as transaction,
            ):
                for token, place, header, row in arrived:
                    stored = transaction.get(place)
                    if changes.wins(token, header, None if stored is None else bytes(stored[: _HEADER.size])):
                        transaction.put(place, header + row.value)
            self._take_in(changes)
        return changes.applied

    def _take_in(self, changes: _Changes) -> None:
        """Bring tree and counters up to what has just become durable."""
        self._tree.record(changes.tokens, changes.digests, changes.counts)
        self._row_count += sum(changes.counts)
        self._tombstone_count += changes.tombstones
        self._version_max = max(self._version_max, changes.version_max)
        if self._tree_depth is None and self._tree.outgrown(self._row_count):
            self._build()

    # --- reading ---

    def snapshot(self) -> LmdbSnapshot:
        """Tree and rows at one point in time; takes the write lock for as long as the tree is copied (milliseconds)."""
        with self._lock:
            self._check_open()
            with _translated(self.path, "read"):
                transaction = self._environment.begin(db=self._rows, buffers=True)
            snapshot = LmdbSnapshot(self.path, transaction, self._tree.folded().copy(), self._snapshots.discard)
            self._snapshots.add(snapshot)
            return snapshot

    def root(self, token_range: TokenRange) -> Root:
        """XOR of the digests of all rows of a range, and their number; the full range costs no scan and no copy."""
        if token_range.is_full:
            with self._lock:
                self._check_open()
                return self._tree.folded().root
        snapshot = self.snapshot()
        try:
            tree = snapshot.tree
            edges = RowDigests.concatenate([*snapshot.digests(tree.edges(token_range))])
            return tree.restricted(token_range, edges).root
        finally:
            snapshot.close()

    def get(self, key: bytes) -> Row | None:
        """The row of a key, a tombstone included; None if there never was one."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[bytes]) -> list[Row | None]:
        """The rows of some keys (at most ``ROWS_PER_READ_MAX``) at one point in time, in their order."""
        if len(keys) > ROWS_PER_READ_MAX:
            raise StoreError(f"{len(keys)} keys refused: one read takes at most {ROWS_PER_READ_MAX}")
        with self._reading() as transaction:
            stored = [
                transaction.get(_TOKEN.pack(hashing.token_of(key)) + key) if 0 < len(key) <= KEY_BYTES_MAX else None
                for key in keys
            ]
        return [None if one is None else _row(key, one) for key, one in zip(keys, stored, strict=True)]

    def scan(
        self, token_range: TokenRange | None = None, *, after_key: bytes | None = None, limit: int = ROWS_PER_READ_MAX
    ) -> list[Row]:
        """Up to ``limit`` rows of a range in token order, tombstones included; ``after_key``: those behind that key."""
        within = TokenRange.full() if token_range is None else token_range
        start = _TOKEN.pack(within.first)
        if after_key is not None:
            # The smallest place behind a key is that key with a zero byte.
            start = max(start, _TOKEN.pack(hashing.token_of(after_key)) + after_key + b"\0")
        found: list[Row] = []
        with self._reading() as transaction, transaction.cursor() as cursor:
            more = cursor.set_range(start)
            while more and len(found) < min(limit, ROWS_PER_READ_MAX):
                place = cursor.key()
                if _TOKEN.unpack_from(place)[0] > within.last:
                    break
                found.append(_row(bytes(place[_TOKEN.size :]), cursor.value()))
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
    def version_max(self) -> int:
        """The greatest version ever stored, 0 when empty: a hybrid logical clock restarts above it."""
        return self._version_max

    @property
    def tree_depth(self) -> int:
        """Levels of the tree below its root."""
        return self._tree.depth

    # --- opening ---

    def _open_databases(self) -> lmdb._Database:
        """Check or write the format; return the database of the rows."""
        with self._environment.begin() as transaction:
            empty = transaction.stat()["entries"] == 0
        if not empty:
            try:
                meta = self._environment.open_db(b"meta", create=False)
                with self._environment.begin(db=meta) as transaction:
                    found = transaction.get(_FORMAT_KEY)
                rows = self._environment.open_db(b"rows", create=False)
            except (lmdb.NotFoundError, lmdb.IncompatibleError) as error:
                raise StoreCorruptError(f"{self.path}: an LMDB environment, but no row store; name another") from error
            if found != FORMAT:
                raise StoreCorruptError(f"{self.path}: format {found!r} is unknown to this version ({FORMAT!r})")
            return rows
        with self._environment.begin(write=True) as transaction:
            meta = self._environment.open_db(b"meta", txn=transaction)
            rows = self._environment.open_db(b"rows", txn=transaction)
            transaction.put(_FORMAT_KEY, FORMAT, db=meta)
        return rows

    def _build(self) -> None:
        """Make tree and counters from the rows' headers: at opening, and when the tree has been outgrown."""
        transaction = self._environment.begin(db=self._rows, buffers=True)
        forgotten = LmdbSnapshot(self.path, transaction, HashTree(1), self._snapshots.discard)
        try:
            rows = RowDigests.concatenate([*forgotten.digests([TokenRange.full()])])
        finally:
            forgotten.close()
        self._tree = MaintainedTree(HashTree.build(rows, self._tree_depth))
        self._row_count = len(rows)
        # The first bit of a digest is the tombstone flag.
        self._tombstone_count = int((rows.digests[:, 0] >> np.uint64(63)).sum())
        self._version_max = int(rows.versions.max()) if len(rows) else 0

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError(f"{self.path}: the store has been closed")

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keeps the files open for a short read without the write lock, which a writer holds during its fsync."""
        with self._idle:
            self._check_open()
            self._readers += 1
        try:
            yield
        finally:
            with self._idle:
                self._readers -= 1
                self._idle.notify_all()

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction]:
        with self._in_use(), _translated(self.path, "read"), self._environment.begin(db=self._rows) as transaction:
            yield transaction


class LmdbSnapshot:
    """See :class:`~antientropy.store.StoreSnapshot`: a read transaction and a copy of the tree."""

    def __init__(
        self, path: Path, transaction: lmdb.Transaction, tree: HashTree, forget: Callable[[LmdbSnapshot], None]
    ) -> None:
        self._path = path
        self._transaction: lmdb.Transaction | None = transaction
        self._tree = tree
        self._forget = forget
        self._lock = threading.Lock()

    @property
    def tree(self) -> HashTree:
        """The tree of exactly the rows of this snapshot."""
        return self._tree

    def digests(self, ranges: Sequence[TokenRange]) -> Iterator[RowDigests]:
        """Digests of all rows of some ranges, in token order; only headers are read."""
        tokens: list[bytes] = []
        headers: list[bytes] = []
        for token_range in ranges:
            start: bytes | None = _TOKEN.pack(token_range.first)
            while start:
                with self._reading() as cursor:
                    room = DIGESTS_PER_CHUNK_MAX - len(tokens)
                    start = _read_headers(
                        cursor, start, last=token_range.last, room=room, tokens=tokens, headers=headers
                    )
                if len(tokens) >= DIGESTS_PER_CHUNK_MAX:
                    yield self._columns(tokens, headers)
                    tokens, headers = [], []
        if tokens:
            yield self._columns(tokens, headers)

    def rows_at(self, tokens: Sequence[int]) -> Iterator[Row]:
        """The rows at these tokens, each checked against its digest."""
        for token in tokens:
            yield from self.rows(TokenRange(token, token))

    def rows(self, token_range: TokenRange) -> Iterator[Row]:
        """All rows of a range, in token order, each checked against its digest."""
        start: bytes | None = _TOKEN.pack(token_range.first)
        while start:
            found: list[Row] = []
            with self._reading() as cursor:
                more = cursor.set_range(start)
                start = None
                while more:
                    place = bytes(cursor.key())
                    if _TOKEN.unpack_from(place)[0] > token_range.last:
                        break
                    if len(found) >= _ROWS_PER_TURN:
                        start = place
                        break
                    found.append(_checked_row(self._path, place, bytes(cursor.value())))
                    more = cursor.next()
            yield from found

    def close(self) -> None:
        """End the read transaction. Idempotent; waits for a read that is under way in another thread."""
        with self._lock:
            if self._transaction is not None:
                self._transaction.abort()
                self._transaction = None
        self._forget(self)

    def _columns(self, tokens: list[bytes], headers: list[bytes]) -> RowDigests:
        joined = b"".join(headers)
        if len(joined) != len(headers) * _HEADER.size:
            raise StoreCorruptError(f"{self._path}: a row is shorter than its header; restore or wipe this replica")
        records = np.frombuffer(joined, _HEADER_TYPE)
        return RowDigests(
            np.frombuffer(b"".join(tokens), ">u8").astype(np.uint64),
            records["version"].astype(np.uint64),
            records["digest"].astype(np.uint64),
        )

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Cursor]:
        """A cursor for one turn: no two threads are ever inside the transaction, and none keeps it between batches."""
        with self._lock:
            if self._transaction is None:
                raise StoreClosedError("the snapshot has been closed")
            with _translated(self._path, "read"), self._transaction.cursor() as cursor:
                yield cursor


class _Changes:
    """What one write transaction changes, for the tree and the counters once it is durable."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.digests: list[bytes] = []
        self.counts: list[int] = []
        self.applied = 0
        self.tombstones = 0
        self.version_max = 0

    def wins(self, token: int, header: bytes, stored: bytes | None) -> bool:
        """Whether a row wins over the stored one, by their headers; notes the change if so."""
        version, flags, digest = _HEADER.unpack(header)
        if stored is not None:
            stored_version, stored_flags, stored_digest = _HEADER.unpack(stored)
            if (version, digest) <= (stored_version, stored_digest):
                return False
            self._note(token, stored_digest, -1)
            self.tombstones -= stored_flags & _TOMBSTONE
        self._note(token, digest, 1)
        self.tombstones += flags & _TOMBSTONE
        self.applied += 1
        self.version_max = max(self.version_max, version)
        return True

    def _note(self, token: int, digest: bytes, count: int) -> None:
        self.tokens.append(token)
        self.digests.append(digest)
        self.counts.append(count)


def _read_headers(
    cursor: lmdb.Cursor, start: bytes, *, last: int, room: int, tokens: list[bytes], headers: list[bytes]
) -> bytes | None:
    """Append up to ``room`` tokens and headers from ``start`` on; return where to go on, or None at the end."""
    end = None if last == TOKEN_MAX else _TOKEN.pack(last + 1)
    if not cursor.set_range(start):
        return None
    for place, stored in cursor.iternext(keys=True, values=True):
        if end is not None and bytes(place[:8]) >= end:
            return None
        if room == 0:
            return bytes(place)
        tokens.append(bytes(place[:8]))
        headers.append(bytes(stored[: _HEADER.size]))
        room -= 1
    return None


def _row(key: bytes, stored: bytes | memoryview) -> Row:
    version, flags, _ = _HEADER.unpack_from(stored)
    return Row(key, version, bytes(stored[_HEADER.size :]), bool(flags & _TOMBSTONE))


def _checked_row(path: Path, place: bytes, stored: bytes) -> Row:
    """The row of a snapshot; damage must not be spread to other replicas."""
    if len(stored) >= _HEADER.size:
        row = _row(place[_TOKEN.size :], stored)
        if row.digest == _HEADER.unpack_from(stored)[2]:
            return row
    token = _TOKEN.unpack_from(place)[0]
    raise StoreCorruptError(f"{path}: the row at token {token} does not match its digest; restore or wipe this replica")


def _lock_directory(path: Path) -> int:
    """Make the directory and take its owner lock; return the lock's descriptor.

    LMDB itself lets several processes write, but each keeps a hash tree of its own in memory.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        owner = os.open(path / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreError(f"{path}: not a directory; name another one") from error
    except OSError as error:
        raise _os_error(path, "open", error.errno or 0, error.strerror or str(error)) from error
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(owner)
        raise StoreInUseError(f"{path}: in use by another store or process; stop that one, or name another") from error
    return owner


def _reserve_lock_file(path: Path) -> None:
    """Give LMDB's lock file its room on disk; what it holds stays.

    LMDB makes it as a hole and writes to it through a memory map: on a full disk that is no error but SIGBUS, which
    ends the process without a word.

    Raises:
        OSError: there is no room, or no right to write.
    """
    descriptor = os.open(path / "lock.mdb", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, _LOCK_FILE_BYTES)
        elif os.fstat(descriptor).st_size == 0:
            os.write(descriptor, bytes(_LOCK_FILE_BYTES))
    finally:
        os.close(descriptor)


def _os_error(path: Path, action: str, code: int, reason: str) -> StoreError:
    if code in _FULL_ERRNOS or (code == errno.EIO and _disk_is_full(path)):
        return StoreFullError(f"{path}: cannot {action}: no space left; free some, nothing was changed")
    if code in _READ_ONLY_ERRNOS:
        return StoreReadOnlyError(f"{path}: cannot {action}: {reason}; check owner, mode and mount of the directory")
    return StoreError(f"{path}: cannot {action}: {reason}")


def _disk_is_full(path: Path) -> bool:
    """LMDB reports a write cut short by a full disk as an input/output error."""
    try:
        status = os.statvfs(path)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize < _DISK_BYTES_LEFT_MIN


@contextmanager
def _translated(path: Path, action: str) -> Iterator[None]:
    """Errors of LMDB and of the system as the library's own."""
    try:
        yield
    except lmdb.MapFullError as error:
        raise StoreFullError(
            f"{path}: cannot {action}: map_bytes_max reached; raise it, nothing was changed"
        ) from error
    except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.VersionMismatchError) as error:
        raise StoreCorruptError(f"{path}: no usable row store ({error}); restore or wipe it") from error
    except lmdb.ReadersFullError as error:
        raise StoreError(f"{path}: more than {LMDB_READERS_MAX} readers at once; close snapshots") from error
    except lmdb.DiskError as error:
        raise _os_error(path, action, errno.ENOSPC, str(error)) from error
    except lmdb.ReadonlyError as error:
        raise _os_error(path, action, errno.EACCES, str(error)) from error
    except lmdb.Error as error:
        # Older releases of py-lmdb raise without a code.
        raise _os_error(path, action, getattr(error, "code", 0), getattr(error, "reason", str(error))) from error
    except OSError as error:
        raise _os_error(path, action, error.errno or 0, error.strerror or str(error)) from error
