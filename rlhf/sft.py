"""Supervised fine-tuning: the mean negative log-likelihood of the response tokens, the end token included.

    loss = -1/N sum_responses sum_t log pi(y_t | x, y_<t),    N the response tokens of the optimizer step

The prompt is context only, and so is all but the assistant's turns of a conversation. N counts the whole step, so that
neither micro-batches, nor the number of processes, nor short responses change a weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.config import SFTConfig
from rlhf.curve import Curve
from rlhf.demonstrations import Demonstrations
from rlhf.devices import Compute, on_device
from rlhf.forward import logprobs_of, response_logprobs
from rlhf.memory import Budget
from rlhf.models import Model
from rlhf.sequences import MicroBatch, Sample, micro_batches, pack
from rlhf.sharding import rounds
from rlhf.tokens import Codec
from rlhf.tracking import Log, no_log
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
    log: Log = no_log,
    checkpoints: Path | None = None,
    trained: Sequence[Sequence[bool]] | None = None,
    validation: Demonstrations | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place; returns one row a step: step, loss (nats a token), learning_rate, grad_norm, tokens.

    trained: which response tokens of each sample count; None: all. validation: demonstrations whose loss is measured
    after each epoch and at the end, as validation_loss, null in the other rows.

    A run that was killed goes on from the last checkpoint in `checkpoints`. Raises RlaifError where the loss is not a
    number.
    """
    curve = Curve("sft", model, len(samples), config, compute, progress, log, checkpoints)
    steps, optimizer = curve.steps, curve.optimizer
    budget = Budget(config.optimisation.batch_tokens)
    for step, members in curve.batches(seed):
        rate = optimizer.learning_rate
        batch = [samples[index] for index in members]
        masks = None if trained is None else [trained[index] for index in members]
        own = budget.run(
            lambda tokens: _backward(model, batch, tokens, compute, masks),  # noqa: B023
            "SFT",
            optimizer.zero_grad,
            alone=not compute.sharded,
        )
        loss = float(compute.world.sum(own))
        norm = optimizer.step() if math.isfinite(loss) else None
        if norm is None:
            where = f"SFT step {step} (demonstrations {', '.join(str(index) for index in members[:4])}, ...)"
            raise RlaifError(f"The loss of {where} is not a number: lower the learning rate ({rate:g}).")
        tokens = count_tokens(batch, masks)
        row: dict[str, Any] = {"step": step, "loss": loss, "learning_rate": rate, "grad_norm": norm, "tokens": tokens}
        if validation is not None:
            whole = step % math.ceil(len(samples) / config.batch_size) == 0 or step == steps
            row["validation_loss"] = mean_loss(model, validation, compute, budget) if whole else None
        curve.add(row)
    return curve.rows


def mean_loss(model: Model, demonstrations: Demonstrations, compute: Compute, budget: Budget) -> float:
    """Nats a token in the loss, over all demonstrations."""
    samples, trained = demonstrations
    masks = trained or [[True] * len(sample.response) for sample in samples]
    rows = logprobs_of(model, samples, compute, budget)
    total = sum(float(row.double()[torch.tensor(mask)].sum()) for row, mask in zip(rows, masks, strict=True))
    return -total / demonstrations.tokens


def count_tokens(samples: Sequence[Sample], trained: Sequence[Sequence[bool]] | None) -> int:
    if trained is None:
        return sum(len(sample.response) for sample in samples)
    return sum(map(sum, trained))


def _backward(
    model: Model,
    batch: Sequence[Sample],
    tokens: int,
    compute: Compute,
    trained: Sequence[Sequence[bool]] | None = None,
) -> Tensor:
    """[] this process's part of the loss of one step, whose gradient it leaves in the parameters."""
    count = count_tokens(batch, trained)
    share = list(compute.world.share([sample.length for sample in batch]))
    mine = [batch[index] for index in share]
    micros = list(micro_batches(mine, tokens, compute.device))
    if trained is not None:
        micros = [_only(micro, [trained[share[index]] for index in micro.members]) for micro in micros]
    total = torch.zeros((), device=compute.device)
    for micro, weight in rounds(model, compute.world, micros, lambda: pack(batch, [0], compute.device)):
        with compute.autocast():
            loss = -weight * response_logprobs(model, micro).sum() / count
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def _only(micro: MicroBatch, trained: Sequence[Sequence[bool]]) -> MicroBatch:
    """The micro-batch with the trained response tokens alone; the head sees no other."""
    kept = [at for at, flag in enumerate(flag for mask in trained for flag in mask) if flag]
    keep = on_device(torch.tensor(kept, dtype=torch.long), micro.before.device)
    return micro._replace(before=micro.before[keep], targets=micro.targets[keep])
