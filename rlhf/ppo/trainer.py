"""The PPO loop (Stiennon et al. 2020; details: Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO").

Update u: respond to a batch of prompts with the policy; score; look at the guardrails; take epochs x minibatches steps.
The row of update u describes the policy before that update, and there is one more row, without steps, for the last one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlhf.config import PPOConfig
from rlhf.kl import KLController
from rlhf.memory import Budget
from rlhf.models import restore, trainable
from rlhf.optimisation import Optimizer
from rlhf.ppo.actors import Actors
from rlhf.ppo.checkpoint import Checkpoints
from rlhf.ppo.critic import SeparateCritic, SharedCritic
from rlhf.ppo.guard import Guard, Probe
from rlhf.ppo.milestones import Looker, probe_metrics
from rlhf.ppo.monitors import drifts, passed
from rlhf.ppo.report import describe
from rlhf.ppo.rollout import Budgets, NotFiniteError, collect, prompts_of_update, targets
from rlhf.ppo.update import optimise
from rlhf.sampling import Prompt
from rlhf.tracking import Log, no_log, samples_text
from store.errors import UsageError
from store.stage import Progress, silent


@dataclass
class Run:
    """What changes beside the weights; stored as JSON. `update`: updates taken so far. `warnings`: the first time that
    each monitor passed its limit. `probe_start`: the reward model's mean score on the probe before training."""

    coefficient: float
    update: int = 0
    guard: Guard = field(default_factory=Guard)
    rows: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    warnings: dict[str, str] = field(default_factory=dict)
    probe_start: float | None = None

    @classmethod
    def of(cls, state: dict[str, Any]) -> Run:
        return cls(**{**state, "guard": Guard(**state["guard"])})


