"""Stage ppo from files to files, killed and resumed, with a live probe. CHECKS, reward model and PPO: 26, 28."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from flows.stages.ppo import open_probe
from rlhf.devices import Compute
from rlhf.models import load_policy
from rlhf.ppo.guard import ProbeItem

from ..rlhf.conftest import compute, policy_folder, reward_folder  # noqa: F401
from ..rlhf.stage_world import job, run, write_prompts

CONFIG: dict[str, Any] = {
    "updates": 4,
    "batch_size": 8,
    "minibatches": 2,
    "optimisation": {"learning_rate": 1e-2},
    "checkpoint_every": 1,
    "max_update_kl": None,
    "decoding": {"max_new_tokens": 6},
    "probe": {"every": 2, "prompts": 4},
}


class Killed(BaseException):
    """A kill: nothing in the package catches it."""


def test_files_metrics_and_resume(
    policy_folder: Path,  # noqa: F811
    reward_folder: Path,  # noqa: F811
    compute: Compute,  # noqa: F811
    tmp_path: Path,
) -> None:
    inputs = {
        "policy": policy_folder,
        "reward": reward_folder,
        "prompts": write_prompts(tmp_path),
        "judge": ["tiny-oracle"],
    }
    whole = run("ppo", tmp_path / "whole", CONFIG, inputs)

    def kill(what: str, done: int, total: int, note: str = "") -> None:
        if what == "ppo" and done == 3:
            raise Killed

    with pytest.raises(Killed):
        run("ppo", tmp_path / "cut", CONFIG, inputs, progress=kill)
    assert not (tmp_path / "cut").exists()
    cut = run("ppo", tmp_path / "cut", CONFIG, inputs)
    same = ["policy/model.safetensors", "samples.parquet"]
    assert all(whole.manifest.outputs[name] == cut.manifest.outputs[name] for name in same)
    metrics = cut.manifest.metrics
    assert metrics["updates"] == 4
    assert {"kl", "reward_start", "reward_end", "stopped", "best_update"} <= set(metrics)
    rows = pq.read_table(tmp_path / "cut" / "updates.parquet").to_pylist()
    assert [row["update"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[0]["probe_win_rate"] == 0.5
    assert 0 <= rows[2]["probe_win_rate"] <= 1
    samples = pq.read_table(tmp_path / "cut" / "samples.parquet").to_pylist()
    assert {row["update"] for row in samples} == {0, 2, 4}
    load_policy(str(tmp_path / "cut" / "policy"), compute)
    assert not any(path.name.startswith(".") for path in (tmp_path / "cut").iterdir())


def test_probe_counts_identical_responses_as_half(tmp_path: Path) -> None:
    inputs = {"prompts": write_prompts(tmp_path), "judge": ["tiny-oracle"], "policy": "x", "reward": "x"}
    same = ProbeItem("p0", "dog why", "dog", "dog")
    better = ProbeItem("p1", "cat why", "The cat likes the sea.", "")
    with open_probe(job("ppo", tmp_path / "out", CONFIG, inputs)) as probe:
        assert probe is not None
        assert probe([same]) == [0.5]
        first, second = probe([same, better])
        assert first == 0.5
        assert second is not None
        assert second > 0.5
        assert probe([]) == []
    with open_probe(job("ppo", tmp_path / "out", {**CONFIG, "probe": {"every": 0}}, inputs)) as probe:
        assert probe is None


def test_a_probe_asked_again_after_a_kill_calls_no_judge(tmp_path: Path) -> None:
    inputs = {"prompts": write_prompts(tmp_path), "judge": ["tiny-oracle"], "policy": "x", "reward": "x"}
    items = [ProbeItem("p1", "cat why", "The cat likes the sea.", ""), ProbeItem("p0", "dog why", "dog", "a dog")]

    def asked(some: list[ProbeItem]) -> tuple[list[float | None], list[bytes]]:
        with open_probe(job("ppo", tmp_path / "out", CONFIG, inputs)) as probe:
            assert probe is not None
            wins = probe(some)
        return wins, [path.read_bytes() for path in sorted((tmp_path / "out/.probe").rglob("*.jsonl"))]

    (first,), rows = asked(items[:1])
    wins, more = asked(items)
    assert wins[0] == first
    assert more[0] == rows[0]
    assert sum(map(len, more)) > sum(map(len, rows))
    assert asked(items) == (wins, more)


def test_cut_distributions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="PPO needs the full distribution"):
        run("ppo", tmp_path / "out", {"decoding": {"top_p": 0.9}}, {})
