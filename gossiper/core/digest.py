"""Comparing two views: what to request from a peer, what to send to it.

Cassandra's table (``Gossiper.examineGossiper``), with two watermarks instead of one version:

=============================================  =========================================================
what the digest says                           what the receiver does
=============================================  =========================================================
endpoint unknown, or a greater generation      request everything
equal generation, greater states_version       request what is newer than the own states_version
equal generation, smaller states_version       send what is newer than the digest's states_version
smaller generation                             send everything
gone for good up to that generation            nothing: it is neither requested nor applied (quarantine)
equal generation, greater heartbeat            take the heartbeat from the digest itself
equal generation, smaller heartbeat            send the heartbeat
endpoint not in the digests                    send everything (a digest list is never truncated)
=============================================  =========================================================

Everything per endpoint is done on columns; only endpoints with differences are looked at one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gossiper.core.columns import Rows
from gossiper.core.messages import DigestColumns, EndpointState, VersionedValue
from gossiper.core.state import ClusterState
from gossiper.core.versions import Now
from gossiper.limits import GENERATION_AHEAD_SECONDS_MAX, STATES_BYTES_MAX

#: Protobuf framing of a value and of an endpoint state, generously; only the budget is kept with it.
_VALUE_OVERHEAD_BYTES = 24
_STATE_OVERHEAD_BYTES = 64


@dataclass(frozen=True, slots=True)
class Examination:
    """What a digest list means to the receiver, before anything is changed."""

    requests: DigestColumns
    """To ask for: endpoint, generation, own heartbeat and states_version in it (0 when all is wanted)."""
    send_heartbeats: Rows
    send_states: list[tuple[int, int]]
    """(row, from_version) pairs."""
    take_rows: Rows
    take_heartbeats: np.ndarray[tuple[int], np.dtype[np.int64]]
    own_generation_seen: int
    """The generation that the peer holds of the receiver itself; 0 when not listed."""
    own_version_seen: int
    """The states_version that it holds in that generation."""
    refused_generations: int


def examine(state: ClusterState, digests: DigestColumns, now: Now, volunteers: Rows | None = None) -> Examination:
    """Compare a peer's digests with the local state; pure, nothing is applied.

    Of ``volunteers`` (None: of everybody) the peer gets the whole state where its digests do not list them.
    """
    table = state.table
    rows = table.index_of(digests.endpoints)
    known = rows >= 0
    own = rows == state.local_row
    possible = digests.generations <= now.wall + GENERATION_AHEAD_SECONDS_MAX
    at = np.where(known, rows, 0)
    generation = np.where(known, table.generation[at], -1)
    heartbeat = np.where(known, table.heartbeat[at], 0)
    states_version = np.where(known, table.states_version[at], 0)

    # Of itself a node only wants to hear what it cannot have said: a greater generation.
    greater = (digests.generations > generation) & possible
    smaller = known & (digests.generations < generation)
    same = known & (digests.generations == generation)
    want_delta = same & (digests.states_versions > states_version) & ~own
    send_delta = same & (digests.states_versions < states_version)
    take = same & (digests.heartbeats > heartbeat) & ~own
    send_heartbeat = same & (digests.heartbeats < heartbeat) & ~send_delta

    names = digests.endpoints
    wanted = np.flatnonzero(greater | want_delta)
    if len(state.quarantine):
        refuses = state.quarantine.refuses
        kept = [not refuses(names[i], int(digests.generations[i]), now.monotonic) for i in wanted]
        wanted = wanted[np.array(kept, dtype=np.bool_)]
    in_current = want_delta[wanted]
    requests = DigestColumns(
        tuple(names[i] for i in wanted),
        digests.generations[wanted],
        np.where(in_current, heartbeat[wanted], 0),
        np.where(in_current, states_version[wanted], 0),
    )
    if volunteers is None:
        volunteered = table.used & (table.generation > 0)
    else:
        volunteered = np.zeros(table.capacity, dtype=np.bool_)
        volunteered[volunteers] = True
    volunteered[rows[known]] = False
    send_states = [(int(rows[i]), int(digests.states_versions[i])) for i in np.flatnonzero(send_delta)]
    send_states += [(int(rows[i]), 0) for i in np.flatnonzero(smaller)]
    send_states += [(int(row), 0) for row in np.flatnonzero(volunteered)]
    own_seen, own_version = digests.generations[own], digests.states_versions[own]
    return Examination(
        requests=requests,
        send_heartbeats=rows[send_heartbeat],
        send_states=send_states,
        take_rows=rows[take],
        take_heartbeats=digests.heartbeats[take],
        own_generation_seen=int(own_seen[0]) if len(own_seen) else 0,
        own_version_seen=int(own_version[0]) if len(own_seen) else 0,
        refused_generations=int((~possible & ~own).sum()),
    )


def endpoint_state(state: ClusterState, row: int, from_version: int) -> EndpointState:
    """All that is known of a row above ``from_version``, ordered by (version, key).

    When tombstones above from_version are gone at the owner, a delta could not convey what was deleted: then it is
    the whole state, marked ``reset``.
    """
    table = state.table
    reset = from_version < int(table.gc_version[row])
    start = 0 if reset else from_version
    values = [(key, value) for key, value in table.states[row].items() if value.version > start]
    values.sort(key=lambda pair: (pair[1].version, pair[0]))
    return EndpointState(
        endpoint=table.endpoint(row),
        generation=int(table.generation[row]),
        interval_ms=int(table.interval_ms[row]),
        heartbeat=int(table.heartbeat[row]),
        from_version=start,
        states_version=int(table.states_version[row]),
        values=tuple(values),
        gc_version=int(table.gc_version[row]),
        reset=reset,
    )


def endpoint_states(
    state: ClusterState, wanted: list[tuple[int, int]], bytes_max: int = STATES_BYTES_MAX
) -> tuple[tuple[EndpointState, ...], int]:
    """States for (row, from_version) pairs up to a budget of bytes, and how many did not fit.

    What does not fit is not lost: the watermarks still differ, so the next exchange asks again. At least one is
    always returned, so there is always progress.
    """
    built: list[EndpointState] = []
    left_bytes = bytes_max
    for row, from_version in wanted:
        one = endpoint_state(state, row, from_version)
        left_bytes -= _STATE_OVERHEAD_BYTES + len(one.endpoint) + sum(_value_bytes(k, v) for k, v in one.values)
        if left_bytes < 0 and built:
            break
        built.append(one)
    return tuple(built), len(wanted) - len(built)


def requested_states(state: ClusterState, requests: DigestColumns) -> list[tuple[int, int]]:
    """(row, from_version) pairs that answer a peer's requests.

    Checked against the *current* generation: an endpoint that restarted since the SYN is sent whole, not as a delta
    of numbers that belong to another incarnation; one whose requested generation is newer than ours is left out.
    """
    table = state.table
    rows = table.index_of(requests.endpoints)
    wanted: list[tuple[int, int]] = []
    for i in np.flatnonzero(rows >= 0):
        row, current = int(rows[i]), int(table.generation[rows[i]])
        asked = int(requests.generations[i])
        if asked == current:
            wanted.append((row, int(requests.states_versions[i])))
        elif asked < current:
            wanted.append((row, 0))
    return wanted


def heartbeat_digests(state: ClusterState, rows: Rows) -> DigestColumns:
    """Digests of some rows."""
    table = state.table
    return DigestColumns(
        tuple(table.endpoint(int(row)) for row in rows),
        table.generation[rows],
        table.heartbeat[rows],
        table.states_version[rows],
    )


def _value_bytes(key: str, value: VersionedValue) -> int:
    return _VALUE_OVERHEAD_BYTES + len(key.encode()) + len(value.value.encode())
