"""The columns of a compact exchange: what a SYN says of a roster, and what the receiver makes of it.

Both sides expect the same heartbeat of every entry from the clock reading that the SYN names, so only small differences
travel; and both know nearly all application states, so one hash names those that are not recent. A wrong expectation, a
wrong clock or a missed version costs bytes or one more round trip, never truth: whatever was not understood alike is
said plainly.

Everything is done on columns in roster order; no loop runs over endpoints here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from gossiper.core.messages import CompactAnswer, CompactDigests, Int64Column, Symbols
from gossiper.core.roster import Exchange, Roster, bucket_count, hashes_between, roster_at, superseded
from gossiper.core.state import ClusterState
from gossiper.core.table import EndpointTable, LivenessCode, Rows
from gossiper.core.versions import COUNTER_BITS
from gossiper.errors import PeerProtocolError
from gossiper.limits import INTEGER_MAX

#: Symbols of the heartbeat column with a meaning of their own; see the proto file.
ESCAPE: Final = 0
BEHIND: Final = 1
SUPERSEDED: Final = 2
#: The symbol of a heartbeat that is as late as the sender's own: the rest of a byte is for later ones, three bits for
#: earlier ones (clocks that ran ahead when a generation began).
LEVEL: Final = 19
#: Whoever is so many ticks behind leaves the column: as one of the dead, whose last heartbeats are known to all after a
#: while, or with a number of its own, because its clock was wrong when its generation began.
BEHIND_TICKS: Final = 120
#: Application states of so many ticks are listed one by one; what is older is known to nearly all, and hashed. With
#: 10 % of messages lost and no push, news needs up to 12 intervals to reach the last of 1,000 nodes.
RECENT_TICKS: Final = 12
#: Versions are heartbeats times 16 and stay below ``INTEGER_MAX``.
_HEARTBEAT_MAX: Final = INTEGER_MAX >> COUNTER_BITS
#: The symbol of "not newer" in an answer.
_EQUAL: Final = 1

_NOTHING: Final = np.zeros(0, dtype=np.int64)
_NO_SYMBOLS: Final = np.zeros(0, dtype=np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class CompactExamination:
    """What a compact SYN means to the receiver, before anything is changed."""

    answer: CompactAnswer
    outside_of: Roster | None
    """The roster that both sides have; None when they differ, and nothing was compared."""
    send_states: list[tuple[int, int]]
    """(row, from_version) pairs."""
    take_rows: Rows
    take_heartbeats: Int64Column
    own_version_seen: int
    """The states_version that the peer holds of the receiver's present generation; 0: not said."""


@dataclass(frozen=True, slots=True, eq=False)
class Conclusion:
    """What a compact ACK means to the sender of the SYN."""

    take_rows: Rows
    take_heartbeats: Int64Column
    send_states: list[tuple[int, int]]


def describe(state: ClusterState, roster: Roster, as_of_ms: int, attempt: int = 1) -> tuple[CompactDigests, Exchange]:
    """All columns of a SYN over a roster with at least one entry."""
    table = state.table
    rows = roster.rows
    gone = superseded(table, roster)
    heartbeats = table.heartbeat[rows]
    expected = roster.expected(as_of_ms)
    late = expected - heartbeats
    own = roster.index_of(state.local_row)
    base = int(late[own]) if own >= 0 and not gone[own] else int(late[0])
    late -= base - LEVEL
    symbols = late.astype(np.uint8)
    wild = (late < SUPERSEDED + 1) | (late >= LEVEL + BEHIND_TICKS)
    escapes, behind_hash = _NOTHING, 0
    if gone.any():
        symbols[gone] = SUPERSEDED
        wild &= ~gone
    if wild.any():
        symbols[wild] = ESCAPE
        symbols[wild & (table.liveness[rows] == LivenessCode.DOWN)] = BEHIND
        escapes = heartbeats[symbols == ESCAPE]
        behind_hash = _hash(heartbeats[symbols == BEHIND], as_of_ms)
    versions, floors = _versions(table, roster, gone), _floors(symbols, heartbeats, RECENT_TICKS)
    recent = np.flatnonzero(versions >= floors)
    offsets = versions[recent] - floors[recent]
    versions[recent] = 0
    compact = CompactDigests(
        cut_ms=roster.cut_ms,
        count=len(roster),
        roster_hash=roster.digest,
        base=base,
        symbols=symbols,
        escapes=escapes,
        behind_hash=behind_hash,
        recent_ticks=RECENT_TICKS,
        recent_index=recent,
        recent_offsets=offsets,
        states_hash=_hash(versions, as_of_ms),
    )
    own_version = int(table.states_version[state.local_row])
    return compact, Exchange(roster, table.incarnations, heartbeats, symbols, own_version, attempt)


