"""What travels between gossipers, as plain values: the core's own form of ``proto/gossiper/v1/gossip.proto``.

Lives here: immutable message types. Not here: how they are encoded or checked (``gossiper.wire.codec``), what they
mean (``digest``, ``state``, ``engine``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gossiper.core.columns import Int64Column, Symbols
from gossiper.core.roster import Exchange


@dataclass(frozen=True, slots=True)
class VersionedValue:
    """One application state of one endpoint; a deletion is a value too."""

    version: int
    value: str
    deleted: bool = False
    expires_at_ms: int = 0
    """Wall-clock milliseconds after which it counts as absent everywhere; 0: never."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Who speaks: checked before the rest of a message is looked at."""

    cluster_name: str
    protocol_version: int
    endpoint: str
    generation: int


@dataclass(frozen=True, slots=True, eq=False)
class DigestColumns:
    """Digests of n endpoints as columns; all have length n and the same order.

    ``endpoints`` are canonical and without duplicates; the three int64 columns hold values in [0, 2**62).
    """

    endpoints: tuple[str, ...]
    generations: Int64Column
    heartbeats: Int64Column
    states_versions: Int64Column

    def __len__(self) -> int:
        """The number of endpoints."""
        return len(self.endpoints)

    def __eq__(self, other: object) -> bool:
        """Equal when every column is."""
        if not isinstance(other, DigestColumns):
            return NotImplemented
        return (
            self.endpoints == other.endpoints
            and bool(np.array_equal(self.generations, other.generations))
            and bool(np.array_equal(self.heartbeats, other.heartbeats))
            and bool(np.array_equal(self.states_versions, other.states_versions))
        )

    __hash__ = None  # type: ignore[assignment]  # arrays cannot be hashed

    @classmethod
    def empty(cls) -> DigestColumns:
        """No digests at all."""
        nothing = np.zeros(0, dtype=np.int64)
        return cls((), nothing, nothing, nothing)

    @classmethod
    def from_rows(cls, rows: list[tuple[str, int, int, int]]) -> DigestColumns:
        """From (endpoint, generation, heartbeat, states_version) tuples."""
        if not rows:
            return cls.empty()
        endpoints, generations, heartbeats, states_versions = zip(*rows, strict=True)
        return cls(
            tuple(endpoints),
            np.array(generations, dtype=np.int64),
            np.array(heartbeats, dtype=np.int64),
            np.array(states_versions, dtype=np.int64),
        )


@dataclass(frozen=True, slots=True)
class EndpointState:
    """All that an endpoint published in one generation after ``from_version``, as far as the sender knows.

    ``values`` holds every value with a version in (from_version, states_version] that was not overwritten since, and
    perhaps newer ones. A receiver that knows everything up to from_version so knows everything up to states_version.
    ``reset``: ``values`` is the whole state, keys that it does not name (up to states_version) no longer exist.
    """

    endpoint: str
    generation: int
    interval_ms: int
    heartbeat: int
    from_version: int
    states_version: int
    values: tuple[tuple[str, VersionedValue], ...] = ()
    gc_version: int = 0
    reset: bool = False


@dataclass(slots=True, eq=False)  # not frozen: that makes making one three times as slow
class CompactDigests:
    """The columns of a compact SYN; fields as in ``proto/gossiper/v1/gossip.proto``, with decoded columns.

    ``symbols`` has length ``count``, or 0 when no heartbeats are compared; ``escapes`` has one entry per symbol 0;
    ``recent_index`` ascends strictly below ``count``; the two sets of buckets are bit masks.
    """

    cut_ms: int
    count: int
    roster_hash: bytes
    base: int
    symbols: Symbols
    escapes: Int64Column
    behind_hash: int
    recent_ticks: int
    recent_index: Int64Column
    recent_offsets: Int64Column
    states_hash: int
    buckets: int = 0
    """How many buckets the two masks below speak of."""
    plain_buckets: int = 0
    states_buckets: int = 0


@dataclass(slots=True, eq=False)  # not frozen: that makes making one three times as slow
class CompactAnswer:
    """The columns of a compact ACK; ``symbols`` has the length of the SYN's roster, or 0 when nothing is newer."""

    symbols: Symbols
    escapes: Int64Column
    request_index: Int64Column
    request_versions: Int64Column
    behind_heartbeats: Int64Column
    roster_buckets: tuple[int, ...] = ()
    states_buckets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GossipDigestSyn:
    """First leg: everything the sender knows, as digests, at its wall-clock time ``as_of_ms``.

    With ``compact``, ``digests`` holds only what its roster does not. ``exchange`` is what the sender keeps of a
    compact SYN until the ACK; it does not travel.
    """

    sender: Sender
    as_of_ms: int
    digests: DigestColumns
    compact: CompactDigests | None = None
    exchange: Exchange | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class GossipDigestAck:
    """Second leg.

    ``requests``: send me what is newer than states_version in that generation (heartbeats are those known here).
    ``heartbeats``: only the heartbeat is newer here. ``states``: application states are newer here.
    """

    sender: Sender
    as_of_ms: int
    requests: DigestColumns
    heartbeats: DigestColumns
    states: tuple[EndpointState, ...]
    deferred: int = 0
    """How many more endpoints' states did not fit."""
    compact: CompactAnswer | None = None


@dataclass(frozen=True, slots=True)
class GossipDigestAck2:
    """Third leg, and every unsolicited push: application states."""

    sender: Sender
    states: tuple[EndpointState, ...]


@dataclass(frozen=True, slots=True)
class GossipDigestAck2Reply:
    """How many of the endpoint states were news to the receiver."""

    news: int


@dataclass(frozen=True, slots=True)
class EchoRequest:
    """Asks the receiver for a sign of life in ``generation``."""

    sender: Sender
    generation: int


@dataclass(frozen=True, slots=True)
class EchoReply:
    """The sign of life: the answering node's generation (in ``sender``) and heartbeat."""

    sender: Sender
    heartbeat: int


Request = GossipDigestSyn | GossipDigestAck2 | EchoRequest
Reply = GossipDigestAck | GossipDigestAck2Reply | EchoReply
Message = Request | Reply
