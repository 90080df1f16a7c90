"""Reward stage: preferences to out/model, out/curve.parquet and out/predictions.parquet.

Three sets of prompts: the model learns from train, stops early by validation, and is reported on test, which nothing
was chosen by. Everything is measured while rewards are log-odds; the fixed scale comes last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from flows.stages.tables import write_rows
from rlhf import reward_metrics
from rlhf.config import RewardConfig
from rlhf.devices import Compute, choose
from rlhf.memory import Budget
from rlhf.models import attach_lora, merged
from rlhf.reward_model import RewardModel, load_reward_model, save_reward_model
from rlhf.reward_scale import set_unit, set_zero
from rlhf.reward_training import Fit, Pair, differences, member_rewards_of_pairs, train_reward_model
from rlhf.sharding import consolidate, shard
from rlhf.tracking import tracking
from store.errors import UsageError
from store.schemas import GOLD, PREFERENCES, PROMPTS
from store.stage import Job, Metrics
from store.tables import read_table

Row = dict[str, Any]

TEST = "test"


class Parts(NamedTuple):
    """Rows of the preferences, whole prompts in each part."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]


def run(job: Job[RewardConfig]) -> Metrics:
    config = job.config
    compute = choose(config.device)
    parts = split_by_prompt(
        read_preferences([Path(value) for value in job.values("preferences")]),
        config.test_fraction,
        config.validation_fraction,
    )
    references = read_table(job.path("prompts"), PROMPTS).select(["prompt", "reference"]).to_pylist()
    reward_model, fits = train(job, parts, compute)
    budget = Budget(config.optimisation.batch_tokens)
    set_zero(reward_model, anchors(references, parts.train), compute, budget)
    by_part = {name: encode(reward_model, rows) for name, rows in parts._asdict().items()}
    gaps = {name: differences(reward_model, pairs, compute, budget) for name, pairs in by_part.items()}
    measured = next(name for name in ("test", "validation", "train") if by_part[name])
    rows = getattr(parts, measured)
    metrics = {
        **quality(rows, by_part[measured], gaps[measured]),
        "measured_on": measured,
        "gold_accuracy": gold_accuracy(job, reward_model, compute, budget),
        **{f"{name}_pairs": len(pairs) for name, pairs in by_part.items()},
        "steps": sum(fit.steps for fit in fits),
        "best_step": fits[0].best_step,
        "ensemble": members_apart(reward_model, by_part[measured], compute, budget),
    }
    if config.scale == "unit":
        set_unit(reward_model, both_sides(parts.validation or parts.train), compute, budget)
    save_reward_model(job.out / "model", reward_model)
    if compute.world.is_main:
        write_rows(job.out / "curve.parquet", curves(fits))
        write_rows(job.out / "predictions.parquet", predictions(parts, gaps))
    return {**metrics, "reward_shift": reward_model.shift, "reward_scale": reward_model.scale}


def train(job: Job[RewardConfig], parts: Parts, compute: Compute) -> tuple[RewardModel, list[Fit]]:
    """The trained model, or the ensemble: one model with several heads, or several models."""
    ensemble = job.config.ensemble
    kind, members = (ensemble.kind, ensemble.members) if ensemble is not None else ("heads", 1)
    if kind == "heads":
        reward_model, fit = train_one(job, parts, compute, job.seed, members)
        fits = [fit]
    else:
        trained = [train_one(job, parts, compute, job.seed + number, 1) for number in range(members)]
        reward_model, fits = trained[0][0], [fit for _, fit in trained]
        reward_model.ensemble.others = [model for model, _ in trained[1:]]
    reward_model.ensemble.pessimism = ensemble.pessimism if ensemble is not None else 0.0
    return reward_model, fits


def train_one(job: Job[RewardConfig], parts: Parts, compute: Compute, seed: int, heads: int) -> tuple[RewardModel, Fit]:
    config = job.config
    torch.manual_seed(seed)
    reward_model = load_reward_model(
        job.value("model"), compute, trained=True, max_length=config.max_length, heads=heads, ensemble=False
    )
    reward_model.rescale(reward_model.scale)  # of an earlier training: the loss is one of log-odds
    if config.lora is not None:
        reward_model.model = attach_lora(reward_model.model, config.lora, "SEQ_CLS", compute)
    shard(reward_model.model, compute)
    train_pairs, validation = encode(reward_model, parts.train), encode(reward_model, parts.validation)
    # Of several models only the first is tracked: the others would write over its steps.
    with tracking(config, "reward", job.out, compute.world.is_main and seed == job.seed) as log:
        fit = train_reward_model(
            reward_model,
            train_pairs,
            validation,
            config,
            seed,
            compute,
            job.progress,
            log,
            job.out / ".checkpoints" / str(seed),
        )
    consolidate(reward_model.model, everywhere=True)
    reward_model.model = merged(reward_model.model)
    return reward_model, fit


def read_preferences(paths: Sequence[Path]) -> list[Row]:
    """The rows of one or several preference tables. A pair that occurs in several counts as its last table has it."""
    rows = {row["pair_id"]: row for path in paths for row in read_table(path, PREFERENCES).to_pylist()}
    return list(rows.values())


