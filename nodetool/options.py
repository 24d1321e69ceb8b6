"""The options that every command takes, before or after its name, and the text that closes every help page."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import click

HOST_DEFAULT: Final = "127.0.0.1"
#: Cassandra's port for administration (JMX there).
PORT_DEFAULT: Final = 7199
TIMEOUT_SECONDS_DEFAULT: Final = 10.0
#: The longest host name DNS allows (RFC 1035).
HOST_LENGTH_MAX: Final = 253
_HOST: Final = re.compile(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?")

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(slots=True)
class Options:
    """Which node is asked, and how its answer is shown."""

    host: str = HOST_DEFAULT
    port: int = PORT_DEFAULT
    timeout_seconds: float = TIMEOUT_SECONDS_DEFAULT
    print_port: bool = False
    output: Literal["text", "json"] = "text"

    @property
    def address(self) -> str:
        """``host:port`` as it is shown and dialled."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def json(self) -> bool:
        """Whether standard output carries one JSON object."""
        return self.output == "json"


pass_options = click.make_pass_decorator(Options, ensure=True)


def _host(text: str) -> str:
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if len(host) > HOST_LENGTH_MAX or not _HOST.fullmatch(host):
        raise click.BadParameter(f"{text!r} is not a host name or an IP address; the port goes into -p")
    return host


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise click.BadParameter(f"{text!r} is not a port, a number from 1 to 65535")
    return int(text)


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    if value is not None and param.name is not None:
        setattr(ctx.ensure_object(Options), param.name, value)
    return value


def node_options(command: _F) -> _F:
    """Add the common options. What is given after the command's name wins over what is given before it."""
    options = [
        click.option(
            "-h",
            "--host",
            type=_host,
            metavar="HOST",
            callback=_remember,
            expose_value=False,
            help=f"Host of the node's administration listener.  [default: {HOST_DEFAULT}]",
        ),
        click.option(
            "-p",
            "--port",
            type=_port,
            metavar="PORT",
            callback=_remember,
            expose_value=False,
            help=f"Its port.  [default: {PORT_DEFAULT}]",
        ),
        click.option(
            "--timeout",
            "timeout_seconds",
            type=click.FloatRange(min=0.0, min_open=True, max=86_400.0),
            metavar="SECONDS",
            callback=_remember,
            expose_value=False,
            help=f"How long to wait for an answer.  [default: {TIMEOUT_SECONDS_DEFAULT:g}]",
        ),
        click.option(
            "-pp",
            "--print-port",
            "print_port",
            is_flag=True,
            default=None,
            callback=_remember,
            expose_value=False,
            help="Show addresses with their port (always done when two endpoints share a host).",
        ),
        click.option(
            "--output",
            type=click.Choice(["text", "json"]),
            metavar="[text|json]",
            callback=_remember,
            expose_value=False,
            help="Form of the output.  [default: text]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def examples(*lines: str) -> str:
    """The end of a command's help page: lines to copy."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
