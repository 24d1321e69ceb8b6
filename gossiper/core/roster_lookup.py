"""Rosters of a table: made from its columns, kept as long as they hold, and how the table stands to one by now.

Lives here: what needs the table. What a roster is, and what can be said of it without a table, is in ``roster``.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gossiper.core.roster import ROSTER_EXPIRY_MS, Roster, Standing, roster_of
from gossiper.core.table import EndpointTable

#: Rosters kept: those of the cuts of peers whose clocks differ a little.
_ROSTERS_MAX: Final = 8


def roster_at(table: EndpointTable, cut_ms: int) -> Roster:
    """The roster of a cut: kept in the table until something changes it, or others were wanted more lately."""
    roster = table.rosters.pop(cut_ms, None)
    if roster is None:
        roster = _build(table, cut_ms)
        # Not the oldest cut goes: those of a peer whose clock runs years ahead would stay for ever.
        while len(table.rosters) >= _ROSTERS_MAX:
            del table.rosters[next(iter(table.rosters))]
    table.rosters[cut_ms] = roster
    return roster


def standing(table: EndpointTable, roster: Roster, local_row: int) -> Standing:
    """How the table stands to a roster; found again only after somebody joined, restarted or went."""
    found = roster.standings.get(local_row)
    if found is None or found.incarnations != table.incarnations:
        gone = table.generation[roster.rows] != roster.generations
        others = table.used & (table.generation > 0)
        others[roster.rows[~gone]] = False
        own = (roster.rows == local_row).nonzero()[0]
        found = Standing(
            table.incarnations,
            gone if gone.any() else None,
            others.nonzero()[0],
            int(own[0]) if len(own) and not gone[own[0]] else -1,
        )
        roster.standings[local_row] = found
    return found


def _build(table: EndpointTable, cut_ms: int) -> Roster:
    known = table.used & (table.generation > 0) & (table.expire_ms > cut_ms + ROSTER_EXPIRY_MS)
    current = known & (table.began_ms < cut_ms)
    past = known & ~current & (table.past_generation > 0) & (table.past_began_ms < cut_ms)
    rows = np.flatnonzero(current | past)
    order = np.lexsort((table.name_low[rows].view(np.uint64), table.name_high[rows].view(np.uint64)))
    rows = rows[order]
    is_past = past[rows]
    content = np.stack(
        (
            table.name_high[rows],
            table.name_low[rows],
            np.where(is_past, table.past_generation[rows], table.generation[rows]),
            np.where(is_past, table.past_interval_ms[rows], table.interval_ms[rows]),
        ),
        axis=1,
    )
    return roster_of(cut_ms, rows, content)
