"""Leaving, removal, replacement, identity, expiry, rumours: each rule by itself, on engines in virtual time."""

from __future__ import annotations

import pytest
from engine_cluster import WALL, Cluster

from gossiper.core.io import (
    AssassinateRequested,
    ChangeHealth,
    ChangeStatus,
    EnableRequested,
    GenerationPersisted,
    LeaveRequested,
    RemoveRequested,
    RequestReceived,
    RoundDue,
    SeedsChanged,
    Send,
    ShutdownRequested,
    Stop,
)
from gossiper.core.lifecycle import (
    DEAD_STATUSES,
    GONE_EXPIRE_SECONDS,
    INITIAL_STATUSES,
    LIVENESS_TRANSITIONS,
    STOPPED_STATUSES,
    TRANSITIONS,
    Status,
    expire_ms_of,
    left_value,
    may_follow,
)
from gossiper.core.local import TOMBSTONE_TICKS, Publish, Published
from gossiper.core.messages import EndpointState, GossipDigestAck2, Sender, VersionedValue
from gossiper.core.operations import removal
from gossiper.core.peers import PeerPolicy
from gossiper.core.quarantine import FOR_EVER, GRAVES_MAX, Quarantine
from gossiper.core.replacements import REPLACES_BYTES_MAX, Replaced, replaced_in, replaces_value
from gossiper.errors import LifecycleError, NotRunningError, PublishError
from gossiper.events import EndpointReplaced

A, B, C, D = (f"10.0.0.{n}:7000" for n in range(4))


def host(endpoint: str) -> str:
    return f"host-{endpoint}"


def settled(size: int, **settings: object) -> Cluster:
    cluster = Cluster(size, **settings)  # type: ignore[arg-type]
    cluster.run(12)
    assert cluster.converged()
    return cluster


def crash(cluster: Cluster, endpoint: str, rounds: int = 40) -> int:
    """Kill an endpoint and wait until everybody holds it DOWN; its last generation."""
    generation = cluster.engines.pop(endpoint).generation
    cluster.run(rounds)
    assert {cluster.view(observer)[endpoint][1] for observer in cluster.engines} == {"down"}
    return generation


# -- the table --------------------------------------------------------------------------------------------------------


def test_the_table_of_transitions_is_whole() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert all(follows <= set(Status) for follows in TRANSITIONS.values())
    assert set(Status) >= INITIAL_STATUSES
    for status in STOPPED_STATUSES - {Status.REMOVING}:
        assert not TRANSITIONS[status], f"{status} is the last word of a generation"
    assert not may_follow("nonsense", "NORMAL")
    assert set(LIVENESS_TRANSITIONS) == {"unknown", "alive", "suspect", "down"}
    assert Status.HIBERNATE in DEAD_STATUSES - STOPPED_STATUSES


@pytest.mark.parametrize("wanted", [status.value for status in Status])
def test_an_owner_moves_only_along_the_table(wanted: str) -> None:
    cluster = settled(2)
    if may_follow("NORMAL", wanted) and wanted not in {Status.LEFT, Status.SHUTDOWN}:
        cluster.do(B, ChangeStatus(wanted))
        assert cluster.engines[B].local.status == wanted
    else:
        with pytest.raises(LifecycleError):
            cluster.do(B, ChangeStatus(wanted))
        assert cluster.engines[B].local.status == "NORMAL"


def test_a_generation_does_not_begin_in_the_middle_of_a_life() -> None:
    with pytest.raises(LifecycleError, match="cannot begin as LEFT"):
        Cluster(1).add(B, values={"STATUS": left_value(WALL)})


def test_expiry_is_absolute_and_recorded_when_it_is_missing_or_absurd() -> None:
    assert expire_ms_of("LEFT,1700000000123", WALL) == 1_700_000_000_123
    assert expire_ms_of("LEFT", WALL) == round((WALL + GONE_EXPIRE_SECONDS) * 1000)
    assert expire_ms_of("removed,some-host", WALL) == round((WALL + GONE_EXPIRE_SECONDS) * 1000)
    assert expire_ms_of("LEFT,999999999999999999", WALL) < (WALL + 40 * 86_400) * 1000


