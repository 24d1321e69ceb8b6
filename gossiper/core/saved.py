"""Peers of an earlier run, as the own file remembers them: enough to replace or remove a member that stays dead.

After a restart of the whole cluster with one member dead nobody holds its state any more, so nobody could be told to
replace it (CASSANDRA-16213). What is remembered is told to nodes that ask before they start, and used by an operator's
``remove``; it never becomes a state of the endpoint, is in no digest and never makes anybody alive.

A memory ends when somebody tells anything of the endpoint, when its host id turns up elsewhere, when its replacement
is a member, and ``GONE_EXPIRE_SECONDS`` after this node last held the endpoint for a member. Whoever was removed since
then is still told of as removed by everybody who was there; later nobody would contradict.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from gossiper.core.application_states import ApplicationState
from gossiper.core.lifecycle import GONE_EXPIRE_SECONDS
from gossiper.core.messages import EndpointState, VersionedValue
from gossiper.core.versions import version_of

#: ``KnownPeer.seen_seconds`` is rounded down to whole hours, so that the file is not written for its sake every round.
SEEN_GRANULARITY_SECONDS: Final = 3600
#: Heartbeat of what is only remembered; that of every state that an owner told is at least 1.
REMEMBERED_HEARTBEAT: Final = 0
#: Remembered endpoints in one answer of a shadow round, at about 150 bytes each: 0.6 MB, the rest follows.
REMEMBERED_PER_ANSWER_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class KnownPeer:
    """A peer as it was last known. ``endpoint`` is canonical; texts that it never published are empty."""

    endpoint: str
    host_id: str
    datacenter: str
    rack: str
    generation: int
    seen_seconds: int = 0
    """Wall-clock time at which this node last held it for a member, in whole hours; 0: not known."""


def seen_now(wall_seconds: float) -> int:
    """``KnownPeer.seen_seconds`` of a peer that is a member now."""
    return int(wall_seconds) // SEEN_GRANULARITY_SECONDS * SEEN_GRANULARITY_SECONDS


class SavedPeers:
    """What is remembered of endpoints of which nobody has told anything in this run."""

    def __init__(self) -> None:
        self._peers: dict[str, KnownPeer] = {}
        self._by_host_id: dict[str, str] = {}

    def __len__(self) -> int:
        """How many are remembered, perhaps for too long."""
        return len(self._peers)

    def remember(self, peers: Iterable[KnownPeer], wall_seconds: float) -> None:
        """Take those that can be named; a time in the future (the clock was wrong) counts as now."""
        for peer in peers:
            if not peer.host_id or not peer.generation:
                continue
            known = self._peers.get(self._by_host_id.get(peer.host_id, ""))
            if known is not None and known.generation >= peer.generation:
                continue
            for endpoint in {peer.endpoint} if known is None else {peer.endpoint, known.endpoint}:
                self.drop(endpoint)
            self._peers[peer.endpoint] = replace(peer, seen_seconds=min(peer.seen_seconds, int(wall_seconds)))
            self._by_host_id[peer.host_id] = peer.endpoint

    def drop(self, endpoint: str) -> None:
        """Remember it no longer; nothing happens if it was not."""
        peer = self._peers.pop(endpoint, None)
        if peer is not None:
            del self._by_host_id[peer.host_id]

    def at(self, endpoint: str, wall_seconds: float) -> KnownPeer | None:
        """Who was there."""
        peer = self._peers.get(endpoint)
        return peer if peer is not None and _is_fresh(peer, wall_seconds) else None

    def with_host_id(self, host_id: str, wall_seconds: float) -> KnownPeer | None:
        """Who had that host id."""
        return self.at(self._by_host_id.get(host_id, ""), wall_seconds)

    def fresh(self, wall_seconds: float) -> tuple[KnownPeer, ...]:
        """All that are not remembered for too long, by endpoint."""
        return tuple(peer for _, peer in sorted(self._peers.items()) if _is_fresh(peer, wall_seconds))


def _is_fresh(peer: KnownPeer, wall_seconds: float) -> bool:
    return wall_seconds < peer.seen_seconds + GONE_EXPIRE_SECONDS


def remembered_state(peer: KnownPeer, interval_ms: int) -> EndpointState:
    """How a memory is told in a shadow round: generation and host id, a heartbeat of 0, complete up to no version."""
    host_id = VersionedValue(version_of(REMEMBERED_HEARTBEAT, 1), peer.host_id)
    return EndpointState(
        endpoint=peer.endpoint,
        generation=peer.generation,
        interval_ms=interval_ms,
        heartbeat=REMEMBERED_HEARTBEAT,
        from_version=0,
        states_version=0,
        values=((str(ApplicationState.HOST_ID), host_id),),
    )
