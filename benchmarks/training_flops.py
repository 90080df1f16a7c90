"""Arithmetic of training, counted, and the rate at which this machine multiplies matrices of those sizes.

Counted are the matrix products that a step cannot do without: those of real tokens, of the head at positions that
predict a response token, and of attention between a token and those before it. Padding, recomputed passes, the head
over the prompt and everything elementwise count nothing. A multiplication with its addition is two operations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Shape:
    """What decides the arithmetic of a Llama or Qwen2 model. Sizes in numbers of features."""

    hidden: int
    intermediate: int
    layers: int
    queries: int
    """Width of all query heads together; also of the attention's output."""
    keys: int
    """Width of all key heads together; that of the values is the same."""
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From a transformers config."""
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            size * config.num_attention_heads,
            size * config.num_key_value_heads,
            config.vocab_size,
        )

    @property
    def layer_weights(self) -> int:
        """Weights of one layer that every token is multiplied with."""
        attention = self.hidden * (2 * self.queries + 2 * self.keys)
        return attention + 3 * self.hidden * self.intermediate

    def trunk(self, tokens: int, pairs: int) -> int:
        """Operations of a forward pass below the head. pairs: of a token and one that it attends to."""
        return self.layers * (2 * self.layer_weights * tokens + 4 * self.queries * pairs)

    def head(self, tokens: int) -> int:
        """Operations of the language-model head at so many positions."""
        return 2 * self.hidden * self.vocabulary * tokens


def causal_pairs(tokens: int) -> int:
    """Pairs of a token with itself or one before it in a sequence of so many."""
    return tokens * (tokens + 1) // 2


def policy_forward(shape: Shape, prompt: int, response: int) -> int:
    """Operations for the log-probs of one response. Its last token predicts nothing, so the trunk can leave it out."""
    tokens = prompt + response - 1
    return shape.trunk(tokens, causal_pairs(tokens)) + shape.head(response)


def critic_forward(shape: Shape, prompt: int, response: int) -> int:
    """Operations for the values of one response by a model of its own."""
    tokens = prompt + response - 1
    return shape.trunk(tokens, causal_pairs(tokens))


def update(shape: Shape, lengths: Iterable[tuple[int, int]], epochs: int, separate_critic: bool) -> int:
    """Operations of the update phase of PPO over responses of (prompt, response) tokens: forward and two backward."""
    forward = 0
    for prompt, response in lengths:
        forward += policy_forward(shape, prompt, response)
        forward += critic_forward(shape, prompt, response) if separate_critic else 0
    return 3 * epochs * forward


def rollout(shape: Shape, lengths: Iterable[tuple[int, int]], separate_critic: bool) -> int:
    """Operations of the rollout phase: sampling with a cache, then log-probs of the policy and of the reference, the
    reward and, where the critic is a model of its own, the values. Every one is a forward pass."""
    work = 0
    for prompt, response in lengths:
        work += 3 * policy_forward(shape, prompt, response) + critic_forward(shape, prompt, response + 1)
        work += critic_forward(shape, prompt, response) if separate_critic else 0
    return work


def matmul_rate(
    shape: Shape,
    tokens: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    clock: Callable[[], float] = time.perf_counter,
    seconds: float = 0.5,
) -> float:
    """Operations a second of bare torch.matmul over the products of one training pass of `tokens` tokens: each weight
    with the activations, and both products of its backward pass, a layer's in the share that they have of the model."""
    weights = [
        (shape.hidden, shape.queries, 2 * shape.layers),
        (shape.hidden, shape.keys, 2 * shape.layers),
        (shape.hidden, shape.intermediate, 3 * shape.layers),
        (shape.hidden, shape.vocabulary, 1),
    ]
    work, spent = 0.0, 0.0
    for inner, outer, count in weights:
        inputs = torch.randn(tokens, inner, device=device, dtype=dtype)
        weight = torch.randn(outer, inner, device=device, dtype=dtype)
        outputs = torch.randn(tokens, outer, device=device, dtype=dtype)

        def once(inputs: Any = inputs, weight: Any = weight, outputs: Any = outputs) -> None:
            torch.matmul(inputs, weight.t())
            torch.matmul(outputs, weight)
            torch.matmul(outputs.t(), inputs)

        work += count * 6 * tokens * inner * outer
        spent += count * _fastest(once, device, clock, seconds / len(weights))
    return work / spent


def _fastest(once: Callable[[], None], device: torch.device, clock: Callable[[], float], seconds: float) -> float:
    """Seconds of the fastest run, of at least three: the machine's rate is what it reaches undisturbed."""
    once()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        _wait(device)
        start = clock()
        once()
        _wait(device)
        times.append(clock() - start)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
