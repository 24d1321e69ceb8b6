"""Seeds from a list, a file and DNS (a name server of the test's own on loopback), watched in virtual time."""

from __future__ import annotations

import asyncio
import errno
import io
import itertools
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable
from pathlib import Path
from random import Random
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossiper import discovery, discovery_dns
from gossiper.discovery import (
    SEED_FILE_BYTES_MAX,
    FileSeeds,
    ReloadResult,
    SeedSources,
    SeedWatcher,
    StaticSeeds,
    parse_seed_sources,
)
from gossiper.discovery_dns import DnsSeeds
from gossiper.errors import ConfigError
from gossiper.seeds import FAULTS_MAX, SEED_SOURCES_MAX, SeedError, SeedProvider

A, B, C = "10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000"


async def faults_of(awaitable: Awaitable[object]) -> list[str]:
    with pytest.raises(SeedError) as caught:
        await awaitable
    assert str(caught.value) == "; ".join(caught.value.faults)
    assert "\n" not in str(caught.value)
    return list(caught.value.faults)


# -- a fixed list ------------------------------------------------------------------------------------------------------


async def test_seeds_are_canonical_ordered_and_without_duplicates() -> None:
    provider: SeedProvider = StaticSeeds(["Node-2:7000", "[0:0::1]:7000", "10.0.0.1:7000", "node-2:07000"])
    assert await provider.seeds() == ("node-2:7000", "[::1]:7000", "10.0.0.1:7000")


async def test_no_seeds() -> None:
    assert await StaticSeeds([]).seeds() == ()


def test_all_faults_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        StaticSeeds(["10.0.0.1", "10.0.0.2:7000", "::1:7000", "a:0", "dns:a:7000"])
    assert caught.value.faults == [
        "seeds: '10.0.0.1' is not host:port",
        "seeds: '::1:7000': an IPv6 address is written in brackets, [::1]:7000",
        "seeds: 'a:0': port 0 cannot be connected to",
        "seeds: 'dns:a:7000' is not host:port; it belongs in the configured seed list",
    ]


# -- a file ------------------------------------------------------------------------------------------------------------


async def test_a_file_is_read_anew_each_time(tmp_path: Path) -> None:
    path = tmp_path / "seeds"
    path.write_bytes(
        b"\xef\xbb\xbf# three\r\n10.0.0.2:7000\r\n\n  Node-1:7000   # in the cellar\n\t\n10.0.0.2:7000\n[::1]:7000"
    )
    provider = FileSeeds(path)
    assert await provider.seeds() == ("10.0.0.2:7000", "node-1:7000", "[::1]:7000")
    path.write_text(f"{C}\n")
    assert await provider.seeds() == (C,)


async def test_every_bad_line_of_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "seeds"
    path.write_text(f"{A}\nnowhere\n# fine: x\n{B} {C}\n10.0.0.4:x\nfile:/etc/seeds\n[::1]:0\n{'x' * 5000}:1\n")
    assert await faults_of(FileSeeds(path).seeds()) == [
        f"{path}: line 2: 'nowhere' is not host:port",
        f"{path}: line 4: '{B} {C}': an IPv6 address is written in brackets, [::1]:7000",
        f"{path}: line 5: '10.0.0.4:x': port 'x' is not a number",
        f"{path}: line 6: 'file:/etc/seeds' is not host:port; it belongs in the configured seed list",
        f"{path}: line 7: '[::1]:0': port 0 cannot be connected to",
        f"{path}: line 8: endpoint longer than 261 characters",
    ]


