"""Generation, tick and version: the three numbers that order everything a node says.

* A *generation* is one incarnation of an endpoint: epoch seconds at its start, always greater by at least two than the
  one before. The number in between belongs to an operator who removes that incarnation.
* A *tick* counts gossip intervals since the generation began; it is the heartbeat.
* The *version* of a value is ``tick * 16 + counter``: it tells when the value was published and never runs ahead of
  time. One publish call takes one counter for all its keys.

All functions are pure; times are passed in. Source: design of this project; Cassandra uses one process-wide counter
instead (``VersionGenerator``), which tells no age.
"""

from __future__ import annotations

from typing import Final, NamedTuple

COUNTER_BITS: Final = 4
COUNTERS_PER_TICK: Final = 1 << COUNTER_BITS
#: Generations of an owner are at least so far apart. A removal of generation G takes G + ``REMOVAL_STEP``, a number
#: that the owner never takes, whatever its clock says: else one generation would have two authors, and views would
#: differ for ever.
GENERATION_STEP: Final = 2
REMOVAL_STEP: Final = 1


class Now(NamedTuple):
    """One reading of both clocks, in seconds.

    ``monotonic`` orders events inside this process and must count suspended time; ``wall`` (since the epoch) is used
    for generations and for what is said to others, never for intervals.
    """

    monotonic: float
    wall: float


def version_of(tick: int, counter: int) -> int:
    """The version of a value published in ``tick`` as the ``counter``-th (0 to 15) of it."""
    return tick << COUNTER_BITS | counter


def tick_of(version: int) -> int:
    """The tick in which a value was published."""
    return version >> COUNTER_BITS


def next_tick(last_tick: int, elapsed_seconds: float, interval_seconds: float) -> int:
    """The heartbeat after ``last_tick``: it always advances, and catches up after a pause."""
    return max(last_tick + 1, int(elapsed_seconds / interval_seconds))


def next_generation(persisted: int | None, wall_seconds: float, own_seen: int | None = None) -> int:
    """The generation of a new incarnation.

    It is greater than any that this node used before (``persisted``) and any that the cluster still remembers of it
    (``own_seen``), whatever the clock says (CASSANDRA-3654), and greater than a removal of any of them.
    """
    return max(int(wall_seconds), (persisted or 0) + GENERATION_STEP, (own_seen or 0) + GENERATION_STEP)
