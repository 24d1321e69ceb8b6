"""Plans over several replicas: the fewest copies, each straight from a holder, the holders taking turns."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from antientropy import Row, RowDigests
from antientropy.core.plan import RepairPlan, plan_repair
from antientropy.core.reconcile import Difference, States, difference

Replica = dict[int, tuple[int, int]]


def digests_of(rows: Replica) -> RowDigests:
    """Token -> (version, content) as columns."""
    tokens = sorted(rows)
    return RowDigests.of(
        tokens, [rows[token][0] for token in tokens], [bytes([rows[token][1] + 1] * 16) for token in tokens]
    )


def without_digests(one: Difference) -> Difference:
    """As sketches find it: rows of equal version are not seen, digests are not known."""
    keep = (one.local.present != one.remote.present) | (one.local.versions != one.remote.versions)

    def blank(states: States) -> States:
        return States(states.present, states.versions, np.zeros_like(states.digests))

    return Difference(
        one.tokens[keep], blank(one.local.take(keep)), blank(one.remote.take(keep)), np.empty(0, np.uint64)
    )


def carried_out(plan: RepairPlan, replicas: list[Replica]) -> list[Replica]:
    """All transfers at once, as they are made; every source must hold what it gives."""
    after = [dict(one) for one in replicas]
    for transfer in plan.transfers:
        assert transfer.source != transfer.target
        assert (np.diff(transfer.tokens.astype(np.int64)) > 0).all()
        for token in transfer.tokens.tolist():
            row = replicas[transfer.source][token]
            assert row == max(one[token] for one in replicas if token in one)
            assert after[transfer.target].get(token) != row, "a copy that its receiver has"
            after[transfer.target][token] = row
    return after


replica = st.dictionaries(st.integers(0, 12), st.tuples(st.integers(1, 3), st.integers(0, 2)), max_size=13)


@settings(max_examples=300, deadline=None)
@given(st.lists(replica, min_size=2, max_size=5))
def test_a_plan_makes_all_replicas_equal_with_the_fewest_copies(replicas: list[Replica]) -> None:
    plan = plan_repair([difference(digests_of(replicas[0]), digests_of(one)) for one in replicas[1:]])
    after = carried_out(plan, replicas)
    assert all(one == after[0] for one in after)
    winners = {token: max(one[token] for one in replicas if token in one) for one in replicas for token in one}
    lacking = [(token, one) for token, winner in winners.items() for one in replicas if one.get(token) != winner]
    assert plan.copies == len(lacking) == sum(len(transfer.tokens) for transfer in plan.transfers)
    assert len(plan) == len({token for token, _ in lacking})
    conflicts = {
        token
        for token, winner in winners.items()
        if any(one.get(token, winner)[0] == winner[0] and one.get(token, winner) != winner for one in replicas)
    }
    assert plan.conflicts == len(conflicts)


@settings(max_examples=300, deadline=None)
@given(st.lists(replica, min_size=2, max_size=4), st.lists(st.booleans(), min_size=4, max_size=4))
def test_unknown_digests_never_move_a_row_that_is_there(replicas: list[Replica], sketched: list[bool]) -> None:
    """Some pairs found by sketch, some with digests: versions become equal, at most one copy for each that lacks it."""
    found, blind = [], []
    for number, one in enumerate(replicas[1:]):
        full = difference(digests_of(replicas[0]), digests_of(one))
        sketch = without_digests(full)
        # Sketches that find nothing give way to a search with digests.
        if sketched[number] and len(sketch):
            blind.append(number)
        found.append(sketch if number in blind else full)
    plan = plan_repair(found, blind=blind)
    for transfer in plan.transfers:
        for token in transfer.tokens.tolist():
            given, held = replicas[transfer.source].get(token), replicas[transfer.target].get(token)
            assert given is not None
            assert given[0] == max(one[token][0] for one in replicas if token in one)
            # Equal versions of different content, that no pair has seen, may take one copy more.
            assert held is None or held[0] < given[0] or held[1] != given[1]
    assert plan.copies <= sum(len({token for one in replicas for token in one}) for _ in replicas)


@given(st.lists(replica, min_size=2, max_size=4))
def test_pull_brings_rows_to_the_coordinator_only(replicas: list[Replica]) -> None:
    plan = plan_repair([difference(digests_of(replicas[0]), digests_of(one)) for one in replicas[1:]], pull=True)
    after = carried_out(plan, replicas)
    assert after[1:] == replicas[1:]
    winners = {token: max(one[token] for one in replicas if token in one) for one in replicas for token in one}
    assert after[0] == winners


@given(
    st.lists(replica, min_size=3, max_size=4),
    st.sets(st.tuples(st.integers(1, 3), st.integers(1, 3)).filter(lambda link: link[0] != link[1])),
)
def test_broken_links_carry_nothing_and_a_second_pass_finishes(
    replicas: list[Replica], broken: set[tuple[int, int]]
) -> None:
    state = replicas
    for _ in range(2):
        plan = plan_repair([difference(digests_of(state[0]), digests_of(one)) for one in state[1:]], broken=broken)
        assert not {(one.source, one.target) for one in plan.transfers} & broken
        state = carried_out(plan, state)
    assert all(one == state[0] for one in state)


def test_holders_take_turns() -> None:
    """Three of four hold 3,000 rows that one lacks, one alone holds 900 that three lack."""
    common = dict.fromkeys(range(3000), (1, 1))
    single = common | dict.fromkeys(range(5000, 5900), (1, 1))
    replicas: list[Replica] = [{}, common, common, single]
    plan = plan_repair([difference(digests_of(replicas[0]), digests_of(one)) for one in replicas[1:]])
    given: Counter[int] = Counter()
    for transfer in plan.transfers:
        given[transfer.source] += len(transfer.tokens)
    assert plan.copies == 3_000 + 2_700
    assert given == {1: 1_000, 2: 1_000, 3: 1_000 + 2_700}


def test_tokens_that_keys_share_are_set_apart_in_every_pair() -> None:
    rows = [Row(b"a", 1, b""), Row(b"b", 2, b"")]
    shared = RowDigests.of([7, 7], [1, 2], [row.digest for row in rows])
    single = RowDigests.of([7], [2], [rows[1].digest])
    empty = RowDigests.empty()
    plan = plan_repair([difference(empty, shared), difference(empty, single)])
    assert plan.copies == 0
    assert len(plan) == 1
    assert plan.colliding_tokens.tolist() == [7]
    assert [one.tolist() for one in plan.colliding] == [[], [7], [7]]
    assert not plan.is_idle


def test_only_keeps_what_it_is_told() -> None:
    plan = plan_repair([difference(digests_of({1: (1, 1), 2: (1, 1)}), digests_of({3: (2, 1)}))])
    part = plan.only(plan.tokens != np.uint64(2))
    assert part.tokens.tolist() == [1, 3]
    assert [(one.source, one.target, one.tokens.tolist()) for one in part.transfers] == [(1, 0, [3]), (0, 1, [1])]
    assert plan_repair([]).is_idle