async def test_a_file_of_something_else_does_not_fill_the_log(tmp_path: Path) -> None:
    path = tmp_path / "seeds"
    path.write_text("word\n" * 1000)
    faults = await faults_of(FileSeeds(path).seeds())
    assert faults[FAULTS_MAX - 1 :] == [f"{path}: line {FAULTS_MAX}: 'word' is not host:port", "and 900 more"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "names no seed; a node that begins a cluster names itself"),
        (b"# later\n\n", "names no seed; a node that begins a cluster names itself"),
        (b"10.0.0.1:7000\n\xff\xfe:7000\n", "line 2: is not UTF-8 text"),
        (b"#" * (SEED_FILE_BYTES_MAX + 1), f"larger than {SEED_FILE_BYTES_MAX} bytes, so it is not a list of seeds"),
    ],
    ids=["empty", "comments", "binary", "large"],
)
async def test_a_file_without_a_list(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "seeds"
    path.write_bytes(content)
    assert await faults_of(FileSeeds(path).seeds()) == [f"{path}: {fault}"]


async def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "seeds"
    assert await faults_of(FileSeeds(path).seeds()) == [f"{path}: cannot be read: No such file or directory"]
    os.mkfifo(path)  # opening it would wait for ever
    assert await faults_of(FileSeeds(path).seeds()) == [f"{path}: is not a regular file"]
    path.unlink()
    path.write_text(A)

    def refuse(*_: object, **__: object) -> object:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)
    assert await faults_of(FileSeeds(path).seeds()) == [f"{path}: cannot be read: Permission denied"]


async def test_too_many_seeds_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossiper.seeds.SEEDS_MAX", 2)
    path = tmp_path / "seeds"
    path.write_text(f"{A}\n{B}\n{A}\n")
    assert await FileSeeds(path).seeds() == (A, B)
    path.write_text(f"{A}\n{B}\n{C}\n")
    assert await faults_of(FileSeeds(path).seeds()) == [f"{path}: 3 seeds, at most 2 are allowed"]


# -- DNS ---------------------------------------------------------------------------------------------------------------


