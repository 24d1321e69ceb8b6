"""Rumours: a change of status is pushed at once, not at the next round, and passed on by those for whom it was news.

Each node passes a change on once, to ``fanout`` live peers, as an unsolicited ACK2; with fanout 4 about 98 % of a
cluster hear it within a few message delays, and the digests reach the rest. Source: rumour mongering of Demers et
al. (1987); Cassandra has no such push. A node that learns very much at once is catching up and stays silent.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Final

from gossiper.core.application_states import ApplicationState
from gossiper.core.digest import endpoint_states
from gossiper.core.messages import GossipDigestAck2, Sender
from gossiper.core.state import ClusterState
from gossiper.events import (
    EndpointJoined,
    EndpointLeft,
    EndpointRemoved,
    EndpointReplaced,
    EndpointRestarted,
    Event,
    StateChanged,
)

#: Live peers told of a change by each node for which it is news.
FANOUT_DEFAULT: Final = 4
#: More endpoints than this in one message are no news but a catching up.
RUMOURS_PER_MESSAGE_MAX: Final = 16
#: Pushes that a node begins in a second; each is an RPC of about 1 ms CPU. What is over is left to the digests.
PUSHES_PER_SECOND_MAX: Final = 100.0
#: Keys of which a change is pushed.
URGENT_KEYS: Final = frozenset(
    {ApplicationState.STATUS, ApplicationState.REMOVED_BY, ApplicationState.REPLACES, ApplicationState.HEALTH}
)


class Rumours:
    """Decides what is pushed to whom, within a budget."""

    def __init__(self, fanout: int) -> None:
        self._fanout = fanout
        self._budget = PUSHES_PER_SECOND_MAX
        self._refilled = 0.0

    def pushes(
        self, state: ClusterState, events: Iterable[Event], *, sender: Sender, told_by: str, rng: Random, now: float
    ) -> list[tuple[str, GossipDigestAck2]]:
        """Messages to send because of ``events``, by peer; not to ``told_by``, who said so."""
        news = self._news(state, events)
        if not news or not self._fanout or len(news) > RUMOURS_PER_MESSAGE_MAX:
            return []
        live = [state.table.endpoint(int(row)) for row in state.live_rows()]
        live = [endpoint for endpoint in live if endpoint != told_by and state.table.row(endpoint) not in news]
        self._budget = min(PUSHES_PER_SECOND_MAX, self._budget + (now - self._refilled) * PUSHES_PER_SECOND_MAX)
        self._refilled = now
        peers = rng.sample(live, min(self._fanout, len(live), int(self._budget)))
        self._budget -= len(peers)
        states, _ = endpoint_states(state, list(news.items()))
        message = GossipDigestAck2(sender, states)
        return [(peer, message) for peer in peers]

    @staticmethod
    def _news(state: ClusterState, events: Iterable[Event]) -> dict[int, int]:
        """Row and from_version of every endpoint of which there is urgent news."""
        news: dict[int, int] = {}
        for event in events:
            match event:
                case StateChanged(endpoint, old, _, keys) if not URGENT_KEYS.isdisjoint(keys):
                    from_version = old.states_version
                case EndpointJoined(endpoint) | EndpointRestarted(endpoint) | EndpointReplaced(endpoint):
                    from_version = 0
                case EndpointLeft(endpoint) | EndpointRemoved(endpoint):
                    from_version = 0
                case _:
                    continue
            row = state.table.row(endpoint)
            if row is not None:
                news[row] = min(from_version, news.get(row, from_version))
        return news
