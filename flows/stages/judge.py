"""Stage judge: rollouts become pairs, and every judge votes on every pair in both orders.

Writes pairs.parquet and votes.parquet, and calibration_votes.parquet where pairs with gold winners are given.
"""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.compute as pc

from judges.config import JudgeStageConfig, load_judge
from judges.metrics import account, agreement, judge_accuracy, judge_report
from judges.pairs import Pair, make_pairs, pairs_from_table
from judges.panel import Limits, judge_pairs
from store.errors import UsageError
from store.stage import Job, Metrics
from store.tables import GOLD, PAIRS, PROMPTS, ROLLOUTS, VOTES, read_table, write_table


def run(job: Job[JudgeStageConfig]) -> Metrics:
    """See the module. metrics: `pairs`, `votes` (accounting), `per_judge`, `judge_accuracy`, `agreement`, `cost`.

    Raises UsageError for input that does not fit, RlaifError where a judge passes its limits.
    """
    config = job.config
    judges = [load_judge(value) for value in job.values("judge")]
    rollouts = read_table(job.path("rollouts"), ROLLOUTS)
    prompts = read_table(job.path("prompts"), PROMPTS)
    pairs = make_pairs(rollouts, prompts, config.pairs, config.pairs_per_prompt, job.seed)
    if pairs.num_rows == 0:
        raise UsageError(
            f"The rollouts {job.path('rollouts')} have no prompt with two different responses, so nothing to compare: "
            f"sample at least two a prompt, at a higher temperature."
        )
    write_table(job.out / "pairs.parquet", PAIRS, pairs)
    gold = read_table(job.path("calibration"), GOLD) if job.given("calibration") else None
    # Gold first, and all in one go: judges are loaded once, and a judge that does not work shows on the known pairs.
    known = pairs_from_table(gold) if gold is not None else []
    votes = judge_pairs(
        judges,
        _joined(known, pairs_from_table(pairs)),
        seed=job.seed,
        progress=job.progress,
        shards=job.out / ".shards",
        limits=Limits(config.max_error_rate, config.max_parse_failure_rate, config.rate_after),
    )
    tags = {"rlaif.judges": json.dumps({judge.name: judge.fingerprint for judge in judges})}
    own = _on(votes, pairs)
    write_table(job.out / "votes.parquet", VOTES, own, tags)
    return {
        "pairs": pairs.num_rows,
        "prompts_without_pairs": len(pc.unique(rollouts["prompt_id"])) - len(pc.unique(pairs["prompt_id"])),
        "votes": account(own),
        "per_judge": judge_report(own, pairs),
        "agreement": agreement(own),
        "cost": float(pc.sum(votes["cost"]).as_py() or 0.0),
        **_calibration(job, votes, gold, tags),
    }


def _calibration(job: Job[JudgeStageConfig], votes: pa.Table, gold: pa.Table | None, tags: dict[str, str]) -> Metrics:
    if gold is None:
        return {"judge_accuracy": {}}
    own = _on(votes, gold)
    write_table(job.out / "calibration_votes.parquet", VOTES, own, tags)
    return {"judge_accuracy": judge_accuracy(own, gold), "calibration_votes": account(own)}


def _joined(known: list[Pair], pairs: list[Pair]) -> list[Pair]:
    """Both lists, a pair in both once. Raises UsageError where one id means two pairs."""
    by_id = {pair.pair_id: pair for pair in known}
    for pair in pairs:
        other = by_id.setdefault(pair.pair_id, pair)
        if (other.prompt, other.response_a, other.response_b) != (pair.prompt, pair.response_a, pair.response_b):
            raise UsageError(
                f"The calibration pair {pair.pair_id} has the id of another pair: give it an id of its own."
            )
    return list(by_id.values())


def _on(votes: pa.Table, pairs: pa.Table) -> pa.Table:
    return votes.filter(pc.is_in(votes["pair_id"], value_set=pairs["pair_id"].combine_chunks()))
