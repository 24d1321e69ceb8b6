"""The settings of the repair service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc.aio

from antientropy.errors import ConfigError
from antientropy.limits import DIFFERENCE_ROWS_MAX


def insecure_channel(endpoint: str) -> grpc.aio.Channel:
    """A plain-text channel to a peer that never asks a proxy of the environment."""
    return grpc.aio.insecure_channel(endpoint, options=[("grpc.enable_http_proxy", 0)])


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairConfig:
    """Settings of a repair service. All have defaults that suit a local network.

    Raises:
        ConfigError: lists every setting that is out of its bounds.
    """

    rpc_timeout_seconds: float = 10.0
    """Deadline of a call, and of each message of a stream. Too small: a peer that folds a large tree or waits for its
    disk counts as failed. Too large: a stopped peer holds a repair up for so long, once."""
    stream_timeout_seconds: float = 600.0
    """Deadline of a whole stream (a page of rows or of row digests)."""
    session_idle_seconds: float = 60.0
    """A peer's session that asks nothing for so long gives its snapshot back. Snapshots keep old pages of the store."""
    sessions_max: int = 8
    """Snapshots held for peers at once, up to 25 MB of memory each."""
    passes_max: int = 4
    """Compare and stream again while writes arrive; then the pair counts as done, and an update says so."""
    difference_rows_max: int = DIFFERENCE_ROWS_MAX
    """Differing rows held in memory at once; more are moved in further passes."""
    threads: int = 4
    """Worker threads for the store."""
    channel_factory: Callable[[str], grpc.aio.Channel] = insecure_channel
    """Makes the channel to a peer; for TLS."""

    def __post_init__(self) -> None:
        faults = [
            f"{name} is {getattr(self, name)}; a number above 0 is needed"
            for name in (
                "rpc_timeout_seconds",
                "stream_timeout_seconds",
                "session_idle_seconds",
                "sessions_max",
                "passes_max",
                "difference_rows_max",
                "threads",
            )
            if not getattr(self, name) > 0
        ]
        if faults:
            raise ConfigError(faults)
