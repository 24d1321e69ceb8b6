"""Members that only the files of an earlier run remember: told before a start, replaced, removed, never a ghost."""

from __future__ import annotations

from typing import Any

import pytest
from engine_cluster import WALL, Cluster

from gossiper.core.io import Answer, AssassinateRequested, RemoveRequested, RequestReceived
from gossiper.core.lifecycle import GONE_EXPIRE_SECONDS
from gossiper.core.messages import (
    DigestColumns,
    EndpointState,
    GossipDigestAck,
    GossipDigestAck2,
    GossipDigestAck2Reply,
    GossipDigestSyn,
    Sender,
)
from gossiper.core.operations import STANDSTILL_INTERVALS
from gossiper.core.saved import REMEMBERED_PER_ANSWER_MAX, KnownPeer, SavedPeers, remembered_state, seen_now
from gossiper.core.shadow import ShadowConfig, ShadowRound, Verdict
from gossiper.core.versions import Now
from gossiper.errors import JoinError, LifecycleError
from gossiper.wire import codec

A, B, C, D = (f"10.0.0.{n}:7000" for n in range(4))
HOST_C = f"host-{C}"
GENERATION_C = int(WALL) - 10_000


def peer(endpoint: str = C, *, seen: float = WALL, generation: int = GENERATION_C, host_id: str = "") -> KnownPeer:
    return KnownPeer(endpoint, host_id or f"host-{endpoint}", "dc1", "rack1", generation, int(seen))


def restarted(*saved: KnownPeer, seconds: int = 0) -> Cluster:
    """A cluster of two after a restart of all, in which one member stayed dead."""
    cluster = Cluster(0)
    for name in (A, B):
        cluster.add(name, known_peers=(A, B), saved_peers=saved or (peer(),))
    cluster.run(5 + seconds)
    assert cluster.view(A)[B][1] == "alive"
    return cluster


def shadow_syn(*told: tuple[str, int, int, int]) -> GossipDigestSyn:
    return GossipDigestSyn(Sender("test", 1, D, 0), round(WALL * 1000), DigestColumns.from_rows(list(told)))


def ask(cluster: Cluster, syn: GossipDigestSyn, of: str = A) -> GossipDigestAck:
    """The answer, as the wire carries it."""
    effects = cluster.engines[of].handle(RequestReceived(syn), cluster.now)
    ack = next(effect.reply for effect in effects if isinstance(effect, Answer))
    assert isinstance(ack, GossipDigestAck)
    decoded = codec.decode_reply_to(syn, codec.encode(ack))
    assert isinstance(decoded, GossipDigestAck)
    return decoded


def remembered(ack: GossipDigestAck) -> list[str]:
    return [state.endpoint for state in ack.states if state.heartbeat == 0]


def join(cluster: Cluster, **changes: Any) -> Verdict:
    settings: dict[str, Any] = {"endpoint": D, "host_id": f"host-{D}", "seeds": (A, B), **changes}
    the_round = ShadowRound(
        ShadowConfig(cluster_name="test", protocol_version=1, interval_seconds=1.0, **settings), cluster.now
    )
    for _ in range(60):
        for name, syn in the_round.poll(cluster.now):
            the_round.answered(ask(cluster, syn, name), cluster.now)
        verdict = the_round.verdict(cluster.now)
        if verdict is not None:
            return verdict
        cluster.run(1)
    raise AssertionError("no verdict")


def test_whoever_asks_before_its_start_is_told_and_nobody_else() -> None:
    cluster = restarted()
    assert remembered(ask(cluster, shadow_syn())) == [C]
    assert remembered(ask(cluster, shadow_syn((C, GENERATION_C, 0, 0)))) == [], "it was told before"
    nobody = Sender("test", 1, D, int(WALL))
    ack = ask(cluster, GossipDigestSyn(nobody, 0, DigestColumns.empty()))
    assert C not in {state.endpoint for state in ack.states}
    assert C not in cluster.engines[A].state.table.digests().endpoints


def test_a_memory_said_to_a_running_node_changes_nothing() -> None:
    cluster = restarted(peer("10.9.9.9:7000"))
    node = cluster.engines[A]
    before = len(node.state.table)
    ack2 = GossipDigestAck2(Sender("test", 1, B, int(WALL)), (remembered_state(peer(), 1000),))
    effects = node.handle(RequestReceived(ack2), cluster.now)
    assert [effect.reply for effect in effects if isinstance(effect, Answer)] == [GossipDigestAck2Reply(0)]
    assert len(node.state.table) == before


