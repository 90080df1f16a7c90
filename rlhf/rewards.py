"""From one score a response to one reward a token: R_t = [t = T] * (score + sum of terms) - beta * KL_t.

Legend: b responses, t tokens of the longest, `lengths` the real tokens of each. Order as in Ziegler et al. 2019 and
Huang et al. 2024: clip the score, whiten it, add the named terms, add the KL.

A term is a part of a response's reward with a name of its own: the penalty for a missing stop, for length, or for
breaking a rule that the reward model may have missed. Terms come after clip and whitening, so that neither can take
them away again, and each is logged by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.config import PPOConfig
from rlhf.sampling import Prompt
from rlhf.sequences import length_mask
from store.errors import UsageError


class Responses(NamedTuple):
    """What a term looks at: b prompts with their responses as text, [b] tokens of each (a sampled stop included), and
    [b] whether the policy itself sampled the stop."""

    prompts: Sequence[Prompt]
    texts: Sequence[str]
    lengths: Tensor
    finished: Tensor


Term = Callable[[Responses], Tensor]
"""[b] what is added to each response's reward, float32 on the CPU; NaN where it could not be measured."""


def missing_stop(penalty: float) -> Term:
    """-penalty for a response without a stop token that the policy sampled."""
    return lambda responses: -penalty * (~responses.finished.bool()).float()


def over_length(budget: int, per_token: float) -> Term:
    """-per_token for each token beyond `budget`: nothing up to it, then linear."""
    return lambda responses: -per_token * (responses.lengths - budget).clamp(min=0).float()


def build_terms(config: PPOConfig, judged: Mapping[str, Term]) -> dict[str, Term]:
    """The terms that `config` names, in its order. `judged`: name -> the term of a judge or rule, made by the caller.

    Raises UsageError for a term of a judge that the caller did not give.
    """
    terms: dict[str, Term] = {}
    if config.missing_stop_penalty:
        terms["missing_stop"] = missing_stop(config.missing_stop_penalty)
    for term in config.terms:
        if term.kind == "length":
            terms[term.name] = over_length(term.budget, term.per_token)
        elif term.name in judged:
            terms[term.name] = judged[term.name]
        else:
            raise UsageError(f"The reward term {term.name!r} asks the judge {term.judge!r}, which was not given.")
    return terms


def shape_scores(scores: Tensor, *, clip: float | None = None, whiten: bool = False) -> Tensor:
    """[b] the reward model's scores [b], clipped to +-clip, then whitened around their own mean."""
    if clip is not None:
        scores = scores.clamp(-clip, clip)
    return whiten_keeping_mean(scores) if whiten else scores


def whiten_keeping_mean(scores: Tensor, epsilon: float = 1e-8) -> Tensor:
    """[b] scaled to unit variance around their own mean: the mean says how good the batch is, so it stays."""
    mean = scores.mean()
    return (scores - mean) / (scores.var(unbiased=False) + epsilon).sqrt() + mean


def add_terms(scores: Tensor, terms: Mapping[str, Tensor]) -> Tensor:
    """[b] scores plus all terms. A response that a term could not measure gets nothing from that term; how many there
    were is logged."""
    for values in terms.values():
        scores = scores + values.nan_to_num(nan=0.0)
    return scores


def token_rewards(scores: Tensor, kl: Tensor, lengths: Tensor, beta: float) -> Tensor:
    """[b, t] rewards: -beta * kl on every real token, plus the score once, on the last one; zero on padding.

    scores: [b]; kl: [b, t]; lengths: [b], each at least 1. A row sums to score - beta * sum KL.
    """
    mask = length_mask(lengths, kl.shape[1])
    rewards = torch.where(mask, -beta * kl, torch.zeros_like(kl))
    rows = torch.arange(len(scores), device=scores.device)
    rewards[rows, lengths - 1] += scores
    return rewards
