"""Which rows travel where, when several replicas are repaired at once around one coordinator.

All pairs are compared with one snapshot of the coordinator, so what every replica holds at a differing token is known
before a row moves. The winner of a token goes once to each replica that lacks it, straight from one that holds it:
exactly as many copies as are missing, and the holders share the work. (Cassandra streams whole leaves both ways in each
pair; with three replicas of which one is stale four transfers where one would do.)

Replica 0 is the coordinator, replica i the peer of difference i - 1. A pair whose rows were found by sketches knows no
digests: a digest of zeros says nothing, so that rows of equal version then count as equal.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antientropy.core.reconcile import Difference, States


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    """Rows that go from one replica to another, at strictly ascending tokens."""

    source: int
    target: int
    tokens: NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class RepairPlan:
    """The plan of one pass over m differing tokens."""

    tokens: NDArray[np.uint64]
    """Shape (m,), ascending; those of which one row is to move. Colliding ones are not among them."""
    local: States
    """What the coordinator's snapshot holds there."""
    winners: States
    """What every replica will hold there."""
    lacks: NDArray[np.bool_]
    """Shape (replicas, m): who lacks the winner."""
    sources: NDArray[np.int64]
    """Shape (replicas, m): who gives it to them; -1 where nothing is lacking, or nothing shall be given."""
    colliding: tuple[NDArray[np.uint64], ...]
    """Tokens that several keys share, for each replica where it differs there; empty for the coordinator. All rows
    there are fetched from these replicas, then given to every other: only their receivers see what is new to them."""
    conflicts: int
    """Tokens at which a replica holds the winner's version with another content."""

    def __len__(self) -> int:
        """Differing tokens, colliding ones included."""
        return len(self.tokens) + len(self.colliding_tokens)

    @property
    def colliding_tokens(self) -> NDArray[np.uint64]:
        """Those of any replica. Ascending."""
        return _union(self.colliding)

    @property
    def copies(self) -> int:
        """The fewest row copies that make all replicas the same; where keys share tokens that is seen on arrival."""
        return int((self.sources >= 0).sum())

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to move."""
        return not self.copies and not len(self.colliding_tokens)

    @property
    def transfers(self) -> list[Transfer]:
        """Every pair of replicas between which rows move, those to the coordinator first."""
        count = len(self.lacks)
        found = [
            Transfer(source, target, self.tokens[self.sources[target] == source])
            for target in range(count)
            for source in range(count)
        ]
        return [one for one in found if len(one.tokens)]

    def only(self, keep: NDArray[np.bool_]) -> RepairPlan:
        """The plan at some of the m tokens; colliding ones stay."""
        return RepairPlan(
            self.tokens[keep],
            self.local.take(keep),
            self.winners.take(keep),
            self.lacks[:, keep],
            self.sources[:, keep],
            self.colliding,
            self.conflicts,
        )


def plan_repair(
    differences: Sequence[Difference],
    *,
    blind: Collection[int] = (),
    pull: bool = False,
    broken: Collection[tuple[int, int]] = (),
) -> RepairPlan:
    """Plan from each pair's difference with one snapshot of the coordinator.

    Args:
        differences: Of replicas 1, 2, ...
        blind: Differences (0, 1, ...) that were found without digests: content that differs at equal versions is not in
            them.
        pull: Rows come to the coordinator only.
        broken: (source, target) of peers between which nothing gets through. What only such a source has goes to the
            coordinator now, and on from there in the next pass.
    """
    colliding = _union([one.colliding for one in differences])
    plain = [one.without(colliding) for one in differences]
    tokens = _union([one.tokens for one in plain])
    wheres = [np.searchsorted(tokens, one.tokens) for one in plain]
    local = _nothing(len(tokens))
    for one, where in zip(plain, wheres, strict=True):
        local = local.put(where, _better_known(local.take(where), one.local))
    # A pair that does not list a token holds there what the coordinator holds.
    replicas = [local] + [local.put(where, one.remote) for one, where in zip(plain, wheres, strict=True)]
    winners = local
    for states in replicas:
        better = _wins(states, winners)
        winners = winners.put(better, states.take(better))
    lacks = np.array([~_same(states, winners) for states in replicas]).reshape(len(replicas), len(tokens))
    conflicts = np.zeros(len(tokens), np.bool_)
    for states, lack in zip(replicas, lacks, strict=True):
        conflicts |= lack & states.present & (states.versions == winners.versions)
    # What a peer holds that was searched without digests, at another pair's conflict, shows in the next pass.
    unsure = np.zeros(lacks.shape, np.bool_)
    for number, where in enumerate(wheres, start=1):
        states = replicas[number]
        unsure[number] = conflicts & states.present & ~_known(states)
        if number - 1 in blind:
            listed = np.zeros(len(tokens), np.bool_)
            listed[where] = True
            unsure[number] |= conflicts & ~listed
    sources = _sources(lacks, unsure, broken)
    if pull:
        sources[1:] = -1
    # A token that collides in any pair is treated as such by each pair that lists it.
    shared = [np.union1d(one.colliding, one.tokens[np.isin(one.tokens, colliding)]) for one in differences]
    return RepairPlan(
        tokens,
        local,
        winners,
        lacks,
        sources,
        (np.empty(0, np.uint64), *(one.astype(np.uint64) for one in shared)),
        int(conflicts.sum()),
    )


def _sources(
    lacks: NDArray[np.bool_], unsure: NDArray[np.bool_], broken: Collection[tuple[int, int]]
) -> NDArray[np.int64]:
    """For each replica and token who gives it the winner; the holders of a token take turns from token to token.

    Those of which it is ``unsure`` what they hold neither give nor get.
    """
    replicas, count = lacks.shape
    turn = np.arange(count)
    sources = np.full(lacks.shape, -1, np.int64)
    for target in range(replicas):
        usable = np.array([(source, target) not in broken for source in range(replicas)])
        holds = ~lacks & ~unsure & usable[:, None]
        rank = np.cumsum(holds, axis=0)
        holders = rank[-1]
        chosen = np.argmax(holds & (rank == turn % np.maximum(holders, 1) + 1), axis=0)
        sources[target] = np.where(lacks[target] & ~unsure[target] & (holders > 0), chosen, -1)
        # Of one token, the next target asks the next holder.
        turn = turn + lacks[target]
    return sources


def _known(states: States) -> NDArray[np.bool_]:
    known: NDArray[np.bool_] = (states.digests[:, 0] | states.digests[:, 1]) != 0
    return known


def _same(one: States, other: States) -> NDArray[np.bool_]:
    """As :meth:`States.same`, but an unknown digest is like any."""
    unknown = ~(_known(one) & _known(other))
    same_row = (one.present == other.present) & (one.versions == other.versions)
    equal: NDArray[np.bool_] = np.where(unknown, same_row, same_row & (one.digests == other.digests).all(axis=1))
    return equal


def _wins(one: States, other: States) -> NDArray[np.bool_]:
    """As :meth:`States.wins_over`, but of rows with equal versions and an unknown digest none wins."""
    tie = one.present & other.present & (one.versions == other.versions) & ~(_known(one) & _known(other))
    return np.where(tie, False, one.wins_over(other))


def _better_known(one: States, other: States) -> States:
    """The same rows as two pairs tell them: with the digest, if one of them knows it."""
    return one.put(~_known(one), other.take(~_known(one)))


def _union(columns: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    return np.unique(np.concatenate([*columns, np.empty(0, np.uint64)]))


def _nothing(count: int) -> States:
    return States(np.zeros(count, np.bool_), np.zeros(count, np.uint64), np.zeros((count, 2), np.uint64))
