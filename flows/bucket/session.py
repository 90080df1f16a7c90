"""A run on a workspace in a bucket: what is done around each of its stages, while it holds the lease."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from store.errors import RlaifError, UsageError
from store.files import append_line, read_json
from store.manifest import REDO
from store.remote import folders
from store.remote.bucket import Bucket
from store.remote.lease import Lease
from store.remote.mirror import Mirror

if TYPE_CHECKING:
    from flows.bucket.workspace import Remote
    from flows.plan import Step
    from flows.processes.watchdog import Limits
    from store.stage import Outcome, Progress

MARK = ".bucket.json"
"""File of a copy that says which bucket it is of."""
MIRROR = ".mirror"
"""Folder of a round in the bucket that holds unfinished work."""
LOOK = re.compile(r"monitor/(\d+T\d+Z)/\w+")
"""Key of a look at the champion."""


class Session:
    def __init__(self, remote: Remote, lease: Lease) -> None:
        self.remote, self.lease = remote, lease

    @contextmanager
    def around(self, step: Step) -> Iterator[None]:
        """Fetch before, mirror meanwhile, upload after. Raises TransientError where the bucket is away."""
        remote, out = self.remote, step.out
        self.lease.check()
        _refuse_local_queue(step, remote.root)
        key = out.relative_to(remote.root).as_posix()
        for name in set(self._inputs(step)):
            remote.fetch(name)
        whole = remote.fetch(key)
        place = f"{out.parent.relative_to(remote.root).as_posix()}/{MIRROR}/{out.name}"
        partial = out.with_name(f".{out.name}.partial")
        interval = seconds("RLAIF_MIRROR_SECONDS", 30.0)
        mirror = Mirror(remote.bucket, place, partial, remote.identity, interval, self.lease.check)
        if (out / REDO).is_file() or not whole:
            folders.withdraw(remote.bucket, key)
            mirror.drop()
        else:
            mirror.restore()
        remote.push_records()
        try:
            with mirror:
                yield
        finally:
            if mirror.problem is not None:
                line = {"event": "not_mirrored", "directory": key, "error": mirror.problem}
                append_line(out.parent / "journal.jsonl", json.dumps(line))
        folders.push(remote.bucket, key, out, self.lease.check)
        mirror.drop()
        remote.push_records()

    def _inputs(self, step: Step) -> Iterator[str]:
        """Keys of the stage directories that inputs lie in."""
        root = self.remote.root
        for value in (value for values in step.inputs.values() for value in values):
            path = Path(value)
            if path.is_absolute() and path.is_relative_to(root / "rounds"):
                yield "/".join(path.relative_to(root).parts[:3])


OPEN: dict[Path, Session] = {}
"""Root of a copy -> this process's run on it."""


class _Run(Protocol):
    def __call__(self, step: Step, logs: Path, progress: Progress = ..., limits: Limits = ...) -> Outcome: ...


def carried(run: _Run) -> _Run:
    """`run_step` of a workspace in a folder as it is; in a bucket with all that goes around it.

    A look has a folder that nobody else writes to, so that it is made without the lease, also beside a round.
    """

    @functools.wraps(run)
    def wrapped(step: Step, *arguments: Any, **named: Any) -> Outcome:
        root = next((parent for parent in step.out.parents if (parent / MARK).is_file()), None)
        if root is None:
            return run(step, *arguments, **named)
        key = step.out.relative_to(root).as_posix()
        if LOOK.fullmatch(key):
            outcome = run(step, *arguments, **named)
            folders.push(Bucket(read_json(root / MARK)["url"]), key, outcome.folder)
            return outcome
        session = OPEN.get(root.resolve())
        if session is None:
            raise RlaifError(f"{root} is a copy of a bucket, and this run holds no lease on it: use rlaif run.")
        with session.around(step):
            return run(step, *arguments, **named)

    return wrapped


def _refuse_local_queue(step: Step, root: Path) -> None:
    """The audit queue's database cannot lie in a bucket, and one in this machine's copy would be seen by nobody."""
    config = step.config
    database = getattr(config, "database", None)
    if getattr(config, "mode", None) == "people" and database and Path(str(database)).is_relative_to(root):
        raise UsageError(
            "The audit queue of a workspace in a bucket needs a database of its own: set audit.database_env to the "
            "variable with the address of a PostgreSQL, or audit.inbox to a folder."
        )


def seconds(variable: str, default: float) -> float:
    """What an environment variable says. Raises UsageError where that is no number above 0."""
    text = os.environ.get(variable, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"{variable} = {text!r} is no number of seconds above 0: correct it.")
    return value
