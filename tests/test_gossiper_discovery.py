"""Seeds from a fixed list."""

from __future__ import annotations

import pytest

from gossiper.discovery import SeedProvider, StaticSeeds
from gossiper.errors import ConfigError


async def test_seeds_are_canonical_ordered_and_without_duplicates() -> None:
    provider: SeedProvider = StaticSeeds(["Node-2:7000", "[0:0::1]:7000", "10.0.0.1:7000", "node-2:07000"])
    assert await provider.seeds() == ("node-2:7000", "[::1]:7000", "10.0.0.1:7000")


async def test_no_seeds() -> None:
    assert await StaticSeeds([]).seeds() == ()


def test_all_faults_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        StaticSeeds(["10.0.0.1", "10.0.0.2:7000", "::1:7000"])
    assert caught.value.faults == [
        "seeds: '10.0.0.1' is not host:port",
        "seeds: '::1:7000': an IPv6 address is written in brackets, [::1]:7000",
    ]
