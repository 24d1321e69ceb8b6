"""Cluster membership by gossip: who is there, who is alive, and what everybody says of itself.

``Gossiper`` is a member of a cluster; ``GossipConfig`` its settings; events and views are what it tells. The decisions
are in ``gossiper.core``, for those who bring their own transport or clock.

The names below are loaded on first use: commands that ask a node should not wait for numpy.
"""

from importlib import import_module

TYPE_CHECKING = False  # as in typing, which takes longer to import than this package
if TYPE_CHECKING:
    from gossiper.config import GossipConfig
    from gossiper.core.application_states import ApplicationState
    from gossiper.core.lifecycle import Status
    from gossiper.core.messages import VersionedValue
    from gossiper.errors import (
        ConfigError,
        GossipError,
        JoinError,
        LifecycleError,
        LocalStateError,
        NotRunningError,
        PeerProtocolError,
        PublishError,
        TransportError,
    )
    from gossiper.events import (
        EndpointAlive,
        EndpointDead,
        EndpointForgotten,
        EndpointJoined,
        EndpointLeft,
        EndpointRemoved,
        EndpointReplaced,
        EndpointRestarted,
        EndpointView,
        Event,
        EventsMissed,
        Liveness,
        LocalStopped,
        StateChanged,
    )
    from gossiper.node import Gossiper

__all__ = [
    "ApplicationState",
    "ConfigError",
    "EndpointAlive",
    "EndpointDead",
    "EndpointForgotten",
    "EndpointJoined",
    "EndpointLeft",
    "EndpointRemoved",
    "EndpointReplaced",
    "EndpointRestarted",
    "EndpointView",
    "Event",
    "EventsMissed",
    "GossipConfig",
    "GossipError",
    "Gossiper",
    "JoinError",
    "LifecycleError",
    "Liveness",
    "LocalStateError",
    "LocalStopped",
    "NotRunningError",
    "PeerProtocolError",
    "PublishError",
    "StateChanged",
    "Status",
    "TransportError",
    "VersionedValue",
]

_MODULES = ("errors", "events", "config", "core.application_states", "core.lifecycle", "core.messages", "node")


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name in __all__:
        for module in map(import_module, (f"gossiper.{path}" for path in _MODULES)):
            if hasattr(module, name):
                return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
