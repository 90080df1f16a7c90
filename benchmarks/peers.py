"""Environments of the libraries that this project is compared with: one folder each, made once, pinned.

A peer needs other versions of the same packages than this project, so it never shares its environment. `python(...)`
gives the interpreter of one, making it where it is not there yet; a benchmark starts its peer's script with it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlaif"
"""Where environments lie unless --environments says otherwise."""

_DONE = ".installed"


def add_option(parser: argparse.ArgumentParser) -> None:
    """The option --environments, which `python` takes as its folder."""
    parser.add_argument(
        "--environments", type=Path, default=CACHE, help="folder of the peers' environments [%(default)s]"
    )


def python(folder: Path, name: str, requirements: Sequence[str] | Path, *, resolve: bool = True) -> Path:
    """The interpreter of the environment `folder`/`name`, with `requirements` installed in it.

    requirements: pinned ones (`trl==1.12.0`), or a file of them. resolve: let pip find what they need; False installs
    the listed packages alone, for a file that lists all. An environment whose requirements changed is completed.
    """
    home = folder.expanduser().resolve() / name
    interpreter = home / "bin" / "python"
    wanted = requirements.read_text() if isinstance(requirements, Path) else "\n".join(requirements)
    digest = hashlib.sha256(wanted.encode()).hexdigest()
    mark = home / _DONE
    if interpreter.exists() and mark.exists() and mark.read_text() == digest:
        return interpreter
    print(f"making the environment {home}", file=sys.stderr)
    if not interpreter.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    packages = ["--requirement", str(requirements)] if isinstance(requirements, Path) else list(requirements)
    options = ["--quiet", "--disable-pip-version-check"] + ([] if resolve else ["--no-deps"])
    subprocess.run([str(interpreter), "-m", "pip", "install", *options, *packages], check=True)
    mark.write_text(digest)
    return interpreter


def run(interpreter: Path, script: Path, arguments: Sequence[str], threads: int) -> dict[str, Any]:
    """What a worker script prints as its last line, which is JSON. It computes with `threads` CPU threads."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(interpreter), str(script), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{script.name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def peak_mb() -> float:
    """The most memory that this process has held, in MB; a worker prints it."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
