"""The rules of purge and refusal, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antientropy.core import deletes
from antientropy.core.deletes import Ledger, Marks, PurgeMode, Versions
from antientropy.core.tokens import BUCKET_LEVEL, BUCKETS, TOKEN_MAX, TokenRange, node_range

FULL = TokenRange.full()
U64 = st.integers(0, 2**64 - 1)


def column(**versions: int) -> Versions:
    """By bucket, as ``b3=7``."""
    made = deletes.no_versions()
    for name, version in versions.items():
        made[int(name[1:])] = version
    return made


@given(
    runs=st.lists(st.tuples(U64, st.integers(1, BUCKETS)), min_size=1, max_size=12),
)
def test_versions_come_back(runs: list[tuple[int, int]]) -> None:
    versions = np.resize(np.concatenate([np.full(length, version, np.uint64) for version, length in runs]), BUCKETS)
    encoded = deletes.encode_versions(versions)
    assert (deletes.decode_versions(encoded) == versions).all()
    assert len(encoded) <= 11 * len(set(np.flatnonzero(np.diff(versions)).tolist())) + 10


def test_encoding_is_small() -> None:
    assert deletes.encode_versions(deletes.no_versions()) == b""
    assert deletes.encode_versions(deletes.uniform(7)) == b"\x07"
    assert len(deletes.encode_versions(deletes.uniform(2**64 - 1))) == 10
    assert deletes.encode_versions(column(b0=1)) == b"\x01\x00\x00"


@given(st.binary(max_size=40))
def test_decoding_takes_nothing_but_what_encoding_makes(encoded: bytes) -> None:
    try:
        versions = deletes.decode_versions(encoded)
    except ValueError:
        return
    assert deletes.encode_versions(versions) == encoded


@pytest.mark.parametrize(
    "encoded",
    [
        b"\x00",  # all 0 is empty
        b"\x80",  # cut off
        b"\x01\x05",  # a run without what follows
        b"\x81\x00",  # not the shortest
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # more than 64 bits
        b"\x01\x03\x01",  # two runs of one version
        b"\x01\xff\x02",  # more than 256 buckets
        b"\x01\x80\x02\x80\x03",
    ],
)
def test_damaged_versions_are_refused(encoded: bytes) -> None:
    with pytest.raises(ValueError, match="versions of buckets"):
        deletes.decode_versions(encoded)


def test_below_and_expired() -> None:
    tokens = np.array([0, 1, 1 << 56, TOKEN_MAX], np.uint64)
    versions = np.array([4, 5, 4, 0], np.uint64)
    floors = column(b0=5)
    assert deletes.below(tokens, versions, floors).tolist() == [True, False, False, False]
    tombstones = np.array([False, True, True, True])
    assert deletes.expired(tokens, versions, tombstones, deletes.uniform(5)).tolist() == [False, False, True, True]


def test_marks_only_grow_and_only_what_was_fenced_is_repaired() -> None:
    marks = Marks().fenced(10, deletes.buckets_touched(node_range(BUCKET_LEVEL, 3)))
    assert (marks.fence == column(b3=10)).all()
    marks = marks.confirmed(deletes.uniform(12), deletes.no_versions())
    assert (marks.repaired == column(b3=10)).all()
    assert (marks.fenced(5, np.ones(BUCKETS, np.bool_)).fence[3:5] == [10, 5]).all()
    adopted = marks.confirmed(deletes.no_versions(), column(b3=9, b4=9))
    assert (adopted.floors == column(b3=9)).all(), "nothing beyond what is repaired here"


def test_a_purge_goes_no_further_than_its_mode_permits() -> None:
    marks = Marks.born(10)
    assert (marks.purged(deletes.uniform(12), PurgeMode.REPAIR).floors == 10).all()
    by_time = marks.purged(deletes.uniform(12), PurgeMode.TIME)
    assert (by_time.floors == 12).all()
    assert (by_time.fence == 12).all(), "what was purged is fenced"
    assert not marks.purged(deletes.uniform(12), PurgeMode.NEVER).floors.any()


def test_marks_are_read_from_a_store() -> None:
    assert not Marks.of(None, None, None).fence.any()
    marks = Marks.of(b"\x05", b"\x07", None)
    assert (marks.fence == 7).all()
    assert (marks.repaired == 7).all()
    with pytest.raises(ValueError, match="versions of buckets"):
        Marks.of(b"", b"\x80", b"")


def test_copied_rows_are_as_good_as_the_worst_source() -> None:
    buckets = deletes.buckets_touched(TokenRange(0, 2 << 56))
    marks = Marks.born(10).copied_from([Marks(deletes.uniform(9), deletes.uniform(8), column(b1=4, b9=4))], buckets)
    assert (marks.repaired == np.where(buckets, 8, 10)).all()
    assert (marks.floors == column(b1=4)).all()


def test_unclean_buckets_and_the_sentence_about_them() -> None:
    empty = np.zeros(BUCKETS, np.bool_)
    empty[2] = True
    unclean = deletes.unclean(column(b1=3, b3=9), empty, column(b1=5, b2=5, b3=5))
    assert np.flatnonzero(unclean).tolist() == [1]
    sentence = deletes.refusal("b:1", unclean, column(b1=3), column(b1=5), when=lambda version: f"day {version}")
    assert sentence == (
        "b:1 has not been repaired since day 3, but tombstones older than day 5 were purged (1 of 256 buckets):"
        " it may bring deleted rows back. Wipe its store and let repair rebuild it, or repair with --force and accept"
        " that deleted rows may return"
    )
    assert "not been repaired ever" in deletes.refusal("b:1", unclean, deletes.no_versions(), column(b1=5))


def version_at(seconds: float) -> int:
    return int(seconds * 1000) << 16


def test_a_session_counts_as_of_whole_steps_before_its_start() -> None:
    as_of = deletes.session_version(10_000.0, version_at, propagation_delay_seconds=3_600.0)
    assert as_of == version_at(6_360.0)
    assert deletes.session_version(10.0, version_at, propagation_delay_seconds=3_600.0) == 0


def test_forced_sessions_forget_no_tombstone() -> None:
    floors = [column(b1=5), column(b2=6)]
    assert (deletes.session_floors(floors, forced=False) == column(b1=5, b2=6)).all()
    assert not deletes.session_floors(floors, forced=True).any()


@pytest.mark.parametrize(
    ("took_part", "restricted", "counts"),
    [({"a", "b", "c"}, False, True), ({"a", "b"}, False, False), ({"a", "b", "c"}, True, False), (set(), False, False)],
)
def test_which_sessions_count(took_part: set[str], restricted: bool, counts: bool) -> None:
    assert deletes.counts_as_repaired({"a", "b", "c"}, took_part, restricted=restricted) is counts


def test_differences_under_way_do_not_unsettle_a_bucket() -> None:
    tokens = np.array([1 << 56, 2 << 56], np.uint64)
    settled = deletes.settled(tokens, np.array([9, 10], np.uint64), 10)
    assert np.flatnonzero(~settled).tolist() == [1]
    assert deletes.settled(tokens[:0], tokens[:0], 10).all()


def test_ranges_that_cut_buckets() -> None:
    """A bucket is repaired when all of it that is held here is."""
    middle = (7 << 56) + (1 << 55)
    lower, upper = TokenRange(0, middle - 1), TokenRange(middle, TOKEN_MAX)
    assert (deletes.bucket_versions([(lower, 5)], [lower]) == [5] * 8 + [0] * 248).all()
    assert (deletes.bucket_versions([(lower, 5)], [FULL]) == [5] * 7 + [0] * 249).all()
    both = deletes.bucket_versions([(lower, 5), (upper, 9)], [lower, upper])
    assert (both == [5] * 8 + [9] * 248).all()
    assert (deletes.bucket_versions([(lower, 5), (upper, 9), (FULL, 6)], [FULL])[6:9] == [6, 6, 9]).all()
    assert not deletes.bucket_versions([(lower, 5)], []).any()


@given(
    pieces=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 5)), max_size=6),
    held=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_bucket_versions_equal_brute_force(pieces: list[tuple[int, int, int]], held: tuple[int, int]) -> None:
    completed = [(TokenRange(min(a, b), max(a, b)), version) for a, b, version in pieces]
    mine = TokenRange(min(held), max(held))
    expected = min(
        max([version for one, version in completed if one.contains(token)], default=0)
        for token in range(mine.first, mine.last + 1)
    )
    assert deletes.bucket_versions(completed, [mine])[0] == expected


def test_ledger_confirms_only_sessions_that_it_knows() -> None:
    ledger = Ledger()
    ledger.took_part(1, FULL, 5)
    ledger.took_part(2, FULL, 6)
    assert ledger.confirm(3, [FULL]) is None
    confirmed = ledger.confirm(1, [FULL])
    assert confirmed is not None
    assert (confirmed == 5).all()
    assert ledger.confirm(1, [FULL]) is None, "once"
    ledger.failed(2)
    assert ledger.confirm(2, [FULL]) is None
    ledger.took_part(4, FULL, 7)
    ledger.ring_changed()
    assert ledger.confirm(4, [FULL]) is None


def test_ledger_joins_ranges_and_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletes, "PENDING_SESSIONS_MAX", 2)
    ledger = Ledger()
    lower, upper = TokenRange(0, 100), TokenRange(101, TOKEN_MAX)
    ledger.took_part(1, FULL, 1)
    ledger.took_part(2, lower, 5)
    ledger.took_part(3, upper, 6)
    assert ledger.confirm(1, [FULL]) is None
    first = ledger.confirm(2, [FULL])
    assert first is not None
    assert not first.any()
    second = ledger.confirm(3, [FULL])
    assert second is not None
    assert (second == [5] + [6] * 255).all()


def test_permission_to_purge_needs_everybody() -> None:
    repaired = {"a": deletes.uniform(9), "b": column(b1=4)}
    assert (deletes.purge_permission(repaired, {"a", "b"}) == column(b1=4)).all()
    assert not deletes.purge_permission(repaired, {"a", "b", "c"}).any()
    assert not deletes.purge_permission(repaired, set()).any()
    assert (deletes.purge_by_time(1_000.0, version_at, gc_grace_seconds=400.0) == version_at(600.0)).all()
    assert not deletes.purge_by_time(100.0, version_at, gc_grace_seconds=400.0).any()
