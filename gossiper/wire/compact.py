"""Compact digests and answers <-> protobuf, and every check of them that needs no local state.

What the decoders return keeps the promises of ``CompactDigests`` and ``CompactAnswer`` in ``gossiper.core.messages``:
columns have the lengths they should, indices ascend and lie in the roster, numbers are in [0, ``limits.INTEGER_MAX``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NoReturn

import numpy as np

from gossiper import limits
from gossiper.core.columns import Int64Column, Symbols
from gossiper.core.messages import CompactAnswer, CompactDigests
from gossiper.core.roster import BUCKETS_MAX, BUCKETS_MIN
from gossiper.errors import PeerProtocolError
from gossiper.v1 import gossip_pb2
from gossiper.wire.symbols import pack, unpack

_HASH_BYTES: Final = 16
_NO_SYMBOLS: Final = np.zeros(0, dtype=np.uint8)
_NOTHING: Final = np.zeros(0, dtype=np.int64)
#: Differences are taken of numbers below 2**62: their sum must stay in an int64.
_BASE_MAX: Final = 1 << 61


def digests_out(compact: CompactDigests, as_of_ms: int) -> gossip_pb2.CompactDigests:
    """The protobuf form of the columns of a SYN."""
    wire = gossip_pb2.CompactDigests(
        cut_before_ms=as_of_ms - compact.cut_ms,
        count=compact.count,
        roster_hash=compact.roster_hash,
        base=compact.base,
        behind_hash=compact.behind_hash,
        recent_ticks=compact.recent_ticks,
        states_hash=compact.states_hash,
    )
    if len(compact.symbols):
        wire.alphabet, wire.rice, wire.bits = pack(compact.symbols)
    if len(compact.escapes):
        wire.escapes.extend(compact.escapes.tolist())
    if len(compact.recent_index):
        wire.recent_gaps.extend(_gaps(compact.recent_index))
        wire.recent_offsets.extend(compact.recent_offsets.tolist())
    if compact.plain_buckets:
        wire.plain_buckets = compact.plain_buckets.to_bytes(compact.buckets // 8, "little")
    if compact.states_buckets:
        wire.states_buckets = compact.states_buckets.to_bytes(compact.buckets // 8, "little")
    return wire


def answer_out(compact: CompactAnswer) -> gossip_pb2.CompactAnswer:
    """The protobuf form of the columns of an ACK."""
    wire = gossip_pb2.CompactAnswer()
    if len(compact.symbols):
        wire.alphabet, wire.rice, wire.bits = pack(compact.symbols)
        if len(compact.escapes):
            wire.escapes.extend(compact.escapes.tolist())
    if len(compact.request_index):
        wire.request_gaps.extend(_gaps(compact.request_index))
        wire.request_versions.extend(compact.request_versions.tolist())
    if len(compact.behind_heartbeats):
        wire.behind_heartbeats.extend(compact.behind_heartbeats.tolist())
    wire.roster_buckets.extend(compact.roster_buckets)
    wire.states_buckets.extend(compact.states_buckets)
    return wire


def digests_in(wire: gossip_pb2.CompactDigests, as_of_ms: int) -> CompactDigests:
    """The columns of a SYN.

    Raises:
        PeerProtocolError: they are not what ``CompactDigests`` promises.
    """
    count = wire.count
    if not 1 <= count <= limits.ENDPOINTS_MAX:
        _refuse(f"a roster of {count} entries")
    if len(wire.roster_hash) != _HASH_BYTES:
        _refuse(f"a roster hash of {len(wire.roster_hash)} bytes")
    if not -_BASE_MAX < wire.base < _BASE_MAX:
        _refuse("base is beyond 2**61")
    if wire.cut_before_ms > as_of_ms:
        _refuse("the cut lies before the epoch")
    symbols = _NO_SYMBOLS
    if wire.alphabet or wire.bits:
        symbols = _symbols(wire.alphabet, wire.rice, wire.bits, count)
    escapes = _escapes(symbols, wire.escapes)
    index, offsets = _listed(wire.recent_gaps, wire.recent_offsets, count)
    buckets, plain, states = 0, wire.plain_buckets, wire.states_buckets
    if plain or states:
        buckets = 8 * len(plain or states)
        if plain and states and len(plain) != len(states):
            _refuse("two different numbers of buckets")
        _check_buckets(buckets)
        if any(mask and not any(mask) for mask in (plain, states)):
            _refuse("a set of buckets with nothing in it")
    if bool(states) == bool(len(symbols)):
        _refuse("either heartbeats or the states_versions of some buckets")
    return CompactDigests(
        cut_ms=as_of_ms - wire.cut_before_ms,
        count=count,
        roster_hash=wire.roster_hash,
        base=wire.base,
        symbols=symbols,
        escapes=escapes,
        behind_hash=wire.behind_hash,
        recent_ticks=wire.recent_ticks,
        recent_index=index,
        recent_offsets=offsets,
        states_hash=wire.states_hash,
        buckets=buckets,
        plain_buckets=int.from_bytes(plain, "little"),
        states_buckets=int.from_bytes(states, "little"),
    )


def answer_in(wire: gossip_pb2.CompactAnswer, asked: CompactDigests) -> CompactAnswer:
    """The columns of the ACK to a SYN with ``asked``.

    Raises:
        PeerProtocolError: they are not what ``CompactAnswer`` promises.
    """
    for hashes in (wire.roster_buckets, wire.states_buckets):
        if hashes:
            _check_buckets(len(hashes))
    columns = wire.alphabet or wire.bits or wire.behind_heartbeats
    if wire.roster_buckets and (columns or wire.request_gaps or wire.states_buckets):
        _refuse("rosters differ, and yet something was compared")
    if asked.states_buckets and (columns or wire.states_buckets):
        _refuse("an answer about columns that were not sent")
    if asked.buckets and wire.states_buckets and len(wire.states_buckets) != asked.buckets:
        _refuse(f"{len(wire.states_buckets)} buckets, asked in {asked.buckets}")
    symbols = _NO_SYMBOLS
    if wire.alphabet or wire.bits:
        symbols = _symbols(wire.alphabet, wire.rice, wire.bits, asked.count)
    index, versions = _listed(wire.request_gaps, wire.request_versions, asked.count)
    if len(wire.behind_heartbeats) > asked.count:
        _refuse(f"{len(wire.behind_heartbeats)} heartbeats behind in a roster of {asked.count}")
    behind = _numbers("behind_heartbeats", wire.behind_heartbeats)
    return CompactAnswer(
        symbols,
        _escapes(symbols, wire.escapes),
        index,
        versions,
        behind,
        tuple(wire.roster_buckets),
        tuple(wire.states_buckets),
    )


def _gaps(index: Int64Column) -> list[int]:
    gaps = index.copy()
    gaps[1:] -= index[:-1] + 1
    listed: list[int] = gaps.tolist()
    return listed


def _check_buckets(buckets: int) -> None:
    if buckets & buckets - 1 or not BUCKETS_MIN <= buckets <= BUCKETS_MAX:
        _refuse(f"{buckets} buckets")


def _listed(gaps: Sequence[int], versions: Sequence[int], count: int) -> tuple[Int64Column, Int64Column]:
    """Indices and the states_version of each."""
    if len(gaps) != len(versions):
        _refuse(f"{len(gaps)} indices for {len(versions)} states_versions")
    return _index(gaps, count), _numbers("states_versions", versions)


def _index(gaps: Sequence[int], count: int) -> Int64Column:
    if not gaps:
        return _NOTHING
    if len(gaps) > count:
        _refuse(f"{len(gaps)} indices in a roster of {count}")
    # Each gap has 32 bits, and there are at most 100,000: the sum fits.
    index: Int64Column = np.cumsum(np.array(gaps, dtype=np.int64) + 1) - 1
    if int(index[-1]) >= count:
        _refuse(f"index {int(index[-1])} in a roster of {count}")
    return index


def _numbers(what: str, values: Sequence[int]) -> Int64Column:
    if not values:
        return _NOTHING
    column = np.array(values, dtype=np.uint64)
    if int(column.max()) >= limits.INTEGER_MAX:
        _refuse(f"{what} holds {int(column.max())}, must be below 2**62")
    return column.astype(np.int64)


def _symbols(alphabet: bytes, rice: int, bits: bytes, count: int) -> Symbols:
    try:
        return unpack(alphabet, rice, bits, count)
    except ValueError as error:
        raise PeerProtocolError("malformed", f"compact column: {error}") from None


def _escapes(symbols: Symbols, wire: Sequence[int]) -> Int64Column:
    wanted = len(symbols) - int(np.count_nonzero(symbols))
    if len(wire) != wanted:
        _refuse(f"{len(wire)} escapes for {wanted} symbols that need one")
    return _numbers("escapes", wire)


def _refuse(detail: str) -> NoReturn:
    raise PeerProtocolError("malformed", f"compact digests: {detail}")
