"""One seed from beginning to end: safety under faults, then a core without faults that has to converge."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Final

from gossiper.simulation import convergence, pairs
from gossiper.simulation.cluster import Cluster
from gossiper.simulation.faults import FaultInjector
from gossiper.simulation.loop import stream
from gossiper.simulation.machine import Machine
from gossiper.simulation.options import SimulationOptions, draw, quiet
from gossiper.simulation.violation import InvariantViolation, Violation

#: How often agreement is looked for while the core converges.
_LOOK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class SeedResult:
    """What one seed gave."""

    seed: int
    pair: str | None
    nodes: int
    virtual_seconds: float
    node_hours: float
    messages: int
    message_bytes: int
    faults: dict[str, int]
    counters: dict[str, int]
    join_rounds: int
    """Rounds after the last fault until everybody in the core had joined."""
    agree_rounds: int | None
    """Rounds after that until the core agreed; None: it never came to that."""
    silent_rounds: int | None
    """The same until nobody held a silent node alive."""
    trace_lines: int
    trace_digest: str
    """Equal for equal runs."""
    violation: Violation | None = field(default=None)

    def to_json(self) -> dict[str, object]:
        """As plain values."""
        return asdict(self)


class Run:
    """One seed. ``trace_sink`` receives every line of the trace."""

    def __init__(self, options: SimulationOptions, *, trace_sink: Callable[[str], object] | None = None) -> None:
        self.options = options
        self.swarm = quiet(options.nodes) if options.pair else draw(options, stream(options.seed, "swarm"))
        self.cluster = Cluster(options, self.swarm, trace_sink=trace_sink)
        self._rng = self.cluster.loop.stream("run")
        self.join_rounds = 0
        self.agree_rounds: int | None = None
        self.silent_rounds: int | None = None

    def play(self) -> SeedResult:
        """Run it; a violation is part of the result."""
        violation: Violation | None = None
        try:
            core = self._faults()
            self._converge(core)
        except InvariantViolation as found:
            violation = self._violation(found.invariant, found.detail)
        except Exception:  # noqa: BLE001 - whatever the code under test raises is a finding of this seed
            violation = self._violation("internal_error", traceback.format_exc(limit=-6))
        return self._result(violation)

    def _faults(self) -> list[Machine]:
        """The phase of safety; returns the core that will have to converge."""
        cluster = self.cluster
        if self.options.pair:
            pairs.schedule(cluster, self.options.pair, self.options.duration_seconds)
        else:
            FaultInjector(cluster)
        cluster.loop.run_until(self.options.duration_seconds)
        if self.options.pair:
            core = [machine for machine in cluster.machines if not machine.retired]
        else:
            core = convergence.choose_core(cluster, self._rng)
        cluster.end_faults(core)
        return core

    def _converge(self, core: list[Machine]) -> None:
        """Look at the core once per round until it agrees and goes on agreeing.

        In time, everybody knows what the owners had said when the last of them had joined. Then everything has to be
        equal for a while; values that expire, and whoever is half cut off and tells something late, may delay that.
        """
        cluster = self.cluster
        agree_max = convergence.AGREE_ROUNDS_MAX + max(0, (len(cluster.machines) // 100).bit_length() - 1)
        last_max = convergence.JOIN_ROUNDS_MAX + agree_max + convergence.SILENT_ROUNDS_MAX
        joined_at = streak = 0
        wanted = convergence.marks(core)
        found: convergence.Disagreement | None = None
        silent: convergence.Disagreement | None = None
        for number in range(1, last_max + 1):
            cluster.loop.run_until(cluster.loop.now + _LOOK_SECONDS)
            found = convergence.disagreement(core)
            silent = convergence.silent_but_alive(cluster, core)
            self._note_silence(silent, number)
            streak = streak + 1 if found is None and silent is None else 0
            if streak >= convergence.STAY_ROUNDS:
                return
            if found is not None and found.invariant == "core_not_running":
                joined_at = self.join_rounds = number
                wanted = {}
                self.agree_rounds = None
                if number >= convergence.JOIN_ROUNDS_MAX:
                    raise InvariantViolation(found.invariant, f"{found.detail}, {number} rounds after the last fault")
                continue
            wanted = wanted or convergence.marks(core)
            self._note_agreement(convergence.behind(core, wanted), number - joined_at, agree_max)
        detail = f"after {last_max} rounds without faults the core still changes: {found or silent}"
        raise InvariantViolation("never_at_rest", detail)

    def _note_agreement(self, behind: convergence.Disagreement | None, rounds: int, rounds_max: int) -> None:
        if behind is None:
            self.agree_rounds = self.agree_rounds or rounds
        elif rounds < rounds_max:
            # A conviction in the first rounds may still rest on silence that began before the faults ended.
            self.agree_rounds = None
        elif self.agree_rounds is None or behind.invariant == "false_conviction":
            raise InvariantViolation(behind.invariant, f"{behind.detail}, {rounds} rounds after the core had joined")

    def _note_silence(self, silent: convergence.Disagreement | None, number: int) -> None:
        if silent is None:
            self.silent_rounds = self.silent_rounds or number
        elif number >= convergence.SILENT_ROUNDS_MAX:
            raise InvariantViolation(silent.invariant, f"{silent.detail}, {number} rounds after the last fault")
        else:
            self.silent_rounds = None

    def _violation(self, invariant: str, detail: str) -> Violation:
        options: dict[str, object] = {**asdict(self.options), "swarm": self.swarm.to_json()}
        return Violation(
            seed=self.options.seed,
            invariant=invariant,
            detail=detail,
            at_seconds=round(self.cluster.loop.now, 6),
            options=options,
            trace=self.cluster.trace.last(),
            command=self.options.command(),
        )

    def _result(self, violation: Violation | None) -> SeedResult:
        cluster = self.cluster
        cluster.finish()
        return SeedResult(
            seed=self.options.seed,
            pair=self.options.pair,
            nodes=len(cluster.machines),
            virtual_seconds=round(cluster.loop.now, 6),
            node_hours=cluster.node_seconds / 3600,
            messages=cluster.network.messages,
            message_bytes=cluster.network.bytes,
            faults=dict(sorted((cluster.faults + cluster.network.counts).items())),
            counters={k: v for k, v in sorted(cluster.counters.items()) if k != "partitions_now"},
            join_rounds=self.join_rounds,
            agree_rounds=self.agree_rounds,
            silent_rounds=self.silent_rounds,
            trace_lines=cluster.trace.lines,
            trace_digest=cluster.trace.digest,
            violation=violation,
        )


def run_seed(options: SimulationOptions, *, trace_sink: Callable[[str], object] | None = None) -> SeedResult:
    """Run one seed; the same options always give the same result, its trace included."""
    return Run(options, trace_sink=trace_sink).play()
