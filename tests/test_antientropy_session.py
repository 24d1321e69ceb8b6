"""The pair session without any wire: it is driven by hand, and says what it wants next."""

from __future__ import annotations

import numpy as np
import pytest

from antientropy.core.merkle import HashTree
from antientropy.core.plan import plan_repair
from antientropy.core.rows import Row, RowDigests
from antientropy.core.session import AskDigests, AskNodes, AskRoots, AskRows, GiveRows, PairSession, Phase
from antientropy.core.tokens import TOKEN_MAX, TokenRange, node_ranges
from antientropy.errors import DivergenceError

ROOT = np.zeros(1, np.uint32)


def columns(rows: dict[bytes, Row]) -> RowDigests:
    ordered = sorted(rows.values(), key=lambda row: (row.token, row.key))
    return RowDigests.of(
        [row.token for row in ordered], [row.version for row in ordered], [row.digest for row in ordered]
    )


class Sides:
    """Two replicas in two dictionaries, and a session between them."""

    def __init__(self, local: list[Row], remote: list[Row], *, depth: int = 2) -> None:
        self.local = {row.key: row for row in local}
        self.remote = {row.key: row for row in remote}
        self.depth = depth
        self.asked: list[str] = []

    def compare(self, session: PairSession) -> None:
        """One comparison down to the rows."""
        request = session.next_request()
        assert isinstance(request, AskRoots)
        here, there = (HashTree.build(columns(rows), self.depth) for rows in (self.local, self.remote))
        session.roots(equal=here.root == there.root)
        if session.phase is not Phase.COMPARING:
            return
        session.compare(here, there.depth, there.child_hashes(0, ROOT)[0])
        while request := session.next_request():
            self.asked.append(type(request).__name__)
            if isinstance(request, AskNodes):
                session.nodes(request, there.child_hashes(request.level, request.indices))
            elif isinstance(request, AskDigests):
                ranges = node_ranges(request.level, request.indices, TokenRange.full())
                if not session.digests(_within(self.local, ranges), _within(self.remote, ranges), ranges[-1].last):
                    break

    def move(self, session: PairSession, *, lose: bool = False) -> None:
        """Plan and move all that was found."""
        found = session.found
        plan = plan_repair([found])
        session.stream(plan.pairs[0], streamed=found, cut=session.complete_to < TOKEN_MAX)
        source, target = self.remote, self.local
        pushed = False
        while True:
            request = session.next_request()
            if request is None:
                if pushed:
                    break
                session.push(plan.pairs[0].push_tokens, plan.colliding_tokens, np.empty(0, np.uint64))
                source, target, pushed = self.local, self.remote, True
                continue
            assert isinstance(request, AskRows | GiveRows)
            rows = [row for row in source.values() if row.token in request.tokens.tolist()]
            if not lose:
                target.update({row.key: row for row in rows})
            session.moved(len(rows), applied=len(rows), counted=request.counted)
        session.verify()


def phase(session: PairSession) -> Phase:
    """Read through a call, so that type checkers do not take it for unchanged."""
    return session.phase


def _within(rows: dict[bytes, Row], ranges: list[TokenRange]) -> RowDigests:
    return columns({key: row for key, row in rows.items() if any(part.contains(row.token) for part in ranges)})


def rows_named(start: int, stop: int) -> list[Row]:
    return [Row(b"%d" % number, 1, b"") for number in range(start, stop)]


def test_equal_replicas_end_after_the_first_answer() -> None:
    session = PairSession()
    sides = Sides(rows_named(0, 50), rows_named(0, 50))
    assert phase(session) is Phase.PREPARING
    sides.compare(session)
    assert phase(session) is Phase.DONE
    assert session.next_request() is None
    assert (session.statistics.pairs_compared, session.statistics.pairs_equal) == (1, 1)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_phases_of_a_repair(depth: int) -> None:
    session = PairSession()
    sides = Sides(rows_named(0, 60), rows_named(20, 90), depth=depth)
    sides.compare(session)
    assert phase(session) is Phase.COMPARING
    assert sides.asked == ["AskNodes"] * (depth - 1) + ["AskDigests"]
    assert len(session.found) == 50
    sides.move(session)
    assert phase(session) is Phase.VERIFYING
    sides.compare(session)
    assert phase(session) is Phase.DONE
    assert not session.unsettled
    assert sides.local == sides.remote
    assert session.statistics.rows_moved == 50


def test_too_many_differences_are_cut_and_such_passes_do_not_count() -> None:
    session = PairSession(passes_max=1, difference_rows_max=10)
    sides = Sides(rows_named(0, 100), [], depth=3)
    passes = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("antientropy.core.session.NODES_PER_REQUEST_MAX", 4)
        sides.compare(session)
        while session.phase is not Phase.DONE:
            passes += 1
            assert session.complete_to < TOKEN_MAX or passes > 5
            sides.move(session)
            sides.compare(session)
    assert sides.local == sides.remote
    assert 5 < passes <= 11


def test_rows_that_do_not_take_are_damage() -> None:
    session = PairSession()
    sides = Sides(rows_named(0, 5), [])
    sides.compare(session)
    sides.move(session, lose=True)
    sides.compare(session)
    with pytest.raises(DivergenceError, match="5 rows were moved and differ as before"):
        _ = session.found
    session.fail("damage")
    assert (session.phase, session.failure, session.next_request()) == (Phase.FAILED, "damage", None)


def test_writes_that_never_end_leave_the_session_unsettled() -> None:
    session = PairSession(passes_max=2)
    sides = Sides(rows_named(0, 5), [])
    for number in range(2):
        sides.compare(session)
        sides.move(session)
        sides.local[b"new"] = Row(b"new", number + 2, b"")
    request = session.next_request()
    assert request == AskRoots(open_session=False), "the last comparison opens nothing"
    session.roots(equal=False)
    assert (session.phase, session.unsettled) == (Phase.DONE, True)


def test_a_wrong_answer_is_a_fault_of_the_caller() -> None:
    session = PairSession()
    with pytest.raises(RuntimeError, match="the session is preparing, not comparing"):
        session.digests(RowDigests.empty(), RowDigests.empty(), 0)
    with pytest.raises(RuntimeError, match="not streaming"):
        session.verify()
