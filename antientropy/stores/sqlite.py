"""A table of an application's own SQLite database as a row store: what others write to it is found and repaired too.

How changes are found, and what lies beside the table: :mod:`antientropy.stores.sqlite_table`. The table is the truth:
whoever writes to it must give a row a greater version than it had, as repair does. A row that is deleted becomes a
tombstone, of a version that ``version_at`` makes of the time of the deletion.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from antientropy.core import floors as purge_floors
from antientropy.core.rows import Row
from antientropy.errors import StoreClosedError, StoreError, StoreInUseError
from antientropy.store import ENFORCED_MARKS, Listener, check_mark, limits_of_marks
from antientropy.stores.background import SLICE_ROWS_MAX, BackgroundWrites
from antientropy.stores.sqlite_batch import ROWS_PER_TRANSACTION_MAX, ArrivedRow, Indexed, SqliteBatch
from antientropy.stores.sqlite_reader import TOKEN_OFFSET, SqliteReader
from antientropy.stores.sqlite_scan import scan_into_snapshot
from antientropy.stores.sqlite_table import (
    TableColumns,
    Tracking,
    connect,
    listed,
    quoted,
    table_columns,
    translated,
)

__all__ = ["SqliteRowStore", "Tracking"]

logger = logging.getLogger(__name__)

#: Our own entries beside the marks of repair; no mark of a replica begins so.
_OWN: Final = "sqlite:"
_FINGERPRINT: Final = _OWN + "fingerprint"
_NAME: Final = _OWN + "name"
_COUNTER: Final = _OWN + "counter"
#: How often a moment without unread changes is looked for before a reader opens.
_READ_ATTEMPTS_MAX: Final = 100


class SqliteRowStore:
    """Rows of an existing table. Thread-safe; keeps the contract of :class:`~antientropy.store.RowStore`.

    One object at a time works on a table; other processes read and write it as they like. The database is switched to
    WAL mode, in which readers and the writer do not block each other.

    Args:
        path: The database file.
        table: Its table.
        keys: The columns that name a row; together the primary key, or with a unique index.
        version: The column of versions: integers, 0 or greater.
        values: The columns that are repaired; None: all others.
        tombstone: A column that is true in deleted rows; None: deleted rows are gone from the table, and their
            tombstones are kept beside it.
        tracking: How changes of others are found.
        version_at: The version of a time in seconds since the epoch, for rows that are deleted from the table; None:
            one more than the version that was deleted.
        busy_seconds: How long to wait for another writer.
        poll_seconds: How soon changes of other connections are noticed and reported, with triggers.
        durable: False gives up fsync (tests, rows that can be fetched again).

    Raises:
        StoreError: the table is not there or not fit.
        StoreInUseError: another store works on it.
    """

    def __init__(
        self,
        path: str | Path,
        table: str,
        *,
        keys: Sequence[str],
        version: str,
        values: Sequence[str] | None = None,
        tombstone: str | None = None,
        tracking: Tracking = Tracking.TRIGGERS,
        version_at: Callable[[float], int] | None = None,
        busy_seconds: float = 10.0,
        poll_seconds: float = 0.1,
        durable: bool = True,
    ) -> None:
        self.path: Final = Path(path)
        self.tracking: Final = tracking
        self._version_at = version_at
        self._busy_seconds = busy_seconds
        self._poll_seconds = poll_seconds
        self._lock = threading.RLock()
        self._background: BackgroundWrites[ArrivedRow] = BackgroundWrites(self._lock, lambda row: row.size)
        self._readers: set[SqliteReader] = set()
        self._listener: Listener | None = None
        self._poller: threading.Thread | None = None
        self._stop_polling = threading.Event()
        self._closed = False
        self._refused = 0
        self._row_count = self._tombstone_count = 0
        self._marks: dict[str, bytes] = {}
        self._named = (table, tuple(keys), version, None if values is None else tuple(values), tombstone)
        with translated(self.path, "open"):
            self._db = connect(self.path, busy_seconds, durable=durable)
        self._owner = -1
        try:
            with translated(self.path, "open"):
                self._columns: TableColumns = table_columns(self._db, *self._named)
                self._owner = _lock_table(self.path, table)
                _use_wal(self.path, self._db)
                self._install()
        except BaseException:
            self._db.close()
            _unlock(self._owner)
            raise

    def __enter__(self) -> SqliteRowStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close readers and connections; triggers go on logging. Idempotent."""
        self.subscribe(None)
        self._background.close()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for reader in list(self._readers):
                reader.close()
            self._db.close()
            _unlock(self._owner)

    def uninstall(self) -> None:
        """Remove triggers and tables from the database, marks and tombstones with them, and close.

        The table stays as it is. As a replica it must be empty, or new to its peers, before it is repaired again.
        """
        with self._lock:
            self._check_open()
            with translated(self.path, "uninstall"):
                for trigger in self._columns.triggers():
                    self._db.execute(f"DROP TRIGGER IF EXISTS {quoted(trigger)}")
                for reader in list(self._readers):
                    reader.close()
                for what in ("index", "changes", "marks"):
                    self._db.execute(f"DROP TABLE IF EXISTS {self._columns.side(what)}")
        self.close()

    # --- opening ---

    def _install(self) -> None:
        """Make what is missing beside the table, and bring the index up to it."""
        columns = self._columns
        triggers = columns.triggers() if self.tracking is Tracking.TRIGGERS else {}
        with self._transaction():
            for statement in columns.side_tables():
                self._db.execute(statement)
            self._read_marks()
            complete = self._own(_FINGERPRINT) == (columns.fingerprint + self.tracking.value).encode()
            found = self._installed_triggers()
            if found != triggers:
                complete = False
                for name in found:
                    self._db.execute(f"DROP TRIGGER {quoted(name)}")
                for statement in triggers.values():
                    self._db.execute(statement)
            if self._own(_NAME) is None:
                self._set_own(_NAME, os.urandom(16))
            if not complete:
                self._set_own(_FINGERPRINT, b"")
        self._schema_version = self._db.execute("PRAGMA schema_version").fetchone()[0]
        self._data_version = -1
        counted = self._db.execute(f"SELECT count(*), coalesce(sum(deleted), 0) FROM {columns.side('index')}")
        self._row_count, self._tombstone_count = counted.fetchone()
        if self.tracking is Tracking.TRIGGERS:
            if not complete:
                self.reindex()
            self._catch_up()

    def _installed_triggers(self) -> dict[str, str]:
        names = list(self._columns.triggers())
        found = self._db.execute(
            f"SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name IN ({listed(['?'] * len(names))})",
            names,
        )
        return dict(found.fetchall())

    def _read_marks(self) -> None:
        found = self._db.execute(f"SELECT name, value FROM {self._columns.side('marks')}")
        self._marks = {name: bytes(value) for name, value in found}
        self._floors, self._past = limits_of_marks(self._marks)

    def _own(self, name: str) -> bytes | None:
        return self._marks.get(name)

    def _set_own(self, name: str, value: bytes) -> None:
        self._db.execute(f"INSERT OR REPLACE INTO {self._columns.side('marks')} VALUES (?, ?)", (name, value))
        self._marks[name] = value

    def reindex(self) -> None:
        """Hash every row of the table again, in short transactions: others may write meanwhile. Triggers only."""
        with self._lock:
            self._check_open()
            keys = listed([quoted(name) for name in self._columns.keys])
            table = quoted(self._columns.table)
            place: Sequence[Any] = ()
            while True:
                where = f"WHERE ({keys}) > ({listed(['?'] * len(place))})" if place else ""
                with self._writing() as batch:
                    page = self._db.execute(
                        f"SELECT {keys} FROM {table} {where} ORDER BY {keys} LIMIT ?",
                        (*place, ROWS_PER_TRANSACTION_MAX),
                    ).fetchall()
                    for one in page:
                        batch.refresh(one, time.time())
                if len(page) < ROWS_PER_TRANSACTION_MAX:
                    break
                place = page[-1]
            self._refresh_index()
            with self._writing():
                self._set_own(_FINGERPRINT, (self._columns.fingerprint + self.tracking.value).encode())

    def _refresh_index(self) -> None:
        """Look at every row of the index: what is gone from the table has been deleted."""
        place: tuple[int, bytes] = (-TOKEN_OFFSET, b"")
        while True:
            with self._writing() as batch:
                page = self._db.execute(
                    f"SELECT token, key FROM {self._columns.side('index')} WHERE (token, key) > (?, ?)"
                    " ORDER BY token, key LIMIT ?",
                    (*place, ROWS_PER_TRANSACTION_MAX),
                ).fetchall()
                for _, key in page:
                    batch.refresh(self._columns.key_columns(key), time.time())
            if len(page) < ROWS_PER_TRANSACTION_MAX:
                return
            place = page[-1]

    # --- writing ---

    def apply(self, rows: Iterable[Row], *, from_repair: bool = False) -> int:
        """See :class:`~antientropy.store.RowStore`: one transaction, durable on return.

        ``from_repair``: all or nothing holds for slices of at most ``SLICE_ROWS_MAX`` rows.

        Raises:
            RowRefusedError: a row is beyond a limit, or does not fit the columns of the table.
            StoreFullError: no room.
            StoreError: the database failed, another writer held it for too long, or a constraint of the table refused a
                row. In each case nothing was applied and the store stays usable.
        """
        arrived = [ArrivedRow.of(row, self._columns) for row in rows]
        if from_repair:
            self._check_open()
            return self._background.run(arrived, lambda slice_: self._write(slice_, None))
        with self._background.foreground():
            self._check_open()
            return self._write(arrived, self._past)

    def _write(self, arrived: Iterable[ArrivedRow], past: Sequence[int] | None) -> int:
        applied = 0
        self._catch_up()
        with self._writing() as batch:
            for row in arrived:
                if self.tracking is Tracking.SCAN:
                    known = batch.refresh(row.keys, time.time())
                else:
                    known = batch.indexed(row.indexed.token, row.indexed.key)
                applied += batch.put(row, known, past)
        return applied

    def _catch_up(self) -> None:
        """Take in what the triggers have logged, in bounded transactions. Holds the lock."""
        if self.tracking is Tracking.SCAN:
            return
        while self._db.execute(f"SELECT EXISTS (SELECT 1 FROM {self._columns.side('changes')})").fetchone()[0]:
            with self._writing():
                pass

    @contextmanager
    def _writing(self) -> Iterator[SqliteBatch]:
        """A write transaction, on an index that is up to the table; reported when it is durable. Holds the lock."""
        batch = SqliteBatch(self._db, self._columns, self._delete_version)
        with translated(self.path, "write"), self._transaction():
            self._check_schema()
            logged = self._take_in_log(batch)
            yield batch
            if logged < ROWS_PER_TRANSACTION_MAX:
                # What is logged now, under the lock of the database, is what this transaction wrote itself.
                self._db.execute(f"DELETE FROM {self._columns.side('changes')}")
            changes = batch.changes()
            counter = int.from_bytes(self._own(_COUNTER) or b"", "big") + 1
            self._set_own(_COUNTER, counter.to_bytes(8, "big"))
        self._row_count += batch.rows
        self._tombstone_count += batch.tombstones
        self._refused += batch.refused
        if len(changes) and self._listener is not None:
            self._listener(changes)

    def _take_in_log(self, batch: SqliteBatch) -> int:
        log = self._columns.side("changes")
        keys = listed([f"k{number}" for number in range(len(self._columns.keys))])
        logged = self._db.execute(
            f"SELECT seq, at_ms, {keys} FROM {log} ORDER BY seq LIMIT ?", (ROWS_PER_TRANSACTION_MAX,)
        ).fetchall()
        if logged:
            changed = {tuple(row[2:]): row[1] for row in logged}
            for one, at_ms in changed.items():
                batch.refresh(one, at_ms / 1000)
            self._db.execute(f"DELETE FROM {log} WHERE seq <= ?", (logged[-1][0],))
        return len(logged)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        marks = dict(self._marks)
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._marks = marks
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _delete_version(self, version: int, at_seconds: float) -> int:
        return version + 1 if self._version_at is None else self._version_at(at_seconds)

    def _check_schema(self) -> None:
        """Notice that the table has been altered, or that the triggers are gone."""
        found = self._db.execute("PRAGMA schema_version").fetchone()[0]
        if found == self._schema_version:
            return
        columns = table_columns(self._db, *self._named)
        if columns != self._columns:
            raise StoreError(
                f"{self.path}: the columns of table {columns.table} have changed; open the store anew, with the same"
                " columns on all replicas"
            )
        wanted = columns.triggers() if self.tracking is Tracking.TRIGGERS else {}
        if self._installed_triggers() != wanted:
            raise StoreError(f"{self.path}: the triggers on table {columns.table} are gone; open the store anew")
        self._schema_version = found

    def purge(self, floors: NDArray[np.uint64], rows_max: int) -> int:
        """See :class:`~antientropy.store.RowStore`. One transaction for every ``SLICE_ROWS_MAX`` tombstones."""
        with self._background.foreground():
            self._check_open()
            raised = np.maximum(purge_floors.check_floors(floors), self._floors)
            if bool((raised != self._floors).any()):
                self._write_mark(purge_floors.FLOORS_MARK, purge_floors.encode_floors(raised))
        removed = 0
        place: tuple[int, int, bytes] | None = (-1, 0, b"")
        while place is not None and removed < rows_max:
            self._background.wait_for_turn()
            try:
                self._check_open()
                count, place = self._purge_slice(raised, place, min(SLICE_ROWS_MAX, rows_max - removed))
            finally:
                self._background.end_turn()
            removed += count
        return removed

    def _purge_slice(
        self, floors: NDArray[np.uint64], place: tuple[int, int, bytes], rows_max: int
    ) -> tuple[int, tuple[int, int, bytes] | None]:
        """Remove some expired tombstones behind a place; how many, and where to go on (None: at the end)."""
        self._catch_up()
        by_bucket = floors.tolist()
        looked_max = 16 * rows_max
        removed = 0
        with self._writing() as batch:
            found = self._db.execute(
                f"SELECT version, token, key, digest FROM {self._columns.side('index')} WHERE deleted"
                " AND (version, token, key) > (?, ?, ?) AND version < ? ORDER BY version, token, key LIMIT ?",
                (*place, min(max(by_bucket), 2**63 - 1), looked_max),
            ).fetchall()
            for version, token, key, digest in found:
                place = (version, token, key)
                row = Indexed(token + TOKEN_OFFSET, key, version, digest, deleted=True)
                if self.tracking is Tracking.SCAN:
                    now = batch.refresh(self._columns.key_columns(key), time.time())
                    if now != row:
                        continue
                if purge_floors.is_below(row.token, version, by_bucket):
                    batch.remove_tombstone(row)
                    removed += 1
                    if removed == rows_max:
                        break
        return removed, place if removed == rows_max or len(found) == looked_max else None

    # --- marks and state ---

    def read_mark(self, name: str) -> bytes | None:
        """See :class:`~antientropy.store.RowStore`."""
        with self._lock:
            self._check_open()
            return self._marks.get(name)

    def write_mark(self, name: str, value: bytes) -> None:
        """See :class:`~antientropy.store.RowStore`."""
        check_mark(name, value)
        if name.startswith(_OWN):
            raise StoreError(f"mark {name!r} refused: names that begin with {_OWN!r} are the store's own")
        with self._background.foreground():
            self._check_open()
            self._write_mark(name, bytes(value))

    def _write_mark(self, name: str, value: bytes) -> None:
        limits = limits_of_marks({**self._marks, name: value}) if name in ENFORCED_MARKS else None
        self._catch_up()
        with self._writing():
            self._set_own(name, value)
        if limits is not None:
            self._floors, self._past = limits

    def state_id(self) -> bytes | None:
        """With triggers: a random name, our transactions, and the last change that was logged. By scan: None."""
        if self.tracking is Tracking.SCAN:
            return None
        with self._lock:
            self._check_open()
            with translated(self.path, "read"):
                name = f"{self._columns.table}_antientropy_changes"
                logged = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (name,)).fetchone()
            parts = (self._own(_NAME) or b"", self._own(_COUNTER) or b"", str(logged).encode())
            return b"|".join(parts)

    # --- listening ---

    def subscribe(self, listener: Listener | None) -> bool:
        """See :class:`~antientropy.store.RowStore`. By scan: False. With triggers, a thread looks what others do."""
        if self.tracking is Tracking.SCAN:
            return False
        self._stop_polling.set()
        if self._poller is not None and self._poller is not threading.current_thread():
            self._poller.join()
        self._poller = None
        with self._lock:
            self._listener = listener
            if listener is not None and not self._closed:
                self._stop_polling = threading.Event()
                self._poller = threading.Thread(
                    target=self._poll, args=(self._stop_polling,), name="antientropy sqlite", daemon=True
                )
                self._poller.start()
        return True

    def _poll(self, stop: threading.Event) -> None:
        """Take in what other connections have written, soon after."""
        while not stop.wait(self._poll_seconds):
            if not self._lock.acquire(blocking=False):
                continue
            try:
                self._poll_once()
            except StoreError as error:
                logger.warning("changes of others cannot be taken in, the next look tries again: %s", error)
            finally:
                self._lock.release()

    def _poll_once(self) -> None:
        if self._closed:
            return
        with translated(self.path, "read"):
            data_version = self._db.execute("PRAGMA data_version").fetchone()[0]
            if data_version != self._data_version:
                self._catch_up()
                self._data_version = data_version

    # --- reading ---

    def read(self, on_open: Callable[[], None] = lambda: None) -> SqliteReader:
        """See :class:`~antientropy.store.RowStore`. By scan: reads the whole table first."""
        with self._lock:
            self._check_open()
            connection = self._connect()
            try:
                with translated(self.path, "read"):
                    if self.tracking is Tracking.SCAN:
                        index = self._open_scan(connection, on_open)
                    else:
                        index = self._open_index(connection, on_open)
            except BaseException:
                connection.close()
                raise
            reader = SqliteReader(self.path, connection, self._columns, index, self._forget)
            self._readers.add(reader)
            return reader

    def _open_index(self, connection: sqlite3.Connection, on_open: Callable[[], None]) -> str:
        """Begin the reader's transaction at a moment in which nothing is logged that is not in the index."""
        log = self._columns.side("changes")
        for _ in range(_READ_ATTEMPTS_MAX):
            self._catch_up()
            # Nobody else writes while this transaction is open; it changes nothing.
            with self._transaction():
                self._check_schema()
                if self._db.execute(f"SELECT EXISTS (SELECT 1 FROM {log})").fetchone()[0]:
                    continue
                _begin(connection)
                on_open()
                return self._columns.side("index")
        raise StoreError(f"{self.path}: other connections write without a pause; try again")

    def _open_scan(self, connection: sqlite3.Connection, on_open: Callable[[], None]) -> str:
        """Begin the reader's transaction, scan the table in it, and remember what was found for the next time."""
        with self._transaction():
            self._check_schema()
            _begin(connection)
            on_open()
        found = scan_into_snapshot(connection, self._columns, self._delete_version, time.time())
        for page in found:
            with self._writing() as batch:
                for row in page:
                    batch.put_indexed(row)
        return "temp.snapshot"

    def _connect(self) -> sqlite3.Connection:
        with translated(self.path, "open"):
            return connect(self.path, self._busy_seconds)

    def _forget(self, reader: SqliteReader) -> None:
        self._readers.discard(reader)

    @property
    def row_count(self) -> int:
        """Rows, tombstones included; by scan: as of the last one."""
        return self._row_count

    @property
    def tombstone_count(self) -> int:
        """Rows that are tombstones; by scan: as of the last one."""
        return self._tombstone_count

    @property
    def stored_bytes(self) -> int:
        """Bytes of the whole database file, other tables and free pages included."""
        with self._lock:
            self._check_open()
            with translated(self.path, "read"):
                pages: int = self._db.execute("PRAGMA page_count").fetchone()[0]
                page_bytes: int = self._db.execute("PRAGMA page_size").fetchone()[0]
        return pages * page_bytes

    @property
    def rows_refused(self) -> int:
        """Rows that were not applied because they lay below fence or purge floor."""
        return self._refused

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError(f"{self.path}: the store has been closed")


def _begin(connection: sqlite3.Connection) -> None:
    """A read transaction: it is at a point in time from its first read on."""
    connection.execute("BEGIN")
    connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()


def _use_wal(path: Path, connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise StoreError(f"{path}: cannot be switched to WAL mode; use a file on a local disk")


def _lock_table(path: Path, table: str) -> int:
    """Take the lock of a table; return its descriptor. Two stores would take changes from each other."""
    place = path.with_name(f"{path.name}-{table.encode().hex()}.antientropy-lock")
    try:
        owner = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(f"{place}: cannot open: {error.strerror}; check owner and mode of the directory") from error
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(owner)
        raise StoreInUseError(f"{path}: table {table} is in use by another store or process; stop that one") from error
    return owner


def _unlock(owner: int) -> None:
    if owner >= 0:
        os.close(owner)
