"""The configuration of a node: every fault at once, from the file and from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from antientropy.core.deletes import PurgeMode
from gossiper.errors import ConfigError
from kvstore.config import KvStoreConfig, is_loopback, load_config
from kvstore.membership import SCHEMA_VERSION, replica_endpoints


def faults_of(path: Path | None, options: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, options)
    return caught.value.faults


def test_the_defaults_need_a_data_directory_only(tmp_path: Path) -> None:
    config = load_config(None, {"data_dir": tmp_path})
    assert (config.listen_peers, config.listen_clients, config.listen_admin) == (
        "127.0.0.1:7000",
        "127.0.0.1:9042",
        "127.0.0.1:7199",
    )
    assert config.replication_factor == 3
    assert config.warnings == []
    assert faults_of(None, {}) == ["command line: data_dir: is missing; it must be a path"]


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('data_dir = "data"\ncluster_name = "orders"\nseeds = ["10.0.0.1:7000"]\ninterval_seconds = 2\n')
    config = load_config(file, {"cluster_name": "other"})
    assert config.cluster_name == "other"
    assert config.seeds == ("10.0.0.1:7000",)
    assert config.interval_seconds == 2.0
    assert config.data_dir == tmp_path / "data"
    gossip = config.gossip_config(states=(("SCHEMA", SCHEMA_VERSION),))
    assert gossip.listen == config.listen_peers
    assert gossip.data_dir == tmp_path / "data" / "gossip"
    assert gossip.states == (("SCHEMA", SCHEMA_VERSION),)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(
        "\n".join(
            (
                'listen_peers = "nowhere"',
                'listen_clients = "0.0.0.0:9042"',
                'listen_admin = "127.0.0.1:99999"',
                "replication_factor = 0",
                "write_timeout_seconds = 0",
                'read_timeout_seconds = "soon"',
                "map_bytes_max = 10",
                "phi_treshold = 8",
                "interval_seconds = 0.0001",
            )
        )
    )
    faults = faults_of(file, {"seeds": ["x"], "clock_drift_seconds_max": -1.0})
    for expected in (
        f"{file}: phi_treshold: unknown key; did you mean phi_threshold?",
        f"{file}: read_timeout_seconds: must be a number, is 'soon'",
        f"{file}: data_dir: is missing; it must be a path",
        f"{file}: listen_peers: 'nowhere' is not host:port",
        f"{file}: advertise_clients: needed because listen_clients (0.0.0.0:9042) names no address",
        f"{file}: listen_admin: '127.0.0.1:99999': port 99999 is greater than 65535",
        f"{file}: replication_factor: must be 1 to 99, is 0",
        f"{file}: write_timeout_seconds: must be above 0 and at most 3600, is 0.0",
        "command line: clock_drift_seconds_max: must be above 0 and at most 3600, is -1.0",
        f"{file}: map_bytes_max: must be 1048576 to",
        f"{file}: interval_seconds: must be 0.01 to 3600.0, is 0.0001",
        "command line: seeds: 'x' is not host:port",
    ):
        assert any(fault.startswith(expected) for fault in faults), (expected, faults)
    assert len(faults) == 12


def test_the_settings_of_gossip_reach_the_gossiper(tmp_path: Path) -> None:
    options: dict[str, object] = {
        "replace": "10.0.0.9:7000",
        "rejoin": True,
        "seeds": ["10.0.0.1:7000", "file:/etc/seeds", "dns:db.example:7000", "srv:_gossip._tcp.example"],
        "seed_reload_seconds": 5.0,
        "shadow_timeout_seconds": 7.0,
        "push_fanout": 0,
        "digest_form": "plain",
        "partners": 0,
        "own_zone_probability": 0.5,
        "remote_exchanges_per_second": 2.0,
        "datacenter": "east",
        "rack": "r2",
    }
    gossip = load_config(None, {"data_dir": tmp_path, **options}).gossip_config()
    for key, value in options.items():
        assert getattr(gossip, key) == (tuple(value) if isinstance(value, list) else value), key
    wrong = {
        "seeds": ["file:relative"],
        "seed_reload_seconds": 0.5,
        "shadow_timeout_seconds": 0.0,
        "push_fanout": 65,
        "own_zone_probability": 1.5,
        "remote_exchanges_per_second": 0.0,
    }
    assert faults_of(None, {"data_dir": tmp_path, **wrong}) == [
        "command line: seeds: 'file:relative': the path must be absolute",
        "command line: push_fanout: must be 0 to 64, is 65",
        "command line: own_zone_probability: must be 0 to 1, is 1.5",
        "command line: remote_exchanges_per_second: must be above 0 and at most 1000, is 0.0",
        "command line: seed_reload_seconds: must be 1 to 86400, is 0.5",
        "command line: shadow_timeout_seconds: must be above 0 and at most 86400, is 0.0",
    ]


def test_two_listeners_need_two_ports(tmp_path: Path) -> None:
    same = {"listen_clients": "127.0.0.1:7000", "data_dir": tmp_path}
    assert faults_of(None, {**same}) == [
        "command line: listen_clients: is the same as listen_peers; each listener needs a port of its own"
    ]
    free = dict.fromkeys(("listen_peers", "listen_clients", "listen_admin"), "127.0.0.1:0")
    assert load_config(None, {**free, "data_dir": tmp_path}).listen_admin == "127.0.0.1:0"


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [("127.0.0.1:1", True), ("127.9.9.9:1", True), ("[::1]:1", True), ("localhost:1", True), ("10.0.0.1:1", False)],
)
def test_loopback(endpoint: str, expected: bool) -> None:
    assert is_loopback(endpoint) is expected


def test_an_open_administration_listener_is_warned_about(tmp_path: Path) -> None:
    (warning,) = KvStoreConfig(data_dir=tmp_path, listen_admin="0.0.0.0:7199").warnings
    assert "listen_admin is 0.0.0.0:7199" in warning
    assert "127.0.0.1 is safer" in warning


def test_replicas_are_the_members_that_hold_rows() -> None:
    from gossiper import EndpointView, Liveness, VersionedValue

    def member(
        endpoint: str, *, generation: int = 1, alive: bool = True, schema: bool = True, **states: str
    ) -> EndpointView:
        values = {key: VersionedValue(1, value) for key, value in states.items()}
        if schema:
            values["SCHEMA"] = VersionedValue(1, SCHEMA_VERSION)
        liveness = Liveness.ALIVE if alive else Liveness.DOWN
        return EndpointView(endpoint, generation, 1, 1, 1000, liveness, values)

    members = [
        member("10.0.0.2:7000", HOST_ID="b", STATUS="NORMAL"),
        member("10.0.0.1:7000", HOST_ID="a", STATUS="shutdown,true", alive=False),
        member("10.0.0.9:7000", HOST_ID="c", STATUS="NORMAL", alive=False),
        # The same node as the one before, back under another address.
        member("10.0.0.3:7000", HOST_ID="c", STATUS="NORMAL", generation=2),
        member("10.0.0.4:7000", HOST_ID="d", STATUS="LEFT,1,2", alive=False),
        # A member of the cluster that is no key-value node.
        member("10.0.0.5:7000", HOST_ID="e", STATUS="NORMAL", schema=False),
    ]
    assert replica_endpoints(members) == ("10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000")


def test_the_settings_of_repair_reach_the_service_and_its_schedule(tmp_path: Path) -> None:
    config = load_config(None, {"data_dir": tmp_path})
    repair, schedule = config.repair_config(), config.scheduler_settings()
    assert repair.data_dir == tmp_path / "repair"
    assert repair.purge is PurgeMode.REPAIR
    assert repair.version_at is not None
    assert repair.version_time is not None
    assert repair.version_time(repair.version_at(1_800_000_000.5)) == 1_800_000_000.5
    assert repair.throttle.rows_per_second is None
    assert schedule.enabled
    assert schedule.period_seconds == 3600
    other = load_config(
        None,
        {
            "data_dir": tmp_path,
            "repair_period_seconds": 86_400.0,
            "repair_window": "22:00-06:00",
            "repair_throttle_bytes_per_second": 1e6,
            "repair_throttle_rows_per_second": 1e4,
            "repair_throttle_cpu_share": 0.25,
            "gc_mode": "time",
            "gc_grace_seconds": 864_000.0,
        },
    )
    repair = other.repair_config()
    throttle = repair.throttle
    assert (throttle.bytes_per_second, throttle.rows_per_second, throttle.cpu_share) == (1e6, 1e4, 0.25)
    assert (repair.purge, repair.gc_grace_seconds) == (PurgeMode.TIME, 864_000)
    assert other.scheduler_settings().windows == ("22:00-06:00",)
    assert not load_config(None, {"data_dir": tmp_path, "repair_period_seconds": 0.0}).scheduler_settings().enabled


def test_faults_of_repair_name_the_setting(tmp_path: Path) -> None:
    options = {
        "repair_period_seconds": 0.5,
        "scrub_period_seconds": 1.0,
        "repair_window": "22-6",
        "repair_throttle_bytes_per_second": -1.0,
        "repair_throttle_rows_per_second": float("inf"),
        "repair_throttle_cpu_share": 0.0,
        "gc_mode": "never",
        "gc_grace_seconds": 1.0,
        "digest_form": "short",
        "partners": -1,
    }
    faults = faults_of(None, {"data_dir": tmp_path, **options})
    assert sorted(fault.split(": ")[1] for fault in faults) == sorted(options)
    (fault,) = faults_of(None, {"data_dir": tmp_path, "repair_window": "22:00-06:00"})
    assert "needs repair_period_seconds of at least 86400 (it is 3600)" in fault


def test_purge_by_time_without_repairs_in_time_is_warned_of(tmp_path: Path) -> None:
    options: dict[str, object] = {"data_dir": tmp_path, "gc_mode": "time"}
    assert load_config(None, options).warnings == []
    for period in (0.0, 500_000.0):
        (warning,) = load_config(None, {**options, "repair_period_seconds": period}).warnings
        assert "deleted rows may come back" in warning