# -- joining, hibernating, health -------------------------------------------------------------------------------------


def test_boot_then_normal() -> None:
    cluster = settled(3)
    cluster.add(D, values={"STATUS": "BOOT"})
    cluster.run(5)
    assert cluster.view(A)[D][1:] == ("alive", cluster.view(A)[D][2])
    assert cluster.view(A)[D][2]["STATUS"] == "BOOT"
    cluster.do(D, ChangeStatus("NORMAL"))
    assert {cluster.view(observer)[D][2]["STATUS"] for observer in cluster.engines} == {"NORMAL"}, "pushed at once"


def test_a_hibernating_node_is_never_alive_until_it_is_normal() -> None:
    cluster = settled(3)
    cluster.add(D, values={"STATUS": "hibernate,true"})
    cluster.run(10)
    assert cluster.view(A)[D][1] == "down"
    assert cluster.view(D)[A][1] == "alive", "it listens"
    cluster.do(D, ChangeStatus("NORMAL"))
    cluster.run(4)
    assert cluster.view(A)[D][1] == "alive"


def test_a_joining_node_that_falls_silent_is_forgotten_and_refused_for_a_while() -> None:
    cluster = settled(3)
    cluster.add(D, values={"STATUS": "BOOT"})
    cluster.run(5)
    crash(cluster, D)
    cluster.run(200)
    assert D in cluster.view(A), "a failed bootstrap is remembered for 300 intervals"
    cluster.run(100)
    assert D not in cluster.view(A)
    assert cluster.kinds(A, D)[-1] == "EndpointForgotten"


def test_a_guest_that_falls_silent_is_forgotten_and_may_come_back() -> None:
    cluster = settled(3)
    guest = cluster.add(D, values={"STATUS": None})
    cluster.run(5)
    assert cluster.view(A)[D][1] == "alive"
    del cluster.engines[D]
    cluster.run(80)
    assert D not in cluster.view(A)
    cluster.engines[D] = guest
    cluster.run(5)
    assert D not in cluster.view(A), "the same generation is refused for a while"
    cluster.run(70)
    assert cluster.view(A)[D][1] == "alive"


def test_a_late_fragment_of_a_forgotten_past_does_not_live_on() -> None:
    """A delayed delta of a replaced node reached a node that had restarted, and so forgotten who was replaced."""
    cluster = settled(4)
    generation = cluster.engines[A].generation - 50
    shutdown = (("STATUS", VersionedValue(96, "shutdown,true")),)
    fragment = EndpointState("10.0.9.9:7000", generation, 1000, 6, 80, 96, shutdown)
    sender = Sender("test", 1, B, cluster.engines[B].generation)
    cluster.do(A, RequestReceived(GossipDigestAck2(sender, (fragment,))))
    cluster.run(10)
    assert all("10.0.9.9:7000" in cluster.view(observer) for observer in cluster.engines)
    cluster.run(60)
    assert all("10.0.9.9:7000" not in cluster.view(observer) for observer in cluster.engines)
    cluster.run(100)
    assert all("10.0.9.9:7000" not in cluster.view(observer) for observer in cluster.engines)


def test_health_is_told_to_everybody_at_once() -> None:
    cluster = settled(5)
    cluster.do(C, ChangeHealth(False, "disk is full"))
    views = [engine.state.view(engine.state.table.index_of((C,))[0]) for engine in cluster.engines.values()]
    assert [(view.serving, view.alive) for view in views] == [(False, True)] * 5
    cluster.do(C, ChangeHealth(True))
    row = cluster.engines[A].state.table.row(C)
    assert row is not None
    assert cluster.engines[A].state.view(row).serving


# -- leaving ----------------------------------------------------------------------------------------------------------


def test_leave_is_known_to_all_live_peers_and_counted() -> None:
    cluster = settled(6)
    cluster.do(C, LeaveRequested())
    version = cluster.engines[C].local.states_version
    knowing, unaware = cluster.engines[C].peers_that_know(version)
    assert (len(knowing), unaware) == (5, [])
    for observer in cluster.engines:
        if observer != C:
            assert cluster.kinds(observer, C)[-2:] == ["EndpointDead", "EndpointLeft"]


