"""The shadow round: every verdict and every refusal, without a network."""

from __future__ import annotations

from typing import Any

import pytest
from engine_cluster import WALL, Cluster

from gossiper.core.io import Answer, LeaveRequested, RemoveRequested, RequestReceived, RoundDue
from gossiper.core.messages import DigestColumns, GossipDigestAck, GossipDigestSyn, Sender
from gossiper.core.shadow import ShadowConfig, ShadowRound, Verdict, answer_while_in_shadow
from gossiper.core.versions import Now
from gossiper.errors import JoinError

A, B, C, D = (f"10.0.0.{n}:7000" for n in range(4))


def shadow(endpoint: str = D, **changes: Any) -> ShadowConfig:
    settings: dict[str, Any] = {
        "cluster_name": "test",
        "protocol_version": 1,
        "endpoint": endpoint,
        "host_id": f"host-{endpoint}",
        "interval_seconds": 1.0,
        "seeds": (A,),
        **changes,
    }
    return ShadowConfig(**settings)


def run(cluster: Cluster, config: ShadowConfig, *, seconds: int = 60) -> Verdict:
    """Poll each second, deliver at once, until there is a verdict."""
    the_round = ShadowRound(config, cluster.now)
    for _ in range(seconds):
        for peer, syn in the_round.poll(cluster.now):
            engine = cluster.engines.get(peer)
            if engine is None:
                the_round.failed(peer, f"{peer} is unavailable", retriable=True)
                continue
            effects = engine.handle(RequestReceived(syn), cluster.now)
            ack = next(effect.reply for effect in effects if isinstance(effect, Answer))
            assert isinstance(ack, GossipDigestAck)
            the_round.answered(ack, cluster.now)
        verdict = the_round.verdict(cluster.now)
        if verdict is not None:
            return verdict
        cluster.run(1)
    raise AssertionError("no verdict")


def running(size: int = 3) -> Cluster:
    cluster = Cluster(size)
    cluster.run(10)
    return cluster


def test_a_new_node_may_join_and_learns_whom_to_remember() -> None:
    cluster = running()
    before = {name: cluster.view(name) for name in cluster.engines}
    verdict = run(cluster, shadow())
    assert (verdict.own_generation_seen, verdict.alone, verdict.replaces) == (0, False, None)
    assert verdict.peers == (A, B, C)
    assert {name: cluster.view(name) for name in cluster.engines} == before, "a shadow leaves no trace"


def test_a_restarted_node_learns_its_own_last_generation() -> None:
    cluster = running()
    generation = cluster.engines.pop(C).generation
    assert run(cluster, shadow(C)).own_generation_seen == generation


def test_a_first_seed_begins_alone_at_once() -> None:
    config = shadow(A, seeds=(), is_seed=True)
    verdict = ShadowRound(config, Now(0.0, WALL)).verdict(Now(0.0, WALL))
    assert verdict is not None
    assert verdict.alone


def test_a_seed_whose_fellow_seeds_do_not_answer_begins_alone_in_the_end() -> None:
    cluster = Cluster(0)
    assert run(cluster, shadow(A, seeds=(B,), is_seed=True, timeout_seconds=10.0)).alone
    assert 10.0 <= cluster.time < 12.0


def test_seeds_that_start_together_do_not_wait_for_each_other() -> None:
    now = Now(0.0, WALL)
    one, other = shadow(A, seeds=(B,), is_seed=True), shadow(B, seeds=(A,), is_seed=True)
    the_round = ShadowRound(one, now)
    [(_, syn)] = the_round.poll(now)
    answer = answer_while_in_shadow(other, syn, now)
    assert answer is not None
    the_round.answered(answer, now)
    verdict = the_round.verdict(now)
    assert verdict is not None
    assert verdict.alone


def test_who_reaches_nobody_fails_and_names_whom_it_tried_and_for_how_long() -> None:
    cluster = Cluster(0)
    with pytest.raises(JoinError, match=r"in 30\.0 s; tried 10\.0\.0\.0:7000 \(10\.0\.0\.0:7000 is unavailable\)"):
        run(cluster, shadow())


def test_who_is_refused_by_all_need_not_wait() -> None:
    the_round = ShadowRound(shadow(), Now(0.0, WALL))
    the_round.poll(Now(0.0, WALL))
    the_round.failed(A, "this is cluster 'x'", retriable=False)
    with pytest.raises(JoinError, match="this is cluster 'x'"):
        the_round.verdict(Now(1.0, WALL))


