"""The table that an application repairs, and what we put beside it: its columns, our tables and triggers, their SQL.

Beside a table ``t`` lie ``t_antientropy_index`` (a digest for each row, in the order of tokens, and the tombstones),
``t_antientropy_changes`` (keys that the triggers log), ``t_antientropy_marks``, and three triggers. Nothing of the
table itself is changed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from antientropy.errors import (
    RowRefusedError,
    StoreClosedError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
)
from antientropy.limits import KEY_BYTES_MAX
from antientropy.stores.sqlite_columns import Column, decode_columns, encode_columns

FORMAT: Final = "antientropy sqlite 1"
#: Upserts in tables WITHOUT ROWID, and PRAGMA table_xinfo that tells of generated columns.
_SQLITE_VERSION_MIN: Final = (3, 31, 0)
#: SQLite's integers are signed: versions and tokens beyond do not fit, so tokens are stored less 2**63.
VERSION_MAX: Final = 2**63 - 1
#: Tokens are random: with SQLite's 2 MiB, an index of more than 30,000 rows is read from disk again and again.
_CACHE_KIB: Final = 64 * 1024
INDEX_COLUMNS: Final = (
    "token INTEGER NOT NULL, key BLOB NOT NULL, version INTEGER NOT NULL, digest BLOB NOT NULL,"
    " deleted INTEGER NOT NULL, PRIMARY KEY (token, key)"
)
_CHANGES_COLUMNS: Final = "seq INTEGER PRIMARY KEY AUTOINCREMENT, at_ms INTEGER NOT NULL"
_HIDDEN_GENERATED: Final = frozenset({1, 2, 3})


class Tracking(Enum):
    """How changes that others make are found."""

    TRIGGERS = "triggers"
    """Triggers log changed keys: a change costs its writer one more insert, and is known at once."""
    SCAN = "scan"
    """The table is read and hashed whenever it is compared: nothing is added to it, but time grows with its rows."""


@dataclass(frozen=True, slots=True)
class TableColumns:
    """Which table, and what its columns mean; see :class:`~antientropy.stores.sqlite.SqliteRowStore`."""

    table: str
    keys: tuple[str, ...]
    version: str
    values: tuple[str, ...]
    tombstone: str | None
    declared: tuple[str, ...]
    """Types of keys and values as declared, for comparison with what they were when the index was made."""
    fillers: tuple[Column, ...]
    """What values are in a tombstone."""
    raw_key: bool
    raw_value: bool

    @property
    def fingerprint(self) -> str:
        """Changes when digests made before are no longer those of the rows."""
        return repr((FORMAT, self))

    # --- rows as bytes ---

    def key_of(self, columns: Sequence[Column]) -> bytes:
        """The key of a row.

        Raises:
            StoreError: a column that no key can have.
        """
        for name, column in zip(self.keys, columns, strict=True):
            if column is None or isinstance(column, float):
                raise StoreError(
                    f"table {self.table}: key column {name} is {column!r}; keys are integers, text or blobs"
                )
        key = self._blob(self.keys[0], columns[0]) if self.raw_key else encode_columns(columns)
        if not 0 < len(key) <= KEY_BYTES_MAX:
            raise StoreError(f"table {self.table}: a key takes {len(key)} bytes; a key has 1 to {KEY_BYTES_MAX}")
        return key

    def key_columns(self, key: bytes) -> list[Column]:
        """The inverse of :meth:`key_of`.

        Raises:
            RowRefusedError: no key of this table.
        """
        if self.raw_key:
            return [key]
        try:
            columns = decode_columns(key, len(self.keys))
        except ValueError as error:
            raise RowRefusedError(f"table {self.table}: key {key!r} refused: {error}") from error
        if any(column is None or isinstance(column, float) for column in columns):
            raise RowRefusedError(f"table {self.table}: key {columns!r} refused: keys are integers, text or blobs")
        return columns

    def value_of(self, columns: Sequence[Column]) -> bytes:
        """The value of a live row."""
        if self.raw_value:
            return self._blob(self.values[0], columns[0])
        return encode_columns(columns)

    def value_columns(self, value: bytes) -> list[Column]:
        """The inverse of :meth:`value_of`.

        Raises:
            RowRefusedError: no value of this table.
        """
        if self.raw_value:
            return [value]
        try:
            return decode_columns(value, len(self.values))
        except ValueError as error:
            raise RowRefusedError(
                f"table {self.table}: value refused: {error}; all replicas need the same columns"
            ) from error

    def _blob(self, name: str, column: Column) -> bytes:
        if not isinstance(column, bytes):
            raise StoreError(
                f"table {self.table}: column {name} is declared BLOB, but holds {type(column).__name__}; store blobs"
            )
        return column

    # --- SQL ---

    def side(self, what: str) -> str:
        """The quoted name of one of our tables or triggers."""
        return quoted(f"{self.table}_antientropy_{what}")

    @property
    def keys_match(self) -> str:
        """A condition with one parameter for each key column."""
        return " AND ".join(f"{quoted(name)} IS ?" for name in self.keys)

    @property
    def read_columns(self) -> str:
        """What is read of a row: version, tombstone flag, values."""
        flag = "0" if self.tombstone is None else f"coalesce({quoted(self.tombstone)}, 0)"
        return listed([*[quoted(name) for name in (self.version,)], flag, *[quoted(name) for name in self.values]])

    @property
    def select(self) -> str:
        """Reads one row: its keys, then its ``read_columns``."""
        keys = listed([quoted(name) for name in self.keys])
        return f"SELECT {keys}, {self.read_columns} FROM {quoted(self.table)} WHERE {self.keys_match}"

    @property
    def upsert(self) -> str:
        """Puts a row: keys, version, tombstone flag if there is one, values."""
        names = [*self.keys, self.version, *([self.tombstone] if self.tombstone else []), *self.values]
        changed = listed([f"{quoted(name)} = excluded.{quoted(name)}" for name in names[len(self.keys) :]])
        return (
            f"INSERT INTO {quoted(self.table)} ({listed([quoted(name) for name in names])})"
            f" VALUES ({listed(['?'] * len(names))})"
            f" ON CONFLICT ({listed([quoted(name) for name in self.keys])}) DO UPDATE SET {changed}"
        )

    def side_tables(self) -> list[str]:
        """What makes our tables if they are missing."""
        index, marks = self.side("index"), self.side("marks")
        keys = listed([f"k{number}" for number in range(len(self.keys))])
        return [
            f"CREATE TABLE IF NOT EXISTS {index} ({INDEX_COLUMNS}) WITHOUT ROWID",
            f"CREATE INDEX IF NOT EXISTS {self.side('tombstones')} ON {index} (version, token, key) WHERE deleted",
            f"CREATE TABLE IF NOT EXISTS {marks} (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
            f"CREATE TABLE IF NOT EXISTS {self.side('changes')} ({_CHANGES_COLUMNS}, {keys})",
        ]

    def triggers(self) -> dict[str, str]:
        """By name: the triggers that log changed keys."""
        keys = listed([f"k{number}" for number in range(len(self.keys))])

        def logs(row: str) -> str:
            columns = listed([f"{row}.{quoted(name)}" for name in self.keys])
            return (
                f"INSERT INTO {self.side('changes')} (at_ms, {keys})"
                f" VALUES (CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER), {columns});"
            )

        table = quoted(self.table)
        bodies = {"insert": logs("NEW"), "update": f"{logs('OLD')} {logs('NEW')}", "delete": logs("OLD")}
        return {
            f"{self.table}_antientropy_{event}": (
                f"CREATE TRIGGER {self.side(event)} AFTER {event.upper()} ON {table} BEGIN {body} END"
            )
            for event, body in bodies.items()
        }


def quoted(name: str) -> str:
    """An identifier as SQL, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def listed(parts: Sequence[str]) -> str:
    """With commas."""
    return ", ".join(parts)


