"""The reward model: a transformer with one scalar head, in the layout of AutoModelForSequenceClassification.

    r(x, y) = w . h_last + b

h_last is the hidden state of the last real token, which is the end token: the model reads text, and closes every
response with its own end token, whether or not the policy had sampled one (the penalty for a missing stop is PPO's).
b shifts the reward so that reference responses score 0 in the mean. The layout has no bias on its head, so b is the
field `reward_shift` of config.json; whoever loads the folder with AutoModelForSequenceClassification gets r - b, which
orders responses in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.devices import Compute
from rlhf.memory import Budget
from rlhf.models import Model, hidden_states, load_pretrained, unwrap
from rlhf.sequences import MicroBatch, Sample, micro_batches
from rlhf.tokens import Codec, load_codec

SHIFT = "reward_shift"
HEADS = ("score", "classifier")


class RewardModel:
    """A sequence-classification model with its tokenizer, the longest input it was made for, and its shift."""

    def __init__(self, model: Model, codec: Codec, max_length: int | None = None):
        self.model = model
        self.codec = codec
        limits = [limit for limit in (max_length, codec.context) if limit is not None]
        self.max_length = min(limits) if limits else None

    @property
    def shift(self) -> float:
        return float(getattr(unwrap(self.model).config, SHIFT, 0.0))

    @shift.setter
    def shift(self, value: float) -> None:
        setattr(unwrap(self.model).config, SHIFT, float(value))

    def encode(self, prompt: str, response: str) -> Sample:
        """Ids of a complete exchange. One that is too long loses the start of its prompt, then of its response."""
        head, tail = self.codec.prompt_ids(prompt), self.codec.response_ids(response)
        if self.max_length is not None and len(head) + len(tail) > self.max_length:
            tail = tail[-(self.max_length - 1) :]
            head = head[-(self.max_length - len(tail)) :]
        return Sample(head, tail)

    def rewards(self, batch: MicroBatch) -> Tensor:
        """[s] rewards of a micro-batch, shift included."""
        states = hidden_states(self.model, batch.ids, batch.positions)[batch.last]
        reward: Tensor = score_head(self.model)(states)[:, 0].float() + self.shift
        return reward

    @torch.no_grad()
    def score(self, exchanges: Sequence[tuple[str, str]], compute: Compute, budget: Budget) -> Tensor:
        """[b] rewards of (prompt, response) texts, float32 on the CPU."""
        return self.score_samples([self.encode(*exchange) for exchange in exchanges], compute, budget)

    @torch.no_grad()
    def score_samples(self, samples: Sequence[Sample], compute: Compute, budget: Budget) -> Tensor:
        """[b] rewards of encoded exchanges, float32 on the CPU."""

        def work(tokens: int) -> Tensor:
            rewards = torch.zeros(len(samples))
            for batch in micro_batches(samples, tokens, compute.device):
                with compute.autocast():
                    rewards[batch.members] = self.rewards(batch).cpu()
            return rewards

        return budget.run(work, "the rewards")


def load_reward_model(
    name: str, compute: Compute, *, trained: bool = False, max_length: int | None = None
) -> RewardModel:
    """A reward model from its folder, or the start of one from a causal language model, whose head is then new.

    The new head is drawn from N(0, 1 / (d + 1)), so that first rewards are small (Huang et al. 2024). Set torch's seed
    before. Raises UsageError where `name` is neither.
    """
    from transformers import AutoModelForSequenceClassification

    allowed = "" if not trained else "score"
    model = load_pretrained(
        AutoModelForSequenceClassification, name, compute, trained=trained, may_lack=allowed, num_labels=1
    )
    codec = load_codec(name, model.config)
    if not _is_reward_model(name):
        init_head(score_head(model))
    set_padding(model, codec)
    return RewardModel(model, codec, max_length)


def _is_reward_model(name: str) -> bool:
    from transformers import AutoConfig

    architectures = AutoConfig.from_pretrained(name).architectures or []
    return any("SequenceClassification" in architecture for architecture in architectures)


def score_head(model: Model) -> Any:
    """The scalar head, under the name that the family gives it. Inside peft it is the trained copy."""
    inner = unwrap(model)
    for name in HEADS:
        if hasattr(inner, name):
            return getattr(inner, name)
    raise ValueError(f"{type(inner).__name__} has no head named {' or '.join(HEADS)}")


def init_head(layer: nn.Linear) -> None:
    """Weights from N(0, 1 / (d + 1)), the bias 0."""
    nn.init.normal_(layer.weight, std=(layer.in_features + 1) ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def set_padding(model: Model, codec: Codec) -> None:
    """Tell the layout's own forward pass which id is padding.

    It reads the reward at the last token that differs from the padding id, so an id that ends responses must not be it.
    Without a suitable id transformers refuses batches, which is better than a silent misreading; nothing in this
    package depends on it.
    """
    tokenizer = codec.tokenizer
    for candidate in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id):
        if candidate is not None and candidate not in codec.stop_ids:
            model.config.pad_token_id = candidate
            return
    model.config.pad_token_id = None
