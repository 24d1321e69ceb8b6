"""One frozen configuration of a node; seconds and bytes are plain numbers with the unit in the name.

The same names are the keys of the TOML file and, with dashes, the options of ``kvstore serve``. Options win.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from antientropy.config import RepairConfig
from antientropy.core.deletes import PurgeMode
from antientropy.core.pacing import ThrottleSettings
from antientropy.core.schedule import SchedulerSettings
from antientropy.limits import SCRUB_PERIOD_SECONDS
from gossiper.config import DATACENTER_DEFAULT, RACK_DEFAULT, GossipConfig
from gossiper.core.endpoints import canonical_endpoint, parse_endpoint
from gossiper.core.peers import PARTNERS_DEFAULT
from gossiper.errors import ConfigError
from gossiper.settings import build, load_settings
from kvstore.hlc import seconds_of, version_at
from kvstore.limits import (
    CLOCK_DRIFT_SECONDS_MAX,
    GC_GRACE_SECONDS,
    GC_GRACE_SECONDS_MIN,
    MAP_BYTES_DEFAULT,
    MAP_BYTES_MAX,
    MAP_BYTES_MIN,
    REPAIR_BYTES_PER_SECOND,
    REPAIR_CPU_SHARE,
    REPAIR_PERIOD_SECONDS,
    REPAIR_PERIOD_SECONDS_MIN,
    REPLICATION_FACTOR_MAX,
    SCRUB_PERIOD_SECONDS_MIN,
)

#: The ports that operators of Cassandra know.
PEERS_PORT: Final = 7000
CLIENTS_PORT: Final = 9042
ADMIN_PORT: Final = 7199

GC_MODES: Final = ("repair", "time")
_DAY_SECONDS: Final = 86_400.0
_YEAR_SECONDS: Final = 366 * _DAY_SECONDS
#: The first automatic repair after a start waits for peers to be known, and the schedule is looked at now and again.
_FIRST_REPAIR_SECONDS: Final = 60.0
_REPAIR_LOOK_SECONDS: Final = 30.0
_WINDOW: Final = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d")

#: What GossipConfig calls differently.
_GOSSIP_KEYS: Final = {"listen": "listen_peers"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KvStoreConfig:
    """Settings of one node. Only ``data_dir`` has no default.

    Raises:
        ConfigError: lists everything that is wrong, when the object is made.
    """

    data_dir: Path
    """Where rows, generation and host id are kept; made if it is not there. One node per directory."""
    cluster_name: str = "kvstore"
    """Nodes of another cluster are refused."""
    listen_peers: str = f"127.0.0.1:{PEERS_PORT}"
    """``host:port`` for other nodes: gossip, replication, repair. Port 0 takes a free one, here and below."""
    listen_clients: str = f"127.0.0.1:{CLIENTS_PORT}"
    """``host:port`` for applications and the commands of ``kvstore``."""
    listen_admin: str = f"127.0.0.1:{ADMIN_PORT}"
    """``host:port`` for ``nodetool``. Keep it on loopback: whoever reaches it may administer the node."""
    advertise: str | None = None
    """``host:port`` that other nodes use; default: listen_peers. Needed when that is 0.0.0.0 or [::]."""
    advertise_clients: str | None = None
    """``host:port`` that applications use; default: listen_clients."""
    seeds: tuple[str, ...] = ()
    """Peer endpoints asked first, as ``host:port``, ``file:PATH``, ``dns:NAME:PORT`` or ``srv:NAME``. A node whose list
    is empty, or names only itself, begins a cluster."""
    datacenter: str = DATACENTER_DEFAULT
    rack: str = RACK_DEFAULT
    replication_factor: int = 3
    """How many nodes the cluster is meant to have, as every node holds every row. A majority of it (or of the nodes
    known, if there are more) must acknowledge a write; 1 for a node on its own."""
    write_timeout_seconds: float = 2.0
    """How long a majority may take to acknowledge a write."""
    read_timeout_seconds: float = 5.0
    """How long a majority may take to answer a read."""
    clock_drift_seconds_max: float = CLOCK_DRIFT_SECONDS_MAX
    """Rows whose version is further ahead of the clock here are refused."""
    map_bytes_max: int = MAP_BYTES_DEFAULT
    """The most room that rows may take on disk."""
    interval_seconds: float = 1.0
    """Length of a gossip round. Detection takes about 18 intervals at the default threshold."""
    phi_threshold: float = 8.0
    """A node is convicted above it."""
    replace: str | None = None
    """Host id or endpoint of a dead node whose place this one takes at its first start; ignored once that is done."""
    rejoin: bool = False
    """Come back although this node has left the cluster for good."""
    seed_reload_seconds: float = 60.0
    """How often seeds that are files or DNS names are read again."""
    shadow_timeout_seconds: float | None = None
    """How long a start looks for the cluster; default: 30 gossip intervals, at least 10 s."""
    push_fanout: int = 4
    """Live nodes told at once of a change of status; 0: with the next rounds only."""
    digest_form: str = "compact"
    """``compact`` or ``plain``: what gossip digests look like; see :class:`gossiper.GossipConfig`."""
    partners: int = PARTNERS_DEFAULT
    """Live peers from whom that of a gossip round is drawn; 0: all of them."""
    own_zone_probability: float = 0.0
    """How often a round goes to a node of the own rack; 0: no preference."""
    remote_exchanges_per_second: float | None = None
    """Exchanges that this data centre as a whole begins with each other one; None: no bound."""
    shutdown_grace_seconds: float = 2.0
    """How long a clean stop waits for calls under way and for peers to take the announcement."""
    repair_period_seconds: float = REPAIR_PERIOD_SECONDS
    """Every range is repaired once in this time, without anybody asking for it; 0: only when somebody does."""
    repair_window: str | None = None
    """``HH:MM-HH:MM`` in local time: automatic repairs begin only then. None: at any time."""
    repair_throttle_bytes_per_second: float = REPAIR_BYTES_PER_SECOND
    """The most that repairs send and take; 0: no bound. Can be changed while the node runs, as the two below."""
    repair_throttle_rows_per_second: float = 0.0
    """The most rows that repairs read and write; 0: no bound."""
    repair_throttle_cpu_share: float = REPAIR_CPU_SHARE
    """The most that repairs take of one core, above 0 and at most 1."""
    scrub_period_seconds: float = SCRUB_PERIOD_SECONDS
    """All rows are read again and checked once in this time, evenly spread; 0: never."""
    gc_mode: str = "repair"
    """When tombstones are purged. ``repair``: once all replicas have been repaired since the deletion, so that no
    deleted row comes back however long a node was away. ``time``: when they are ``gc_grace_seconds`` old, as in
    Cassandra; a node that was away for longer is then refused."""
    gc_grace_seconds: float = GC_GRACE_SECONDS
    """For ``gc_mode`` ``time``: repair must have reached every node within this time."""

    def __post_init__(self) -> None:
        """Check everything at once."""
        faults = self._faults()
        if faults:
            raise ConfigError(faults)

    def _faults(self) -> list[str]:
        faults: list[str] = []
        try:
            self.gossip_config()
        except ConfigError as error:
            faults += [_renamed(fault) for fault in error.faults]
        faults += _listener_faults("listen_clients", self.listen_clients)
        faults += _listener_faults("listen_admin", self.listen_admin)
        if self.advertise_clients is not None:
            faults += _listener_faults("advertise_clients", self.advertise_clients)
        elif not _listener_faults("", self.listen_clients) and parse_endpoint(self.listen_clients)[0] in {
            "0.0.0.0",
            "::",
        }:
            faults.append(
                f"advertise_clients: needed because listen_clients ({self.listen_clients}) names no address that "
                "applications can use"
            )
        faults += self._port_faults()
        if not 1 <= self.replication_factor <= REPLICATION_FACTOR_MAX:
            faults.append(f"replication_factor: must be 1 to {REPLICATION_FACTOR_MAX}, is {self.replication_factor}")
        for key in ("write_timeout_seconds", "read_timeout_seconds", "clock_drift_seconds_max"):
            seconds: float = getattr(self, key)
            if not 0 < seconds <= 3600:
                faults.append(f"{key}: must be above 0 and at most 3600, is {seconds}")
        faults += self._repair_faults()
        if not MAP_BYTES_MIN <= self.map_bytes_max <= MAP_BYTES_MAX:
            faults.append(f"map_bytes_max: must be {MAP_BYTES_MIN} to {MAP_BYTES_MAX}, is {self.map_bytes_max}")
        return faults

    def _repair_faults(self) -> list[str]:
        faults = []
        if self.repair_period_seconds and not REPAIR_PERIOD_SECONDS_MIN <= self.repair_period_seconds <= _YEAR_SECONDS:
            faults.append(
                f"repair_period_seconds: must be 0 (off) or {REPAIR_PERIOD_SECONDS_MIN:g} to {_YEAR_SECONDS:g}, "
                f"is {self.repair_period_seconds:g}"
            )
        if self.repair_window is not None and not _WINDOW.fullmatch(self.repair_window):
            faults.append(f"repair_window: must be HH:MM-HH:MM, as 22:00-06:00, is {self.repair_window!r}")
        elif self.repair_window is not None and 0 < self.repair_period_seconds < _DAY_SECONDS:
            faults.append(
                f"repair_window: needs repair_period_seconds of at least {_DAY_SECONDS:g} (it is "
                f"{self.repair_period_seconds:g}), as no repair begins outside of the window"
            )
        for key in ("repair_throttle_bytes_per_second", "repair_throttle_rows_per_second"):
            rate: float = getattr(self, key)
            if not 0 <= rate < math.inf:
                faults.append(f"{key}: must be above 0, or 0 for no bound, is {rate:g}")
        if not 0 < self.repair_throttle_cpu_share <= 1:
            faults.append(
                f"repair_throttle_cpu_share: must be above 0 and at most 1, is {self.repair_throttle_cpu_share:g}"
            )
        if self.scrub_period_seconds and not SCRUB_PERIOD_SECONDS_MIN <= self.scrub_period_seconds <= _YEAR_SECONDS:
            faults.append(
                f"scrub_period_seconds: must be 0 (off) or {SCRUB_PERIOD_SECONDS_MIN:g} to {_YEAR_SECONDS:g}, "
                f"is {self.scrub_period_seconds:g}"
            )
        if self.gc_mode not in GC_MODES:
            faults.append(f"gc_mode: must be {' or '.join(GC_MODES)}, is {self.gc_mode!r}")
        if not GC_GRACE_SECONDS_MIN <= self.gc_grace_seconds <= _YEAR_SECONDS:
            faults.append(
                f"gc_grace_seconds: must be {GC_GRACE_SECONDS_MIN:g} to {_YEAR_SECONDS:g}, is {self.gc_grace_seconds:g}"
            )
        return faults

    def _port_faults(self) -> list[str]:
        """Two listeners on one address: the second could never bind."""
        taken: dict[str, str] = {}
        faults = []
        for key in ("listen_peers", "listen_clients", "listen_admin"):
            text: str = getattr(self, key)
            try:
                endpoint = canonical_endpoint(text)
            except ValueError:
                continue
            if endpoint in taken and parse_endpoint(endpoint)[1] != 0:
                faults.append(f"{key}: is the same as {taken[endpoint]}; each listener needs a port of its own")
            taken.setdefault(endpoint, key)
        return faults

    def gossip_config(self, *, states: tuple[tuple[str, str], ...] = ()) -> GossipConfig:
        """The part that concerns the gossiper, with values to publish at its start.

        Raises:
            ConfigError: with the gossiper's own names.
        """
        return GossipConfig(
            cluster_name=self.cluster_name,
            listen=self.listen_peers,
            advertise=self.advertise,
            seeds=self.seeds,
            data_dir=self.data_dir / "gossip",
            datacenter=self.datacenter,
            rack=self.rack,
            interval_seconds=self.interval_seconds,
            phi_threshold=self.phi_threshold,
            shutdown_grace_seconds=self.shutdown_grace_seconds,
            replace=self.replace,
            rejoin=self.rejoin,
            seed_reload_seconds=self.seed_reload_seconds,
            shadow_timeout_seconds=self.shadow_timeout_seconds,
            push_fanout=self.push_fanout,
            digest_form=self.digest_form,
            partners=self.partners,
            own_zone_probability=self.own_zone_probability,
            remote_exchanges_per_second=self.remote_exchanges_per_second,
            states=states,
        )

    def repair_config(self) -> RepairConfig:
        """The part that concerns repair."""
        return RepairConfig(
            data_dir=self.repair_dir,
            version_at=version_at,
            version_time=seconds_of,
            purge=PurgeMode(self.gc_mode),
            gc_grace_seconds=self.gc_grace_seconds,
            scrub_period_seconds=self.scrub_period_seconds,
            throttle=ThrottleSettings(
                bytes_per_second=self.repair_throttle_bytes_per_second or None,
                rows_per_second=self.repair_throttle_rows_per_second or None,
                cpu_share=self.repair_throttle_cpu_share,
            ),
        )

    def scheduler_settings(self) -> SchedulerSettings:
        """When repair begins by itself."""
        return SchedulerSettings(
            enabled=self.repair_period_seconds > 0,
            period_seconds=self.repair_period_seconds or REPAIR_PERIOD_SECONDS,
            windows=() if self.repair_window is None else (self.repair_window,),
            initial_delay_seconds=min(_FIRST_REPAIR_SECONDS, self.repair_period_seconds / 10),
            check_interval_seconds=max(0.1, min(_REPAIR_LOOK_SECONDS, self.repair_period_seconds / 10)),
        )

    @property
    def rows_dir(self) -> Path:
        """Where the rows are."""
        return self.data_dir / "rows"

    @property
    def index_dir(self) -> Path:
        """Where the hash tree and the sketches of the rows are kept over a restart."""
        return self.data_dir / "index"

    @property
    def repair_dir(self) -> Path:
        """Where repairs are kept over a restart."""
        return self.data_dir / "repair"

    @property
    def warnings(self) -> list[str]:
        """What works and is probably not meant."""
        warnings = []
        if self.gc_mode == "time" and not 0 < 2 * self.repair_period_seconds <= self.gc_grace_seconds:
            warnings.append(
                "gc_mode is time, but repairs are not sure to reach every node twice within gc_grace_seconds "
                f"({self.gc_grace_seconds:g}; repair_period_seconds is {self.repair_period_seconds:g}): deleted rows "
                "may come back"
            )
        if not is_loopback(self.listen_admin):
            warnings.append(
                f"listen_admin is {self.listen_admin}: whoever reaches it may administer this node without a password; "
                "127.0.0.1 is safer"
            )
        return warnings


def load_config(path: Path | None, options: Mapping[str, object]) -> KvStoreConfig:
    """The configuration from a TOML file (or none) and options that were given on the command line, which win.

    Raises:
        ConfigError: all faults of both at once; each names its source, the key and what is allowed.
    """
    if path is not None:
        return load_settings(path, KvStoreConfig, overrides=options)
    return build(KvStoreConfig, options, source="command line")


def is_loopback(endpoint: str) -> bool:
    """Whether only this machine can reach an endpoint."""
    host, _port = parse_endpoint(endpoint)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _renamed(fault: str) -> str:
    key, colon, text = fault.partition(":")
    return f"{_GOSSIP_KEYS.get(key, key)}{colon}{text}"


def _listener_faults(key: str, text: str) -> list[str]:
    try:
        parse_endpoint(text)
    except ValueError as error:
        return [f"{key}: {error}"]
    return []
