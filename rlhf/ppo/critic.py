"""The critic: the value of every state of a response, V(s_t) with s_t the prompt and the response before token t.

separate: a model of its own that starts as the reward model, so its first values are the reward model's outputs. Where
the reward model reads other token ids than the policy writes, or is an encoder, it starts from the policy's weights
with a new head; where it is an ensemble, from the mean of its heads or from the first of its models.
shared: a linear head on the policy's trunk; one forward pass gives log-probs and values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlhf.config import Lora
from rlhf.devices import Compute
from rlhf.memory import Budget
from rlhf.models import Model, attach_lora, disable_dropout, hidden_states, unwrap
from rlhf.reward_heads import init_head, last_layer, scalars
from rlhf.reward_model import load_reward_model
from rlhf.sequences import MicroBatch, Sample, micro_batches, rows_of
from rlhf.sharding import divided, passed, shard


class SeparateCritic(nn.Module):
    """A sequence-classification model read at every position that precedes a response token."""

    def __init__(self, model: Model, shift: float = 0.0):
        super().__init__()
        self.model = model
        self.bias = nn.Parameter(torch.tensor(float(shift), device=model.device))

    def values(self, batch: MicroBatch) -> Tensor:
        """[n] values of the states before each response token."""

        def forward() -> Tensor:
            states = hidden_states(self.model, batch.ids, batch.positions)[batch.before]
            return scalars(last_layer(self.model), states)[:, 0]

        return passed(self.model, forward) + self.bias


class SharedCritic(nn.Module):
    """A head on the policy's hidden states."""

    def __init__(self, size: int, device: torch.device):
        super().__init__()
        self.head = nn.Linear(size, 1, device=device)
        init_head(self.head)

    def values_of_states(self, states: Tensor) -> Tensor:
        """[n] values from the policy's hidden states [n, d]."""
        return scalars(self.head, states)[:, 0]


Critic = SeparateCritic | SharedCritic


def separate_critic(name: str, compute: Compute, lora: Lora | None = None) -> SeparateCritic:
    """A critic from the reward model (or causal language model) at `name`; with `lora`, adapters and the head train."""
    start = load_reward_model(name, compute, trained=True, ensemble=False)
    shift = start.shift
    model = start.model
    if lora is not None:
        model = attach_lora(model, lora, "SEQ_CLS", compute)
        disable_dropout(model)
    return SeparateCritic(shard(model, compute), shift)


def shared_critic(policy: Model) -> SharedCritic:
    return SharedCritic(unwrap(policy).config.get_text_config().hidden_size, policy.device)


@torch.no_grad()
def values_of(critic: SeparateCritic, samples: Sequence[Sample], compute: Compute, budget: Budget) -> list[Tensor]:
    """For each sample the values before each of its response tokens, float32 on the CPU."""

    def part(mine: Sequence[Sample]) -> list[Tensor]:
        def work(tokens: int) -> list[Tensor]:
            rows: list[Tensor] = [torch.empty(0)] * len(mine)
            for batch in micro_batches(mine, tokens, compute.device):
                with compute.autocast():
                    flat = critic.values(batch).cpu()
                for index, row in zip(batch.members, rows_of(flat, batch.lengths), strict=True):
                    rows[index] = row
            return rows

        return budget.run(work, "the values")

    return divided(critic.model, compute, samples, part)
