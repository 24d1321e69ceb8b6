"""The simulation finds bugs: one guard at a time is taken out of the core, and a seed must catch it.

Most seeds belong to the ordinary run (``test_simulation_seeds``), where they pass with all guards in place; the others
are of the same size and pass here. ``docs/simulation.md`` shows this table.
"""

from __future__ import annotations
import __future__

import inspect
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gossiper.core import compact, digest, engine, exchange, versions
from gossiper.core.engine import GossipEngine
from gossiper.core.failure_detector import PhiAccrualFailureDetector
from gossiper.core.local import LocalEndpoint
from gossiper.core.quarantine import Quarantine
from gossiper.core.state import ClusterState
from gossiper.simulation import SimulationOptions, process, run_seed

#: Nodes and duration of the ordinary run, as in ``test_simulation_seeds``.
SWARM_RUN = (8, 60.0)
PAIR_RUN = (6, 45.0)
ORDINARY_SEEDS = 60


@dataclass(frozen=True)
class Planted:
    """One guard: where it stands, what is put in its place, which seed finds it and by which invariants."""

    guard: str
    owner: Any
    function: str
    removals: tuple[tuple[str, str], ...]
    seed: int
    caught_by: str
    pair: str | None = None
    also_in: tuple[Any, ...] = ()
    """Modules that imported the function by name."""

    @property
    def options(self) -> SimulationOptions:
        nodes, duration_seconds = PAIR_RUN if self.pair else SWARM_RUN
        return SimulationOptions(seed=self.seed, nodes=nodes, duration_seconds=duration_seconds, pair=self.pair)

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        source = textwrap.dedent(inspect.getsource(getattr(self.owner, self.function)))
        for old, new in self.removals:
            assert source.count(old) == 1, f"{self.function} has no longer exactly one {old!r}: plant this bug anew"
            source = source.replace(old, new)
        module = self.owner if inspect.ismodule(self.owner) else sys.modules[self.owner.__module__]
        namespace: dict[str, Any] = dict(vars(module))
        exec(compile(source, f"<{self.guard}>", "exec", flags=__future__.annotations.compiler_flag), namespace)
        for owner in (self.owner, *self.also_in):
            monkeypatch.setattr(owner, self.function, namespace[self.function])


