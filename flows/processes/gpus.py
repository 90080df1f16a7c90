"""One GPU stage a GPU: a stage that would use a GPU takes one for itself, whichever workspace it belongs to.

The lock is a file of the machine, one for each GPU, that the kernel drops with the process: a kill leaves none behind,
and nothing has to expire. A stage waits until one is free. Stages on the CPU, and machines without NVIDIA GPUs, are not
held up. Programs of others do not know these locks.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_PAUSE_S = 2.0


def gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that a process with this environment would see, as CUDA_VISIBLE_DEVICES names them; without that
    variable as many as nvidia-smi lists, which in a container are those it was given."""
    named = environment.get(_VISIBLE)
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    program = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if program is None:
        return []
    try:
        said = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(index) for index in range(sum(line.startswith("GPU ") for line in said.splitlines()))]


@contextmanager
def own_gpus(
    names: list[str],
    count: int = 1,
    folder: Path | None = None,
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, str]]:
    """Hold `count` of the GPUs, waiting until so many are free; yields the variables that let a process see no other.

    All or none are taken at a time, so that two that wait for several do not block each other. `waiting` is called
    about every two seconds meanwhile. With no GPU named it yields nothing at once.
    """
    if not names:
        yield {}
        return
    folder = folder or Path(tempfile.gettempdir())
    count = min(count, len(names))
    while True:
        with ExitStack() as held:
            taken: list[str] = []
            for name in names:
                if len(taken) < count and _take(held, folder, name):
                    taken.append(name)
            if len(taken) == count:
                yield {_VISIBLE: ",".join(taken)}
                return
        waiting()
        time.sleep(_PAUSE_S)


def _take(held: ExitStack, folder: Path, name: str) -> bool:
    safe = "".join(character if character.isalnum() else "-" for character in name)
    descriptor = _open(folder / f"rlaif-gpu-{safe}.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    held.callback(os.close, descriptor)
    return True


def _open(path: Path) -> int:
    """A lock file that is everybody's, for stages of several people share the machine: it is only read, and never
    opened for creation where it is there, which the kernel refuses in /tmp for a file of somebody else."""
    while True:
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
            os.fchmod(descriptor, 0o644)  # whatever the umask
            return descriptor