def test_the_syn_is_repeated_and_then_goes_to_peers_from_disk_too() -> None:
    the_round = ShadowRound(shadow(known_peers=(B, C)), Now(0.0, WALL))
    sent = [[peer for peer, _ in the_round.poll(Now(float(t), WALL + t))] for t in range(7)]
    assert sent == [[A], [], [], [], [], [A, B, C], []]


def test_a_former_member_goes_on_when_nobody_is_up_yet() -> None:
    cluster = Cluster(0)
    assert run(cluster, shadow(known_peers=(B, C))).alone


def test_an_address_in_use_by_another_host_id_is_refused() -> None:
    with pytest.raises(JoinError, match=r"10\.0\.0\.2:7000 and host id host-10\.0\.0\.2:7000 already exists"):
        run(running(), shadow(C, host_id="somebody-else"))


def test_a_host_id_that_lives_at_another_address_is_refused() -> None:
    with pytest.raises(JoinError, match="whose heartbeat moves"):
        run(running(), shadow(D, host_id=f"host-{C}"))


def test_a_dead_node_that_moved_may_come_back_elsewhere() -> None:
    cluster = running()
    del cluster.engines[C]
    cluster.run(40)
    assert run(cluster, shadow(D, host_id=f"host-{C}")).own_generation_seen == 0


def test_who_was_removed_may_only_come_back_as_new() -> None:
    cluster = running()
    del cluster.engines[C]
    cluster.run(40)
    cluster.do(A, RemoveRequested(f"host-{C}"))
    with pytest.raises(JoinError, match=r"was removed from the cluster by host-10\.0\.0\.0:7000"):
        run(cluster, shadow(C))
    assert run(cluster, shadow(C, host_id="a-new-one")).own_generation_seen > 0


def test_who_left_comes_back_only_on_request() -> None:
    cluster = running()
    cluster.do(C, LeaveRequested())
    del cluster.engines[C]
    with pytest.raises(JoinError, match="has left the cluster"):
        run(cluster, shadow(C))
    assert run(cluster, shadow(C, rejoin=True)).own_generation_seen > 0


@pytest.mark.parametrize("wanted", [C, f"host-{C}"])
@pytest.mark.parametrize("endpoint", [C, D])
def test_a_dead_node_is_replaced_at_its_own_or_another_address(wanted: str, endpoint: str) -> None:
    cluster = running()
    generation = cluster.engines.pop(C).generation
    cluster.run(40)
    verdict = run(cluster, shadow(endpoint, host_id="the-new-one", replace=wanted))
    assert verdict.replaces == f"host-{C},{generation}"


def test_a_restart_goes_on_saying_whom_this_node_replaces() -> None:
    """The generation that said it first may have ended when only some had heard: others knew the dead for ever."""
    cluster = running()
    generation = cluster.engines.pop(C).generation
    cluster.run(40)
    claim = f"host-{C},{generation}"
    cluster.cut = {(B, D), (D, B), (A, B), (B, A)}
    cluster.add(D, values={"REPLACES": claim}, push_fanout=0)
    cluster.run(3)
    assert C not in cluster.view(A)
    assert C in cluster.view(B)
    del cluster.engines[D]
    cluster.cut.clear()
    verdict = run(cluster, shadow(D, restarted=True))
    assert verdict.replaces == claim
    cluster.add(D, generation=verdict.own_generation_seen + 2, values={"REPLACES": verdict.replaces})
    cluster.run(10)
    assert all(C not in cluster.view(observer) for observer in (A, B, D))
    del cluster.engines[D]
    assert run(cluster, shadow(D, host_id="another", replace=D)).replaces != claim


def replaced_twice() -> tuple[Cluster, str]:
    """``C`` was replaced by ``D``; what ``D`` says."""
    cluster = running()
    generation = cluster.engines.pop(C).generation
    cluster.run(40)
    statement = f"host-{C},{generation}"
    cluster.add(D, values={"REPLACES": statement})
    cluster.run(8)
    return cluster, statement


@pytest.mark.parametrize("endpoint", ["10.0.0.9:7000", D])
def test_who_replaces_a_replacer_states_the_whole_chain(endpoint: str) -> None:
    cluster, statement = replaced_twice()
    generation = cluster.engines.pop(D).generation
    cluster.run(40)
    verdict = run(cluster, shadow(endpoint, host_id="third", replace=f"host-{D}"))
    assert verdict.replaces == f"host-{D},{generation};{statement}"


