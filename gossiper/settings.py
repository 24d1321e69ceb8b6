"""From a TOML file to a frozen dataclass: every fault at once, each with its key and what is allowed there.

The keys of the file are the field names of the dataclass. Its own checks (a :class:`ConfigError` raised by
``__post_init__``, whose faults begin with ``key:``) are reported together with the faults found here.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from gossiper.errors import ConfigError

#: A settings file is a page of text; what is larger is another file, named by mistake.
SETTINGS_BYTES_MAX: Final = 1024 * 1024
#: Longer values are cut in messages, which stay one line each.
_SHOWN_LENGTH_MAX: Final = 60

_T = TypeVar("_T")


class _WrongTypeError(Exception):
    """The message says what is allowed."""


def read_toml(path: Path) -> dict[str, Any]:
    """The top-level table of a TOML file.

    Raises:
        ConfigError: the file cannot be read, is too large, or is not TOML (with line and column).
    """
    try:
        with path.open("rb") as file:
            content = file.read(SETTINGS_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror or error}"]) from None
    if len(content) > SETTINGS_BYTES_MAX:
        raise ConfigError([f"{path}: larger than {SETTINGS_BYTES_MAX} bytes, so it is not a settings file"])
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}: is not TOML: not UTF-8 text (at line {line})"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: is not TOML: {error}"]) from None


def build(
    cls: type[_T],
    values: Mapping[str, object],
    *,
    source: str,
    origins: Mapping[str, str] | None = None,
    base_dir: Path | None = None,
) -> _T:
    """An instance of the frozen dataclass ``cls`` from ``values``, by field name.

    Fields may be str, int, float, bool, Path, tuple[str, ...], tuple[tuple[str, str], ...] (a table of texts), and
    any of these or None. An integer is accepted for a float; nothing else is converted.

    Args:
        cls: The dataclass.
        values: What was set. Fields that are not in it keep their defaults.
        source: Where the values come from, as people know it: the path of the file. Every fault begins with it.
        origins: For single keys, what takes the place of source and key (``{"listen": "--listen"}``).
        base_dir: Relative texts for a Path are taken from here; default: the current directory.

    Raises:
        ConfigError: lists all unknown keys, missing keys, wrong types, and what ``cls`` itself refuses.
    """
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls.__name__} is not a dataclass")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    accepted: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for key, value in values.items():
        if key not in fields:
            faults[key] = _unknown(key, fields)
            continue
        try:
            accepted[key] = _convert(value, hints[key], base_dir)
        except _WrongTypeError as error:
            faults[key] = f"must be {error}, is {_shown(value)}"
    for name, field in fields.items():
        if name not in values and _is_required(field):
            faults[name] = f"is missing; it must be {_describe(hints[name])}"
    instance: _T | None = None
    own: list[str] = []
    # What is missing or of a wrong type is filled in, so that the class can judge all the rest at the same time; its
    # complaints about the filler are dropped below.
    filler = {name: _filler(hints[name]) for name in faults if name in fields and _is_required(fields[name])}
    try:
        instance = cls(**accepted, **filler)
    except ConfigError as error:
        own = [fault for fault in error.faults if fault.partition(": ")[0] not in faults]
    if instance is not None and not faults:
        return instance
    lines = list(faults.items())
    lines += [(key, fault) for key, _, fault in (fault.partition(": ") for fault in own)]
    raise ConfigError([_line(key, fault, source, origins or {}) for key, fault in lines])


def _line(key: str, fault: str, source: str, origins: Mapping[str, str]) -> str:
    place = origins.get(key) or f"{source}: {key if key.isprintable() and key else repr(key)}"
    return f"{place}: {fault}" if fault else place


def load_settings(path: Path, cls: type[_T], *, overrides: Mapping[str, object] | None = None) -> _T:
    """An instance of ``cls`` from the TOML file at ``path``; ``overrides`` (from the command line) win.

    Relative paths in the file are taken from the folder of the file, wherever the command is started.

    Raises:
        ConfigError: see :func:`read_toml` and :func:`build`.
    """
    overrides = overrides or {}
    values = {**read_toml(path), **overrides}
    origins = {key: f"command line: {key}" for key in overrides}
    return build(cls, values, source=str(path), origins=origins, base_dir=path.parent)


def nearest(word: str, choices: typing.Iterable[str]) -> str | None:
    """The one of ``choices`` that ``word`` was probably meant to be; None if nothing is near."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return found[0] if found else None


def _unknown(key: str, fields: Mapping[str, object]) -> str:
    near = nearest(key, fields)
    if near is not None:
        return f"unknown key; did you mean {near}?"
    return f"unknown key; allowed: {', '.join(sorted(fields))}"


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a field without None."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return tuple(member for member in typing.get_args(hint) if member is not types.NoneType)
    return (hint,)


def _path(value: Any, base_dir: Path | None) -> Path:
    path = Path(value).expanduser()
    return path if base_dir is None or isinstance(value, Path) else base_dir / path


def _is_text_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _is_text_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


_Rule = tuple[str, Callable[[Any], bool], Callable[[Any, Path | None], Any], Any]
#: For each type of a field: its name for people, what is accepted, how it is converted, a filler.
_RULES: Final[dict[Any, _Rule]] = {
    str: ("a text", lambda value: isinstance(value, str), lambda value, _: value, ""),
    bool: ("true or false", lambda value: isinstance(value, bool), lambda value, _: value, False),
    int: (
        "a whole number",
        lambda value: isinstance(value, int) and not isinstance(value, bool),
        lambda value, _: value,
        0,
    ),
    float: (
        "a number",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value),
        lambda value, _: float(value),
        0.0,
    ),
    Path: ("a path", lambda value: isinstance(value, Path) or _is_path_text(value), _path, Path()),
    tuple[str, ...]: ("a list of texts", _is_text_list, lambda value, _: tuple(value), ()),
    tuple[tuple[str, str], ...]: ("a table of texts", _is_text_table, lambda value, _: tuple(value.items()), ()),
}


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _is_path_text(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def _rules(hint: Any) -> list[_Rule]:
    try:
        return [_RULES[member] for member in _members(hint)]
    except KeyError as error:
        raise TypeError(f"fields of type {error.args[0]} cannot be read from a file") from None


def _convert(value: Any, hint: Any, base_dir: Path | None) -> Any:
    if value is None and types.NoneType in typing.get_args(hint):
        return None
    for _name, accepts, convert, _filler_value in _rules(hint):
        if accepts(value):
            return convert(value, base_dir)
    raise _WrongTypeError(_describe(hint))


def _describe(hint: Any) -> str:
    return " or ".join(name for name, *_rest in _rules(hint))


def _filler(hint: Any) -> Any:
    return _rules(hint)[0][3]


def _shown(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _SHOWN_LENGTH_MAX else text[:_SHOWN_LENGTH_MAX] + "..."
