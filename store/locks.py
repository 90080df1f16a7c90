"""Locks that the kernel drops with the process, so that a kill leaves none behind."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from store.errors import RlaifError
from store.files import explain_os_errors


@contextmanager
def exclusive(path: Path, message: str) -> Iterator[None]:
    """Hold the lock at `path`; RlaifError with `message` where another process holds it."""
    with explain_os_errors(path):
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RlaifError(message) from error
        yield
