"""The inbox: a folder in which verdict files arrive, as parquet or as lines of JSON.

It only ever reads. A file stays where it is, so that nothing that arrives can be lost, and another round that watches
the same folder finds its own. A file that grew or changed is read again from the start. Any fault of a file becomes a
named problem, since one bad file must not keep the others from being read.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

from audit.answers import storable
from store.errors import UsageError
from store.files import explain_os_errors
from store.schemas import SCHEMA_VERSION, VERDICTS, Table
from store.tables import conform

MAX_BYTES = 64 << 20
"""Largest file that is read: some 100,000 verdicts with long comments."""

_ROWS = Table("verdicts", VERDICTS.schema)  # without its key: a repeated row is counted, it does not spoil the file


@dataclass(frozen=True)
class Entry:
    """One row of a delivery, such as `line 3`: its value, or the problem that kept it from being read."""

    where: str
    value: Any = None
    problem: str | None = None


@dataclass(frozen=True)
class Delivery:
    """What came in at once under one name. The same digest means the same content."""

    name: str
    digest: str
    entries: tuple[Entry, ...]


class Deliveries(Protocol):
    """Where verdicts come from. A folder today; a database queue gives its new rows the same way."""

    def __call__(self) -> Iterable[Delivery]:
        """What is new or changed since the last call."""
        ...


class Inbox:
    """The deliveries of a folder. Hidden files, unfinished ones (.tmp, .part) and folders are left alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[str, tuple[int, int, int]] = {}
        with explain_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def __call__(self) -> Iterator[Delivery]:
        for path in sorted(self.folder.iterdir()):
            if path.name.startswith(".") or path.suffix in (".tmp", ".part"):
                continue
            try:
                if not path.is_file():
                    continue
                stat = path.stat()
                mark = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
                if self._seen.get(path.name) == mark:
                    continue
                delivery = read_file(path)
            except FileNotFoundError:  # moved away between listing and reading
                continue
            except OSError as error:
                delivery = _unreadable(path, f"cannot be read ({error.strerror})")
            else:
                # The mark was taken before reading: a write in between changes it, and the file is read once more.
                self._seen[path.name] = mark
            yield delivery


def read_file(path: Path) -> Delivery:
    """Read a verdict file. Raises OSError where the file cannot be read at all; every other fault is an entry."""
    if path.suffix not in (".parquet", ".jsonl", ".json"):
        return _unreadable(path, "is neither .parquet nor .jsonl: convert it")
    if (size := path.stat().st_size) > MAX_BYTES:
        return _unreadable(path, f"has {size:,} bytes, at most {MAX_BYTES:,} are read: split it")
    content = path.read_bytes()
    entries = _parquet(content, path.name) if path.suffix == ".parquet" else _lines(content)
    return Delivery(_name(path), hashlib.sha256(content).hexdigest(), tuple(entries))


def _lines(content: bytes) -> list[Entry]:
    entries = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            entries.append(Entry(f"line {number}", json.loads(line)))
        except (ValueError, RecursionError) as error:
            entries.append(Entry(f"line {number}", problem=f"is no JSON ({error})"))
    return entries


def _parquet(content: bytes, name: str) -> list[Entry]:
    try:
        data = pq.read_table(io.BytesIO(content))
        version = (data.schema.metadata or {}).get(b"rlaif.schema_version", b"0")
        if not version.isdigit() or int(version) > SCHEMA_VERSION:
            return [Entry("the file", problem=f"has table schema {version!r}, read is up to {SCHEMA_VERSION}")]
        rows = conform(data, _ROWS, source=name).select(VERDICTS.schema.names).to_pylist()
    except UsageError as error:
        return [Entry("the file", problem=str(error))]
    except Exception as error:  # noqa: BLE001 - a foreign binary file can make its reader raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return [Entry("the file", problem=f"cannot be read as a parquet table of verdicts ({reason})")]
    return [Entry(f"row {number}", row) for number, row in enumerate(rows, start=1)]


def _unreadable(path: Path, problem: str) -> Delivery:
    digest = hashlib.sha256(f"{os.fsencode(path.name)!r} {problem}".encode()).hexdigest()
    return Delivery(_name(path), digest, (Entry("the file", problem=problem),))


def _name(path: Path) -> str:
    return str(storable(os.fsencode(path.name).decode("utf-8", "backslashreplace")))
