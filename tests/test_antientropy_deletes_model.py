"""No deleted row ever returns and no live row is lost: over histories of a small model, and planted bugs are found.

Method: :mod:`deletes_model` runs random histories of writes, deletes, late deliveries, sessions that stop anywhere,
partial repairs, purges that are cut off, crashes, restored backups, wiped disks and changes of the replica set. After
every step no disk may show a row that it has seen deleted; in the end everything is delivered and repaired, and each
key must hold what was written to it last. Random histories find planted bugs; rarer ones have a history of their own,
which is harmless with the true rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from deletes_model import DeletedRowReturnedError, Held, LiveRowLostError, Model, Replica, Rules
from hypothesis import given, settings
from hypothesis import strategies as st

from antientropy.core.deletes import PurgeMode

CHOICE = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=150)
@given(choices=st.lists(CHOICE, max_size=120), delay=st.integers(0, 4))
def test_no_deleted_row_returns_and_no_live_row_is_lost(choices: list[int], delay: int) -> None:
    Model(Rules(), delay=delay).run(choices)


@settings(deadline=None, max_examples=60)
@given(choices=st.lists(CHOICE, max_size=120))
def test_nor_with_purges_by_time(choices: list[int]) -> None:
    Model(Rules(), mode=PurgeMode.TIME).run(choices)


def random_histories(rules: Rules, *, histories: int, mode: PurgeMode = PurgeMode.REPAIR) -> Counter[str]:
    """Run some with two and three replicas, one and three keys; return what happened in them."""
    happened: Counter[str] = Counter()
    for seed in range(histories):
        random = Random(seed)
        model = Model(
            rules, mode=mode, delay=seed % 3, names="ABC" if seed % 4 else "AB", keys="a" if seed % 2 else "abc"
        )
        model.run(random.randrange(2**32) for _ in range(150))
        happened += model.counts
    return happened


@pytest.mark.parametrize("mode", [PurgeMode.REPAIR, PurgeMode.TIME])
def test_random_histories_hold_and_are_worth_their_name(mode: PurgeMode) -> None:
    happened = random_histories(Rules(), histories=120, mode=mode)
    for what in ("complete", "purged before the end", "refused late", "refused unclean", "restored"):
        assert happened[what] > 10, happened


class OnlyUnknownKeysAreFenced(Rules):
    """A late tombstone over a stored row is taken, and purged at once."""

    def accepts(self, replica: Replica, key: str, row: Held) -> bool:
        return key in replica.rows or super().accepts(replica, key, row)


class NothingIsFenced(Rules):
    """Late writes are taken although their tombstone may be gone."""

    def accepts(self, replica: Replica, key: str, row: Held) -> bool:
        return True


class AnybodyTakesPart(Rules):
    """Replicas that missed repairs, from backups for instance, are not refused."""

    refuses_unclean = False


class PushesOfOldSessions(Rules):
    """A push is applied whenever it arrives."""

    pushes_need_their_session = False


@pytest.mark.parametrize("bug", [OnlyUnknownKeysAreFenced, NothingIsFenced, AnybodyTakesPart, PushesOfOldSessions])
def test_random_histories_find_planted_bugs(bug: type[Rules]) -> None:
    with pytest.raises((DeletedRowReturnedError, LiveRowLostError)):
        random_histories(bug(), histories=1_500)


def advance(model: Model, steps: int) -> None:
    for _ in range(steps):
        model.advance()


def repair(model: Model, coordinator: str) -> None:
    """A session with all that follows it, but without the purge itself."""
    model.begin(coordinator, restricted=False)
    while model.session is not None:
        model.advance()
    while model.finished:
        model.follow_up(0)


def late_delete_between_snapshot_and_fence(model: Model) -> None:
    model.write("a", False, ("A", "B"))
    model.now += 1
    model.deleted[model.now] = True
    model.begin("A", restricted=False)
    advance(model, 1)
    model.take("A", "a", (model.now, True))
    while model.session is not None:
        model.advance()
    while model.finished:
        model.follow_up(0)
    model.purge_one("A")
    repair(model, "B")
    model.check()


def coordinator_takes_rows_after_others_equalled_it(model: Model) -> None:
    model.write("a", False, ("A", "B", "C"))
    model.write("a", True, ("C",))
    model.late.clear()
    model.begin("B", restricted=False)
    advance(model, 8)  # three fences, three snapshots, the plan, and the deletion goes to B
    assert model.replicas["B"].rows["a"][1]
    model.abandon()  # before it goes to A
    for _ in range(2):
        # All say what they have recorded, then the coordinator stops.
        model.begin("C", restricted=False)
        advance(model, 7)
        model.abandon()
    assert not model.replicas["A"].rows["a"][1]
    model.purge_one("B")
    model.purge_one("C")
    repair(model, "C")
    model.check()


def purge_forgotten_by_a_crash(model: Model) -> None:
    model.write("a", False, ("A", "B"))
    model.back_up("B")
    model.write("a", True, ("A", "B"))
    repair(model, "A")
    model.purge_one("A")
    assert "a" not in model.replicas["A"].rows
    model.crash("A")
    model.start("A")
    model.restore(0, True)
    model.start("B")
    repair(model, "A")
    model.check()


class FencedAfterTheSnapshot(Rules):
    fence_before_snapshot = False


class EqualIsEnough(Rules):
    """Who equals the coordinator counts as repaired, although the coordinator itself may lack rows of a third."""

    confirms_all_at_once = False


class PurgedBeforeTheRecord(Rules):
    records_before_purge = False


@pytest.mark.parametrize(
    ("bug", "history", "names"),
    [
        (FencedAfterTheSnapshot, late_delete_between_snapshot_and_fence, "AB"),
        (EqualIsEnough, coordinator_takes_rows_after_others_equalled_it, "ABC"),
        (PurgedBeforeTheRecord, purge_forgotten_by_a_crash, "AB"),
    ],
)
def test_rare_bugs_are_found_by_their_history(bug: type[Rules], history: Callable[[Model], None], names: str) -> None:
    model = Model(Rules(), names=names, keys="a")
    history(model)
    model.heal()
    with pytest.raises(DeletedRowReturnedError):
        history(Model(bug(), names=names, keys="a"))
