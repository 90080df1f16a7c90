"""The journal: rows about judging (votes, ratings), appended to durable shards as they arrive and addressed by content.

A row's id says what was asked of which judge, so that it does not matter who wrote it, where, or in what order: any
number of shards, of any number of processes, make the same table. Each row reaches the operating system when it
arrives, so that a killed process loses none, and the disk within a second, for a machine that fails.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow as pa

from store.files import explain_os_errors
from store.schemas import Status, Table

SHARD_ROWS = 20_000
_BATCH = 4096  # rows turned into Arrow at a time: dictionaries take ten times the memory
_SYNC_EVERY_S = 1.0


class Journal:
    """Rows of one judge; a context manager for writing.

    `folder`: of the shards, `*.jsonl`; None keeps the rows in memory. `table` is their schema, its key the id.
    `wanted`: the ids that count here; a folder may hold others, and what is no row at all, which are left alone. Rows
    that ended in an error are asked for again by the next run, and a row without an error always counts before one
    with. A shard is closed after `shard_rows` rows and never written again.

    Writing raises RlaifError on a full disk; what was written before stays.
    """

    def __init__(self, folder: Path | None, table: Table, wanted: Iterable[str], shard_rows: int = SHARD_ROWS) -> None:
        self.counts: Counter[str] = Counter()
        """Status -> rows so far, errors of earlier runs left out."""
        self.last_error: str | None = None
        self.transient_errors = 0
        """Errors of this run that another run may not meet."""
        self._folder, self._schema, self._key = folder, table.schema, table.key or ""
        self._required = [field.name for field in table.schema if not field.nullable]
        self._shard_rows = shard_rows
        self._wanted = set(wanted)
        self.total = len(self._wanted)
        self.done: set[str] = set()
        """Ids answered before this run; it stays as it was while this run appends."""
        self._rows: list[dict[str, Any]] = []
        self._batches: list[pa.RecordBatch] = []
        self._file: IO[bytes] | None = None
        self._in_shard = 0
        self._synced = 0.0
        for row in self._read():
            if row["status"] != Status.ERROR and row[self._key] not in self.done:
                self.done.add(row[self._key])
                self.counts[row["status"]] += 1

    def missing(self) -> int:
        return self.total - len(self.done)

    def append(self, row: dict[str, Any], transient: bool = False) -> None:
        self.counts[row["status"]] += 1
        self.last_error = row["error"] or self.last_error
        self.transient_errors += transient
        if self._folder is None:
            self._rows.append(row)
            if len(self._rows) >= _BATCH:
                self._pack()
            return
        if self._file is None or self._in_shard >= self._shard_rows:
            self._close()
            self._file = _new_shard(self._folder)
        with explain_os_errors(self._folder):
            _write_all(self._file, json.dumps(row, allow_nan=False).encode() + b"\n")
            self._in_shard += 1
            if time.monotonic() - self._synced > _SYNC_EVERY_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def table(self) -> pa.Table:
        """All rows that count, one for each id, in the order of their arrival."""
        if self._folder is not None:
            chosen: dict[str, tuple[bool, int]] = {}
            for at, row in enumerate(self._read()):
                candidate = (row["status"] != Status.ERROR, at)
                chosen[row[self._key]] = max(candidate, chosen.get(row[self._key], candidate))
            for at, row in enumerate(self._read()):
                if chosen[row[self._key]][1] == at:
                    self._rows.append(row)
                    if len(self._rows) >= _BATCH:
                        self._pack()
        self._pack()
        batches, self._batches = self._batches, []
        return pa.Table.from_batches(batches, schema=self._schema)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None and self._folder is not None:
            file, self._file, self._in_shard = self._file, None, 0
            with explain_os_errors(self._folder), file:
                os.fsync(file.fileno())

    def _pack(self) -> None:
        if self._rows:
            self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def _read(self) -> Iterator[dict[str, Any]]:
        if self._folder is None:
            return
        for path in sorted(self._folder.glob("*.jsonl")):
            if not path.is_file():
                continue
            with path.open("rb") as file:
                for line in file:
                    try:
                        row = json.loads(line)
                    except ValueError:
                        continue  # torn by a kill in the middle of a write
                    if self._counts(row):
                        yield row

    def _counts(self, row: Any) -> bool:
        """Whether it is a row that is wanted, and whole: one of another version, or from elsewhere, may not be."""
        if not isinstance(row, dict):
            return False
        key = row.get(self._key)
        wanted = isinstance(key, str) and key in self._wanted
        return wanted and all(row.get(name) is not None for name in self._required)


def _new_shard(folder: Path) -> IO[bytes]:
    """A shard of our own: the next number that nobody has, also among processes that write here at the same time."""
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        number = sum(1 for _ in folder.glob("*.jsonl"))
        while True:
            try:
                # Unbuffered: a row is in the file when it was written, and a failed one is not tried again on closing.
                return (folder / f"{number:06d}.jsonl").open("xb", buffering=0)
            except FileExistsError:
                number += 1


def _write_all(file: IO[bytes], data: bytes) -> None:
    """A disk that fills up takes a part first, and refuses the rest."""
    while data:
        data = data[file.write(data) :]
