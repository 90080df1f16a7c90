"""A table written while its rows come, for tables that no memory holds."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from store.files import explain_os_errors, sync_file, sync_folder
from store.schemas import Table
from store.tables import ROW_GROUP, conform, file_tags


class TableWriter:
    """A table written as its rows come: the same bytes as `write_table` of them all, in the memory of a row group.

    `write` any number of tables, then `commit`; `close` always. Keys are not compared over all rows.
    """

    def __init__(self, path: Path, table: Table, metadata: dict[str, str] | None = None) -> None:
        self._path, self._table = path, table
        self._tags = file_tags(table, metadata)
        self._beside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def write(self, data: pa.Table) -> None:
        data = conform(data, self._table, source=str(self._path)).replace_schema_metadata(self._tags)
        while data.num_rows:
            part, data = data.slice(0, ROW_GROUP - self._rows), data.slice(ROW_GROUP - self._rows)
            self._waiting.append(part)
            self._rows += part.num_rows
            if self._rows == ROW_GROUP:
                self._flush()

    def commit(self) -> Path:
        """Give the file its name."""
        if self._rows or self._writer is None:
            self._flush()
        if self._writer is not None:
            with explain_os_errors(self._path):
                self._writer.close()
            self._writer = None
        with explain_os_errors(self._path):
            sync_file(self._beside)
            os.replace(self._beside, self._path)
            sync_folder(self._path.parent)
        return self._path

    def close(self) -> None:
        """Leave nothing behind of a file that was not committed."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._beside.unlink(missing_ok=True)

    def _flush(self) -> None:
        empty = self._table.schema.with_metadata(self._tags).empty_table()
        data = pa.concat_tables(self._waiting).combine_chunks() if self._waiting else empty
        with explain_os_errors(self._path):
            if self._writer is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = pq.ParquetWriter(self._beside, data.schema, compression="zstd")
            self._writer.write_table(data, row_group_size=ROW_GROUP)
        self._waiting, self._rows = [], 0
