"""The process of one stage: `python -m flows.processes.worker REQUEST`, REQUEST being JSON.

Events come as JSON lines on stdout: {"progress": [what, done, total, note]}, at last {"done": {...}} or
{"error": sentence}. The exit code tells the kind of failure (store.errors). Tracebacks of unexpected errors go to
stderr, which the caller keeps in a log file.

Where `ranks` started several of them, the main one reports; each says why it fails, with "echo" where it merely noticed
that another had failed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from flows.plan import resolve_inputs
from flows.processes.lifeline import die_with_parent
from flows.processes.ranks import ECHO, take_part
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
    many = "TORCHELASTIC_RUN_ID" in os.environ
    try:
        outcome = _execute_together(request, events) if many else _execute(request, EventProgress(events))
    except RlaifError as error:
        return _failed(events, str(error), error.exit_code, error)
    except MemoryError as error:
        return _failed(events, "it ran out of memory: lower its batch_size or batch_tokens", 75, error)
    except Exception as error:  # noqa: BLE001 - the last line of defence: told in one sentence, traced in the log
        traceback.print_exc()
        return _failed(events, f"it failed unexpectedly ({type(error).__name__}: {error})", 1, error)
    if outcome is not None:
        emit(events, {"done": {"reused": outcome.reused, "reasons": outcome.reasons}})
    return 0


def _execute(request: dict[str, Any], progress: Progress) -> Outcome:
    return execute(
        request["stage"], request["inputs"], request["config"], request["seed"], Path(request["out"]), progress
    )


def _execute_together(request: dict[str, Any], events: Any) -> Outcome | None:
    """As one of several processes; None on all but the main one."""
    threading.Thread(target=die_with_parent, daemon=True).start()
    from rlhf.distributed import join, leave, wants_gpu

    spec = STAGES[request["stage"]]
    config = parse(spec.config, request["config"], source=f"config of stage {request['stage']}")
    device = request["config"]["device"]
    world = join(wants_gpu(device["device"]), device["timeout_minutes"] * 60)
    outcome = take_part(
        request["stage"],
        spec,
        spec.load(),
        request["seed"],
        Path(request["out"]),
        EventProgress(events),
        # Only the main process looks at the inputs: hashing models takes its time.
        inputs=resolve_inputs(spec, request["inputs"]) if world.is_main else {},
        config=config,
    )
    leave()
    return outcome


def _failed(events: Any, sentence: str, code: int, error: BaseException) -> int:
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        emit(events, {"error": sentence})
        return code
    from rlhf.distributed import is_echo

    echo = is_echo(error)
    emit(events, {"error": sentence, "echo": echo})
    return ECHO if echo else code


if __name__ == "__main__":
    code = main()
    # At once: all is written and told, and the orderly exit of a process with torch takes seconds and can crash.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
