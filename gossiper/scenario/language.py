"""The language of scenario files: one command per line, then ``----`` and the transcript that is expected.

Lives here: what a line may say, and the faults of a file, all at once and with their line numbers. What commands do is
in ``gossiper.scenario.runner``. The shape (commands, a separator, an expected transcript that can be rewritten) is that
of the data-driven tests of CockroachDB and etcd's raft.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gossiper.core.application_states import is_user_key
from gossiper.core.lifecycle import Status
from gossiper.errors import GossipError

#: A scenario is a page of text; what is larger is another file, named by mistake.
FILE_BYTES_MAX: Final = 256 * 1024
#: Between the commands and the expected transcript.
SEPARATOR: Final = "----"
#: Patience of ``wait until``, in gossip intervals: a conviction takes about 18, what follows from it a few more.
WITHIN_DEFAULT: Final = 80.0
LIVENESS_WORDS: Final = frozenset({"UP", "DOWN", "UNKNOWN", "SUSPECT", "MISSING"})
HEALTH_WORDS: Final = frozenset({"serving", "failing"})
STATUS_WORDS: Final = frozenset(str(status) for status in Status if status)
#: Commands that may name nodes before these are added.
_OF_LINKS: Final = frozenset({"cut", "split", "isolate", "delay", "hold", "copy", "lose", "heal"})
#: Kinds of message that can be lost or held.
KINDS: Final = frozenset({"syn", "ack", "ack2", "echo"})

_NAME: Final = r"[a-z][a-z0-9_]*"
_NAMES: Final = rf"{_NAME}(?:, *{_NAME})*"
_NUMBER: Final = r"\d+(?:\.\d+)?"
_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_CLOCK: Final = re.compile(r"(?P<count>\d+) ?(?P<unit>[smhd]) (?P<way>behind|ahead)")


class ScenarioError(GossipError):
    """A scenario file cannot be used, or did not go as it says; the text says in which line."""


@dataclass(frozen=True, slots=True)
class Start:
    """How a node is started."""

    seed: bool = False
    new_address: bool = False
    address_of: str | None = None
    """Of this node the first address."""
    without_files: bool = False
    files_of: str | None = None
    clock_offset_seconds: float | None = None
    settings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Test:
    """One word about an endpoint: a liveness, a status, ``key=value``, ``no key`` or ``host=name``; perhaps negated."""

    word: str
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Condition:
    """What is waited for or expected. ``kind``: see, runs, stopped, refused or settled."""

    kind: str
    observers: tuple[str, ...] = ()
    """Empty: all that run."""
    subjects: tuple[str, ...] = ()
    """Empty: all that run."""
    tests: tuple[Test, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """One line."""

    line: int
    text: str
    verb: str
    names: tuple[str, ...] = ()
    other: str = ""
    pairs: tuple[tuple[str, str | None], ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    intervals: float = 0.0
    both_ways: bool = True
    flag: bool = False
    word: str = ""
    start: Start = field(default=Start())
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole file."""

    name: str
    title: str
    """The first comment line."""
    tickets: tuple[str, ...]
    """Of the lines ``# ticket: ...``."""
    real: bool
    """Marked ``# real``: one of those that run on real processes in every test run."""
    commands: tuple[Command, ...]
    expected: tuple[str, ...]
    source: str
    """Everything before the separator, as it was read."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """All nodes, in the order in which they are first named."""
        named: dict[str, None] = {}
        for command in self.commands:
            if command.verb in {"add", "begin"}:
                named.update(dict.fromkeys(command.names))
            if command.verb == "replace":
                named[command.other] = None
        return tuple(named)

    @property
    def seeds(self) -> tuple[str, ...]:
        """Those that are said to be seeds; without any, the first one."""
        seeds = [name for one in self.commands if one.verb in {"add", "begin"} and one.start.seed for name in one.names]
        return tuple(dict.fromkeys(seeds)) or self.nodes[:1]

    def rewritten(self, transcript: tuple[str, ...]) -> str:
        """The text of the file with another expected transcript."""
        return "\n".join([self.source.rstrip("\n"), SEPARATOR, *transcript, ""])


def load(path: Path, *, complete: bool = True) -> Scenario:
    """Read one file; unless ``complete``, the expected transcript may be missing.

    Raises:
        ScenarioError: it cannot be read, or has faults; all of them, one line each.
    """
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ScenarioError(f"{path}: larger than {FILE_BYTES_MAX} bytes, so it is not a scenario")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: cannot be read: {error}") from None
    return parse(text, name=str(path), complete=complete)


def parse(text: str, *, name: str = "scenario", complete: bool = True) -> Scenario:
    """The scenario that ``text`` is.

    Raises:
        ScenarioError: it has faults; all of them, one line each.
    """
    source, separator, expected = f"\n{text}\n".partition(f"\n{SEPARATOR}\n")
    lines = source[1:].split("\n")
    faults: list[str] = []
    commands: list[Command] = []
    known: set[str] = set()
    everybody = _everybody(lines)
    for number, line in enumerate(lines, start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        try:
            command = parse_command(stripped, number)
            _check_names(command, known, everybody)
        except ValueError as error:
            faults.append(f"{name}:{number}: {error}")
        else:
            commands.append(command)
    comments = [line.strip()[1:].strip() for line in lines if line.strip().startswith("#")]
    if not commands and not faults:
        faults.append(f"{name}: says nothing; the first line of a scenario is a command such as 'add a seed'")
    if not comments:
        faults.append(f"{name}:1: the first line must be a comment that says what is shown")
    if complete and not separator:
        faults.append(f"{name}: no line {SEPARATOR!r} ends the commands; run it with --rewrite to have it added")
    if faults:
        raise ScenarioError("\n".join(faults))
    return Scenario(
        name=name,
        title=comments[0],
        tickets=tuple(
            ticket.strip()
            for comment in comments
            if comment.startswith("ticket:")
            for ticket in comment.removeprefix("ticket:").split(",")
        ),
        real="real" in comments,
        commands=tuple(commands),
        expected=tuple(line for line in expected.split("\n") if line),
        source="\n".join(lines),
    )


def _everybody(lines: list[str]) -> set[str]:
    """All nodes that are added somewhere in the file."""
    names: set[str] = set()
    for line in lines:
        if match := re.match(rf"\s*(?:add|begin) ({_NAMES})", line):
            names.update(_names(match[1]))
        if match := re.match(rf"\s*replace {_NAME} by ({_NAME})", line):
            names.add(match[1])
    return names


def _check_names(command: Command, known: set[str], everybody: set[str]) -> None:
    """Every node is added before anything else is said of it, except of its links."""
    condition = command.condition
    used = {*(name for group in command.groups for name in group)}
    if command.verb in {"add", "begin"}:
        if again := sorted(known & set(command.names)):
            raise ValueError(f"{again[0]} was added before; use 'restart {again[0]}'")
        known.update(command.names)
    else:
        used.update(command.names)
    if command.verb == "replace":
        known.add(command.other)
    elif command.other:
        used.add(command.other)
    used.update(name for name in (command.start.address_of, command.start.files_of) if name)
    if condition is not None:
        used.update(condition.observers, condition.subjects)
    if "all" in (*command.names, command.other):
        raise ValueError("'all' is no name of a node: it means all that run")
    if unknown := sorted(used - (everybody if command.verb in _OF_LINKS else known)):
        raise ValueError(f"{unknown[0]} has not been added")


def parse_command(text: str, line: int = 1) -> Command:
    """One line that is neither empty nor a comment.

    Raises:
        ValueError: it says nothing that can be done.
    """
    verb, _, rest = text.partition(" ")
    rest = rest.strip()
    for pattern, make in _FORMS.get(verb, ()):
        match = pattern.fullmatch(rest)
        if match is not None:
            return Command(line=line, text=text, **make(match))
    if verb in _FORMS:
        raise ValueError(f"{text!r} is not understood; {verb} goes like this: {_USAGE[verb]}")
    raise ValueError(f"{verb!r} is no command; there are {', '.join(sorted(_FORMS))}")


def parse_condition(text: str) -> Condition:
    """What follows ``wait until`` and ``expect``.

    Raises:
        ValueError: it is no condition.
    """
    if match := re.fullmatch(rf"(?P<name>{_NAME}) (?P<kind>runs|settled|not settled)", text):
        return Condition(match["kind"], observers=(match["name"],))
    if match := re.fullmatch(rf'(?P<name>{_NAME}) (?P<kind>stopped|refused)(?: "(?P<reason>[^"]+)")?', text):
        return Condition(match["kind"], observers=(match["name"],), reason=match["reason"] or "")
    match = re.fullmatch(rf"(?P<observers>{_NAMES}) sees? (?P<subjects>{_NAMES}) (?P<tests>\S.*)", text)
    if match is None:
        raise ValueError(f"{text!r} is no condition; one is 'all see c DOWN', 'c runs', or 'c stopped \"reason\"'")
    return Condition(
        "see",
        observers=_names_or_all(match["observers"]),
        subjects=_names_or_all(match["subjects"]),
        tests=_tests(match["tests"]),
    )


def _tests(text: str) -> tuple[Test, ...]:
    tests: list[Test] = []
    words = iter(text.split())
    for word in words:
        negated = word == "not"
        asked = next(words, "") if negated else word
        if asked == "no":
            key = next(words, "")
            asked = f"no {key}"
            if not is_user_key(key):
                raise ValueError(f"{key!r} is no key of an application")
        elif "=" not in asked and asked not in LIVENESS_WORDS | STATUS_WORDS | HEALTH_WORDS:
            raise ValueError(
                f"{asked!r} is nothing that can be seen; there are {', '.join(sorted(LIVENESS_WORDS))}, "
                f"{', '.join(sorted(STATUS_WORDS))}, {', '.join(sorted(HEALTH_WORDS))}, key=value, no key, host=node"
            )
        tests.append(Test(asked, negated))
    return tuple(tests)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _names_or_all(text: str) -> tuple[str, ...]:
    return () if text == "all" else _names(text)


def _start(text: str) -> Start:
    """The clauses that follow ``add``, ``restart`` and ``replace``."""
    values: dict[str, Any] = {}
    rest = text.strip()
    while rest:
        for pattern, read in _CLAUSES:
            match = pattern.match(rest)
            if match is not None:
                values.update(read(match))
                rest = rest[match.end() :].strip()
                break
        else:
            raise ValueError(
                f"{rest!r} says nothing about a start; there are 'seed', 'at a new address', 'at the address of c', "
                "'without its files', 'with the files of c', 'with the clock 1h behind', 'with key=value ...'"
            )
    return Start(**values)


def _offset_seconds(text: str) -> float:
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no error of a clock; one is '1h behind' or '2d ahead'")
    seconds = float(match["count"]) * _UNIT_SECONDS[match["unit"]]
    return seconds if match["way"] == "ahead" else -seconds


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for word in text.split():
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ValueError(f"{word!r} is not key=value")
        pairs.append((key, value))
    return tuple(pairs)


_CLAUSES: Final[tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], dict[str, Any]]], ...]] = (
    (re.compile(r"seed\b"), lambda _: {"seed": True}),
    (re.compile(r"at a new address\b"), lambda _: {"new_address": True}),
    (re.compile(rf"at the address of ({_NAME})"), lambda m: {"address_of": m[1]}),
    (re.compile(r"without its files\b"), lambda _: {"without_files": True}),
    (re.compile(rf"with the files of ({_NAME})"), lambda m: {"files_of": m[1]}),
    (
        re.compile(r"with the clock (\d+ ?[smhd] (?:behind|ahead))"),
        lambda m: {"clock_offset_seconds": _offset_seconds(m[1])},
    ),
    (re.compile(r"with the clock right\b"), lambda _: {"clock_offset_seconds": 0.0}),
    (re.compile(r"with ((?:[a-z_]+=\S+ ?)+)"), lambda m: {"settings": _pairs(m[1])}),
)

_Form = tuple[re.Pattern[str], Callable[[re.Match[str]], dict[str, Any]]]
_FORMS: Final[dict[str, list[_Form]]] = {}
_USAGE: Final[dict[str, str]] = {}


def _form(usage: str, pattern: str, make: Callable[[re.Match[str]], dict[str, Any]], verb: str | None = None) -> None:
    """Register one form of a command; ``usage`` begins with its first word."""
    word = usage.partition(" ")[0]
    name = verb or word
    _FORMS.setdefault(word, []).append((re.compile(pattern), lambda match: {"verb": name, **make(match)}))
    _USAGE[word] = f"{_USAGE[word]}; or {usage}" if word in _USAGE else usage


def _within(text: str | None) -> float:
    return WITHIN_DEFAULT if text is None else float(text)


_START: Final = r"(?P<start>(?: .*)?)"
_form("configure key=value ...", r"(?P<pairs>.+)", lambda m: {"pairs": _pairs(m["pairs"])})
for _verb in ("add", "begin"):
    _form(
        f"{_verb} NODE[, NODE] [seed] [with ...]",
        rf"(?P<names>{_NAMES}){_START}",
        lambda m: {"names": _names(m["names"]), "start": _start(m["start"])},
    )
_form(
    "restart NODE[, NODE] [at a new address] [without its files] [with the clock 1h behind] [with key=value]",
    rf"(?P<names>{_NAMES}){_START}",
    lambda m: {"names": _names(m["names"]), "start": _start(m["start"])},
)
_form(
    "replace NODE by NODE [at the address of NODE]",
    rf"(?P<old>{_NAME}) by (?P<new>{_NAME}){_START}",
    lambda m: {"names": (m["old"],), "other": m["new"], "start": _start(m["start"])},
)
for _verb in ("kill", "shutdown", "pause", "resume", "isolate", "drain", "record"):
    _form(f"{_verb} NODE[, NODE]", rf"(?P<names>{_NAMES})", lambda m: {"names": _names(m["names"])})
_form("leave NODE", rf"(?P<name>{_NAME})", lambda m: {"names": (m["name"],)})
for _verb in ("disable", "enable"):
    _form(f"{_verb} gossip on NODE[, NODE]", rf"gossip on (?P<names>{_NAMES})", lambda m: {"names": _names(m["names"])})
_form(
    "remove NODE on NODE",
    rf"(?P<name>{_NAME}) on (?P<at>{_NAME})",
    lambda m: {"names": (m["name"],), "other": m["at"]},
)
_form(
    "assassinate NODE on NODE [force]",
    rf"(?P<name>{_NAME}) on (?P<at>{_NAME})(?P<force> force)?",
    lambda m: {"names": (m["name"],), "other": m["at"], "flag": m["force"] is not None},
)
_form(
    "set NODE key=value ...",
    rf"(?P<name>{_NAME}) (?P<pairs>.+)",
    lambda m: {"names": (m["name"],), "pairs": _pairs(m["pairs"])},
)
_form(
    "unset NODE key",
    rf"(?P<name>{_NAME}) (?P<key>\S+)",
    lambda m: {"names": (m["name"],), "pairs": ((m["key"], None),)},
    verb="set",
)
_form(
    "status NODE STATUS",
    rf"(?P<name>{_NAME}) (?P<word>\S+)",
    lambda m: {"names": (m["name"],), "word": m["word"]},
)
_form(
    "health NODE serving|failing",
    rf"(?P<name>{_NAME}) (?P<word>serving|failing)",
    lambda m: {"names": (m["name"],), "word": m["word"]},
)
_form(
    "clock NODE 1h behind",
    rf"(?P<name>{_NAME}) (?P<offset>.+)",
    lambda m: {"names": (m["name"],), "intervals": _offset_seconds(m["offset"])},
)
_form(
    "cut NODE -> NODE",
    rf"(?P<a>{_NAME}) (?P<arrow>->|-) (?P<b>{_NAME})",
    lambda m: {"names": (m["a"],), "other": m["b"], "both_ways": m["arrow"] == "-"},
)
_form(
    "split NODE, NODE | NODE, NODE",
    rf"(?P<groups>{_NAMES}(?: *\| *{_NAMES})+)",
    lambda m: {"groups": tuple(_names(group) for group in m["groups"].split("|"))},
)
_form("heal", r"", lambda _: {})
_form("heal NODE[, NODE]", rf"(?P<names>{_NAMES})", lambda m: {"names": _names(m["names"])})
_form(
    "delay NODE -> NODE by INTERVALS",
    rf"(?P<a>{_NAME}) (?P<arrow>->|-) (?P<b>{_NAME}) by (?P<n>{_NUMBER})",
    lambda m: {"names": (m["a"],), "other": m["b"], "both_ways": m["arrow"] == "-", "intervals": float(m["n"])},
)
for _verb, _place in (("lose", "to"), ("hold", "at"), ("copy", "at")):
    _form(
        f"{_verb} KIND from NODE {_place} NODE",
        rf"(?P<kind>{'|'.join(sorted(KINDS, reverse=True))}) from (?P<a>{_NAME}) {_place} (?P<b>{_NAME})",
        lambda m: {"word": m["kind"], "names": (m["a"],), "other": m["b"]},
    )
_form("release at NODE", rf"at (?P<name>{_NAME})", lambda m: {"names": (m["name"],)})
_form("wait INTERVALS", rf"(?P<n>{_NUMBER})", lambda m: {"intervals": float(m["n"])})
_form(
    "wait until CONDITION [within INTERVALS]",
    rf"until (?P<condition>.+?)(?: within (?P<n>{_NUMBER}))?",
    lambda m: {"condition": parse_condition(m["condition"]), "intervals": _within(m["n"])},
    verb="until",
)
_form('expect refused "text"', r'refused "(?P<word>[^"]+)"', lambda m: {"word": m["word"]}, verb="refused")
_form(
    "expect CONDITION [for INTERVALS]",
    rf"(?P<condition>.+?)(?: for (?P<n>{_NUMBER}))?",
    lambda m: {"condition": parse_condition(m["condition"]), "intervals": float(m["n"] or 0)},
)


def usages() -> tuple[str, ...]:
    """All forms of all commands, for the documentation and for help."""
    return tuple(usage for word in sorted(_USAGE) for usage in _USAGE[word].split("; or "))