@dataclass(frozen=True)
class Result:
    """`rows`: metrics, one an update and one at the end. `samples`: responses to the same prompts over the run.
    `stopped`: why it ended early, or None. `kept`: the update whose policy the model has now (before that update).
    `warnings`: limits of monitors that were passed."""

    rows: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    stopped: str | None
    kept: int
    updates: int
    warnings: list[str]


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
    log: Log = no_log,
) -> Result:
    """Optimise `actors.policy` in place. A run that was killed goes on from the last checkpoint in `checkpoints`.

    probe: the judges' comparison of policy responses with reference responses, on `probe_prompts`; None: no probe.
    log: told each update's row, and the recorded samples as text.
    """
    if not prompts:
        raise UsageError(f"No prompt is in the splits {', '.join(config.splits)}: correct the splits or the prompts.")
    policy_optimizer, critic_optimizer = _optimizers(actors, config)
    optimizers = {"policy": policy_optimizer} | ({"critic": critic_optimizer} if critic_optimizer else {})
    store = Checkpoints(checkpoints, config.keep_checkpoints, actors.compute.world)
    run = Run(config.kl.coefficient)
    if (found := store.latest()) is not None:
        run = Run.of(store.resume_run(found, actors, optimizers))
        progress("ppo", run.update, config.updates, f"resumed at update {run.update}")
    budgets = Budgets(Budget(config.optimisation.batch_tokens), Budget(config.batch_size, "responses"))
    looker = Looker(actors, config, seed, budgets, probe, list(probe_prompts) or list(prompts))
    stopped: str | None = None
    broken = False
    while True:
        started = time.monotonic()
        chosen = prompts_of_update(prompts, run.update, config.batch_size // config.group_size, seed)
        try:
            rollouts = collect(actors, chosen, config, seed, run.update, budgets)
            goal = targets(rollouts, config, run.coefficient)
            row: dict[str, Any] = {"update": run.update, **describe(rollouts, goal, run.coefficient)}
            row |= {"learning_rate": policy_optimizer.learning_rate, **probe_metrics(None, None)}
            rollout_seconds = time.monotonic() - started
            last = run.update == config.updates
            stopped = _monitor(run, row, config, actors.compute.world.is_main)
            if stopped is None and (looker.is_due(run.update) or last):
                stopped = _milestone(run, row, looker, store, actors, config)
            run.rows.append(row)
            if stopped is not None or last:
                _tell(log, run, row)
                break
            steps = optimise(
                actors, rollouts, goal, config, policy_optimizer, critic_optimizer, budgets.tokens, seed, run.update
            )
        except NotFiniteError as failure:
            stopped, broken = f"not_finite: {failure}", True
            break
        row |= {**steps, "rollout_seconds": rollout_seconds, "seconds": time.monotonic() - started}
        _tell(log, run, row)
        if run.update >= config.critic_warmup:  # a policy that does not move says nothing about the coefficient
            controller = KLController(run.coefficient, config.kl.target, config.kl.horizon)
            controller.update(row["kl"], len(rollouts.samples))
            run.coefficient = controller.coefficient
        run.update += 1
        if config.checkpoint_every and run.update % config.checkpoint_every == 0 and run.update < config.updates:
            store.save_run(run.update, actors, optimizers, _state(run), run.guard.best_update)
        progress("ppo", run.update, config.updates, f"score {row['score']:.3f}, kl {row['kl']:.2f}")
    kept = _keep(run, store, actors, stopped, broken)
    return Result(run.rows, run.samples, stopped, kept, run.update, list(run.warnings.values()))


def _milestone(
    run: Run, row: dict[str, Any], looker: Looker, store: Checkpoints, actors: Actors, config: PPOConfig
) -> str | None:
    """Look at the policy, keep it where it is the best so far. Returns why to stop, or None."""
    look, samples = looker.look(run.update, row["score"])
    run.samples.extend(samples)
    row |= probe_metrics(look, run.probe_start)
    if look is None:
        return None
    if run.probe_start is None:
        run.probe_start = row["probe_score"]
    best, stop = run.guard.look(look, config)
    if best:
        store.save_best(run.update, actors.policy)
    return stop


def _tell(log: Log, run: Run, row: dict[str, Any]) -> None:
    shown = [sample for sample in run.samples if sample["update"] == run.update]
    log(run.update, row | ({"samples": samples_text(shown)} if shown else {}))


def _monitor(run: Run, row: dict[str, Any], config: PPOConfig, main: bool) -> str | None:
    """Add the drifting figures to `row`; say each limit passed once, and return why to stop, or None."""
    row |= drifts(row, run.rows[0] if run.rows else row)
    row["kl_budget_used"] = row["kl"] / config.kl.budget
    found, stop = passed(row, config.monitors)
    for name, sentence in found.items():
        if name not in run.warnings:
            run.warnings[name] = sentence
            if main:
                print(f"Warning, {sentence}.", file=sys.stderr)
    return run.guard.over_budget(row["kl"], run.update, config) or stop


def _keep(run: Run, store: Checkpoints, actors: Actors, stopped: str | None, broken: bool) -> int:
    """Leave the policy in its final state: the last one after a quiet end, else the last good or the best one."""
    if stopped is None and not run.guard.falling:
        return run.update
    names = [f"best-{run.guard.best_update:06d}"]
    if broken and (saved := store.latest()) is not None:
        names.insert(0, f"step-{saved:06d}")
    for name in names:
        if (weights := store.policy_at(name)) is not None:
            restore(actors.policy, weights)
            return int(name.rpartition("-")[2])
    return run.update


def _optimizers(actors: Actors, config: PPOConfig) -> tuple[Optimizer, Optimizer | None]:
    per_update = config.epochs * config.minibatches
    steps = config.updates * per_update
    parameters = list(trainable(actors.policy).values())
    if isinstance(actors.critic, SharedCritic):
        parameters += list(actors.critic.parameters())
    critic = None
    if isinstance(actors.critic, SeparateCritic):
        rate = config.value_learning_rate
        critic = Optimizer(trainable(actors.critic).values(), config.optimisation, steps, rate)
    return Optimizer(parameters, config.optimisation, steps - config.critic_warmup * per_update), critic


def _state(run: Run) -> dict[str, Any]:
    return asdict(run)
