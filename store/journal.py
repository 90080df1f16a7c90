"""The round's journal: an append-only file of what ran when, and how it ended. For people and reports, never for logic.

What is done is told by manifests alone; the journal only adds attempts, failures and times.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from store.files import append_line, read_lines


class Journal:
    """Events with `time`, `event` (started, finished, reused, failed, ...), and whatever else the writer adds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, **details: Any) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        append_line(self.path, json.dumps({"time": time, "event": event, **details}, ensure_ascii=False))

    def events(self) -> list[dict[str, Any]]:
        return [event for event in read_lines(self.path) if isinstance(event, dict)]

    def attempts(self, stage: str) -> int:
        """How often the stage really ran in this round, over all runs; finding it complete is no attempt."""
        kinds = [event["event"] for event in self.events() if event.get("stage") == stage]
        return kinds.count("started") - kinds.count("reused")
