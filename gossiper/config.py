"""One frozen configuration of a gossiper; seconds and bytes are plain numbers with the unit in the name."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from gossiper.core.endpoints import parse_endpoint
from gossiper.core.peers import PARTNERS_DEFAULT, PARTNERS_MIN
from gossiper.discovery import RELOAD_INTERVAL_SECONDS_MIN, parse_seed_sources
from gossiper.errors import ConfigError
from gossiper.limits import CHANNELS_MAX, CLUSTER_NAME_BYTES_MAX, INTERVAL_MS_MAX, INTERVAL_MS_MIN

DATACENTER_DEFAULT = "datacenter1"
RACK_DEFAULT = "rack1"
DIGEST_FORMS = ("compact", "plain")


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipConfig:
    """Settings of one node. Only ``cluster_name`` and ``listen`` have no default.

    Raises:
        ConfigError: lists everything that is wrong, when the object is made.
    """

    cluster_name: str
    """Nodes of another cluster are refused."""
    listen: str
    """``host:port`` to bind; port 0 takes a free one."""
    advertise: str | None = None
    """``host:port`` that others use; default: the address listened on. Needed when listening on 0.0.0.0 or ::."""
    seeds: tuple[str, ...] = ()
    """Endpoints asked first, as ``host:port``, ``file:PATH``, ``dns:NAME:PORT`` or ``srv:NAME``. A node whose list is
    empty, or names only itself, begins a cluster."""
    seed_reload_seconds: float = 60.0
    """How often sources of seeds that can change (``file:``, ``dns:``, ``srv:``) are read again while running."""
    data_dir: Path | None = None
    """Where generation and host id are kept. None: in memory only; then a restart relies on the clock alone."""
    host_id: str | None = None
    """A UUID; default: the one in ``data_dir``, made at the first start."""
    datacenter: str = DATACENTER_DEFAULT
    rack: str = RACK_DEFAULT
    interval_seconds: float = 1.0
    """Length of a gossip round. Detection takes about 18 intervals at the default threshold."""
    phi_threshold: float = 8.0
    """Convict above it: 8 is 18.4 mean intervals of silence. Lower is faster and less sure; 10 to 12 suits clouds."""
    phi_window_size: int = 1000
    """Inter-arrival times kept per endpoint."""
    first_interval_seconds: float | None = None
    """Assumed before anything was measured; default: two intervals."""
    interval_seconds_max: float | None = None
    """Longer gaps are not recorded, they are outages and not rhythm; default: two intervals."""
    local_pause_seconds: float = 5.0
    """A pause of this process longer than this silences the detector for as long again."""
    rpc_timeout_seconds: float | None = None
    """Deadline of one exchange; default: one interval, at least 1 s."""
    echo_timeout_seconds: float | None = None
    """Deadline of an ECHO; default: as rpc_timeout_seconds."""
    shutdown_grace_seconds: float = 2.0
    """How long a clean stop waits for peers to take the announcement, and for calls under way."""
    shadow_timeout_seconds: float | None = None
    """How long a start looks for the cluster before it gives up (or, for a seed, begins alone); default: 30 intervals,
    at least 10 s."""
    initial_status: str = "NORMAL"
    """NORMAL, BOOT (the application calls ``set_status`` once it is ready to be a member) or hibernate."""
    replace: str | None = None
    """Host id or endpoint of a dead node whose place this one takes."""
    rejoin: bool = False
    """Come back although the cluster remembers that this node left for good."""
    push_fanout: int = 4
    """Live peers told at once of a change of status by each node for which it is news; 0: digests only."""
    digest_form: str = "compact"
    """``compact``: digests that name what both sides know by hashes, with peers that can do so too (a
    fraction of the bytes). ``plain``: every endpoint in every digest, as any protobuf client speaks."""
    own_zone_probability: float = 0.0
    """How often the live peer of a round is chosen in the own rack; 0: no preference, as Cassandra."""
    remote_exchanges_per_second: float | None = None
    """Exchanges that this data centre as a whole begins with each other one; None: peers are chosen without regard to
    data centres. 1 is plenty: what changes is pushed at once anyway."""
    partners: int = PARTNERS_DEFAULT
    """Live peers from whom that of a round is drawn, one of them exchanged every 60 rounds, so that their connections
    stay open; 0: all live peers, as Cassandra."""
    random_seed: int | None = None
    """Makes the choice of peers repeatable. None: from the operating system."""
    release_version: str | None = None
    """Published as RELEASE_VERSION; default: the version of this library."""
    states: tuple[tuple[str, str], ...] = field(default=())
    """Application states published at the start, before anyone hears of this node."""

    def __post_init__(self) -> None:
        """Check everything at once."""
        faults = self._faults()
        if faults:
            raise ConfigError(faults)

    def _faults(self) -> list[str]:
        faults: list[str] = []
        name_bytes = len(self.cluster_name.encode())
        if not 1 <= name_bytes <= CLUSTER_NAME_BYTES_MAX:
            faults.append(f"cluster_name: must have 1 to {CLUSTER_NAME_BYTES_MAX} bytes, has {name_bytes}")
        faults += _endpoint_faults("listen", self.listen)
        if self.advertise is not None:
            faults += _endpoint_faults("advertise", self.advertise)
        elif not faults and parse_endpoint(self.listen)[0] in {"0.0.0.0", "::"}:
            faults.append(f"advertise: needed because listen ({self.listen}) names no address that others can use")
        try:
            parse_seed_sources(self.seeds)
        except ConfigError as error:
            faults += error.faults
        if self.host_id is not None and not _is_uuid(self.host_id):
            faults.append(f"host_id: must be a UUID, is {self.host_id!r}")
        for key, value in (("datacenter", self.datacenter), ("rack", self.rack)):
            if not value or not value.isprintable():
                faults.append(f"{key}: must be printable text, is {value!r}")
        faults += self._number_faults()
        return faults

    def _number_faults(self) -> list[str]:
        faults: list[str] = []
        if not INTERVAL_MS_MIN <= self.interval_seconds * 1000 <= INTERVAL_MS_MAX:
            faults.append(
                f"interval_seconds: must be {INTERVAL_MS_MIN / 1000} to {INTERVAL_MS_MAX / 1000}, "
                f"is {self.interval_seconds}"
            )
        if not 0 < self.phi_threshold <= 1000:
            faults.append(f"phi_threshold: must be above 0 and at most 1000, is {self.phi_threshold}")
        if not 1 <= self.phi_window_size <= 100_000:
            faults.append(f"phi_window_size: must be 1 to 100000, is {self.phi_window_size}")
        if self.initial_status not in {"NORMAL", "BOOT", "hibernate"}:
            faults.append(f"initial_status: must be NORMAL, BOOT or hibernate, is {self.initial_status!r}")
        if self.digest_form not in DIGEST_FORMS:
            faults.append(f"digest_form: must be {' or '.join(DIGEST_FORMS)}, is {self.digest_form!r}")
        if not 0 <= self.push_fanout <= 64:
            faults.append(f"push_fanout: must be 0 to 64, is {self.push_fanout}")
        if self.partners and not PARTNERS_MIN <= self.partners <= CHANNELS_MAX:
            faults.append(f"partners: must be 0 or {PARTNERS_MIN} to {CHANNELS_MAX}, is {self.partners}")
        if not 0 <= self.own_zone_probability <= 1:
            faults.append(f"own_zone_probability: must be 0 to 1, is {self.own_zone_probability}")
        if self.remote_exchanges_per_second is not None and not 0 < self.remote_exchanges_per_second <= 1000:
            faults.append(
                f"remote_exchanges_per_second: must be above 0 and at most 1000, is {self.remote_exchanges_per_second}"
            )
        if not RELOAD_INTERVAL_SECONDS_MIN <= self.seed_reload_seconds <= 86_400:
            faults.append(
                f"seed_reload_seconds: must be {RELOAD_INTERVAL_SECONDS_MIN:g} to 86400, "
                f"is {self.seed_reload_seconds:g}"
            )
        for key in (
            "shadow_timeout_seconds",
            "first_interval_seconds",
            "interval_seconds_max",
            "local_pause_seconds",
            "rpc_timeout_seconds",
            "echo_timeout_seconds",
            "shutdown_grace_seconds",
        ):
            seconds: float | None = getattr(self, key)
            if seconds is not None and not 0 < seconds <= 86_400:
                faults.append(f"{key}: must be above 0 and at most 86400, is {seconds}")
        return faults

    @property
    def interval_ms(self) -> int:
        """The gossip interval as it is published."""
        return round(self.interval_seconds * 1000)

    @property
    def exchange_timeout_seconds(self) -> float:
        """The deadline of a SYN or ACK2 in force."""
        return self.rpc_timeout_seconds or max(1.0, self.interval_seconds)

    @property
    def join_timeout_seconds(self) -> float:
        """How long the shadow round may take."""
        return self.shadow_timeout_seconds or max(10.0, 30 * self.interval_seconds)

    @classmethod
    def local(cls, *, cluster_name: str = "test", listen: str = "127.0.0.1:0", seeds: tuple[str, ...] = ()) -> Self:
        """A preset for tests and demonstrations on one machine: ten rounds a second."""
        return cls(cluster_name=cluster_name, listen=listen, seeds=seeds, interval_seconds=0.1)


def _endpoint_faults(key: str, text: str) -> list[str]:
    try:
        parse_endpoint(text)
    except ValueError as error:
        return [f"{key}: {error}"]
    return []


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
