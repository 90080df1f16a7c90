"""Locks: of files, which the kernel drops with the process, so that a kill leaves none behind; and of this process."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock

from store.errors import RlaifError
from store.files import explain_os_errors

LOADING = RLock()
"""Held while a model is loaded. transformers switches the tying of weights off in its own classes meanwhile: of two
threads that load at once one may leave it off for good, and the heads of later models are random numbers."""


@contextmanager
def exclusive(path: Path, message: str, wait_s: float = 0.2) -> Iterator[None]:
    """Hold the lock at `path`; RlaifError with `message` where another process holds it for longer than `wait_s`.

    Not 0: whoever looks at a lock (`is_held`) has it for an instant.
    """
    with explain_os_errors(path):
        file = path.open("a")
    with file:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise RlaifError(message) from error
                time.sleep(0.02)
        yield


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock at `path`. Nothing is written."""
    if not path.is_file():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
