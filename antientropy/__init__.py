"""Makes replicas of a key range equal again: compares hash trees, finds exactly the rows that differ, moves those.

Give a :class:`RepairService` your stores and who the replicas are, register it on the server of your peers, and ask it
to :meth:`~RepairService.repair`. Stores: :class:`MemoryRowStore` here, ``antientropy.stores.lmdb.LmdbRowStore`` (which
imports lmdb), or your own that keeps :class:`RowStore`.
"""

from __future__ import annotations

from antientropy.admin import RepairAdmin
from antientropy.config import RepairConfig
from antientropy.coordinator import RepairOutcome, RepairUpdate
from antientropy.core.hashing import row_digest, token_of
from antientropy.core.merkle import HashTree, Root
from antientropy.core.rows import Row, RowDigests
from antientropy.core.session import Phase, RepairStatistics
from antientropy.core.tokens import TokenRange
from antientropy.errors import (
    AntiEntropyError,
    ConfigError,
    DivergenceError,
    PeerError,
    RepairError,
    RepairRequestError,
    RepairRunningError,
    RowRefusedError,
    ServiceStoppedError,
    StoreClosedError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreInUseError,
    StoreReadOnlyError,
    UnknownKeyspaceError,
)
from antientropy.replica import Replica
from antientropy.service import Membership, RepairService, ReplicaDescription
from antientropy.snapshots import ReplicaSnapshot
from antientropy.store import Changes, RowReader, RowStore
from antientropy.stores.lmdb import LmdbRowStore
from antientropy.stores.memory import MemoryRowStore

__all__ = [
    "AntiEntropyError",
    "Changes",
    "ConfigError",
    "DivergenceError",
    "HashTree",
    "LmdbRowStore",
    "Membership",
    "MemoryRowStore",
    "PeerError",
    "Phase",
    "RepairAdmin",
    "RepairConfig",
    "RepairError",
    "RepairOutcome",
    "RepairRequestError",
    "RepairRunningError",
    "RepairService",
    "RepairStatistics",
    "RepairUpdate",
    "Replica",
    "ReplicaDescription",
    "ReplicaSnapshot",
    "Root",
    "Row",
    "RowDigests",
    "RowReader",
    "RowRefusedError",
    "RowStore",
    "ServiceStoppedError",
    "StoreClosedError",
    "StoreCorruptError",
    "StoreError",
    "StoreFullError",
    "StoreInUseError",
    "StoreReadOnlyError",
    "TokenRange",
    "UnknownKeyspaceError",
    "row_digest",
    "token_of",
]
