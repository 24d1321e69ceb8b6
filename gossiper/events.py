"""What a subscriber is told: typed, immutable, and only after the change is complete.

Events of one endpoint arrive in the order in which the changes happened. ``old`` and ``new`` are whole, immutable
views of the endpoint before and after.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from gossiper.core.application_states import ApplicationState
from gossiper.core.lifecycle import status_of
from gossiper.core.messages import VersionedValue


class Liveness(StrEnum):
    """What this observer holds of an endpoint."""

    ALIVE = "alive"
    """It answered an ECHO in this generation, and heartbeats keep coming."""
    DOWN = "down"
    """Convicted by the failure detector, stopped by its own word, or never confirmed."""
    UNKNOWN = "unknown"
    """Heard of, and the first ECHO of this generation is not answered yet."""
    SUSPECT = "suspect"
    """Alive until others agree that it is not; the plain detector convicts at once and never uses it."""


@dataclass(frozen=True, slots=True)
class EndpointView:
    """An immutable picture of one endpoint as this node sees it."""

    endpoint: str
    generation: int
    heartbeat: int
    states_version: int
    interval_ms: int
    liveness: Liveness
    states: Mapping[str, VersionedValue]
    """Tombstones are left out."""

    def get(self, key: str, default: str | None = None) -> str | None:
        """The value of an application state."""
        value = self.states.get(key)
        return default if value is None else value.value

    @property
    def status(self) -> str:
        """First piece of STATUS; "" when there is none yet."""
        return status_of(self.get(ApplicationState.STATUS))

    @property
    def host_id(self) -> str | None:
        """The identity that survives a change of address."""
        return self.get(ApplicationState.HOST_ID)

    @property
    def serving(self) -> bool:
        """Whether it says of itself that it can serve; an endpoint that says nothing can."""
        return (self.get(ApplicationState.HEALTH) or "serving").partition(",")[0] == "serving"

    @property
    def alive(self) -> bool:
        """Whether it is held to be alive."""
        return self.liveness is Liveness.ALIVE


@dataclass(frozen=True, slots=True)
class EndpointJoined:
    """An endpoint that was not known before. Followed by EndpointAlive once it has answered an ECHO."""

    endpoint: str
    new: EndpointView


@dataclass(frozen=True, slots=True)
class EndpointAlive:
    """It answered an ECHO: from now on it is live."""

    endpoint: str
    old: EndpointView
    new: EndpointView


@dataclass(frozen=True, slots=True)
class EndpointDead:
    """It was alive and is not any more; ``reason`` is "convicted", "shutdown", or the dead status it took."""

    endpoint: str
    old: EndpointView
    new: EndpointView
    reason: str


@dataclass(frozen=True, slots=True)
class EndpointRestarted:
    """A greater generation of a known endpoint replaced its whole state. EndpointAlive follows after the ECHO."""

    endpoint: str
    old: EndpointView
    new: EndpointView


@dataclass(frozen=True, slots=True)
class StateChanged:
    """Application states of a known generation changed; ``keys`` in the order STATUS first, then by name."""

    endpoint: str
    old: EndpointView
    new: EndpointView
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EndpointLeft:
    """It said that it has left for good. Forgotten once its expiry has passed."""

    endpoint: str
    old: EndpointView
    new: EndpointView


@dataclass(frozen=True, slots=True)
class EndpointRemoved:
    """An operator removed it; ``removed_by`` is the host id of the node on which the operator did so."""

    endpoint: str
    old: EndpointView
    new: EndpointView
    removed_by: str


@dataclass(frozen=True, slots=True)
class EndpointReplaced:
    """``new`` (at ``endpoint``) has taken the place of ``old``, which is forgotten.

    Either the same host id came back at another address, or another host id at the same address, or a new node said
    that it replaces a dead one.
    """

    endpoint: str
    old: EndpointView
    new: EndpointView


@dataclass(frozen=True, slots=True)
class EndpointForgotten:
    """It is no longer among the members; ``reason`` is "expired" (it was gone for good) or "silent" (a guest)."""

    endpoint: str
    old: EndpointView
    reason: str


@dataclass(frozen=True, slots=True)
class LocalStopped:
    """This node may not go on: it was removed, or another node has its host id. Nothing follows."""

    endpoint: str
    reason: str


@dataclass(frozen=True, slots=True)
class EventsMissed:
    """This subscriber was too slow: ``count`` events were dropped here. ``members()`` is always current."""

    count: int


Event = (
    EndpointJoined
    | EndpointAlive
    | EndpointDead
    | EndpointRestarted
    | StateChanged
    | EndpointLeft
    | EndpointRemoved
    | EndpointReplaced
    | EndpointForgotten
    | LocalStopped
    | EventsMissed
)
