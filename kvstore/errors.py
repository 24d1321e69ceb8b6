"""What can go wrong in the key-value store; the same classes on the server and in the client.

``reason`` is a short constant that travels as trailing metadata (``kvstore-reason``) beside the gRPC status, so a
client raises the class that the server raised. Every text is one line that says what is wrong and the way out.
"""

from __future__ import annotations

from typing import ClassVar


class KvStoreError(Exception):
    """The root of all errors of the key-value store."""

    reason: ClassVar[str] = "internal"


class StartError(KvStoreError):
    """The node cannot start: a port in use, a data directory that is full, read-only or used by another process."""

    reason = "start"


class InvalidRequestError(KvStoreError):
    """A request beyond a limit or without a key. Nothing was done."""

    reason = "invalid_request"


class NotEnoughReplicasError(KvStoreError):
    """Fewer replicas are alive than must answer. Nothing was sent to any of them."""

    reason = "not_enough_replicas"

    @classmethod
    def of(cls, required: int, total: int, alive: int) -> NotEnoughReplicasError:
        """The error for these numbers."""
        return cls(f"needs {required} of {total} replicas, {alive} alive; see `nodetool status`")


class ReplicaFailureError(KvStoreError):
    """So many replicas failed that a majority cannot be reached. A write may have reached some of them."""

    reason = "replica_failure"


class WriteTimeoutError(KvStoreError):
    """A majority did not acknowledge in time. The write may still arrive."""

    reason = "write_timeout"


class ReadTimeoutError(KvStoreError):
    """A majority did not answer in time."""

    reason = "read_timeout"


class StorageError(KvStoreError):
    """The store of a replica refused a write, for example because its disk is full. Reads go on."""

    reason = "storage"


class OverloadedError(KvStoreError):
    """More is waiting than a named limit allows. Nothing of this call was done; try again later."""

    reason = "overloaded"


class ClockDriftError(KvStoreError):
    """A version lies further ahead of the clock here than is allowed. Nothing was applied."""

    reason = "clock_drift"


class TooOldError(KvStoreError):
    """A row is older than what repair has settled: it could be what a purged tombstone had deleted. Not applied."""

    reason = "too_old"


class WrongClusterError(KvStoreError):
    """A node of another cluster, or of another keyspace. Nothing was applied."""

    reason = "wrong_cluster"


class StoppingError(KvStoreError):
    """The node is shutting down and takes no new work."""

    reason = "stopping"


class UnreachableError(KvStoreError):
    """Raised by clients only: no answer came from the node."""

    reason = "unreachable"


BY_REASON: dict[str, type[KvStoreError]] = {
    error.reason: error
    for error in (
        InvalidRequestError,
        NotEnoughReplicasError,
        ReplicaFailureError,
        WriteTimeoutError,
        ReadTimeoutError,
        StorageError,
        OverloadedError,
        ClockDriftError,
        TooOldError,
        WrongClusterError,
        StoppingError,
    )
}
"""The errors that cross the wire."""
