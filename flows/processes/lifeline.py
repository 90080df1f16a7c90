"""A process that cannot outlive its parent, in a group of its own: `python -m flows.processes.lifeline COMMAND...`.

The parent holds the writing end of the standard input. When the parent dies, however suddenly, the pipe closes and the
whole group is killed: no orphan keeps a GPU, a lock or a port. Works on every POSIX system, needs no polling.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any


def spawn(
    command: Sequence[str],
    env: Mapping[str, str] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
) -> subprocess.Popen[str]:
    """Start `command` so that it, and everything it starts, ends with this process or with `stop`."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.processes.lifeline", *command],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env=dict(env) if env is not None else None,
        start_new_session=True,
        text=True,
    )


def stop(process: subprocess.Popen[str], patience_s: float = 0.0) -> None:
    """End the process and its group; with patience, ask first and kill after so many seconds."""
    if process.poll() is None and patience_s:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin:
        process.stdin.close()


def die_with_parent() -> None:
    """Kill this process's group once the other end of its standard input is closed; to be run in a thread."""
    while os.read(0, 1 << 16):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    # Asked to end by a signal to the group, wait for the command to end in its own way.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=die_with_parent, daemon=True).start()
    code = child.wait()
    if code < 0:
        with suppress(OSError):  # SIGKILL and SIGSTOP have no other disposition
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
