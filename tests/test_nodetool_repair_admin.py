"""``nodetool repair_admin``: sessions, summaries, limits and the schedule, for people and for programs."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import pytest
from fake_repair import (
    COMPLETED,
    NOW,
    OTHER_SESSION,
    REPLICAS,
    SESSION,
    STREAMING,
    FakeRepairService,
    FakeScheduler,
    FakeThrottle,
    served,
    session,
    statistics,
)

from antientropy.core.tokens import TOKEN_MAX, TokenRange, node_range
from antientropy.reports import FlowPreview, RangeSummary, ScheduledRange, SessionState, ThrottleStatus
from antientropy.v1 import admin_pb2 as pb
from nodetool import repair_tables
from nodetool.main import main
from nodetool.repair import repair
from nodetool.repair_follow import duration, percent, short_count
from nodetool.repair_tables import range_text, rough_duration, short_ids


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.out)
        assert content.pop("schema_version") == 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", content.pop("time"))
        return content


Run = Callable[..., Awaitable[Ran]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    async def command(port: int, *args: str) -> Ran:
        capsys.readouterr()
        status = await asyncio.to_thread(main, ["-p", str(port), "repair_admin", *args])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert "\x1b" not in out + err
        return Ran(status, out, err)

    return command


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns."""
    monkeypatch.setattr(repair_tables, "width_wanted", lambda _stream: 80)


def local(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment).astimezone():%Y-%m-%d %H:%M:%S}"


ENDED = "a" * 36


def with_sessions() -> FakeRepairService:
    service = FakeRepairService(updates=[STREAMING, COMPLETED])
    service.add(
        session(),
        session(OTHER_SESSION, SessionState.PAUSED, started_at=NOW - 90_000, progress=0.999, replicas=REPLICAS[:2]),
        session(ENDED, SessionState.PARTIAL, detail="127.0.0.1:7002\nis down", started_at=NOW - 3600, progress=1.0),
    )
    return service


# --- list and history


async def test_sessions_are_listed(run: Run) -> None:
    async with served(with_sessions()) as port:
        active = await run(port, "list")
        everything = await run(port, "list", "--all")
    ports = "127.0.0.1:7000,127.0.0.1:7001"
    expected = [
        "id        keyspace  state      verified  rows moved  started    last activity  coordinator     participants",
        f"47251111  kv        paused     99%       1,200       25 h ago   0 s ago        127.0.0.1:7000  {ports}",
        (
            f"47249135  kv        streaming  43%       1,200       4 min ago  0 s ago        127.0.0.1:7000  {ports},"
            "127.0.0.1:7002"
        ),
    ]
    assert (active.status, active.err) == (0, "")
    assert active.out.splitlines() == expected
    assert everything.out.splitlines()[3].startswith("aaaaaaaa  kv        partial    100%      1,200")
    assert everything.out.splitlines()[4:] == ["", "aaaaaaaa: 127.0.0.1:7002 is down"]


@pytest.mark.usefixtures("narrow")
async def test_tables_fit_80_columns(run: Run) -> None:
    service = with_sessions()
    service.add(session("b" * 36, SessionState.INTERRUPTED, keyspace="sessions", started_at=NOW - 1e6))
    many = statistics(rows_differing=12_345_678, rows_moved=23_456_789, find_bytes=123_456_789, elapsed_seconds=12_345)
    service.add(session("c" * 36, SessionState.CANCELLED, started_at=NOW - 1e6, statistics=many))
    ranges = [*(node_range(1, index) for index in range(16)), TokenRange(5, 2**63)]
    service.summaries = tuple(RangeSummary("kv", one, NOW - 86_400, 0, 12_345_678, NOW, True) for one in ranges)
    scheduler = FakeScheduler(
        tuple(ScheduledRange("kv", one, NOW - 86_400, NOW, SESSION, True, 3, "down") for one in ranges)
    )
    async with served(service, scheduler) as port:
        shown = [await run(port, name) for name in ("list", "history", "summarize", "schedule")]
    for ran in shown:
        assert max(map(len, ran.out.splitlines())) <= 80, ran.out
    assert shown[0].out.splitlines()[0] == (
        "id        keyspace  state        done  moved  started    activity  replicas"
    )
    assert "12.3M" in shown[1].out
    assert "\nkv        f0..-ff..                          24 h ago  12,345,678  now  stalled\n" in shown[2].out
    assert "\nkv        0000000000000005-8000000000000000  24 h ago       running 47249135\n" in shown[3].out


