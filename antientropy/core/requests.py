"""What is asked and answered while differences are located: columns, and their packed bytes.

One request may have up to three parts, so that different nodes advance in different ways in the same round trip:
symbols of sketches, hashes of tree nodes, and lists of rows. A node of ``bits`` bits is named by the first ``bits``
bits of its tokens. Decoding checks all that can be checked without the other side's state, and refuses whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from antientropy.core import hashing
from antientropy.core.rows import RowDigests
from antientropy.core.sketch import U64, Indices, Symbols, symbol_bytes
from antientropy.core.tokens import BUCKET_BITS, LEVEL_BITS, TOKEN_MAX
from antientropy.errors import PeerMessageError
from antientropy.limits import (
    HASH_NODES_PER_REQUEST_MAX,
    NODES_PER_REQUEST_MAX,
    ROWS_LISTED_PER_ANSWER_MAX,
    SYMBOLS_PER_REQUEST_MAX,
    SYMBOLS_PER_SKETCH_MAX,
    TREE_DEPTH_MAX,
)

FAN_OUT: Final = 16
_BITS_MAX: Final = LEVEL_BITS * TREE_DEPTH_MAX
_SYMBOLS, _HASHES, _ROWS = 1, 2, 4


# --- packing ---


class _Reader:
    """Bytes taken from the front; too few are a malformed message."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        if count < 0 or self._at + count > len(self._data):
            raise PeerMessageError("a message about differences is cut short")
        part = self._data[self._at : self._at + count]
        self._at += count
        return part

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        if self._at != len(self._data):
            raise PeerMessageError("a message about differences has bytes at its end that mean nothing")

    def number(self, largest: int) -> int:
        """A varint of at most ten bytes."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        if value > largest:
            raise PeerMessageError(f"a message about differences says {value} where {largest} is the most")
        return value

    def column(self, count: int) -> U64:
        """The inverse of :func:`_packed`."""
        base, width = self.number(TOKEN_MAX), self.number(8)
        wide = np.zeros((count, 8), np.uint8)
        wide[:, :width] = np.frombuffer(self.take(count * width), np.uint8).reshape(count, width)
        column: U64 = wide.view("<u8").ravel().astype(np.uint64) + np.uint64(base)
        if count and bool((column < np.uint64(base)).any()):
            raise PeerMessageError("a column of a message about differences is beyond 64 bits")
        return column

    def ascending(self, count: int, largest: int) -> U64:
        """A column of ascending numbers: first its differences."""
        steps = self.column(count)
        column: U64 = np.cumsum(steps, dtype=np.uint64)
        if count and (bool((column[1:] < column[:-1]).any()) or int(column[-1]) > largest):
            raise PeerMessageError("a column of a message about differences is out of order or range")
        return column


def _number(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _packed(column: NDArray[np.uint64] | NDArray[np.int64]) -> bytes:
    """The least value, and what the others exceed it by in as few bytes as the greatest of them needs."""
    values = column.astype(np.uint64)
    if not len(values):
        return _number(0) + _number(0)
    base = int(values.min())
    width = ((int(values.max()) - base).bit_length() + 7) // 8
    rest = (values - np.uint64(base)).astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width]
    return _number(base) + _number(width) + rest.tobytes()


def _packed_ascending(column: NDArray[np.uint64] | NDArray[np.int64]) -> bytes:
    values = column.astype(np.uint64)
    return _packed(np.diff(values, prepend=np.uint64(0)))


def _nodes(reader: _Reader, count: int, bits: int) -> Indices:
    nodes = reader.ascending(count, 2**bits - 1).astype(np.int64)
    if bool((nodes[1:] == nodes[:-1]).any()):
        raise PeerMessageError("a node is named twice in a message about differences")
    return nodes


# --- requests ---


@dataclass(frozen=True, slots=True, eq=False)
class SymbolsRequest:
    """Symbols ``firsts[g]`` to ``lasts[g] - 1`` of the sketch of each node. Shapes (k,); nodes ascend."""

    bits: int
    nodes: Indices
    firsts: Indices
    lasts: Indices

    def __len__(self) -> int:
        """The number of symbols."""
        return int((self.lasts - self.firsts).sum())

    def encode(self) -> bytes:
        """Packed."""
        return b"".join(
            (
                _number(self.bits),
                _number(len(self.nodes)),
                _packed_ascending(self.nodes),
                _packed(self.firsts),
                _packed(self.lasts - self.firsts),
            )
        )

    @classmethod
    def read(cls, reader: _Reader) -> Self:
        """Unpacked and checked."""
        bits = reader.number(BUCKET_BITS)
        count = reader.number(2**bits)
        nodes = _nodes(reader, count, bits)
        firsts, lengths = reader.column(count), reader.column(count)
        if bool((firsts > SYMBOLS_PER_SKETCH_MAX).any()) or bool((lengths > SYMBOLS_PER_SKETCH_MAX).any()):
            raise PeerMessageError(f"symbols beyond {SYMBOLS_PER_SKETCH_MAX} of one sketch were asked for")
        lasts = (firsts + lengths).astype(np.int64)
        if bool((lasts > SYMBOLS_PER_SKETCH_MAX).any()) or int(lengths.sum()) > SYMBOLS_PER_REQUEST_MAX:
            raise PeerMessageError(f"more than {SYMBOLS_PER_REQUEST_MAX} symbols were asked for at once")
        return cls(bits, nodes, firsts.astype(np.int64), lasts)


@dataclass(frozen=True, slots=True, eq=False)
class HashesRequest:
    """The asking side's hashes of the children of some nodes: 4 bytes each, salted. ``hashes`` has shape (n, 16)."""

    level: int
    leaf_level: int
    """The depth of the asking side's tree."""
    salt: int
    nodes: Indices
    hashes: NDArray[np.uint32]
    with_digests: bool
    """Whether rows are listed with their digests."""

    def encode(self) -> bytes:
        """Packed."""
        return b"".join(
            (
                bytes((self.level, self.leaf_level, self.with_digests)),
                self.salt.to_bytes(4, "little"),
                _number(len(self.nodes)),
                _packed_ascending(self.nodes),
                self.hashes.astype("<u4").tobytes(),
            )
        )

    @classmethod
    def read(cls, reader: _Reader) -> Self:
        """Unpacked and checked."""
        level, leaf_level, with_digests = reader.take(3)
        if not level < leaf_level <= TREE_DEPTH_MAX or with_digests > 1:
            raise PeerMessageError(f"hashes below level {level} of a tree of depth {leaf_level} were sent")
        salt = int.from_bytes(reader.take(4), "little")
        count = reader.number(HASH_NODES_PER_REQUEST_MAX)
        nodes = _nodes(reader, count, level * LEVEL_BITS)
        hashes = np.frombuffer(reader.take(4 * FAN_OUT * count), "<u4").astype(np.uint32).reshape(-1, FAN_OUT)
        return cls(level, leaf_level, salt, nodes, hashes, bool(with_digests))