def describe_states(
    state: ClusterState, roster: Roster, buckets: int, wanted: int, attempt: int
) -> tuple[CompactDigests, Exchange]:
    """Only the states_versions of the buckets in ``wanted``, all of them."""
    table = state.table
    index = np.flatnonzero(roster.mask(buckets, wanted))
    versions = _versions(table, roster, superseded(table, roster))[index]
    compact = CompactDigests(
        cut_ms=roster.cut_ms,
        count=len(roster),
        roster_hash=roster.digest,
        base=0,
        symbols=_NO_SYMBOLS,
        escapes=_NOTHING,
        behind_hash=0,
        recent_ticks=0,
        recent_index=index,
        recent_offsets=versions,
        states_hash=0,
        buckets=buckets,
        states_buckets=wanted,
    )
    own_version = int(table.states_version[state.local_row])
    return compact, Exchange(roster, table.incarnations, _NOTHING, _NO_SYMBOLS, own_version, attempt)


def examine_compact(state: ClusterState, compact: CompactDigests, as_of_ms: int) -> CompactExamination:
    """Compare a peer's columns with the local state; pure, nothing is applied.

    Raises:
        PeerProtocolError: a heartbeat or a version that is no number an honest peer could hold.
    """
    table = state.table
    roster = roster_at(table, compact.cut_ms)
    if compact.plain_buckets:
        roster = roster.without(roster.mask(compact.buckets, compact.plain_buckets))
    if len(roster) != compact.count or roster.digest != compact.roster_hash:
        whole = roster_at(table, compact.cut_ms)
        differs = replace(_EMPTY_ANSWER, roster_buckets=whole.bucket_digests(bucket_count(len(whole))))
        return CompactExamination(differs, None, [], _NO_ROWS, _NOTHING, 0)
    gone = superseded(table, roster)
    expected = roster.expected(as_of_ms)
    mine = table.heartbeat[roster.rows]
    if gone.any():
        mine[gone] = 0
    own = roster.index_of(state.local_row)
    take, newer, escapes, behind = _NO_ROWS, _NO_SYMBOLS, _NOTHING, _NOTHING
    theirs = _NOTHING
    if len(compact.symbols):
        theirs = _heartbeats(compact, expected, mine)
        ticks = mine - theirs
        ticks[gone] = 0
        take = np.flatnonzero(ticks < 0)
        take = take[take != own]
        newer, escapes = _ticks_out(ticks)
        silent = mine[compact.symbols == BEHIND]
        if compact.behind_hash and _hash(silent, as_of_ms) != compact.behind_hash:
            behind = silent
    states = _compare_states(table, compact, _Here(roster, gone, theirs, own, as_of_ms))
    answer = CompactAnswer(
        newer, escapes, states.request_index, states.request_versions, behind, (), states.unequal_buckets
    )
    return CompactExamination(
        answer, roster, states.send, roster.rows[take], theirs[take] if len(take) else _NOTHING, states.own_version_seen
    )


