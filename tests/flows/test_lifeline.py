"""No process outlives the one that started it, and no signal gets lost on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.processes.lifeline import spawn, stop

GRANDCHILD = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"


def gone(pid: int, within_s: float = 20.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_the_exit_code_comes_through() -> None:
    for code in (0, 2, 75):
        process = spawn([sys.executable, "-c", f"raise SystemExit({code})"])
        assert process.wait(30) == code
        stop(process)


def test_a_kill_of_the_command_is_seen_as_that_signal() -> None:
    process = spawn([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
    assert process.wait(30) == -signal.SIGKILL
    stop(process)


@pytest.mark.parametrize("patience_s", [0.0, 5.0])
def test_stop_ends_the_whole_group(patience_s: float) -> None:
    process = spawn([sys.executable, "-c", GRANDCHILD], stdout=subprocess.PIPE)
    assert process.stdout is not None
    grandchild = int(process.stdout.readline())
    stop(process, patience_s)
    assert gone(grandchild)


def test_a_killed_parent_takes_its_children_with_it(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\n"
        "from flows.processes.lifeline import spawn\n"
        f"spawn([sys.executable, '-c', {GRANDCHILD!r}])\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert parent.stdout is not None
    grandchild = int(parent.stdout.readline())
    assert psutil.pid_exists(grandchild)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert gone(grandchild)
