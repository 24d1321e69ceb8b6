"""The disk of a simulated machine: what it holds outlives the node; what a dead node does to it, does not happen."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from antientropy.errors import StoreClosedError
from antientropy.store import Row
from antientropy.stores.lmdb import LmdbRowStore
from antientropy.stores.memory import MemoryRowStore
from kvstore.simulation.process import Process
from kvstore.simulation.truth import FIRST, Place, place_of


class Observer(Protocol):
    """Sees what goes to a disk, and what is there afterwards."""

    def seen_on_the_way(self, row: Row, from_repair: bool) -> None:
        """Before a row is applied; ``from_repair``: a repair brings it."""
        ...

    def seen_on_disk(self, row: Row, greatest: Place) -> None:
        """After a row was applied: what is stored of its key now, and the greatest that ever was."""
        ...


class SimulatedDisk:
    """Rows and files of one node.

    Args:
        directory: For what are files in earnest: gossip's, the repair journal, LMDB's.
        observer: Sees every row on its way to the disk.
        lmdb: Keep rows in LMDB (without fsync: the power of this machine does not fail) instead of memory.
    """

    def __init__(self, directory: Path, observer: Observer, *, lmdb: bool = False) -> None:
        self.directory = directory
        self.observer = observer
        self._lmdb = lmdb
        self._memory = MemoryRowStore()
        self._greatest: dict[bytes, Place] = {}
        self._open: list[StoreHandle] = []

    def open_store(self, process: Process) -> StoreHandle:
        """The rows, for one run of the node."""
        store = LmdbRowStore(self.directory / "rows", durable=False) if self._lmdb else self._memory
        handle = StoreHandle(store, process, self.observer, self._greatest, keep=not self._lmdb)
        self._open.append(handle)
        return handle

    def close(self) -> None:
        """Of a node that was killed: give back what the real process would not have had to."""
        for handle in self._open:
            handle.release()
        self._open.clear()

    def save(self, *names: str) -> Callable[[], None]:
        """Remember some directories as they are; the result brings them back."""
        kept = self.directory / "kept"
        shutil.rmtree(kept, ignore_errors=True)
        for name in names:
            if (self.directory / name).exists():
                shutil.copytree(self.directory / name, kept / name)

        def restore() -> None:
            for name in names:
                shutil.rmtree(self.directory / name, ignore_errors=True)
                if (kept / name).exists():
                    shutil.copytree(kept / name, self.directory / name)

        return restore


class StoreHandle:
    """A store as one run of a node sees it."""

    def __init__(
        self, store: Any, process: Process, observer: Observer, greatest: dict[bytes, Place], *, keep: bool
    ) -> None:
        self._store = store
        self._greatest = greatest
        self._process = process
        self._observer = observer
        self._keep = keep
        self._released = False

    def apply(self, rows: Iterable[Row], **options: Any) -> int:
        """See :class:`antientropy.store.RowStore`."""
        self._check_alive()
        rows = list(rows)
        for row in rows:
            self._observer.seen_on_the_way(row, bool(options.get("from_repair")))
        applied = int(self._store.apply(rows, **options))
        for row in self._store.get_many([row.key for row in rows]):
            if row is not None:
                greatest = self._greatest.get(row.key, FIRST)
                self._observer.seen_on_disk(row, greatest)
                self._greatest[row.key] = max(place_of(row), greatest)
        return applied

    def close(self) -> None:
        """Give the rows back."""
        if self._process.alive:
            self.release()

    def release(self) -> None:
        """Close, dead or alive."""
        if not self._released:
            self._released = True
            if self._keep:
                self._store.subscribe(None)
            else:
                self._store.close()

    def _check_alive(self) -> None:
        if not self._process.alive or self._released:
            raise StoreClosedError("the power has failed")

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        if not callable(value):
            return value

        def guarded(*arguments: Any, **options: Any) -> Any:
            self._check_alive()
            return value(*arguments, **options)

        return guarded
