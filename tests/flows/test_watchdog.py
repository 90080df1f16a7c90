"""Nothing hangs for ever: a try that takes too long or falls silent is stopped, with all that it started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flows.plan import Step
from flows.processes import execute
from flows.processes.lifeline import spawn, stop
from flows.processes.watchdog import Limits, Watchdog
from rlhf.config import SampleConfig
from store.errors import TransientError
from tests.flows.test_lifeline import GRANDCHILD, gone


def hang(limits: Limits, talkative: bool = False) -> tuple[str | None, int]:
    """Why the process was stopped, and the pid of what it had started."""
    program = GRANDCHILD.replace(
        "p.wait()", "import time; [(print(0, flush=True), time.sleep(0.05)) for _ in range(12000)]"
    )
    process = spawn([sys.executable, "-c", program if talkative else GRANDCHILD], stdout=subprocess.PIPE)
    assert process.stdout is not None
    grandchild = int(process.stdout.readline())
    try:
        with Watchdog(process, limits) as dog:
            for _ in process.stdout:
                dog.seen()
            process.wait()
    finally:
        stop(process)
    return dog.barked, grandchild


def test_silence_is_noticed_and_ends_the_whole_group() -> None:
    barked, grandchild = hang(Limits(silence_s=0.5))
    assert barked == "was stopped: no progress for 0.5 s (retry.silence_s)"
    assert gone(grandchild)


def test_a_try_that_shows_progress_is_stopped_by_the_clock_alone() -> None:
    barked, grandchild = hang(Limits(timeout_s=1.5, silence_s=1.0), talkative=True)
    assert barked == "was stopped after 1.5 s (retry.timeout_s)"
    assert gone(grandchild)


def test_a_process_that_ends_in_time_is_left_alone() -> None:
    process = spawn([sys.executable, "-c", "print('done')"], stdout=subprocess.PIPE)
    with Watchdog(process, Limits(timeout_s=60, silence_s=60)) as dog:
        assert process.wait(60) == 0
    stop(process)
    assert dog.barked is None


def test_a_hung_stage_is_worth_a_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault is a worker that never answers; all else is real."""
    monkeypatch.setattr(execute.sys, "executable", str(_sleeper(tmp_path)))
    step = Step("sample", {}, SampleConfig(), 1, tmp_path / "out")
    with pytest.raises(TransientError, match=r"Stage sample was stopped: no progress for 0.5 s .* Its output is in"):
        execute.run_step(step, tmp_path / "logs", limits=Limits(silence_s=0.5))
    assert not [
        child for child in psutil.Process().children(recursive=True) if "flows.processes.worker" in child.cmdline()
    ]


def _sleeper(folder: Path) -> Path:
    """An interpreter that runs the lifeline and hangs as a worker."""
    path = folder / "python"
    path.write_text(
        f'#!/bin/sh\ncase "$2" in flows.processes.worker) exec sleep 600;; esac\nexec {sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return path
