"""Engines against each other in virtual time: what one decides, the other gets, unless the link is cut.

``Cluster`` carries out effects at once, in order, with a seeded source of randomness, so a failure replays from its
seed.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from gossiper.core.engine import EngineConfig, GossipEngine
from gossiper.core.io import (
    Answer,
    Effect,
    EngineEvent,
    GenerationPersisted,
    Notify,
    PersistGeneration,
    ReplyReceived,
    RequestReceived,
    RoundDue,
    Send,
    SendFailed,
)
from gossiper.core.messages import Request
from gossiper.core.versions import Now, next_generation
from gossiper.errors import PeerProtocolError
from gossiper.events import Event

WALL = 1_700_000_000.0


class Cluster:
    """Engines, a network without delay, and one clock."""

    def __init__(self, size: int, *, seed: int = 0, cluster_name: str = "test", **settings: Any) -> None:
        self.settings = settings
        self.rng = Random(seed)
        self.time = 0.0
        self.cluster_name = cluster_name
        self.engines: dict[str, GossipEngine] = {}
        self.cut: set[tuple[str, str]] = set()
        self.lost: set[type[Request]] = set()
        self.events: dict[str, list[Event]] = {}
        self.sent: Counter[str] = Counter()
        self.effects: list[Effect] = []
        for number in range(size):
            self.add(f"10.0.0.{number}:7000")

    @property
    def now(self) -> Now:
        return Now(self.time, WALL + self.time)

    def add(
        self,
        endpoint: str,
        *,
        generation: int | None = None,
        host_id: str | None = None,
        values: dict[str, str | None] | None = None,
        **settings: Any,
    ) -> GossipEngine:
        config: dict[str, Any] = {"seeds": ("10.0.0.0:7000",), **self.settings, **settings}
        published: dict[str, str | None] = {"STATUS": "NORMAL", "HOST_ID": host_id or f"host-{endpoint}"}
        published.update(values or {})
        engine = GossipEngine(
            EngineConfig(cluster_name=self.cluster_name, endpoint=endpoint, interval_ms=1000, **config),
            generation=generation or next_generation(None, self.now.wall),
            values={key: value for key, value in published.items() if value is not None},
            rng=Random(self.rng.random()),
            now=self.now,
        )
        self.engines[endpoint] = engine
        self.events.setdefault(endpoint, [])
        return engine

    def do(self, endpoint: str, event: EngineEvent) -> list[Effect]:
        """Let one engine handle an event and carry out everything that follows."""
        effects = self.engines[endpoint].handle(event, self.now)
        self.effects += effects
        for effect in effects:
            if isinstance(effect, Send):
                self.sent[type(effect.request).__name__] += 1
                self._deliver(endpoint, effect)
            elif isinstance(effect, Notify):
                self.events[endpoint].append(effect.event)
            elif isinstance(effect, PersistGeneration):
                self.do(endpoint, GenerationPersisted(effect.generation))
        return effects

    def _deliver(self, source: str, send: Send) -> None:
        target = self.engines.get(send.peer)
        try:
            if target is None or (source, send.peer) in self.cut or type(send.request) in self.lost:
                raise PeerProtocolError("unavailable", "no link")
            effects = self.do(send.peer, RequestReceived(send.request))
            if (send.peer, source) in self.cut:
                raise PeerProtocolError("unavailable", "the answer was lost")
        except PeerProtocolError as error:
            self.do(source, SendFailed(send.peer, send.request, error.reason))
        else:
            answer = next(effect for effect in effects if isinstance(effect, Answer))
            self.do(source, ReplyReceived(send.peer, send.request, answer.reply))

    def run(self, rounds: int) -> None:
        for _ in range(rounds):
            self.time += 1.0
            for endpoint in list(self.engines):
                if endpoint in self.engines:
                    self.do(endpoint, RoundDue())

    def kinds(self, observer: str, endpoint: str) -> list[str]:
        """The names of the events that an observer was told of one endpoint, values aside."""
        told = [event for event in self.events[observer] if getattr(event, "endpoint", None) == endpoint]
        return [type(event).__name__ for event in told if type(event).__name__ != "StateChanged"]

    def view(self, observer: str) -> dict[str, tuple[int, str, dict[str, str]]]:
        state = self.engines[observer].state
        views = [state.view(int(row)) for row in state.table.rows()]
        return {
            view.endpoint: (view.generation, view.liveness.value, {k: v.value for k, v in view.states.items()})
            for view in views
        }

    def converged(self) -> bool:
        views = [self.view(endpoint) for endpoint in self.engines]
        return all(view == views[0] for view in views)
