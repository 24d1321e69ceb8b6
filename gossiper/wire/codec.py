"""Protobuf bytes <-> the core's messages, and every check of peer input that needs no local state.

Lives here: encoding, decoding, and the refusal of whatever no honest peer would send. Not here: checks against what
this node knows (its cluster name, its clock, its table), which are the engine's.

What a decoder returns keeps these promises, for every message:

* endpoints are canonical, name a port, and occur once in each list; numbers are in [0, ``limits.INTEGER_MAX``);
* no value was published after the heartbeat of its state: ``tick_of(version) <= heartbeat``, for ``states_version``
  and ``gc_version`` too;
* keys have the form of a key and occur once; every value is newer than ``from_version``; a tombstone has no text;
* nothing exceeds a limit of ``gossiper.limits``.

A message that breaks one of them is refused whole, with :class:`~gossiper.errors.PeerProtocolError`. Unknown fields
are ignored, so that a later version can add some.

The same message always becomes the same bytes: there are no maps, and the order of everything is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NoReturn, TypeVar

import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtobufMessage

from gossiper import limits
from gossiper.core.application_states import is_key
from gossiper.core.columns import Int64Column
from gossiper.core.endpoints import ENDPOINT_LENGTH_MAX, canonical_endpoint
from gossiper.core.messages import (
    CompactDigests,
    DigestColumns,
    EchoReply,
    EchoRequest,
    EndpointState,
    GossipDigestAck,
    GossipDigestAck2,
    GossipDigestAck2Reply,
    GossipDigestSyn,
    Message,
    Reply,
    Request,
    Sender,
    VersionedValue,
)
from gossiper.core.versions import COUNTER_BITS
from gossiper.errors import PeerProtocolError
from gossiper.v1 import gossip_pb2
from gossiper.wire.columns import digests_field
from gossiper.wire.compact import answer_in, answer_out, digests_in, digests_out

#: How much of a peer's text is repeated in an error.
_QUOTE_CHARACTERS_MAX: Final = 64

#: The label of each message in metrics and logs.
KINDS: Final[dict[type[Message], str]] = {
    GossipDigestSyn: "syn",
    GossipDigestAck: "ack",
    GossipDigestAck2: "ack2",
    GossipDigestAck2Reply: "ack2_reply",
    EchoRequest: "echo_request",
    EchoReply: "echo_reply",
}


def form_of(message: Message) -> str:
    """Its form in metrics: ``compact`` for digests in columns and the answers to them, else ``plain``."""
    columns = isinstance(message, GossipDigestSyn | GossipDigestAck) and message.compact is not None
    return "compact" if columns else "plain"


_P = TypeVar("_P", bound=ProtobufMessage)


# ------------------------------------------------------------------------------------------------------- encoding


def encode(message: Message) -> bytes:
    """The protobuf form of ``message``. It does not check: what is sent was checked when it was made.

    Raises:
        ValueError: a number or text that protobuf cannot hold, such as a negative number.
    """
    wire: ProtobufMessage
    match message:
        case GossipDigestSyn():
            # Fields of one message may be serialised one after the other, in the order of their numbers.
            wire = gossip_pb2.GossipDigestSyn(sender=_sender_out(message.sender), as_of_ms=message.as_of_ms)
            data = b""
            if len(message.digests):
                data = wire.SerializeToString(deterministic=True) + digests_field(3, message.digests)
                wire = gossip_pb2.GossipDigestSyn()
            if message.compact is not None:
                wire.compact.CopyFrom(digests_out(message.compact, message.as_of_ms))
            return data + wire.SerializeToString(deterministic=True)
        case GossipDigestAck():
            wire = gossip_pb2.GossipDigestAck(sender=_sender_out(message.sender), as_of_ms=message.as_of_ms)
            data = b""
            if len(message.requests) or len(message.heartbeats):
                data = wire.SerializeToString(deterministic=True)
                data += digests_field(3, message.requests) + digests_field(4, message.heartbeats)
                wire = gossip_pb2.GossipDigestAck()
            if message.states:
                wire.states.extend(map(_state_out, message.states))
            wire.deferred = message.deferred
            if message.compact is not None:
                wire.compact.CopyFrom(answer_out(message.compact))
            return data + wire.SerializeToString(deterministic=True)
        case GossipDigestAck2():
            wire = gossip_pb2.GossipDigestAck2(
                sender=_sender_out(message.sender), states=map(_state_out, message.states)
            )
        case GossipDigestAck2Reply():
            wire = gossip_pb2.GossipDigestAck2Reply(news=message.news)
        case EchoRequest():
            wire = gossip_pb2.EchoRequest(sender=_sender_out(message.sender), generation=message.generation)
        case EchoReply():
            wire = gossip_pb2.EchoReply(sender=_sender_out(message.sender), heartbeat=message.heartbeat)
    return wire.SerializeToString(deterministic=True)


@lru_cache(maxsize=limits.ENDPOINTS_MAX)
def _sender_out(sender: Sender) -> gossip_pb2.Sender:
    """Remembered: a node says the same of itself in every message. It is copied into the message, never changed."""
    return gossip_pb2.Sender(
        cluster_name=sender.cluster_name,
        protocol_version=sender.protocol_version,
        endpoint=sender.endpoint,
        generation=sender.generation,
    )


def _state_out(state: EndpointState) -> gossip_pb2.EndpointState:
    make = gossip_pb2.Value
    return gossip_pb2.EndpointState(
        endpoint=state.endpoint,
        generation=state.generation,
        interval_ms=state.interval_ms,
        heartbeat=state.heartbeat,
        from_version=state.from_version,
        states_version=state.states_version,
        gc_version=state.gc_version,
        reset=state.reset,
        values=(
            make(key=k, version=v.version, value=v.value, deleted=v.deleted, expires_at_ms=v.expires_at_ms)
            for k, v in state.values
        ),
    )


# ------------------------------------------------------------------------------------------------------- decoding


def decode_syn(data: bytes) -> GossipDigestSyn:
    """The first leg.

    Raises:
        PeerProtocolError: as the module says; nothing of it may be used.
    """
    wire = _parse(gossip_pb2.GossipDigestSyn, data)
    sender = _sender_in(wire)
    as_of_ms = _number("as_of_ms", wire.as_of_ms)
    compact = digests_in(wire.compact, as_of_ms) if wire.HasField("compact") else None
    return GossipDigestSyn(sender, as_of_ms, _digests_in("digests", wire.digests), compact)


def decode_ack(data: bytes, asked: CompactDigests | None = None) -> GossipDigestAck:
    """The second leg; ``asked``: the columns of the SYN, without which an answer to columns means nothing.

    Raises:
        PeerProtocolError: as the module says; nothing of it may be used.
    """
    wire = _parse(gossip_pb2.GossipDigestAck, data)
    if wire.HasField("compact") and asked is None:
        _refuse("malformed", "an answer to columns that were not sent")
    return GossipDigestAck(
        _sender_in(wire),
        _number("as_of_ms", wire.as_of_ms),
        _digests_in("requests", wire.requests),
        _digests_in("heartbeats", wire.heartbeats),
        _states_in(wire.states),
        wire.deferred,
        answer_in(wire.compact, asked) if asked is not None and wire.HasField("compact") else None,
    )


def decode_ack2(data: bytes) -> GossipDigestAck2:
    """The third leg, and every push.

    Raises:
        PeerProtocolError: as the module says; nothing of it may be used.
    """
    wire = _parse(gossip_pb2.GossipDigestAck2, data)
    return GossipDigestAck2(_sender_in(wire), _states_in(wire.states))


def decode_ack2_reply(data: bytes) -> GossipDigestAck2Reply:
    """The answer to an ACK2.

    Raises:
        PeerProtocolError: as the module says; nothing of it may be used.
    """
    news = _parse(gossip_pb2.GossipDigestAck2Reply, data).news
    if news > limits.ENDPOINTS_MAX:
        _refuse("invalid_field", f"news is {news}, at most {limits.ENDPOINTS_MAX} endpoint states fit a message")
    return GossipDigestAck2Reply(news)


def decode_echo_request(data: bytes) -> EchoRequest:
    """A request for a sign of life.

    Raises:
        PeerProtocolError: as the module says; nothing of it may be used.
    """
    wire = _parse(gossip_pb2.EchoRequest, data)
    return EchoRequest(_sender_in(wire), _number("generation", wire.generation, "invalid_generation"))


def decode_echo_reply(data: bytes) -> EchoReply:
    """A sign of life.

    Raises:
        PeerProtocolError: as the module says; nothing of it may be used.
    """
    wire = _parse(gossip_pb2.EchoReply, data)
    return EchoReply(_sender_in(wire), _number("heartbeat", wire.heartbeat, "invalid_heartbeat"))


def decode_reply_to(request: Request, data: bytes) -> Reply:
    """The answer that belongs to ``request``.

    Raises:
        PeerProtocolError: as the module says; nothing of it may be used.
    """
    match request:
        case GossipDigestSyn():
            return decode_ack(data, request.compact)
        case GossipDigestAck2():
            return decode_ack2_reply(data)
        case EchoRequest():
            return decode_echo_reply(data)


# --------------------------------------------------------------------------------------------------------- checks


def _refuse(reason: str, detail: str) -> NoReturn:
    raise PeerProtocolError(reason, detail)


def _quoted(text: str) -> str:
    shown = text[:_QUOTE_CHARACTERS_MAX]
    return ascii(shown) + ("..." if len(text) > len(shown) else "")


def _parse(kind: type[_P], data: bytes) -> _P:
    if len(data) > limits.MESSAGE_BYTES_MAX:
        _refuse("too_large", f"{len(data)} bytes, the limit is {limits.MESSAGE_BYTES_MAX}")
    try:
        return kind.FromString(data)
    except DecodeError:
        raise PeerProtocolError("malformed", f"{len(data)} bytes are not a {kind.DESCRIPTOR.name}") from None


def _number(name: str, value: int, reason: str = "invalid_field") -> int:
    if not 0 <= value < limits.INTEGER_MAX:
        _refuse(reason, f"{name} is {value}, must be below 2**62")
    return value


_WithSender = (
    gossip_pb2.GossipDigestSyn
    | gossip_pb2.GossipDigestAck
    | gossip_pb2.GossipDigestAck2
    | gossip_pb2.EchoRequest
    | gossip_pb2.EchoReply
)


def _sender_in(message: _WithSender) -> Sender:
    if not message.HasField("sender"):
        _refuse("malformed", "no sender")
    wire = message.sender
    name = wire.cluster_name
    if not 1 <= len(name.encode()) <= limits.CLUSTER_NAME_BYTES_MAX:
        _refuse("invalid_field", f"cluster name must have 1 to {limits.CLUSTER_NAME_BYTES_MAX} bytes")
    if wire.protocol_version < 1:
        _refuse("protocol_version", "no protocol version")
    generation = _number("generation of the sender", wire.generation, "invalid_generation")
    return Sender(name, wire.protocol_version, _endpoint(wire.endpoint), generation)


#: Keys are the same few in every state.
_is_key = lru_cache(maxsize=4096)(is_key)


@lru_cache(maxsize=limits.ENDPOINTS_MAX)
def _endpoint(text: str) -> str:
    """``text`` once it is checked; remembered, as every message names the same endpoints again (errors are not).

    The text that was seen first is returned for all equal ones, so that the table keeps one copy of each.
    """
    if len(text) > ENDPOINT_LENGTH_MAX:
        _refuse("invalid_field", f"endpoint {_quoted(text)} is longer than {ENDPOINT_LENGTH_MAX} characters")
    try:
        canonical = canonical_endpoint(text)
    except ValueError as error:
        raise PeerProtocolError("invalid_field", f"endpoint {_quoted(text)}: {_reason_only(error)}") from None
    if canonical != text:
        _refuse("invalid_field", f"endpoint {_quoted(text)} is not in canonical form, {_quoted(canonical)}")
    if canonical.endswith(":0"):
        _refuse("invalid_field", f"endpoint {_quoted(text)} names no port")
    return canonical


def _reason_only(error: ValueError) -> str:
    """Without the peer's text, which is repeated once and shortened."""
    return _quoted(str(error).rpartition(": ")[2])


