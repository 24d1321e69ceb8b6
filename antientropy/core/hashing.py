"""The hashes of repair: the token of a key, the digest of a row, the hash of a tree node.

XOR of digests is only safe with a non-linear hash (CRC32 and XOR let regular changes of several rows cancel out), and
only with lengths in front of variable fields (``x0|y`` must not equal ``x|0y``). Callers use these functions through
the module, so that a test can make tokens collide.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

#: Changes with any change of the functions below or of the meaning of a tree node; replicas that differ in it refuse.
HASH_VERSION: Final = 2
DIGEST_BYTES: Final = 16
EMPTY_DIGEST: Final = bytes(DIGEST_BYTES)

_TAIL: Final = struct.Struct("<QB")
_LENGTH: Final = struct.Struct("<I")
# Odd constants of the splitmix64 and murmur3 finalizers.
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)
_MIX_3: Final = np.uint64(0x9E3779B97F4A7C15)
_EVERY_BIT: Final = (2**64 - 1, 2**64 - 1)
#: Rows whose columns stay in the cache while they are mixed.
_PIECE: Final = 16_384
#: Bits of an epoch digest that are kept, high half and low half; a test cuts them to force collisions.
EPOCH_DIGEST_MASK: tuple[int, int] = (2**64 - 1, 2**64 - 1)
#: An epoch is a small number: it travels with every comparison of roots.
EPOCH_MAX: Final = 2**32 - 1


def token_of(key: bytes) -> int:
    """Where a key lies on the token line: xxh3_64, 0 to 2**64 - 1."""
    return xxhash.xxh3_64_intdigest(key)


def row_digest(key: bytes, version: int, deleted: bool, value: bytes, seed: int = 0) -> bytes:
    """16 bytes over key, version, tombstone flag and value; their first bit is the tombstone flag.

    Of two rows with one key, the greater (version, digest) wins: total, by content, and a deletion wins a tie.
    A tombstone has no value: whatever is given is hashed, so stores refuse a tombstone that carries one. Stored
    digests have seed 0; what is compared is seeded anew from them, see :func:`epoch_digests`.
    """
    head = _LENGTH.pack(len(key)) + key + _TAIL.pack(version, deleted)
    digest = xxhash.xxh3_128_digest(head + xxhash.xxh3_128_digest(value), seed)
    first = (digest[0] & 0x7F) | (0x80 if deleted else 0)
    return first.to_bytes(1, "big") + digest[1:]


def digest_columns(digests: bytes) -> NDArray[np.uint64]:
    """Concatenated digests (16 bytes each, big-endian) as columns of shape (n, 2): high half, low half."""
    columns: NDArray[np.uint64] = np.frombuffer(digests, dtype=">u8").astype(np.uint64).reshape(-1, 2)
    return columns


def digest_bytes(digests: NDArray[np.uint64]) -> bytes:
    """The inverse of :func:`digest_columns`."""
    return digests.astype(">u8").tobytes()


def epoch_digests(digests: NDArray[np.uint64], epoch: int) -> NDArray[np.uint64]:
    """Stored digests, shape (n, 2), under a seed epoch: what the nodes of a tree XOR. The tombstone flag is gone.

    For each epoch a bijection of 128 bits that is not linear (an unbalanced Feistel network of splitmix64's steps), so
    two sets of rows whose XOR is equal by chance under one epoch differ under the next, and rotating the epoch needs no
    values. Replicas compare under one epoch. Works through cache-sized pieces.
    """
    seed_high = _scrambled(2 * epoch + 1)
    seed_low = _scrambled(2 * epoch + 2)
    mixed = np.empty((len(digests), 2), np.uint64)
    for start in range(0, len(digests), _PIECE):
        high = digests[start : start + _PIECE, 0] ^ seed_high
        low = digests[start : start + _PIECE, 1] ^ seed_low
        low += _finalized(high)
        high ^= _finalized(low)
        low += _finalized(high)
        high ^= _finalized(low)
        mixed[start : start + _PIECE, 0] = high
        mixed[start : start + _PIECE, 1] = low
    if EPOCH_DIGEST_MASK != _EVERY_BIT:
        mixed &= np.array(EPOCH_DIGEST_MASK, np.uint64)
    return mixed


def _scrambled(number: int) -> np.uint64:
    """A seed from a small number, by splitmix64."""
    return np.uint64(_finalized(np.array([number * int(_MIX_3) % 2**64], np.uint64))[0])


def _finalized(column: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer, without its last shift."""
    mixed = column >> np.uint64(30)
    mixed ^= column
    mixed *= _MIX_1
    mixed ^= mixed >> np.uint64(27)
    mixed *= _MIX_2
    return mixed


def node_hashes(high: NDArray[np.uint64], low: NDArray[np.uint64], counts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """8 bytes for each tree node, for the wire: digest and count mixed non-linearly (splitmix64's steps).

    The count keeps rows that cancel each other out in the XOR visible.
    """
    mixed: NDArray[np.uint64] = high ^ (counts.astype(np.uint64) * _MIX_3)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
    mixed ^= mixed >> np.uint64(27)
    mixed = (mixed + low) * _MIX_2
    mixed = (mixed ^ (mixed >> np.uint64(31))) * _MIX_1
    mixed ^= mixed >> np.uint64(29)
    return mixed
