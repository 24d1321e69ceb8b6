"""Which messages are worth compressing, as measured by ``python -m benchmarks.digest_exchange --compression``.

Columns of compact digests are near their entropy: gzip makes them longer. What it pays for is text: of plain digests a
third is left, of many whole application states a tenth, for 20 to 35 microseconds of CPU per kB on one side and 2 on
the other. A call itself costs about 1 ms.

A receiver is safe from messages that grow beyond bounds: gRPC holds ``max_receive_message_length`` against a message as
it arrives, and against what it is unpacked to, and stops unpacking there.
"""

from __future__ import annotations

from typing import Final

import grpc

from gossiper.core.messages import GossipDigestAck, GossipDigestAck2, GossipDigestSyn, Message

#: With less text gzip saves less than 200 bytes, and both sides take 20 microseconds more.
COMPRESSED_BYTES_MIN: Final = 512


def compression_of(message: Message, size_bytes: int) -> grpc.Compression:
    """How to send a message whose encoded form has ``size_bytes``."""
    pays = _text_bytes(message, size_bytes) >= COMPRESSED_BYTES_MIN
    return grpc.Compression.Gzip if pays else grpc.Compression.NoCompression


def _text_bytes(message: Message, size_bytes: int) -> int:
    """At least so many of the bytes are no columns."""
    match message:
        case GossipDigestSyn(compact=compact) | GossipDigestAck(compact=compact):
            # A symbol takes one byte at most.
            return size_bytes - (0 if compact is None else len(compact.symbols))
        case GossipDigestAck2():
            return size_bytes
    return 0
