"""Constraints of the constitution in the reward: a rubric program, a judge that rates, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import flows.stages.constraints as constraints
from flows.stages.constraints import open_terms
from rlhf.config import ConstraintTerm, PPOConfig
from rlhf.rewards import Responses
from rlhf.sampling import Prompt
from store.errors import TransientError, UsageError

from ..rlhf.conftest import policy_folder, reward_folder  # noqa: F401
from ..rlhf.stage_world import run, write_prompts

RUBRIC = """version: 1
lexicons:
  rude: [maybe]
rules:
  - {name: rude, kind: mentions, lexicon: rude, amount: 0.6}
"""
ABOUT = {"p0": {"group": "animal", "reference": "the dog likes the sea"}}


def rule_folder(folder: Path) -> Path:
    folder.mkdir()
    lines = [f"name: {folder.name}", "description: Forbids a word.", "backend: rubric", "mode: program"]
    (folder / "judge.yaml").write_text("\n".join([*lines, "rubric: rubric.yaml", ""]))
    (folder / "rubric.yaml").write_text(RUBRIC)
    return folder


def responses(*texts: str) -> Responses:
    count = len(texts)
    prompts = [Prompt("p0", "dog why")] * count
    return Responses(prompts, texts, torch.full((count,), 3), torch.ones(count, dtype=torch.bool))


def term(kind: str, judge: str, coefficient: float = 2.0) -> ConstraintTerm:
    return ConstraintTerm.model_validate({"kind": kind, "name": "polite", "judge": judge, "coefficient": coefficient})


def test_a_rule_takes_its_deduction_times_the_coefficient(tmp_path: Path) -> None:
    folder = rule_folder(tmp_path / "no-maybe")
    with open_terms([term("rule", "no-maybe")], [str(folder)], ABOUT, 0) as found:
        values = found["polite"](responses("yes dog", "maybe dog", "maybe maybe"))
    assert values.tolist() == pytest.approx([0.0, -1.2, -1.2])


def test_a_judge_that_rates_is_asked_once_for_equal_responses() -> None:
    with open_terms([term("judge", "tiny-rater", 1.0)], ["tiny-rater"], ABOUT, 0) as found:
        values = found["polite"](responses("A dog barks.", "praking the the", "A dog barks."))
    assert values[0] == values[2]
    assert all(-1 <= value <= 0 for value in values.tolist())
    assert len(set(values.tolist())) == 2


def test_a_batch_rated_before_a_kill_is_not_rated_again(tmp_path: Path) -> None:
    def rated(*texts: str) -> tuple[list[float], dict[str, bytes]]:
        with open_terms([term("judge", "tiny-rater")], ["tiny-rater"], ABOUT, 0, tmp_path) as found:
            values = found["polite"](responses(*texts)).tolist()
        return values, {str(path): path.read_bytes() for path in tmp_path.rglob("*.jsonl")}

    first = rated("A dog barks.", "praking the the")
    assert first[1]
    assert rated("A dog barks.", "praking the the") == first
    _, more = rated("A dog sleeps.", "praking the the")
    assert more.items() > first[1].items()


def test_what_the_judge_could_not_rate_has_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault: the judge's replies to one, then to all, cannot be read."""
    silent: set[str] = {"maybe dog"}
    real = constraints.scored

    def spoilt(judge: Any, ratings: Any) -> Any:
        table = real(judge, ratings)
        names = {constraints.short_id("p0", text) for text in silent}
        rows = table.to_pylist()
        return type(table).from_pylist(
            [{**row, "score": None if row["rollout_id"] in names else row["score"]} for row in rows],
            schema=table.schema,
        )

    monkeypatch.setattr(constraints, "scored", spoilt)
    with open_terms([term("judge", "tiny-rater")], ["tiny-rater"], ABOUT, 0) as found:
        values = found["polite"](responses("yes dog", "maybe dog"))
        assert values.isnan().tolist() == [False, True]
        silent.add("yes dog")
        with pytest.raises(TransientError, match="tiny-rater of the reward term 'polite' rated no response"):
            found["polite"](responses("yes dog", "maybe dog"))


def test_terms_without_their_judge_are_refused() -> None:
    for kind, judge, given, message in (
        ("rule", "x", [], "asks the judge 'x'; given as constraint: none"),
        ("judge", "tiny-good", ["tiny-good"], "tiny-good compares responses and cannot rate one"),
        ("rule", "tiny-rater", ["tiny-rater"], "cannot score single responses"),
    ):
        with pytest.raises(UsageError, match=message), open_terms([term(kind, judge)], given, ABOUT, 0):
            pass


def test_stage_learns_to_keep_the_rule_and_logs_it(
    policy_folder: Path,  # noqa: F811
    reward_folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    folder = rule_folder(tmp_path / "no-maybe")
    inputs = {
        "policy": policy_folder,
        "reward": reward_folder,
        "prompts": write_prompts(tmp_path),
        "constraint": [str(folder)],
    }
    config = {
        "updates": 10,
        "batch_size": 32,
        "minibatches": 2,
        "optimisation": {"learning_rate": 2e-2},
        "kl": {"coefficient": 0.0, "budget": 1000},
        "max_update_kl": None,
        "decoding": {"max_new_tokens": 6},
        "tracking": [],
        "terms": [
            {"kind": "rule", "name": "no_maybe", "judge": "no-maybe", "coefficient": 20.0},
            {"kind": "length", "budget": 4, "per_token": 0.1},
        ],
    }
    whole = run("ppo", tmp_path / "ppo", config, inputs)
    rows = pq.read_table(tmp_path / "ppo" / "updates.parquet").to_pylist()
    kept = [row["term/no_maybe"] for row in rows]
    assert kept[0] < -0.5
    assert sum(kept[-3:]) / 3 > kept[0] / 2
    assert all(row["unmeasured/no_maybe"] == 0 for row in rows)
    assert all(row["term/length"] <= 0 for row in rows)
    # The rule's content is part of the stage's key.
    (folder / "rubric.yaml").write_text(RUBRIC.replace("0.6", "0.7"))
    again = run("ppo", tmp_path / "ppo", {**config, "updates": 1}, inputs)
    assert again.manifest.inputs["constraint"] != whole.manifest.inputs["constraint"]


def test_config_of_terms() -> None:
    config = PPOConfig.model_validate({"terms": [{"kind": "length", "budget": 10}]})
    assert config.terms[0].name == "length"
