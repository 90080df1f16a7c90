"""Guardrails: when PPO stops, and which of its policies is kept (Gao et al. 2023, arXiv 2210.10760: the reward model's
score goes on rising after the quality that it stands for has begun to fall).

Over-optimisation is a statement about two policies of one run, the best that a probe has seen and the present one. Both
answered the same prompts from the same random streams, against the same responses of the reference, so with

    d_i  the judges' win probability of prompt i now, minus then        e_i  the reward model's score now, minus then

it is declared when mean d < -tolerance and mean e > 0 beyond doubt: the bounds of Student's t intervals of the paired
differences. The best probe is the luckiest of many, and every probe is another chance to be wrong; so the level is
shared by all pairs of probes that the run can have (Bonferroni): a run whose judges do not fall is stopped with a
probability of at most 1 - confidence, whichever probe was the best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rlhf.config import PPOConfig
from rlhf.evaluation import Interval, clustered_mean

Wins = list[float | None]
"""For each prompt of the probe the probability that the policy's response is the better one; None where it could not
be judged."""


class ProbeItem(NamedTuple):
    """A prompt with the policy's and the reference's response, for the judges."""

    prompt_id: str
    prompt: str
    policy_response: str
    reference_response: str


Probe = Callable[[Sequence[ProbeItem]], Wins]
"""The judges: one value an item, in their order."""


class Look(NamedTuple):
    """What was seen of the policy before update `update`. `wins` and `scores` are of the same responses to the same
    prompts each time; `wins` is None without judges. `value`: what the best policy is chosen by."""

    update: int
    value: float
    wins: Wins | None
    scores: list[float]


@dataclass
class Guard:
    """What is known of the best policy so far, and how many probes in a row were over-optimised. All of it is JSON.

    `best_value`: its win rate where there are judges, else its mean score.
    """

    best_update: int = 0
    best_value: float | None = None
    best_wins: Wins | None = None
    best_scores: list[float] = field(default_factory=list)
    falling: int = 0

    def over_budget(self, kl: float, update: int, config: PPOConfig) -> str | None:
        """Why to stop, or None. `kl`: mean per response, in nats."""
        if kl <= config.kl.budget:
            return None
        return f"kl_budget: {kl:.2f} nats a response at update {update}, the budget is {config.kl.budget:g}"

    def look(self, look: Look, config: PPOConfig) -> tuple[bool, str | None]:
        """Take in a look: (whether it is the best so far, why to stop or None)."""
        if self.best_value is None or look.value >= self.best_value:
            self.best_update, self.best_value = look.update, look.value
            self.best_wins, self.best_scores, self.falling = look.wins, look.scores, 0
            return True, None
        if look.wins is None or self.best_wins is None:
            return False, None
        confidence = 1 - 2 * (1 - config.probe.confidence) / comparisons(config)
        fall = paired(look.wins, self.best_wins, confidence, (-1.0, 1.0))
        rise = paired(look.scores, self.best_scores, confidence)
        fell = fall["high"] is not None and fall["high"] < -config.probe.tolerance
        rose = rise["low"] is not None and rise["low"] > 0
        self.falling = self.falling + 1 if fell and rose else 0
        if self.falling < config.probe.patience:
            return False, None
        return False, (
            f"over_optimised: since update {self.best_update} the judges' win rate fell by {-fall['mean']:.3f} "
            f"({-fall['high']:.3f} at least), to {look.value:.3f} at update {look.update}, while the reward rose by "
            f"{rise['mean']:.2f} ({rise['low']:.2f} at least)"
        )


def comparisons(config: PPOConfig) -> int:
    """Pairs of probes that a whole run can have."""
    probes = len({*range(0, config.updates + 1, config.probe.every), config.updates}) if config.probe.every else 2
    return max(1, probes * (probes - 1) // 2)


def paired(
    now: Sequence[float | None],
    then: Sequence[float | None],
    confidence: float,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """The mean of now - then over the entries that both have, with its two-sided interval."""
    differences = [a - b for a, b in zip(now, then, strict=True) if a is not None and b is not None]
    return clustered_mean(differences, [str(index) for index in range(len(differences))], confidence, bounds)
