"""Log-probs of whole batches under a model: the forward passes that need no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.devices import Compute
from rlhf.logprobs import token_logprobs
from rlhf.memory import Budget
from rlhf.models import Model, head, hidden_states
from rlhf.sequences import MicroBatch, Sample, micro_batches, rows_of
from rlhf.sharding import divided, passed


def response_logprobs(model: Model, batch: MicroBatch, temperature: float = 1.0) -> Tensor:
    """[n] log-probs of the response tokens of one micro-batch; the head sees no other position."""

    def forward() -> Tensor:
        hidden = hidden_states(model, batch.ids, batch.positions)[batch.before]
        return token_logprobs(hidden, head(model), batch.targets, temperature)

    return passed(model, forward)


@torch.no_grad()
def logprobs_of(
    model: Model, samples: Sequence[Sample], compute: Compute, budget: Budget, temperature: float = 1.0
) -> list[Tensor]:
    """For each sample the log-probs of its response tokens, float32 on the CPU."""

    def part(mine: Sequence[Sample]) -> list[Tensor]:
        def work(tokens: int) -> list[Tensor]:
            rows: list[Tensor] = [torch.empty(0)] * len(mine)
            for batch in micro_batches(mine, tokens, compute.device):
                with compute.autocast():
                    flat = response_logprobs(model, batch, temperature)
                for index, row in zip(batch.members, rows_of(flat.float().cpu(), batch.lengths), strict=True):
                    rows[index] = row
            return rows

        return budget.run(work, "the log-probs")

    return divided(model, compute, samples, part)
