"""What really happened: every write of every owner, kept by the simulation and known to no node.

Endpoints have a number of their own (``identity``) in columns, so that a node's whole view is compared at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gossiper.core.application_states import ApplicationState
from gossiper.core.messages import VersionedValue
from gossiper.core.versions import tick_of
from gossiper.simulation.violation import InvariantViolation

_IDENTITIES_INITIAL: Final = 64


@dataclass(slots=True)
class GenerationTruth:
    """One generation of one endpoint: what its owner wrote in it."""

    heartbeat: int = 0
    states_version: int = 0
    gc_version: int = 0
    """Tombstones up to this version are gone at the owner."""
    versions: list[int] = field(default_factory=list)
    """Version of each write, ascending."""
    keys: list[str] = field(default_factory=list)
    """Key of each write, in the order of ``versions``."""
    by_key: dict[str, tuple[list[int], list[VersionedValue]]] = field(default_factory=dict)

    def write(self, key: str, value: VersionedValue) -> None:
        """The owner wrote ``key``; versions never go back."""
        versions, values = self.by_key.setdefault(key, ([], []))
        self.versions.append(value.version)
        self.keys.append(key)
        versions.append(value.version)
        values.append(value)

    def latest(self, key: str, version: int) -> VersionedValue | None:
        """What ``key`` was at ``version``."""
        versions, values = self.by_key.get(key, ((), ()))
        at = bisect_right(versions, version)
        return values[at - 1] if at else None

    def written_between(self, after: int, up_to: int) -> list[str]:
        """Keys written in (after, up_to]; a key may occur more than once."""
        return self.keys[bisect_right(self.versions, after) : bisect_right(self.versions, up_to)]

    def purged(self, value: VersionedValue | None) -> bool:
        """Whether a node may have dropped this value: a tombstone that is gone at the owner."""
        return value is not None and value.deleted and value.version <= self.gc_version


class Truth:
    """All generations of all endpoints."""

    def __init__(self) -> None:
        self.endpoints: list[str] = []
        """Endpoint of each identity."""
        self.generation: NDArray[np.int64] = np.zeros(_IDENTITIES_INITIAL, dtype=np.int64)
        """The newest generation that was begun, per identity."""
        self.heartbeat: NDArray[np.int64] = np.zeros(_IDENTITIES_INITIAL, dtype=np.int64)
        """How far its owner has ticked in that generation."""
        self._identities: dict[str, int] = {}
        self._generations: list[dict[int, GenerationTruth]] = []
        self._imposed: list[dict[int, list[Mapping[str, VersionedValue]]]] = []
        """Generations in which operators removed an endpoint, with what each of them wrote."""

    def identity(self, endpoint: str) -> int | None:
        """The number of an endpoint; None for one that nobody ever had."""
        return self._identities.get(endpoint)

    def add(self, endpoint: str) -> int:
        """The number of an endpoint that somebody has from now on."""
        known = self._identities.get(endpoint)
        if known is not None:
            return known
        identity = len(self.endpoints)
        if identity == len(self.generation):
            self.generation = np.concatenate([self.generation, np.zeros_like(self.generation)])
            self.heartbeat = np.concatenate([self.heartbeat, np.zeros_like(self.heartbeat)])
        self.endpoints.append(endpoint)
        self._identities[endpoint] = identity
        self._generations.append({})
        self._imposed.append({})
        return identity

    def of(self, identity: int, generation: int) -> GenerationTruth | None:
        """One generation; None if its owner never began it."""
        return self._generations[identity].get(generation)

    def used(self, endpoint: str, generation: int) -> bool:
        """Whether the endpoint had this generation before."""
        identity = self._identities.get(endpoint)
        return identity is not None and generation in self._generations[identity]

    def greatest_generation(self, endpoint: str) -> int:
        """The greatest generation the endpoint ever had; 0: none."""
        identity = self._identities.get(endpoint)
        return max(self._generations[identity], default=0) if identity is not None else 0

    def unused_generation(self, endpoint: str, generation: int, *, lost: bool) -> int:
        """``generation``; after a lost file the next one that was not used before.

        A node that lost its file *and* whose clock went back to exactly an old generation cannot know that it repeats
        it before it has spoken with somebody; nothing is promised for that, so the simulation reads its clock a second
        later instead.

        Raises:
            InvariantViolation: the generation was used although the file was there.
        """
        while self.used(endpoint, generation):
            if not lost:
                raise InvariantViolation("generation_reused", f"{endpoint} begins generation {generation} again")
            generation += 1
        return generation

    def begin(self, identity: int, generation: int) -> GenerationTruth:
        """The owner begins a generation.

        Raises:
            InvariantViolation: it had it before.
        """
        if generation in self._generations[identity]:
            raise InvariantViolation(
                "generation_reused", f"{self.endpoints[identity]} begins generation {generation} again"
            )
        begun = self._generations[identity][generation] = GenerationTruth()
        self.generation[identity] = generation
        self.heartbeat[identity] = 0
        return begun

    def impose(self, identity: int, generation: int, heartbeat: int, states: Mapping[str, VersionedValue]) -> None:
        """An operator removed an endpoint in a generation that is not its owner's; so may another one at once.

        Raises:
            InvariantViolation: the owner had that generation before.
        """
        endpoint = self.endpoints[identity]
        if generation in self._generations[identity] and generation not in self._imposed[identity]:
            raise InvariantViolation(
                "generation_reused", f"{endpoint} is removed in {generation}, which was used before"
            )
        if ApplicationState.REMOVED_BY not in states:
            raise InvariantViolation("only_the_owner_writes", f"{endpoint} {generation} is nobody's removal")
        verdicts = self._imposed[identity].setdefault(generation, [])
        verdicts.append(states)
        imposed = self._generations[identity][generation] = GenerationTruth(heartbeat=heartbeat)
        # The one with the greatest version holds, whole: what it does not name is gone.
        for verdict in sorted(verdicts, key=lambda one: one[ApplicationState.STATUS].version):
            version = imposed.states_version = imposed.gc_version = verdict[ApplicationState.STATUS].version
            for key in sorted(imposed.by_key.keys() | verdict.keys()):
                imposed.write(key, verdict.get(key, VersionedValue(version, "", deleted=True)))

    def imposed(self, endpoint: str, generation: int) -> bool:
        """Whether this generation is an operator's removal."""
        identity = self._identities.get(endpoint)
        return identity is not None and generation in self._imposed[identity]

    def removed(self, endpoint: str) -> bool:
        """Whether an operator ever removed this endpoint."""
        identity = self._identities.get(endpoint)
        return identity is not None and bool(self._imposed[identity])

    def owner_wrote(
        self,
        identity: int,
        *,
        generation: int,
        heartbeat: int,
        states_version: int,
        gc_version: int,
        states: Mapping[str, VersionedValue],
    ) -> None:
        """Take over what the owner's own row says after it changed it.

        Raises:
            InvariantViolation: the owner itself went back, or ahead of its heartbeat.
        """
        known = self._generations[identity].get(generation) or self.begin(identity, generation)
        name = self.endpoints[identity]
        if heartbeat < known.heartbeat or states_version < known.states_version or gc_version < known.gc_version:
            raise InvariantViolation("owner_went_back", f"{name} generation {generation}")
        if tick_of(states_version) > heartbeat:
            raise InvariantViolation("version_ahead_of_tick", f"{name}: version {states_version} at tick {heartbeat}")
        written = [(value.version, key) for key, value in states.items() if value.version > known.states_version]
        for version, key in sorted(written):
            if version > states_version:
                raise InvariantViolation(
                    "version_ahead", f"{name} {key}: {version} above states_version {states_version}"
                )
            known.write(key, states[key])
        for key, value in states.items():
            if known.latest(key, states_version) != value:
                raise InvariantViolation("owner_rewrote", f"{name} {key} at version {value.version}")
        known.heartbeat, known.states_version, known.gc_version = heartbeat, states_version, gc_version
        self.generation[identity] = generation
        self.heartbeat[identity] = heartbeat

    def owner_ticked(self, identity: int, generation: int, heartbeat: int) -> None:
        """The owner's heartbeat moved and nothing else did.

        Raises:
            InvariantViolation: it went back, or the generation was never begun.
        """
        known = self._generations[identity].get(generation)
        if known is None or heartbeat < known.heartbeat:
            raise InvariantViolation("owner_went_back", f"{self.endpoints[identity]} generation {generation}")
        known.heartbeat = heartbeat
        self.heartbeat[identity] = heartbeat
