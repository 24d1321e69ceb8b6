"""What an operator does to *other* nodes: remove a dead one, assassinate a stuck one.

The only exception from "only the owner makes versions": a new generation of the victim that carries REMOVED_BY and the
host id of the node on which the operator acted. Nothing waits or sleeps here (Cassandra's assassinate held up its
gossip for 34 s), the facts that Cassandra waits for are in the evidence columns already.
"""

from __future__ import annotations

import zlib
from typing import Final

from gossiper.core.application_states import ApplicationState
from gossiper.core.lifecycle import GONE_STATUSES, JOINED_STATUSES, left_value, removed_value
from gossiper.core.messages import EndpointState, VersionedValue
from gossiper.core.state import ClusterState
from gossiper.core.table import LivenessCode
from gossiper.core.versions import COUNTER_BITS, REMOVAL_STEP, Now
from gossiper.errors import LifecycleError
from gossiper.limits import GENERATION_AHEAD_SECONDS_MAX, INTERVAL_MS_MIN

#: A heartbeat that did not move for so many intervals stands still.
STANDSTILL_INTERVALS: Final = 10
#: Heartbeat of every verdict. Two operators who remove one node at once take the same generation; so that all nodes end
#: with the same one of the two, the version of a verdict follows from its content, and there must be room for many
#: versions: a million below this tick.
VERDICT_TICK: Final = 1 << 16
#: The tick above, in intervals this short, is eleven minutes: an age that any generation may have that is at most 23
#: hours ahead of the clock.
VERDICT_INTERVAL_MS: Final = INTERVAL_MS_MIN


def removal(state: ClusterState, host_id: str, removed_by: str, now: Now) -> EndpointState:
    """The generation that says that the node with ``host_id`` was removed.

    Raises:
        LifecycleError: it is unknown, this node itself, alive, or gone already.
    """
    endpoint = state.endpoint_of(host_id)
    row = None if endpoint is None else state.table.row(endpoint)
    if endpoint is None or row is None:
        return _removal_of_saved(state, host_id, removed_by, now)
    if row == state.local_row:
        raise LifecycleError("this is the node itself; let it leave, or remove it from another one once it is down")
    view = state.view(row)
    if view.status in GONE_STATUSES:
        raise LifecycleError(f"{endpoint} is gone already (status {view.status})")
    if state.table.liveness[row] != LivenessCode.DOWN:
        raise LifecycleError(f"{endpoint} is {view.liveness.value}; let it leave, or stop it first")
    return _verdict(state, row, removed_value(host_id, now.wall), host_id, removed_by)


def _removal_of_saved(state: ClusterState, host_id: str, removed_by: str, now: Now) -> EndpointState:
    """Of a node that was dead when the whole cluster restarted, so that only the own file still knows it."""
    peer = state.saved.with_host_id(host_id, now.wall)
    row = None if peer is None else state.table.row(peer.endpoint)
    if peer is None or row is None:
        raise LifecycleError(f"no node has host id {host_id}; see 'nodetool status'")
    _refuse_if_just_remembered(state, row, now)
    return _verdict(state, row, removed_value(host_id, now.wall), host_id, removed_by)


def _refuse_if_just_remembered(state: ClusterState, row: int, now: Now) -> None:
    waited_seconds = now.monotonic - float(state.table.known_since[row])
    wait_seconds = STANDSTILL_INTERVALS * int(state.table.interval_ms[state.local_row]) / 1000
    if waited_seconds < wait_seconds:
        raise LifecycleError(
            f"{state.table.endpoint(row)} is only known from disk, and this node runs for {waited_seconds:.1f} s: "
            f"it may still hear of it; try again in {wait_seconds - waited_seconds:.1f} s"
        )


def assassination(state: ClusterState, endpoint: str, removed_by: str, now: Now, *, force: bool) -> EndpointState:
    """The generation that says that whatever was at ``endpoint`` has left.

    Raises:
        LifecycleError: it is this node itself, gone already, or its heartbeat moves (unless ``force``).
    """
    row = state.table.row(endpoint)
    saved = state.saved.at(endpoint, now.wall)
    if row is not None and not state.table.generation[row] and not force:
        _refuse_if_just_remembered(state, row, now)
    if row is None or (saved is None and not state.table.generation[row]):
        # Nobody knows its generations: one of now is greater than that of any earlier start.
        return _fabricated(
            endpoint,
            int(now.wall),
            status=left_value(now.wall),
            host_id=None,
            removed_by=removed_by,
        )
    if row == state.local_row:
        raise LifecycleError("this is the node itself; let it leave")
    if saved is not None:
        return _verdict(state, row, left_value(now.wall), saved.host_id, removed_by)
    view = state.view(row)
    if view.status in GONE_STATUSES:
        raise LifecycleError(f"{endpoint} is gone already (status {view.status})")
    interval_seconds = max(view.interval_ms, int(state.table.interval_ms[state.local_row])) / 1000
    silence_seconds = now.monotonic - float(state.table.evidence_arrival[row])
    if silence_seconds < STANDSTILL_INTERVALS * interval_seconds and not force:
        raise LifecycleError(
            f"the heartbeat of {endpoint} moved {silence_seconds:.1f} s ago: it lives; stop it first, or use force"
        )
    return _verdict(state, row, left_value(now.wall), view.host_id, removed_by)


def _verdict(state: ClusterState, row: int, status: str, host_id: str | None, removed_by: str) -> EndpointState:
    table = state.table
    saved = state.saved.at(table.endpoint(row), state.now.wall)
    generation = (int(table.generation[row]) if saved is None else saved.generation) + REMOVAL_STEP
    if generation > state.now.wall + GENERATION_AHEAD_SECONDS_MAX - VERDICT_TICK * VERDICT_INTERVAL_MS / 1000:
        raise LifecycleError("its generation lies too far in the future for a greater one to be accepted")
    # Whom it has replaced stays replaced; a failed joining has replaced nobody.
    view = state.view(row)
    replaces = view.get(ApplicationState.REPLACES) if view.status in JOINED_STATUSES else None
    return _fabricated(
        table.endpoint(row), generation, status=status, host_id=host_id, removed_by=removed_by, replaces=replaces
    )


def _fabricated(
    endpoint: str,
    generation: int,
    *,
    status: str,
    host_id: str | None,
    removed_by: str,
    replaces: str | None = None,
) -> EndpointState:
    content = f"{status} {removed_by}"
    values = {ApplicationState.STATUS: status, ApplicationState.REMOVED_BY: removed_by}
    if host_id is not None:
        values[ApplicationState.HOST_ID] = host_id
    if replaces is not None:
        values[ApplicationState.REPLACES] = replaces
        content += f" {replaces}"
    # Of two verdicts in one generation the greater version wins, whole: ``gc_version`` says that nothing older is left.
    version = 1 + zlib.crc32(content.encode()) % (VERDICT_TICK << COUNTER_BITS)
    return EndpointState(
        endpoint=endpoint,
        generation=generation,
        interval_ms=VERDICT_INTERVAL_MS,
        heartbeat=VERDICT_TICK,
        from_version=0,
        states_version=version,
        gc_version=version,
        reset=True,
        values=tuple((str(key), VersionedValue(version, value)) for key, value in sorted(values.items())),
    )
