"""One part of the token line and all its replicas, as a state machine without I/O: it says what to do next.

The coordinator (replica 0) works on *units*: a unit is a part of a range, repaired with every peer at once. The shell
asks :meth:`UnitSession.next` for the next step, does it, and reports what came of it:

COMPARE   the own root with those peers that are not known to be equal or unequal. All equal: VERIFIED, after one round
          trip each; nothing was opened or read.
SPLIT     too much differs for one unit: the parts are units of their own.
LOCATE    with each unequal peer, which rows differ.
MOVE      by a plan over all pairs; then those who gave or got anything are compared again.
WAIT      what still differs is being written just now: look again when it has arrived.
REBUILD   the roots differ and no row does, or rows differ as before although they were moved: hashes lie. The index is
          built anew in another epoch, once; then the pair has failed.
END       with a :class:`Verdict`.

Invariants. (1) A unit is VERIFIED only when every peer that takes part was equal to one and the same own root, with no
row moved since. (2) A pair that failed is out of the unit and is never asked again; the others go on. (3) Passes, waits
and rebuilds are bounded, so that every unit ends, whatever the peers answer and however fast rows are written. (4) No
row younger than ``in_flight_seconds`` moves while waits are left; none moves twice for one difference. (5) Time only
comes in as an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from antientropy.core.plan import RepairPlan, Transfer, plan_repair
from antientropy.core.reconcile import Difference
from antientropy.core.tokens import BUCKET_LEVEL, LEVEL_BITS, TOKEN_BITS, TokenRange
from antientropy.errors import DivergenceError
from antientropy.limits import CLOCK_AHEAD_SECONDS_MAX, UNIT_PARTS_MAX
from antientropy.options import RepairMode


class Verdict(Enum):
    """How a unit ended."""

    VERIFIED = "verified"
    """All that took part are equal."""
    UNSETTLED = "unsettled"
    """All that was found different and was not being written has moved; new writes keep the roots apart."""
    PULLED = "pulled"
    """The coordinator lacks nothing; the others were left as they are."""
    PREVIEWED = "previewed"
    """What differs is known; nothing moved."""
    FAILED = "failed"
    """No peer is left."""


@dataclass(frozen=True, slots=True)
class Compare:
    """Compare the own root, taken now, with those of these peers."""

    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Locate:
    """Find the differing rows with these peers, against one snapshot."""

    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """Move rows; tell each transfer with :meth:`UnitSession.moved`, the end with :meth:`UnitSession.move_ended`."""

    plan: RepairPlan


@dataclass(frozen=True, slots=True)
class Wait:
    """Let so many seconds pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Build the own index anew in the next epoch; peers follow when they are compared."""

    reason: str


@dataclass(frozen=True, slots=True)
class Split:
    """The unit ends here; these take its place."""

    parts: tuple[TokenRange, ...]


@dataclass(frozen=True, slots=True)
class End:
    """The unit has ended."""

    verdict: Verdict
    plan: RepairPlan | None = None
    """What still differs: of a preview, and of a unit that ended unsettled."""


Step = Compare | Locate | Move | Wait | Rebuild | Split | End


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitLimits:
    """See :class:`~antientropy.config.RepairConfig`."""

    passes_max: int = 4
    rows_max: int = 65_536
    in_flight_seconds: float = 0.5
    in_flight_waits_max: int = 6
    version_time: Callable[[int], float] | None = None


@dataclass(slots=True)
class Pair:
    """What is known of one peer in this unit."""

    equal: bool | None = None
    """None: it has to be compared."""
    difference: Difference | None = None
    with_digests: bool = True
    """Content that differs at equal versions is in the difference."""
    consistent: bool = False
    """The snapshot that was located with has the root that was compared: what is not found is not there."""
    delivered: Difference | None = None
    """The part of the last difference whose rows have arrived at both."""
    failure: str = ""


_NOTHING: Final = Difference.concatenate([])


@dataclass(slots=True)
class UnitSession:
    """See the module.

    Args:
        token_range: The unit.
        endpoints: The peers, in the order of the plan's replicas 1, 2, ...
        mode: VALIDATE ends when the parts that differ are known.
        limits: As configured.
        broken_links: Known from other units of the repair.
    """

    token_range: TokenRange
    endpoints: Sequence[str]
    mode: RepairMode = RepairMode.REPAIR
    limits: UnitLimits = field(default_factory=UnitLimits)
    broken_links: Collection[tuple[str, str]] = ()
    """Peers that cannot reach each other, (source, target); may grow."""
    passes: int = 0
    waits: int = 0
    rebuilds: int = 0
    rows_differing: int = 0
    """Distinct differing rows that were to be moved."""
    rows_conflicting: int = 0
    rows_in_flight: int = 0
    """Rows that were seen to differ and have settled without this repair."""
    pairs: dict[str, Pair] = field(init=False)

    _oversize_rows: int = 0
    _waiting: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    _moved_tokens: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    _plan: RepairPlan | None = None
    _located: list[str] = field(default_factory=list)
    """The peers of the plan, in its order."""

    def __post_init__(self) -> None:
        self.pairs = {endpoint: Pair() for endpoint in self.endpoints}

    @property
    def live(self) -> list[str]:
        """Peers that have not failed, in order."""
        return [endpoint for endpoint, pair in self.pairs.items() if not pair.failure]

    @property
    def failures(self) -> dict[str, str]:
        """Peers that have failed, and why."""
        return {endpoint: pair.failure for endpoint, pair in self.pairs.items() if pair.failure}

    # --- what has happened ---

    def compared(self, endpoint: str, *, equal: bool) -> None:
        """The roots were compared."""
        pair = self.pairs[endpoint]
        pair.equal, pair.difference = equal, None

    def located(self, endpoint: str, difference: Difference, *, consistent: bool, with_digests: bool = False) -> None:
        """The differing rows of a pair.

        Args:
            endpoint: The peer.
            difference: All of them.
            consistent: The own snapshot still had the root that was compared.
            with_digests: Content that differs at equal versions is in the difference.
        """
        pair = self.pairs[endpoint]
        pair.difference, pair.consistent, pair.with_digests = difference, consistent, with_digests

    def oversized(self, endpoint: str, rows: int) -> None:
        """About so many rows differ with a peer; too many to go on with locating them in one unit."""
        self.pairs[endpoint].difference = _NOTHING
        self._oversize_rows = max(self._oversize_rows, rows)

    def failed(self, endpoint: str, reason: str) -> None:
        """The peer is out."""
        self.pairs[endpoint].failure = reason

    def moved(self, transfer: Transfer, tokens: NDArray[np.uint64]) -> None:
        """Rows have travelled: all there are at ``tokens`` of the transfer, ascending.

        If the receiver is seen to lack them as before, index or disk lie. What the coordinator gets changes every pair.
        """
        self._moved_tokens = np.union1d(self._moved_tokens, tokens)
        for endpoint in self._located if not transfer.target else self._located[transfer.target - 1 : transfer.target]:
            pair = self.pairs[endpoint]
            arrived = _at(_NOTHING if pair.difference is None else pair.difference, tokens)
            pair.delivered = arrived if pair.delivered is None else _joined(pair.delivered, arrived)

    def move_ended(self, touched: Sequence[str]) -> None:
        """All transfers have ended, well or not. ``touched``: peers that were sent anything, or sent it."""
        self._plan = None
        for endpoint, pair in self.pairs.items():
            if endpoint in touched or pair.equal is not True:
                pair.equal = None
            pair.difference = None

    def own_rows_changed(self) -> None:
        """The coordinator has got rows: nobody is known to be equal to it any more."""
        for pair in self.pairs.values():
            pair.equal = None

    def restart(self) -> None:
        """After a rebuild: everything is compared again, what was delivered is no longer evidence."""
        for pair in self.pairs.values():
            pair.equal, pair.difference, pair.delivered = None, None, None

    @property
    def rows_moved(self) -> int:
        """Distinct rows that have travelled."""
        return len(self._moved_tokens)

    @property
    def rows_max(self) -> int | None:
        """Differing rows beyond which the unit is cut; None: it cannot be."""
        return self.limits.rows_max if cut(self.token_range, 2) else None

    def _parts(self, rows: int) -> tuple[TokenRange, ...]:
        # Half full parts: rows are not spread evenly.
        return cut(self.token_range, -(-2 * rows // self.limits.rows_max))

    # --- what to do ---

    def next(self, now: float) -> Step:
        """The next step. ``now``: seconds since the epoch."""
        live = self.live
        if not live:
            return End(Verdict.FAILED)
        if unknown := tuple(endpoint for endpoint in live if self.pairs[endpoint].equal is None):
            return Compare(unknown)
        unequal = [endpoint for endpoint in live if not self.pairs[endpoint].equal]
        if not unequal:
            self._settle(np.empty(0, np.uint64))
            return End(Verdict.VERIFIED)
        if unlocated := tuple(endpoint for endpoint in unequal if self.pairs[endpoint].difference is None):
            return Locate(unlocated)
        return self._decide(live, unequal, now)

    def _decide(self, live: list[str], unequal: list[str], now: float) -> Step:
        """All differences are known."""
        preview = self.mode is RepairMode.PREVIEW
        if self.mode is RepairMode.VALIDATE:
            return End(Verdict.PREVIEWED)
        if self._oversize_rows:
            parts = self._parts(self._oversize_rows)
            if parts:
                return Split(parts)
            raise ValueError("a unit that cannot be cut was called oversized")
        lying = [endpoint for endpoint in unequal if self._lies(self.pairs[endpoint])]
        if lying:
            return self._distrust(lying, now)
        self._located = live
        plan = plan_repair(
            [_NOTHING if (found := self.pairs[endpoint].difference) is None else found for endpoint in live],
            blind=[
                number
                for number, endpoint in enumerate(live)
                if not self.pairs[endpoint].equal and not self.pairs[endpoint].with_digests
            ],
            pull=self.mode is RepairMode.PULL,
            broken=self._unusable(live),
        )
        self._settle(plan.tokens)
        if len(plan) > self.limits.rows_max and (parts := self._parts(len(plan))):
            return Split(parts)
        young, seconds = self._young(plan, now)
        self._waiting = np.union1d(self._waiting, plan.tokens[young])
        settled = plan.only(~young)
        waiting = bool(young.any()) or not len(plan)
        if waiting and self.waits < self.limits.in_flight_waits_max and (settled.is_idle or preview):
            return self._wait(unequal, seconds)
        if preview:
            return End(Verdict.PREVIEWED, settled)
        if settled.is_idle and self.mode is RepairMode.PULL and not young.any():
            return End(Verdict.PULLED)
        if settled.is_idle or self.passes >= self.limits.passes_max:
            return End(Verdict.UNSETTLED, plan)
        return self._move(settled)

    def _unusable(self, live: list[str]) -> list[tuple[int, int]]:
        """Links of the plan's replicas that carry nothing.

        Those that are broken; and from a peer that is equal: it has no snapshot open, and the coordinator has its rows.
        """
        numbers = {endpoint: number for number, endpoint in enumerate(live, start=1)}
        return [
            (source, target)
            for first, source in numbers.items()
            for second, target in numbers.items()
            if self.pairs[first].equal or (first, second) in self.broken_links
        ]

    def _move(self, plan: RepairPlan) -> Step:
        self.passes += 1
        new = ~np.isin(plan.tokens, self._moved_tokens)
        self.rows_differing += int(new.sum()) + (len(plan.colliding_tokens) if self.passes == 1 else 0)
        self.rows_conflicting += plan.conflicts
        for pair in self.pairs.values():
            pair.delivered = None
        self._plan = plan
        return Move(plan)

    def _wait(self, unequal: list[str], seconds: float) -> Step:
        self.waits += 1
        for endpoint in unequal:
            self.pairs[endpoint].equal = None
        return Wait(seconds)

    def _young(self, plan: RepairPlan, now: float) -> tuple[NDArray[np.bool_], float]:
        """Which rows are being written just now, and how long until the last of them is old enough."""
        limits = self.limits
        nobody = np.zeros(len(plan.tokens), np.bool_)
        if limits.version_time is None or not limits.in_flight_seconds or not len(plan.tokens):
            return nobody, min(limits.in_flight_seconds, 0.05)
        order = np.argsort(plan.winners.versions, kind="stable")
        versions = plan.winners.versions[order]
        first = _first_since(versions, limits.version_time, now - limits.in_flight_seconds)
        # A version far ahead of this clock is a wrong clock's, and would never become old enough.
        last = _first_since(versions, limits.version_time, now + CLOCK_AHEAD_SECONDS_MAX)
        if first == last:
            return nobody, 0.0
        nobody[order[first:last]] = True
        newest = limits.version_time(int(versions[last - 1]))
        return nobody, min(max(0.0, newest + limits.in_flight_seconds - now), limits.in_flight_seconds)

    def _settle(self, differing: NDArray[np.uint64]) -> None:
        """Rows that were left to their writes and differ no longer, without having been moved, were in flight."""
        gone = np.setdiff1d(self._waiting, differing, assume_unique=True)
        self.rows_in_flight += int((~np.isin(gone, self._moved_tokens)).sum())
        self._waiting = np.intersect1d(self._waiting, differing, assume_unique=True)

    def left_to_writes(self, tokens: NDArray[np.uint64]) -> None:
        """Rows of a plan that were not moved, because a write had changed them when their turn came."""
        self._waiting = np.union1d(self._waiting, tokens)

    @staticmethod
    def _lies(pair: Pair) -> bool:
        """Whether a pair's hashes, or its disks, contradict its rows."""
        if pair.difference is None or not pair.consistent:
            return False
        repeated = pair.delivered is not None and len(pair.delivered.repeated_in(pair.difference)) > 0
        return repeated or not len(pair.difference)

    def _distrust(self, lying: list[str], now: float) -> Step:
        first = self.pairs[lying[0]]
        reason = (
            "rows that were moved differ as before"
            if first.difference is not None and len(first.difference)
            else "hash trees differ but all their rows are equal"
        )
        if not self.rebuilds:
            self.rebuilds += 1
            self.restart()
            return Rebuild(reason)
        for endpoint in lying:
            self.failed(endpoint, str(DivergenceError(f"{reason}, also with hashes built anew; check the disks")))
        # What the others lack can still be moved.
        return self.next(now)


