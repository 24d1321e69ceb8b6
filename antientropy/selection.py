"""Which ranges a repair is about, who takes part, and how long ago ranges were repaired."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from antientropy.core import deletes
from antientropy.core.tokens import TokenRange
from antientropy.core.work import without
from antientropy.errors import RepairRequestError
from antientropy.journal import RepairedPart
from antientropy.limits import JOBS_MAX, REPLICAS_MAX
from antientropy.membership import Membership, ReplicatedRange
from antientropy.options import RepairOptions
from antientropy.reports import RangeSummary


def chosen_ranges(
    keyspace: str, options: RepairOptions, membership: Membership
) -> tuple[list[ReplicatedRange], list[tuple[str, ...]]]:
    """The ranges that are asked for, and which of the other replicas of each take part, by endpoint.

    Neighbours with the same replicas are one range: one round trip instead of one for each token of the ring.

    Raises:
        RepairRequestError: the request is wrong.
    """
    if not 1 <= options.jobs <= JOBS_MAX:
        raise RepairRequestError(f"{options.jobs} jobs: 1 to {JOBS_MAX} ranges can be repaired at once")
    held = membership.ranges(keyspace)
    wanted = [one for one in held if not options.primary_only or one.primary == membership.local_endpoint]
    if options.token_ranges:
        _check_held(options.token_ranges, held, keyspace)
        wanted = [
            ReplicatedRange(part, one.replicas, one.primary, one.complete)
            for asked in options.token_ranges
            for one in wanted
            if (part := one.token_range.intersection(asked)) is not None
        ]
    if not wanted:
        what = "no primary range" if options.primary_only else "no range"
        raise RepairRequestError(f"this node holds {what} of keyspace {keyspace} that was asked for")
    ranges = _merged(sorted(wanted, key=lambda one: one.token_range))
    for one in ranges:
        if len(one.replicas) > REPLICAS_MAX:
            raise RepairRequestError(f"{len(one.replicas)} replicas: at most {REPLICAS_MAX} can be repaired at once")
    return ranges, _peers(keyspace, options, ranges, membership)


def _check_held(asked: Sequence[TokenRange], held: Sequence[ReplicatedRange], keyspace: str) -> None:
    for before, after in pairwise(asked):
        if after.first <= before.last:
            raise RepairRequestError(f"token ranges {before} and {after} overlap, or are not ascending")
    for one in asked:
        if gaps := without(one, sorted(part.token_range for part in held)):
            raise RepairRequestError(f"tokens {gaps[0]} of keyspace {keyspace} are not held by this node")


def _merged(ranges: Sequence[ReplicatedRange]) -> list[ReplicatedRange]:
    merged: list[ReplicatedRange] = []
    for one in ranges:
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.token_range.last + 1 == one.token_range.first
            and (set(last.replicas), last.complete) == (set(one.replicas), one.complete)
        ):
            whole = TokenRange(last.token_range.first, one.token_range.last)
            merged[-1] = ReplicatedRange(whole, last.replicas, last.primary, last.complete)
        else:
            merged.append(one)
    return merged


def _peers(
    keyspace: str, options: RepairOptions, ranges: Sequence[ReplicatedRange], membership: Membership
) -> list[tuple[str, ...]]:
    local = membership.local_endpoint
    others = {endpoint for one in ranges for endpoint in one.replicas} - {local}
    if strangers := sorted(set(options.peers) - others - {local}):
        known = ", ".join(sorted(others)) or "none"
        raise RepairRequestError(f"{', '.join(strangers)}: no other replica of {keyspace}; the others are: {known}")
    centers = {endpoint: membership.datacenter(endpoint) for endpoint in others | {local}}
    if missing := sorted(set(options.datacenters) - set(centers.values())):
        known = ", ".join(sorted(set(centers.values()) - {""})) or "none"
        raise RepairRequestError(f"no replica of {keyspace} is in data centre {', '.join(missing)}; there is: {known}")
    chosen = {
        endpoint
        for endpoint in others
        if (not options.peers or endpoint in options.peers)
        and (not options.datacenters or centers[endpoint] in options.datacenters)
    }
    return [tuple(sorted(set(one.replicas) & chosen)) for one in ranges]


def range_summaries(
    keyspace: str, held: Sequence[ReplicatedRange], parts: Sequence[RepairedPart], floors: NDArray[np.uint64]
) -> list[RangeSummary]:
    """How long ago each range was repaired whole, with the replicas that it has now."""
    summaries = []
    for one in held:
        replicas = tuple(sorted(one.replicas))
        inside = [
            part
            for part in parts
            if part.replicas == replicas and part.token_range.intersection(one.token_range) is not None
        ]
        gaps = without(one.token_range, [part.token_range for part in inside])
        summaries.append(
            RangeSummary(
                keyspace=keyspace,
                token_range=one.token_range,
                repaired_at=None if gaps or not inside else min(part.repaired_at for part in inside),
                purged_version=int(floors[deletes.buckets_touched(one.token_range)].min()),
                differences_last=sum(part.differences for part in inside),
                due_at=None,
                stalled=False,
            )
        )
    return summaries
