"""What all sources of seeds share: what a source is, what it may give, how it says that it has nothing.

The sources themselves are in :mod:`gossiper.discovery` and :mod:`gossiper.discovery_dns`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from gossiper.errors import GossipError

#: A few seeds are enough; a headless service names every pod of a large cluster.
SEEDS_MAX: Final = 4_096
#: Entries of one configuration that are a file or a DNS name: each is read or asked in every interval.
SEED_SOURCES_MAX: Final = 64
#: Everything about one DNS name, retries and all targets included; as long as most stub resolvers wait.
DNS_TIMEOUT_SECONDS: Final = 5.0
#: A provider of the user's own gets this long; longer than DNS may take.
PROVIDER_TIMEOUT_SECONDS: Final = 30.0
#: Faults that are named one by one, of one source: a wrong file has thousands.
FAULTS_MAX: Final = 100
#: Longer texts of name servers and operating system are cut: faults stay one line each.
TEXT_LENGTH_MAX: Final = 300


class SeedError(GossipError):
    """A source gave no usable list. ``faults`` names everything that is wrong with it, one line each."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


class SeedProvider(Protocol):
    """Names the seeds whenever the node needs them: at its start, and again while it runs."""

    async def seeds(self) -> tuple[str, ...]:
        """Canonical endpoints in order of preference, without duplicates; may be empty.

        Raises:
            SeedError: there is no list to be had now; the one before stays in force.
        """
        ...


def bounded_seeds(where: str, seeds: Iterable[str]) -> tuple[str, ...]:
    """Without duplicates.

    Raises:
        SeedError: there are more than ``SEEDS_MAX``.
    """
    distinct = tuple(dict.fromkeys(seeds))
    if len(distinct) > SEEDS_MAX:
        raise SeedError([f"{where}: {len(distinct)} seeds, at most {SEEDS_MAX} are allowed"])
    return distinct


def capped_faults(faults: Sequence[str]) -> list[str]:
    """The first ``FAULTS_MAX``, and how many more."""
    more = len(faults) - FAULTS_MAX
    return [*faults[:FAULTS_MAX], f"and {more} more"] if more > 0 else list(faults)


def one_line(text: str) -> str:
    """A text of others, fit for a fault."""
    return " ".join(text.split())[:TEXT_LENGTH_MAX]
