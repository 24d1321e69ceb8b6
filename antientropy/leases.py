"""One repair at a time per range of a keyspace: leases that expire.

Every participant of a session, the coordinator too, holds one for the session's range. A lease is kept by any call of
its session and by heartbeats, and is free again at its expiry: whoever was killed blocks nobody for longer than that.
Cassandra has no such thing, and repairs of one range on several nodes compete (CASSANDRA-9935).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from antientropy.core.tokens import TokenRange

#: Bits of a session's name that are drawn: two coordinators that begin in the same 32 ms meet once in 2**27.
_RANDOM_BITS: Final = 27
#: The rest counts 32 ms since the epoch, until the year 2109.
_TICK_BITS: Final = 5
_SESSION_MASK: Final = 2**64 - 1


def new_session(epoch_seconds: float, random: Random) -> int:
    """The name of a session that begins now: 64 bits, greater than those of earlier sessions of the same owner.

    That order lets a coordinator that was restarted take its own leases over, and makes late messages of its sessions
    of before do nothing.
    """
    ticks = int(epoch_seconds * 1000) >> _TICK_BITS
    return (ticks << _RANDOM_BITS | random.getrandbits(_RANDOM_BITS)) & _SESSION_MASK


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of a session to repair a range."""

    keyspace: str
    token_range: TokenRange
    owner: str
    """The coordinator's endpoint."""
    session: int
    expires_at: float
    """Seconds of the clock that the table is asked with."""

    def conflicts(self, keyspace: str, token_range: TokenRange) -> bool:
        """Whether it covers a part of that range."""
        return self.keyspace == keyspace and self.token_range.intersection(token_range) is not None


@dataclass(frozen=True, slots=True)
class LeaseDenied:
    """Why there is no lease now."""

    holder: str
    session: int
    retry_after_seconds: float
    """When the lease in the way expires, if it is not renewed."""


class LeaseTable:
    """The leases of a node. Time is an argument; nothing here waits.

    Args:
        lease_seconds: How long a lease lives without being renewed.
    """

    def __init__(self, lease_seconds: float) -> None:
        self.lease_seconds: Final = lease_seconds
        self._leases: dict[int, Lease] = {}

    def __len__(self) -> int:
        """Leases held, those that have expired and were not yet seen included."""
        return len(self._leases)

    def acquire(
        self, keyspace: str, token_range: TokenRange, *, owner: str, session: int, now: float
    ) -> Lease | LeaseDenied:
        """Take or renew the lease of a session.

        A later session of the same owner takes over: its earlier ones are those of a coordinator that was restarted.
        An earlier one is denied: its messages are late. What was taken over is no longer in :meth:`holds`.
        """
        self.expired(now)
        held = self._leases.get(session)
        if held is not None and (held.keyspace, held.token_range, held.owner) != (keyspace, token_range, owner):
            return LeaseDenied(held.owner, session, held.expires_at - now)
        in_the_way = [lease for lease in self._leases.values() if lease.conflicts(keyspace, token_range)]
        for lease in in_the_way:
            if lease.session != session and not (lease.owner == owner and lease.session < session):
                return LeaseDenied(lease.owner, lease.session, lease.expires_at - now)
        for lease in in_the_way:
            del self._leases[lease.session]
        lease = Lease(keyspace, token_range, owner, session, now + self.lease_seconds)
        self._leases[session] = lease
        return lease

    def renew(self, session: int, now: float) -> bool:
        """Keep a lease; False: there is none any more."""
        lease = self._leases.get(session)
        if lease is None or lease.expires_at <= now:
            return False
        self._leases[session] = Lease(lease.keyspace, lease.token_range, lease.owner, session, now + self.lease_seconds)
        return True

    def release(self, session: int) -> bool:
        """Give a lease back; False: there was none."""
        return self._leases.pop(session, None) is not None

    def expired(self, now: float) -> list[Lease]:
        """Take out and return the leases that nobody renewed in time."""
        over = [lease for lease in self._leases.values() if lease.expires_at <= now]
        for lease in over:
            del self._leases[lease.session]
        return over

    def holds(self, session: int, now: float) -> bool:
        """Whether the session's lease is in force."""
        lease = self._leases.get(session)
        return lease is not None and lease.expires_at > now

    def leases(self, now: float) -> list[Lease]:
        """Those in force, in the order of their sessions."""
        return [self._leases[name] for name in sorted(self._leases) if self._leases[name].expires_at > now]
