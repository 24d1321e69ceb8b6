"""What the simulation found in the core, each as the smallest case."""

from __future__ import annotations

from random import Random

import pytest

from gossiper.core import state as core_state
from gossiper.core.engine import PERSIST_RETRY_INTERVALS, EngineConfig, GossipEngine
from gossiper.core.io import (
    EnableRequested,
    GenerationNotPersisted,
    GenerationPersisted,
    PersistGeneration,
    ReplyReceived,
    RequestReceived,
    RoundDue,
    ShutdownRequested,
    Warn,
)
from gossiper.core.local import LocalEndpoint, Publish
from gossiper.core.messages import (
    DigestColumns,
    EndpointState,
    GossipDigestAck,
    GossipDigestAck2,
    GossipDigestSyn,
    Sender,
    VersionedValue,
)
from gossiper.core.operations import assassination, removal
from gossiper.core.versions import Now, next_generation, version_of
from gossiper.simulation import SimulationOptions, run_seed

NOW = Now(100.0, 1_700_000_100.0)
GENERATION = 1_700_000_000
OWN, PEER, VICTIM = "10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000"
HOST_ID = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
VICTIM_HOST_ID = "11111111-8b86-4d01-b42d-00cf4fc964ff"


def engine() -> GossipEngine:
    return GossipEngine(
        EngineConfig(cluster_name="c", endpoint=OWN, interval_ms=1000),
        generation=GENERATION,
        values={"STATUS": "NORMAL", "HOST_ID": HOST_ID},
        rng=Random(1),
        now=NOW,
    )


def whole(endpoint: str, generation: int, host_id: str) -> EndpointState:
    version = version_of(1, 0)
    values = (("HOST_ID", VersionedValue(version, host_id)), ("STATUS", VersionedValue(version, "NORMAL")))
    return EndpointState(endpoint, generation, 1000, 5, 0, version, values)


def told_of_its_past(node: GossipEngine, generation: int) -> list[int]:
    """Tell a node of a greater generation of itself; the generations that it wants on disk."""
    sender = Sender("c", 1, PEER, GENERATION)
    syn = GossipDigestSyn(Sender("c", 1, OWN, node.generation), 0, node.state.table.digests())
    empty = DigestColumns.empty()
    ack = GossipDigestAck(sender, 0, empty, empty, (whole(OWN, generation, HOST_ID),))
    effects = node.handle(ReplyReceived(PEER, syn, ack), NOW)
    return [effect.generation for effect in effects if isinstance(effect, PersistGeneration)]


def wanted(node: GossipEngine, now: Now) -> list[int]:
    """The generations that it wants on disk in this round."""
    return [effect.generation for effect in node.handle(RoundDue(), now) if isinstance(effect, PersistGeneration)]


def later(seconds: float) -> Now:
    return Now(NOW.monotonic + seconds, NOW.wall + seconds)


def test_a_generation_that_could_not_be_written_is_wanted_again() -> None:
    node = engine()
    assert told_of_its_past(node, GENERATION + 10) == [GENERATION + 12]
    assert wanted(node, later(1)) == []  # it is being written
    effects = node.handle(GenerationNotPersisted(GENERATION + 12, "disk full"), later(1))
    assert [effect.text for effect in effects if isinstance(effect, Warn) and "disk full" in effect.text]
    asked = [at for at in range(2, 12) if wanted(node, later(at))]
    assert asked == [1 + PERSIST_RETRY_INTERVALS]  # once, until its outcome is known
    node.handle(GenerationNotPersisted(GENERATION + 12, "disk full"), later(12))
    asked = [at for at in range(13, 24) if wanted(node, later(at)) == [GENERATION + 12]]
    assert asked == [12 + PERSIST_RETRY_INTERVALS]
    node.handle(GenerationPersisted(GENERATION + 12), later(24))
    assert node.generation == GENERATION + 12
    assert not any(wanted(node, later(at)) for at in range(25, 40))


def test_a_late_failure_of_an_older_generation_changes_nothing() -> None:
    node = engine()
    told_of_its_past(node, GENERATION + 10)
    assert told_of_its_past(node, GENERATION + 20) == [GENERATION + 22]
    # The greater one is written first, so that the smaller one is refused by the disk.
    node.handle(GenerationPersisted(GENERATION + 22), NOW)
    assert node.handle(GenerationNotPersisted(GENERATION + 12, "not greater"), NOW) == []
    assert not any(wanted(node, later(at)) for at in range(1, 20))


def test_a_node_that_has_stopped_no_longer_wants_a_generation() -> None:
    node = engine()
    told_of_its_past(node, GENERATION + 10)
    node.handle(GenerationNotPersisted(GENERATION + 12, "disk full"), NOW)
    node.handle(ShutdownRequested(), NOW)
    assert not any(wanted(node, later(at)) for at in range(1, 20))


