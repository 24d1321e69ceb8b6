"""What can be said of one endpoint state before looking at what is known of its endpoint: is it possible, is it over.

Lives here: checks against the clock alone, and the order in which the states of one message are applied. Not here:
quarantine and everything that needs the table (``state``), the form of a message (``gossiper.wire.codec``).
"""

from __future__ import annotations

from gossiper.core.application_states import ApplicationState
from gossiper.core.lifecycle import GONE_STATUSES, Status, expire_ms_of, status_of
from gossiper.core.messages import EndpointState
from gossiper.core.versions import Now
from gossiper.limits import GENERATION_AHEAD_SECONDS_MAX

_JOINING = frozenset({Status.BOOT, Status.BOOT_REPLACE})


def implausible(state: EndpointState, now: Now) -> str | None:
    """Why a state cannot be true by the local wall clock, or None. Said of known and unknown endpoints alike."""
    ahead = state.generation - now.wall
    if ahead > GENERATION_AHEAD_SECONDS_MAX:
        return "invalid_generation"
    if state.heartbeat * state.interval_ms / 1000 > GENERATION_AHEAD_SECONDS_MAX - ahead:
        return "invalid_heartbeat"
    return None


def is_expired(state: EndpointState, now: Now) -> bool:
    """Whether it is of somebody gone for good whose time to be remembered is over."""
    status = next((value.value for key, value in state.values if key == ApplicationState.STATUS), "")
    return status_of(status) in GONE_STATUSES and expire_ms_of(status, now.wall) <= now.wall * 1000


def apply_order(state: EndpointState) -> tuple[bool, int, str]:
    """Sort key of the states of one message: who is joining comes last, then older generations first."""
    joining = any(key == ApplicationState.STATUS and status_of(v.value) in _JOINING for key, v in state.values)
    return joining, state.generation, state.endpoint