def conclude(state: ClusterState, exchange: Exchange, answer: CompactAnswer) -> Conclusion:
    """What the answer to a SYN of this node says: heartbeats to take, application states to send."""
    table, roster = state.table, exchange.roster
    same_name = np.ones(len(roster), dtype=np.bool_)
    if table.incarnations != exchange.incarnations:
        same_name = (table.name_high[roster.rows] == roster.names_high) & (
            table.name_low[roster.rows] == roster.names_low
        )
    same = same_name & ~superseded(table, roster)
    take, heartbeats = _NO_ROWS, _NOTHING
    if len(answer.symbols) and len(exchange.symbols):
        ticks = answer.symbols.astype(np.int64) - _EQUAL
        ticks[answer.symbols == ESCAPE] = answer.escapes
        told = (exchange.symbols != BEHIND) & (exchange.symbols != SUPERSEDED)
        index = np.flatnonzero((ticks > 0) & same & told)
        take, heartbeats = roster.rows[index], exchange.heartbeats[index] + ticks[index]
    send: list[tuple[int, int]] = []
    if len(answer.behind_heartbeats):
        index = np.flatnonzero(exchange.symbols == BEHIND)
        if len(index) == len(answer.behind_heartbeats):
            theirs, mine, rows = answer.behind_heartbeats, exchange.heartbeats[index], roster.rows[index]
            later = same[index] & (theirs > mine)
            take, heartbeats = np.concatenate((take, rows[later])), np.concatenate((heartbeats, theirs[later]))
            earlier = rows[same[index] & (theirs > 0) & (theirs < mine)]
            # A delta without values: only the heartbeat is news.
            send += zip(earlier.tolist(), table.states_version[earlier].tolist(), strict=True)
    asked = roster.rows[answer.request_index]
    for row, version, is_same, is_known in zip(
        asked.tolist(),
        answer.request_versions.tolist(),
        same[answer.request_index].tolist(),
        same_name[answer.request_index].tolist(),
        strict=True,
    ):
        # An endpoint that restarted since the SYN is sent whole.
        if is_known:
            send.append((row, version if is_same else 0))
    return Conclusion(take, heartbeats, send)


@dataclass(frozen=True, slots=True, eq=False)
class _Here:
    """The receiver's side of a comparison."""

    roster: Roster
    gone: NDArray[np.bool_]
    heartbeats: Int64Column
    """What the sender knows; without meaning where its symbol says that it does not tell."""
    own: int
    as_of_ms: int


@dataclass(frozen=True, slots=True, eq=False)
class _States:
    request_index: Int64Column
    request_versions: Int64Column
    send: list[tuple[int, int]]
    unequal_buckets: tuple[int, ...]
    own_version_seen: int


def _compare_states(table: EndpointTable, compact: CompactDigests, here: _Here) -> _States:
    roster, gone, own = here.roster, here.gone, here.own
    mine = _versions(table, roster, gone)
    listed = compact.recent_index
    theirs = compact.recent_offsets
    if not compact.states_buckets:
        floors = _floors(compact.symbols, here.heartbeats, compact.recent_ticks)
        theirs = theirs + floors[listed]
    if len(theirs) and int(theirs.max()) >= INTEGER_MAX:
        raise PeerProtocolError("invalid_field", "a states_version beyond 2**62")
    known = mine[listed]
    current = ~gone[listed]
    wanted = (theirs > known) & current & (listed != own)
    older = (theirs < known) & current
    request_index, request_versions = listed[wanted], known[wanted]
    send = list(zip(roster.rows[listed[older]].tolist(), theirs[older].tolist(), strict=True))
    if compact.states_buckets:
        seen = theirs[listed == own]
        return _States(request_index, request_versions, send, (), int(seen[0]) if len(seen) else 0)
    mine[listed] = 0
    recent = np.flatnonzero(mine >= np.maximum(floors, 1))
    if len(recent):
        mine[recent] = _before(table, roster.rows[recent], floors[recent])
    if _hash(mine, here.as_of_ms) != compact.states_hash:
        buckets = hashes_between(mine, roster.bounds(bucket_count(len(roster))), here.as_of_ms)
        return _States(request_index, request_versions, send, buckets, 0)
    recent = recent[~gone[recent]]
    send += zip(roster.rows[recent].tolist(), mine[recent].tolist(), strict=True)
    seen = 0
    if own >= 0 and not gone[own]:
        at = np.flatnonzero(listed == own)
        seen = int(theirs[at[0]]) if len(at) else int(mine[own])
    return _States(request_index, request_versions, send, (), seen)


