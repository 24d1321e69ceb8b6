"""What a node must remember between incarnations: its generation and its host id, in one small file.

A generation is on disk before anybody hears of it, so that no generation is ever used twice, whatever the clock does.
The file is text, one field per line, closed by a checksum over everything above it::

    gossiper-identity 1
    generation 1764000000
    host_id 6f9619ff-8b86-4d01-b42d-00cf4fc964ff
    checksum 0123456789abcdef0123456789abcdef        (xxh3_128, hexadecimal)

It is replaced whole: written beside, fsync, rename, fsync of the directory. One process at a time owns a directory, by
``flock`` on a lock file that also names its pid.

All functions are synchronous and short; a node calls them in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Self

import xxhash

from gossiper.errors import LocalStateError
from gossiper.limits import INTEGER_MAX

FILE_NAME: Final = "gossip.identity"
LOCK_NAME: Final = "gossip.lock"
_HEADER: Final = "gossiper-identity 1"
#: Four short lines; anything longer is not ours.
_FILE_BYTES_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class StoredIdentity:
    """What is known of earlier incarnations. ``generation``: the last one used; None at the first start."""

    generation: int | None
    host_id: str


class NodeStorage:
    """The identity of one node in ``directory``; None keeps it in memory only.

    The directory is made and locked by the first method that needs it, and unlocked by :meth:`close`.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self._lock: IO[str] | None = None
        self._identity: StoredIdentity | None = None

    def __enter__(self) -> Self:
        """Nothing is opened yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Unlock."""
        self.close()

    def load(self) -> StoredIdentity:
        """What was stored; at the first start no generation, and a new host id that is stored with the first one.

        Raises:
            LocalStateError: the file is corrupt, the directory unusable, or another process owns it.
        """
        if self._identity is None:
            if self.directory is not None:
                self._acquire(self.directory)
                self._identity = _read(self.directory / FILE_NAME)
            if self._identity is None:
                self._identity = StoredIdentity(None, str(uuid.uuid4()))
        return self._identity

    def store_generation(self, generation: int, host_id: str | None = None) -> None:
        """Make ``generation`` durable; with ``host_id``, that one too. After an error nothing has changed.

        Raises:
            LocalStateError: it is not greater than the stored one, or it cannot be written (disk full, read-only).
        """
        known = self.load()
        if known.generation is not None and generation <= known.generation:
            raise LocalStateError(
                f"generation {generation} is not greater than {known.generation}, which was used before"
            )
        if not 0 < generation < INTEGER_MAX:
            raise LocalStateError(f"generation {generation} is impossible; check the system clock")
        identity = StoredIdentity(generation, known.host_id if host_id is None else str(uuid.UUID(host_id)))
        if self.directory is not None:
            _write(self.directory, identity)
        self._identity = identity

    def clear(self) -> None:
        """Forget everything: the next start is that of a new node, with a new host id.

        Raises:
            LocalStateError: the file cannot be removed.
        """
        if self.directory is not None:
            self._acquire(self.directory)
            path = self.directory / FILE_NAME
            with _explained("cannot remove", path):
                path.unlink(missing_ok=True)
                _sync_directory(self.directory)
        self._identity = None

    def close(self) -> None:
        """Let go of the directory. Idempotent; what was loaded stays readable."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _acquire(self, directory: Path) -> None:
        if self._lock is None:
            self._lock = _lock(directory)


def reset(directory: Path) -> Path | None:
    """Set the identity file of a stopped node aside, corrupt or not, so that the next start begins without it.

    That start takes its generation from the clock (and from what the cluster remembers), and a new host id.

    Returns:
        Where the file is now (``gossip.identity.corrupt``, numbered if there is one), or None: there was none.

    Raises:
        LocalStateError: the node is running, or the directory is missing or unusable.
    """
    path = directory / FILE_NAME
    if not directory.is_dir():
        raise LocalStateError(f"{directory} is not a directory; give the data directory of the node")
    lock = _lock(directory)
    try:
        with _explained("cannot set aside", path):
            if not path.exists():
                return None
            aside = path.with_name(FILE_NAME + ".corrupt")
            number = 1
            while aside.exists():
                aside = path.with_name(f"{FILE_NAME}.{number}.corrupt")
                number += 1
            path.rename(aside)
            _sync_directory(directory)
            return aside
    finally:
        lock.close()


def _lock(directory: Path) -> IO[str]:
    """Take the directory for this process; closing the file gives it back, as does the end of the process.

    The lock file is never removed: a process could then lock the removed one and another its successor.
    """
    path = directory / LOCK_NAME
    with _explained("cannot use", directory):
        directory.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="ascii", errors="replace")
    try:
        with _explained("cannot lock", path):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LocalStateError(
                    f"{directory} is in use by another node{_holder(file)}; "
                    "stop it, or give each node its own directory"
                ) from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
    except BaseException:
        with contextlib.suppress(OSError):  # what could not be written is flushed once more
            file.close()
        raise
    return file


def _holder(file: IO[str]) -> str:
    file.seek(0)
    pid = file.read(32).strip()
    return f" (process {pid})" if pid.isdigit() else ""


def _checksum(body: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(body)


def _read(path: Path) -> StoredIdentity | None:
    with _explained("cannot read", path):
        try:
            with path.open("rb") as file:
                data = file.read(_FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return None
    try:
        return _parse(data)
    except ValueError as error:
        raise LocalStateError(
            f"{path} is corrupt ({error}); restore it from a backup, or run "
            f"`gossiper generation reset --data {path.parent}` and start again"
        ) from None


def _parse(data: bytes) -> StoredIdentity:
    body, found, checksum = data.rpartition(b"checksum ")
    if len(data) > _FILE_BYTES_MAX or not found:
        raise ValueError("not an identity file")
    if checksum != f"{_checksum(body)}\n".encode():
        raise ValueError("wrong checksum")
    lines = body.decode("ascii").splitlines()
    if not lines or lines[0] != _HEADER:
        raise ValueError(f"not {_HEADER!r}, perhaps written by a later version")
    fields = dict(line.split(" ", 1) for line in lines[1:])
    generation = int(fields.get("generation", ""))
    if not 0 < generation < INTEGER_MAX:
        raise ValueError(f"generation {generation} is impossible")
    return StoredIdentity(generation, str(uuid.UUID(fields.get("host_id", ""))))


def _write(directory: Path, identity: StoredIdentity) -> None:
    body = f"{_HEADER}\ngeneration {identity.generation}\nhost_id {identity.host_id}\n".encode()
    path = directory / FILE_NAME
    temporary = path.with_name(FILE_NAME + ".tmp")
    with _explained("cannot write", path):
        try:
            with temporary.open("wb") as file:
                file.write(body + f"checksum {_checksum(body)}\n".encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    """A rename is only durable once its directory is."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _explained(contextlib.AbstractContextManager[None]):  # noqa: N801 - reads as a verb at its uses
    """Turns an OSError into one clear line with the way out."""

    def __init__(self, action: str, path: Path) -> None:
        self._action = action
        self._path = path

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, OSError):
            raise LocalStateError(
                f"{self._action} {self._path}: {error.strerror or error}; "
                "give a data directory on a local disk that this user can write and that has free space"
            ) from error
