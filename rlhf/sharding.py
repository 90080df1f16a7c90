"""Weights, gradients and optimizer states divided among the processes: FSDP2 (`torch.distributed.fsdp.fully_shard`).

Each transformer layer is a unit that is gathered when a pass reaches it; embeddings, last norm and head are one more
unit, that of the whole model. The loops call the trunk and the head apart, so a training pass runs inside `passed`,
which gathers that last unit.

Passes without gradient run under `whole`: the model is gathered once and every process then works at its own pace,
since nothing in between waits for another. It costs the room of one model in the compute type; gathering layer by layer
would make each generated token wait for all processes.

A function that takes a model here takes one that is not sharded as well, and then does nothing.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rlhf.devices import Compute
from rlhf.distributed import World

S = TypeVar("S")
T = TypeVar("T")
Model = Any


def shard(model: Model, compute: Compute) -> Model:
    """Divide `model` in place among the processes where the config says so, and move it to the device.

    After it, call `model.to` no more. Frozen models are divided too: they are read in `whole`.
    """
    if not compute.sharded:
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(compute.device.type, (compute.world.size,))
    low = None if compute.dtype == torch.float32 else compute.dtype
    # Gathered in the compute type, as autocast would convert them; gradients are summed in float32.
    precision = MixedPrecisionPolicy(
        param_dtype=low, reduce_dtype=torch.float32 if low else None, cast_forward_inputs=False
    )
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh, mp_policy=precision)
    # Losses are divided by the token count of the whole minibatch already: gradients are summed, not averaged.
    for unit in _units(model):
        unit.set_force_sum_reduction_for_comms(True)
        unit.set_gradient_divide_factor(1.0)
    # It warns of outputs that are views, since a change in place would lose their gradient: nothing here makes one.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    model.pass_through = MethodType(lambda self, work: work(), model)
    register_fsdp_forward_method(model, "pass_through")
    # The first pass decides which unit is the outermost: it must be the model, before any layer is called by itself.
    model.pass_through(lambda: None)
    with whole(model):
        pass
    return model


def is_sharded(model: Model) -> bool:
    return hasattr(model, "pass_through")


def passed(model: Model, work: Callable[[], T]) -> T:
    """`work()`, a forward pass through parts of `model` that is to have gradients; returns tensors, also in tuples."""
    result: T = model.pass_through(work) if is_sharded(model) else work()
    return result


@contextlib.contextmanager
def whole(model: Model) -> Iterator[None]:
    """The whole weights on every process, for passes without gradient. Entered and left by all processes together."""
    if not is_sharded(model):
        yield
        return
    units = _units(model)
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            # The outermost unit stays gathered between its forward and its backward pass, as fully_shard has it.
            unit.set_reshard_after_forward(unit is not model, recurse=False)
            unit.reshard()


def divided(
    model: Model,
    compute: Compute,
    items: Sequence[S],
    work: Callable[[list[S]], Sequence[T]],
    cost: Callable[[S], int] = lambda item: item.length,  # type: ignore[attr-defined]
) -> list[T]:
    """`work(items)`, one result an item, without gradient: divided among the processes, all of which get all results.

    Results are on the CPU. Each process may run it in passes of its own size.
    """
    with whole(model), without_dropout(model):
        return compute.world.spread([cost(item) for item in items], lambda mine: work([items[at] for at in mine]))


@contextlib.contextmanager
def without_dropout(model: Model) -> Iterator[None]:
    """What is measured is the model itself; the dropout of adapters is on while they are trained."""
    active = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.training]
    for module in active:
        module.eval()
    try:
        yield
    finally:
        for module in active:
            module.train()


def rounds(model: Model, world: World, parts: Sequence[T], spare: Callable[[], T]) -> Iterator[tuple[T, float]]:
    """(micro-batch, its weight 1). Under FSDP every process must make the same number of passes, since each pass
    gathers weights from all: one with fewer micro-batches adds `spare()` with weight 0."""
    # Agreed on before the first pass: in the middle of it the others wait for weights, not for this.
    missing = world.most(len(parts)) - len(parts) if is_sharded(model) else 0
    for part in parts:
        yield part, 1.0
    for _ in range(missing):
        yield spare(), 0.0


def local(tensor: Any) -> Tensor:
    """What this process holds of a parameter: its shard, or all of it."""
    value: Tensor = tensor.to_local() if is_shard(tensor) else tensor
    return value


def is_shard(tensor: Any) -> bool:
    """Whether a tensor is divided among processes. Where that module was never loaded, nothing is."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def consolidate(model: Model, everywhere: bool = False) -> None:
    """Make `model` a plain one again, with whole weights. Called by all processes, once, when training is over.

    everywhere: on every process, on its device; else on the main process's CPU alone, and useless on the others.
    """
    if not is_sharded(model):
        return
    keep = everywhere or torch.distributed.get_rank() == 0
    plain: dict[int, nn.Parameter] = {}
    shards = []  # kept alive, so that ids stay unique
    for module in model.modules():
        for name, value in list(module._parameters.items()):
            if not is_shard(value):
                continue
            shards.append(value)
            if id(value) not in plain:
                full = value.full_tensor().detach()
                kept = (full if everywhere else full.cpu()) if keep else full.new_zeros(0)
                plain[id(value)] = nn.Parameter(kept, requires_grad=value.requires_grad)
            module._parameters[name] = plain[id(value)]
    for unit in _units(model):
        state = unit._get_fsdp_state()
        state._pre_forward_hook_handle.remove()
        state._post_forward_hook_handle.remove()
        unit.__class__ = type(unit).__mro__[2]
    del model.pass_through


def _units(model: Model) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _layers(model: Model) -> list[nn.Module]:
    """The transformer layers, as transformers names the blocks that must not be split between devices."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(base._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]
