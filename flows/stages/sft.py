"""SFT stage: demonstrations to out/model (a Hugging Face folder) and out/curve.parquet."""

from __future__ import annotations

import random

import pyarrow as pa
import torch

from flows.stages.tables import write_rows
from rlhf.config import SFTConfig
from rlhf.devices import choose
from rlhf.models import attach_lora, load_policy, save_model
from rlhf.sft import encode_demonstrations, train_sft
from store.stage import Job, Metrics
from store.tables import DEMONSTRATIONS, read_table


def run(job: Job[SFTConfig]) -> Metrics:
    config = job.config
    torch.manual_seed(job.seed)
    compute = choose(config.device)
    rows = pick(read_table(job.path("demonstrations"), DEMONSTRATIONS), config.max_demonstrations, job.seed)
    model, codec = load_policy(job.value("policy"), compute, trained=True)
    if config.lora is not None:
        model = attach_lora(model, config.lora)
    samples = encode_demonstrations(codec, rows)
    curve = train_sft(model, samples, config, job.seed, compute, job.progress)
    save_model(job.out / "model", model, codec)
    write_rows(job.out / "curve.parquet", curve)
    tail = curve[-max(1, len(curve) // 10) :]
    return {
        "demonstrations": len(rows),
        "steps": len(curve),
        "tokens": sum(row["tokens"] for row in curve),
        "loss_start": curve[0]["loss"],
        "loss_end": sum(row["loss"] for row in tail) / len(tail),
    }


def pick(table: pa.Table, most: int, seed: int) -> list[tuple[str, str]]:
    """(prompt, response) of all rows, or of `most` of them drawn at random."""
    rows = list(zip(table["prompt"].to_pylist(), table["response"].to_pylist(), strict=True))
    if not most or most >= len(rows):
        return rows
    chosen = sorted(random.Random(seed).sample(range(len(rows)), most))  # noqa: S311
    return [rows[index] for index in chosen]
