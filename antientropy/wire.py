"""Protobuf <-> numpy and rows, and all validation of what a peer sends. A message is good as a whole or refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from antientropy.core import hashing
from antientropy.core.merkle import FAN_OUT, Root
from antientropy.core.rows import Row, RowDigests
from antientropy.core.tokens import TOKEN_MAX, TokenRange, covering
from antientropy.errors import PeerMessageError, RowRefusedError
from antientropy.limits import (
    CHUNK_BYTES_MAX,
    CHUNK_ROWS_MAX,
    DIGESTS_PER_CHUNK_MAX,
    KEYSPACE_BYTES_MAX,
    NODES_PER_REQUEST_MAX,
    TOKENS_PER_REQUEST_MAX,
    TREE_DEPTH_MAX,
)
from antientropy.store import check_row
from antientropy.v1 import repair_pb2 as pb

#: Buckets of the token line: nodes of this level of the tree.
_BUCKET_LEVEL: Final = 2
_BUCKETS: Final = FAN_OUT**_BUCKET_LEVEL
#: No tombstone is left out.
NO_FLOORS: Final[NDArray[np.uint64]] = np.zeros(_BUCKETS, np.uint64)
NO_FLOORS.setflags(write=False)
#: A host name of 253 bytes, a colon and a port.
ENDPOINT_BYTES_MAX: Final = 260
#: Bytes of a row in a chunk besides key and value, at most: two lengths, version, a bit.
_ROW_OVERHEAD_BYTES: Final = 4 + 4 + 8 + 1
#: Headers of columns and fields of a chunk, and of the message around it.
_CHUNK_OVERHEAD_BYTES: Final = 512

# --- packed columns ---


def pack_column(values: NDArray[np.uint64]) -> bytes:
    """Unsigned integers as one byte of widths, the least of them, and what each has more than that.

    One value is 1 byte and its own bytes; equal values take no more than one of them.
    """
    if not len(values):
        return b"\0"
    base = int(values.min())
    base_bytes = (base.bit_length() + 7) // 8
    width = (int(values.max() - values.min()).bit_length() + 7) // 8
    head = bytes([base_bytes << 4 | width]) + base.to_bytes(base_bytes, "little")
    if not width:
        return head
    wide = (values - np.uint64(base)).astype("<u8")
    return head + wide.view(np.uint8).reshape(-1, 8)[:, :width].tobytes()


def unpack_column(data: bytes, count: int, start: int = 0) -> tuple[NDArray[np.uint64], int]:
    """The inverse: ``count`` values from ``data[start:]``, and where they end."""
    if start >= len(data):
        raise PeerMessageError("a packed column is missing")
    base_bytes, width = data[start] >> 4, data[start] & 15
    first = start + 1 + base_bytes
    end = first + width * count
    if base_bytes > 8 or width > 8 or end > len(data):
        raise PeerMessageError(f"a packed column of {count} entries of {width} bytes is cut short or too wide")
    base = int.from_bytes(data[start + 1 : first], "little")
    wide = np.zeros((count, 8), np.uint8)
    if width:
        wide[:, :width] = np.frombuffer(data, np.uint8, width * count, first).reshape(count, width)
    values = wide.view("<u8").reshape(count).astype(np.uint64) + np.uint64(base)
    if bool((values < np.uint64(base)).any()):
        raise PeerMessageError("an entry of a packed column is beyond 64 bits")
    return values, end


def pack_ascending(values: NDArray[np.uint64]) -> bytes:
    """Ascending unsigned integers: the first one, then the packed column of the steps."""
    if not len(values):
        return b""
    return int(values[0]).to_bytes(8, "little") + pack_column(np.diff(values))


def unpack_ascending(data: bytes, count: int, *, strictly: bool) -> NDArray[np.uint64]:
    """The inverse, of all of ``data``; equal neighbours only if not ``strictly``."""
    if not count:
        if data:
            raise PeerMessageError("an ascending column of nothing has bytes")
        return np.empty(0, np.uint64)
    steps, end = unpack_column(data, count - 1, 8)
    if end != len(data):
        raise PeerMessageError(f"{len(data) - end} bytes follow an ascending column")
    values = np.concatenate((np.frombuffer(data, "<u8", 1), steps)).cumsum(dtype=np.uint64)
    # A sum beyond 64 bits comes out less than what it was added to.
    if bool((values[1:] < values[:-1]).any()) or (strictly and not bool(steps.all())):
        raise PeerMessageError("an ascending column does not ascend")
    return values


# --- names, ranges, roots ---


def check_keyspace(keyspace: str) -> str:
    """A keyspace name of a sensible length."""
    if not 0 < len(keyspace.encode()) <= KEYSPACE_BYTES_MAX:
        raise PeerMessageError(f"keyspace name: 1 to {KEYSPACE_BYTES_MAX} bytes are allowed")
    return keyspace


def check_endpoint(endpoint: str) -> str:
    """An endpoint of a sensible length."""
    if not 0 < len(endpoint.encode()) <= ENDPOINT_BYTES_MAX:
        raise PeerMessageError(f"endpoint: 1 to {ENDPOINT_BYTES_MAX} bytes are allowed")
    return endpoint


def put_range(request: pb.CompareRequest, token_range: TokenRange) -> None:
    """Both ends, inclusive; the full range takes no bytes."""
    request.first_token, request.tokens_after = token_range.first, TOKEN_MAX - token_range.last


def range_of(request: pb.CompareRequest) -> TokenRange:
    """The inverse."""
    first, last = request.first_token, TOKEN_MAX - request.tokens_after
    if first > last:
        raise PeerMessageError(f"token range {first} to {last} is empty")
    return TokenRange(first, last)


def root_of(digest: bytes, count: int) -> Root:
    """A root: 16 bytes and a count; no rows have no digest."""
    if not count:
        if digest:
            raise PeerMessageError("root digest of no rows is not empty")
        return Root(hashing.EMPTY_DIGEST, 0)
    if len(digest) != hashing.DIGEST_BYTES:
        raise PeerMessageError(f"root digest of {len(digest)} bytes; {hashing.DIGEST_BYTES} are needed")
    return Root(digest, count)


def encode_floors(floors: NDArray[np.uint64], token_range: TokenRange) -> bytes:
    """The floors of the buckets of a range; nothing when all are 0."""
    first, last = covering(token_range, _BUCKET_LEVEL)
    covered = floors[first : last + 1]
    return pack_column(covered) if covered.any() else b""


def decode_floors(data: bytes, token_range: TokenRange) -> NDArray[np.uint64]:
    """The inverse, shape (256,): 0 outside of the range."""
    floors = NO_FLOORS.copy()
    if data:
        first, last = covering(token_range, _BUCKET_LEVEL)
        floors[first : last + 1], end = unpack_column(data, last + 1 - first)
        if end != len(data):
            raise PeerMessageError(f"{len(data) - end} bytes follow the floors")
    return floors


# --- requests ---


def decode_indices(level: int, indices: bytes, count: int, *, level_max: int) -> NDArray[np.uint32]:
    """Node indices of a request: known level, within it, strictly ascending, not too many. None given: all of them."""
    if not 0 <= level <= min(level_max, TREE_DEPTH_MAX):
        raise PeerMessageError(f"tree level {level}: 0 to {level_max} are allowed")
    if not 0 <= count <= NODES_PER_REQUEST_MAX:
        raise PeerMessageError(f"{count} node indices: at most {NODES_PER_REQUEST_MAX} are allowed")
    if not count:
        if indices or FAN_OUT**level > NODES_PER_REQUEST_MAX:
            raise PeerMessageError(f"node indices of level {level} without a count")
        return np.arange(FAN_OUT**level, dtype=np.uint32)
    column = unpack_ascending(indices, count, strictly=True)
    if int(column[-1]) >= FAN_OUT**level:
        raise PeerMessageError(f"node {column[-1]} is beyond level {level}")
    return column.astype(np.uint32)


def encode_tokens(tokens: NDArray[np.uint64]) -> bytes:
    """A column of tokens."""
    return tokens.astype("<u8").tobytes()


def decode_tokens(tokens: bytes, token_range: TokenRange) -> NDArray[np.uint64]:
    """Tokens of a request: strictly ascending, within the session's range, not too many, at least one."""
    if len(tokens) % 8 or not 0 < len(tokens) // 8 <= TOKENS_PER_REQUEST_MAX:
        raise PeerMessageError(f"{len(tokens)} bytes of tokens: 1 to {TOKENS_PER_REQUEST_MAX} times 8 are allowed")
    column = np.frombuffer(tokens, "<u8").astype(np.uint64)
    if not bool((column[1:] > column[:-1]).all()):
        raise PeerMessageError("tokens are not strictly ascending")
    if not (token_range.contains(int(column[0])) and token_range.contains(int(column[-1]))):
        raise PeerMessageError(f"tokens lie outside of the session's range {token_range}")
    return column


