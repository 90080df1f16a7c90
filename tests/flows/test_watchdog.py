"""Nothing hangs for ever: a try that takes too long or falls silent is stopped, with all that it started."""

from __future__ import annotations

import json
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
from store.errors import RlaifError, TransientError
from store.stage import run_stage
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
    monkeypatch.setattr(execute.sys, "executable", str(_interpreter(tmp_path, "exec sleep 600")))
    step = Step("sample", {}, SampleConfig(), 1, tmp_path / "out")
    with pytest.raises(TransientError, match=r"Stage sample was stopped: no progress for 0.5 s .* Its output is in"):
        execute.run_step(step, tmp_path / "logs", limits=Limits(silence_s=0.5))
    assert not [
        child for child in psutil.Process().children(recursive=True) if "flows.processes.worker" in child.cmdline()
    ]


@pytest.mark.parametrize("last", ["kill -ABRT $$", "exec sleep 600"])
def test_what_a_process_does_after_its_result_stands_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """As a library whose threads crash, or never end, when the interpreter does."""
    out = tmp_path / "out"
    run_stage("sample", lambda _: {"pairs": 7}, inputs={}, config=SampleConfig(), seed=1, out=out)
    said = json.dumps({"done": {"reused": False, "reasons": ["why"]}})
    monkeypatch.setattr(execute.sys, "executable", str(_interpreter(tmp_path, f"echo '{said}'; {last}")))
    outcome = execute.run_step(Step("sample", {}, SampleConfig(), 1, out), tmp_path / "logs", limits=Limits(None, 3.0))
    assert (outcome.manifest.metrics["pairs"], outcome.reasons) == (7, ["why"])


@pytest.mark.parametrize("code", [0, 1])
def test_a_process_that_never_said_so_has_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(execute.sys, "executable", str(_interpreter(tmp_path, f"exit {code}")))
    with pytest.raises(RlaifError, match=f"Stage sample: it ended with exit code {code}"):
        execute.run_step(Step("sample", {}, SampleConfig(), 1, tmp_path / "out"), tmp_path / "logs")


def _interpreter(folder: Path, worker: str) -> Path:
    """An interpreter that runs the lifeline, and a line of shell instead of a worker."""
    path = folder / "python"
    path.write_text(
        f'#!/bin/sh\nif [ "$2" = flows.processes.worker ]; then {worker}; exit; fi\nexec {sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return path
