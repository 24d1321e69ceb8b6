"""Digest columns -> protobuf bytes, by hand: the one place where thousands of small sub-messages stand in one message.

Building a protobuf object per digest costs four times as much as the concatenation here. Two parts of every digest
hardly ever change or are shared by many: endpoint with generation, and each number; their bytes are remembered. The
result is exactly what protobuf's deterministic serialisation gives (a test compares them), since fields stand in the
order of their numbers and zeros are left out.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from gossiper import limits
from gossiper.core.messages import DigestColumns

#: Field numbers and wire types of GossipDigest in ``proto/gossiper/v1/gossip.proto``.
_ENDPOINT: Final = b"\x0a"
_GENERATION: Final = b"\x10"
_HEARTBEAT: Final = b"\x18"
_STATES_VERSION: Final = b"\x20"
#: Numbers whose bytes are remembered; those of one cluster lie close together. About 100 bytes each.
_NUMBERS_MAX: Final = 65_536


def varint(number: int) -> bytes:
    """The base-128 form of an unsigned 64-bit number.

    Raises:
        ValueError: it is negative, or has more than 64 bits.
    """
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{number} does not fit 64 bits")
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


@lru_cache(maxsize=limits.ENDPOINTS_MAX)
def _head(endpoint: str, generation: int) -> bytes:
    name = endpoint.encode()
    named = _ENDPOINT + varint(len(name)) + name if name else b""
    return named + _GENERATION + varint(generation) if generation else named


@lru_cache(maxsize=_NUMBERS_MAX)
def _heartbeat(number: int) -> bytes:
    return _HEARTBEAT + varint(number) if number else b""


@lru_cache(maxsize=_NUMBERS_MAX)
def _states_version(number: int) -> bytes:
    return _STATES_VERSION + varint(number) if number else b""


_LENGTHS: Final = [varint(length) for length in range(512)]


def digests_field(field: int, columns: DigestColumns) -> bytes:
    """The repeated field ``field`` (1 to 15) of a message, one GossipDigest per row of ``columns``.

    Raises:
        ValueError: a negative number, or columns of different lengths.
    """
    tag = varint(field << 3 | 2)
    pieces: list[bytes] = []
    add = pieces.append
    for endpoint, generation, heartbeat, states_version in zip(
        columns.endpoints,
        columns.generations.tolist(),
        columns.heartbeats.tolist(),
        columns.states_versions.tolist(),
        strict=True,
    ):
        digest = _head(endpoint, generation) + _heartbeat(heartbeat) + _states_version(states_version)
        length = len(digest)
        add(tag)
        add(_LENGTHS[length] if length < 512 else varint(length))
        add(digest)
    return b"".join(pieces)
