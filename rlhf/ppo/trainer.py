"""The PPO loop (Stiennon et al. 2020; details: Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO").

Update u: respond to a batch of prompts with the policy; score; look at the guardrails; take epochs x minibatches steps.
The row of update u describes the policy before that update, and there is one more row, without steps, for the last one.

Left out here: rollout engines other than the policy itself (so no importance correction), several processes, a dynamic
batch of rollouts that new rows enter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlhf.config import PPOConfig
from rlhf.generation import row_seed
from rlhf.kl import KLController
from rlhf.memory import Budget
from rlhf.models import adapter_off, restore, trainable
from rlhf.optimisation import Optimizer
from rlhf.ppo.actors import Actors
from rlhf.ppo.checkpoint import Checkpoints
from rlhf.ppo.critic import SeparateCritic, SharedCritic
from rlhf.ppo.guard import Guard, Probe, ProbeItem
from rlhf.ppo.report import describe
from rlhf.ppo.rollout import Budgets, NotFiniteError, Rollouts, collect, prompts_of_update, targets
from rlhf.ppo.update import optimise
from rlhf.sampling import Prompt, respond
from store.errors import UsageError
from store.stage import Progress, silent

SAMPLES = 8
"""Prompts whose responses are recorded over the run."""
MILESTONE_EVERY = 10
"""Updates between milestones where neither a probe nor checkpoints set them."""


@dataclass
class Run:
    """What changes beside the weights; stored as JSON. `update`: updates taken so far."""

    coefficient: float
    update: int = 0
    guard: Guard = field(default_factory=Guard)
    rows: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Run:
        return cls(**{**state, "guard": Guard(**state["guard"])})


@dataclass(frozen=True)
class Result:
    """`rows`: metrics, one an update and one at the end. `samples`: responses to the same prompts over the run.
    `stopped`: why it ended early, or None. `kept`: the update whose policy the model has now (before that update)."""

    rows: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    stopped: str | None
    kept: int
    updates: int


def train(
    actors: Actors,
    prompts: Sequence[Prompt],
    config: PPOConfig,
    seed: int,
    checkpoints: Path,
    *,
    probe: Probe | None = None,
    probe_prompts: Sequence[Prompt] = (),
    progress: Progress = silent,
) -> Result:
    """Optimise `actors.policy` in place. A run that was killed goes on from the last checkpoint in `checkpoints`.

    probe: win rate of policy responses over reference responses by the judges, on `probe_prompts`; None: no probe.
    """
    if not prompts:
        raise UsageError(f"No prompt is in the splits {', '.join(config.splits)}: correct the splits or the prompts.")
    policy_optimizer, critic_optimizer = _optimizers(actors, config)
    optimizers = {"policy": policy_optimizer} | ({"critic": critic_optimizer} if critic_optimizer else {})
    store = Checkpoints(checkpoints)
    run = Run(config.kl.coefficient)
    if (found := store.latest()) is not None:
        run = Run.of(store.resume(found, actors, optimizers))
        progress("ppo", run.update, config.updates, f"resumed at update {run.update}")
    budgets = Budgets(Budget(config.optimisation.batch_tokens), Budget(config.batch_size, "responses"))
    looker = _Looker(actors, config, seed, budgets, probe, list(probe_prompts) or list(prompts))
    stopped: str | None = None
    broken = False
    while True:
        started = time.monotonic()
        chosen = prompts_of_update(prompts, run.update, config.batch_size // config.group_size, seed)
        try:
            rollouts = collect(actors, chosen, config, seed, run.update, budgets)
            goal = targets(rollouts, config, run.coefficient)
            row: dict[str, Any] = {"update": run.update, **describe(rollouts, goal, run.coefficient)}
            row |= {"learning_rate": policy_optimizer.learning_rate, "probe_win_rate": None}
            rollout_seconds = time.monotonic() - started
            last = run.update == config.updates
            stopped = run.guard.over_budget(row["kl"], run.update, config)
            if stopped is None and (looker.is_due(run.update) or last):
                stopped = _milestone(run, row, rollouts, looker, store, actors, config)
            run.rows.append(row)
            if stopped is not None or last:
                break
            steps = optimise(
                actors, rollouts, goal, config, policy_optimizer, critic_optimizer, budgets.tokens, seed, run.update
            )
        except NotFiniteError as failure:
            stopped, broken = f"not_finite: {failure}", True
            break
        row |= {**steps, "rollout_seconds": rollout_seconds, "seconds": time.monotonic() - started}
        controller = KLController(run.coefficient, config.kl.target, config.kl.horizon)
        controller.update(row["kl"], len(rollouts.samples))
        run.coefficient = controller.coefficient
        run.update += 1
        if config.checkpoint_every and run.update % config.checkpoint_every == 0 and run.update < config.updates:
            store.save(run.update, actors, optimizers, _state(run), run.guard.best_update)
        progress("ppo", run.update, config.updates, f"score {row['score']:.3f}, kl {row['kl']:.2f}")
    kept = _keep(run, store, actors, stopped, broken)
    return Result(run.rows, run.samples, stopped, kept, run.update)


class _Looker:
    """Looks at the policy at milestones: the same prompts with the same random streams each time, so that two looks
    differ by the policy alone. The reference's responses are sampled once."""

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

    def responses(self) -> list[str]:
        return self._respond(self.actors.policy, "policy")

    def win_rate(self, responses: Sequence[str], update: int) -> float | None:
        if self.probe is None:
            return None
        if update == 0:
            return 0.5  # policy and reference are one model
        if self._reference is None:
            if self.actors.reference is not None:
                self._reference = self._respond(self.actors.reference, "reference")
            else:
                with adapter_off(self.actors.policy) as reference:
                    self._reference = self._respond(reference, "reference")
        return self.probe(
            [
                ProbeItem(prompt.prompt_id, prompt.prompt, ours, theirs)
                for prompt, ours, theirs in zip(self.prompts, responses, self._reference, strict=True)
            ]
        )

    def _respond(self, model: Any, who: str) -> list[str]:
        seeds = [row_seed(self.seed, "probe", who, prompt.prompt_id) for prompt in self.prompts]
        texts = [prompt.prompt for prompt in self.prompts]
        actors, config = self.actors, self.config
        results = respond(model, actors.codec, texts, seeds, config.decoding, actors.compute, self.budgets.responses)
        return [actors.codec.text(result.ids) for result in results]


