"""Cluster membership by gossip: who is there, who is alive, and what everybody says of itself.

``Gossiper`` is a member of a cluster; ``GossipConfig`` its settings; events and views are what it tells. The decisions
are in ``gossiper.core``, for those who bring their own transport or clock.
"""

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
