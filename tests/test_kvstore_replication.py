"""The coordinator against replicas that the test commands: majorities, failures, slowness, and who wins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antientropy.store import Row
from antientropy.stores.memory import MemoryRowStore
from kvstore.errors import (
    ClockDriftError,
    KvStoreError,
    NotEnoughReplicasError,
    ReadTimeoutError,
    ReplicaFailureError,
    StorageError,
    UnreachableError,
    WriteTimeoutError,
)
from kvstore.hlc import HybridLogicalClock, version_at
from kvstore.replication import Consistency, Coordinator, EveryNode, Mutation, Page, majority_of, newest

ONE, TWO, THREE = "10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000"
ALL = (ONE, TWO, THREE)
NOW = 1_000_000.0


class FakeReplicas:
    """Replicas in memory; each may fail, or wait until it is let go."""

    def __init__(self) -> None:
        self.stores = {endpoint: MemoryRowStore() for endpoint in ALL}
        self.faults: dict[str, KvStoreError] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.calls: list[str] = []
        self.page_rows = 3

    async def _serve(self, endpoint: str) -> None:
        self.calls.append(endpoint)
        if endpoint in self.gates:
            await self.gates[endpoint].wait()
        if endpoint in self.faults:
            raise self.faults[endpoint]

    async def apply_rows(self, endpoint: str, rows: Sequence[Row], timeout_seconds: float) -> None:
        await self._serve(endpoint)
        self.stores[endpoint].apply(rows)

    async def read_rows(self, endpoint: str, keys: Sequence[bytes], timeout_seconds: float) -> Sequence[Row]:
        await self._serve(endpoint)
        return [row for row in self.stores[endpoint].get_many(keys) if row is not None]

    async def scan_rows(
        self, endpoint: str, prefix: bytes, after_key: bytes, rows_max: int, timeout_seconds: float
    ) -> Page:
        await self._serve(endpoint)
        limit = min(self.page_rows, rows_max)
        found = self.stores[endpoint].scan(after_key=after_key or None, limit=limit)
        rows = tuple(row for row in found if row.key.startswith(prefix))
        return Page(rows, found[-1].key if len(found) == limit else None)

    def everything(self, endpoint: str) -> list[Row]:
        return self.stores[endpoint].scan()


class Cluster:
    """A coordinator on node ONE."""

    def __init__(self, *, timeout_seconds: float = 30.0) -> None:
        self.replicas = FakeReplicas()
        self.endpoints: tuple[str, ...] = ALL
        self.alive = set(ALL)
        self.replication_factor = 3
        self.clock = HybridLogicalClock(lambda: NOW, drift_seconds_max=5.0)
        self.coordinator = Coordinator(
            local_endpoint=ONE,
            placement=lambda: EveryNode(self.endpoints, frozenset(self.alive), self.replication_factor),
            replicas=self.replicas,
            clock=self.clock,
            write_timeout_seconds=timeout_seconds,
            read_timeout_seconds=timeout_seconds,
        )

    def gate(self, endpoint: str) -> asyncio.Event:
        return self.replicas.gates.setdefault(endpoint, asyncio.Event())

    async def put(self, key: bytes, value: bytes) -> int:
        return await self.coordinator.write([Mutation(key, value)])

    async def scan_all(self, **options: object) -> list[Row]:
        batches = self.coordinator.scan(**options)  # type: ignore[arg-type]  # options of the test
        return [row async for batch in batches for row in batch]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    yield made
    for gate in made.replicas.gates.values():
        gate.set()
    await made.coordinator.close()


@pytest.mark.parametrize(
    ("factor", "known", "expected"),
    [(1, 1, (1, 1)), (3, 1, (2, 3)), (3, 2, (2, 3)), (3, 3, (2, 3)), (3, 5, (3, 5)), (4, 4, (3, 4)), (5, 3, (3, 5))],
)
def test_the_majority_is_of_the_factor_or_of_the_nodes_known(
    factor: int, known: int, expected: tuple[int, int]
) -> None:
    assert majority_of(factor, known) == expected


async def test_a_write_reaches_all_replicas(cluster: Cluster) -> None:
    version = await cluster.put(b"city", b"Paris")
    await cluster.coordinator.close()
    for endpoint in ALL:
        assert cluster.replicas.everything(endpoint) == [Row(b"city", version, b"Paris")]


async def test_mutations_of_one_call_have_consecutive_versions(cluster: Cluster) -> None:
    mutations = [Mutation(b"a", b"1"), Mutation(b"a", b"2"), Mutation(b"b", b"3"), Mutation(b"b", deleted=True)]
    first = await cluster.coordinator.write(mutations)
    await cluster.coordinator.close()
    assert cluster.replicas.calls == list(ALL)
    assert cluster.replicas.stores[TWO].get(b"a") == Row(b"a", first + 1, b"2")
    assert cluster.replicas.stores[TWO].get(b"b") == Row(b"b", first + 3, b"", deleted=True)


async def test_a_slow_replica_does_not_delay_the_acknowledgement_and_gets_the_row_later(cluster: Cluster) -> None:
    gate = cluster.gate(THREE)
    await cluster.put(b"city", b"Paris")
    assert cluster.replicas.everything(THREE) == []
    gate.set()
    await cluster.coordinator.close()
    assert len(cluster.replicas.everything(THREE)) == 1


async def test_it_is_not_acknowledged_before_a_majority_has_it(cluster: Cluster) -> None:
    gates = [cluster.gate(TWO), cluster.gate(THREE)]
    writing = asyncio.create_task(cluster.put(b"city", b"Paris"))
    while len(cluster.replicas.calls) < 3:
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(cluster.replicas.everything(ONE)) == 1
    assert not writing.done()
    gates[0].set()
    await writing


async def test_a_replica_that_fails_after_the_majority_changes_nothing(cluster: Cluster) -> None:
    gate = cluster.gate(THREE)
    cluster.replicas.faults[THREE] = StorageError("not written: no space left")
    await cluster.put(b"city", b"Paris")
    gate.set()
    await cluster.coordinator.close()
    assert cluster.replicas.everything(THREE) == []


async def test_this_node_may_be_the_one_that_fails(cluster: Cluster) -> None:
    cluster.replicas.faults[ONE] = StorageError("not written: no space left")
    await cluster.put(b"city", b"Paris")
    found = await cluster.coordinator.read(b"city", Consistency.QUORUM)
    assert found is not None
    assert found.value == b"Paris"


async def test_not_enough_live_replicas_is_said_at_once_and_nothing_is_sent(cluster: Cluster) -> None:
    cluster.alive = {ONE}
    with pytest.raises(NotEnoughReplicasError, match="needs 2 of 3 replicas, 1 alive"):
        await cluster.put(b"city", b"Paris")
    with pytest.raises(NotEnoughReplicasError, match="needs 2 of 3 replicas, 1 alive"):
        await cluster.coordinator.read(b"city", Consistency.QUORUM)
    with pytest.raises(NotEnoughReplicasError):
        await cluster.scan_all()
    assert cluster.replicas.calls == []
    assert await cluster.coordinator.read(b"city", Consistency.LOCAL) is None


async def test_a_node_that_knows_nobody_yet_is_no_majority(cluster: Cluster) -> None:
    cluster.endpoints, cluster.alive = (ONE,), {ONE}
    with pytest.raises(NotEnoughReplicasError, match="needs 2 of 3 replicas, 1 alive"):
        await cluster.put(b"city", b"Paris")
    cluster.replication_factor = 1
    await cluster.put(b"city", b"Paris")


async def test_replicas_that_are_down_are_not_tried(cluster: Cluster) -> None:
    cluster.alive = {ONE, THREE}
    await cluster.put(b"city", b"Paris")
    await cluster.coordinator.close()
    assert cluster.replicas.calls == [ONE, THREE]


async def test_failures_that_make_a_majority_impossible_are_told_at_once(cluster: Cluster) -> None:
    cluster.gate(ONE)
    cluster.replicas.faults = {TWO: UnreachableError("connection refused"), THREE: StorageError("disk full")}
    with pytest.raises(ReplicaFailureError) as caught:
        await cluster.put(b"city", b"Paris")
    assert str(caught.value) == f"needs 2 of 3 replicas: {TWO}: connection refused; {THREE}: disk full"


async def test_a_replica_that_misses_an_acknowledged_write_is_named_in_the_log_once(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.replicas.faults = {THREE: StorageError("disk full")}
    for _ in range(3):
        await cluster.put(b"city", b"Paris")
        await cluster.coordinator.read(b"city", Consistency.QUORUM)
    await cluster.coordinator.close()
    (line,) = caplog.messages
    assert line.startswith(f"replica {THREE} missed a write: disk full; run `nodetool repair`")


async def test_failures_of_one_kind_keep_their_class(cluster: Cluster) -> None:
    cluster.replicas.faults = dict.fromkeys((TWO, THREE), StorageError("disk full"))
    with pytest.raises(StorageError, match="disk full"):
        await cluster.put(b"city", b"Paris")


async def test_a_majority_that_does_not_answer_in_time() -> None:
    cluster = Cluster(timeout_seconds=0.05)
    gates = [cluster.gate(TWO), cluster.gate(THREE)]
    with pytest.raises(WriteTimeoutError, match=r"1 of 3 replicas answered within 0\.05 s, 2 needed; the write may"):
        await cluster.put(b"city", b"Paris")
    with pytest.raises(ReadTimeoutError, match="2 needed"):
        await cluster.coordinator.read(b"city", Consistency.QUORUM)
    for gate in gates:
        gate.set()
    await cluster.coordinator.close()


async def test_an_unexpected_exception_is_not_swallowed(cluster: Cluster) -> None:
    cluster.replicas.faults[ONE] = RuntimeError("a bug")  # type: ignore[assignment]  # what may not happen
    with pytest.raises(RuntimeError, match="a bug"):
        await cluster.put(b"city", b"Paris")


async def test_a_quorum_read_sees_the_newest_of_a_majority_and_heals_nothing(cluster: Cluster) -> None:
    old, new = Row(b"city", 1, b"old"), Row(b"city", version_at(NOW + 1), b"new")
    cluster.replicas.stores[ONE].apply([old])
    cluster.replicas.stores[TWO].apply([new])
    cluster.alive = {ONE, TWO}
    assert await cluster.coordinator.read(b"city", Consistency.LOCAL) == old
    assert await cluster.coordinator.read(b"city", Consistency.QUORUM) == new
    assert cluster.replicas.everything(ONE) == [old]
    # What is written after it was read wins over it, although the clock here is behind.
    assert await cluster.put(b"city", b"newer") > new.version


async def test_a_tombstone_is_newer_than_the_value_it_deleted(cluster: Cluster) -> None:
    cluster.replicas.stores[ONE].apply([Row(b"city", 5, b"Paris")])
    cluster.replicas.stores[TWO].apply([Row(b"city", 5, b"", deleted=True)])
    cluster.alive = {ONE, TWO}
    row = await cluster.coordinator.read(b"city", Consistency.QUORUM)
    assert row is not None
    assert row.deleted


async def test_a_clock_that_cannot_be_used_sends_nothing(cluster: Cluster) -> None:
    cluster.coordinator._clock = HybridLogicalClock(
        lambda: NOW, drift_seconds_max=5.0, start_version=version_at(NOW + 60)
    )
    with pytest.raises(ClockDriftError):
        await cluster.put(b"city", b"Paris")
    assert cluster.replicas.calls == []


rows = st.builds(
    lambda key, version, value, deleted: Row(key, version, b"" if deleted else value, deleted),
    st.sampled_from([b"a", b"b", b"c"]),
    st.integers(min_value=1, max_value=3),
    st.sampled_from([b"", b"x", b"y"]),
    st.booleans(),
)


@given(st.lists(rows, max_size=6), st.randoms(use_true_random=False))
def test_replicas_converge_whatever_the_order_and_repetition(written: list[Row], random: object) -> None:
    orders = [written, written[::-1], written + written[::-1]]
    results = []
    for order in orders:
        store = MemoryRowStore()
        for row in order:
            store.apply([row])
        results.append(store.scan())
    assert results[0] == results[1] == results[2]
    for row in results[0]:
        assert row == newest(candidate for candidate in written if candidate.key == row.key)


def test_ties_are_decided_by_content() -> None:
    candidates = [Row(b"k", 7, b"a"), Row(b"k", 7, b"b"), Row(b"k", 7, b"", deleted=True)]
    assert {newest(order) for order in permutations(candidates)} == {candidates[2]}
    assert newest([]) is None


@given(
    st.lists(st.lists(rows, max_size=12), min_size=3, max_size=3),
    st.integers(min_value=1, max_value=5),
    st.integers(min_value=0, max_value=4),
    st.sampled_from([b"", b"a"]),
    st.booleans(),
)
def test_a_quorum_scan_is_the_merge_of_its_replicas(
    contents: list[list[Row]], page_rows: int, rows_max: int, prefix: bytes, include_tombstones: bool
) -> None:
    async def scan() -> tuple[list[Row], Cluster]:
        cluster = Cluster()
        cluster.replicas.page_rows = page_rows
        for endpoint, content in zip(ALL, contents, strict=True):
            # More keys than the strategy has: the order of tokens is not that of keys.
            cluster.replicas.stores[endpoint].apply(
                [Row(row.key + b"%d" % (n % 5), row.version, row.value, row.deleted) for n, row in enumerate(content)]
            )
        found = await cluster.scan_all(prefix=prefix, rows_max=rows_max, include_tombstones=include_tombstones)
        return found, cluster

    found, cluster = asyncio.run(scan())
    merged = MemoryRowStore()
    for endpoint in (ONE, TWO):  # the first two of three are the majority
        merged.apply(cluster.replicas.everything(endpoint))
    expected = [row for row in merged.scan() if row.key.startswith(prefix) and (include_tombstones or not row.deleted)]
    assert found == (expected[:rows_max] if rows_max else expected)


async def test_a_local_scan_reads_only_this_replica(cluster: Cluster) -> None:
    cluster.replicas.stores[ONE].apply([Row(b"mine", 1, b"x")])
    cluster.replicas.stores[TWO].apply([Row(b"yours", 1, b"x")])
    assert [row.key for row in await cluster.scan_all(consistency=Consistency.LOCAL)] == [b"mine"]


async def test_a_scan_continues_behind_a_key(cluster: Cluster) -> None:
    await cluster.coordinator.write([Mutation(b"key%d" % number, b"x") for number in range(20)])
    await cluster.coordinator.close()
    everything = await cluster.scan_all()
    assert len(everything) == 20
    assert await cluster.scan_all(after_key=everything[11].key) == everything[12:]
