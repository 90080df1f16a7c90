"""The demonstration of the guardrails, configs/overoptimised.yaml: PPO without KL runs away, and is stopped."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.load import load_round
from flows.plan import plan_round
from flows.processes.worker import execute
from flows.workspace import Workspace


@pytest.mark.slow
def test_the_runaway_is_stopped_and_rolled_back(tmp_path: Path) -> None:
    round_ = Workspace.create(tmp_path).begin_round(load_round("overoptimised"))
    for step in plan_round(round_):
        if step.stage in ("evaluate", "promote"):
            break
        done = execute(step.stage, dict(step.inputs), step.config.model_dump(mode="json"), step.seed, step.out)
    assert done.manifest.stage == "ppo"
    metrics = done.manifest.metrics
    rows = pq.read_table(round_.stage("ppo") / "updates.parquet").to_pylist()
    assert metrics["stopped"].startswith("over_optimised: ")
    assert metrics["updates"] < 48
    probes = [row for row in rows if row["probe_win_rate"] is not None]
    best = max(probes, key=lambda row: (row["probe_win_rate"], row["update"]))
    assert metrics["best_update"] == best["update"] < metrics["updates"]
    # What stopped it: judges who liked the last policy less than the best one, and a reward model that liked it more.
    last = probes[-1]
    assert last["judge_gain"] < best["judge_gain"] - 0.05
    assert last["reward_gain"] > best["reward_gain"] + 0.1
    # What is shipped is the best policy: its figures, not the last one's.
    assert metrics["kl"] == best["kl"] < last["kl"]
    assert (round_.stage("ppo") / "policy" / "model.safetensors").is_file()