def test_leave_during_a_partition_counts_only_who_answered_and_the_rest_hear_later() -> None:
    cluster = settled(6)
    far = list(cluster.engines)[4:]
    cluster.cut = {(C, other) for other in far} | {(other, C) for other in far}
    cluster.do(C, LeaveRequested())
    knowing, unaware = cluster.engines[C].peers_that_know(cluster.engines[C].local.states_version)
    assert sorted(unaware) == sorted(far)
    assert len(knowing) == 3
    cluster.do(C, ShutdownRequested())
    cluster.run(5)
    assert all(cluster.view(other)[C][2]["STATUS"].startswith("LEFT") for other in far)


def test_who_left_is_forgotten_everywhere_at_one_time_and_stays_so() -> None:
    cluster = settled(4)
    cluster.do(C, LeaveRequested())
    del cluster.engines[C]
    late = cluster.engines[A].state
    row = late.table.row(C)
    assert row is not None
    message = EndpointState(
        C,
        int(late.table.generation[row]),
        1000,
        int(late.table.heartbeat[row]),
        0,
        int(late.table.states_version[row]),
        tuple(sorted(late.table.states[row].items())),
    )
    cluster.time += GONE_EXPIRE_SECONDS - 100
    cluster.run(50)
    assert C in cluster.view(A)
    cluster.time += 100
    cluster.run(3)
    assert all(C not in cluster.view(observer) for observer in cluster.engines)
    push = GossipDigestAck2(Sender("test", 1, B, cluster.engines[B].generation), (message,))
    cluster.do(A, RequestReceived(push))
    cluster.run(3)
    assert all(C not in cluster.view(observer) for observer in cluster.engines)


def test_who_has_left_cannot_be_anything_else_again_in_this_generation() -> None:
    cluster = settled(2)
    cluster.do(B, LeaveRequested())
    with pytest.raises(LifecycleError):
        cluster.do(B, ChangeStatus("NORMAL"))
    with pytest.raises(LifecycleError):
        cluster.do(B, LeaveRequested())
    cluster.do(B, ShutdownRequested())
    with pytest.raises(LifecycleError, match="does not come back"):
        cluster.do(B, EnableRequested(cluster.engines[B].generation + 2))


def own_values(cluster: Cluster, endpoint: str) -> tuple[int, dict[str, VersionedValue]]:
    state = cluster.engines[endpoint].state
    return int(state.table.states_version[state.local_row]), dict(state.table.states[state.local_row])


def test_left_is_the_last_version_of_a_generation() -> None:
    cluster = settled(3)
    for number in range(20):
        cluster.do(C, Publish({"key": str(number)}, number))
    cluster.effects.clear()
    cluster.do(C, LeaveRequested())
    waited = [effect.ticket for effect in cluster.effects if isinstance(effect, Published)]
    assert waited == [16, 17, 18, 19], "what waits for the next tick is published before"
    before = own_values(cluster, C)
    assert before[1]["STATUS"].version == before[0]
    assert before[1]["key"].value == "19"
    for refused in (Publish({"key": "late"}, 21), ChangeHealth(False, "leaving")):
        with pytest.raises(LifecycleError, match="is LEFT and publishes nothing more"):
            cluster.do(C, refused)
    cluster.run(5)
    assert own_values(cluster, C) == before
    assert cluster.view(A) == cluster.view(B)


def test_what_expires_after_the_last_word_leaves_no_tombstone() -> None:
    cluster = settled(3)
    cluster.do(C, Publish({"lease": "held"}, 1, round((cluster.now.wall + 3) * 1000)))
    cluster.do(C, LeaveRequested())
    before = own_values(cluster, C)
    cluster.run(10)
    assert own_values(cluster, C) == before
    assert "lease" not in cluster.view(A)[C][2], "it counts as absent all the same"
    assert cluster.view(A) == cluster.view(B)


# -- removing and assassinating ---------------------------------------------------------------------------------------


