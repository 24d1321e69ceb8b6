"""What a simulation reports when something that must never happen has happened."""

from __future__ import annotations

from dataclasses import asdict, dataclass


class InvariantViolation(Exception):  # noqa: N818 - it names what happened; it is not an error of the caller
    """Raised at the event that broke an invariant; ``run_seed`` turns it into a :class:`Violation`."""

    def __init__(self, invariant: str, detail: str) -> None:
        self.invariant = invariant
        self.detail = detail
        super().__init__(f"{invariant}: {detail}")


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken invariant with all that is needed to see it again."""

    seed: int
    invariant: str
    """A short constant, such as ``no_gap``."""
    detail: str
    at_seconds: float
    """Virtual time."""
    options: dict[str, object]
    """Everything that the seed was expanded to."""
    trace: tuple[str, ...]
    """The last lines before it, oldest first."""
    command: str
    """Replays it."""

    def to_json(self) -> dict[str, object]:
        """As plain values."""
        return asdict(self)
