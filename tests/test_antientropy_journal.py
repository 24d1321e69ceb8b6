"""The record of repairs on disk: what is written is read again; full disks, foreign files and killed processes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antientropy.core.merkle import Root
from antientropy.core.tokens import TOKEN_MAX, TokenRange
from antientropy.errors import JournalError
from antientropy.journal import FILE_NAME, RepairedPart, RepairJournal, VerifiedPart
from antientropy.limits import DETAIL_CHARACTERS_MAX
from antientropy.options import RepairMode, RepairOptions, Strategy
from antientropy.reports import RepairStatistics, SessionInfo, SessionState

OPTIONS = RepairOptions(
    token_ranges=(TokenRange(0, 5), TokenRange(2**63, TOKEN_MAX)),
    peers=("b:1", "c:2"),
    mode=RepairMode.PULL,
    strategy=Strategy.DESCENT,
    jobs=2,
    trace=True,
)


def info(
    session_id: str = "one", state: SessionState = SessionState.COMPARING, started_at: float = 10.0
) -> SessionInfo:
    return SessionInfo(
        session_id=session_id,
        keyspace="kv",
        state=state,
        coordinator="a:1",
        replicas=("a:1", "b:1"),
        token_ranges=(TokenRange(3, TOKEN_MAX),),
        started_at=started_at,
        updated_at=started_at + 1,
        ended_at=started_at + 2 if state.is_final else None,
        progress=0.25,
        statistics=RepairStatistics(rows_moved=7, strategies={"sketch": 2}, elapsed_seconds=0.5),
        detail="why",
    )


def repaired(first: int, last: int, version: int = 1, at: float = 1.0, differences: int = 0) -> RepairedPart:
    return RepairedPart(
        token_range=TokenRange(first, last),
        replicas=("a:1", "b:1"),
        session=2**64 - 1 - version,
        repaired_version=version,
        acknowledged_version=version // 2,
        repaired_at=at,
        differences=differences,
    )


def part(first: int, last: int, at: float = 20.0) -> VerifiedPart:
    return VerifiedPart(TokenRange(first, last), Root(bytes(range(16)), 9), at)


def test_a_session_is_read_as_it_was_written(tmp_path: Path) -> None:
    journal = RepairJournal(tmp_path / "deep" / "dir")
    journal.begin(info(), OPTIONS)
    journal.verify(replace(info(), progress=0.5), part(2**63, TOKEN_MAX))
    journal.verify(replace(info(), progress=0.75), part(3, 2**63 - 1))
    journal.close()
    journal.close()
    journal = RepairJournal(tmp_path / "deep" / "dir")
    found = journal.session("one")
    assert found is not None
    assert found.info == replace(info(), progress=0.75)
    assert found.options == OPTIONS
    assert found.verified == (part(3, 2**63 - 1), part(2**63, TOKEN_MAX))
    assert journal.session("other") is None
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        journal.session("one")


def test_history_is_latest_first_bounded_and_ended_sessions_forget_their_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antientropy.journal.HISTORY_SESSIONS_MAX", 3)
    journal = RepairJournal(None)
    journal.begin(info("under way", started_at=1.0), OPTIONS)
    for number in range(5):
        journal.begin(info(f"s{number}", started_at=10.0 + number), OPTIONS)
        journal.verify(info(f"s{number}"), part(0, 5))
        journal.update(info(f"s{number}", SessionState.COMPLETED, 10.0 + number))
        ended = journal.session(f"s{number}")
        assert ended is not None
        assert ended.verified == ()
    journal.begin(info("last", started_at=99.0), OPTIONS)
    assert [one.session_id for one in journal.sessions(active_only=False)] == ["last", "s4", "s3", "under way"]
    assert [one.session_id for one in journal.sessions(active_only=False, limit=2)] == ["last", "s4"]
    assert [one.session_id for one in journal.sessions(active_only=True)] == ["last", "under way"]


def test_a_restart_calls_interrupted_what_was_under_way(tmp_path: Path) -> None:
    journal = RepairJournal(tmp_path)
    for state in SessionState:
        journal.begin(info(state.value, state), OPTIONS)
    journal.close()
    journal = RepairJournal(tmp_path)
    assert set(journal.interrupt(55.0)) == {"preparing", "comparing", "streaming", "verifying", "paused"}
    assert journal.interrupt(56.0) == []
    states = {one.session_id: one.state for one in journal.sessions(active_only=False)}
    for state in SessionState:
        assert states[state.value] is (state if state.is_final else SessionState.INTERRUPTED)
    journal.close()


def test_details_are_bounded() -> None:
    journal = RepairJournal(None)
    journal.begin(replace(info(), detail="x" * 10_000), OPTIONS)
    found = journal.session("one")
    assert found is not None
    assert len(found.info.detail) == DETAIL_CHARACTERS_MAX


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 31), st.integers(0, 31), st.integers(0, 9)), max_size=8))
def test_repaired_parts_are_the_last_repair_of_each_token(repairs: list[tuple[int, int, int]]) -> None:
    journal = RepairJournal(None)
    expected: dict[int, tuple[int, float, int]] = {}
    for number, (one, other, version) in enumerate(repairs):
        first, last = sorted((one, other))
        journal.repaired("kv", repaired(first, last, version, float(number), number))
        expected |= dict.fromkeys(range(first, last + 1), (version, float(number), number))
    parts = journal.repaired_parts("kv")
    found = {
        token: (one.repaired_version, one.repaired_at, one.differences)
        for one in parts
        for token in range(one.token_range.first, one.token_range.last + 1)
    }
    assert found == expected
    assert sum(one.token_range.last - one.token_range.first + 1 for one in parts) == len(expected)
    assert [one.token_range.first for one in parts] == sorted(one.token_range.first for one in parts)
    assert journal.repaired_parts("other") == []
    journal.close()


def test_versions_and_tokens_use_all_64_bits(tmp_path: Path) -> None:
    journal = RepairJournal(tmp_path)
    whole = repaired(0, TOKEN_MAX, TOKEN_MAX, 1.5, 3)
    journal.repaired("kv", whole)
    assert journal.repaired_parts("kv") == [whole]
    journal.close()


def fill(journal: RepairJournal, step: str) -> None:
    for number in range(10_000):
        if step == "begin":
            journal.begin(info(f"session {number}"), OPTIONS)
        elif step == "update":
            journal.update(replace(info(), statistics=RepairStatistics(strategies={"x" * 100 * number: 1})))
        elif step == "verify":
            journal.verify(info(), part(number, number))
        else:
            journal.repaired("kv", repaired(number, number))


@pytest.mark.parametrize("step", ["begin", "update", "verify", "repaired"])
def test_a_full_disk_fails_the_step_and_leaves_what_was_there(tmp_path: Path, step: str) -> None:
    journal = RepairJournal(tmp_path, pages_max=14)
    journal.begin(info(), OPTIONS)
    with pytest.raises(JournalError, match="disk is full; make room"):
        fill(journal, step)
    before = journal.sessions(active_only=False), journal.repaired_parts("kv"), journal.session("one")
    journal.close()
    journal = RepairJournal(tmp_path)
    assert (journal.sessions(active_only=False), journal.repaired_parts("kv"), journal.session("one")) == before
    # With room again, it goes on.
    journal.update(info(state=SessionState.COMPLETED))
    journal.close()


def test_foreign_damaged_newer_and_locked_files_are_told_apart(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / FILE_NAME).write_bytes(b"no database at all" * 1000)
    with pytest.raises(JournalError, match="damaged"):
        RepairJournal(foreign)
    assert (foreign / FILE_NAME).read_bytes().startswith(b"no database")

    damaged = tmp_path / "damaged"
    journal = RepairJournal(damaged)
    for number in range(200):
        journal.begin(info(f"session {number}"), OPTIONS)
    journal.close()
    content = bytearray((damaged / FILE_NAME).read_bytes())
    content[4096 * 3 : 4096 * 6] = os.urandom(4096 * 3)
    (damaged / FILE_NAME).write_bytes(content)
    with pytest.raises(JournalError, match="damaged"):
        RepairJournal(damaged)

    newer = tmp_path / "newer"
    RepairJournal(newer).close()
    connection = sqlite3.connect(newer / FILE_NAME)
    connection.execute("PRAGMA user_version = 77")
    connection.close()
    with pytest.raises(JournalError, match="format 77"):
        RepairJournal(newer)

    first = RepairJournal(tmp_path / "locked")
    with pytest.raises(JournalError, match="another process"):
        RepairJournal(tmp_path / "locked")
    first.close()

    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JournalError, match="cannot be made"):
        RepairJournal(tmp_path / "file")


def test_nonsense_in_a_column_is_damage(tmp_path: Path) -> None:
    journal = RepairJournal(tmp_path)
    journal.begin(info(), OPTIONS)
    journal.close()
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("UPDATE sessions SET token_ranges = '[[5, 4]]'")
    connection.commit()
    connection.close()
    journal = RepairJournal(tmp_path)
    with pytest.raises(JournalError, match="damaged"):
        journal.sessions(active_only=True)
    journal.close()


#: Runs steps of a session and is killed before or behind the durable moment of one of them.
KILLED = """
import os, signal, sys
from pathlib import Path
from antientropy.journal import RepairJournal
sys.path.insert(0, str(Path({tests!r})))
from test_antientropy_journal import steps
journal = RepairJournal(Path(sys.argv[1]))
commit, count = journal._commit, 0
def killing(connection):
    global count
    count += 1
    if count == int(sys.argv[2]) and sys.argv[3] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    commit(connection)
    if count == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
