"""The record of a node's repairs on disk: what is under way, what is verified, what was repaired when.

One SQLite file (standard library) in ``data_dir``; WAL, ``synchronous=FULL``, locked by one process. Each public method
that changes something is one transaction: a process that is killed leaves the state before or after it, never one in
between. Without ``data_dir`` the record lives in memory and ends with the process.

Tables: ``sessions`` (one line each, also those that ended: the history), ``verified`` (parts of the token line that a
session under way has verified, with the root that all replicas had), ``repaired`` (per keyspace: disjoint parts of the
token line with the last repair in which every replica took part).
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from antientropy.core.merkle import Root
from antientropy.core.tokens import TokenRange
from antientropy.errors import JournalError
from antientropy.limits import DETAIL_CHARACTERS_MAX, HISTORY_SESSIONS_MAX
from antientropy.options import RepairMode, RepairOptions, Strategy
from antientropy.reports import RepairStatistics, SessionInfo, SessionState

FILE_NAME: Final = "repair.sqlite"
#: Raised with every change of the tables; another number is refused, the file is left as it is.
_FORMAT: Final = 1
_SCHEMA: Final = """
CREATE TABLE sessions (
    session_id TEXT PRIMARY KEY, keyspace TEXT NOT NULL, state TEXT NOT NULL, coordinator TEXT NOT NULL,
    replicas TEXT NOT NULL, token_ranges TEXT NOT NULL, options TEXT NOT NULL, started_at REAL NOT NULL,
    updated_at REAL NOT NULL, ended_at REAL, progress REAL NOT NULL, statistics TEXT NOT NULL, detail TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX sessions_by_start ON sessions (started_at);
CREATE TABLE verified (
    session_id TEXT NOT NULL, first_token BLOB NOT NULL, last_token BLOB NOT NULL, root_digest BLOB NOT NULL,
    row_count INTEGER NOT NULL, verified_at REAL NOT NULL, PRIMARY KEY (session_id, first_token)
) WITHOUT ROWID;
CREATE TABLE repaired (
    keyspace TEXT NOT NULL, first_token BLOB NOT NULL, last_token BLOB NOT NULL, replicas TEXT NOT NULL,
    session BLOB NOT NULL, repaired_version BLOB NOT NULL, acknowledged_version BLOB NOT NULL,
    repaired_at REAL NOT NULL, differences INTEGER NOT NULL, PRIMARY KEY (keyspace, first_token)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class VerifiedPart:
    """A part of the token line that all replicas of a session were seen to hold alike."""

    token_range: TokenRange
    root: Root
    verified_at: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class JournaledSession:
    """A session with what is needed to go on with it."""

    info: SessionInfo
    options: RepairOptions
    verified: tuple[VerifiedPart, ...]
    """Ascending, disjoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairedPart:
    """A part of the token line and its last repair in which every replica took part and acknowledged."""

    token_range: TokenRange
    replicas: tuple[str, ...]
    """Who took part, ordered: with other replicas it says nothing."""
    session: int
    """The name that the session had between the replicas: they are told that it was complete when they meet next."""
    repaired_version: int
    """Every write with a lesser version has reached every replica; 0: repaired, but versions tell no time."""
    acknowledged_version: int
    """Every replica has recorded durably that it is repaired up to here, so that older tombstones may go."""
    repaired_at: float
    """When that repair began, in seconds since the epoch."""
    differences: int
    """Rows that it found different."""


class RepairJournal:
    """See the module. Thread-safe; methods block for the disk, so call them from worker threads.

    Args:
        data_dir: Made when missing; None keeps the record in memory.
        pages_max: Bound of the file in pages of 4 KiB; None is SQLite's own. For tests of a full disk.

    Raises:
        JournalError: the file cannot be made, is damaged, of another format, or open in another process. Every method
            raises it when the disk fails; the transaction is undone.
    """

    def __init__(self, data_dir: Path | None, *, pages_max: int | None = None) -> None:
        self._lock = threading.Lock()
        self._name = "the repair journal in memory" if data_dir is None else str(data_dir / FILE_NAME)
        self._connection: sqlite3.Connection | None = None
        with self._faults():
            if data_dir is not None:
                data_dir.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(
                ":memory:" if data_dir is None else data_dir / FILE_NAME,
                check_same_thread=False,
                isolation_level=None,
                timeout=0.0,
            )
            try:
                self._prepare(connection, pages_max)
            except BaseException:
                connection.close()
                raise
            self._connection = connection

    def _prepare(self, connection: sqlite3.Connection, pages_max: int | None) -> None:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if pages_max is not None:
            connection.execute(f"PRAGMA max_page_count = {int(pages_max)}")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found == 0:
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_FORMAT}; COMMIT;")
        elif found != _FORMAT:
            raise JournalError(f"{self._name} has format {found}, this version reads {_FORMAT}; move the file away")
        elif (verdict := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise JournalError(f"{self._name} is damaged ({verdict}); move the file away, only the record is lost")

    # --- sessions ---

    def begin(self, info: SessionInfo, options: RepairOptions) -> None:
        """Record a session that starts (``ended_at`` is None); forgets the oldest that ended, see the limit."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO sessions VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)", _session_columns(info, options)
            )
            connection.execute(
                "DELETE FROM sessions WHERE ended_at IS NOT NULL AND session_id NOT IN "
                "(SELECT session_id FROM sessions ORDER BY started_at DESC LIMIT ?)",
                (HISTORY_SESSIONS_MAX,),
            )

    def update(self, info: SessionInfo) -> None:
        """Record state, progress, statistics and detail; of a session that has ended the verified parts go."""
        with self._transaction() as connection:
            self._update(connection, info)
            if info.state.is_final:
                connection.execute("DELETE FROM verified WHERE session_id = ?", (info.session_id,))

    def verify(self, info: SessionInfo, part: VerifiedPart) -> None:
        """Record that a part is verified, with the session's progress, in one step."""
        first, last = _blob(part.token_range.first), _blob(part.token_range.last)
        with self._transaction() as connection:
            self._update(connection, info)
            connection.execute(
                "DELETE FROM verified WHERE session_id = ? AND first_token BETWEEN ? AND ?",
                (info.session_id, first, last),
            )
            connection.execute(
                "INSERT INTO verified VALUES (?,?,?,?,?,?)",
                (info.session_id, first, last, part.root.digest, part.root.count, part.verified_at),
            )

    def interrupt(self, now: float) -> list[str]:
        """Call every session INTERRUPTED that was under way when its process ended. Returns their ids."""
        interrupted = SessionState.INTERRUPTED.value
        with self._transaction() as connection:
            found = connection.execute(
                "SELECT session_id FROM sessions WHERE ended_at IS NULL AND state != ?", (interrupted,)
            ).fetchall()
            connection.execute(
                "UPDATE sessions SET state = ?, updated_at = ? WHERE ended_at IS NULL AND state != ?",
                (interrupted, now, interrupted),
            )
        return [row[0] for row in found]

    def session(self, session_id: str) -> JournaledSession | None:
        """A session, ended or not, with its verified parts; None: unknown."""
        with self._reading() as connection:
            row = connection.execute("SELECT * FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
            parts = connection.execute(
                "SELECT first_token, last_token, root_digest, row_count, verified_at FROM verified "
                "WHERE session_id = ? ORDER BY first_token",
                (session_id,),
            ).fetchall()
            if row is None:
                return None
            verified = tuple(
                VerifiedPart(_range(first, last), Root(digest, count), at) for first, last, digest, count, at in parts
            )
            return JournaledSession(_info(row), _options(row[6]), verified)

    def sessions(self, *, active_only: bool, limit: int = HISTORY_SESSIONS_MAX) -> list[SessionInfo]:
        """Sessions, the latest first; ``active_only``: those that have not ended (INTERRUPTED ones included)."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT * FROM sessions WHERE ended_at IS NULL OR ? ORDER BY started_at DESC, session_id LIMIT ?",
                (not active_only, limit),
            ).fetchall()
            return [_info(row) for row in rows]

    # --- what was repaired ---

    def repaired(self, keyspace: str, part: RepairedPart) -> None:
        """Record a complete repair of a part; older parts that overlap keep what lies outside of it."""
        new = part.token_range
        with self._transaction() as connection:
            for old in _parts(connection, keyspace):
                if old.token_range.intersection(new) is None:
                    continue
                connection.execute(
                    "DELETE FROM repaired WHERE keyspace = ? AND first_token = ?",
                    (keyspace, _blob(old.token_range.first)),
                )
                if old.token_range.first < new.first:
                    _insert(
                        connection, keyspace, replace(old, token_range=TokenRange(old.token_range.first, new.first - 1))
                    )
                if old.token_range.last > new.last:
                    _insert(
                        connection, keyspace, replace(old, token_range=TokenRange(new.last + 1, old.token_range.last))
                    )
            _insert(connection, keyspace, part)

    def repaired_parts(self, keyspace: str) -> list[RepairedPart]:
        """All parts of a keyspace that were ever repaired whole: ascending, disjoint."""
        with self._reading() as connection:
            return _parts(connection, keyspace)

    def close(self) -> None:
        """Give the file back. Idempotent."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    # --- helpers ---

    def _update(self, connection: sqlite3.Connection, info: SessionInfo) -> None:
        connection.execute(
            "UPDATE sessions SET state = ?, updated_at = ?, ended_at = ?, progress = ?, statistics = ?, detail = ? "
            "WHERE session_id = ?",
            (
                info.state.value,
                info.updated_at,
                info.ended_at,
                info.progress,
                json.dumps(asdict(info.statistics)),
                info.detail[:DETAIL_CHARACTERS_MAX],
                info.session_id,
            ),
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                self._commit(connection)
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _commit(self, connection: sqlite3.Connection) -> None:
        """The durable moment of every change; tests put a killed process before and behind it."""
        connection.execute("COMMIT")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._faults():
            if self._connection is None:
                raise JournalError(f"{self._name} is closed")
            yield self._connection

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise JournalError(f"{self._name}: {_reason(error)}") from error
        except OSError as error:
            raise JournalError(f"{self._name} cannot be made: {error.strerror}; choose another data_dir") from error
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise JournalError(
                f"{self._name} is damaged ({error}); move the file away, only the record is lost"
            ) from error


def _reason(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorname", "") or ""
    if code == "SQLITE_FULL":
        return "the disk is full; make room, then repair again or resume the session"
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "open in another process; each node needs a data_dir of its own"
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return f"damaged ({error}); move the file away, only the record is lost"
    if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return f"cannot be opened for writing ({error}); check the rights of the directory"
    return f"the disk failed ({error})"


def _session_columns(info: SessionInfo, options: RepairOptions) -> tuple[Any, ...]:
    return (
        info.session_id,
        info.keyspace,
        info.state.value,
        info.coordinator,
        json.dumps(info.replicas),
        json.dumps(_pairs(info.token_ranges)),
        json.dumps(
            asdict(options)
            | {
                "token_ranges": _pairs(options.token_ranges),
                "mode": options.mode.value,
                "strategy": options.strategy.value,
            }
        ),
        info.started_at,
        info.updated_at,
        info.ended_at,
        info.progress,
        json.dumps(asdict(info.statistics)),
        info.detail[:DETAIL_CHARACTERS_MAX],
    )


def _info(row: Sequence[Any]) -> SessionInfo:
    session_id, keyspace, state, coordinator, replicas, ranges, _, started, updated, ended, progress, numbers, why = row
    return SessionInfo(
        session_id=session_id,
        keyspace=keyspace,
        state=SessionState(state),
        coordinator=coordinator,
        replicas=tuple(json.loads(replicas)),
        token_ranges=_ranges(json.loads(ranges)),
        started_at=started,
        updated_at=updated,
        ended_at=ended,
        progress=progress,
        statistics=RepairStatistics(**json.loads(numbers)),
        detail=why,
    )


def _options(text: str) -> RepairOptions:
    found = json.loads(text)
    return RepairOptions(
        **found
        | {
            "token_ranges": _ranges(found["token_ranges"]),
            "peers": tuple(found["peers"]),
            "datacenters": tuple(found["datacenters"]),
            "mode": RepairMode(found["mode"]),
            "strategy": Strategy(found["strategy"]),
        }
    )


def _pairs(ranges: Sequence[TokenRange]) -> list[tuple[int, int]]:
    return [(one.first, one.last) for one in ranges]


def _ranges(pairs: Sequence[Sequence[int]]) -> tuple[TokenRange, ...]:
    return tuple(TokenRange(first, last) for first, last in pairs)


def _blob(number: int) -> bytes:
    """64 bits as SQLite sorts them; its own integers are signed."""
    return number.to_bytes(8, "big")


def _range(first: bytes, last: bytes) -> TokenRange:
    return TokenRange(int.from_bytes(first, "big"), int.from_bytes(last, "big"))


def _insert(connection: sqlite3.Connection, keyspace: str, part: RepairedPart) -> None:
    connection.execute(
        "INSERT INTO repaired VALUES (?,?,?,?,?,?,?,?,?)",
        (
            keyspace,
            _blob(part.token_range.first),
            _blob(part.token_range.last),
            json.dumps(part.replicas),
            _blob(part.session),
            _blob(part.repaired_version),
            _blob(part.acknowledged_version),
            part.repaired_at,
            part.differences,
        ),
    )


def _parts(connection: sqlite3.Connection, keyspace: str) -> list[RepairedPart]:
    rows = connection.execute(
        "SELECT first_token, last_token, replicas, session, repaired_version, acknowledged_version, repaired_at, "
        "differences FROM repaired WHERE keyspace = ? ORDER BY first_token",
        (keyspace,),
    ).fetchall()
    return [
        RepairedPart(
            token_range=_range(first, last),
            replicas=tuple(json.loads(replicas)),
            session=int.from_bytes(session, "big"),
            repaired_version=int.from_bytes(version, "big"),
            acknowledged_version=int.from_bytes(acknowledged, "big"),
            repaired_at=at,
            differences=differences,
        )
        for first, last, replicas, session, version, acknowledged, at, differences in rows
    ]
