"""What a repair would move, row by row counted, without moving anything."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from antientropy.core.plan import RepairPlan
from antientropy.core.rows import Row
from antientropy.limits import PREVIEW_KEYS_MAX, TOKENS_PER_REQUEST_MAX
from antientropy.peer_client import PeerClient
from antientropy.reports import FlowPreview
from antientropy.running import RunContext
from antientropy.snapshots import ReplicaSnapshot


@dataclass(slots=True)
class _Flow:
    """Sums of one direction."""

    rows: int = 0
    row_bytes: int = 0
    tombstones: int = 0
    first_keys: list[bytes] = field(default_factory=list)

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.rows += 1
            self.row_bytes += len(row.key) + len(row.value)
            self.tombstones += row.deleted
            if len(self.first_keys) < PREVIEW_KEYS_MAX:
                self.first_keys.append(row.key)

    def join(self, other: _Flow) -> None:
        self.rows += other.rows
        self.row_bytes += other.row_bytes
        self.tombstones += other.tombstones
        self.first_keys = (self.first_keys + other.first_keys)[:PREVIEW_KEYS_MAX]


class PreviewTable:
    """Collects the flows of all units of a preview.

    Of rows that only a peer has, the sizes are with that peer: they are read there and counted here, not applied.
    Tokens that several keys share (once in 2**64 pairs of keys) are not in the flows.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._flows: dict[tuple[str, str], _Flow] = {}

    async def add(self, plan: RepairPlan, snapshot: ReplicaSnapshot, clients: list[PeerClient]) -> None:
        """Count what a plan would move between the coordinator and the peers of ``clients``.

        Raises:
            PeerError: a peer failed.
            StoreError: the own store failed.
        """
        found: dict[tuple[str, str], _Flow] = {}
        names = [self._context.local, *(client.endpoint for client in clients)]
        for source, name in enumerate(names):
            targets = {
                names[target]: frozenset(plan.tokens[plan.sources[target] == source].tolist())
                for target in range(len(names))
            }
            tokens = plan.tokens[(plan.sources == source).any(axis=0)]
            for start in range(0, len(tokens), TOKENS_PER_REQUEST_MAX):
                page = tokens[start : start + TOKENS_PER_REQUEST_MAX]
                if source:
                    async with aclosing(clients[source - 1].fetch(page)) as chunks:
                        async for rows in chunks:
                            _count(found, name, targets, rows)
                else:
                    _count(found, name, targets, await self._context.in_thread(_own_rows, snapshot, page))

        # Only what was counted whole: a unit of which a peer fails meanwhile is looked at again.
        for direction, flow in found.items():
            self._flows.setdefault(direction, _Flow()).join(flow)

    def flows(self) -> tuple[FlowPreview, ...]:
        """One for each direction in which anything would travel, in the order of endpoints."""
        return tuple(
            FlowPreview(source, target, flow.rows, flow.row_bytes, flow.tombstones, tuple(flow.first_keys))
            for (source, target), flow in sorted(self._flows.items())
        )


def _count(
    flows: dict[tuple[str, str], _Flow], source: str, targets: dict[str, frozenset[int]], rows: list[Row]
) -> None:
    for target, tokens in targets.items():
        if tokens:
            flow = flows.setdefault((source, target), _Flow())
            flow.add(row for row in rows if row.token in tokens)


def _own_rows(snapshot: ReplicaSnapshot, tokens: NDArray[np.uint64]) -> list[Row]:
    return list(snapshot.rows_at(tokens.tolist()))