class NameServer(asyncio.DatagramProtocol):
    """Answers from ``records``, which a test changes as it likes; a name that is not in it does not exist."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.silent: set[tuple[str, str]] = set()
        self.rcodes: dict[tuple[str, str], dns.rcode.Rcode] = {}
        self.truncated: set[tuple[str, str]] = set()
        self.lost: set[tuple[str, str]] = set()
        self.garbage = False
        self.asked: list[tuple[str, str, str]] = []
        self.port = 0
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None

    async def start(self) -> None:
        for _ in range(50):  # a port that is free for TCP may be taken for UDP
            self._tcp = await asyncio.start_server(self._serve_tcp, "127.0.0.1", 0)
            self.port = self._tcp.sockets[0].getsockname()[1]
            try:
                self._udp, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                    lambda: self, local_addr=("127.0.0.1", self.port)
                )
            except OSError:
                self._tcp.close()
            else:
                return
        raise AssertionError("no port is free for both TCP and UDP")

    async def stop(self) -> None:
        assert self._udp is not None
        assert self._tcp is not None
        self._udp.close()
        self._tcp.close()
        await self._tcp.wait_closed()

    def stop_tcp(self) -> None:
        assert self._tcp is not None
        self._tcp.close()

    @property
    def address(self) -> tuple[list[str], int]:
        return ["127.0.0.1"], self.port

    def seeds(self, *names: str, timeout_seconds: float = 10.0) -> DnsSeeds:
        return DnsSeeds(names, timeout_seconds=timeout_seconds, nameservers=self.address)

    def answer(self, query_wire: bytes, via: str) -> bytes | None:
        query = dns.message.from_wire(query_wire)
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((via, name, kind))
        if (name, kind) in self.silent:
            return None
        if (name, kind) in self.lost:
            self.lost.remove((name, kind))
            return None
        response = dns.message.make_response(query)
        if (name, kind) in self.rcodes:
            response.set_rcode(self.rcodes[name, kind])
        elif not any(known == name for known, _ in self.records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif via == "udp" and (name, kind) in self.truncated:
            response.flags |= dns.flags.TC
        elif (name, kind) in self.records:
            if texts := self.records[name, kind]:
                response.answer.append(dns.rrset.from_text(question.name, 30, "IN", kind, *texts))
        elif (name, "CNAME") in self.records:
            (alias,) = self.records[name, "CNAME"]
            response.answer.append(dns.rrset.from_text(question.name, 30, "IN", "CNAME", alias))
            response.answer.append(dns.rrset.from_text(alias, 30, "IN", kind, *self.records[alias[:-1], kind]))
        return response.to_wire(max_size=65535)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._udp is not None
        if self.garbage:
            self._udp.sendto(b"nonsense", addr)
            self._udp.sendto(bytes([data[0] ^ 1]) + data[1:], addr)  # of another query
        elif (response := self.answer(data, "udp")) is not None:
            self._udp.sendto(response, addr)

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2))
        response = self.answer(await reader.readexactly(size), "tcp")
        assert response is not None
        writer.write(len(response).to_bytes(2) + response)
        await writer.drain()
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[NameServer]:
    server = NameServer()
    await server.start()
    yield server
    await server.stop()


async def test_every_a_and_aaaa_record_in_a_stable_order(server: NameServer) -> None:
    addresses = ["10.0.0.10", "10.0.0.9", "9.0.0.1"]
    server.records = {("gossip.app", "A"): addresses, ("gossip.app", "AAAA"): ["fd00::2", "FD00:0::1"]}
    expected = ("9.0.0.1:7000", "10.0.0.9:7000", "10.0.0.10:7000", "[fd00::1]:7000", "[fd00::2]:7000")
    provider = server.seeds("dns:Gossip.App:7000")
    assert await provider.seeds() == expected
    addresses.reverse()
    assert await provider.seeds() == expected


async def test_one_family_is_enough_and_aliases_are_followed(server: NameServer) -> None:
    server.records = {
        ("four", "A"): ["10.0.0.1"],
        ("six", "AAAA"): ["::1"],
        ("alias", "CNAME"): ["real."],
        ("real", "A"): ["10.0.0.7"],
        ("real", "AAAA"): ["::7"],
    }
    provider = server.seeds("dns:six:1", "dns:four:2", "dns:alias.:3", "dns:four:2")
    assert await provider.seeds() == ("[::1]:1", "10.0.0.1:2", "10.0.0.7:3", "[::7]:3")


async def test_srv_records_by_priority_with_their_ports(server: NameServer) -> None:
    server.records = {
        ("_gossip._tcp.app", "SRV"): [
            "20 0 7000 three.app.",
            "10 5 7000 two.app.",
            "10 50 7000 one.app.",
            "10 5 7001 two.app.",
        ],
        ("one.app", "A"): ["10.0.0.1"],
        ("two.app", "A"): ["10.0.0.22", "10.0.0.2"],
        ("three.app", "A"): ["10.0.0.3"],
        ("three.app", "AAAA"): ["::3"],
    }
    assert await server.seeds("srv:_Gossip._tcp.app").seeds() == (
        "10.0.0.1:7000",
        "10.0.0.2:7000",
        "10.0.0.22:7000",
        "10.0.0.2:7001",
        "10.0.0.22:7001",
        "10.0.0.3:7000",
        "[::3]:7000",
    )
    assert sum(name == "two.app" for _, name, _ in server.asked) == 2, "each target is asked once per record type"


async def test_names_that_do_not_resolve_are_all_named(server: NameServer) -> None:
    server.records = {
        ("good", "A"): ["10.0.0.1"],
        ("bare", "TXT"): ["x"],
        ("sick", "A"): ["10.0.0.1"],
        ("_a._tcp.bare", "A"): ["10.0.0.1"],
        ("_b._tcp.gone", "SRV"): ["0 0 7000 gone.", "0 0 7000 good.", "0 0 0 good."],
        ("_c._udp.no", "SRV"): ["0 0 0 ."],
    }
    server.rcodes = {("sick", "AAAA"): dns.rcode.SERVFAIL}
    provider = server.seeds(
        "dns:good:7000",
        "dns:missing:7000",
        "dns:bare:7000",
        "dns:sick:7000",
        "srv:_a._tcp.bare",
        "srv:_b._tcp.gone",
        "srv:_c._udp.no",
    )
    faults = await faults_of(provider.seeds())
    assert faults[:2] == [
        "dns:missing:7000: there is no such name (NXDOMAIN)",
        "dns:bare:7000: the name has neither A nor AAAA records",
    ]
    assert faults[2].startswith("dns:sick:7000: ")
    assert faults[2].endswith("answered SERVFAIL")
    assert faults[3:] == [
        "srv:_a._tcp.bare: the name has no SRV record",
        "srv:_b._tcp.gone: target gone.: there is no such name (NXDOMAIN)",
        "srv:_b._tcp.gone: target good.: port 0 cannot be connected to",
        "srv:_c._udp.no: the service is declared absent (target .)",
    ]


@pytest.mark.parametrize("silent", [("slow", "A"), ("slow", "AAAA"), ("_s._tcp.slow", "SRV")])
async def test_a_name_server_that_does_not_answer(server: NameServer, silent: tuple[str, str]) -> None:
    server.records = {
        ("slow", "A"): ["10.0.0.1"],
        ("slow", "AAAA"): ["::1"],
        ("_s._tcp.slow", "SRV"): ["0 0 1 slow."],
    }
    server.silent = {silent}
    assert await faults_of(server.seeds("srv:_s._tcp.slow", timeout_seconds=1.0).seeds()) == [
        "srv:_s._tcp.slow: no answer within 1 s from 127.0.0.1"
    ]
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert len([kind for _, name, kind in server.asked if (name, kind) == silent]) > 1, "a lost datagram is asked again"


async def test_one_lost_datagram_is_no_fault(server: NameServer) -> None:
    server.records = {("app", "A"): ["10.0.0.1"], ("_s._tcp.app", "SRV"): ["0 0 7000 app."]}
    server.lost = {("app", "A"), ("_s._tcp.app", "SRV")}
    assert await server.seeds("srv:_s._tcp.app", timeout_seconds=2.5).seeds() == (A,)
    assert len(server.asked) >= 5


async def test_datagrams_that_are_no_answer_are_not_believed(server: NameServer) -> None:
    server.garbage = True
    assert await faults_of(server.seeds("dns:a:7000", timeout_seconds=0.3).seeds()) == [
        "dns:a:7000: no answer within 0.3 s from 127.0.0.1"
    ]


async def test_a_truncated_answer_is_fetched_whole_over_tcp(server: NameServer) -> None:
    server.records = {("large", "A"): [f"10.0.{i // 250}.{i % 250 + 1}" for i in range(1000)]}
    server.truncated = {("large", "A")}
    seeds = await server.seeds("dns:large:7000").seeds()
    assert len(seeds) == 1000
    assert seeds[-1] == "10.0.3.250:7000"
    assert ("tcp", "large", "A") in server.asked


async def test_a_truncated_answer_without_tcp_is_no_answer(server: NameServer) -> None:
    server.records = {("large", "A"): ["10.0.0.1"]}
    server.truncated = {("large", "A")}
    server.stop_tcp()
    (fault,) = await faults_of(server.seeds("dns:large:7000").seeds())
    assert fault.startswith("dns:large:7000: ")


async def test_no_name_server_at_all() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    provider = DnsSeeds(["dns:a:7000"], timeout_seconds=0.5, nameservers=(["127.0.0.1"], port))
    (fault,) = await faults_of(provider.seeds())
    assert fault.startswith("dns:a:7000: ")


async def test_a_cancelled_question_leaves_nothing_behind(server: NameServer) -> None:
    server.silent = {("slow", "AAAA")}
    task = asyncio.create_task(server.seeds("dns:slow:7000").seeds())
    async with asyncio.timeout(10):
        while not server.asked:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_limits_of_answers(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.records = {
        ("many", "A"): ["10.0.0.1", "10.0.0.2", "10.0.0.3"],
        ("_s._tcp.many", "SRV"): ["0 0 1 a.", "0 0 1 b.", "0 0 1 many."],
    }
    monkeypatch.setattr("gossiper.seeds.SEEDS_MAX", 2)
    monkeypatch.setattr(discovery_dns, "SRV_TARGETS_MAX", 2)
    assert await faults_of(server.seeds("dns:many:7000").seeds()) == ["dns:many:7000: 3 seeds, at most 2 are allowed"]
    assert await faults_of(server.seeds("srv:_s._tcp.many").seeds()) == [
        "srv:_s._tcp.many: 3 targets, at most 2 are allowed"
    ]


async def test_the_name_servers_and_search_list_of_the_system(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = dns.resolver.BaseResolver.read_resolv_conf

    def ours(resolver: dns.resolver.BaseResolver, _: object) -> None:
        read(resolver, io.StringIO("nameserver 127.0.0.1\nsearch app.svc svc\noptions ndots:5\n"))
        resolver.port = server.port

    monkeypatch.setattr(dns.resolver.BaseResolver, "read_resolv_conf", ours)
    server.records = {("gossip.svc", "A"): ["10.0.0.1"], ("gossip", "A"): ["10.0.0.66"]}
    assert await DnsSeeds(["dns:gossip:7000"]).seeds() == (A,)
    assert await DnsSeeds(["dns:gossip.:7000"]).seeds() == ("10.0.0.66:7000",)


async def test_a_system_without_name_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.resolver.BaseResolver, "read_resolv_conf", none)
    assert await faults_of(DnsSeeds(["dns:a:7000"]).seeds()) == [
        "dns:a:7000: Resolver configuration could not be read or specified no nameservers."
    ]


def test_dns_names_without_dnspython(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dns.asyncresolver", None)
    monkeypatch.delitem(sys.modules, "gossiper.discovery_dns")
    assert parse_seed_sources([A]) is not None
    with pytest.raises(ConfigError) as caught:
        parse_seed_sources(["dns:a:7000", "dns:b:7000"])
    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].startswith("seeds: DNS names need dnspython, which cannot be imported (")
    assert caught.value.faults[0].endswith("; run `pip install dnspython`")


@pytest.mark.parametrize("seconds", [0.0, -1.0, 30.0, float("nan")])
def test_a_dns_deadline_out_of_bounds(seconds: float) -> None:
    with pytest.raises(ConfigError, match="the DNS deadline must be above 0 and below 30 s"):
        DnsSeeds(["dns:a:1"], timeout_seconds=seconds)


# -- a mixed list ------------------------------------------------------------------------------------------------------


async def test_all_kinds_of_entries_in_their_order(tmp_path: Path, server: NameServer) -> None:
    (tmp_path / "one").write_text(f"{C}\n{A}\n")
    (tmp_path / "two").write_text("two:7000\n")
    server.records = {
        ("app", "A"): ["10.0.0.9"],
        ("_s._tcp.app", "SRV"): ["0 0 7009 app."],
    }
    entries = ["Z:1", f" {A} ", f"file:{tmp_path}/one", "file:two", "dns:app:7000", B, "srv:_s._tcp.app"]
    provider: SeedProvider = parse_seed_sources(entries, base_dir=tmp_path, nameservers=server.address)
    assert await provider.seeds() == ("z:1", A, C, "two:7000", "10.0.0.9:7000", B, "10.0.0.9:7009")


async def test_an_empty_list() -> None:
    assert await parse_seed_sources([]).seeds() == ()


def test_every_entry_that_is_wrong_is_named() -> None:
    entries = [
        "",
        A,
        "10.0.0.2",
        "file:",
        "file:seeds",
        "file:/a\0b",
        "dns:a",
        "dns:a:70000",
        "dns:a:0",
        "dns:10.0.0.1:7000",
        "dns:[::1]:7000",
        "dns:under_score:7000",
        "srv:gossip.app",
        "srv:_gossip._sctp.app",
        "srv:_gossip._tcp.-app",
        "DNS:a:7000",
        f"dns:{'a.' * 200}:1",
    ]
    with pytest.raises(ConfigError) as caught:
        parse_seed_sources(entries)
    assert caught.value.faults == [
        "seeds: '' is not host:port",
        "seeds: '10.0.0.2' is not host:port",
        "seeds: 'file:' is not file:/path",
        "seeds: 'file:seeds': the path must be absolute",
        "seeds: 'file:/a\\x00b' is not file:/path",
        "seeds: 'dns:a' is not dns:name:port",
        "seeds: 'a:70000': port 70000 is greater than 65535",
        "seeds: 'dns:a:0': port 0 cannot be connected to",
        "seeds: 'dns:10.0.0.1:7000': 10.0.0.1 is an address and needs no DNS; write it as it is, with a port",
        "seeds: 'dns:[::1]:7000': ::1 is an address and needs no DNS; write it as it is, with a port",
        "seeds: 'under_score:7000': 'under_score' is not a host name",
        "seeds: 'srv:gossip.app' is not srv:_service._tcp.name",
        "seeds: 'srv:_gossip._sctp.app' is not srv:_service._tcp.name",
        "seeds: '-app:1': '-app' is not a host name",
        "seeds: 'DNS:a:7000': an IPv6 address is written in brackets, [::1]:7000",
        "seeds: 'dns': longer than 300 characters",
    ]


def test_too_many_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [f"file:/{number}" for number in range(SEED_SOURCES_MAX)]
    assert parse_seed_sources([*files, A]) is not None
    monkeypatch.setattr(discovery, "SEEDS_MAX", 3)
    with pytest.raises(ConfigError) as caught:
        parse_seed_sources([*files, "dns:a:1"])
    assert caught.value.faults == [
        "seeds: 65 files and DNS names, at most 64 are allowed",
        "seeds: 65 entries, at most 3 are allowed",
    ]
    with pytest.raises(ConfigError, match="seeds: 65 DNS names, at most 64 are allowed"):
        DnsSeeds(f"dns:a{number}:1" for number in range(65))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.text(max_size=30) | st.tuples(st.sampled_from(["dns:", "srv:", "file:"]), st.text(max_size=30)).map("".join)
    )
)
def test_any_text_is_an_entry_or_a_named_fault(entries: list[str]) -> None:
    faults: list[str] = []
    try:
        parse_seed_sources(entries)
    except ConfigError as error:
        faults = error.faults
    assert all(fault.startswith("seeds: ") for fault in faults)
    assert len(faults) <= len(entries)


# -- several sources, in virtual time ----------------------------------------------------------------------------------


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop that does not wait: when nothing is ready, its clock jumps to the next timer."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__()

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        internals: Any = self
        if not internals._ready and internals._scheduled:
            self.now = max(self.now, internals._scheduled[0]._when)
        internals = super()
        internals._run_once()


def in_virtual_time(main: Coroutine[Any, Any, object]) -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main)


class Scripted:
    """A user's own provider: gives ``now``, or raises it; ``delay_seconds`` later."""

    def __init__(self, *now: str) -> None:
        self.now: Iterable[Any] | BaseException = now
        self.delay_seconds = 0.0
        self.times: list[float] = []

    async def seeds(self) -> tuple[str, ...]:
        self.times.append(asyncio.get_running_loop().time())
        now = self.now
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        if isinstance(now, BaseException):
            raise now
        return tuple(now)


