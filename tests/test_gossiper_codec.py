"""The codec: what it makes it reads back, and whatever no honest peer sends it refuses whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossiper import limits
from gossiper.core.endpoints import ENDPOINT_LENGTH_MAX
from gossiper.core.messages import (
    DigestColumns,
    EchoReply,
    EchoRequest,
    EndpointState,
    GossipDigestAck,
    GossipDigestAck2,
    GossipDigestAck2Reply,
    GossipDigestSyn,
    Message,
    Sender,
    VersionedValue,
)
from gossiper.core.versions import COUNTERS_PER_TICK
from gossiper.errors import PeerProtocolError
from gossiper.v1 import gossip_pb2
from gossiper.wire import codec

DECODERS: dict[type[Message], Callable[[bytes], Message]] = {
    GossipDigestSyn: codec.decode_syn,
    GossipDigestAck: codec.decode_ack,
    GossipDigestAck2: codec.decode_ack2,
    GossipDigestAck2Reply: codec.decode_ack2_reply,
    EchoRequest: codec.decode_echo_request,
    EchoReply: codec.decode_echo_reply,
}
KNOWN_REASONS = {
    "malformed",
    "too_large",
    "protocol_version",
    "invalid_field",
    "invalid_generation",
    "invalid_heartbeat",
}

# -- strategies: every message that an honest peer can make ------------------------------------------------------------

INTEGERS = st.integers(0, limits.INTEGER_MAX - 1)
#: Ticks so that every version in them is below the limit.
TICKS = st.integers(1, limits.INTEGER_MAX // COUNTERS_PER_TICK - 1)
PORTS = st.integers(1, 65535)
ENDPOINTS = st.one_of(
    st.builds(lambda address, port: f"{address}:{port}", st.ip_addresses(v=4), PORTS),
    st.builds(lambda address, port: f"[{address.compressed}]:{port}", st.ip_addresses(v=6), PORTS),
    st.builds(
        lambda name, port: f"{name}:{port}", st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True), PORTS
    ),
)
KEYS = st.one_of(
    st.sampled_from(["STATUS", "LOAD", "DC", "HOST_ID"]), st.from_regex(r"[a-z][a-zA-Z0-9._/-]{0,20}", fullmatch=True)
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
SENDERS = st.builds(
    Sender,
    TEXTS.filter(lambda text: 1 <= len(text.encode()) <= limits.CLUSTER_NAME_BYTES_MAX),
    st.integers(1, 2**32 - 1),
    ENDPOINTS,
    INTEGERS,
)


@st.composite
def digest_columns(draw: st.DrawFn) -> DigestColumns:
    rows = []
    for endpoint in draw(st.lists(ENDPOINTS, unique=True, max_size=6)):
        heartbeat = draw(INTEGERS)
        version = draw(st.integers(0, min((heartbeat + 1) * COUNTERS_PER_TICK, limits.INTEGER_MAX) - 1))
        rows.append((endpoint, draw(INTEGERS), heartbeat, version))
    return DigestColumns.from_rows(rows)


@st.composite
def endpoint_states(draw: st.DrawFn, endpoint: str) -> EndpointState:
    heartbeat = draw(TICKS)
    version_max = heartbeat * COUNTERS_PER_TICK + COUNTERS_PER_TICK - 1
    versions = st.integers(0, version_max - 1)
    reset = draw(st.booleans())
    states_version = draw(versions)
    from_version = 0 if reset else draw(st.integers(0, states_version))
    newer = st.integers(from_version + 1, version_max)
    values = st.one_of(
        st.builds(VersionedValue, newer, TEXTS), st.builds(VersionedValue, newer, st.just(""), st.just(value=True))
    )
    return EndpointState(
        endpoint=endpoint,
        generation=draw(st.integers(1, limits.INTEGER_MAX - 1)),
        interval_ms=draw(st.integers(limits.INTERVAL_MS_MIN, limits.INTERVAL_MS_MAX)),
        heartbeat=heartbeat,
        from_version=from_version,
        states_version=states_version,
        values=tuple(draw(st.dictionaries(KEYS, values, max_size=5)).items()),
        gc_version=draw(versions),
        reset=reset,
    )


@st.composite
def states_tuples(draw: st.DrawFn) -> tuple[EndpointState, ...]:
    return tuple(draw(endpoint_states(endpoint)) for endpoint in draw(st.lists(ENDPOINTS, unique=True, max_size=4)))


MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(GossipDigestSyn, SENDERS, INTEGERS, digest_columns()),
    st.builds(GossipDigestAck, SENDERS, INTEGERS, digest_columns(), digest_columns(), states_tuples()),
    st.builds(GossipDigestAck2, SENDERS, states_tuples()),
    st.builds(GossipDigestAck2Reply, st.integers(0, limits.ENDPOINTS_MAX)),
    st.builds(EchoRequest, SENDERS, INTEGERS),
    st.builds(EchoReply, SENDERS, INTEGERS),
)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[type[Message], bytes]:
    """Bytes of a message after a few random edits."""
    message = draw(MESSAGES)
    data = bytearray(codec.encode(message))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["set", "insert", "delete", "cut", "repeat"])):
            case "set" if at < len(data):
                data[at] = draw(st.integers(0, 255))
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=4))
            case "delete":
                del data[at : at + draw(st.integers(1, 8))]
            case "cut":
                del data[at:]
            case "repeat":
                data += data[at:]
    return type(message), bytes(data)


# -- properties --------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(MESSAGES)
def test_what_is_encoded_is_decoded_and_the_bytes_are_always_the_same(message: Message) -> None:
    data = codec.encode(message)
    decoded = DECODERS[type(message)](data)
    assert decoded == message
    assert codec.encode(decoded) == data


@settings(max_examples=300, deadline=None)
@given(mutated())
def test_mutated_bytes_are_valid_or_refused_for_a_known_reason(case: tuple[type[Message], bytes]) -> None:
    kind, data = case
    try:
        message = DECODERS[kind](data)
    except PeerProtocolError as error:
        assert error.reason in KNOWN_REASONS  # noqa: PT017 - both outcomes are allowed
        assert len(error.detail) < 700  # noqa: PT017 - both outcomes are allowed
    else:
        assert DECODERS[kind](codec.encode(message)) == message


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(DECODERS)), st.binary(max_size=200))
def test_any_bytes_are_valid_or_refused(kind: type[Message], data: bytes) -> None:
    try:
        message = DECODERS[kind](data)
    except PeerProtocolError as error:
        assert error.reason in KNOWN_REASONS  # noqa: PT017 - both outcomes are allowed
    else:
        assert DECODERS[kind](codec.encode(message)) == message


# -- details of what is decoded ----------------------------------------------------------------------------------------

A, B = "10.0.0.1:7000", "10.0.0.2:7000"
SENDER = Sender("test", 1, A, 100)
STATE = EndpointState(B, 100, 1000, 9, 16, 130, (("x", VersionedValue(17, "1")), ("y", VersionedValue(144, "2"))))
SYN = GossipDigestSyn(SENDER, 1, DigestColumns.from_rows([(A, 100, 9, 130), (B, 99, 8, 128)]))
ACK = GossipDigestAck(SENDER, 1, SYN.digests, SYN.digests, (STATE,))
ACK2 = GossipDigestAck2(SENDER, (STATE,))


def test_columns_are_int64_and_endpoints_are_shared_between_messages() -> None:
    first, second = (codec.decode_syn(codec.encode(SYN)).digests for _ in range(2))
    for column in (first.generations, first.heartbeats, first.states_versions):
        assert column.dtype == np.int64
    assert first.endpoints[1] is second.endpoints[1]


def test_the_bytes_stay_the_same_between_releases() -> None:
    assert (
        codec.encode(EchoRequest(SENDER, 100)).hex()
        == "0a190a0474657374100" + "11a0d31302e302e302e313a373030302064" + "1064"
    )


def test_unknown_fields_of_a_later_version_are_ignored() -> None:
    later = codec.encode(SYN) + bytes.fromhex("8201") + b"\x03new"
    assert codec.decode_syn(later) == SYN


def test_the_kind_of_an_answer_follows_from_the_request() -> None:
    assert codec.decode_reply_to(SYN, codec.encode(ACK)) == ACK
    assert codec.decode_reply_to(ACK2, codec.encode(GossipDigestAck2Reply(3))) == GossipDigestAck2Reply(3)
    reply = EchoReply(SENDER, 7)
    assert codec.decode_reply_to(EchoRequest(SENDER, 1), codec.encode(reply)) == reply


def test_a_number_that_protobuf_cannot_hold_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="-1"):
        codec.encode(EchoRequest(SENDER, -1))


# -- refusals ----------------------------------------------------------------------------------------------------------


def refused(reason: str, detail: str, message: Message | bytes, kind: type[Message] | None = None) -> None:
    data = message if isinstance(message, bytes) else codec.encode(message)
    with pytest.raises(PeerProtocolError, match=detail) as caught:
        DECODERS[kind or type(message)](data)  # type: ignore[index]  # bytes always come with their kind
    assert caught.value.reason == reason


@pytest.mark.parametrize("kind", DECODERS)
def test_what_is_not_protobuf_is_malformed(kind: type[Message]) -> None:
    refused("malformed", f"9 bytes are not a {kind.__name__}", b"\xff\xfegarbage", kind)


@pytest.mark.parametrize("kind", DECODERS)
def test_what_is_too_large_is_not_even_parsed(kind: type[Message]) -> None:
    refused("too_large", "the limit is", b"\xff" * (limits.MESSAGE_BYTES_MAX + 1), kind)


@pytest.mark.parametrize("kind", [kind for kind in DECODERS if kind is not GossipDigestAck2Reply])
def test_a_message_without_a_sender_is_malformed(kind: type[Message]) -> None:
    refused("malformed", "no sender", b"", kind)


def test_text_that_is_not_utf8_is_malformed() -> None:
    data = codec.encode(EchoRequest(SENDER, 1)).replace(b"test", b"te\xfft")
    refused("malformed", "not a EchoRequest", data, EchoRequest)


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"cluster_name": ""}, "invalid_field", "cluster name"),
        ({"cluster_name": "ü" * 65}, "invalid_field", "cluster name must have 1 to 128 bytes"),
        ({"protocol_version": 0}, "protocol_version", "no protocol version"),
        ({"endpoint": ""}, "invalid_field", "endpoint"),
        ({"generation": limits.INTEGER_MAX}, "invalid_generation", "generation of the sender"),
    ],
)
@pytest.mark.parametrize("message", [SYN, ACK, ACK2, EchoRequest(SENDER, 1), EchoReply(SENDER, 1)])
def test_an_impossible_sender(message: Any, change: dict[str, Any], reason: str, detail: str) -> None:
    bad = dataclasses.replace(SENDER, **change)
    refused(reason, detail, dataclasses.replace(message, sender=bad))


@pytest.mark.parametrize(
    ("endpoint", "detail"),
    [
        ("10.0.0.1", "not host:port"),
        ("10.0.0.1:07000", "not in canonical form"),
        ("10.0.0.01:7000", "not an IPv4 address"),
        ("Node:7000", "not in canonical form, 'node:7000'"),
        ("[0:0::1]:7000", "not in canonical form"),
        ("::1:7000", "brackets"),
        ("a b:7000", "not a host name"),
        ("10.0.0.1:0", "names no port"),
        ("10.0.0.1:65536", "greater than 65535"),
        ("a" * ENDPOINT_LENGTH_MAX + ":1", "longer than"),
        ("\n\x1b[31m:1", "endpoint"),
    ],
)
def test_an_endpoint_that_is_not_canonical(endpoint: str, detail: str) -> None:
    digests = DigestColumns.from_rows([(A, 1, 1, 1), (endpoint, 1, 1, 1)])
    refused("invalid_field", detail, dataclasses.replace(SYN, digests=digests))
    refused("invalid_field", detail, dataclasses.replace(ACK, requests=digests))
    refused("invalid_field", detail, dataclasses.replace(ACK, heartbeats=digests))
    refused("invalid_field", detail, dataclasses.replace(ACK2, states=(dataclasses.replace(STATE, endpoint=endpoint),)))
    refused("invalid_field", detail, EchoRequest(dataclasses.replace(SENDER, endpoint=endpoint), 1))


def test_what_is_repeated_of_a_peer_is_short_and_printable() -> None:
    nasty = EchoRequest(dataclasses.replace(SENDER, endpoint="\n\x1b" * 100), 1)
    with pytest.raises(PeerProtocolError) as caught:
        codec.decode_echo_request(codec.encode(nasty))
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) < 700


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ((B, 2**63, 1, 1), "invalid_generation", f"generation of {B} is {2**63}"),
        ((B, limits.INTEGER_MAX, 1, 1), "invalid_generation", "generation"),
        ((B, 1, 2**64 - 1, 1), "invalid_heartbeat", f"heartbeat of {B}"),
        ((B, 1, 1, limits.INTEGER_MAX), "invalid_field", f"states_version of {B}"),
        ((B, 1, 1, 32), "invalid_field", f"states_version 32 of {B} is later than its heartbeat 1"),
        ((A, 1, 1, 1), "invalid_field", "occurs twice"),
    ],
)
@pytest.mark.parametrize("column", ["digests", "requests", "heartbeats"])
def test_an_impossible_digest(row: tuple[str, int, int, int], reason: str, detail: str, column: str) -> None:
    rows = [gossip_pb2.GossipDigest(endpoint=A, generation=1, heartbeat=1, states_version=31)]
    rows.append(gossip_pb2.GossipDigest(endpoint=row[0], generation=row[1], heartbeat=row[2], states_version=row[3]))
    wire_sender = gossip_pb2.Sender(cluster_name="test", protocol_version=1, endpoint=A, generation=1)
    if column == "digests":
        syn = gossip_pb2.GossipDigestSyn(sender=wire_sender, digests=rows)
        refused(reason, detail, syn.SerializeToString(), GossipDigestSyn)
    else:
        ack = gossip_pb2.GossipDigestAck(sender=wire_sender)
        (ack.requests if column == "requests" else ack.heartbeats).extend(rows)
        refused(reason, detail, ack.SerializeToString(), GossipDigestAck)


def values(*items: tuple[str, VersionedValue]) -> dict[str, Any]:
    return {"values": items}


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"generation": 0}, "invalid_generation", "generation of 10.0.0.2:7000 is 0, must be 1 to"),
        ({"generation": limits.INTEGER_MAX}, "invalid_generation", "generation of"),
        ({"heartbeat": limits.INTEGER_MAX}, "invalid_heartbeat", "heartbeat of"),
        ({"interval_ms": 0}, "invalid_field", "interval_ms of 10.0.0.2:7000 is 0, must be 10 to 3600000"),
        ({"interval_ms": limits.INTERVAL_MS_MIN - 1}, "invalid_field", "interval_ms"),
        ({"interval_ms": limits.INTERVAL_MS_MAX + 1}, "invalid_field", "interval_ms"),
        ({"states_version": 160}, "invalid_field", "states_version 160 of .* is later than its heartbeat 9"),
        ({"gc_version": 160}, "invalid_field", "gc_version 160"),
        (
            {"heartbeat": limits.INTEGER_MAX - 1, "states_version": limits.INTEGER_MAX},
            "invalid_field",
            "states_version .* is later",
        ),
        ({"from_version": 131}, "invalid_field", "from_version 131 of .* is beyond its states_version 130"),
        ({"reset": True}, "invalid_field", "whole state of .* begins at version 16, not at 0"),
        (
            values(("x", VersionedValue(16, "1"))),
            "invalid_field",
            "version 16 of x of .* is not after 16 and before 160",
        ),
        (
            values(("x", VersionedValue(160, "1"))),
            "invalid_field",
            "version 160 of x of .* is not after 16 and before 160",
        ),
        (values(("x", VersionedValue(17, "1", deleted=True))), "invalid_field", "x of .* is deleted and has a value"),
        (values(("x", VersionedValue(17, "")), ("x", VersionedValue(18, ""))), "invalid_field", "key x of .* twice"),
        (values(("", VersionedValue(17, ""))), "invalid_field", "is not a key"),
        (values(("9x", VersionedValue(17, ""))), "invalid_field", "'9x' of .* is not a key"),
        (values(("ü", VersionedValue(17, ""))), "invalid_field", "is not a key"),
        (values(("x" * (limits.KEY_BYTES_MAX + 1), VersionedValue(17, ""))), "too_large", r"key 'x+'\.\.\. of"),
        (
            values(("x", VersionedValue(17, "ü" * (limits.VALUE_BYTES_MAX // 2) + "v"))),
            "too_large",
            f"x of .* has {limits.VALUE_BYTES_MAX + 1} bytes",
        ),
        (
            values(*((f"x{i}", VersionedValue(17, "")) for i in range(limits.STATES_PER_ENDPOINT_MAX + 1))),
            "too_large",
            "257 values",
        ),
        (
            values(*((f"x{i}", VersionedValue(17, "v" * limits.VALUE_BYTES_MAX)) for i in range(16))),
            "too_large",
            "the states of .* have",
        ),
    ],
)
def test_an_impossible_state(change: dict[str, Any], reason: str, detail: str) -> None:
    bad = dataclasses.replace(STATE, **change)
    good = dataclasses.replace(STATE, endpoint=A)
    refused(reason, detail, dataclasses.replace(ACK, states=(good, bad)))
    refused(reason, detail, dataclasses.replace(ACK2, states=(good, bad)))


def test_the_greatest_of_everything_is_accepted() -> None:
    greatest = limits.INTEGER_MAX - 1
    heartbeat = greatest // COUNTERS_PER_TICK
    items = [(f"x{i}" + "k" * 250, VersionedValue(greatest, "")) for i in range(limits.STATES_PER_ENDPOINT_MAX - 1)]
    items.append(("v" * limits.KEY_BYTES_MAX, VersionedValue(greatest, "v" * limits.VALUE_BYTES_MAX)))
    state = EndpointState(
        B, greatest, limits.INTERVAL_MS_MAX, heartbeat, 0, greatest, tuple(items), gc_version=greatest, reset=True
    )
    message = GossipDigestAck2(dataclasses.replace(SENDER, cluster_name="c" * 128), (state,))
    assert codec.decode_ack2(codec.encode(message)) == message


def test_one_endpoint_twice_in_the_states() -> None:
    refused("invalid_field", "an endpoint occurs twice in states", dataclasses.replace(ACK2, states=(STATE, STATE)))


@pytest.mark.parametrize("column", ["digests", "states"])
def test_more_endpoints_than_the_limit(column: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ENDPOINTS_MAX", 1)
    if column == "digests":
        refused("too_large", "2 digests, the limit is 1", SYN)
    else:
        two = (STATE, dataclasses.replace(STATE, endpoint=A))
        refused("too_large", "2 states, the limit is 1", dataclasses.replace(ACK2, states=two))


def test_impossible_single_numbers() -> None:
    refused("invalid_field", "as_of_ms", dataclasses.replace(SYN, as_of_ms=limits.INTEGER_MAX))
    refused("invalid_field", "as_of_ms", dataclasses.replace(ACK, as_of_ms=2**64 - 1))
    refused("invalid_field", "news is 100001", GossipDigestAck2Reply(limits.ENDPOINTS_MAX + 1))
    refused("invalid_generation", "generation", EchoRequest(SENDER, limits.INTEGER_MAX))
    refused("invalid_heartbeat", "heartbeat", EchoReply(SENDER, limits.INTEGER_MAX))
