"""Scenario files: what is done to a small cluster, and what its members must see, as a text that people can read.

One file runs unchanged on gossipers in virtual time (``run_in_memory``) and on real processes (``run_on_processes``).
The language is described in ``docs/scenarios.md``; ``gossiper scenario run FILE`` is its command.
"""

from gossiper.scenario.language import Scenario, ScenarioError, load, parse
from gossiper.scenario.run import Outcome, run_in_memory, run_on_processes

__all__ = ["Outcome", "Scenario", "ScenarioError", "load", "parse", "run_in_memory", "run_on_processes"]
