"""Stage sft from files to files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.devices import Compute
from rlhf.models import load_policy
from store.errors import UsageError
from store.schemas import CONVERSATIONS, DEMONSTRATIONS
from store.tables import write_table

from ..rlhf.conftest import compute, policy_folder  # noqa: F401
from ..rlhf.stage_world import run

CONFIG = {"epochs": 8, "batch_size": 4, "optimisation": {"learning_rate": 1e-2}}


def demonstrations(folder: Path, response: str = "yes the sea") -> Path:
    rows = [{"prompt": f"{word} why", "response": response} for word in ("dog", "cat", "fish", "tree")]
    table = pa.Table.from_pylist(rows, schema=DEMONSTRATIONS.schema)
    return write_table(folder / "demonstrations.parquet", DEMONSTRATIONS, table)


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_the_model_learns_and_is_a_model(
    policy_folder: Path,  # noqa: F811
    compute: Compute,  # noqa: F811
    tmp_path: Path,
    lora: dict[str, int] | None,
) -> None:
    inputs = {"policy": policy_folder, "demonstrations": demonstrations(tmp_path)}
    outcome = run("sft", tmp_path / "out", {**CONFIG, "lora": lora}, inputs)
    metrics = outcome.manifest.metrics
    assert metrics["steps"] == 8
    assert metrics["loss_end"] < metrics["loss_start"]
    curve = pq.read_table(tmp_path / "out" / "curve.parquet")
    assert curve["step"].to_pylist() == list(range(1, 9))
    load_policy(str(tmp_path / "out" / "model"), compute)


def test_conversations_are_learnt_with_a_validation_loss(policy_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    turns = [("user", "dog why"), ("assistant", "yes the sea"), ("user", "cat why"), ("assistant", "no")]
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in turns[: 2 + 2 * (i % 2)]]} for i in range(8)
    ]
    table = pa.Table.from_pylist(rows, schema=CONVERSATIONS.schema)
    file = write_table(tmp_path / "conversations.parquet", CONVERSATIONS, table)
    config = {**CONFIG, "validation_fraction": 0.25}
    outcome = run("sft", tmp_path / "out", config, {"policy": policy_folder, "demonstrations": file})
    metrics = outcome.manifest.metrics
    assert (metrics["demonstrations"], metrics["validation_demonstrations"]) == (8, 2)
    assert metrics["validation_loss"] < metrics["loss_start"]
    losses = pq.read_table(tmp_path / "out" / "curve.parquet")["validation_loss"].to_pylist()
    assert losses[-1] == metrics["validation_loss"]


def test_same_inputs_give_the_same_bytes(policy_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    inputs = {"policy": policy_folder, "demonstrations": demonstrations(tmp_path)}
    one, two = (run("sft", tmp_path / name, {**CONFIG, "max_demonstrations": 3}, inputs) for name in ("one", "two"))
    assert one.manifest.outputs == two.manifest.outputs
    assert one.manifest.metrics["demonstrations"] == 3


def test_a_response_beyond_the_context_is_one_sentence(policy_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    inputs = {"policy": policy_folder, "demonstrations": demonstrations(tmp_path, "sea " * 100)}
    with pytest.raises(UsageError, match="context of policy holds 64"):
        run("sft", tmp_path / "out", CONFIG, inputs)
