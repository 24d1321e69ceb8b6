"""The commands of ``kvstore`` without a node: usage, unreachable nodes, input files."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from kvstore.cli import main
from kvstore.client import KeyValue
from kvstore.errors import NotEnoughReplicasError, UnreachableError
from kvstore.replication import Mutation
from kvstore.transfer import InputError, LoadSummary, dump_rows, load_file, one_line


def run(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="kvstore", input=stdin)


class Recorder:
    """Takes what a load writes."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.batches: list[list[Mutation]] = []
        self.fail_after = fail_after

    def write(self, mutations: Sequence[Mutation]) -> int:
        if self.fail_after is not None and len(self.batches) == self.fail_after:
            raise NotEnoughReplicasError("needs 2 of 3 replicas, 1 alive")
        self.batches.append(list(mutations))
        return 1

    @property
    def rows(self) -> dict[bytes, bytes]:
        return {mutation.key: mutation.value for batch in self.batches for mutation in batch}


def load(
    path: Path, *, key_column: str | None = None, batch_rows: int = 500, file_format: str | None = None
) -> tuple[Recorder, LoadSummary]:
    recorder = Recorder()
    summary = load_file(
        recorder,  # type: ignore[arg-type]  # stands for a client
        path,
        file_format=file_format,
        key_column=key_column,
        batch_rows=batch_rows,
        calls=1,
    )
    return recorder, summary


COMMANDS = ["serve", "cluster", "put", "get", "delete", "scan", "load", "dump", "describe", "demo"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"kvstore {command}" in result.output


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom kvstore.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'grpc', 'numpy', 'lmdb', 'rich', 'asyncio'} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert "Commands:" in result.stdout
    assert result.stderr == "[]\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["put", "only-a-key"],
        ["get", "k", "--consistency", "most"],
        ["get", "k", "--node", "nowhere"],
        ["get", "k", "--timeout", "0"],
        ["scan", "--limit", "-1"],
        ["load", "f.jsonl", "--batch-rows", "0"],
        ["cluster", "--data", "x", "--nodes", "0"],
        ["cluster"],
        ["serve"],
        ["serve", "--data-dir", "x", "--replication-factor", "many"],
    ],
)
def test_wrong_usage_is_exit_status_2_without_a_traceback(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stderr


def test_serve_tells_all_faults_of_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('data_dir = "d"\nreplication_factor = 0\nrack = ""\n')
    result = run("serve", "--config", str(file), "--phi-threshold", "-1")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"kvstore serve: {file}: rack: must be printable text, is ''",
        "kvstore serve: command line: phi_threshold: must be above 0 and at most 1000, is -1.0",
        f"kvstore serve: {file}: replication_factor: must be 1 to 99, is 0",
    ]
    missing = run("serve", "--config", str(tmp_path / "missing.toml"))
    assert missing.exit_code == 2
    assert missing.stderr == f"kvstore serve: {tmp_path / 'missing.toml'}: cannot be read: No such file or directory\n"


