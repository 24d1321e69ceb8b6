"""How nodetool writes numbers, addresses, tables and JSON."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodetool import render
from nodetool.render import AddressBook


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (None, "?"),
        (0, "0 bytes"),
        (512, "512 bytes"),
        (1024, "1 KiB"),
        (135_690, "132.51 KiB"),
        (1024 * 1024 * 1.5, "1.5 MiB"),
        (3 * 1024**3, "3 GiB"),
        (2**41, "2 TiB"),
        (2**60, "1048576 TiB"),
    ],
)
def test_byte_size(size_bytes: float | None, text: str) -> None:
    assert render.byte_size(size_bytes) == text


def test_table_pads_every_column_the_last_too() -> None:
    assert render.table([("--", "Rack"), ("UN", "r"), ("DN", "rack-10")]) == [
        "--  Rack   ",
        "UN  r      ",
        "DN  rack-10",
    ]


def test_labels_are_padded_as_in_info() -> None:
    assert render.labelled("ID", "x") == "ID                     : x"


def test_ports_are_printed_when_asked_for_or_when_a_host_is_shared() -> None:
    apart = AddressBook(["10.0.0.1:7000", "10.0.0.2:7000"], print_port=False)
    assert [apart.plain("10.0.0.1:7000"), apart.java("10.0.0.1:7000")] == ["10.0.0.1", "/10.0.0.1"]
    asked = AddressBook(["10.0.0.1:7000"], print_port=True)
    assert [asked.plain("10.0.0.1:7000"), asked.java("10.0.0.1:7000")] == ["10.0.0.1:7000", "/10.0.0.1:7000"]
    shared = AddressBook(["127.0.0.1:7000", "127.0.0.1:7001"], print_port=False)
    assert shared.plain("127.0.0.1:7001") == "127.0.0.1:7001"


def test_ipv6_addresses() -> None:
    plain = AddressBook(["[::1]:7000"], print_port=False)
    assert [plain.plain("[::1]:7000"), plain.java("[::1]:7000")] == ["::1", "/[::1]"]
    ported = AddressBook(["[::1]:7000"], print_port=True)
    assert [ported.plain("[::1]:7000"), ported.java("[::1]:7000")] == ["[::1]:7000", "/[::1]:7000"]


def test_names_replace_addresses_where_there_are_any() -> None:
    names = {"10.0.0.1": "db1.example"}
    book = AddressBook(["10.0.0.1:7000"], print_port=False, resolve=lambda host: names.get(host, host))
    assert [book.plain("10.0.0.1:7000"), book.java("10.0.0.1:7000")] == ["db1.example", "db1.example"]
    assert book.java("10.0.0.2:7000") == "/10.0.0.2"


def test_an_address_without_a_name_stays() -> None:
    assert render.resolved_name("not a host\0") == "not a host\0"


def test_addresses_sort_as_people_count() -> None:
    endpoints = ["node-b:1", "10.0.0.10:7000", "10.0.0.9:7000", "[::1]:7000", "10.0.0.9:999", "node-a:1", "odd"]
    assert sorted(endpoints, key=render.address_order) == [
        "10.0.0.9:999",
        "10.0.0.9:7000",
        "10.0.0.10:7000",
        "[::1]:7000",
        "node-a:1",
        "node-b:1",
        "odd",
    ]


@given(st.text(max_size=40))
def test_nothing_from_a_peer_reaches_the_terminal_as_a_control(text: str) -> None:
    assert render.printable(text).isprintable()
    assert "\n" not in render.one_line(text)


def test_a_long_reason_is_cut() -> None:
    assert len(render.one_line("x" * 10_000)) == 403


def test_json_has_its_version_first_and_no_numbers_that_json_lacks() -> None:
    text = render.json_text({"phi": float("inf"), "list": [float("nan"), 1.5], "large": 2**63, "none": None})
    assert text.startswith('{\n  "schema_version": 1,')
    assert json.loads(text) == {"schema_version": 1, "phi": None, "list": [None, 1.5], "large": 2**63, "none": None}


def test_times_are_rfc_3339_in_utc() -> None:
    assert render.rfc3339(datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=UTC)) == "2026-01-02T03:04:05.678Z"
    assert render.generation_time(1_700_000_000) == "2023-11-14T22:13:20.000Z"
    assert render.generation_time(0) is None
    assert render.generation_time(2**62) is None


def test_an_age_of_never_is_unknown() -> None:
    assert render.age_seconds(-1.0) is None
    assert render.age_seconds(0.25) == 0.25


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_only_on_a_terminal_and_never_against_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert render.colour_wanted(Terminal())
    assert not render.colour_wanted(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not render.colour_wanted(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not render.colour_wanted(Terminal())
