"""Stage reward from files to files. CHECKS, reward model: 21 (the shift), 24, 25, 30."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flows.stages.reward import read_preferences, split_by_prompt
from rlhf.devices import Compute
from rlhf.memory import Budget
from rlhf.reward_model import load_reward_model
from store.errors import UsageError
from store.schemas import GOLD, PREFERENCES
from store.tables import write_table

from ..rlhf.conftest import compute, policy_folder  # noqa: F401
from ..rlhf.stage_world import NOUNS, run, write_preferences, write_prompts

CONFIG: dict[str, Any] = {
    "epochs": 12,
    "batch_size": 7,
    "validation_fraction": 0.3,
    "optimisation": {"learning_rate": 5e-3},
}


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
    assert (metrics["gold_accuracy"]["mean"], metrics["gold_accuracy"]["n"]) == (1.0, 9)
    assert set(metrics["by_group"]) == {"thing"}
    assert set(metrics["intervals"]) == {"accuracy", "log_loss", "calibration_error", "length_slope"}
    assert metrics["intervals"]["accuracy"]["low"] < 1.0
    assert metrics["log_loss"] >= metrics["least_log_loss"] == pytest.approx(0.325, abs=1e-3)
    predictions = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert len(predictions) == 30
    assert {row["split"] for row in predictions} == {"train", "validation", "test"}
    assert sum(metrics[f"{part}_pairs"] for part in ("train", "validation", "test")) == 30
    assert all(0.5 < row["predicted"] < 1 for row in predictions if row["split"] == "test")
    assert {"step", "train_loss", "validation_log_loss"} <= set(
        pq.read_table(tmp_path / "out" / "curve.parquet").column_names
    )
    again = load_reward_model(str(tmp_path / "out" / "model"), compute)
    scores = again.score([(f"{noun} why", f"the {noun} likes the sea") for noun in NOUNS[:7]], compute, Budget(1000))
    seen = {row["prompt_id"] for row in predictions if row["split"] == "train"}
    kept = torch.tensor([f"p{index}" in seen for index in range(7)])
    assert float(scores[kept].mean()) == pytest.approx(0, abs=1e-4)
    judged = [row for row in read_preferences([inputs["preferences"]]) if row["pair_id"] in validation_of(predictions)]
    both = again.score([(row["prompt"], row[s]) for row in judged for s in ("chosen", "rejected")], compute, Budget(99))
    assert float(both.std(unbiased=False)) == pytest.approx(1, abs=1e-4)
    # What was predicted was predicted in log-odds, which the scale brings back.
    pair = judged[0]
    told = next(row["predicted"] for row in predictions if row["pair_id"] == pair["pair_id"])
    assert torch.sigmoid(again.scale * (both[0] - both[1])) == pytest.approx(told, abs=1e-5)


def validation_of(predictions: list[dict[str, Any]]) -> set[str]:
    return {row["pair_id"] for row in predictions if row["split"] == "validation"}


def test_prompts_never_straddle_the_split(tmp_path: Path) -> None:
    """Two rounds disagree about the split of p7..p9: they are held out in both."""
    first = write_preferences(tmp_path, "one.parquet")
    second = write_preferences(tmp_path, "two.parquet", test=False, flip=True)
    rows = read_preferences([first, second])
    assert len(rows) == 30
    assert all("no" in row["chosen"] for row in rows)
    again = [{**row, "pair_id": f"second-{row['pair_id']}"} for row in rows]
    parts = split_by_prompt([*read_preferences([first]), *again], 0.1, 0.4)
    prompts = [{row["prompt_id"] for row in part} for part in parts]
    assert prompts[2] == {"p7", "p8", "p9"}
    assert all(prompts)
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 10


def test_without_a_test_split_a_share_of_the_prompts_is_held_out(tmp_path: Path) -> None:
    rows = read_preferences([write_preferences(tmp_path, test=False)])
    train, validation, test = split_by_prompt(rows, 0.4, 0.3)
    prompts = [{row["prompt_id"] for row in part} for part in (train, validation, test)]
    assert all(prompts)
    assert sum(map(len, prompts)) == 10
    assert split_by_prompt(rows[::-1], 0.4, 0.3).test == test[::-1]
    assert split_by_prompt(rows, 0.0, 0.0) == (rows, [], [])
    with pytest.raises(UsageError, match="No preference is left"):
        split_by_prompt([row for row in rows if row["prompt_id"] in prompts[2]], 0.4, 0.0)


def test_early_stopping_never_sees_what_is_reported(
    policy_folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Test labels turned round change the report and nothing of the model."""
    base = {"model": policy_folder, "prompts": write_prompts(tmp_path)}
    rows = read_preferences([write_preferences(tmp_path)])
    turned = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if row["split"] == "test" else row for row in rows
    ]
    other = tmp_path / "turned.parquet"
    write_table(other, PREFERENCES, pa.Table.from_pylist(turned, schema=PREFERENCES.schema))
    one, two = (
        run("reward", tmp_path / name, CONFIG, {**base, "preferences": file})
        for name, file in (("one", tmp_path / "preferences.parquet"), ("two", other))
    )
    assert one.manifest.metrics["accuracy"] == 1 - two.manifest.metrics["accuracy"] == 1
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "one/model" / name).read_bytes() == (tmp_path / "two/model" / name).read_bytes()
    assert (tmp_path / "one/curve.parquet").read_bytes() == (tmp_path / "two/curve.parquet").read_bytes()


