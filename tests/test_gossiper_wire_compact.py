"""Compact digests as bytes: what honest nodes make is read back, everything else is refused whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossiper import limits
from gossiper.core.messages import (
    CompactAnswer,
    CompactDigests,
    DigestColumns,
    GossipDigestAck,
    GossipDigestSyn,
    Message,
    Sender,
)
from gossiper.errors import PeerProtocolError
from gossiper.v1 import gossip_pb2
from gossiper.wire import codec
from gossiper.wire.compact import answer_in, answer_out, digests_in, digests_out

AS_OF_MS = 1_700_000_000_000
SENDER = Sender("test", 1, "10.0.0.1:7000", 100)
NOTHING = np.zeros(0, dtype=np.int64)
NO_SYMBOLS = np.zeros(0, dtype=np.uint8)
INTEGERS = st.integers(0, limits.INTEGER_MAX - 1)
HASHES = st.integers(0, 2**64 - 1)
BUCKETS = st.sampled_from([8, 16, 32, 64])


def int64(values: list[int]) -> Any:
    return np.array(values, dtype=np.int64)


def equal(one: Any, other: Any) -> bool:
    """Whether two messages are the same, columns included."""
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        return type(one) is type(other) and all(
            equal(getattr(one, field.name), getattr(other, field.name))
            for field in dataclasses.fields(one)
            if field.compare
        )
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return bool(one == other)


# -- every message that an honest peer can make ------------------------------------------------------------------------


@st.composite
def columns(draw: st.DrawFn, count: int) -> tuple[Any, Any]:
    """Symbols of ``count`` entries and their escapes."""
    symbols = np.array(draw(st.lists(st.integers(0, 255) | st.just(19), min_size=count, max_size=count)), np.uint8)
    escaped = int((symbols == 0).sum())
    return symbols, int64(draw(st.lists(INTEGERS, min_size=escaped, max_size=escaped)))


@st.composite
def indices(draw: st.DrawFn, count: int) -> tuple[Any, Any]:
    """Some entries of ``count``, and a number for each."""
    index = sorted(draw(st.sets(st.integers(0, count - 1), max_size=8)))
    return int64(index), int64(draw(st.lists(INTEGERS, min_size=len(index), max_size=len(index))))


@st.composite
def compact_digests(draw: st.DrawFn) -> CompactDigests:
    count = draw(st.integers(1, 40))
    only_states = draw(st.booleans())
    symbols, escapes = (NO_SYMBOLS, NOTHING) if only_states else draw(columns(count))
    index, offsets = draw(indices(count))
    buckets = draw(BUCKETS)
    masks = st.integers(1, 2**buckets - 1)
    plain = draw(st.just(0) | masks)
    states = draw(masks) if only_states else 0
    return CompactDigests(
        cut_ms=AS_OF_MS - draw(st.integers(0, 2**32 - 1)),
        count=count,
        roster_hash=draw(st.binary(min_size=16, max_size=16)),
        base=draw(st.integers(1 - 2**61, 2**61 - 1)),
        symbols=symbols,
        escapes=escapes,
        behind_hash=draw(HASHES),
        recent_ticks=draw(st.integers(0, 2**32 - 1)),
        recent_index=index,
        recent_offsets=offsets,
        states_hash=draw(HASHES),
        buckets=buckets if plain or states else 0,
        plain_buckets=plain,
        states_buckets=states,
    )


@st.composite
def answered(draw: st.DrawFn) -> tuple[CompactDigests, CompactAnswer]:
    asked = draw(compact_digests())
    if draw(st.booleans()):
        buckets = draw(BUCKETS)
        hashes = tuple(draw(st.lists(HASHES, min_size=buckets, max_size=buckets)))
        return asked, CompactAnswer(NO_SYMBOLS, NOTHING, NOTHING, NOTHING, NOTHING, hashes)
    index, versions = draw(indices(asked.count))
    if asked.states_buckets:
        return asked, CompactAnswer(NO_SYMBOLS, NOTHING, index, versions, NOTHING)
    symbols, escapes = draw(st.just((NO_SYMBOLS, NOTHING)) | columns(asked.count))
    behind = int64(draw(st.lists(INTEGERS, max_size=asked.count)))
    buckets = asked.buckets or draw(BUCKETS)
    hashes = tuple(draw(st.just([]) | st.lists(HASHES, min_size=buckets, max_size=buckets)))
    return asked, CompactAnswer(symbols, escapes, index, versions, behind, (), hashes)


def syn_of(compact: CompactDigests) -> GossipDigestSyn:
    return GossipDigestSyn(SENDER, AS_OF_MS, DigestColumns.from_rows([("10.0.0.2:7000", 5, 3, 2)]), compact)


def ack_of(answer: CompactAnswer) -> GossipDigestAck:
    nothing = DigestColumns.empty()
    return GossipDigestAck(SENDER, AS_OF_MS, nothing, nothing, (), 3, answer)


@settings(max_examples=150, deadline=None)
@given(compact_digests())
def test_a_syn_is_read_back(compact: CompactDigests) -> None:
    data = codec.encode(syn_of(compact))
    decoded = codec.decode_syn(data)
    assert equal(decoded, syn_of(compact))
    assert codec.encode(decoded) == data


@settings(max_examples=150, deadline=None)
@given(answered())
def test_an_ack_is_read_back(case: tuple[CompactDigests, CompactAnswer]) -> None:
    asked, answer = case
    data = codec.encode(ack_of(answer))
    decoded = codec.decode_ack(data, asked)
    assert equal(decoded, ack_of(answer))
    assert codec.encode(decoded) == data


@st.composite
def edited(draw: st.DrawFn, data: bytes) -> bytes:
    """A few random edits."""
    edit = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(edit)))
        match draw(st.sampled_from(["set", "insert", "delete", "cut", "repeat"])):
            case "set" if at < len(edit):
                edit[at] = draw(st.integers(0, 255))
            case "insert":
                edit[at:at] = draw(st.binary(min_size=1, max_size=4))
            case "delete":
                del edit[at : at + draw(st.integers(1, 8))]
            case "cut":
                del edit[at:]
            case "repeat":
                edit += edit[at:]
    return bytes(edit)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_edited_bytes_are_valid_or_refused(data: st.DataObject) -> None:
    asked, answer = data.draw(answered())
    syn = data.draw(edited(codec.encode(syn_of(asked))))
    ack = data.draw(edited(codec.encode(ack_of(answer))))
    decoders: list[Callable[[], Message]] = [lambda: codec.decode_syn(syn), lambda: codec.decode_ack(ack, asked)]
    for decode in decoders:
        try:
            message = decode()
        except PeerProtocolError as error:
            assert len(error.detail) < 700  # noqa: PT017 - both outcomes are allowed
        else:
            codec.encode(message)


# -- every check -------------------------------------------------------------------------------------------------------

GOOD = CompactDigests(
    cut_ms=AS_OF_MS - 20_000,
    count=20,
    roster_hash=bytes(range(16)),
    base=-3,
    symbols=np.array([19, 20, 0, 19, 21, 0, 1, 2, *[19] * 12], dtype=np.uint8),
    escapes=int64([7, 2**62 - 1]),
    behind_hash=5,
    recent_ticks=12,
    recent_index=int64([0, 1, 19]),
    recent_offsets=int64([1, 2, 2**62 - 1]),
    states_hash=9,
    buckets=16,
    plain_buckets=0b11,
)
STATES = dataclasses.replace(GOOD, symbols=NO_SYMBOLS, escapes=NOTHING, states_buckets=0b101)
ANSWER = CompactAnswer(
    np.array([1, 0, *[1] * 17, 3], dtype=np.uint8),
    int64([300]),
    int64([0, 19]),
    int64([0, 2**62 - 1]),
    int64([4]),
    (),
    tuple(range(16)),
)
Wire = gossip_pb2.CompactDigests
WireAnswer = gossip_pb2.CompactAnswer


def setting(**fields: Any) -> Callable[[Any], None]:
    """A change of a protobuf message: fields set, or replaced when they are repeated."""

    def change(wire: Any) -> None:
        for name, value in fields.items():
            wire.ClearField(name)
            if isinstance(value, list):
                getattr(wire, name).extend(value)
            else:
                setattr(wire, name, value)

    return change


def test_the_good_ones_are_good() -> None:
    assert equal(digests_in(digests_out(GOOD, AS_OF_MS), AS_OF_MS), GOOD)
    assert equal(digests_in(digests_out(STATES, AS_OF_MS), AS_OF_MS), STATES)
    assert equal(answer_in(answer_out(ANSWER), GOOD), ANSWER)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (setting(count=0), "a roster of 0 entries"),
        (setting(count=limits.ENDPOINTS_MAX + 1), "a roster of 100001 entries"),
        (setting(count=2**32 - 1), "a roster of 4294967295 entries"),
        (setting(count=19), "compact column"),
        (setting(roster_hash=bytes(15)), "a roster hash of 15 bytes"),
        (setting(roster_hash=bytes(17)), "a roster hash of 17 bytes"),
        (setting(roster_hash=b""), "a roster hash of 0 bytes"),
        (setting(base=2**61), "base is beyond"),
        (setting(base=-(2**61)), "base is beyond"),
        (setting(alphabet=b"\x13\x13"), "twice in the alphabet"),
        (setting(alphabet=b""), "compact column"),
        (setting(alphabet=b"", bits=b"", rice=0), "escapes for 0 symbols"),
        (setting(alphabet=b"", bits=b"", escapes=[]), "either heartbeats or"),
        (setting(rice=9), "9 low bits"),
        (setting(bits=b"\x80"), "do not end"),
        (setting(escapes=[7]), "1 escapes for 2 symbols"),
        (setting(escapes=[7, 8, 9]), "3 escapes for 2 symbols"),
        (setting(escapes=[7, 2**62]), f"escapes holds {2**62}, must be below"),
        (setting(recent_gaps=[0, 0]), "2 indices for 3"),
        (setting(recent_offsets=[1, 2]), "3 indices for 2"),
        (setting(recent_gaps=[0, 0, 18]), "index 20 in a roster of 20"),
        (setting(recent_gaps=[2**32 - 1, 2**32 - 1, 2**32 - 1]), "index 12884901887 in a roster of 20"),
        (setting(recent_gaps=[0] * 21, recent_offsets=[1] * 21), "21 indices in a roster of 20"),
        (setting(recent_offsets=[1, 2, 2**62]), "states_versions holds"),
        (setting(recent_offsets=[1, 2, 2**64 - 1]), "states_versions holds"),
        (setting(plain_buckets=bytes(3)), "24 buckets"),
        (setting(plain_buckets=bytes(16)), "128 buckets"),
        (setting(plain_buckets=bytes(2)), "nothing in it"),
        (setting(states_buckets=b"\x01\x00"), "either heartbeats or"),
        (setting(cut_before_ms=2**32 - 1), None),
    ],
)
def test_columns_of_a_syn_that_no_honest_peer_sends(change: Callable[[Wire], None], what: str | None) -> None:
    wire = digests_out(GOOD, AS_OF_MS)
    change(wire)
    if what is None:
        digests_in(wire, AS_OF_MS)
        return
    with pytest.raises(PeerProtocolError, match=what) as caught:
        digests_in(wire, AS_OF_MS)
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (setting(states_buckets=bytes(2)), "nothing in it"),
        (setting(states_buckets=bytes(2), plain_buckets=b""), "nothing in it"),
        (setting(states_buckets=b""), "either heartbeats or"),
        (setting(states_buckets=b"\x01"), "two different numbers of buckets"),
        (setting(states_buckets=b"\x01\x00\x00", plain_buckets=b""), "24 buckets"),
        (setting(alphabet=b"\x13"), "either heartbeats or"),
        (setting(escapes=[5]), "1 escapes for 0 symbols"),
    ],
)
def test_columns_of_a_further_syn_that_no_honest_peer_sends(change: Callable[[Wire], None], what: str) -> None:
    wire = digests_out(STATES, AS_OF_MS)
    change(wire)
    with pytest.raises(PeerProtocolError, match=what):
        digests_in(wire, AS_OF_MS)


def test_a_cut_before_the_epoch() -> None:
    with pytest.raises(PeerProtocolError, match="before the epoch"):
        digests_in(digests_out(GOOD, AS_OF_MS), 19_999)


@pytest.mark.parametrize(
    ("asked", "change", "what"),
    [
        (GOOD, setting(bits=b"\xff" * 21), "compact column"),
        (GOOD, setting(alphabet=b""), "compact column"),
        (GOOD, setting(escapes=[]), "0 escapes for 1 symbols"),
        (GOOD, setting(escapes=[2**62]), "escapes holds"),
        (GOOD, setting(request_gaps=[0]), "1 indices for 2"),
        (GOOD, setting(request_gaps=[0, 19]), "index 20 in a roster of 20"),
        (GOOD, setting(request_versions=[0, 2**62]), "states_versions holds"),
        (GOOD, setting(request_gaps=[0] * 21, request_versions=[0] * 21), "21 indices"),
        (GOOD, setting(behind_heartbeats=[1] * 21), "21 heartbeats behind in a roster of 20"),
        (GOOD, setting(behind_heartbeats=[2**63]), "behind_heartbeats holds"),
        (GOOD, setting(states_buckets=[1] * 12), "12 buckets"),
        (GOOD, setting(states_buckets=[1] * 8), "8 buckets, asked in 16"),
        (GOOD, setting(states_buckets=[1] * 128), "128 buckets"),
        (GOOD, setting(roster_buckets=[1] * 8), "yet something was compared"),
        (GOOD, setting(roster_buckets=[1] * 4), "4 buckets"),
        (STATES, setting(), "columns that were not sent"),
        (STATES, setting(alphabet=b"", bits=b"", rice=0, escapes=[], states_buckets=[]), "that were not sent"),
        (STATES, setting(alphabet=b"", bits=b"", rice=0, escapes=[], behind_heartbeats=[]), "that were not sent"),
    ],
)
def test_an_answer_that_no_honest_peer_sends(
    asked: CompactDigests, change: Callable[[WireAnswer], None], what: str
) -> None:
    wire = answer_out(ANSWER)
    change(wire)
    with pytest.raises(PeerProtocolError, match=what) as caught:
        answer_in(wire, asked)
    assert caught.value.reason == "malformed"


def test_an_answer_to_columns_that_were_not_sent() -> None:
    with pytest.raises(PeerProtocolError, match="an answer to columns that were not sent"):
        codec.decode_ack(codec.encode(ack_of(ANSWER)))


def test_rosters_that_differ_and_nothing_else() -> None:
    differs = CompactAnswer(NO_SYMBOLS, NOTHING, NOTHING, NOTHING, NOTHING, tuple(range(64)))
    for asked in (GOOD, STATES):
        assert equal(answer_in(answer_out(differs), asked), differs)


# -- limits ------------------------------------------------------------------------------------------------------------


def largest() -> CompactDigests:
    """As many entries as there may be, each as unpredictable as can be, a fifth of them escaped, all recent."""
    count = limits.ENDPOINTS_MAX
    random = np.random.default_rng(1)
    symbols = random.integers(3, 256, count).astype(np.uint8)
    symbols[::5] = 0
    return dataclasses.replace(
        GOOD,
        count=count,
        symbols=symbols,
        escapes=random.integers(0, 2**58, count // 5),
        recent_index=np.arange(count, dtype=np.int64),
        recent_offsets=random.integers(1, 16 * 12, count),
    )


def test_the_largest_column_fits_a_message() -> None:
    compact = largest()
    data = codec.encode(syn_of(compact))
    assert len(data) < limits.MESSAGE_BYTES_MAX
    assert equal(codec.decode_syn(data).compact, compact)


@pytest.mark.parametrize(
    "wire",
    [
        Wire(count=limits.ENDPOINTS_MAX, roster_hash=bytes(16), alphabet=b"\x13"),
        Wire(count=limits.ENDPOINTS_MAX, roster_hash=bytes(16), alphabet=b"\x01"),
        Wire(count=1, roster_hash=bytes(16), alphabet=bytes(4_000_000)),
        Wire(count=1, roster_hash=bytes(16), bits=bytes(4_000_000)),
        Wire(count=1, roster_hash=bytes(16), alphabet=b"\x13", escapes=[1] * 4_000_000),
        Wire(count=1, roster_hash=bytes(16), alphabet=b"\x13", recent_gaps=[0] * 4_000_000),
        Wire(count=1, roster_hash=bytes(16), alphabet=b"\x13", recent_gaps=[0], recent_offsets=[0] * 4_000_000),
    ],
    ids=["many", "many behind", "alphabet", "bits", "escapes", "gaps", "offsets"],
)
def test_no_column_makes_more_of_itself_than_a_byte_per_endpoint(wire: Wire) -> None:
    """What a few bytes claim costs no more than what they may claim; what many bytes claim is refused by its length."""
    try:
        compact = digests_in(wire, AS_OF_MS)
    except PeerProtocolError as error:
        assert error.reason == "malformed"  # noqa: PT017 - both outcomes are allowed
    else:
        assert compact.symbols.nbytes == compact.count <= limits.ENDPOINTS_MAX
