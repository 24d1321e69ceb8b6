"""Where the addresses of the first peers come from: a list, a file, DNS; read again while the node runs.

A seed list may mix these entries (:func:`parse_seed_sources`):

=========================  ===========================================================================================
``10.0.0.1:7000``          that endpoint
``file:/etc/app/seeds``    one endpoint per line; ``#`` begins a comment (:class:`FileSeeds`)
``dns:gossip.app:7000``    every A and AAAA record of the name, with that port (:mod:`gossiper.discovery_dns`)
``srv:_gossip._tcp.app``   every target of the SRV records, resolved to its A and AAAA records, with the record's port
=========================  ===========================================================================================

The rule for everything that goes wrong: a source is believed whole or not at all. One bad line in a file, one target
that does not resolve, an empty answer: all of it is named, and the list that the source gave before stays in force.
(Cassandra's ``reloadseeds`` keeps its list likewise, and its ``SeedProvider`` may be replaced likewise.)

Nothing here uses threads or the wall clock: timers and deadlines are those of the running event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from gossiper.core.endpoints import canonical_endpoint
from gossiper.errors import ConfigError
from gossiper.limits import LOG_INTERVAL_SECONDS
from gossiper.seeds import (
    DNS_TIMEOUT_SECONDS,
    PROVIDER_TIMEOUT_SECONDS,
    SEED_SOURCES_MAX,
    SEEDS_MAX,
    TEXT_LENGTH_MAX,
    SeedError,
    SeedProvider,
    bounded_seeds,
    capped_faults,
    one_line,
)

logger = logging.getLogger(__name__)

#: ``SEEDS_MAX`` of the longest endpoints fit; what is larger is another file, named by mistake.
SEED_FILE_BYTES_MAX: Final = 2 * 1024 * 1024
#: The records of headless services live for about 30 s; a name server does not notice a question a minute.
RELOAD_INTERVAL_SECONDS: Final = 60.0
#: Reading the sources more often is a busy loop.
RELOAD_INTERVAL_SECONDS_MIN: Final = 1.0
#: Nodes that were started together do not ask together for ever.
RELOAD_JITTER_SHARE: Final = 0.1
#: Faults in one line of the log.
_FAULTS_LOGGED_MAX: Final = 10

_PREFIXES: Final = ("file:", "dns:", "srv:")


class StaticSeeds:
    """A fixed list.

    Raises:
        ConfigError: names every seed that is not an endpoint.
    """

    def __init__(self, seeds: Iterable[str]) -> None:
        canonical, faults = _parse_seeds(("seeds", seed) for seed in seeds)
        if faults:
            raise ConfigError(faults)
        self._seeds = canonical

    async def seeds(self) -> tuple[str, ...]:
        """The list as it was given, canonical and without duplicates."""
        return self._seeds


class FileSeeds:
    """A UTF-8 text file with one endpoint per line.

    ``#`` begins a comment, alone or after an endpoint; empty lines do not count. The file is read anew each time. It is
    short and local, so it is read in the event loop. Replace it by renaming a complete one over it: a file that is
    being written may look like a shorter list.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    async def seeds(self) -> tuple[str, ...]:
        """The endpoints of the file, in its order.

        Raises:
            SeedError: it cannot be read, names no seed, or has bad entries; names each of them with its line number.
        """
        return self.read()

    def read(self) -> tuple[str, ...]:
        """As :meth:`seeds`, without an event loop."""
        try:
            # Opening a pipe would wait for a writer, and the whole node with it.
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise SeedError([f"{self.path}: is not a regular file"])
            with self.path.open("rb") as file:
                content = file.read(SEED_FILE_BYTES_MAX + 1)
        except OSError as error:
            raise SeedError([f"{self.path}: cannot be read: {error.strerror or error}"]) from None
        if len(content) > SEED_FILE_BYTES_MAX:
            raise SeedError([f"{self.path}: larger than {SEED_FILE_BYTES_MAX} bytes, so it is not a list of seeds"])
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise SeedError([f"{self.path}: line {line}: is not UTF-8 text"]) from None
        entries = ((number, line.partition("#")[0].strip()) for number, line in enumerate(text.split("\n"), 1))
        seeds, faults = _parse_seeds((f"{self.path}: line {number}", entry) for number, entry in entries if entry)
        if not seeds and not faults:
            faults = [f"{self.path}: names no seed; a node that begins a cluster names itself"]
        if faults:
            raise SeedError(faults)
        return bounded_seeds(str(self.path), seeds)


@dataclass(frozen=True, slots=True)
class ResolvedSeeds:
    """What several sources gave together. ``faults``: why some of them are as they were before, or missing."""

    seeds: tuple[str, ...]
    faults: tuple[str, ...]


