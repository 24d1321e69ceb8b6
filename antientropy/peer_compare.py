"""The comparison of roots, seen from the side that answers: with it sessions open, are renewed, and close.

In this order: leases, what the session records about deletes (fence before anything is looked at), roots, and only if
those differ a snapshot. An equal pair opens nothing and reads no rows.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from typing import Final

import grpc
import numpy as np
from numpy.typing import NDArray

from antientropy import wire
from antientropy.config import version_text
from antientropy.core import deletes, hashing
from antientropy.core.locate import glance
from antientropy.core.merkle import Root
from antientropy.core.tokens import BUCKET_LEVEL, BUCKETS, TokenRange
from antientropy.errors import PeerMessageError
from antientropy.leases import LeaseDenied
from antientropy.limits import EPOCH_STEP_MAX, SERVED_SESSIONS_MAX
from antientropy.replica import Replica
from antientropy.served import ServedSession, SharedSnapshot, late_message, lost_session
from antientropy.serving import Serving
from antientropy.snapshots import ReplicaSnapshot, open_in_thread
from antientropy.transport.base import CallError
from antientropy.v1 import repair_pb2 as pb

logger = logging.getLogger(__name__)

#: A comparison waits so long for an index that is being built: a small one is there by then, and far below deadlines.
_INDEX_WAIT_SECONDS: Final = 1.0


class _Refused(Exception):  # noqa: N818 - no error: an answer
    """The comparison is not made; ``refusal`` is the answer."""

    def __init__(
        self, kind: pb.Refusal.Kind.ValueType, detail: str, holder: str = "", retry_after_seconds: float = 0.0
    ) -> None:
        self.refusal: Final = pb.Refusal(
            kind=kind, detail=detail, holder=holder, retry_after_ms=max(0, round(retry_after_seconds * 1000))
        )
        super().__init__(detail)


class Comparisons:
    """Answers Compare."""

    def __init__(self, node: Serving) -> None:
        self._node = node
        self._opening_snapshots = 0
        self._rebuilding: dict[Replica, Future[None]] = {}
        self._indexing: dict[str, asyncio.Task[None]] = {}

    async def compare(self, request: pb.CompareRequest) -> pb.CompareResponse:
        """Compare roots; open, renew or close the session of the request."""
        try:
            await self._check_ready(request)
        except _Refused as refused:
            return pb.CompareResponse(refusal=refused.refusal)
        if not request.session:
            return await self._compare_without_session(request)
        finished = self._node.sessions.finished(request.session)
        session = self._node.sessions.find(request.session)
        if session is None and finished is not None and request.turn <= finished[0]:
            return _repeated(request, *finished)
        try:
            if session is None:
                session = await self._open(request)
        except _Refused as refused:
            return pb.CompareResponse(refusal=refused.refusal)
        if request.keyspace and (request.keyspace, wire.range_of(request)) != (session.keyspace, session.token_range):
            raise PeerMessageError(f"session {session.name:016x} is of another keyspace or range")
        async with session.comparing:
            if request.turn <= session.turn:
                return _repeated(request, session.turn, session.answer)
            if session.closed:
                raise lost_session()
            answer: pb.CompareResponse | None = None
            try:
                with session.busy():
                    answer = await self._compare_in(session, request)
            finally:
                if answer is None and session.answer is None:
                    await self._node.sessions.close(session)
            session.turn, session.answer = request.turn, answer
            if not _keeps(request, answer):
                await self._node.sessions.close(session)
            return answer

    async def _check_ready(self, request: pb.CompareRequest) -> None:
        """Refuse while the index is built, which takes minutes for a large store: neither thread nor caller waits."""
        replica = self._node.replicas.get(request.keyspace)
        if replica is None or replica.is_ready:
            return
        task = self._indexing.get(request.keyspace)
        if task is None or task.done():
            task = asyncio.create_task(self._node.in_thread(replica.open), name="antientropy open")
            # Whoever asks next is told.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._indexing[request.keyspace] = task
        done, _ = await asyncio.wait({task}, timeout=_INDEX_WAIT_SECONDS)
        if not done:
            endpoint = self._node.membership.local_endpoint
            raise _Refused(
                pb.Refusal.KIND_NOT_READY,
                f"{endpoint} is building its index of {request.keyspace}; repair again when it is ready",
                retry_after_seconds=_INDEX_WAIT_SECONDS,
            )
        task.result()

    async def _compare_without_session(self, request: pb.CompareRequest) -> pb.CompareResponse:
        if request.open != pb.CompareRequest.OPEN_NONE:
            raise PeerMessageError("a session is to be opened, but has no name")
        try:
            keyspace, token_range = self._place(request)
            floors = await self._node.in_thread(self._floors, keyspace, token_range, request)
            return await self._compare_roots(
                self._node.replicas[keyspace], token_range, request, floors, request.hashes
            )
        except _Refused as refused:
            return pb.CompareResponse(refusal=refused.refusal)

    async def _open(self, request: pb.CompareRequest) -> ServedSession:
        """A session for a request that names all of it."""
        if not request.keyspace:
            raise lost_session()
        keyspace, token_range = self._place(request)
        owner = self._owner(request, keyspace, token_range)
        if len(self._node.sessions) >= SERVED_SESSIONS_MAX:
            raise _Refused(pb.Refusal.KIND_BUSY, f"{SERVED_SESSIONS_MAX} repair sessions are open here; try later")
        session = self._node.sessions.open(keyspace, token_range, owner, request.session)
        await self._node.sessions.sweep()
        if isinstance(session, LeaseDenied):
            raise _Refused(
                pb.Refusal.KIND_LEASED,
                f"{token_range} of {keyspace} is being repaired by {session.holder} (session {session.session:016x})",
                session.holder,
                session.retry_after_seconds,
            )
        return session

    def _owner(self, request: pb.CompareRequest, keyspace: str, token_range: TokenRange) -> str:
        """The coordinator: by name, or by its place among the replicas that both sides see alike."""
        if not request.owner_place:
            return wire.check_endpoint(request.owner)
        if not request.replicas:
            raise PeerMessageError("an owner by its place among replicas that are not told")
        self._check_ring(keyspace, token_range, request.replicas)
        held = next(
            one.replicas
            for one in self._node.membership.ranges(keyspace)
            if one.token_range.intersection(token_range) is not None
        )
        if request.owner_place > len(held):
            raise PeerMessageError(f"an owner at place {request.owner_place} of {len(held)} replicas")
        return sorted(held)[request.owner_place - 1]

    def _place(self, request: pb.CompareRequest) -> tuple[str, TokenRange]:
        """Keyspace and range of a request: served here, and held by this node as a whole."""
        keyspace, token_range = wire.check_keyspace(request.keyspace), wire.range_of(request)
        if keyspace not in self._node.replicas:
            raise CallError(grpc.StatusCode.NOT_FOUND, f"keyspace {keyspace!r} is not served here")
        self._check_ring(keyspace, token_range)
        return keyspace, token_range

    def _check_ring(self, keyspace: str, token_range: TokenRange, replicas: int = 0) -> None:
        """Refuse a range that this node does not hold, or that the coordinator believes on other replicas."""
        node = self._node
        if not node.holds(keyspace, token_range):
            detail = f"{node.membership.local_endpoint} does not hold all of {token_range} of {keyspace}"
        elif replicas and any(
            wire.hash_of_replicas(held.replicas) != replicas
            for held in node.membership.ranges(keyspace)
            if held.token_range.intersection(token_range) is not None
        ):
            detail = f"{node.membership.local_endpoint} sees other replicas of {token_range} of {keyspace}"
        else:
            return
        detail += ": the ring has changed, so repair again when it has settled"
        raise _Refused(pb.Refusal.KIND_NOT_A_REPLICA, detail)

    async def _compare_in(self, session: ServedSession, request: pb.CompareRequest) -> pb.CompareResponse:
        """One comparison of a session: what it records first, then roots, then, if they differ, a new snapshot."""
        try:
            self._check_ring(session.keyspace, session.token_range, request.replicas)
        except _Refused as refused:
            return pb.CompareResponse(refusal=refused.refusal)
        replica = self._node.replicas[session.keyspace]
        theirs = self._checked(session, request)
        recorded = await self._record(session, request)
        floors = await self._node.in_thread(self._floors, session.keyspace, session.token_range, request)
        session.hashes = request.hashes or session.hashes
        answer = await self._compare_roots(replica, session.token_range, request, floors, session.hashes)
        answer.repaired_version = recorded
        if answer.hashes or answer.HasField("refusal") or request.open == pb.CompareRequest.OPEN_NONE:
            return answer
        if answer.equal:
            await self._node.sessions.drop_snapshot(session)
            return answer
        try:
            snapshot = await self._renew_snapshot(session, replica, floors)
            after = await self._node.in_thread(self._floors, session.keyspace, session.token_range, request)
            if not np.array_equal(after, floors):
                # Something was purged before the snapshot was opened: floors are no less than what is gone from it.
                floors = after
                snapshot = await self._renew_snapshot(session, replica, floors)
                answer.floors = wire.encode_floors(floors, session.token_range)
            _, epoch = wire.decode_hashes(session.hashes)
            if snapshot.epoch != epoch:
                # They were made anew meanwhile.
                await self._node.sessions.drop_snapshot(session)
                return pb.CompareResponse(hashes=wire.encode_hashes(hashing.HASH_VERSION, snapshot.epoch))
            if snapshot.root == theirs:
                await self._node.sessions.drop_snapshot(session)
                return pb.CompareResponse(equal=True, repaired_version=recorded, floors=answer.floors)
            if not request.forced:
                await self._node.in_thread(self._check_clean, session.keyspace, snapshot, floors)
        except _Refused as refused:
            await self._node.sessions.drop_snapshot(session)
            return pb.CompareResponse(refusal=refused.refusal)
        answer.rows_more = snapshot.root.count - request.row_count
        answer.symbols = (await self._node.in_thread(glance, snapshot)).encode()
        return answer

    def _checked(self, session: ServedSession, request: pb.CompareRequest) -> Root:
        """All that can be wrong with a request, before any of it is recorded. Returns the coordinator's root."""
        floors = wire.decode_floors(request.floors, session.token_range)
        if request.repaired_version:
            self._check_past(int(floors.max()))
        _, epoch = wire.decode_hashes(request.hashes or session.hashes)
        own = self._node.replicas[session.keyspace].epoch
        if epoch > own + EPOCH_STEP_MAX:
            raise PeerMessageError(f"hash epoch {epoch} is beyond the one here, {own}, by more than {EPOCH_STEP_MAX}")
        for version in (request.repaired_version, request.purge_version):
            if version:
                self._past_version(version)
        return wire.root_of(request.root_digest, request.row_count)

    async def _record(self, session: ServedSession, request: pb.CompareRequest) -> bytes:
        """Fence, confirmation and permission of a request. Returns what answers the confirmation."""
        marks = self._node.marks[session.keyspace]
        if request.purge_version:
            session.purge_version = self._past_version(request.purge_version)
        if request.repaired_version:
            as_of = self._past_version(request.repaired_version)
            told = wire.decode_floors(request.floors, session.token_range)
            await self._node.in_thread(marks.fence, session.name, session.token_range, as_of, told)
        if not request.confirmed_session:
            return b""
        held = [one.token_range for one in self._node.membership.ranges(session.keyspace)]
        floors = wire.decode_floors(request.floors, session.token_range)
        await self._node.in_thread(marks.confirm, request.confirmed_session, held, floors)
        return wire.encode_version(await self._node.in_thread(marks.repaired_version, session.token_range))

    def _check_clean(self, keyspace: str, snapshot: ReplicaSnapshot, floors: NDArray[np.uint64]) -> None:
        """Refuse to bring rows back whose tombstones are gone elsewhere."""
        repaired = self._node.marks[keyspace].read().repaired
        level = snapshot.tree.levels[min(BUCKET_LEVEL, snapshot.tree.depth)]
        empty = np.repeat(level.counts == 0, BUCKETS // len(level.counts))
        unclean = deletes.unclean(repaired, empty, floors) & deletes.buckets_touched(snapshot.token_range)
        if unclean.any():
            endpoint = self._node.membership.local_endpoint
            when = version_text(self._node.config.version_time)
            raise _Refused(pb.Refusal.KIND_TOO_LONG_AWAY, deletes.refusal(endpoint, unclean, repaired, floors, when))

    def _past_version(self, data: bytes) -> int:
        """A version of the past: a fence in the future would keep the application's own writes out."""
        version = wire.decode_version(data)
        self._check_past(version)
        return version

    def _check_past(self, version: int) -> None:
        version_at = self._node.config.version_at
        if version_at is None:
            raise PeerMessageError("versions tell no time here, so nothing is recorded; set version_at on every node")
        if version > version_at(self._node.epoch_seconds()):
            raise PeerMessageError(f"version {version} lies in the future of this node; look at the clocks of both")

    def _floors(self, keyspace: str, token_range: TokenRange, request: pb.CompareRequest) -> NDArray[np.uint64]:
        """The greatest floors of both sides."""
        if request.forced:
            return wire.NO_FLOORS
        theirs = wire.decode_floors(request.floors, token_range)
        own = self._node.marks[keyspace].read().floors
        return deletes.merged(theirs, np.where(deletes.buckets_touched(token_range), own, np.uint64(0)))

    async def _compare_roots(
        self,
        replica: Replica,
        token_range: TokenRange,
        request: pb.CompareRequest,
        floors: NDArray[np.uint64],
        hashes: int,
    ) -> pb.CompareResponse:
        theirs = wire.root_of(request.root_digest, request.row_count)
        hash_version, epoch = wire.decode_hashes(hashes)
        if hash_version != hashing.HASH_VERSION:
            return pb.CompareResponse(
                refusal=pb.Refusal(
                    kind=pb.Refusal.KIND_HASH_VERSION,
                    detail=f"hash version {hash_version} is not spoken by {self._node.membership.local_endpoint} (but "
                    f"{hashing.HASH_VERSION}); run one release on all replicas",
                )
            )
        ours = await self._node.in_thread(replica.root, token_range, floors)
        own = replica.epoch
        if epoch != own:
            self._follow_epoch(replica, epoch, own)
            # That of before, although the hashes of few rows may be ready by now: nothing was compared.
            return pb.CompareResponse(hashes=wire.encode_hashes(hashing.HASH_VERSION, own))
        equal = ours == theirs
        answer = pb.CompareResponse(equal=equal, rows_more=0 if equal else ours.count - theirs.count)
        # Those of an equal replica count as well: a third one may hold what was deleted there and purged.
        encoded = wire.encode_floors(floors, token_range)
        if encoded != request.floors:
            answer.floors = encoded
        return answer

    def _follow_epoch(self, replica: Replica, epoch: int, own: int) -> None:
        """Make the hashes anew in the epoch of a peer that is ahead; it asks again."""
        if epoch > own + EPOCH_STEP_MAX:
            raise PeerMessageError(f"hash epoch {epoch} is beyond the one here, {own}, by more than {EPOCH_STEP_MAX}")
        before = self._rebuilding.get(replica)
        if epoch > own and (before is None or before.done()):
            logger.info("hashes are made anew in epoch %d, which a peer uses; that of before was %d", epoch, own)
            self._rebuilding[replica] = replica.rebuild(epoch)

    async def _renew_snapshot(
        self, session: ServedSession, replica: Replica, floors: NDArray[np.uint64]
    ) -> ReplicaSnapshot:
        await self._node.sessions.drop_snapshot(session)
        if self._node.sessions.snapshot_count + self._opening_snapshots >= self._node.config.sessions_max:
            raise _Refused(
                pb.Refusal.KIND_BUSY,
                f"{self._node.config.sessions_max} repair sessions are open at {self._node.membership.local_endpoint}; "
                "try again when one has ended",
            )
        self._opening_snapshots += 1
        try:
            snapshot = await open_in_thread(self._node.executor, replica, session.token_range, floors)
        finally:
            self._opening_snapshots -= 1
        if session.closed or self._node.stopped:
            await self._node.in_thread(snapshot.close)
            raise lost_session()
        session.snapshot = SharedSnapshot(snapshot)
        return snapshot


def _repeated(request: pb.CompareRequest, turn: int, answer: pb.CompareResponse | None) -> pb.CompareResponse:
    """The answer to a comparison that was made before; one that came too late has none."""
    if request.turn != turn or answer is None:
        raise late_message()
    return answer


def _keeps(request: pb.CompareRequest, answer: pb.CompareResponse) -> bool:
    """Whether the session is open after this answer."""
    if answer.hashes or answer.HasField("refusal") or request.open == pb.CompareRequest.OPEN_NONE:
        return False
    return request.open == pb.CompareRequest.OPEN_ALWAYS or not answer.equal
