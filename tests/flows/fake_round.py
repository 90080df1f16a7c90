"""A round whose stages are stand-ins: real plan, real manifests and keys, results in no time.

Each output depends on its stage's inputs, config and seed, as a real one does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from flows.load import load_round
from flows.plan import Step, plan_round
from flows.specs import STAGES
from flows.stages.spent import spent_on_votes
from flows.workspace import Round, Workspace
from judges.config import load_judge
from judges.pairs import make_pairs, pairs_from_table
from judges.votes import vote_id
from store.hashing import hash_file, short_id
from store.schemas import PAIRS, PREFERENCES, PROMPTS, ROLLOUTS, VERDICTS, VOTES, Table
from store.stage import Job, Outcome, run_stage
from store.tables import read_table, write_table

SETTINGS = ("sample.max_prompts=2", "sample.responses=3", "judge.pairs_per_prompt=2", "aggregate.method=mean")
WIN_RATE = {"mean": 0.7, "low": 0.6, "high": 0.8, "n": 100}


def begin(root: Path, *settings: str) -> tuple[Workspace, Round]:
    space = Workspace.create(root)
    return space, space.begin_round(load_round("demo", [*SETTINGS, *settings]))


def run_all(space: Workspace, round_: Round, win_rate: dict[str, Any] | None = None) -> dict[str, Outcome]:
    """All steps, the decision and the report, as the flow does it."""
    outcomes = {step.stage: run_fake(step, win_rate or WIN_RATE) for step in plan_round(round_)}
    for stage, outcome in outcomes.items():
        event = "reused" if outcome.reused else "finished"
        round_.journal.write("started", stage=stage, attempt=1)
        round_.journal.write(event, stage=stage, attempt=1, seconds=1.0, reasons=outcome.reasons)
    decision = json.loads((round_.stage("promote") / "decision.json").read_text())
    space.record_decision(round_.number, round_.stage("ppo") / "policy", decision)
    (round_.folder / "report.html").write_text("<!doctype html>")
    round_.journal.write("round_finished", seconds=10.0, peak_rss_mb=100.0)
    return outcomes


def finished(root: Path, *settings: str, win_rate: dict[str, Any] | None = None) -> tuple[Workspace, Round]:
    space, round_ = begin(root, *settings)
    run_all(space, round_, win_rate)
    return space, round_


def next_round(space: Workspace, *settings: str, win_rate: dict[str, Any] | None = None) -> Round:
    round_ = space.begin_round(load_round("demo", [*SETTINGS, *settings]))
    run_all(space, round_, win_rate)
    return round_


def run_fake(step: Step, win_rate: dict[str, Any]) -> Outcome:
    if step.stage == "promote":
        function: Callable[[Job[Any]], dict[str, Any]] = STAGES["promote"].load()
    else:
        function = {**_FUNCTIONS, "evaluate": lambda job: _evaluate(job, win_rate)}[step.stage]
    return run_stage(
        step.stage,
        function,
        inputs=step.sources(),
        config=step.config,
        seed=step.seed,
        out=step.out,
        version=step.spec.version,
    )


def _word(job: Job[Any]) -> str:
    """What stands for the result: another one for other inputs, config or seed."""
    return short_id(str(job.config.identity()), job.seed, *(s.identity for v in job.inputs.values() for s in v))


def _model(name: str) -> Callable[[Job[Any]], dict[str, Any]]:
    def run(job: Job[Any]) -> dict[str, Any]:
        folder = job.out / name
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "llama"}')
        (folder / "model.safetensors").write_text(_word(job))
        return {"kl": 1.5, "stopped": None}

    return run


def _rows(table: Table, **columns: list[Any]) -> pa.Table:
    count = len(next(iter(columns.values())))
    blank: dict[pa.DataType, Any] = {pa.string(): "x", pa.int64(): 1, pa.float64(): 0.0, pa.bool_(): False}
    filled = {f.name: [blank[f.type]] * count for f in table.schema if not f.nullable and f.name not in columns}
    return pa.table({**filled, **columns})


def _sample(job: Job[Any]) -> dict[str, Any]:
    prompts = [row for row in read_table(job.path("prompts"), PROMPTS).to_pylist() if row["split"] == "train"]
    rows = [(row, n) for row in prompts[: job.config.max_prompts] for n in range(job.config.responses)]
    table = _rows(
        ROLLOUTS,
        rollout_id=[f"{row['prompt_id']}-{n}" for row, n in rows],
        prompt_id=[row["prompt_id"] for row, _ in rows],
        prompt=[row["prompt"] for row, _ in rows],
        response=[f"Answer {n} {_word(job)}" for _, n in rows],
    )
    write_table(job.out / "rollouts.parquet", ROLLOUTS, table)
    return {}


def _votes(job: Job[Any], pairs: pa.Table) -> pa.Table:
    judges = [load_judge(value) for value in job.values("judge")]
    asked = [(p, j, o) for p in pairs_from_table(pairs) for j in judges for o in ("ab", "ba")]
    return _rows(
        VOTES,
        vote_id=[vote_id(p.pair_id, j.fingerprint, o) for p, j, o in asked],
        pair_id=[p.pair_id for p, _, _ in asked],
        judge=[j.name for _, j, _ in asked],
        fingerprint=[j.fingerprint for _, j, _ in asked],
        order=[o for *_, o in asked],
        status=["scored" if n % 3 else "tie" for n in range(len(asked))],
        tokens_in=[100] * len(asked),
        tokens_out=[2] * len(asked),
        cost=[0.25] * len(asked),
    )


def _judge(job: Job[Any]) -> dict[str, Any]:
    rollouts, prompts = read_table(job.path("rollouts"), ROLLOUTS), read_table(job.path("prompts"), PROMPTS)
    pairs = make_pairs(rollouts, prompts, job.config.pairs, job.config.pairs_per_prompt, job.seed)
    votes = _votes(job, pairs)
    write_table(job.out / "pairs.parquet", PAIRS, pairs)
    write_table(job.out / "votes.parquet", VOTES, votes)
    write_table(job.out / "calibration_votes.parquet", VOTES, votes.slice(0, 0))
    names = sorted(set(votes["judge"].to_pylist()))
    figures = {n: {"attempted": 8, "tokens_in": 800, "tokens_out": 16, "cost": 2.0} for n in names}
    known = read_table(job.out / "votes.parquet", VOTES)
    return {"per_judge": figures, "spent": spent_on_votes(known, known.slice(0, 0))}


def _audit(job: Job[Any]) -> dict[str, Any]:
    for name in ("verdicts", "gold_verdicts"):
        write_table(job.out / f"{name}.parquet", VERDICTS, VERDICTS.schema.empty_table())
    return {}


def _aggregate(job: Job[Any]) -> dict[str, Any]:
    # Of the votes alone, as the real one: another audit that says the same gives the same bytes.
    table = _rows(PREFERENCES, pair_id=[short_id(hash_file(job.path("votes")), job.config.min_confidence)])
    write_table(job.out / "preferences.parquet", PREFERENCES, table)
    return {"preferences": 1, "human": 0}


def _evaluate(job: Job[Any], win_rate: dict[str, Any]) -> dict[str, Any]:
    value = {
        "win_rate": win_rate,
        "by_group": {"animals": {"mean": 0.7, "low": 0.5, "high": 0.9, "n": 50}},
        "expected_reward": {"policy": WIN_RATE, "reference": WIN_RATE},
        "reward_model": None,
        "kl": {"mean": 1.5, "low": 1.0, "high": 2.0, "n": 50},
        "pairs": {"total": 100, "identical": 3, "undecided": 1},
        "confidence": 0.95,
        "word": _word(job),
    }
    (job.out / "evaluation.json").write_text(json.dumps(value))
    write_table(job.out / "votes.parquet", VOTES, VOTES.schema.empty_table())
    return {}


_FUNCTIONS = {
    "sft": _model("model"),
    "sample": _sample,
    "judge": _judge,
    "audit": _audit,
    "aggregate": _aggregate,
    "reward": _model("model"),
    "ppo": _model("policy"),
}