def test_a_dead_node_is_removed_by_its_host_id() -> None:
    cluster = settled(5)
    generation = crash(cluster, C)
    cluster.do(A, RemoveRequested(host(C)))
    for observer in cluster.engines:
        seen_generation, liveness, values = cluster.view(observer)[C]
        assert (seen_generation, liveness) == (generation + 1, "down")
        assert values["STATUS"].startswith(f"removed,{host(C)},")
        assert values["REMOVED_BY"] == host(A)
        assert "EndpointRemoved" in cluster.kinds(observer, C)


def test_a_removed_node_that_comes_back_stops_and_says_why() -> None:
    cluster = settled(4)
    old = cluster.engines.pop(C)
    cluster.run(40)
    cluster.do(A, RemoveRequested(host(C)))
    cluster.engines[C] = old
    cluster.effects.clear()
    cluster.run(6)
    stops = [effect for effect in cluster.effects if isinstance(effect, Stop)]
    assert len(stops) == 1
    assert host(A) in stops[0].reason
    assert old.stopped
    cluster.run(10)
    assert cluster.view(B)[C][1] == "down"
    assert "EndpointAlive" not in cluster.kinds(A, C)[-1:]


def test_removal_is_refused_where_it_makes_no_sense() -> None:
    cluster = settled(3)
    for host_id, why in [("nobody", "no node has"), (host(A), "node itself"), (host(B), "is alive")]:
        with pytest.raises(LifecycleError, match=why):
            cluster.do(A, RemoveRequested(host_id))
    crash(cluster, C)
    cluster.do(A, RemoveRequested(host(C)))
    with pytest.raises(LifecycleError, match="gone already"):
        cluster.do(B, RemoveRequested(host(C)))


def test_assassination_spares_a_moving_heartbeat_unless_forced() -> None:
    cluster = settled(4)
    with pytest.raises(LifecycleError, match="it lives"):
        cluster.do(A, AssassinateRequested(C))
    cluster.do(A, AssassinateRequested(C, force=True))
    assert cluster.engines[C].stopped, "the victim hears of it and stops"
    cluster.run(10)
    assert all(cluster.view(observer)[C][2]["STATUS"].startswith("LEFT") for observer in (A, B, D))
    with pytest.raises(LifecycleError, match="node itself"):
        cluster.do(A, AssassinateRequested(A))
    with pytest.raises(LifecycleError, match="gone already"):
        cluster.do(B, AssassinateRequested(C))


def test_assassination_of_somebody_nobody_knows_leaves_a_mark_that_expires() -> None:
    cluster = settled(3)
    cluster.do(A, AssassinateRequested("10.9.9.9:7000"))
    cluster.run(4)
    assert all("10.9.9.9:7000" in cluster.view(observer) for observer in cluster.engines)
    cluster.time += GONE_EXPIRE_SECONDS
    cluster.run(2)
    assert all("10.9.9.9:7000" not in cluster.view(observer) for observer in cluster.engines)


# -- identity and replacement -----------------------------------------------------------------------------------------


def test_the_same_host_id_at_a_new_address_is_one_event() -> None:
    cluster = settled(4)
    generation = crash(cluster, C)
    moved = "10.0.0.77:7000"
    cluster.add(moved, host_id=host(C), generation=generation + 100)
    cluster.run(6)
    for observer in (A, B):
        assert C not in cluster.view(observer)
        assert cluster.view(observer)[moved][1] == "alive"
        replaced = [event for event in cluster.events[observer] if isinstance(event, EndpointReplaced)]
        assert [(event.endpoint, event.old.endpoint) for event in replaced] == [(moved, C)]
    assert cluster.converged()


def test_of_two_live_nodes_with_one_host_id_the_greater_generation_stays_and_the_other_is_told() -> None:
    cluster = settled(4)
    copy = "10.0.0.77:7000"
    cluster.add(copy, host_id=host(C), generation=cluster.engines[C].generation + 100)
    cluster.effects.clear()
    cluster.run(8)
    stops = [effect for effect in cluster.effects if isinstance(effect, Stop)]
    assert len(stops) == 1
    assert copy in stops[0].reason
    assert cluster.engines[C].stopped
    assert not cluster.engines[copy].stopped
    assert C not in cluster.view(A)
    assert cluster.view(A)[copy][1] == "alive"


