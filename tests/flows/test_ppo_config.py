"""What a round's config says about PPO's judges: the probe's, and those of its constraint terms."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.load import load_round
from flows.plan import plan_round
from flows.workspace import Workspace
from store.errors import UsageError

TERM = "ppo.terms=[{kind: judge, name: rated, judge: tiny-rater}]"


def inputs_of_ppo(folder: Path, *settings: str) -> dict[str, list[str]]:
    round_ = Workspace.create(folder).begin_round(load_round("demo", settings))
    return dict(next(step for step in plan_round(round_) if step.stage == "ppo").inputs)


def test_the_judges_watch_unless_others_are_named(tmp_path: Path) -> None:
    plain = inputs_of_ppo(tmp_path / "a")
    assert plain["judge"] == ["tiny-good", "tiny-middling", "tiny-biased"]
    assert not plain["constraint"]
    named = inputs_of_ppo(tmp_path / "b", "probe_judges=[tiny-evaluator]", "constraints=[tiny-rater]", TERM)
    assert named["judge"] == ["tiny-evaluator"]
    assert named["constraint"] == ["tiny-rater"]


def test_a_term_without_its_judge_is_refused_before_the_round() -> None:
    with pytest.raises(
        UsageError, match=r"'rated' of ppo\.terms asks the judge 'tiny-rater', which constraints does not"
    ):
        load_round("demo", [TERM])
    with pytest.raises(UsageError, match="nobody"):
        load_round("demo", ["probe_judges=[nobody]"])
