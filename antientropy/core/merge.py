"""Two streams of rows in token order, cut into parts that can be compared: bounded memory however many rows there are.

A part holds all rows of both sides up to a token. A chunk may end between two rows of one token, so a side's last token
is held back until its next chunk shows a greater one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from antientropy.core.rows import RowDigests
from antientropy.core.tokens import TOKEN_MAX
from antientropy.errors import PeerMessageError
from antientropy.limits import DIGESTS_PER_CHUNK_MAX


@dataclass(slots=True)
class TokenMerge:
    """Ask :attr:`needs` which side to feed next; take a part after each feeding."""

    local: RowDigests = field(default_factory=RowDigests.empty)
    remote: RowDigests = field(default_factory=RowDigests.empty)
    local_ended: bool = False
    remote_ended: bool = False

    @property
    def needs(self) -> Literal["local", "remote"] | None:
        """The side that holds the other up: the one that has seen the smaller token. None: both have ended."""
        if self.remote_ended:
            return None if self.local_ended else "local"
        if self.local_ended or not len(self.remote):
            return "remote"
        return "local" if not len(self.local) or self.local.tokens[-1] < self.remote.tokens[-1] else "remote"

    def feed_local(self, rows: RowDigests | None) -> None:
        """The next chunk of the own side; None: there is no more."""
        if rows is None:
            self.local_ended = True
        else:
            self.local = RowDigests.concatenate([self.local, rows])

    def feed_remote(self, rows: RowDigests | None) -> None:
        """The next chunk of the peer; None: there is no more.

        Raises:
            PeerMessageError: tokens that do not ascend, or absurdly many rows at one token.
        """
        if rows is None:
            self.remote_ended = True
            return
        joined = RowDigests.concatenate([self.remote, rows])
        if len(joined) > 1 and bool((joined.tokens[1:] < joined.tokens[:-1]).any()):
            raise PeerMessageError("row digests are not in the order of tokens")
        if len(joined) > DIGESTS_PER_CHUNK_MAX and joined.tokens[0] == joined.tokens[-1]:
            raise PeerMessageError(f"more than {DIGESTS_PER_CHUNK_MAX} rows at one token")
        self.remote = joined

    def take(self) -> tuple[RowDigests, RowDigests, int]:
        """All rows of both sides that are complete by now, local and remote, and the token up to which they are."""
        seen = [TOKEN_MAX + 1]
        if not self.local_ended:
            seen.append(int(self.local.tokens[-1]) if len(self.local) else 0)
        if not self.remote_ended:
            seen.append(int(self.remote.tokens[-1]) if len(self.remote) else 0)
        last = min(seen) - 1
        if last < 0:
            return RowDigests.empty(), RowDigests.empty(), last
        here, self.local = _split(self.local, last)
        there, self.remote = _split(self.remote, last)
        return here, there, last


def _split(rows: RowDigests, last: int) -> tuple[RowDigests, RowDigests]:
    """Rows up to ``last``, and the rest."""
    at = int(np.searchsorted(rows.tokens, np.uint64(last), "right"))
    return rows.take(slice(0, at)), rows.take(slice(at, None))
