"""Stage sample from files to files."""

from __future__ import annotations

from pathlib import Path

import pytest

from store.errors import UsageError
from store.schemas import ROLLOUTS
from store.tables import read_table

from ..rlhf.conftest import policy_folder  # noqa: F401
from ..rlhf.stage_world import run, write_prompts

CONFIG = {"responses": 3, "decoding": {"max_new_tokens": 6}}


def test_rollouts_of_the_chosen_split(policy_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    inputs = {"policy": policy_folder, "prompts": write_prompts(tmp_path)}
    outcome = run("sample", tmp_path / "out", CONFIG, inputs)
    table = read_table(tmp_path / "out" / "rollouts.parquet", ROLLOUTS)
    assert sorted(set(table["prompt_id"].to_pylist())) == [f"p{index}" for index in range(8)]
    assert table.num_rows == outcome.manifest.metrics["rollouts"] == 24
    assert set(table["policy"].to_pylist()) == {outcome.manifest.inputs["policy"][0]["identity"]}


def test_batch_size_and_choice_of_prompts_leave_responses_alone(policy_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    inputs = {"policy": policy_folder, "prompts": write_prompts(tmp_path)}
    run("sample", tmp_path / "all", CONFIG, inputs)
    run("sample", tmp_path / "few", {**CONFIG, "max_prompts": 4, "batch_size": 2}, inputs)
    whole, few = (
        {(row["prompt_id"], row["sample"]): row["response"] for row in read_table(path, ROLLOUTS).to_pylist()}
        for path in (tmp_path / "all" / "rollouts.parquet", tmp_path / "few" / "rollouts.parquet")
    )
    assert len(few) == 12
    assert few.items() <= whole.items()


def test_wrong_inputs_are_one_sentence(policy_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    prompts = write_prompts(tmp_path)
    with pytest.raises(UsageError, match="no prompts in the split 'tset'; it has heldout, heldout_entities, train"):
        run("sample", tmp_path / "out", {**CONFIG, "splits": ["tset"]}, {"policy": policy_folder, "prompts": prompts})
    with pytest.raises(UsageError, match=r"3 tokens.*holds 64|tokens and max_new_tokens is 200"):
        run(
            "sample",
            tmp_path / "out",
            {"decoding": {"max_new_tokens": 200}},
            {"policy": policy_folder, "prompts": prompts},
        )
    assert not (tmp_path / "out").exists()