def watcher_of(provider: SeedProvider, **settings: Any) -> SeedWatcher:
    return SeedWatcher(provider, rng=Random(1), **settings)


async def test_a_source_that_fails_counts_with_what_it_gave_before() -> None:
    one, two = Scripted(A), Scripted(B)
    sources = SeedSources([one, two])
    assert await sources.seeds() == (A, B)
    one.now, two.now = SeedError(["one: away", "one: far away"]), [C]
    resolved = await sources.resolve()
    assert resolved.seeds == (A, C)
    assert resolved.faults == ("one: away", "one: far away")
    one.now, two.now = [], RuntimeError("two\nis broken")
    resolved = await sources.resolve()
    assert resolved.seeds == (A, C)
    assert resolved.faults == ("Scripted: names no seed any more", "Scripted: RuntimeError: two is broken")
    one.now, two.now = [C], [C, "nowhere", "Node:1"]
    resolved = await sources.resolve()
    assert resolved.seeds == (C,)
    assert resolved.faults == ("Scripted: 'nowhere' is not host:port",)
    two.now = ["Node:1"]
    assert await sources.seeds() == (C, "node:1")


async def test_sources_that_never_gave_a_seed() -> None:
    sources = SeedSources([Scripted(), StaticSeeds([])])
    assert await sources.seeds() == ()
    assert await faults_of(SeedSources([Scripted(), FileSeeds(Path("/no/such/file"))]).seeds()) == [
        "/no/such/file: cannot be read: No such file or directory"
    ]
    wrong = Scripted()
    wrong.now = [7000]
    assert await faults_of(SeedSources([wrong]).seeds()) == [
        "Scripted: AttributeError: 'int' object has no attribute 'startswith'"
    ]


