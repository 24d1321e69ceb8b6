"""Whom to gossip with in a round: one live peer, always one unreachable one, sometimes a seed or a far one.

Source: Cassandra's ``Gossiper.GossipTask``, with three changes. An unreachable peer is tried in *every* round while
there is one: Cassandra does so with probability U / (L + 1), so that in a large cluster two nodes that lost each other
meet again after minutes (CASSANDRA-14001). The own zone can be preferred. And a data centre as a whole can be held to a
number of exchanges per interval with each other one, however many nodes it has: each node begins one with that
number divided by the nodes of its data centre as the probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.intp]
Names = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPolicy:
    """Preferences among peers; the defaults are Cassandra's: none."""

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


def choose_targets(rng: Random, peers: Peers, policy: PeerPolicy, *, seeds: Sequence[int | str]) -> list[int | str]:
    """The peers of one round without duplicates, as rows; a seed that has no row is returned as it was given.

    A seed is asked when the live peer was none, or fewer peers are live than there are seeds: always when nobody is
    live, else with probability S / (L + U). This keeps islands that share no seed from living apart
    (CASSANDRA-150). ``seeds`` must not contain the local endpoint.
    """
    bounded = policy.remote_exchanges_per_interval is not None
    live = peers.near(peers.live) if bounded else peers.live
    unreachable = peers.near(peers.unreachable) if bounded else peers.unreachable
    targets: list[int | str] = []
    if len(live):
        zone = peers.in_zone(live) if policy.own_zone_probability else live
        preferred = len(zone) and rng.random() < policy.own_zone_probability
        targets.append(_one_of(rng, zone if preferred else live))
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