@pytest.mark.parametrize(
    ("endpoint", "host_id"), [(D, f"host-{D}"), ("10.0.0.9:7000", f"host-{D}")], ids=["there", "elsewhere"]
)
def test_a_replacer_that_comes_back_says_it_again(endpoint: str, host_id: str) -> None:
    cluster, statement = replaced_twice()
    del cluster.engines[D]
    cluster.run(40)
    assert run(cluster, shadow(endpoint, host_id=host_id)).replaces == statement


def test_who_takes_the_address_of_a_replacer_that_has_left_goes_on_saying_it() -> None:
    cluster, statement = replaced_twice()
    cluster.do(D, LeaveRequested())
    del cluster.engines[D]
    assert run(cluster, shadow(D, host_id="another")).replaces == statement


def test_a_failed_replacement_is_not_passed_on() -> None:
    cluster = running()
    cluster.add(D, values={"STATUS": "BOOT_REPLACE,x", "REPLACES": "x,5"})
    cluster.run(8)
    del cluster.engines[D]
    cluster.run(40)
    assert run(cluster, shadow(D)).replaces is None


def test_a_replacement_that_is_done_does_not_stop_a_restart() -> None:
    cluster = running()
    with pytest.raises(JoinError, match="does not know it"):
        run(cluster, shadow(D, replace="host-of-long-ago"))
    assert run(cluster, shadow(D, replace="host-of-long-ago", restarted=True)).replaces is None
    generation = cluster.engines.pop(C).generation
    cluster.run(40)
    assert run(cluster, shadow(C, replace=C, restarted=True)).own_generation_seen == generation


@pytest.mark.parametrize(("wanted", "why"), [("nobody", "does not know it"), (C, "is alive"), (B, "is gone already")])
def test_what_cannot_be_replaced(wanted: str, why: str) -> None:
    cluster = running()
    cluster.do(B, LeaveRequested())
    with pytest.raises(JoinError, match=why):
        run(cluster, shadow(D, replace=wanted))


def test_an_answer_that_knows_this_node_without_its_host_id_is_not_enough() -> None:
    cluster = Cluster(0)
    cluster.add(A, values={"HOST_ID": None})
    cluster.add(B, values={"HOST_ID": None})
    cluster.run(5)
    with pytest.raises(JoinError, match="nobody could say whose host id"):
        run(cluster, shadow(B))


def test_others_than_shadows_get_no_answer_from_a_shadow() -> None:
    now = Now(0.0, WALL)
    member = GossipDigestSyn(Sender("test", 1, B, 5), 0, DigestColumns.empty())
    stranger = GossipDigestSyn(Sender("other", 1, B, 0), 0, DigestColumns.empty())
    assert answer_while_in_shadow(shadow(), member, now) is None
    assert answer_while_in_shadow(shadow(), stranger, now) is None


def test_answers_of_another_cluster_and_from_the_far_future_teach_nothing() -> None:
    cluster = running()
    the_round = ShadowRound(shadow(), cluster.now)
    effects = cluster.engines[A].handle(RoundDue(), cluster.now)
    assert effects
    foreign = GossipDigestAck(Sender("other", 1, B, 5), 0, DigestColumns.empty(), DigestColumns.empty(), ())
    the_round.answered(foreign, cluster.now)
    assert the_round.verdict(cluster.now) is None


def test_a_large_cluster_answers_a_shadow_in_parts() -> None:
    cluster = running(12)
    for engine in cluster.engines.values():
        for row in range(12):
            assert engine.state.table.used[row]
    config = shadow("10.9.9.9:7000")
    the_round = ShadowRound(config, cluster.now)
    [(_, syn)] = the_round.poll(cluster.now)
    effects = cluster.engines[A].handle(RequestReceived(syn), cluster.now)
    ack = next(effect.reply for effect in effects if isinstance(effect, Answer))
    assert isinstance(ack, GossipDigestAck)
    part = GossipDigestAck(ack.sender, ack.as_of_ms, ack.requests, ack.heartbeats, ack.states[:5], deferred=7)
    the_round.answered(part, cluster.now)
    assert the_round.verdict(cluster.now) is None, "the rest may hold a collision"
    the_round.answered(ack, cluster.now)
    assert the_round.verdict(cluster.now) is not None


# -- clocks ------------------------------------------------------------------------------------------------------------

DAY = 86_400.0


def clock_round(*own_ahead_seconds: float, silent: tuple[str, ...] = (), **changes: Any) -> ShadowRound:
    """A round in which each answer comes from a node than which the own clock is so far ahead."""
    answering = tuple(f"10.0.0.{n}:7000" for n in range(len(own_ahead_seconds)))
    the_round = ShadowRound(shadow(D, seeds=answering + silent, **changes), Now(0.0, WALL))
    the_round.poll(Now(0.0, WALL))
    empty = DigestColumns.empty()
    for name, ahead in zip(answering, own_ahead_seconds, strict=True):
        as_of_ms = round((WALL - ahead) * 1000)
        the_round.answered(GossipDigestAck(Sender("test", 1, name, 5), as_of_ms, empty, empty, ()), Now(0.0, WALL))
    return the_round


