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
from xxhash import xxh3_64_intdigest

from gossiper.core.columns import Int64Column, Mask, Rows, Symbols
from gossiper.core.messages import CompactAnswer, CompactDigests
from gossiper.core.roster import Exchange, Roster, Standing, bucket_count, hashes_between
from gossiper.core.roster_lookup import roster_at, standing
from gossiper.core.state import ClusterState
from gossiper.core.table import EndpointTable, LivenessCode
from gossiper.core.versions import COUNTER_BITS
from gossiper.errors import PeerProtocolError
from gossiper.limits import INTEGER_MAX

#: Symbols of the heartbeat column with a meaning of their own; see the proto file.
ESCAPE: Final = 0
BEHIND: Final = 1
SUPERSEDED: Final = 2
#: The symbol of a heartbeat that is as late as the sender's own; greater ones are later, and there is room for sixteen
#: ticks earlier (clocks that ran ahead when a generation began).
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
_SYMBOLS: Final = 256

_NOTHING: Final = np.zeros(0, dtype=np.int64)
_NO_SYMBOLS: Final = np.zeros(0, dtype=np.uint8)


@dataclass(slots=True, eq=False)
class CompactExamination:
    """What a compact SYN means to the receiver, before anything is changed."""

    answer: CompactAnswer
    roster: Roster | None
    """What both sides have; None when rosters differ, and nothing was compared."""
    outside: Rows
    """Rows that are not in it: those that the SYN does not list either are unknown to the peer."""
    send_states: list[tuple[int, int]]
    """(row, from_version) pairs."""
    take_rows: Rows
    take_heartbeats: Int64Column
    own_version_seen: int
    """The states_version that the peer holds of the receiver's present generation; 0: not said."""


@dataclass(slots=True, eq=False)
class Conclusion:
    """What a compact ACK means to the sender of the SYN."""

    take_rows: Rows
    take_heartbeats: Int64Column
    send_states: list[tuple[int, int]]


def describe(state: ClusterState, roster: Roster, as_of_ms: int, attempt: int = 1) -> tuple[CompactDigests, Exchange]:
    """All columns of a SYN over a roster with at least one entry."""
    table = state.table
    known = standing(table, roster, state.local_row)
    heartbeats = table.heartbeat[roster.rows]
    late = roster.expected(as_of_ms)
    late -= heartbeats
    base = int(late[max(known.own, 0)])
    late -= base - LEVEL
    symbols = late.astype(np.uint8)
    escapes, behind_hash = _NOTHING, 0
    if known.gone is not None or int(late.min()) <= SUPERSEDED or int(late.max()) >= LEVEL + BEHIND_TICKS:
        down = table.liveness[roster.rows] == LivenessCode.DOWN
        _mark(symbols, late, down, known.gone)
        escapes = heartbeats[symbols == ESCAPE]
        behind_hash = _hash(heartbeats[symbols == BEHIND], as_of_ms)
    versions = table.states_version[roster.rows]
    if known.gone is not None:
        versions[known.gone] = 0
    floors = _floors(symbols, heartbeats, RECENT_TICKS)
    recent, offsets = (versions >= floors).nonzero()[0], _NOTHING
    if len(recent):
        offsets = versions[recent] - floors[recent]
        versions[recent] = 0
    compact = CompactDigests(
        cut_ms=roster.cut_ms,
        count=len(symbols),
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


def _mark(symbols: Symbols, late: Int64Column, down: Mask, gone: Mask | None) -> None:
    """Put the symbols of entries whose heartbeats the column cannot hold."""
    wild = (late <= SUPERSEDED) | (late >= LEVEL + BEHIND_TICKS)
    symbols[wild] = ESCAPE
    symbols[wild & down] = BEHIND
    if gone is not None:
        symbols[gone] = SUPERSEDED


def describe_states(
    state: ClusterState, exchange: Exchange, buckets: int, wanted: int
) -> tuple[CompactDigests, Exchange]:
    """Only the states_versions of the buckets in ``wanted``, all of them, as a further SYN of the same exchange."""
    table, roster = state.table, exchange.roster
    index = roster.mask(buckets, wanted).nonzero()[0]
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
        recent_offsets=_versions(table, roster, standing(table, roster, state.local_row))[index],
        states_hash=0,
        buckets=buckets,
        states_buckets=wanted,
    )
    own_version = int(table.states_version[state.local_row])
    again = Exchange(roster, table.incarnations, _NOTHING, _NO_SYMBOLS, own_version, exchange.attempt + 1)
    return compact, again


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
        return CompactExamination(differs, None, _NO_ROWS, [], _NO_ROWS, _NOTHING, 0)
    known = standing(table, roster, state.local_row)
    if compact.states_buckets:
        listed = _compare_listed(table, roster, known, compact, compact.recent_offsets)
        answer = CompactAnswer(_NO_SYMBOLS, _NOTHING, listed.request_index, listed.request_versions, _NOTHING)
        return CompactExamination(answer, roster, _NO_ROWS, listed.send, _NO_ROWS, _NOTHING, listed.own_version)
    mine = table.heartbeat[roster.rows]
    if known.gone is not None:
        mine[known.gone] = 0
    theirs = _heartbeats(compact, roster.expected(as_of_ms), mine)
    ticks = mine - theirs
    if known.gone is not None:
        ticks[known.gone] = 0
    take = (ticks < 0).nonzero()[0]
    if known.own >= 0 and ticks[known.own] < 0:
        take = take[take != known.own]
    newer, escapes = _ticks_out(ticks)
    behind = _NOTHING
    if compact.behind_hash:
        silent = mine[compact.symbols == BEHIND]
        behind = silent if _hash(silent, as_of_ms) != compact.behind_hash else _NOTHING
    found, unequal = _compare_states(table, (roster, known), compact, theirs, as_of_ms)
    answer = CompactAnswer(newer, escapes, found.request_index, found.request_versions, behind, (), unequal)
    return CompactExamination(
        answer, roster, known.outside, found.send, roster.rows[take], theirs[take], found.own_version
    )


