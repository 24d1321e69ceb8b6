"""The value of REPLACES: whose place a node has taken, so that whoever has not heard of it forgets them too.

The form is ``host_id,generation`` of the replaced node; one that has taken the place of a node that had itself replaced
others, or comes back in a new generation, goes on to name them all, newest first: ``host_id,generation;host_id,...``.
Else who was cut off until the last one that said so was gone would keep the first one as a dead member for ever, and
tell newcomers of it. Cassandra has no such statement: there the replacing node has the address or tokens of the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

#: A value names as many as fit, at least one: with UUIDs 21, so many replacements in a row of at least ten intervals
#: each may pass while somebody has not heard of the first. The oldest are left out.
REPLACES_BYTES_MAX: Final = 1024
#: Digits of a generation: below 2**62.
_DIGITS_MAX: Final = 18


class Replaced(NamedTuple):
    """A node that was replaced: the incarnations of a host id up to a generation."""

    host_id: str
    generation: int


def replaced_in(value: str | None) -> tuple[Replaced, ...]:
    """Whom a value of REPLACES names, newest first; pieces that are none are left out."""
    replaced = []
    for piece in (value or "").split(";"):
        host_id, _, generation = piece.partition(",")
        if host_id and generation.isascii() and generation.isdigit() and len(generation) <= _DIGITS_MAX:
            replaced.append(Replaced(host_id, int(generation)))
    return tuple(replaced)


def replaces_value(replaced: Iterable[Replaced]) -> str | None:
    """The value that names ``replaced`` (newest first), each host id once with its greatest generation.

    None when there is nobody.
    """
    generations: dict[str, int] = {}
    for host_id, generation in replaced:
        generations[host_id] = max(generation, generations.get(host_id, 0))
    value = ""
    for host_id, generation in generations.items():
        longer = f"{value};{host_id},{generation}" if value else f"{host_id},{generation}"
        if value and len(longer.encode()) > REPLACES_BYTES_MAX:
            break
        value = longer
    return value or None
