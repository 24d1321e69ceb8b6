"""The network of a simulation: gossip, replication and repair over one set of links, with faults drawn from the seed.

Messages are real bytes. A link loses, delays, doubles and reorders them with the probabilities of :class:`LinkFaults`;
links can be cut in one direction or both, and a node can be slow.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from antientropy.transport.base import CallError, PeerAnswers, PeerCalls
from antientropy.transport.memory import Crossing, Fault, FaultKind, MemoryNetwork
from gossiper import limits
from gossiper.core.messages import Reply, Request
from gossiper.errors import LocalStateError, PeerProtocolError, TransportError
from gossiper.metrics import GossipMetrics
from gossiper.transport.base import Handler
from gossiper.transport.inbound import Inbound
from gossiper.transport.memory import refused
from gossiper.wire import codec
from kvstore.errors import BY_REASON, KvStoreError, UnreachableError
from kvstore.peers import ReplicaService
from kvstore.simulation.disk import Observer
from kvstore.simulation.process import KilledError, Process
from kvstore.transport import METHODS
from kvstore.v1 import kvstore_pb2 as pb
from kvstore.wire import rows_of

#: A message that lags does so for at most this long: less than any delay of propagation that repair is told.
LAG_SECONDS_MAX: Final = 3.0
_GOSSIP: Final = "gossip/"


@dataclass(slots=True)
class LinkFaults:
    """Probabilities per message, and the ordinary latency."""

    loss: float = 0.0
    lag: float = 0.0
    """Of a delay of up to ``LAG_SECONDS_MAX``."""
    repeat: float = 0.0
    """Of arriving twice, at once or later."""
    reorder: float = 0.0
    latency_seconds: tuple[float, float] = (0.001, 0.01)


class SimulatedNetwork:
    """All nodes of a simulation.

    Args:
        rng: Draws all faults.
    """

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self.faults = LinkFaults()
        self.slow_seconds: dict[str, float] = {}
        """Added to the latency of all that a node sends and gets."""
        self.counts: Counter[str] = Counter()
        """Faults that messages met."""
        self.wire = MemoryNetwork(self._fault)
        self._cut: set[tuple[str, str]] = set()
        self._gossip: dict[str, Inbound] = {}
        self._replicas: dict[str, tuple[ReplicaService, Process]] = {}

    # --- faults ---

    def cut(self, source: str, target: str) -> None:
        """Lose everything from one node to another."""
        self._cut.add((source, target))

    def heal(self) -> None:
        """Undo all cuts; what was lost stays lost."""
        self._cut.clear()

    @property
    def cuts(self) -> int:
        """Directions that are cut."""
        return len(self._cut)

    def _fault(self, crossing: Crossing) -> Fault | None:
        rng, faults = self._rng, self.faults
        if (crossing.origin, crossing.destination) in self._cut:
            self.counts["cut"] += 1
            return Fault(FaultKind.DROP)
        draw = rng.random()
        for kind, share in (("loss", faults.loss), ("repeat", faults.repeat), ("reorder", faults.reorder)):
            if draw < share:
                self.counts[kind] += 1
                return self._of_kind(kind)
            draw -= share
        seconds = rng.uniform(*faults.latency_seconds)
        seconds += self.slow_seconds.get(crossing.origin, 0.0) + self.slow_seconds.get(crossing.destination, 0.0)
        if rng.random() < faults.lag:
            self.counts["lag"] += 1
            seconds += rng.uniform(0.0, LAG_SECONDS_MAX)
        return Fault(FaultKind.DELAY, seconds)

    def _of_kind(self, kind: str) -> Fault:
        if kind == "loss":
            return Fault(FaultKind.DROP)
        if kind == "reorder":
            return Fault(FaultKind.REORDER)
        if self._rng.random() < 0.5:
            return Fault(FaultKind.DUPLICATE)
        return Fault(FaultKind.REPLAY, self._rng.uniform(0.0, LAG_SECONDS_MAX))

    # --- nodes ---

    def listen(self, endpoint: str, inbound: Inbound) -> None:
        """Take gossip from now on.

        Raises:
            LocalStateError: somebody does so already.
        """
        if endpoint in self._gossip:
            raise LocalStateError(f"cannot listen on {endpoint}: the address is in use")
        self._gossip[endpoint] = inbound

    def serve(self, endpoint: str, process: Process, replicas: ReplicaService, repair: PeerAnswers | None) -> None:
        """Take calls of replication and repair from now on."""
        self._replicas[endpoint] = (replicas, process)
        if repair is not None:
            self.wire.serve(endpoint, _InProcess(repair, process))

    def leave(self, endpoint: str) -> None:
        """Nobody is there any more: calls under way are reset."""
        self._gossip.pop(endpoint, None)
        self._replicas.pop(endpoint, None)
        self.wire.kill(endpoint)

    # --- calls ---

    async def gossip(self, source: str, target: str, kind: str, data: bytes) -> bytes:
        """One message of gossip and its answer.

        Raises:
            TransportError, PeerProtocolError: as a transport of gossip has them.
        """

        async def exchange() -> bytes:
            fault = await self.wire.cross(Crossing(source, target, _GOSSIP + kind, True, 0, data))
            inbound = self._gossip.get(target)
            if inbound is None:
                raise TransportError(f"{target}: connection refused", reason="unavailable")
            answer = inbound.answer(kind, data, source)
            if fault is not None and fault.kind in (FaultKind.DUPLICATE, FaultKind.REPLAY):
                answer = inbound.answer(kind, data, source)
            await self.wire.cross(Crossing(target, source, _GOSSIP + kind, False, 0, answer))
            return answer

        try:
            return await self.wire.unless_killed(target, exchange())
        except CallError as error:
            raise TransportError(f"{target}: {error.detail}", reason="unavailable") from None

    async def replicate(self, source: str, target: str, method: str, data: bytes) -> bytes:
        """One call of replication and its answer.

        Raises:
            KvStoreError: as a transport of replication has them.
        """

        async def exchange() -> bytes:
            fault = await self.wire.cross(Crossing(source, target, method, True, 0, data))
            if fault is not None and fault.kind is FaultKind.DUPLICATE:
                await asyncio.gather(self._serve_replica(source, target, method, data), return_exceptions=True)
            if fault is not None and fault.kind is FaultKind.REPLAY:
                self._replay(fault.seconds, source, target, method, data)
            answer = await self._serve_replica(source, target, method, data)
            await self.wire.cross(Crossing(target, source, method, False, 0, answer))
            return answer

        try:
            return await self.wire.unless_killed(target, exchange())
        except CallError as error:
            raise UnreachableError(f"{target}: {error.detail}") from None

    async def _serve_replica(self, source: str, target: str, method: str, data: bytes) -> bytes:
        found = self._replicas.get(target)
        if found is None:
            raise UnreachableError(f"{target}: connection refused")
        service, process = found
        request = METHODS[method][0].FromString(data)
        try:
            answer = await process.run(service.answer(method, request, source))
        except KilledError:
            raise UnreachableError(f"{target}: connection reset") from None
        except KvStoreError as error:
            # As on the wire: only the class and the text travel.
            raise BY_REASON.get(error.reason, KvStoreError)(str(error)) from None
        return answer.SerializeToString()

    def _replay(self, seconds: float, source: str, target: str, method: str, data: bytes) -> None:
        found = self._replicas.get(target)
        if found is None:
            return

        async def late() -> None:
            await asyncio.sleep(seconds)
            await asyncio.gather(self._serve_replica(source, target, method, data), return_exceptions=True)

        # A message of the network, but it dies with whom it is meant for.
        found[1].spawn(late(), "replayed message")


class GossipTransport:
    """A :class:`gossiper.transport.base.Transport` over a :class:`SimulatedNetwork`. It starts once."""

    def __init__(self, network: SimulatedNetwork, endpoint: str, process: Process) -> None:
        self._network = network
        self._endpoint = endpoint
        self._process = process
        self._metrics = GossipMetrics()
        self._listening = False

    async def start(self, handler: Handler) -> str:
        """As the Protocol says."""
        inbound = Inbound(self._metrics, handler, asyncio.get_running_loop().time)
        self._network.listen(self._endpoint, inbound)
        self._listening = True
        return self._endpoint

    async def send(self, peer: str, request: Request, timeout_seconds: float) -> Reply:
        """As the Protocol says."""
        if not (self._listening and self._process.alive):
            raise TransportError("this node is not running", reason="unavailable", retriable=False)
        data = codec.encode(request)
        if len(data) > limits.MESSAGE_BYTES_MAX:
            raise TransportError(f"{len(data)} bytes are too large", reason="too_large", retriable=False)
        try:
            async with asyncio.timeout(timeout_seconds):
                answer = await self._network.gossip(self._endpoint, peer, codec.KINDS[type(request)], data)
        except TimeoutError:
            raise TransportError(f"{peer}: no answer in {timeout_seconds:g} s", reason="deadline") from None
        except PeerProtocolError as error:
            raise refused(peer, error.reason, error.detail) from None
        try:
            return codec.decode_reply_to(request, answer)
        except PeerProtocolError as error:
            raise TransportError(f"{peer} answered: {error}", reason="malformed", retriable=False) from error

    async def stop(self, grace_seconds: float) -> None:  # noqa: ARG002 - of the Protocol
        """As the Protocol says; nothing is waited for."""
        if self._listening:
            self._listening = False
            if self._process.alive:
                self._network.leave(self._endpoint)


class SimulatedReplicaTransport:
    """A :class:`kvstore.transport.ReplicaTransport` over a :class:`SimulatedNetwork`.

    ``observer`` sees every row that is sent.
    """

    def __init__(self, network: SimulatedNetwork, endpoint: str, process: Process, observer: Observer) -> None:
        self._observer = observer
        self._network = network
        self._endpoint = endpoint
        self._process = process

    async def call(self, endpoint: str, method: str, request: Message, timeout_seconds: float) -> Any:
        """As the Protocol says."""
        if not self._process.alive:
            raise UnreachableError("this node has ended")
        if isinstance(request, pb.ApplyRowsRequest):
            for row in rows_of(request.rows):
                self._observer.seen_on_the_way(row, False)
        try:
            async with asyncio.timeout(timeout_seconds):
                data = request.SerializeToString()
                answer = await self._network.replicate(self._endpoint, endpoint, method, data)
        except TimeoutError:
            raise UnreachableError(f"no answer from {endpoint} in time") from None
        return METHODS[method][1].FromString(answer)

    def reconnect(self, endpoint: str) -> None:
        """There are no connections."""

    async def close(self) -> None:
        """There are no connections."""


class SimulatedRepairTransport:
    """A :class:`antientropy.transport.base.PeerTransport` over a :class:`SimulatedNetwork`."""

    def __init__(self, network: SimulatedNetwork, endpoint: str, process: Process) -> None:
        self._transport = network.wire.transport(endpoint)
        self._process = process

    def calls(self, endpoint: str) -> PeerCalls:
        """As the Protocol says; a dead node reaches nobody."""
        if not self._process.alive:
            raise CallError(grpc.StatusCode.UNAVAILABLE, "this node has ended")
        return self._transport.calls(endpoint)

    async def close(self) -> None:
        """There are no connections."""


class _InProcess:
    """Serves calls of repair as tasks of the node that is asked, so that they die with it and not with the caller."""

    def __init__(self, answers: PeerAnswers, process: Process) -> None:
        self._answers = answers
        self._process = process

    async def unary(self, method: str, request: Message, caller: str) -> Message:
        """As the Protocol says."""
        return await self._run(self._answers.unary(method, request, caller))

    async def request_stream(self, method: str, requests: AsyncIterator[Message], caller: str) -> Message:
        """As the Protocol says."""
        return await self._run(self._answers.request_stream(method, requests, caller))

    async def _run(self, work: Coroutine[Any, Any, Message]) -> Message:
        try:
            return await self._process.run(work)
        except KilledError:
            raise CallError(grpc.StatusCode.UNAVAILABLE, "connection reset") from None

    async def response_stream(self, method: str, request: Message, caller: str) -> AsyncGenerator[Message, None]:
        """As the Protocol says."""
        queue: asyncio.Queue[Message | None] = asyncio.Queue(1)

        async def pump() -> None:
            stream = self._answers.response_stream(method, request, caller)
            try:
                async for message in stream:
                    await queue.put(message)
            finally:
                await stream.aclose()
            await queue.put(None)

        pumping = self._process.spawn(pump(), "repair stream")
        try:
            while True:
                getting = asyncio.ensure_future(queue.get())
                await asyncio.wait({getting, pumping}, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    if pumping.cancelled():
                        raise CallError(grpc.StatusCode.UNAVAILABLE, "connection reset")
                    if (error := pumping.exception()) is not None:
                        raise error
                    if queue.empty():
                        return
                    continue
                message = getting.result()
                if message is None:
                    return
                yield message
        finally:
            if not pumping.done():
                pumping.cancel()
            await asyncio.gather(pumping, return_exceptions=True)
