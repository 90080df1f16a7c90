"""Gradient descent as all loops here do it: AdamW, warmup, a schedule, clipped gradients, no step on a bad number."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from rlhf.config import Optimisation


class Optimizer:
    """AdamW whose learning rate is a function of the step count, so that its whole state is AdamW's and one integer."""

    def __init__(self, parameters: Iterable[nn.Parameter], config: Optimisation, steps: int, rate: float | None = None):
        self.parameters = [value for value in parameters if value.requires_grad]
        # No decay on norms and biases: pulling a scale of 1 to 0 is no regularisation.
        groups = [
            {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.peak = config.learning_rate if rate is None else rate
        self.config = config
        self.steps = max(1, steps)
        self.taken = 0
        betas = (config.adam_beta1, config.adam_beta2)
        self.adamw = torch.optim.AdamW([group for group in groups if group["params"]], lr=self.peak, betas=betas)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.peak * rate_factor(self.taken, self.steps, self.config.warmup_fraction, self.config.schedule)

    def zero_grad(self) -> None:
        self.adamw.zero_grad(set_to_none=True)

    def step(self) -> float | None:
        """Clip, step, and return the gradient's norm before clipping; None, without a step, where it is not finite."""
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm))
        if not math.isfinite(norm):
            self.zero_grad()
            return None
        for group in self.adamw.param_groups:
            group["lr"] = self.learning_rate
        self.adamw.step()
        self.taken += 1
        self.zero_grad()
        return norm

    def state_dict(self) -> dict[str, object]:
        return {"adamw": self.adamw.state_dict(), "taken": self.taken}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.adamw.load_state_dict(state["adamw"])  # type: ignore[arg-type]
        self.taken = int(state["taken"])  # type: ignore[call-overload]


def rate_factor(step: int, steps: int, warmup_fraction: float, schedule: str) -> float:
    """Share of the peak learning rate at `step` (from 0) of `steps`: a linear rise, then constant, linear or cosine."""
    warmup = round(warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
