"""LocalEndpoint: what this node says of itself, and which version each word gets.

One publish call takes one version for all its keys. A tick has sixteen; the calls beyond wait for the next tick and
are merged. Values with an expiry are deleted by a tombstone when their time is over.

A STATUS of ``STOPPED_STATUSES`` is the last version of a generation: peers take no heartbeat after it, so that a later
value would lie ahead of the time that they know. What waits is published before it, and nothing is after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from gossiper.core.application_states import MANAGED_KEYS, ApplicationState, is_key
from gossiper.core.lifecycle import may_follow, status_of
from gossiper.core.state import ClusterState
from gossiper.core.versions import COUNTERS_PER_TICK, Now, tick_of, version_of
from gossiper.errors import LifecycleError, PublishError
from gossiper.limits import ENDPOINT_STATES_BYTES_MAX, KEY_BYTES_MAX, STATES_PER_ENDPOINT_MAX, VALUE_BYTES_MAX

#: Tombstones of the own keys are dropped after so many ticks: by then everybody who is not down has heard of them,
#: and who was down gets the whole state (``gc_version``).
TOMBSTONE_TICKS: Final = 86_400


@dataclass(frozen=True, slots=True)
class Publish:
    """The application sets (None: deletes) values of this node; answered by ``Published`` with the same ``ticket``."""

    values: Mapping[str, str | None]
    ticket: int
    expires_at_ms: int = 0
    """Wall-clock milliseconds at which these values count as absent everywhere; 0: never."""


@dataclass(frozen=True, slots=True)
class Published:
    """The values of a Publish now have this version."""

    ticket: int
    version: int


class LocalEndpoint:
    """The owner's side of the local row of ``state``."""

    def __init__(self, state: ClusterState, interval_ms: int) -> None:
        self._state = state
        self._interval_ms = interval_ms
        self._waiting: list[Publish] = []
        self._origin = 0.0

    @property
    def generation(self) -> int:
        """The generation of this node."""
        return int(self._state.table.generation[self._state.local_row])

    @property
    def heartbeat(self) -> int:
        """The newest tick of this node."""
        return int(self._state.table.heartbeat[self._state.local_row])

    @property
    def states_version(self) -> int:
        """The newest version of this node."""
        return int(self._state.table.states_version[self._state.local_row])

    @property
    def status(self) -> str:
        """The status of this node."""
        return self._state.view(self._state.local_row).status

    @property
    def has_stopped(self) -> bool:
        """Whether its STATUS is the last word of this generation."""
        return bool(self._state.table.stopped[self._state.local_row])

    def resume(self, generation: int, changes: Mapping[str, str | None], now: Now) -> None:
        """Begin a persisted generation with what is published now, changed so; expiries stay what they are."""
        states = self._state.view(self._state.local_row).states
        expiries = {key: value.expires_at_ms for key, value in states.items() if value.expires_at_ms}
        self.begin(generation, {**self.values(), **changes}, now, expiries)

    def begin(
        self,
        generation: int,
        values: Mapping[str, str | None],
        now: Now,
        expiries: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Begin a persisted generation and publish all of ``values`` at once; ``expiries``: ms of those that have one.

        Raises:
            PublishError: a value is not acceptable.
        """
        check_values(values, {}, managed=True)
        self._state.begin_generation(generation, self._interval_ms)
        # Ticks count from the epoch second that is the generation, so that others can predict them.
        self._origin = now.monotonic - min(1.0, max(0.0, now.wall - generation))
        self._state.publish(values, version_of(1, 0), expiries=expiries)

    def values(self) -> dict[str, str | None]:
        """What is published now, without tombstones and what has expired."""
        view = self._state.view(self._state.local_row)
        return {key: value.value for key, value in view.states.items()}

    def tick(self, now: Now) -> list[Published]:
        """One more heartbeat; what waited for it is published, what expired is deleted, old tombstones go."""
        self._state.tick(now.monotonic - self._origin)
        if self.has_stopped:
            # What expires counts as absent everywhere without a tombstone.
            return []
        published = self._flush()
        expired = self._state.expired_local_keys(now)
        version = self.next_version()
        if expired and version is not None:
            self._state.publish(dict.fromkeys(expired), version)
        self._state.collect_tombstones(version_of(max(0, self.heartbeat - TOMBSTONE_TICKS), 0))
        return published

    def publish(self, event: Publish) -> list[Published]:
        """Publish now, or with the next tick when this one has no version left.

        Raises:
            PublishError: a value is not acceptable; nothing was published.
            LifecycleError: this node has said its last word in this generation.
        """
        self._refuse_after_last_words()
        states = self._state.table.states[self._state.local_row]
        # Tombstones are values too: they count in the limits that peers enforce.
        present: dict[str, str | None] = {key: None if v.deleted else v.value for key, v in states.items()}
        for waiting in self._waiting:
            present.update(waiting.values)
        check_values(event.values, present, managed=False)
        version = self.next_version()
        if version is None or self._waiting:
            self._waiting.append(event)
            return []
        self._state.publish(event.values, version, event.expires_at_ms)
        return [Published(event.ticket, version)]

    def change_status(self, value: str, more: Mapping[str, str | None]) -> list[Published]:
        """Take another status (and ``more`` managed values) at once; what waits is published before.

        Raises:
            LifecycleError: the status may not follow the present one.
        """
        wanted = status_of(value)
        if not may_follow(self.status, wanted):
            raise LifecycleError(f"a node that is {self.status or 'not yet a member'} cannot become {wanted}")
        published = self._flush_all()
        self.publish_managed({ApplicationState.STATUS: value, **more})
        return published

    def publish_managed(self, values: Mapping[str, str | None]) -> None:
        """Publish values of this library at once, beginning a new tick where this one has no version left.

        Raises:
            PublishError: a value is not acceptable; nothing was published.
            LifecycleError: this node has said its last word in this generation.
        """
        self._refuse_after_last_words()
        check_values(values, self.values(), managed=True)
        version = self.next_version()
        if version is None:
            self._state.tick(0.0)
            version = version_of(self.heartbeat, 0)
        self._state.publish(values, version)

    def _refuse_after_last_words(self) -> None:
        if self.has_stopped:
            raise LifecycleError(f"this node is {self.status} and publishes nothing more; publish before it leaves")

    def next_version(self) -> int | None:
        """The next version of the current tick; None when all its counters are used."""
        last = self.states_version
        if tick_of(last) < self.heartbeat:
            return version_of(self.heartbeat, 0)
        return last + 1 if (last + 1) % COUNTERS_PER_TICK else None

    def _flush(self) -> list[Published]:
        """What waited is published together; calls with different expiries take a version each while there are any."""
        published: list[Published] = []
        while self._waiting:
            version = self.next_version()
            if version is None:
                break
            expires_at_ms = self._waiting[0].expires_at_ms
            alike = 1
            while alike < len(self._waiting) and self._waiting[alike].expires_at_ms == expires_at_ms:
                alike += 1
            merged: dict[str, str | None] = {}
            for waiting in self._waiting[:alike]:
                merged.update(waiting.values)
            self._state.publish(merged, version, expires_at_ms)
            published += [Published(waiting.ticket, version) for waiting in self._waiting[:alike]]
            del self._waiting[:alike]
        return published

    def _flush_all(self) -> list[Published]:
        published = self._flush()
        while self._waiting:
            self._state.tick(0.0)
            published += self._flush()
        return published


def check_values(values: Mapping[str, str | None], present: Mapping[str, str | None], *, managed: bool) -> None:
    """Whether ``values`` may be published beside ``present``.

    Raises:
        PublishError: a key or a size is not acceptable.
    """
    if not values:
        raise PublishError("nothing to publish")
    for key, value in values.items():
        if not is_key(key) or len(key.encode()) > KEY_BYTES_MAX:
            raise PublishError(
                f"{key!r} is no key: letters, digits and ._/- after a lower-case letter, at most {KEY_BYTES_MAX} bytes"
            )
        if key in MANAGED_KEYS and not managed:
            raise PublishError(f"{key} is published by the gossiper itself")
        if value is not None and len(value.encode()) > VALUE_BYTES_MAX:
            raise PublishError(
                f"the value of {key} has {len(value.encode())} bytes; at most {VALUE_BYTES_MAX} are allowed"
            )
    together = {**present, **values}
    if len(together) > STATES_PER_ENDPOINT_MAX:
        raise PublishError(f"{len(together)} application states; at most {STATES_PER_ENDPOINT_MAX} are allowed")
    total_bytes = sum(len(key.encode()) + len((value or "").encode()) for key, value in together.items())
    if total_bytes > ENDPOINT_STATES_BYTES_MAX:
        raise PublishError(
            f"all application states together have {total_bytes} bytes; at most {ENDPOINT_STATES_BYTES_MAX} are allowed"
        )