def _endpoints(what: str, wire: Sequence[gossip_pb2.GossipDigest | gossip_pb2.EndpointState]) -> tuple[str, ...]:
    if len(wire) > limits.ENDPOINTS_MAX:
        _refuse("too_large", f"{len(wire)} {what}, the limit is {limits.ENDPOINTS_MAX}")
    endpoints = tuple([_endpoint(one.endpoint) for one in wire])
    if len(set(endpoints)) != len(endpoints):
        _refuse("invalid_field", f"an endpoint occurs twice in {what}")
    return endpoints


def _column(what: str, values: Sequence[int], endpoints: tuple[str, ...], reason: str) -> Int64Column:
    """uint64 from the wire, as int64, once all of them are known to fit."""
    column = np.array(values, dtype=np.uint64)
    wrong = column >= limits.INTEGER_MAX
    if wrong.any():
        row = int(wrong.argmax())
        _refuse(reason, f"{what} of {endpoints[row]} is {column[row]}, must be below 2**62")
    return column.astype(np.int64)


def _digests_in(what: str, wire: Sequence[gossip_pb2.GossipDigest]) -> DigestColumns:
    if not wire:
        return DigestColumns.empty()
    endpoints = _endpoints(what, wire)
    rows = list(wire)  # once: every step through a repeated field makes new objects
    generations = _column("generation", [digest.generation for digest in rows], endpoints, "invalid_generation")
    heartbeats = _column("heartbeat", [digest.heartbeat for digest in rows], endpoints, "invalid_heartbeat")
    versions = _column("states_version", [digest.states_version for digest in rows], endpoints, "invalid_field")
    ahead = (versions >> COUNTER_BITS) > heartbeats
    if ahead.any():
        row = int(ahead.argmax())
        _refuse(
            "invalid_field",
            f"states_version {versions[row]} of {endpoints[row]} is later than its heartbeat {heartbeats[row]}",
        )
    return DigestColumns(endpoints, generations, heartbeats, versions)


