"""What gossip knows, in the words of replication and repair.

A member of the cluster is a replica once it has published SCHEMA, as every key-value node does before anybody hears of
it, until it leaves for good. Being DOWN, or stopped, does not end that.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable
from typing import Final

from antientropy.core.tokens import TOKEN_MAX, TokenRange
from antientropy.membership import ReplicatedRange
from gossiper import ApplicationState, EndpointView, Gossiper, Status
from kvstore.limits import TOKENS_PER_NODE_MAX
from kvstore.replication import EveryNode

#: Whoever says so of itself, or is said to by an operator, does not come back. A node that hibernates or has shut down
#: does, and keeps its rows meanwhile.
_GONE: Final = frozenset({Status.REMOVING, Status.REMOVED, Status.LEFT})
#: What defines how rows look; nodes that differ in it cannot replicate to each other.
_LAYOUT: Final = "kv(key bytes primary key, value bytes) version=hlc:48+16 digest=xxh3_128 format=1"
_TOKEN: Final = re.compile("[0-9]{1,20}")
SCHEMA_VERSION: Final = str(uuid.uuid5(uuid.UUID("8f6b2f0e-9c6e-5d1b-9a55-0f6d1b0c7a31"), _LAYOUT))
"""Published as SCHEMA: the same on all nodes that store rows in the same way."""


def replica_endpoints(members: Iterable[EndpointView]) -> tuple[str, ...]:
    """The endpoints that hold rows, dead ones included, ordered.

    A node that came back under another address is one replica, not two: of several endpoints with one host id only
    that of the newest generation counts.
    """
    newest: dict[str, EndpointView] = {}
    for member in members:
        if member.get(ApplicationState.SCHEMA) is None or member.status in _GONE:
            continue
        identity = member.host_id or member.endpoint
        known = newest.get(identity)
        if known is None or (member.alive, member.generation) > (known.alive, known.generation):
            newest[identity] = member
    return tuple(sorted(member.endpoint for member in newest.values()))


def tokens_of(text: str | None) -> tuple[int, ...]:
    """The tokens that a node has published as TOKENS: decimal numbers with commas between them.

    What is no such list, or too long a one, counts as none: the other nodes then cover its part of the token line.
    """
    if not text:
        return ()
    words = text.split(",")
    if len(words) > TOKENS_PER_NODE_MAX or not all(_TOKEN.fullmatch(word) for word in words):
        return ()
    tokens = tuple(int(word) for word in words)
    return tokens if all(token <= TOKEN_MAX for token in tokens) else ()


def primary_ranges(
    tokens: Iterable[tuple[int, str]], replicas: tuple[str, ...], *, complete: bool = True
) -> tuple[ReplicatedRange, ...]:
    """The token line, cut at the tokens of the nodes: each holds what lies behind the token before its own.

    As Cassandra's primary ranges ``(previous token, own token]``; the one that wraps around is two here. All of them
    together are every token once, each is held by all replicas, and all nodes that know the same tokens cut alike.

    Args:
        tokens: (token, endpoint). Of equal tokens that of the least endpoint counts.
        replicas: All endpoints, ordered.
        complete: Whether there are no others.
    """
    owners: dict[int, str] = {}
    for token, endpoint in tokens:
        owners[token] = min(endpoint, owners.get(token, endpoint))
    if replicas and not owners:
        owners[TOKEN_MAX] = replicas[0]
    ranges = []
    begin = 0
    for token in sorted(owners):
        ranges.append(ReplicatedRange(TokenRange(begin, token), replicas, owners[token], complete))
        begin = token + 1
    if owners and begin <= TOKEN_MAX:
        ranges.append(ReplicatedRange(TokenRange(begin, TOKEN_MAX), replicas, owners[min(owners)], complete))
    return tuple(ranges)


class ClusterMembership:
    """The adapter between a gossiper and those who ask it; made before the gossiper runs.

    Args:
        gossiper: Gives the gossiper once it runs; raises NotRunningError before.
        replication_factor: As configured.
    """

    def __init__(self, gossiper: Callable[[], Gossiper], replication_factor: int) -> None:
        self._gossiper = gossiper
        self._replication_factor = replication_factor

    @property
    def local_endpoint(self) -> str:
        """This node."""
        return self._gossiper().endpoint

    def replicas(self, keyspace: str) -> tuple[str, ...]:  # noqa: ARG002 - there is one keyspace, and it is everywhere
        """All endpoints that hold rows, this node included."""
        return replica_endpoints(self._gossiper().members())

    def ranges(self, keyspace: str) -> tuple[ReplicatedRange, ...]:  # noqa: ARG002 - as above
        """The token line in parts, one for each token of a node, all held by all; DOWN nodes keep their part.

        While fewer replicas are known than the cluster is meant to have, or somebody has been heard of and nothing is
        known of it yet (after a restart of everybody), the ranges are not complete: whoever is still unknown may hold
        what was deleted.
        """
        members = self._gossiper().members()
        replicas = replica_endpoints(members)
        rumoured = any(not member.states_version and member.status not in _GONE for member in members)
        complete = len(replicas) >= self._replication_factor and not rumoured
        tokens = (
            (token, member.endpoint)
            for member in members
            if member.endpoint in replicas
            for token in tokens_of(member.get(ApplicationState.TOKENS))
        )
        return primary_ranges(tokens, replicas, complete=complete)

    def datacenter(self, endpoint: str) -> str:
        """Where an endpoint says that it is; empty when it is unknown."""
        member = self._gossiper().member(endpoint)
        return "" if member is None else member.get(ApplicationState.DC) or ""

    def is_alive(self, endpoint: str) -> bool:
        """Whether gossip holds an endpoint to be alive; this node always is."""
        return endpoint == self.local_endpoint or self._gossiper().is_alive(endpoint)

    def placement(self) -> EveryNode:
        """Where rows live now, for the coordinator."""
        gossiper = self._gossiper()
        members = gossiper.members()
        alive = {member.endpoint for member in members if member.alive} | {gossiper.endpoint}
        return EveryNode(replica_endpoints(members), frozenset(alive), self._replication_factor)
