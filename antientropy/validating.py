"""Comparing without repairing: which 256ths of the token line differ, by their roots alone."""

from __future__ import annotations

import asyncio
from typing import Final

from antientropy.core.session import Verdict, cut
from antientropy.core.tokens import TokenRange, bucket_at
from antientropy.errors import PeerError
from antientropy.leases import new_session
from antientropy.limits import UNIT_PARTS_MAX
from antientropy.peer_client import OpenSession
from antientropy.reports import SessionState
from antientropy.running import RunContext
from antientropy.unit import UnitResult

#: Comparisons under way at once with one peer.
_AT_ONCE: Final = 8