PLANTED = (
    Planted(
        "no gaps: a delta from above states_version does not advance it",
        ClusterState, "_merge",
        (("if state.from_version <= int(table.states_version[row]) <", "if int(table.states_version[row]) <"),),
        2, "no_gap",
    ),
    Planted(
        "no gaps: a first partial state does not count as whole",
        ClusterState, "_install",
        (("if state.from_version == 0:", "if True:"),),
        65, "no_gap",
    ),
    Planted(
        "generation fence: an ECHO answered in another generation is void",
        ClusterState, "echo_answered",
        (("generation != int(table.generation[row]) or ", ""),),
        8, "alive_unconfirmed",
    ),
    Planted(
        "an absent value is only taken above states_version",
        ClusterState, "_merge",
        (("else int(table.states_version[row]))", "else -1)"),),
        38, "no_gap",
    ),
    Planted(
        "the arrival window begins anew in a new generation",
        ClusterState, "_restart",
        (("self.detector.reset(_one(row))", "pass"),),
        39, "conviction_without_silence",
    ),
    Planted(
        "shutdown fence: a generation that says that it stopped is not alive",
        ClusterState, "_read",
        (("table.stopped[row] = status in STOPPED_STATUSES", "table.stopped[row] = False"),),
        0, "stopped_generation_lives",
    ),
    Planted(
        "version check: an older value does not replace a newer one",
        ClusterState, "_merge",
        (("if value.version > (old_states[key].version if key in old_states else ", "if ("),),
        1, "version_went_back",
    ),
    Planted(
        "an older generation is ignored",
        ClusterState, "_apply_one",
        (("if state.generation > known:", "if state.generation != known:"),),
        1, "generation_went_back",
    ),
    Planted(
        "local pause: after standing still nobody is convicted",
        PhiAccrualFailureDetector, "interpret",
        (("if gap > self._local_pause_seconds:", "if False:"),),
        0, "conviction_after_pause",
        pair="leave-pause",
    ),
    Planted(
        "ECHO retry: neither a failed nor an overdue ECHO blocks the next",
        GossipEngine, "_failed",
        (("self.state.echo_failed(row, event.request.generation)", "self.state.table.echo_sent[row] = 1e18"),),
        2, "core_not_alive",
    ),
    Planted(
        "a node outruns a greater generation of itself",
        GossipEngine, "_outrun",
        (("if seen <= max(self.generation, self._generation_wanted - GENERATION_STEP):", "if True:"),),
        0, "core_unknown",
        pair="restart_clock_behind-partition",
    ),
    Planted(
        "a new generation is greater than the one on disk",
        versions, "next_generation",
        (("(persisted or 0) + GENERATION_STEP", "0"),),
        49, "core_not_running",
        also_in=(process,),
    ),
    Planted(
        "quarantine: a replaced generation does not come back",
        Quarantine, "refuses",
        (("grave is not None and", "False and"),),
        0, "removed_generation_lives",
        pair="replace-partition",
    ),
    Planted(
        "what others say of the node itself does not change its row",
        ClusterState, "_apply_one",
        (("if state.endpoint == self.endpoint:", "if False:"),),
        0, "only_the_owner_writes",
        pair="restart_clock_behind-partition",
    ),
    Planted(
        "a heartbeat does not go back",
        ClusterState, "take_heartbeats",
        (("(heartbeats > table.heartbeat[rows])", "(heartbeats != table.heartbeat[rows])"),),
        0, "heartbeat_went_back",
    ),
    Planted(
        "nobody is alive before an ECHO was answered",
        ClusterState, "_install",
        (("else LivenessCode.UNKNOWN", "else LivenessCode.ALIVE"),),
        0, "alive_unconfirmed",
    ),
    Planted(
        "a delta belongs to the generation that was asked for",
        digest, "requested_states",
        (("wanted.append((row, 0))", "wanted.append((row, int(requests.states_versions[i])))"),),
        307, "honest_message_refused",
        also_in=(exchange,),
    ),
    Planted(
        "columns: an answer is about the generations that were told",
        compact, "conclude",
        (("same = table.generation[roster.rows] == roster.generations", "same = table.used[roster.rows].copy()"),),
        132, "honest_message_refused",
        also_in=(exchange,),
    ),
    Planted(
        "columns: rosters are equal, not only of equal length",
        compact, "examine_compact",
        ((" or roster.digest != compact.roster_hash", ""),),
        8, "heartbeat_invented",
        also_in=(exchange,),
    ),
    Planted(
        "columns: the heartbeat of a superseded generation is not taken",
        compact, "examine_compact",
        (("ticks[known.gone] = 0", "pass"), ("mine[known.gone] = 0", "pass")),
        2, "heartbeat_invented",
        also_in=(exchange,),
    ),
    Planted(
        "columns: application states that differ under the hash are told apart",
        compact, "_compare_states",
        (("if _hash(mine, as_of_ms) != compact.states_hash:", "if False:"),),
        91, "core_unknown",
    ),
    Planted(
        "who knows less than the dropped tombstones gets the whole state",
        digest, "endpoint_state",
        (("reset = from_version < int(table.gc_version[row])", "reset = False"),),
        32, "no_gap",
        also_in=(engine,),
    ),
    Planted(
        "a tick has sixteen versions, the rest waits for the next",
        LocalEndpoint, "next_version",
        (("return last + 1 if (last + 1) % COUNTERS_PER_TICK else None", "return last + 1"),),
        2, "version_ahead_of_tick",
    ),
)  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.guard)
def test_planted_bug_is_caught(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    planted.plant(monkeypatch)
    violation = run_seed(planted.options).violation
    assert violation is not None, "nothing was found"
    assert violation.invariant == planted.caught_by, violation.detail


@pytest.mark.parametrize("planted", [one for one in PLANTED if one.seed >= ORDINARY_SEEDS], ids=lambda one: one.guard)
def test_a_seed_beyond_the_ordinary_ones_passes_with_the_guard(planted: Planted) -> None:
    assert run_seed(planted.options).violation is None


def test_the_document_has_this_table() -> None:
    text = (Path(__file__).parent.parent / "docs" / "simulation.md").read_text()
    for planted in PLANTED:
        where = f"{planted.pair} {planted.seed}" if planted.pair else f"{planted.seed}"
        assert f"| {planted.guard} | `{planted.caught_by}` | {where} |" in text