def _first_since(versions: NDArray[np.uint64], version_time: Callable[[int], float], at: float) -> int:
    """Of ascending versions the first that is not older than ``at``, by bisection: few look-ups of time."""
    low, high = 0, len(versions)
    while low < high:
        middle = (low + high) // 2
        if version_time(int(versions[middle])) > at:
            high = middle
        else:
            low = middle + 1
    return low


def _at(difference: Difference, tokens: NDArray[np.uint64]) -> Difference:
    keep = np.isin(difference.tokens, tokens)
    return Difference(
        difference.tokens[keep],
        difference.local.take(keep),
        difference.remote.take(keep),
        np.empty(0, np.uint64),
    )


def _joined(one: Difference, other: Difference) -> Difference:
    both = Difference.concatenate([one, other])
    _, first = np.unique(both.tokens, return_index=True)
    return Difference(both.tokens[first], both.local.take(first), both.remote.take(first), np.empty(0, np.uint64))


def cut(token_range: TokenRange, parts: int) -> tuple[TokenRange, ...]:
    """A range in about so many parts, 2 to 256: whole buckets while there are as many, else powers of two of tokens.

    Ends lie on nodes of trees, so that roots of parts cost no reading. Empty: a single token cannot be cut.
    """
    wanted = min(max(2, parts), UNIT_PARTS_MAX)
    bucket_bits = TOKEN_BITS - LEVEL_BITS * BUCKET_LEVEL
    span = token_range.last - token_range.first + 1
    bits = max(0, (span // wanted).bit_length() - 1)
    step_bits = min(bucket_bits, bits)
    if bits >= bucket_bits:
        buckets = (token_range.last >> bucket_bits) - (token_range.first >> bucket_bits) + 1
        step = -(-buckets // wanted) << bucket_bits
    else:
        step = 1 << step_bits
    first, found = token_range.first, []
    while first <= token_range.last:
        last = min((first // step + 1) * step - 1, token_range.last)
        found.append(TokenRange(first, last))
        first = last + 1
    return tuple(found) if len(found) > 1 else ()
