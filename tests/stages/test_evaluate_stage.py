"""Stage evaluate from files to files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.devices import Compute
from rlhf.models import load_policy, save_model
from store.errors import UsageError
from store.schemas import RESPONSES, VOTES
from store.tables import read_table

from ..rlhf.conftest import WORDS, compute, make_tokenizer, policy_folder, reward_folder  # noqa: F401
from ..rlhf.stage_world import run, write_prompts

CONFIG: dict[str, Any] = {
    "splits": ["heldout", "heldout_entities"],
    "responses": 3,
    "decoding": {"max_new_tokens": 6},
}


@pytest.fixture
def other(policy_folder: Path, compute: Compute, tmp_path: Path) -> Path:  # noqa: F811
    """A policy near the reference."""
    torch.manual_seed(1)
    model, codec = load_policy(str(policy_folder), compute)
    for value in model.parameters():
        value.add_(0.05 * torch.randn_like(value))
    return save_model(tmp_path / "other", model, codec)


def test_figures_follow_from_the_table(
    policy_folder: Path,  # noqa: F811
    reward_folder: Path,  # noqa: F811
    other: Path,
    tmp_path: Path,
) -> None:
    inputs = {
        "policy": other,
        "reference": policy_folder,
        "reward": reward_folder,
        "prompts": write_prompts(tmp_path),
        "judge": ["tiny-oracle"],
        "oracle": "tiny-oracle",
    }
    outcome = run("evaluate", tmp_path / "out", CONFIG, inputs)
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    rows = read_table(tmp_path / "out" / "responses.parquet", RESPONSES).to_pylist()
    prompts = sorted({row["prompt_id"] for row in rows})
    assert prompts == ["p8", "p9"]
    assert len(rows) == 2 * 2 * 3
    assert all(0 < row["probability"] <= 1 for row in rows)
    for column, name in (("oracle", "expected_reward"), ("reward", "reward_model")):
        for side in ("policy", "reference"):
            means = [sum(r[column] for r in rows if r["prompt_id"] == p and r["policy"] == side) / 3 for p in prompts]
            assert evaluation[name][side]["mean"] == pytest.approx(sum(means) / 2)
    ours = [row for row in rows if row["policy"] == "policy"]
    theirs = {(r["prompt_id"], r["sample"]): r for r in rows if r["policy"] == "reference"}
    for row in ours:
        opponent = theirs[row["prompt_id"], row["sample"]]
        assert row["win_probability"] + opponent["win_probability"] == pytest.approx(1)
        if row["response"] == opponent["response"]:
            assert row["win_probability"] == 0.5
    assert evaluation["win_rate"]["mean"] == pytest.approx(sum(row["win_probability"] for row in ours) / len(ours))
    assert evaluation["win_rate"]["n"] == 2
    assert set(evaluation["by_split"]) == {"heldout", "heldout_entities"}
    assert set(evaluation["by_group"]) == {"thing"}
    assert evaluation["kl"]["mean"] != 0
    assert set(evaluation["pairs"]) == {"total", "identical", "undecided"}
    votes = read_table(tmp_path / "out" / "votes.parquet", VOTES, allow_empty=True)
    judged = evaluation["pairs"]["total"] - evaluation["pairs"]["identical"]
    assert votes.num_rows == evaluation["votes"]["attempted"] == 2 * judged
    assert outcome.manifest.metrics["win_rate"] == evaluation["win_rate"]


def test_a_policy_against_itself(policy_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    inputs = {
        "policy": policy_folder,
        "reference": policy_folder,
        "prompts": write_prompts(tmp_path),
        "judge": ["tiny-oracle"],
    }
    run("evaluate", tmp_path / "out", CONFIG, inputs)
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert evaluation["kl"]["mean"] == pytest.approx(0, abs=1e-4)
    assert evaluation["expected_reward"] is None
    assert evaluation["reward_model"] is None
    rows = read_table(tmp_path / "out" / "responses.parquet", RESPONSES).to_pylist()
    assert all(math.isfinite(row["probability"]) and row["oracle"] is None for row in rows)


def test_no_kl_between_models_of_different_tokenizers(policy_folder: Path, other: Path, tmp_path: Path) -> None:  # noqa: F811
    make_tokenizer(words=WORDS[::-1]).save_pretrained(other)
    inputs = {
        "policy": other,
        "reference": policy_folder,
        "prompts": write_prompts(tmp_path),
        "judge": ["tiny-oracle"],
    }
    run("evaluate", tmp_path / "out", CONFIG, inputs)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["kl"] is None


def test_a_missing_split_is_one_sentence(policy_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    inputs = {
        "policy": policy_folder,
        "reference": policy_folder,
        "prompts": write_prompts(tmp_path),
        "judge": ["tiny-oracle"],
    }
    with pytest.raises(UsageError, match="no prompts in the split 'held'"):
        run("evaluate", tmp_path / "out", {"splits": ["held"]}, inputs)
