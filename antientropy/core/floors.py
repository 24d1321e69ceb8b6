"""Purge floors: for each bucket the version below which its tombstones count as expired, and may have been purged.

A row below the floor of its bucket that nobody knows any more may be a value whose tombstone has been purged; and two
replicas that purge at different moments would differ in tombstones that no longer matter. So floors are kept with the
rows, and expired tombstones are left out of what replicas compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from antientropy.core.rows import Row, RowDigests
from antientropy.core.tokens import BUCKETS, bucket_of

#: The mark under which a store keeps its floors.
FLOORS_MARK: Final = "floors"
_BUCKET_SHIFT: Final = 56


def no_floors() -> NDArray[np.uint64]:
    """Nothing has expired."""
    return np.zeros(BUCKETS, np.uint64)


def encode_floors(floors: NDArray[np.uint64]) -> bytes:
    """256 big-endian versions: the value of the mark."""
    return check_floors(floors).astype(">u8").tobytes()


def decode_floors(mark: bytes | None) -> NDArray[np.uint64]:
    """The floors of a mark; none when it was never written.

    Raises:
        ValueError: it is no mark of floors.
    """
    if mark is None:
        return no_floors()
    if len(mark) != BUCKETS * 8:
        raise ValueError(f"a mark of floors has {BUCKETS * 8} bytes, not {len(mark)}")
    return np.frombuffer(mark, ">u8").astype(np.uint64)


def check_floors(floors: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The floors themselves.

    Raises:
        ValueError: not one version for each bucket.
    """
    if floors.shape != (BUCKETS,) or floors.dtype != np.uint64:
        raise ValueError(f"floors are {BUCKETS} unsigned 64-bit versions, not {floors.dtype}{floors.shape}")
    return floors


def is_below(token: int, version: int, floors: Sequence[int]) -> bool:
    """Whether a version lies below the floor of the token's bucket."""
    return version < floors[token >> _BUCKET_SHIFT]


def expired(rows: RowDigests, floors: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which rows are tombstones below the floor of their bucket."""
    below: NDArray[np.bool_] = rows.versions < floors[bucket_of(rows.tokens)]
    return below & rows.tombstones


def row_expired(row: Row, floors: Sequence[int]) -> bool:
    """The same for a row with its key."""
    return row.deleted and is_below(row.token, row.version, floors)
