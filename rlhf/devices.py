"""Where and in which precision a stage computes.

Weights that are trained stay in float32 and the forward pass runs under autocast, so that an update smaller than
bfloat16's spacing is not lost; of weights that are only read (reference, reward model, what adapters are added to)
those of products are kept in the compute type (rlhf.models.narrow).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.config import Device
from rlhf.distributed import SINGLE, World, current, local_rank
from store.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Compute:
    """A device with the type its matrix products run in, and the attention kernel.

    world: the processes that compute together, each with a device of its own. sharded: whether they divide the models
    among them (rlhf.sharding).
    """

    device: torch.device
    dtype: torch.dtype
    attention: str = "sdpa"
    gradient_checkpointing: bool = False
    compile: bool = False
    world: World = SINGLE
    sharded: bool = False

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of every forward pass: autocast where the compute type is not float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def eager(self) -> contextlib.AbstractContextManager[Any]:
        """The context of generation, whose shapes change at each token: torch.compile would compile them all."""
        if not self.compile:
            return contextlib.nullcontext()
        stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance


def choose(config: Device) -> Compute:
    """The device and type that `config` means on this machine. Raises UsageError for a device that is not here.

    Sets the number of CPU threads of the process where the config names one.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = _device(config.device)
    if config.dtype == "auto":
        # Older GPUs lack bfloat16; float16 would need loss scaling, so they compute in float32.
        capable = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if capable else torch.float32
    else:
        dtype = DTYPES[config.dtype]
    if config.attention == "flash_attention_2" and dtype == torch.float32:
        raise UsageError(
            f"attention flash_attention_2 computes in bfloat16, this run in float32 on {device}: set device.attention "
            "to sdpa, or device.dtype to bfloat16 where the GPU can."
        )
    world = current()
    if device == torch.device("cuda") and world.size > 1:
        device = torch.device("cuda", local_rank())
    return Compute(
        device,
        dtype,
        config.attention,
        config.gradient_checkpointing,
        config.compile,
        world,
        sharded=config.sharding == "fsdp" and world.size > 1,
    )


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`. A GPU fetches it by itself, from pinned memory: nobody waits for its queue."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"device {name!r} is not available here: use auto, cpu, or one that this machine has."
        ) from error
    return device
