"""Stage judge from files to files, with a real tiny model and a rubric."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.nn import Module

from flows.specs import STAGES
from judges.config import JudgeStageConfig, load_judge
from store.errors import RlaifError, UsageError
from store.stage import Job, Source, run_stage
from store.tables import GOLD, PAIRS, PROMPTS, ROLLOUTS, VOTES, read_table, write_table

from ..judges.conftest import Folder, judge_folder, make_pair, rubric_judge, tiny_judge, tiny_model

__all__ = ["judge_folder", "rubric_judge", "tiny_judge", "tiny_model"]

Inputs = dict[str, list[Source]]


def source(path: Path) -> Source:
    return STAGES["judge"].inputs[0].source(str(path))


@pytest.fixture
def inputs(tmp_path: Path, tiny_judge: Any, rubric_judge: Any) -> Inputs:
    rollouts, prompts = [], []
    for n in range(6):
        prompt = {"prompt_id": f"x{n}", "prompt": f"what runs under bridge {n}?"}
        prompts.append({**prompt, "group": "g", "split": "train", "reference": None})
        for sample in range(3):
            about = {"policy": "p", "finish_reason": "stop", "n_tokens": 1, "logprob": -1.0, "seed": 0}
            # The last prompt's responses are all the same: nothing to compare.
            text = "the dog runs" if n == 5 else "the dog runs " * (sample + 1)
            rollouts.append({"rollout_id": f"r{n}.{sample}", **prompt, "response": text, "sample": sample, **about})
    gold = [vars(make_pair(100 + n, "a cat " * 9, "a cat")) | {"winner": "b"} for n in range(4)]
    tables = {"rollouts": (ROLLOUTS, rollouts), "prompts": (PROMPTS, prompts), "calibration": (GOLD, gold)}
    found = {
        name: [
            source(write_table(tmp_path / f"{name}.parquet", table, pa.Table.from_pylist(rows, schema=table.schema)))
        ]
        for name, (table, rows) in tables.items()
    }
    found["judge"] = [Source(str(judge.folder), judge.fingerprint) for judge in (tiny_judge, rubric_judge)]
    return found


def judged(inputs: Inputs, out: Path, seed: int = 3, **config: Any) -> Any:
    stage = STAGES["judge"]
    return run_stage("judge", stage.load(), inputs=inputs, config=JudgeStageConfig(**config), seed=seed, out=out)


def test_rollouts_become_votes(inputs: Inputs, tmp_path: Path) -> None:
    outcome = judged(inputs, tmp_path / "out", pairs_per_prompt=2)
    pairs = read_table(outcome.folder / "pairs.parquet", PAIRS)
    votes = read_table(outcome.folder / "votes.parquet", VOTES)
    calibration = read_table(outcome.folder / "calibration_votes.parquet", VOTES)
    metrics = outcome.manifest.metrics
    assert (pairs.num_rows, metrics["pairs"], metrics["prompts_without_pairs"]) == (10, 10, 1)
    assert votes.num_rows == metrics["votes"]["attempted"] == 10 * 2 * 2
    assert set(votes["pair_id"].to_pylist()) == set(pairs["pair_id"].to_pylist())
    assert calibration.num_rows == 4 * 2 * 2
    assert set(metrics["per_judge"]) == set(metrics["judge_accuracy"]) == {"tiny", "rules"}
    rules = metrics["judge_accuracy"]["rules"]
    assert (rules["accuracy"], rules["n"]) == (1.0, 4)
    assert rules["low"] < 1
    assert metrics["per_judge"]["rules"]["order_flip_rate"] == 0
    assert json.loads(pq.read_schema(outcome.folder / "votes.parquet").metadata[b"rlaif.judges"]).keys() == {
        "tiny",
        "rules",
    }
    assert not list(outcome.folder.glob(".*")), "the journal does not outlive the stage"
    json.dumps(metrics, allow_nan=False)


def test_a_killed_stage_goes_on(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_table(judged(inputs, tmp_path / "whole").folder / "votes.parquet", VOTES)
    calls: list[int] = []
    forward = Module.__call__

    def killed(what: str, done: int, total: int, note: str = "") -> None:
        if what == "judge rules" and done == 7:
            raise KeyboardInterrupt

    stage = STAGES["judge"].load()
    about: dict[str, Any] = {"inputs": inputs, "config": JudgeStageConfig(), "seed": 3, "out": tmp_path / "out"}
    with pytest.raises(KeyboardInterrupt):
        run_stage("judge", stage, **about, progress=killed)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Module, "__call__", lambda self, *a, **k: calls.append(1) or forward(self, *a, **k))
    outcome = run_stage("judge", stage, **about)
    assert calls == [], "the model's votes were there: it was not even loaded"
    again = read_table(outcome.folder / "votes.parquet", VOTES)
    assert again.drop_columns(["latency_s"]).equals(whole.drop_columns(["latency_s"]))


def test_without_calibration(inputs: Inputs, tmp_path: Path) -> None:
    outcome = judged({**inputs, "calibration": []}, tmp_path / "out", pairs="all")
    assert outcome.manifest.metrics["judge_accuracy"] == {}
    assert outcome.manifest.metrics["pairs"] == 15
    assert not (outcome.folder / "calibration_votes.parquet").exists()


def test_nothing_to_compare_is_said(inputs: Inputs, tmp_path: Path) -> None:
    rollouts = read_table(Path(inputs["rollouts"][0].value), ROLLOUTS).slice(15, 3)
    inputs["rollouts"] = [source(write_table(tmp_path / "same.parquet", ROLLOUTS, rollouts))]
    with pytest.raises(UsageError, match="nothing to compare"):
        judged(inputs, tmp_path / "out")


def test_a_failing_judge_fails_the_stage(inputs: Inputs, tmp_path: Path, judge_folder: Folder) -> None:
    judge = load_judge(judge_folder("mute", mode="pairwise_verdict", max_new_tokens=2))
    with pytest.raises(RlaifError, match=r"mute .*parse failures"):
        judged({**inputs, "judge": [Source(str(judge.folder), judge.fingerprint)]}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_id_for_two_pairs_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    first = judged(inputs, tmp_path / "first").folder / "pairs.parquet"
    known = read_table(first, PAIRS).to_pylist()[0]
    gold = pa.Table.from_pylist([{**known, "response_a": "another", "winner": "a"}], schema=GOLD.schema)
    inputs["calibration"] = [source(write_table(tmp_path / "clash.parquet", GOLD, gold))]
    with pytest.raises(UsageError, match=known["pair_id"]):
        judged(inputs, tmp_path / "out")


def test_the_job_is_enough(inputs: Inputs, tmp_path: Path) -> None:
    job = Job("judge", inputs, JudgeStageConfig(), 3, tmp_path)
    assert STAGES["judge"].load()(job)["pairs"] == 15
