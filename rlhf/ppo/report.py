"""The metrics row of one update. Every average is over real tokens or whole responses; padding never counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from rlhf.advantages import masked_mean
from rlhf.ppo.importance import importance_metrics
from rlhf.ppo.rollout import Rollouts, Targets


def describe(rollouts: Rollouts, goal: Targets, beta: float) -> dict[str, Any]:
    """Metrics of the policy that sampled `rollouts`, before it is updated.

    score: the reward model's mean. reward: after clip and terms, minus beta * KL. kl: nats a response, the k1
    estimate (its mean is unbiased, so it can be compared between runs whatever estimator the reward uses). entropy:
    nats a token, from the sampled tokens. explained_variance: of the returns, by the critic's old values. What the
    names mean, one by one: docs/metrics.md.
    """
    mask = rollouts.mask
    kl = ((rollouts.logprobs - rollouts.reference_logprobs) * mask).sum(1)
    return {
        "score": float(rollouts.scores.mean()),
        "score_std": float(rollouts.scores.std(unbiased=False)),
        "reward": float((goal.shaped - beta * kl).mean()),
        "kl": float(kl.mean()),
        "kl_coefficient": beta,
        "entropy": float(-masked_mean(rollouts.logprobs, mask)),
        "explained_variance": explained_variance(rollouts, goal),
        "response_length": float(rollouts.lengths.float().mean()),
        "stop_rate": float(rollouts.finished.float().mean()),
        "repetition": repetition([sample.response for sample in rollouts.samples]),
        "reference_perplexity": float(masked_mean(-rollouts.reference_logprobs, mask).exp()),
        **term_metrics(rollouts.terms),
        **importance_metrics(rollouts.importance, rollouts.logprobs, mask),
    }


def term_metrics(terms: Mapping[str, Tensor]) -> dict[str, float | None]:
    """term/<name>: the mean of what it gave, over the responses that it could measure; unmeasured/<name>: the share
    of those that it could not."""
    found: dict[str, float | None] = {}
    for name, values in terms.items():
        known = values[~values.isnan()]
        found[f"term/{name}"] = float(known.mean()) if len(known) else None
        found[f"unmeasured/{name}"] = 1 - len(known) / len(values)
    return found


def explained_variance(rollouts: Rollouts, goal: Targets) -> float | None:
    """1 - Var(R - V) / Var(R) over real tokens; None without a critic or where all returns are equal."""
    if goal.returns is None or rollouts.values is None:
        return None
    mask = rollouts.mask
    returns, error = goal.returns[mask].double(), (goal.returns - rollouts.values)[mask].double()
    variance = float(returns.var(unbiased=False))
    return 1 - float(error.var(unbiased=False)) / variance if variance > 0 else None


def repetition(responses: Sequence[Sequence[int]], size: int = 3) -> float:
    """Share of token trigrams that occurred before in their own response, over all responses; 0 without any."""
    total = repeated = 0
    for ids in responses:
        grams = [tuple(ids[start : start + size]) for start in range(len(ids) - size + 1)]
        total += len(grams)
        repeated += len(grams) - len(set(grams))
    return repeated / total if total else 0.0
