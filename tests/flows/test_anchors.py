"""Drift that rounds look for: what stands for an asking, who is asked, what the journal tells. Judges are programs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from flows.anchors import anchors_of_round, compare, drift_events, judges_to_ask, keep_and_plan, keep_asked
from flows.config import AnchorsConfig
from flows.launch.dry_run import draft, forecast
from flows.load import load_round
from flows.plan import Step, plan_round
from flows.processes.execute import run_step
from flows.workspace import Round, Workspace
from judges.config import load_judge
from judges.drift import repeatable
from store.errors import TransientError
from store.files import write_text
from store.hashing import hash_path
from store.manifest import set_aside
from store.schemas import GOLD, PROMPTS, ROLLOUTS, VOTES
from store.stage import run_stage
from store.tables import read_table, write_table
from tests.judges.conftest import make_pair

LONG = "a much longer answer, of many words"


def write_judge(folder: Path, words: int) -> Path:
    """Prefers responses of at most `words` words."""
    rules = [
        {"name": "empty", "kind": "empty", "amount": 1.0},
        {"name": "long", "kind": "long", "words": words, "each": 0.1, "most": 0.9},
    ]
    write_text(folder / "rubric.yaml", yaml.safe_dump({"version": 1, "rules": rules}))
    write_text(folder / "judge.yaml", yaml.safe_dump({"name": "brief", "backend": "rubric", "rubric": "rubric.yaml"}))
    return folder


def write_gold(path: Path, count: int, text: str = LONG) -> Path:
    rows = [vars(make_pair(n, "short", f"{text} {n}")) | {"winner": "a"} for n in range(count)]
    return write_table(path, GOLD, pa.Table.from_pylist(rows, schema=GOLD.schema))


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    write_judge(tmp_path / "brief", 3)
    write_gold(tmp_path / "gold.parquet", 30)
    prompt = {"prompt_id": "x900", "prompt": "why?"}
    about: dict[str, Any] = {"policy": "p", "finish_reason": "stop", "n_tokens": 1, "logprob": -1.0, "seed": 0}
    rollouts = [{"rollout_id": f"r{n}", **prompt, "response": "so " * (n + 1), "sample": n, **about} for n in range(3)]
    prompts = [{**prompt, "group": "g", "split": "train", "reference": None}]
    write_table(tmp_path / "rollouts.parquet", ROLLOUTS, pa.Table.from_pylist(rollouts, schema=ROLLOUTS.schema))
    write_table(tmp_path / "prompts.parquet", PROMPTS, pa.Table.from_pylist(prompts, schema=PROMPTS.schema))
    return Workspace.create(tmp_path / "workspace")


def begun(space: Workspace, *settings: str) -> Round:
    folder = space.root.parent
    names = (f"judges=[{folder / 'brief'}]", f"calibration={folder / 'gold.parquet'}")
    more = (f"prompts={folder / 'prompts.parquet'}", "drift.anchors=20", *settings)
    return space.begin_round(load_round("demo", [*names, *more]))


def judge_stage(round_: Round) -> Step:
    """Runs the round's judge stage in this process."""
    step = next(step for step in plan_round(round_) if step.stage == "judge")
    step = Step(
        "judge",
        {**step.inputs, "rollouts": [str(round_.folder.parents[2] / "rollouts.parquet")]},
        step.config,
        step.seed,
        step.out,
    )
    ran(step)
    return step


def ran(step: Step) -> None:
    about: dict[str, Any] = {"inputs": step.sources(), "config": step.config, "seed": step.seed, "out": step.out}
    run_stage(step.stage, step.spec.load(), version=step.spec.version, **about)


def kept(round_: Round) -> list[Path]:
    return sorted(anchors_of_round(round_).folder.rglob("*.parquet"))


def test_the_judge_stages_votes_stand_for_an_asking(space: Workspace) -> None:
    first = begun(space)
    judge_stage(first)
    before = hash_path(first.stage("judge"))
    assert keep_and_plan(first) is None  # nobody is asked
    assert compare(first) == {"brief": None}
    (asking,) = anchors_of_round(first).askings("brief")
    assert asking.fingerprint == load_judge(space.root.parent / "brief").digest
    assert asking.votes.num_rows == 20 * 2
    assert set(asking.votes["pair_id"].to_pylist()) == set(anchors_of_round(first).pairs["pair_id"].to_pylist())
    (event,) = drift_events(first.journal)
    assert (event["number"], event["fingerprint"], "previous" in event) == (1, asking.fingerprint, False)
    # The next run of the same round finds all done.
    files = kept(first)
    assert keep_and_plan(first) is None
    assert compare(first) == {"brief": None}
    assert kept(first) == files
    assert len(first.journal.events()) == 2  # round_started, drift
    assert hash_path(first.stage("judge")) == before


def test_a_changed_judge_is_told_with_what_changed(space: Workspace) -> None:
    judge_stage(first := begun(space))
    keep_and_plan(first)
    write_judge(space.root.parent / "brief", 100)  # now it has no view, and each answer is a tie
    judge_stage(second := begun(space))
    assert keep_and_plan(second) is None
    drift = compare(second)["brief"]
    assert drift is not None
    assert (drift.pairs, drift.flips, drift.from_gold, drift.toward_gold) == (20, 20, 20, 0)
    assert drift.fingerprint_changed
    (event,) = drift_events(second.journal)
    assert event["changed"] == ["rubric.yaml"]
    assert event["previous"]["flips"] == 20
    assert event["first"] is None
    judge_stage(third := begun(space))
    keep_and_plan(third)
    assert compare(third)["brief"].flips == 0  # type: ignore[union-attr]
    (event,) = drift_events(third.journal)
    assert event["changed"] == []
    assert event["first"]["flips"] == 20  # as against the first of all
    assert compare(second)["brief"] == drift  # a report made later says the same