def connect(path: Path, busy_seconds: float, *, durable: bool = True) -> sqlite3.Connection:
    """A connection without transactions of its own, for any one thread at a time."""
    if sqlite3.sqlite_version_info < _SQLITE_VERSION_MIN:
        raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old: 3.31 or later is needed")
    if not path.is_file():
        raise StoreError(f"{path}: no such database; the store works on an existing table")
    connection = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    except BaseException:
        connection.close()
        raise
    return connection


def table_columns(  # noqa: PLR0917 - the store keeps them together and passes them on as they were given
    connection: sqlite3.Connection,
    table: str,
    keys: Sequence[str],
    version: str,
    values: Sequence[str] | None,
    tombstone: str | None,
) -> TableColumns:
    """Look at the table; the arguments are those of the store.

    Raises:
        StoreError: it is not there, or is not fit; the message says why.
    """
    found = connection.execute("SELECT type, sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    if found is None or found[0] != "table" or found[1].upper().startswith("CREATE VIRTUAL"):
        raise StoreError(f"table {table}: there is no such table in the database (views and virtual tables do not do)")
    infos = connection.execute(f"PRAGMA table_xinfo({quoted(table)})").fetchall()
    known = {name: (kind.upper(), bool(not_null), default) for _, name, kind, not_null, default, _, _ in infos}
    generated = {info[1] for info in infos if info[6] in _HIDDEN_GENERATED}
    named = [*keys, version, *([] if tombstone is None else [tombstone])]
    if not keys:
        raise StoreError(f"table {table}: name at least one key column")
    if values is None:
        values = [name for name in known if name not in named and name not in generated]
    everything = [*named, *values]
    for name in everything:
        if name not in known:
            raise StoreError(f"table {table}: there is no column {name}; it has {listed(sorted(known))}")
        if name in generated:
            raise StoreError(f"table {table}: column {name} is generated, so it cannot be written; leave it out")
    if len(set(everything)) != len(everything):
        raise StoreError(f"table {table}: a column is named twice in {listed(everything)}")
    left_out = [
        name
        for name, (_, not_null, default) in known.items()
        if not_null and default is None and name not in everything and name not in generated
    ]
    if left_out:
        raise StoreError(f"table {table}: column {left_out[0]} is NOT NULL without a default; make it a value column")
    _check_unique(connection, table, keys)
    fillers = [_filler(known[name][0]) if known[name][1] else None for name in values]
    return TableColumns(
        table=table,
        keys=tuple(keys),
        version=version,
        values=tuple(values),
        tombstone=tombstone,
        declared=tuple(known[name][0] for name in [*keys, *values]),
        fillers=tuple(fillers),
        raw_key=len(keys) == 1 and known[keys[0]][:2] == ("BLOB", True),
        raw_value=len(values) == 1 and known[values[0]][:2] == ("BLOB", True),
    )


def _check_unique(connection: sqlite3.Connection, table: str, keys: Sequence[str]) -> None:
    """Keys must name rows, byte by byte."""
    primary = [info for info in connection.execute(f"PRAGMA table_info({quoted(table)})") if info[5]]
    if [info[1] for info in primary] == list(keys) and len(primary) == 1 and primary[0][2].upper() == "INTEGER":
        return
    for _, index, unique, _, partial in connection.execute(f"PRAGMA index_list({quoted(table)})").fetchall():
        columns = [
            (name, collation)
            for _, _, name, _, collation, is_key in connection.execute(f"PRAGMA index_xinfo({quoted(index)})")
            if is_key
        ]
        if unique and not partial and sorted(str(name) for name, _ in columns) == sorted(keys):
            if any(collation != "BINARY" for _, collation in columns):
                raise StoreError(f"table {table}: keys are compared by another collation than BINARY")
            return
    raise StoreError(
        f"table {table}: {listed(keys)} must be its primary key or have a unique index, else a key names several rows"
    )


def _filler(declared: str) -> Column:
    """Something that a NOT NULL column of a tombstone can hold, by SQLite's rules of affinity."""
    if "INT" in declared:
        return 0
    if any(part in declared for part in ("CHAR", "CLOB", "TEXT")):
        return ""
    return b"" if "BLOB" in declared or not declared else 0


@contextmanager
def translated(path: Path, action: str) -> Iterator[None]:
    """Errors of SQLite as the library's own."""
    try:
        yield
    except sqlite3.ProgrammingError as error:
        if "closed" in str(error):
            raise StoreClosedError(f"{path}: the store has been closed") from error
        raise StoreError(f"{path}: cannot {action}: {error}") from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreError(
                f"{path}: cannot {action}: another connection writes for too long; shorten its transactions, or raise"
                " busy_seconds"
            ) from error
        if code == sqlite3.SQLITE_FULL:
            raise StoreFullError(f"{path}: cannot {action}: no space left; free some, nothing was changed") from error
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            raise StoreReadOnlyError(
                f"{path}: cannot {action}: {error}; check owner, mode and mount of the file and its directory"
            ) from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise StoreCorruptError(f"{path}: no usable database ({error}); restore or wipe it") from error
        raise StoreError(f"{path}: cannot {action}: {error}") from error
