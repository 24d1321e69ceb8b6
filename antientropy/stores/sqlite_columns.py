"""Columns of an SQLite row as the bytes of keys and values: canonical, so that equal rows are equal bytes everywhere.

Each column is one byte for its storage class and its content: ``n`` NULL; ``i`` an integer, 8 bytes, big-endian, with
its sign bit flipped; ``f`` a float, 8 bytes; ``t`` text in UTF-8 and ``b`` a blob, each after its length in 4 bytes. A
single column that is declared ``BLOB NOT NULL`` is its own bytes, without any of that.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, TypeAlias

Column: TypeAlias = int | float | str | bytes | None

_INTEGER: Final = struct.Struct(">cQ")
_FLOAT: Final = struct.Struct(">cd")
_LENGTH: Final = struct.Struct(">cI")
_SIGN: Final = 1 << 63


def encode_columns(columns: Sequence[Column]) -> bytes:
    """The bytes of some columns, in their order."""
    return b"".join([_encode(column) for column in columns])


def _encode(column: Column) -> bytes:
    if column is None:
        return b"n"
    if isinstance(column, int):
        return _INTEGER.pack(b"i", column + _SIGN)
    if isinstance(column, float):
        return _FLOAT.pack(b"f", column)
    if isinstance(column, str):
        text = column.encode()
        return _LENGTH.pack(b"t", len(text)) + text
    return _LENGTH.pack(b"b", len(column)) + column


def decode_columns(encoded: bytes, count: int) -> list[Column]:
    """The inverse of :func:`encode_columns` for ``count`` columns.

    Raises:
        ValueError: it is no such encoding.
    """
    columns: list[Column] = []
    at = 0
    try:
        for _ in range(count):
            column, at = _decode(encoded, at)
            columns.append(column)
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise ValueError(f"not {count} columns: {error}") from error
    if at != len(encoded):
        raise ValueError(f"not {count} columns: {len(encoded) - at} bytes follow")
    if encode_columns(columns) != encoded:
        raise ValueError(f"not {count} columns: another form than the canonical one")
    return columns


def _decode(encoded: bytes, at: int) -> tuple[Column, int]:
    kind = encoded[at : at + 1]
    if kind == b"n":
        return None, at + 1
    if kind == b"i":
        return _INTEGER.unpack_from(encoded, at)[1] - _SIGN, at + _INTEGER.size
    if kind == b"f":
        return _FLOAT.unpack_from(encoded, at)[1], at + _FLOAT.size
    if kind not in (b"t", b"b"):
        raise ValueError(f"not a column: {kind!r}")
    start = at + _LENGTH.size
    end = start + _LENGTH.unpack_from(encoded, at)[1]
    if end > len(encoded):
        raise ValueError("a column is cut off")
    content = encoded[start:end]
    return content.decode() if kind == b"t" else content, end
