"""Seeds from DNS: all addresses of a name, or all targets of a service. Needs dnspython, which is imported here only.

dnspython rather than ``getaddrinfo``: that one knows no SRV records, has no deadline, and blocks a thread meanwhile.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import dns.name
from dns.asyncresolver import Resolver
from dns.exception import DNSException
from dns.resolver import NXDOMAIN, LifetimeTimeout, NoAnswer

from gossiper.core.endpoints import format_endpoint, parse_endpoint
from gossiper.errors import ConfigError
from gossiper.seeds import (
    DNS_TIMEOUT_SECONDS,
    PROVIDER_TIMEOUT_SECONDS,
    SEED_SOURCES_MAX,
    TEXT_LENGTH_MAX,
    SeedError,
    bounded_seeds,
    capped_faults,
    one_line,
)

#: Targets of one SRV name: each costs two queries.
SRV_TARGETS_MAX: Final = 512
#: Queries under way for one SRV name: a burst of more looks like an attack to a name server.
DNS_QUERIES_IN_FLIGHT_MAX: Final = 16
#: A lost datagram is asked again after this share of the deadline.
_DNS_TRIES: Final = 5
#: What a question can end with; SeedError is our own word on an answer.
_DNS_ERRORS: Final = (DNSException, OSError, SeedError)
_SRV_NAME: Final = re.compile(r"(_[a-z0-9-]{1,62}\._(?:tcp|udp))\.(.+)")


@dataclass(frozen=True, slots=True)
class _DnsName:
    """``entry`` as it was written; ``name`` ends in a dot if it did there; ``port`` is None for SRV."""

    entry: str
    name: str
    port: int | None


class DnsSeeds:
    """The addresses behind DNS names, such as the headless service of an orchestrator.

    Endpoints are ordered, so that a name server that rotates its answers changes nothing: IPv4 before IPv6, by number;
    SRV records first by priority, then by weight. Names without a final dot are also looked for in the search list of
    the system, as everywhere. ``/etc/hosts`` is not read, and nothing is cached here: that is the name server's part.

    A name is believed whole: if A resolves and AAAA fails (is not merely absent), or one target of SRV does, there is
    no answer. A headless service should publish the addresses of pods that are not ready yet: nodes that start
    need each other.

    Args:
        names: ``dns:host:port`` and ``srv:_service._proto.name`` entries.
        timeout_seconds: Deadline of each of them, with all that it leads to.
        nameservers: Addresses and port of name servers; None: the system's, read anew each time.

    Raises:
        ConfigError: names every entry that is wrong.
    """

    def __init__(
        self,
        names: Iterable[str],
        *,
        timeout_seconds: float = DNS_TIMEOUT_SECONDS,
        nameservers: tuple[Sequence[str], int] | None = None,
    ) -> None:
        self._names: list[_DnsName] = []
        faults: list[str] = []
        for entry in names:
            try:
                self._names.append(_parse_dns_name(entry))
            except ValueError as error:
                faults.append(f"seeds: {error}")
        if len(self._names) > SEED_SOURCES_MAX:
            faults.append(f"seeds: {len(self._names)} DNS names, at most {SEED_SOURCES_MAX} are allowed")
        if not 0 < timeout_seconds < PROVIDER_TIMEOUT_SECONDS:
            faults.append(f"seeds: the DNS deadline must be above 0 and below {PROVIDER_TIMEOUT_SECONDS:g} s")
        if faults:
            raise ConfigError(faults)
        self._timeout_seconds = timeout_seconds
        self._nameservers = nameservers

    async def seeds(self) -> tuple[str, ...]:
        """The endpoints of all names, in the order of the names.

        Raises:
            SeedError: names each name that did not resolve, and why.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._resolve(name)) for name in self._names]
        faults: list[str] = []
        seeds: list[str] = []
        for task in tasks:
            found = task.result()
            if isinstance(found, SeedError):
                faults += found.faults
            else:
                seeds += found
        if faults:
            raise SeedError(faults)
        return bounded_seeds(" ".join(name.entry for name in self._names), seeds)

    async def _resolve(self, name: _DnsName) -> list[str] | SeedError:
        """Everything behind one entry, within the deadline. Faults are returned, so that others go on."""
        asked = "the name servers of the system"
        try:
            resolver = self._resolver()
            asked = ", ".join(str(server) for server in resolver.nameservers)
            # dnspython measures its own deadline with the wall clock, which may jump; so this one decides.
            async with asyncio.timeout(self._timeout_seconds):
                if name.port is None:
                    return await self._service(resolver, name)
                addresses = await self._addresses(resolver, name.name)
                return [format_endpoint(address, name.port) for address in addresses]
        except TimeoutError:
            return SeedError([f"{name.entry}: no answer within {self._timeout_seconds:g} s from {asked}"])
        except SeedError as error:
            return SeedError(f"{name.entry}: {fault}" for fault in error.faults)
        except _DNS_ERRORS as error:
            return SeedError([f"{name.entry}: {_dns_text(error)}"])

    def _resolver(self) -> Resolver:
        resolver = Resolver(configure=self._nameservers is None)
        if self._nameservers is not None:
            resolver.nameservers, resolver.port = list(self._nameservers[0]), self._nameservers[1]
        resolver.lifetime = 2 * self._timeout_seconds
        resolver.timeout = self._timeout_seconds / _DNS_TRIES
        return resolver

    async def _addresses(self, resolver: Resolver, name: dns.name.Name | str) -> list[str]:
        """All A and AAAA records, ordered; at least one."""
        # Not resolve_name: its queries are never repeated. The second one is about the name that the first one found.
        six = await resolver.resolve(name, "AAAA", search=True, raise_on_no_answer=False)
        four = await resolver.resolve(six.qname, "A", raise_on_no_answer=False)
        addresses = {ipaddress.ip_address(record.address) for record in (*four, *six)}
        if not addresses:
            raise SeedError(["the name has neither A nor AAAA records"])
        return [str(address) for address in sorted(addresses, key=lambda a: (a.version, int(a)))]

    async def _service(self, resolver: Resolver, name: _DnsName) -> list[str]:
        """Endpoints of the SRV records; each distinct target is resolved once."""
        answer = await resolver.resolve(name.name, "SRV", search=True)
        records = sorted(answer, key=lambda r: (r.priority, -r.weight, r.target, r.port))
        targets: list[dns.name.Name] = list(dict.fromkeys(record.target for record in records))
        if len(targets) > SRV_TARGETS_MAX:
            raise SeedError([f"{len(targets)} targets, at most {SRV_TARGETS_MAX} are allowed"])
        if dns.name.root in targets:
            raise SeedError(["the service is declared absent (target .)"])
        faults = [f"target {record.target}: port 0 cannot be connected to" for record in records if record.port == 0]
        in_flight = asyncio.Semaphore(DNS_QUERIES_IN_FLIGHT_MAX)

        async def addresses(target: dns.name.Name) -> list[str]:
            async with in_flight:
                try:
                    return await self._addresses(resolver, target)
                except _DNS_ERRORS as error:
                    faults.append(f"target {target}: {_dns_text(error)}")
                    return []

        async with asyncio.TaskGroup() as group:
            tasks = {target: group.create_task(addresses(target)) for target in targets}
        if faults:
            raise SeedError(capped_faults(sorted(faults)))
        return [
            format_endpoint(address, record.port) for record in records for address in tasks[record.target].result()
        ]


