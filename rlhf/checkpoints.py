"""Checkpoints of a training run: everything that changes, so that a resumed run is the uninterrupted one (on a CPU to
the bit).

    <folder>/step-000010/   state.json, tensors-0.safetensors, tensors-1.safetensors, ...
    <folder>/best-000010/   the same files with one model's weights only

Only trained parameters are stored: with LoRA the adapters. `tensors-<rank>` holds what that process alone knows: its
shards of weights and optimizer states under FSDP, its random generator. Where the weights are the same everywhere, the
main process's file has them. A folder is written beside, by all processes, and renamed by the main one when all files
are on the disk: what has its final name is whole.

torch.distributed.checkpoint also writes a file a process, but keeps its index as a pickle and unpickles it on reading;
here there are safetensors and JSON alone. The price: a sharded run resumes on the number of processes that wrote it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf.distributed import World, current
from rlhf.models import restore, snapshot
from rlhf.optimisation import Optimizer
from rlhf.sharding import is_shard
from store.errors import UsageError
from store.files import explain_os_errors, read_json, remove, sync_file, sync_folder, write_json

STATE = "state.json"


class CheckpointFolder:
    """The folder of one run's checkpoints, of which the last `keep` stay.

    Every method is called by all processes together.
    """

    def __init__(self, folder: Path, keep: int = 2, world: World | None = None):
        self.folder, self.keep = folder, keep
        self.world = current() if world is None else world

    def save(
        self,
        step: int,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        state: Mapping[str, Any],
        extra: Mapping[str, Tensor] | None = None,
        needed: Sequence[str] = (),
    ) -> None:
        """Store the run as it is after `step`, then drop older checkpoints but those in `needed`.

        state: JSON. extra: further tensors, such as the best weights so far; see `resume`.
        """
        tensors = {f"extra/{name}": value for name, value in (extra or {}).items()}
        for name, model in models.items():
            tensors |= {f"model/{name}/{key}": value for key, value in snapshot(model).items()}
        taken = {}
        for name, optimizer in optimizers.items():
            tensors |= {f"optimizer/{name}/{key}": value for key, value in optimizer.tensors().items()}
            taken[name] = optimizer.taken
        sharded = _any_shard(models)
        state = {"step": step, "processes": self.world.size, "sharded": sharded, "taken": taken, "run": dict(state)}
        self._write(_name("step", step), tensors if sharded or self.world.is_main else {}, state)
        self.world.once(lambda: self._tidy(needed))

    def save_best(self, step: int, model: nn.Module) -> str:
        """Store the weights of `model` and return the name that `weights` finds them under."""
        sharded = _any_shard({"": model})
        tensors = snapshot(model) if sharded or self.world.is_main else {}
        name = _name("best", step)
        self._write(name, tensors, {"step": step, "processes": self.world.size, "sharded": sharded})
        return name

    def latest(self) -> int | None:
        """The step to go on with; None where there is no checkpoint."""
        return self.world.once(lambda: max(_steps(self.folder, "step"), default=None))

    def resume(
        self, step: int, models: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Load everything of a checkpoint; returns `state` and `extra` as they were saved.

        Raises UsageError where another number of processes divided the weights.
        """
        folder = self.folder / _name("step", step)
        state, tensors = self._read(folder)
        for name, model in models.items():
            restore(model, _below(tensors, f"model/{name}/"))
        for name, optimizer in optimizers.items():
            optimizer.load(_below(tensors, f"optimizer/{name}/"), state["taken"][name])
        own = load_file(self._file(folder, self.world.rank))
        torch.set_rng_state(own["random/cpu"])
        if "random/cuda" in own:
            torch.cuda.set_rng_state(own["random/cuda"])
        run: dict[str, Any] = state["run"]
        return run, _below(tensors, "extra/")

    def weights(self, name: str, model: str) -> dict[str, Tensor] | None:
        """What `restore` takes, from `best-...`, or of the named model from `step-...`; None where there is no such."""
        folder = self.folder / name
        if not self.world.once(lambda: (folder / STATE).is_file()):
            return None
        _, tensors = self._read(folder)
        tensors.pop("random/cpu", None), tensors.pop("random/cuda", None)
        return tensors if name.startswith("best-") else _below(tensors, f"model/{model}/")

    def _read(self, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        state: dict[str, Any] = read_json(folder / STATE)
        if state["sharded"] and state["processes"] != self.world.size:
            raise UsageError(
                f"The checkpoint {folder} was written by {state['processes']} processes, now there are "
                f"{self.world.size}: take as many, or remove the checkpoint."
            )
        return state, load_file(self._file(folder, self.world.rank if state["sharded"] else 0))

    def _write(self, name: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        final = self.folder / name
        beside = self.folder / self.world.once(lambda: f".{name}.{uuid4().hex[:8]}.tmp")
        with explain_os_errors(final):
            try:
                beside.mkdir(parents=True, exist_ok=True)
                own = {**tensors, "random/cpu": torch.get_rng_state()}
                if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                    own["random/cuda"] = torch.cuda.get_rng_state()
                sync_file(_saved(own, self._file(beside, self.world.rank)))
                self.world.barrier()
                self.world.once(lambda: _finish(beside, final, state))
            finally:
                if self.world.is_main and beside.exists():
                    remove(beside)

    def _file(self, folder: Path, rank: int) -> Path:
        return folder / f"tensors-{rank}.safetensors"

    def _tidy(self, needed: Sequence[str]) -> None:
        """Keep the last steps and what is needed; the rest goes, half-written folders of killed runs included."""
        last = sorted(_steps(self.folder, "step"))[-self.keep :]
        keep = {*needed, *(_name("step", step) for step in last)}
        for path in self.folder.iterdir():
            if path.name not in keep:
                remove(path)


def _finish(beside: Path, final: Path, state: Mapping[str, Any]) -> None:
    write_json(beside / STATE, dict(state))
    sync_folder(beside)
    if final.exists():
        remove(final)
    os.replace(beside, final)
    sync_folder(final.parent)


def _saved(tensors: Mapping[str, Tensor], path: Path) -> Path:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
    return path


def _name(kind: str, step: int) -> str:
    return f"{kind}-{step:06d}"


def _steps(folder: Path, kind: str) -> list[int]:
    if not folder.is_dir():
        return []
    found = [re.fullmatch(rf"{kind}-(\d+)", path.name) for path in folder.iterdir()]
    return [int(match[1]) for match in found if match]


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _any_shard(models: Mapping[str, nn.Module]) -> bool:
    return any(is_shard(value) for model in models.values() for value in model.parameters())
