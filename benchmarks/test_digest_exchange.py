"""One whole steady exchange, compact and plain, and its encoding: how many bytes, and how much time.

Sizes go into ``extra_info``: protobuf bytes of Syn, Ack and Ack2, without gRPC and HTTP/2 framing. For everything else
(CPU by step, bytes on the wire, entropy, cases, compression) see ``python -m benchmarks.digest_exchange``.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from benchmarks.exchange_parts import FORMS, Meeting
from benchmarks.steady_cluster import lags
from gossiper.wire import codec


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [10, 100, 1000])
def test_whole_exchange(benchmark: Any, size: int, form: str) -> None:
    meeting, seconds = Meeting(lags(size)), count()
    sizes: dict[str, int] = {}

    def setup() -> tuple[tuple[Any], dict[str, Any]]:
        return (meeting.at(next(seconds)),), {}

    def once(now: Any) -> None:
        traced = meeting.exchange(form, now)
        sizes.update({f"{leg}_bytes": len(data) for leg, data in traced.messages.items()})

    benchmark.pedantic(once, setup=setup, rounds=100 if size < 1000 else 40, warmup_rounds=3)
    sizes["total_bytes"] = sum(sizes.values())
    benchmark.extra_info.update({"endpoints": size, "form": form, **sizes})
    assert sizes["ack2_bytes"] == 0, "nothing was requested: one round trip"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("leg", ["syn", "ack"])
def test_encode_and_decode_at_1000(benchmark: Any, leg: str, form: str) -> None:
    meeting = Meeting(lags(1000))
    traced = meeting.exchange(form, meeting.at(0))
    if leg == "syn":
        benchmark(lambda: codec.decode_syn(codec.encode(traced.syn)))
    else:
        benchmark(lambda: codec.decode_reply_to(traced.syn, codec.encode(traced.ack)))
    benchmark.extra_info.update({"endpoints": 1000, "form": form, "protobuf_bytes": len(traced.messages[leg])})