def _states_in(wire: Sequence[gossip_pb2.EndpointState]) -> tuple[EndpointState, ...]:
    endpoints = _endpoints("states", wire)
    return tuple(_state_in(endpoint, state) for endpoint, state in zip(endpoints, wire, strict=True))


def _state_in(endpoint: str, wire: gossip_pb2.EndpointState) -> EndpointState:
    generation, heartbeat = wire.generation, wire.heartbeat
    if not 1 <= generation < limits.INTEGER_MAX:
        _refuse("invalid_generation", f"generation of {endpoint} is {generation}, must be 1 to 2**62 - 1")
    if heartbeat >= limits.INTEGER_MAX:
        _refuse("invalid_heartbeat", f"heartbeat of {endpoint} is {heartbeat}, must be below 2**62")
    if not limits.INTERVAL_MS_MIN <= wire.interval_ms <= limits.INTERVAL_MS_MAX:
        _refuse(
            "invalid_field",
            f"interval_ms of {endpoint} is {wire.interval_ms}, must be "
            f"{limits.INTERVAL_MS_MIN} to {limits.INTERVAL_MS_MAX}",
        )
    # The first version that cannot have been published yet.
    version_end = min((heartbeat + 1) << COUNTER_BITS, limits.INTEGER_MAX)
    states_version, gc_version, from_version = wire.states_version, wire.gc_version, wire.from_version
    for what, version in (("states_version", states_version), ("gc_version", gc_version)):
        if version >= version_end:
            _refuse("invalid_field", f"{what} {version} of {endpoint} is later than its heartbeat {heartbeat}")
    if from_version > states_version:
        _refuse(
            "invalid_field", f"from_version {from_version} of {endpoint} is beyond its states_version {states_version}"
        )
    if wire.reset and from_version != 0:
        _refuse("invalid_field", f"the whole state of {endpoint} begins at version {from_version}, not at 0")
    return EndpointState(
        endpoint=endpoint,
        generation=generation,
        interval_ms=wire.interval_ms,
        heartbeat=heartbeat,
        from_version=from_version,
        states_version=states_version,
        values=_values_in(endpoint, wire.values, from_version, version_end),
        gc_version=gc_version,
        reset=wire.reset,
    )


