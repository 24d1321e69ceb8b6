"""What a scenario needs of the world it runs in; ``memory`` and ``processes`` are the two there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from gossiper.scenario.member import Observation, StartPlan

Link = tuple[str, str]
"""(source, target), by the names of nodes."""


class Backend(Protocol):
    """Nodes by name, links between them, and time. A node's data directory is given with its start."""

    directory: Path
    """Where data directories are made."""

    def deadline_seconds(self, seconds: float) -> float:
        """How long to wait for what should happen within ``seconds``: more, where the machine has other work."""
        ...

    async def prepare(self, nodes: Iterable[str], endpoints: Iterable[str]) -> None:
        """Called once, first: all nodes and all endpoints of the scenario."""
        ...

    async def start(self, node: str, plan: StartPlan) -> None:
        """Start a node and wait until it takes part.

        Raises:
            GossipError: it is refused, or cannot start.
        """
        ...

    async def stop(self, node: str) -> None:
        """Stop it cleanly and wait for its end."""
        ...

    async def kill(self, node: str) -> None:
        """End it without a word, also while it starts; nothing happens when it is not there."""
        ...

    async def pause(self, node: str) -> None:
        """Let it stand still: it neither acts nor answers."""
        ...

    async def resume(self, node: str) -> None:
        """Let it go on."""
        ...

    async def do(self, node: str, operation: str, arguments: Mapping[str, Any]) -> Any:
        """An operation of :class:`~gossiper.scenario.member.Member`.

        Raises:
            GossipError: it is refused.
        """
        ...

    async def observe(self, node: str) -> Observation:
        """What a running node sees."""
        ...

    def set_links(self, cut: Iterable[Link], delays_seconds: Mapping[Link, float]) -> None:
        """From now on these links lose everything, and those take so much longer; all others are whole."""
        ...

    async def close(self) -> None:
        """End everything."""
        ...