async def test_no_sessions(run: Run) -> None:
    async with served(FakeRepairService()) as port:
        shown = [await run(port, *words) for words in (["list"], ["list", "-a"], ["history"], ["cancel", "--all"])]
        as_json = await run(port, "list", "--output", "json")
    assert shown == [Ran(0, "no sessions\n", "")] * 4
    assert as_json.json == {"sessions": []}


async def test_sessions_for_programs(run: Run) -> None:
    async with served(with_sessions()) as port:
        active = await run(port, "--output", "json", "list")
        ended = await run(port, "history", "--output", "json")
    _, one = active.json["sessions"]
    assert one == {
        "session_id": SESSION,
        "keyspace": "kv",
        "state": "streaming",
        "coordinator": "127.0.0.1:7000",
        "replicas": list(REPLICAS),
        "token_ranges": [{"first_token": 0, "last_token": TOKEN_MAX}],
        "started_time": "2026-01-02T03:00:00.000Z",
        "updated_time": "2026-01-02T03:04:04.500Z",
        "ended_time": None,
        "progress_ratio": 0.43,
        "detail": None,
        "rows_differing": 600,
        "rows_moved": 1200,
        "rows_optimal": 1200,
        "rows_in_flight": 0,
        "rows_conflicting": 0,
        "find_bytes": 12_345,
        "move_bytes": 98_765,
        "round_trips": 14,
        "requests": 20,
        "pairs_compared": 3,
        "pairs_equal": 1,
        "strategies": {"descent": 1, "sketch": 2},
        "elapsed_seconds": 1.2345,
    }
    (last,) = ended.json["sessions"]
    assert (last["session_id"], last["state"], last["detail"]) == (ENDED, "partial", "127.0.0.1:7002\nis down")
    assert last["ended_time"] == "2026-01-02T03:04:05.000Z"


async def test_the_history_says_why(run: Run) -> None:
    service = with_sessions()
    async with served(service) as port:
        ran = await run(port, "history", "--limit", "7")
    assert service.calls == [("history", 7)]
    assert ran.out.splitlines() == [
        "id        keyspace  state    started              took   rows differed  rows moved  bytes to find",
        f"aaaaaaaa  kv        partial  {local(NOW - 3600)}  1.2 s  600            1,200       12.06 KiB",
        "",
        "aaaaaaaa: 127.0.0.1:7002 is down",
    ]


# --- cancel, pause, resume


async def test_one_session_is_cancelled(run: Run) -> None:
    service = with_sessions()
    async with served(service) as port:
        one = await run(port, "cancel", "47249")
        other = await run(port, "cancel", "-s", "47251", "--force", "--output", "json")
    assert one == Ran(0, "Cancelled 47249135 (kv, at 43%)\n", "")
    assert [found["session_id"] for found in other.json["cancelled"]] == [OTHER_SESSION]
    assert service.calls == [("cancel", SESSION, False), ("cancel", OTHER_SESSION, True)]


async def test_all_are_cancelled_but_those_that_resist(run: Run) -> None:
    service = with_sessions()
    service.stubborn.add(OTHER_SESSION)
    async with served(service) as port:
        ran = await run(port, "cancel", "--all")
        again = await run(port, "cancel", "-a", "--output", "json")
        forced = await run(port, "cancel", "-a", "-f")
    reason = f"{OTHER_SESSION}: a replica cannot be told; see --force"
    error = f"nodetool: not all sessions were cancelled: {reason}\n"
    assert ran == Ran(4, "Cancelled 47249135 (kv, at 43%)\n", error)
    assert (again.status, again.err) == (4, error)
    assert again.json == {"cancelled": [], "failures": [reason]}
    assert forced == Ran(0, "Cancelled 47251111 (kv, at 99%)\n", "")