@dataclass(frozen=True, slots=True, eq=False)
class RowsRequest:
    """The rows of some nodes from ``token`` on: token and version, and the digest if ``with_digests``."""

    bits: int
    nodes: Indices
    token: int
    with_digests: bool

    def encode(self) -> bytes:
        """Packed."""
        return b"".join(
            (
                bytes((self.bits, self.with_digests)),
                _number(self.token),
                _number(len(self.nodes)),
                _packed_ascending(self.nodes),
            )
        )

    @classmethod
    def read(cls, reader: _Reader) -> Self:
        """Unpacked and checked."""
        bits, with_digests = reader.take(2)
        if bits > _BITS_MAX or with_digests > 1:
            raise PeerMessageError(f"rows of nodes of {bits} bits were asked for")
        token = reader.number(TOKEN_MAX)
        count = reader.number(NODES_PER_REQUEST_MAX)
        return cls(bits, _nodes(reader, count, bits), token, bool(with_digests))


@dataclass(frozen=True, slots=True, eq=False)
class LocateRequest:
    """What is asked in one round trip; at least one part."""

    symbols: SymbolsRequest | None = None
    hashes: HashesRequest | None = None
    rows: RowsRequest | None = None

    def encode(self) -> bytes:
        """All of it, packed."""
        flags = (
            _SYMBOLS * (self.symbols is not None)
            | _HASHES * (self.hashes is not None)
            | _ROWS * (self.rows is not None)
        )
        parts = [part.encode() for part in (self.symbols, self.hashes, self.rows) if part is not None]
        return bytes((flags,)) + b"".join(parts)

    @property
    def nbytes(self) -> int:
        """Bytes on the wire."""
        return len(self.encode())

    @classmethod
    def decode(cls, data: bytes) -> LocateRequest:
        """The inverse of :meth:`encode`.

        Raises:
            PeerMessageError: malformed or beyond a limit.
        """
        reader = _Reader(data)
        flags = reader.number(_SYMBOLS | _HASHES | _ROWS)
        if not flags:
            raise PeerMessageError("nothing was asked")
        request = cls(
            SymbolsRequest.read(reader) if flags & _SYMBOLS else None,
            HashesRequest.read(reader) if flags & _HASHES else None,
            RowsRequest.read(reader) if flags & _ROWS else None,
        )
        reader.end()
        return request


# --- answers ---


