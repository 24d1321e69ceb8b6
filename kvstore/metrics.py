"""What a node counts of its rows and writes, beside the series of gossip (``nodetool info --counters``).

* ``kvstore_rows``, ``kvstore_tombstones``, ``kvstore_stored_bytes``: what the replica holds, tombstones included.
* ``kvstore_commits_total``, ``kvstore_commit_failures_total``: transactions of clients' writes.
* ``kvstore_commit_latency_seconds``: of the last seconds' writes, from call to disk; missing while there are none.
* ``kvstore_rows_refused_total``: rows that were older than what repair has settled.
* ``antientropy_...``: those of repair, see :mod:`antientropy.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable

from antientropy.errors import StoreClosedError
from kvstore.store import NodeStore
from kvstore.writer import GroupCommitWriter


def store_series(store: NodeStore, writer: GroupCommitWriter) -> Iterable[tuple[str, float]]:
    """The series of the replica; none once the store is closed."""
    try:
        stored_bytes = store.stored_bytes
    except StoreClosedError:
        return
    yield "kvstore_rows", store.row_count
    yield "kvstore_tombstones", store.tombstone_count
    yield "kvstore_stored_bytes", stored_bytes
    yield "kvstore_rows_refused_total", store.rows_refused
    yield "kvstore_commits_total", writer.commits
    yield "kvstore_commit_failures_total", writer.failures
    latency_seconds = writer.recent_latency_seconds()
    if latency_seconds is not None:
        yield "kvstore_commit_latency_seconds", latency_seconds