def test_a_replaced_node_does_not_come_back_through_a_slow_peer() -> None:
    cluster = settled(5)
    slow = cluster.engines.pop(D)
    generation = crash(cluster, C)
    cluster.add("10.0.0.77:7000", host_id=host(C), generation=generation + 100)
    cluster.run(8)
    cluster.engines[D] = slow
    cluster.time -= 0
    cluster.run(15)
    assert all(C not in cluster.view(observer) for observer in cluster.engines)
    assert cluster.converged()


def test_a_new_node_takes_the_place_of_a_dead_one() -> None:
    cluster = settled(4)
    generation = crash(cluster, C)
    new = "10.0.0.88:7000"
    cluster.add(new, values={"REPLACES": f"{host(C)},{generation}"})
    cluster.run(6)
    assert all(C not in cluster.view(observer) for observer in cluster.engines)
    assert cluster.converged()


def ends(cluster: Cluster, replacer: str, how: str) -> None:
    """Whoever took the place of ``C`` is gone in its turn."""
    match how:
        case "left":
            cluster.do(replacer, LeaveRequested())
            cluster.do(replacer, ShutdownRequested())
        case "shutdown":
            cluster.do(replacer, ShutdownRequested())
        case "leaving":
            cluster.do(replacer, ChangeStatus("LEAVING"))
    if how == "leaving":
        cluster.run(3)
        del cluster.engines[replacer]
        return
    generation = cluster.engines[replacer].generation
    statement = cluster.view(replacer)[replacer][2]["REPLACES"]
    crash(cluster, replacer)
    if how == "removed":
        cluster.do(A, RemoveRequested(host(replacer)))
    elif how == "assassinated":
        cluster.do(A, AssassinateRequested(replacer))
    elif how == "replaced":
        cluster.add("10.0.0.99:7000", values={"REPLACES": f"{host(replacer)},{generation};{statement}"})
    cluster.run(3)


@pytest.mark.parametrize("how", ["left", "leaving", "shutdown", "removed", "assassinated", "replaced"])
def test_who_was_replaced_does_not_come_back_once_its_replacer_is_gone(how: str) -> None:
    cluster = settled(4)
    generation = crash(cluster, C)
    slow = cluster.engines.pop(D)
    new = "10.0.0.88:7000"
    cluster.add(new, values={"REPLACES": f"{host(C)},{generation}"})
    cluster.run(8)
    ends(cluster, new, how)
    cluster.engines[D] = slow
    cluster.add("10.0.0.5:7000", seeds=(D,))
    cluster.run(45)
    assert [observer for observer in cluster.engines if C in cluster.view(observer)] == []
    assert (new in cluster.view(A)) == (how != "replaced")
    assert cluster.converged()


def test_who_gave_up_joining_has_replaced_nobody() -> None:
    for how in (LeaveRequested(), RemoveRequested(host("10.0.0.88:7000"))):
        cluster = settled(4)
        generation = crash(cluster, C)
        new = "10.0.0.88:7000"
        cluster.add(new, values={"STATUS": f"BOOT_REPLACE,{C}", "REPLACES": f"{host(C)},{generation}"})
        cluster.run(6)
        if isinstance(how, LeaveRequested):
            cluster.do(new, how)
            del cluster.engines[new]
        else:
            crash(cluster, new)
            cluster.do(A, how)
        cluster.run(10)
        assert all(C in cluster.view(observer) for observer in cluster.engines)
        assert all(cluster.view(observer)[new][2]["STATUS"].startswith(("LEFT", "removed")) for observer in (A, B, D))


def test_two_removals_at_once_that_differ_in_whom_the_victim_replaced_have_two_versions() -> None:
    cluster = settled(3)
    crash(cluster, C)
    state = cluster.engines[A].state
    plain = removal(state, host(C), host(A), cluster.now)
    row = state.table.row(C)
    assert row is not None
    state.table.states[row] = {**state.table.states[row], "REPLACES": VersionedValue(16, "another,5")}
    stating = removal(state, host(C), host(A), cluster.now)
    assert dict(stating.values)["REPLACES"].value == "another,5"
    assert stating.states_version != plain.states_version