async def test_names_that_are_not_one_session(run: Run) -> None:
    async with served(with_sessions()) as port:
        several = await run(port, "cancel", "472")
        none = await run(port, "resume", "zz")
    assert several == Ran(
        2,
        "",
        f"nodetool: refused by 127.0.0.1:{port}: 2 sessions begin with 472 ({SESSION}, {OTHER_SESSION}); "
        "give more of the id\n",
    )
    assert none == Ran(
        1,
        "",
        f"nodetool: refused by 127.0.0.1:{port}: no session begins with zz; 'nodetool repair_admin list' shows them\n",
    )


async def test_a_session_is_paused_and_resumed(run: Run) -> None:
    service = with_sessions()
    async with served(service) as port:
        paused = await run(port, "pause", "47249")
        as_json = await run(port, "pause", "47249", "--output", "json")
        resumed = await run(port, "resume", "47249")
        resumed_json = await run(port, "resume", "47249", "--output", "json")
    assert paused == Ran(0, "Paused 47249135 at 43%; 'nodetool repair_admin resume 47249135' goes on from there\n", "")
    assert as_json.json["session"]["state"] == "paused"
    lines = resumed.out.splitlines()
    assert re.fullmatch(r"\[.+\] Streaming 1200 rows \(progress: 50%\)", lines[0])
    assert lines[2:4] == ["Repair completed successfully in 1.2 s", "  Rows that differed   : 600"]
    assert service.calls[0] == ("resume", SESSION)
    assert resumed_json.json["outcome"] == "completed"


async def test_a_resumed_session_ends_like_a_repair(run: Run) -> None:
    service = with_sessions()
    service.updates = [replace(COMPLETED, state=SessionState.PARTIAL, message="one is down")]
    async with served(service) as port:
        ran = await run(port, "resume", "47249")
    assert (ran.status, ran.err) == (4, "nodetool: repair partly done: one is down\n")


# --- summarize


async def test_ranges_are_summarized(run: Run) -> None:
    service = FakeRepairService()
    service.summaries = (
        RangeSummary("kv", TokenRange.full(), None, 0, 0, None, stalled=False),
        RangeSummary("kv", TokenRange(5, 2**63), NOW - 7300, 1, 12_345, NOW + 7300, stalled=False),
        RangeSummary("kv", TokenRange(0, 4), NOW - 1e6, 1, 0, NOW - 5, stalled=True),
    )
    async with served(service) as port:
        ran = await run(port, "summarize", "kv")
        as_json = await run(port, "summarize", "--output", "json")
        unknown = await run(port, "summarize", "x")
    assert ran.out == (
        "3 ranges: 1 never repaired with all replicas, 1 stalled\n"
        "\n"
        "keyspace  tokens                             last repaired  rows differed  due     state\n"
        "kv        all tokens                         never          -              -       ok\n"
        "kv        0000000000000005-8000000000000000  2 h ago        12,345         in 2 h  ok\n"
        "kv        0000000000000000-0000000000000004  12 d ago       0              now     stalled\n"
    )
    assert as_json.json["ranges"][1:] == [
        {
            "keyspace": "kv",
            "first_token": 5,
            "last_token": 2**63,
            "repaired_time": "2026-01-02T01:02:25.000Z",
            "purged_version": 1,
            "differences_last": 12_345,
            "due_time": "2026-01-02T05:05:45.000Z",
            "stalled": False,
        },
        {
            "keyspace": "kv",
            "first_token": 0,
            "last_token": 4,
            "repaired_time": "2025-12-21T13:17:25.000Z",
            "purged_version": 1,
            "differences_last": 0,
            "due_time": "2026-01-02T03:04:00.000Z",
            "stalled": True,
        },
    ]
    assert (as_json.json["ranges"][0]["repaired_time"], as_json.json["ranges"][0]["due_time"]) == (None, None)
    assert unknown.status == 1


async def test_of_many_ranges_those_unrepaired_for_longest_are_shown(run: Run) -> None:
    service = FakeRepairService()
    service.summaries = tuple(
        RangeSummary("kv", node_range(2, index), NOW - 60 * index if index != 7 else None, 0, 0, None, stalled=False)
        for index in range(256)
    )
    async with served(service) as port:
        some = await run(port, "summarize")
        everything = await run(port, "summarize", "-v")
        none = await run(port, "summarize", "--output", "json")
    lines = some.out.splitlines()
    assert lines[0] == "256 ranges: 1 never repaired with all replicas, 0 stalled"
    assert lines[3].startswith("kv        0700000000000000-07ffffffffffffff  never")
    assert lines[4].startswith("kv        ff00000000000000-ffffffffffffffff  4 h ago")
    assert lines[-1] == "... and 232 that were repaired later; -v shows all"
    assert len(lines) == 3 + 24 + 1
    assert len(everything.out.splitlines()) == 3 + 256
    assert len(none.json["ranges"]) == 256