def test_a_provider_that_hangs_is_given_up() -> None:
    async def main() -> None:
        slow = Scripted(A)
        slow.delay_seconds = 1e6
        resolved = await SeedSources([slow, Scripted(B)]).resolve()
        assert asyncio.get_running_loop().time() == 30
        assert resolved.seeds == (B,)
        assert resolved.faults == ("Scripted: no answer within 30 s",)

    in_virtual_time(main())


async def test_reload_tells_what_changed(tmp_path: Path) -> None:
    path = tmp_path / "seeds"
    path.write_text(f"{A}\n{B}\n")
    changes: list[ReloadResult] = []
    watcher = watcher_of(parse_seed_sources([f"file:{path}"]), on_change=changes.append)
    assert (watcher.seeds, watcher.last_result) == ((), None)
    assert await watcher.start() == (A, B)
    assert await watcher.reload() == ReloadResult((A, B), (), (), ())
    path.write_text(f"{B}\n{C}\n")
    result = await watcher.reload()
    assert result == ReloadResult((B, C), (C,), (A,), ())
    assert watcher.seeds == (B, C)
    assert watcher.last_result == result
    path.write_text(f"{C}\n{B}\n")
    assert await watcher.reload() == ReloadResult((C, B), (), (), ())
    assert [change.seeds for change in changes] == [(B, C), (C, B)]