@pytest.mark.parametrize(
    ("value", "replaced"),
    [
        (None, ()),
        ("", ()),
        ("one,5", (("one", 5),)),
        ("one,5;two,7", (("one", 5), ("two", 7))),
        ("one;two,x;three,;,5;four,²;five,-1;six,9", (("six", 9),)),
        (f"one,{10**20};two,7", (("two", 7),)),
    ],
)
def test_whom_a_value_of_replaces_names(value: str | None, replaced: tuple[tuple[str, int], ...]) -> None:
    assert tuple(tuple(one) for one in replaced_in(value)) == replaced


def test_the_list_of_the_replaced_is_bounded_and_the_newest_are_kept() -> None:
    ids = [Replaced(f"6f9619ff-8b86-4d01-b42d-{n:012}", 1_700_000_000 + n) for n in range(60)]
    value = replaces_value(ids)
    assert value is not None
    kept = replaced_in(value)
    assert kept == tuple(ids[: len(kept)])
    assert len(kept) >= 20
    assert len(value) <= REPLACES_BYTES_MAX
    assert replaces_value([]) is None
    assert replaces_value([Replaced("one", 5), Replaced("two", 6), Replaced("one", 9)]) == "one,9;two,6"
    long = "x" * 2000
    assert replaces_value([Replaced(long, 1), Replaced("two", 6)]) == f"{long},1", "the first is always named"


def test_a_live_node_is_not_replaced_before_it_is_dead() -> None:
    cluster = settled(4)
    new = "10.0.0.88:7000"
    cluster.add(new, values={"REPLACES": f"{host(C)},{cluster.engines[C].generation}"})
    cluster.run(8)
    assert cluster.view(A)[C][1] == "alive"
    del cluster.engines[C]
    cluster.run(45)
    assert all(C not in cluster.view(observer) for observer in cluster.engines), "once it is, it is"


def test_another_host_id_at_the_same_address_is_a_replacement() -> None:
    cluster = settled(3)
    generation = crash(cluster, C)
    cluster.add(C, host_id="new-host", generation=generation + 50)
    cluster.run(5)
    assert "EndpointReplaced" in cluster.kinds(A, C)
    assert cluster.view(A)[C][1] == "alive"


def test_a_double_with_the_same_generation_and_endpoint_is_decided_by_the_host_id() -> None:
    cluster = settled(2)
    engine = cluster.engines[B]
    other = VersionedValue(16, "aaa")
    claim = EndpointState(B, engine.generation, 1000, 5, 0, 16, (("HOST_ID", other),))
    sender = Sender("test", 1, A, cluster.engines[A].generation)
    cluster.effects.clear()
    cluster.do(B, RequestReceived(GossipDigestAck2(sender, (claim,))))
    assert [type(effect) for effect in cluster.effects if isinstance(effect, Stop)] == [Stop]


# -- shutdown and coming back -----------------------------------------------------------------------------------------


def test_gossip_is_disabled_and_enabled_in_a_new_generation() -> None:
    cluster = settled(4)
    cluster.do(C, Publish({"kept": "yes"}, 1))
    cluster.do(C, ShutdownRequested())
    cluster.run(5)
    assert cluster.view(A)[C][1] == "down"
    before = cluster.engines[C].generation
    cluster.do(C, EnableRequested(before + 2))
    cluster.run(6)
    assert cluster.view(A)[C][:2] == (before + 2, "alive")
    assert cluster.view(A)[C][2]["kept"] == "yes"
    with pytest.raises(LifecycleError, match="is running"):
        cluster.do(C, EnableRequested(before + 4))


def test_a_node_that_is_not_a_member_yet_stops_without_a_word() -> None:
    cluster = settled(3)
    cluster.add(D, values={"STATUS": "BOOT"})
    cluster.run(4)
    cluster.sent.clear()
    cluster.do(D, ShutdownRequested())
    assert not cluster.sent
    assert cluster.engines[D].stopped


def test_a_persisted_generation_that_comes_too_late_changes_nothing() -> None:
    cluster = settled(2)
    cluster.do(B, ShutdownRequested())
    generation = cluster.engines[B].generation
    cluster.do(B, GenerationPersisted(generation + 2))
    assert cluster.engines[B].generation == generation
    with pytest.raises(NotRunningError):
        cluster.do(B, ChangeHealth(True))


