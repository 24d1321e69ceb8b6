"""What a node remembers between incarnations: its generation and host id, and, apart from them, the peers it knew.

A generation is on disk before anybody hears of it, so that no generation is ever used twice, whatever the clock does.
The file is text, one field per line, closed by a checksum over everything above it::

    gossiper-identity 1
    generation 1764000000
    host_id 6f9619ff-8b86-4d01-b42d-00cf4fc964ff
    checksum 0123456789abcdef0123456789abcdef        (xxh3_128, hexadecimal)

Known peers let a whole cluster that restarts find itself while no seed is up (CASSANDRA-13851). They have a file of
their own, in the order of their endpoints: generation, the hour in which this node last held the peer for a member,
and three fields in percent-encoded UTF-8. With them a member that stays dead can be replaced (CASSANDRA-16213)::

    gossiper-peers 2
    peer 10.0.0.1:7000 1764000000 1764003600 6f9619ff-8b86-4d01-b42d-00cf4fc964ff datacenter1 rack1
    checksum 0123456789abcdef0123456789abcdef

The form before, ``gossiper-peers 1``, has no hour; it is read, and the time at which the file was written takes its
place.

Identity and peers differ in what is at stake. A damaged identity stops the node: to guess could use a generation twice.
Damaged peers are set aside and learned again.

Files are replaced whole: written beside, fsync, rename, fsync of the directory. One process at a time owns a directory,
by ``flock`` on a lock file that also names its pid.

All functions are synchronous and short; a node calls them in threads, several at a time if it likes.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Self
from urllib.parse import quote, unquote

import xxhash

from gossiper.core.endpoints import canonical_endpoint
from gossiper.core.saved import KnownPeer
from gossiper.errors import LocalStateError
from gossiper.limits import ENDPOINTS_MAX, INTEGER_MAX

logger = logging.getLogger(__name__)

FILE_NAME: Final = "gossip.identity"
LOCK_NAME: Final = "gossip.lock"
_HEADER: Final = "gossiper-identity 1"
#: Four short lines; anything longer is not ours.
_FILE_BYTES_MAX: Final = 1024
PEERS_FILE_NAME: Final = "gossip.peers"
_PEERS_HEADER: Final = "gossiper-peers 2"
_PEERS_HEADER_BEFORE: Final = "gossiper-peers 1"
#: A node knows no more endpoints than that.
KNOWN_PEERS_MAX: Final = ENDPOINTS_MAX
#: Five times as many bytes as that many ordinary peers need; bounds memory and time of a start.
PEERS_BYTES_MAX: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoredIdentity:
    """What is known of earlier incarnations. ``generation``: the last one used; None at the first start."""

    generation: int | None
    host_id: str


class NodeStorage:
    """What one node remembers, in ``directory``; None keeps it in memory only.

    The directory is made and locked by the first method that needs it, and unlocked by :meth:`close`, which waits for
    a method under way; after it nothing is written any more, since another process may own the directory then.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self._mutex = threading.RLock()
        self._lock: IO[str] | None = None
        self._closed = False
        self._identity: StoredIdentity | None = None
        self._peers: tuple[KnownPeer, ...] | None = None

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
        with self._mutex:
            if self._identity is None:
                if self.directory is not None:
                    self._acquire(self.directory)
                    self._identity = _read(self.directory / FILE_NAME)
                if self._identity is None:
                    self._identity = StoredIdentity(None, str(uuid.uuid4()))
            return self._identity

    def store_generation(self, generation: int, host_id: str | None = None) -> None:
        """Make ``generation`` durable; at the first start ``host_id`` too. After an error nothing has changed.

        Raises:
            LocalStateError: it is not greater than the stored one, ``host_id`` is not the stored one, or it cannot be
                written (disk full, read-only).
        """
        with self._mutex:
            known = self.load()
            identity = StoredIdentity(generation, known.host_id if host_id is None else str(uuid.UUID(host_id)))
            if known.generation is not None:
                _check_succession(known.generation, known.host_id, identity, self.directory)
            if not 0 < generation < INTEGER_MAX:
                raise LocalStateError(f"generation {generation} is impossible; check the system clock")
            if self.directory is not None:
                self._acquire(self.directory)
                body = f"{_HEADER}\ngeneration {generation}\nhost_id {identity.host_id}\n"
                _replace(self.directory / FILE_NAME, body.encode())
            self._identity = identity

    def store_peers(self, peers: Sequence[KnownPeer]) -> None:
        """Make ``peers`` durable, in place of those stored before. The same peers again write nothing.

        Raises:
            LocalStateError: they are too many (``KNOWN_PEERS_MAX``) or too large, or cannot be written. Those stored
                before are still there.
            ValueError: an endpoint is not canonical or there twice, or a generation is impossible.
        """
        ordered = tuple(sorted(peers, key=lambda peer: peer.endpoint))
        body = _peers_body(ordered)
        with self._mutex:
            if ordered == self._peers:
                return
            if self.directory is not None:
                self._acquire(self.directory)
                _replace(self.directory / PEERS_FILE_NAME, body)
            self._peers = ordered

    def load_peers(self) -> tuple[KnownPeer, ...]:
        """The peers stored last, in the order of their endpoints; empty if none ever were.

        A file that is corrupt or written by a later version becomes ``gossip.peers.corrupt`` (in place of an earlier
        one) and counts as empty, with a warning; so does one that cannot be read.

        Raises:
            LocalStateError: the directory is unusable, or another process owns it.
        """
        with self._mutex:
            if self._peers is None:
                if self.directory is None:
                    return ()
                self._acquire(self.directory)
                self._peers = _read_peers(self.directory / PEERS_FILE_NAME)
            return self._peers or ()

    def clear(self) -> None:
        """Forget who this is: the next start is that of a new node, with a new host id. Known peers stay known.

        Raises:
            LocalStateError: the file cannot be removed.
        """
        with self._mutex:
            if self.directory is not None:
                self._acquire(self.directory)
                path = self.directory / FILE_NAME
                with _explained("cannot remove", path):
                    path.unlink(missing_ok=True)
                    _sync_directory(self.directory)
            self._identity = None

    def close(self) -> None:
        """Let go of the directory. Idempotent; what was loaded stays readable."""
        with self._mutex:
            self._closed = True
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def _acquire(self, directory: Path) -> None:
        if self._closed:
            raise LocalStateError(f"{directory} was given up by this node, which has stopped; start a new one")
        if self._lock is None:
            self._lock = _lock(directory)


