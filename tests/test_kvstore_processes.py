"""Real nodes on loopback: joining, dying, coming back, leaving, replication, repair, faults."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from antientropy.v1 import admin_pb2 as repair_pb
from antientropy.v1 import admin_pb2_grpc as repair_grpc
from gossiper.v1 import admin_pb2 as gossip_pb
from gossiper.v1 import admin_pb2_grpc as gossip_grpc
from gossiper.v1 import gossip_pb2 as gossip_messages
from gossiper.v1 import gossip_pb2_grpc as gossip_service
from kvstore.errors import KvStoreError, NotEnoughReplicasError, StorageError, UnreachableError
from kvstore.replication import Consistency, Mutation

if TYPE_CHECKING:
    from kvstore.client import KeyValueClient
    from tests.conftest import ClusterFactory, NodeFactory, NodeProcess

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

Eventually = Callable[..., None]


def states_of(observer: NodeProcess, endpoint: str) -> dict[str, str]:
    """The application states of an endpoint as a node sees them, and its liveness and generation."""
    with grpc.insecure_channel(observer.admin) as channel:
        view = gossip_grpc.GossipAdminServiceStub(channel).GetClusterView(gossip_pb.GetClusterViewRequest(), timeout=10)
    for one in view.endpoints:
        if one.endpoint == endpoint:
            states = {state.key: state.value for state in one.states}
            return {**states, "liveness": gossip_pb.Liveness.Name(one.liveness), "generation": str(one.generation)}
    return {}


def is_down(observer: NodeProcess, node: NodeProcess) -> bool:
    return states_of(observer, node.peers).get("liveness") == "LIVENESS_DOWN"


def repair(node: NodeProcess) -> list[repair_pb.RepairUpdate]:
    with grpc.insecure_channel(node.admin) as channel:
        return list(repair_grpc.RepairAdminServiceStub(channel).Repair(repair_pb.RepairRequest(), timeout=60))


def root_of(node: NodeProcess) -> tuple[bytes, int, int]:
    with grpc.insecure_channel(node.admin) as channel:
        stub = repair_grpc.RepairAdminServiceStub(channel)
        replica = stub.DescribeReplica(repair_pb.DescribeReplicaRequest(), timeout=10)
    return replica.root_digest, replica.row_count, replica.tombstone_count


def replica_of(node: NodeProcess) -> list[Any]:
    """Every row that a node itself holds."""
    with node.client() as client:
        return list(client.scan(consistency=Consistency.LOCAL, include_tombstones=True))


def test_nodes_join_through_a_seed_and_share_their_rows(
    cluster_factory: ClusterFactory, eventually: Eventually
) -> None:
    one, two, three = cluster_factory(3)
    states = states_of(one, three.peers)
    assert states["RPC_READY"] == "true"
    assert states["NATIVE_ADDRESS_AND_PORT"] == three.clients
    assert states["SCHEMA"] == states_of(two, one.peers)["SCHEMA"]
    with one.client() as first, three.client() as third:
        version = first.put(b"city", b"Paris")
        found = third.get(b"city")
        assert found is not None
        assert (found.value, found.version) == (b"Paris", version)
        assert third.put(b"city", b"Rome") > version
        assert third.delete(b"other") > version
        found = first.get(b"city")
        assert found is not None
        assert found.value == b"Rome"
        assert first.get(b"other") is None
    # A write goes to all replicas, also when a majority has acknowledged it already.
    eventually(lambda: [row.key for row in replica_of(two)] == [row.key for row in replica_of(one)])
    assert {row.key: row.deleted for row in replica_of(three)} == {b"city": False, b"other": True}
    assert float(states["LOAD"]) > 0


def test_death_and_return_repair_and_nothing_but_repair(
    cluster_factory: ClusterFactory, eventually: Eventually
) -> None:
    one, two, three = cluster_factory(3)
    with one.client() as client:
        client.write([Mutation(b"key%03d" % number, b"old") for number in range(300)])
    eventually(lambda: root_of(one) == root_of(two) == root_of(three))
    before = states_of(one, three.peers)["generation"]

    three.kill()
    eventually(lambda: is_down(one, three) and is_down(two, three), what="the others notice the death")
    with two.client() as client:
        client.write([Mutation(b"key%03d" % number, b"new") for number in range(20)])
        client.write([Mutation(b"key%03d" % number, deleted=True) for number in range(20, 30)])

    three.start()
    eventually(lambda: one.alive_count() == two.alive_count() == three.alive_count() == 3)
    assert int(states_of(one, three.peers)["generation"]) > int(before)
    with one.client() as client:
        found = client.get(b"key005")
        assert found is not None
        assert found.value == b"new"
        assert client.get(b"key025") is None
    assert root_of(one) == root_of(two) != root_of(three), "neither gossip nor reads heal a replica"
    assert root_of(three)[1:] == (300, 0)

    last = repair(one)[-1]
    assert last.state == repair_pb.SESSION_STATE_COMPLETED, last.message
    assert last.statistics.rows_differing == 30
    assert last.statistics.rows_moved == last.statistics.rows_optimal == 30
    assert root_of(one) == root_of(two) == root_of(three)
    assert replica_of(one) == replica_of(two) == replica_of(three)
    assert root_of(three)[1:] == (300, 10)

    again = repair(three)[-1]
    assert again.state == repair_pb.SESSION_STATE_COMPLETED
    assert again.statistics.rows_moved == again.statistics.rows_differing == again.statistics.move_bytes == 0
    assert again.statistics.pairs_equal == again.statistics.pairs_compared
    # Another coordinator may know less of what was purged, which takes one more.
    assert again.statistics.round_trips <= 2


def test_a_minority_refuses_at_once_and_still_reads_itself(
    cluster_factory: ClusterFactory, eventually: Eventually
) -> None:
    one, two, three = cluster_factory(3)
    with one.client() as client:
        client.put(b"city", b"Paris")
        two.kill()
        three.kill()
        eventually(lambda: is_down(one, two) and is_down(one, three))
        with pytest.raises(NotEnoughReplicasError, match="needs 2 of 3 replicas, 1 alive"):
            client.put(b"city", b"Rome")
        with pytest.raises(NotEnoughReplicasError):
            client.get(b"city")
        found = client.get(b"city", consistency=Consistency.LOCAL)
        assert found is not None
        assert found.value == b"Paris"
    refused = one.kvstore("put", "city", "Rome")
    assert refused.returncode == 1
    assert refused.stderr.decode() == "kvstore: needs 2 of 3 replicas, 1 alive; see `nodetool status`\n"
    three.start()
    eventually(lambda: one.alive_count() == 2)
    with one.client() as client:
        client.put(b"city", b"Rome")


def test_a_hanging_replica_costs_nothing_that_a_majority_needs(
    cluster_factory: ClusterFactory, eventually: Eventually
) -> None:
    one, _two, three = cluster_factory(3)
    three.pause()
    try:
        with one.client() as client:
            for number in range(20):
                client.put(b"key%d" % number, b"value")
                assert client.get(b"key%d" % number) is not None
        eventually(lambda: is_down(one, three))
    finally:
        three.resume()
    eventually(lambda: one.alive_count() == 3 and three.alive_count() == 3)


def test_an_acknowledged_write_survives_sigkill(node_factory: NodeFactory) -> None:
    node = node_factory()
    written = {}
    with node.client() as client:
        for number in range(50):
            written[b"key%d" % number] = client.put(b"key%d" % number, b"value%d" % number)
        node.kill()
        with pytest.raises(UnreachableError):
            client.put(b"lost", b"perhaps")
    node.start()
    assert {row.key: row.version for row in replica_of(node)} == written
    with node.client() as client:
        assert client.put(b"key0", b"again") > max(written.values())


def test_a_kill_in_the_middle_of_writing_loses_nothing_acknowledged(
    node_factory: NodeFactory, eventually: Eventually
) -> None:
    node = node_factory()
    for turn in range(3):
        acknowledged: set[bytes] = set()
        command = [sys.executable, "-c", WRITER, node.clients, str(turn)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for line in writer.stdout:
                acknowledged.add(line.strip().encode())
                if len(acknowledged) == 40:
                    node.kill()
            assert writer.wait(30) == 0
        assert len(acknowledged) >= 40
        node.start()
        assert acknowledged <= {row.key for row in replica_of(node)}


WRITER = """
import sys
from kvstore.client import KeyValueClient
from kvstore.errors import KvStoreError
with KeyValueClient(sys.argv[1]) as client:
    for number in range(1_000_000):
        key = f"turn{sys.argv[2]}-{number}"
        try:
            client.put(key.encode(), b"x" * 2_000)
        except KvStoreError:
            break
        print(key, flush=True)
