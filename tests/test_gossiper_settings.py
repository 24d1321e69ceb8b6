"""Settings files: what is accepted, and that every fault is named at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossiper.config import GossipConfig
from gossiper.errors import ConfigError
from gossiper.settings import SETTINGS_BYTES_MAX, build, load_settings, nearest, read_toml


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    name: str
    limit: int = 7
    ratio: float = 0.5
    loud: bool = False
    data_dir: Path | None = None
    seeds: tuple[str, ...] = ()
    pause_seconds: float | None = None
    states: tuple[tuple[str, str], ...] = field(default=())

    def __post_init__(self) -> None:
        faults = []
        if not self.name:
            faults.append("name: must not be empty")
        if self.limit < 1:
            faults.append(f"limit: must be at least 1, is {self.limit}")
        if faults:
            raise ConfigError(faults)


def faults_of(values: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build(Sample, values, source="node.toml")
    return caught.value.faults


def test_builds_every_type() -> None:
    sample = build(
        Sample,
        {
            "name": "a",
            "limit": 3,
            "ratio": 2,
            "loud": True,
            "data_dir": "data",
            "seeds": ["x:1", "y:2"],
            "pause_seconds": 1.5,
            "states": {"role": "db"},
        },
        source="node.toml",
        base_dir=Path("etc"),
    )
    assert sample == Sample(
        name="a",
        limit=3,
        ratio=2.0,
        loud=True,
        data_dir=Path("etc/data"),
        seeds=("x:1", "y:2"),
        pause_seconds=1.5,
        states=(("role", "db"),),
    )
    assert isinstance(sample.ratio, float)


def test_defaults_stay_and_none_is_accepted_where_the_field_allows_it() -> None:
    assert build(Sample, {"name": "a", "data_dir": None}, source="s") == Sample(name="a")
    assert faults_of({"name": None}) == ["node.toml: name: must be a text, is None"]


def test_an_absolute_path_and_a_path_object_are_not_moved(tmp_path: Path) -> None:
    absolute = build(Sample, {"name": "a", "data_dir": str(tmp_path)}, source="s", base_dir=Path("etc"))
    assert absolute.data_dir == tmp_path
    given_as_path = build(Sample, {"name": "a", "data_dir": Path("here")}, source="s", base_dir=Path("etc"))
    assert given_as_path.data_dir == Path("here")


def test_all_faults_at_once_each_with_key_and_what_is_allowed() -> None:
    assert faults_of(
        {
            "limitt": 1,
            "zzz": 1,
            "limit": 0,
            "ratio": "fast",
            "loud": 1,
            "data_dir": "",
            "seeds": "x:1",
            "pause_seconds": True,
            "states": {"role": 1},
        }
    ) == [
        "node.toml: limitt: unknown key; did you mean limit?",
        "node.toml: zzz: unknown key; allowed: data_dir, limit, loud, name, pause_seconds, ratio, seeds, states",
        "node.toml: ratio: must be a number, is 'fast'",
        "node.toml: loud: must be true or false, is 1",
        "node.toml: data_dir: must be a path, is ''",
        "node.toml: seeds: must be a list of texts, is 'x:1'",
        "node.toml: pause_seconds: must be a number, is true",
        "node.toml: states: must be a table of texts, is {'role': 1}",
        "node.toml: name: is missing; it must be a text",
        "node.toml: limit: must be at least 1, is 0",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_a_number_must_be_finite(value: float) -> None:
    (fault,) = faults_of({"name": "a", "ratio": value})
    assert fault.startswith("node.toml: ratio: must be a number, is ")
    assert len(fault) < 120


def test_a_whole_number_is_neither_a_float_nor_a_boolean() -> None:
    assert faults_of({"name": "a", "limit": 1.0}) == ["node.toml: limit: must be a whole number, is 1.0"]
    assert faults_of({"name": "a", "limit": True}) == ["node.toml: limit: must be a whole number, is true"]


def test_the_origin_of_a_key_replaces_the_source() -> None:
    with pytest.raises(ConfigError) as caught:
        build(Sample, {"name": "", "limit": "x"}, source="node.toml", origins={"name": "--name", "limit": "--limit"})
    assert caught.value.faults == [
        "--limit: must be a whole number, is 'x'",
        "--name: must not be empty",
    ]


def test_a_gossip_config_names_type_and_range_faults_together() -> None:
    with pytest.raises(ConfigError) as caught:
        build(
            GossipConfig,
            {"listen": 7000, "seeds": ["nowhere"], "interval_seconds": 0, "rack": 1, "phi_treshold": 8},
            source="node.toml",
        )
    text = "\n".join(caught.value.faults)
    assert "node.toml: listen: must be a text, is 7000" in text
    assert "node.toml: cluster_name: is missing; it must be a text" in text
    assert "node.toml: seeds: 'nowhere' is not host:port" in text
    assert "node.toml: interval_seconds: must be " in text
    assert "node.toml: rack: must be a text, is 1" in text
    assert "node.toml: phi_treshold: unknown key; did you mean phi_threshold?" in text
    assert len(caught.value.faults) == 6


def test_load_settings_reads_the_file_and_lets_overrides_win(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('name = "a"\nlimit = 3\ndata_dir = "data"\n[states]\nrole = "db"\n')
    sample = load_settings(file, Sample, overrides={"limit": 4})
    assert sample == Sample(name="a", limit=4, data_dir=tmp_path / "data", states=(("role", "db"),))
    with pytest.raises(ConfigError) as caught:
        load_settings(file, Sample, overrides={"limit": 0})
    assert caught.value.faults == ["command line: limit: must be at least 1, is 0"]


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.toml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError) as caught:
            read_toml(path)
        assert caught.value.faults == [f"{path}: cannot be read: {reason}"]


def test_what_is_not_toml_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("a = 1\nb = = 2\n")
    with pytest.raises(ConfigError, match=r"node\.toml: is not TOML: .*line 2"):
        read_toml(file)
    file.write_bytes(b'a = 1\nb = "\xff"\n')
    with pytest.raises(ConfigError, match=r"node\.toml: is not TOML: not UTF-8 text \(at line 2\)"):
        read_toml(file)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_bytes(b"#" * (SETTINGS_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="larger than"):
        read_toml(file)


def test_a_field_type_that_cannot_be_read_is_a_programming_error() -> None:
    @dataclass(frozen=True)
    class Odd:
        number: complex = 0j

    with pytest.raises(TypeError, match="complex"):
        build(Odd, {"number": 1}, source="s")
    with pytest.raises(TypeError, match="not a dataclass"):
        build(int, {}, source="s")


def test_nearest() -> None:
    assert nearest("staus", ["status", "repair"]) == "status"
    assert nearest("xyz", ["status", "repair"]) is None


@given(st.dictionaries(st.text(max_size=12), st.none() | st.booleans() | st.integers() | st.floats() | st.text()))
def test_any_values_give_an_instance_or_a_config_error(values: dict[str, object]) -> None:
    faults = ["s: "]
    try:
        sample = build(Sample, {"name": "a"} | values, source="s")
    except ConfigError as error:
        faults = error.faults
    else:
        assert isinstance(sample, Sample)
    assert faults
    assert all(fault.startswith("s: ") and "\n" not in fault for fault in faults)
