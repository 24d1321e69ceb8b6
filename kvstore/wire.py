"""Protobuf to values and back, with every check of what comes in; and how errors cross gRPC.

A message is checked whole before any of it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NoReturn

import grpc

from antientropy.store import Row
from kvstore.errors import (
    BY_REASON,
    ClockDriftError,
    InvalidRequestError,
    KvStoreError,
    NotEnoughReplicasError,
    OverloadedError,
    ReadTimeoutError,
    ReplicaFailureError,
    StoppingError,
    StorageError,
    TooOldError,
    UnreachableError,
    WriteTimeoutError,
    WrongClusterError,
)
from kvstore.limits import (
    KEY_BYTES_MAX,
    KEYS_PER_READ_MAX,
    MESSAGE_BYTES_MAX,
    MUTATIONS_BYTES_MAX,
    MUTATIONS_PER_CALL_MAX,
    VALUE_BYTES_MAX,
)
from kvstore.replication import Mutation
from kvstore.v1 import kvstore_pb2 as pb

#: The trailing metadata that names the error class.
REASON_KEY: Final = "kvstore-reason"

#: Status texts travel in HTTP/2 trailers, which end at 8 KiB; longer ones would lose the whole status.
_DETAIL_CHARACTERS_MAX: Final = 1_000

_STATUS: Final[dict[type[KvStoreError], grpc.StatusCode]] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    NotEnoughReplicasError: grpc.StatusCode.UNAVAILABLE,
    ReplicaFailureError: grpc.StatusCode.UNAVAILABLE,
    StoppingError: grpc.StatusCode.UNAVAILABLE,
    WriteTimeoutError: grpc.StatusCode.DEADLINE_EXCEEDED,
    ReadTimeoutError: grpc.StatusCode.DEADLINE_EXCEEDED,
    StorageError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ClockDriftError: grpc.StatusCode.FAILED_PRECONDITION,
    TooOldError: grpc.StatusCode.FAILED_PRECONDITION,
    WrongClusterError: grpc.StatusCode.FAILED_PRECONDITION,
}

#: Connecting again: quick enough that a restarted node is not waited for (gRPC would back off to 120 s).
CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Otherwise a new channel shares the connection of the old one to the same address, and its back-off.
    ("grpc.use_local_subchannel_pool", 1),
)

#: A port in use is an error, never a shared port; silent connections are closed soon.
SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.server_handshake_timeout_ms", 3_000),
)


def status_of(error: KvStoreError) -> grpc.StatusCode:
    """The gRPC status of an error."""
    return _STATUS.get(type(error), grpc.StatusCode.INTERNAL)


async def abort(context: grpc.aio.ServicerContext[object, object], error: KvStoreError) -> NoReturn:
    """End a call with an error; the class travels with it."""
    text = str(error)
    if len(text) > _DETAIL_CHARACTERS_MAX:
        text = f"{text[:_DETAIL_CHARACTERS_MAX]}..."
    await context.abort(status_of(error), text, trailing_metadata=((REASON_KEY, error.reason),))
    raise AssertionError("abort raises")


def error_of(address: str, error: grpc.RpcError | grpc.aio.AioRpcError) -> KvStoreError:
    """What a failed call means to the caller; ``address`` is the node that was asked."""
    code: grpc.StatusCode = error.code()
    details: str = error.details() or ""
    # Both kinds of error give (key, value) pairs; the types of gRPC name two kinds of pairs.
    metadata: Iterable[tuple[str, str | bytes]] = error.trailing_metadata() or ()  # type: ignore[assignment]
    reason = next((str(value) for key, value in metadata if key == REASON_KEY), "")
    if reason in BY_REASON:
        return BY_REASON[reason](details)
    if code is grpc.StatusCode.UNAVAILABLE:
        return UnreachableError(f"cannot reach {address}: {_connection_fault(details)}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return UnreachableError(f"no answer from {address} in time; is it overloaded or stopped?")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return UnreachableError(f"{address} is no client port of kvstore; see the addresses that `kvstore serve` logs")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return OverloadedError(details)
    return KvStoreError(f"{address} answered {code.name}: {details}")


def _connection_fault(details: str) -> str:
    if "Connection refused" in details:
        return "connection refused; is the node running?"
    return details.splitlines()[0] if details else "connection lost"


def check_key(key: bytes) -> None:
    """Whether ``key`` may be used.

    Raises:
        InvalidRequestError: it is empty or too long.
    """
    if not 1 <= len(key) <= KEY_BYTES_MAX:
        raise InvalidRequestError(f"a key has 1 to {KEY_BYTES_MAX} bytes, this one has {len(key)}")


def check_mutations(mutations: Sequence[Mutation]) -> None:
    """Whether they may be written in one call.

    Raises:
        InvalidRequestError: a limit of :mod:`kvstore.limits`.
    """
    if not 1 <= len(mutations) <= MUTATIONS_PER_CALL_MAX:
        raise InvalidRequestError(f"a call has 1 to {MUTATIONS_PER_CALL_MAX} mutations, this one has {len(mutations)}")
    total_bytes = 0
    for mutation in mutations:
        check_key(mutation.key)
        if len(mutation.value) > VALUE_BYTES_MAX:
            raise InvalidRequestError(
                f"a value has at most {VALUE_BYTES_MAX} bytes, this one has {len(mutation.value)}"
            )
        if mutation.deleted and mutation.value:
            raise InvalidRequestError("a deletion has no value")
        total_bytes += len(mutation.key) + len(mutation.value)
    if total_bytes > MUTATIONS_BYTES_MAX:
        raise InvalidRequestError(
            f"keys and values of a call have at most {MUTATIONS_BYTES_MAX} bytes, these have {total_bytes}; "
            "send smaller batches"
        )


def mutations_of(request: pb.WriteRequest) -> tuple[Mutation, ...]:
    """The checked mutations of a client's call.

    Raises:
        InvalidRequestError: a limit of :mod:`kvstore.limits`.
    """
    if len(request.mutations) > MUTATIONS_PER_CALL_MAX:
        raise InvalidRequestError(
            f"a call has 1 to {MUTATIONS_PER_CALL_MAX} mutations, this one has {len(request.mutations)}"
        )
    mutations = tuple(Mutation(item.key, item.value, item.deleted) for item in request.mutations)
    check_mutations(mutations)
    return mutations


def rows_to_pb(rows: Iterable[Row]) -> list[pb.Row]:
    """Rows as messages."""
    return [pb.Row(key=row.key, version=row.version, value=row.value, deleted=row.deleted) for row in rows]


def rows_of(messages: Sequence[pb.Row]) -> list[Row]:
    """Checked rows of a peer's message.

    Raises:
        InvalidRequestError: an impossible row; a well-behaved peer sends none.
    """
    rows = []
    for message in messages:
        check_key(message.key)
        if message.version == 0:
            raise InvalidRequestError("a row has a version")
        if len(message.value) > VALUE_BYTES_MAX:
            raise InvalidRequestError(f"a value has at most {VALUE_BYTES_MAX} bytes, this one has {len(message.value)}")
        if message.deleted and message.value:
            raise InvalidRequestError("a tombstone has no value")
        rows.append(Row(message.key, message.version, message.value, message.deleted))
    return rows


def check_keys(keys: Sequence[bytes]) -> None:
    """Whether they may be read in one call.

    Raises:
        InvalidRequestError: too many, or one that is no key.
    """
    if not 1 <= len(keys) <= KEYS_PER_READ_MAX:
        raise InvalidRequestError(f"a read has 1 to {KEYS_PER_READ_MAX} keys, this one has {len(keys)}")
    for key in keys:
        check_key(key)


def check_scan(prefix: bytes, after_key: bytes) -> None:
    """Whether a scan may have these bounds.

    Raises:
        InvalidRequestError: longer than any key.
    """
    for name, value in (("prefix", prefix), ("after_key", after_key)):
        if len(value) > KEY_BYTES_MAX:
            raise InvalidRequestError(f"{name}: a key has at most {KEY_BYTES_MAX} bytes, this has {len(value)}")