"""


def test_sigterm_announces_the_shutdown_and_leaves_cleanly(
    cluster_factory: ClusterFactory, eventually: Eventually
) -> None:
    one, two, three = cluster_factory(3)
    assert three.terminate() == 0
    # By its own word, not by suspicion.
    eventually(lambda: states_of(one, three.peers)["STATUS"].startswith("shutdown"))
    eventually(lambda: states_of(two, three.peers)["STATUS"].startswith("shutdown"))
    assert states_of(one, three.peers)["RPC_READY"] == "false"
    assert is_down(one, three)
    assert not three.ready_path.exists()
    assert "SIGTERM: announcing the shutdown" in three.log
    with one.client() as client:
        client.put(b"city", b"Paris")
    # Ctrl-C does the same.
    two.running.send_signal(signal.SIGINT)
    assert two.wait() == 0
    for node in (one, two, three):
        assert "Traceback" not in node.log


def test_a_second_signal_aborts(node_factory: NodeFactory) -> None:
    node = node_factory()
    # Stopped, it finds both when it goes on: the second before the first is done.
    node.pause()
    node.running.send_signal(signal.SIGTERM)
    node.running.send_signal(signal.SIGINT)
    node.resume()
    assert node.wait() in {128 + signal.SIGTERM, 128 + signal.SIGINT}
    assert "aborted without a goodbye" in node.log


def test_the_end_of_stdin_stops_a_node(node_factory: NodeFactory) -> None:
    node = node_factory()
    assert node.running.stdin is not None
    node.running.stdin.close()
    assert node.wait() == 0
    assert "end of stdin" in node.log


@pytest.mark.parametrize("listener", ["peers", "clients", "admin"])
def test_a_port_in_use_is_one_clear_line(node_factory: NodeFactory, listener: str) -> None:
    node = node_factory()
    other = node_factory(start=False, **{f"listen_{listener}": node.addresses[listener]})
    other.spawn()
    assert other.wait() == 1
    last = other.log.splitlines()[-1]
    assert last.startswith("kvstore serve: ")
    assert node.addresses[listener] in last
    assert "in use" in last
    assert "Traceback" not in other.log
    assert "add_port" not in other.log, "gRPC's own remark is a second line"
    assert not other.ready_path.exists()
    with node.client() as client:
        client.put(b"still", b"here")


def test_a_data_directory_belongs_to_one_node(node_factory: NodeFactory) -> None:
    node = node_factory()
    other = node_factory(start=False, data_dir=node.data_dir)
    other.spawn()
    assert other.wait() == 1
    assert other.log.splitlines()[-1] == (
        f"kvstore serve: {node.data_dir} is used by another node; give each node its own --data-dir"
    )


def test_an_unusable_data_directory_is_told_at_the_start(node_factory: NodeFactory, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, text in ((tmp_path / "file", "cannot be used"), (Path("/proc/kvstore"), "cannot be used")):
        node = node_factory(start=False, data_dir=place)
        node.spawn()
        assert node.wait() == 1
        assert text in node.log
        assert "Traceback" not in node.log
        assert len([line for line in node.log.splitlines() if line.startswith("kvstore serve:")]) == 1


def with_files_of_at_most(kibibytes: int) -> list[str]:
    """A disk that is full: writes beyond the limit fail."""
    return ["sh", "-c", f'ulimit -f {kibibytes * 2}; exec "$@"', "sh"]


def test_a_full_disk_at_the_start_is_one_clear_line(node_factory: NodeFactory) -> None:
    node = node_factory(start=False)
    node.prefix = with_files_of_at_most(4)
    node.spawn()
    assert node.wait() == 1
    (line,) = node.log.splitlines()
    assert line.startswith(f"kvstore serve: the data directory {node.data_dir} cannot be used: ")
    assert "no space left" in line


def test_a_disk_that_fills_up_fails_writes_and_not_the_node(node_factory: NodeFactory) -> None:
    node = node_factory(start=False)
    node.prefix = with_files_of_at_most(2048)
    node.start()
    with node.client() as client:
        with pytest.raises(StorageError, match="no space left"):
            fill_up(client)
        rows = client.describe().row_count
        assert rows > 10
        assert len(list(client.scan())) == rows
    node.kill()
    node.prefix = []
    node.start()
    assert node.describe().row_count == rows
    with node.client() as client:
        client.put(b"after", b"there is room again")


def fill_up(client: KeyValueClient) -> None:
    for number in range(1_000):
        client.put(b"key%d" % number, bytes(20_000))


def test_a_full_store_answers_clearly_and_the_node_stays_up(node_factory: NodeFactory) -> None:
    node = node_factory(map_bytes_max=2 * 1024 * 1024)
    with node.client() as client:
        with pytest.raises(StorageError, match="map_bytes_max"):
            fill_up(client)
        found = client.get(b"key0")
        assert found is not None
        assert len(found.value) == 20_000
        assert client.describe().row_count > 10
    refused = node.kvstore("put", "more", "x" * 20_000)
    assert refused.returncode == 1
    assert refused.stderr.decode().startswith("kvstore: ")
    assert node.running.poll() is None


def test_a_full_replica_does_not_stop_the_others(cluster_factory: ClusterFactory, eventually: Eventually) -> None:
    one, two, three = cluster_factory(3)
    three.terminate()
    three.options["map_bytes_max"] = 1024 * 1024
    three.start()
    eventually(lambda: one.alive_count() == 3)
    with one.client() as client:
        for number in range(100):
            client.put(b"key%d" % number, bytes(20_000))
        assert client.describe().row_count == 100
    assert two.describe().row_count >= 99
    assert three.describe().row_count < 100
    assert three.running.poll() is None


def test_a_foreign_cluster_is_refused_and_logged_once(node_factory: NodeFactory) -> None:
    one = node_factory(cluster_name="ours")
    two = node_factory(start=False, cluster_name="theirs", seeds=[one.peers])
    two.spawn()
    assert two.wait() == 1
    assert "this is cluster 'ours', not 'theirs'" in two.log.splitlines()[-1], "the one who asks is told why"
    foreign = gossip_messages.GossipDigestSyn(
        sender=gossip_messages.Sender(cluster_name="theirs", protocol_version=1, endpoint="127.0.0.1:1", generation=1)
    )
    with grpc.insecure_channel(one.peers) as channel:
        for _ in range(10):
            with pytest.raises(grpc.RpcError, match="cluster_mismatch"):
                gossip_service.GossipServiceStub(channel).Exchange(foreign, timeout=10)
    with grpc.insecure_channel(one.admin) as channel:
        info = gossip_grpc.GossipAdminServiceStub(channel).GetNodeInfo(gossip_pb.GetNodeInfoRequest(), timeout=10)
    refused = [counter.value for counter in info.counters if "cluster_mismatch" in counter.name]
    assert max(refused) >= 11
    assert len([line for line in one.log.splitlines() if "theirs" in line]) == 1
    assert [replica.endpoint for replica in one.describe().replicas] == [one.peers]


def test_load_scan_dump_and_load_again(
    node_factory: NodeFactory, cluster_factory: ClusterFactory, tmp_path: Path
) -> None:
    one, two = cluster_factory(2)
    table = tmp_path / "people.csv"
    table.write_text("id,name,town\n" + "".join(f'{n},"Name, {n}",Zürich\n' for n in range(1_200)))
    loaded = one.kvstore("load", str(table), "--key-column", "id", "--output", "json")
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout)["rows"] == 1_200
    assert loaded.stderr == b""
    assert two.kvstore("get", "17").stdout.decode() == '{"name":"Name, 17","town":"Zürich"}\n'
    with two.client() as client:
        client.put(b"\xff\x00", b"\xfe not text")
        client.put(b"tab\tkey", b"two\nlines")
        client.delete(b"18")

    scanned = two.kvstore("scan", "--prefix", "11", "--output", "json")
    keys = [json.loads(line)["key"] for line in scanned.stdout.splitlines()]
    assert sorted(keys) == sorted(str(n) for n in range(1_200) if str(n).startswith("11"))
    assert len(one.kvstore("scan", "--limit", "7").stdout.splitlines()) == 7
    plain = one.kvstore("scan", "--consistency", "local", "--tombstones").stdout.decode().splitlines()
    assert r"tab\tkey" + "\t" + r"two\nlines" in plain
    assert "18\t(deleted)" in plain
    assert len(plain) == 1_202

    dumped = tmp_path / "dump.jsonl"
    assert one.kvstore("dump", "--file", str(dumped)).returncode == 0
    fresh = node_factory()
    again = fresh.kvstore("load", str(dumped), "--batch-rows", "100")
    assert again.returncode == 0, again.stderr
    assert again.stdout.decode().startswith("1,201 rows in ")
    assert {(row.key, row.value) for row in replica_of(fresh)} == {
        (row.key, row.value) for row in replica_of(one) if not row.deleted
    }
    piped = fresh.kvstore("load", "-", stdin=one.kvstore("dump").stdout)
    assert piped.returncode == 0


def test_an_interrupted_load_is_exit_status_130_and_keeps_what_was_written(
    node_factory: NodeFactory, eventually: Eventually
) -> None:
    node = node_factory()
    command = [sys.executable, "-m", "kvstore", "load", "-", "--batch-rows", "1", "--node", node.clients]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b'{"key": "a", "value": "1"}\n{"key": "b", "value": "2"}\n')
        process.stdin.flush()
        eventually(lambda: node.describe().row_count == 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert process.stderr.read().decode().strip() == "interrupted"
    assert [row.key for row in replica_of(node)] == [b"a"]


def test_the_code_in_the_documentation_runs(node_factory: NodeFactory) -> None:
    text = (Path(__file__).parent.parent / "docs" / "kvstore.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    node = node_factory()
    assert "127.0.0.1:9042" in code
    code = code.replace("127.0.0.1:9042", node.clients)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert result.stdout.splitlines()[1] == "b'river' b'Seine'"


def wait_for_line(process: subprocess.Popen[str], text: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if text in line:
            return lines
    raise AssertionError(f"ended without {text!r}: {lines}")


def cluster_command(directory: Path) -> list[str]:
    command = [sys.executable, "-m", "kvstore", "cluster", "--nodes", "2", "--data", str(directory)]
    return [*command, "--base-port", "0", "--interval-seconds", "0.1", "--output", "json"]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie whose new parent has not looked yet is as good as gone.
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text() if Path("/proc").exists() else True


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_local_cluster_leaves_no_process_behind(how: signal.Signals, tmp_path: Path, eventually: Eventually) -> None:
    with subprocess.Popen(cluster_command(tmp_path), stdout=subprocess.PIPE, text=True, process_group=0) as process:
        nodes = json.loads(wait_for_line(process, "nodes")[-1])["nodes"]
        try:
            pids = [node["pid"] for node in nodes]
            assert len(pids) == 2
            put = [sys.executable, "-m", "kvstore", "put", "city", "Paris", "--node", nodes[0]["clients"]]
            subprocess.run(put, check=True, timeout=30)
            assert all(map(is_running, pids))
        finally:
            process.send_signal(how)
        status = process.wait(30)
    assert status == (-signal.SIGKILL if how is signal.SIGKILL else 0)
    eventually(lambda: not any(map(is_running, pids)), what="no node is left")


def test_a_local_cluster_goes_on_when_a_node_dies_and_keeps_its_data(tmp_path: Path, eventually: Eventually) -> None:
    command = cluster_command(tmp_path)
    for turn in range(2):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
        ) as process:
            nodes = json.loads(wait_for_line(process, "nodes")[-1])["nodes"]
            node = ["--node", nodes[0]["clients"]]
            if turn == 0:
                subprocess.run([sys.executable, "-m", "kvstore", "put", "city", "Paris", *node], check=True, timeout=30)
                os.kill(nodes[1]["pid"], signal.SIGKILL)
                assert process.stderr is not None
                assert "node2" in (line := process.stderr.readline())
                assert "SIGKILL" in line
                assert process.poll() is None
            else:
                found = subprocess.run(
                    [sys.executable, "-m", "kvstore", "get", "city", *node], capture_output=True, check=True, timeout=30
                )
                assert found.stdout == b"Paris\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0


def test_errors_of_a_client_that_talks_to_the_wrong_port(node_factory: NodeFactory) -> None:
    node = node_factory()
    for address in (node.peers, node.admin):
        result = subprocess.run(
            [sys.executable, "-m", "kvstore", "get", "x", "--node", address],
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert result.returncode == 5
        assert result.stderr.decode() == (
            f"kvstore: {address} is no client port of kvstore; see the addresses that `kvstore serve` logs\n"
        )


def test_limits_are_named_and_the_node_checks_them_too(node_factory: NodeFactory) -> None:
    node = node_factory()
    with node.client() as client:
        with pytest.raises(KvStoreError, match="1 to 480 bytes"):
            client.put(b"", b"x")
        with pytest.raises(KvStoreError, match="at most 524288 bytes"):
            client.put(b"k", bytes(524_289))
        with pytest.raises(KvStoreError, match="1 to 1000 mutations"):
            client.write([Mutation(b"k")] * 1_001)
        client.put(b"k" * 480, bytes(524_288))
    from kvstore.v1 import kvstore_pb2 as pb
    from kvstore.v1 import kvstore_pb2_grpc as pb_grpc

    with grpc.insecure_channel(node.clients) as channel:
        stub = pb_grpc.KeyValueServiceStub(channel)
        bad: list[tuple[Any, Any]] = [
            (stub.Put, pb.PutRequest(value=b"x")),
            (stub.Delete, pb.DeleteRequest()),
            (stub.Get, pb.GetRequest()),
            (stub.Get, pb.GetRequest(key=b"k", consistency=99)),  # type: ignore[arg-type]  # from a newer client
            (stub.Write, pb.WriteRequest()),
            (stub.Write, pb.WriteRequest(mutations=[pb.Mutation(key=b"k", value=b"x", deleted=True)])),
            (stub.Write, pb.WriteRequest(mutations=[pb.Mutation(key=b"%d" % n) for n in range(1_001)])),
        ]
        for call, request in bad:
            with pytest.raises(grpc.RpcError) as caught:
                call(request, timeout=10)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, request
        with pytest.raises(grpc.RpcError) as caught:
            stub.Put(pb.PutRequest(key=b"k", value=bytes(5_000_000)), timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert node.describe().row_count == 1


def test_serving_begins_quickly_enough_to_be_told(node_factory: NodeFactory) -> None:
    """The ready file names the process and is complete whenever it exists."""
    node = node_factory()
    assert node.ready["pid"] == node.running.pid
    assert node.ready["cluster_name"] == "test"
    assert abs(node.ready["generation"] - time.time()) < 3600
    assert (node.data_dir / "gossip").is_dir()
    assert (node.data_dir / "rows").is_dir()
