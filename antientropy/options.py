"""What one repair is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from antientropy.core.tokens import TokenRange


class Strategy(Enum):
    """How differing rows are found; all but AUTO are for measurement."""

    AUTO = "auto"
    """What costs the fewest bytes, by an estimate of the difference."""
    SKETCH = "sketch"
    """Rateless sketches of the sets of (token, version), in growing batches."""
    DESCENT = "descent"
    """Down the hash trees, two levels per round trip, then the rows of the differing leaves."""
    ROWS = "rows"
    """Token and version of every row of the range."""


class RepairMode(Enum):
    """What happens with rows that differ."""

    REPAIR = "repair"
    """Each winning row goes to every replica that lacks it."""
    PREVIEW = "preview"
    """Nothing moves; the exact rows and bytes of each direction are told."""
    VALIDATE = "validate"
    """Only roots are compared, of every 256th of the range; nothing is located, nothing moves."""
    PULL = "pull"
    """Rows come to the coordinator only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairOptions:
    """The request of an operator or of the scheduler; the defaults repair everything with everybody."""

    token_ranges: tuple[TokenRange, ...] = ()
    """Disjoint, ascending; empty: all ranges of the keyspace that this node holds."""
    primary_only: bool = False
    """Only ranges whose primary replica is this node (``-pr``)."""
    peers: tuple[str, ...] = ()
    """Only these replicas, by endpoint (``-hosts``); empty: all. The coordinator always takes part."""
    datacenters: tuple[str, ...] = ()
    """Only replicas of these data centres (``-dc``, ``-local``); empty: all."""
    mode: RepairMode = RepairMode.REPAIR
    full: bool = False
    """Do not trust the maintained trees: every participant builds its tree anew from its rows first (``-full``)."""
    force: bool = False
    """Leave dead replicas out and call the result complete; it never counts as repaired (``--force``)."""
    jobs: int = 1
    """Ranges repaired at once (``-j``), 1 to 4."""
    strategy: Strategy = Strategy.AUTO
    trace: bool = False
    """Report every request with its bytes and its time."""

    @property
    def restricted(self) -> bool:
        """Whether replicas are left out on purpose: such a repair never counts for the purge of tombstones."""
        return bool(self.peers or self.datacenters or self.force) or self.mode is not RepairMode.REPAIR
