"""What travels between those who give shards out and those who work on them: tables as bytes, errors as sentences."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from store.errors import RlaifError, TransientError, UsageError


@dataclass(frozen=True)
class Answer:
    """`files`: what a shard gave, name -> bytes. Or why there is nothing: `error`, a sentence, and the `kind` of it:
    usage, transient or other. `worker`: who was at it."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    worker: str = ""
    error: str = ""
    kind: str = ""

    def raise_error(self) -> None:
        if self.error:
            raise {"usage": UsageError, "transient": TransientError}.get(self.kind, RlaifError)(self.error)

    def write(self, folder: Path) -> None:
        for name, data in self.files.items():
            (folder / name).write_bytes(data)


def answered(work: Callable[[], Mapping[str, bytes]]) -> Answer:
    """The files that `work` gives, or its error."""
    worker = f"{socket.gethostname()}:{threading.get_native_id()}"
    try:
        return Answer(work(), worker)
    except RlaifError as error:
        kind = "usage" if isinstance(error, UsageError) else "transient" if isinstance(error, TransientError) else ""
        return Answer(worker=worker, error=str(error), kind=kind or "other")


def to_stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def from_stream(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()


def to_parquet(table: pa.Table, row_group: int | None = None) -> bytes:
    """`row_group`: rows of a row group."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group)
    data: bytes = sink.getvalue().to_pybytes()
    return data
