"""A whole small round through the real command line, once for all tests that look at one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Small enough for a minute on two cores; every stage runs for real, on the shipped models.
SMALL = {
    "sft.max_demonstrations": 32,
    "sample.max_prompts": 24,
    "sample.responses": 3,
    "judge.pairs_per_prompt": 2,
    "audit.budget": 10,
    "reward.epochs": 1,
    "ppo.updates": 2,
    "ppo.batch_size": 16,
    "ppo.probe.every": 1,
    "ppo.probe.prompts": 4,
    "evaluate.max_prompts": 24,
    "evaluate.responses": 1,
}


def small_settings(**changes: object) -> list[str]:
    values = {**SMALL, **changes}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def rlaif(
    *arguments: str, cwd: Path | None = None, timeout: float = 600, **env: str
) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, as a person runs it."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    return subprocess.run(
        [sys.executable, "-m", "flows", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env={**clean, **env},
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace of a finished small round. Tests that change it work on a copy."""
    workspace = tmp_path_factory.mktemp("round") / "workspace"
    done = rlaif("run", "demo", "--workspace", str(workspace), *small_settings())
    assert done.returncode == 0, done.stderr
    return workspace