@dataclass(slots=True, eq=False)
class _Compared:
    """Application states: what to request, what to send."""

    request_index: Int64Column
    request_versions: Int64Column
    send: list[tuple[int, int]]
    own_version: int
    """The states_version that the peer holds of the local endpoint; 0: not said."""


def _compare_listed(
    table: EndpointTable, roster: Roster, known: Standing, compact: CompactDigests, theirs: Int64Column
) -> _Compared:
    """Compare the states_versions that the SYN lists one by one."""
    listed = compact.recent_index
    if not len(listed):
        return _Compared(_NOTHING, _NOTHING, [], 0)
    if int(theirs.max()) >= INTEGER_MAX:
        raise PeerProtocolError("invalid_field", "a states_version beyond 2**62")
    rows = roster.rows[listed]
    mine = table.states_version[rows]
    wanted, older = theirs > mine, theirs < mine
    if known.gone is not None:
        current = ~known.gone[listed]
        wanted &= current
        older &= current
    own = (listed == known.own).nonzero()[0]
    wanted[own] = False
    send: list[tuple[int, int]] = []
    if older.any():
        send = list(zip(rows[older].tolist(), theirs[older].tolist(), strict=True))
    return _Compared(listed[wanted], mine[wanted], send, int(theirs[own[0]]) if len(own) else 0)


def _compare_states(
    table: EndpointTable, at: tuple[Roster, Standing], compact: CompactDigests, theirs: Int64Column, as_of_ms: int
) -> tuple[_Compared, tuple[int, ...]]:
    """Compare what is listed and, by one hash, the rest; hashes of buckets when that differs."""
    roster, known = at
    floors = _floors(compact.symbols, theirs, compact.recent_ticks)
    listed = compact.recent_index
    found = _compare_listed(table, roster, known, compact, compact.recent_offsets + floors[listed])
    mine, recent = _before_floors(table, roster, known, compact, floors)
    if len(recent):
        # What is recent here and not listed: the sender knows what was known here before. Where it does not, the hash
        # shows that, and the gap is filled by what follows.
        if known.gone is not None:
            recent = recent[~known.gone[recent]]
        found.send += zip(roster.rows[recent].tolist(), mine[recent].tolist(), strict=True)
    if _hash(mine, as_of_ms) != compact.states_hash:
        return found, hashes_between(mine, roster.bounds(compact.buckets or bucket_count(len(roster))), as_of_ms)
    if known.own >= 0 and not found.own_version:
        found.own_version = int(mine[known.own])
    return found, ()


def states_hashes(
    state: ClusterState, exchange: Exchange, compact: CompactDigests, as_of_ms: int, buckets: int
) -> tuple[int, ...]:
    """What ``CompactAnswer.states_buckets`` would be if it were the sender's own view as it is now."""
    roster = exchange.roster
    known = standing(state.table, roster, state.local_row)
    floors = _floors(exchange.symbols, exchange.heartbeats, compact.recent_ticks)
    versions, _ = _before_floors(state.table, roster, known, compact, floors)
    return hashes_between(versions, roster.bounds(buckets), as_of_ms)


