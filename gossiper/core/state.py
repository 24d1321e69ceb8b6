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
   stopped), DOWN -> ALIVE (ECHO answered), any -> UNKNOWN (greater generation); ``lifecycle.LIVENESS_TRANSITIONS`` is
   the whole table. Events tell it after it is complete.
9. What is implausible (a generation more than a day ahead of the local wall clock, a heartbeat that would have needed
   more time than has passed) changes nothing and is counted by reason. No version of an endpoint lies beyond the tick
   of its heartbeat: whoever said so would be refused by all. So what a stopped generation, whose heartbeat stays (6),
   says beyond it is refused whole.

10. A host id belongs to one endpoint: of two, the one with the greater (generation, endpoint) stays, everywhere alike.
11. Who is gone for good is forgotten at the one absolute time that its STATUS names; what was forgotten or replaced
    does not come back in that generation or an older one (``quarantine``). A value past its expiry is shown to nobody.

Sources: Cassandra's ``Gossiper.applyStateLocally``, ``handleMajorStateChange``, ``markAlive``, ``convict``; the
watermarks and from_version are this project's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from gossiper.core import evidence
from gossiper.core.application_states import COMPACT, ApplicationState
from gossiper.core.columns import Rows
from gossiper.core.failure_detector import PhiAccrualFailureDetector
from gossiper.core.lifecycle import (
    DEAD_STATUSES,
    GONE_EXPIRE_SECONDS,
    GONE_STATUSES,
    GUEST_STATUSES,
    JOINED_STATUSES,
    STOPPED_STATUSES,
    Status,
    expire_ms_of,
    status_of,
)
from gossiper.core.messages import EndpointState, VersionedValue
from gossiper.core.quarantine import FOR_EVER, Quarantine
from gossiper.core.replacements import replaced_in
from gossiper.core.saved import REMEMBERED_HEARTBEAT, KnownPeer, SavedPeers
from gossiper.core.table import NO_EXPIRY, NO_PATH, EndpointTable, LivenessCode
from gossiper.core.versions import Now, next_tick, tick_of
from gossiper.events import (
    EndpointAlive,
    EndpointDead,
    EndpointForgotten,
    EndpointJoined,
    EndpointLeft,
    EndpointRemoved,
    EndpointReplaced,
    EndpointRestarted,
    EndpointView,
    Event,
    Liveness,
    StateChanged,
)
from gossiper.limits import ENDPOINTS_MAX, GENERATION_AHEAD_SECONDS_MAX

_LIVENESS = {int(code): Liveness[code.name] for code in LivenessCode}
#: As plain numbers: comparing a column with a member of an enum takes numpy five times as long.
_ALIVE, _DOWN = int(LivenessCode.ALIVE), int(LivenessCode.DOWN)
#: A guest (no member, or a failed bootstrap) is forgotten after so many gossip intervals of silence, a joining one
#: later; then refused for as long again (Cassandra: 30 s, 300 s and 60 s at one interval per second).
GUEST_SILENCE_INTERVALS = 30
JOINING_SILENCE_INTERVALS = 300
QUARANTINE_INTERVALS = 60
_JOINING = frozenset({Status.BOOT, Status.BOOT_REPLACE})


