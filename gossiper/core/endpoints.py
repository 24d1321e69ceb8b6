"""The one canonical text form of an endpoint: ``10.0.0.1:7000``, ``[::1]:7000``, ``node-1.example:7000``.

It is used wherever endpoints are compared, sorted, hashed or sent.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

#: The longest host name DNS allows (RFC 1035) plus brackets, colon and port.
ENDPOINT_LENGTH_MAX: Final = 253 + 8
_HOST_NAME: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")


def parse_endpoint(text: str) -> tuple[str, int]:
    """Split ``host:port`` into its canonical host (no brackets) and its port.

    Raises:
        ValueError: says what is wrong with ``text``.
    """
    if len(text) > ENDPOINT_LENGTH_MAX:
        raise ValueError(f"endpoint longer than {ENDPOINT_LENGTH_MAX} characters")
    host, colon, port_text = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f"{text!r} is not host:port")
    if not (port_text.isascii() and port_text.isdigit()) or len(port_text) > 5:
        raise ValueError(f"{text!r}: port {port_text!r} is not a number")
    port = int(port_text)
    if port > 65535:
        raise ValueError(f"{text!r}: port {port} is greater than 65535")
    return _canonical_host(host, text), port


def _canonical_host(host: str, text: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            return ipaddress.IPv6Address(host[1:-1]).compressed
        except ValueError:
            raise ValueError(f"{text!r}: {host!r} is not an IPv6 address") from None
    if ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address is written in brackets, [::1]:7000")
    if host.replace(".", "").isdigit():
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise ValueError(f"{text!r}: {host!r} is not an IPv4 address") from None
    name = host.lower()
    if len(name) > 253 or not _HOST_NAME.fullmatch(name):
        raise ValueError(f"{text!r}: {host!r} is not a host name")
    return name


def format_endpoint(host: str, port: int) -> str:
    """The canonical text of a host (as :func:`parse_endpoint` returns it) and a port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def canonical_endpoint(text: str) -> str:
    """``text`` in canonical form.

    Raises:
        ValueError: ``text`` is not an endpoint.
    """
    return format_endpoint(*parse_endpoint(text))
