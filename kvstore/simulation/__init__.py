"""Gossip, key-value store and repair together, in one process and in virtual time, over seeds.

The nodes are real: :class:`kvstore.node.KvStoreNode` with its gossiper, coordinator, writer and repair service; only
clock, disk and network are simulated (:class:`kvstore.simulation.machine.SimulatedMachine`). A seed decides everything:
what clients write, which faults happen, which repairs run, and how. What is written can be derived from the seed again,
so that the checkers know each value that may be anywhere. ``python -m kvstore.simulation --help`` runs it.
"""

from __future__ import annotations
