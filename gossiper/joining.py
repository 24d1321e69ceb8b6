"""How a node gets its identity and becomes a member: files, shadow round, generation; in that order.

Lives here: the sequence of a start. What the shadow round decides is in ``gossiper.core.shadow``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gossiper.config import GossipConfig
from gossiper.core.engine import PROTOCOL_VERSION
from gossiper.core.messages import GossipDigestAck, GossipDigestSyn, Reply, Request
from gossiper.core.saved import KnownPeer
from gossiper.core.shadow import ShadowConfig, ShadowRound, Verdict, answer_while_in_shadow
from gossiper.core.versions import Now, next_generation
from gossiper.errors import JoinError, LocalStateError, PeerProtocolError, TransportError
from gossiper.limits import GENERATION_AHEAD_SECONDS_MAX
from gossiper.storage import NodeStorage
from gossiper.transport.base import Transport

logger = logging.getLogger(__name__)

Clock = Callable[[], Now]

#: A generation this far ahead of the clock means that the clock went back.
CLOCK_BEHIND_SECONDS_WARN: Final = 5


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node was before, as its files say."""

    host_id: str
    generation: int | None
    known_peers: tuple[KnownPeer, ...]


async def load_identity(storage: NodeStorage, config: GossipConfig) -> Identity:
    """Read the files of the data directory.

    Raises:
        LocalStateError: the identity file is corrupt, or the directory is locked or not usable.
    """
    stored = await asyncio.to_thread(storage.load)
    peers = await asyncio.to_thread(storage.load_peers)
    return Identity(config.host_id or stored.host_id, stored.generation, peers)


class Joining:
    """The shadow round over a transport: asks, listens, answers other nodes that are starting too."""

    def __init__(self, config: GossipConfig, identity: Identity, endpoint: str, seeds: tuple[str, ...]) -> None:
        others = tuple(seed for seed in seeds if seed != endpoint)
        self.shadow_config = ShadowConfig(
            cluster_name=config.cluster_name,
            protocol_version=PROTOCOL_VERSION,
            endpoint=endpoint,
            host_id=identity.host_id,
            interval_seconds=config.interval_seconds,
            seeds=others,
            known_peers=tuple(peer.endpoint for peer in identity.known_peers if peer.endpoint != endpoint),
            is_seed=not seeds or endpoint in seeds,
            replace=config.replace,
            restarted=identity.generation is not None,
            rejoin=config.rejoin,
            timeout_seconds=config.join_timeout_seconds,
        )
        self._exchange_timeout_seconds = config.exchange_timeout_seconds

    def answer(self, request: Request, now: Now) -> Reply:
        """The answer to a peer while this node is not one itself.

        Raises:
            PeerProtocolError: to everybody who is not in a shadow round too.
        """
        answer = None
        if isinstance(request, GossipDigestSyn):
            answer = answer_while_in_shadow(self.shadow_config, request, now)
        if answer is None:
            raise PeerProtocolError("not_running", "this node is starting")
        return answer

    async def run(self, transport: Transport, clock: Clock) -> Verdict:
        """Ask until there is a verdict.

        Raises:
            JoinError: this node may not join, or reached nobody in time.
        """
        shadow = ShadowRound(self.shadow_config, clock())
        answered = asyncio.Event()
        asking: set[asyncio.Task[None]] = set()

        def told(peer: str, outcome: GossipDigestAck | TransportError) -> None:
            if isinstance(outcome, TransportError):
                shadow.failed(peer, str(outcome), retriable=outcome.retriable)
            else:
                shadow.answered(outcome, clock())
            answered.set()

        try:
            async with asyncio.TaskGroup() as tasks:
                while (verdict := shadow.verdict(clock())) is None:
                    for peer, syn in shadow.poll(clock()):
                        task = tasks.create_task(self._ask(transport, peer, syn, told))
                        asking.add(task)
                        task.add_done_callback(asking.discard)
                    answered.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self.shadow_config.interval_seconds):
                            await answered.wait()
                # A peer that hangs does not hold up the start.
                for task in asking:
                    task.cancel()
        except* JoinError as refused:
            raise refused.exceptions[0] from None
        return verdict

    async def _ask(
        self,
        transport: Transport,
        peer: str,
        syn: GossipDigestSyn,
        told: Callable[[str, GossipDigestAck | TransportError], None],
    ) -> None:
        try:
            reply = await transport.send(peer, syn, self._exchange_timeout_seconds)
        except TransportError as error:
            told(peer, error)
            return
        except Exception as error:
            # A defect in a transport: the other peers may still be reached.
            logger.exception("internal_error shadow_round peer=%s", peer)
            told(peer, TransportError(f"{peer}: {error!r}", reason="internal_error"))
            return
        if isinstance(reply, GossipDigestAck):
            told(peer, reply)


async def take_generation(storage: NodeStorage, identity: Identity, verdict: Verdict, now: Now) -> int:
    """A generation greater than all before, put on disk before anybody hears of it.

    Raises:
        LocalStateError: it cannot be written, or is one that peers would refuse.
    """
    generation = next_generation(identity.generation, now.wall, verdict.own_generation_seen)
    if verdict.clock_ahead_seconds is not None:
        ahead_seconds = generation - (now.wall - verdict.clock_ahead_seconds)
        if ahead_seconds > GENERATION_AHEAD_SECONDS_MAX:
            # The clock is right by now, and was not when the last one was stored.
            raise LocalStateError(
                f"generation {identity.generation} in {storage.directory or 'memory'} was taken while the clock was "
                f"wrong: the next one lies {ahead_seconds / 86_400:.1f} days ahead of the clocks of the nodes that "
                "answered, and they refuse more than a day. Run `gossiper generation reset` on that directory, or wait"
            )
    behind_seconds = generation - int(now.wall)
    if behind_seconds > 0:
        # A restart within the same second is no sign of a wrong clock.
        level = logging.WARNING if behind_seconds > CLOCK_BEHIND_SECONDS_WARN else logging.INFO
        logger.log(level, "clock_behind generation=%d seconds=%d: an earlier one is ahead", generation, behind_seconds)
    await asyncio.to_thread(storage.store_generation, generation, identity.host_id)
    return generation
