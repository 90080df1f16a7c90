"""Nothing is promoted on a mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.config import PromoteConfig
from flows.stages.promote import checks, run
from store.errors import UsageError
from store.stage import Job, Source


def evaluation(low: float, group_low: float = 0.45, kl: float = 3.0) -> dict:
    return {
        "win_rate": {"mean": 0.9, "low": low, "high": 0.95},
        "by_group": {"facts": {"mean": 0.9, "low": group_low, "high": 1.0}},
        "kl": {"mean": kl, "low": kl, "high": kl},
    }


@pytest.mark.parametrize(
    ("value", "config", "promoted"),
    [
        (evaluation(0.6), {}, True),
        (evaluation(0.5), {}, False),
        (evaluation(0.4), {}, False),
        (evaluation(0.6, group_low=0.3), {}, False),
        (evaluation(0.6, kl=9.0), {"kl_bar": 8.0}, False),
        (evaluation(0.6, kl=7.0), {"kl_bar": 8.0}, True),
    ],
)
def test_bounds_decide(value: dict, config: dict, promoted: bool) -> None:
    assert all(row["passed"] for row in checks(value, PromoteConfig(**config))) is promoted


def test_a_missing_bound_does_not_pass() -> None:
    value = evaluation(0.6)
    value["by_group"]["rare"] = {"mean": 1.0, "low": None, "high": None}
    assert [row["passed"] for row in checks(value, PromoteConfig())] == [True, True, False]


def job(tmp_path: Path, value: dict) -> Job[PromoteConfig]:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(value))
    sources = {"evaluation": [Source(str(path), "e")], "policy": [Source("/policy", "p")]}
    return Job("promote", sources, PromoteConfig(), 1, tmp_path)


def test_the_decision_gives_its_reason(tmp_path: Path) -> None:
    metrics = run(job(tmp_path, evaluation(0.6, group_low=0.3)))
    decision = json.loads((tmp_path / "decision.json").read_text())
    assert metrics["promoted"] is decision["promoted"] is False
    assert decision["reason"] == "lower bound of the win rate, group facts is 0.300, the bar is 0.4"
    assert decision["policy_sha256"] == "p"


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lacks 'win_rate'"):
        run(job(tmp_path, {"x": 1}))
