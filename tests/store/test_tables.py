"""Tables are checked on both sides of a file, and refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from store.errors import UsageError
from store.schemas import PROMPTS, TABLES
from store.tables import read_table, write_table

ROWS = {"prompt_id": ["a", "b"], "prompt": ["x", "y"], "group": ["g", "g"], "split": ["train", "heldout"]}


def test_round_trip_with_missing_nullable_and_extra_columns(tmp_path: Path) -> None:
    data = pa.table({**ROWS, "note": [1, 2]})
    read = read_table(write_table(tmp_path / "p.parquet", PROMPTS, data), PROMPTS)
    assert read.column_names == [*PROMPTS.schema.names, "note"]
    assert read.column("reference").null_count == 2


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(tmp_path / name, PROMPTS, pa.table(ROWS), {"lineage": "x"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({key: value for key, value in ROWS.items() if key != "group"}, "lacks the column group"),
        ({**ROWS, "prompt_id": ["a", "a"]}, "'a' occurs more than once"),
        ({**ROWS, "prompt": ["x", None]}, "column prompt of a prompts table has 1 empty values"),
        ({**ROWS, "prompt": [[1], [2]]}, "column prompt is list"),
        ({key: pa.array([], pa.string()) for key in ROWS}, "has no rows"),
    ],
)
def test_a_wrong_table_is_named(tmp_path: Path, columns: dict, sentence: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    with pytest.raises(UsageError, match=sentence):
        read_table(tmp_path / "p.parquet", PROMPTS)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_table(tmp_path / "none.parquet", PROMPTS)
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(UsageError, match="cannot be read as parquet"):
        read_table(tmp_path / "text.parquet", PROMPTS)


def test_a_newer_schema_is_named(tmp_path: Path) -> None:
    data = pa.table(ROWS).replace_schema_metadata({"rlaif.schema_version": "99"})
    pq.write_table(data, tmp_path / "p.parquet")
    with pytest.raises(UsageError, match="table schema 99"):
        read_table(tmp_path / "p.parquet", PROMPTS)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        write_table(tmp_path / "p.parquet", PROMPTS, pa.table({"prompt_id": ["a"]}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", TABLES)
def test_every_key_is_a_column_that_may_not_be_null(name: str) -> None:
    table = TABLES[name]
    assert table.key is None or not table.schema.field(table.key).nullable
