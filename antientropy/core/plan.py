"""Which rows travel where, when several replicas are repaired at once around one coordinator.

All pairs are compared with one snapshot of the coordinator, so what every replica holds at a differing token is known
before a row moves. The winner of a token is fetched at most once, from one replica that holds it, and goes once to each
replica that lacks it: exactly as many copies as differ. (Cassandra streams whole leaves both ways in each pair; with
three replicas of which one is stale four transfers where one would do.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antientropy.core.reconcile import Difference, States


@dataclass(frozen=True, slots=True, eq=False)
class PairPlan:
    """What one pair moves. All columns ascending."""

    fetch_tokens: NDArray[np.uint64]
    """From the peer to the coordinator."""
    push_tokens: NDArray[np.uint64]
    """From the coordinator, after all its fetches, to the peer."""
    colliding_tokens: NDArray[np.uint64]
    """Shared by several keys: all rows there are fetched where the pair differs."""


@dataclass(frozen=True, slots=True, eq=False)
class RepairPlan:
    """The plan of one pass."""

    pairs: list[PairPlan]
    colliding_tokens: NDArray[np.uint64]
    """Of any pair: all rows there are pushed to every peer, since what a fetch brings is not known before."""
    rows_differing: int
    """Tokens at which not all replicas hold the same."""
    rows_optimal: int
    """The fewest row copies that make them the same, colliding tokens not counted: that is seen when they apply."""


def plan_repair(differences: Sequence[Difference]) -> RepairPlan:
    """Plan from each pair's difference; pair i of the result belongs to difference i."""
    colliding = _union([one.colliding for one in differences])
    plain = [one.without(colliding) for one in differences]
    tokens = _union([one.tokens for one in plain])
    wheres = [np.searchsorted(tokens, one.tokens) for one in plain]
    local = _nothing(len(tokens))
    for one, where in zip(plain, wheres, strict=True):
        local = local.put(where, one.local)
    # A pair that does not list a token holds there what the coordinator holds.
    replicas = [local] + [local.put(where, one.remote) for one, where in zip(plain, wheres, strict=True)]
    winner = local
    holder = np.zeros(len(tokens), np.int64)
    for number, states in enumerate(replicas):
        better = states.wins_over(winner)
        winner = winner.put(better, states.take(better))
        holder[better] = number
    lacks = [~states.same(winner) for states in replicas]
    pairs = []
    for number, one in enumerate(differences, start=1):
        # A token that collides in any pair is treated as such by each pair that lists it.
        shared = np.union1d(one.colliding, one.tokens[np.isin(one.tokens, colliding)])
        fetch = tokens[lacks[0] & (holder == number)]
        pairs.append(PairPlan(fetch, tokens[lacks[number]], shared.astype(np.uint64)))
    optimal = sum(int(lack.sum()) for lack in lacks)
    return RepairPlan(pairs, colliding, len(tokens) + len(colliding), optimal)


def _union(columns: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    return np.unique(np.concatenate([*columns, np.empty(0, np.uint64)]))


def _nothing(count: int) -> States:
    return States(np.zeros(count, np.bool_), np.zeros(count, np.uint64), np.zeros((count, 2), np.uint64))
