"""What must hold after every event, checked on the node that handled it.

An observer keeps a shadow of its node's table and looks only at what changed since the last event: a few comparisons of
columns, then Python for the rows that differ. It trusts nothing that the core says of itself: arrivals, means, silence
and liveness are kept here a second time, and what owners wrote is known from ``truth``.

The constants in ``InvariantViolation`` name the invariants; ``docs/simulation.md`` lists them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gossiper.core.application_states import ApplicationState
from gossiper.core.io import (
    AssassinateRequested,
    Effect,
    EngineEvent,
    Notify,
    RemoveRequested,
    ReplyReceived,
    RequestReceived,
    RoundDue,
    SendFailed,
)
from gossiper.core.lifecycle import STOPPED_STATUSES, status_of
from gossiper.core.local import Published
from gossiper.core.messages import EchoReply, VersionedValue
from gossiper.core.table import EndpointTable, LivenessCode
from gossiper.core.versions import Now, tick_of
from gossiper.events import (
    EndpointAlive,
    EndpointDead,
    EndpointForgotten,
    EndpointJoined,
    EndpointReplaced,
    EndpointRestarted,
    EndpointView,
)
from gossiper.limits import ENDPOINTS_MAX, STATES_PER_ENDPOINT_MAX
from gossiper.simulation.truth import GenerationTruth, Truth
from gossiper.simulation.violation import InvariantViolation

if TYPE_CHECKING:
    from gossiper.simulation.process import Process

#: Events that may not touch the row of the node itself.
_FOREIGN_EVENTS: Final = (RequestReceived, ReplyReceived, SendFailed)
#: The exception from "only the owner makes versions".
_REMOVALS: Final = (RemoveRequested, AssassinateRequested)
#: A saved endpoint, known from disk, of which nobody has told anything yet.
_SAVED: Final = 0
#: Rounding of microseconds in the detector, generously.
_TOLERANCE: Final = 0.999
#: The detector forgets samples beyond its window; from then on its mean and the one here may differ.
_TOLERANCE_FULL_WINDOW: Final = 0.5
_NO_IDENTITY: Final = -1
_ALIVE: Final = int(LivenessCode.ALIVE)
_DOWN: Final = int(LivenessCode.DOWN)
_UNKNOWN: Final = int(LivenessCode.UNKNOWN)

_SHADOWS: Final[Mapping[str, tuple[type, float]]] = {
    "used": (np.bool_, False),
    "generation": (np.int64, 0),
    "heartbeat": (np.int64, 0),
    "states_version": (np.int64, 0),
    "liveness": (np.int8, 0),
    "identity": (np.int64, _NO_IDENTITY),
    "stopped": (np.bool_, False),
    "last_seconds": (np.float64, -math.inf),
    "interval_sum": (np.float64, 0.0),
    "interval_count": (np.int64, 0),
}


class Checkers:
    """Makes an observer for every process."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth

    def observe(self, process: Process) -> Observer:
        """An observer for a process that has just begun."""
        return Observer(self.truth, process)


