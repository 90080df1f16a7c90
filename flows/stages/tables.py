"""What several stages do with tables: the prompts of a split, rows without a schema of their own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from store.errors import UsageError
from store.files import atomic_write
from store.schemas import PROMPTS, Table
from store.stage import Job
from store.tables import conform, read_table


def read_prompts(path: Path, splits: Sequence[str], most: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """The prompts of the named splits, or `most` of them drawn at random, in the table's order.

    Raises UsageError where a split has no prompt, naming the splits that there are.
    """
    table = read_table(path, PROMPTS)
    rows: list[dict[str, Any]] = table.select(PROMPTS.schema.names).to_pylist()
    known = sorted({row["split"] for row in rows})
    if absent := [split for split in splits if split not in known]:
        raise UsageError(
            f"{path} has no prompts in the split {absent[0]!r}; it has {', '.join(known)}: name one of them."
        )
    rows = [row for row in rows if row["split"] in splits]
    if not most or most >= len(rows):
        return rows
    chosen = sorted(random.Random(seed).sample(range(len(rows)), most))  # noqa: S311
    return [rows[index] for index in chosen]


def read_joined(job: Job[Any], name: str, table: Table, allow_empty: bool = False) -> pa.Table:
    """The tables of an input that may have several files, as one; all but the first may be empty."""
    first, *others = (Path(value) for value in job.values(name))
    tables = [read_table(first, table, allow_empty)]
    if not others:
        return tables[0]
    tables += [read_table(path, table, allow_empty=True) for path in others]
    joined = pa.concat_tables([data.select(table.schema.names) for data in tables])
    return conform(joined, table, source=" with ".join(map(str, (first, *others))))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as parquet, atomically. A column has the values of all rows; a key that a row lacks is null there."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_write(path) as beside:
        pq.write_table(pa.table({name: _column([row.get(name) for row in rows]) for name in names}), beside)
    return path


def _column(values: list[Any]) -> pa.Array:
    # A column that happens to be null throughout still reads as a number, not as a type of its own.
    return pa.array(values) if any(value is not None for value in values) else pa.nulls(len(values), pa.float64())
