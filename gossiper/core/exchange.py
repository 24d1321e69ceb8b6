"""DigestExchange: one node's side of SYN, ACK and ACK2, in the compact form where the peer speaks it, else plainly.

Exchanges, by what they needed (the label of ``gossiper_exchanges_total``):

* ``compact``: rosters and application states were named alike; one round trip, an ACK2 only if states were asked for.
* ``roster_buckets``: rosters differed. The ACK brought one hash per bucket; a second SYN leaves the unequal buckets out
  of its roster and lists their endpoints plainly.
* ``states_buckets``: the hash over application states differed. A second SYN lists the versions of unequal buckets.
* ``plain``: the peer does not speak the compact form, there is no roster yet, or rosters still differed.

One that falls back to plain digests after an attempt in columns counts as both. Nothing here waits: a further SYN is an
effect like any other, and each exchange has at most ``ATTEMPTS_MAX`` of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from gossiper.core.compact import conclude, describe, describe_states, examine_compact, states_hashes
from gossiper.core.digest import Examination, endpoint_states, examine, heartbeat_digests, requested_states
from gossiper.core.io import Answer, Count, Effect, Send, Warn
from gossiper.core.messages import (
    CompactAnswer,
    CompactDigests,
    DigestColumns,
    GossipDigestAck,
    GossipDigestAck2,
    GossipDigestSyn,
    Sender,
)
from gossiper.core.roster import Exchange, Roster, cut_of
from gossiper.core.roster_lookup import roster_at, standing
from gossiper.core.shadow import SHADOW_GENERATION
from gossiper.core.state import ClusterState
from gossiper.core.versions import Now

#: SYNs of one exchange: the first, one after rosters differed, one after application states differed.
ATTEMPTS_MAX: Final = 3
#: Below so many entries a roster saves nothing once it differs: the names themselves are as short as the hashes.
BUCKETS_ENTRIES_MIN: Final = 24


class DigestExchange:
    """Makes SYNs and answers them; ``sender`` gives the present name and generation of this node."""

    def __init__(self, state: ClusterState, sender: Callable[[], Sender], *, compact: bool) -> None:
        self._state = state
        self._sender = sender
        self._compact = compact

    # -- asking ------------------------------------------------------------------------------------------------------

    def syn(self, peer: str, now: Now) -> GossipDigestSyn:
        """The first leg, in the form that the peer is known to speak."""
        table = self._state.table
        row = table.row(peer)
        as_of_ms = round(now.wall * 1000)
        if self._compact and row is not None and table.speaks_compact[row]:
            roster = roster_at(table, cut_of(as_of_ms, int(table.interval_ms[self._state.local_row])))
            if len(roster):
                compact, exchange = describe(self._state, roster, as_of_ms)
                return GossipDigestSyn(self._sender(), as_of_ms, self._outside(roster), compact, exchange)
        return self._plain_syn(as_of_ms)

    def _plain_syn(self, as_of_ms: int) -> GossipDigestSyn:
        return GossipDigestSyn(self._sender(), as_of_ms, self._state.table.digests())

    def _outside(self, roster: Roster) -> DigestColumns:
        table = self._state.table
        rows = standing(table, roster, self._state.local_row).outside
        return heartbeat_digests(self._state, rows) if len(rows) else DigestColumns.empty()

    # -- answering ---------------------------------------------------------------------------------------------------

    def answer(self, syn: GossipDigestSyn, now: Now) -> list[Effect]:
        """The second leg, and what the SYN itself told."""
        if syn.compact is not None:
            return self._answer_compact(syn, syn.compact, now)
        state = self._state
        found = examine(state, syn.digests, now)
        in_shadow = syn.sender.generation == SHADOW_GENERATION
        wanted = found.send_states
        if in_shadow:
            # Whoever joins needs above all what is known of itself.
            asker = state.table.row(syn.sender.endpoint)
            wanted = sorted(wanted, key=lambda pair: pair[0] != asker)
        effects = self._ack(found, wanted, None, now, requests=not in_shadow)
        return effects if in_shadow else effects + self._take(syn, found, now)

    def _answer_compact(self, syn: GossipDigestSyn, compact: CompactDigests, now: Now) -> list[Effect]:
        state = self._state
        columns = examine_compact(state, compact, syn.as_of_ms)
        if columns.roster is None:
            nothing = DigestColumns.empty()
            as_of_ms = round(now.wall * 1000)
            return [Answer(GossipDigestAck(self._sender(), as_of_ms, nothing, nothing, (), compact=columns.answer))]
        found = NOTHING_FOUND
        if len(syn.digests) or len(columns.outside):
            found = examine(state, syn.digests, now, columns.outside)
        effects = self._ack(found, [*columns.send_states, *found.send_states], columns.answer, now)
        state.take_heartbeats(columns.take_rows, columns.take_heartbeats, now, syn.sender.endpoint)
        if columns.own_version_seen and not found.own_generation_seen:
            generation = int(state.table.generation[state.local_row])
            state.heard_of_local(syn.sender.endpoint, generation, columns.own_version_seen)
        return effects + (self._take(syn, found, now) if len(syn.digests) else [])

    def _ack(
        self,
        found: Examination,
        wanted: list[tuple[int, int]],
        compact: CompactAnswer | None,
        now: Now,
        *,
        requests: bool = True,
    ) -> list[Effect]:
        states, deferred = endpoint_states(self._state, wanted)
        ack = GossipDigestAck(
            self._sender(),
            round(now.wall * 1000),
            found.requests if requests else DigestColumns.empty(),
            heartbeat_digests(self._state, found.send_heartbeats),
            states,
            deferred,
            compact,
        )
        effects: list[Effect] = [Answer(ack)]
        if deferred:
            effects.append(Count("gossiper_states_deferred_total", "", deferred))
        return effects

    def _take(self, syn: GossipDigestSyn, found: Examination, now: Now) -> list[Effect]:
        """Apply what the plain digests told."""
        peer = syn.sender.endpoint
        self._state.take_heartbeats(found.take_rows, found.take_heartbeats, now, peer)
        self._state.heard_of_local(peer, found.own_generation_seen, found.own_version_seen)
        if not found.refused_generations:
            return []
        of = len(syn.digests) + (syn.compact.count if syn.compact is not None else 0)
        return refused_generations(found.refused_generations, of)

    # -- concluding --------------------------------------------------------------------------------------------------

    def conclude(self, peer: str, syn: GossipDigestSyn, ack: GossipDigestAck, now: Now) -> list[Effect]:
        """Take what the ACK told, and send what it asks for or what was not understood alike."""
        state, exchange = self._state, syn.exchange
        sender = ack.sender.endpoint
        state.apply(ack.states, now, sender)
        if len(ack.heartbeats):
            self._take_plain_heartbeats(ack, now)
        self._shown_to_know(syn, ack)
        wanted = requested_states(state, ack.requests) if len(ack.requests) else []
        again: list[Effect] = []
        form = "plain"
        if exchange is not None and ack.compact is not None:
            told = conclude(state, exchange, ack.compact)
            state.take_heartbeats(told.take_rows, told.take_heartbeats, now, sender)
            wanted = told.send_states + wanted
            form, again = self._again(peer, syn, exchange, ack.compact, now)
        states, deferred = endpoint_states(state, wanted)
        effects: list[Effect] = [Send(peer, GossipDigestAck2(self._sender(), states))] if states else []
        if deferred:
            effects.append(Count("gossiper_states_deferred_total", "", deferred))
        if exchange is None or exchange.attempt == 1:
            effects.append(Count("gossiper_exchanges_total", form))
        return effects + again

    def _again(
        self, peer: str, syn: GossipDigestSyn, exchange: Exchange, answer: CompactAnswer, now: Now
    ) -> tuple[str, list[Effect]]:
        """What kind of exchange this was, and a further SYN where something was not understood alike."""
        compact, was_last = syn.compact, exchange.attempt >= ATTEMPTS_MAX
        if answer.roster_buckets:
            further = [] if was_last else [self._syn_without(syn, exchange, answer.roster_buckets, now)]
            return "roster_buckets", [Send(peer, one) for one in further]
        if not answer.states_buckets or was_last or compact is None:
            return "compact", []
        if self._state.table.incarnations != exchange.incarnations:
            # Indices have lost their meaning.
            return "states_buckets", [Send(peer, self._plain_syn(round(now.wall * 1000)))]
        buckets = len(answer.states_buckets)
        mine = states_hashes(self._state, exchange, compact, syn.as_of_ms, buckets)
        wanted = _unequal(mine, answer.states_buckets)
        if not wanted:
            return "compact", []  # what the ACK brought has settled it
        listed, kept = describe_states(self._state, exchange, buckets, wanted)
        listed = replace(listed, plain_buckets=compact.plain_buckets)
        again = GossipDigestSyn(self._sender(), syn.as_of_ms, DigestColumns.empty(), listed, kept)
        return "states_buckets", [Send(peer, again)]

    def _syn_without(
        self, syn: GossipDigestSyn, exchange: Exchange, theirs: tuple[int, ...], now: Now
    ) -> GossipDigestSyn:
        """A SYN whose roster leaves out the buckets that differ; a plain one when that fails or does not pay.

        It keeps the time of the first: the clock may have been set back behind the cut meanwhile.
        """
        as_of_ms = syn.as_of_ms
        roster = roster_at(self._state.table, exchange.roster.cut_ms)
        if exchange.attempt > 1 or len(roster) < BUCKETS_ENTRIES_MIN:
            return self._plain_syn(round(now.wall * 1000))
        unequal = _unequal(roster.bucket_digests(len(theirs)), theirs)
        kept = roster.without(roster.mask(len(theirs), unequal))
        if not unequal or 2 * len(kept) < len(roster):
            return self._plain_syn(round(now.wall * 1000))
        compact, again = describe(self._state, kept, as_of_ms, exchange.attempt + 1)
        compact = replace(compact, buckets=len(theirs), plain_buckets=unequal)
        return GossipDigestSyn(self._sender(), as_of_ms, self._outside(kept), compact, again)

    def _take_plain_heartbeats(self, ack: GossipDigestAck, now: Now) -> None:
        table = self._state.table
        rows = table.index_of(ack.heartbeats.endpoints)
        current = (rows >= 0) & (table.generation[rows] == ack.heartbeats.generations)
        self._state.take_heartbeats(rows[current], ack.heartbeats.heartbeats[current], now, ack.sender.endpoint)

    def _shown_to_know(self, syn: GossipDigestSyn, ack: GossipDigestAck) -> None:
        """A peer that does not ask for what our SYN said of ourselves knows it."""
        own, peer = self._state.endpoint, ack.sender.endpoint
        if own in ack.requests.endpoints:
            return
        if own in syn.digests.endpoints:
            at = syn.digests.endpoints.index(own)
            self._state.heard_of_local(peer, int(syn.digests.generations[at]), int(syn.digests.states_versions[at]))
            return
        exchange, answer = syn.exchange, ack.compact
        if exchange is None or answer is None or answer.roster_buckets or answer.states_buckets:
            return
        at = standing(self._state.table, exchange.roster, self._state.local_row).own
        asked = len(answer.request_index) > 0 and at in answer.request_index
        if at >= 0 and not asked and not (syn.compact and syn.compact.states_buckets):
            self._state.heard_of_local(peer, int(exchange.roster.generations[at]), exchange.own_version)


def refused_generations(refused: int, of: int) -> list[Effect]:
    """Count generations from the future; when nearly all are, the own clock is the suspect."""
    effects: list[Effect] = [Count("gossiper_refused_entries_total", "invalid_generation", refused)]
    # The peer lists itself and perhaps us; when everybody else is from the future, we are from the past.
    if refused >= max(1, of - 1):
        effects.append(
            Warn("own_clock", f"{refused} of {of} generations lie over a day ahead: is this node's clock behind?")
        )
    return effects


def _unequal(mine: tuple[int, ...], theirs: tuple[int, ...]) -> int:
    """The bit mask of buckets whose hashes differ."""
    return sum(1 << bucket for bucket, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)


_NO_ROWS: Final = np.zeros(0, dtype=np.intp)
NOTHING_FOUND: Final = Examination(DigestColumns.empty(), _NO_ROWS, [], _NO_ROWS, np.zeros(0, dtype=np.int64), 0, 0, 0)
