"""The state machines of a unit and of a whole repair, without any I/O."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antientropy import RepairMode, RowDigests, SessionState, TokenRange
from antientropy.core.plan import Transfer
from antientropy.core.reconcile import Difference, difference
from antientropy.core.session import (
    Compare,
    End,
    Locate,
    Move,
    Rebuild,
    Split,
    UnitLimits,
    UnitSession,
    Verdict,
    Wait,
    cut,
)
from antientropy.core.tokens import TOKEN_MAX
from antientropy.core.work import RepairWork, RetryLimits, Unit, without

FULL = TokenRange.full()


def columns(rows: dict[int, int]) -> RowDigests:
    """Token -> version."""
    tokens = sorted(rows)
    return RowDigests.of(tokens, [rows[token] for token in tokens], [b"%16d" % rows[token] for token in tokens])


def found(here: dict[int, int], there: dict[int, int]) -> Difference:
    return difference(columns(here), columns(there))


def carry_out(session: UnitSession, move: Move) -> None:
    for transfer in move.plan.transfers:
        session.moved(transfer, transfer.tokens)
    session.own_rows_changed()
    session.move_ended(list(session.live))


def test_equal_replicas_end_after_one_comparison() -> None:
    session = UnitSession(FULL, ["b", "c"])
    assert session.next(0.0) == Compare(("b", "c"))
    for endpoint in ("b", "c"):
        session.compared(endpoint, equal=True)
    assert session.next(0.0) == End(Verdict.VERIFIED)


def test_rows_move_once_and_everybody_is_compared_again() -> None:
    session = UnitSession(FULL, ["b", "c"])
    session.compared("b", equal=True)
    session.compared("c", equal=False)
    assert session.next(0.0) == Locate(("c",))
    session.located("c", found({1: 1}, {1: 2, 5: 1}), consistent=True)
    move = session.next(0.0)
    assert isinstance(move, Move)
    # What only c has goes here and to b, which is equal to what is here; b gives nothing: it has no snapshot.
    assert [(one.source, one.target, one.tokens.tolist()) for one in move.plan.transfers] == [
        (2, 0, [1, 5]),
        (2, 1, [1, 5]),
    ]
    carry_out(session, move)
    assert session.next(0.0) == Compare(("b", "c"))
    for endpoint in ("b", "c"):
        session.compared(endpoint, equal=True)
    assert session.next(0.0) == End(Verdict.VERIFIED)
    assert (session.rows_differing, session.passes) == (2, 1)


def test_a_failed_peer_is_never_asked_again() -> None:
    session = UnitSession(FULL, ["b", "c"])
    session.compared("b", equal=False)
    session.failed("b", "cannot be reached")
    assert session.next(0.0) == Compare(("c",))
    session.failed("c", "full")
    assert session.next(0.0) == End(Verdict.FAILED)
    assert session.failures == {"b": "cannot be reached", "c": "full"}


def test_rows_that_differ_as_before_lead_to_a_rebuild_and_then_to_a_failure() -> None:
    session = UnitSession(FULL, ["b"])
    for attempt in range(2):
        for _ in range(2):
            session.compared("b", equal=False)
            session.next(0.0)
            session.located("b", found({1: 1}, {1: 2}), consistent=True)
            step = session.next(0.0)
            if isinstance(step, Move):
                carry_out(session, step)
        if attempt == 0:
            assert isinstance(step, Rebuild)
            assert "differ as before" in step.reason
    assert step == End(Verdict.FAILED)
    assert "check the disks" in session.failures["b"]


def test_roots_that_differ_without_rows_lead_to_a_rebuild_only_if_nothing_was_written_meanwhile() -> None:
    session = UnitSession(FULL, ["b"])
    session.compared("b", equal=False)
    session.located("b", found({}, {}), consistent=False)
    assert isinstance(session.next(0.0), Wait)
    session.compared("b", equal=False)
    session.located("b", found({}, {}), consistent=True)
    step = session.next(0.0)
    assert isinstance(step, Rebuild)
    assert session.next(0.0) == Compare(("b",))


def test_too_many_rows_cut_the_unit() -> None:
    session = UnitSession(FULL, ["b"], limits=UnitLimits(rows_max=10))
    session.compared("b", equal=False)
    session.located("b", found({}, {number << 56: 1 for number in range(100)}), consistent=True)
    step = session.next(0.0)
    assert isinstance(step, Split)
    assert len(step.parts) == 20
    assert (step.parts[0].first, step.parts[-1].last) == (0, TOKEN_MAX)
    session.compared("b", equal=False)
    session.oversized("b", 10**9)
    step = session.next(0.0)
    assert isinstance(step, Split)
    assert len(step.parts) == 256


def test_a_single_token_is_never_cut() -> None:
    session = UnitSession(TokenRange(7, 7), ["b"], limits=UnitLimits(rows_max=1))
    assert session.rows_max is None
    assert cut(TokenRange(7, 7), 5) == ()


@given(st.integers(0, TOKEN_MAX), st.integers(0, TOKEN_MAX), st.integers(0, 1_000))
def test_parts_of_a_range_cover_it_once(one: int, other: int, parts: int) -> None:
    token_range = TokenRange(min(one, other), max(one, other))
    made = cut(token_range, parts)
    if token_range.first == token_range.last:
        assert made == ()
        return
    assert 2 <= len(made) <= 515
    assert made[0].first == token_range.first
    assert made[-1].last == token_range.last
    assert all(after.first == before.last + 1 for before, after in pairwise(made))


def limits(**changes: float) -> UnitLimits:
    return UnitLimits(in_flight_seconds=0.5, version_time=float, **changes)  # type: ignore[arg-type] # counts too


def test_young_rows_wait_old_ones_move_and_what_settles_was_in_flight() -> None:
    session = UnitSession(FULL, ["b"], limits=limits())
    session.compared("b", equal=False)
    session.located("b", found({}, {1: 50, 2: 100}), consistent=True)
    move = session.next(100.25)
    assert isinstance(move, Move)
    assert move.plan.tokens.tolist() == [1]
    carry_out(session, move)
    session.compared("b", equal=False)
    session.located("b", found({1: 50}, {1: 50, 2: 100}), consistent=True)
    step = session.next(100.25)
    assert isinstance(step, Wait)
    assert step.seconds == pytest.approx(0.25)
    session.compared("b", equal=True)
    assert session.next(100.6) == End(Verdict.VERIFIED)
    assert (session.rows_differing, session.rows_in_flight) == (1, 1)


def test_waits_for_young_rows_are_bounded_and_what_is_left_is_told() -> None:
    session = UnitSession(FULL, ["b"], limits=limits(in_flight_waits_max=3))
    now, waits = 100.0, 0
    while True:
        session.compared("b", equal=False)
        session.located("b", found({}, {int(now * 10): int(now)}), consistent=True)
        step = session.next(now)
        if not isinstance(step, Wait):
            break
        waits, now = waits + 1, now + 1
    assert waits == 3
    assert isinstance(step, End)
    assert step.verdict is Verdict.UNSETTLED
    assert step.plan is not None
    assert step.plan.winners.versions.tolist() == [int(now)]


def test_passes_are_bounded() -> None:
    session = UnitSession(FULL, ["b"], limits=UnitLimits(passes_max=2))
    for number in range(3):
        session.compared("b", equal=False)
        session.located("b", found({}, {number: 1}), consistent=True)
        step = session.next(0.0)
        if isinstance(step, Move):
            carry_out(session, step)
    assert isinstance(step, End)
    assert step.verdict is Verdict.UNSETTLED


def test_rows_left_to_foreground_writes_are_in_flight() -> None:
    session = UnitSession(FULL, ["b"])
    session.compared("b", equal=False)
    session.located("b", found({}, {1: 1, 2: 1}), consistent=True)
    move = session.next(0.0)
    assert isinstance(move, Move)
    session.left_to_writes(np.array([2], np.uint64))
    session.moved(Transfer(1, 0, move.plan.tokens), np.array([1], np.uint64))
    session.own_rows_changed()
    session.move_ended(["b"])
    session.compared("b", equal=True)
    assert session.next(0.0) == End(Verdict.VERIFIED)
    assert session.rows_in_flight == 1


@pytest.mark.parametrize(
    ("mode", "verdict"), [(RepairMode.PREVIEW, Verdict.PREVIEWED), (RepairMode.VALIDATE, Verdict.PREVIEWED)]
)
def test_modes_that_move_nothing(mode: RepairMode, verdict: Verdict) -> None:
    session = UnitSession(FULL, ["b"], mode)
    session.compared("b", equal=False)
    session.located("b", found({}, {1: 1}), consistent=False)
    step = session.next(0.0)
    assert isinstance(step, End)
    assert step.verdict is verdict


def test_pull_ends_when_nothing_is_lacking_here() -> None:
    session = UnitSession(FULL, ["b"], RepairMode.PULL)
    session.compared("b", equal=False)
    session.located("b", found({1: 1}, {2: 1}), consistent=True)
    move = session.next(0.0)
    assert isinstance(move, Move)
    assert [one.target for one in move.plan.transfers] == [0]
    carry_out(session, move)
    session.compared("b", equal=False)
    session.located("b", found({1: 1, 2: 1}, {2: 1}), consistent=True)
    assert session.next(0.0) == End(Verdict.PULLED)


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 3))
def test_every_unit_ends_whatever_the_peers_say(rng: random.Random, peers: int) -> None:
    names = [f"p{number}" for number in range(peers)]
    session = UnitSession(FULL, names, limits=UnitLimits(rows_max=5, version_time=float))
    now = 0.0
    for _ in range(200):
        now += rng.random()
        step = session.next(now)
        match step:
            case Compare(asked):
                for endpoint in asked:
                    if rng.random() < 0.1:
                        session.failed(endpoint, "gone")
                    else:
                        session.compared(endpoint, equal=rng.random() < 0.3)
            case Locate(asked):
                for endpoint in asked:
                    rows = {rng.randrange(20): rng.randrange(int(now) + 2) for _ in range(rng.randrange(4))}
                    session.located(endpoint, found({}, rows), consistent=rng.random() < 0.5)
            case Move(plan):
                for transfer in plan.transfers:
                    if rng.random() < 0.7:
                        session.moved(transfer, transfer.tokens)
                session.move_ended(names)
            case End() | Split():
                return
    pytest.fail("200 steps and no end")


# --- whole repairs ---


def everybody(_endpoint: str) -> bool:
    return True


def test_units_are_taken_split_and_compared_as_a_whole_at_the_end() -> None:
    work = RepairWork([Unit(FULL, ("b", "c"), 0)])
    unit = work.take(0.0, everybody)
    assert isinstance(unit, Unit)
    assert work.take(0.0, everybody) is None
    parts = cut(FULL, 4)
    work.split(unit, parts)
    for number, part in enumerate(parts, start=1):
        taken = work.take(0.0, everybody)
        assert isinstance(taken, Unit)
        assert taken.token_range == part
        assert work.done(taken, taken.peers)
        assert work.progress == number / 4
        assert work.eta_seconds(10.0) == pytest.approx(10.0 * (4 - number) / number)
    last = work.take(0.0, everybody)
    assert isinstance(last, Unit)
    assert (last.token_range, last.is_last) == (FULL, True)
    assert work.done(last, last.peers)
    assert work.take(0.0, everybody) is None
    assert (work.outcome, work.progress) == (SessionState.COMPLETED, 1.0)


def test_a_lost_replica_costs_once_and_is_tried_again_with_all_that_it_missed() -> None:
    halves = cut(FULL, 2)
    work = RepairWork([Unit(half, ("b", "c"), number) for number, half in enumerate(halves)], retry=RetryLimits())
    first = work.take(0.0, everybody)
    assert isinstance(first, Unit)
    work.lose("c", "cannot be reached")
    assert not work.done(first, ["b"])
    second = work.take(0.0, everybody)
    assert isinstance(second, Unit)
    assert work.peers_of(second) == ("b",)
    assert not work.done(second, ["b"])
    assert work.progress == 1.0
    assert work.take(5.0, everybody) == 1.0
    again = [work.take(6.0, everybody), work.take(6.0, everybody)]
    assert again == [first, second]
    assert work.progress == 0.0
    assert work.peers_of(first) == ("b", "c")
    for unit in (first, second):
        work.done(unit, unit.peers)
    assert work.take(7.0, everybody) is None
    assert work.outcome is SessionState.COMPLETED


def test_rounds_for_lost_replicas_are_bounded_and_their_pauses_grow() -> None:
    work = RepairWork([Unit(FULL, ("b",), 0)], retry=RetryLimits(rounds_max=3, first_seconds=1.0))
    now, pauses = 0.0, []
    while (taken := work.take(now, everybody)) is not None:
        if isinstance(taken, float):
            pauses.append(taken)
            now += taken
            continue
        work.lose("b", "cannot be reached")
        work.unfinished(taken)
    assert pauses == [1.0, 2.0, 4.0]
    assert work.outcome is SessionState.FAILED
    assert work.left_out == {"b": "cannot be reached"}


def test_a_dead_replica_is_waited_for_only_if_it_is_back() -> None:
    for back in (False, True):
        work = RepairWork([Unit(FULL, ("b", "c"), 0)], dead=frozenset({"c"}))
        alive = {"b"}
        unit = work.take(0.0, alive.__contains__)
        assert isinstance(unit, Unit)
        assert work.peers_of(unit) == ("b",)
        work.done(unit, ["b"])
        alive |= {"c"} if back else set()
        again = work.take(0.0, alive.__contains__)
        assert again == (1.0 if back else None)
    assert work.outcome is SessionState.PARTIAL


def test_what_was_verified_before_is_skipped() -> None:
    parts = cut(FULL, 4)
    work = RepairWork([Unit(FULL, ("b",), 0)], skipped=parts[1:3])
    assert work.progress == 0.5
    assert work.eta_seconds(1.0) is None
    taken = [work.take(0.0, everybody), work.take(0.0, everybody)]
    assert [unit.token_range for unit in taken if isinstance(unit, Unit)] == [parts[0], parts[3]]


def test_a_unit_that_cannot_be_done_makes_the_repair_partial() -> None:
    halves = cut(FULL, 2)
    work = RepairWork([Unit(half, ("b",), number) for number, half in enumerate(halves)])
    first, second = work.take(0.0, everybody), work.take(0.0, everybody)
    assert isinstance(first, Unit)
    assert isinstance(second, Unit)
    work.failed(first, "the ring has changed")
    work.put_back(second)
    assert work.take(0.0, everybody) == second
    work.done(second, ["b"])
    assert work.take(0.0, everybody) is None
    assert work.outcome is SessionState.PARTIAL


token_ranges = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda ends: TokenRange(min(ends), max(ends)))


@given(token_ranges, st.lists(token_ranges, max_size=5))
def test_without_leaves_what_is_in_no_part(token_range: TokenRange, parts: list[TokenRange]) -> None:
    disjoint: list[TokenRange] = []
    for part in sorted(parts):
        if not disjoint or part.first > disjoint[-1].last:
            disjoint.append(part)
    left = without(token_range, disjoint)
    tokens = {token for one in left for token in range(one.first, one.last + 1)}
    assert tokens == {
        token
        for token in range(token_range.first, token_range.last + 1)
        if not any(part.contains(token) for part in disjoint)
    }
    assert sum(one.last - one.first + 1 for one in left) == len(tokens)
