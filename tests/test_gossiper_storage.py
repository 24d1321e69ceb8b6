"""Identity and known peers: durable before use, never believed when damaged, owned by one process at a time."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossiper.core.saved import KnownPeer
from gossiper.errors import LocalStateError
from gossiper.limits import INTEGER_MAX
from gossiper.storage import (
    FILE_NAME,
    LOCK_NAME,
    PEERS_FILE_NAME,
    NodeStorage,
    StoredIdentity,
    _checksum,
    _parse,
    _parse_peers,
    reset,
)

HOST_ID = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
OTHER_ID = "11111111-2222-4333-8444-555555555555"
PEERS = (
    KnownPeer("10.0.0.1:7000", HOST_ID, "datacenter1", "rack1", 1_764_000_000, 1_764_003_600),
    KnownPeer("10.0.0.2:7000", OTHER_ID, "Süd West%20", "", 1_764_000_009, 1_764_000_000),
    KnownPeer("[::1]:7000", "", "", "", 0),
)


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


@pytest.mark.parametrize("directory", ["disk", None])
def test_another_host_id_than_the_stored_one_is_refused(tmp_path: Path, directory: str | None) -> None:
    path = None if directory is None else tmp_path / directory
    with opened(path) as storage:
        storage.store_generation(1, HOST_ID)
        storage.store_generation(2, HOST_ID.upper())
        with pytest.raises(LocalStateError) as caught:
            storage.store_generation(3, OTHER_ID)
        assert str(caught.value) == (
            f"{path or 'this node'} belongs to host id {HOST_ID}, but host_id is set to {OTHER_ID}; "
            "remove that setting, or give the new node a data directory of its own"
        )
        assert storage.load() == StoredIdentity(2, HOST_ID)
    if path is not None:
        with opened(path) as storage:
            with pytest.raises(LocalStateError, match=f"belongs to host id {HOST_ID}"):
                storage.store_generation(3, OTHER_ID)
            storage.clear()
            storage.store_generation(3, OTHER_ID)
            assert storage.load() == StoredIdentity(3, OTHER_ID)


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


# -- known peers -------------------------------------------------------------------------------------------------------


def with_peers(directory: Path, peers: tuple[KnownPeer, ...] = PEERS) -> Path:
    with opened(directory) as storage:
        storage.store_peers(peers)
    return directory / PEERS_FILE_NAME


def sealed(body: str) -> bytes:
    return body.encode() + f"checksum {_checksum(body.encode())}\n".encode()


def test_no_peers_are_known_at_the_first_start(tmp_path: Path) -> None:
    with opened(tmp_path) as storage:
        assert storage.load_peers() == ()
    assert not (tmp_path / PEERS_FILE_NAME).exists()


def test_the_peers_of_the_run_before(tmp_path: Path) -> None:
    with_peers(tmp_path, PEERS[::-1])
    with opened(tmp_path) as storage:
        assert storage.load_peers() == PEERS
        storage.store_peers(PEERS[:1])
        assert storage.load_peers() == PEERS[:1]
    with opened(tmp_path) as storage:
        assert storage.load_peers() == PEERS[:1]
        storage.store_peers([])
    with opened(tmp_path) as storage:
        assert storage.load_peers() == ()


def test_peers_in_memory_only() -> None:
    with opened(None) as storage:
        assert storage.load_peers() == ()
        storage.store_peers(PEERS)
        assert storage.load_peers() == PEERS


def test_the_format_of_peers_is_the_documented_text(tmp_path: Path) -> None:
    body = (
        "gossiper-peers 2\n"
        f"peer 10.0.0.1:7000 1764000000 1764003600 {HOST_ID} datacenter1 rack1\n"
        f"peer 10.0.0.2:7000 1764000009 1764000000 {OTHER_ID} S%C3%BCd%20West%2520 \n"
        "peer [::1]:7000 0 0   \n"
    )
    assert with_peers(tmp_path).read_bytes() == sealed(body)


def test_peers_in_the_form_before_are_read_and_were_seen_when_it_was_written(tmp_path: Path) -> None:
    body = (
        "gossiper-peers 1\n"
        f"peer 10.0.0.1:7000 1764000000 {HOST_ID} datacenter1 rack1\n"
        f"peer 10.0.0.2:7000 1764000009 {OTHER_ID} S%C3%BCd%20West%2520 \n"
        "peer [::1]:7000 0   \n"
    )
    path = tmp_path / PEERS_FILE_NAME
    path.write_bytes(sealed(body))
    os.utime(path, (1_764_111_111, 1_764_111_111))
    before = tuple(replace(peer, seen_seconds=1_764_111_111) for peer in PEERS)
    with opened(tmp_path) as storage:
        assert storage.load_peers() == before
        storage.store_peers(PEERS)
    with opened(tmp_path) as storage:
        assert storage.load_peers() == PEERS


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_peers = st.builds(
    KnownPeer,
    st.integers(1, 9).map(lambda number: f"10.0.0.{number}:7000"),
    _texts,
    _texts,
    _texts,
    st.integers(0, INTEGER_MAX - 1),
    st.integers(0, INTEGER_MAX - 1),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_peers, unique_by=lambda peer: peer.endpoint), st.randoms(use_true_random=False))
def test_any_text_survives_and_the_same_peers_are_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, peers: list[KnownPeer], random: Any
) -> None:
    directory = tmp_path_factory.mktemp("peers")
    first = with_peers(directory / "a", tuple(peers)).read_bytes()
    random.shuffle(peers)
    assert with_peers(directory / "b", tuple(peers)).read_bytes() == first
    assert set(_parse_peers(first, 0)) == set(peers)


def test_reset_and_clear_of_the_identity_keep_the_peers(tmp_path: Path) -> None:
    path = with_peers(tmp_path)
    stored(tmp_path)
    before = path.read_bytes()
    assert reset(tmp_path) is not None
    with opened(tmp_path) as storage:
        assert storage.load().generation is None
        assert storage.load_peers() == PEERS
        storage.clear()
    assert path.read_bytes() == before


def test_every_flipped_bit_and_every_shorter_file_of_peers_is_noticed(tmp_path: Path) -> None:
    data = with_peers(tmp_path, PEERS[:1]).read_bytes()
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"wrong checksum|not a file of peers"):
            _parse_peers(bytes(damaged), 0)
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"wrong checksum|not a file of peers"):
            _parse_peers(data[:length], 0)


@pytest.mark.parametrize(
    ("content", "because"),
    [
        (b"", "not a file of peers"),
        (b"\0" * 5000, "not a file of peers"),
        (sealed("gossiper-peers 1\n")[:-2] + b"!\n", "wrong checksum"),
        (sealed("gossiper-peers 3\nall is different\n"), "not 'gossiper-peers 2', perhaps written by a later version"),
        (sealed(""), "not 'gossiper-peers 2', perhaps"),
        (sealed("gossiper-peers 2\npeer 10.0.0.1:7000 5 a b c\n"), "line 2 is not a peer"),
        (sealed("gossiper-peers 2\npeer a:1 5 -6 a b c\n"), "time -6 is impossible"),
        (sealed("gossiper-peers 2\npeer a:1 5 06 a b c\n"), "not as this version writes it"),
        (sealed("gossiper-peers 2\npeer a:1 5 6 %61 b c\n"), "not as this version writes it"),
        (sealed("gossiper-peers 1\npeer a:1 5 6 a b c\n"), "line 2 is not a peer"),
        (sealed("gossiper-peers 1\npeer 10.0.0.1:7000 5 a b\n"), "line 2 is not a peer"),
        (sealed("gossiper-peers 1\npear 10.0.0.1:7000 5 a b c\n"), "line 2 is not a peer"),
        (sealed("gossiper-peers 1\npeer nowhere 5 a b c\n"), "'nowhere' is not host:port"),
        (sealed("gossiper-peers 1\npeer A:1 5 a b c\n"), "known peer 'A:1' is there twice, or not canonical"),
        (sealed("gossiper-peers 1\npeer a:1 5 a b c\npeer a:1 6 a b c\n"), "is there twice"),
        (sealed("gossiper-peers 1\npeer a:1 -1 a b c\n"), "generation -1 is impossible"),
        (sealed("gossiper-peers 1\npeer a:1 05 a b c\n"), "not as this version writes it"),
        (sealed("gossiper-peers 1\npeer a:1 5 %61 b c\n"), "not as this version writes it"),
        (sealed("gossiper-peers 1\npeer b:1 5 a b c\npeer a:1 5 a b c\n"), "not as this version writes it"),
        (sealed("gossiper-peers 1\npeer a:1 5 %FF b c\n"), "invalid start byte"),
        (sealed("gossiper-peers 1\npeer a:1 5 ü b c\n"), "ordinal not in range"),
    ],
)
def test_corrupt_peers_are_set_aside_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, because: str
) -> None:
    path = tmp_path / PEERS_FILE_NAME
    aside = tmp_path / (PEERS_FILE_NAME + ".corrupt")
    aside.write_bytes(b"of last year")
    path.write_bytes(content)
    with opened(tmp_path) as storage, caplog.at_level(logging.WARNING):
        assert storage.load_peers() == ()
        assert not path.exists()
        assert aside.read_bytes() == content
        assert len(caplog.records) == 1
        text = caplog.text
        assert because in text
        assert f"{path} (" in text
        assert "set aside as gossip.peers.corrupt; known peers must be learned again" in text
        storage.store_peers(PEERS)
    with opened(tmp_path) as storage:
        assert storage.load_peers() == PEERS


def test_peers_over_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_peers(tmp_path)
    before = path.read_bytes()
    with opened(tmp_path) as storage, monkeypatch.context() as patch:
        patch.setattr("gossiper.storage.KNOWN_PEERS_MAX", 2)
        with pytest.raises(LocalStateError, match="3 known peers, at most 2 are stored"):
            storage.store_peers(PEERS)
        assert path.read_bytes() == before
        assert storage.load_peers() == ()
    path.write_bytes(before)
    with opened(tmp_path) as storage, monkeypatch.context() as patch:
        patch.setattr("gossiper.storage.PEERS_BYTES_MAX", len(before))
        storage.store_peers(PEERS)
        longer = KnownPeer("[::1]:7000", "", "", "x", 0)
        with pytest.raises(LocalStateError, match=f"at most {len(before)} are stored"):
            storage.store_peers([*PEERS[:2], longer])
        assert storage.load_peers() == PEERS
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "peers",
    [
        [PEERS[0], PEERS[0]],
        [KnownPeer("Node:7000", "", "", "", 1)],
        [KnownPeer("node", "", "", "", 1)],
        [KnownPeer("node:1", "", "", "", -1)],
        [KnownPeer("node:1", "", "", "", INTEGER_MAX)],
        [KnownPeer("node:1", "", "\udc80", "", 1)],
        [KnownPeer("node:1", "", "", "", 1, -1)],
        [KnownPeer("node:1", "", "", "", 1, INTEGER_MAX)],
    ],
)
def test_peers_that_no_node_could_know_are_refused(tmp_path: Path, peers: list[KnownPeer]) -> None:
    with opened(tmp_path) as storage:
        storage.store_peers(PEERS)
        with pytest.raises(ValueError, match=r"twice|host:port|impossible|surrogates"):
            storage.store_peers(peers)
        assert storage.load_peers() == PEERS


def test_the_same_peers_again_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_peers(tmp_path)
    with opened(tmp_path) as storage:
        storage.load_peers()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(errno.ENOSPC))
            storage.store_peers(PEERS[::-1])
            with pytest.raises(LocalStateError, match=f"cannot write .*/{PEERS_FILE_NAME}: No space left"):
                storage.store_peers(PEERS[1:])
            assert storage.load_peers() == PEERS
            assert not (tmp_path / (PEERS_FILE_NAME + ".tmp")).exists()
        storage.store_peers(PEERS[1:])
    with opened(tmp_path) as storage:
        assert storage.load_peers() == PEERS[1:]


def test_peers_are_durable_before_they_take_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: steps.append("fsync " + Path(f"/proc/self/fd/{fd}").readlink().name))

    def recording_replace(self: Path, target: Path) -> Path:
        steps.append(f"rename {self.name} {target.name}")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", recording_replace)
    with_peers(tmp_path)
    assert steps == [
        f"fsync {PEERS_FILE_NAME}.tmp",
        f"rename {PEERS_FILE_NAME}.tmp {PEERS_FILE_NAME}",
        f"fsync {tmp_path.name}",
    ]


def test_unreadable_peers_count_as_none_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / PEERS_FILE_NAME).mkdir()
    with opened(tmp_path) as storage:
        assert storage.load_peers() == ()
    assert f"peers_unreadable {tmp_path / PEERS_FILE_NAME}: Is a directory" in caplog.text


def test_corrupt_peers_on_a_read_only_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / PEERS_FILE_NAME).write_bytes(b"x")
    monkeypatch.setattr(Path, "replace", failing(errno.EROFS))
    with opened(tmp_path) as storage:
        assert storage.load_peers() == ()
    assert "cannot be set aside: Read-only file system" in caplog.text


def test_peers_belong_to_the_owner_of_the_directory(tmp_path: Path) -> None:
    with opened(tmp_path) as owner, opened(tmp_path) as other:
        owner.load()
        for method in (lambda: other.store_peers(PEERS), other.load_peers):
            with pytest.raises(LocalStateError, match="in use by another node"):
                method()


def test_a_node_that_has_stopped_writes_nothing_any_more(tmp_path: Path) -> None:
    with opened(tmp_path) as storage:
        storage.store_generation(5, HOST_ID)
        storage.store_peers(PEERS)
    assert storage.load() == StoredIdentity(5, HOST_ID)
    assert storage.load_peers() == PEERS
    methods: list[Callable[[], None]] = [
        lambda: storage.store_generation(6),
        lambda: storage.store_peers([]),
        storage.clear,
    ]
    for method in methods:
        with pytest.raises(LocalStateError, match="which has stopped"):
            method()
    with opened(tmp_path) as next_one:
        assert next_one.load() == StoredIdentity(5, HOST_ID)
        assert next_one.load_peers() == PEERS


def test_threads_take_turns(tmp_path: Path) -> None:
    together = threading.Barrier(4)
    lists = [PEERS[:1], PEERS[:2], PEERS, PEERS[1:]]

    def work(storage: NodeStorage, peers: tuple[KnownPeer, ...]) -> None:
        together.wait(10)
        for _ in range(20):
            storage.store_peers(peers)

    with opened(tmp_path) as storage, ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, storage, peers) for peers in lists]:
            done.result(30)
        last = storage.load_peers()
    with opened(tmp_path) as storage:
        assert storage.load_peers() == last
        assert last in lists
