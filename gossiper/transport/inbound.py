"""The receiving half that all transports share: bytes in, bytes out, and what is refused is counted and logged.

A peer with a wrong configuration repeats itself every second for ever, so log lines are limited per (peer, reason),
and altogether: an invented peer per message must not fill the disk either.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from gossiper import limits
from gossiper.core.messages import Reply, Request
from gossiper.errors import NotRunningError, PeerProtocolError, TransportError
from gossiper.metrics import GossipMetrics
from gossiper.transport.base import Handler
from gossiper.wire import codec

logger = logging.getLogger(__name__)

#: Decoders of what may arrive, by kind.
DECODERS: Final[dict[str, Callable[[bytes], Request]]] = {
    "syn": codec.decode_syn,
    "ack2": codec.decode_ack2,
    "echo_request": codec.decode_echo_request,
}

#: (peer, reason) pairs whose last log line is remembered; about 300 bytes each.
LOG_KEYS_MAX: Final = 1024


class LogLimiter:
    """At most one line per key in ``interval_seconds``, and at most ``keys_max`` lines in that time altogether."""

    def __init__(self, interval_seconds: float = limits.LOG_INTERVAL_SECONDS, keys_max: int = LOG_KEYS_MAX) -> None:
        self._interval_seconds = interval_seconds
        self._keys_max = keys_max
        self._last: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        """Keys remembered."""
        return len(self._last)

    def permit(self, key: tuple[str, str], now_seconds: float) -> int | None:
        """How many lines were held back since the last one if this one may be written, else None."""
        last, held_back = self._last.get(key, (None, 0))
        if last is not None and now_seconds - last < self._interval_seconds:
            self._last[key] = (last, held_back + 1)
            return None
        if last is None and len(self._last) >= self._keys_max:
            oldest = next(iter(self._last))
            if now_seconds - self._last[oldest][0] < self._interval_seconds:
                return None
            del self._last[oldest]
        self._last[key] = (now_seconds, 0)
        self._last.move_to_end(key)
        return held_back


class Inbound:
    """Decodes, hands over, encodes. ``clock`` gives the seconds of any monotonic clock."""

    def __init__(self, metrics: GossipMetrics, handler: Handler, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._handler = handler
        self._clock = clock
        self._limiter = LogLimiter()

    def answer(self, kind: str, data: bytes, peer: str) -> bytes:
        """As ``respond``, the encoded answer only."""
        return self.respond(kind, data, peer)[1]

    def respond(self, kind: str, data: bytes, peer: str) -> tuple[Reply, bytes]:
        """The answer to a message of ``kind`` (a key of ``DECODERS``), and its encoded form.

        ``peer`` only names the sender in the log.

        Raises:
            PeerProtocolError: refused, and already counted and logged; the transport tells the peer.
            TransportError: the answer is too large to be sent (too_large), or the handler failed (unavailable); also
                counted and logged.
        """
        try:
            reply = self._handler(self._taken(kind, data))
        except PeerProtocolError as error:
            self.refuse(kind, peer, error)
            raise
        except NotRunningError as error:
            refusal = PeerProtocolError("not_running", str(error) or "this node is not running")
            self.refuse(kind, peer, refusal)
            raise refusal from error
        except Exception as error:
            # A defect of this node, not of the peer: it fails this one call and is told from a refusal.
            self._metrics.increment("gossiper_internal_errors_total")
            logger.exception("internal_error kind=%s peer=%s", kind, peer)
            raise TransportError("internal error", reason="unavailable") from error
        answer = codec.encode(reply)
        if len(answer) > limits.MESSAGE_BYTES_MAX:
            self._metrics.increment("gossiper_send_failures_total", reason="too_large")
            detail = f"the answer has {len(answer)} bytes, the limit is {limits.MESSAGE_BYTES_MAX}"
            self._log(logging.ERROR, kind, peer, "answer_too_large", detail)
            raise TransportError(detail, reason="too_large", retriable=False)
        self._metrics.count_message(codec.KINDS[type(reply)], codec.form_of(reply), "sent", len(answer))
        return reply, answer

    def _taken(self, kind: str, data: bytes) -> Request:
        """The message, counted whether it can be read or not."""
        form = "unknown"
        try:
            request = DECODERS[kind](data)
            form = codec.form_of(request)
        finally:
            self._metrics.count_message(kind, form, "received", len(data))
        return request

    def refuse(self, kind: str, peer: str, error: PeerProtocolError) -> None:
        """Count a refusal and log it at the limited rate."""
        self._metrics.increment("gossiper_refused_total", reason=error.reason)
        # A peer that knocks while this node starts or leaves does nothing wrong, and nobody has to do anything.
        level = logging.INFO if error.reason == "not_running" else logging.WARNING
        self._log(level, kind, peer, error.reason, error.detail)

    def _log(self, level: int, kind: str, peer: str, reason: str, detail: str) -> None:
        held_back = self._limiter.permit((peer, reason), self._clock())
        if held_back is not None:
            logger.log(
                level,
                "message refused peer=%s kind=%s reason=%s detail=%s held_back=%d",
                peer,
                kind,
                reason,
                detail,
                held_back,
            )
