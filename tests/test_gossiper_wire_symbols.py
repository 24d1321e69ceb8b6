"""Columns of symbols: what is packed is unpacked, and bytes that no column has are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gossiper.wire.symbols import RICE_MAX, pack, unpack

#: Columns of all kinds: any bytes, few symbols, one that stands nearly everywhere, frequencies that fall by half.
COLUMNS = st.one_of(
    st.binary(min_size=1, max_size=300),
    st.lists(st.sampled_from([0, 1, 2, 19]), min_size=1, max_size=400).map(bytes),
    st.lists(st.integers(0, 255), min_size=1, max_size=6).flatmap(
        lambda rare: st.integers(1, 500).map(lambda often: bytes([*rare, *[19] * often]))
    ),
    st.lists(st.integers(0, 30).map(lambda n: n & -n if n else 31), min_size=1, max_size=400).map(bytes),
).map(lambda data: np.frombuffer(data, dtype=np.uint8))


@settings(max_examples=300, deadline=None)
@given(COLUMNS)
def test_what_is_packed_is_unpacked(column: NDArray[np.uint8]) -> None:
    alphabet, rice, bits = pack(column)
    unpacked = unpack(alphabet, rice, bits, len(column))
    assert unpacked.dtype == np.uint8
    assert np.array_equal(unpacked, column)
    assert len(alphabet) + len(bits) <= len(column)
    assert pack(unpacked) == (alphabet, rice, bits)


@settings(max_examples=200, deadline=None)
@given(COLUMNS, COLUMNS)
def test_two_columns_never_have_the_same_bytes(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> None:
    if len(one) == len(other) and not np.array_equal(one, other):
        assert pack(one) != pack(other)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=20), st.integers(0, 2**32 - 1) | st.integers(0, 5), st.binary(max_size=60), st.integers(1, 99)
)
def test_any_bytes_are_a_column_of_that_length_or_refused(alphabet: bytes, rice: int, bits: bytes, count: int) -> None:
    try:
        column = unpack(alphabet, rice, bits, count)
    except ValueError:
        return
    assert len(column) == count
    assert set(column.tolist()) <= set(alphabet or bits)


def test_a_column_of_one_symbol_has_no_bits() -> None:
    assert pack(np.full(100_000, 19, dtype=np.uint8)) == (b"\x13", 0, b"")


def test_a_column_without_order_is_left_as_it_is() -> None:
    column = np.arange(256, dtype=np.uint8)
    assert pack(column) == (b"", 0, column.tobytes())


def test_low_bits_are_planes_of_their_own() -> None:
    """Eight symbols, equally frequent: all in unary would be 4.5 bits each."""
    column = np.tile(np.arange(8, dtype=np.uint8), 100)
    alphabet, rice, bits = pack(column)
    assert rice in {1, 2}
    assert len(bits) == 350
    assert len(alphabet) == 8
    stream = np.unpackbits(np.frombuffer(bits, dtype=np.uint8))
    ranks = np.array([alphabet.index(symbol) for symbol in column.tolist()])
    for plane in range(rice):
        assert np.array_equal(stream[plane * 800 : (plane + 1) * 800], ranks >> plane & 1)
    assert np.array_equal(unpack(alphabet, rice, bits, 800), column)


#: Five entries with the ranks 0, 1, 0, 2, 0 of three symbols: 1 01 1 001 1, in one byte.
GOOD = (b"\x13\x14\x12", 0, bytes([0b10110011]), 5)


def test_the_worked_example() -> None:
    assert unpack(*GOOD).tolist() == [0x13, 0x14, 0x13, 0x12, 0x13]


@pytest.mark.parametrize(
    ("alphabet", "rice", "bits", "count", "what"),
    [
        (b"\x13\x13\x12", 0, bytes([0b10110011]), 5, "twice in the alphabet"),
        (bytes(range(256)) + b"\x00", 0, b"", 5, "twice in the alphabet"),
        (b"\x13\x14", 0, bytes([0b10110011]), 5, "rank 2 in an alphabet of 2"),
        (b"\x13\x14\x12", 1, bytes([0b11111011, 0b11100000]), 5, "rank 3 in an alphabet of 3"),
        (b"\x13\x14\x12", 0, bytes([0b10110011]), 4, "do not end where they should"),
        (b"\x13\x14\x12", 0, bytes([0b10110011]), 6, "do not end where they should"),
        (b"\x13\x14\x12", 0, b"", 5, "do not end where they should"),
        (b"\x13\x14\x12", 4, bytes([0b10110011]), 5, "do not end where they should"),
        (b"\x13\x14\x12", 0, bytes([0b10110011, 0]), 5, "do not end where they should"),
        (b"\x13\x14\x12", 0, bytes([0b10110011, 0b10000000]), 5, "do not end where they should"),
        (b"\x13\x14\x12", 0, bytes([0b11111001]), 5, "do not end where they should"),
        (b"\x13\x14\x12", RICE_MAX + 1, bytes(5), 5, "with 5 low bits"),
        (b"\x13\x14\x12", 2**32 - 1, bytes(5), 5, "low bits"),
        (b"\x13\x14\x12", 0, bytes(6), 5, "6 bytes with 0 low bits for 5 symbols"),
        (b"\x13", 0, b"\x00", 5, "one symbol"),
        (b"\x13", 1, b"", 5, "one symbol"),
        (b"", 0, bytes(4), 5, "4 bytes for 5 symbols"),
        (b"", 0, bytes(6), 5, "6 bytes for 5 symbols"),
        (b"", 1, bytes(5), 5, "5 bytes for 5 symbols"),
    ],
)
def test_bytes_that_are_no_column(alphabet: bytes, rice: int, bits: bytes, count: int, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        unpack(alphabet, rice, bits, count)
