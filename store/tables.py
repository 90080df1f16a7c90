"""Tables as parquet files: written atomically, and checked when they are written and when they are read.

Missing columns, wrong types and duplicate keys are named in one sentence, so that no stage starts on a table it would
misread. Extra columns are allowed and kept.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from store.errors import UsageError
from store.files import atomic_write, remove, sync_folder
from store.keys import all_distinct
from store.schemas import SCHEMA_VERSION, Table

ROW_GROUP = 131_072
"""Rows of a parquet row group: what a reader or a streaming writer holds at a time."""

_PARTS = "rlaif.parts"


def write_table(
    path: Path, table: Table, data: pa.Table, metadata: dict[str, str] | None = None, part_rows: int = 0
) -> Path:
    """Write `data` as parquet at `path`, atomically, after checking it against `table`.

    The bytes depend only on the rows, the schema and `metadata`: nothing of the clock or the machine is written. Where
    there are more than `part_rows` (0: never), `path` becomes a folder of part files with so many rows each at most.
    Raises UsageError where the data does not fit the schema.
    """
    data = _typed(data, table, source=str(path))
    tags = file_tags(table, metadata)
    if part_rows and data.num_rows > part_rows:
        _refuse_duplicates(data, table, source=str(path))
        return _write_parts(path, data, tags, part_rows)
    tagged = data.replace_schema_metadata(tags)
    with ThreadPoolExecutor(1) as pool, atomic_write(path) as beside:
        distinct = pool.submit(_refuse_duplicates, data, table, source=str(path))  # while a core has nothing to do
        pq.write_table(tagged, beside, compression="zstd", row_group_size=ROW_GROUP)
        distinct.result()
    return path


def _write_parts(path: Path, data: pa.Table, tags: dict[str, str], part_rows: int) -> Path:
    """Each part says how many there are, so that a folder which has lost one is never taken for a whole table."""
    starts = range(0, data.num_rows, part_rows)
    data = data.replace_schema_metadata({**tags, _PARTS: str(len(starts))})
    beside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        for number, start in enumerate(starts):
            with atomic_write(beside / f"part-{number:05d}.parquet") as file:
                pq.write_table(data.slice(start, part_rows), file, compression="zstd")
        remove(path)
        os.replace(beside, path)
        sync_folder(path.parent)
    finally:
        remove(beside)
    return path


def read_table(path: Path, table: Table, allow_empty: bool = False) -> pa.Table:
    """Read the parquet file at `path`, or the folder of part files, and check it against `table`.

    Raises UsageError, in one sentence, for a missing or unreadable file, a missing column, a wrong type, a null where
    none may be, a duplicate key, a newer schema version, or (unless `allow_empty`) a table without rows.
    """
    if not path.exists():
        raise UsageError(f"The {table.name} file {path} does not exist: check the path.")
    try:
        data = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(
            f"The {table.name} file {path} cannot be read as parquet ({first}): restore it or make it again."
        ) from error
    parts = (data.schema.metadata or {}).get(_PARTS.encode())
    present = len(list(path.glob("[!._]*"))) if path.is_dir() else 1
    if parts is not None and parts != str(present).encode():
        raise UsageError(
            f"The {table.name} folder {path} has {present} of its {parts.decode(errors='replace')} part files: restore "
            f"the others or make it again."
        )
    version = (data.schema.metadata or {}).get(b"rlaif.schema_version")
    if version is not None and (not version.isdigit() or int(version) > SCHEMA_VERSION):
        raise UsageError(
            f"{path} was written with table schema {version.decode(errors='replace')}, this version reads up to "
            f"{SCHEMA_VERSION}: upgrade rlaif."
        )
    if data.num_rows == 0 and not allow_empty:
        raise UsageError(f"The {table.name} file {path} has no rows: give one with at least one row.")
    return conform(data, table, source=str(path))


def file_tags(table: Table, metadata: dict[str, str] | None) -> dict[str, str]:
    """The metadata of a parquet file of `table`: what it is, then the caller's `metadata`."""
    return {"rlaif.table": table.name, "rlaif.schema_version": str(SCHEMA_VERSION), **(metadata or {})}


def conform(data: pa.Table, table: Table, source: str) -> pa.Table:
    """Return `data` with the schema's columns first, cast to their types, extra columns after; see `read_table`."""
    data = _typed(data, table, source)
    _refuse_duplicates(data, table, source)
    return data


def _typed(data: pa.Table, table: Table, source: str) -> pa.Table:
    missing = [name for name in table.schema.names if name not in data.column_names]
    optional = [name for name in missing if table.schema.field(name).nullable]
    absent = [name for name in missing if name not in optional]
    if absent:
        raise UsageError(
            f"{source} lacks the column{'s' * (len(absent) > 1)} {', '.join(absent)} of a {table.name} table; "
            f"it has {', '.join(data.column_names) or 'no columns'}: add or rename."
        )
    columns: dict[str, pa.ChunkedArray | pa.Array] = {}
    for field in table.schema:
        if field.name in optional:
            columns[field.name] = pa.nulls(data.num_rows, field.type)
            continue
        column = data.column(field.name)
        if column.type != field.type:
            try:
                column = column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise UsageError(
                    f"{source}: column {field.name} is {column.type}, a {table.name} table needs {field.type}: convert."
                ) from error
        if not field.nullable and column.null_count:
            raise UsageError(
                f"{source}: column {field.name} of a {table.name} table has {column.null_count} empty values: fill."
            )
        columns[field.name] = column
    extra = [name for name in data.column_names if name not in columns]
    fields = [*table.schema, *(data.schema.field(name) for name in extra)]
    columns |= {name: data.column(name) for name in extra}
    return pa.table(columns, schema=pa.schema(fields))


def _refuse_duplicates(data: pa.Table, table: Table, source: str) -> None:
    if not table.key or all_distinct(data[table.key]):
        return
    counts = pc.value_counts(data[table.key]).to_pylist()
    double = next(row["values"] for row in counts if row["counts"] > 1)
    raise UsageError(
        f"{source}: {table.key} {double!r} occurs more than once: make the keys of a {table.name} table unique."
    )
