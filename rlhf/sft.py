"""Supervised fine-tuning: the mean negative log-likelihood of the response tokens, the end token included.

    loss = -1/N sum_responses sum_t log pi(y_t | x, y_<t),    N the response tokens of the optimizer step

The prompt is context only. N counts the whole step, so that neither micro-batches nor short responses change a weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from rlhf.config import SFTConfig
from rlhf.devices import Compute
from rlhf.forward import response_logprobs
from rlhf.memory import Budget
from rlhf.models import Model, trainable
from rlhf.optimisation import Optimizer
from rlhf.sequences import Sample, micro_batches
from rlhf.tokens import Codec
from store.errors import RlaifError, UsageError
from store.stage import Progress, silent


def encode_demonstrations(codec: Codec, demonstrations: Sequence[tuple[str, str]]) -> list[Sample]:
    """Ids of (prompt, response) texts. Raises UsageError where one passes the context, or no end token exists."""
    codec.require_end()
    samples = [Sample(codec.prompt_ids(prompt), codec.response_ids(response)) for prompt, response in demonstrations]
    require_context(samples, codec)
    return samples


def require_context(samples: Sequence[Sample], codec: Codec) -> None:
    longest = max((sample.length for sample in samples), default=0)
    if codec.context is not None and longest > codec.context:
        raise UsageError(
            f"A prompt and its response have {longest} tokens, but the context of {codec.name} holds {codec.context}: "
            "shorten or remove them."
        )


def train_sft(
    model: Model,
    samples: Sequence[Sample],
    config: SFTConfig,
    seed: int,
    compute: Compute,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Train `model` in place; returns one row a step: step, loss (nats a token), learning_rate, grad_norm, tokens.

    Raises RlaifError where the loss is not a number.
    """
    steps = max(1, round(config.epochs * len(samples) / config.batch_size))
    optimizer = Optimizer(trainable(model).values(), config.optimisation, steps)
    budget = Budget(config.optimisation.batch_tokens)
    curve: list[dict[str, Any]] = []
    for step, members in zip(range(steps), batches(len(samples), config.batch_size, seed), strict=False):
        rate = optimizer.learning_rate
        batch = [samples[index] for index in members]
        loss = budget.run(lambda tokens: _backward(model, batch, tokens, compute), "SFT", optimizer.zero_grad)  # noqa: B023
        norm = optimizer.step() if math.isfinite(loss) else None
        if norm is None:
            raise RlaifError(f"The loss of SFT step {step + 1} is not a number: lower the learning rate ({rate:g}).")
        curve.append(
            {
                "step": step + 1,
                "loss": loss,
                "learning_rate": rate,
                "grad_norm": norm,
                "tokens": sum(len(sample.response) for sample in batch),
            }
        )
        progress("sft", step + 1, steps, f"loss {loss:.3f}")
    return curve


def _backward(model: Model, batch: Sequence[Sample], tokens: int, compute: Compute) -> float:
    count = sum(len(sample.response) for sample in batch)
    total = torch.zeros((), device=compute.device)
    for micro in micro_batches(batch, tokens, compute.device):
        with compute.autocast():
            loss = -response_logprobs(model, micro).sum() / count
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return float(total)


def batches(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of indices, each epoch in an order of its own; the last of an epoch may be smaller."""
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count, size):
            yield order[start : start + size]
        epoch += 1
