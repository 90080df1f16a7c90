"""Checkpoints of PPO: everything that changes, so that a resumed run is the uninterrupted one, bit for bit on a CPU.

    <folder>/update-000010/   policy.safetensors, critic.safetensors, optimizers.pt, state.json
    <folder>/best-000010/     policy.safetensors: the best policy so far

Only trained parameters are stored: with LoRA the adapters. A directory is written beside and renamed, so one with its
final name is whole. optimizers.pt holds tensors and numbers and is read with `weights_only=True`: no pickled objects.
The data cursor and all random streams follow from seed and update number; torch's own generator is stored on top.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf.models import restore, snapshot
from rlhf.optimisation import Optimizer
from rlhf.ppo.actors import Actors
from store.files import explain_os_errors, read_json, remove, sync_file, sync_folder, write_json


@dataclass
class Checkpoints:
    """The folder of one run's checkpoints."""

    folder: Path

    def save(
        self, update: int, actors: Actors, optimizers: dict[str, Optimizer], state: dict[str, Any], best_update: int
    ) -> None:
        """Store the run before `update`, then drop older checkpoints and best policies that nothing refers to."""

        def write(folder: Path) -> None:
            save_file(snapshot(actors.policy), folder / "policy.safetensors")
            if actors.critic is not None:
                save_file(snapshot(actors.critic), folder / "critic.safetensors")
            tensors = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
            torch.save({"optimizers": tensors, "rng": torch.get_rng_state()}, folder / "optimizers.pt")
            write_json(folder / "state.json", {**state, "update": update})

        self._write(f"update-{update:06d}", write)
        for path in self.folder.iterdir():
            keep = (f"update-{update:06d}", f"best-{best_update:06d}")
            if path.name not in keep:
                remove(path)

    def save_best(self, update: int, actors: Actors) -> None:
        weights = snapshot(actors.policy)
        self._write(f"best-{update:06d}", lambda folder: save_file(weights, folder / "policy.safetensors"))

    def latest(self) -> int | None:
        """The update to go on with; None where there is no checkpoint."""
        if not self.folder.is_dir():
            return None
        found = [re.fullmatch(r"update-(\d+)", path.name) for path in self.folder.iterdir()]
        return max((int(match[1]) for match in found if match), default=None)

    def resume(self, update: int, actors: Actors, optimizers: dict[str, Optimizer]) -> dict[str, Any]:
        """Load everything of a checkpoint and return its state."""
        folder = self.folder / f"update-{update:06d}"
        restore(actors.policy, load_file(folder / "policy.safetensors"))
        if actors.critic is not None:
            restore(actors.critic, load_file(folder / "critic.safetensors"))
        stored = torch.load(folder / "optimizers.pt", map_location="cpu", weights_only=True)
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(stored["optimizers"][name])
        torch.set_rng_state(stored["rng"])
        state: dict[str, Any] = read_json(folder / "state.json")
        return state

    def policy_at(self, name: str) -> dict[str, Tensor] | None:
        """The policy's trained parameters in `best-...` or `update-...`, or None where that does not exist."""
        path = self.folder / name / "policy.safetensors"
        return load_file(path) if path.is_file() else None

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        final = self.folder / name
        beside = self.folder / f".{name}.{uuid4().hex[:8]}.tmp"
        with explain_os_errors(final):
            try:
                beside.mkdir(parents=True)
                write(beside)
                for path in beside.iterdir():
                    sync_file(path)
                if final.exists():
                    remove(final)
                os.replace(beside, final)
                sync_folder(self.folder)
            finally:
                if beside.exists():
                    remove(beside)
