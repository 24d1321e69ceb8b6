"""Protobuf <-> numpy and rows, and all validation of what a peer sends. A message is good as a whole or refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from antientropy.core import hashing
from antientropy.core.glance import Glance
from antientropy.core.merkle import Root
from antientropy.core.rows import Row
from antientropy.core.tokens import BUCKET_LEVEL, BUCKETS, TOKEN_MAX, TokenRange, covering
from antientropy.errors import PeerMessageError, RowRefusedError
from antientropy.limits import (
    CHUNK_BYTES_MAX,
    CHUNK_ROWS_MAX,
    KEYSPACE_BYTES_MAX,
    TOKENS_PER_REQUEST_MAX,
)
from antientropy.store import check_row
from antientropy.v1 import repair_pb2 as pb

#: Stands where a packed column has its widths: one version for all buckets follows.
_UNIFORM: Final = 255
#: Bits of a hash over the endpoints of a range's replicas: three bytes of a varint.
_REPLICAS_MASK: Final = 2**21 - 1
#: Which rows of a chunk are tombstones: none (0), all, or some.
_ALL: Final = 1
_MIXED: Final = 2
#: Versions of the hash functions that one number of the wire can tell apart, beside the epoch.
_HASH_VERSIONS: Final = 16
#: No tombstone is left out.
NO_FLOORS: Final[NDArray[np.uint64]] = np.zeros(BUCKETS, np.uint64)
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
    first, last = covering(token_range, BUCKET_LEVEL)
    covered = floors[first : last + 1]
    if not covered.any():
        return b""
    if bool((covered == covered[0]).all()):
        return bytes([_UNIFORM]) + encode_version(int(covered[0]))
    return pack_column(covered)


def decode_floors(data: bytes, token_range: TokenRange) -> NDArray[np.uint64]:
    """The inverse, shape (256,): 0 outside of the range."""
    floors = NO_FLOORS.copy()
    first, last = covering(token_range, BUCKET_LEVEL)
    if data.startswith(bytes([_UNIFORM])):
        floors[first : last + 1] = decode_version(data[1:])
    elif data:
        floors[first : last + 1], end = unpack_column(data, last + 1 - first)
        if end != len(data):
            raise PeerMessageError(f"{len(data) - end} bytes follow the floors")
    return floors


def encode_version(version: int) -> bytes:
    """A version in 8 bytes, big-endian, without the zeros at its end: those that stand for whole seconds are short."""
    return version.to_bytes(8, "big").rstrip(b"\0")


def decode_version(data: bytes) -> int:
    """The inverse."""
    if len(data) > 8 or data.endswith(b"\0"):
        raise PeerMessageError(f"a version of {len(data)} bytes, or with zeros at its end")
    return int.from_bytes(data.ljust(8, b"\0"), "big")


def encode_hashes(hash_version: int, epoch: int) -> int:
    """Which hashes are spoken, as one number."""
    return epoch * _HASH_VERSIONS + hash_version


def decode_hashes(hashes: int) -> tuple[int, int]:
    """The inverse: version of the functions, and seed epoch."""
    return hashes % _HASH_VERSIONS, hashes // _HASH_VERSIONS


def hash_of_replicas(endpoints: Iterable[str]) -> int:
    """A set of replicas as a small number, never 0."""
    return (hashing.token_of(",".join(sorted(endpoints)).encode()) & _REPLICAS_MASK) or 1


# --- requests ---


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


# --- symbols ---


def decode_glance(data: bytes) -> Glance | None:
    """The first look at the sketch of a range; None: there is none."""
    try:
        return Glance.decode(data) if data else None
    except ValueError as error:
        raise PeerMessageError(f"first symbols: {error}") from error


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
    kind = _MIXED if deleted.any() and not deleted.all() else int(deleted[0])
    columns = (
        _pack_head(len(rows) << 2 | kind),
        pack_column(np.array([len(row.key) for row in rows], np.uint64)),
        pack_column(np.array([len(row.value) for row in rows], np.uint64)),
        pack_column(np.array([row.version for row in rows], np.uint64)),
        np.packbits(deleted, bitorder="little").tobytes() if kind == _MIXED else b"",
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
    head, start = _unpack_head(data)
    count, kind = head >> 2, head & 3
    if not 0 < count <= CHUNK_ROWS_MAX or kind > _MIXED or message.ByteSize() > CHUNK_BYTES_MAX:
        raise PeerMessageError(
            f"a chunk of {count} rows in {message.ByteSize()} bytes: 1 to {CHUNK_ROWS_MAX} rows in at most "
            f"{CHUNK_BYTES_MAX} bytes are allowed"
        )
    key_lengths, end = unpack_column(data, count, start)
    value_lengths, end = unpack_column(data, count, end)
    versions, end = unpack_column(data, count, end)
    deleted, end = _unpack_flags(data, count, kind, end)
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


def _pack_head(number: int) -> bytes:
    """A varint."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _unpack_head(data: bytes) -> tuple[int, int]:
    """The number at the start of a chunk, and where it ends."""
    number = 0
    for at, byte in enumerate(data[:3]):
        number |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            return number, at + 1
    raise PeerMessageError("the number of rows in a chunk is cut short or absurd")


def _unpack_flags(data: bytes, count: int, kind: int, start: int) -> tuple[NDArray[np.bool_], int]:
    """Which of the rows are tombstones, and where that ends."""
    if kind != _MIXED:
        return np.full(count, kind == _ALL), start
    end = start + (count + 7) // 8
    if end > len(data):
        raise PeerMessageError("the flags of a chunk of rows are cut short")
    bits = np.frombuffer(data, np.uint8, end - start, start)
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
