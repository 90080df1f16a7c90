"""Guardrails: when PPO stops, and which of its policies is kept (Gao et al. 2023, arXiv 2210.10760: the reward model's
score goes on rising after the quality that it stands for has begun to fall).

Three things stop the stage: the KL to the reference passes its budget; the judges' win rate falls, several probes in a
row, while the reward model's score rises; a number is not finite. Each time the best policy so far is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rlhf.config import PPOConfig


class ProbeItem(NamedTuple):
    """A prompt with the policy's and the reference's response, for the judges."""

    prompt_id: str
    prompt: str
    policy_response: str
    reference_response: str


Probe = Callable[[Sequence[ProbeItem]], float | None]
"""Win rate of the policy over the reference, 0..1; None where nothing could be judged."""


@dataclass
class Guard:
    """What is known of the best policy so far, and how many probes in a row looked like over-optimisation.

    `best_value`: its win rate where there is a probe, else its mean score. All of it is JSON.
    """

    best_update: int = 0
    best_value: float | None = None
    best_score: float = 0.0
    falling: int = 0

    def over_budget(self, kl: float, update: int, config: PPOConfig) -> str | None:
        """Why to stop, or None. `kl`: mean per response, in nats."""
        if kl <= config.kl.budget:
            return None
        return f"kl_budget: {kl:.2f} nats a response at update {update}, the budget is {config.kl.budget:g}"

    def look(self, update: int, value: float, score: float, config: PPOConfig, judged: bool) -> tuple[bool, str | None]:
        """Take in a milestone: (whether it is the best so far, why to stop or None).

        value: the win rate where `judged`, else the mean score. score: the reward model's mean score.
        """
        if self.best_value is None or value >= self.best_value:
            self.best_update, self.best_value, self.best_score, self.falling = update, value, score, 0
            return True, None
        if not judged:
            return False, None
        fell = self.best_value - value > config.probe.tolerance and score > self.best_score
        self.falling = self.falling + 1 if fell else 0
        if self.falling < config.probe.patience:
            return False, None
        return False, (
            f"over_optimised: the judges' win rate fell from {self.best_value:.3f} (update {self.best_update}) to "
            f"{value:.3f} (update {update}) while the reward rose from {self.best_score:.2f} to {score:.2f}"
        )
