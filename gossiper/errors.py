"""What can go wrong, and whose fault it is. No error leaves the state half changed."""

from __future__ import annotations


class GossipError(Exception):
    """The root of all errors of this library."""


class ConfigError(GossipError):
    """The configuration is unusable; ``faults`` lists everything that is wrong with it, not only the first."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(faults))


class LocalStateError(GossipError):
    """This node's own files or resources: a corrupt generation file, a port in use, a full disk. Not retriable."""


class PublishError(GossipError):
    """A value that may not be published: a key that is not the application's, or a limit. Nothing was published."""


class LifecycleError(GossipError):
    """An operation that the present state of a node does not allow. Nothing was changed; the text says why."""


class JoinError(GossipError):
    """This node may not or cannot join the cluster: a collision, a removed node, or nobody to be reached."""


class NotRunningError(GossipError):
    """The gossiper has not been started, or has stopped."""


class TransportError(GossipError):
    """A message was not delivered or not answered. ``retriable``: the same send may work later."""

    def __init__(self, message: str, *, reason: str, retriable: bool = True) -> None:
        self.reason = reason
        self.retriable = retriable
        super().__init__(message)


class PeerProtocolError(GossipError):
    """A peer broke the protocol. Nothing of its message was applied.

    ``reason`` is a short constant, used as a metric label: malformed, too_large, cluster_mismatch,
    protocol_version, invalid_field, invalid_generation, invalid_heartbeat, not_running.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")
