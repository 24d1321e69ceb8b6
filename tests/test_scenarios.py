"""The scenario files of ``tests/scenarios``, on the simulator and (five of them) on real processes; their language."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from gossiper.cli import main
from gossiper.core.engine import GossipEngine
from gossiper.core.io import Effect
from gossiper.core.messages import EndpointState, GossipDigestAck
from gossiper.core.peers import PeerPolicy, Peers, choose_targets
from gossiper.core.quarantine import Quarantine
from gossiper.core.shadow import ShadowRound
from gossiper.core.state import ClusterState
from gossiper.core.versions import Now
from gossiper.node import Gossiper
from gossiper.scenario import Outcome, Scenario, ScenarioError, load, parse, run_in_memory, run_on_processes, runner
from gossiper.scenario.language import usages
from gossiper.scenario.member import StartPlan
from gossiper.scenario.processes import ProcessBackend
from gossiper.scenario.relay import Relays

DIRECTORY = Path(__file__).parent / "scenarios"
FILES = sorted(DIRECTORY.glob("*.txt"))
REAL = [path for path in FILES if load(path).real]
#: What users of Cassandra, Scylla and their operators suffered from, as far as gossip is to blame. Not here, because no
#: scenario of a few nodes shows it: costs per message and memory (C-6127's size of messages, C-12345, S-5210, C-21025),
#: slow listeners (a matter of the event queue, which has its own tests), limits of values (C-20058).
PAINS = (
    *("C-14001", "C-18543", "C-18845", "C-21428", "C-18866", "S-2787", "apache/cassandra PR 4711"),
    *("C-2371", "C-2496", "C-2961", "C-5216", "C-10371", "C-16238", "S-14991"),
    *("C-8260", "C-9871", "C-16213", "C-19580", "S-5449"),
    *("C-8336", "C-9238", "C-16094", "C-18913", "S-3940", "S-7033", "S-8597", "S-9381", "S-5801"),
    *("C-3654", "C-8113", "C-10969", "S-5164", "C-9183", "S-8488"),
    *("C-17676", "C-17908", "C-18292", "C-8072", "C-12653", "C-13851", "C-16588"),
    *("casskop #170", "k8ssandra-operator #1324", "elassandra #189", "jaeger-kubernetes #33"),
    *("C-16422", "S-10296", "C-10298", "apache/cassandra PR 774", "S-10547", "C-12253", "C-17752", "C-19613"),
    "quickwit/chitchat #23",
)
BEGINNING = "# A test.\nadd a seed\nadd b\nwait until all see all UP\n"


def scenario(text: str) -> str:
    return f"{BEGINNING}{text}\n----\nb saw a: joined, alive; UP NORMAL\na saw b: joined, alive; UP NORMAL\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_simulator(path: Path) -> None:
    outcome = run_in_memory(load(path))
    assert outcome.as_expected, outcome.difference()


@pytest.mark.process
@pytest.mark.timeout(180)
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_processes(path: Path) -> None:
    outcome = run_on_processes(load(path))
    assert outcome.as_expected, outcome.difference()


def test_there_are_enough_and_every_pain_has_one() -> None:
    scenarios = [load(path) for path in FILES]
    assert len(scenarios) >= 30
    assert len(REAL) == 5
    named = {ticket for one in scenarios for ticket in one.tickets}
    assert [pain for pain in PAINS if pain not in named] == []


def test_another_seed_gives_the_same_transcript() -> None:
    one = load(DIRECTORY / "removed_does_not_return.txt")
    assert all(run_in_memory(one, seed=seed).as_expected for seed in range(1, 4))


# -- guards that are removed one at a time ---------------------------------------------------------------------------


def _echo_is_never_repeated(patch: pytest.MonkeyPatch) -> None:
    echos = GossipEngine._echos

    def forgetful(self: GossipEngine, now: Now) -> list[Effect]:
        self.state.table.echo_sent[:] = now.monotonic  # never overdue
        return echos(self, now)

    patch.setattr(ClusterState, "echo_failed", lambda *_: None)
    patch.setattr(GossipEngine, "_echos", forgetful)


def _everything_is_plausible(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("gossiper.core.state.implausible", lambda *_: None)
    patch.setattr("gossiper.core.digest.GENERATION_AHEAD_SECONDS_MAX", 10**9)


def _nothing_expires(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ClusterState, "forget_past", lambda *_: None)


def _older_generations_count(patch: pytest.MonkeyPatch) -> None:
    apply_one = ClusterState._apply_one

    def unfenced(self: ClusterState, one: EndpointState, now: Now, sender: str) -> bool:
        row = self.table.row(one.endpoint)
        if row is not None and one.generation < int(self.table.generation[row]):
            return self._merge(row, one, now, self._path(sender))
        return apply_one(self, one, now, sender)

    patch.setattr(ClusterState, "_apply_one", unfenced)


def _unreachable_are_left_alone(patch: pytest.MonkeyPatch) -> None:
    def only_live(rng: Random, peers: Peers, policy: PeerPolicy, *, seeds: Sequence[int | str]) -> list[int | str]:
        nobody = Peers(peers.live, peers.unreachable[:0], peers.datacenter, peers.rack, peers.local_row)
        return choose_targets(rng, nobody, policy, seeds=() if len(peers.live) else seeds)

    patch.setattr("gossiper.core.engine.choose_targets", only_live)


def _nobody_minds_an_own_pause(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(runner._SETTINGS, "local_pause_seconds", 86_400.0)


def _collisions_are_not_looked_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ShadowRound, "_refuse_collisions", lambda *_: None)
    patch.setattr(ShadowRound, "_rivals_may_live", lambda *_: False)


def _shadow_syn_is_said_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("gossiper.core.shadow.REPEAT_INTERVALS", 10**6)


def _anybody_is_assassinated(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("gossiper.core.operations.STANDSTILL_INTERVALS", 0)


def _removal_of_oneself_is_ignored(patch: pytest.MonkeyPatch) -> None:
    def deaf(self: GossipEngine, _: Now) -> list[Effect]:
        self.state.claims = []
        return []

    patch.setattr(GossipEngine, "_claims", deaf)


def _stored_generation_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("gossiper.joining.next_generation", lambda _stored, wall, _seen: int(wall))


def _all_clusters_are_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GossipEngine, "_admit", lambda *_: None)
    patch.setattr(ShadowRound, "answered", _answered_by_anybody)


def _answered_by_anybody(self: ShadowRound, ack: GossipDigestAck, now: Now) -> None:
    sender = replace(ack.sender, cluster_name=self.config.cluster_name)
    _ANSWERED(self, replace(ack, sender=sender), now)


_ANSWERED = ShadowRound.answered


def _unconfirmed_counts_as_settled(patch: pytest.MonkeyPatch) -> None:
    async def settle(self: Gossiper, *, timeout_seconds: float = 60.0) -> bool:
        await asyncio.sleep(3 * self.config.interval_seconds)
        return True

    patch.setattr(Gossiper, "wait_settled", settle)


def _replaced_may_live(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ShadowRound, "_beat", staticmethod(lambda *_: None))


def _rumours_of_the_removed_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Quarantine, "refuses", lambda *_: False)


def _any_clock_will_do(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ShadowRound, "_clock_is_far_ahead", lambda _: False)


def _memories_are_not_told(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GossipEngine, "_with_remembered", lambda _self, effect, _syn, _now: effect)


def _removed_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("gossiper.core.operations._refuse_if_just_remembered", lambda *_: None)


#: What is removed, and the scenario that finds it.
PLANTED: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "an ECHO that failed is repeated": (_echo_is_never_repeated, "stale_echo"),
    "generations of the future are refused": (_everything_is_plausible, "clock_far_ahead_on_disk"),
    "a clock far ahead is not started with": (_any_clock_will_do, "clock_far_ahead"),
    "those in files only can be replaced": (_memories_are_not_told, "replace_after_full_restart"),
    "one known from disk may be heard of": (_removed_at_once, "remove_after_full_restart"),
    "removals expire": (_nothing_expires, "removal_expires_everywhere"),
    "older generations are void": (_older_generations_count, "late_shutdown_message"),
    "the unreachable are tried": (_unreachable_are_left_alone, "partition_and_heal"),
    "after an own pause nobody is convicted": (_nobody_minds_an_own_pause, "pause"),
    "one host id, one node": (_collisions_are_not_looked_for, "copied_data_directory"),
    "who was removed is refused": (_collisions_are_not_looked_for, "removed_comes_back_as_new"),
    "the SYN of the shadow round is repeated": (_shadow_syn_is_said_once, "shadow_round_lost_syn"),
    "who lives is not assassinated": (_anybody_is_assassinated, "assassinate_dead"),
    "who sees itself removed stops": (_removal_of_oneself_is_ignored, "assassinate_alive"),
    "a generation follows the stored one": (_stored_generation_is_ignored, "shutdown_and_clock_behind"),
    "clusters have names": (_all_clusters_are_one, "foreign_cluster"),
    "settled means live": (_unconfirmed_counts_as_settled, "settled_means_live"),
    "who lives is not replaced": (_replaced_may_live, "replace_dead"),
    "the replaced are refused for ever": (_rumours_of_the_removed_count, "replaced_during_partition"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, name = PLANTED[fault]
    one = load(DIRECTORY / f"{name}.txt")
    plant(monkeypatch)
    try:
        found = not run_in_memory(one).as_expected
    except ScenarioError:
        found = True
    assert found


# -- the language -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("jump a", "'jump' is no command; there are add, "),
        ("kill", "is not understood; kill goes like this: kill NODE"),
        ("kill c", "c has not been added"),
        ("add a", "a was added before; use 'restart a'"),
        ("add all", "'all' is no name"),
        ("add c with the wind", "says nothing about a start"),
        ("wait until a see b FLYING", "'FLYING' is nothing that can be seen"),
        ("wait until a is fine", "is no condition"),
        ("expect a sees b no STATUS", "'STATUS' is no key"),
        ("set a colour", "'colour' is not key=value"),
        ("clock a behind", "is no error of a clock"),
        ("lose hope from a to b", "is not understood"),
        ("remove c on a", "c has not been added"),
        ("restart b at the address of c", "c has not been added"),
        ("cut a -> c", "c has not been added"),
    ],
)
def test_a_line_that_is_wrong_is_named(line: str, fault: str) -> None:
    with pytest.raises(ScenarioError, match=r"x\.txt:5: ") as refused:
        parse(scenario(line), name="x.txt")
    assert fault in str(refused.value)


def test_all_faults_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError) as refused:
        parse("add a\nfly a\nkill z\n", name="x.txt")
    lines = str(refused.value).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["x.txt:2:", "x.txt:3:", "x.txt:1:", "x.txt:"]
    with pytest.raises(ScenarioError, match="says nothing"):
        parse("# Only a title.\n----\n")
    with pytest.raises(ScenarioError, match="cannot be read"):
        load(tmp_path / "absent.txt")
    (tmp_path / "large.txt").write_text("#" * 300_000)
    with pytest.raises(ScenarioError, match="it is not a scenario"):
        load(tmp_path / "large.txt")


def test_every_form_of_the_language_is_documented() -> None:
    table = (Path(__file__).parent.parent / "docs" / "scenarios.md").read_text(encoding="utf-8")
    text = table.replace("\\|", "|")
    assert [usage for usage in usages() if f"`{usage}`" not in text] == []


# -- runs that do not go as they say ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ("expect a sees b DOWN", "x.txt:5: expect a sees b DOWN: a sees b UP NORMAL"),
        ("wait until a sees b DOWN within 5", "not within 0.5 s: a sees b UP NORMAL"),
        ("remove b on a", "refused: b is alive"),
        ('expect refused "what"', "nothing was refused"),
        ('remove b on a\nexpect refused "what"', "it was refused otherwise: b is alive"),
        ("kill b\nset b n=1", "b does not run"),
        ("kill b\nexpect b stopped", "b does not run"),
        ('expect b stopped "x"', "it stopped because of None"),
        ("restart b", "b runs; kill it, or shut it down"),
        ("release at b", "there was nothing to release"),
        ("expect b not settled", "settled: True"),
        ("expect b refused", "its start: None"),
        ("kill b\nexpect b runs", "b does not run"),
        ("configure phi_threshold=-1\nkill b\nrestart b", "phi_threshold: must be above 0"),
    ],
)
def test_a_run_that_does_not_go_as_it_says_names_the_line(lines: str, fault: str) -> None:
    settle = "wait until b settled\n" if "settled" in lines else ""
    with pytest.raises(ScenarioError, match=r"x\.txt:") as refused:
        run_in_memory(parse(scenario(settle + lines), name="x.txt"))
    assert fault in str(refused.value)


def test_another_transcript_is_a_difference() -> None:
    outcome = run_in_memory(parse(scenario("set b n=1\nwait until a sees b n=1")))
    assert not outcome.as_expected
    assert "+a saw b: joined, alive; UP NORMAL n=1" in outcome.difference()
    assert run_in_memory(parse(scenario("wait 1"))).difference() == ""


def test_the_command_runs_rewrites_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(BEGINNING)
    assert main(["scenario", "run", str(path)]) == 1
    assert "run it with --rewrite" in capsys.readouterr().out
    assert main(["scenario", "run", "--rewrite", str(path)]) == 0
    assert path.read_text() == scenario("").replace("\n\n----", "\n----")
    assert main(["scenario", "run", "--seeds", "2", str(path)]) == 0
    assert capsys.readouterr().out.count(f"ok {path}") == 2
    path.write_text(path.read_text().replace("joined, alive", "joined, dead", 1))
    assert main(["scenario", "run", str(path)]) == 1
    captured = capsys.readouterr()
    assert "-b saw a: joined, dead; UP NORMAL" in captured.out
    assert "1 of 1 runs failed" in captured.err
    assert main(["scenario", "commands"]) == 0
    assert "leave NODE" in capsys.readouterr().out


def test_the_command_resumes_and_says_in_the_end_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad, kept = tmp_path / "good.txt", tmp_path / "bad.txt", tmp_path / "runs.jsonl"
    good.write_text(scenario(""))
    bad.write_text(scenario("expect a sees b DOWN"))
    command = ["scenario", "run", "--resume", str(kept), "--seeds", "2", str(bad), str(good)]
    monkeypatch.setattr("gossiper.scenario.run_in_memory", _interrupted_after(3))
    assert main(command) == 130
    assert "interrupted after 3 of 4 runs" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(command) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == "3 of 4 runs had finished before"
    assert f"ok {good} (seed 1) (" in captured.out
    assert "[4/4]" in captured.out
    failure = f"FAILED {bad} (seed 0)\n{bad}:5: expect a sees b DOWN: a sees b UP NORMAL"
    assert failure in captured.out, "not forgotten"
    assert "4 runs, 2 as expected" in captured.out
    assert captured.err == "gossiper: 2 of 4 runs failed: bad.txt\n"
    bad.write_text(scenario(""))
    assert main(command) == 0, "another content is another run"
    assert "2 of 4 runs had finished before" in capsys.readouterr().out
    kept.write_text('{"another": "file"}\n')
    assert main(command) == 2
    assert main([*command, "--rewrite"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def _interrupted_after(runs: int) -> Callable[..., Outcome]:
    left = iter(range(runs))

    def run(one: Scenario, *, seed: int) -> Outcome:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return run_in_memory(one, seed=seed)

    return run


def test_a_transcript_that_is_late_gets_the_patience_of_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    late = parse(scenario("kill b").replace("UP NORMAL\n", "DOWN NORMAL\n"), name="x.txt")
    late = replace(late, expected=("a saw b: joined, alive, dead (convicted); DOWN NORMAL",))
    assert not run_in_memory(late).as_expected
    monkeypatch.setattr("gossiper.scenario.memory.MemoryBackend.deadline_seconds", lambda _, seconds: seconds + 20.0)
    outcome = run_in_memory(late)
    assert outcome.as_expected, outcome.difference()


# -- the real side ----------------------------------------------------------------------------------------------------


async def _echo_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        writer.write(data.upper())
    writer.close()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """What comes before the connection is closed or reset."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


