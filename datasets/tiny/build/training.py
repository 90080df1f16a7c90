"""The parts of training that the base model and the judges share: batches of one length, the schedule, the optimiser.

Sequences of one length make a batch, so that no token is padding and causal attention needs no mask. Tokens were made
once, before. On two cores this runs at 15-20 thousand tokens a second for a model of a million parameters.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import LlamaForCausalLM


def same_length_batches(lengths: Sequence[int], batch_tokens: int, rng: random.Random) -> Iterator[list[int]]:
    """Deal indices into shuffled batches of one length, of about `batch_tokens` tokens."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        by_length[length].append(index)
    batches: list[list[int]] = []
    for length, members in by_length.items():
        rng.shuffle(members)
        size = max(1, batch_tokens // length)
        batches += [members[at : at + size] for at in range(0, len(members), size)]
    rng.shuffle(batches)
    yield from batches


def train(
    model: LlamaForCausalLM,
    batches: list[list[int]],
    loss_of: Callable[[list[int]], torch.Tensor],
    learning_rate: float,
    extra_parameters: Sequence[torch.nn.Parameter] = (),
    report: Callable[[str], None] = print,
) -> None:
    """One optimiser step a batch: AdamW, 3 % warm-up, cosine to a twentieth, gradients clipped at 1."""
    parameters = [*model.parameters(), *extra_parameters]
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    warm = max(1, int(0.03 * len(batches)))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, len(batches) - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    model.train()
    recent: list[float] = []
    for step, batch in enumerate(batches, start=1):
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        recent.append(float(loss.detach()))
        if step % max(1, len(batches) // 10) == 0:
            report(f"step {step}/{len(batches)}, loss {sum(recent) / len(recent):.4f}")
            recent = []
    model.eval()
