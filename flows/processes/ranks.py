"""A stage in several processes: `python -m flows.processes.ranks REQUEST` starts a worker for each, with torchrun.

The main process (rank 0) alone takes the stage's lock, writes its directory and reports; the others compute along. When
one fails, torchrun stops the rest, and the exit code here is that of the first failure that is not the mere echo of
another. torchrun puts each process in a session of its own, out of reach of a kill of this one's group, so each of them
watches its standard input, whose other end this process holds, and dies with it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows.specs import StageSpec
from store.errors import TransientError, UsageError
from store.stage import Job, Outcome, Progress, StageFunction, run_stage, silent

TOGETHER = frozenset({"sft", "sample", "reward", "ppo", "dpo"})
"""Stages that several processes can do together."""
ECHO = 70
"""Exit code of a process that only noticed that another one had failed."""


def is_many(stage: str, config: Mapping[str, Any]) -> bool:
    """Whether the stage's config asks for several processes. Raises UsageError where the stage cannot have them."""
    device = config.get("device") or {}
    many = bool(device.get("processes", 1) != 1 or device.get("nodes", 1) > 1)
    if many and stage not in TOGETHER:
        raise UsageError(f"Stage {stage} runs in one process: set {stage}.device.processes and nodes to 1.")
    return many


def take_part(
    stage: str, spec: StageSpec, function: StageFunction, seed: int, out: Path, progress: Progress, **given: Any
) -> Outcome | None:
    """`run_stage` on the main process; on the others the stage's function alone, where it has to run, and None.

    All return together, when the result is in its place.
    """
    from rlhf.distributed import current

    world = current()
    if not world.is_main:
        job: Job[Any] | None = world.once(lambda: None)
        if job is not None:
            function(job)
        world.barrier()
        return None
    told: list[Job[Any]] = []

    def build(job: Job[Any]) -> dict[str, Any]:
        told.append(replace(job, progress=silent))
        world.once(lambda: told[0])
        return function(job)

    outcome = run_stage(stage, build, seed=seed, out=out, version=spec.version, progress=progress, **given)
    if not told:
        world.once(lambda: None)
    world.barrier()
    return outcome


def main() -> int:
    request = sys.argv[1]
    value = json.loads(request)
    device = value["config"]["device"]
    reading, _writing = os.pipe()
    os.dup2(reading, 0)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    processes = device["processes"] or _gpus()
    # On a CPU they share the cores; torch would give all cores to each.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=device["nodes"],
        max_nodes=device["nodes"],
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint=device["rendezvous"] or "localhost:0",
        run_id=f"{value['stage']}-{Path(value['out']).name}-{value['seed']}",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "flows.processes.worker", request)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        return _report(codes, error.get_first_failure()[0])
    return 0


def _report(codes: Mapping[int, int], first: int) -> int:
    """Say what no process could say for itself, and return the exit code. `codes`: by rank, as subprocess has them."""
    # SIGTERM is how torchrun stops the rest.
    killed = {rank: code for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM}
    if killed:
        rank, code = next(iter(killed.items()))
        name = signal.Signals(-code).name
        hint = ", often for want of memory: lower its batch sizes" if name == "SIGKILL" else ""
        print(json.dumps({"error": f"its process {rank} was killed by {name}{hint}"}), flush=True)
        return TransientError.exit_code
    told = [code for code in (codes[first], *codes.values()) if code > 0 and code != ECHO]
    return told[0] if told else TransientError.exit_code


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


if __name__ == "__main__":
    sys.exit(main())
