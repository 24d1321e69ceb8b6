"""Engines against each other in virtual time: what one decides, the other gets, unless the link is cut.

Method: ``Cluster`` carries out effects at once, in order, with a seeded source of randomness, so a failure replays
from its seed. Whole histories are hunted for elsewhere; here each rule is seen by itself.
"""

from __future__ import annotations

import numpy as np
import pytest
from engine_cluster import WALL, Cluster
from hypothesis import given
from hypothesis import strategies as st

from gossiper.core.application_states import ApplicationState
from gossiper.core.digest import endpoint_states, examine, requested_states
from gossiper.core.io import (
    Answer,
    Count,
    RequestReceived,
    RoundDue,
    Send,
    ShutdownRequested,
    Warn,
)
from gossiper.core.local import Publish, Published
from gossiper.core.messages import (
    DigestColumns,
    EchoRequest,
    GossipDigestAck,
    GossipDigestAck2,
    GossipDigestAck2Reply,
    GossipDigestSyn,
    Sender,
)
from gossiper.core.versions import COUNTERS_PER_TICK, next_generation, next_tick, tick_of, version_of
from gossiper.errors import NotRunningError, PeerProtocolError, PublishError
from gossiper.events import EndpointAlive, EndpointDead, EndpointRestarted
from gossiper.limits import STATES_PER_ENDPOINT_MAX, VALUE_BYTES_MAX

A, B, C = "10.0.0.0:7000", "10.0.0.1:7000", "10.0.0.2:7000"


@pytest.mark.parametrize("seed", range(5))
def test_a_cluster_finds_itself_through_one_seed(seed: int) -> None:
    cluster = Cluster(12, seed=seed)
    cluster.run(12)
    assert cluster.converged()
    assert all(liveness == "alive" for _, liveness, _ in cluster.view(A).values())
    assert len(cluster.view(A)) == 12


def test_a_steady_exchange_is_one_round_trip_without_ack2() -> None:
    cluster = Cluster(3)
    cluster.run(5)
    cluster.sent.clear()
    cluster.run(10)
    assert set(cluster.sent) == {"GossipDigestSyn"}


def test_values_reach_everybody_and_deletions_too() -> None:
    cluster = Cluster(5)
    cluster.run(6)
    cluster.do(C, Publish({"role": "worker", "zone": "x"}, 1))
    cluster.run(6)
    assert cluster.view(A)[C][2]["role"] == "worker"
    cluster.do(C, Publish({"role": None}, 2))
    cluster.run(6)
    assert "role" not in cluster.view(A)[C][2]
    assert cluster.view(B)[C][2]["zone"] == "x"
    assert cluster.converged()


def test_all_keys_of_one_call_share_a_version_and_surplus_calls_are_merged() -> None:
    cluster = Cluster(1)
    cluster.run(1)
    published = [cluster.do(A, Publish({"a": str(n), f"k{n}": ""}, n)) for n in range(COUNTERS_PER_TICK + 2)]
    versions = [effect.version for effects in published for effect in effects if isinstance(effect, Published)]
    heartbeat = cluster.engines[A].heartbeat
    assert versions == [version_of(heartbeat, counter) for counter in range(COUNTERS_PER_TICK)]
    assert cluster.view(A)[A][2]["a"] == str(COUNTERS_PER_TICK - 1), "the last two calls wait"
    cluster.effects.clear()
    cluster.run(1)
    late = [effect for effect in cluster.effects if isinstance(effect, Published)]
    assert [effect.ticket for effect in late] == [COUNTERS_PER_TICK, COUNTERS_PER_TICK + 1]
    assert {effect.version for effect in late} == {version_of(heartbeat + 1, 0)}
    assert cluster.view(A)[A][2]["a"] == str(COUNTERS_PER_TICK + 1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "nothing"),
        ({"STATUS": "NORMAL"}, "gossiper itself"),
        ({"no key": "x"}, "is no key"),
        ({"k" * 300: "x"}, "is no key"),
        ({"big": "x" * (VALUE_BYTES_MAX + 1)}, "at most"),
        ({f"k{n}": "" for n in range(STATES_PER_ENDPOINT_MAX)}, "application states"),
        ({f"k{n}": "x" * VALUE_BYTES_MAX for n in range(17)}, "together"),
    ],
)
def test_what_may_not_be_published_changes_nothing(values: dict[str, str], words: str) -> None:
    cluster = Cluster(1)
    before = cluster.view(A)
    with pytest.raises(PublishError, match=words):
        cluster.do(A, Publish(values, 1))
    assert cluster.view(A) == before