@pytest.mark.parametrize("kind", ["heads", "seeds"])
def test_an_ensemble_is_one_reward_model_to_everybody(
    kind: str,
    policy_folder: Path,  # noqa: F811
    compute: Compute,  # noqa: F811
    tmp_path: Path,
) -> None:
    inputs = {"model": policy_folder, "preferences": write_preferences(tmp_path), "prompts": write_prompts(tmp_path)}
    ensemble = {"members": 3, "kind": kind, "pessimism": 0.7}
    outcome = run("reward", tmp_path / "out", {**CONFIG, "epochs": 4, "ensemble": ensemble}, inputs)
    told = outcome.manifest.metrics["ensemble"]
    assert len(told["accuracy"]) == 3
    assert told["disagreement"] > 0
    folder = str(tmp_path / "out" / "model")
    model = load_reward_model(folder, compute)
    exchanges = [(f"{noun} why", f"the {noun} likes the sea") for noun in NOUNS]
    samples = [model.encode(*exchange) for exchange in exchanges]
    members = model.score_members(samples, compute, Budget(1000))
    assert members.shape == (10, 3)
    expected = members.mean(1) - 0.7 * members.std(1, unbiased=False) + model.ensemble.shift
    torch.testing.assert_close(model.score(exchanges, compute, Budget(1000)), expected)
    # Others see a plain model: the mean of the heads, or the first of the models.
    plain = load_reward_model(folder, compute, ensemble=False).score(exchanges, compute, Budget(1000))
    torch.testing.assert_close(plain, members.mean(1) if kind == "heads" else members[:, 0], atol=1e-5, rtol=0)
    from transformers import AutoModelForSequenceClassification

    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        raw = theirs(input_ids=torch.tensor([[*samples[0].prompt, *samples[0].response]])).logits
    assert raw.shape == (1, 1)
    assert float(raw[0, 0]) + model.shift == pytest.approx(float(plain[0]), abs=1e-5)


def test_scale_none_keeps_log_odds(
    policy_folder: Path,  # noqa: F811
    compute: Compute,  # noqa: F811
    tmp_path: Path,
) -> None:
    inputs = {"model": policy_folder, "preferences": write_preferences(tmp_path), "prompts": write_prompts(tmp_path)}
    short = {**CONFIG, "epochs": 2}
    before, _ = (run("reward", tmp_path / s, {**short, "scale": s}, inputs).manifest.metrics for s in ("none", "unit"))
    exchanges = [("dog why", "yes sea"), ("cat why", "no")]
    none, unit = (load_reward_model(str(tmp_path / scale / "model"), compute) for scale in ("none", "unit"))
    assert none.scale == 1
    first, second = (model.score(exchanges, compute, Budget(99)) for model in (none, unit))
    torch.testing.assert_close(first, second * unit.scale, atol=1e-5, rtol=1e-4)
    again = run("reward", tmp_path / "again", short, {**inputs, "model": tmp_path / "unit" / "model"})
    assert again.manifest.metrics["log_loss"] < before["log_loss"]  # it went on from there, in log-odds
