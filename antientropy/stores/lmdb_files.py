"""The files of an LMDB row store: who owns them, their format, and LMDB's errors as the library's own.

Format 2, all numbers big-endian:

- ``rows``: token (8 bytes) and key, to a header (version 8 bytes, flags 1 byte, digest 16 bytes) and the value, so that
  rows lie in token order and a scan reads digests and hashes nothing.
- ``tombstones``: version (8 bytes), token (8) and digest (16) of every row that is one, to nothing: ordered by version.
- ``marks``: small named values. ``quarantine``: rows that were found damaged, as they were.
- ``meta``: the format, a random name of this store, and the greatest version ever stored.

Format 1 had ``rows`` and ``meta`` only; it is brought to format 2 when it is opened, in one transaction.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lmdb

from antientropy.errors import (
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreInUseError,
    StoreReadOnlyError,
)
from antientropy.limits import LMDB_READERS_MAX

FORMAT: Final = b"antientropy rows 2"
FORMAT_1: Final = b"antientropy rows 1"
FORMAT_KEY: Final = b"format"
NAME_KEY: Final = b"name"
VERSION_KEY: Final = b"version_max"
_DATABASES: Final = (b"meta", b"rows", b"tombstones", b"marks", b"quarantine")
DATABASES_MAX: Final = len(_DATABASES)
HEADER: Final = struct.Struct(">QB16s")
TOKEN: Final = struct.Struct(">Q")
TOMBSTONE: Final = 1
_NAME_BYTES: Final = 16
#: The head of LMDB's lock file and a slot for every reader, as lmdb 0.9 lays it out on 64 bits: it takes a file that is
#: larger as it is, and as many readers as that holds.
_LOCK_FILE_BYTES: Final = 256 + 64 * LMDB_READERS_MAX
#: Less free disk than this explains a failed write: a commit of many rows copies as many pages.
_DISK_BYTES_LEFT_MIN: Final = 16 * 1024 * 1024
_FULL_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ_ONLY_ERRNOS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@dataclass(frozen=True, slots=True)
class Databases:
    """The handles of all databases."""

    meta: lmdb._Database
    rows: lmdb._Database
    tombstones: lmdb._Database
    marks: lmdb._Database
    quarantine: lmdb._Database


def open_databases(environment: lmdb.Environment, path: Path) -> Databases:
    """Make the databases of a new store, or check those of an old one; bring format 1 to format 2.

    Raises:
        StoreCorruptError: somebody else's files, or an unknown format.
    """
    with environment.begin() as transaction:
        empty = transaction.stat()["entries"] == 0
    found = FORMAT_1 if empty else _format(environment, path)
    if found not in (FORMAT, FORMAT_1):
        raise StoreCorruptError(f"{path}: format {found!r} is unknown to this version ({FORMAT!r})")
    if found == FORMAT:
        return Databases(*(environment.open_db(name, create=False) for name in _DATABASES))
    with environment.begin(write=True) as transaction:
        databases = Databases(*(environment.open_db(name, txn=transaction) for name in _DATABASES))
        _upgrade(transaction, databases, path)
    return databases


def _format(environment: lmdb.Environment, path: Path) -> bytes | None:
    try:
        meta = environment.open_db(b"meta", create=False)
        environment.open_db(b"rows", create=False)
    except (lmdb.NotFoundError, lmdb.IncompatibleError) as error:
        raise StoreCorruptError(f"{path}: an LMDB environment, but no row store; name another") from error
    with environment.begin(db=meta) as transaction:
        found: bytes | None = transaction.get(FORMAT_KEY)
    return found


def _upgrade(transaction: lmdb.Transaction[bytes], databases: Databases, path: Path) -> None:
    """From format 1, or from nothing: list the tombstones, note the greatest version, give the store a name."""
    version_max = 0
    tombstones = []
    with transaction.cursor(db=databases.rows) as cursor:
        for place, stored in cursor:
            if len(stored) < HEADER.size:
                raise StoreCorruptError(f"{path}: a row is shorter than its header; restore or wipe this replica")
            version, flags, digest = HEADER.unpack_from(stored)
            version_max = max(version_max, version)
            if flags & TOMBSTONE:
                tombstones.append(tombstone_place(version, place, digest))
    for place in sorted(tombstones):
        transaction.put(place, b"", db=databases.tombstones, append=True)
    transaction.put(VERSION_KEY, TOKEN.pack(version_max), db=databases.meta)
    transaction.put(NAME_KEY, secrets.token_bytes(_NAME_BYTES), db=databases.meta)
    transaction.put(FORMAT_KEY, FORMAT, db=databases.meta)


def tombstone_place(version: int, place: bytes, digest: bytes) -> bytes:
    """Where a tombstone is listed; ``place``: where its row is."""
    return TOKEN.pack(version) + place[: TOKEN.size] + digest


def lock_directory(path: Path) -> int:
    """Make the directory and take its owner lock; return the lock's descriptor.

    LMDB itself lets several processes write, but a replica follows the writes of one only.
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


def reserve_lock_file(path: Path) -> None:
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
    limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    file_bytes = max((file.stat().st_size for file in path.glob("data.mdb")), default=0)
    over_limit = limited != resource.RLIM_INFINITY and file_bytes + _DISK_BYTES_LEFT_MIN > limited
    return over_limit or status.f_bavail * status.f_frsize < _DISK_BYTES_LEFT_MIN


@contextmanager
def translated(path: Path, action: str) -> Iterator[None]:
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
