"""Weights on their way to an engine in another process: plain, whole, and in memory rather than on a disk.

They are written as a safetensors folder below /dev/shm, which is memory: the engine maps the same pages, so a push
costs one copy. Adapters are added to the weights that they adapt, out of place: adding and subtracting them in place
would change the reference, which is the same weights without them, by a rounding error a push.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.models import Model, quiet, unwrap

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - memory; the folder made in it is this user's alone
ROOM = 1.1
"""Free memory asked for, over the size of the weights."""


class Pushed:
    """A folder of this process's own that holds the weights of the last push."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._number = 0

    def write(self, model: Model, dtype: torch.dtype) -> Path:
        """Write the weights of `model`, merged, in `dtype`; returns the folder, which lasts until `forget`."""
        state = merged_state(model, dtype)
        if self.folder is None:
            self.folder = _own_folder(sum(value.nbytes for value in {id(v): v for v in state.values()}.values()))
        # A new name each time: the engine may still have the last one mapped.
        self._number += 1
        target = self.folder / f"weights-{self._number}"
        with quiet():
            # By transformers, which knows under which names and in which layout a checkpoint of the family is stored.
            unwrap(model).save_pretrained(target, state_dict=state)
        return target

    def forget(self, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)

    def close(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None


@torch.no_grad()
def merged_state(model: Model, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state of `model` in `dtype` under the names of a model without adapters, which are added to its weights.

    The model is left as it is. Tied weights stay one tensor.
    """
    base = unwrap(model)
    deltas = _deltas(base)
    cast: dict[tuple[int, torch.Size], Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, value in base.state_dict().items():
        if any(part.startswith("lora_") for part in name.split(".")):
            continue
        plain = name.replace(".base_layer.", ".")
        if plain in deltas:
            state[plain] = (value + deltas[plain]).to(dtype)  # summed in float32, the adapters' type
            continue
        key = (value.data_ptr(), value.shape)
        if key not in cast:
            cast[key] = value.detach().to(dtype) if value.is_floating_point() else value
        state[plain] = cast[key]
    return state


def _deltas(base: Any) -> dict[str, Tensor]:
    """What the active adapters add to which weight."""
    if not getattr(base, "peft_config", None):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    deltas: dict[str, Tensor] = {}
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):
            for adapter in module.active_adapters:
                delta = module.get_delta_weight(adapter)
                key = f"{name}.weight"
                deltas[key] = deltas[key] + delta if key in deltas else delta
    return deltas


def _own_folder(needed: int) -> Path:
    where = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    free = shutil.disk_usage(where).free
    if where == SHARED_MEMORY and free < ROOM * needed:
        where = Path(tempfile.gettempdir())
        print(
            f"{SHARED_MEMORY} has {free / 2**30:.1f} GiB free and the weights are {needed / 2**30:.1f} GiB: they go to "
            f"the engine through {where}, which is slower. Give the container more shared memory (--shm-size).",
            file=sys.stderr,
        )
    return Path(tempfile.mkdtemp(prefix="rlaif-weights-", dir=where))
