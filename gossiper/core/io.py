"""What goes into the engine and what comes out: events that happened, effects that are to be done.

The shell (``gossiper.node``, a simulation) reports events with both clocks read, and carries out effects in the order
given. All are immutable values.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossiper.core.local import Publish, Published
from gossiper.core.messages import Reply, Request
from gossiper.events import Event


@dataclass(frozen=True, slots=True)
class RoundDue:
    """One gossip interval has passed."""


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """A peer sent a request that passed the codec's validation."""

    request: Request


@dataclass(frozen=True, slots=True)
class ReplyReceived:
    """A peer answered a request that this node sent to ``peer``."""

    peer: str
    request: Request
    reply: Reply


@dataclass(frozen=True, slots=True)
class SendFailed:
    """A request got no answer."""

    peer: str
    request: Request
    reason: str


@dataclass(frozen=True, slots=True)
class GenerationPersisted:
    """The generation that ``PersistGeneration`` asked for is on disk."""

    generation: int


@dataclass(frozen=True, slots=True)
class GenerationNotPersisted:
    """The generation that ``PersistGeneration`` asked for could not be written; it is wanted again after a while."""

    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class ChangeStatus:
    """The application moves on in its life: from BOOT to NORMAL, from NORMAL to LEAVING, ..."""

    status: str


@dataclass(frozen=True, slots=True)
class ChangeHealth:
    """The application can serve, or not and why."""

    serving: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LeaveRequested:
    """This node leaves for good: everybody is told, and later ``peers_that_know`` says who has heard."""


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """This node stops gossiping in this generation."""


@dataclass(frozen=True, slots=True)
class EnableRequested:
    """A node that stopped gossiping takes part again, in a new generation that is on disk already."""

    generation: int


@dataclass(frozen=True, slots=True)
class RemoveRequested:
    """An operator removes a dead node, by its host id."""

    host_id: str


@dataclass(frozen=True, slots=True)
class AssassinateRequested:
    """An operator removes an endpoint whatever is known of it; one whose heartbeat moves only with ``force``."""

    endpoint: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class SeedsChanged:
    """Another list of seeds is in force."""

    seeds: tuple[str, ...]


EngineEvent = (
    RoundDue
    | RequestReceived
    | ReplyReceived
    | SendFailed
    | Publish
    | GenerationPersisted
    | GenerationNotPersisted
    | ChangeStatus
    | ChangeHealth
    | LeaveRequested
    | ShutdownRequested
    | EnableRequested
    | RemoveRequested
    | AssassinateRequested
    | SeedsChanged
)


@dataclass(frozen=True, slots=True)
class Send:
    """Deliver ``request`` to ``peer``, then report ReplyReceived or SendFailed."""

    peer: str
    request: Request


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to the request being handled."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell subscribers."""

    event: Event


@dataclass(frozen=True, slots=True)
class PersistGeneration:
    """Put this generation on disk, then report GenerationPersisted or GenerationNotPersisted."""

    generation: int


@dataclass(frozen=True, slots=True)
class Stop:
    """This node may not go on; nothing is announced, because another one speaks in its name or it was removed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Count:
    """Something worth counting: a metric's name, a label value (or ""), and by how much."""

    name: str
    label: str = ""
    amount: int = 1


@dataclass(frozen=True, slots=True)
class Warn:
    """Something an operator should read; the shell limits the rate per ``key``."""

    key: str
    text: str


Effect = Send | Answer | Notify | Published | PersistGeneration | Stop | Count | Warn