def test_tombstones_count_in_the_limit_that_peers_enforce() -> None:
    cluster = Cluster(1)
    cluster.run(1)
    cluster.do(A, Publish({f"k{n}": "" for n in range(250)}, 1))
    cluster.do(A, Publish({f"k{n}": None for n in range(250)}, 2))
    with pytest.raises(PublishError, match="application states"):
        cluster.do(A, Publish({f"new{n}": "" for n in range(10)}, 3))


@pytest.mark.parametrize("seed", range(3))
def test_a_crash_is_convicted_by_everybody_and_a_restart_is_seen(seed: int) -> None:
    cluster = Cluster(5, seed=seed)
    cluster.run(30)
    old = cluster.engines.pop(C)
    cluster.run(40)
    for observer in cluster.engines:
        assert cluster.view(observer)[C][1] == "down"
        assert sum(isinstance(event, EndpointDead) for event in cluster.events[observer]) == 1
    cluster.add(C, generation=old.generation + 1)
    cluster.run(6)
    assert cluster.converged()
    assert cluster.view(A)[C][:2] == (old.generation + 1, "alive")
    kinds = [type(event) for event in cluster.events[A] if event.endpoint == C][-2:]  # type: ignore[union-attr]
    assert EndpointAlive in kinds
    assert sum(isinstance(event, EndpointRestarted) for event in cluster.events[A]) == 1


def test_nobody_is_convicted_while_all_speak() -> None:
    cluster = Cluster(8)
    cluster.run(300)
    assert not any(isinstance(event, EndpointDead) for events in cluster.events.values() for event in events)


def test_shutdown_is_told_at_once_and_ends_all_answers() -> None:
    cluster = Cluster(4)
    cluster.run(8)
    cluster.do(C, ShutdownRequested())
    for observer in (A, B):
        dead = [event for event in cluster.events[observer] if isinstance(event, EndpointDead)]
        assert [(event.endpoint, event.reason) for event in dead] == [(C, "shutdown")]
    tick = cluster.engines[C].heartbeat
    cluster.run(60)
    assert cluster.engines[C].heartbeat == tick, "a stopped node does not tick"
    assert cluster.view(A)[C][1] == "down"
    sender = Sender("test", 1, A, cluster.engines[A].generation)
    with pytest.raises(PeerProtocolError, match="not_running"):
        cluster.do(C, RequestReceived(EchoRequest(sender, cluster.engines[C].generation)))
    with pytest.raises(NotRunningError):
        cluster.do(C, Publish({"a": "1"}, 1))
    assert cluster.do(C, ShutdownRequested()) == []


def test_shutdown_takes_along_what_waits() -> None:
    cluster = Cluster(2)
    cluster.run(3)
    for n in range(COUNTERS_PER_TICK + 1):
        cluster.do(B, Publish({"a": str(n)}, n))
    cluster.do(B, ShutdownRequested())
    assert cluster.view(A)[B][2]["a"] == str(COUNTERS_PER_TICK)
    assert cluster.view(A)[B][2]["STATUS"] == "shutdown,true"


def test_an_echo_whose_answer_is_lost_is_tried_again() -> None:
    cluster = Cluster(2)
    cluster.lost = {EchoRequest}
    cluster.run(5)
    assert cluster.view(A)[B][1] == "unknown", "B's heartbeats arrive, but it never answered: not up"
    assert cluster.sent["EchoRequest"] >= 5
    cluster.lost = set()
    cluster.run(3)
    assert cluster.view(A)[B][1] == "alive"


def test_a_partition_heals() -> None:
    cluster = Cluster(6)
    cluster.run(30)
    left, right = list(cluster.engines)[:3], list(cluster.engines)[3:]
    cluster.cut = {(a, b) for a in left for b in right} | {(b, a) for a in left for b in right}
    cluster.run(40)
    assert {liveness for endpoint, (_, liveness, _) in cluster.view(A).items() if endpoint in right} == {"down"}
    cluster.do(right[0], Publish({"said": "meanwhile"}, 1))
    cluster.cut = set()
    cluster.run(15)
    assert cluster.converged()
    assert cluster.view(A)[right[0]][2]["said"] == "meanwhile"


