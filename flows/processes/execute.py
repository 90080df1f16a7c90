"""Carry out a step of a round: in a process of its own where it loads torch, in this one where it does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from math import ceil
from pathlib import Path
from typing import IO

from flows.bucket import carried
from flows.plan import Step
from flows.processes.gpus import gpus, own_gpus
from flows.processes.lifeline import spawn, stop
from flows.processes.ranks import is_many
from flows.processes.watchdog import Limits, Watchdog
from flows.processes.worker import execute
from judges.config import load_judge
from judges.settings import LOCAL, JudgeSettings
from rlhf.config import Generating
from store.errors import RlaifError, TransientError, UsageError
from store.files import explain_os_errors
from store.manifest import need_manifest
from store.sharding import ShardsConfig
from store.stage import Outcome, Progress, silent

ENVIRONMENT = {
    # Threads that spin while they wait slow a busy machine tenfold.
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc gives large blocks back to the kernel when they are freed, and gets them anew page by page, as often as a
    # tensor is made. Where it keeps them, the tiny judge takes 1.0 s on a CPU instead of 1.35; PPO gains nothing.
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
}
"""Of a stage's process; a user's own setting goes first."""

_JUDGES_ALONE = frozenset({"judge", "anchors"})
"""Stages that load no model but those of judges; sampling, training and evaluation load a policy in any case."""

_ALL = 1 << 10
"""GPUs of a machine, at most."""


@carried
def run_step(step: Step, logs: Path, progress: Progress = silent, limits: Limits = Limits()) -> Outcome:  # noqa: B008
    """Bring the step's folder to completion. Raises RlaifError, UsageError or TransientError in one sentence.

    `limits`: of a process; a stage that needs none, because it loads no torch, has none.
    """
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
        waiting = partial(progress, "free GPU", 0, 1, "waiting for one")
        names = _wanted(step)
        with own_gpus(names, _count(step) if names else 0, waiting=waiting) as variables:
            return _in_own_process(step, json.dumps(request), variables, errors, log, progress, limits)


def _wanted(step: Step) -> list[str]:
    """The GPUs that the step may take some of; none where it computes elsewhere, or names the one it wants."""
    shards: ShardsConfig | None = getattr(step.config, "shards", None)
    if shards is not None and shards.address is not None:
        return []  # the cluster has its own
    device = getattr(getattr(step.config, "device", None), "device", "auto")
    found = gpus(os.environ) if device in ("auto", "cuda") else []
    return found if found and _loads_a_model(step) else []


def _loads_a_model(step: Step) -> bool:
    """Whether the step computes on a GPU itself; judges that are programs, or behind servers, do not."""
    return step.stage not in _JUDGES_ALONE or bool(_own_models(step))


def _own_models(step: Step) -> list[JudgeSettings]:
    """The step's judges whose models it loads onto a GPU."""
    asked = [one.settings for name in step.inputs.get("judge", ()) for one in load_judge(name).asked]
    return [one for one in asked if one.backend in LOCAL and getattr(one, "device", "auto") in ("auto", "cuda")]


def _count(step: Step) -> int:
    """As many as the most divided of its models is divided over: they use the same GPUs, one after the other or with
    a share of the memory each. 0 processes, as many as there are, is a large number here: `own_gpus` gives no more."""
    shards: ShardsConfig | None = getattr(step.config, "shards", None)
    if shards is not None and shards.gpus:
        return ceil(shards.gpus * (shards.workers or _ALL))
    counts = [getattr(getattr(step.config, "device", None), "processes", 1) or _ALL]
    counts += [getattr(judge, "tensor_parallel_size", 1) for judge in _own_models(step)]
    if isinstance(step.config, Generating) and step.config.engine == "vllm" and step.config.vllm.devices is None:
        counts.append(step.config.vllm.tensor_parallel_size)
    return max(counts)


def _in_own_process(
    step: Step,
    request: str,
    variables: Mapping[str, str],
    errors: IO[str],
    log: Path,
    progress: Progress,
    limits: Limits,
) -> Outcome:
    many = is_many(step.stage, json.loads(request)["config"])
    module = "flows.processes.ranks" if many else "flows.processes.worker"
    process = spawn(
        [sys.executable, "-m", module, request],
        env={**ENVIRONMENT, **os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=errors,
    )
    failure, done = "", None
    try:
        with Watchdog(process, limits) as dog:
            for line in process.stdout or ():
                dog.seen()
                event = json.loads(line)
                if "progress" in event:
                    progress(*event["progress"])
                if not (event.get("echo") and failure):
                    failure = event.get("error", failure)
                done = event.get("done", done)
            code = process.wait()
    finally:
        stop(process)
    if code == 0 and many:
        done = done or {"reused": True, "reasons": []}  # on a node without the main process
    # Once that is said the result stands, also where a library then crashes or hangs in the process's exit.
    if done is not None:
        return Outcome(step.out, need_manifest(step.out), done["reused"], done["reasons"])
    if dog.barked is not None:
        raise TransientError(f"Stage {step.stage} {dog.barked}. Its output is in {log}.")
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
