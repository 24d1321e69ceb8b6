"""``gossiper run``: a member in the foreground, its events as lines, its signals, its administration listener."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final

import grpc.aio

from gossiper.admin import GossipAdmin
from gossiper.config import GossipConfig
from gossiper.core.endpoints import format_endpoint, parse_endpoint
from gossiper.errors import LifecycleError, LocalStateError
from gossiper.events import (
    EndpointAlive,
    EndpointDead,
    EndpointForgotten,
    EndpointJoined,
    EndpointLeft,
    EndpointRemoved,
    EndpointReplaced,
    EndpointRestarted,
    EndpointView,
    Event,
    EventsMissed,
    LocalStopped,
    StateChanged,
)
from gossiper.node import Gossiper

#: Administration is one operator, or a few scripts.
ADMIN_RPCS_MAX: Final = 16
#: As :data:`gossiper.cli.SCHEMA_VERSION`, for every line.
_SCHEMA_VERSION: Final = 1
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
#: What a shell says of a process that a signal ended.
_SIGNAL_STATUS_BASE: Final = 128

logger = logging.getLogger(__name__)


def run_member(config: GossipConfig, *, admin: str | None, as_json: bool, log_level: str) -> int:
    """Run until a signal comes or the gossiper gives up; the exit status.

    Raises:
        GossipError: it cannot start, or had to stop.
        BrokenPipeError: nobody reads the events any more; it has left cleanly.
    """
    logging.basicConfig(stream=sys.stderr, level=log_level.upper(), format="gossiper: %(levelname)s %(message)s")
    # At debug level it reports every selector.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    asyncio.run(_run(config, admin, as_json))
    return 0


async def _run(config: GossipConfig, admin: str | None, as_json: bool) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, _on_signal, number, stopping)
    member = Gossiper(config)
    async with _administration(member, admin) as admin_endpoint:
        starting = asyncio.create_task(member.start(), name="gossiper start")
        stop_requested = asyncio.create_task(stopping.wait(), name="gossiper stop requested")
        try:
            await asyncio.wait({starting, stop_requested}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                with suppress(asyncio.CancelledError):
                    await starting
                return
            await starting
            endpoint = member.endpoint
            await _print(_started(member, admin_endpoint), as_json)
            printing = asyncio.create_task(_print_events(member, as_json), name="gossiper events")
            await asyncio.wait({printing, stop_requested}, return_when=asyncio.FIRST_COMPLETED)
            # The events end with the gossiper, which must be stopped for that; then what is left of them is printed.
            await member.stop()
            await printing
            if member.failure is not None:
                # Its last event said so already.
                raise LifecycleError(member.failure)
            await _print({"event": "stopped", "endpoint": endpoint}, as_json)
        finally:
            stop_requested.cancel()
            await member.stop()


def _on_signal(number: int, stopping: asyncio.Event) -> None:
    if stopping.is_set():
        # No goodbye, no waiting: what must survive is on disk before it is used.
        os._exit(_SIGNAL_STATUS_BASE + number)
    logger.info("%s: announcing the shutdown and leaving; once more aborts", signal.Signals(number).name)
    stopping.set()


@asynccontextmanager
async def _administration(member: Gossiper, endpoint: str | None) -> AsyncIterator[str | None]:
    """Serve nodetool on its own listener while the block runs; yields the endpoint bound.

    Raises:
        LocalStateError: the port is in use, or the address is not this machine's.
    """
    if endpoint is None:
        yield None
        return
    host, port = parse_endpoint(endpoint)
    if not is_loopback(host):
        logger.warning(
            "--admin is %s: whoever reaches it may remove nodes from the cluster without a password; "
            "127.0.0.1 is safer",
            endpoint,
        )
    _probe(host, port)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)], maximum_concurrent_rpcs=ADMIN_RPCS_MAX)
    GossipAdmin(member).register(server)
    try:
        bound = server.add_insecure_port(format_endpoint(host, port))
    except RuntimeError:
        raise LocalStateError(f"cannot listen on {endpoint} for administration: Address already in use") from None
    await server.start()
    try:
        yield format_endpoint(host, bound)
    finally:
        await server.stop(0.0)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _probe(host: str, port: int) -> None:
    """Bind a plain socket for a moment: it tells why it cannot be done."""
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise LocalStateError(
            f"cannot listen on {format_endpoint(host, port)} for administration: {error.strerror or error}; "
            "choose another --admin"
        ) from None


async def _print_events(member: Gossiper, as_json: bool) -> None:
    async for event in member.events():
        await _print(described(event), as_json)


async def _print(content: Mapping[str, Any], as_json: bool) -> None:
    """Write one line in a thread: whoever reads slowly must not hold up gossip."""
    stamped = {"time": _now(), **content}
    await asyncio.to_thread(_write, json_line(stamped) if as_json else text_line(stamped))


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _now() -> str:
    return datetime.now(tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _started(member: Gossiper, admin_endpoint: str | None) -> dict[str, Any]:
    return {
        "event": "started",
        "endpoint": member.endpoint,
        "cluster_name": member.cluster_name,
        "generation": member.generation,
        "host_id": member.host_id,
        "admin": admin_endpoint,
    }


def described(event: Event) -> dict[str, Any]:
    """An event as the fields of its line; ``values`` (of a change) maps keys to values, None for a deleted key."""
    match event:
        case EndpointJoined(endpoint, new):
            return {"event": "joined", "endpoint": endpoint, **_identity(new)}
        case EndpointAlive(endpoint, _, new):
            return {"event": "alive", "endpoint": endpoint, "generation": new.generation}
        case EndpointDead(endpoint, _, new, reason):
            return {"event": "dead", "endpoint": endpoint, "generation": new.generation, "reason": reason}
        case EndpointRestarted(endpoint, old, new):
            identity = _identity(new)
            return {"event": "restarted", "endpoint": endpoint, **identity, "generation_before": old.generation}
        case StateChanged(endpoint, _, new, keys):
            return {"event": "changed", "endpoint": endpoint, "values": {key: new.get(key) for key in keys}}
        case EndpointLeft(endpoint, _, new):
            return {"event": "left", "endpoint": endpoint, **_identity(new)}
        case EndpointRemoved(endpoint, _, new, removed_by):
            return {"event": "removed", "endpoint": endpoint, **_identity(new), "removed_by": removed_by}
        case EndpointReplaced(endpoint, old, new):
            before = {"endpoint_before": old.endpoint, "host_id_before": old.host_id}
            return {"event": "replaced", "endpoint": endpoint, **_identity(new), **before}
        case EndpointForgotten(endpoint, _, reason):
            return {"event": "forgotten", "endpoint": endpoint, "reason": reason}
        case LocalStopped(endpoint, reason):
            return {"event": "stopped", "endpoint": endpoint, "reason": reason}
        case EventsMissed(count):
            return {"event": "missed", "endpoint": None, "count": count}


def _identity(view: EndpointView) -> dict[str, Any]:
    return {"generation": view.generation, "host_id": view.host_id}


def json_line(content: Mapping[str, Any]) -> str:
    """One JSON object on one line."""
    return json.dumps({"schema_version": _SCHEMA_VERSION, **content})


def text_line(content: Mapping[str, Any]) -> str:
    """``time event endpoint key=value ...``; what is not there is left out, what is not printable is escaped."""
    fields = dict(content)
    words = [str(fields.pop("time")), str(fields.pop("event"))]
    endpoint = fields.pop("endpoint")
    if endpoint is not None:
        words.append(endpoint)
    values = fields.pop("values", {})
    words += [f"{key}={value}" for key, value in fields.items() if value is not None]
    words += [f"{key} deleted" if value is None else f"{key}={value}" for key, value in values.items()]
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in " ".join(words))
