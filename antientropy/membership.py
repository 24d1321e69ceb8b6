"""What repair must know of the cluster, and nothing more: who holds which range, and who is alive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from antientropy.core.tokens import TokenRange


@dataclass(frozen=True, slots=True)
class ReplicatedRange:
    """Tokens that a set of replicas holds together."""

    token_range: TokenRange
    replicas: tuple[str, ...]
    """Endpoints of all replicas, the asking node included, ordered; dead ones too."""
    primary: str
    """The replica that repairs this range by its schedule and with ``nodetool repair -pr``, so that the ranges of all
    nodes together cover every token once (Cassandra's primary range)."""
    complete: bool = True
    """Whether these are all replicas there are; False: one may be unknown yet, so no repair counts for the purge of
    tombstones."""


class Membership(Protocol):
    """Asked often and from the event loop: answers come from memory."""

    @property
    def local_endpoint(self) -> str:
        """This node, as its peers reach it: host:port of its peer listener."""
        ...

    def ranges(self, keyspace: str) -> Sequence[ReplicatedRange]:
        """The ranges of a keyspace that this node holds: ascending, disjoint. A changed answer is a new ring."""
        ...

    def is_alive(self, endpoint: str) -> bool:
        """Whether the failure detector holds it for alive."""
        ...

    def datacenter(self, endpoint: str) -> str:
        """Where it is; empty when that is not known."""
        ...
