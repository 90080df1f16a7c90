"""Carry out a step of a round: in a process of its own where it loads torch, in this one where it does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from flows.lifeline import spawn, stop
from flows.plan import Step
from flows.worker import execute
from store.errors import RlaifError, TransientError, UsageError
from store.files import explain_os_errors
from store.manifest import need_manifest
from store.stage import Outcome, Progress, silent


def run_step(step: Step, logs: Path, progress: Progress = silent) -> Outcome:
    """Bring the step's folder to completion. Raises RlaifError, UsageError or TransientError in one sentence."""
    config = step.config.model_dump(mode="json")
    if not step.spec.heavy:
        return execute(step.stage, dict(step.inputs), config, step.seed, step.out, progress)
    request = {
        "stage": step.stage,
        "inputs": dict(step.inputs),
        "config": config,
        "seed": step.seed,
        "out": str(step.out),
    }
    log = logs / f"{step.stage}.log"
    with explain_os_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        errors = log.open("a", encoding="utf-8")
    with errors:
        return _in_own_process(step, json.dumps(request), errors, log, progress)


def _in_own_process(step: Step, request: str, errors: IO[str], log: Path, progress: Progress) -> Outcome:
    process = spawn(
        [sys.executable, "-m", "flows.worker", request],
        # Threads that spin while they wait slow a busy machine tenfold; a user's own setting goes first.
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        stdout=subprocess.PIPE,
        stderr=errors,
    )
    failure, done = "", None
    try:
        for line in process.stdout or ():
            event = json.loads(line)
            if "progress" in event:
                progress(*event["progress"])
            failure = event.get("error", failure)
            done = event.get("done", done)
        code = process.wait()
    finally:
        stop(process)
    if code == 0 and done is not None:
        return Outcome(step.out, need_manifest(step.out), done["reused"], done["reasons"])
    raise _failure(step.stage, code, failure, log)


def _failure(stage: str, code: int, message: str, log: Path) -> RlaifError:
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", often for want of memory: lower its batch sizes" if name == "SIGKILL" else ""
        return TransientError(f"Stage {stage} was killed by {name}{hint}. Its output is in {log}.")
    kinds: dict[int, Callable[[str], RlaifError]] = {2: UsageError, 75: TransientError}
    text = message or f"it ended with exit code {code}"
    sentence = f"Stage {stage}: {text}"
    if code not in (2,):
        sentence += f" (log: {log})"
    return kinds.get(code, RlaifError)(sentence)
