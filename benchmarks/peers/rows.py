"""What finds differing rows, side by side: Cassandra's MerkleTree, negentropy, a rateless sketch, and this project.

``python -m benchmarks.peers.run --merkle ROWS`` ends up here. All get the same rows and the same differences, made by
``benchmarks.repair_data``: as files of 32 bytes for each row (token and version as 8 bytes big-endian, digest), or, for
this project, as stores in two processes. What is compared is the bytes to find the difference, and the rows that would
then be sent.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from antientropy.core.rows import Row
from antientropy.core.tokens import TokenRange
from antientropy.stores.lmdb import LmdbRowStore
from benchmarks.exchange_report import table
from benchmarks.peers.harness import CASSANDRA, RECONCILIATION, ROOT, Peer, PeerUnavailableError
from benchmarks.repair_data import KINDS, Case, build_store

DIFFERENCES: Final = (0, 1, 10, 100, 1000, 10_000)
VALUE_BYTES: Final = 100
SEED: Final = 1
_OURS_SECONDS_MAX: Final = 1800.0

Json = dict[str, Any]


def run(rows: int, differences: Sequence[int] = DIFFERENCES, *, ours: bool = True) -> Json:
    """All peers on the same rows; what cannot be built is skipped with a line that says why."""
    result: Json = {"rows": rows, "skipped": {}}
    with tempfile.TemporaryDirectory(prefix="benchmark-peers-") as made:
        directory = Path(made)
        _say(f"making {rows:,} rows")
        write(directory, rows, differences)
        for peer, command in ((CASSANDRA, ["merkle"]), (RECONCILIATION, [])):
            _say(f"building and running {peer.name}")
            try:
                result[peer.name] = _answer(peer, [*command, made])
            except PeerUnavailableError as error:
                result["skipped"][peer.name] = str(error)
        if ours:
            _say("running ours")
            result["gossiper"] = _ours(directory, rows, differences)
    return result


def _answer(peer: Peer, arguments: list[str]) -> Json:
    peer.make()
    return peer.answer(*arguments)


def write(directory: Path, rows: int, differences: Sequence[int]) -> None:
    """The files for the peers: ``rows.bin``, ``cases.json`` and a file for each case."""
    store_path = directory / f"rows-{rows}-{VALUE_BYTES}-{SEED}"
    build_store(store_path, rows, VALUE_BYTES, SEED)
    with LmdbRowStore(store_path) as store, (directory / "rows.bin").open("wb") as file:
        reader = store.read()
        try:
            for part in reader.digests([TokenRange.full()]):
                columns = np.column_stack((part.tokens, part.versions, part.digests))
                file.write(columns.astype(">u8").tobytes())
        finally:
            reader.close()
    cases, now = [], int(time.time() * 1000)
    for number, (count, kind) in enumerate([(d, kind) for d in differences for kind in _kinds(d)]):
        case = Case(
            number=number,
            kind=kind,
            differences=count,
            before=0,
            replicas=2,
            rows=rows,
            value_bytes=VALUE_BYTES,
            seed=SEED,
            as_of_ms=now,
        )
        sides = [sorted(case.rows_of(side), key=lambda row: row.token) for side in range(2)]
        name = f"case-{number}.bin"
        (directory / name).write_bytes(b"".join(_packed(row) for side in sides for row in side))
        counts = {"first": len(sides[0]), "second": len(sides[1])}
        cases.append({"differences": count, "kind": kind, "file": name} | counts)
    (directory / "cases.json").write_text(json.dumps({"rows": rows, "cases": cases}))


def _packed(row: Row) -> bytes:
    return row.token.to_bytes(8, "big") + row.version.to_bytes(8, "big") + row.digest


def _kinds(differences: int) -> tuple[str, ...]:
    return KINDS if differences else ("none",)


def _ours(directory: Path, rows: int, differences: Sequence[int]) -> Json:
    """Whole repairs between two processes; the store that was made is used again."""
    arguments = ["--rows", str(rows), "--value-bytes", str(VALUE_BYTES), "--seed", str(SEED), "--json"]
    arguments += ["--differences", ",".join(map(str, differences)), "--data-dir", str(directory)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.repair", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=_OURS_SECONDS_MAX,
    )
    if not done.stdout:
        raise RuntimeError(f"benchmarks.repair ended with status {done.returncode} and without a result")
    answer: Json = json.loads(done.stdout)
    return answer


def as_text(result: Json) -> str:
    """One table: bytes to find for everybody, and what Cassandra would stream for it."""
    trees = {tree["depth"]: tree for tree in result.get("cassandra", {}).get("trees", [])}
    sets = {_case(one): one for one in result.get("reconciliation", {}).get("cases", [])}
    ours = {_case(one): one for one in result.get("gossiper", {}).get("results", [])}
    by_depth = {depth: {_case(one): one for one in tree["cases"]} for depth, tree in trees.items()}
    cases = list(dict.fromkeys([case for one in (*by_depth.values(), sets, ours) for case in one]))
    lines = []
    for case in cases:
        line: list[object] = [f"{case[0]:,} {case[1]}"]
        own = ours.get(case)
        line += ["-", "-"] if own is None else [own["find_payload_bytes"], own["rows_moved"]]
        for scheme in ("riblt", "negentropy_by_token", "negentropy_by_time"):
            line.append(sets.get(case, {}).get(scheme, {}).get("bytes", "-"))
        for depth in sorted(by_depth):
            found = by_depth[depth].get(case)
            line += ["-"] * 3 if found is None else [found[key] for key in _TREE_COLUMNS]
        lines.append(line)
    head = [f"{result['rows']:,} rows", "here, bytes", "rows sent", "riblt", "negentropy, by token", "by time"]
    for depth in sorted(by_depth):
        head += [f"Cassandra {depth}, bytes", "ranges", "rows sent"]
    parts = [table(head, lines)]
    built = [f"depth {depth} {tree['build_cpu_milliseconds']:.0f} ms" for depth, tree in sorted(trees.items())]
    if built:
        parts.append(f"CPU to build a tree in Cassandra: {', '.join(built)}.")
    parts += [f"{name}: skipped, {reason}" for name, reason in result["skipped"].items()]
    return "\n\n".join(parts)


_TREE_COLUMNS: Final = ("serialized_bytes", "ranges", "rows_streamed")


def _case(one: Json) -> tuple[int, str]:
    return one["differences"], one["kind"]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
