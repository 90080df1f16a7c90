"""Many sorted parts become one sorted file, in memory that does not grow with them.

A merge in ranges of pair_id: of each part only the row groups are read that may hold ids of the range. The file has the
same bytes as one written from the whole table, whatever the parts were.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from store.errors import UsageError
from store.schemas import Table
from store.table_writer import TableWriter
from store.tables import ROW_GROUP

_ORDER = [("pair_id", "ascending"), ("judge", "ascending"), ("order", "ascending")]
_RANGE = ROW_GROUP // 2
"""Rows that are sorted at a time, more or less."""

_SAMPLE = 64  # one id of so many is looked at to cut the ranges

Keep = Callable[[pa.ChunkedArray], pa.ChunkedArray]
"""Which of a column of pair_ids are taken."""


class Part:
    """A parquet file sorted by pair_id; where its ids lie is read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with pq.ParquetFile(path) as file:
            about = file.metadata
            self.rows: int = about.num_rows
            at = file.schema_arrow.get_field_index("pair_id")
            groups = about.num_row_groups if self.rows else 0
            bounds = [about.row_group(group).column(at).statistics for group in range(groups)]
            self._first = [str(bound.min) for bound in bounds]
            self._last = [str(bound.max) for bound in bounds]
            ids = file.read(columns=["pair_id"])["pair_id"] if about.num_rows else pa.chunked_array([[]], pa.string())
            self.sample: list[str] = ids.take(pa.array(range(0, len(ids), _SAMPLE), pa.int64())).to_pylist()

    def between(self, low: str | None, high: str | None) -> pa.Table | None:
        """The rows with low <= pair_id < high."""
        start = 0 if low is None else bisect.bisect_left(self._last, low)
        stop = len(self._first) if high is None else bisect.bisect_left(self._first, high)
        if start >= stop:
            return None
        with pq.ParquetFile(self.path) as file:
            found = file.read_row_groups(list(range(start, stop)), use_threads=False)
        if low is not None:
            found = found.filter(pc.greater_equal(found["pair_id"], low))
        return found if high is None else found.filter(pc.less(found["pair_id"], high))


def open_parts(paths: Sequence[Path]) -> list[Part]:
    return [Part(path) for path in paths]


def merged(parts: Sequence[Part]) -> Iterator[pa.Table]:
    """All rows, sorted by pair_id, judge and order, some ten thousand at a time."""
    sample = sorted(name for part in parts for name in part.sample)
    cuts = sample[_RANGE // _SAMPLE :: _RANGE // _SAMPLE]
    edges: list[str | None] = [None, *dict.fromkeys(cuts), None]
    for low, high in pairwise(edges):
        found = [table for part in parts if (table := part.between(low, high)) is not None]
        if found:
            yield pa.concat_tables(found).combine_chunks().sort_by(_ORDER)


def write_merged(
    parts: Sequence[Part],
    table: Table,
    outputs: Sequence[tuple[Path, Keep | None, dict[str, str]]],
) -> None:
    """Write the rows of all parts to each of `outputs`: a path, which pair_ids it takes (None: all), its metadata.

    Raises UsageError for a pair that is there twice.
    """
    writers = [(TableWriter(path, table, tags), keep) for path, keep, tags in outputs]
    try:
        for rows in merged(parts):
            _refuse_doubles(rows, table)
            for writer, keep in writers:
                writer.write(rows if keep is None else rows.filter(keep(rows["pair_id"])))
        for writer, _ in writers:
            writer.commit()
    finally:
        for writer, _ in writers:
            writer.close()


def _refuse_doubles(rows: pa.Table, table: Table) -> None:
    if len(pc.unique(rows[table.key])) < rows.num_rows:
        counts = pc.value_counts(rows[table.key].combine_chunks()).to_pylist()
        double = next(row["values"] for row in counts if row["counts"] > 1)
        raise UsageError(f"The {table.key} {double} comes from two shards: give each pair once.")


def one_of(ids: Collection[str]) -> Keep:
    """Keeps these pairs."""
    wanted = pa.array(sorted(ids), pa.string())
    return lambda column: pc.is_in(column, value_set=wanted)