# -- peers from disk, seeds -------------------------------------------------------------------------------------------


def test_a_whole_cluster_finds_itself_without_seeds() -> None:
    names = [f"10.0.0.{n}:7000" for n in range(5)]
    cluster = Cluster(0)
    for name in names:
        cluster.add(name, seeds=("10.9.9.9:7000",), known_peers=tuple(other for other in names if other != name))
    assert all(len(engine.state.table.digests()) == 1 for engine in cluster.engines.values()), "empties do not spread"
    cluster.run(15)
    assert cluster.converged()
    assert all(liveness == "alive" for _, liveness, _ in cluster.view(A).values())
    assert cluster.kinds(A, B)[0] == "EndpointJoined"


def test_a_peer_from_disk_that_never_answers_is_forgotten_in_the_end() -> None:
    cluster = Cluster(0)
    cluster.add(A, known_peers=("10.9.9.9:7000",))
    cluster.run(5)
    assert cluster.view(A)["10.9.9.9:7000"][:2] == (0, "down")
    cluster.time += GONE_EXPIRE_SECONDS + 10
    cluster.run(2)
    assert "10.9.9.9:7000" not in cluster.view(A)


def test_another_list_of_seeds_joins_two_clusters() -> None:
    cluster = Cluster(0)
    cluster.add(A, seeds=())
    cluster.add(B, seeds=())
    cluster.run(5)
    assert not cluster.converged()
    cluster.do(B, SeedsChanged((A, B)))
    assert cluster.engines[B].seeds == (A,)
    cluster.run(5)
    assert cluster.converged()


# -- rumours ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_change_of_status_is_pushed_through_the_cluster_without_a_round(seed: int) -> None:
    cluster = settled(40, seed=seed)
    cluster.sent.clear()
    cluster.do(C, ChangeStatus("LEAVING"))
    heard = sum(cluster.view(observer)[C][2]["STATUS"] == "LEAVING" for observer in cluster.engines)
    assert heard >= 36, "rumours reach nearly all at once, digests the rest"
    assert cluster.sent["GossipDigestAck2"] <= 4 * 40
    cluster.run(10)
    assert cluster.converged()


def test_ordinary_values_and_mass_news_are_left_to_the_digests() -> None:
    cluster = settled(30)
    cluster.sent.clear()
    cluster.do(C, Publish({"a": "1"}, 1))
    assert not cluster.sent
    cluster.add("10.0.1.1:7000")
    cluster.run(1)
    pushes = cluster.sent["GossipDigestAck2"]
    assert pushes < 4 * 40, "the newcomer does not push what it has just learned of thirty others"


def test_the_push_can_be_switched_off() -> None:
    cluster = settled(10, push_fanout=0)
    cluster.sent.clear()
    cluster.do(C, ChangeStatus("LEAVING"))
    assert not cluster.sent


def test_pushes_keep_to_their_budget() -> None:
    cluster = settled(12)
    cluster.sent.clear()
    for n in range(200):
        cluster.do(C, ChangeHealth(n % 2 == 0, str(n)))
    assert cluster.sent["GossipDigestAck2"] <= 12 * 100 + 100


# -- publishing -------------------------------------------------------------------------------------------------------


def test_values_with_an_expiry_vanish_everywhere_even_when_the_owner_is_gone() -> None:
    cluster = settled(3)
    expires_at_ms = round((cluster.now.wall + 20) * 1000)
    cluster.do(C, Publish({"lease": "mine"}, 1, expires_at_ms))
    cluster.run(5)
    assert cluster.view(A)[C][2]["lease"] == "mine"
    del cluster.engines[C]
    cluster.run(20)
    assert "lease" not in cluster.view(A)[C][2]
    changed = [event for event in cluster.events[A] if "lease" in getattr(event, "keys", ())]
    assert len(changed) == 2, "told when it came and when it expired"