journal._commit = killing
for step in steps():
    step(journal)
"""


def steps() -> list:  # type: ignore[type-arg] # imported by the killed process as well
    return [
        lambda journal: journal.begin(info(), OPTIONS),
        lambda journal: journal.verify(replace(info(), progress=0.5), part(0, 5)),
        lambda journal: journal.repaired("kv", repaired(0, 99, 5, 1.0, 2)),
        lambda journal: journal.repaired("kv", repaired(10, 19, 6, 2.0, 3)),
        lambda journal: journal.update(info(state=SessionState.COMPLETED)),
    ]


@pytest.mark.process
@pytest.mark.parametrize("moment", ["before", "behind"])
@pytest.mark.parametrize("number", range(1, 6))
def test_a_killed_process_leaves_the_state_before_or_after_a_step(tmp_path: Path, number: int, moment: str) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent))
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "killed"), str(number), moment], check=False, timeout=50
    )
    assert ended.returncode == -signal.SIGKILL
    expected = RepairJournal(tmp_path / "expected")
    for step in steps()[: number if moment == "behind" else number - 1]:
        step(expected)
    found = RepairJournal(tmp_path / "killed")
    assert found.session("one") == expected.session("one")
    assert found.repaired_parts("kv") == expected.repaired_parts("kv")
    # And it goes on from there.
    for step in steps():
        step(found)
    ended_session = found.session("one")
    assert ended_session is not None
    assert ended_session.info.state is SessionState.COMPLETED
    found.close()
    expected.close()
