"""The index of a replica on disk, so that a node that was stopped in order starts without a scan.

A file names the exact content of the store that it is over (``RowStore.state_id``) and is only used when the store
names just that; it is taken away when it is read, so nothing that happens later can make an old one look right.
Anything else that is wrong with it (checksum, another release, another tree depth) makes it useless, never an error:
the store holds the truth. Written to a file beside it, synced, and renamed.
"""

from __future__ import annotations

import logging
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
import xxhash

from antientropy.core import hashing
from antientropy.core.index import Index
from antientropy.core.merkle import FAN_OUT, HashTree
from antientropy.core.rows import RowDigests
from antientropy.core.sketch import SketchBank
from antientropy.limits import TREE_DEPTH_MAX

logger = logging.getLogger(__name__)

FILE_NAME: Final = "index"
_MAGIC: Final = b"antientropy index 1\n"
#: Fingerprint of the hashes, epoch, depth of the tree, bytes of the state's name.
_HEAD: Final = struct.Struct("<8sIII")
_CHECKSUM_BYTES: Final = 16
_STATE_BYTES_MAX: Final = 256


def write_index(path: Path, index: Index, state_id: bytes) -> bool:
    """Write the index of a content; False (and a line in the log) when that was not possible."""
    leaves = index.tree.levels[index.depth]
    parts = [
        _MAGIC,
        _HEAD.pack(_fingerprint(), index.epoch, index.depth, len(state_id)),
        state_id,
        leaves.high.astype("<u8").tobytes(),
        leaves.low.astype("<u8").tobytes(),
        leaves.counts.astype("<i8").tobytes(),
        index.bank.to_bytes(),
    ]
    beside = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            checksum = xxhash.xxh3_128()
            for part in parts:
                checksum.update(part)
                file.write(part)
            file.write(checksum.digest())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        logger.warning("the index cannot be kept in %s (%s); it will be made anew at the next start", path, error)
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        return False
    return True


def take_index(path: Path, state_id: bytes | None) -> Index | None:
    """The index of this very content, if there is one; in any case there is none on disk afterwards."""
    try:
        data = path.read_bytes()
        path.unlink()
        _sync_directory(path.parent)
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("the index in %s cannot be read and taken away (%s); made anew", path, error)
        return None
    try:
        return _decode(data, state_id)
    except ValueError as error:
        logger.info("the index in %s is not used (%s); made anew", path, error)
        return None


def _decode(data: bytes, state_id: bytes | None) -> Index:
    if state_id is None:
        raise ValueError("the store does not name its content")
    start = len(_MAGIC) + _HEAD.size
    if len(data) < start + _CHECKSUM_BYTES or not data.startswith(_MAGIC):
        raise ValueError("no index, or one of another release")
    if xxhash.xxh3_128_digest(memoryview(data)[:-_CHECKSUM_BYTES]) != data[-_CHECKSUM_BYTES:]:
        raise ValueError("its checksum does not hold")
    fingerprint, epoch, depth, state_bytes = _HEAD.unpack_from(data, len(_MAGIC))
    if fingerprint != _fingerprint() or not 1 <= depth <= TREE_DEPTH_MAX or state_bytes > _STATE_BYTES_MAX:
        raise ValueError("hashes of another release")
    if data[start : start + state_bytes] != state_id:
        raise ValueError("the store has changed since")
    start += state_bytes
    size = FAN_OUT**depth
    bank_start = start + 24 * size
    high, low = (np.frombuffer(data, "<u8", size, start + 8 * size * at).astype(np.uint64) for at in (0, 1))
    counts = np.frombuffer(data, "<i8", size, start + 16 * size).astype(np.int64)
    bank = SketchBank.from_bytes(data[bank_start:-_CHECKSUM_BYTES], epoch)
    return Index(HashTree.from_leaves(high, low, counts, epoch=epoch), bank)


def _fingerprint() -> bytes:
    """Changes with any change of what tree and sketches hold for the same rows."""
    columns = np.arange(1, 9, dtype=np.uint64)
    rows = RowDigests(columns << np.uint64(60), columns, np.stack([columns, ~columns], axis=1))
    index = Index.empty(1, 1)
    index.fold_rows(rows)
    checksum = xxhash.xxh3_64(index.tree.root.digest + bytes([hashing.HASH_VERSION]))
    checksum.update(index.bank.to_bytes())
    return checksum.digest()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
