"""Packed columns and chunks of rows: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antientropy import wire
from antientropy.core.hashing import EMPTY_DIGEST
from antientropy.core.merkle import Root
from antientropy.core.rows import Row
from antientropy.core.tokens import TOKEN_MAX, TokenRange
from antientropy.errors import PeerMessageError
from antientropy.limits import CHUNK_BYTES_MAX, CHUNK_ROWS_MAX, TOKENS_PER_REQUEST_MAX, VALUE_BYTES_MAX
from antientropy.v1 import repair_pb2 as pb

FULL = TokenRange.full()
U64 = st.integers(0, 2**64 - 1)
ROWS = st.lists(
    st.builds(
        lambda key, version, value, deleted: Row(key, version, b"" if deleted else value, deleted),
        st.binary(min_size=1, max_size=40),
        U64,
        st.binary(max_size=40),
        st.booleans(),
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda row: row.key,
)


def in_order(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.token)


def message(rows: list[Row]) -> pb.RowColumns:
    [chunk] = wire.encode_rows(rows)
    assert chunk.row_count == len(rows)
    assert chunk.row_bytes == sum(len(row.key) + len(row.value) for row in rows)
    return chunk.message


# --- packed columns ---


@given(st.lists(st.one_of(U64, st.integers(0, 300)), max_size=50), st.binary(max_size=3))
def test_a_packed_column_comes_back_and_ends_where_it_ends(values: list[int], before: bytes) -> None:
    packed = wire.pack_column(np.array(values, np.uint64))
    column, end = wire.unpack_column(before + packed + b"more", len(values), len(before))
    assert column.tolist() == values
    assert end == len(before) + len(packed)


def test_columns_are_as_short_as_they_can_be() -> None:
    assert len(wire.pack_column(np.full(1000, 100, np.uint64))) == 2
    assert len(wire.pack_column(np.zeros(1000, np.uint64))) == 1
    versions = np.uint64(1_750_000_000_000 << 16) + np.arange(1000, dtype=np.uint64)
    assert len(wire.pack_column(versions)) == 1 + 8 + 2 * 1000


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"", 1),
        (b"\x90" + bytes(9), 1),
        (b"\x09" + bytes(9), 1),
        (b"\x80" + bytes(7), 1),
        (b"\x01", 1),
        (b"\x81" + b"\xff" * 8 + b"\x01", 1),
        (b"\x08" + bytes(800), 2**31),
    ],
    ids=["missing", "wide base", "wide entry", "short base", "no entries", "beyond 64 bits", "absurd count"],
)
def test_a_broken_packed_column_is_refused(data: bytes, count: int) -> None:
    with pytest.raises(PeerMessageError):
        wire.unpack_column(data, count)


# --- ranges, roots, floors, versions ---


@given(U64, U64)
def test_ranges_come_back(one: int, other: int) -> None:
    token_range = TokenRange(min(one, other), max(one, other))
    request = pb.CompareRequest()
    wire.put_range(request, token_range)
    assert wire.range_of(request) == token_range


def test_the_full_range_takes_no_bytes_and_an_empty_one_is_refused() -> None:
    request = pb.CompareRequest()
    wire.put_range(request, FULL)
    assert request.ByteSize() == 0
    with pytest.raises(PeerMessageError, match="empty"):
        wire.range_of(pb.CompareRequest(first_token=TOKEN_MAX, tokens_after=1))


def test_roots_are_16_bytes_and_a_count() -> None:
    assert wire.root_of(b"", 0) == Root(EMPTY_DIGEST, 0)
    assert wire.root_of(b"x" * 16, 3) == Root(b"x" * 16, 3)
    for digest, count in [(b"x" * 16, 0), (b"", 3), (b"x" * 15, 3)]:
        with pytest.raises(PeerMessageError, match="root digest"):
            wire.root_of(digest, count)


@given(st.lists(U64, min_size=256, max_size=256), U64, U64)
def test_floors_of_the_buckets_of_a_range_come_back(floors: list[int], one: int, other: int) -> None:
    token_range = TokenRange(min(one, other), max(one, other))
    decoded = wire.decode_floors(wire.encode_floors(np.array(floors, np.uint64), token_range), token_range)
    first, last = token_range.first >> 56, token_range.last >> 56
    assert decoded[first : last + 1].tolist() == floors[first : last + 1]
    assert not decoded[:first].any()
    assert not decoded[last + 1 :].any()


def test_uniform_floors_take_a_few_bytes_and_none_take_none() -> None:
    assert wire.encode_floors(wire.NO_FLOORS, FULL) == b""
    uniform = np.full(256, 1_750_000_000_000 << 16, np.uint64)
    assert len(wire.encode_floors(uniform, FULL)) <= 7
    assert wire.decode_floors(wire.encode_floors(uniform, FULL), FULL).tolist() == uniform.tolist()
    with pytest.raises(PeerMessageError, match="follow the floors"):
        wire.decode_floors(b"\x10\x05extra", FULL)
    with pytest.raises(PeerMessageError, match="version"):
        wire.decode_floors(b"\xff" + bytes(9), FULL)


@given(U64)
def test_versions_come_back(version: int) -> None:
    assert wire.decode_version(wire.encode_version(version)) == version


def test_a_version_of_a_whole_second_is_short_and_has_one_form() -> None:
    assert len(wire.encode_version(1_750_000_000_000 << 16)) <= 6
    assert wire.encode_version(0) == b""
    for data in (b"\x01\0", bytes(9), b"\x01" * 9):
        with pytest.raises(PeerMessageError):
            wire.decode_version(data)


@given(st.integers(0, 2**20), st.integers(1, 15))
def test_hash_version_and_epoch_come_back(epoch: int, hash_version: int) -> None:
    assert wire.decode_hashes(wire.encode_hashes(hash_version, epoch)) == (hash_version, epoch)


@pytest.mark.parametrize("keyspace", ["", "k" * 256, "ü" * 128])
def test_absurd_keyspaces_are_refused(keyspace: str) -> None:
    with pytest.raises(PeerMessageError, match="keyspace"):
        wire.check_keyspace(keyspace)


@pytest.mark.parametrize("endpoint", ["", "h" * 261])
def test_absurd_endpoints_are_refused(endpoint: str) -> None:
    with pytest.raises(PeerMessageError, match="endpoint"):
        wire.check_endpoint(endpoint)


# --- tokens, symbols ---


def test_tokens_come_back() -> None:
    tokens = np.array([1, 5, TOKEN_MAX], np.uint64)
    assert wire.decode_tokens(wire.encode_tokens(tokens), FULL).tolist() == tokens.tolist()


@pytest.mark.parametrize(
    ("tokens", "match"),
    [
        ([], "allowed"),
        (list(range(TOKENS_PER_REQUEST_MAX + 1)), "allowed"),
        ([5, 4], "ascending"),
        ([5, 5], "ascending"),
        ([1, 200], "outside"),
        ([0, 5], "outside"),
    ],
)
def test_bad_tokens_are_refused(tokens: list[int], match: str) -> None:
    with pytest.raises(PeerMessageError, match=match):
        wire.decode_tokens(np.array(tokens, "<u8").tobytes(), TokenRange(1, 100))


def test_tokens_cut_short_are_refused() -> None:
    with pytest.raises(PeerMessageError, match="bytes of tokens"):
        wire.decode_tokens(bytes(9), FULL)


def test_first_symbols_of_another_number_are_refused() -> None:
    assert wire.decode_glance(b"") is None
    with pytest.raises(PeerMessageError, match="first symbols"):
        wire.decode_glance(bytes(23))


# --- rows ---


@given(ROWS)
def test_rows_come_back(rows: list[Row]) -> None:
    rows = in_order(rows)
    assert wire.decode_rows(message(rows), FULL) == rows


def test_one_row_travels_with_few_bytes_of_overhead() -> None:
    row = Row(b"k" * 16, 1_750_000_000_000 << 16 | 3, b"v" * 100)
    assert message([row]).ByteSize() - 116 <= 36


def test_chunks_stay_below_a_mebibyte_and_the_number_of_rows() -> None:
    large = in_order([Row(b"large%d" % number, number, bytes(VALUE_BYTES_MAX)) for number in range(5)])
    small = in_order([Row(b"small%d" % number, number, b"") for number in range(2 * CHUNK_ROWS_MAX + 1)])
    for rows in (large, small):
        chunks = list(wire.encode_rows(iter(rows)))
        assert all(chunk.message.ByteSize() < CHUNK_BYTES_MAX for chunk in chunks)
        assert [row for chunk in chunks for row in wire.decode_rows(chunk.message, FULL)] == rows
    assert len(chunks) == 3


def test_a_change_of_any_byte_of_a_chunk_is_noticed() -> None:
    good = message(in_order([Row(b"one", 1, b"first"), Row(b"two", 2, b""), Row(b"three", 3, b"", True)]))
    for field in ("columns", "content"):
        data = getattr(good, field)
        for at in range(len(data)):
            changed = pb.RowColumns()
            changed.CopyFrom(good)
            setattr(changed, field, data[:at] + bytes([data[at] ^ 0x11]) + data[at + 1 :])
            with pytest.raises(PeerMessageError):
                wire.decode_rows(changed, FULL)
        for cut in (data[:-1], data + b"\0", b""):
            changed = pb.RowColumns()
            changed.CopyFrom(good)
            setattr(changed, field, cut)
            with pytest.raises(PeerMessageError):
                wire.decode_rows(changed, FULL)


def forged(rows: list[Row]) -> pb.RowColumns:
    """A chunk whose digest is right and whose rows are whatever they are."""
    return wire._rows_message(rows).message


def test_rows_out_of_order_twice_or_outside_of_the_range_are_refused() -> None:
    low, high = in_order([Row(b"one", 1, b"first"), Row(b"two", 2, b"second")])
    with pytest.raises(PeerMessageError, match="out of order"):
        wire.decode_rows(forged([high, low]), FULL)
    with pytest.raises(PeerMessageError, match="two rows of one key"):
        wire.decode_rows(forged([low, Row(low.key, 9, b"other")]), FULL)
    with pytest.raises(PeerMessageError, match="outside of the range"):
        wire.decode_rows(forged([low, high]), TokenRange(low.token, low.token))


@pytest.mark.parametrize(
    "row", [Row(b"", 1, b"no key"), Row(b"k" * 504, 1, b""), Row(b"k", 1, b"value of a tombstone", True)]
)
def test_rows_that_no_store_takes_are_refused(row: Row) -> None:
    with pytest.raises(PeerMessageError, match="refused"):
        wire.decode_rows(forged([row]), FULL)


def test_a_value_that_no_store_takes_is_refused() -> None:
    with pytest.raises(PeerMessageError, match="refused"):
        wire.decode_rows(forged([Row(b"k", 1, bytes(VALUE_BYTES_MAX + 1))]), FULL)


def test_absurd_counts_and_lengths_are_refused() -> None:
    digest = bytes(16)
    for columns in (
        b"\xff\xff\x03" + b"\0\0\0" + digest,
        b"\xff\xff\xff\x03" + b"\0\0\0" + digest,
        b"\0" + b"\0\0\0" + digest,
        b"\x07" + b"\0\0\0" + digest,
        b"\x80",
        b"",
        # Two keys of 2**63 bytes each: their sum is 0 in 64 bits.
        b"\x08" + b"\x80" + (2**63).to_bytes(8, "little") + b"\0\0" + digest,
    ):
        with pytest.raises(PeerMessageError):
            wire.decode_rows(pb.RowColumns(columns=columns), FULL)
    with pytest.raises(PeerMessageError, match="at most"):
        wire.decode_rows(pb.RowColumns(columns=b"\x04", content=bytes(CHUNK_BYTES_MAX)), FULL)
