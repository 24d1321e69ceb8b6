"""One write transaction of an LMDB row store: compare-and-set of rows, and what it changes for index and counters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import lmdb

from antientropy.core.floors import is_below
from antientropy.core.rows import Changes, Row
from antientropy.store import check_row
from antientropy.stores.lmdb_files import HEADER, TOKEN, TOMBSTONE, Databases, tombstone_place
from antientropy.stores.lmdb_reader import is_sound


@dataclass(frozen=True, slots=True)
class ArrivedRow:
    """A row, hashed, as it will be stored."""

    token: int
    place: bytes
    version: int
    digest: bytes
    deleted: bool
    stored: bytes

    @classmethod
    def of(cls, row: Row) -> ArrivedRow:
        """From a row that keeps the limits.

        Raises:
            RowRefusedError: it does not.
        """
        check_row(row)
        token, digest = row.token, row.digest
        header = HEADER.pack(row.version, TOMBSTONE if row.deleted else 0, digest)
        return cls(token, TOKEN.pack(token) + row.key, row.version, digest, row.deleted, header + row.value)

    @property
    def size(self) -> int:
        """Bytes that it takes in the store."""
        return len(self.place) + len(self.stored)


class WriteBatch:
    """What one write transaction does. ``transaction`` is on the database of the rows, with buffers."""

    def __init__(self, transaction: lmdb.Transaction[memoryview[int]], databases: Databases) -> None:
        self.transaction = transaction
        self._databases = databases
        self._tokens: list[int] = []
        self._versions: list[int] = []
        self._digests: list[bytes] = []
        self._signs: list[int] = []
        self.applied = 0
        """Rows that were put."""
        self.refused = 0
        """Rows that lay below fence or floor."""
        self.tombstones = 0
        """Tombstones that came, less those that went."""
        self.version_max = 0
        self.rows = 0
        """Rows that came, less those that went."""

    def changes(self) -> Changes:
        """What came and what went."""
        return Changes.of(self._tokens, self._versions, self._digests, self._signs)

    def put(self, row: ArrivedRow, past: Sequence[int] | None) -> None:
        """Put a row if it wins; ``past``: refuse it if it lies below its bucket's version."""
        stored = self.transaction.get(row.place)
        header = None if stored is None or len(stored) < HEADER.size else HEADER.unpack_from(stored)
        if header is not None and (row.version, row.digest) <= (header[0], header[2]):
            return
        if past is not None and is_below(row.token, row.version, past):
            self.refused += 1
            return
        if header is not None:
            self._went(row.place, row.token, *header)
        if stored is not None:
            self.rows -= 1  # without a header nobody could ever have counted its digest
        self.transaction.put(row.place, row.stored)
        self.rows += 1
        if row.deleted:
            listed = tombstone_place(row.version, row.place, row.digest)
            self.transaction.put(listed, b"", db=self._databases.tombstones)
            self.tombstones += 1
        self._note(row.token, row.version, row.digest, 1)
        self.applied += 1
        self.version_max = max(self.version_max, row.version)

    def remove_tombstone(self, listed: bytes) -> None:
        """Remove a tombstone by its place in their list."""
        place = self._place_of_tombstone(listed)
        if place is None:
            self.transaction.delete(listed, db=self._databases.tombstones)
            self.tombstones -= 1
            return
        self.transaction.delete(place)
        self.rows -= 1
        version, token = TOKEN.unpack_from(listed)[0], TOKEN.unpack_from(listed, TOKEN.size)[0]
        self._went(place, token, version, TOMBSTONE, listed[2 * TOKEN.size :])

    def _place_of_tombstone(self, listed: bytes) -> bytes | None:
        """Where the row of a listed tombstone is."""
        header = HEADER.pack(TOKEN.unpack_from(listed)[0], TOMBSTONE, listed[2 * TOKEN.size :])
        token = listed[TOKEN.size : 2 * TOKEN.size]
        with self.transaction.cursor() as cursor:
            more = cursor.set_range(token)
            while more and bytes(cursor.key()[: TOKEN.size]) == token:
                if bytes(cursor.value()[: HEADER.size]) == header:
                    return bytes(cursor.key())
                more = cursor.next()
        return None

    def quarantine_if_damaged(self, place: bytes) -> bool:
        """Move a row aside as it is, if it does not match its digest: it no longer counts. Whether it was so."""
        found = self.transaction.get(place)
        stored = None if found is None else bytes(found)
        if stored is None or is_sound(place, stored):
            return False
        self.transaction.put(place, stored, db=self._databases.quarantine)
        self.transaction.delete(place)
        self.rows -= 1
        if len(stored) >= HEADER.size:
            version, _, digest = HEADER.unpack_from(stored)
            self._note(TOKEN.unpack_from(place)[0], version, digest, -1)
        return True

    def unlist_tombstones(self, tokens: set[bytes]) -> None:
        """Take tombstones off their list whose rows are not there; a damaged row does not tell where it is listed."""
        with self.transaction.cursor(db=self._databases.tombstones) as cursor:
            listed = [bytes(place) for place in cursor.iternext(values=False) if bytes(place[8:16]) in tokens]
        for place in listed:
            if self._place_of_tombstone(place) is None:
                self.transaction.delete(place, db=self._databases.tombstones)
                self.tombstones -= 1

    def _went(self, place: bytes, token: int, version: int, flags: int, digest: bytes) -> None:
        if flags & TOMBSTONE:
            self.transaction.delete(tombstone_place(version, place, digest), db=self._databases.tombstones)
            self.tombstones -= 1
        self._note(token, version, digest, -1)

    def _note(self, token: int, version: int, digest: bytes, sign: int) -> None:
        self._tokens.append(token)
        self._versions.append(version)
        self._digests.append(digest)
        self._signs.append(sign)
