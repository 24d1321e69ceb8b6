"""One simulated machine: its two clocks, its disk, its address. It outlives the processes that run on it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final

from gossiper.core.saved import KnownPeer
from gossiper.core.versions import Now
from gossiper.errors import LocalStateError

if TYPE_CHECKING:
    from gossiper.simulation.process import Process

#: The wall-clock time at which every simulation begins.
EPOCH_SECONDS: Final = 1_700_000_000.0
#: How far a wall clock may be off, either way.
OFFSET_SECONDS_MAX: Final = 3_600.0


class MachineClock:
    """A monotonic clock that began at some time of its own, and a wall clock that jumps and drifts."""

    def __init__(self, monotonic_origin: float, offset_seconds: float) -> None:
        self._monotonic_origin = monotonic_origin
        self._offset = offset_seconds
        self._rate = 0.0
        self._since = 0.0

    def now(self, true_seconds: float) -> Now:
        """Both readings at the loop's time ``true_seconds``."""
        return Now(self._monotonic_origin + true_seconds, EPOCH_SECONDS + true_seconds + self.offset(true_seconds))

    def offset(self, true_seconds: float) -> float:
        """Seconds by which the wall clock is ahead; never more than an hour either way."""
        offset = self._offset + self._rate * (true_seconds - self._since)
        return min(OFFSET_SECONDS_MAX, max(-OFFSET_SECONDS_MAX, offset))

    def jump(self, true_seconds: float, seconds: float) -> None:
        """Step the wall clock."""
        self._offset = min(OFFSET_SECONDS_MAX, max(-OFFSET_SECONDS_MAX, self.offset(true_seconds) + seconds))
        self._since = true_seconds

    def drift(self, true_seconds: float, rate: float) -> None:
        """Let the wall clock gain ``rate`` seconds per second from now on."""
        self.jump(true_seconds, 0.0)
        self._rate = rate


class GenerationFile:
    """What ``gossiper.storage.NodeStorage`` keeps, with the ways in which a disk fails it."""

    def __init__(self, rng: Random, *, host_id_configured: bool = False) -> None:
        """``host_id_configured``: it stands in the configuration, so that it survives the loss of the directory."""
        self._rng = rng
        self._host_id_configured = host_id_configured
        self._generation: int | None = None
        self.host_id = self._new_host_id()
        self.writes_fail = False
        self.corrupt = False
        self.known_peers: tuple[KnownPeer, ...] = ()

    def _new_host_id(self) -> str:
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))

    def load(self) -> int | None:
        """The last generation; None at the first start.

        Raises:
            LocalStateError: the file is corrupt.
        """
        if self.corrupt:
            raise LocalStateError("the identity file is corrupt (wrong checksum)")
        return self._generation

    def store(self, generation: int) -> None:
        """Make a generation durable; after an error the old one is still there (the file is replaced whole).

        Raises:
            LocalStateError: the disk is full, or the generation does not follow the stored one.
        """
        if self.writes_fail:
            raise LocalStateError("cannot write the identity file: no space left on device")
        if self._generation is not None and generation <= self._generation:
            raise LocalStateError(f"generation {generation} is not greater than {self._generation}, used before")
        self._generation = generation

    def lose(self) -> None:
        """The whole directory is gone; the next start is that of a new node, unless the host id is configured."""
        self.corrupt = False
        self.known_peers = ()
        self._generation = None
        if not self._host_id_configured:
            self.host_id = self._new_host_id()

    def renew(self) -> None:
        """The directory is emptied on purpose, and a configured host id changed: a new node."""
        self._host_id_configured = False
        self.lose()

    def restore_writes(self) -> None:
        """There is room again, and a corrupt file has been set aside."""
        self.writes_fail = False
        if self.corrupt:
            self.lose()

    def restore(self, generation: int, host_id: str | None = None) -> None:
        """An operator puts back a copy that knows ``generation``, and the host id that the cluster knows."""
        self._generation = generation
        self.host_id = host_id or self.host_id
        self.corrupt = False
        self.writes_fail = False


@dataclass(slots=True, eq=False)
class Machine:
    """Where processes run, one after the other."""

    index: int
    """Names the machine in links of the network; addresses may change."""
    endpoint: str
    seeds: tuple[str, ...]
    clock: MachineClock
    disk: GenerationFile
    process: Process | None = None
    powered: bool = True
    """Off: packets to it vanish. On, without a process: connections are refused."""
    incarnations: int = 0
    replaces: str | None = None
    """Host id or endpoint of the node whose place the next process takes."""
    retired: bool = False
    """It left, was removed or replaced for good: nobody starts it again."""
    former_endpoints: list[str] = field(default_factory=list)

    @property
    def is_seed(self) -> bool:
        """Whether others are told of it at their start."""
        return self.endpoint in self.seeds