async def test_bad_entries_are_named_and_the_old_list_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "seeds"
    path.write_text(f"{A}\n")
    changes: list[ReloadResult] = []
    watcher = watcher_of(FileSeeds(path), on_change=changes.append)
    await watcher.start()
    path.write_text(f"{B}\nnowhere\n{C}\n:7000\n")
    assert await watcher.reload() == ReloadResult(
        (A,), (), (), (f"{path}: line 2: 'nowhere' is not host:port", f"{path}: line 4: ':7000' is not host:port")
    )
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"seeds_kept seeds=1 unsaid=0: {path}: line 2: 'nowhere'")
    path.write_text("")
    assert (await watcher.reload()).seeds == (A,)
    path.unlink()
    assert (await watcher.reload()).faults == (f"{path}: cannot be read: No such file or directory",)
    assert changes == []
    path.write_text(f"{B}\n")
    assert await watcher.reload() == ReloadResult((B,), (B,), (A,), ())


async def test_dns_answers_that_change_and_fail(server: NameServer) -> None:
    watcher = watcher_of(parse_seed_sources([C, "dns:app:7000"], nameservers=server.address, dns_timeout_seconds=2))
    server.records = {("app", "A"): ["10.0.0.1"]}
    assert await watcher.start() == (C, A)
    server.records = {("app", "A"): ["10.0.0.2"]}
    assert await watcher.reload() == ReloadResult((C, B), (B,), (A,), ())
    server.records = {("app", "A"): []}
    assert (await watcher.reload()).faults == ("dns:app:7000: the name has neither A nor AAAA records",)
    server.records = {}
    assert (await watcher.reload()).faults == ("dns:app:7000: there is no such name (NXDOMAIN)",)
    server.silent = {("app", "AAAA")}
    assert (await watcher.reload()).faults == ("dns:app:7000: no answer within 2 s from 127.0.0.1",)
    assert watcher.seeds == (C, B)


