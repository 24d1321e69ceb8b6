"""Makes replicas of a key range equal again: compares hash trees, finds exactly the rows that differ, moves those.

Give a :class:`RepairService` your stores and who the replicas are, register it on the server of your peers, and ask it
to :meth:`~RepairService.repair`. Stores: :class:`MemoryRowStore` here, ``antientropy.stores.lmdb.LmdbRowStore`` (which
imports lmdb), or your own that keeps :class:`RowStore`.
"""

from __future__ import annotations

from antientropy.admin import RepairAdmin
from antientropy.config import RepairConfig
from antientropy.core.hashing import row_digest, token_of
from antientropy.core.merkle import HashTree, Root
from antientropy.core.pacing import ThrottleSettings
from antientropy.core.rows import Row, RowDigests
from antientropy.core.schedule import SchedulerSettings
from antientropy.core.tokens import TokenRange
from antientropy.errors import (
    AntiEntropyError,
    ConfigError,
    DivergenceError,
    JournalError,
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
from antientropy.membership import Membership, ReplicatedRange
from antientropy.metrics import RepairMetrics
from antientropy.options import RepairMode, RepairOptions, Strategy
from antientropy.replica import Replica
from antientropy.reports import FlowPreview, RangeSummary, RepairStatistics, RepairUpdate, SessionInfo, SessionState
from antientropy.scheduler import RepairScheduler
from antientropy.service import RepairService, ReplicaDescription
from antientropy.snapshots import ReplicaSnapshot
from antientropy.store import Changes, RowReader, RowStore
from antientropy.stores.lmdb import LmdbRowStore
from antientropy.stores.memory import MemoryRowStore
from antientropy.throttle import Throttle

__all__ = [
    "AntiEntropyError",
    "Changes",
    "ConfigError",
    "DivergenceError",
    "FlowPreview",
    "HashTree",
    "JournalError",
    "LmdbRowStore",
    "Membership",
    "MemoryRowStore",
    "PeerError",
    "RangeSummary",
    "RepairAdmin",
    "RepairConfig",
    "RepairError",
    "RepairMetrics",
    "RepairMode",
    "RepairOptions",
    "RepairRequestError",
    "RepairRunningError",
    "RepairScheduler",
    "RepairService",
    "RepairStatistics",
    "RepairUpdate",
    "Replica",
    "ReplicaDescription",
    "ReplicaSnapshot",
    "ReplicatedRange",
    "Root",
    "Row",
    "RowDigests",
    "RowReader",
    "RowRefusedError",
    "RowStore",
    "SchedulerSettings",
    "ServiceStoppedError",
    "SessionInfo",
    "SessionState",
    "StoreClosedError",
    "StoreCorruptError",
    "StoreError",
    "StoreFullError",
    "StoreInUseError",
    "StoreReadOnlyError",
    "Strategy",
    "Throttle",
    "ThrottleSettings",
    "TokenRange",
    "UnknownKeyspaceError",
    "row_digest",
    "token_of",
]