async def test_nothing_to_summarize(run: Run) -> None:
    async with served(FakeRepairService()) as port:
        assert await run(port, "summarize") == Ran(0, "no stats\n", "")


# --- throttle


async def test_the_throttle_is_shown(run: Run) -> None:
    slow = ThrottleStatus(16 * 2**20, 20_000, 0.25, 0.5, 0.0123)
    async with served(FakeRepairService(throttle=FakeThrottle(slow))) as port:
        ran = await run(port, "throttle")
        as_json = await run(port, "throttle", "--output", "json")
    async with served(FakeRepairService()) as port:
        free = await run(port, "throttle")
        free_json = await run(port, "throttle", "--output", "json")
    assert ran.out == (
        "Bytes per second       : 16 MiB\n"
        "Rows per second        : 20,000\n"
        "CPU share              : 25% of one core\n"
        "Pace                   : 50%: held back, the application is slow\n"
        "Application latency    : 12.3 ms\n"
    )
    assert as_json.json == {
        "bytes_per_second": 16 * 2**20,
        "rows_per_second": 20_000,
        "cpu_share_ratio": 0.25,
        "pace_ratio": 0.5,
        "latency_seconds": 0.0123,
    }
    assert free.out == (
        "Bytes per second       : no limit\n"
        "Rows per second        : no limit\n"
        "CPU share              : no limit\n"
        "Pace                   : full\n"
    )
    assert free_json.json == {
        "bytes_per_second": None,
        "rows_per_second": None,
        "cpu_share_ratio": 1.0,
        "pace_ratio": 1.0,
        "latency_seconds": None,
    }


@pytest.mark.parametrize(
    ("arguments", "limits"),
    [
        (["--bytes-per-second", "16MiB"], (16 * 2**20, 7, 0.5)),
        (["--bytes-per-second", "1.5k"], (1536, 7, 0.5)),
        (["--bytes-per-second", "500000"], (500_000, 7, 0.5)),
        (["--bytes-per-second", "2 GB"], (2 * 2**30, 7, 0.5)),
        (["--bytes-per-second", "none", "--rows-per-second", "unlimited", "--cpu-share", "none"], (None, None, None)),
        (["--bytes-per-second", "0", "--rows-per-second", "0", "--cpu-share", "100%"], (None, None, None)),
        (["--rows-per-second", "123"], (5, 123, 0.5)),
        (["--cpu-share", "10%"], (5, 7, 0.1)),
        (["--cpu-share", ".25"], (5, 7, 0.25)),
    ],
)
async def test_the_throttle_is_set(run: Run, arguments: list[str], limits: tuple[float | None, ...]) -> None:
    throttle = FakeThrottle(ThrottleStatus(5, 7, 0.5))
    async with served(FakeRepairService(throttle=throttle)) as port:
        ran = await run(port, "throttle", *arguments)
    assert ran.status == 0
    found = throttle.limits
    assert (found.bytes_per_second, found.rows_per_second, found.cpu_share) == limits


# --- schedule


