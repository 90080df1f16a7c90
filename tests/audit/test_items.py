from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audit.items import ITEMS, blind_items, publish, shown_left
from store.tables import conform

HOSTILE = "<script>alert(1)</script>\u202e\u2028\0{{7*7}}\n\u200b"


def selection(n: int, drawn: range) -> pa.Table:
    return pa.table({"pair_id": [f"p{i}" for i in range(n)], "drawn": [i in drawn for i in range(n)]})


def test_items_are_blind(make_pairs) -> None:
    items = conform(blind_items(make_pairs(50), selection(50, range(10, 40)), seed=1), ITEMS, "test")
    assert items.column_names == ["pair_id", "prompt", "left", "right"]
    assert sorted(items["pair_id"].to_pylist()) == sorted(f"p{i}" for i in range(10, 40))
    places = [int(name[1:]) for name in items["pair_id"].to_pylist()]
    assert places != sorted(places), "the order is random"
    text = json.dumps(items.to_pylist())
    for word in ("judge", "p_a", "stratum", "reason", "policy", "group", "r1a"):
        assert word not in text


def test_sides_are_swapped_at_random_and_map_back(make_pairs) -> None:
    items = blind_items(make_pairs(400), selection(400, range(400)), seed=1)
    left_is_a = 0
    for row in items.to_pylist():
        number = row["pair_id"][1:]
        by_side = {"a": f"first {number}", "b": f"second {number}"}
        left = shown_left(1, row["pair_id"])
        assert (row["left"], row["right"]) == (by_side[left], by_side["b" if left == "a" else "a"])
        left_is_a += left == "a"
    assert abs(left_is_a / 400 - 0.5) < 4 * 0.5 / np.sqrt(400)


def test_publish_keeps_hostile_text_and_can_be_repeated(tmp_path) -> None:
    rows = [{"pair_id": f"p{i}", "prompt": HOSTILE, "left": HOSTILE, "right": "x"} for i in range(3)]
    items = pa.Table.from_pylist(rows, schema=ITEMS.schema)
    folder = publish(items, tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert publish(items, tmp_path) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    lines = (folder / "items.jsonl").read_bytes()
    assert lines.isascii()
    assert [json.loads(line) for line in lines.splitlines()] == rows
    assert pq.read_table(folder / "items.parquet").to_pylist() == rows
    assert publish(items.slice(1), tmp_path) != folder, "another batch has another folder"
