"""The names of application states, and what the values of STATUS mean.

Keys in capitals belong to this library and are the ones of Cassandra's ``ApplicationState`` where it has them; keys
that begin with a lower-case letter belong to the application that embeds it.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final


class ApplicationState(StrEnum):
    """Keys that every node publishes about itself."""

    STATUS = "STATUS"
    LOAD = "LOAD"
    SCHEMA = "SCHEMA"
    DC = "DC"
    RACK = "RACK"
    RELEASE_VERSION = "RELEASE_VERSION"
    HOST_ID = "HOST_ID"
    TOKENS = "TOKENS"
    RPC_READY = "RPC_READY"
    INTERNAL_ADDRESS_AND_PORT = "INTERNAL_ADDRESS_AND_PORT"
    NATIVE_ADDRESS_AND_PORT = "NATIVE_ADDRESS_AND_PORT"
    NET_VERSION = "NET_VERSION"
    CAPABILITIES = "CAPABILITIES"
    REMOVED_BY = "REMOVED_BY"


class Status(StrEnum):
    """The first, comma-separated piece of a STATUS value."""

    BOOT = "BOOT"
    NORMAL = "NORMAL"
    LEAVING = "LEAVING"
    LEFT = "LEFT"
    SHUTDOWN = "shutdown"
    HIBERNATE = "hibernate"
    REMOVING = "removing"
    REMOVED = "removed"


#: Never marked alive, never a gossip target (Cassandra's ``DEAD_STATES``).
DEAD_STATUSES: Final = frozenset({Status.REMOVING, Status.REMOVED, Status.LEFT, Status.HIBERNATE})
#: Says that its owner has stopped in this generation: nothing newer can come, so it is not asked for a sign of life.
STOPPED_STATUSES: Final = DEAD_STATUSES | {Status.SHUTDOWN}

#: Only the gossiper itself writes these; the application may publish all others.
MANAGED_KEYS: Final = frozenset(
    {
        ApplicationState.STATUS,
        ApplicationState.HOST_ID,
        ApplicationState.INTERNAL_ADDRESS_AND_PORT,
        ApplicationState.NET_VERSION,
        ApplicationState.CAPABILITIES,
        ApplicationState.REMOVED_BY,
    }
)

_USER_KEY: Final = re.compile(r"[a-z][a-zA-Z0-9._/-]*")
_LIBRARY_KEY: Final = re.compile(r"[A-Z][A-Z0-9_]*")


def is_user_key(key: str) -> bool:
    """Whether ``key`` belongs to the embedding application."""
    return _USER_KEY.fullmatch(key) is not None


def is_key(key: str) -> bool:
    """Whether ``key`` has the form of any application state."""
    return is_user_key(key) or _LIBRARY_KEY.fullmatch(key) is not None


def status_of(value: str | None) -> str:
    """The status that a STATUS value names; "" when there is none (as a failed bootstrap looks)."""
    return value.partition(",")[0] if value else ""
