"""From options to a connection, which is imported only when a command really asks a node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nodetool.options import Options

if TYPE_CHECKING:
    from nodetool.connection import Node


def connect(options: Options) -> Node:
    """A connection to the node that the options name; to be used in a with block."""
    from nodetool.connection import Node  # noqa: PLC0415 - gRPC takes longer to import than `--help` may take

    return Node(options)
