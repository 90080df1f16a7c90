"""Reward stage: preferences to out/model, out/curve.parquet and out/predictions.parquet."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from flows.stages.tables import write_rows
from rlhf import reward_metrics
from rlhf.config import RewardConfig
from rlhf.devices import Compute, choose
from rlhf.memory import Budget
from rlhf.models import attach_lora, save_model
from rlhf.reward_model import RewardModel, load_reward_model
from rlhf.reward_training import Pair, differences, train_reward_model
from store.errors import UsageError
from store.stage import Job, Metrics
from store.tables import GOLD, PREFERENCES, PROMPTS, read_table

HELD_OUT = "test"


def run(job: Job[RewardConfig]) -> Metrics:
    config = job.config
    torch.manual_seed(job.seed)
    compute = choose(config.device)
    rows = read_preferences([Path(value) for value in job.values("preferences")])
    train_rows, test_rows = split_by_prompt(rows, config.validation_fraction)
    references = read_table(job.path("prompts"), PROMPTS).select(["prompt", "split", "reference"]).to_pylist()
    reward_model = load_reward_model(job.value("model"), compute, trained=True, max_length=config.max_length)
    if config.lora is not None:
        reward_model.model = attach_lora(reward_model.model, config.lora, "SEQ_CLS")
    train, test = encode(reward_model, train_rows), encode(reward_model, test_rows)
    fit = train_reward_model(reward_model, train, test, config, job.seed, compute, job.progress)
    budget = Budget(config.optimisation.batch_tokens)
    anchor(reward_model, references, train_rows, compute, budget)
    gap = differences(reward_model, [*test, *train], compute, budget)
    gold = gold_accuracy(job, reward_model, compute, budget)
    save_model(job.out / "model", reward_model.model, reward_model.codec)
    write_rows(job.out / "curve.parquet", fit.curve)
    write_rows(job.out / "predictions.parquet", predictions([*test_rows, *train_rows], gap))
    scored = test_rows or train_rows
    return {
        **quality(scored, test or train, gap[: len(scored)]),
        "measured_on": HELD_OUT if test_rows else "train",
        "gold_accuracy": gold,
        "train_pairs": len(train),
        "steps": fit.steps,
        "best_step": fit.best_step,
        "reward_shift": reward_model.shift,
    }


def read_preferences(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The rows of one or several preference tables. A pair that occurs in several counts as its last table has it."""
    rows = {row["pair_id"]: row for path in paths for row in read_table(path, PREFERENCES).to_pylist()}
    return list(rows.values())


def split_by_prompt(
    rows: Sequence[dict[str, Any]], fraction: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(train, held out). Held out are the prompts of split `test`; where no row has it, a `fraction` of the prompts.

    A prompt that any row puts in the test split is out of training in all rows: tables of several rounds may disagree.
    """
    held = {row["prompt_id"] for row in rows if row["split"] == HELD_OUT}
    if not held:
        held = {row["prompt_id"] for row in rows if _uniform(row["prompt_id"]) < fraction}
    train = [row for row in rows if row["prompt_id"] not in held]
    test = [row for row in rows if row["prompt_id"] in held]
    if not train:
        raise UsageError(
            "No preference is left for training: all prompts are in the test split. Give more preferences."
        )
    return train, test


def _uniform(key: str) -> float:
    return int.from_bytes(hashlib.sha256(f"validation/{key}".encode()).digest()[:8]) / 2**64


def encode(reward_model: RewardModel, rows: Sequence[dict[str, Any]]) -> list[Pair]:
    return [
        Pair(
            reward_model.encode(row["prompt"], row["chosen"]),
            reward_model.encode(row["prompt"], row["rejected"]),
            row["p_chosen"],
            row["weight"],
        )
        for row in rows
    ]


def anchor(
    reward_model: RewardModel,
    references: Sequence[dict[str, Any]],
    train_rows: Sequence[dict[str, Any]],
    compute: Compute,
    budget: Budget,
) -> None:
    """Shift the reward so that the expert references of training prompts score 0 in the mean.

    Without references the responses that it was trained on take their place.
    """
    known = {row["prompt"] for row in train_rows}
    exchanges = [(row["prompt"], row["reference"]) for row in references if row["reference"] and row["prompt"] in known]
    if not exchanges:
        exchanges = [(row["prompt"], row[side]) for row in train_rows for side in ("chosen", "rejected")]
    reward_model.shift = 0.0
    reward_model.shift = -float(reward_model.score(exchanges, compute, budget).double().mean())


def quality(rows: Sequence[dict[str, Any]], pairs: Sequence[Pair], gap: torch.Tensor) -> Metrics:
    """How well reward differences `gap` [n] agree with the labels of `rows`."""
    labels = torch.tensor([row["p_chosen"] for row in rows], dtype=torch.float64)
    lengths = torch.tensor([len(pair.chosen.response) - len(pair.rejected.response) for pair in pairs])
    whole = reward_metrics.accuracy(gap, labels)
    return {
        "accuracy": whole["mean"],
        "n": whole["n"],
        "log_loss": reward_metrics.log_loss(gap, labels),
        "by_group": reward_metrics.accuracy_by_group(gap, labels, [row["group"] for row in rows]),
        "calibration": reward_metrics.calibration_curve(gap, labels),
        "length_slope": reward_metrics.length_slope(gap, lengths),
    }


def gold_accuracy(
    job: Job[RewardConfig], reward_model: RewardModel, compute: Compute, budget: Budget
) -> dict[str, Any] | None:
    """Accuracy on pairs with known winners: {"mean", "n"}. Ties among them have no right answer and are left out."""
    if not job.given("calibration"):
        return None
    table: pa.Table = read_table(job.path("calibration"), GOLD)
    rows = [row for row in table.to_pylist() if row["winner"] in ("a", "b")]
    scores = reward_model.score(
        [(row["prompt"], row[f"response_{side}"]) for row in rows for side in ("a", "b")], compute, budget
    ).view(-1, 2)
    sign = torch.tensor([1.0 if row["winner"] == "a" else -1.0 for row in rows])
    return reward_metrics.accuracy(sign * (scores[:, 0] - scores[:, 1]))


def predictions(rows: Sequence[dict[str, Any]], gap: torch.Tensor) -> list[dict[str, Any]]:
    """`predicted`: the reward model's probability that the chosen response is the better one."""
    predicted = torch.sigmoid(gap.double()).tolist()
    return [
        {name: row[name] for name in ("pair_id", "p_chosen", "group", "split")} | {"predicted": value}
        for row, value in zip(rows, predicted, strict=True)
    ]