def _values_in(
    endpoint: str, wire: Sequence[gossip_pb2.Value], from_version: int, version_end: int
) -> tuple[tuple[str, VersionedValue], ...]:
    if len(wire) > limits.STATES_PER_ENDPOINT_MAX:
        _refuse("too_large", f"{len(wire)} values of {endpoint}, the limit is {limits.STATES_PER_ENDPOINT_MAX}")
    values: dict[str, VersionedValue] = {}
    total_bytes = 0
    for item in wire:
        key, value, version = item.key, item.value, item.version
        if len(key) > limits.KEY_BYTES_MAX:
            _refuse("too_large", f"key {_quoted(key)} of {endpoint} has more than {limits.KEY_BYTES_MAX} bytes")
        if not _is_key(key):
            _refuse("invalid_field", f"{_quoted(key)} of {endpoint} is not a key")
        if key in values:
            _refuse("invalid_field", f"key {key} of {endpoint} occurs twice")
        value_bytes = len(value) if value.isascii() else len(value.encode())
        if value_bytes > limits.VALUE_BYTES_MAX:
            _refuse("too_large", f"{key} of {endpoint} has {value_bytes} bytes, the limit is {limits.VALUE_BYTES_MAX}")
        if item.deleted and value:
            _refuse("invalid_field", f"{key} of {endpoint} is deleted and has a value")
        if not from_version < version < version_end:
            _refuse(
                "invalid_field",
                f"version {version} of {key} of {endpoint} is not after {from_version} and before {version_end}",
            )
        total_bytes += len(key) + value_bytes
        values[key] = VersionedValue(
            version, value, item.deleted, _number("expires_at_ms", item.expires_at_ms, "invalid_field")
        )
    if total_bytes > limits.ENDPOINT_STATES_BYTES_MAX:
        _refuse(
            "too_large",
            f"the states of {endpoint} have {total_bytes} bytes, the limit is {limits.ENDPOINT_STATES_BYTES_MAX}",
        )
    return tuple(values.items())
