"""Guardrails within the PPO loop: the KL budget, the judges' probe, the monitors. Their decisions: test_guard.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlhf.models import snapshot
from rlhf.ppo.actors import Actors
from rlhf.ppo.checkpoint import Checkpoints
from rlhf.ppo.guard import ProbeItem
from rlhf.ppo.report import describe
from rlhf.ppo.rollout import collect, targets
from rlhf.ppo.trainer import train
from tests.rlhf.ppo_world import PROMPTS, budgets, config_of, count_dogs


def test_kl_budget_stops_and_keeps_the_best(make_actors: Callable[..., Actors], tmp_path: Path) -> None:
    config = config_of(
        updates=30, checkpoint_every=1, kl={"coefficient": 0, "budget": 0.5}, optimisation={"learning_rate": 3e-2}
    )
    actors = make_actors(config, count_dogs)
    result = train(actors, PROMPTS, config, 0, tmp_path / "c")
    assert result.stopped is not None
    assert result.stopped.startswith("kl_budget")
    assert "the budget is 0.5" in result.stopped
    assert result.kept < result.updates
    kept = next(row for row in result.rows if row["update"] == result.kept)
    assert kept["kl"] <= 0.5
    again = collect(actors, PROMPTS[:8], config, 0, result.kept, budgets())
    assert float(describe(again, targets(again, config, 0.0), 0.0)["kl"]) < 5


def test_probe_stops_over_optimisation_and_rolls_back(make_actors: Callable[..., Actors], tmp_path: Path) -> None:
    """The judges like the policy of update 2 and less each time after that, while the score rises."""
    verdicts = iter([0.8, 0.55, 0.3, 0.2])
    asked: list[Sequence[ProbeItem]] = []
    scores = iter(range(1000))

    def probe(items: Sequence[ProbeItem]) -> list[float | None]:
        asked.append(items)
        mean = next(verdicts)
        return [mean + 0.01 * (index * len(asked) % 3 - 1) for index in range(len(items))]

    def rising(exchanges: Sequence[tuple[str, str]]) -> Tensor:
        return torch.full((len(exchanges),), float(next(scores))) + torch.rand(len(exchanges)) / 10

    config = config_of(updates=20, probe={"every": 2, "prompts": 10, "patience": 2}, checkpoint_every=1)
    actors = make_actors(config, rising)
    result = train(actors, PROMPTS, config, 0, tmp_path / "c", probe=probe)
    assert result.stopped is not None
    assert result.stopped.startswith("over_optimised: since update 2 the judges' win rate fell by 0.5")
    assert result.kept == 2
    assert result.updates == 6
    assert [row["probe_win_rate"] for row in result.rows] == pytest.approx(
        [0.5, None, 0.8, None, 0.55, None, 0.3], abs=0.011
    )
    assert result.rows[4]["judge_gain"] == pytest.approx(0.05, abs=0.011)
    assert result.rows[4]["reward_gain"] > result.rows[2]["reward_gain"] > 0
    assert all(len(items) == 10 for items in asked)
    assert [item.reference_response for item in asked[0]] == [item.reference_response for item in asked[2]]
    best = Checkpoints(tmp_path / "c").policy_at("best-000002")
    assert best is not None
    assert all(torch.equal(value, best[name]) for name, value in snapshot(actors.policy).items())


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_monitors_warn_once_or_stop(
    make_actors: Callable[..., Actors], tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    config = config_of(updates=3, monitors={"kl_budget_used": {"at": 1e-9, "action": action}})
    result = train(make_actors(config, count_dogs), PROMPTS, config, 0, tmp_path / "c")
    # Before the first update policy and reference are one model.
    assert result.rows[0]["kl_budget_used"] == pytest.approx(0, abs=1e-9)
    assert result.rows[0]["length_drift"] == result.rows[0]["perplexity_drift"] == 1
    assert len(result.warnings) == 1
    assert result.warnings[0].startswith("kl_budget_used: ")
    assert capsys.readouterr().err.count("Warning, kl_budget_used") == 1
    if action == "stop":
        assert result.stopped == result.warnings[0]
        assert len(result.rows) <= 3
        assert result.kept == 0
    else:
        assert result.stopped is None