async def test_a_start_needs_somebody() -> None:
    failing = Scripted()
    failing.now = SeedError(["dns: away"])
    assert await faults_of(watcher_of(failing).start()) == ["dns: away"]
    assert await watcher_of(SeedSources([failing, StaticSeeds([A])])).start() == (A,)
    assert await watcher_of(StaticSeeds([])).start() == ()


def test_the_sources_are_read_in_every_interval_with_jitter() -> None:
    async def times(seed: int) -> list[float]:
        provider = Scripted(A)
        watcher = SeedWatcher(provider, rng=Random(seed), interval_seconds=100)
        await watcher.start()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100_000):
                await watcher.run()
        return provider.times

    async def main() -> None:
        first = await times(1)
        gaps = [later - earlier for earlier, later in itertools.pairwise(first)]
        assert all(90 <= gap <= 110 for gap in gaps)
        assert len({round(gap) for gap in gaps}) > 10
        assert 950 <= len(gaps) <= 1050
        start = asyncio.get_running_loop().time()
        assert [round(at - start, 6) for at in await times(1)] == [round(at, 6) for at in first]

    in_virtual_time(main())


def test_changes_are_announced_while_it_runs(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        provider, changes = Scripted(A), list[ReloadResult]()

        def on_change(result: ReloadResult) -> None:
            changes.append(result)
            if len(changes) == 1:
                raise RuntimeError("the callback is broken")

        watcher = watcher_of(provider, interval_seconds=10, on_change=on_change)
        await watcher.start()
        task = asyncio.create_task(watcher.run())
        for now in ([A, B], [A, B], [B], SeedError(["away"]), [C]):
            provider.now = now
            await asyncio.sleep(15)
        assert [(change.added, change.removed) for change in changes] == [((B,), ()), ((), (A,)), ((C,), (B,))]
        assert watcher.seeds == (C,)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    in_virtual_time(main())
    assert "seeds_changed: the callback failed" in caplog.text


def test_a_source_that_stays_away_is_a_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        provider = Scripted(A)
        watcher = watcher_of(provider, interval_seconds=1)
        await watcher.start()
        provider.now = SeedError([f"fault {number}" for number in range(12)])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(600):
                await watcher.run()
        assert len(provider.times) > 500

    in_virtual_time(main())
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert 9 <= len(lines) <= 10
    assert lines[0] == (
        "seeds_kept seeds=1 unsaid=0: " + "; ".join(f"fault {number}" for number in range(10)) + "; and 2 more"
    )
    assert 50 <= int(lines[1].split("unsaid=")[1].split(":")[0]) <= 70


def test_reloads_at_the_same_time_share_a_reading_begun_after_they_asked() -> None:
    async def main() -> None:
        provider = Scripted(A)
        watcher = watcher_of(provider)
        await watcher.start()
        provider.delay_seconds = 5
        early = asyncio.create_task(watcher.reload())
        await asyncio.sleep(1)
        provider.now = [B]  # too late for the reading under way
        late = [asyncio.create_task(watcher.reload()) for _ in range(10)]
        assert (await early).seeds == (A,)
        results = await asyncio.gather(*late)
        assert {result.seeds for result in results} == {(B,)}
        assert provider.times == [0, 0, 5]

    in_virtual_time(main())


def test_a_reload_that_is_cancelled_leaves_the_next_one_to_work() -> None:
    async def main() -> None:
        provider = Scripted(A)
        watcher = watcher_of(provider)
        await watcher.start()
        provider.now, provider.delay_seconds = [B], 5
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await watcher.reload()
        assert watcher.seeds == (A,)
        assert (await watcher.reload()).added == (B,)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    in_virtual_time(main())


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.99, float("nan"), float("inf")])
def test_an_interval_out_of_bounds(seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"seed interval: must be at least 1.0 s"):
        watcher_of(StaticSeeds([]), interval_seconds=seconds)