async def _relayed(check: Callable[[Relays, str], Awaitable[None]]) -> None:
    relays = Relays()
    server = await asyncio.start_server(_echo_server, "127.0.0.1", 0)
    try:
        address = await relays.open("a", "b:1")
        relays.occupy("b:1", "b", server.sockets[0].getsockname()[1])
        async with asyncio.timeout(20):
            await check(relays, address.rpartition(":")[2])
    finally:
        await relays.close()
        server.close()


async def test_a_relay_loses_one_way_and_breaks_what_has_a_hole() -> None:
    async def check(relays: Relays, port: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"ONE"
        relays.set_links({("b", "a")}, {})
        writer.write(b"two")
        while not any(one.lossy for one in relays._connections):
            await asyncio.sleep(0.01)
        relays.set_links((), {})
        assert await _rest(reader) == b""
        writer.close()

    await _relayed(check)


async def test_a_relay_delays_in_order_and_refuses_for_who_is_gone() -> None:
    async def check(relays: Relays, port: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        relays.set_links((), {("a", "b"): 0.2})
        begun = asyncio.get_running_loop().time()
        writer.write(b"one")
        await writer.drain()
        relays.set_links((), {})
        writer.write(b"two")
        assert await reader.readexactly(6) == b"ONETWO"
        assert asyncio.get_running_loop().time() - begun < 20
        writer.close()
        relays.vacate("b:1", "b")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await _rest(reader) == b""
        writer.close()

    await _relayed(check)


@pytest.mark.process
async def test_a_process_that_dies_is_told_with_its_log(tmp_path: Path) -> None:
    backend = ProcessBackend(tmp_path)
    plan = StartPlan("10.0.0.1:7000", str(tmp_path / "a"), 0.0, {"cluster_name": "x", "seeds": []})
    try:
        await backend.prepare(["a"], ["10.0.0.1:7000"])
        await backend.start("a", plan)
        assert (await backend.observe("a")).failure is None
        backend._processes["a"].signal(signal.SIGKILL)
        with pytest.raises(ScenarioError, match=r"a ended with status -9|a does not answer"):
            await backend.observe("a")
    finally:
        await backend.close()