def _milestone(
    run: Run,
    row: dict[str, Any],
    rollouts: Rollouts,
    looker: _Looker,
    store: Checkpoints,
    actors: Actors,
    config: PPOConfig,
) -> str | None:
    """Sample, probe, keep the policy where it is the best so far. Returns why to stop, or None."""
    responses = looker.responses()
    shown = list(zip(looker.prompts, responses, strict=True))[:SAMPLES]
    scores = actors.score([(prompt.prompt, response) for prompt, response in shown]).tolist()
    for (prompt, response), score in zip(shown, scores, strict=True):
        run.samples.append(
            {
                "update": run.update,
                "prompt_id": prompt.prompt_id,
                "prompt": prompt.prompt,
                "response": response,
                "score": score,
            }
        )
    row["probe_win_rate"] = looker.win_rate(responses, run.update)
    judged = looker.probe is not None
    value = row["probe_win_rate"] if judged else row["score"]
    if value is None:  # the judges could judge nothing: no evidence either way
        return None
    best, stop = run.guard.look(run.update, value, row["score"], config, judged)
    if best:
        store.save_best(run.update, actors)
    return stop


def _keep(run: Run, store: Checkpoints, actors: Actors, stopped: str | None, broken: bool) -> int:
    """Leave the policy in its final state: the last one after a quiet end, else the last good or the best one."""
    if stopped is None and not run.guard.falling:
        return run.update
    names = [f"best-{run.guard.best_update:06d}"]
    if broken and (saved := store.latest()) is not None:
        names.insert(0, f"update-{saved:06d}")
    for name in names:
        if (weights := store.policy_at(name)) is not None:
            restore(actors.policy, weights)
            return int(name.rpartition("-")[2])
    return run.update


def _optimizers(actors: Actors, config: PPOConfig) -> tuple[Optimizer, Optimizer | None]:
    steps = config.updates * config.epochs * config.minibatches
    parameters = list(trainable(actors.policy).values())
    if isinstance(actors.critic, SharedCritic):
        parameters += list(actors.critic.parameters())
    critic = None
    if isinstance(actors.critic, SeparateCritic):
        rate = config.value_learning_rate
        critic = Optimizer(trainable(actors.critic).values(), config.optimisation, steps, rate)
    return Optimizer(parameters, config.optimisation, steps), critic


def _state(run: Run) -> dict[str, Any]:
    return asdict(run)
