"""The scalar heads of reward models: finding, drawing, averaging and scaling them, and the file of an ensemble's heads.

A head is what a family's AutoModelForSequenceClassification puts above its trunk: one linear layer on a decoder, a
pooler, a dense layer and a linear layer on an encoder. Its last linear layer, with k outputs, is k members of an
ensemble; everything below is shared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf.models import Model, unwrap
from store.errors import UsageError

HEADS = ("score", "classifier", "classification_head")
FILE = "reward_heads/heads.safetensors"
"""Beside a model whose own head is the mean of k: `weight` [k, d], `bias` [k] where the layer has one, and `offset`
[k], what each member's reward differs by from its raw output, their mean taken out. In a folder of its own, since vLLM
reads every safetensors file beside config.json as weights."""


def score_head(model: Model) -> Any:
    """The whole head, under the name that the family gives it. Inside peft it is the trained copy."""
    inner = unwrap(model)
    for name in HEADS:
        if hasattr(inner, name):
            return getattr(inner, name)
    raise ValueError(f"{type(inner).__name__} has no head named {' or '.join(HEADS)}")


def last_layer(model: Model) -> nn.Linear:
    """The linear layer that gives the rewards: the head itself, or the last layer in it."""
    return _find(model)[2]


def _find(model: Model) -> tuple[nn.Module, str, nn.Linear]:
    """(the module that holds it, its name there, the layer)."""
    inner = unwrap(model)
    parent: nn.Module = inner
    name = next((name for name in HEADS if hasattr(inner, name)), None)
    if name is None:
        raise ValueError(f"{type(inner).__name__} has no head named {' or '.join(HEADS)}")
    layer = getattr(inner, name)
    if hasattr(layer, "modules_to_save"):  # peft's copy, one for each adapter
        parent, name = layer.modules_to_save, layer.active_adapters[0]
        layer = getattr(parent, name)
    while not isinstance(layer, nn.Linear):
        children = [(key, child) for key, child in layer.named_children() if _holds_linear(child)]
        if not children:
            raise ValueError(f"The head of {type(inner).__name__} has no linear layer")
        parent, (name, layer) = layer, children[-1]
    return parent, name, layer


def _holds_linear(module: nn.Module) -> bool:
    return any(isinstance(inner, nn.Linear) for inner in module.modules())


def scalars(layer: nn.Linear, states: Tensor) -> Tensor:
    """[n, k] what `layer` makes of hidden states [n, d], in float32 whatever the trunk computes in.

    Bfloat16 holds two to three digits: rewards near each other would be equal, and a tie is not won.
    """
    with torch.autocast(states.device.type, enabled=False):
        return F.linear(states.float(), layer.weight.float(), None if layer.bias is None else layer.bias.float())


def init_head(layer: nn.Linear) -> None:
    """Weights from N(0, 1 / (d + 1)), the bias 0, so that first rewards are small (Huang et al. 2024)."""
    nn.init.normal_(layer.weight, std=(layer.in_features + 1) ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


@torch.no_grad()
def widen(model: Model, weight: Tensor, bias: Tensor | None) -> None:
    """Put k heads (`weight` [k, d], `bias` [k]) in the place of the model's own."""
    parent, name, old = _find(model)
    layer = nn.Linear(old.in_features, len(weight), bias=old.bias is not None)
    layer = layer.to(old.weight.device, old.weight.dtype)
    layer.weight.copy_(weight)
    if layer.bias is not None and bias is not None:
        layer.bias.copy_(bias)
    layer.requires_grad_(old.weight.requires_grad)
    setattr(parent, name, layer)
    unwrap(model).config.num_labels = unwrap(model).num_labels = len(weight)


@torch.no_grad()
def mean_head(model: Model) -> None:
    """Put the mean of the model's heads in their place. The mean of linear heads is the linear head of mean weights."""
    layer = last_layer(model)
    bias = None if layer.bias is None else layer.bias.mean(0, keepdim=True)
    widen(model, layer.weight.mean(0, keepdim=True), bias)


@torch.no_grad()
def scale_head(model: Model, factor: float) -> None:
    """Multiply the rewards of all members by `factor`: exact, since the last layer is linear."""
    layer = last_layer(model)
    layer.weight.mul_(factor)
    if layer.bias is not None:
        layer.bias.mul_(factor)


def write_heads(folder: Path, model: Model, offsets: Tensor) -> None:
    from safetensors.torch import save_file

    layer = last_layer(model)
    tensors = {"weight": layer.weight.detach().float().cpu().contiguous(), "offset": offsets.float().cpu().contiguous()}
    if layer.bias is not None:
        tensors["bias"] = layer.bias.detach().float().cpu().contiguous()
    (folder / FILE).parent.mkdir(exist_ok=True)
    save_file(tensors, folder / FILE)


def read_heads(folder: Path) -> dict[str, Tensor] | None:
    """The tensors of FILE; None where `folder` has no such file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / FILE).is_file():
        return None
    try:
        found: dict[str, Tensor] = load_file(folder / FILE)
        weight, offset = found["weight"], found["offset"]
        whole = weight.ndim == 2 and offset.shape == weight.shape[:1]
    except (SafetensorError, KeyError, OSError):
        whole = False
    if not whole:
        raise UsageError(f"{folder / FILE} does not hold an ensemble's heads: train the reward model again.")
    return found