def test_an_owner_deletes_what_expired_and_drops_old_tombstones() -> None:
    cluster = settled(2)
    cluster.do(B, Publish({"lease": "mine"}, 1, round((cluster.now.wall + 5) * 1000)))
    cluster.run(8)
    states = cluster.engines[B].state.table.states[0]
    assert states["lease"].deleted
    cluster.time += TOMBSTONE_TICKS + 10
    cluster.run(3)
    assert "lease" not in cluster.engines[B].state.table.states[0]
    cluster.do(B, Publish({"other": "x"}, 2))
    cluster.run(4)
    row = cluster.engines[A].state.table.row(B)
    assert row is not None
    assert "lease" not in cluster.engines[A].state.table.states[row]
    cluster.add(D)
    cluster.run(5)
    assert cluster.view(D)[B][2]["other"] == "x"


def test_calls_with_different_expiries_wait_apart() -> None:
    cluster = settled(1)
    for n in range(16):
        cluster.do(A, Publish({"a": str(n)}, n))
    cluster.do(A, Publish({"b": "1"}, 20, round((cluster.now.wall + 50) * 1000)))
    cluster.do(A, Publish({"c": "1"}, 21))
    cluster.run(1)
    states = cluster.engines[A].state.table.states[0]
    assert states["b"].expires_at_ms
    assert not states["c"].expires_at_ms
    with pytest.raises(PublishError):
        cluster.do(A, Publish({"HEALTH": "x"}, 22))


# -- data centres -----------------------------------------------------------------------------------------------------


def test_exchanges_between_data_centres_are_bounded_whatever_their_size() -> None:
    crossings = {}
    for size in (10, 40):
        cluster = Cluster(0, peer_policy=PeerPolicy(remote_exchanges_per_interval=1.0), push_fanout=0)
        for n in range(size):
            cluster.add(f"10.{n % 2}.0.{n}:7000", values={"DC": f"dc{n % 2}"}, seeds=("10.0.0.0:7000", "10.1.0.1:7000"))
        cluster.run(40)
        assert cluster.converged(), "it converges all the same"
        cluster.effects.clear()
        count = 0
        for _ in range(50):
            cluster.time += 1.0
            for endpoint in list(cluster.engines):
                for effect in cluster.do(endpoint, RoundDue()):
                    if isinstance(effect, Send) and effect.peer.split(".")[1] != endpoint.split(".")[1]:
                        count += 1
        crossings[size] = count / 50
    assert 1.2 < crossings[10] < 3.2
    assert 1.2 < crossings[40] < 3.2, f"two data centres begin one exchange each per interval, saw {crossings}"


def test_the_own_zone_is_preferred_with_the_set_probability() -> None:
    cluster = Cluster(0, peer_policy=PeerPolicy(own_zone_probability=0.8), push_fanout=0)
    for n in range(20):
        cluster.add(f"10.0.0.{n}:7000", values={"DC": "dc", "RACK": f"r{n % 4}"})
    cluster.run(20)
    near = far = 0
    for _ in range(200):
        cluster.time += 1.0
        for endpoint in list(cluster.engines)[1:]:
            first = next((e for e in cluster.do(endpoint, RoundDue()) if isinstance(e, Send)), None)
            if first is not None:
                racks = [int(name.split(".")[3].split(":")[0]) % 4 for name in (endpoint, first.peer)]
                near, far = (near + 1, far) if racks[0] == racks[1] else (near, far + 1)
    share = near / (near + far)
    assert 0.8 < share < 0.9, f"0.8 and a fifth of the rest, saw {share:.3f}"


# -- quarantine -------------------------------------------------------------------------------------------------------


def test_quarantine_refuses_up_to_a_generation_and_forgets_the_oldest() -> None:
    quarantine = Quarantine()
    quarantine.bury(A, 10, FOR_EVER)
    quarantine.bury(A, 5, 0.0)
    assert quarantine.refuses(A, 10, 1e12)
    assert not quarantine.refuses(A, 11, 0.0)
    quarantine.bury(B, 3, 100.0)
    assert quarantine.refuses(B, 3, 99.0)
    quarantine.drop_past(100.0)
    assert not quarantine.refuses(B, 3, 100.0)
    for n in range(GRAVES_MAX):
        quarantine.bury(f"x{n}", 1, FOR_EVER)
    assert len(quarantine) == GRAVES_MAX
    assert not quarantine.refuses(A, 1, 0.0)
