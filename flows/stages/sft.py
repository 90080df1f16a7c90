"""SFT stage: demonstrations to out/model (a Hugging Face folder) and out/curve.parquet.

Demonstrations have the columns prompt and response, or the column messages: conversations in chat format.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from flows.stages.tables import write_rows
from rlhf.config import SFTConfig
from rlhf.demonstrations import Demonstrations, encode_conversations
from rlhf.devices import choose
from rlhf.models import attach_lora, load_policy, save_model
from rlhf.sft import encode_demonstrations, require_context, train_sft
from rlhf.sharding import shard
from rlhf.tokens import Codec
from rlhf.tracking import tracking
from store.schemas import CONVERSATIONS, DEMONSTRATIONS
from store.stage import Job, Metrics
from store.tables import read_table


def run(job: Job[SFTConfig]) -> Metrics:
    config = job.config
    torch.manual_seed(job.seed)
    compute = choose(config.device)
    table = read_demonstrations(job.path("demonstrations"))
    rows = pick(table, config.max_demonstrations, job.seed)
    model, codec = load_policy(job.value("policy"), compute, trained=True)
    if config.lora is not None:
        model = attach_lora(model, config.lora, compute=compute)
    train, held_out = divide(encode(codec, rows), config.validation_fraction, job.seed)
    with tracking(config, "sft", job.out, compute.world.is_main) as log:
        curve = train_sft(
            shard(model, compute),
            train.samples,
            config,
            job.seed,
            compute,
            job.progress,
            log,
            job.out / ".checkpoints",
            train.trained,
            held_out,
        )
    save_model(job.out / "model", model, codec)
    if compute.world.is_main:
        write_rows(job.out / "curve.parquet", curve)
    tail = curve[-max(1, len(curve) // 10) :]
    return {
        "demonstrations": len(rows),
        "validation_demonstrations": len(held_out.samples) if held_out else 0,
        "validation_loss": curve[-1].get("validation_loss"),
        "steps": len(curve),
        "tokens": sum(row["tokens"] for row in curve),
        "loss_start": curve[0]["loss"],
        "loss_end": sum(row["loss"] for row in tail) / len(tail),
    }


def read_demonstrations(path: Path) -> pa.Table:
    """A table of either kind, told apart by its columns."""
    try:
        names = pq.ParquetDataset(path, partitioning=None).schema.names
    except (pa.ArrowException, OSError):
        names = []  # reading it says what is wrong
    return read_table(path, CONVERSATIONS if "messages" in names and "prompt" not in names else DEMONSTRATIONS)


def encode(codec: Codec, rows: list[dict[str, Any]]) -> Demonstrations:
    if "messages" not in rows[0]:
        return Demonstrations(encode_demonstrations(codec, [(row["prompt"], row["response"]) for row in rows]))
    found = encode_conversations(codec, [row["messages"] for row in rows])
    require_context(found.samples, codec)
    return found


def divide(demonstrations: Demonstrations, fraction: float, seed: int) -> tuple[Demonstrations, Demonstrations | None]:
    """(train, validation): at least one for training, and no validation where the fraction is 0."""
    count = len(demonstrations.samples)
    held = min(round(fraction * count), count - 1)
    if not held:
        return demonstrations, None
    out = set(random.Random(seed).sample(range(count), held))  # noqa: S311
    return (
        demonstrations.part([index for index in range(count) if index not in out]),
        demonstrations.part(sorted(out)),
    )


def pick(table: pa.Table, most: int, seed: int) -> list[dict[str, Any]]:
    """All rows, or `most` of them drawn at random."""
    rows: list[dict[str, Any]] = table.to_pylist()
    if not most or most >= len(rows):
        return rows
    chosen = sorted(random.Random(seed).sample(range(len(rows)), most))  # noqa: S311
    return [rows[index] for index in chosen]
