"""The life of an endpoint as its STATUS tells it: states, allowed transitions, and the form of the value.

What an *owner* may do with its own STATUS within one generation (``TRANSITIONS``). A new generation begins in any of
``INITIAL_STATUSES``; an operator's ``remove`` or ``assassinate`` begins a generation of somebody else in ``REMOVED``
(or ``LEFT``), with REMOVED_BY beside it. Beside this stands the liveness that each *observer* holds: UNKNOWN, ALIVE,
DOWN, and SUSPECT between the last two (``LIVENESS_TRANSITIONS``).

==============  ======================  ===============================================================================
STATUS          value                   meaning
==============  ======================  ===============================================================================
(none)          key absent              nothing said yet, or a client that is no member
BOOT            BOOT                    joining: gossips and is live, does not count as a member yet
BOOT_REPLACE    BOOT_REPLACE,endpoint   joining in the place of another
NORMAL          NORMAL                  a member
LEAVING         LEAVING                 about to leave for good
LEFT            LEFT,expire_ms          has left for good
shutdown        shutdown,true           stopped in this generation; comes back with a greater one
hibernate       hibernate,true          takes part in gossip only as a listener
removing        removing,host_id        an operator is removing it
removed         removed,host_id,exp_ms  an operator has removed it
==============  ======================  ===============================================================================

Source: Cassandra's ``VersionedValue`` and ``Gossiper`` (DEAD_STATES, SILENT_SHUTDOWN_STATES).
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Status(StrEnum):
    """The first, comma-separated piece of a STATUS value."""

    NONE = ""
    BOOT = "BOOT"
    BOOT_REPLACE = "BOOT_REPLACE"
    NORMAL = "NORMAL"
    LEAVING = "LEAVING"
    LEFT = "LEFT"
    SHUTDOWN = "shutdown"
    HIBERNATE = "hibernate"
    REMOVING = "removing"
    REMOVED = "removed"


#: What the owner may publish next, within a generation.
TRANSITIONS: Final = MappingProxyType(
    {
        Status.NONE: frozenset(
            {Status.BOOT, Status.BOOT_REPLACE, Status.NORMAL, Status.HIBERNATE, Status.LEFT, Status.SHUTDOWN}
        ),
        Status.BOOT: frozenset({Status.NORMAL, Status.LEFT, Status.HIBERNATE, Status.SHUTDOWN}),
        Status.BOOT_REPLACE: frozenset({Status.NORMAL, Status.LEFT, Status.HIBERNATE, Status.SHUTDOWN}),
        Status.NORMAL: frozenset({Status.LEAVING, Status.LEFT, Status.SHUTDOWN}),
        Status.LEAVING: frozenset({Status.LEFT, Status.NORMAL, Status.SHUTDOWN}),
        Status.HIBERNATE: frozenset({Status.BOOT, Status.NORMAL, Status.LEFT}),
        Status.LEFT: frozenset[Status](),
        Status.SHUTDOWN: frozenset[Status](),
        Status.REMOVING: frozenset({Status.REMOVED}),
        Status.REMOVED: frozenset[Status](),
    }
)
#: How a generation of an owner may begin.
INITIAL_STATUSES: Final = frozenset({Status.NONE, Status.BOOT, Status.BOOT_REPLACE, Status.NORMAL, Status.HIBERNATE})
#: Never marked alive, never a gossip target (Cassandra's ``DEAD_STATES``).
DEAD_STATUSES: Final = frozenset({Status.REMOVING, Status.REMOVED, Status.LEFT, Status.HIBERNATE})
#: Says that its owner has stopped in this generation: nothing newer can come, so it is not asked for a sign of life.
STOPPED_STATUSES: Final = frozenset({Status.REMOVING, Status.REMOVED, Status.LEFT, Status.SHUTDOWN})
#: A node in one of these stops without a word: it was no member, or has said all (SILENT_SHUTDOWN_STATES).
SILENT_STATUSES: Final = DEAD_STATUSES | {Status.BOOT, Status.BOOT_REPLACE, Status.NONE}
#: No member of the cluster for good: forgotten once the time in the value has passed.
GONE_STATUSES: Final = frozenset({Status.LEFT, Status.REMOVED})
#: Said by, or of, who was a member: that it replaced somebody has come true. Who gives up joining and says LEFT takes
#: back that it replaces anybody.
JOINED_STATUSES: Final = frozenset(
    {Status.NORMAL, Status.LEAVING, Status.LEFT, Status.SHUTDOWN, Status.REMOVING, Status.REMOVED}
)
#: Not (yet) a member: forgotten after some silence (Cassandra's fat clients and failed bootstraps).
GUEST_STATUSES: Final = frozenset({Status.NONE, Status.BOOT, Status.BOOT_REPLACE})

#: What an observer's liveness of one endpoint may become; a greater generation leads to "unknown" from everywhere.
LIVENESS_TRANSITIONS: Final = MappingProxyType(
    {
        "unknown": frozenset({"alive", "down"}),
        "alive": frozenset({"suspect", "down", "unknown"}),
        "suspect": frozenset({"alive", "down", "unknown"}),
        "down": frozenset({"alive", "unknown"}),
    }
)

#: How long a state of somebody gone is passed on, so that everybody who was away for less hears of it
#: (Cassandra's aVeryLongTime: three days).
GONE_EXPIRE_SECONDS: Final = 3 * 86_400
#: An expiry further ahead is taken as this far: a clock was wrong.
GONE_EXPIRE_SECONDS_MAX: Final = 30 * 86_400


def status_of(value: str | None) -> str:
    """The status that a STATUS value names; "" when there is none (as a failed bootstrap looks)."""
    return value.partition(",")[0] if value else ""


def expire_ms_of(value: str, wall_seconds: float) -> int:
    """When a state with this STATUS is forgotten, milliseconds since the epoch.

    The time stands in the value; when it is missing or absurd, a default counted from now is used, and the caller
    keeps it: computed again and again it would never come (CASSANDRA-5216).
    """
    latest = round((wall_seconds + GONE_EXPIRE_SECONDS_MAX) * 1000)
    last_piece = value.rpartition(",")[2]
    if last_piece.isascii() and last_piece.isdigit() and len(last_piece) < 19:
        return min(int(last_piece), latest)
    return round((wall_seconds + GONE_EXPIRE_SECONDS) * 1000)


def left_value(wall_seconds: float) -> str:
    """STATUS of a node that has left for good."""
    return f"{Status.LEFT},{round((wall_seconds + GONE_EXPIRE_SECONDS) * 1000)}"


def removed_value(host_id: str, wall_seconds: float) -> str:
    """STATUS of a node that an operator has removed."""
    return f"{Status.REMOVED},{host_id},{round((wall_seconds + GONE_EXPIRE_SECONDS) * 1000)}"


def may_follow(current: str, wanted: str) -> bool:
    """Whether an owner in status ``current`` may publish ``wanted``."""
    return current in TRANSITIONS and wanted in TRANSITIONS[Status(current)]
