"""Stage reward from files to files. CHECKS, reward model: 21 (the shift), 24, 25, 30."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.stages.reward import read_preferences, split_by_prompt
from rlhf.devices import Compute
from rlhf.memory import Budget
from rlhf.reward_model import load_reward_model
from store.tables import GOLD, write_table

from ..rlhf.conftest import compute, policy_folder  # noqa: F401
from ..rlhf.stage_world import NOUNS, run, write_preferences, write_prompts

CONFIG: dict[str, Any] = {"epochs": 12, "batch_size": 7, "optimisation": {"learning_rate": 5e-3}}


def write_gold(folder: Path) -> Path:
    rows = [
        {
            "pair_id": f"g{index}",
            "prompt_id": f"c{index}",
            "prompt": f"{noun} why",
            "rollout_a": f"a{index}",
            "rollout_b": f"b{index}",
            "response_a": "yes dog" if index % 2 else "no dog maybe",
            "response_b": "no dog maybe" if index % 2 else "yes dog",
            "group": "animal",
            "split": "calibration",
            "reference": None,
            "winner": "tie" if index == 9 else "a" if index % 2 else "b",
        }
        for index, noun in enumerate(NOUNS)
    ]
    return write_table(folder / "gold.parquet", GOLD, pa.Table.from_pylist(rows, schema=GOLD.schema))


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_it_learns_and_its_folder_is_the_whole_model(
    policy_folder: Path,  # noqa: F811
    compute: Compute,  # noqa: F811
    tmp_path: Path,
    lora: dict[str, int] | None,
) -> None:
    inputs = {
        "model": policy_folder,
        "preferences": write_preferences(tmp_path),
        "prompts": write_prompts(tmp_path),
        "calibration": write_gold(tmp_path),
    }
    outcome = run("reward", tmp_path / "out", {**CONFIG, "lora": lora}, inputs)
    metrics = outcome.manifest.metrics
    assert metrics["accuracy"] == 1.0
    assert metrics["n"] == 9
    assert metrics["measured_on"] == "test"
    assert metrics["gold_accuracy"] == {"mean": 1.0, "n": 9}
    assert set(metrics["by_group"]) == {"thing"}
    predictions = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert len(predictions) == 30
    assert {row["split"] for row in predictions} == {"train", "test"}
    assert all(0.5 < row["predicted"] < 1 for row in predictions if row["split"] == "test")
    assert {"step", "train_loss", "validation_log_loss"} <= set(
        pq.read_table(tmp_path / "out" / "curve.parquet").column_names
    )
    again = load_reward_model(str(tmp_path / "out" / "model"), compute)
    scores = again.score([(f"{noun} why", f"the {noun} likes the sea") for noun in NOUNS[:7]], compute, Budget(1000))
    assert float(scores.mean()) == pytest.approx(0, abs=1e-4)


def test_prompts_never_straddle_the_split(tmp_path: Path) -> None:
    """Two rounds disagree about the split of p7..p9: they are held out in both."""
    first = write_preferences(tmp_path, "one.parquet")
    second = write_preferences(tmp_path, "two.parquet", test=False, flip=True)
    rows = read_preferences([first, second])
    assert len(rows) == 30
    assert all("no" in row["chosen"] for row in rows)
    again = [{**row, "pair_id": f"second-{row['pair_id']}"} for row in rows]
    train, test = split_by_prompt([*read_preferences([first]), *again], 0.1)
    assert {row["prompt_id"] for row in test} == {"p7", "p8", "p9"}
    assert not {row["prompt_id"] for row in train} & {row["prompt_id"] for row in test}


def test_without_a_test_split_a_share_of_the_prompts_is_held_out(tmp_path: Path) -> None:
    rows = read_preferences([write_preferences(tmp_path, test=False)])
    train, test = split_by_prompt(rows, 0.4)
    assert 0 < len({row["prompt_id"] for row in test}) < 10
    assert not {row["prompt_id"] for row in train} & {row["prompt_id"] for row in test}
    assert split_by_prompt(rows[::-1], 0.4)[1] == test[::-1]
    assert split_by_prompt(rows, 0.0)[1] == []
