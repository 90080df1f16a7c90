"""What travels between those who give shards out and those who work on them: tables as bytes, errors as sentences."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from store.errors import RlaifError, TransientError, UsageError

T = TypeVar("T")


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


def found_here(what: str, find: Callable[[], T], digest_of: Callable[[T], str], digest: str) -> T:
    """What `find` finds on this worker's machine. Raises UsageError, naming the machine, where that is nothing, or
    another one than that of the `digest`."""
    try:
        found = find()
    except UsageError as error:
        raise UsageError(
            f"The worker {socket.gethostname()} does not find the {what} ({error}) Put its folder where all machines "
            f"see it, under the same path."
        ) from error
    if digest_of(found) != digest:
        raise UsageError(
            f"The {what} is another one on the worker {socket.gethostname()}: give all machines the same folder and "
            f"the same version of rlaif."
        )
    return found


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