async def test_the_schedule_is_shown_paused_and_resumed(run: Run) -> None:
    scheduler = FakeScheduler(
        (
            ScheduledRange("kv", TokenRange(0, 4), None, NOW - 5, "", True, 2, "127.0.0.1:7002\nis down"),
            ScheduledRange("kv", TokenRange(5, 9), NOW - 90_000, NOW - 1, SESSION),
            ScheduledRange("kv", TokenRange(10, TOKEN_MAX), NOW - 60, NOW + 4 * 86_400),
        ),
        ("22:00-06:00", "12:00-13:00"),
    )
    async with served(FakeRepairService(), scheduler) as port:
        ran = await run(port, "schedule")
        as_json = await run(port, "schedule", "status", "--output", "json")
        paused = await run(port, "schedule", "pause")
        was_paused = scheduler.paused
        resumed = await run(port, "schedule", "resume", "--output", "json")
    assert ran.out == (
        "Automatic repair       : on\n"
        "Period                 : each range once in 24 h\n"
        "Windows                : 22:00-06:00, 12:00-13:00 (open now)\n"
        "Ranges                 : 3, running 1, stalled 1\n"
        "\n"
        "keyspace  tokens                             last repaired  due     state\n"
        "kv        0000000000000005-0000000000000009  25 h ago               running 47249135\n"
        "kv        0000000000000000-0000000000000004  never          now     stalled, failed 2x\n"
        "kv        000000000000000a-ffffffffffffffff  60 s ago       in 4 d  ok\n"
        "\n"
        "last failure: 127.0.0.1:7002 is down\n"
    )
    assert was_paused
    assert not scheduler.paused
    assert paused.out.startswith("Automatic repair       : paused\n")
    content = as_json.json
    assert resumed.json == content
    first = content.pop("ranges")[0]
    assert content == {
        "paused": False,
        "period_seconds": 86_400.0,
        "windows": ["22:00-06:00", "12:00-13:00"],
        "in_window": True,
        "stalled_count": 1,
        "running_count": 1,
    }
    assert first == {
        "keyspace": "kv",
        "first_token": 0,
        "last_token": 4,
        "repaired_time": None,
        "due_time": "2026-01-02T03:04:00.000Z",
        "session_id": None,
        "stalled": True,
        "failure_count": 2,
        "last_error": "127.0.0.1:7002\nis down",
    }


async def test_a_schedule_of_nothing_and_of_much(run: Run) -> None:
    many = FakeScheduler(tuple(ScheduledRange("kv", node_range(2, n), None, NOW + 60 * n) for n in range(30)))
    async with served(FakeRepairService(), FakeScheduler()) as port:
        nothing = await run(port, "schedule")
    async with served(FakeRepairService(), many) as port:
        some = await run(port, "schedule")
        everything = await run(port, "schedule", "-v")
    assert nothing.out.endswith(
        "Windows                : always\nRanges                 : 0, running 0, stalled 0\n\n"
        "No ranges yet: the node has just started, or is the first replica of none.\n"
    )
    assert some.out.endswith("\n... and 6 later; -v shows all\n")
    assert len(everything.out.splitlines()) == 6 + 30


async def test_times_that_are_none(run: Run) -> None:
    service = FakeRepairService()
    service.add(session(started_at=float("nan"), updated_at=1e300))
    service.add(session(ENDED, SessionState.COMPLETED, started_at=float("-inf")))
    scheduler = FakeScheduler((ScheduledRange("kv", TokenRange(0, 4), float("nan"), float("inf")),))
    async with served(service, scheduler) as port:
        texts = [await run(port, *words) for words in (["list"], ["history"], ["schedule"])]
        sessions = await run(port, "list", "--output", "json")
        schedule = await run(port, "schedule", "--output", "json")
    assert [ran.status for ran in texts] == [0, 0, 0]
    assert "  ?        1.2 s  " in texts[1].out
    assert " ? ago          ?    ok\n" in texts[2].out
    assert sessions.json["sessions"][0]["started_time"] is None
    assert schedule.json["ranges"][0]["due_time"] is None


async def test_a_node_without_throttle_or_schedule(run: Run) -> None:
    async with served(FakeRepairService(throttle=None)) as port:
        throttle = await run(port, "throttle")
        schedule = await run(port, "schedule")
    assert throttle == Ran(1, "", f"nodetool: the node at 127.0.0.1:{port} does not offer a throttle of repair\n")
    assert schedule == Ran(1, "", f"nodetool: the node at 127.0.0.1:{port} does not offer automatic repair\n")


# --- the document


def keys_of(content: object) -> set[str]:
    """All keys of a JSON value, but not the names of strategies."""
    if isinstance(content, dict):
        below = [keys_of(value) for key, value in content.items() if key != "strategies"]
        return set(content).union(*below)
    return set().union(*map(keys_of, content)) if isinstance(content, list) else set()