def conclude(state: ClusterState, exchange: Exchange, answer: CompactAnswer) -> Conclusion:
    """What the answer to a SYN of this node says: heartbeats to take, application states to send."""
    table, roster = state.table, exchange.roster
    same = table.generation[roster.rows] == roster.generations
    if table.incarnations != exchange.incarnations:
        # Rows may belong to others by now.
        same &= (table.name_high[roster.rows] == roster.names_high) & (table.name_low[roster.rows] == roster.names_low)
    take, heartbeats = _NO_ROWS, _NOTHING
    if len(answer.symbols) and len(exchange.symbols):
        index = (answer.symbols != _EQUAL).nonzero()[0]
        index = index[same[index]]
        if _untold(exchange.symbols):
            told = exchange.symbols[index]
            index = index[(told != BEHIND) & (told != SUPERSEDED)]
        ticks = answer.symbols.astype(np.int64)
        ticks -= _EQUAL
        if len(answer.escapes):
            ticks[answer.symbols == ESCAPE] = answer.escapes
        take, heartbeats = roster.rows[index], exchange.heartbeats[index] + ticks[index]
    send: list[tuple[int, int]] = []
    if len(answer.behind_heartbeats):
        index = (exchange.symbols == BEHIND).nonzero()[0]
        if len(index) == len(answer.behind_heartbeats):
            theirs, mine, rows = answer.behind_heartbeats, exchange.heartbeats[index], roster.rows[index]
            later = same[index] & (theirs > mine)
            take, heartbeats = np.concatenate((take, rows[later])), np.concatenate((heartbeats, theirs[later]))
            earlier = rows[same[index] & (theirs > 0) & (theirs < mine)]
            # A delta without values: only the heartbeat is news.
            send += zip(earlier.tolist(), table.states_version[earlier].tolist(), strict=True)
    send += _requested(table, exchange, answer, same)
    return Conclusion(take, heartbeats, send)


def _requested(table: EndpointTable, exchange: Exchange, answer: CompactAnswer, same: Mask) -> list[tuple[int, int]]:
    """(row, from_version) of what was asked for; an endpoint that restarted since the SYN is sent whole."""
    roster, index = exchange.roster, answer.request_index
    if not len(index):
        return []
    rows = roster.rows[index]
    here = (table.name_high[rows] == roster.names_high[index]) & (table.name_low[rows] == roster.names_low[index])
    versions = np.where(same[index], answer.request_versions, 0)
    return list(zip(rows[here].tolist(), versions[here].tolist(), strict=True))


def _versions(table: EndpointTable, roster: Roster, known: Standing) -> Int64Column:
    """The states_version known of each entry's generation, as a copy."""
    versions = table.states_version[roster.rows]
    if known.gone is not None:
        versions[known.gone] = table.past_version[roster.rows[known.gone]]
    return versions


def _floors(symbols: Symbols, heartbeats: Int64Column, recent_ticks: int) -> Int64Column:
    """The least version of each entry that counts as recent, by the heartbeats that the SYN tells.

    Of entries without a heartbeat in the SYN nothing is recent.
    """
    floors: Int64Column = heartbeats - recent_ticks
    floors <<= COUNTER_BITS
    # Version 0 means that nothing is known: that is not recent.
    np.maximum(floors, 1, out=floors)
    if _untold(symbols):
        floors[(symbols == BEHIND) | (symbols == SUPERSEDED)] = INTEGER_MAX
    return floors


def _before_floors(
    table: EndpointTable, roster: Roster, known: Standing, compact: CompactDigests, floors: Int64Column
) -> tuple[Int64Column, Int64Column]:
    """states_versions known below the floors, and which are known above as well.

    They are 0 where the SYN lists them, where it says that a greater generation stands elsewhere, and where what was
    known then is not remembered.
    """
    versions = _versions(table, roster, known)
    if len(compact.recent_index):
        versions[compact.recent_index] = 0
    if _untold(compact.symbols):
        versions[compact.symbols == SUPERSEDED] = 0
    recent = (versions >= floors).nonzero()[0]
    if len(recent):
        rows, below = roster.rows[recent], floors[recent]
        first, second, third = table.version_1[rows], table.version_2[rows], table.version_3[rows]
        versions[recent] = np.where(
            first < below, first, np.where(second < below, second, np.where(third < below, third, 0))
        )
    return versions, recent


def _heartbeats(compact: CompactDigests, expected: Int64Column, mine: Int64Column) -> Int64Column:
    """What the sender knows of each entry; of those behind or superseded, what is known here."""
    symbols = compact.symbols
    theirs = expected
    theirs -= compact.base - LEVEL
    theirs -= symbols
    if len(compact.escapes) or _untold(symbols):
        special = symbols <= SUPERSEDED
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
    if most + _EQUAL < _SYMBOLS:
        return newer.astype(np.uint8), _NOTHING
    far = newer >= _SYMBOLS
    escapes = newer[far] - _EQUAL
    newer[far] = ESCAPE
    return newer.astype(np.uint8), escapes


def _untold(symbols: Symbols) -> bool:
    """Whether of some entries no heartbeat is told."""
    told = symbols.tobytes()  # searching bytes is several times as fast as comparing a column
    return BEHIND in told or SUPERSEDED in told


def _hash(column: Int64Column, seed: int) -> int:
    """xxh3_64 over a column; 0 is kept for an empty one."""
    return xxh3_64_intdigest(column.tobytes(), seed) or 1 if len(column) else 0


_NO_ROWS: Final = np.zeros(0, dtype=np.intp)
_EMPTY_ANSWER: Final = CompactAnswer(_NO_SYMBOLS, _NOTHING, _NOTHING, _NOTHING, _NOTHING)
