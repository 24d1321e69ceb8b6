"""The session of one pair of replicas as a state machine without I/O: it is fed answers and yields the next request.

PREPARING    the roots are compared; equal: DONE after one round trip, nothing was opened or read.
COMPARING    descend the trees level by level, all differing nodes of a level in one request (paged), down to the leaves
             of the shallower tree; then list the rows of the differing leaves and match them with the own ones.
STREAMING    move the rows that a plan over all pairs gives to this pair: first fetches, then pushes.
VERIFYING    the roots are compared again; equal: DONE; else COMPARING again (writes that arrived meanwhile).
FAILED       a peer or a rule broke; nothing more is asked.

All transitions live here. Invariants: differences are collected in the order of tokens, complete up to ``complete_to``;
a difference that was streamed and is found again unchanged is damage, not a race; passes are bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from antientropy.core.merkle import HashTree
from antientropy.core.plan import PairPlan
from antientropy.core.reconcile import Difference, difference
from antientropy.core.rows import RowDigests
from antientropy.core.tokens import TOKEN_MAX
from antientropy.errors import DivergenceError
from antientropy.limits import DIFFERENCE_ROWS_MAX, NODES_PER_REQUEST_MAX, ROWS_PER_PUSH_MAX, TOKENS_PER_REQUEST_MAX

_Unsigned = TypeVar("_Unsigned", np.uint32, np.uint64)


class Phase(Enum):
    """Where a session, or a whole repair, stands."""

    PREPARING = "preparing"
    COMPARING = "comparing"
    STREAMING = "streaming"
    VERIFYING = "verifying"
    DONE = "done"
    FAILED = "failed"


@dataclass(slots=True)
class RepairStatistics:
    """Sums of one repair, or of one pair. ``bytes`` are serialized messages, without HTTP/2 framing."""

    rows_differing: int = 0
    """Rows that were not the same on all replicas that took part."""
    rows_moved: int = 0
    """Row copies that travelled ..."""
    rows_optimal: int = 0
    """... and the fewest that could have; where keys share tokens, those that changed their receiver."""
    find_bytes: int = 0
    """Messages that carry no rows: hashes, tokens, versions, digests, replies."""
    move_bytes: int = 0
    """Messages that carry rows."""
    round_trips: int = 0
    pairs_compared: int = 0
    pairs_equal: int = 0
    elapsed_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class AskRoots:
    """Compare the roots; open a session if they differ and ``open_session``."""

    open_session: bool


@dataclass(frozen=True, slots=True, eq=False)
class AskNodes:
    """Ask for the hashes of the children of some nodes."""

    level: int
    indices: NDArray[np.uint32]


@dataclass(frozen=True, slots=True, eq=False)
class AskDigests:
    """Ask for the digests of all rows below some nodes."""

    level: int
    indices: NDArray[np.uint32]


@dataclass(frozen=True, slots=True, eq=False)
class AskRows:
    """Fetch the rows at some tokens. ``counted``: the plan knows that each is needed."""

    tokens: NDArray[np.uint64]
    counted: bool


@dataclass(frozen=True, slots=True, eq=False)
class GiveRows:
    """Push the own rows at some tokens."""

    tokens: NDArray[np.uint64]
    counted: bool


Request = AskRoots | AskNodes | AskDigests | AskRows | GiveRows


@dataclass(slots=True)
class PairSession:
    """One pair, for the whole repair: one or several passes of compare, stream, verify.

    Call :meth:`next_request` and feed its answer to the method of the same subject, until it returns None: then the
    session is DONE or FAILED, or (COMPARING) has its ``found`` ready and waits for :meth:`stream`, or (STREAMING) has
    given and fetched everything and waits for :meth:`verify`.
    """

    passes_max: int = 4
    difference_rows_max: int = DIFFERENCE_ROWS_MAX
    statistics: RepairStatistics = field(default_factory=RepairStatistics)
    """May be shared by the sessions of one repair."""
    phase: Phase = Phase.PREPARING
    failure: str = ""
    passes: int = 0
    complete_to: int = TOKEN_MAX
    """The last token up to which ``found`` is complete; less than the last token when there were too many rows."""
    unsettled: bool = False
    """DONE although the roots still differed: rows were written while the last pass ran."""

    _compared: bool = False
    _tree: HashTree | None = None
    _leaf_level: int = 0
    _level: int = 0
    _differing: list[NDArray[np.uint32]] = field(default_factory=list)
    _requests: deque[Request] = field(default_factory=deque)
    _found: list[Difference] = field(default_factory=list)
    _found_rows: int = 0
    _leaves_listed: int = 0
    _streamed: Difference | None = None

    def __post_init__(self) -> None:
        self._requests.append(AskRoots(open_session=True))

    def next_request(self) -> Request | None:
        """What to ask next; None while something else has to happen (see the class)."""
        if self.phase in (Phase.DONE, Phase.FAILED):
            return None
        return self._requests.popleft() if self._requests else None

    def roots(self, *, equal: bool) -> None:
        """The answer to AskRoots. Unequal and opened: go on with :meth:`compare`."""
        if not self._compared:
            self.statistics.pairs_compared += 1
            self.statistics.pairs_equal += equal
        self._compared = True
        if equal:
            self.phase = Phase.DONE
        elif self.passes >= self.passes_max:
            self.unsettled = True
            self.phase = Phase.DONE
        else:
            self.passes += 1
            self.phase = Phase.COMPARING

    def compare(self, tree: HashTree, peer_depth: int, child_hashes: NDArray[np.uint64]) -> None:
        """Begin the descent with the own tree (restricted to the range) and the hashes below the peer's root, (16,)."""
        self._expect(Phase.COMPARING)
        self._tree, self._leaf_level = tree, min(tree.depth, peer_depth)
        self._level, self._leaves_listed, self._found_rows, self.complete_to = 0, 0, 0, TOKEN_MAX
        self._found = []
        root = np.zeros(1, np.uint32)
        self._descend([tree.differing_children(0, root, child_hashes.reshape(1, -1))])

    def nodes(self, request: AskNodes, child_hashes: NDArray[np.uint64]) -> None:
        """The answer to AskNodes, shape (n, 16)."""
        self._expect(Phase.COMPARING)
        self._differing.append(self._local_tree.differing_children(request.level, request.indices, child_hashes))
        if not self._requests:
            self._descend(self._differing)

    def digests(self, local: RowDigests, remote: RowDigests, last_token: int) -> bool:
        """A part of the answer to AskDigests: all rows of both sides up to ``last_token`` that were not yet given.

        Returns whether more may follow; False: enough differs for one pass, drop the rest of the answer.
        """
        self._expect(Phase.COMPARING)
        part = difference(local, remote)
        self._leaves_listed += len(local) + len(remote)
        if len(part):
            self._found.append(part)
            self._found_rows += len(part)
        if self._found_rows >= self.difference_rows_max:
            self.complete_to = last_token
            self._requests.clear()
            return False
        return True

    @property
    def found(self) -> Difference:
        """All differences of this pass, complete up to ``complete_to``; none if the roots were equal.

        Raises:
            DivergenceError: leaves differ while their rows are equal, or rows that were moved differ as before.
        """
        if self.phase is Phase.DONE:
            return Difference.concatenate([])
        found = Difference.concatenate(self._found)
        if self._leaves_differ and not len(found):
            raise DivergenceError(
                "hash trees differ but all their rows are equal; restart both nodes to rebuild the trees"
            )
        if self._streamed is not None and len(repeated := self._streamed.repeated_in(found)):
            raise DivergenceError(
                f"{len(repeated)} rows were moved and differ as before; check the disks of both nodes"
            )
        return found

    def stream(self, plan: PairPlan, *, streamed: Difference, cut: bool) -> None:
        """Move rows by a plan; ``streamed`` is the part of ``found`` that the plan makes equal.

        A session that is DONE goes on if other pairs have brought rows that its peer lacks.
        ``cut``: more was found, or is to be found, than one pass moves; such a pass is progress and does not count.
        """
        self._expect(Phase.COMPARING, Phase.DONE)
        self.phase, self._tree, self._streamed = Phase.STREAMING, None, streamed
        self.passes -= int(cut)
        for tokens, counted in ((plan.fetch_tokens, True), (plan.colliding_tokens, False)):
            self._requests.extend(AskRows(page, counted) for page in _pages(tokens, TOKENS_PER_REQUEST_MAX))

    def push(self, tokens: NDArray[np.uint64], colliding: NDArray[np.uint64], lost: NDArray[np.uint64]) -> None:
        """Give rows, after the fetches of all pairs; ``lost`` are tokens whose winner's holder failed meanwhile."""
        self._expect(Phase.STREAMING)
        if self._streamed is not None and len(lost):
            self._streamed = self._streamed.without(lost)
        for part, counted in ((tokens, True), (colliding, False)):
            self._requests.extend(GiveRows(page, counted) for page in _pages(part, ROWS_PER_PUSH_MAX))

    def moved(self, rows: int, *, applied: int, counted: bool) -> None:
        """The answer to AskRows and GiveRows: rows that travelled, and rows that changed their receiver."""
        self._expect(Phase.STREAMING)
        self.statistics.rows_moved += rows
        if not counted:
            self.statistics.rows_optimal += applied

    def verify(self) -> None:
        """Compare the roots again; the last time without opening a session."""
        self._expect(Phase.STREAMING)
        self.phase = Phase.VERIFYING
        self._requests.append(AskRoots(open_session=self.passes < self.passes_max))

    def fail(self, reason: str) -> None:
        """End the session; ``reason`` is for people."""
        self.phase, self.failure = Phase.FAILED, reason
        self._requests.clear()
        self._tree = None

    @property
    def _local_tree(self) -> HashTree:
        if self._tree is None:
            raise RuntimeError("the session compares, but has no tree")
        return self._tree

    @property
    def _leaves_differ(self) -> bool:
        return self._level == self._leaf_level and any(len(one) for one in self._differing)

    def _descend(self, differing: list[NDArray[np.uint32]]) -> None:
        """Go one level down with the nodes that differ there; at the leaves ask for rows."""
        self._level += 1
        indices = np.concatenate(differing)
        self._differing = []
        if self._level == self._leaf_level:
            self._differing = [indices]
        kind = AskDigests if self._level == self._leaf_level else AskNodes
        self._requests.extend(kind(self._level, page) for page in _pages(indices, NODES_PER_REQUEST_MAX))

    def _expect(self, *phases: Phase) -> None:
        if self.phase not in phases:
            raise RuntimeError(f"the session is {self.phase.value}, not {' or '.join(one.value for one in phases)}")


def _pages(column: NDArray[_Unsigned], size: int) -> Iterator[NDArray[_Unsigned]]:
    for start in range(0, len(column), size):
        yield column[start : start + size]
