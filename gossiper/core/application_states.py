"""The names of application states. What the values of STATUS mean is in ``lifecycle``.

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
    REPLACES = "REPLACES"
    HEALTH = "HEALTH"


#: The word in CAPABILITIES of a node that speaks compact digests.
COMPACT: Final = "compact"

#: Only the gossiper itself writes these; the application may publish all others.
MANAGED_KEYS: Final = frozenset(
    {
        ApplicationState.STATUS,
        ApplicationState.HOST_ID,
        ApplicationState.INTERNAL_ADDRESS_AND_PORT,
        ApplicationState.NET_VERSION,
        ApplicationState.CAPABILITIES,
        ApplicationState.REMOVED_BY,
        ApplicationState.REPLACES,
        ApplicationState.HEALTH,
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
