"""When a tombstone may be forgotten, so that no deleted row ever returns.

A deleted row returns when a tombstone is purged while an older row of its key is still somewhere: on a replica that
was away, in a delayed write, in a repeated push, in a backup. Everything here keeps one promise:

    (*) If a tombstone of version t may be purged, no replica of its range holds, and none will ever take, a row of
    its key that is older than t.

Three versions per bucket (1/256 of the token line), kept durably with the rows, say what a replica has promised:

    fence     From now on nothing below it is taken, unless repair brings it: the past is closed. Enforced by the
              store, which refuses and counts such rows (whether the key is stored or not; a row that loses anyway is
              no refusal). A promise and no more: it may be raised at any time, and a session that fails later does no
              harm.
    repaired  A complete session as of this version has been confirmed (below): whatever any replica held below it,
              this replica holds, or something newer.
    floor     Tombstones below it may have been purged. Recorded before the first of them is removed, and adopted from
              others, so that this is not forgotten when replicas are replaced.

    Each only grows; floor <= repaired <= fence, but for a purge driven by time. A replica restored from a backup has
    the marks of the backup, because they lie in the same store as the rows.

A session with *all* replicas of a range, as of F = version of (its start - propagation delay):

 1. Every replica raises its fence to F (and to the floors that it is told), durably, and only then opens the snapshot
    that is compared. Floors are read after that, so that they are no less than what had been purged in the snapshot.
 2. A replica whose `repaired` is less than another's floor in a bucket where it holds rows is *unclean*: it may hold
    rows whose tombstones are gone. It is refused. A bucket without rows is clean whatever its marks say.
 3. All tombstones below the greatest floor of the participants are left out of all snapshots (they are *expired*),
    else replicas that have purged and those that have not would differ for nothing, or copy them back.
 4. Differences are located, and the winner of each is applied wherever it is missing. A bucket is *settled* when no
    difference remains whose winner is older than F (newer ones are writes under way).
 5. The coordinator, having seen every pair settled, records `repaired` = F and confirms the session to the others
    with its next request. A replica that took part in *that* session since its last start records `repaired` = F,
    and the greatest floors of all.
 6. When all have confirmed, the coordinator permits the purge below F with a later request. Each replica records its
    floor = min(F, its own `repaired`), then purges, at leisure.

Why (*) holds. After step 1 the rows below F in the replica set are a closed set: they only move by repair among the
same replicas, or give way to newer ones. Step 4 makes every replica hold, for each key, the winner of all snapshots
or something newer, so at least every tombstone below F that is anywhere. Nothing older of such a key is left, and the
fence lets nothing older in. Step 5 is needed because equality with the coordinator is not enough with three replicas:
B may equal A while C holds a tombstone that A takes afterwards. Step 6 is needed so that no clean replica is ever
refused: at the time of the purge every replica knows that it is clean. Step 3 is sound by (*): an expired tombstone
has nothing left to hide.

Ways in which a deleted row could come back, and what closes them:

 * A write, hint or read repair delivered late, older than a purged tombstone: the fence.
 * A *tombstone* that is delivered late, with an old timestamp, to one replica over a stored row: it would be purged
   there at once and the row would return from the others. The fence refuses it, like everything late; the writer is
   told, so such a delete was never acknowledged. Writers must not acknowledge what the store refused.
 * A replica that was down or partitioned: no complete session, so no purge (repair-driven). With purge driven by time
   it is unclean once it returns, and refused.
 * A replica restored from a backup: its marks are old, too; unclean if anything was purged since.
 * A store with rows and without marks (adopted): never repaired, so unclean as soon as anybody has purged.
 * A store that is born empty: it records birth as `fence` and `repaired`, so that late old rows do not enter it. What
   is copied into it from one replica (bootstrap) is as good as that replica: :meth:`Marks.copied_from`.
 * A crash between purge and record: the record comes first.
 * A crash of anybody before step 5 or 6: nothing is recorded; the next session begins anew.
 * Two coordinators: marks only grow, and each confirmed session is true by itself, whatever clocks they had.
 * Repairs of some replicas, of a data centre, of one direction, with dead replicas left out:
   :func:`counts_as_repaired`.
 * A push of an old session that is delayed or repeated: refused by sessions, as a push needs the open session it
   belongs to, and leases keep a second one from running.
 * Replica sets that change: a session counts for the set that both sides agree on (step 1 compares them); a replica
   that leaves and comes back with its data missed sessions, so its `repaired` stays behind the floors of the others.
 * A forced repair of an unclean replica: it may bring deleted rows back. That is its named risk. Nothing is expired
   in it (:func:`session_floors`), so that every tombstone that is left still wins.

What is not closed: stores that lose acknowledged writes or, all replicas of a range at once, their marks; an
application that gives one store two sets of replicas;
a clock more than the propagation delay ahead of the others' (their writes are refused, and counted, not lost
silently).

Sources: facts of Cassandra's only_purge_repaired_tombstones (CASSANDRA-6434), of ScyllaDB's tombstone_gc=repair, and
the rule of two consecutive repairs within gc_grace (M. Sun, 2025).

"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from antientropy.core.tokens import BUCKET_LEVEL, BUCKETS, TokenRange, bucket_of, covering, node_range
from antientropy.limits import VERSION_MAX

Versions = NDArray[np.uint64]
"""One version per bucket: shape (256,)."""
Buckets = NDArray[np.bool_]
"""Some of the buckets: shape (256,)."""

#: Names of the marks in a store. The store itself reads and writes the first and the last.
FENCE_MARK: Final = "fence"
REPAIRED_MARK: Final = "repaired"
FLOORS_MARK: Final = "floors"

#: Sessions in which this replica took part and that may still be confirmed: coordinators confirm with the next request,
#: so a few for each range are enough; beyond it the oldest is forgotten and never counts.
PENDING_SESSIONS_MAX: Final = 4_096
#: A varint of 64 bits.
_VARINT_BYTES_MAX: Final = 10


class PurgeMode(Enum):
    """What permits the purge of tombstones."""

    REPAIR = "repair"
    """Complete repairs: a dead replica keeps all tombstones alive, and nothing ever returns."""
    TIME = "time"
    """Age (gc_grace, as Cassandra does it): a replica that is away for longer is refused when it returns."""
    NEVER = "never"
    """Tombstones stay."""


# --- columns ---


def no_versions() -> Versions:
    """All 0: nothing promised, nothing purged."""
    return np.zeros(BUCKETS, np.uint64)


def uniform(version: int) -> Versions:
    """The same version in every bucket."""
    return np.full(BUCKETS, version, np.uint64)


def buckets_touched(token_range: TokenRange) -> Buckets:
    """The buckets that have a token in the range."""
    first, last = covering(token_range, BUCKET_LEVEL)
    touched = np.zeros(BUCKETS, np.bool_)
    touched[first : last + 1] = True
    return touched


def within(version: int, buckets: Buckets) -> Versions:
    """A version in some buckets, 0 in the others: what is to be merged into marks."""
    return np.where(buckets, np.uint64(version), np.uint64(0))


def merged(*columns: Versions) -> Versions:
    """The greatest of each bucket: floors of participants, or marks and what is added to them."""
    greatest: Versions = np.maximum.reduce([no_versions(), *columns])
    return greatest


def encode_versions(versions: Versions) -> bytes:
    """Empty when all are 0, one varint when all are equal, else runs: varint, run length - 1 (1 byte), varint, ...

    The last run needs no length: it reaches the end. At most 256 * 11 bytes.
    """
    if not versions.any():
        return b""
    starts = np.concatenate(([0], np.flatnonzero(np.diff(versions)) + 1, [len(versions)]))
    parts: list[bytes] = []
    for first, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        parts.append(_varint(int(versions[first])))
        if end < len(versions):
            parts.append(bytes([end - first - 1]))
    return b"".join(parts)


def decode_versions(encoded: bytes) -> Versions:
    """The inverse of :func:`encode_versions`; nothing but what that makes is taken.

    Raises:
        ValueError: no such encoding.
    """
    versions = no_versions()
    if not encoded:
        return versions
    at = bucket = 0
    previous = -1
    while True:
        version, at = _read_varint(encoded, at)
        if version == previous:
            raise ValueError("versions of buckets: two neighbouring runs of one version")
        previous = version
        if at == len(encoded):
            versions[bucket:] = version
            break
        run = encoded[at] + 1
        versions[bucket : bucket + run] = version
        at, bucket = at + 1, bucket + run
        if bucket >= BUCKETS:
            raise ValueError(f"versions of buckets: more than {BUCKETS}")
    if not versions.any():
        raise ValueError("versions of buckets: all 0 is the empty encoding")
    return versions


# --- rules of the store ---


def below(tokens: NDArray[np.uint64], versions: NDArray[np.uint64], limits: Versions) -> NDArray[np.bool_]:
    """Which of n rows are older than the version of their bucket. Shape (n,).

    With the fence: rows that a store must not take from anybody but repair. With the session's floors, and of
    tombstones: those that are expired. With a purge's floors, and of tombstones: those that are removed.
    """
    older: NDArray[np.bool_] = versions < limits[bucket_of(tokens)]
    return older


def past(floors: Versions, fence_mark: bytes | None) -> Versions:
    """Below which versions a store takes nothing but from repair: its fence, and its floors at least.

    Raises:
        ValueError: the mark is damaged.
    """
    return merged(floors, decode_versions(fence_mark or b""))


def expired(
    tokens: NDArray[np.uint64], versions: NDArray[np.uint64], tombstones: NDArray[np.bool_], floors: Versions
) -> NDArray[np.bool_]:
    """Which of n rows a session leaves out: tombstones older than the floor of their bucket. Shape (n,)."""
    return tombstones & below(tokens, versions, floors)


# --- rules of a replica ---


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """What one replica has promised: see the head of this module."""

    fence: Versions = field(default_factory=no_versions)
    repaired: Versions = field(default_factory=no_versions)
    floors: Versions = field(default_factory=no_versions)

    @classmethod
    def born(cls, version: int) -> Marks:
        """Of a store that was empty when it was made: ``version`` is that of (now - propagation delay)."""
        return cls(fence=uniform(version), repaired=uniform(version))

    @classmethod
    def of(cls, fence: bytes | None, repaired: bytes | None, floors: bytes | None) -> Marks:
        """As a store has them; a store without marks was never repaired.

        Raises:
            ValueError: a mark is damaged.
        """
        columns = [decode_versions(mark or b"") for mark in (fence, repaired, floors)]
        return cls(merged(*columns), columns[1], columns[2])

    def fenced(self, as_of: int, buckets: Buckets) -> Marks:
        """Before the snapshot of a session is opened."""
        return replace(self, fence=merged(self.fence, within(as_of, buckets)))

    def confirmed(self, versions: Versions, floors: Versions) -> Marks:
        """Complete sessions as of these versions; only what was fenced counts.

        ``floors``, the greatest of all participants, are adopted where they are not beyond that: who purged what must
        be known as long as the rows are, even when all who purged have been replaced one by one.
        """
        repaired = merged(self.repaired, np.minimum(versions, self.fence))
        adopted = np.where(floors <= repaired, floors, np.uint64(0))
        return replace(self, repaired=repaired, floors=merged(self.floors, adopted))

    def purged(self, permitted: Versions, mode: PurgeMode) -> Marks:
        """With the floors below which tombstones may go now: to be recorded *before* they go.

        Driven by repair, a replica never goes beyond what it knows to be repaired itself, whatever it is told.
        """
        if mode is PurgeMode.NEVER:
            return self
        if mode is PurgeMode.REPAIR:
            permitted = np.minimum(permitted, self.repaired)
        floors = merged(self.floors, permitted)
        return replace(self, floors=floors, fence=merged(self.fence, floors))

    def copied_from(self, sources: Sequence[Marks], buckets: Buckets) -> Marks:
        """When rows of some buckets are copied from other replicas (bootstrap): no better than the worst of these.

        Args:
            sources: Marks of each source, read before the first row was.
            buckets: What is copied.
        """
        worst = np.minimum.reduce([self.repaired, *[source.repaired for source in sources]])
        floors = merged(self.floors, *[np.where(buckets, source.floors, np.uint64(0)) for source in sources])
        return replace(
            self,
            fence=merged(self.fence, floors),
            repaired=np.where(buckets, worst, self.repaired),
            floors=floors,
        )


def unclean(repaired: Versions, empty: Buckets, floors: Versions) -> Buckets:
    """Buckets in which a replica may hold rows whose tombstones are gone elsewhere.

    Args:
        repaired: Its marks.
        empty: Buckets in which its snapshot, opened behind its fence, holds no row.
        floors: The greatest of all *other* participants.
    """
    return (repaired < floors) & ~empty


def refusal(
    endpoint: str,
    buckets: Buckets,
    repaired: Versions,
    floors: Versions,
    when: Callable[[int], str] = str,
) -> str:
    """Why a replica with these unclean buckets takes no part, and the way out, in one line.

    Args:
        endpoint: The unclean replica.
        buckets: See :func:`unclean`; not empty.
        repaired: Its marks.
        floors: The greatest of all participants.
        when: A version as a time for people.
    """
    worst = int(np.flatnonzero(buckets)[np.argmin(repaired[buckets])])
    since = f"since {when(int(repaired[worst]))}" if repaired[worst] else "ever"
    return (
        f"{endpoint} has not been repaired {since}, but tombstones older than {when(int(floors[worst]))} were purged"
        f" ({int(buckets.sum())} of {BUCKETS} buckets): it may bring deleted rows back."
        " Wipe its store and let repair rebuild it, or repair with --force and accept that deleted rows may return"
    )


# --- rules of a session ---


def session_version(
    started_at_seconds: float,
    version_at: Callable[[float], int],
    *,
    propagation_delay_seconds: float,
    step_seconds: float = 60.0,
) -> int:
    """As of which version a session counts: its start less the delay that a write may take to arrive.

    Rounded down to whole steps, so that repairs in quick succession do not write their marks again and again.
    """
    return max(0, version_at(max(0.0, (started_at_seconds - propagation_delay_seconds) // step_seconds * step_seconds)))


def session_floors(floors: Sequence[Versions], *, forced: bool) -> Versions:
    """Below which tombstones are expired in a session; none are where force lets an unclean replica in."""
    return no_versions() if forced else merged(*floors)


def counts_as_repaired(replicas: Collection[str], took_part: Collection[str], *, restricted: bool) -> bool:
    """Whether a session with this outcome may be confirmed at all.

    Args:
        replicas: All replicas of the range, dead ones too, as all participants know them.
        took_part: Those that took part from fence to the last row, the coordinator included.
        restricted: Something was left out on purpose (:attr:`~antientropy.options.RepairOptions.restricted`).
    """
    return not restricted and set(replicas) <= set(took_part)


def settled(tokens: NDArray[np.uint64], winner_versions: NDArray[np.uint64], as_of: int) -> Buckets:
    """Buckets that count although differences remain: no winner there is older than the session. Shape (256,).

    Args:
        tokens: Of keys that still differ between any two replicas. Shape (n,).
        winner_versions: The greatest version of each of these keys. Shape (n,).
        as_of: The version of the session.
    """
    clear = np.ones(BUCKETS, np.bool_)
    clear[bucket_of(tokens[winner_versions < np.uint64(as_of)])] = False
    return clear


def bucket_versions(completed: Sequence[tuple[TokenRange, int]], held: Sequence[TokenRange]) -> Versions:
    """What complete sessions of ranges mean for whole buckets. Shape (256,).

    The version of a bucket is the least over all of its tokens that this replica holds; 0 where such a token is in no
    complete session, and in a bucket of which nothing is held.

    Args:
        completed: Ranges and as of which version; they may overlap, the greatest counts.
        held: What this replica holds, disjoint. When it changes, begin with no completed ranges.
    """
    result = no_versions()
    for bucket in range(BUCKETS):
        whole = node_range(BUCKET_LEVEL, bucket)
        parts = [part for one in held if (part := one.intersection(whole)) is not None]
        pieces = [(cut, version) for one, version in completed if (cut := one.intersection(whole)) is not None]
        if parts and pieces:
            result[bucket] = min(_least_version(part, pieces) for part in parts)
    return result


def _least_version(part: TokenRange, pieces: Sequence[tuple[TokenRange, int]]) -> int:
    """The least, over the tokens of ``part``, of the greatest version that covers a token."""
    cuts = {part.first, *(one.first for one, _ in pieces), *(one.last + 1 for one, _ in pieces)}
    return min(
        max([version for one, version in pieces if one.contains(token)], default=0)
        for token in cuts
        if part.contains(token)
    )


class Ledger:
    """Sessions in which a replica took part since it was started and which have not been confirmed yet.

    In memory on purpose: after a restart, which is what the restoration of a backup needs, nothing old is confirmed.
    """

    def __init__(self) -> None:
        self._pending: dict[int, tuple[TokenRange, int]] = {}
        self._completed: list[tuple[TokenRange, int]] = []

    def took_part(self, session: int, token_range: TokenRange, as_of: int) -> None:
        """The fence stands at ``as_of`` and the snapshot for the session was opened behind it."""
        self._pending.pop(session, None)
        self._pending[session] = (token_range, as_of)
        while len(self._pending) > PENDING_SESSIONS_MAX:
            del self._pending[next(iter(self._pending))]

    def failed(self, session: int) -> None:
        """It ended in another way than complete, or this replica lost rows that it was given."""
        self._pending.pop(session, None)

    def confirm(self, session: int, held: Sequence[TokenRange]) -> Versions | None:
        """A session was complete: what may be merged into ``repaired``. None: not known here, it does not count."""
        found = self._pending.pop(session, None)
        if found is None:
            return None
        token_range, as_of = found
        self._completed = [one for one in self._completed if not _covers(found, one)]
        self._completed.append((token_range, as_of))
        return bucket_versions(self._completed, held)

    def ring_changed(self) -> None:
        """The replica holds other ranges, or with others: nothing of before counts."""
        self._pending.clear()
        self._completed.clear()


def _covers(newer: tuple[TokenRange, int], older: tuple[TokenRange, int]) -> bool:
    """Whether a complete session makes an earlier one superfluous."""
    return newer[0].first <= older[0].first and older[0].last <= newer[0].last and older[1] <= newer[1]


def purge_permission(repaired: Mapping[str, Versions], replicas: Collection[str]) -> Versions:
    """Below which versions all replicas of a range may purge, by what each of them says to have recorded.

    All 0 as long as one of ``replicas`` has not said anything.
    """
    if not replicas or not set(replicas) <= set(repaired):
        return no_versions()
    least: Versions = np.minimum.reduce([repaired[endpoint] for endpoint in replicas])
    return least


def purge_by_time(now_seconds: float, version_at: Callable[[float], int], *, gc_grace_seconds: float) -> Versions:
    """Below which versions tombstones are purged by age, whoever has seen them."""
    return uniform(max(0, version_at(max(0.0, now_seconds - gc_grace_seconds))))


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(encoded: bytes, at: int) -> tuple[int, int]:
    """The value at ``at`` and where it ends; only the shortest form."""
    value = 0
    for length in range(_VARINT_BYTES_MAX):
        if at + length >= len(encoded):
            raise ValueError("versions of buckets: cut off")
        byte = encoded[at + length]
        value |= (byte & 0x7F) << 7 * length
        if byte < 0x80:
            if value > VERSION_MAX or (byte == 0 and length > 0):
                break
            return value, at + length + 1
    raise ValueError("versions of buckets: no number of 64 bits")
