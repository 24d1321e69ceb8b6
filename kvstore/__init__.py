"""A small replicated key-value store that embeds the gossiper and the repair service.

The names below are loaded on first use: ``kvstore --help`` should not wait for gRPC.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # as in typing, which takes longer to import than this package
if TYPE_CHECKING:
    from kvstore.client import AsyncKeyValueClient, KeyValue, KeyValueClient, NodeDescription
    from kvstore.config import KvStoreConfig
    from kvstore.errors import KvStoreError
    from kvstore.node import KvStoreNode, NodeAddresses
    from kvstore.replication import Consistency, Mutation

__all__ = [
    "AsyncKeyValueClient",
    "Consistency",
    "KeyValue",
    "KeyValueClient",
    "KvStoreConfig",
    "KvStoreError",
    "KvStoreNode",
    "Mutation",
    "NodeAddresses",
    "NodeDescription",
]

_MODULES = {
    "AsyncKeyValueClient": "client",
    "Consistency": "replication",
    "KeyValue": "client",
    "KeyValueClient": "client",
    "KvStoreConfig": "config",
    "KvStoreError": "errors",
    "KvStoreNode": "node",
    "Mutation": "replication",
    "NodeAddresses": "node",
    "NodeDescription": "client",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