class SeedSources:
    """Several providers as one. A source that fails, or suddenly names nobody, counts with what it gave before.

    Providers of the user's own get ``PROVIDER_TIMEOUT_SECONDS``; whatever they raise is a fault, and so is what they
    return that is not an endpoint.
    """

    def __init__(self, providers: Iterable[SeedProvider]) -> None:
        self._providers = tuple(providers)
        self._good: list[tuple[str, ...]] = [() for _ in self._providers]

    async def resolve(self) -> ResolvedSeeds:
        """Ask all providers at the same time; raises nothing on their account."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_ask(provider)) for provider in self._providers]
        faults: list[str] = []
        for index, task in enumerate(tasks):
            found = task.result()
            if isinstance(found, SeedError):
                faults += found.faults
            elif not found and self._good[index]:
                faults.append(f"{type(self._providers[index]).__name__}: names no seed any more")
            else:
                self._good[index] = found
        return ResolvedSeeds(tuple(dict.fromkeys(seed for good in self._good for seed in good)), tuple(faults))

    async def seeds(self) -> tuple[str, ...]:
        """What the sources give together.

        Raises:
            SeedError: none of them ever gave a seed, and not all of them are well.
        """
        resolved = await self.resolve()
        if not resolved.seeds and resolved.faults:
            raise SeedError(resolved.faults)
        return resolved.seeds


def parse_seed_sources(
    entries: Iterable[str],
    *,
    base_dir: Path | None = None,
    dns_timeout_seconds: float = DNS_TIMEOUT_SECONDS,
    nameservers: tuple[Sequence[str], int] | None = None,
) -> SeedSources:
    """The provider for the entries of a configured seed list; see the head of this module. Reads and asks nothing yet.

    Args:
        entries: In order of preference.
        base_dir: Relative ``file:`` paths are taken from here; without it they must be absolute.
        dns_timeout_seconds: Deadline of each DNS name, with all that it leads to.
        nameservers: Addresses and port of name servers; None: the system's, read anew each time.

    Raises:
        ConfigError: names all entries that are wrong, each with the reason.
    """
    listed = [text.strip() for text in entries]
    sources = sum(text.startswith(_PREFIXES) for text in listed)
    faults: list[str] = []
    if sources > SEED_SOURCES_MAX:
        faults.append(f"seeds: {sources} files and DNS names, at most {SEED_SOURCES_MAX} are allowed")
    if len(listed) > SEEDS_MAX:
        faults.append(f"seeds: {len(listed)} entries, at most {SEEDS_MAX} are allowed")
    providers: list[SeedProvider] = []
    # Endpoints that follow each other are one list; each source is a provider, which keeps its own old list.
    for is_source, group in itertools.groupby(listed, lambda text: text.startswith(_PREFIXES)):
        for part in ([entry] for entry in group) if is_source else (list(group),):
            try:
                if not is_source:
                    providers.append(StaticSeeds(part))
                elif part[0].startswith("file:"):
                    providers.append(FileSeeds(_parse_path(part[0], base_dir)))
                else:
                    providers.append(_dns_source(part[0], dns_timeout_seconds, nameservers))
            except ConfigError as error:
                faults += error.faults
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))
    return SeedSources(providers)


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """The list now in force, what changed, and why something did not. ``faults`` is empty if every source is well."""

    seeds: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    faults: tuple[str, ...]


class SeedWatcher:
    """Keeps the seed list of a running node up to date: :meth:`start` once, then :meth:`run` as a task.

    Args:
        provider: Where seeds come from; :class:`SeedSources` keeps what each of its sources gave before.
        interval_seconds: Mean time between two readings; each is up to a tenth shorter or longer.
        on_change: Called in the event loop with every result whose list differs from the one before, in content or
            order, except for the first. What it raises is logged.
        rng: Draws the jitter.

    Raises:
        ConfigError: the interval is shorter than ``RELOAD_INTERVAL_SECONDS_MIN``.
    """

    def __init__(
        self,
        provider: SeedProvider,
        *,
        rng: Random,
        interval_seconds: float = RELOAD_INTERVAL_SECONDS,
        on_change: Callable[[ReloadResult], None] | None = None,
    ) -> None:
        if not RELOAD_INTERVAL_SECONDS_MIN <= interval_seconds < float("inf"):
            raise ConfigError(
                [f"seed interval: must be at least {RELOAD_INTERVAL_SECONDS_MIN} s, is {interval_seconds}"]
            )
        self._sources = provider if isinstance(provider, SeedSources) else SeedSources([provider])
        self._interval_seconds = interval_seconds
        self._on_change = on_change
        self._rng = rng
        self._lock = asyncio.Lock()
        self._begun = 0
        self._last: tuple[int, ReloadResult] | None = None
        self._warned_at: float | None = None
        self._unsaid = 0

    @property
    def seeds(self) -> tuple[str, ...]:
        """The list in force; empty before :meth:`start`."""
        return () if self._last is None else self._last[1].seeds

    @property
    def last_result(self) -> ReloadResult | None:
        """What the last reading gave; None before the first."""
        return None if self._last is None else self._last[1]

    async def start(self) -> tuple[str, ...]:
        """The first list. Some sources may fail (it is logged), as long as another one names a seed.

        Raises:
            SeedError: nobody is named and not all sources are well. A node that began a cluster of its own
                now could split one.
        """
        result = await self.reload()
        if not result.seeds and result.faults:
            raise SeedError(result.faults)
        return result.seeds

    async def run(self) -> None:
        """Read the sources again in every interval, until cancelled."""
        while True:
            jitter = self._rng.uniform(-RELOAD_JITTER_SHARE, RELOAD_JITTER_SHARE)
            await asyncio.sleep(self._interval_seconds * (1 + jitter))
            await self.reload()

    async def reload(self) -> ReloadResult:
        """Read the sources now. What fails keeps its part of the list, and is named in the result.

        Calls at the same time wait for each other; those that wait share one reading, begun after they asked.
        """
        asked = self._begun
        async with self._lock:
            if self._last is not None and self._last[0] > asked:
                return self._last[1]
            self._begun += 1
            number, first, before = self._begun, self._last is None, self.seeds
            resolved = await self._sources.resolve()
            now = resolved.seeds
            result = ReloadResult(
                seeds=now,
                added=_without(now, before),
                removed=_without(before, now),
                faults=resolved.faults,
            )
            self._last = number, result
            self._report(result)
            if now != before and not first:
                self._announce(result)
            return result

    def _announce(self, result: ReloadResult) -> None:
        logger.info("seeds_changed seeds=%d added=%s removed=%s", len(result.seeds), result.added, result.removed)
        if self._on_change is not None:
            try:
                self._on_change(result)
            except Exception:  # the callback is the user's; the next change must be seen all the same
                logger.exception("seeds_changed: the callback failed")

    def _report(self, result: ReloadResult) -> None:
        """At most one warning in ``LOG_INTERVAL_SECONDS``: a name server that is down stays so for a while."""
        if not result.faults:
            return
        now = asyncio.get_running_loop().time()
        if self._warned_at is not None and now - self._warned_at < LOG_INTERVAL_SECONDS:
            self._unsaid += 1
            return
        more = len(result.faults) - _FAULTS_LOGGED_MAX
        logger.warning(
            "seeds_kept seeds=%d unsaid=%d: %s%s",
            len(result.seeds),
            self._unsaid,
            "; ".join(result.faults[:_FAULTS_LOGGED_MAX]),
            f"; and {more} more" if more > 0 else "",
        )
        self._warned_at, self._unsaid = now, 0


async def _ask(provider: SeedProvider) -> tuple[str, ...] | SeedError:
    """What ``provider`` gives, checked; every failure is returned."""
    name = type(provider).__name__
    try:
        async with asyncio.timeout(PROVIDER_TIMEOUT_SECONDS):
            found = await provider.seeds()
        seeds, faults = _parse_seeds((name, seed) for seed in found)
        return bounded_seeds(name, seeds) if not faults else SeedError(faults)
    except SeedError as error:
        return error
    except TimeoutError:
        return SeedError([f"{name}: no answer within {PROVIDER_TIMEOUT_SECONDS:g} s"])
    except Exception as error:  # noqa: BLE001 - it may be the user's; the node must not end with it
        return SeedError([f"{name}: {type(error).__name__}: {one_line(str(error))}"])


def _parse_seeds(entries: Iterable[tuple[str, str]]) -> tuple[tuple[str, ...], list[str]]:
    """Canonical endpoints without duplicates, and all faults, from (where, text)."""
    seeds: dict[str, None] = {}
    faults: list[str] = []
    for where, text in entries:
        try:
            seeds[_parse_seed(text)] = None
        except ValueError as error:
            faults.append(f"{where}: {error}")
    return tuple(seeds), capped_faults(faults)


def _parse_seed(text: str) -> str:
    if text.startswith(_PREFIXES):
        raise ValueError(f"{text[:TEXT_LENGTH_MAX]!r} is not host:port; it belongs in the configured seed list")
    seed = canonical_endpoint(text)
    if seed.endswith(":0"):
        raise ValueError(f"{text!r}: port 0 cannot be connected to")
    return seed


def _parse_path(entry: str, base_dir: Path | None) -> Path:
    text = entry.removeprefix("file:")
    if not text or not text.isprintable():
        raise ConfigError([f"seeds: {entry[:TEXT_LENGTH_MAX]!r} is not file:/path"])
    if base_dir is None and not Path(text).is_absolute():
        raise ConfigError([f"seeds: {entry!r}: the path must be absolute"])
    return (base_dir or Path()) / text


def _dns_source(entry: str, timeout_seconds: float, nameservers: tuple[Sequence[str], int] | None) -> SeedProvider:
    try:
        # It takes a tenth of a second, and nobody else needs it.
        from gossiper.discovery_dns import DnsSeeds  # noqa: PLC0415 - see above
    except ImportError as error:
        raise ConfigError(
            [f"seeds: DNS names need dnspython, which cannot be imported ({error}); run `pip install dnspython`"]
        ) from None
    return DnsSeeds([entry], timeout_seconds=timeout_seconds, nameservers=nameservers)


def _without(seeds: tuple[str, ...], others: Iterable[str]) -> tuple[str, ...]:
    known = frozenset(others)
    return tuple(seed for seed in seeds if seed not in known)