class ClusterState:
    """What one node believes of all endpoints; ``table`` and ``detector`` share their row numbers."""

    def __init__(self, detector: PhiAccrualFailureDetector, *, endpoint: str) -> None:
        self.table = EndpointTable()
        self.detector = detector
        self.endpoint = endpoint
        self.local_row = self.table.add(endpoint)
        self.quarantine = Quarantine()
        self.saved = SavedPeers()
        """Of endpoints in generation 0: what the file of an earlier run says of them."""
        self.now = Now(0.0, 0.0)
        """The time of the event being handled; set by the engine."""
        self.claims: list[EndpointState] = []
        """What peers said of the local endpoint in a generation that is not older; taken by the engine."""
        self.host_id_winner: str | None = None
        """An endpoint that has the local host id and wins it; then this node has to stop."""
        self._host_ids: dict[str, str] = {}
        self._replacers: dict[str, None] = {}
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
        table.begin_incarnation(row, generation, interval_ms, generation * 1000)
        table.heartbeat[row] = 1
        table.gc_version[row] = 0
        table.states[row] = {}
        table.liveness[row] = LivenessCode.ALIVE
        table.knows_local_version[:] = 0
        self._read(row)

    def tick(self, elapsed_seconds: float) -> int:
        """Advance the local heartbeat to the tick that ``elapsed_seconds`` of the generation give; return it."""
        table, row = self.table, self.local_row
        tick = next_tick(int(table.heartbeat[row]), elapsed_seconds, int(table.interval_ms[row]) / 1000)
        table.heartbeat[row] = tick
        return tick

    def publish(
        self,
        values: Mapping[str, str | None],
        version: int,
        expires_at_ms: int = 0,
        *,
        expiries: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Set (or with None delete) values of the local endpoint, all with the same, greatest version.

        ``expiries``: of the keys for which it is not ``expires_at_ms``.
        """
        table, row = self.table, self.local_row
        if version <= int(table.states_version[row]):
            raise ValueError(f"version {version} does not follow {int(table.states_version[row])}")
        old = self.view(row)
        states = dict(table.states[row])
        for key, text in values.items():
            expiry_ms = 0 if text is None else expiries.get(key, expires_at_ms)
            states[key] = VersionedValue(version, text or "", text is None, expiry_ms)
        table.states[row] = states
        table.advance_states_version(row, version)
        self._read(row)
        self._events.append(StateChanged(self.endpoint, old, self.view(row), _ordered(values)))

    def collect_tombstones(self, up_to_version: int) -> None:
        """Drop tombstones of the local endpoint up to a version; whoever knows less then gets the whole state."""
        table, row = self.table, self.local_row
        if not table.hides_values[row]:
            return
        old = [key for key, value in table.states[row].items() if value.deleted and value.version <= up_to_version]
        if old:
            table.gc_version[row] = max(table.states[row][key].version for key in old)
            table.states[row] = {key: value for key, value in table.states[row].items() if key not in old}

    def adopt_local_host_id(self) -> None:
        """From now on the local host id is the local endpoint's; others that claim it have to settle it."""
        host_id = self.host_id_at(self.local_row)
        if host_id is not None:
            self._host_ids[host_id] = self.endpoint

    def heard_of_local(self, peer: str, generation: int, states_version: int) -> None:
        """``peer`` has shown that it knows the local endpoint up to a version of a generation."""
        table, row = self.table, self.table.row(peer)
        if row is not None and generation == int(table.generation[self.local_row]):
            table.knows_local_version[row] = max(int(table.knows_local_version[row]), states_version)

    # -- what peers say ----------------------------------------------------------------------------------------------

    def apply(self, states: Iterable[EndpointState], now: Now, sender: str) -> int:
        """Merge what ``sender`` said of endpoints; return for how many it was news (more than a heartbeat).

        Nodes that are joining come last, then older generations first (CASSANDRA-17676, CASSANDRA-18292), so that
        listeners see owners before those who take over from them. Entries about the local endpoint are skipped.
        """
        return sum(self._apply_one(state, now, sender) for state in sorted(states, key=_apply_order))

    def take_heartbeats(self, rows: Rows, heartbeats: NDArray[np.int64], now: Now, sender: str) -> None:
        """Advance heartbeats of known endpoints in their current generations; older and equal ones change nothing."""
        if not len(rows):
            return
        table = self.table
        newer = (heartbeats > table.heartbeat[rows]) & (rows != self.local_row) & ~table.stopped[rows]
        if np.count_nonzero(newer) < len(rows):
            rows, heartbeats = rows[newer], heartbeats[newer]
        possible = evidence.possible(table, rows, heartbeats, now)
        impossible = len(rows) - int(np.count_nonzero(possible))
        if impossible:
            self.refused["invalid_heartbeat"] += impossible
            rows, heartbeats = rows[possible], heartbeats[possible]
        evidence.of_many(table, self.detector, rows, heartbeats, now=now, path=self._path(sender))

    def _apply_one(self, state: EndpointState, now: Now, sender: str) -> bool:
        reason = implausible(state, now)
        if reason is None and self.quarantine.refuses(state.endpoint, state.generation, now.monotonic):
            reason = "quarantined"
        if reason is None and _expired(state, now):
            reason = "expired"
        if reason is not None:
            self.refused[reason] += 1
            return False
        if state.endpoint == self.endpoint:
            self.claims.append(state)
            return False
        row = self.table.row(state.endpoint)
        path = self._path(sender)
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
        self._install(row, state, now)
        self._events.append(EndpointJoined(state.endpoint, self.view(row)))
        self._begin_liveness(row, now, path)
        self._tell_gone(row, None)
        self._settle_identity(state.endpoint)
        return True

    def _restart(self, row: int, state: EndpointState, now: Now, path: int) -> None:
        old = self.view(row)
        self.detector.reset(_one(row))
        self._install(row, state, now)
        new = self.view(row)
        if old.generation == 0:
            self._events.append(EndpointJoined(state.endpoint, new))
        elif old.host_id is not None and new.host_id is not None and old.host_id != new.host_id:
            self._events.append(EndpointReplaced(state.endpoint, old, new))
        else:
            self._events.append(EndpointRestarted(state.endpoint, old, new))
        if old.alive and new.liveness is Liveness.DOWN:
            self._events.append(EndpointDead(state.endpoint, old, new, new.status))
        self._begin_liveness(row, now, path)
        self._tell_gone(row, old)
        self._settle_identity(state.endpoint)

    def _install(self, row: int, state: EndpointState, now: Now) -> None:
        """Replace everything known of a row by one generation's state, which may be partial."""
        table = self.table
        table.begin_incarnation(row, state.generation, state.interval_ms, _began_ms(state, now))
        table.heartbeat[row] = state.heartbeat
        if state.from_version == 0:
            table.advance_states_version(row, state.states_version)
        table.gc_version[row] = state.gc_version
        table.states[row] = dict(state.values)
        table.echo_wanted[row] = False
        table.echo_generation[row] = 0
        table.known_since[row] = now.monotonic
        table.clear_expiry(row)
        table.knows_local_version[row] = 0
        self.saved.drop(state.endpoint)
        self._read(row)
        dead = table.stopped[row] or table.dead_status[row]
        table.liveness[row] = LivenessCode.DOWN if dead else LivenessCode.UNKNOWN

    def _begin_liveness(self, row: int, now: Now, path: int) -> None:
        if not self.table.stopped[row]:
            evidence.of_one(self.table, self.detector, row, int(self.table.heartbeat[row]), now=now, path=path)

    def _merge(self, row: int, state: EndpointState, now: Now, path: int) -> bool:
        """Newer heartbeat and newer values of the current generation."""
        table = self.table
        if table.stopped[row] and _latest_tick(state) > int(table.heartbeat[row]):
            self.refused["after_last_words"] += 1
            return False
        if state.heartbeat > int(table.heartbeat[row]) and not table.stopped[row]:
            evidence.of_one(table, self.detector, row, state.heartbeat, now=now, path=path)
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
        if state.from_version <= int(table.states_version[row]) < state.states_version:
            table.advance_states_version(row, state.states_version)
        table.gc_version[row] = max(int(table.gc_version[row]), state.gc_version)
        self._drop_collected(row)
        if old is None:
            return False
        if ApplicationState.STATUS in changed:
            # Of two removals in one generation the greater version holds, and its time.
            table.clear_expiry(row)
        self._read(row)
        self._events.append(StateChanged(state.endpoint, old, self.view(row), _ordered(changed.keys() | gone)))
        if table.stopped[row] or table.dead_status[row]:
            self.mark_dead(row, self.view(row).status)
        self._tell_gone(row, old)
        self._settle_identity(state.endpoint)
        return True

    def _drop_collected(self, row: int) -> None:
        """Tombstones that the owner has dropped are not needed once everything up to there is known (invariant 4)."""
        table = self.table
        collected = int(table.gc_version[row])
        states = table.states[row]
        if collected <= int(table.states_version[row]) and any(v.deleted for v in states.values()):
            table.states[row] = {k: v for k, v in states.items() if not (v.deleted and v.version <= collected)}

    def _tell_gone(self, row: int, old: EndpointView | None) -> None:
        """EndpointLeft or EndpointRemoved, when ``old`` was not gone yet."""
        if self.table.expire_ms[row] == NO_EXPIRY:
            return
        new = self.view(row)
        if new.status not in GONE_STATUSES or (old is not None and old.status in GONE_STATUSES):
            return
        removed_by = new.get(ApplicationState.REMOVED_BY)
        before = new if old is None else old
        if removed_by is None:
            self._events.append(EndpointLeft(new.endpoint, before, new))
        else:
            self._events.append(EndpointRemoved(new.endpoint, before, new, removed_by))

    # -- identity: one host id, one endpoint -------------------------------------------------------------------------

    def _settle_identity(self, endpoint: str) -> None:
        """After a change of ``endpoint``: one endpoint per host id, and replaced nodes are gone."""
        row = self.table.row(endpoint)
        if row is None:
            return
        host_id = self.host_id_at(row)
        if host_id is not None:
            self._settle_host_id(host_id, endpoint)
        self._settle_replacements()

    def _settle_host_id(self, host_id: str, endpoint: str) -> None:
        """``endpoint`` says that it has ``host_id``: so may another one, and one of them loses it."""
        rival = self._host_ids.get(host_id)
        rival_row = None if rival is None or rival == endpoint else self.table.row(rival)
        row = self.table.row(endpoint)
        if row is None:
            return
        self._forget_saved(host_id, int(self.table.generation[row]))
        if rival is None or rival_row is None or self.host_id_at(rival_row) != host_id:
            self._host_ids[host_id] = endpoint
            return
        wins = (int(self.table.generation[row]), endpoint) > (int(self.table.generation[rival_row]), rival)
        winner, loser = (row, rival_row) if wins else (rival_row, row)
        if loser == self.local_row:
            self.host_id_winner = self.table.endpoint(winner)
            return
        self._host_ids[host_id] = self.table.endpoint(winner)
        self._replace(loser, winner)

    def _settle_replacements(self) -> None:
        for replacer in list(self._replacers):
            row = self.table.row(replacer)
            if row is not None:
                self._settle_replacement(self.view(row))

    def _settle_replacement(self, view: EndpointView) -> None:
        """``view`` may say that it replaces dead nodes; once it has joined they are forgotten, also when it is gone."""
        if view.status not in JOINED_STATUSES:
            return
        for host_id, generation in replaced_in(view.get(ApplicationState.REPLACES)):
            self._forget_saved(host_id, generation)
            victim = self._host_ids.get(host_id)
            victim_row = None if victim is None or victim == view.endpoint else self.table.row(victim)
            new_row = self.table.row(view.endpoint)
            if victim_row is None or new_row is None or victim_row == self.local_row:
                continue
            # Of its own victim this node made sure in its shadow round.
            is_dead = self.table.liveness[victim_row] == _DOWN or new_row == self.local_row
            if is_dead and int(self.table.generation[victim_row]) <= generation:
                self._replace(victim_row, new_row)

    def _replace(self, loser: int, winner: int) -> None:
        old, new = self.view(loser), self.view(winner)
        self.quarantine.bury(old.endpoint, old.generation, FOR_EVER)
        self._drop(loser)
        self._events.append(EndpointReplaced(new.endpoint, old, new))

    def _forget_saved(self, host_id: str, generation: int) -> None:
        """Somebody else has this host id now, or took the place of the one who had it up to ``generation``.

        Nothing was told of that one in this run, so its end is told to nobody, and it is not quarantined: if it lives
        after all, its own state settles who stays.
        """
        peer = self.saved.with_host_id(host_id, self.now.wall)
        row = None if peer is None else self.table.row(peer.endpoint)
        if peer is not None and row is not None and peer.generation <= generation:
            self._drop(row)

    def _drop(self, row: int) -> None:
        endpoint, host_id = self.table.endpoint(row), self.host_id_at(row)
        self.saved.drop(endpoint)
        if host_id is not None and self._host_ids.get(host_id) == endpoint:
            del self._host_ids[host_id]
        self._replacers.pop(endpoint, None)
        self.detector.reset(_one(row))
        self.table.remove(endpoint)

    def host_id_at(self, row: int) -> str | None:
        """The host id of a row, None when it has said none."""
        value = self.table.states[row].get(ApplicationState.HOST_ID)
        return None if value is None or value.deleted else value.value

    def endpoint_of(self, host_id: str) -> str | None:
        """The endpoint that has a host id."""
        endpoint = self._host_ids.get(host_id)
        return endpoint if endpoint is not None and endpoint in self.table else None

    # -- forgetting --------------------------------------------------------------------------------------------------

    def remember(self, endpoints: Iterable[str], now: Now, peers: Iterable[KnownPeer] = ()) -> None:
        """Endpoints known from an earlier run: DOWN, generation 0, in no digest, and tried as unreachable ones.

        ``peers``: what the file of that run says of those of which it says more.
        """
        others = [peer for peer in peers if peer.endpoint not in self.table]
        self.saved.remember((peer for peer in others if peer.host_id not in self._host_ids), now.wall)
        for endpoint in (*endpoints, *(peer.endpoint for peer in others)):
            if endpoint not in self.table:
                row = self.table.add(endpoint)
                self.table.liveness[row] = LivenessCode.DOWN
                self.table.known_since[row] = now.monotonic

    def forget_past(self, now: Now) -> None:
        """Forget who is gone and past the expiry, guests that fell silent, and tell of values that expired."""
        table = self.table
        wall_ms = round(now.wall * 1000)
        # Looked at in every round, and hardly ever is anything due: one look at the earliest time first.
        if table.expire_ms.min() <= wall_ms:
            due = (table.used & (table.expire_ms <= wall_ms)).nonzero()[0]
            for row in due[due != self.local_row].tolist():
                self._forget(row, "expired", FOR_EVER)
        down = (table.used & (table.liveness == _DOWN)).nonzero()[0]
        if len(down):
            self._forget_silent(down, now)
        if table.value_expiry_ms.min() <= wall_ms:
            for row in (table.value_expiry_ms <= wall_ms).nonzero()[0].tolist():
                self._tell_expired(row, wall_ms)
        if len(self.quarantine):
            self.quarantine.drop_past(now.monotonic)

    def _forget_silent(self, down: Rows, now: Now) -> None:
        """Forget those that are no members, among the rows that are DOWN, after their time of silence."""
        table = self.table
        saved = table.generation[down] == 0
        # A delta of somebody unknown, whose whole state nobody had in all that time: a late message of a past that
        # others remember as over. It must not live on among those who have forgotten it.
        fragment = (table.states_version[down] == 0) & ~saved
        fleeting = table.guest[down] | saved | fragment
        down, saved = down[fleeting], saved[fleeting]
        if not len(down):
            return
        silence = now.monotonic - np.maximum(table.evidence_arrival[down], table.known_since[down])
        interval = np.maximum(table.interval_ms[self.local_row], table.interval_ms[down]) / 1000
        intervals = np.where(self._joining(down), JOINING_SILENCE_INTERVALS, GUEST_SILENCE_INTERVALS)
        patience = np.where(saved, GONE_EXPIRE_SECONDS, intervals * interval)
        for i in (silence > patience).nonzero()[0].tolist():
            self._forget(int(down[i]), "silent", now.monotonic + QUARANTINE_INTERVALS * float(interval[i]))

    def _joining(self, rows: Rows) -> list[bool]:
        """Which of them are guests that said they are joining."""
        table = self.table
        return [bool(table.guest[row]) and ApplicationState.STATUS in table.states[row] for row in rows.tolist()]

    def _forget(self, row: int, reason: str, until: float) -> None:
        old = self.view(row)
        self.quarantine.bury(old.endpoint, old.generation, until)
        self._drop(row)
        if old.generation:
            self._events.append(EndpointForgotten(old.endpoint, old, reason))

    def _tell_expired(self, row: int, wall_ms: int) -> None:
        first_ms = int(self.table.value_expiry_ms[row])
        states = self.table.states[row].items()
        expired = [key for key, value in states if first_ms <= value.expires_at_ms <= wall_ms]
        old = self.view(row, wall_ms=first_ms - 1)
        self._read(row)
        self._events.append(StateChanged(old.endpoint, old, self.view(row), _ordered(expired)))

    def expired_local_keys(self, now: Now) -> list[str]:
        """Keys of the local endpoint whose values are past their expiry and not yet deleted."""
        if not self.table.hides_values[self.local_row]:
            return []
        wall_ms = round(now.wall * 1000)
        states = self.table.states[self.local_row]
        return sorted(key for key, value in states.items() if 0 < value.expires_at_ms <= wall_ms)

    # -- liveness ----------------------------------------------------------------------------------------------------

    def echo_candidates(self) -> Rows:
        """Rows that gave evidence of life while not alive, and have no ECHO under way."""
        table = self.table
        rows: Rows = table.echo_wanted.nonzero()[0]
        asked = (table.echo_generation[rows] > 0) | table.stopped[rows] | table.dead_status[rows]
        candidates: Rows = rows[~asked]
        return candidates

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
        if generation != int(table.generation[row]) or table.stopped[row] or table.dead_status[row]:
            return
        if heartbeat > int(table.heartbeat[row]) and heartbeat <= evidence.limits(table, _one(row), now)[0]:
            evidence.of_one(table, self.detector, row, heartbeat, now=now, path=row)
        table.direct_arrival[row] = now.monotonic
        table.echo_wanted[row] = False
        if table.liveness[row] == _ALIVE:
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
            self._events.append(EndpointDead(old.endpoint, old, self.view(row), reason))
        self._settle_replacements()

    def convict_silent(self, now: Now) -> float:
        """Mark those dead whose phi is above the threshold; return how long this process stood still, if it did."""
        table = self.table
        watched = table.used & (table.liveness != _DOWN)
        watched[self.local_row] = False
        verdict = self.detector.interpret(watched.nonzero()[0], now.monotonic)
        for row in verdict.convicted.tolist():
            self.mark_dead(row, "convicted")
        return verdict.paused_seconds

    # -- views -------------------------------------------------------------------------------------------------------

    def view(self, row: int, *, wall_ms: int | None = None) -> EndpointView:
        """An immutable picture of one endpoint, without values that are deleted or expired (at ``wall_ms``: now)."""
        table = self.table
        states = table.states[row]
        if table.hides_values[row]:
            wall_ms = round(self.now.wall * 1000) if wall_ms is None else wall_ms
            states = {
                key: value for key, value in states.items() if not (value.deleted or 0 < value.expires_at_ms <= wall_ms)
            }
        return EndpointView(
            endpoint=table.endpoint(row),
            generation=int(table.generation[row]),
            heartbeat=int(table.heartbeat[row]),
            states_version=int(table.states_version[row]),
            interval_ms=int(table.interval_ms[row]),
            liveness=_LIVENESS[int(table.liveness[row])],
            states=MappingProxyType(states),
        )

    def live_rows(self) -> Rows:
        """Live endpoints, without the local one."""
        table = self.table
        live = table.used & (table.liveness == _ALIVE)
        live[self.local_row] = False
        rows: Rows = live.nonzero()[0]
        return rows

    def unreachable_rows(self) -> Rows:
        """Endpoints that are not alive and may come back: all but those in a dead state."""
        table = self.table
        rows: Rows = (table.used & (table.liveness != _ALIVE) & ~table.dead_status).nonzero()[0]
        return rows

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _read(self, row: int) -> None:
        """Bring the columns that are derived from application states up to date."""
        table = self.table
        value = table.states[row].get(ApplicationState.STATUS)
        text = "" if value is None or value.deleted else value.value
        status = status_of(text)
        table.dead_status[row] = status in DEAD_STATUSES
        table.stopped[row] = status in STOPPED_STATUSES
        table.guest[row] = status in GUEST_STATUSES
        if status not in GONE_STATUSES:
            table.clear_expiry(row)
        elif table.expire_ms[row] == NO_EXPIRY:
            table.set_expiry(row, expire_ms_of(text, self.now.wall))
        for key, column in ((ApplicationState.DC, table.datacenter), (ApplicationState.RACK, table.rack)):
            name = table.states[row].get(key)
            column[row] = 0 if name is None else table.name_number(name.value)
        capabilities = table.states[row].get(ApplicationState.CAPABILITIES)
        table.speaks_compact[row] = capabilities is not None and COMPACT in capabilities.value.split(",")
        if ApplicationState.REPLACES in table.states[row]:
            self._replacers[table.endpoint(row)] = None
        hiding = [value for value in table.states[row].values() if value.deleted or value.expires_at_ms]
        table.hides_values[row] = bool(hiding)
        wall_ms = round(self.now.wall * 1000)
        table.value_expiry_ms[row] = min(
            (v.expires_at_ms for v in hiding if v.expires_at_ms > wall_ms), default=NO_EXPIRY
        )

    def _path(self, sender: str) -> int:
        row = self.table.row(sender)
        return NO_PATH if row is None else row


def implausible(state: EndpointState, now: Now) -> str | None:
    """Why a state cannot be true by the local wall clock, or None. Said of known and unknown endpoints alike."""
    ahead = state.generation - now.wall
    if ahead > GENERATION_AHEAD_SECONDS_MAX:
        return "invalid_generation"
    if state.heartbeat <= REMEMBERED_HEARTBEAT:
        # Said in shadow rounds of whom nobody has heard: no owner ever told that.
        return "invalid_heartbeat"
    if state.heartbeat * state.interval_ms / 1000 > GENERATION_AHEAD_SECONDS_MAX - ahead:
        return "invalid_heartbeat"
    return None


def _latest_tick(state: EndpointState) -> int:
    """The tick of the newest version that a state names."""
    return tick_of(max(state.states_version, state.gc_version, *(value.version for _, value in state.values), 0))


def _began_ms(state: EndpointState, now: Now) -> int:
    """When a generation began to be told: a removal takes a number of the past, its STATUS says when it was made."""
    values = dict(state.values)
    if ApplicationState.REMOVED_BY in values and ApplicationState.STATUS in values:
        expire_ms = expire_ms_of(values[ApplicationState.STATUS].value, now.wall)
        return max(state.generation * 1000, expire_ms - GONE_EXPIRE_SECONDS * 1000)
    return state.generation * 1000


def _expired(state: EndpointState, now: Now) -> bool:
    """Whether it is of somebody gone for good whose time to be remembered is over."""
    status = next((value.value for key, value in state.values if key == ApplicationState.STATUS), "")
    return status_of(status) in GONE_STATUSES and expire_ms_of(status, now.wall) <= now.wall * 1000


def _apply_order(state: EndpointState) -> tuple[bool, int, str]:
    joining = any(key == ApplicationState.STATUS and status_of(v.value) in _JOINING for key, v in state.values)
    return joining, state.generation, state.endpoint


def _ordered(keys: Iterable[str]) -> tuple[str, ...]:
    """STATUS first: listeners want to know whom they deal with before they read the rest."""
    return tuple(sorted(keys, key=lambda key: (key != ApplicationState.STATUS, key)))


def _one(row: int) -> Rows:
    return np.array([row], dtype=np.intp)