# --- row digests ---


def encode_digests(rows: RowDigests, *, with_digests: bool) -> pb.DigestsChunk:
    """Row digests as a message."""
    return pb.DigestsChunk(
        row_count=len(rows),
        tokens=pack_ascending(rows.tokens),
        versions=pack_column(rows.versions),
        digests=hashing.digest_bytes(rows.digests) if with_digests else b"",
    )


def decode_digests(chunk: pb.DigestsChunk, asked: NDArray[np.uint64], *, with_digests: bool) -> RowDigests:
    """Row digests of a peer. ``asked``: first and last tokens of the ranges that were asked for, shape (n, 2)."""
    count = chunk.row_count
    if not 0 < count <= DIGESTS_PER_CHUNK_MAX:
        raise PeerMessageError(f"{count} row digests in a chunk: 1 to {DIGESTS_PER_CHUNK_MAX} are allowed")
    if len(chunk.digests) != (count * hashing.DIGEST_BYTES if with_digests else 0):
        raise PeerMessageError("columns of row digests have different lengths")
    tokens = unpack_ascending(chunk.tokens, count, strictly=False)
    versions, end = unpack_column(chunk.versions, count)
    if end != len(chunk.versions):
        raise PeerMessageError(f"{len(chunk.versions) - end} bytes follow the versions")
    within = np.searchsorted(asked[:, 0], tokens, "right").astype(np.int64) - 1
    if bool((within < 0).any()) or bool((tokens > asked[within, 1]).any()):
        raise PeerMessageError("row digests outside of the nodes that were asked for")
    digests = hashing.digest_columns(chunk.digests) if with_digests else np.zeros((count, 2), np.uint64)
    return RowDigests(tokens, versions, digests)