@pytest.mark.parametrize("wanted", [C, HOST_C])
def test_who_stays_dead_over_a_restart_of_all_is_replaced(wanted: str) -> None:
    cluster = restarted()
    began = cluster.time
    verdict = join(cluster, replace=wanted)
    assert verdict.replaces == f"{HOST_C},{GENERATION_C}"
    assert cluster.time - began >= 10, "it may still be heard of"
    cluster.add(D, values={"REPLACES": verdict.replaces}, known_peers=verdict.peers)
    cluster.run(8)
    for name in (A, B, D):
        assert C not in cluster.view(name)
    assert remembered(ask(cluster, shadow_syn())) == []
    with pytest.raises(JoinError, match="does not know it"):
        join(cluster, endpoint="10.0.0.9:7000", host_id="another", replace=wanted)


def test_a_replacement_at_the_same_address_takes_a_greater_generation() -> None:
    verdict = join(restarted(), endpoint=C, host_id="new", replace=HOST_C)
    assert (verdict.replaces, verdict.own_generation_seen) == (f"{HOST_C},{GENERATION_C}", GENERATION_C)


def test_a_memory_holds_neither_an_address_nor_a_host_id() -> None:
    cluster = restarted()
    began = cluster.time
    assert join(cluster, endpoint=C, host_id="new").own_generation_seen == GENERATION_C
    assert join(cluster, endpoint=D, host_id=HOST_C).own_generation_seen == 0
    assert cluster.time == began, "nobody waits for it"


def test_who_is_alive_is_not_replaced_because_a_file_remembers_it() -> None:
    cluster = restarted(seconds=1)
    cluster.cut |= {(A, C), (C, A)}
    cluster.add(C, seeds=(B,), host_id=HOST_C)
    cluster.do(B, RequestReceived(GossipDigestAck2(Sender("test", 1, C, int(WALL)), ())))
    cluster.run(8)
    with pytest.raises(JoinError, match="its heartbeat moves"):
        join(cluster, replace=HOST_C)


def test_an_operator_removes_it_by_its_host_id_after_a_while() -> None:
    cluster = restarted()
    with pytest.raises(LifecycleError, match="only known from disk"):
        cluster.do(A, RemoveRequested(HOST_C))
    with pytest.raises(LifecycleError, match="only known from disk"):
        cluster.do(A, AssassinateRequested(C))
    cluster.run(STANDSTILL_INTERVALS)
    cluster.do(A, RemoveRequested(HOST_C))
    for name in (A, B):
        generation, liveness, values = cluster.view(name)[C]
        assert (generation, liveness) == (GENERATION_C + 1, "down")
        assert values["STATUS"].startswith(f"removed,{HOST_C},")
        assert cluster.kinds(name, C) == ["EndpointJoined", "EndpointRemoved"]
    with pytest.raises(JoinError, match="was removed from the cluster"):
        join(cluster, endpoint=C, host_id=HOST_C)
    with pytest.raises(LifecycleError, match="gone already"):
        cluster.do(B, RemoveRequested(HOST_C))


@pytest.mark.parametrize("force", [False, True])
def test_an_operator_assassinates_it(force: bool) -> None:
    cluster = restarted(seconds=0 if force else STANDSTILL_INTERVALS)
    cluster.do(A, AssassinateRequested(C, force))
    generation, _, values = cluster.view(B)[C]
    assert (generation, values["HOST_ID"]) == (GENERATION_C + 1, HOST_C)
    assert values["STATUS"].startswith("LEFT,")


def test_an_address_without_an_identity_is_assassinated_in_a_generation_of_now() -> None:
    cluster = restarted(KnownPeer(C, "", "", "", GENERATION_C, int(WALL)), seconds=STANDSTILL_INTERVALS)
    cluster.do(A, AssassinateRequested(C))
    assert cluster.view(B)[C][0] == int(cluster.now.wall)


def test_who_was_removed_while_the_rememberer_was_down_does_not_return() -> None:
    cluster = restarted(seconds=STANDSTILL_INTERVALS)
    cluster.do(A, RemoveRequested(HOST_C))
    cluster.time += GONE_EXPIRE_SECONDS - 3600
    late = cluster.add(D, seeds=(A,), saved_peers=(peer(),))
    assert late.state.saved.fresh(cluster.now.wall) == (peer(),)
    cluster.run(6)
    assert cluster.view(D)[C][2]["STATUS"].startswith("removed,")
    assert late.state.saved.fresh(cluster.now.wall) == ()
    with pytest.raises(LifecycleError, match="gone already"):
        cluster.do(D, RemoveRequested(HOST_C))


