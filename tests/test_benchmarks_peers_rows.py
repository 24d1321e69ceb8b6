"""The rows that peers get are those of the stores, and the table holds what each of them said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from antientropy.core.rows import Row
from benchmarks.peers import rows
from benchmarks.repair_data import Case, Values, key_of


def unpacked(data: bytes) -> list[tuple[int, int, bytes]]:
    assert len(data) % 32 == 0
    return [
        (
            int.from_bytes(data[at : at + 8], "big"),
            int.from_bytes(data[at + 8 : at + 16], "big"),
            data[at + 16 : at + 32],
        )
        for at in range(0, len(data), 32)
    ]


def test_files_hold_all_rows_and_what_each_side_has_before_the_other(tmp_path: Path) -> None:
    rows.write(tmp_path, 500, (0, 7))
    base = unpacked((tmp_path / "rows.bin").read_bytes())
    values = Values.of(rows.VALUE_BYTES, rows.SEED)
    by_token = {Row(key_of(at), 1, b"").token: at for at in range(500)}
    assert [token for token, _, _ in base] == sorted(by_token)
    for token, version, digest in base:
        number = by_token[token]
        assert Row(key_of(number), version, values.value(number)).digest == digest
    input_ = json.loads((tmp_path / "cases.json").read_text())
    assert input_["rows"] == 500
    assert [(one["differences"], one["kind"]) for one in input_["cases"]] == [
        (0, "none"),
        *((7, kind) for kind in ("missing", "updated", "deleted")),
    ]
    for one in input_["cases"]:
        found = unpacked((tmp_path / one["file"]).read_bytes())
        sides = found[: one["first"]], found[one["first"] :]
        assert len(sides[1]) == one["second"]
        assert len(found) == one["differences"]
        for side in sides:
            assert [token for token, _, _ in side] == sorted(token for token, _, _ in side)
        known = {token for token, _, _ in found} & set(by_token)
        assert len(known) == (0 if one["kind"] == "missing" else one["differences"])
        newest = int(np.max([version for _, version, _ in base]))
        assert all(version > newest for _, version, _ in found)


def test_the_table_has_a_line_for_each_case_and_says_who_is_missing() -> None:
    tree = {"differences": 1, "kind": "missing", "serialized_bytes": 1500, "ranges": 1, "rows_streamed": 60}
    sets: dict[str, Any] = {"differences": 1, "kind": "missing", "riblt": {"bytes": 432}}
    sets |= {name: {"bytes": 2000 + at} for at, name in enumerate(("negentropy_by_token", "negentropy_by_time"))}
    result = {
        "rows": 1000,
        "skipped": {"gone": "mvn is not installed"},
        "cassandra": {"trees": [{"depth": 15, "build_cpu_milliseconds": 36.2, "cases": [tree]}]},
        "reconciliation": {"cases": [sets]},
        "gossiper": {"results": [{"differences": 1, "kind": "missing", "find_payload_bytes": 270, "rows_moved": 1}]},
    }
    text = rows.as_text(result)
    (line,) = [line for line in text.splitlines() if line.startswith("| 1 missing")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["1 missing", "270", "1", "432", "2,000", "2,001", "1,500", "1", "60"]
    assert "depth 15 36 ms" in text
    assert "gone: skipped, mvn is not installed" in text
    assert "1 missing" in rows.as_text(result | {"gossiper": {}, "cassandra": {}})


def test_cases_of_both_benchmarks_are_the_same_rows() -> None:
    one = Case(0, "updated", 3, 0, 2, 500, rows.VALUE_BYTES, rows.SEED, 1_800_000_000_000)
    assert sum(len(list(one.rows_of(side))) for side in range(2)) == one.copies == 3
