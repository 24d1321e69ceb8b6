"""Whom to gossip with in a round: one live peer, always one unreachable peer, sometimes a seed.

Source: Cassandra's ``Gossiper.GossipTask``, with one change: an unreachable peer is tried in *every* round while there
is one. Cassandra does so with probability U / (L + 1), so that in a large cluster two nodes that lost each other meet
again after minutes (CASSANDRA-14001).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random


def choose_targets(rng: Random, *, live: Sequence[str], unreachable: Sequence[str], seeds: Sequence[str]) -> list[str]:
    """The peers of one round, without duplicates, in the order live, unreachable, seed.

    A seed is asked when the live peer was none, or fewer peers are live than there are seeds: always when nobody is
    live, else with probability S / (L + U). This keeps islands that share no seed from living apart
    (CASSANDRA-150). ``seeds`` must not contain the own endpoint; none of the three is changed.
    """
    targets: list[str] = []
    if live:
        targets.append(live[rng.randrange(len(live))])
    if unreachable:
        targets.append(unreachable[rng.randrange(len(unreachable))])
    if seeds and (not live or targets[0] not in seeds or len(live) < len(seeds)):
        others = len(live) + len(unreachable)
        if not live or rng.random() <= len(seeds) / others:
            targets.append(seeds[rng.randrange(len(seeds))])
    return list(dict.fromkeys(targets))