def test_what_was_seen_longer_ago_than_removals_are_remembered_is_not_told() -> None:
    cluster = restarted(peer(seen=WALL - GONE_EXPIRE_SECONDS), seconds=STANDSTILL_INTERVALS)
    assert cluster.view(A)[C][:2] == (0, "down"), "its address is tried all the same"
    assert remembered(ask(cluster, shadow_syn())) == []
    with pytest.raises(JoinError, match="does not know it"):
        join(cluster, replace=C)
    with pytest.raises(LifecycleError, match="no node has host id"):
        cluster.do(A, RemoveRequested(HOST_C))


def test_a_memory_grows_too_old_while_the_node_runs() -> None:
    cluster = restarted()
    cluster.time += GONE_EXPIRE_SECONDS - 10
    assert remembered(ask(cluster, shadow_syn())) == [C]
    cluster.time += 20
    assert remembered(ask(cluster, shadow_syn())) == []


def test_the_same_host_id_elsewhere_ends_the_memory() -> None:
    cluster = restarted()
    cluster.add(D, host_id=HOST_C)
    cluster.run(6)
    for name in (A, B):
        assert C not in cluster.view(name)
        assert len(cluster.engines[name].state.saved) == 0


def test_an_older_incarnation_elsewhere_does_not() -> None:
    cluster = restarted(peer(generation=int(WALL) + 5000))
    cluster.add(D, host_id=HOST_C)
    cluster.run(6)
    assert remembered(ask(cluster, shadow_syn((D, 0, 0, 0)))) == [C]


def test_very_many_are_told_in_several_answers() -> None:
    saved = [peer(f"10.1.{n >> 8}.{n & 255}:7000") for n in range(REMEMBERED_PER_ANSWER_MAX + 5)]
    cluster = Cluster(0)
    cluster.add(A, saved_peers=tuple(saved))
    first = ask(cluster, shadow_syn())
    assert (len(remembered(first)), first.deferred) == (REMEMBERED_PER_ANSWER_MAX, 5)
    verdict = join(cluster, seeds=(A,), replace=saved[-1].endpoint)
    assert verdict.replaces == f"host-{saved[-1].endpoint},{GENERATION_C}"


def test_of_one_host_id_at_two_addresses_the_greater_generation_is_remembered() -> None:
    older, newer = peer(C, host_id="x"), peer(D, host_id="x", generation=GENERATION_C + 2)
    for order in ([older, newer], [newer, older]):
        saved = SavedPeers()
        saved.remember(order, WALL)
        assert saved.fresh(WALL) == (newer,)


def test_a_time_in_the_future_counts_as_now() -> None:
    saved = SavedPeers()
    saved.remember([peer(seen=WALL + 10**7)], WALL)
    assert saved.fresh(WALL)[0].seen_seconds == int(WALL)
    assert saved.fresh(WALL + GONE_EXPIRE_SECONDS) == ()
    assert WALL - 3600 < seen_now(WALL) <= WALL


def test_a_real_state_says_more_than_a_memory_whatever_comes_first() -> None:
    cluster = restarted()
    cluster.add(C, host_id=HOST_C)
    cluster.run(6)
    real = ask(cluster, shadow_syn())
    assert remembered(real) == []
    memory = GossipDigestAck(
        Sender("test", 1, B, int(WALL)),
        0,
        DigestColumns.empty(),
        DigestColumns.empty(),
        (remembered_state(peer(generation=int(WALL) + 9000), 1000),),
    )
    for order in ([real, memory], [memory, real]):
        the_round = ShadowRound(
            ShadowConfig(
                cluster_name="test",
                protocol_version=1,
                endpoint=D,
                host_id="d",
                interval_seconds=1.0,
                seeds=(A,),
                replace=C,
            ),
            cluster.now,
        )
        for ack in order:
            the_round.answered(ack, cluster.now)
        moved = [_beat(state) for state in real.states]
        later = Now(cluster.now.monotonic + 1, cluster.now.wall + 1)
        the_round.answered(
            GossipDigestAck(real.sender, 0, real.requests, real.heartbeats, tuple(moved)),
            later,
        )
        with pytest.raises(JoinError, match="is alive"):
            the_round.verdict(later)


def _beat(state: EndpointState) -> EndpointState:
    return EndpointState(
        state.endpoint,
        state.generation,
        state.interval_ms,
        state.heartbeat + 1,
        state.from_version,
        state.states_version,
        state.values,
    )
