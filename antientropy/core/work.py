"""What a whole repair still has to do, without I/O: its units, those replicas that were lost, its progress and its end.

A repair begins with one unit for each range. A unit ends verified, or is cut into parts, or some of its replicas fail.
A replica that fails is left out of the units after it, so that one dead node costs its timeouts once; when all others
are done, the units that it missed are done again with it, a bounded number of times after growing pauses. What is
missing then has failed: the repair is partial, and those parts of the token line do not count as repaired.

A range that was repaired in parts is compared as a whole at the end: replicas that are told that a session was complete
need one session for all of the range.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from antientropy.core.tokens import TOKEN_BITS, TokenRange
from antientropy.reports import SessionState


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of a range and the replicas that are to be equal on it."""

    token_range: TokenRange
    peers: tuple[str, ...]
    """All that should take part, those that are lost included."""
    range_index: int
    """Which of the repair's ranges it belongs to."""
    is_last: bool = False
    """The whole range once more, after its parts: one comparison that vouches for all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryLimits:
    """How often lost replicas are tried again, and after what pause first; each further one is twice as long."""

    rounds_max: int = 3
    first_seconds: float = 1.0


@dataclass(slots=True)
class RepairWork:
    """See the module. ``take`` a unit, run it, and tell how it ended: ``split``, ``done`` or ``failed``.

    Args:
        units: One for each range.
        dead: Replicas that were not alive when the repair began.
        skipped: Parts that were verified before (a repair that is resumed).
        retry: How often lost replicas are tried again.
        compares_whole: Whether ranges that were done in parts are compared as a whole at the end. Not where differences
            stay on purpose, as in a preview: the whole would be cut into parts again, without end.
    """

    units: Sequence[Unit]
    dead: frozenset[str] = frozenset()
    skipped: Sequence[TokenRange] = ()
    retry: RetryLimits = field(default_factory=RetryLimits)
    compares_whole: bool = True

    lost: dict[str, str] = field(default_factory=dict)
    """Replicas that are out for now, and why."""
    failed_units: dict[Unit, str] = field(default_factory=dict)
    """Units that can not be done any more: a change of the ring, or none of their replicas is left."""
    took_part: set[str] = field(default_factory=set)
    """Replicas that finished a unit."""
    rounds: int = 0

    _pending: deque[Unit] = field(default_factory=deque)
    _missing: dict[Unit, frozenset[str]] = field(default_factory=dict)
    """Units that are done without some of their replicas."""
    _in_parts: set[int] = field(default_factory=set)
    """Ranges that are repaired in parts, and not yet as a whole."""
    _running: int = 0
    _round_at: float | None = None
    _span: int = 0
    _verified_span: int = 0
    _skipped_span: int = 0

    def __post_init__(self) -> None:
        self.lost = dict.fromkeys(self.dead, "is not alive")
        self._span = sum(_span(unit.token_range) for unit in self.units)
        for unit in self.units:
            rest = without(unit.token_range, self.skipped)
            self._pending.extend(Unit(part, unit.peers, unit.range_index) for part in rest)
            if rest != [unit.token_range]:
                self._in_parts.add(unit.range_index)
        self._skipped_span = self._span - sum(_span(unit.token_range) for unit in self._pending)
        self._verified_span = self._skipped_span

    # --- taking units ---

    def take(self, now: float, is_alive: Callable[[str], bool]) -> Unit | float | None:
        """The next unit, or the seconds after which to ask again, or None: ask when a running unit has ended.

        With nothing running, None is the end. ``now``: seconds of any clock.
        """
        while self._pending:
            unit = self._pending.popleft()
            if self.peers_of(unit) or not unit.peers:
                self._running += 1
                return unit
            self._missing[unit] = frozenset(unit.peers)
        if self._running:
            return None
        again = self._begin_round(now, is_alive) if self._missing else None
        if again is not None:
            return again
        bad = {unit.range_index for unit in (*self._missing, *self.failed_units)}
        whole = [self.units[number] for number in sorted(self._in_parts - bad)]
        if not whole or not self.compares_whole:
            return None
        self._in_parts -= {unit.range_index for unit in whole}
        self._pending.extend(Unit(one.token_range, one.peers, one.range_index, is_last=True) for one in whole)
        return self.take(now, is_alive)

    def _begin_round(self, now: float, is_alive: Callable[[str], bool]) -> Unit | float | None:
        wanted = frozenset().union(*self._missing.values()) - self.dead
        back = {endpoint for endpoint in self.dead if endpoint in self.lost and is_alive(endpoint)}
        if self.rounds >= self.retry.rounds_max or not (wanted or back):
            return None
        if self._round_at is None:
            self._round_at = now + self.retry.first_seconds * 2**self.rounds
        if now < self._round_at:
            return self._round_at - now
        self.rounds += 1
        self._round_at = None
        for endpoint in wanted | back:
            if is_alive(endpoint) or self.rounds == self.retry.rounds_max:
                self.lost.pop(endpoint, None)
        again = [unit for unit, missing in self._missing.items() if not missing <= self.lost.keys()]
        for unit in again:
            # It counts as verified only once.
            if self._missing.pop(unit) != frozenset(unit.peers) and not unit.is_last:
                self._verified_span -= _span(unit.token_range)
        self._pending.extend(again)
        return self.take(now, is_alive)

    def peers_of(self, unit: Unit) -> tuple[str, ...]:
        """Those of a unit that are not lost."""
        return tuple(endpoint for endpoint in unit.peers if endpoint not in self.lost)

    # --- how they ended ---

    def split(self, unit: Unit, parts: Iterable[TokenRange]) -> None:
        """The unit's parts take its place, at the front."""
        self._running -= 1
        self._in_parts.add(unit.range_index)
        if unit.is_last:
            self._verified_span -= _span(unit.token_range)
        self._pending.extendleft([Unit(part, unit.peers, unit.range_index) for part in reversed(list(parts))])

    def put_back(self, unit: Unit) -> None:
        """It did not end (a pause, a lease of another repair): again later."""
        self._running -= 1
        self._pending.appendleft(unit)

    def done(self, unit: Unit, peers: Sequence[str]) -> bool:
        """Verified with these peers. Returns whether these were all."""
        self._running -= 1
        if not unit.is_last:
            self._verified_span += _span(unit.token_range)
        self.took_part.update(peers)
        missing = frozenset(unit.peers) - frozenset(peers)
        if missing:
            self._missing[unit] = missing
        return not missing

    def lose(self, endpoint: str, reason: str) -> None:
        """A replica failed."""
        self.lost[endpoint] = reason

    def unfinished(self, unit: Unit) -> None:
        """All its replicas were lost in the middle of it."""
        self._running -= 1
        self._missing[unit] = frozenset(unit.peers)

    def failed(self, unit: Unit, reason: str) -> None:
        """It cannot be done, now or later."""
        self._running -= 1
        self.failed_units[unit] = reason

    # --- how far it is ---

    @property
    def progress(self) -> float:
        """Share of the token line that is verified with all replicas that take part, 0 to 1."""
        return self._verified_span / self._span if self._span else 1.0

    def eta_seconds(self, elapsed_seconds: float) -> float | None:
        """Seconds to the end if it goes on as so far; None: nothing can be said."""
        fresh = self._verified_span - self._skipped_span
        if fresh <= 0:
            return None
        return elapsed_seconds * (self._span - self._verified_span) / fresh

    @property
    def left_out(self) -> dict[str, str]:
        """Replicas that missed anything, and why."""
        missing = frozenset().union(*self._missing.values())
        return {endpoint: self.lost.get(endpoint, "was lost for a while") for endpoint in sorted(missing)}

    @property
    def outcome(self) -> SessionState:
        """How it ended, once :meth:`take` gives None and nothing runs."""
        if not self._missing and not self.failed_units and not self._pending:
            return SessionState.COMPLETED
        return SessionState.PARTIAL if self.took_part or self._skipped_span else SessionState.FAILED


def _span(token_range: TokenRange) -> int:
    return token_range.last - token_range.first + 1


def without(token_range: TokenRange, parts: Sequence[TokenRange]) -> list[TokenRange]:
    """What is left of a range when parts (ascending, disjoint) are taken out."""
    found, first = [], token_range.first
    for part in parts:
        cutting = part.intersection(token_range)
        if cutting is None:
            continue
        if cutting.first > first:
            found.append(TokenRange(first, cutting.first - 1))
        first = cutting.last + 1
    if first <= token_range.last and first < 1 << TOKEN_BITS:
        found.append(TokenRange(first, token_range.last))
    return found
