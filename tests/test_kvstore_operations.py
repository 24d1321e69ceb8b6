"""What an operator does to real nodes on loopback: leave, remove, replace, gossip off and on, seeds, full restarts."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kvstore.errors import ReplicaFailureError, StoppingError, StorageError
from kvstore.replication import Consistency, Mutation
from nodetool.main import main

if TYPE_CHECKING:
    from tests.conftest import ClusterFactory, NodeFactory, NodeProcess

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

Eventually = Callable[..., None]


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.out)
        return content


Nodetool = Callable[..., Ran]


@pytest.fixture
def nodetool(capsys: pytest.CaptureFixture[str]) -> Nodetool:
    def run(node: NodeProcess, *arguments: str) -> Ran:
        capsys.readouterr()
        status = main(["-p", node.admin.rpartition(":")[2], *arguments])
        return Ran(status, *capsys.readouterr())

    return run


@pytest.fixture
def seen(nodetool: Nodetool) -> Callable[[NodeProcess], dict[str, str]]:
    """What a node lists: the two letters by endpoint."""

    def status(node: NodeProcess) -> dict[str, str]:
        ran = nodetool(node, "status", "--output", "json")
        return {one["endpoint"]: one["status"] for one in ran.json["nodes"]} if ran.status == 0 else {}

    return status


Seen = Callable[["NodeProcess"], dict[str, str]]


def refusal_of(node: NodeProcess) -> str:
    """The one line with which a node ends that does not start."""
    before = len(node.log)
    node.spawn()
    assert node.wait() == 1
    log = node.log[before:]
    (line,) = [line for line in log.splitlines() if line.startswith("kvstore serve: ")]
    assert "Traceback" not in log
    return line.removeprefix("kvstore serve: ")


def test_a_node_that_leaves_is_known_to_have_left_and_comes_back_only_with_rejoin(
    cluster_factory: ClusterFactory, nodetool: Nodetool, seen: Seen, eventually: Eventually
) -> None:
    one, two, three = cluster_factory(3)
    with one.client() as client:
        client.put(b"city", b"Paris")

    assert nodetool(three, "decommission") == Ran(0, "Left the cluster: 2 of 2 live peers know\n", "")

    for other in (one, two):
        assert seen(other) == {one.peers: "UN", two.peers: "UN"}, "no longer listed, at once"
    with three.client() as client, pytest.raises(StoppingError, match="has left the cluster; ask another one"):
        client.get(b"city")
    info = nodetool(three, "info", "--output", "json").json
    assert (info["status"], info["serving"], info["gossip_active"]) == ("LEFT", False, False)
    assert info["native_transport_active"] is False
    again = nodetool(three, "decommission")
    assert again == Ran(1, "", f"nodetool: refused by {three.admin}: this node has left already\n")
    with two.client() as client:
        assert client.put(b"city", b"Rome") > 0, "the others go on"
    # The last two of three: a write needs both.
    needed = nodetool(two, "decommission")
    assert needed.status == 1
    assert "without this node writes would need 2 of 3 replicas, 1 alive" in needed.err

    assert three.terminate() == 0
    assert "has left the cluster; set rejoin to come back" in refusal_of(three)
    three.options["rejoin"] = True
    three.start()
    eventually(lambda: all(node.alive_count() == 3 for node in (one, two, three)))


def test_a_peer_that_hangs_is_not_known_to_know_and_hears_it_later(
    cluster_factory: ClusterFactory, nodetool: Nodetool, seen: Seen, eventually: Eventually
) -> None:
    one, two, three = cluster_factory(3)
    two.pause()
    ran = nodetool(three, "decommission", "--force", "--wait-seconds", "0.5", "--output", "json")
    two.resume()
    assert ran.status == 4
    content = ran.json
    assert (content["knowing"], content["unaware"], content["live_peer_count"]) == ([one.peers], [two.peers], 2)
    assert ran.err == (
        f"nodetool: left, but after 0.5 s not known to know: {two.peers}; they hear it from the others\n"
    )
    assert three.terminate() == 0
    eventually(lambda: seen(two) == {one.peers: "UN", two.peers: "UN"})


def test_a_dead_node_is_removed_and_told_so_when_it_comes_back(
    cluster_factory: ClusterFactory, nodetool: Nodetool, seen: Seen, eventually: Eventually
) -> None:
    one, two, three = cluster_factory(3, phi_threshold=4)
    host_id = three.ready["host_id"]
    alive = nodetool(one, "removenode", host_id)
    assert alive == Ran(
        1, "", f"nodetool: refused by {one.admin}: {three.peers} is alive; let it leave, or stop it first\n"
    )
    three.kill()
    eventually(lambda: seen(one)[three.peers] == "DN")

    assert nodetool(one, "removenode", host_id) == Ran(0, f"Removed {three.peers} (host id {host_id})\n", "")

    eventually(lambda: three.peers not in seen(two))
    assert three.peers not in seen(one)
    reason = refusal_of(three)
    assert f"(host id {host_id}) was removed from the cluster by {one.ready['host_id']}" in reason
    assert "start it with an empty data directory" in reason
    unknown = nodetool(two, "removenode", "00000000-0000-4000-8000-000000000000")
    assert (unknown.status, unknown.out) == (1, "")
    assert "no node has host id 00000000-" in unknown.err
    shutil.rmtree(three.data_dir)
    three.start()
    eventually(lambda: all(node.alive_count() == 3 for node in (one, two, three)), what="it joins as a new node")


def test_assassination_spares_the_living_unless_forced_and_the_victim_ends(
    cluster_factory: ClusterFactory, nodetool: Nodetool, seen: Seen, eventually: Eventually
) -> None:
    one, two, three = cluster_factory(3)
    spared = nodetool(one, "assassinate", two.peers)
    assert spared.status == 1
    assert f"the heartbeat of {two.peers} moved " in spared.err
    assert "it lives; stop it first, or use force" in spared.err
    assert nodetool(one, "assassinate", "nonsense").status == 2

    assert nodetool(one, "assassinate", "--force", two.peers) == Ran(0, f"Assassinated {two.peers}\n", "")

    assert two.wait() == 1
    (reason,) = [line for line in two.log.splitlines() if line.startswith("kvstore serve: ")]
    assert f"an operator removed this node (on the node with host id {one.ready['host_id']})" in reason
    assert "Traceback" not in two.log
    eventually(lambda: two.peers not in seen(one) and two.peers not in seen(three))


def test_a_node_at_a_new_address_takes_the_place_of_a_dead_one(
    cluster_factory: ClusterFactory,
    node_factory: NodeFactory,
    nodetool: Nodetool,
    seen: Seen,
    eventually: Eventually,
) -> None:
    one, two, three = cluster_factory(3, phi_threshold=4)
    with one.client() as client:
        client.put(b"city", b"Paris")
    settings: dict[str, Any] = {"seeds": [one.peers], "replication_factor": 3}
    impatient = node_factory(start=False, replace=two.ready["host_id"], **settings)
    assert f"{two.peers} is alive, its heartbeat moves" in refusal_of(impatient)
    three.kill()
    eventually(lambda: seen(one)[three.peers] == seen(two)[three.peers] == "DN")

    four = node_factory(replace=three.ready["host_id"], **settings)

    expected = {one.peers: "UN", two.peers: "UN", four.peers: "UN"}
    eventually(lambda: all(seen(node) == expected for node in (one, two, four)))
    assert nodetool(four, "repair").status == 0
    with four.client() as client:
        found = client.get(b"city", consistency=Consistency.LOCAL)
        assert found is not None
        assert found.value == b"Paris"


def test_gossip_off_and_on_and_a_drain(
    cluster_factory: ClusterFactory, nodetool: Nodetool, seen: Seen, eventually: Eventually
) -> None:
    one, two = cluster_factory(2)
    with two.client() as client:
        client.put(b"city", b"Paris")
    assert nodetool(two, "disablegossip") == Ran(0, "", "")
    assert nodetool(two, "statusgossip") == Ran(0, "not running\n", "")
    eventually(lambda: seen(one)[two.peers] == "DN")
    with two.client() as client:
        assert client.get(b"city", consistency=Consistency.LOCAL) is not None, "clients are served all the same"
    assert "gossip is off on this node" in nodetool(two, "decommission").err

    assert nodetool(two, "enablegossip") == Ran(0, "", "")
    assert nodetool(two, "statusgossip") == Ran(0, "running\n", "")
    eventually(lambda: one.alive_count() == two.alive_count() == 2)
    assert nodetool(two, "waitsettled") == Ran(0, "settled\n", "")

    assert nodetool(two, "drain") == Ran(0, "", "")
    eventually(lambda: seen(one)[two.peers] == "DN")
    with two.client() as client, pytest.raises(StoppingError, match="this node was drained"):
        client.get(b"city", consistency=Consistency.LOCAL)
    assert "this node was drained and serves no more; start it anew" in nodetool(two, "enablegossip").err
    assert two.terminate() == 0
    two.start()
    eventually(lambda: one.alive_count() == two.alive_count() == 2)


def test_a_whole_cluster_starts_again_while_its_seed_is_away(
    cluster_factory: ClusterFactory, eventually: Eventually
) -> None:
    one, two, three = cluster_factory(3)
    with one.client() as client:
        client.put(b"city", b"Paris")
    for node in (one, two, three):
        assert node.terminate() == 0
    two.spawn()
    three.spawn()
    two.wait_ready()
    three.wait_ready()
    eventually(lambda: two.alive_count() == three.alive_count() == 2)
    with three.client() as client:
        found = client.get(b"city")
        assert found is not None
        assert found.value == b"Paris"
    one.start()
    eventually(lambda: all(node.alive_count() == 3 for node in (one, two, three)))


def test_seeds_from_a_file_are_read_again(
    node_factory: NodeFactory, nodetool: Nodetool, tmp_path: Path, eventually: Eventually
) -> None:
    one = node_factory(replication_factor=2)
    assert nodetool(one, "getseeds").out == "Seed node list does not contain any remote node IPs\n"
    file = tmp_path / "seeds"
    file.write_text(f"{one.peers}  # the first\n")
    two = node_factory(replication_factor=2, seeds=[f"file:{file}"])
    eventually(lambda: one.alive_count() == two.alive_count() == 2)
    listed = f"list, excluding the current node's IP: {one.peers}"
    assert nodetool(two, "getseeds").out == f"Current {listed}\n".replace("list", "list of seed node IPs", 1)

    file.write_text(f"{one.peers}\nnonsense\n")
    bad = nodetool(two, "reloadseeds")
    assert (bad.status, bad.out) == (4, f"Updated seed node IP {listed}\n"), "the old list stays"
    assert f"nodetool: Failed to reload the seed node list. {file}: line 2: 'nonsense' is not host:port" in bad.err

    file.write_text(f"{one.peers}\n{two.peers}\n127.0.0.1:1\n")
    good = nodetool(two, "reloadseeds", "--output", "json")
    assert good.status == 0
    assert good.json["seeds"] == [one.peers, "127.0.0.1:1"]
    assert good.json["added"] == ["127.0.0.1:1"]
    assert nodetool(two, "getseeds").out.endswith(f": {one.peers} 127.0.0.1:1\n")


def test_nodes_that_the_cluster_does_not_take(node_factory: NodeFactory, eventually: Eventually) -> None:
    one = node_factory(replication_factor=2)
    two = node_factory(replication_factor=2, seeds=[one.peers])
    eventually(lambda: one.alive_count() == 2)

    copy = node_factory(start=False, replication_factor=2, seeds=[one.peers])
    shutil.copytree(two.data_dir, copy.data_dir)
    reason = refusal_of(copy)
    assert f"host id {two.ready['host_id']} is used by {two.peers}, whose heartbeat moves" in reason
    assert "was a data directory copied?" in reason

    foreign = node_factory(start=False, cluster_name="other", seeds=[one.peers])
    reason = refusal_of(foreign)
    assert "reached no member of cluster 'other'" in reason
    assert one.peers in reason
    assert "this is cluster 'test', not 'other'" in reason

    squatter = node_factory(start=False, seeds=[one.peers], advertise=two.peers)
    reason = refusal_of(squatter)
    assert f"a node with address {two.peers} and host id {two.ready['host_id']} already exists" in reason
    assert one.alive_count() == two.alive_count() == 2, "nobody was harmed"


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of another process is set as Linux does it")
def test_a_full_disk_is_shown_to_the_cluster_until_there_is_room(
    node_factory: NodeFactory, nodetool: Nodetool, eventually: Eventually
) -> None:
    one = node_factory(replication_factor=2)
    two = node_factory(start=False, replication_factor=2, seeds=[one.peers])
    # A disk that is full: writes beyond the limit fail, until the limit is lifted from outside.
    two.prefix = ["sh", "-c", 'ulimit -S -f 2048; exec "$@"', "sh"]
    two.start()
    eventually(lambda: one.alive_count() == two.alive_count() == 2)
    with one.client() as client:

        def note() -> str:
            return nodetool(one, "status").out.partition("Note: ")[2]

        def fill() -> bool:
            with suppress(StorageError, ReplicaFailureError):
                client.write([Mutation(b"key%d" % number, bytes(20_000)) for number in range(50)])
            return "does not serve" in note()

        eventually(fill)
        assert note().startswith(f"{two.peers} is up and does not serve: writes fail: ")
        assert two.alive_count() == 2, "it is up, and says what it knows"

        _soft, hard = resource.prlimit(two.running.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(two.running.pid, resource.RLIMIT_FSIZE, (hard, hard))
        client.put(b"after", b"there is room again")
    eventually(lambda: note() == "", what="it says that it serves again")
