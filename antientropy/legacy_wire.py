"""Protobuf <-> numpy and rows, and all validation of what a peer sends. A message is good as a whole or refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from antientropy.core import hashing
from antientropy.core.merkle import FAN_OUT, Root
from antientropy.core.rows import Row, RowDigests
from antientropy.core.tokens import TokenRange
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

#: Bytes of a row in a chunk besides key and value: two lengths, version, digest.
_ROW_OVERHEAD_BYTES: Final = 2 + 4 + 8 + 16
#: Field headers of a chunk, and of the message around it.
_CHUNK_OVERHEAD_BYTES: Final = 512
SESSION_ID_BYTES: Final = 16


def check_keyspace(keyspace: str) -> str:
    """A keyspace name of a sensible length."""
    if not 0 < len(keyspace.encode()) <= KEYSPACE_BYTES_MAX:
        raise PeerMessageError(f"keyspace name: 1 to {KEYSPACE_BYTES_MAX} bytes are allowed")
    return keyspace


def token_range_of(first: int, last: int) -> TokenRange:
    """Both ends of a range, both inclusive."""
    if first > last:
        raise PeerMessageError(f"token range {first} to {last} is empty")
    return TokenRange(first, last)


def root_of(digest: bytes, count: int) -> Root:
    """A root: 16 bytes and a count; no rows have no digest."""
    if len(digest) != hashing.DIGEST_BYTES:
        raise PeerMessageError(f"root digest of {len(digest)} bytes; {hashing.DIGEST_BYTES} are needed")
    if count == 0 and digest != hashing.EMPTY_DIGEST:
        raise PeerMessageError("root digest of no rows is not zero")
    return Root(digest, count)


def encode_unsigned(column: NDArray[np.uint64] | NDArray[np.uint32]) -> bytes:
    """A column of 4- or 8-byte integers, little-endian."""
    return column.astype(column.dtype.newbyteorder("<")).tobytes()


def decode_indices(level: int, indices: bytes, *, level_max: int) -> NDArray[np.uint32]:
    """Node indices of a request: known level, within it, strictly ascending, not too many, at least one."""
    if not 0 <= level <= min(level_max, TREE_DEPTH_MAX):
        raise PeerMessageError(f"tree level {level}: 0 to {level_max} are allowed")
    if len(indices) % 4 or not 0 < len(indices) // 4 <= NODES_PER_REQUEST_MAX:
        raise PeerMessageError(f"{len(indices)} bytes of node indices: 1 to {NODES_PER_REQUEST_MAX} times 4 allowed")
    column = np.frombuffer(indices, "<u4").astype(np.uint32)
    if int(column[-1]) >= FAN_OUT**level or not bool((column[1:] > column[:-1]).all()):
        raise PeerMessageError(f"node indices are out of order or beyond level {level}")
    return column


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


def decode_child_hashes(hashes: bytes, nodes: int) -> NDArray[np.uint64]:
    """16 hashes for each of some nodes. Shape (nodes, 16)."""
    if len(hashes) != nodes * FAN_OUT * 8:
        raise PeerMessageError(f"{len(hashes)} bytes of node hashes; {nodes * FAN_OUT * 8} are needed")
    return np.frombuffer(hashes, "<u8").astype(np.uint64).reshape(nodes, FAN_OUT)


def encode_digests(rows: RowDigests) -> pb.RowDigestsChunk:
    """Row digests as a message."""
    return pb.RowDigestsChunk(
        tokens=encode_unsigned(rows.tokens),
        versions=encode_unsigned(rows.versions),
        digests=hashing.digest_bytes(rows.digests),
    )


def decode_digests(chunk: pb.RowDigestsChunk, asked: NDArray[np.uint64]) -> RowDigests:
    """Row digests of a peer. ``asked``: first and last tokens of the ranges that were asked for, shape (n, 2)."""
    count = len(chunk.tokens) // 8
    if not 0 < count <= DIGESTS_PER_CHUNK_MAX:
        raise PeerMessageError(f"{count} row digests in a chunk: 1 to {DIGESTS_PER_CHUNK_MAX} are allowed")
    if (len(chunk.tokens), len(chunk.versions), len(chunk.digests)) != (count * 8, count * 8, count * 16):
        raise PeerMessageError("columns of row digests have different lengths")
    tokens = np.frombuffer(chunk.tokens, "<u8").astype(np.uint64)
    within = np.searchsorted(asked[:, 0], tokens, "right").astype(np.int64) - 1
    if bool((within < 0).any()) or bool((tokens > asked[within, 1]).any()):
        raise PeerMessageError("row digests outside of the leaves that were asked for")
    versions = np.frombuffer(chunk.versions, "<u8").astype(np.uint64)
    return RowDigests(tokens, versions, hashing.digest_columns(chunk.digests))


def encode_rows(rows: Iterable[Row]) -> Iterator[tuple[pb.RowsChunk, int]]:
    """Rows as messages of less than 1 MiB, each with the number of its rows."""
    batch: list[Row] = []
    size = _CHUNK_OVERHEAD_BYTES
    for row in rows:
        row_bytes = len(row.key) + len(row.value) + _ROW_OVERHEAD_BYTES
        if batch and (size + row_bytes > CHUNK_BYTES_MAX or len(batch) >= CHUNK_ROWS_MAX):
            yield _rows_chunk(batch), len(batch)
            batch, size = [], _CHUNK_OVERHEAD_BYTES
        batch.append(row)
        size += row_bytes
    if batch:
        yield _rows_chunk(batch), len(batch)


def _rows_chunk(rows: list[Row]) -> pb.RowsChunk:
    return pb.RowsChunk(
        key_lengths=np.array([len(row.key) for row in rows], "<u2").tobytes(),
        keys=b"".join([row.key for row in rows]),
        versions=np.array([row.version for row in rows], "<u8").tobytes(),
        digests=b"".join([row.digest for row in rows]),
        value_lengths=np.array([len(row.value) for row in rows], "<u4").tobytes(),
        values=b"".join([row.value for row in rows]),
    )


def decode_rows(chunk: pb.RowsChunk) -> list[Row]:
    """The rows of a chunk, each checked against its digest and the limits of a store.

    Raises:
        PeerMessageError: anything is wrong with any of them.
    """
    count = len(chunk.key_lengths) // 2
    if not 0 < count <= CHUNK_ROWS_MAX or chunk.ByteSize() > CHUNK_BYTES_MAX:
        raise PeerMessageError(
            f"a chunk of {count} rows in {chunk.ByteSize()} bytes: 1 to {CHUNK_ROWS_MAX} rows in at most "
            f"{CHUNK_BYTES_MAX} bytes are allowed"
        )
    lengths = (len(chunk.key_lengths), len(chunk.versions), len(chunk.digests), len(chunk.value_lengths))
    if lengths != (count * 2, count * 8, count * 16, count * 4):
        raise PeerMessageError("columns of rows have different lengths")
    key_ends = np.cumsum(np.frombuffer(chunk.key_lengths, "<u2"), dtype=np.int64)
    value_ends = np.cumsum(np.frombuffer(chunk.value_lengths, "<u4"), dtype=np.int64)
    if (int(key_ends[-1]), int(value_ends[-1])) != (len(chunk.keys), len(chunk.values)):
        raise PeerMessageError("keys or values are longer or shorter than their lengths say")
    rows = []
    key_start = value_start = 0
    versions = np.frombuffer(chunk.versions, "<u8").tolist()
    for number, (version, key_end, value_end) in enumerate(
        zip(versions, key_ends.tolist(), value_ends.tolist(), strict=True)
    ):
        digest = chunk.digests[number * 16 : number * 16 + 16]
        row = Row(chunk.keys[key_start:key_end], version, chunk.values[value_start:value_end], bool(digest[0] & 0x80))
        _check(row, digest)
        rows.append(row)
        key_start, value_start = key_end, value_end
    return rows


def _check(row: Row, digest: bytes) -> None:
    try:
        check_row(row)
    except RowRefusedError as error:
        raise PeerMessageError(str(error)) from error
    if row.digest != digest:
        raise PeerMessageError(f"the row at token {row.token} does not match its digest")