def test_votes_that_do_not_hold_the_anchors_do_not_stand(space: Workspace) -> None:
    """Other calibration pairs: a judge that is as it was is left alone, one that changed is asked by a stage."""
    judge_stage(first := begun(space))
    keep_and_plan(first)
    write_gold(space.root.parent / "gold.parquet", 30, "the pairs have the same ids, and other words")
    judge_stage(second := begun(space))
    assert keep_and_plan(second) is None
    assert compare(second) == {}
    write_judge(space.root.parent / "brief", 100)
    judge_stage(third := begun(space))
    step = keep_and_plan(third)
    assert step is not None
    assert run_step(step, third.folder / "logs").manifest.metrics["per_judge"]["brief"]["attempted"] == 40
    again = keep_and_plan(third)  # as after a kill: the stage is complete, its votes were not kept yet
    assert again == step
    keep_asked(third, step)
    keep_asked(third, step)
    assert len(anchors_of_round(third).askings("brief")) == 2
    assert keep_and_plan(third) is None
    drift = compare(third)["brief"]
    assert drift is not None
    assert (drift.flips, drift.now["number"]) == (20, 2)


def test_judging_again_is_another_asking(space: Workspace) -> None:
    judge_stage(first := begun(space))
    keep_and_plan(first)
    set_aside(first.stage("judge"), "asked for")
    time.sleep(1.01)  # a stage's beginning, which tells its runs apart, is in whole seconds
    judge_stage(first)
    keep_and_plan(first)
    assert [one.number for one in anchors_of_round(first).askings("brief")] == [1, 2]
    assert compare(first)["brief"].flips == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("setting", ["drift.enabled=false", "calibration=null"])
def test_it_can_be_off(space: Workspace, setting: str) -> None:
    judge_stage(round_ := begun(space, setting))
    assert keep_and_plan(round_) is None
    assert compare(round_) == {}
    assert not anchors_of_round(round_).folder.exists()


def test_a_server_that_is_away_is_tried_again(space: Workspace, tmp_path: Path) -> None:
    judge_stage(round_ := begun(space))
    keep_and_plan(round_)
    folder = tmp_path / "away"
    settings = {"name": "away", "backend": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
    quick = {"max_attempts": 1, "outage_after": 1, "outage_patience_s": 0.1, "timeout_s": 1}
    write_text(folder / "judge.yaml", yaml.safe_dump(settings | quick))
    write_text(folder / "prompt.jinja", "{{ prompt }}\n{{ first }}\n{{ second }}\nAnswer 1 or 2:")
    inputs = {"judge": [str(folder)], "anchors": [str(anchors_of_round(round_).path)]}
    config = {"max_error_rate": 0.2, "rate_after": 5}
    with pytest.raises(TransientError, match="away"):
        ran(Step("anchors", inputs, AnchorsConfig.model_validate(config), 17, round_.stage("anchors")))
    assert not round_.stage("anchors").exists()


def language_judge(folder: Path, **settings: Any) -> Path:
    value = {"name": "j", "backend": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1", **settings}
    write_text(folder / "judge.yaml", yaml.safe_dump(value))
    shown = "{{ responses }}" if settings.get("mode") == "listwise" else "{{ first }} {{ second }}"
    write_text(folder / "prompt.jinja", "{{ prompt }} " + shown)
    return folder


def test_what_is_repeatable(tmp_path: Path) -> None:
    assert repeatable(load_judge("tiny-good"))
    assert repeatable(load_judge(language_judge(tmp_path / "greedy", mode="pairwise_verdict")))
    sampled = language_judge(tmp_path / "sampled", mode="pairwise_verdict", temperature=0.7)
    assert not repeatable(load_judge(sampled))
    assert not repeatable(load_judge(language_judge(tmp_path / "list", mode="listwise")))
    cascade = {"name": "c", "backend": "cascade", "first": "tiny-good", "then": "../sampled"}
    write_text(tmp_path / "cascade" / "judge.yaml", yaml.safe_dump(cascade))
    assert not repeatable(load_judge(tmp_path / "cascade"))


def test_the_forecast_says_who_would_be_asked(space: Workspace) -> None:
    """As `keep_and_plan` then finds: nobody where the judge stage's votes stand for an asking."""
    first = begun(space)
    assert judges_to_ask(first) == ([], 20)
    judge_stage(first)
    assert keep_and_plan(first) is None
    write_gold(space.root.parent / "gold.parquet", 30, "the pairs have the same ids, and other words")
    judge = write_judge(space.root.parent / "brief", 100)
    second = begun(space, "evaluate.splits=[train]")
    assert judges_to_ask(second) == ([str(judge)], 20)
    (said,) = (one for one in forecast(space, draft(space, second.config, "judge"), "judge") if one.stage == "anchors")
    assert [(call.judge, call.calls, call.at_most) for call in said.calls] == [("brief", 2 * 20, True)]
    judge_stage(second)
    step = keep_and_plan(second)
    assert step is not None
    assert step.inputs["judge"] == [str(judge)]


def test_a_round_reads_its_calibration_votes_as_they_are(space: Workspace) -> None:
    """The asking holds the stage's votes to the bit."""
    judge_stage(round_ := begun(space))
    keep_and_plan(round_)
    (asking,) = anchors_of_round(round_).askings("brief")
    votes = round_.stage("judge") / "calibration_votes.parquet"
    rows = {row["vote_id"]: row for row in read_table(votes, VOTES).to_pylist()}
    assert all(rows[row["vote_id"]] == row for row in asking.votes.to_pylist())