# --- rows ---


@dataclass(frozen=True, slots=True)
class RowsMessage:
    """A chunk of rows, ready to travel."""

    message: pb.RowColumns
    row_count: int
    row_bytes: int
    """Keys and values."""


def encode_rows(rows: Iterable[Row]) -> Iterator[RowsMessage]:
    """Rows as messages of less than 1 MiB."""
    batch: list[Row] = []
    size = _CHUNK_OVERHEAD_BYTES
    for row in rows:
        row_bytes = len(row.key) + len(row.value) + _ROW_OVERHEAD_BYTES
        if batch and (size + row_bytes > CHUNK_BYTES_MAX or len(batch) >= CHUNK_ROWS_MAX):
            yield _rows_message(batch)
            batch, size = [], _CHUNK_OVERHEAD_BYTES
        batch.append(row)
        size += row_bytes
    if batch:
        yield _rows_message(batch)


def _rows_message(rows: list[Row]) -> RowsMessage:
    deleted = np.array([row.deleted for row in rows], np.bool_)
    flags = b"\1" if deleted.all() else b"\2" + np.packbits(deleted, bitorder="little").tobytes()
    columns = (
        len(rows).to_bytes(2, "little"),
        pack_column(np.array([len(row.key) for row in rows], np.uint64)),
        pack_column(np.array([len(row.value) for row in rows], np.uint64)),
        pack_column(np.array([row.version for row in rows], np.uint64)),
        flags if deleted.any() else b"\0",
        _combined([row.digest for row in rows]),
    )
    content = b"".join([row.key for row in rows]) + b"".join([row.value for row in rows])
    return RowsMessage(pb.RowColumns(columns=b"".join(columns), content=content), len(rows), len(content))


