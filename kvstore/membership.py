"""What gossip knows, in the words of replication and repair.

A member of the cluster is a replica once it has published SCHEMA, as every key-value node does before anybody hears of
it, until it leaves for good. Being DOWN, or stopped, does not end that.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from typing import Final

from gossiper import ApplicationState, EndpointView, Gossiper, Status
from kvstore.replication import EveryNode

#: Whoever says so of itself, or is said to by an operator, does not come back. A node that hibernates or has shut down
#: does, and keeps its rows meanwhile.
_GONE: Final = frozenset({Status.REMOVING, Status.REMOVED, Status.LEFT})
#: What defines how rows look; nodes that differ in it cannot replicate to each other.
_LAYOUT: Final = "kv(key bytes primary key, value bytes) version=hlc:48+16 digest=xxh3_128 format=1"
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

    def is_alive(self, endpoint: str) -> bool:
        """Whether gossip holds an endpoint to be alive; this node always is."""
        return endpoint == self.local_endpoint or self._gossiper().is_alive(endpoint)

    def placement(self) -> EveryNode:
        """Where rows live now, for the coordinator."""
        gossiper = self._gossiper()
        members = gossiper.members()
        alive = {member.endpoint for member in members if member.alive} | {gossiper.endpoint}
        return EveryNode(replica_endpoints(members), frozenset(alive), self._replication_factor)
