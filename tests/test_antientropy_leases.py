"""Leases: one repair at a time per range of a keyspace, and none for ever."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from antientropy.core.tokens import TOKEN_MAX, TokenRange
from antientropy.leases import Lease, LeaseDenied, LeaseTable, new_session

FULL = TokenRange.full()
LOWER, UPPER = TokenRange(0, 2**63 - 1), TokenRange(2**63, TOKEN_MAX)


def take(table: LeaseTable, session: int, owner: str = "a:1", *, at: TokenRange = FULL, now: float = 0.0) -> object:
    return table.acquire("kv", at, owner=owner, session=session, now=now)


def test_an_overlapping_range_of_another_owner_is_denied_with_holder_and_time() -> None:
    table = LeaseTable(15.0)
    assert isinstance(take(table, 7, at=LOWER, now=100.0), Lease)
    denied = take(table, 8, "b:1", at=TokenRange(5, 5), now=104.0)
    assert denied == LeaseDenied("a:1", 7, 11.0)
    assert table.holds(7, 104.0)
    assert not table.holds(8, 104.0)


def test_disjoint_ranges_and_other_keyspaces_do_not_meet() -> None:
    table = LeaseTable(15.0)
    take(table, 1, at=LOWER)
    assert isinstance(take(table, 2, "b:1", at=UPPER), Lease)
    assert isinstance(table.acquire("other", FULL, owner="c:1", session=3, now=0.0), Lease)
    assert [lease.session for lease in table.leases(0.0)] == [1, 2, 3]


def test_a_lease_ends_when_it_is_not_renewed() -> None:
    table = LeaseTable(15.0)
    take(table, 1)
    assert table.renew(1, 14.9)
    assert not isinstance(take(table, 2, "b:1", now=29.0), Lease)
    assert [lease.session for lease in table.expired(29.9)] == [1]
    assert not table.renew(1, 29.9)
    assert isinstance(take(table, 2, "b:1", now=29.9), Lease)


def test_an_expired_lease_is_not_renewed_even_if_nobody_has_noticed() -> None:
    table = LeaseTable(15.0)
    take(table, 1)
    assert not table.renew(1, 15.0)
    assert not table.holds(1, 15.0)


def test_a_released_range_is_free_at_once() -> None:
    table = LeaseTable(15.0)
    take(table, 1)
    assert table.release(1)
    assert not table.release(1)
    assert isinstance(take(table, 2, "b:1"), Lease)


def test_a_restarted_coordinator_takes_its_range_over_and_its_earlier_session_cannot_come_back() -> None:
    table = LeaseTable(15.0)
    take(table, 5)
    assert isinstance(take(table, 6, at=LOWER), Lease)
    assert not table.holds(5, 0.0)
    assert take(table, 5) == LeaseDenied("a:1", 6, 15.0)
    assert table.holds(6, 0.0)


def test_a_lease_can_be_taken_again_by_its_session_but_not_for_something_else() -> None:
    table = LeaseTable(15.0)
    take(table, 1, at=LOWER)
    assert isinstance(take(table, 1, at=LOWER, now=3.0), Lease)
    assert isinstance(take(table, 1, at=UPPER, now=3.0), LeaseDenied)
    assert isinstance(take(table, 1, "b:1", at=LOWER, now=3.0), LeaseDenied)


def test_names_of_sessions_ascend_with_time_and_differ() -> None:
    random = Random(1)
    names = [new_session(1.8e9 + step * 0.04, random) for step in range(100)]
    assert names == sorted(set(names))
    assert all(0 < name < 2**64 for name in names)
    assert len({new_session(1.8e9, random) for _ in range(1000)}) == 1000


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "renew", "release"]),
            st.integers(0, 5),
            st.sampled_from(["a:1", "b:1"]),
            st.integers(0, 3),
            st.integers(0, 3),
            st.floats(0, 8),
        ),
        max_size=60,
    )
)
def test_no_two_leases_in_force_ever_overlap(steps: list[tuple[str, int, str, int, int, float]]) -> None:
    table = LeaseTable(10.0)
    now = 0.0
    for what, session, owner, first, last, pause in steps:
        now += pause
        if what == "take":
            take(table, session, owner, at=TokenRange(min(first, last), max(first, last)), now=now)
        elif what == "renew":
            table.renew(session, now)
        else:
            table.release(session)
        held = table.leases(now)
        assert all(lease.expires_at <= now + 10.0 for lease in held)
        for number, one in enumerate(held):
            assert not any(one.conflicts(other.keyspace, other.token_range) for other in held[number + 1 :])
