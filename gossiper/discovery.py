"""Where the addresses of the first peers come from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from gossiper.core.endpoints import canonical_endpoint
from gossiper.errors import ConfigError


class SeedProvider(Protocol):
    """Names the seeds whenever the node needs them: at its start, and while it knows nobody."""

    async def seeds(self) -> tuple[str, ...]:
        """Canonical endpoints in order of preference, without duplicates; may be empty."""
        ...


class StaticSeeds:
    """A fixed list.

    Raises:
        ConfigError: names every seed that is not an endpoint.
    """

    def __init__(self, seeds: Iterable[str]) -> None:
        canonical: list[str] = []
        faults: list[str] = []
        for seed in seeds:
            try:
                canonical.append(canonical_endpoint(seed))
            except ValueError as error:
                faults.append(f"seeds: {error}")
        if faults:
            raise ConfigError(faults)
        self._seeds = tuple(dict.fromkeys(canonical))

    async def seeds(self) -> tuple[str, ...]:
        """The list as it was given, canonical and without duplicates."""
        return self._seeds
