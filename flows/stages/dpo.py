"""DPO stage: preferences to out/policy and out/curve.parquet, a baseline for PPO on the same table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from flows.stages.reward import read_preferences, split_by_prompt
from flows.stages.tables import write_rows
from rlhf.config import DPOConfig
from rlhf.devices import choose
from rlhf.dpo import Pair, train_dpo, with_reference
from rlhf.memory import Budget
from rlhf.models import attach_lora, load_policy, save_model
from rlhf.sequences import Sample
from rlhf.sft import require_context
from rlhf.sharding import shard
from rlhf.tokens import Codec
from rlhf.tracking import tracking
from store.stage import Job, Metrics


def run(job: Job[DPOConfig]) -> Metrics:
    config = job.config
    torch.manual_seed(job.seed)
    compute = choose(config.device)
    rows = read_preferences([Path(value) for value in job.values("preferences")])
    parts = split_by_prompt(rows, config.validation_fraction, 0.0)
    model, codec = load_policy(job.value("policy"), compute, trained=True)
    if config.lora is not None:
        model = attach_lora(model, config.lora, compute=compute)
    model = shard(model, compute)
    budget = Budget(config.optimisation.batch_tokens)
    train = with_reference(model, encode(codec, parts.train), compute, budget)
    test = with_reference(model, encode(codec, parts.test), compute, budget)
    with tracking(config, "dpo", job.out, compute.world.is_main) as log:
        curve = train_dpo(model, train, test, config, job.seed, compute, job.progress, log, job.out / ".checkpoints")
    save_model(job.out / "policy", model, codec)
    if compute.world.is_main:
        write_rows(job.out / "curve.parquet", curve)
    last = curve[-1]
    return {
        "steps": len(curve),
        "train_pairs": len(train),
        "test_pairs": len(test),
        "loss_start": curve[0]["loss"],
        "loss_end": last["loss"],
        "log_loss": last["validation_log_loss"],
        "accuracy": last["validation_accuracy"],
    }


def encode(codec: Codec, rows: Sequence[dict[str, Any]]) -> list[Pair]:
    """Raises UsageError where a prompt with its response passes the context, or there is no end token."""
    codec.require_end()
    pairs = []
    for row in rows:
        prompt = codec.prompt_ids(row["prompt"])
        chosen, rejected = (Sample(prompt, codec.response_ids(row[side])) for side in ("chosen", "rejected"))
        pairs.append(Pair(chosen, rejected, row["p_chosen"], row["weight"]))
    require_context([sample for pair in pairs for sample in (pair.chosen, pair.rejected)], codec)
    return pairs
