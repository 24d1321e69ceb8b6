"""What can go wrong, and whose fault it is. Unless said otherwise nothing was changed."""

from __future__ import annotations


class AntiEntropyError(Exception):
    """The root of all errors of this library."""


class ConfigError(AntiEntropyError):
    """The configuration is unusable; ``faults`` lists everything that is wrong with it."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(faults))


class StoreError(AntiEntropyError):
    """A store refused or failed. No row of the call was applied; the store stays usable."""


class StoreFullError(StoreError):
    """No room: the disk, a quota or the map is full."""


class StoreReadOnlyError(StoreError):
    """The directory cannot be made, read or written."""


class StoreCorruptError(StoreError):
    """The files are damaged, not ours, or of a format that this version does not know."""


class StoreInUseError(StoreError):
    """Another process, or another object of this process, has the store open."""


class StoreClosedError(StoreError):
    """The store or the snapshot has been closed."""


class RowRefusedError(StoreError):
    """A row that no store takes: key too long, value too large, version out of range."""


class RepairError(AntiEntropyError):
    """A repair could not begin or go on."""


class RepairRequestError(RepairError):
    """The request is wrong: a peer that is no replica, an empty range."""


class UnknownKeyspaceError(RepairRequestError):
    """No store of that name is served here."""


class RepairRunningError(RepairError):
    """This node already coordinates a repair of that keyspace."""


class ServiceStoppedError(RepairError):
    """The service has not been started, or has stopped."""


class JournalError(RepairError):
    """The record of repairs on disk cannot be read or written; the replica itself is served all the same."""


class LeaseHeldError(RepairError):
    """Another repair holds an overlapping range, and has held it for as long as this one was willing to wait."""


class PeerError(RepairError):
    """A peer failed, was too slow or broke the protocol: only its pair fails, and no broken message was applied."""

    def __init__(self, endpoint: str, detail: str) -> None:
        self.endpoint = endpoint
        self.detail = detail
        super().__init__(f"Endpoint {endpoint} {detail}")


class SessionLostError(PeerError):
    """The peer no longer knows the session: it expired, was taken over, or the peer was restarted. Compare anew."""


class PeerMessageError(AntiEntropyError):
    """A message of a peer is malformed or beyond a limit; refused whole."""


class DivergenceError(RepairError):
    """Replicas that stay different after their rows were moved: damage, not a race."""
