"""Merging what peers say: properties against an owner whose whole history is known, and each transition by itself.

Method: a real ``ClusterState`` is the owner. It publishes, deletes, ticks and restarts; after each step deltas of it
are taken from several versions. Observers get those messages in any order, with losses and repetitions.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossiper.core.digest import endpoint_state
from gossiper.core.failure_detector import PhiAccrualFailureDetector
from gossiper.core.lifecycle import left_value, removed_value
from gossiper.core.messages import EndpointState, VersionedValue
from gossiper.core.state import ClusterState, implausible
from gossiper.core.table import LivenessCode
from gossiper.core.versions import Now, tick_of, version_of
from gossiper.events import (
    EndpointAlive,
    EndpointDead,
    EndpointJoined,
    EndpointLeft,
    EndpointRestarted,
    Liveness,
    StateChanged,
)

OWNER = "10.0.0.1:7000"
OBSERVER = "10.0.0.2:7000"
WALL = 1_700_000_000.0
NOW = Now(1000.0, WALL)
GENERATION = int(WALL) - 3600


def cluster_state(endpoint: str) -> ClusterState:
    detector = PhiAccrualFailureDetector(
        threshold=8.0,
        window_size=1000,
        first_interval_seconds=2.0,
        interval_seconds_max=2.0,
        local_pause_seconds=5.0,
    )
    return ClusterState(detector, endpoint=endpoint)


def observer() -> ClusterState:
    state = cluster_state(OBSERVER)
    state.begin_generation(GENERATION, 1000)
    state.take_events()
    return state


class Owner:
    """An endpoint with a memory: ``at[(generation, version)]`` is its whole state when it had published that much."""

    def __init__(self) -> None:
        self.state = cluster_state(OWNER)
        self.at: dict[tuple[int, int], dict[str, VersionedValue]] = {}
        self.restart()

    @property
    def generation(self) -> int:
        return int(self.state.table.generation[0])

    def restart(self) -> None:
        self.state.begin_generation((self.generation or GENERATION) + 1, 1000)
        self.at[self.generation, 0] = {}
        self.publish({"STATUS": "NORMAL"})

    def publish(self, values: dict[str, str | None]) -> None:
        version = version_of(self.state.tick(0.0), 0)
        self.state.publish(values, version)
        self.at[self.generation, version] = dict(self.state.table.states[0])

    def collect_garbage(self) -> None:
        """Drop all tombstones, as an owner may once everybody has had time to hear of them."""
        table = self.state.table
        table.gc_version[0] = table.states_version[0]
        table.states[0] = {key: value for key, value in table.states[0].items() if not value.deleted}

    def versions(self) -> list[int]:
        return sorted(version for generation, version in self.at if generation == self.generation)

    def delta(self, from_version: int) -> EndpointState:
        return endpoint_state(self.state, 0, from_version)


def contents(state: ClusterState) -> tuple[int, int, dict[str, VersionedValue]] | None:
    row = state.table.row(OWNER)
    if row is None:
        return None
    return int(state.table.generation[row]), int(state.table.heartbeat[row]), dict(state.table.states[row])


def check_no_gap(state: ClusterState, owner: Owner) -> None:
    """Invariants 3 and 4: everything up to states_version is held, and nothing that was deleted below it."""
    row = state.table.row(OWNER)
    if row is None:
        return
    generation, known = int(state.table.generation[row]), int(state.table.states_version[row])
    truth = owner.at[generation, known]
    held = state.table.states[row]
    for key, value in truth.items():
        if not value.deleted:
            assert key in held, f"{key} was published at {value.version} and is missing below {known}"
            assert held[key].version >= value.version
    for key, value in held.items():
        if value.version <= known and not value.deleted:
            assert truth.get(key) == value, f"{key} at {value.version} does not exist at {known}"


step = st.one_of(
    st.dictionaries(st.sampled_from("abcd"), st.one_of(st.none(), st.text(max_size=3)), min_size=1, max_size=3),
    st.just("restart"),
    st.just("gc"),
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[Owner, list[EndpointState]]:
    owner = Owner()
    messages = [owner.delta(0)]
    for action in draw(st.lists(step, max_size=12)):
        if action == "restart":
            owner.restart()
        elif action == "gc":
            owner.collect_garbage()
        else:
            assert isinstance(action, dict)
            owner.publish(action)
        messages += [owner.delta(v) for v in draw(st.lists(st.sampled_from(owner.versions()), max_size=2))]
    return owner, messages


@given(histories(), st.data())
def test_any_order_and_any_repetition_give_the_same_state(
    history: tuple[Owner, list[EndpointState]], data: st.DataObject
) -> None:
    owner, messages = history
    one, other = observer(), observer()
    for message in messages:
        one.apply([message], NOW, OWNER)
        check_no_gap(one, owner)
    shuffled = data.draw(st.permutations(messages)) + data.draw(st.lists(st.sampled_from(messages), max_size=5))
    for message in shuffled:
        before = contents(other)
        other.apply([message], NOW, OWNER)
        check_no_gap(other, owner)
        after = contents(other)
        assert after is not None
        assert before is None or before[:2] <= after[:2], "neither generation nor heartbeat may go back"
    assert contents(one) == contents(other)


@given(histories(), st.data())
def test_a_subset_then_a_relay_through_another_observer_leaves_no_gap(
    history: tuple[Owner, list[EndpointState]], data: st.DataObject
) -> None:
    """A forwarder that has gaps itself must not hide them from the next one."""
    owner, messages = history
    relay, last = observer(), observer()
    for message in data.draw(st.lists(st.sampled_from(messages), max_size=8)):
        relay.apply([message], NOW, OWNER)
        row = relay.table.row(OWNER)
        assert row is not None
        from_version = data.draw(st.sampled_from([0, int(relay.table.states_version[row])]))
        last.apply([endpoint_state(relay, row, from_version)], NOW, OBSERVER)
        check_no_gap(last, owner)
    relay.apply([owner.delta(0)], NOW, OWNER)
    row = relay.table.row(OWNER)
    assert row is not None
    last.apply([endpoint_state(relay, row, 0)], NOW, OBSERVER)
    check_no_gap(last, owner)
    held = {key: value for key, value in last.table.states[row].items() if not value.deleted}
    assert held == {k: v for k, v in owner.state.table.states[0].items() if not v.deleted}


@given(histories())
def test_applying_twice_is_no_news(history: tuple[Owner, list[EndpointState]]) -> None:
    _, messages = history
    state = observer()
    for message in messages:
        state.apply([message], NOW, OWNER)
        state.take_events()
        assert state.apply([message], NOW, OWNER) == 0
        assert state.take_events() == []


def test_a_pushed_value_does_not_hide_a_missing_one() -> None:
    owner = Owner()
    state = observer()
    state.apply([owner.delta(0)], NOW, OWNER)
    known = owner.versions()[-1]
    owner.publish({"a": "1"})
    owner.publish({"b": "2"})
    state.apply([owner.delta(owner.versions()[-2])], NOW, OWNER)
    row = state.table.row(OWNER)
    assert row is not None
    assert set(state.table.states[row]) == {"STATUS", "b"}
    assert int(state.table.states_version[row]) == known, "b must not move the watermark over a"
    state.apply([owner.delta(known)], NOW, OWNER)
    assert set(state.table.states[row]) == {"STATUS", "a", "b"}
    assert int(state.table.states_version[row]) == owner.versions()[-1]


def test_a_late_message_does_not_resurrect_what_was_deleted_and_collected() -> None:
    owner = Owner()
    owner.publish({"a": "1"})
    late = owner.delta(0)
    owner.publish({"a": None})
    owner.collect_garbage()
    state = observer()
    state.apply([owner.delta(0)], NOW, OWNER)
    assert state.apply([late], NOW, OWNER) == 0
    row = state.table.row(OWNER)
    assert row is not None
    assert "a" not in state.table.states[row]


def test_a_delta_cannot_convey_collected_tombstones_so_the_whole_state_is_sent() -> None:
    owner = Owner()
    owner.publish({"a": "1"})
    state = observer()
    state.apply([owner.delta(0)], NOW, OWNER)
    known = owner.versions()[-1]
    owner.publish({"a": None, "b": "2"})
    owner.collect_garbage()
    whole = owner.delta(known)
    assert whole.reset
    assert whole.from_version == 0
    state.apply([whole], NOW, OWNER)
    row = state.table.row(OWNER)
    assert row is not None
    assert set(state.table.states[row]) == {"STATUS", "b"}


def alive_observer(owner: Owner) -> tuple[ClusterState, int]:
    state = observer()
    state.apply([owner.delta(0)], NOW, OWNER)
    row = state.table.row(OWNER)
    assert row is not None
    state.echo_sent(row, NOW)
    state.echo_answered(row, owner.generation, 2, NOW)
    state.take_events()
    assert state.view(row).alive
    return state, row


def test_up_only_after_an_echo() -> None:
    owner = Owner()
    state = observer()
    state.apply([owner.delta(0)], NOW, OWNER)
    row = state.table.row(OWNER)
    assert row is not None
    assert [type(event) for event in state.take_events()] == [EndpointJoined]
    assert state.view(row).liveness is Liveness.UNKNOWN
    assert state.echo_candidates().tolist() == [row]
    state.echo_sent(row, NOW)
    assert state.echo_candidates().tolist() == [], "one ECHO at a time"
    state.echo_failed(row, owner.generation)
    assert state.echo_candidates().tolist() == [row], "a failed ECHO is tried again"
    state.echo_sent(row, NOW)
    state.echo_answered(row, owner.generation, 2, NOW)
    assert [type(event) for event in state.take_events()] == [EndpointAlive]


def test_an_echo_of_an_older_generation_proves_nothing() -> None:
    owner = Owner()
    state = observer()
    state.apply([owner.delta(0)], NOW, OWNER)
    row = state.table.row(OWNER)
    assert row is not None
    asked = owner.generation
    state.echo_sent(row, NOW)
    owner.restart()
    state.apply([owner.delta(0)], NOW, OWNER)
    state.echo_answered(row, asked, 99, NOW)
    assert state.view(row).liveness is Liveness.UNKNOWN
    state.echo_sent(row, NOW)
    state.echo_answered(row, asked, 99, NOW)
    assert state.view(row).liveness is Liveness.UNKNOWN
    assert int(state.table.heartbeat[row]) < 99


def test_restart_of_a_live_endpoint_goes_through_unknown_with_a_new_window() -> None:
    owner = Owner()
    state, row = alive_observer(owner)
    for second in range(5):
        beat = np.array([owner.state.tick(0.0)])
        state.take_heartbeats(np.array([row]), beat, Now(1001.0 + second, WALL), OWNER)
    owner.restart()
    state.apply([owner.delta(0)], Now(1010.0, WALL), OWNER)
    events = state.take_events()
    assert [type(event) for event in events] == [EndpointRestarted]
    restarted = events[0]
    assert isinstance(restarted, EndpointRestarted)
    assert restarted.old.alive
    assert restarted.new.liveness is Liveness.UNKNOWN
    assert state.detector.windows.sample_counts(np.array([row]))[0] == 1


def test_older_generations_change_nothing() -> None:
    owner = Owner()
    old = owner.delta(0)
    owner.restart()
    state, row = alive_observer(owner)
    before = contents(state)
    assert state.apply([replace(old, heartbeat=10**6)], NOW, OWNER) == 0
    assert contents(state) == before
    assert state.view(row).alive
    assert state.take_events() == []


def test_shutdown_is_dead_at_once_and_fenced_by_the_generation() -> None:
    owner = Owner()
    state, row = alive_observer(owner)
    owner.publish({"STATUS": "shutdown,true"})
    last_words = owner.delta(owner.versions()[-2])
    state.apply([last_words], NOW, OWNER)
    events = state.take_events()
    assert [type(event) for event in events] == [StateChanged, EndpointDead]
    dead = events[1]
    assert isinstance(dead, EndpointDead)
    assert dead.reason == "shutdown"
    state.apply([replace(last_words, heartbeat=last_words.heartbeat + 5)], NOW, OBSERVER)
    assert state.echo_candidates().tolist() == [], "a stopped generation is not asked for a sign of life"
    owner.restart()
    state.apply([owner.delta(0)], NOW, OWNER)
    state.echo_sent(row, NOW)
    state.echo_answered(row, owner.generation, 1, NOW)
    state.take_events()
    assert state.apply([last_words], NOW, OBSERVER) == 0, "a late announcement of the older incarnation"
    assert state.view(row).alive


def check_within_tick(state: ClusterState) -> None:
    """Peers refuse whoever says that a version is later than the heartbeat."""
    row = state.table.row(OWNER)
    if row is not None:
        newest = max((value.version for value in state.table.states[row].values()), default=0)
        assert tick_of(max(newest, int(state.table.states_version[row]))) <= int(state.table.heartbeat[row])


@pytest.mark.parametrize("last_word", [left_value(WALL), "shutdown,true", removed_value("host", WALL)])
def test_what_is_said_after_the_last_word_is_refused_whole(last_word: str) -> None:
    owner = Owner()
    state, _ = alive_observer(owner)
    owner.publish({"STATUS": last_word})
    state.apply([owner.delta(0)], NOW, OWNER)
    before = contents(state)
    owner.publish({"late": "value"})
    for late in (owner.delta(owner.versions()[-2]), owner.delta(0), replace(owner.delta(0), values=())):
        state.refused.clear()
        assert state.apply([late], NOW, OWNER) == 0
        assert state.refused == {"after_last_words": 1}
        assert contents(state) == before
        check_within_tick(state)


def test_no_order_of_last_and_later_words_leaves_a_version_ahead_of_the_heartbeat() -> None:
    owner = Owner()
    owner.publish({"STATUS": left_value(WALL)})
    owner.publish({"late": "value"})
    owner.publish({"late": None, "later": "value"})
    ends = owner.versions()
    parts = [
        replace(
            owner.delta(start),
            heartbeat=tick_of(end),
            states_version=end,
            values=tuple((k, v) for k, v in owner.at[owner.generation, end].items() if v.version > start),
        )
        for start, end in itertools.pairwise(ends)
    ]
    parts += [replace(owner.delta(0), heartbeat=10**4, values=(), states_version=0)]
    whole = Owner().delta(0)
    for order in itertools.permutations([whole, *parts]):
        state = observer()
        for part in order:
            state.apply([part], NOW, OWNER)
            check_within_tick(state)


def test_restart_into_a_stopped_state_tells_that_the_old_one_is_dead() -> None:
    owner = Owner()
    state, _ = alive_observer(owner)
    owner.restart()
    owner.publish({"STATUS": left_value(WALL)})
    state.apply([owner.delta(0)], NOW, OBSERVER)
    assert [type(event) for event in state.take_events()] == [EndpointRestarted, EndpointDead, EndpointLeft]


def test_conviction_and_return() -> None:
    owner = Owner()
    state, row = alive_observer(owner)
    at = NOW.monotonic
    while not any(isinstance(event, EndpointDead) for event in state.take_events()):
        at += 1.0
        assert at < NOW.monotonic + 60, "silence must convict"
        state.convict_silent(Now(at, WALL))
    assert int(state.table.liveness[row]) == LivenessCode.DOWN
    assert state.unreachable_rows().tolist() == [row]
    state.take_heartbeats(np.array([row]), np.array([50]), Now(at, WALL), OWNER)
    assert int(state.table.liveness[row]) == LivenessCode.DOWN, "a heartbeat alone does not bring it back"
    state.echo_sent(row, NOW)
    state.echo_answered(row, owner.generation, 51, Now(at, WALL))
    assert [type(event) for event in state.take_events()] == [EndpointAlive]


def test_evidence_tells_path_and_directness() -> None:
    owner = Owner()
    state, row = alive_observer(owner)
    third = "10.0.0.3:7000"
    state.apply([replace(owner.delta(0), endpoint=third)], NOW, third)
    third_row = state.table.row(third)
    state.take_heartbeats(np.array([row]), np.array([7]), Now(1001.0, WALL), third)
    table = state.table
    assert (table.evidence_arrival[row], table.heartbeat[row]) == (1001.0, 7)
    assert table.evidence_path[row] == third_row
    state.take_heartbeats(np.array([row]), np.array([8]), Now(1002.0, WALL), OWNER)
    assert (table.evidence_path[row], table.direct_arrival[row]) == (-1, 1002.0)
    state.take_heartbeats(np.array([row]), np.array([8]), Now(1003.0, WALL), OWNER)
    assert table.evidence_arrival[row] == 1002.0, "a repeated heartbeat is no evidence"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"generation": int(WALL) + 86_401}, "invalid_generation"),
        ({"generation": int(WALL) + 86_399, "heartbeat": 1}, None),
        ({"generation": int(WALL) + 86_400, "heartbeat": 1}, "invalid_heartbeat"),
        ({"heartbeat": 0}, "invalid_heartbeat"),
        ({"heartbeat": 3600 + 86_400 + 2}, "invalid_heartbeat"),
        ({"heartbeat": 3600 + 86_400 - 2}, None),
    ],
)
@pytest.mark.parametrize("known", [False, True])
def test_what_the_wall_clock_refutes_changes_nothing(changes: dict[str, int], reason: str | None, known: bool) -> None:
    owner = Owner()
    state = observer()
    if known:
        state.apply([owner.delta(0)], NOW, OWNER)
    before = contents(state)
    message = replace(owner.delta(0), **{"generation": GENERATION, **changes})  # type: ignore[arg-type]
    assert implausible(message, NOW) == reason
    state.apply([message], NOW, OWNER)
    if reason is not None:
        assert contents(state) == before
        assert state.refused == {reason: 1}


def test_heartbeats_beyond_time_are_left_out_one_by_one() -> None:
    owner = Owner()
    state, row = alive_observer(owner)
    state.take_heartbeats(np.array([row]), np.array([10**9]), NOW, OWNER)
    assert int(state.table.heartbeat[row]) < 10**9
    assert state.refused == {"invalid_heartbeat": 1}


def test_nobody_else_writes_the_local_row() -> None:
    state = observer()
    forged = EndpointState(OBSERVER, GENERATION + 5, 1000, 99, 0, 16, (("STATUS", VersionedValue(16, "LEFT")),))
    assert state.apply([forged], NOW, OWNER) == 0
    assert int(state.table.generation[state.local_row]) == GENERATION
    with pytest.raises(ValueError, match="does not follow"):
        state.begin_generation(GENERATION, 1000)
    state.publish({"a": "1"}, 32)
    with pytest.raises(ValueError, match="does not follow"):
        state.publish({"a": "2"}, 32)


def test_views_do_not_change_afterwards() -> None:
    owner = Owner()
    state, row = alive_observer(owner)
    before = state.view(row)
    owner.publish({"a": "1", "STATUS": None})
    state.apply([owner.delta(0)], NOW, OWNER)
    assert before.status == "NORMAL"
    assert before.get("a") is None
    assert state.view(row).status == "", "a tombstone is not shown"
    with pytest.raises(TypeError):
        state.view(row).states["a"] = VersionedValue(1, "x")  # type: ignore[index]
