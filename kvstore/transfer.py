"""Rows from and to files: CSV and JSON lines in, JSON lines out.

Keys and values are bytes; JSON has only text. What is not UTF-8 travels in Base64 under ``key_base64`` and
``value_base64``, so every row survives ``dump`` and ``load`` unchanged.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from kvstore.client import KeyValue, KeyValueClient
from kvstore.errors import InvalidRequestError, KvStoreError
from kvstore.limits import KEY_BYTES_MAX, MUTATIONS_BYTES_MAX, VALUE_BYTES_MAX
from kvstore.replication import Mutation
from kvstore.wire import check_mutations

#: The largest value in Base64 with its field names; a longer line is not a row.
_LINE_BYTES_MAX: Final = (VALUE_BYTES_MAX + KEY_BYTES_MAX) * 6 + 4096
_STDIN: Final = Path("-")


class InputError(Exception):
    """A file that cannot be read or written, or a line that is no row. ``usage``: the command line is wrong."""

    def __init__(self, message: str, *, usage: bool = False) -> None:
        self.usage = usage
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """What was loaded."""

    rows: int
    key_value_bytes: int
    elapsed_seconds: float

    @property
    def rows_per_second(self) -> float:
        """The mean rate."""
        return self.rows / self.elapsed_seconds if self.elapsed_seconds > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """For ``--output json``."""
        return {
            "rows": self.rows,
            "key_value_bytes": self.key_value_bytes,
            "elapsed_seconds": round(self.elapsed_seconds, 3),
            "rows_per_second": round(self.rows_per_second, 1),
        }

    def __str__(self) -> str:
        return f"{self.rows:,} rows in {self.elapsed_seconds:.1f} s ({self.rows_per_second:,.0f} rows/s)"


def encoded(name: str, content: bytes) -> dict[str, str]:
    """``{name: text}``, or ``{name_base64: ...}`` where it is not UTF-8."""
    try:
        return {name: content.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(content).decode("ascii")}


def one_line(content: bytes) -> str:
    """Bytes for a terminal: text where it is printable, escapes elsewhere, never a line break or a tab."""
    text = content.decode(errors="backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def load_file(
    client: KeyValueClient,
    path: Path,
    *,
    file_format: str | None = None,
    key_column: str | None = None,
    batch_rows: int = 500,
    calls: int = 4,
) -> LoadSummary:
    """Write all rows of a file ("-": stdin); of rows with the same key the last one wins.

    Args:
        client: Of the node that coordinates.
        path: What to read.
        file_format: "csv" or "jsonl"; None: by the name's ending.
        key_column: The column, or field, that is the key.
        batch_rows: Rows per call.
        calls: Calls under way at once; nodes commit them together.

    Raises:
        InputError: the file or one of its lines; rows before it were written.
        KvStoreError: a write failed; the message says how many rows were written.
    """
    file_format = file_format or ("csv" if path.suffix.lower() in {".csv", ".tsv"} else "jsonl")
    if file_format == "csv" and key_column is None:
        raise InputError("a CSV file needs --key-column: the name of the column that is the key", usage=True)
    begun = time.monotonic()
    with _opened(path) as file, _progress(path, file) as advance:
        rows = _csv_rows(file, path, key_column or "") if file_format == "csv" else _json_rows(file, path, key_column)
        pipeline = _Pipeline(client, calls, advance)
        try:
            with pipeline:
                for batch, batch_bytes in _batches(rows, batch_rows):
                    pipeline.write(batch, batch_bytes)
        except KvStoreError as error:
            raise type(error)(f"{error} ({pipeline.rows:,} rows were written)") from None
        except InputError as error:
            raise InputError(f"{error} ({pipeline.rows:,} rows were written)", usage=error.usage) from None
    return LoadSummary(pipeline.rows, pipeline.key_value_bytes, time.monotonic() - begun)


class _Pipeline:
    """Keeps some calls under way. Leaving it waits for them, and raises the first failure."""

    def __init__(self, client: KeyValueClient, calls: int, advance: Callable[[int], None]) -> None:
        self._client = client
        self._calls = calls
        self._advance = advance
        self._executor = ThreadPoolExecutor(max_workers=calls, thread_name_prefix="kvstore-load")
        self._under_way: deque[tuple[Future[int], frozenset[bytes], int, int]] = deque()
        self.rows = 0
        """Acknowledged."""
        self.key_value_bytes = 0

    def write(self, batch: list[Mutation], batch_bytes: int) -> None:
        """Send a batch, as soon as there is room.

        Raises:
            KvStoreError: an earlier one failed.
        """
        keys = frozenset(mutation.key for mutation in batch)
        # The node dates a row when it arrives: rows with the same key must not overtake each other.
        while self._under_way and (
            len(self._under_way) >= self._calls or any(not keys.isdisjoint(call[1]) for call in self._under_way)
        ):
            self._finish_first()
        future = self._executor.submit(self._client.write, batch)
        self._under_way.append((future, keys, len(batch), batch_bytes))

    def _finish_first(self) -> None:
        future, _keys, rows, size_bytes = self._under_way.popleft()
        future.result()
        self.rows += rows
        self.key_value_bytes += size_bytes
        self._advance(rows)

    def __enter__(self) -> None:
        """Nothing is under way yet."""

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: object) -> None:
        failure: KvStoreError | None = None
        try:
            while self._under_way:
                try:
                    self._finish_first()
                except KvStoreError as error:
                    failure = failure or error
        finally:
            self._executor.shutdown(cancel_futures=True)
        if failure is not None and kind is None:
            raise failure


def dump_rows(rows: Iterable[KeyValue], path: Path | None) -> int:
    """Write rows as JSON lines to a file, which appears when it is complete, or to stdout; returns how many.

    Raises:
        InputError: the file cannot be written.
    """
    if path is None:
        return _dump_to(rows, sys.stdout)
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                count = _dump_to(rows, file)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(path)
            except BaseException:
                with suppress(OSError):
                    Path(file.name).unlink()
                raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    return count


def _dump_to(rows: Iterable[KeyValue], file: Any) -> int:
    count = 0
    for row in rows:
        count += 1
        file.write(json.dumps({**encoded("key", row.key), **encoded("value", row.value)}, ensure_ascii=False) + "\n")
    return count


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if path == _STDIN:
        yield sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    with file:
        yield file


@contextmanager
def _progress(path: Path, file: IO[bytes]) -> Iterator[Callable[[int], None]]:
    """Shows a bar with the rate on a terminal, and nothing elsewhere; gives what advances it by rows."""
    if not sys.stderr.isatty():
        yield lambda _rows: None
        return
    from rich.console import Console  # noqa: PLC0415 - only where somebody watches
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    # How much of the file was read is known beforehand, how many rows it has is not.
    seekable = path != _STDIN and file.seekable()
    total = path.stat().st_size if seekable else None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TextColumn("{task.fields[rate]:,.0f} rows/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"loading {path.name if path != _STDIN else 'stdin'}", total=total, rows=0, rate=0.0)
        begun = time.monotonic()
        rows_done = 0

        def advance(rows: int) -> None:
            nonlocal rows_done
            rows_done += rows
            rate = rows_done / max(time.monotonic() - begun, 1e-3)
            completed = file.tell() if seekable else 0
            progress.update(task, completed=completed, rows=rows_done, rate=rate)

        yield advance


def _batches(rows: Iterator[tuple[str, bytes, bytes]], batch_rows: int) -> Iterator[tuple[list[Mutation], int]]:
    """Mutations in calls that keep the limits, with their bytes. A faulty row ends it after those before it."""
    batch: list[Mutation] = []
    batch_bytes = 0
    fault: InputError | None = None
    while True:
        try:
            mutation = _next_mutation(rows)
        except InputError as error:
            fault, mutation = error, None
        row_bytes = 0 if mutation is None else len(mutation.key) + len(mutation.value)
        if batch and (mutation is None or len(batch) >= batch_rows or batch_bytes + row_bytes > MUTATIONS_BYTES_MAX):
            yield batch, batch_bytes
            batch, batch_bytes = [], 0
        if fault is not None:
            raise fault
        if mutation is None:
            return
        batch.append(mutation)
        batch_bytes += row_bytes


def _next_mutation(rows: Iterator[tuple[str, bytes, bytes]]) -> Mutation | None:
    """The next row, checked; None at the end."""
    found = next(rows, None)
    if found is None:
        return None
    where, key, value = found
    mutation = Mutation(key, value)
    try:
        check_mutations((mutation,))
    except InvalidRequestError as error:
        raise InputError(f"{where}: {error}") from None
    return mutation


def _lines(file: IO[bytes], path: Path) -> Iterator[tuple[str, str]]:
    """(where, text) of each line that is not blank."""
    number = 0
    while True:
        line = file.readline(_LINE_BYTES_MAX + 1)
        if not line:
            return
        number += 1
        where = f"{path}:{number}"
        if len(line) > _LINE_BYTES_MAX:
            raise InputError(f"{where}: a line of more than {_LINE_BYTES_MAX} bytes is no row")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{where}: is not UTF-8 text") from None
        yield where, text


def _csv_rows(file: IO[bytes], path: Path, key_column: str) -> Iterator[tuple[str, bytes, bytes]]:
    lines = (text for _where, text in _lines(file, path))
    reader = csv.reader(lines, strict=True, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        header = next(reader, None)
        if header is None:
            raise InputError(f"{path}: is empty; the first line of a CSV file names its columns")
        if key_column not in header:
            raise InputError(f"{path}:1: has no column {key_column!r}; its columns are {', '.join(header)}", usage=True)
        if len(set(header)) != len(header):
            raise InputError(f"{path}:1: names a column twice")
        key_index = header.index(key_column)
        for fields in reader:
            where = f"{path}:{reader.line_num}"
            if not fields:
                continue
            if len(fields) != len(header):
                raise InputError(f"{where}: has {len(fields)} columns, the first line has {len(header)}")
            if not fields[key_index]:
                raise InputError(f"{where}: the key (column {key_column!r}) is empty")
            rest = {name: text for name, text in zip(header, fields, strict=True) if name != key_column}
            yield where, fields[key_index].encode(), _json_bytes(rest)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: is not CSV: {error}") from None


def _json_rows(file: IO[bytes], path: Path, key_column: str | None) -> Iterator[tuple[str, bytes, bytes]]:
    for where, text in _lines(file, path):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise InputError(f"{where}: is not a JSON object")
        if key_column is None:
            yield where, _field(record, "key", where), _field(record, "value", where)
        else:
            if record.get(key_column) in (None, ""):
                raise InputError(f"{where}: has no field {key_column!r}, which is the key")
            key = record.pop(key_column)
            yield where, key.encode() if isinstance(key, str) else _json_bytes(key), _json_bytes(record)


def _field(record: dict[str, Any], name: str, where: str) -> bytes:
    in_base64 = record.get(f"{name}_base64")
    if isinstance(in_base64, str):
        try:
            return base64.b64decode(in_base64, validate=True)
        except (binascii.Error, ValueError):
            raise InputError(f"{where}: {name}_base64 is not Base64") from None
    if name not in record:
        raise InputError(
            f"{where}: has neither {name} nor {name}_base64; name the key with --key-column for other objects"
        )
    content = record[name]
    return content.encode() if isinstance(content, str) else _json_bytes(content)


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