@pytest.mark.parametrize(
    "arguments", [["put", "k", "v"], ["get", "k"], ["delete", "k"], ["scan"], ["dump"], ["describe"], ["load", "-"]]
)
def test_a_node_that_cannot_be_reached_is_exit_status_5(arguments: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    # Closed again: nobody listens there now.
    result = run(*arguments, "--node", address, stdin=b'{"key": "a", "value": "b"}\n')
    assert result.exit_code == 5
    assert result.stderr.startswith(f"kvstore: cannot reach {address}: connection refused; is the node running?")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_a_node_that_does_not_answer_costs_one_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        result = run("get", "k", "--node", address, "--timeout", "0.2")
    assert result.exit_code == 5
    assert result.stderr == f"kvstore: no answer from {address} in time; is it overloaded or stopped?\n"


@pytest.mark.parametrize(("key", "text"), [("", "has 0"), ("k" * 481, "has 481")])
def test_a_key_beyond_its_limits_is_refused_before_anything_is_sent(key: str, text: str) -> None:
    result = run("get", key, "--node", "127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr == f"kvstore: a key has 1 to 480 bytes, this one {text}\n"


def test_csv_rows_become_json_objects(tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_bytes('\ufeffid,name,note\n1,Ada,"two\nlines, one ""quote"""\n\n2,Zoë,\n'.encode())
    recorder, summary = load(path, key_column="id")
    assert recorder.rows == {
        b"1": b'{"name":"Ada","note":"two\\nlines, one \\"quote\\""}',
        b"2": '{"name":"Zoë","note":""}'.encode(),
    }
    assert summary.rows == 2


@pytest.mark.parametrize(
    ("content", "key_column", "text", "usage"),
    [
        (b"", "id", "is empty", False),
        (b"id,name\n1,Ada\n", "key", ":1: has no column 'key'; its columns are id, name", True),
        (b"id,name\n1,Ada\n", None, "needs --key-column", True),
        (b"id,id\n1,2\n", "id", ":1: names a column twice", False),
        (b"id,name\n1,Ada\n2\n", "id", ":3: has 1 columns, the first line has 2", False),
        (b"id,name\n,Ada\n", "id", ":2: the key (column 'id') is empty", False),
        (b'id,name\n1,"Ada\n', "id", "is not CSV", False),
        (b"id,name\n1,\xff\n", "id", ":2: is not UTF-8 text", False),
        (b"id,name\n" + b"k" * 481 + b",x\n", "id", ":2: a key has 1 to 480 bytes, this one has 481", False),
    ],
)
def test_a_faulty_csv_file_names_the_line(
    tmp_path: Path, content: bytes, key_column: str | None, text: str, usage: bool
) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(path, key_column=key_column)
    assert text in str(caught.value)
    assert caught.value.usage is usage


def test_json_lines_with_and_without_a_key_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"key": "a", "value": "text"}\n\n{"key": "b", "value": {"n": 1}}\n{"key": 7, "value": null}\n')
    assert load(path)[0].rows == {b"a": b"text", b"b": b'{"n":1}', b"7": b"null"}
    path.write_text('{"id": "x", "n": 1}\n{"id": 5}\n')
    assert load(path, key_column="id")[0].rows == {b"x": b'{"n":1}', b"5": b"{}"}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("nonsense", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"value": "x"}', "has neither key nor key_base64"),
        ('{"key": "x"}', "has neither value nor value_base64"),
        ('{"key_base64": "!!", "value": ""}', "key_base64 is not Base64"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_faulty_line_ends_a_load_and_keeps_the_rows_before(tmp_path: Path, line: str, text: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"key": "a", "value": "b"}\n' + line + "\n")
    recorder = Recorder()
    with pytest.raises(InputError, match=text) as caught:
        load_file(recorder, path, batch_rows=1)  # type: ignore[arg-type]  # as above
    assert str(caught.value).startswith(f"{path}:2: ")
    assert recorder.rows == {b"a": b"b"}


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    result = run("load", str(tmp_path / "none.jsonl"), "--node", "127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr == f"kvstore: {tmp_path / 'none.jsonl'}: cannot be read: No such file or directory\n"


def test_batches_keep_rows_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"key": f"k{n}", "value": "x" * 400_000}) + "\n" for n in range(12)))
    recorder, summary = load(path, batch_rows=100)
    assert [len(batch) for batch in recorder.batches] == [5, 5, 2]
    assert summary.key_value_bytes == sum(len(key) + len(value) for key, value in recorder.rows.items())
    assert [len(batch) for batch in load(path, batch_rows=4)[0].batches] == [4, 4, 4]


class Overtaking(Recorder):
    """The first call arrives after the second."""

    def __init__(self) -> None:
        super().__init__()
        self.second_arrived = threading.Event()

    def write(self, mutations: Sequence[Mutation]) -> int:
        if mutations[0].value == b"0":
            assert self.second_arrived.wait(30)
        result = super().write(mutations)
        if mutations[0].value == b"3":
            self.second_arrived.set()
        return result


def test_the_last_row_of_a_key_wins_although_calls_overtake_each_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"key": f"k{n % 7}", "value": str(n)}) + "\n" for n in range(200)))
    recorder = Overtaking()
    summary = load_file(recorder, path, batch_rows=3, calls=4)  # type: ignore[arg-type]  # as above
    assert summary.rows == 200
    assert [batch[0].value for batch in recorder.batches[:2]] == [b"3", b"0"]
    assert recorder.rows == {b"k%d" % (n % 7): b"%d" % n for n in range(193, 200)}


def test_a_failed_write_says_how_much_was_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"key": "k{n}", "value": ""}}\n' for n in range(10)))
    recorder = Recorder(fail_after=2)
    with pytest.raises(NotEnoughReplicasError, match=r"1 alive \(6 rows were written\)"):
        load_file(recorder, path, batch_rows=3, calls=1)  # type: ignore[arg-type]  # as above


@given(st.dictionaries(st.binary(min_size=1, max_size=40), st.binary(max_size=40)))
def test_dump_and_load_give_every_row_back(tmp_path_factory: pytest.TempPathFactory, rows: dict[bytes, bytes]) -> None:
    path = tmp_path_factory.mktemp("dump") / "rows.jsonl"
    assert dump_rows((KeyValue(key, value, 1) for key, value in rows.items()), path) == len(rows)
    assert load(path)[0].rows == rows


def test_a_dump_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("old")

    def broken() -> object:
        yield KeyValue(b"a", b"b", 1)
        raise UnreachableError("gone")

    with pytest.raises(UnreachableError):
        dump_rows(broken(), path)  # type: ignore[arg-type]  # a generator
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="cannot be written"):
        dump_rows([], tmp_path / "missing" / "rows.jsonl")


@given(st.binary(max_size=50))
def test_one_line_is_one_line(content: bytes) -> None:
    text = one_line(content)
    assert text.isprintable()
    assert len(text.splitlines()) <= 1
