"""A small model of replicas that write, delete, repair, purge, crash and lose their disks, one step at a time.

The rules are those of ``antientropy.core.deletes``; the model gives them stores, messages and sessions without I/O. A
history is a list of numbers: each picks one of the steps that are possible. :class:`Rules` can be broken on purpose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from antientropy.core import deletes
from antientropy.core.deletes import Ledger, Marks, PurgeMode, Versions
from antientropy.core.tokens import BUCKETS, TokenRange

Held = tuple[int, bool]
"""Version of a row and whether it is a tombstone."""
Rows = dict[str, Held]
Step = tuple[Any, ...]
"""What is called, and with what."""

#: Two keys in one bucket and one in another.
TOKENS: Final = {"a": 5, "b": 9, "c": 2**63}
EVERY_BUCKET: Final = np.ones(BUCKETS, np.bool_)
FULL: Final = TokenRange.full()


def bucket(key: str) -> int:
    return TOKENS[key] >> 56


class DeletedRowReturnedError(AssertionError):
    """What must never happen."""


class LiveRowLostError(AssertionError):
    """What must never happen either."""


@dataclass
class Replica:
    name: str
    rows: Rows = field(default_factory=dict)
    marks: Marks = field(default_factory=Marks)
    alive: bool = True
    ledger: Ledger = field(default_factory=Ledger)
    session: int = 0
    """The open one, 0: none."""
    snapshot: Rows = field(default_factory=dict)
    to_purge: Versions = field(default_factory=deletes.no_versions)
    """Decided but not yet done; in memory."""
    seen: dict[str, int] = field(default_factory=dict)
    """The greatest version of each key that this disk has ever held: for the oracle."""

    def put(self, key: str, row: Held) -> None:
        if key not in self.rows or row > self.rows[key]:
            self.rows[key] = row
            self.seen[key] = max(self.seen.get(key, 0), row[0])

    def empty_buckets(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        empty = np.ones(BUCKETS, np.bool_)
        for key in self.snapshot:
            empty[bucket(key)] = False
        return empty


class Rules:
    """How replicas behave; a planted bug overrides one of these."""

    def accepts(self, replica: Replica, key: str, row: Held) -> bool:
        """A write that does not come from repair."""
        tokens, versions = np.array([TOKENS[key]], np.uint64), np.array([row[0]], np.uint64)
        return not deletes.below(tokens, versions, replica.marks.fence)[0]

    fence_before_snapshot = True
    confirms_all_at_once = True
    """False: who equals the coordinator records it at once."""
    records_before_purge = True
    pushes_need_their_session = True
    restricted_counts = False
    refuses_unclean = True
    expires = True

    def permission(self, repaired: dict[str, Versions], members: Iterable[str]) -> Versions:
        return deletes.purge_permission(repaired, set(members))


@dataclass
class Session:
    number: int
    coordinator: str
    members: tuple[str, ...]
    took_part: tuple[str, ...]
    as_of: int
    steps: list[tuple[str, str]]
    """What is left to do, in order: (step, replica)."""
    pushes: list[tuple[str, str, Held]] = field(default_factory=list)
    unconfirmed: set[str] = field(default_factory=set)
    floors: Versions = field(default_factory=deletes.no_versions)
    forced: bool = False


class Model:
    """All replicas, all messages under way, and the truth."""

    def __init__(
        self, rules: Rules, *, mode: PurgeMode = PurgeMode.REPAIR, delay: int = 0, names: str = "ABC", keys: str = "abc"
    ) -> None:
        self.rules, self.mode, self.delay = rules, mode, delay
        self.now = 1
        self.keys = keys
        self.replicas = {name: Replica(name, marks=Marks.born(0)) for name in names}
        self.members = set(self.replicas)
        self.deleted: dict[int, bool] = {}
        """By version: whether that write was a delete."""
        self.late: list[tuple[str, str, Held]] = []
        self.late_pushes: list[tuple[int, str, str, Held]] = []
        self.backups: list[tuple[str, Rows, Marks, dict[str, int]]] = []
        self.session: Session | None = None
        self.sessions = 0
        self.finished: list[Session] = []
        self.counts: Counter[str] = Counter()

    # --- the choice ---

    def groups(self) -> list[tuple[int, list[Step]]]:
        """The steps that are possible now, in groups with weights: a group is drawn first, then one of its steps."""
        alive = self._alive_members()
        dead = [name for name, replica in self.replicas.items() if not replica.alive]
        purging = [name for name, replica in self.replicas.items() if replica.to_purge.any() and replica.alive]
        targets = [tuple(alive), *[(name,) for name in alive]] if alive else []
        whole = [name for name in alive if len(alive) == len(self.members)]
        members = sorted(self.members)
        groups: list[tuple[int, list[Step]]] = [
            (8, [(self.write, key, delete, some) for key in self.keys for delete in (False, True) for some in targets]),
            (6, [(self.deliver, number) for number in range(len(self.late))]),
            (4, [(self.deliver_push, number) for number in range(len(self.late_pushes))]),
            (12, [(self.follow_up, number) for number in range(len(self.finished))]),
            (12, [(self.purge_one, name) for name in purging]),
            (6, [(self.start, name) for name in dead]),
            (1, [(self.crash, name) for name in alive]),
            (1, [(self.back_up, name) for name in members]),
            (1, [(self.restore, number, how) for number in range(len(self.backups)) for how in (True, True, False)]),
            (1, [*[(self.leave, name) for name in members], *[(self.wipe, name) for name in members]]),
            (6, [(self.join, name) for name in sorted(set(self.replicas) - self.members)]),
        ]
        if self.mode is PurgeMode.TIME:
            groups.append((2, [(self.purge_by_time, name) for name in alive]))
        if self.session is not None:
            groups += [(40, [(self.advance,)]), (1, [(self.abandon,)])]
        else:
            groups += [
                (8, [(self.begin, name, False) for name in whole]),
                (2, [(self.begin, name, True) for name in alive]),
            ]
        return [(weight, steps) for weight, steps in groups if steps]

    def step(self, choice: int) -> None:
        """The step that a number picks."""
        groups = self.groups()
        choice, at = divmod(choice, sum(weight for weight, _ in groups))
        for weight, steps in groups:
            if at < weight:
                step, *arguments = steps[choice % len(steps)]
                step(*arguments)
                return
            at -= weight

    def run(self, choices: Iterable[int]) -> None:
        """One history; then everything is healed, and what is left must be what was written last."""
        for choice in choices:
            self.step(choice)
            self.check()
        self.counts["purged before the end"] = self.counts["purged"]
        self.heal()

    def _alive_members(self) -> list[str]:
        return [name for name in sorted(self.members) if self.replicas[name].alive]

    # --- writes ---

    def write(self, key: str, delete: bool, targets: tuple[str, ...]) -> None:
        """A write that some members get now and the others late, if ever."""
        self.now += 1
        row = (self.now, delete)
        self.deleted[self.now] = delete
        for name in targets:
            self.take(name, key, row)
        self.late += [(name, key, row) for name in sorted(self.members - set(targets))]
        if len(targets) == 1 and self.now % 3 == 0:
            # Under way to all: nobody has it yet.
            self.late.append((targets[0], key, (self.now + 1, not delete)))
            self.deleted[self.now + 1] = not delete
            self.now += 1

    def take(self, name: str, key: str, row: Held) -> None:
        replica = self.replicas[name]
        if not replica.alive:
            return
        if self.rules.accepts(replica, key, row):
            replica.put(key, row)
        elif key not in replica.rows or row > replica.rows[key]:
            self.counts["refused late"] += 1

    def deliver(self, number: int) -> None:
        if self.replicas[self.late[number][0]].alive:
            self.take(*self.late.pop(number))

    def deliver_push(self, number: int) -> None:
        """A push again, or much later than it was sent."""
        session, name, key, row = self.late_pushes[number]
        replica = self.replicas[name]
        if replica.alive and (replica.session == session or not self.rules.pushes_need_their_session):
            replica.put(key, row)
        else:
            del self.late_pushes[number]

    # --- disks ---

    def crash(self, name: str) -> None:
        replica = self.replicas[name]
        replica.alive = False
        replica.ledger, replica.session, replica.snapshot = Ledger(), 0, {}
        replica.to_purge = deletes.no_versions()
        self.finished = [one for one in self.finished if one.coordinator != name]
        if self.session is not None and self.session.coordinator == name:
            self.session = None

    def start(self, name: str) -> None:
        self.replicas[name].alive = True

    def back_up(self, name: str) -> None:
        replica = self.replicas[name]
        if len(self.backups) < 3:
            self.backups.append((name, dict(replica.rows), replica.marks, dict(replica.seen)))

    def restore(self, number: int, with_marks: bool) -> None:
        name, rows, marks, seen = self.backups.pop(number)
        if self.is_last_to_know(name):
            return
        self.crash(name)
        replica = self.replicas[name]
        replica.rows, replica.marks, replica.seen = dict(rows), marks, dict(seen)
        if not with_marks:
            # Rows of before, adopted by a new store.
            replica.marks, replica.seen = Marks(), {key: version for key, (version, _) in rows.items()}
        self.counts["restored"] += 1

    def is_last_to_know(self, name: str) -> bool:
        """Whether what was purged would be forgotten with this disk: then nobody could tell who is unclean."""
        known = deletes.merged(*[replica.marks.floors for replica in self.replicas.values()])
        others = [other.marks.floors for other in self.replicas.values() if other.name != name]
        return bool((deletes.merged(*others) < known).any())

    def wipe(self, name: str) -> None:
        if not self.is_last_to_know(name):
            self.empty(name)

    def empty(self, name: str) -> None:
        self.crash(name)
        replica = self.replicas[name]
        replica.rows, replica.seen, replica.marks = {}, {}, Marks.born(self.as_of())
        self.backups = [one for one in self.backups if one[0] != name]

    def leave(self, name: str) -> None:
        """It is no replica any more, but keeps its rows."""
        if len(self.members) > 2:
            self._ring_changes()
            self.members.discard(name)

    def join(self, name: str) -> None:
        self._ring_changes()
        self.members.add(name)

    def _ring_changes(self) -> None:
        self.session = None
        self.finished = []
        for replica in self.replicas.values():
            replica.ledger.ring_changed()

    # --- repair ---

    def as_of(self) -> int:
        return max(0, self.now + 1 - self.delay)

    def begin(self, coordinator: str, restricted: bool, forced: bool = False) -> None:
        alive = self._alive_members()
        took_part = [coordinator, *[name for name in alive if name != coordinator]]
        if restricted and len(took_part) > 2:
            took_part.pop()
        if len(took_part) < 2:
            return
        counts = self.rules.restricted_counts or deletes.counts_as_repaired(
            self.members, took_part, restricted=restricted
        )
        self.sessions += 1
        steps = [(step, name) for name in took_part for step in ("fence", "snapshot")]
        if not self.rules.fence_before_snapshot:
            steps = [(step, name) for name in took_part for step in ("snapshot", "fence")]
        self.session = Session(
            number=self.sessions,
            coordinator=coordinator,
            members=tuple(self.members),
            took_part=tuple(took_part),
            as_of=self.as_of() if counts else 0,
            steps=[*steps, ("plan", coordinator)],
            forced=forced,
        )

    def abandon(self) -> None:
        """The coordinator forgets; the others keep the session until the next one, and pushes may still arrive."""
        self.session = None

    def advance(self) -> None:
        """The next step of the session; any replica that is gone fails it."""
        session = self.session
        assert session is not None
        if not all(self.replicas[name].alive for name in session.took_part):
            self.session = None
            return
        if not session.steps:
            self.finish(session)
            return
        step, name = session.steps.pop(0)
        if step == "push":
            self.push(session, name)
        else:
            getattr(self, step)(session, self.replicas[name])

    def fence(self, session: Session, replica: Replica) -> None:
        if session.as_of:
            replica.marks = replica.marks.fenced(session.as_of, EVERY_BUCKET)
        floors = self.replicas[session.coordinator].marks.floors
        replica.marks = Marks(deletes.merged(replica.marks.fence, floors), replica.marks.repaired, replica.marks.floors)

    def snapshot(self, session: Session, replica: Replica) -> None:
        replica.session, replica.snapshot = session.number, dict(replica.rows)
        if session.as_of:
            replica.ledger.took_part(session.number, FULL, session.as_of)
        session.floors = deletes.session_floors([session.floors, replica.marks.floors], forced=session.forced)

    def is_unclean(self, name: str, others: Iterable[str]) -> bool:
        replica = self.replicas[name]
        floors = deletes.merged(*[self.replicas[other].marks.floors for other in others if other != name])
        return bool(deletes.unclean(replica.marks.repaired, replica.empty_buckets(), floors).any())

    def plan(self, session: Session, coordinator: Replica) -> None:
        if self.rules.refuses_unclean and not session.forced:
            for name in session.took_part:
                if self.is_unclean(name, session.took_part):
                    self.counts["refused unclean"] += 1
                    self.session = None
                    return
        if set(session.members) == set(session.took_part):
            self.permit_all(session)
        views = {name: self.visible(self.replicas[name].snapshot, session) for name in session.took_part}
        if not self.rules.confirms_all_at_once and session.as_of:
            for name in session.took_part:
                if views[name] == views[session.coordinator]:
                    self.record(name, session.number, session.floors)
        for key in self.keys:
            winner = max([view[key] for view in views.values() if key in view], default=None)
            for name, view in views.items():
                if winner is not None and view.get(key) != winner:
                    session.pushes.append((name, key, winner))
                    session.steps.append(("push", str(len(session.pushes) - 1)))

    def visible(self, rows: Rows, session: Session) -> Rows:
        if not rows or not self.rules.expires:
            return rows
        gone = deletes.expired(
            np.array([TOKENS[key] for key in rows], np.uint64),
            np.array([version for version, _ in rows.values()], np.uint64),
            np.array([deleted for _, deleted in rows.values()], np.bool_),
            session.floors,
        )
        return {key: row for (key, row), out in zip(rows.items(), gone.tolist(), strict=True) if not out}

    def push(self, session: Session, number: str) -> None:
        name, key, row = session.pushes[int(number)]
        if self.replicas[name].session != session.number:
            self.session = None
            return
        self.replicas[name].put(key, row)
        if len(self.late_pushes) < 4:
            self.late_pushes.append((session.number, name, key, row))

    def finish(self, session: Session) -> None:
        self.session = None
        if any(self.replicas[name].session != session.number for name in session.took_part):
            return
        for name in session.took_part:
            self.replicas[name].session, self.replicas[name].snapshot = 0, {}
        if session.as_of:
            self.counts["complete"] += 1
            self.record(session.coordinator, session.number, session.floors)
            session.unconfirmed = set(session.took_part) - {session.coordinator}
            self.finished = [*self.finished[-1:], session]

    def record(self, name: str, session: int, floors: Versions) -> bool:
        replica = self.replicas[name]
        versions = replica.ledger.confirm(session, [FULL])
        if versions is not None:
            replica.marks = replica.marks.confirmed(versions, floors)
        return versions is not None

    def follow_up(self, number: int) -> None:
        """The coordinator confirms a complete session to one replica, or permits the purge to all."""
        session = self.finished[number]
        if session.unconfirmed:
            name = sorted(session.unconfirmed)[self.now % len(session.unconfirmed)]
            if self.replicas[name].alive:
                session.unconfirmed.discard(name)
                if not self.record(name, session.number, session.floors):
                    self.finished.remove(session)
            return
        self.finished.remove(session)
        self.permit_all(session)

    def permit_all(self, session: Session) -> None:
        """By what each member says to have recorded, whenever that was."""
        if self.mode is not PurgeMode.REPAIR:
            return
        repaired = {name: self.replicas[name].marks.repaired for name in session.members}
        permitted = self.rules.permission(repaired, session.members)
        for name in session.members:
            if self.replicas[name].alive:
                self.permit(self.replicas[name], permitted, PurgeMode.REPAIR)

    def permit(self, replica: Replica, permitted: Versions, mode: PurgeMode) -> None:
        marks = replica.marks.purged(permitted, mode)
        replica.to_purge = marks.floors
        if self.rules.records_before_purge:
            replica.marks = marks

    def purge_one(self, name: str) -> None:
        """Remove one tombstone; the record of a bad store comes when nothing is left."""
        replica = self.replicas[name]
        for key, (version, deleted) in replica.rows.items():
            if deleted and version < replica.to_purge[bucket(key)]:
                del replica.rows[key]
                self.counts["purged"] += 1
                return
        if not self.rules.records_before_purge:
            replica.marks = replica.marks.purged(replica.to_purge, self.mode)
        replica.to_purge = deletes.no_versions()

    def purge_by_time(self, name: str) -> None:
        self.permit(self.replicas[name], deletes.uniform(max(0, self.now - 12)), PurgeMode.TIME)

    # --- the oracle ---

    def check(self) -> None:
        """On no disk does a row come back that this disk has seen deleted or replaced."""
        for replica in self.replicas.values():
            for key, (version, deleted) in replica.rows.items():
                if version < replica.seen[key] and not deleted:
                    raise DeletedRowReturnedError(
                        f"{replica.name}: {key} is {version} again, it was {replica.seen[key]} ({self.deleted})"
                    )

    def heal(self) -> None:
        """Everything arrives, everybody comes back, who is unclean is wiped, and repairs run until all is purged."""
        for name, replica in self.replicas.items():
            replica.alive = True
            self.members.add(name)
        self._ring_changes()
        for late in self.late:
            self.take(*late)
        self.check()
        for replica in self.replicas.values():
            replica.snapshot = dict(replica.rows)
        unclean = [name for name in self.replicas if self.is_unclean(name, self.replicas)]
        if len(unclean) == len(self.replicas) or (unclean and not self.rules.refuses_unclean):
            # Only purges by time come here: nobody is fit to rebuild the others, so that nothing is promised.
            self.counts["hopeless"] += 1
            if self.rules.refuses_unclean:
                return
            unclean = []
        for name in unclean:
            self.counts["wiped as unclean"] += 1
            self.empty(name)
            self.start(name)
        expected = {key: max([replica.seen.get(key, 0) for replica in self.replicas.values()]) for key in self.keys}
        for coordinator in "ABA":
            if coordinator in self.replicas:
                self.whole_repair(coordinator)
        for key, version in expected.items():
            for replica in self.replicas.values():
                row = replica.rows.get(key)
                if version and not self.deleted[version]:
                    if row != (version, False):
                        raise LiveRowLostError(f"{replica.name}: {key} is {row}, but {version} was written")
                elif row is not None and not row[1]:
                    raise DeletedRowReturnedError(f"{replica.name}: {key} is {row}, but {version} deleted it")

    def whole_repair(self, coordinator: str) -> None:
        self.now += 1
        self.begin(coordinator, restricted=False)
        while self.session is not None:
            self.advance()
            self.check()
        while self.finished:
            self.follow_up(0)
        for name, replica in self.replicas.items():
            while replica.to_purge.any():
                self.purge_one(name)
                self.check()