def split_by_prompt(rows: Sequence[Row], test_fraction: float, validation_fraction: float) -> Parts:
    """Test are the prompts of split `test`; where no row has it, `test_fraction` of the prompts. Validation are
    `validation_fraction` of the others.

    A prompt that any row puts in the test split is out of training in all rows: tables of several rounds may disagree.
    The draws go by the prompt's hash, so that a prompt stays where it is whatever else is in the table. Raises
    UsageError where nothing is left for training.
    """
    test = {row["prompt_id"] for row in rows if row["split"] == TEST}
    if not test:
        test = {row["prompt_id"] for row in rows if _uniform("test", row["prompt_id"]) < test_fraction}
    others = [row for row in rows if row["prompt_id"] not in test]
    validation = {row["prompt_id"] for row in others if _uniform("validation", row["prompt_id"]) < validation_fraction}
    parts = Parts(
        [row for row in others if row["prompt_id"] not in validation],
        [row for row in others if row["prompt_id"] in validation],
        [row for row in rows if row["prompt_id"] in test],
    )
    if not parts.train:
        raise UsageError(
            "No preference is left for training: all prompts are in the test or the validation split. Give more "
            "preferences."
        )
    return parts


def _uniform(purpose: str, key: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{purpose}/{key}".encode()).digest()[:8]) / 2**64


def encode(reward_model: RewardModel, rows: Sequence[Row]) -> list[Pair]:
    return [
        Pair(
            reward_model.encode(row["prompt"], row["chosen"]),
            reward_model.encode(row["prompt"], row["rejected"]),
            row["p_chosen"],
            row["weight"],
            row["margin"],
        )
        for row in rows
    ]


def anchors(references: Sequence[Row], train_rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What scores 0 in the mean: the expert references of training prompts, or the responses trained on without any."""
    known = {row["prompt"] for row in train_rows}
    found = [(row["prompt"], row["reference"]) for row in references if row["reference"] and row["prompt"] in known]
    return found or both_sides(train_rows)


def both_sides(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]


def quality(rows: Sequence[Row], pairs: Sequence[Pair], gap: torch.Tensor) -> Metrics:
    """How well reward differences `gap` [n] agree with the labels of `rows`; `intervals` at 95 %, by prompt."""
    labels = torch.tensor([row["p_chosen"] for row in rows], dtype=torch.float64)
    lengths = torch.tensor([len(pair.chosen.response) - len(pair.rejected.response) for pair in pairs])
    groups, prompts = [row["group"] for row in rows], [row["prompt_id"] for row in rows]
    intervals = {
        "accuracy": reward_metrics.accuracy(gap, labels, prompts),
        "log_loss": reward_metrics.log_loss_interval(gap, labels, prompts),
        "calibration_error": reward_metrics.calibration_error(gap, labels, clusters=prompts),
        "length_slope": reward_metrics.length_slope_interval(gap, lengths, prompts),
    }
    return {
        **{name: value["mean"] for name, value in intervals.items()},
        "n": intervals["accuracy"]["n"],
        "intervals": intervals,
        "least_log_loss": reward_metrics.log_loss(torch.logit(labels, 1e-12), labels),
        "by_group": reward_metrics.accuracy_by_group(gap, labels, groups, prompts),
        "calibration": reward_metrics.calibration_curve(gap, labels, clusters=prompts),
    }


def members_apart(
    reward_model: RewardModel, pairs: Sequence[Pair], compute: Compute, budget: Budget
) -> dict[str, Any] | None:
    """Each member's accuracy, and how much the members differ; None where there is one only.

    `disagreement`: standard deviation over the members of a reward, in log-odds, averaged over the responses.
    """
    members = member_rewards_of_pairs(reward_model, pairs, compute, budget)
    if members.shape[2] == 1:
        return None
    gaps = members[:, 0] - members[:, 1]
    labels = torch.tensor([pair.p_chosen for pair in pairs], dtype=torch.float64)
    return {
        "accuracy": [reward_metrics.accuracy(gap, labels)["mean"] for gap in gaps.T],
        "disagreement": float(members.std(2, unbiased=False).mean()),
        "pessimism": reward_model.ensemble.pessimism,
    }


def gold_accuracy(
    job: Job[RewardConfig], reward_model: RewardModel, compute: Compute, budget: Budget
) -> dict[str, Any] | None:
    """Accuracy on pairs with known winners. Ties among them have no right answer and are left out."""
    if not job.given("calibration"):
        return None
    table: pa.Table = read_table(job.path("calibration"), GOLD)
    rows = [row for row in table.to_pylist() if row["winner"] in ("a", "b")]
    scores = reward_model.score(
        [(row["prompt"], row[f"response_{side}"]) for row in rows for side in ("a", "b")], compute, budget
    ).view(-1, 2)
    sign = torch.tensor([1.0 if row["winner"] == "a" else -1.0 for row in rows])
    return reward_metrics.accuracy(sign * (scores[:, 0] - scores[:, 1]), clusters=[row["prompt_id"] for row in rows])


def curves(fits: Sequence[Fit]) -> list[Row]:
    """The rows of all members' trainings, with the column `member` where there are several."""
    if len(fits) == 1:
        return fits[0].curve
    return [{"member": number, **row} for number, fit in enumerate(fits) for row in fit.curve]


def predictions(parts: Parts, gaps: dict[str, torch.Tensor]) -> list[Row]:
    """`predicted`: the reward model's probability that the chosen response is the better one. `split`: train,
    validation or test, as this stage used the pair."""
    return [
        {name: row[name] for name in ("pair_id", "prompt_id", "p_chosen", "group")}
        | {"split": split, "predicted": value}
        for split in ("test", "validation", "train")
        for row, value in zip(getattr(parts, split), torch.sigmoid(gaps[split].double()).tolist(), strict=True)
    ]
