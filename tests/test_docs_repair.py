"""The examples of docs/repair.md run."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest

from antientropy.testing import StoreContract

TEXT = (Path(__file__).parents[1] / "docs" / "repair.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_a_store_of_ones_own_is_tested(tmp_path: Path) -> None:
    names: dict[str, object] = {}
    exec(next(one for one in EXAMPLES if "StoreContract" in one), names)
    contract = names["TestMyStore"]
    assert isinstance(contract, type)
    assert issubclass(contract, StoreContract)
    made = contract()
    with made.opened(tmp_path) as store:
        made.test_the_past_is_closed_below_the_fence(store)
    made.test_the_winner_of_each_key_stays_in_any_order()
    with pytest.raises(pytest.skip.Exception):
        made.test_rows_and_marks_come_back(tmp_path)
    tests = [name for name in dir(StoreContract) if name.startswith("test_")]
    assert f"The contract has {len(tests)} tests" in TEXT


def test_a_table_in_sqlite_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    connection = sqlite3.connect("shop.db")
    with connection:
        connection.execute(
            "CREATE TABLE orders (customer TEXT, number INTEGER, note TEXT, changed_at INTEGER NOT NULL,"
            " PRIMARY KEY (customer, number))"
        )
        connection.execute("INSERT INTO orders VALUES ('ann', 1, 'x', 5)")
    connection.close()
    names: dict[str, object] = {}
    exec(next(one for one in EXAMPLES if "SqliteRowStore(" in one), names)
    store = names["store"]
    assert getattr(store, "row_count", 0) == 1
    store.uninstall()  # type: ignore[attr-defined] # whatever the document made
