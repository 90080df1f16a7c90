"""Parquet and CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.queue.errors import BadInput
from audit.queue.exchange import csv_lines, export_verdicts, read_items, selected_items, write_csv
from audit.queue.model import Answer, Kind, Role
from audit.queue.people import People, User
from audit.queue.queue import Queue
from audit.verdicts import from_table, in_force
from store.errors import UsageError
from store.schemas import SELECTION, VERDICTS
from store.tables import read_table, write_table
from tests.audit.queue.helpers import new_items
from tests.audit.queue.test_claims import answer, claim


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_items_of_drawn_pairs_carry_their_probability(make_pairs: Callable[[int], pa.Table]) -> None:
    selection = pa.Table.from_pylist(
        [
            {
                "pair_id": f"p{i}",
                "inclusion_probability": 0.25,
                "drawn": i in (1, 3),
                "stratum": "uniform",
                "reason": "drawn",
            }
            for i in range(4)
        ],
        schema=SELECTION.schema,
    )
    items = selected_items(make_pairs(4), selection)
    assert [(item.pair_id, item.inclusion_probability, item.stratum) for item in items] == [
        ("p1", 0.25, "uniform"),
        ("p3", 0.25, "uniform"),
    ]
    with pytest.raises(UsageError, match="'p3'"):
        selected_items(make_pairs(3), selection)


def test_items_of_foreign_files(tmp_path: Path) -> None:
    plain = read_items(written(tmp_path / "a", [{"prompt": "x", "chosen": "y", "rejected": "z", "more": 1}]))
    assert (plain[0].prompt, plain[0].response_a, plain[0].response_b, plain[0].gold_winner) == ("x", "y", "z", None)
    said = [{"role": "user", "content": "x"}]
    talk = [*said, {"role": "assistant", "content": "y"}]
    rows = [{"prompt": said, "response_a": talk, "response_b": said, "winner": "b", "pair_id": "p"}]
    gold = read_items(written(tmp_path / "b", rows), kind=Kind.GOLD, overlap=3)
    assert gold[0].response_a == "user: x\n\nassistant: y"
    assert (gold[0].prompt, gold[0].gold_winner, gold[0].overlap, gold[0].pair_id) == ("x", "b", 3, "p")


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "x", "chosen": "y"}],
        [{"prompt": 1, "chosen": "y", "rejected": "z"}],
        [{"chosen": "y", "rejected": "z"}],
    ],
)
def test_files_without_pairs_are_refused(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    with pytest.raises(UsageError):
        read_items(written(tmp_path / "a", rows))
    with pytest.raises(UsageError):
        read_items(tmp_path / "missing")
    (tmp_path / "garbage").write_text("garbage")
    with pytest.raises(UsageError):
        read_items(tmp_path / "garbage")


def test_export_is_a_verdicts_table_with_marks(
    queue: Queue, people: People, auditors: list[User], tmp_path: Path
) -> None:
    robot = people.add("simulated-troll", Role.AUDITOR, simulated=True)
    queue.add_batch("round", new_items(2, inclusion_probability=0.5), overlap=3)
    got = claim(queue, auditors[0])
    winner = "a" if got.item.left.startswith("first") else "b"
    queue.submit(auditors[0].id, got.item.item_id, got.token, Answer("left", 3, ("wrong",), (), "why", 7), "k")
    queue.undo(auditors[0].id, "u")
    answer(queue, auditors[0], "tie")
    answer(queue, robot)
    people.quarantine(auditors[0].name, "reason")
    table = export_verdicts(queue.database)
    path = write_table(tmp_path / "verdicts.parquet", VERDICTS, table)
    rows = read_table(path, VERDICTS).to_pylist()
    assert [row["kind"] for row in rows] == ["answer", "withdrawn", "answer", "answer"]
    assert rows[0] | {"verdict_id": 0, "item_id": 0, "batch": 0, "created_at": 0} == {
        "verdict_id": 0,
        "pair_id": rows[0]["pair_id"],
        "auditor": "auditor 0",
        "shown_left": winner,
        "seconds": 7.0,
        "simulated": False,
        "created_at": 0,
        "winner": winner,
        "flaws": [f"{winner}: wrong"],
        "comment": "why",
        "inclusion_probability": 0.5,
        "supersedes": None,
        "item_id": 0,
        "batch": 0,
        "kind": "answer",
        "item_kind": "pair",
        "group": "",
        "stratum": "",
        "confidence": 3,
        "quarantined": True,
        "guidelines_version": "",
        "constitution_version": "",
    }
    assert [row["supersedes"] for row in rows] == [None, rows[0]["verdict_id"], rows[1]["verdict_id"], None]
    assert (rows[3]["simulated"], rows[3]["quarantined"]) == (True, False)
    assert math.isnan(rows[3]["seconds"])
    assert [(row.auditor, row.winner == "tie") for row in in_force(from_table(table))] == [
        ("auditor 0", True),
        ("simulated-troll", False),
    ]
    assert export_verdicts(queue.database, with_simulated=False).num_rows == 3
    assert export_verdicts(queue.database, "no such batch").num_rows == 0


def test_csv_has_no_formula(queue: Queue, auditors: list[User], tmp_path: Path) -> None:
    texts = ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "＝1", 'quote " comma , \n=line', "plain", "\0", "'=1"]
    queue.add_batch("round", new_items(len(texts)))
    for number, text in enumerate(texts):
        got = claim(queue, auditors[0])
        queue.submit(auditors[0].id, got.item.item_id, got.token, Answer("left", comment=text), f"{number}")
    table = export_verdicts(queue.database)
    path = write_csv(tmp_path / "verdicts.csv", table)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(texts)
    for row, text in zip(rows, texts, strict=True):
        assert row["comment"].removeprefix("'") == text.replace("\0", "\\0").removeprefix("'")
        assert all(not cell.startswith(("=", "+", "-", "@", "\t", "\r", "＝")) for cell in row.values())
    assert next(iter(csv_lines(table))).startswith('"verdict_id","pair_id"')


def test_pairs_twice_in_a_file_are_refused(queue: Queue, tmp_path: Path) -> None:
    items = read_items(written(tmp_path / "a", [{"prompt": "x", "chosen": "y", "rejected": "z"}] * 2))
    with pytest.raises(BadInput, match="occurs twice"):
        queue.add_batch("round", items)