@dataclass(frozen=True, slots=True, eq=False)
class HashesAnswer:
    """Which children differ, and what lies below those: the next level's hashes, or at the leaves the rows."""

    leaf_level: int
    """The depth of the answering side's tree."""
    masks: NDArray[np.uint16]
    """Bit c of masks[i]: child c of node i differs. Shape (n,), or (0,) when the tree ends at or above the nodes."""
    hashes: NDArray[np.uint32]
    """Of the children of each differing child. Shape (m, 16), or (0, 16) at the leaves."""


@dataclass(frozen=True, slots=True, eq=False)
class RowsAnswer:
    """Rows in token order, complete up to token ``last``; digests are zero when they were not asked for."""

    rows: RowDigests
    last: int


@dataclass(frozen=True, slots=True, eq=False)
class LocateAnswer:
    """The answer, part by part. ``leaves``: rows of the differing leaves of ``hashes``."""

    symbols: Symbols | None = None
    hashes: HashesAnswer | None = None
    leaves: RowsAnswer | None = None
    rows: RowsAnswer | None = None

    def encode(self, request: LocateRequest) -> bytes:
        """Packed; what the request says is not repeated."""
        parts = []
        if request.symbols is not None and self.symbols is not None:
            parts.append(self.symbols.encode(request.symbols.bits))
        if request.hashes is not None and self.hashes is not None:
            parts += [bytes((self.hashes.leaf_level,)), self.hashes.masks.astype("<u2").tobytes()]
            parts.append(self.hashes.hashes.astype("<u4").tobytes())
            if self.leaves is not None:
                parts.append(_encode_rows(self.leaves, with_digests=request.hashes.with_digests))
        if request.rows is not None and self.rows is not None:
            parts.append(_encode_rows(self.rows, with_digests=request.rows.with_digests))
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes, request: LocateRequest) -> LocateAnswer:
        """The inverse of :meth:`encode`.

        Raises:
            PeerMessageError: malformed, beyond a limit, or no answer to that request.
        """
        reader = _Reader(data)
        symbols, hashes, leaves, rows = None, None, None, None
        if request.symbols is not None:
            count, bits = len(request.symbols), request.symbols.bits
            symbols = Symbols.decode(reader.take(count * symbol_bytes(bits)), count, bits)
        if request.hashes is not None:
            hashes = _read_hashes(reader, request.hashes)
            if len(hashes.masks) and at_leaves(request.hashes, hashes.leaf_level):
                leaves = _read_rows(reader, with_digests=request.hashes.with_digests)
        if request.rows is not None:
            rows = _read_rows(reader, with_digests=request.rows.with_digests)
        reader.end()
        return cls(symbols, hashes, leaves, rows)


def at_leaves(request: HashesRequest, leaf_level: int) -> bool:
    """Whether the children in question are leaves of the shallower tree."""
    return request.level + 1 >= min(request.leaf_level, leaf_level)


def _read_hashes(reader: _Reader, request: HashesRequest) -> HashesAnswer:
    leaf_level = reader.take(1)[0]
    if not 1 <= leaf_level <= TREE_DEPTH_MAX:
        raise PeerMessageError(f"a tree of depth {leaf_level} is none")
    if leaf_level <= request.level:
        return HashesAnswer(leaf_level, np.empty(0, np.uint16), np.empty((0, FAN_OUT), np.uint32))
    masks = np.frombuffer(reader.take(2 * len(request.nodes)), "<u2").astype(np.uint16)
    differing = 0 if at_leaves(request, leaf_level) else int(np.unpackbits(masks.view(np.uint8)).sum())
    hashes = np.frombuffer(reader.take(4 * FAN_OUT * differing), "<u4").astype(np.uint32).reshape(-1, FAN_OUT)
    return HashesAnswer(leaf_level, masks, hashes)


def _encode_rows(answer: RowsAnswer, *, with_digests: bool) -> bytes:
    rows = answer.rows
    # The last token is most often that of the last row, or the end of what was asked.
    return b"".join(
        (
            _number(len(rows)),
            _number(TOKEN_MAX - answer.last),
            _packed_ascending(rows.tokens),
            _packed(rows.versions),
            hashing.digest_bytes(rows.digests) if with_digests else b"",
        )
    )


def _read_rows(reader: _Reader, *, with_digests: bool) -> RowsAnswer:
    count = reader.number(2 * ROWS_LISTED_PER_ANSWER_MAX)
    last = TOKEN_MAX - reader.number(TOKEN_MAX)
    tokens = reader.ascending(count, last)
    versions = reader.column(count)
    digests = np.zeros((count, 2), np.uint64)
    if with_digests:
        digests = hashing.digest_columns(reader.take(count * hashing.DIGEST_BYTES))
    return RowsAnswer(RowDigests(tokens, versions, digests), last)
