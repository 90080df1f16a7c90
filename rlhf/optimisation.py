"""Gradient descent as all loops here do it: AdamW, warmup, a schedule, clipped gradients, no step on a bad number.

With several processes a step sums their gradients, clips by the norm of the sum and steps alike on all. Whoever calls
divides its loss by the count of the whole minibatch, so the sum is what one process would have had. FSDP has summed the
gradients of sharded parameters during the backward pass; the others are summed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from rlhf.config import Optimisation
from rlhf.distributed import current
from rlhf.sharding import is_shard, local


class Optimizer:
    """AdamW whose learning rate is a function of the step count, so that its whole state is AdamW's and one integer."""

    def __init__(self, parameters: Iterable[nn.Parameter], config: Optimisation, steps: int, rate: float | None = None):
        self.parameters = [value for value in parameters if value.requires_grad]
        # No decay on norms and biases: pulling a scale of 1 to 0 is no regularisation.
        # Shards and whole tensors stand in groups of their own, since AdamW updates a group in one kernel.
        groups = [
            {
                "params": [p for p in self.parameters if (p.ndim >= 2) == matrix and is_shard(p) == sharded],
                "weight_decay": config.weight_decay if matrix else 0.0,
            }
            for sharded in (False, True)
            for matrix in (True, False)
        ]
        self.peak = config.learning_rate if rate is None else rate
        self.config = config
        self.steps = max(1, steps)
        self.taken = 0
        betas = (config.adam_beta1, config.adam_beta2)
        # One kernel, that has to be asked for: a quarter of the time on a CPU, and on a GPU no copies of all weights as
        # the default kernels make. Of shards on a CPU there is none.
        fused = True if all(_can_fuse(p) for p in self.parameters) else None
        groups = [group for group in groups if group["params"]]
        self.adamw = torch.optim.AdamW(groups, lr=self.peak, betas=betas, fused=fused)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.peak * rate_factor(self.taken, self.steps, self.config.warmup_fraction, self.config.schedule)

    def zero_grad(self) -> None:
        self.adamw.zero_grad(set_to_none=True)

    def step(self) -> float | None:
        """Clip, step, and return the gradient's norm before clipping; None, without a step, where it is not finite."""
        current().sum_gradients(value for value in self.parameters if not is_shard(value))
        norm = self._clip()
        if not math.isfinite(norm):
            self.zero_grad()
            return None
        for group in self.adamw.param_groups:
            group["lr"] = self.learning_rate
        self.adamw.step()
        self.taken += 1
        self.zero_grad()
        return norm

    def _clip(self) -> float:
        """Scale the gradients to at most `max_grad_norm`, and return the norm of all, shards included, before that."""
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        kinds = [[g for g in gradients if is_shard(g) == sharded] for sharded in (False, True)]
        norms = [_norm(kind) for kind in kinds if kind]
        if not norms:
            return 0.0
        norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
        for parameters in ([p for p in self.parameters if is_shard(p) == sharded] for sharded in (False, True)):
            nn.utils.clip_grads_with_norm_(parameters, self.config.max_grad_norm, norm)
        return float(norm)

    def tensors(self) -> dict[str, Tensor]:
        """AdamW's state by number and name, such as 3/exp_avg; of sharded parameters, this process's shards. With
        `taken` it is the whole state: the rest follows from the config."""
        found = {}
        for index, parameter in enumerate(self.parameters):
            for name, value in self.adamw.state.get(parameter, {}).items():
                found[f"{index}/{name}"] = local(value).detach().cpu()
        return found

    def load(self, tensors: Mapping[str, Tensor], taken: int) -> None:
        """Take over a state that `tensors` returned after `taken` steps."""
        self.taken = taken
        self.adamw.state.clear()
        for key, value in tensors.items():
            index, _, name = key.partition("/")
            parameter = self.parameters[int(index)]
            if name == "step":  # a number, which the fused kernel wants on the weights' device, the others on the CPU
                fused = self.adamw.defaults["fused"]
                self.adamw.state[parameter][name] = value.to(parameter.device if fused else "cpu", copy=True)
                continue
            average = torch.zeros_like(parameter)
            local(average).copy_(value)
            self.adamw.state[parameter][name] = average.detach()


def _can_fuse(parameter: Tensor) -> bool:
    return parameter.device.type == "cuda" or (parameter.device.type == "cpu" and not is_shard(parameter))


def _norm(gradients: list[Tensor]) -> Tensor:
    """[] the norm of all; of shards, over all processes."""
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if is_shard(norm) else norm  # type: ignore[attr-defined]


def rate_factor(step: int, steps: int, warmup_fraction: float, schedule: str) -> float:
    """Share of the peak learning rate at `step` (from 0) of `steps`: a linear rise, then constant, linear or cosine."""
    warmup = round(warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