def test_an_unreachable_peer_is_tried_in_every_round() -> None:
    cluster = Cluster(6)
    cluster.run(30)
    del cluster.engines[C]
    cluster.run(40)
    cluster.effects.clear()
    cluster.do(A, RoundDue())
    targets = {effect.peer for effect in cluster.effects if isinstance(effect, Send)}
    assert C in targets


def test_a_forgotten_generation_is_outrun() -> None:
    """The data directory was lost and the clock is behind: the cluster still knows a greater generation."""
    cluster = Cluster(3)
    cluster.run(5)
    old = cluster.engines.pop(C)
    cluster.add(C, generation=old.generation - 5000)
    cluster.do(C, Publish({"kept": "yes"}, 1))
    cluster.run(8)
    assert cluster.engines[C].generation == old.generation + 2
    assert cluster.converged()
    assert cluster.view(A)[C][1] == "alive"
    assert cluster.view(A)[C][2]["kept"] == "yes"


def test_another_cluster_is_refused_before_anything_changes() -> None:
    ours, theirs = Cluster(1), Cluster(2, cluster_name="other")
    theirs.run(2)
    foreign = [
        effect.request
        for effect in theirs.engines[B].handle(RoundDue(), theirs.now)
        if isinstance(effect, Send) and isinstance(effect.request, GossipDigestSyn)
    ]
    before = ours.view(A)
    with pytest.raises(PeerProtocolError, match="cluster_mismatch"):
        ours.do(A, RequestReceived(foreign[0]))
    assert ours.view(A) == before


@pytest.mark.parametrize(
    ("sender", "reason"),
    [(Sender("test", 2, B, 1), "protocol_version"), (Sender("test", 1, A, 1), "own_endpoint")],
)
def test_senders_that_cannot_be_spoken_with(sender: Sender, reason: str) -> None:
    with pytest.raises(PeerProtocolError, match=reason):
        Cluster(1).do(A, RequestReceived(EchoRequest(sender, 1)))


def test_when_everybody_seems_to_be_from_the_future_the_own_clock_is_suspected() -> None:
    cluster = Cluster(1)
    digests = DigestColumns.from_rows([(f"10.0.1.{n}:7000", int(WALL) + 10**8, 1, 16) for n in range(3)])
    sender = Sender("test", 1, "10.0.1.0:7000", int(WALL) + 10**8)
    effects = cluster.do(A, RequestReceived(GossipDigestSyn(sender, 0, digests)))
    assert [effect.key for effect in effects if isinstance(effect, Warn)] == ["own_clock"]
    assert Count("gossiper_refused_entries_total", "invalid_generation", 3) in effects
    ack = next(effect.reply for effect in effects if isinstance(effect, Answer))
    assert isinstance(ack, GossipDigestAck)
    assert len(ack.requests) == 0, "what will be refused is not requested"


def test_a_pause_of_the_process_convicts_nobody() -> None:
    cluster = Cluster(3)
    cluster.run(30)
    cluster.time += 60.0
    cluster.effects.clear()
    cluster.run(1)
    assert any(isinstance(effect, Warn) and effect.key == "local_pause" for effect in cluster.effects)
    cluster.run(30)
    assert not any(isinstance(event, EndpointDead) for events in cluster.events.values() for event in events)


def test_a_request_that_belongs_to_an_older_incarnation_gets_the_whole_new_one() -> None:
    """Cassandra sends a delta counted in the old generation's versions here, and leaves a gap."""
    cluster = Cluster(2)
    cluster.run(4)
    a = cluster.engines[A]
    row = a.state.table.row(B)
    assert row is not None
    current = int(a.state.table.generation[row])
    asked = DigestColumns.from_rows([(B, current - 1, 5, 10**6), (B.replace("1:", "9:"), 1, 1, 1)])
    assert requested_states(a.state, asked) == [(row, 0)]
    newer = DigestColumns.from_rows([(B, current + 1, 5, 0)])
    assert requested_states(a.state, newer) == []


def test_states_over_the_budget_come_with_later_exchanges() -> None:
    cluster = Cluster(30)
    cluster.run(15)
    engine = cluster.engines[A]
    wanted = [(int(row), 0) for row in engine.state.table.rows()]
    states, left_out = endpoint_states(engine.state, wanted, bytes_max=500)
    assert 0 < len(states) < 30
    assert left_out == 30 - len(states)
    assert len(endpoint_states(engine.state, wanted, bytes_max=1)[0]) == 1, "always some progress"