def states_hashes(
    state: ClusterState, exchange: Exchange, compact: CompactDigests, as_of_ms: int, buckets: int
) -> tuple[int, ...]:
    """What ``CompactAnswer.states_buckets`` would be if it were the sender's own view as it is now."""
    roster = exchange.roster
    versions = _versions(state.table, roster, superseded(state.table, roster))
    floors = _floors(exchange.symbols, exchange.heartbeats, compact.recent_ticks)
    versions[compact.recent_index] = 0
    recent = np.flatnonzero(versions >= np.maximum(floors, 1))
    if len(recent):
        versions[recent] = _before(state.table, roster.rows[recent], floors[recent])
    return hashes_between(versions, roster.bounds(buckets), as_of_ms)


def _versions(table: EndpointTable, roster: Roster, gone: NDArray[np.bool_]) -> Int64Column:
    """The states_version known of each entry's generation, as a copy."""
    versions = table.states_version[roster.rows]
    if gone.any():
        versions[gone] = table.past_version[roster.rows[gone]]
    return versions


def _floors(symbols: Symbols, heartbeats: Int64Column, recent_ticks: int) -> Int64Column:
    """The least version of each entry that counts as recent, by the heartbeats that the SYN tells.

    Of entries without a heartbeat in the SYN nothing is recent.
    """
    floors: Int64Column = np.maximum(heartbeats - recent_ticks, 0) << COUNTER_BITS
    silent = (symbols == BEHIND) | (symbols == SUPERSEDED)
    if silent.any():
        floors[silent] = INTEGER_MAX
    return floors


def _before(table: EndpointTable, rows: Rows, floors: Int64Column) -> Int64Column:
    """The states_version that was known of each row below its floor; 0 when that is not remembered."""
    first, second, third = table.version_1[rows], table.version_2[rows], table.version_3[rows]
    return np.where(first < floors, first, np.where(second < floors, second, np.where(third < floors, third, 0)))


def _heartbeats(compact: CompactDigests, expected: Int64Column, mine: Int64Column) -> Int64Column:
    """What the sender knows of each entry; of those behind or superseded, what is known here."""
    symbols = compact.symbols
    theirs = expected - (compact.base - LEVEL)
    theirs -= symbols
    special = symbols <= SUPERSEDED
    if special.any():
        theirs[special] = mine[special]
        theirs[symbols == ESCAPE] = compact.escapes
    if int(theirs.min()) < 0 or int(theirs.max()) >= _HEARTBEAT_MAX:
        raise PeerProtocolError("invalid_heartbeat", "a heartbeat below 0 or beyond 2**58 in the compact column")
    return theirs


def _ticks_out(ticks: Int64Column) -> tuple[Symbols, Int64Column]:
    """How many ticks are newer here, as symbols and escapes; nothing at all when none is."""
    newer = np.maximum(ticks, 0)
    most = int(newer.max())
    if not most:
        return _NO_SYMBOLS, _NOTHING
    newer += _EQUAL
    if most + _EQUAL < 256:
        return newer.astype(np.uint8), _NOTHING
    far = newer >= 256
    escapes = newer[far] - _EQUAL
    newer[far] = ESCAPE
    return newer.astype(np.uint8), escapes


def _hash(column: Int64Column, seed: int) -> int:
    """xxh3_64 over a column; 0 is kept for an empty one."""
    return xxh3_64_intdigest(column.tobytes(), seed) or 1 if len(column) else 0


_NO_ROWS: Final = np.zeros(0, dtype=np.intp)
_EMPTY_ANSWER: Final = CompactAnswer(_NO_SYMBOLS, _NOTHING, _NOTHING, _NOTHING, _NOTHING)
