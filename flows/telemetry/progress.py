"""How far a round's running stage is, in a small file for other processes: `rlaif status --watch` reads it.

It is for people alone: what is done is told by manifests. A file that cannot be written is left out.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from store.files import read_json
from store.stage import Progress

_FILE = Path("logs") / "progress.json"


class Recorded:
    """A progress that is also written to the round's folder, at most every `interval_s` seconds."""

    def __init__(self, inner: Progress, round_folder: Path, stage: str, interval_s: float = 1.0) -> None:
        self.inner, self.path, self.stage, self.interval_s = inner, round_folder / _FILE, stage, interval_s
        self._written = -interval_s
        self._first: tuple[str, int, float] | None = None

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        self.inner(what, done, total, note)
        now = time.monotonic()
        if self._first is None or self._first[0] != what:
            self._first = what, done, now
        if now - self._written < self.interval_s and done < total:
            return
        self._written = now
        _, start, since = self._first
        left = (now - since) * (total - done) / (done - start) if done > start else None
        value = {"stage": self.stage, "what": what, "done": done, "total": total, "note": note}
        beside = self.path.with_name(f".{self.path.name}.tmp")
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps({**value, "seconds_left": left, "time": time.time()}), encoding="utf-8")
            os.replace(beside, self.path)


def read_progress(round_folder: Path, stage: str) -> dict[str, Any] | None:
    """`what, done, total, note, seconds_left` (None: not known yet) and `time` (of the clock) of a running stage."""
    path = round_folder / _FILE
    if not path.is_file():
        return None
    value = read_json(path)
    return value if isinstance(value, dict) and value.get("stage") == stage else None
