"""How a command ends: the exit statuses, and errors that carry one. Every error is one line on standard error."""

from __future__ import annotations

from enum import IntEnum

import click


class ExitStatus(IntEnum):
    """What the caller of nodetool learns without reading its output; documented in ``nodetool --help``."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    #: A preview or a validation found differences, and the status was asked for.
    DIFFERENCES = 3
    PARTLY_DONE = 4
    UNREACHABLE = 5
    INTERRUPTED = 130


class NodetoolError(click.ClickException):
    """The operation did not succeed; ``message`` says why and, where there is one, the way out."""

    def __init__(self, message: str, status: ExitStatus = ExitStatus.FAILED) -> None:
        super().__init__(message)
        self.status = status


class UnreachableError(NodetoolError):
    """The node cannot be reached, does not answer in time, or is not ready."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitStatus.UNREACHABLE)


class NotOfferedError(NodetoolError):
    """The node does not offer the service that was asked for: a gossiper without repair, say."""


class InterruptedCommandError(NodetoolError):
    """Ctrl-C."""

    def __init__(self, message: str = "interrupted") -> None:
        super().__init__(message, ExitStatus.INTERRUPTED)
