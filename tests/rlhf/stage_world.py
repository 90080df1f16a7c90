"""A small world for the tests of stages: tables of words, and a call of a stage as the command line makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from flows.specs import STAGES
from store.schemas import PREFERENCES, PROMPTS
from store.stage import Job, Outcome, Source, run_stage, silent
from store.tables import write_table

NOUNS = ["dog", "cat", "bird", "fish", "sea", "sky", "tree", "red", "blue", "green"]


def write_prompts(folder: Path) -> Path:
    rows = [
        {
            "prompt_id": f"p{index}",
            "prompt": f"{noun} why",
            "group": "animal" if index < 4 else "thing",
            "split": {8: "heldout", 9: "heldout_entities"}.get(index, "train"),
            "reference": f"the {noun} likes the sea",
        }
        for index, noun in enumerate(NOUNS)
    ]
    return write_table(folder / "prompts.parquet", PROMPTS, pa.Table.from_pylist(rows, schema=PROMPTS.schema))


def write_preferences(folder: Path, name: str = "preferences.parquet", test: bool = True, flip: bool = False) -> Path:
    """Three pairs a prompt; the response with "yes" is preferred (with `flip`, the other one)."""
    rows = []
    for index, noun in enumerate(NOUNS):
        for number in range(3):
            good, bad = f"yes {NOUNS[number]}", f"no {NOUNS[number]} maybe"
            rows.append(
                {
                    "pair_id": f"{index}-{number}",
                    "prompt_id": f"p{index}",
                    "prompt": f"{noun} why",
                    "chosen": bad if flip else good,
                    "rejected": good if flip else bad,
                    "p_chosen": 0.9,
                    "margin": 2.2,
                    "weight": 1.0,
                    "source": "ai",
                    "n_votes": 2,
                    "agreement": 1.0,
                    "group": "animal" if index < 4 else "thing",
                    "split": "test" if test and index >= 7 else "train",
                }
            )
    return write_table(folder / name, PREFERENCES, pa.Table.from_pylist(rows, schema=PREFERENCES.schema))


def run(
    stage: str, out: Path, config: dict[str, Any], inputs: dict[str, Any], seed: int = 3, **options: Any
) -> Outcome:
    spec = STAGES[stage]
    sources = {
        item.name: [item.source(str(value)) for value in given]
        for item in spec.inputs
        if (given := _as_list(inputs.get(item.name)))
    }
    return run_stage(
        stage, spec.load(), inputs=sources, config=spec.config.model_validate(config), seed=seed, out=out, **options
    )


def job(stage: str, out: Path, config: dict[str, Any], inputs: dict[str, Any], seed: int = 3) -> Job[Any]:
    out.mkdir(parents=True, exist_ok=True)
    sources = {name: [Source(str(v), str(v)) for v in _as_list(value)] for name, value in inputs.items()}
    return Job(stage, sources, STAGES[stage].config.model_validate(config), seed, out, silent)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