def test_a_clock_over_a_day_ahead_of_most_does_not_start() -> None:
    the_round = clock_round(2 * DAY, 2 * DAY + 1, 3.0)
    with pytest.raises(JoinError) as refused:
        the_round.verdict(Now(1.0, WALL + 1))
    line = str(refused.value)
    assert "172800 s (2.0 days) ahead of 2 of the 3 nodes that answered (10.0.0.0:7000, 10.0.0.1:7000)" in line
    assert "Set its clock" in line
    assert "\n" not in line


@pytest.mark.parametrize("ahead", [(2 * DAY, 0.0), (2 * DAY, 0.0, 1.0), (DAY - 1,), ()])
def test_a_clock_that_no_majority_finds_a_day_ahead_starts(ahead: tuple[float, ...]) -> None:
    the_round = clock_round(*ahead, is_seed=True)
    verdict = the_round.verdict(Now(60.0, WALL + 60))
    assert verdict is not None
    assert verdict.alone is not bool(ahead)


def test_one_wrong_clock_that_answers_first_is_no_majority_yet() -> None:
    the_round = clock_round(2 * DAY, silent=(B, C))
    assert the_round.verdict(Now(1.0, WALL + 1)) is None
    empty = DigestColumns.empty()
    for name in (B, C):
        as_of_ms = round(WALL * 1000)
        the_round.answered(GossipDigestAck(Sender("test", 1, name, 5), as_of_ms, empty, empty, ()), Now(1.0, WALL))
    assert the_round.verdict(Now(2.0, WALL + 2)) is not None


@pytest.mark.parametrize("fails", [False, True])
def test_when_no_other_answer_comes_it_is_the_majority(fails: bool) -> None:
    the_round = clock_round(2 * DAY, silent=(B, C))
    for name in (B, C) if fails else ():
        the_round.failed(name, "unavailable", retriable=True)
    with pytest.raises(JoinError, match="ahead of 1 of the 1 nodes"):
        the_round.verdict(Now(1.0 if fails else 5.0, WALL))


def test_nodes_that_are_starting_too_have_clocks() -> None:
    the_round = ShadowRound(shadow(D, seeds=(A,), is_seed=True), Now(0.0, WALL))
    empty = DigestColumns.empty()
    as_of_ms = round((WALL - 2 * DAY) * 1000)
    the_round.answered(GossipDigestAck(Sender("test", 1, A, 0), as_of_ms, empty, empty, ()), Now(0.0, WALL))
    with pytest.raises(JoinError, match="the clock of this node"):
        the_round.verdict(Now(5.0, WALL + 5))


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        ((0.0,), ""),
        ((60.0, 60.0), ""),
        ((-60.0,), ""),
        ((61.0,), "61 s ahead of the clocks of 1 nodes that answered (10.0.0.0:7000): its generations are too great"),
        ((3600.0, 0.0, 3600.0), "3600 s ahead of the clocks of 3"),
        ((3600.0, 0.0, 0.0), ""),
        ((-61.0,), "61 s behind the clocks of 1 nodes that answered (10.0.0.0:7000): its generations are too small"),
        ((-2 * DAY, -2 * DAY), "172800 s (2.0 days) behind the clocks of 2 nodes"),
        ((-2 * DAY,), "it refuses their generations, which lie over a day ahead for it, and sees nobody"),
        ((-61.0,) * 7, "10.0.0.4:7000 and 2 more)"),
    ],
)
def test_a_clock_that_differs_is_warned_of(ahead: tuple[float, ...], said: str) -> None:
    verdict = clock_round(*ahead).verdict(Now(1.0, WALL + 1))
    assert verdict is not None
    assert said in verdict.clock_warning
    assert bool(said) == bool(verdict.clock_warning)


def test_a_peer_that_says_no_time_is_not_compared() -> None:
    the_round = ShadowRound(shadow(D, seeds=(A,)), Now(0.0, WALL))
    empty = DigestColumns.empty()
    the_round.answered(GossipDigestAck(Sender("test", 1, A, 5), 0, empty, empty, ()), Now(0.0, WALL))
    verdict = the_round.verdict(Now(1.0, WALL))
    assert verdict is not None
    assert (verdict.clock_ahead_seconds, verdict.clock_warning) == (None, "")
