"""Structured logs: with RLAIF_LOG=json a run writes one JSON object a line to standard error, one for each event.

Keys: `time` (UTC), `event` (started, progress, finished, failed, waiting), `stage`, and what belongs to the event.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from typing import IO, Any

from store.errors import UsageError, WaitingError
from store.stage import Outcome

VARIABLE = "RLAIF_LOG"


class JsonLog:
    """A watcher (flows.telemetry.watch). Progress of a stage is told at most every `interval_s` seconds."""

    def __init__(self, stream: IO[str], interval_s: float = 10.0) -> None:
        self.stream, self.interval_s, self.last = stream, interval_s, 0.0
        self.waits: tuple[str, WaitingError] | None = None

    def _write(self, event: str, stage: str, **more: Any) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        # One call: lines of several processes on one stream must not mix.
        line = json.dumps({"time": at, "event": event, "stage": stage, **more}, ensure_ascii=False)
        self.stream.write(line + "\n")
        self.stream.flush()

    def started(self, stage: str, attempt: int) -> None:
        self.last = time.monotonic()
        self._write("started", stage, attempt=attempt)

    def progress(self, stage: str, what: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if now - self.last >= self.interval_s:
            self.last = now
            self._write("progress", stage, what=what, done=done, total=total, note=note)

    def finished(self, stage: str, outcome: Outcome) -> None:
        manifest = outcome.manifest
        self._write(
            "finished",
            stage,
            reused=outcome.reused,
            reasons=outcome.reasons,
            seconds=manifest.seconds,
            peak_rss_mb=manifest.peak_rss_mb,
            folder=str(outcome.folder),
        )

    def failed(self, stage: str, sentence: str) -> None:
        self._write("failed", stage, error=sentence)

    def waiting(self, stage: str, error: WaitingError) -> None:
        self.waits = (stage, error)
        self._write("waiting", stage, said=str(error), until=error.until.isoformat())


def json_log() -> JsonLog | None:
    """The watcher where RLAIF_LOG asks for it. Raises UsageError for a value that means nothing."""
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "text", "json"):
        raise UsageError(f"{VARIABLE}={value!r} means nothing: set it to json, or to text.")
    return JsonLog(sys.stderr) if value == "json" else None
