"""Atomic files: what has its final name is whole. Write beside, flush to disk, rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from store.errors import RlaifError, UsageError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; on success it becomes `path`, on any failure nothing is left.

    Raises RlaifError naming the path and the remedy for a full disk or an unwritable folder.
    """
    beside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    with explain_os_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield beside
            sync_file(beside)
            os.replace(beside, path)
            sync_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one sentence with the path and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RlaifError(f"No space left on the disk while writing {path}: free some and run again.") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UsageError(
                f"Cannot write {path} ({error.strerror}): choose a folder that you may write to."
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise UsageError(f"Cannot write {path} ({error.strerror}): a file or folder is in the way.") from error
        raise


def write_text(path: Path, text: str) -> Path:
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, value: Any) -> Path:
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises UsageError in one sentence where the file is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist: check the path.") from error
    except (ValueError, OSError) as error:
        raise UsageError(f"{path} cannot be read as JSON ({error}): restore it or remove it.") from error


def append_line(path: Path, line: str) -> None:
    """Append one line durably. A torn last line, left by a kill, is closed first so that it cannot swallow this one."""
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def read_lines(path: Path) -> list[Any]:
    """The JSON values of a file of lines; a torn line, which a kill in the middle of an append leaves, is left out."""
    if not path.exists():
        return []
    values = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values.append(json.loads(line))
        except ValueError:
            continue
    return values


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """A rename survives a power cut only once its folder is flushed too."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder; a missing one is fine."""
    if path.is_dir() and not path.is_symlink():
        # Renamed first: a kill in the middle must not leave half a folder under a name that means something.
        doomed = path.with_name(f".{path.name}.{uuid4().hex[:8]}.trash")
        os.replace(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
