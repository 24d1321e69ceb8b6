"""ClusterState: every transition of what this node believes of other endpoints happens in this file.

Invariants, which hold before and after every method:

1. The generation of an endpoint never goes back; within a generation neither its heartbeat, nor its states_version,
   nor the version of any value does. Applying the same states twice, or in another order, gives the same result.
2. Only an endpoint makes versions of its own state: nothing here invents or changes a value, and the row of the local
   endpoint is written by ``publish``, ``tick`` and ``begin_generation`` alone, never from a message.
3. No gaps: every value that the owner published up to states_version, and did not overwrite, is held. A delta that
   begins above states_version adds values but does not move it; the next digest exchange fills the gap.
4. An absent value is not resurrected: a key that is not held is only taken with a version above states_version.
5. ALIVE means that the endpoint itself answered an ECHO in its current generation. Every restart goes through UNKNOWN,
   every return from DOWN through an ECHO. Everything is fenced by the generation: an answer to an older one is void.
6. A generation whose STATUS says that it stopped (shutdown, LEFT, ...) is never ALIVE, sends no evidence, is not
   asked for an ECHO. Only a greater generation brings the endpoint back.
7. Evidence of life is a heartbeat greater than the one known; a repeated or late message is none.
8. Liveness: UNKNOWN -> ALIVE (ECHO answered), UNKNOWN -> DOWN (convicted or stopped), ALIVE -> DOWN (convicted or
   stopped), DOWN -> ALIVE (ECHO answered), any -> UNKNOWN (greater generation). Events tell it after it is complete.
9. What is implausible (a generation more than a day ahead of the local wall clock, a heartbeat that would have needed
   more time than has passed) changes nothing and is counted by reason.

Sources: Cassandra's ``Gossiper.applyStateLocally``, ``handleMajorStateChange``, ``markAlive``, ``convict``; the
watermarks and from_version are this project's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from gossiper.core.application_states import DEAD_STATUSES, STOPPED_STATUSES, ApplicationState, Status, status_of
from gossiper.core.failure_detector import PhiAccrualFailureDetector
from gossiper.core.messages import EndpointState, VersionedValue
from gossiper.core.table import NO_PATH, EndpointTable, LivenessCode, Rows
from gossiper.core.versions import Now, next_tick
from gossiper.events import (
    EndpointAlive,
    EndpointDead,
    EndpointJoined,
    EndpointRestarted,
    EndpointView,
    Event,
    Liveness,
    StateChanged,
)
from gossiper.limits import ENDPOINTS_MAX, GENERATION_AHEAD_SECONDS_MAX

_LIVENESS = {
    LivenessCode.UNKNOWN: Liveness.UNKNOWN,
    LivenessCode.ALIVE: Liveness.ALIVE,
    LivenessCode.DOWN: Liveness.DOWN,
}


class ClusterState:
    """What one node believes of all endpoints; ``table`` and ``detector`` share their row numbers."""

    def __init__(self, detector: PhiAccrualFailureDetector, *, endpoint: str) -> None:
        self.table = EndpointTable()
        self.detector = detector
        self.endpoint = endpoint
        self.local_row = self.table.add(endpoint)
        self.refused: Counter[str] = Counter()
        """Entries of messages that were left out, by reason; taken and cleared by the engine."""
        self._events: list[Event] = []

    def take_events(self) -> list[Event]:
        """Events since the last call, in order."""
        events, self._events = self._events, []
        return events

    # -- the local endpoint ------------------------------------------------------------------------------------------

    def begin_generation(self, generation: int, interval_ms: int) -> None:
        """Start a new, persisted generation of the local endpoint with the values it has, none of them published.

        The caller publishes them again at once; until then the endpoint has no state in this generation.

        Raises:
            ValueError: the generation is not greater than the last one.
        """
        table, row = self.table, self.local_row
        if generation <= int(table.generation[row]):
            raise ValueError(f"generation {generation} does not follow {int(table.generation[row])}")
        table.generation[row] = generation
        table.interval_ms[row] = interval_ms
        table.heartbeat[row] = 1
        table.states_version[row] = 0
        table.gc_version[row] = 0
        table.states[row] = {}
        table.liveness[row] = LivenessCode.ALIVE
        self._read_status(row)

    def tick(self, elapsed_seconds: float) -> int:
        """Advance the local heartbeat to the tick that ``elapsed_seconds`` of the generation give; return it."""
        table, row = self.table, self.local_row
        tick = next_tick(int(table.heartbeat[row]), elapsed_seconds, int(table.interval_ms[row]) / 1000)
        table.heartbeat[row] = tick
        return tick

    def publish(self, values: Mapping[str, str | None], version: int) -> None:
        """Set (or with None delete) values of the local endpoint, all with the same, greatest version."""
        table, row = self.table, self.local_row
        if version <= int(table.states_version[row]):
            raise ValueError(f"version {version} does not follow {int(table.states_version[row])}")
        old = self.view(row)
        states = dict(table.states[row])
        for key, text in values.items():
            states[key] = VersionedValue(version, text or "", deleted=text is None)
        table.states[row] = states
        table.states_version[row] = version
        self._read_status(row)
        self._events.append(StateChanged(self.endpoint, old, self.view(row), _ordered(values)))

    # -- what peers say ----------------------------------------------------------------------------------------------

    def apply(self, states: Iterable[EndpointState], now: Now, sender: str) -> int:
        """Merge what ``sender`` said of endpoints; return for how many it was news (more than a heartbeat).

        Nodes that are joining come last, then older generations first (CASSANDRA-17676, CASSANDRA-18292), so that
        listeners see owners before those who take over from them. Entries about the local endpoint are skipped.
        """
        path = self._path(sender)
        return sum(self._apply_one(state, now, path) for state in sorted(states, key=_apply_order))

    def take_heartbeats(self, rows: Rows, heartbeats: NDArray[np.int64], now: Now, sender: str) -> None:
        """Advance heartbeats of known endpoints in their current generations; older and equal ones change nothing."""
        table = self.table
        newer = (heartbeats > table.heartbeat[rows]) & (rows != self.local_row) & ~table.stopped[rows]
        rows, heartbeats = rows[newer], heartbeats[newer]
        possible = heartbeats <= self.heartbeat_limits(rows, now)
        if not possible.all():
            self.refused["invalid_heartbeat"] += int((~possible).sum())
            rows, heartbeats = rows[possible], heartbeats[possible]
        self._alive_signs(rows, heartbeats, now, self._path(sender))

    def heartbeat_limits(self, rows: Rows, now: Now) -> NDArray[np.int64]:
        """The greatest heartbeat each row can have reached, with a day of doubt about everybody's clocks."""
        table = self.table
        age_ms = (now.wall - table.generation[rows] + GENERATION_AHEAD_SECONDS_MAX) * 1000.0
        limits: NDArray[np.int64] = (age_ms / np.maximum(table.interval_ms[rows], 1)).astype(np.int64)
        return limits

    def _apply_one(self, state: EndpointState, now: Now, path: int) -> bool:
        if state.endpoint == self.endpoint:
            return False
        reason = implausible(state, now)
        if reason is not None:
            self.refused[reason] += 1
            return False
        row = self.table.row(state.endpoint)
        if row is None:
            return self._join(state, now, path)
        known = int(self.table.generation[row])
        if state.generation > known:
            self._restart(row, state, now, path)
            return True
        return state.generation == known and self._merge(row, state, now, path)

    def _join(self, state: EndpointState, now: Now, path: int) -> bool:
        if len(self.table) >= ENDPOINTS_MAX:
            self.refused["too_many_endpoints"] += 1
            return False
        row = self.table.add(state.endpoint)
        self.detector.reset(_one(row))
        self._install(row, state)
        self._events.append(EndpointJoined(state.endpoint, self.view(row)))
        self._begin_liveness(row, now, path)
        return True

    def _restart(self, row: int, state: EndpointState, now: Now, path: int) -> None:
        old = self.view(row)
        self.detector.reset(_one(row))
        self._install(row, state)
        new = self.view(row)
        self._events.append(EndpointRestarted(state.endpoint, old, new))
        if old.alive and self.table.stopped[row]:
            self._events.append(EndpointDead(state.endpoint, old, new, new.status))
        self._begin_liveness(row, now, path)

    def _install(self, row: int, state: EndpointState) -> None:
        """Replace everything known of a row by one generation's state, which may be partial."""
        table = self.table
        table.generation[row] = state.generation
        table.interval_ms[row] = state.interval_ms
        table.heartbeat[row] = state.heartbeat
        table.states_version[row] = state.states_version if state.from_version == 0 else 0
        table.gc_version[row] = state.gc_version
        table.states[row] = dict(state.values)
        table.echo_wanted[row] = False
        table.echo_generation[row] = 0
        self._read_status(row)
        table.liveness[row] = LivenessCode.DOWN if table.stopped[row] else LivenessCode.UNKNOWN

    def _begin_liveness(self, row: int, now: Now, path: int) -> None:
        if not self.table.stopped[row]:
            self._alive_signs(_one(row), self.table.heartbeat[_one(row)], now, path)

    def _merge(self, row: int, state: EndpointState, now: Now, path: int) -> bool:
        """Newer heartbeat and newer values of the current generation."""
        table = self.table
        if state.heartbeat > int(table.heartbeat[row]) and not table.stopped[row]:
            self._alive_signs(_one(row), np.array([state.heartbeat], dtype=np.int64), now, path)
        old_states = table.states[row]
        changed = {
            key: value
            for key, value in state.values
            if value.version > (old_states[key].version if key in old_states else int(table.states_version[row]))
        }
        named = {key for key, _ in state.values} if state.reset else set()
        gone = {
            key
            for key, value in old_states.items()
            if state.reset and key not in named and value.version <= state.states_version
        }
        old = self.view(row) if changed or gone else None
        if changed or gone:
            kept = {key: value for key, value in old_states.items() if key not in gone}
            table.states[row] = {**kept, **changed}
        if int(table.states_version[row]) >= state.from_version:
            table.states_version[row] = max(int(table.states_version[row]), state.states_version)
        table.gc_version[row] = max(int(table.gc_version[row]), state.gc_version)
        if old is None:
            return False
        self._read_status(row)
        self._events.append(StateChanged(state.endpoint, old, self.view(row), _ordered(changed.keys() | gone)))
        if table.stopped[row]:
            self.mark_dead(row, self.view(row).status)
        return True

    # -- liveness ----------------------------------------------------------------------------------------------------

    def _alive_signs(self, rows: Rows, heartbeats: NDArray[np.int64], now: Now, path: int) -> None:
        """Newer heartbeats of ``rows`` arrived: evidence for the detector, and a wish for ECHO where not alive."""
        if not len(rows):
            return
        table = self.table
        table.heartbeat[rows] = heartbeats
        self.detector.report(rows, now.monotonic)
        direct = rows == path
        table.evidence_arrival[rows] = now.monotonic
        table.evidence_tick[rows] = heartbeats
        table.evidence_direct[rows] = direct
        table.evidence_path[rows] = np.where(direct, NO_PATH, path)
        table.direct_arrival[rows[direct]] = now.monotonic
        table.echo_wanted[rows] = table.liveness[rows] != LivenessCode.ALIVE

    def echo_candidates(self) -> Rows:
        """Rows that gave evidence of life while not alive, and have no ECHO under way."""
        table = self.table
        rows: Rows = np.flatnonzero(table.echo_wanted & (table.echo_generation == 0) & ~table.stopped)
        return rows

    def echo_sent(self, row: int, now: Now) -> None:
        """An ECHO for the row's current generation is under way."""
        self.table.echo_generation[row] = self.table.generation[row]
        self.table.echo_sent[row] = now.monotonic

    def echo_failed(self, row: int, generation: int) -> None:
        """It ended without an answer: the next evidence, or the next round while there is recent one, tries again."""
        if int(self.table.echo_generation[row]) == generation:
            self.table.echo_generation[row] = 0

    def echo_answered(self, row: int, generation: int, heartbeat: int, now: Now) -> None:
        """The endpoint itself answered in ``generation``; void unless that is the current one and goes on."""
        table = self.table
        table.echo_generation[row] = 0
        if generation != int(table.generation[row]) or table.stopped[row]:
            return
        if heartbeat > int(table.heartbeat[row]) and heartbeat <= int(self.heartbeat_limits(_one(row), now)[0]):
            self._alive_signs(_one(row), np.array([heartbeat], dtype=np.int64), now, row)
        table.direct_arrival[row] = now.monotonic
        table.echo_wanted[row] = False
        if table.liveness[row] == LivenessCode.ALIVE:
            return
        old = self.view(row)
        table.liveness[row] = LivenessCode.ALIVE
        self._events.append(EndpointAlive(table.endpoint(row), old, self.view(row)))

    def mark_dead(self, row: int, reason: str) -> None:
        """Convicted, or stopped by its own word."""
        table = self.table
        old = self.view(row)
        table.liveness[row] = LivenessCode.DOWN
        table.echo_wanted[row] = False
        if old.alive:
            self._events.append(EndpointDead(table.endpoint(row), old, self.view(row), reason))

    def convict_silent(self, now: Now) -> float:
        """Mark those dead whose phi is above the threshold; return how long this process stood still, if it did."""
        table = self.table
        watched = np.flatnonzero(table.used & (table.liveness != LivenessCode.DOWN))
        verdict = self.detector.interpret(watched[watched != self.local_row], now.monotonic)
        for row in verdict.convicted:
            self.mark_dead(int(row), "convicted")
        return verdict.paused_seconds

    # -- views -------------------------------------------------------------------------------------------------------

    def view(self, row: int) -> EndpointView:
        """An immutable picture of one endpoint."""
        table = self.table
        states = table.states[row]
        if any(value.deleted for value in states.values()):
            states = {key: value for key, value in states.items() if not value.deleted}
        return EndpointView(
            endpoint=table.endpoint(row),
            generation=int(table.generation[row]),
            heartbeat=int(table.heartbeat[row]),
            states_version=int(table.states_version[row]),
            interval_ms=int(table.interval_ms[row]),
            liveness=_LIVENESS[LivenessCode(int(table.liveness[row]))],
            states=MappingProxyType(states),
        )

    def live_rows(self) -> Rows:
        """Live endpoints, without the local one."""
        table = self.table
        rows: Rows = np.flatnonzero(table.used & (table.liveness == LivenessCode.ALIVE))
        others: Rows = rows[rows != self.local_row]
        return others

    def unreachable_rows(self) -> Rows:
        """Endpoints that are not alive and may come back: all but those in a dead state."""
        table = self.table
        rows: Rows = np.flatnonzero(table.used & (table.liveness != LivenessCode.ALIVE) & ~table.dead_status)
        return rows

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _read_status(self, row: int) -> None:
        value = self.table.states[row].get(ApplicationState.STATUS)
        status = status_of(None if value is None or value.deleted else value.value)
        self.table.dead_status[row] = status in DEAD_STATUSES
        self.table.stopped[row] = status in STOPPED_STATUSES

    def _path(self, sender: str) -> int:
        row = self.table.row(sender)
        return NO_PATH if row is None else row


def implausible(state: EndpointState, now: Now) -> str | None:
    """Why a state cannot be true by the local wall clock, or None. Said of known and unknown endpoints alike."""
    ahead = state.generation - now.wall
    if ahead > GENERATION_AHEAD_SECONDS_MAX:
        return "invalid_generation"
    if state.heartbeat * state.interval_ms / 1000 > GENERATION_AHEAD_SECONDS_MAX - ahead:
        return "invalid_heartbeat"
    return None


def _apply_order(state: EndpointState) -> tuple[bool, int, str]:
    joining = any(key == ApplicationState.STATUS and status_of(v.value) == Status.BOOT for key, v in state.values)
    return joining, state.generation, state.endpoint


def _ordered(keys: Iterable[str]) -> tuple[str, ...]:
    """STATUS first: listeners want to know whom they deal with before they read the rest."""
    return tuple(sorted(keys, key=lambda key: (key != ApplicationState.STATUS, key)))


def _one(row: int) -> Rows:
    return np.array([row], dtype=np.intp)