def _parse_dns_name(entry: str) -> _DnsName:
    kind, _, rest = entry.partition(":")
    if len(entry) > TEXT_LENGTH_MAX:
        raise ValueError(f"{kind[:8]!r}: longer than {TEXT_LENGTH_MAX} characters")
    if kind == "srv":
        match = _SRV_NAME.fullmatch(rest.lower())
        if match is None:
            raise ValueError(f"{entry!r} is not srv:_service._tcp.name")
        name, _ = _parse_name(match[2], 1, entry)
        return _DnsName(entry, f"{match[1]}.{name}", None)
    name_text, colon, port_text = rest.rpartition(":")
    if kind != "dns" or not colon:
        raise ValueError(f"{entry!r} is not dns:name:port")
    return _DnsName(entry, *_parse_name(name_text, port_text, entry))


def _parse_name(text: str, port_text: object, entry: str) -> tuple[str, int]:
    """A host name, with its final dot if it has one, and the port."""
    name, port = parse_endpoint(f"{text.removesuffix('.')}:{port_text}")
    if port == 0:
        raise ValueError(f"{entry!r}: port 0 cannot be connected to")
    if ":" in name or name.replace(".", "").isdigit():
        raise ValueError(f"{entry!r}: {name} is an address and needs no DNS; write it as it is, with a port")
    return name + "." * text.endswith("."), port


def _dns_text(error: Exception) -> str:
    """What DNS said, in a few words."""
    if isinstance(error, LifetimeTimeout):
        return "no answer in time"
    if isinstance(error, NXDOMAIN):
        return "there is no such name (NXDOMAIN)"
    if isinstance(error, NoAnswer):
        return "the name has no SRV record"
    return one_line(str(error)) or type(error).__name__
