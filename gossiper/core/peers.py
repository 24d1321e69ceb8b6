"""Whom to gossip with in a round: one live peer, always one unreachable one, sometimes a seed or a far one.

Source: Cassandra's ``Gossiper.GossipTask``, with three changes. An unreachable peer is tried in *every* round while
there is one: Cassandra does so with probability U / (L + 1), so that in a large cluster two nodes that lost each other
meet again after minutes (CASSANDRA-14001). The own zone can be preferred. And a data centre as a whole can be held to a
number of exchanges per interval with each other one, however many nodes it has: each node begins one with that
number divided by the nodes of its data centre as the probability.

The live peer is drawn from a few partners, of whom one is exchanged now and then, once there are more live peers: a
connection that is kept costs nothing, a new one more than the digests. A node meets everybody all the same: as the
partner of others, and as the partners change; news takes as long as among all (``docs/digests-measured.md``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.intp]
Names = NDArray[np.int64]


#: At one exchange per interval each partner is met about twice a minute, before a server closes its idle connection.
PARTNERS_DEFAULT: Final = 32
#: With fewer, news takes noticeably longer.
PARTNERS_MIN: Final = 8
#: Rounds after which one partner is exchanged: all of 1,000 peers had their turn after half a day.
PARTNER_ROUNDS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPolicy:
    """Preferences among peers; apart from ``partners`` the defaults are Cassandra's: none."""

    partners: int = PARTNERS_DEFAULT
    """Live peers from whom that of a round is drawn; 0: from all."""

    own_zone_probability: float = 0.0
    """How often the live peer is chosen among those of the own rack (or zone), when there is one; else among all."""
    remote_exchanges_per_interval: float | None = None
    """Exchanges that all nodes of a data centre together begin with each other one per interval; None: no bound."""


@dataclass(frozen=True, slots=True)
class Peers:
    """Everybody but the local endpoint: rows, and the columns (of the whole table) that say where they are."""

    live: Rows
    unreachable: Rows
    datacenter: Names
    rack: Names
    local_row: int

    def near(self, rows: Rows) -> Rows:
        """Those of the own data centre."""
        near: Rows = rows[self.datacenter[rows] == self.datacenter[self.local_row]]
        return near

    def in_zone(self, rows: Rows) -> Rows:
        """Those of the own rack and data centre."""
        near = self.near(rows)
        zone: Rows = near[self.rack[near] == self.rack[self.local_row]]
        return zone


class Partners:
    """The live peers with whom connections are kept; who is no longer live is replaced at once, by a random other."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows: list[int] = []
        self._rounds = 0

    def of_round(self, rng: Random, live: Rows) -> Rows:
        """Those of ``live`` to choose from in a round; all of them when there are not more than partners."""
        if not self._size or len(live) <= self._size:
            self._rows, self._rounds = [], 0
            return live
        alive = set(live.tolist())
        kept = [row for row in self._rows if row in alive]
        self._rounds += 1
        if self._rounds > PARTNER_ROUNDS and kept:
            self._rounds = 1
            kept.pop(0)  # the one that has been a partner for longest
        if len(kept) < self._size:
            others = sorted(alive.difference(kept))
            kept += rng.sample(others, self._size - len(kept))
        self._rows = kept
        return np.array(kept, dtype=np.intp)


def choose_targets(
    rng: Random, peers: Peers, policy: PeerPolicy, *, seeds: Sequence[int | str], partners: Partners | None = None
) -> list[int | str]:
    """The peers of one round without duplicates, as rows; a seed that has no row is returned as it was given.

    A seed is asked when the live peer was none, or fewer peers are live than there are seeds: always when nobody is
    live, else with probability S / (L + U). This keeps islands that share no seed from living apart
    (CASSANDRA-150). ``seeds`` must not contain the local endpoint. ``partners``: those kept from round to round.
    """
    bounded = policy.remote_exchanges_per_interval is not None
    live = peers.near(peers.live) if bounded else peers.live
    unreachable = peers.near(peers.unreachable) if bounded else peers.unreachable
    targets: list[int | str] = []
    if len(live):
        warm = live if partners is None else partners.of_round(rng, live)
        zone = peers.in_zone(warm) if policy.own_zone_probability else warm
        preferred = len(zone) and rng.random() < policy.own_zone_probability
        targets.append(_one_of(rng, zone if preferred else warm))
    if len(unreachable):
        targets.append(_one_of(rng, unreachable))
    if policy.remote_exchanges_per_interval is not None:
        targets += _remote_targets(rng, peers, policy.remote_exchanges_per_interval)
        near = peers.datacenter[peers.local_row]
        if len(peers.live):
            seeds = [seed for seed in seeds if isinstance(seed, str) or peers.datacenter[seed] == near]
    if seeds and (not len(live) or targets[0] not in seeds or len(live) < len(seeds)):
        others = len(live) + len(unreachable)
        if not len(live) or rng.random() <= len(seeds) / others:
            targets.append(seeds[rng.randrange(len(seeds))])
    return list(dict.fromkeys(targets))


def _remote_targets(rng: Random, peers: Peers, exchanges_per_interval: float) -> list[int | str]:
    """For each other data centre, now and then one of its nodes, live or not."""
    probability = exchanges_per_interval / (1 + len(peers.near(peers.live)))
    everybody = np.concatenate((peers.live, peers.unreachable))
    where = peers.datacenter[everybody]
    targets: list[int | str] = []
    for datacenter in np.unique(where[where != peers.datacenter[peers.local_row]]):
        # A probability above 1 (few nodes here) is that many exchanges.
        exchanges = int(probability) + (rng.random() < probability % 1.0)
        targets += [_one_of(rng, everybody[where == datacenter]) for _ in range(exchanges)]
    return targets


def _one_of(rng: Random, rows: Rows) -> int:
    return int(rows[rng.randrange(len(rows))])
