"""EndpointTable: one row per endpoint, every number in a numpy column, application states beside it.

Lives here: storage and look-up. Not here: what a change means (``state``). A row number stays the same while its
endpoint is known and is reused afterwards; the failure detector keeps its windows under the same numbers.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

from gossiper.core.columns import Rows
from gossiper.core.messages import DigestColumns, VersionedValue
from gossiper.core.roster import ROSTER_EXPIRY_MS, Roster

ROWS_INITIAL: Final = 16
#: ``evidence_path`` of an endpoint that told of itself, or of one never heard of.
NO_PATH: Final = -1
#: ``evidence_arrival`` before there was any.
NEVER: Final = -np.inf


#: ``expire_ms`` and ``value_expiry_ms`` where nothing expires.
NO_EXPIRY: Final = np.iinfo(np.int64).max


class LivenessCode(IntEnum):
    """``gossiper.events.Liveness`` as it stands in a column."""

    UNKNOWN = 0
    ALIVE = 1
    DOWN = 2
    SUSPECT = 3


_COLUMNS: Final[Mapping[str, tuple[type, float]]] = {
    "used": (np.bool_, False),
    "generation": (np.int64, 0),
    "interval_ms": (np.int64, 0),
    "heartbeat": (np.int64, 0),
    "states_version": (np.int64, 0),
    "gc_version": (np.int64, 0),
    "liveness": (np.int8, LivenessCode.UNKNOWN),
    "dead_status": (np.bool_, False),
    "stopped": (np.bool_, False),
    "echo_wanted": (np.bool_, False),
    "echo_generation": (np.int64, 0),
    "echo_sent": (np.float64, NEVER),
    "evidence_arrival": (np.float64, NEVER),
    "evidence_path": (np.intp, NO_PATH),
    "direct_arrival": (np.float64, NEVER),
    "known_since": (np.float64, NEVER),
    "guest": (np.bool_, False),
    "hides_values": (np.bool_, False),
    "expire_ms": (np.int64, NO_EXPIRY),
    "value_expiry_ms": (np.int64, NO_EXPIRY),
    "knows_local_version": (np.int64, 0),
    "datacenter": (np.int64, 0),
    "rack": (np.int64, 0),
    "speaks_compact": (np.bool_, False),
    "name_high": (np.int64, 0),
    "name_low": (np.int64, 0),
    "began_ms": (np.int64, 0),
    "past_generation": (np.int64, 0),
    "past_interval_ms": (np.int64, 0),
    "past_began_ms": (np.int64, 0),
    "past_version": (np.int64, 0),
    "version_1": (np.int64, 0),
    "version_2": (np.int64, 0),
    "version_3": (np.int64, 0),
}


class EndpointTable:
    """Rows of endpoints; see the column comments below.

    Every column has length ``capacity``; entries of rows that are not ``used`` hold the column's default.
    """

    used: NDArray[np.bool_]
    generation: NDArray[np.int64]
    interval_ms: NDArray[np.int64]
    heartbeat: NDArray[np.int64]
    """The newest tick known of the generation."""
    states_version: NDArray[np.int64]
    """All application states up to this version are known."""
    gc_version: NDArray[np.int64]
    """Tombstones up to this version are gone at the owner."""
    liveness: NDArray[np.int8]
    dead_status: NDArray[np.bool_]
    """STATUS is one of ``DEAD_STATUSES``: never a target, never alive."""
    stopped: NDArray[np.bool_]
    """STATUS is one of ``STOPPED_STATUSES``: this generation says nothing more."""
    echo_wanted: NDArray[np.bool_]
    """There was evidence of life while not alive: an ECHO has to confirm it."""
    echo_generation: NDArray[np.int64]
    """The generation an ECHO under way asks for; 0: none is under way."""
    echo_sent: NDArray[np.float64]
    evidence_arrival: NDArray[np.float64]
    """Monotonic seconds of the last evidence of life; NEVER: none yet. Evidence is a newer heartbeat."""
    evidence_path: NDArray[np.intp]
    """Row of the peer that told it, NO_PATH when direct or unknown."""
    direct_arrival: NDArray[np.float64]
    """Monotonic seconds of the last direct evidence."""
    known_since: NDArray[np.float64]
    """Monotonic seconds at which its present generation was first heard of."""
    guest: NDArray[np.bool_]
    """STATUS is one of ``GUEST_STATUSES``: forgotten after some silence."""
    hides_values: NDArray[np.bool_]
    """Some of its values are tombstones or will expire, so that a view has to leave out some."""
    expire_ms: NDArray[np.int64]
    """Wall-clock milliseconds at which an endpoint that is gone for good is forgotten; NO_EXPIRY for all others."""
    value_expiry_ms: NDArray[np.int64]
    """Wall-clock milliseconds at which the next of its values expires."""
    knows_local_version: NDArray[np.int64]
    """The greatest states_version of the local endpoint's present generation that this peer has shown to know."""
    datacenter: NDArray[np.int64]
    """DC as a number, the same for the same name; 0: not known. See ``name_number``."""
    rack: NDArray[np.int64]
    speaks_compact: NDArray[np.bool_]
    """CAPABILITIES names the compact form of digests."""
    name_high: NDArray[np.int64]
    """xxh3_128 of the endpoint, its bits as two int64: the order of rosters."""
    name_low: NDArray[np.int64]
    began_ms: NDArray[np.int64]
    """When the present generation began to be told: its epoch second, or the time of an operator's removal."""
    past_generation: NDArray[np.int64]
    """The generation before the present one, as far as known; 0: none. Rosters of a past cut name it."""
    past_interval_ms: NDArray[np.int64]
    past_began_ms: NDArray[np.int64]
    past_version: NDArray[np.int64]
    """The states_version of that generation."""
    version_1: NDArray[np.int64]
    """The states_version before the present one; ``version_2`` before that: what was known at a past time."""
    version_2: NDArray[np.int64]
    version_3: NDArray[np.int64]

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._endpoints: list[str | None] = []
        self._free: list[int] = []
        self.states: list[dict[str, VersionedValue]] = []
        """Application states per row. Never changed in place: a change puts a new dict, so views may keep the old."""
        self._numbers: dict[str, int] = {}
        self._order: Rows | None = None
        self._names: tuple[str, ...] = ()
        self.rosters: dict[int, Roster] = {}
        """Rosters by cut, as long as they hold; kept by ``roster.roster_at``."""
        self.incarnations = 0
        """Counts every change of who is known in which generation."""
        for name, (dtype, default) in _COLUMNS.items():
            setattr(self, name, np.full(ROWS_INITIAL, default, dtype=dtype))

    def __len__(self) -> int:
        """The number of endpoints."""
        return len(self._index)

    def __contains__(self, endpoint: object) -> bool:
        """Whether the endpoint is known."""
        return endpoint in self._index

    @property
    def capacity(self) -> int:
        """The length of every column."""
        return len(self.used)

    def row(self, endpoint: str) -> int | None:
        """The row of an endpoint, None when it is not known."""
        return self._index.get(endpoint)

    def endpoint(self, row: int) -> str:
        """The endpoint of a used row."""
        endpoint = self._endpoints[row]
        if endpoint is None:
            raise KeyError(row)
        return endpoint

    def index_of(self, endpoints: tuple[str, ...]) -> Rows:
        """Rows of many endpoints, -1 for those that are not known; same length and order."""
        get = self._index.get
        return np.fromiter((get(endpoint, -1) for endpoint in endpoints), dtype=np.intp, count=len(endpoints))

    def rows(self) -> Rows:
        """All used rows, ascending. Do not change the array."""
        if self._order is None:
            self._order = np.flatnonzero(self.used)
            self._names = tuple(self.endpoint(int(row)) for row in self._order)
        return self._order

    def digests(self) -> DigestColumns:
        """What is known of every endpoint, as columns (copies) in row order.

        Endpoints remembered from disk (generation 0) are left out until somebody tells something of them.
        """
        rows, names = self.rows(), self._names
        told = self.generation[rows] > 0
        if not told.all():
            rows = rows[told]
            names = tuple(name for name, is_told in zip(names, told, strict=True) if is_told)
        return DigestColumns(names, self.generation[rows], self.heartbeat[rows], self.states_version[rows])

    def name_number(self, name: str) -> int:
        """A number that stands for a name (of a data centre or rack) in this table's columns."""
        return self._numbers.setdefault(name, len(self._numbers) + 1)

    def add(self, endpoint: str) -> int:
        """A row for a new endpoint, all columns at their defaults.

        Raises:
            ValueError: the endpoint is known already.
        """
        if endpoint in self._index:
            raise ValueError(f"{endpoint} is known already")
        if self._free:
            row = heapq.heappop(self._free)
            self._endpoints[row] = endpoint
        else:
            row = len(self._endpoints)
            if row == self.capacity:
                self._grow()
            self._endpoints.append(endpoint)
            self.states.append({})
        self._index[endpoint] = row
        self.used[row] = True
        name = xxh3_128_digest(endpoint.encode())
        self.name_high[row], self.name_low[row] = np.frombuffer(name, dtype=">i8")
        self._order = None
        self.incarnations += 1
        return row

    def begin_incarnation(self, row: int, generation: int, interval_ms: int, began_ms: int) -> None:
        """A greater generation of a row, of which no application state is known yet."""
        if self.generation[row]:
            # One past is remembered: a roster of a cut between the two before it can no longer be told.
            low, high = int(self.past_began_ms[row]), int(self.began_ms[row])
            self.rosters = {cut: roster for cut, roster in self.rosters.items() if not low < cut <= high}
            self.past_generation[row] = self.generation[row]
            self.past_interval_ms[row] = self.interval_ms[row]
            self.past_began_ms[row] = self.began_ms[row]
            self.past_version[row] = self.states_version[row]
        self.generation[row] = generation
        self.interval_ms[row] = interval_ms
        self.began_ms[row] = began_ms
        self.states_version[row] = self.version_1[row] = self.version_2[row] = self.version_3[row] = 0
        self._order = None
        self._void_rosters(began_ms)

    def advance_states_version(self, row: int, version: int) -> None:
        """A greater states_version of a row; those before it are remembered for a while."""
        self.version_3[row] = self.version_2[row]
        self.version_2[row] = self.version_1[row]
        self.version_1[row] = self.states_version[row]
        self.states_version[row] = version

    def set_expiry(self, row: int, expire_ms: int) -> None:
        """When the row will be forgotten; rosters leave it out some time before."""
        self.expire_ms[row] = expire_ms
        self._void_rosters(expire_ms - ROSTER_EXPIRY_MS - 1)

    def clear_expiry(self, row: int) -> None:
        """The row will not be forgotten, as far as is known by now."""
        expire_ms = int(self.expire_ms[row])
        if expire_ms != NO_EXPIRY:
            self.expire_ms[row] = NO_EXPIRY
            self._void_rosters(expire_ms - ROSTER_EXPIRY_MS - 1)

    def _void_rosters(self, changed_ms: int) -> None:
        """Rosters of a later cut do not hold any more."""
        self.incarnations += 1
        if self.rosters:
            self.rosters = {cut_ms: roster for cut_ms, roster in self.rosters.items() if cut_ms <= changed_ms}

    def remove(self, endpoint: str) -> int:
        """Forget an endpoint; its row, now free, is returned so that others may clear theirs.

        Raises:
            KeyError: the endpoint is not known.
        """
        row = self._index.pop(endpoint)
        self._void_rosters(min(int(self.began_ms[row]), int(self.past_began_ms[row])))
        self._endpoints[row] = None
        self.states[row] = {}
        for name, (_, default) in _COLUMNS.items():
            getattr(self, name)[row] = default
        self.evidence_path[self.evidence_path == row] = NO_PATH
        heapq.heappush(self._free, row)
        self._order = None
        return row

    def _grow(self) -> None:
        for name, (dtype, default) in _COLUMNS.items():
            old = getattr(self, name)
            new: NDArray[Any] = np.full(2 * len(old), default, dtype=dtype)
            new[: len(old)] = old
            setattr(self, name, new)
