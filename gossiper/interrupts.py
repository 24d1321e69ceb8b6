"""Ctrl-C at any moment of a command ends it in one line: also while it is still being imported, and at its very end.

Imports take most of the life of a short command, and an interrupt there shows a traceback of other people's modules.
So a command's ``__main__`` imports nothing else before :func:`quietly` is there.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # as in typing, which takes longer to import than this module
if TYPE_CHECKING:
    from collections.abc import Callable
    from signal import SIGINT, default_int_handler, getsignal, signal
    from types import FrameType
    from typing import Any
else:
    # What `signal` is made of; that one spends milliseconds on making enumerations of these numbers.
    from _signal import SIGINT, default_int_handler, getsignal, signal

#: What a shell says of a command that Ctrl-C ended.
INTERRUPTED = 130


def quietly(name: str, load: Callable[[], Callable[[], Any]]) -> Any:
    """Run the command that ``load`` imports, and return what it returns; an interrupt ends the process with 130.

    While the command itself runs, an interrupt is the usual ``KeyboardInterrupt``, which it may handle.

    Args:
        name: of the command, for the line on standard error.
        load: does the imports and returns the function to be called.
    """

    def leave(_number: int = SIGINT, _frame: FrameType | None = None) -> None:
        os.write(2, f"{name}: interrupted\n".encode())
        # Nothing has begun or all is done: there is nothing to clean up, and whatever did would be interrupted, too.
        os._exit(INTERRUPTED)

    if getsignal(SIGINT) is not default_int_handler:
        # Ignored (nohup, a job in the background of a script), or somebody else's.
        return load()()
    signal(SIGINT, leave)
    try:
        command = load()
        try:
            signal(SIGINT, default_int_handler)
            return command()
        finally:
            signal(SIGINT, leave)
    except KeyboardInterrupt:
        leave()
