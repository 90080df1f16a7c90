"""Prompts of many lengths, and the stage sample on them with and without shards."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa

from store.schemas import PROMPTS
from store.stage import Outcome
from store.tables import write_table

from ..rlhf.conftest import WORDS
from ..rlhf.stage_world import run

NUMBER = 40
CONFIG: dict[str, Any] = {
    "responses": 3,
    "decoding": {"max_new_tokens": 12},
    "device": {"device": "cpu", "threads": 1},
}


def prompts_file(folder: Path, number: int = NUMBER) -> Path:
    chance = random.Random(5)
    rows = [
        {
            "prompt_id": f"p{index:03d}",
            "prompt": " ".join(chance.choices(WORDS, k=1 + index % 9)),
            "group": "words",
            "split": "train",
            "reference": None,
        }
        for index in range(number)
    ]
    return write_table(folder / "prompts.parquet", PROMPTS, pa.Table.from_pylist(rows, schema=PROMPTS.schema))


def sampled(policy: Path, prompts: Path, out: Path, shards: dict[str, Any] | None = None, **config: Any) -> Outcome:
    return run("sample", out, {**CONFIG, **config, "shards": shards}, {"policy": policy, "prompts": prompts})
