"""Looks at the policy over a run: the same prompts with the same random streams each time, so that two looks differ by
the policy alone. They feed the guardrails, and record responses that people can read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from rlhf.config import PPOConfig
from rlhf.evaluation import clustered_mean
from rlhf.generation import row_seed
from rlhf.models import adapter_off
from rlhf.ppo.actors import Actors
from rlhf.ppo.guard import Look, Probe, ProbeItem, Wins
from rlhf.ppo.rollout import Budgets, prompts_of_update
from rlhf.sampling import Prompt, respond

SAMPLES = 8
"""Prompts whose responses are recorded over the run."""
MILESTONE_EVERY = 10
"""Updates between milestones where neither a probe nor checkpoints set them."""


class Looker:
    """Samples the policy's responses at milestones; the reference's are sampled once."""

    def __init__(
        self, actors: Actors, config: PPOConfig, seed: int, budgets: Budgets, probe: Probe | None, prompts: list[Prompt]
    ):
        self.actors, self.config, self.seed, self.budgets = actors, config, seed, budgets
        self.probe = probe if config.probe.every else None
        count = config.probe.prompts if self.probe else SAMPLES
        self.prompts = prompts_of_update(prompts, 0, min(count, len(prompts)), row_seed(seed, "probe"))
        self.every = (config.probe.every if self.probe else config.checkpoint_every) or MILESTONE_EVERY
        self._reference: list[str] | None = None

    def is_due(self, update: int) -> bool:
        return update % self.every == 0

    def look(self, update: int, score: float) -> tuple[Look | None, list[dict[str, Any]]]:
        """(what the guardrails see, the recorded samples). `score`: the mean of the update's own batch, which chooses
        the best policy where there are no judges. No look where the judges could judge nothing: no evidence."""
        responses = self._respond(self.actors.policy, "policy")
        pairs = [(prompt.prompt, response) for prompt, response in zip(self.prompts, responses, strict=True)]
        scores: list[float] = self.actors.score(pairs).tolist()
        samples = [
            {
                "update": update,
                "prompt_id": prompt.prompt_id,
                "prompt": prompt.prompt,
                "response": response,
                "score": value,
            }
            for prompt, response, value in zip(self.prompts, responses, scores, strict=True)
        ][:SAMPLES]
        if self.probe is None:
            return Look(update, score, None, scores), samples
        wins = self._wins(responses, update)
        judged = [win for win in wins if win is not None]
        return (Look(update, sum(judged) / len(judged), wins, scores) if judged else None), samples

    def _wins(self, responses: Sequence[str], update: int) -> Wins:
        if self.probe is None or update == 0:
            return [0.5] * len(responses)  # policy and reference are one model
        if self._reference is None:
            if self.actors.reference is not None:
                self._reference = self._respond(self.actors.reference, "reference")
            else:
                with adapter_off(self.actors.policy) as reference:
                    self._reference = self._respond(reference, "reference")
        items = [
            ProbeItem(prompt.prompt_id, prompt.prompt, ours, theirs)
            for prompt, ours, theirs in zip(self.prompts, responses, self._reference, strict=True)
        ]
        return self.actors.compute.world.once(partial(self.probe, items))

    def _respond(self, model: Any, who: str) -> list[str]:
        seeds = [row_seed(self.seed, "probe", who, prompt.prompt_id) for prompt in self.prompts]
        texts = [prompt.prompt for prompt in self.prompts]
        actors, config = self.actors, self.config
        results = respond(model, actors.codec, texts, seeds, config.decoding, actors.compute, self.budgets.responses)
        return [actors.codec.text(result.ids) for result in results]


PROBE_COLUMNS = ("probe_win_rate", "probe_win_low", "probe_win_high", "judge_gain", "probe_score", "reward_gain")


def probe_metrics(look: Look | None, first: float | None) -> dict[str, float | None]:
    """The probe's columns of a metrics row; `first`: the reward model's mean score on the probe before training."""
    found: dict[str, float | None] = dict.fromkeys(PROBE_COLUMNS)
    if look is None:
        return found
    mean = sum(look.scores) / len(look.scores)
    found |= {"probe_score": mean, "reward_gain": mean - (mean if first is None else first)}
    if look.wins is not None:
        judged = [win for win in look.wins if win is not None]
        interval = clustered_mean(judged, [str(index) for index in range(len(judged))], 0.95, (0.0, 1.0))
        found |= {"probe_win_rate": look.value, "judge_gain": look.value - 0.5}
        found |= {"probe_win_low": interval["low"], "probe_win_high": interval["high"]}
    return found