def _combined(digests: list[bytes]) -> bytes:
    """XOR of digests."""
    return hashing.digest_bytes(np.bitwise_xor.reduce(hashing.digest_columns(b"".join(digests)), axis=0))


def decode_rows(message: pb.RowColumns, within: TokenRange) -> list[Row]:
    """The rows of a chunk: checked as a whole against the digest it came with, the range, and the limits of a store.

    Raises:
        PeerMessageError: anything is wrong with any of them.
    """
    data = message.columns
    count = int.from_bytes(data[:2], "little")
    if not 0 < count <= CHUNK_ROWS_MAX or message.ByteSize() > CHUNK_BYTES_MAX:
        raise PeerMessageError(
            f"a chunk of {count} rows in {message.ByteSize()} bytes: 1 to {CHUNK_ROWS_MAX} rows in at most "
            f"{CHUNK_BYTES_MAX} bytes are allowed"
        )
    key_lengths, end = unpack_column(data, count, 2)
    value_lengths, end = unpack_column(data, count, end)
    versions, end = unpack_column(data, count, end)
    deleted, end = _unpack_flags(data, count, end)
    if len(data) - end != hashing.DIGEST_BYTES:
        raise PeerMessageError(f"{len(data) - end} bytes where the digest of {count} rows belongs")
    # Compared one by one first: a sum of absurd lengths could come out right beyond 64 bits.
    size = len(message.content)
    if max(int(key_lengths.max()), int(value_lengths.max())) > size or size != int(
        key_lengths.sum() + value_lengths.sum()
    ):
        raise PeerMessageError("keys and values are longer or shorter than their lengths say")
    ends = np.cumsum(np.concatenate((key_lengths, value_lengths)).astype(np.int64)).tolist()
    rows = _cut(message.content, [0, *ends], versions.tolist(), deleted.tolist())
    _check_rows(rows, within)
    if _combined([row.digest for row in rows]) != data[end:]:
        raise PeerMessageError(f"a chunk of {count} rows does not match its digest")
    return rows


def _unpack_flags(data: bytes, count: int, start: int) -> tuple[NDArray[np.bool_], int]:
    kind = data[start] if start < len(data) else 255
    if kind in (0, 1):
        return np.full(count, kind == 1), start + 1
    end = start + 1 + (count + 7) // 8
    if kind != 2 or end > len(data):
        raise PeerMessageError("the flags of a chunk of rows are cut short or unknown")
    bits = np.frombuffer(data, np.uint8, end - start - 1, start + 1)
    return np.unpackbits(bits, count=count, bitorder="little").astype(np.bool_), end


def _cut(content: bytes, bounds: list[int], versions: list[int], deleted: list[bool]) -> list[Row]:
    """Rows from all keys followed by all values. ``bounds``: 2n + 1 offsets."""
    count = len(versions)
    return [
        Row(
            content[bounds[at] : bounds[at + 1]],
            versions[at],
            content[bounds[count + at] : bounds[count + at + 1]],
            deleted[at],
        )
        for at in range(count)
    ]


def _check_rows(rows: list[Row], within: TokenRange) -> None:
    """Limits of a store, order of tokens, no key twice, none outside of the range."""
    before = within.first
    try:
        for row in rows:
            check_row(row)
            token = row.token
            if not before <= token <= within.last:
                raise PeerMessageError(f"the row at token {token} is out of order, or outside of the range {within}")
            before = token
    except RowRefusedError as error:
        raise PeerMessageError(str(error)) from error
    if len({row.key for row in rows}) != len(rows):
        raise PeerMessageError("a chunk has two rows of one key")