def reset(directory: Path) -> Path | None:
    """Set the identity file of a stopped node aside, corrupt or not, so that the next start begins without it.

    That start takes its generation from the clock (and from what the cluster remembers), and a new host id. Known
    peers stay: they say where that cluster is.

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
    lines = _parse_body(data, _FILE_BYTES_MAX, "an identity file")
    if not lines or lines[0] != _HEADER:
        raise ValueError(f"not {_HEADER!r}, perhaps written by a later version")
    fields = dict(line.split(" ", 1) for line in lines[1:])
    generation = int(fields.get("generation", ""))
    if not 0 < generation < INTEGER_MAX:
        raise ValueError(f"generation {generation} is impossible")
    return StoredIdentity(generation, str(uuid.UUID(fields.get("host_id", ""))))


def _check_succession(generation: int, host_id: str, new: StoredIdentity, directory: Path | None) -> None:
    if new.host_id != host_id:
        raise LocalStateError(
            f"{directory or 'this node'} belongs to host id {host_id}, but host_id is set to {new.host_id}; "
            "remove that setting, or give the new node a data directory of its own"
        )
    if new.generation is None or new.generation <= generation:
        raise LocalStateError(f"generation {new.generation} is not greater than {generation}, which was used before")


def _peers_body(peers: Sequence[KnownPeer], header: str = _PEERS_HEADER) -> bytes:
    if len(peers) > KNOWN_PEERS_MAX:
        raise LocalStateError(f"{len(peers)} known peers, at most {KNOWN_PEERS_MAX} are stored")
    lines = [header]
    previous = ""
    for peer in peers:
        if peer.endpoint == previous or canonical_endpoint(peer.endpoint) != peer.endpoint:
            raise ValueError(f"known peer {peer.endpoint!r} is there twice, or not canonical")
        if not 0 <= peer.generation < INTEGER_MAX:
            raise ValueError(f"known peer {peer.endpoint}: generation {peer.generation} is impossible")
        if not 0 <= peer.seen_seconds < INTEGER_MAX:
            raise ValueError(f"known peer {peer.endpoint}: time {peer.seen_seconds} is impossible")
        texts = " ".join(quote(text, safe="") for text in (peer.host_id, peer.datacenter, peer.rack))
        numbers = f"{peer.generation} {peer.seen_seconds}" if header == _PEERS_HEADER else f"{peer.generation}"
        lines.append(f"peer {peer.endpoint} {numbers} {texts}")
        previous = peer.endpoint
    body = ("\n".join(lines) + "\n").encode("ascii")
    if len(body) + len(_checksum_line(body)) > PEERS_BYTES_MAX:
        raise LocalStateError(f"known peers need {len(body)} bytes, at most {PEERS_BYTES_MAX} are stored")
    return body


def _read_peers(path: Path) -> tuple[KnownPeer, ...]:
    """Never fails on account of the file: what it holds can be learned again."""
    try:
        with path.open("rb") as file:
            data = file.read(PEERS_BYTES_MAX + 1)
            written_seconds = max(0, int(os.fstat(file.fileno()).st_mtime))
    except FileNotFoundError:
        return ()
    except OSError as error:
        logger.warning("peers_unreadable %s: %s; known peers must be learned again", path, error.strerror or error)
        return ()
    try:
        return _parse_peers(data, written_seconds)
    except ValueError as error:
        aside = path.with_name(PEERS_FILE_NAME + ".corrupt")
        try:
            path.replace(aside)
            _sync_directory(path.parent)
            where = f"set aside as {aside.name}"
        except OSError as refused:
            where = f"cannot be set aside: {refused.strerror or refused}"
        logger.warning("peers_corrupt %s (%s), %s; known peers must be learned again", path, error, where)
        return ()


def _parse_peers(data: bytes, written_seconds: int) -> tuple[KnownPeer, ...]:
    lines = _parse_body(data, PEERS_BYTES_MAX, "a file of peers")
    header = lines[0] if lines else ""
    if header not in {_PEERS_HEADER, _PEERS_HEADER_BEFORE}:
        raise ValueError(f"not {_PEERS_HEADER!r}, perhaps written by a later version")
    if len(lines) - 1 > KNOWN_PEERS_MAX:
        raise ValueError(f"{len(lines) - 1} peers, at most {KNOWN_PEERS_MAX} are possible")
    peers: list[KnownPeer] = []
    for number, line in enumerate(lines[1:], 2):
        fields = line.split(" ")
        if header == _PEERS_HEADER_BEFORE:
            fields.insert(3, str(written_seconds))
        if len(fields) != 7 or fields[0] != "peer":
            raise ValueError(f"line {number} is not a peer")
        host_id, datacenter, rack = (unquote(text, errors="strict") for text in fields[4:])
        peers.append(KnownPeer(fields[1], host_id, datacenter, rack, int(fields[2]), int(fields[3])))
    # Checks every endpoint and generation, and that a field has no second spelling.
    if not data.startswith(_peers_body(sorted(peers, key=lambda peer: peer.endpoint), header)):
        raise ValueError("not as this version writes it")
    return tuple(peers)


def _parse_body(data: bytes, bytes_max: int, kind: str) -> list[str]:
    """The lines above the checksum, if it is right."""
    body, found, _ = data.rpartition(b"checksum ")
    if len(data) > bytes_max or not found:
        raise ValueError(f"not {kind}")
    if data[len(body) :] != _checksum_line(body):
        raise ValueError("wrong checksum")
    return body.decode("ascii").splitlines()


def _checksum_line(body: bytes) -> bytes:
    return f"checksum {_checksum(body)}\n".encode()


def _replace(path: Path, body: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with _explained("cannot write", path):
        try:
            with temporary.open("wb") as file:
                file.write(body + _checksum_line(body))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)


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
