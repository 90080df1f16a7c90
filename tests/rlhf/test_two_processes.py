"""Two processes give one process's numbers, with whole and with divided weights. CHECKS: 10, 13, 15, 20, 28.

All training runs in torchrun's processes (tests/rlhf/ranks.py), once for all tests here. Minibatches of three are
divided unevenly, micro-batches are of one or two sequences, so that processes make different numbers of passes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.rlhf.ranks import CASES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, sharding: str, processes: int, dtype: str = "float32", cases: Iterable[str] = CASES) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] * (processes > 1)
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.rlhf.ranks", str(folder), sharding, dtype, *cases],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path, reward_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    shutil.copytree(policy_folder, folder / "policy")
    shutil.copytree(reward_folder, folder / "reward")
    for sharding, processes in (("none", 1), ("none", 2), ("fsdp", 2)):
        run(folder, sharding, processes)
    return folder


def close(one: Any, other: Any) -> bool:
    if isinstance(one, float):
        return isinstance(other, float) and one == pytest.approx(other, rel=1e-5, abs=1e-5)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(close(one[k], other[k]) for k in one)
    return bool(one == other)


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_numbers_of_one(results: Path, case: str, sharding: str) -> None:
    alone, together = (
        json.loads((results / f"{case}-{name}.json").read_text()) for name in ("1-none", f"2-{sharding}")
    )
    assert together["processes_agree"]
    assert len(alone["rows"]) == len(together["rows"]) > 1
    for one, other in zip(alone["rows"], together["rows"], strict=True):
        assert one.keys() == other.keys()
        wrong = {name: (one[name], other[name]) for name in one if not close(one[name], other[name])}
        assert not wrong
    weights, divided = (load_file(results / f"{case}-{n}.safetensors") for n in ("1-none", f"2-{sharding}"))
    assert weights.keys() == divided.keys()
    for name, value in weights.items():
        torch.testing.assert_close(divided[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_of_two_processes_goes_on_to_the_bit(results: Path, case: str, sharding: str) -> None:
    assert json.loads((results / f"{case}-2-{sharding}.json").read_text())["resumed"]


LOW = ["ppo_separate", "ppo_shared", "ppo_lora", "sft_lora", "reward_heads", "dpo"]


@pytest.fixture(scope="module")
def low(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path, reward_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("low")
    shutil.copytree(policy_folder, folder / "policy")
    shutil.copytree(reward_folder, folder / "reward")
    for sharding, processes in (("none", 1), ("fsdp", 2)):
        run(folder, sharding, processes, "bfloat16", LOW)
    return folder


@pytest.mark.parametrize("case", LOW)
def test_divided_weights_in_bfloat16(low: Path, case: str) -> None:
    """Weights are gathered in bfloat16 and gradients summed in float32: to bfloat16's rounding the numbers of one
    process, the same on both, and after a kill to the bit."""
    one, two = (json.loads((low / f"{case}-{which}.json").read_text()) for which in ("1-none", "2-fsdp"))
    assert two["processes_agree"]
    assert two["resumed"]
    first, alone = two["rows"][0], one["rows"][0]
    if case.startswith("ppo"):
        assert first["kl"] == pytest.approx(0, abs=1e-3)  # the reference is the policy here too
        assert first["score"] == pytest.approx(alone["score"], abs=0.5)  # rounding decides a token now and then
    else:
        name = "train_loss" if case == "reward_heads" else "loss"
        assert first[name] == pytest.approx(alone[name], rel=0.03)
        assert first["grad_norm"] == pytest.approx(alone["grad_norm"], rel=0.1)
