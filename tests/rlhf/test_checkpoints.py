"""Checkpoints of SFT and of the reward model: exact, whole, few and safe. CHECKS: 28 (PPO's are in test_ppo_faults.py).

Runs of two processes are resumed in test_two_processes.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf import checkpoints
from rlhf.checkpoints import CheckpointFolder
from rlhf.config import Optimisation
from rlhf.devices import Compute
from rlhf.distributed import World
from rlhf.optimisation import Optimizer
from store.errors import RlaifError, UsageError
from tests.rlhf.ranks import Case, Killed, Setting, dpo, reward, sft, whole_weights


@pytest.fixture
def folder(tmp_path: Path, policy_folder: Path) -> Path:
    (tmp_path / "policy").symlink_to(policy_folder)
    return tmp_path


CASES: dict[str, Callable[[Setting], Case]] = {
    "sft": sft,
    # Dropout draws from torch's generator, whose state is part of the checkpoint.
    "sft_lora_dropout": lambda setting: sft(setting, {"rank": 2, "dropout": 0.3}),
    "dpo": dpo,
    "reward": reward,
    "reward_lora_dropout": lambda setting: reward(setting, lora={"rank": 2, "dropout": 0.3}),
}


@pytest.mark.parametrize("kill_at", [3, 4])
@pytest.mark.parametrize("name", CASES)
def test_resume_is_bit_exact(folder: Path, compute: Compute, name: str, kill_at: int) -> None:
    """Three steps are an epoch: the run is resumed at its end, or before it."""
    case = CASES[name]
    rows, models = case(Setting(folder, compute, folder / "whole"))
    with pytest.raises(Killed):
        case(Setting(folder, compute, folder / "cut", kill_at=kill_at + 1))
    torch.manual_seed(99)
    found, others = case(Setting(folder, compute, folder / "cut"))
    assert found == rows
    expected, resumed = whole_weights(models), whole_weights(others)
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())


def test_a_finished_reward_model_is_not_trained_again(folder: Path, compute: Compute) -> None:
    """Of an ensemble of models only the one is trained again that was not finished."""
    rows, models = reward(Setting(folder, compute, folder / "c"))
    again, others = reward(Setting(folder, compute, folder / "c", kill_at=1))
    assert again == rows
    assert all(torch.equal(v, whole_weights(others)[n]) for n, v in whole_weights(models).items())


def make(value: float = 1.0) -> tuple[torch.nn.Linear, Optimizer]:
    layer = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(value)
    optimizer = Optimizer(layer.parameters(), Optimisation(), 10)
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    return layer, optimizer


def save(store: CheckpointFolder, step: int, **options: Any) -> None:
    layer, optimizer = make(step)
    store.save(step, {"m": layer}, {"m": optimizer}, {"step": step}, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_ones_and_what_is_needed_stay(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path, keep=2)
    best = store.save_best(1, make(1)[0])
    for step in (2, 4, 6):
        save(store, step, needed=[best])
    assert names(tmp_path) == ["best-000001", "step-000004", "step-000006"]
    save(store, 8)
    assert names(tmp_path) == ["step-000006", "step-000008"]
    assert store.weights("best-000001", "m") is None
    weights = store.weights("step-000008", "m")
    assert weights is not None
    assert weights.keys() == {"weight"}


def test_what_a_kill_leaves_is_not_read_and_goes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointFolder(tmp_path)
    save(store, 2)
    half = tmp_path / ".step-000004.1234.tmp"
    half.mkdir()
    (half / "tensors-0.safetensors").write_bytes(b"half")
    assert store.latest() == 2

    def full(tensors: Any, path: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(checkpoints, "_saved", full)
        with pytest.raises(RlaifError, match=r"No space left on the disk while writing .*step-000004"):
            save(store, 4)
    assert names(tmp_path) == [half.name, "step-000002"]
    save(store, 6)
    assert names(tmp_path) == ["step-000002", "step-000006"]


def test_the_marker_is_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of the rename all files are in the folder."""
    seen: list[list[str]] = []
    real = os.replace

    def watched(source: Any, target: Any) -> None:
        if Path(target).name.startswith("step-"):
            seen.append(names(Path(source)))
        real(source, target)

    monkeypatch.setattr(checkpoints.os, "replace", watched)
    save(CheckpointFolder(tmp_path), 2)
    assert seen == [["state.json", "tensors-0.safetensors"]]


def test_files_are_safe_and_hold_everything(tmp_path: Path) -> None:
    save(CheckpointFolder(tmp_path), 2, extra={"best": torch.ones(1)})
    tensors = load_file(tmp_path / "step-000002" / "tensors-0.safetensors")
    assert {name for name in tensors if "cuda" not in name} == {
        "model/m/weight",
        "optimizer/m/0/exp_avg",
        "optimizer/m/0/exp_avg_sq",
        "optimizer/m/0/step",
        "extra/best",
        "random/cpu",
    }
    state = json.loads((tmp_path / "step-000002" / "state.json").read_text())
    assert state == {"step": 2, "processes": 1, "sharded": False, "taken": {"m": 1}, "run": {"step": 2}}


def test_divided_weights_need_as_many_processes(tmp_path: Path) -> None:
    save(CheckpointFolder(tmp_path), 2)
    path = tmp_path / "step-000002" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sharded": True, "processes": 8}))
    layer, optimizer = make()
    with pytest.raises(UsageError, match="was written by 8 processes, now there are 1"):
        CheckpointFolder(tmp_path, world=World()).resume(2, {"m": layer}, {"m": optimizer})
