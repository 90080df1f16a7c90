"""The preferences file as other people's tools read it: Hugging Face's datasets, and TRL's trainers on a tiny model.

The file is the stage's own output, and nothing is renamed, cast or dropped on the way.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flows.stages.aggregate import run
from judges.config import AggregateConfig
from store.resources import DATASETS
from store.schemas import PAIRS, PREFERENCES, VOTES
from store.stage import Source, run_stage
from store.tables import write_table
from tests.judges.votes_builder import pairs_table, vote, votes_table

pytestmark = [
    pytest.mark.trl,
    pytest.mark.skipif(
        find_spec("trl") is None, reason="TRL is not installed here: make test-trl makes an environment of its own"
    ),
]

BASE = DATASETS / "tiny" / "models" / "base"
NAMES = [f"p{number}" for number in range(24)]


@pytest.fixture(scope="module", params=[0, 10], ids=["one file", "part files"])
def preferences(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aggregate")
    texts = {name: (f"The capital is Paris {name}.", f"I do not know about {name}") for name in NAMES}
    rows = [vote(name, "judge", order, 0.6 + 0.01 * at) for at, name in enumerate(NAMES) for order in ("ab", "ba")]
    write_table(folder / "votes.parquet", VOTES, votes_table(*rows))
    write_table(folder / "pairs.parquet", PAIRS, pairs_table(*NAMES, **texts))
    inputs = {name: [Source(str(folder / f"{name}.parquet"), name)] for name in ("votes", "pairs")}
    config = AggregateConfig(method="mean", part_rows=request.param, validation_fraction=0.2)
    run_stage("aggregate", run, inputs=inputs, config=config, seed=0, out=folder / "out")
    return folder / "out" / "preferences.parquet"


@pytest.fixture
def dataset(preferences: Path) -> Any:
    from datasets import load_dataset

    files = sorted(map(str, preferences.glob("*.parquet"))) if preferences.is_dir() else str(preferences)
    cache = preferences.parent.parent / "cache"
    return load_dataset("parquet", data_files=files, split="train", cache_dir=str(cache))


def test_datasets_reads_it_as_it_is(dataset: Any) -> None:
    assert dataset.column_names == PREFERENCES.schema.names
    assert dataset.num_rows == len(NAMES)
    assert {dataset.features[name].dtype for name in ("prompt", "chosen", "rejected")} == {"string"}
    by_id = {row["pair_id"]: row for row in dataset}
    assert by_id["p7"]["chosen"] == "The capital is Paris p7."
    assert by_id["p7"]["p_chosen"] == pytest.approx(0.67)
    splits = {name: dataset.filter(lambda row, name=name: row["split"] == name) for name in ("train", "test")}
    assert not set(splits["train"]["prompt_id"]) & set(splits["test"]["prompt_id"])
    assert all(part.num_rows for part in splits.values())


def test_a_folder_of_part_files_is_read_by_its_name(preferences: Path) -> None:
    from datasets import load_dataset

    if not preferences.is_dir():
        pytest.skip("one file")
    found = load_dataset(
        "parquet", data_dir=str(preferences), split="train", cache_dir=str(preferences.parent.parent / "c")
    )
    assert found.num_rows == len(NAMES)


def arguments(kind: Any, folder: Path, **more: Any) -> Any:
    return kind(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        max_steps=3,
        logging_steps=1,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        **more,
    )


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_reward_trainer_trains_on_it(dataset: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    model = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=1)
    before = model.model.embed_tokens.weight.detach().clone()
    trainer = RewardTrainer(
        model=model,
        args=arguments(RewardConfig, tmp_path),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(BASE),
    )
    trainer.train()
    assert len(losses(trainer)) == 3
    assert all(math.isfinite(loss) for loss in losses(trainer))
    assert not before.equal(model.model.embed_tokens.weight)
    # The column margin, log-odds of p_chosen, arrives as TRL's margin of the loss.
    assert "margin" in trainer.train_dataset.column_names


def test_dpo_trainer_trains_on_it(dataset: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    model = AutoModelForCausalLM.from_pretrained(BASE)
    before = model.model.embed_tokens.weight.detach().clone()
    trainer = DPOTrainer(
        model=model,
        args=arguments(DPOConfig, tmp_path),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(BASE),
    )
    trainer.train()
    # Policy and reference are the same at first: the loss is that of a coin toss.
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-3)
    assert len(losses(trainer)) == 3
    assert not before.equal(model.model.embed_tokens.weight)


def test_schema_metadata_survives(preferences: Path) -> None:
    import pyarrow.parquet as pq

    schema = pq.ParquetDataset(preferences).schema
    assert schema.metadata[b"rlaif.method"] == b"mean"
    assert isinstance(schema, pa.Schema)
