"""`rlaif explain`: every fact about a pair is where the round's files have it, and hostile text is inert."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from click.testing import CliRunner

from flows.cli import main, rlaif
from flows.plan import resolve_inputs
from flows.specs import STAGES
from flows.workspace import Workspace
from judges.config import AggregateConfig, JudgeStageConfig
from store.config import Config
from store.schemas import PAIRS, PROMPTS, ROLLOUTS, VERDICTS, VOTES
from store.stage import run_stage
from store.tables import read_table, write_table

HOSTILE = "\x1b[31mred\x1b[0m \u202egnp.exe\u202c zero\u200bwidth [bold]x[/bold] </script>"


class Nothing(Config):
    """The config of stages that are played here."""


def played(name: str, folder: Path, inputs: dict[str, Any], write: Any) -> None:
    """A finished stage with tables of our own."""
    run_stage(name, lambda job: {"file": str(write(job.out).name)}, inputs=inputs, config=Nothing(), seed=5, out=folder)


def judge_folder(folder: Path) -> Path:
    """A judge that is a program, beside a shipped one that has a prompt."""
    folder.mkdir(parents=True)
    rules = [
        {"name": "empty", "kind": "empty", "amount": 1.0},
        {"name": "long", "kind": "long", "words": 2, "each": 0.1, "most": 0.9},
    ]
    (folder / "rubric.yaml").write_text(yaml.safe_dump({"version": 1, "rules": rules}))
    (folder / "judge.yaml").write_text(yaml.safe_dump({"name": "brief", "backend": "rubric", "rubric": "rubric.yaml"}))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose stages judge and aggregate are real; sample and audit are played."""
    root = tmp_path_factory.mktemp("explain")
    space = Workspace.create(root / "workspace")
    from flows.load import load_round

    round_ = space.begin_round(load_round("demo"))
    texts = [["Yes, certainly it is so.", "No."], [HOSTILE, "One two."]]
    rollouts = [
        {
            "rollout_id": f"r{at}{side}",
            "prompt_id": f"x{at}",
            "prompt": HOSTILE if at else "Is it?",
            "response": text,
            "sample": side,
            "policy": "policy-hash",
            "finish_reason": "stop",
            "n_tokens": 3,
            "logprob": -1.5,
            "seed": 77,
        }
        for at, both in enumerate(texts)
        for side, text in enumerate(both)
    ]
    prompts = [
        {"prompt_id": f"x{at}", "prompt": HOSTILE if at else "Is it?", "group": "g", "split": "train"}
        for at in range(2)
    ]
    write_table(root / "prompts.parquet", PROMPTS, pa.Table.from_pylist(prompts))
    policy = resolve_inputs(STAGES["sample"], {"policy": ["shipped:tiny/models/base"]})
    table = pa.Table.from_pylist(rollouts)
    played("sample", round_.stage("sample"), policy, lambda out: write_table(out / "rollouts.parquet", ROLLOUTS, table))

    def stage(name: str, config: Config, **inputs: Any) -> Path:
        spec = STAGES[name]
        values = {key: value if isinstance(value, list) else [str(value)] for key, value in inputs.items()}
        found = resolve_inputs(spec, values)
        run_stage(name, spec.load(), inputs=found, config=config, seed=1, out=round_.stage(name), version=spec.version)
        return round_.stage(name)

    judge = stage(
        "judge",
        JudgeStageConfig(pairs="all"),
        rollouts=round_.stage("sample") / "rollouts.parquet",
        prompts=root / "prompts.parquet",
        judge=["tiny-good", str(judge_folder(root / "brief"))],
    )
    pairs = read_table(judge / "pairs.parquet", PAIRS).to_pylist()
    said = [
        {
            "verdict_id": f"v{at}",
            "pair_id": next(row["pair_id"] for row in pairs if row["prompt_id"] == "x1"),
            "auditor": "ann",
            "winner": winner,
            "shown_left": "a",
            "seconds": float("nan"),
            "simulated": False,
            "comment": HOSTILE,
            "created_at": datetime(2026, 1, 1, tzinfo=UTC),
            "supersedes": "v0" if at else None,
        }
        for at, winner in enumerate(["a", "b"])
    ]
    verdicts = pa.Table.from_pylist(said, schema=VERDICTS.schema)
    played("audit", round_.stage("audit"), {}, lambda out: write_table(out / "verdicts.parquet", VERDICTS, verdicts))
    stage(
        "aggregate",
        AggregateConfig(method="mean"),
        votes=judge / "votes.parquet",
        pairs=judge / "pairs.parquet",
        verdicts=round_.stage("audit") / "verdicts.parquet",
    )
    return space.root


