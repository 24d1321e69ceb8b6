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


TITLES = ("--", "Address", "Load", "Tokens", "Owns (effective)", "Host ID", "Rack")
IDS = ("6a0c0b0e-6d0f-4c8e-9a55-0d6a1c8f2b11", "b1946ac9-2f8e-4f0a-8d0c-3a1d5e7f9c22")
NODES: list[tuple[str, ...]] = [
    TITLES,
    ("UN", "127.0.0.1:7000", "132.51 KiB", "5", "100.0%", IDS[0], "rack1"),
    ("DN", "127.0.0.1:7001", "1 KiB", "5", "66.7%", IDS[1], "rack-number-10"),
]


def narrow(width: int | None, rows: list[tuple[str, ...]] = NODES) -> list[str]:
    return render.narrow_table(rows, width, short_titles={"Owns (effective)": "Owns"}, shortened=5)


def test_a_terminal_that_is_wide_enough_and_what_is_no_terminal_get_the_exact_table() -> None:
    exact = render.table(NODES)
    assert len(exact[0]) == 110
    assert narrow(None) == narrow(110) == narrow(500) == exact


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (109, f"UN  127.0.0.1:7000  132.51 KiB  5       100.0%  {IDS[0]}  rack1"),
        (100, f"UN  127.0.0.1:7000  132.51 KiB  5       100.0%  {IDS[0]}  rack1"),
        (99, f"UN 127.0.0.1:7000 132.51 KiB 5      100.0% {IDS[0]} rack1"),
        (94, f"UN 127.0.0.1:7000 132.51 KiB 5      100.0% {IDS[0]} rack1"),
        (93, "UN 127.0.0.1:7000 132.51 KiB 5      100.0% 6a0c0b0e-6d0f-4c8e-9a55-0d6a1c8f2b… rack1"),
        (80, "UN 127.0.0.1:7000 132.51 KiB 5      100.0% 6a0c0b0e-6d0f-4c8e-9a… rack1"),
        (66, "UN 127.0.0.1:7000 132.51 KiB 5      100.0% 6a0c0b0… rack1"),
    ],
)
def test_a_narrow_terminal_gets_a_narrow_table(width: int, line: str) -> None:
    lines = narrow(width)
    assert lines[1] == line
    assert max(map(len, lines)) <= width
    assert len({found.index("rack") for found in lines[1:]} | {lines[0].index("Rack")}) == 1, "columns stay columns"


def test_the_end_of_a_line_is_given_up_first() -> None:
    rows = [*NODES[:2], ("DN", "127.0.0.1:7001", "1 KiB", "5", "66.7%", IDS[1], "r")]
    padded = [(*TITLES[:6], "Rack" + " " * 9), *rows[1:]]
    exact = render.table(padded)
    width = len(exact[0]) - 8
    assert narrow(width, padded) == [line.rstrip() for line in exact]
    assert "Owns (effective)" in narrow(width, padded)[0]


def test_ids_that_could_not_be_told_apart_and_addresses_are_never_cut() -> None:
    for width in (65, 40, 1):
        assert narrow(width) == narrow(96), "it wraps, and tells all"
    one, two = ((*row[:5], f"00000000-0000-4000-8000-00000000000{n}", "r") for n, row in enumerate(NODES[1:]))
    alike = [TITLES, one, two]
    assert narrow(80, alike) == narrow(85, alike)
    assert "00000000-0000-4000-8000-000000000001" in narrow(80, alike)[2]


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
    monkeypatch.setenv("COLUMNS", "97")
    assert (render.width_wanted(Terminal()), render.width_wanted(io.StringIO())) == (97, None)
    monkeypatch.setenv("TERM", "dumb")
    assert not render.colour_wanted(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not render.colour_wanted(Terminal())
