"""The identity file: durable before it is used, never believed when damaged, owned by one process at a time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossiper.errors import LocalStateError
from gossiper.limits import INTEGER_MAX
from gossiper.storage import FILE_NAME, LOCK_NAME, NodeStorage, StoredIdentity, _checksum, _parse, reset

HOST_ID = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"


@contextmanager
def opened(directory: Path | None) -> Iterator[NodeStorage]:
    with NodeStorage(directory) as storage:
        yield storage


def stored(directory: Path, generation: int = 1_764_000_000) -> Path:
    """A directory in which a node has run; returns its identity file."""
    with opened(directory) as storage:
        storage.store_generation(generation, HOST_ID)
    return directory / FILE_NAME


def test_the_first_start_has_no_generation_and_a_new_host_id(tmp_path: Path) -> None:
    with opened(tmp_path) as storage:
        first = storage.load()
        assert first.generation is None
        assert str(uuid.UUID(first.host_id)) == first.host_id
        assert storage.load() == first
        storage.store_generation(7)
        assert storage.load() == StoredIdentity(7, first.host_id)
    with opened(tmp_path) as storage:
        assert storage.load() == StoredIdentity(7, first.host_id)


def test_two_new_nodes_have_different_host_ids(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as a, opened(tmp_path / "b") as b:
        assert a.load().host_id != b.load().host_id


def test_the_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    with opened(tmp_path / "a" / "b") as storage:
        storage.store_generation(1)
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [FILE_NAME, LOCK_NAME]


def test_the_format_is_the_documented_text(tmp_path: Path) -> None:
    path = stored(tmp_path, 1_764_000_000)
    lines = path.read_text().splitlines()
    assert lines[:3] == ["gossiper-identity 1", "generation 1764000000", f"host_id {HOST_ID}"]
    assert lines[3] == "checksum " + _checksum("\n".join([*lines[:3], ""]).encode())
    assert len(lines) == 4


@pytest.mark.parametrize("directory", ["disk", None])
def test_a_generation_only_ever_increases(tmp_path: Path, directory: str | None) -> None:
    with opened(None if directory is None else tmp_path / directory) as storage:
        storage.store_generation(10)
        for generation in (10, 9, 0, -1):
            with pytest.raises(LocalStateError, match=f"generation {generation} is not greater than 10"):
                storage.store_generation(generation)
        storage.store_generation(11)
        assert storage.load().generation == 11


@pytest.mark.parametrize("generation", [0, -5, INTEGER_MAX])
def test_an_impossible_generation_is_refused(tmp_path: Path, generation: int) -> None:
    with opened(tmp_path) as storage, pytest.raises(LocalStateError, match="impossible; check the system clock"):
        storage.store_generation(generation)
    assert not (tmp_path / FILE_NAME).exists()


def test_a_configured_host_id_is_stored_in_canonical_form(tmp_path: Path) -> None:
    with opened(tmp_path) as storage:
        storage.store_generation(1, HOST_ID.upper())
    with opened(tmp_path) as storage:
        assert storage.load().host_id == HOST_ID


def test_clear_makes_the_next_start_that_of_a_new_node(tmp_path: Path) -> None:
    path = stored(tmp_path)
    with opened(tmp_path) as storage:
        storage.clear()
        assert not path.exists()
        storage.clear()
        assert storage.load().generation is None
        assert storage.load().host_id != HOST_ID


def test_memory_only_writes_nothing_and_remembers_while_it_lives() -> None:
    with opened(None) as storage:
        host_id = storage.load().host_id
        storage.store_generation(5)
        assert storage.load() == StoredIdentity(5, host_id)
        storage.clear()
        assert storage.load().generation is None


# -- damage ------------------------------------------------------------------------------------------------------------


def refuses(directory: Path, because: str) -> None:
    with opened(directory) as storage, pytest.raises(LocalStateError) as caught:
        storage.load()
    text = str(caught.value)
    assert text.startswith(f"{directory / FILE_NAME} is corrupt ({because}")
    assert f"gossiper generation reset --data {directory}" in text
    assert "\n" not in text


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    data = stored(tmp_path).read_bytes()
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"wrong checksum|not an identity file"):
            _parse(bytes(damaged))


def test_every_shorter_file_is_noticed(tmp_path: Path) -> None:
    data = stored(tmp_path).read_bytes()
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"wrong checksum|not an identity file"):
            _parse(data[:length])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes_are_refused_without_a_surprise(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"wrong checksum|not an identity file"):
        _parse(data)


def test_a_corrupt_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = stored(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"1764000000", b"1764000001"))
    before = path.read_bytes()
    refuses(tmp_path, "wrong checksum")
    with opened(tmp_path) as storage, pytest.raises(LocalStateError, match="is corrupt"):
        storage.store_generation(1_900_000_000)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"x" * 5000, "ünicode\n".encode("latin-1")])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    refuses(tmp_path, "not an identity file")


@pytest.mark.parametrize(
    ("body", "because"),
    [
        (f"gossiper-identity 2\ngeneration 5\nhost_id {HOST_ID}\n", "not 'gossiper-identity 1', perhaps"),
        (f"gossiper-identity 1\nhost_id {HOST_ID}\n", "invalid literal"),
        (f"gossiper-identity 1\ngeneration 0\nhost_id {HOST_ID}\n", "generation 0 is impossible"),
        ("gossiper-identity 1\ngeneration 5\nhost_id nobody\n", "badly formed"),
        ("gossiper-identity 1\ngeneration 5\n", "badly formed"),
        ("gossiper-identity 1\nnonsense\n", "dictionary"),
    ],
)
def test_a_right_checksum_over_wrong_content_is_refused(tmp_path: Path, body: str, because: str) -> None:
    (tmp_path / FILE_NAME).write_bytes(body.encode() + f"checksum {_checksum(body.encode())}\n".encode())
    with opened(tmp_path) as storage, pytest.raises(LocalStateError, match=f"is corrupt .*{because}"):
        storage.load()


def test_a_leftover_of_a_crash_while_writing_is_ignored_and_overwritten(tmp_path: Path) -> None:
    stored(tmp_path, 5)
    leftover = tmp_path / (FILE_NAME + ".tmp")
    leftover.write_bytes(b"half a fi")
    with opened(tmp_path) as storage:
        assert storage.load() == StoredIdentity(5, HOST_ID)
        storage.store_generation(6)
    assert not leftover.exists()


# -- reset -------------------------------------------------------------------------------------------------------------


def test_reset_sets_the_file_aside_and_the_next_start_begins_anew(tmp_path: Path) -> None:
    asides = []
    for content in (b"first", b"second", b"third"):
        (tmp_path / FILE_NAME).write_bytes(content)
        aside = reset(tmp_path)
        assert aside is not None
        assert aside.read_bytes() == content
        asides.append(aside.name)
    assert asides == [f"{FILE_NAME}.corrupt", f"{FILE_NAME}.1.corrupt", f"{FILE_NAME}.2.corrupt"]
    with opened(tmp_path) as storage:
        assert storage.load().generation is None


def test_reset_without_a_file_says_so(tmp_path: Path) -> None:
    assert reset(tmp_path) is None
    with pytest.raises(LocalStateError, match="is not a directory"):
        reset(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def test_reset_of_a_running_node_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path)
    with opened(tmp_path) as storage:
        storage.load()
        with pytest.raises(LocalStateError, match="in use by another node"):
            reset(tmp_path)
    assert path.exists()


# -- one owner ---------------------------------------------------------------------------------------------------------


def test_a_directory_has_one_owner_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path) as owner:
        owner.load()
        for method in (NodeStorage.load, NodeStorage.clear):
            with opened(tmp_path) as other, pytest.raises(LocalStateError) as caught:
                method(other)
            assert str(caught.value) == (
                f"{tmp_path} is in use by another node (process {os.getpid()}); "
                "stop it, or give each node its own directory"
            )
        owner.close()
        owner.close()
        with opened(tmp_path) as other:
            other.store_generation(3)


def test_another_process_is_kept_out_and_named_until_it_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from gossiper.storage import NodeStorage\n"
        "storage = NodeStorage(pathlib.Path(sys.argv[1])); storage.store_generation(9)\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with opened(tmp_path) as storage, pytest.raises(LocalStateError, match=rf"\(process {process.pid}\)"):
            storage.load()
        process.kill()
        process.wait(10)
    with opened(tmp_path) as storage:
        assert storage.load().generation == 9


# -- disks that refuse -------------------------------------------------------------------------------------------------


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_full_disk_changes_nothing_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(tmp_path, 5)
    before = path.read_bytes()
    with opened(tmp_path) as storage:
        storage.load()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(errno.ENOSPC))
            with pytest.raises(LocalStateError) as caught:
                storage.store_generation(6)
        assert str(caught.value).startswith(f"cannot write {path}: No space left on device; give a data directory")
        assert path.read_bytes() == before
        assert storage.load().generation == 5
        assert sorted(p.name for p in tmp_path.iterdir()) == [FILE_NAME, LOCK_NAME]
        storage.store_generation(6)
    assert _parse(path.read_bytes()).generation == 6


def test_the_file_is_durable_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def recording_fsync(descriptor: int) -> None:
        steps.append("fsync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def recording_replace(self: Path, target: Path) -> Path:
        steps.append(f"rename {self.name} {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(Path, "replace", recording_replace)
    stored(tmp_path)
    assert steps == [f"fsync {FILE_NAME}.tmp", f"rename {FILE_NAME}.tmp {FILE_NAME}", f"fsync {tmp_path.name}"]


def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        opened(tmp_path / "file") as storage,
        pytest.raises(LocalStateError, match=r"cannot use .*/file: File exists;"),
    ):
        storage.load()
    below = tmp_path / "file" / "below"
    with opened(below) as storage, pytest.raises(LocalStateError, match=r"cannot use .*/below: Not a directory;"):
        storage.load()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(Path, "open", failing(number))
    with opened(tmp_path) as storage, pytest.raises(LocalStateError) as caught:
        storage.load()
    assert str(caught.value).startswith(f"cannot use {tmp_path}: {os.strerror(number)}; give a data directory")


def test_an_identity_file_that_cannot_be_read_or_removed(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with opened(tmp_path) as storage:
        with pytest.raises(LocalStateError, match=f"cannot read .*/{FILE_NAME}: Is a directory"):
            storage.load()
        with pytest.raises(LocalStateError, match=f"cannot remove .*/{FILE_NAME}: "):
            storage.clear()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", failing(errno.ENOLCK))
    with opened(tmp_path) as storage, pytest.raises(LocalStateError, match=f"cannot lock .*/{LOCK_NAME}: .*local disk"):
        storage.load()


@pytest.mark.parametrize(("file_bytes_max", "file"), [(0, LOCK_NAME), (20, FILE_NAME)])
def test_a_process_that_cannot_write_another_byte(tmp_path: Path, file_bytes_max: int, file: str) -> None:
    """The nearest to a full disk without one: the kernel refuses to let files grow."""
    program = (
        "import pathlib, resource, sys; from gossiper.errors import LocalStateError\n"
        "from gossiper.storage import NodeStorage\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "try:\n    NodeStorage(pathlib.Path(sys.argv[1])).store_generation(9)\n"
        "except LocalStateError as error:\n    print(error)"
    )
    command = [sys.executable, "-X", "dev", "-c", program, str(tmp_path), str(file_bytes_max)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    assert str(tmp_path / file) in lines[0]
    assert "File too large; give a data directory" in lines[0]
    assert not (tmp_path / FILE_NAME).exists()
    assert not (tmp_path / (FILE_NAME + ".tmp")).exists()