def ids(world: Path) -> dict[str, str]:
    table = read_table(world / "rounds" / "001" / "judge" / "pairs.parquet", PAIRS)
    return dict(zip(table["prompt_id"].to_pylist(), table["pair_id"].to_pylist(), strict=True))


def explained(world: Path, pair: str, *more: str) -> str:
    result = CliRunner().invoke(rlaif, ["explain", pair, "--workspace", str(world), *more], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_a_label_of_judges_is_traced(world: Path) -> None:
    found = json.loads(explained(world, ids(world)["x0"], "--json"))
    votes = read_table(world / "rounds" / "001" / "judge" / "votes.parquet", VOTES).to_pylist()
    assert {(vote["judge"], vote["order"]): vote["p_a"] for vote in found["votes"]} == {
        (vote["judge"], vote["order"]): vote["p_a"] for vote in votes if vote["pair_id"] == found["pair_id"]
    }
    assert len(found["votes"]) == 4
    by_judge = {name: [v["p_a"] for v in found["votes"] if v["judge"] == name] for name in ("tiny-good", "brief")}
    mean = sum(sum(values) / 2 for values in by_judge.values()) / 2
    assert found["label"]["p_a"] == pytest.approx(mean)
    assert found["preference"]["p_chosen"] == pytest.approx(max(mean, 1 - mean))
    assert found["aggregation"]["method"] == "mean"
    assert [row["rollout_id"] for row in found["rollouts"]] == ["r00", "r01"]
    assert {row["policy"] for row in found["rollouts"]} == {"policy-hash"}
    assert found["policy"]["value"].endswith("tiny/models/base")
    shown = {(one["judge"], one["order"]): one for one in found["prompts"]}
    first, second = (shown["tiny-good", order]["prompt"] for order in ("ab", "ba"))
    assert first.index("No.") != second.index("No.")
    assert "it is a program" in shown["brief", None]["problem"]


def test_a_verdict_is_traced_and_text_is_inert(world: Path) -> None:
    pair = ids(world)["x1"]
    found = json.loads(explained(world, pair[:6], "--json"))
    assert found["pair_id"] == pair
    assert [(v["winner"], v["superseded"], v["seconds"]) for v in found["verdicts"]] == [
        ("a", True, None),
        ("b", False, None),
    ]
    assert (found["label"]["source"], found["label"]["p_a"]) == ("human", 0.0)
    assert found["label"]["p_a_judges"] is not None
    text = explained(world, pair)
    assert not set("\x1b\u202e\u202c\u200b") & set(text)
    assert "[bold]x[/bold]" in text
    assert "no: superseded" in text
    assert "Prompts of the judges" in text
    assert "‹/script›" in text  # the prompt as the judge saw it, made harmless
    assert "‹/script›" not in explained(world, pair, "--no-prompts")


def test_a_changed_judge_is_not_passed_off_as_the_old_one(world: Path, tmp_path: Path) -> None:
    folder = world.parent / "brief"
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    rubric = yaml.safe_load((folder / "rubric.yaml").read_text())
    rubric["rules"][1]["words"] = 3
    (folder / "rubric.yaml").write_text(yaml.safe_dump(rubric))
    try:
        assert "was changed since" in explained(world, ids(world)["x0"])
        shutil.rmtree(folder)
        assert "cannot be read any more" in explained(world, ids(world)["x0"])
    finally:
        shutil.copytree(kept, folder, dirs_exist_ok=True)


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["rlaif", "explain", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    return capsys.readouterr().err.strip()


def test_what_is_not_there_is_said(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "No pair 'nobody' was judged" in refused(monkeypatch, capsys, "nobody", "--workspace", str(world))
    assert "No pair 'abc'" in refused(monkeypatch, capsys, "abc", "--workspace", str(world))
    assert "no round 7" in refused(monkeypatch, capsys, "nobody", "--workspace", str(world), "--round", "7")
    assert "is no workspace" in refused(monkeypatch, capsys, "nobody", "--workspace", str(tmp_path))


def test_a_round_that_is_not_aggregated_yet(world: Path, tmp_path: Path) -> None:
    half = Path(shutil.copytree(world, tmp_path / "half"))
    for name in ("aggregate", "audit", "sample"):
        shutil.rmtree(half / "rounds" / "001" / name)
    found = json.loads(explained(half, ids(half)["x0"], "--json"))
    assert (found["preference"], found["label"], found["policy"], found["rollouts"]) == (None, None, None, [])
    assert "the stage aggregate has not finished" in explained(half, ids(half)["x0"])
