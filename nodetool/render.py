"""How things look: tables, sizes, addresses, JSON. Pure functions; nothing here prints or asks."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TextIO

#: Raised when a key of the JSON output is renamed or removed, or changes its meaning; additions leave it.
SCHEMA_VERSION: Final = 1
_UNITS: Final = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
#: A line of people's text; longer reasons are cut so that an error stays one line of a terminal or two.
_LINE_LENGTH_MAX: Final = 400
#: Seven digits of a host id and the ellipsis: less does not name a node to people.
_CUT_LENGTH_MIN: Final = 8
#: Generations beyond the year 9999 cannot be shown as a time.
_EPOCH_SECONDS_MAX: Final = 253_402_300_799


def printable(text: str) -> str:
    """``text`` without anything that could move a terminal's cursor: values come from other nodes."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def one_line(text: str) -> str:
    """``text`` as one printable line of bounded length."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= _LINE_LENGTH_MAX else line[:_LINE_LENGTH_MAX] + "..."


def byte_size(size_bytes: float | None) -> str:
    """``132.51 KiB``: at most two decimals, powers of 1024; "?" if unknown (Cassandra's ``FileUtils``)."""
    if size_bytes is None:
        return "?"
    for unit_bytes, unit in _UNITS:
        if size_bytes >= unit_bytes:
            return f"{_two_decimals(size_bytes / unit_bytes)} {unit}"
    return f"{_two_decimals(size_bytes)} bytes"


def _two_decimals(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")


def table(rows: Sequence[Sequence[str]], gap: int = 2) -> list[str]:
    """Lines of left-aligned columns, two spaces apart, every column (the last too) padded to its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [(" " * gap).join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def narrow_table(
    rows: Sequence[Sequence[str]], width: int | None, *, short_titles: Mapping[str, str], shortened: int
) -> list[str]:
    """As :func:`table`, but not wider than ``width`` where that can be had; None: any width is right.

    Only as much is given up as must be, in this order: the padding at the end, long titles, one of the two spaces
    between columns, and at last the ends of the texts in one column, as long as they can be told apart.

    Args:
        rows: titles first.
        width: of the terminal, in columns.
        short_titles: other words for titles.
        shortened: number of the column whose texts may be cut.
    """
    lines = table(rows)
    if width is None or len(lines[0]) <= width:
        return lines
    renamed = [[short_titles.get(title, title) for title in rows[0]], *rows[1:]]
    for kept, gap in ((rows, 2), (renamed, 2), (renamed, 1)):
        lines = [line.rstrip() for line in table(kept, gap)]
        excess = max(map(len, lines)) - width
        if excess <= 0:
            return lines
    column = max(len(row[shortened]) for row in renamed)
    cut = [[*row[:shortened], _cut(row[shortened], column - excess), *row[shortened + 1 :]] for row in renamed]
    texts, cut_texts = ({row[shortened] for row in these} for these in (renamed, cut))
    if column - excess < _CUT_LENGTH_MIN or len(cut_texts) < len(texts):
        return lines
    return [line.rstrip() for line in table(cut, gap)]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: max(0, length - 1)] + "…"


def labelled(label: str, value: object, width: int = 23) -> str:
    """``ID                     : value``, as ``nodetool info`` pads its labels."""
    return f"{label:<{width}}: {value}"


def json_text(content: Mapping[str, Any]) -> str:
    """One JSON object with ``schema_version`` first; what JSON cannot say (NaN, infinity) becomes null."""
    return json.dumps(_finite({"schema_version": SCHEMA_VERSION, **content}), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def rfc3339(moment: datetime) -> str:
    """UTC with milliseconds: ``2026-01-02T03:04:05.678Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def generation_time(generation: int) -> str | None:
    """The start of a generation, which is epoch seconds; None if it is no time."""
    if not 0 < generation <= _EPOCH_SECONDS_MAX:
        return None
    return rfc3339(datetime.fromtimestamp(generation, tz=UTC))


def age_seconds(age: float) -> float | None:
    """Ages travel as a negative number when there was nothing yet."""
    return age if age >= 0 else None


def colour_wanted(stream: TextIO) -> bool:
    """Colour only on a terminal that has it, and never against NO_COLOR (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def width_wanted(stream: TextIO) -> int | None:
    """The columns of a terminal (COLUMNS wins); None for what is no terminal: files and pipes take any width."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def split_endpoint(endpoint: str) -> tuple[str, str]:
    """Host without brackets, and port, of a canonical endpoint; the port is "" if there is none."""
    host, colon, port = endpoint.rpartition(":")
    if not colon:
        return endpoint, ""
    return host.removeprefix("[").removesuffix("]"), port


def address_order(endpoint: str) -> tuple[int, bytes, str, int]:
    """Sorts endpoints as people count: IPv4 by number, then IPv6, then names; then by port."""
    host, port = split_endpoint(endpoint)
    number = int(port) if port.isdecimal() else -1
    for rank, family in enumerate((socket.AF_INET, socket.AF_INET6)):
        try:
            return rank, socket.inet_pton(family, host), "", number
        except (OSError, ValueError):
            continue
    return 2, b"", host, number


class AddressBook:
    """How the endpoints of one output are written.

    Ports are shown if asked for, or if two endpoints share a host: without them their lines could not be told apart.
    """

    def __init__(
        self, endpoints: Iterable[str], *, print_port: bool, resolve: Callable[[str], str] | None = None
    ) -> None:
        hosts = [split_endpoint(endpoint)[0] for endpoint in endpoints]
        self.print_port = print_port or len(set(hosts)) < len(hosts)
        self._resolve = resolve
        self._names: dict[str, str] = {}

    def host(self, endpoint: str) -> str:
        """The host alone: as a name if names were asked for."""
        host = split_endpoint(endpoint)[0]
        if self._resolve is None:
            return printable(host)
        if host not in self._names:
            self._names[host] = printable(self._resolve(host))
        return self._names[host]

    def plain(self, endpoint: str) -> str:
        """``127.0.0.1``, or ``127.0.0.1:7000`` with ports."""
        host, port = self.host(endpoint), split_endpoint(endpoint)[1]
        if not self.print_port or not port:
            return host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def java(self, endpoint: str) -> str:
        """``/127.0.0.1``, as Java writes an address that has no name; a resolved name stands alone."""
        text = self.plain(endpoint)
        host = self.host(endpoint)
        if self._resolve is not None and host != split_endpoint(endpoint)[0]:
            return text
        if ":" in host and not text.startswith("["):
            text = f"[{text}]"
        return f"/{text}"


def resolved_name(host: str) -> str:
    """The name of an address (reverse lookup), or the address itself where there is none."""
    try:
        return socket.gethostbyaddr(host)[0]
    except (OSError, UnicodeError, TypeError):  # TypeError: a NUL, which no honest address has
        return host