@pytest.mark.parametrize("way", ["outrun", "enable"])
def test_a_new_generation_keeps_the_expiry_of_values(way: str) -> None:
    node = engine()
    node.handle(Publish({"lease": "x"}, 1, expires_at_ms=1_700_000_160_000), NOW)
    node.handle(Publish({"gone": "x"}, 2, expires_at_ms=1_700_000_110_000), NOW)
    node.handle(Publish({"stays": "x"}, 3), NOW)
    if way == "outrun":
        told_of_its_past(node, GENERATION + 10)
        node.handle(GenerationPersisted(GENERATION + 12), later(20))
    else:
        node.handle(ShutdownRequested(), NOW)
        node.handle(EnableRequested(GENERATION + 12), later(20))
    assert node.generation == GENERATION + 12
    states = node.state.table.states[node.state.local_row]
    assert states["lease"].expires_at_ms == 1_700_000_160_000
    assert states["stays"].expires_at_ms == 0
    assert "gone" not in states  # it expired meanwhile
    node.handle(RoundDue(), later(70))
    assert node.state.table.states[node.state.local_row]["lease"].deleted


def after(*states: EndpointState) -> tuple[int, int, dict[str, VersionedValue], int]:
    """Generation, version, values and expiry of the victim at a node that hears these states in this order."""
    node = engine()
    for state in states:
        node.handle(RequestReceived(GossipDigestAck2(Sender("c", 1, PEER, GENERATION), (state,))), NOW)
    row = node.state.table.row(VICTIM)
    assert row is not None
    table = node.state.table
    return int(table.generation[row]), int(table.states_version[row]), table.states[row], int(table.expire_ms[row])


def operator_of_dead(generation: int = GENERATION) -> GossipEngine:
    """A node that holds the victim for dead in this generation."""
    operator = engine()
    operator.state.now = NOW
    sender = Sender("c", 1, PEER, GENERATION)
    operator.handle(RequestReceived(GossipDigestAck2(sender, (whole(VICTIM, generation, VICTIM_HOST_ID),))), NOW)
    row = operator.state.table.row(VICTIM)
    assert row is not None
    operator.state.mark_dead(row, "convicted")
    return operator


def test_a_removal_and_a_restart_of_the_victim_meet_in_one_view() -> None:
    removed = removal(operator_of_dead().state, VICTIM_HOST_ID, HOST_ID, NOW)
    # Cut off, its clock behind, the victim takes the next generation after the one on its disk.
    restarted = whole(VICTIM, next_generation(GENERATION, GENERATION - 3600.0), VICTIM_HOST_ID)
    assert after(removed, restarted) == after(restarted, removed)


def test_two_operators_who_remove_one_node_at_once_meet_in_one_view() -> None:
    state = operator_of_dead().state
    one = removal(state, VICTIM_HOST_ID, HOST_ID, NOW)
    other = removal(state, VICTIM_HOST_ID, VICTIM_HOST_ID, later(3))
    # Whoever assassinates may not even know its host id.
    nameless = whole(VICTIM, GENERATION, VICTIM_HOST_ID)
    nameless = EndpointState(
        VICTIM, GENERATION, 1000, 5, 0, nameless.states_version, tuple(v for v in nameless.values if v[0] == "STATUS")
    )
    stranger = engine()
    stranger.state.now = NOW
    stranger.state.apply([nameless], NOW, PEER)
    third = assassination(stranger.state, VICTIM, HOST_ID, NOW, force=True)
    assert {one.generation, other.generation, third.generation} == {GENERATION + 1}
    assert after(one, other) == after(other, one)
    assert after(one, other, third) == after(third, one, other) == after(other, third, one) == after(third, other, one)


def test_a_removal_of_an_older_incarnation_does_not_touch_the_present_one() -> None:
    removed = removal(operator_of_dead().state, VICTIM_HOST_ID, HOST_ID, NOW)
    present = whole(VICTIM, next_generation(GENERATION, NOW.wall), VICTIM_HOST_ID)
    assert after(present, removed) == after(removed, present)
    assert after(removed, present)[0] == present.generation


LEAVING = SimulationOptions(seed=1, nodes=6, duration_seconds=45.0, pair="leave-pause")


def test_who_publishes_while_it_leaves_is_found_by_the_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_seed(LEAVING).violation is None
    monkeypatch.setattr(LocalEndpoint, "_refuse_after_last_words", lambda _: None)
    violation = run_seed(LEAVING).violation
    assert violation is not None
    assert (violation.invariant, "after_last_words" in violation.detail) == ("honest_entry_refused", True)


def test_a_version_ahead_of_the_heartbeat_is_found_in_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalEndpoint, "_refuse_after_last_words", lambda _: None)
    monkeypatch.setattr(core_state, "_latest_tick", lambda _: 0)
    violation = run_seed(LEAVING).violation
    assert violation is not None
    assert violation.invariant == "version_ahead_of_tick"
