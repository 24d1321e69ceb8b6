"""Test a service that uses a gossiper: whole clusters in one process, with faults at will, in virtual time.

``MemoryCluster`` starts gossipers on an in-memory network. ``run`` runs a coroutine on a loop of virtual time, where a
minute takes about as long as its computations; ``VirtualClock`` is the clock of one node there. For pytest there are
fixtures in ``gossiper.testing.plugin``. See ``docs/testing.md``.
"""

from collections.abc import Callable
from typing import Any

from gossiper.simulation.virtual_loop import (
    VirtualClock,
    VirtualDeadlockError,
    VirtualEventLoop,
    VirtualLimitError,
    VirtualRunner,
    VirtualTimeError,
    run,
)
from gossiper.testing.cluster import MemoryCluster
from gossiper.transport.memory import MemoryNetwork, MemoryTransport

RunVirtual = Callable[..., Any]
"""What the fixture ``run_virtual`` is, for annotations: takes a coroutine, returns what it returns."""

__all__ = [
    "MemoryCluster",
    "MemoryNetwork",
    "MemoryTransport",
    "RunVirtual",
    "VirtualClock",
    "VirtualDeadlockError",
    "VirtualEventLoop",
    "VirtualLimitError",
    "VirtualRunner",
    "VirtualTimeError",
    "run",
]
