"""The process of one stage: `python -m flows.worker REQUEST`, REQUEST being JSON. Events come as JSON lines on stdout.

Events: {"progress": [what, done, total, note]}, at last {"done": {...}} or {"error": sentence}. The exit code tells the
kind of failure (store.errors). Tracebacks of unexpected errors go to stderr, which the caller keeps in a log file.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from flows.plan import resolve_inputs
from flows.specs import STAGES
from store.config import parse
from store.errors import RlaifError
from store.stage import Outcome, Progress, run_stage, silent


def execute(
    stage: str,
    inputs: dict[str, list[str]],
    config: dict[str, Any],
    seed: int,
    out: Path,
    progress: Progress = silent,
) -> Outcome:
    """Run one stage in this process."""
    spec = STAGES[stage]
    return run_stage(
        stage,
        lambda job: spec.load()(job),
        inputs=resolve_inputs(spec, inputs),
        config=parse(spec.config, config, source=f"config of stage {stage}"),
        seed=seed,
        out=out,
        version=spec.version,
        progress=progress,
    )


class EventProgress:
    """Progress as events on a stream, at most a few a second."""

    def __init__(self, stream: Any, interval_s: float = 0.2) -> None:
        self.stream, self.interval_s, self.last = stream, interval_s, 0.0

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self.last >= self.interval_s or done >= total:
            self.last = now
            emit(self.stream, {"progress": [what, done, total, note]})


def emit(stream: Any, event: dict[str, Any]) -> None:
    stream.write(json.dumps(event, ensure_ascii=True) + "\n")
    stream.flush()


def main() -> int:
    # Whatever a library prints must not mix with the events.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.argv[1])
    try:
        outcome = execute(
            request["stage"],
            request["inputs"],
            request["config"],
            request["seed"],
            Path(request["out"]),
            EventProgress(events),
        )
    except RlaifError as error:
        emit(events, {"error": str(error)})
        return error.exit_code
    except MemoryError:
        emit(events, {"error": "it ran out of memory: lower its batch_size or batch_tokens"})
        return 75
    except Exception as error:  # noqa: BLE001 - the last line of defence: told in one sentence, traced in the log
        traceback.print_exc()
        emit(events, {"error": f"it failed unexpectedly ({type(error).__name__}: {error})"})
        return 1
    emit(events, {"done": {"reused": outcome.reused, "reasons": outcome.reasons}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