@given(st.data())
def test_examination_follows_its_table(data: st.DataObject) -> None:
    """The vectorised comparison against the table in the module's docstring, one endpoint at a time."""
    cluster = Cluster(5)
    cluster.run(8)
    state = cluster.engines[A].state
    table = state.table
    near = st.integers(-2, 2)
    rows: list[tuple[str, int, int, int]] = []
    for endpoint in data.draw(st.lists(st.sampled_from([*cluster.engines, "9.9.9.9:1"]), unique=True)):
        row = table.row(endpoint)
        base = (
            (int(WALL), 5, 16)
            if row is None
            else (int(table.generation[row]), int(table.heartbeat[row]), int(table.states_version[row]))
        )
        generation, heartbeat, version = (max(0, value + data.draw(near)) for value in base)
        rows.append((endpoint, generation, heartbeat, version))
    digests = DigestColumns.from_rows(rows)
    found = examine(state, digests, cluster.now)
    requests = dict(zip(found.requests.endpoints, found.requests.states_versions.tolist(), strict=True))
    sends = {table.endpoint(row): version for row, version in found.send_states}
    beats = {table.endpoint(int(row)) for row in found.send_heartbeats}
    takes = {table.endpoint(int(row)) for row in found.take_rows}
    for endpoint, generation, heartbeat, version in rows:
        row = table.row(endpoint)
        local = (
            (-1, 0, 0)
            if row is None
            else (int(table.generation[row]), int(table.heartbeat[row]), int(table.states_version[row]))
        )
        own = endpoint == A
        assert (endpoint in requests) == (
            generation > local[0] or (not own and generation == local[0] and version > local[2])
        )
        if endpoint in requests:
            assert requests[endpoint] == (local[2] if generation == local[0] else 0)
        assert (endpoint in sends) == (generation < local[0] or (generation == local[0] and version < local[2]))
        if endpoint in sends:
            assert sends[endpoint] == (version if generation == local[0] else 0)
        assert (endpoint in takes) == (not own and generation == local[0] and heartbeat > local[1])
        assert (endpoint in beats) == (generation == local[0] and heartbeat < local[1] and endpoint not in sends)
    assert {endpoint for endpoint in cluster.engines if endpoint not in digests.endpoints} <= set(sends)


def test_ticks_versions_generations() -> None:
    assert next_tick(5, 100.0, 1.0) == 100, "after a pause it catches up"
    assert next_tick(100, 0.0, 1.0) == 101, "it always advances"
    assert version_of(7, 15) == 127
    assert tick_of(127) == 7
    assert next_generation(None, 1000.9) == 1000
    assert next_generation(1000, 1000.9) == 1002
    assert next_generation(5000, 1000.9) == 5002
    assert next_generation(5000, 1000.9, own_seen=7000) == 7002


def test_application_states_are_the_ones_of_the_field() -> None:
    wanted = {"STATUS", "LOAD", "SCHEMA", "DC", "RACK", "RELEASE_VERSION", "HOST_ID", "TOKENS", "RPC_READY"}
    assert wanted <= set(ApplicationState)


def test_an_ack2_answers_whether_it_was_news() -> None:
    cluster = Cluster(2)
    cluster.run(4)
    b = cluster.engines[B]
    cluster.do(B, Publish({"a": "1"}, 1))
    states, _ = endpoint_states(b.state, [(b.state.local_row, 0)])
    push = GossipDigestAck2(Sender("test", 1, B, b.generation), states)
    for expected in (1, 0):
        answers = [effect.reply for effect in cluster.do(A, RequestReceived(push)) if isinstance(effect, Answer)]
        assert answers == [GossipDigestAck2Reply(expected)]


def test_the_table_reuses_rows_and_forgets_what_they_held() -> None:
    table = Cluster(3).engines[A].state.table
    row = table.add("10.1.1.1:1")
    table.heartbeat[row] = 9
    table.evidence_path[0] = row
    assert table.remove("10.1.1.1:1") == row
    assert table.evidence_path[0] == -1
    assert table.add("10.1.1.2:1") == row
    assert table.heartbeat[row] == 0
    for number in range(100):
        table.add(f"10.2.0.{number}:1")
    assert len(table) == 102
    table.generation[:50] = 1
    assert len(table.digests()) == 50, "those never told of are not told on"
    assert np.array_equal(table.index_of(("10.1.1.2:1", "nobody:1")), [row, -1])
    with pytest.raises(ValueError, match="known already"):
        table.add("10.1.1.2:1")