async def test_every_command_and_its_json_is_documented(run: Run) -> None:
    text = (Path(__file__).parent.parent / "docs" / "nodetool.md").read_text()
    documented: dict[str, set[str]] = {}
    for names, row in re.findall(r"(?m)^\| ((?:`repair_admin \w+`|`repair`)[^|]*) \| (`.*) \|$", text):
        for name in re.findall(r"`repair_admin (\w+)`", names):
            documented[name] = set(re.findall(r"`(\w+)[\[\]{}]*`", row))
    documented["cancel"] |= documented["list"] - {"sessions"}
    documented["pause"] |= documented["list"] - {"sessions"}
    service = with_sessions()
    service.updates = [replace(COMPLETED, previews=(FlowPreview("a:1", "b:1", 1, 1, 1, (b"k",)),))]
    service.summaries = (RangeSummary("kv", TokenRange.full(), NOW, 0, 0, NOW, stalled=False),)
    service.stubborn.add(OTHER_SESSION)
    scheduler = FakeScheduler((ScheduledRange("kv", TokenRange.full(), NOW, NOW),))
    async with served(service, scheduler) as port:
        for name, *arguments in (
            ["list"], ["history"], ["pause", "47249"], ["resume", "47249"], ["summarize"], ["throttle"], ["schedule"],
            ["cancel", "-a"],
        ):  # fmt: skip
            ran = await run(port, name, *arguments, "--output", "json")
            assert keys_of(ran.json) == documented.pop(name), name
            assert re.search(rf"(?m)^\| `repair_admin {name}[` ].* \| [^`]", text), f"{name} is in the table"
    assert documented == {}


def test_every_flag_of_repair_is_documented() -> None:
    text = (Path(__file__).parent.parent / "docs" / "nodetool.md").read_text()
    common = {"--host", "--port", "--timeout", "--print-port", "--output"}
    for parameter in repair.params:
        if isinstance(parameter, click.Option) and not common & set(parameter.opts):
            flag = parameter.opts[0]
            assert f"`{flag}`" in text, flag


# --- texts


def test_ids_are_as_short_as_they_can_be() -> None:
    short = short_ids([SESSION, OTHER_SESSION])
    assert (short(SESSION), short(OTHER_SESSION)) == ("47249135", "47251111")
    longer = short_ids(["12345678-a", "12345678-b"])
    assert (longer("12345678-a"), longer("12345678-b")) == ("12345678-a", "12345678-b")
    assert short_ids(["1\x1b[2J"])("1\x1b[2J") == "1\\x1b[2J"
    assert short_ids([])("anything-else") == "anything"


@pytest.mark.parametrize(
    ("seconds", "exact", "rough"),
    [
        (-3, "0 ms", "0 s"),
        (0.0404, "40 ms", "0 s"),
        (0.9994, "999 ms", "1 s"),
        (0.9996, "1.0 s", "1 s"),
        (float("inf"), "?", "?"),
        (float("nan"), "?", "?"),
        (9.94, "9.9 s", "10 s"),
        (9.96, "10 s", "10 s"),
        (59.4, "59 s", "59 s"),
        (59.6, "1:00", "60 s"),
        (245, "4:05", "4 min"),
        (3599.9, "1:00:00", "60 min"),
        (11_045, "3:04:05", "3 h"),
        (400_000, "111:06:40", "5 d"),
    ],
)
def test_durations(seconds: float, exact: str, rough: str) -> None:
    assert rough_duration(seconds) == rough
    assert duration(seconds) == exact


def test_shares_and_counts() -> None:
    assert [percent(share) for share in (-1, 0, 0.0999, 0.99999, 1, 7, float("nan"))] == [
        "0%",
        "0%",
        "9%",
        "99%",
        "100%",
        "100%",
        "0%",
    ]
    counts = (0, 99_999, 100_000, 999_499, 999_999, 1_234_567, 999_999_999, 12_345_678_901)
    assert [short_count(count) for count in counts] == [
        "0", "99,999", "100k", "999k", "999k", "1.23M", "999M", "12.3G"
    ]  # fmt: skip


def test_ranges_of_tokens() -> None:
    assert range_text(pb.TokenRange(first=0, last=TOKEN_MAX), short=True) == "all tokens"
    assert range_text(pb.TokenRange(first=0, last=2**56 - 1)) == "0000000000000000-00ffffffffffffff"
    assert range_text(pb.TokenRange(first=0, last=2**56 - 1), short=True) == "00..-00.."
    assert range_text(pb.TokenRange(first=1, last=2**56 - 1), short=True) == "0000000000000001-00ffffffffffffff"