class Observer:
    """The checkers of one process."""

    used: NDArray[np.bool_]
    generation: NDArray[np.int64]
    heartbeat: NDArray[np.int64]
    states_version: NDArray[np.int64]
    liveness: NDArray[np.int8]
    identity: NDArray[np.int64]
    """Number of the row's endpoint in ``truth``."""
    stopped: NDArray[np.bool_]
    """This observer has seen the generation say that it stopped."""
    last_seconds: NDArray[np.float64]
    interval_sum: NDArray[np.float64]
    interval_count: NDArray[np.int64]

    def __init__(self, truth: Truth, process: Process) -> None:
        self._truth = truth
        self._process = process
        self._name = process.endpoint
        self._engine = process.engine
        self._table = process.engine.state.table
        self._local = process.engine.state.local_row
        self._states: list[dict[str, VersionedValue]] = []
        self._greatest: dict[int, int] = {}
        """Greatest generation ever held, by identity: it outlives the row."""
        self._buried: dict[int, int] = {}
        """Greatest generation of each identity that must not come back."""
        config = process.engine.config
        interval_seconds = config.interval_ms / 1000
        self._phi_threshold = config.phi_threshold
        self._window_size = config.phi_window_size
        self._first_interval = config.first_interval_seconds or 2 * interval_seconds
        self._interval_max = config.interval_seconds_max or 2 * interval_seconds
        self._local_pause = config.local_pause_seconds
        self._last_round: float | None = None
        self._silent_until = -math.inf
        for name, (dtype, default) in _SHADOWS.items():
            setattr(self, name, np.full(self._table.capacity, default, dtype=dtype))
        self._memory: tuple[bytes, ...] | None = None
        """The columns of the shadow as memory; None after one of them was written."""
        self._own_identity = truth.add(process.endpoint)
        self._owner_changed()
        self._take_over()

    # -- after every event -------------------------------------------------------------------------------------------

    def check(self, event: EngineEvent, effects: list[Effect], now: Now) -> None:
        """Compare the node's table with what it was, and with the truth.

        Raises:
            InvariantViolation: something is wrong.
        """
        table = self._table
        if table.capacity != len(self.used):
            self._grow()
        self._check_own_row(event)
        if self._process.published:
            self._check_published(effects)
        if type(event) is RoundDue:
            self._watch_pause(now)
        if effects:
            self._note_burials(effects)
        heard = table.heartbeat != self.heartbeat
        changed = self._changed_rows()
        if changed:
            for row in changed:
                self._check_row(row, event, effects, now)
            heard[changed] = False
        rows = heard.nonzero()[0]
        if len(rows):
            self._check_heartbeats(rows, now)

    def _changed_rows(self) -> list[int]:
        """Rows in which something besides the heartbeat differs from the shadow, ascending.

        The own row is never among them: it has been taken over. After most events there are none, so that whole columns
        are compared as memory first, which costs a fraction of finding out where they differ.
        """
        table, states = self._table, self._states
        if self._memory is None:
            self._memory = _memory(self)
        same = _memory(table) == self._memory
        # Comparing lists looks at identity first: nothing is compared twice while nothing changes.
        same_states = table.states == states
        if same and same_states:
            return []
        changed = (
            (table.generation != self.generation)
            | (table.states_version != self.states_version)
            | (table.liveness != self.liveness)
            | (table.used != self.used)
        )
        if not same_states:
            known = len(states)
            changed[[i for i, held in enumerate(table.states) if i >= known or held is not states[i]]] = True
        changed[self._local] = False
        rows: list[int] = changed.nonzero()[0].tolist()
        return rows

    def _check_published(self, effects: list[Effect]) -> None:
        """What was acknowledged is what the node holds. Publishes that waited are merged: the last one wins."""
        merged: dict[int, dict[str, VersionedValue]] = {}
        for effect in effects:
            if isinstance(effect, Published):
                event = self._process.published.pop(effect.ticket)
                merged.setdefault(effect.version, {}).update(
                    (
                        key,
                        VersionedValue(
                            effect.version, text or "", text is None, 0 if text is None else event.expires_at_ms
                        ),
                    )
                    for key, text in event.values.items()
                )
        held = self._table.states[self._local]
        for version, values in merged.items():
            for key, wanted in values.items():
                value = held.get(key)
                if value is None or value.version < version or (value.version == version and value != wanted):
                    raise InvariantViolation(
                        "publish_lost", f"{self._name} {key} is {_said(value)}, not {_said(wanted)}"
                    )

    # -- the own row -------------------------------------------------------------------------------------------------

    def _check_own_row(self, event: EngineEvent) -> None:
        table, row = self._table, self._local
        states = self._states[row]
        same = (
            table.states[row] is states
            and table.states_version[row] == self.states_version[row]
            and table.generation[row] == self.generation[row]
        )
        if same and table.heartbeat[row] == self.heartbeat[row]:
            return
        if isinstance(event, _FOREIGN_EVENTS):
            raise InvariantViolation(
                "only_the_owner_writes", f"{self._name}: {type(event).__name__} changed its own row"
            )
        if same:
            self._truth.owner_ticked(self._own_identity, int(table.generation[row]), int(table.heartbeat[row]))
            self.heartbeat[row] = table.heartbeat[row]
        else:
            self._owner_changed()

    def own_row_changed(self) -> None:
        """The owner changed its row outside of an event."""
        self._owner_changed()

    def _owner_changed(self) -> None:
        table, row = self._table, self._local
        generation = int(table.generation[row])
        if generation < self.generation[row]:
            raise InvariantViolation("generation_went_back", f"{self._name} of itself: {generation}")
        self._truth.owner_wrote(
            self._own_identity,
            generation=generation,
            heartbeat=int(table.heartbeat[row]),
            states_version=int(table.states_version[row]),
            gc_version=int(table.gc_version[row]),
            states=table.states[row],
        )
        self._remember(row, self._own_identity)

    # -- other rows --------------------------------------------------------------------------------------------------

    def _check_row(self, row: int, event: EngineEvent, effects: list[Effect], now: Now) -> None:
        """Something besides the heartbeat changed in this row."""
        table = self._table
        if not table.used[row]:
            self._forget(row)
            return
        endpoint = table.endpoint(row)
        identity = self._truth.identity(endpoint)
        if identity is None:
            raise InvariantViolation("invented_endpoint", f"{self._name} knows {endpoint}, which nobody ever had")
        if self.identity[row] != identity:
            self._forget(row)
        generation = int(table.generation[row])
        if generation == _SAVED:
            self._check_saved(row, identity)
            return
        truth = self._truth.of(identity, generation)
        begun = generation != self.generation[row]
        if begun and isinstance(event, _REMOVALS) and (truth is None or self._truth.imposed(endpoint, generation)):
            self._truth.impose(identity, generation, int(table.heartbeat[row]), table.states[row])
            truth = self._truth.of(identity, generation)
        if truth is None:
            raise InvariantViolation("invented_generation", f"{self._name} knows {endpoint} in {generation}")
        if generation < self._greatest.get(identity, 0):
            raise InvariantViolation(
                "generation_went_back", f"{self._name}: {endpoint} from {self._greatest[identity]} to {generation}"
            )
        if not self.used[row] and generation <= self._buried.get(identity, 0):
            raise InvariantViolation("removed_generation_lives", f"{self._name}: {endpoint} is back in {generation}")
        if generation != self.generation[row]:
            self._begin(row)
        where = f"{self._name}: {endpoint} generation {generation}"
        self._check_heartbeat(row, truth, where, now)
        self._check_states(row, truth, where)
        self._check_liveness(row, event, effects, now, where)
        self._remember(row, identity)

    def _check_saved(self, row: int, identity: int) -> None:
        """Known from disk only: nothing is said of it, and it is not alive."""
        table = self._table
        if table.states[row] or table.heartbeat[row] or table.liveness[row] != _DOWN:
            raise InvariantViolation(
                "saved_endpoint_lives", f"{self._name}: {table.endpoint(row)} without a generation"
            )
        self._remember(row, identity)

    def _note_burials(self, effects: list[Effect]) -> None:
        """Who was replaced or has expired does not come back in that generation."""
        for effect in effects:
            if isinstance(effect, Notify):
                event = effect.event
                replaced = isinstance(event, EndpointReplaced) and event.old.endpoint != event.endpoint
                expired = isinstance(event, EndpointForgotten) and event.reason == "expired"
                if isinstance(event, (EndpointReplaced, EndpointForgotten)) and (replaced or expired):
                    self._bury(event.old)

    def _bury(self, old: EndpointView) -> None:
        identity = self._truth.identity(old.endpoint)
        if identity is not None:
            self._buried[identity] = max(old.generation, self._buried.get(identity, 0))

    def _begin(self, row: int) -> None:
        """A new generation: nothing that was known of the old one counts."""
        self._memory = None
        self.heartbeat[row] = 0
        self.states_version[row] = 0
        self.stopped[row] = False
        self.last_seconds[row] = -math.inf
        self.interval_sum[row] = 0.0
        self.interval_count[row] = 0
        self._held(row, {})

    def _check_heartbeat(self, row: int, truth: GenerationTruth, where: str, now: Now) -> None:
        """One row's heartbeat, of whatever generation."""
        heartbeat, known = int(self._table.heartbeat[row]), int(self.heartbeat[row])
        if heartbeat == known:
            return
        if heartbeat < known:
            raise InvariantViolation("heartbeat_went_back", f"{where}: {known} to {heartbeat}")
        if heartbeat > truth.heartbeat:
            raise InvariantViolation("heartbeat_invented", f"{where}: {heartbeat}, its owner is at {truth.heartbeat}")
        if self.stopped[row]:
            raise InvariantViolation("stopped_generation_lives", f"{where}: heartbeat {known} to {heartbeat}")
        self._arrived(np.array([row], dtype=np.intp), now)

    def _check_heartbeats(self, rows: NDArray[np.intp], now: Now) -> None:
        """Many rows of which only the heartbeat moved."""
        table, truth = self._table, self._truth
        heartbeats = table.heartbeat[rows]
        identities = self.identity[rows]
        sound = (
            (heartbeats > self.heartbeat[rows])
            & ~self.stopped[rows]
            & (truth.generation[identities] == table.generation[rows])
            & (heartbeats <= truth.heartbeat[identities])
        )
        for row in rows[~sound].tolist():
            identity, generation = int(self.identity[row]), int(table.generation[row])
            one = truth.of(identity, generation)
            if one is None:
                raise InvariantViolation("invented_generation", f"{self._name}: row {row} in {generation}")
            where = f"{self._name}: {truth.endpoints[identity]} generation {generation}"
            before = self.last_seconds[row], self.interval_sum[row], self.interval_count[row]
            self._check_heartbeat(row, one, where, now)
            self.last_seconds[row], self.interval_sum[row], self.interval_count[row] = before
        self._arrived(rows, now)
        self.heartbeat[rows] = heartbeats

    def _arrived(self, rows: NDArray[np.intp], now: Now) -> None:
        """Newer heartbeats arrived: the rhythm of arrivals, as the detector should know it."""
        gap = now.monotonic - self.last_seconds[rows]
        self.last_seconds[rows] = now.monotonic
        recorded = gap <= self._interval_max
        if np.count_nonzero(recorded) < len(rows):
            first = rows[np.isinf(gap)]
            self.interval_sum[first] += self._first_interval
            self.interval_count[first] += 1
            rows, gap = rows[recorded], gap[recorded]
        self.interval_sum[rows] += gap
        self.interval_count[rows] += 1

    # -- values ------------------------------------------------------------------------------------------------------

    def _check_states(self, row: int, truth: GenerationTruth, where: str) -> None:
        table = self._table
        states_version, known_version = int(table.states_version[row]), int(self.states_version[row])
        if states_version < known_version:
            raise InvariantViolation("states_version_went_back", f"{where}: {known_version} to {states_version}")
        if states_version > truth.states_version:
            raise InvariantViolation(
                "version_invented", f"{where}: states_version {states_version}, its owner is at {truth.states_version}"
            )
        held, before = table.states[row], self._states[row]
        self._check_within_tick(row, held, where)
        if len(held) > STATES_PER_ENDPOINT_MAX or len(table) > ENDPOINTS_MAX:
            raise InvariantViolation("limit_exceeded", f"{where}: {len(held)} values, {len(table)} endpoints")
        looked_at: set[str] = set(truth.written_between(known_version, states_version))
        if held is not before:
            for key, value in held.items():
                old = before.get(key)
                if old is value:
                    continue
                looked_at.add(key)
                self._check_value(key, value, old, truth, where)
            looked_at.update(key for key in before if key not in held)
        for key in sorted(looked_at):
            latest = truth.latest(key, states_version)
            mine = held.get(key)
            if latest is not None and (mine is None or mine.version < latest.version):
                if mine is None and truth.purged(latest):
                    continue
                raise InvariantViolation(
                    "no_gap",
                    f"{where}: states_version {states_version}, but {key} is {_said(mine)} and not {_said(latest)}",
                )
            if mine is None and key in before and latest is None:
                raise InvariantViolation("value_vanished", f"{where}: {key} was {_said(before[key])}")

    def _check_within_tick(self, row: int, held: Mapping[str, VersionedValue], where: str) -> None:
        """Whoever says that a version is later than its heartbeat is refused by everybody."""
        table, heartbeat = self._table, int(self._table.heartbeat[row])
        watermarks = int(table.states_version[row]), int(table.gc_version[row])
        newest = max(*watermarks, *(value.version for value in held.values()))
        if tick_of(newest) > heartbeat:
            raise InvariantViolation("version_ahead_of_tick", f"{where}: version {newest} at heartbeat {heartbeat}")

    def _check_value(
        self, key: str, value: VersionedValue, old: VersionedValue | None, truth: GenerationTruth, where: str
    ) -> None:
        if truth.latest(key, value.version) != value:
            raise InvariantViolation("value_invented", f"{where}: {key} is {_said(value)}, its owner never wrote that")
        if old is not None and value.version < old.version:
            raise InvariantViolation("version_went_back", f"{where}: {key} from {_said(old)} to {_said(value)}")

    # -- liveness ----------------------------------------------------------------------------------------------------

    def _check_liveness(self, row: int, event: EngineEvent, effects: list[Effect], now: Now, where: str) -> None:
        table = self._table
        begun = bool(table.generation[row] != self.generation[row])
        stopped_before = bool(self.stopped[row])
        status = table.states[row].get(ApplicationState.STATUS)
        self.stopped[row] = stopped_before or (
            status is not None and not status.deleted and status_of(status.value) in STOPPED_STATUSES
        )
        after = int(table.liveness[row])
        before = _UNKNOWN if begun else int(self.liveness[row])
        if after == _ALIVE and self.stopped[row]:
            raise InvariantViolation("stopped_generation_lives", f"{where}: alive after it stopped")
        if after == before:
            if begun and self.liveness[row] == _ALIVE:
                self._expect(effects, (EndpointRestarted, EndpointReplaced, EndpointJoined), row, where)
            return
        if after == _ALIVE:
            self._check_confirmed(row, event, where)
            self._expect(effects, (EndpointAlive,), row, where)
        elif after == _UNKNOWN:
            raise InvariantViolation("liveness_transition", f"{where}: {LivenessCode(before).name} to UNKNOWN")
        else:
            if self.liveness[row] == _ALIVE:
                self._expect(effects, (EndpointDead,), row, where)
            if not self.stopped[row]:
                self._check_conviction(row, event, now, where)

    def _expect(self, effects: list[Effect], kinds: tuple[type, ...], row: int, where: str) -> None:
        """Subscribers are told of a change of liveness."""
        endpoint = self._table.endpoint(row)
        for effect in effects:
            if isinstance(effect, Notify) and type(effect.event) in kinds and _endpoint(effect.event) == endpoint:
                return
        raise InvariantViolation("event_missing", f"{where}: no {kinds[0].__name__} for a change of liveness")

    def _check_confirmed(self, row: int, event: EngineEvent, where: str) -> None:
        """ALIVE only because the endpoint itself answered an ECHO in this very generation."""
        if isinstance(event, ReplyReceived) and isinstance(event.reply, EchoReply):
            sender = event.reply.sender
            if sender.endpoint == self._table.endpoint(row) and sender.generation == int(self._table.generation[row]):
                return
            raise InvariantViolation(
                "alive_unconfirmed", f"{where}: alive by an ECHO of {sender.endpoint} generation {sender.generation}"
            )
        raise InvariantViolation("alive_unconfirmed", f"{where}: alive by {type(event).__name__}")

    def _check_conviction(self, row: int, event: EngineEvent, now: Now, where: str) -> None:
        """DOWN without its own word: only in a round, only after silence, not just after a pause of the observer."""
        if type(event) is not RoundDue:
            raise InvariantViolation("conviction_without_silence", f"{where}: down by {type(event).__name__}")
        if now.monotonic < self._silent_until:
            raise InvariantViolation("conviction_after_pause", f"{where}: the observer itself stood still just before")
        count = int(self.interval_count[row])
        silence = now.monotonic - float(self.last_seconds[row])
        mean = float(self.interval_sum[row]) / count if count else math.inf
        tolerance = _TOLERANCE if count < self._window_size else _TOLERANCE_FULL_WINDOW
        if not silence > self._phi_threshold * math.log(10.0) * mean * tolerance:
            raise InvariantViolation(
                "conviction_without_silence",
                f"{where}: {silence:.3f} s of silence at a mean of {mean:.3f} s over {count} intervals",
            )

    def _watch_pause(self, now: Now) -> None:
        gap = 0.0 if self._last_round is None else now.monotonic - self._last_round
        self._last_round = now.monotonic
        if gap > self._local_pause:
            self._silent_until = now.monotonic + self._local_pause

    # -- the shadow --------------------------------------------------------------------------------------------------

    def _take_over(self) -> None:
        """At first a node knows nobody, but for what it has saved."""
        for row in self._table.rows().tolist():
            identity = self._truth.identity(self._table.endpoint(row))
            if row == self._local:
                continue
            if identity is None or self._table.generation[row] != _SAVED:
                raise InvariantViolation("invented_endpoint", f"{self._name} begins with others in its table")
            self._check_saved(row, identity)

    def _remember(self, row: int, identity: int) -> None:
        table = self._table
        self._memory = None
        self.identity[row] = identity
        self.used[row] = True
        self.generation[row] = table.generation[row]
        self.heartbeat[row] = table.heartbeat[row]
        self.states_version[row] = table.states_version[row]
        self.liveness[row] = table.liveness[row]
        self._greatest[identity] = int(table.generation[row])
        self._held(row, table.states[row])

    def _held(self, row: int, states: dict[str, VersionedValue]) -> None:
        while len(self._states) <= row:
            self._states.append({})
        self._states[row] = states

    def _forget(self, row: int) -> None:
        self._memory = None
        for name, (_, default) in _SHADOWS.items():
            getattr(self, name)[row] = default
        self._held(row, self._table.states[row] if not self._table.used[row] else {})

    def _grow(self) -> None:
        self._memory = None
        for name, (dtype, default) in _SHADOWS.items():
            old = getattr(self, name)
            new: NDArray[Any] = np.full(self._table.capacity, default, dtype=dtype)
            new[: len(old)] = old
            setattr(self, name, new)


def _memory(columns: EndpointTable | Observer) -> tuple[bytes, ...]:
    """What a table and its shadow have in common besides heartbeats."""
    return (
        columns.generation.tobytes(),
        columns.states_version.tobytes(),
        columns.liveness.tobytes(),
        columns.used.tobytes(),
    )


def _endpoint(event: object) -> str:
    return getattr(event, "endpoint", "")


def _said(value: VersionedValue | None) -> str:
    if value is None:
        return "absent"
    return f"{'deleted' if value.deleted else repr(value.value[:24])} at {value.version}"
