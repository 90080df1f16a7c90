"""Stage judge: rollouts become pairs, and every judge votes on every pair in both orders.

Writes pairs.parquet and votes.parquet; calibration_votes.parquet where pairs with gold winners are given; and
member_votes.parquet, all votes of cascades' members on either, where a judge is a cascade. A pointwise judge rates
every rollout once, and its votes follow from that: its ratings of the rollouts are in ratings.parquet, those of the
calibration pairs' responses in calibration_ratings.parquet. With `canaries`, attacks are planted into pairs of the
round: canaries.json says how often they won each judge over, attacks.parquet in which pairs, for the audit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flows.shards.judging import MEMBERS_PART, VOTES_PART, judge_in_shards
from flows.shards.merge import merged, open_parts
from flows.stages.spent import Spent, joined, spent, spent_on_votes
from judges.canaries import attack_table, plan, read_corpus
from judges.cascade import savings, total_cost
from judges.check import canaries_of, identity
from judges.config import Judge, JudgeStageConfig, load_judge
from judges.metrics import (
    account,
    agreement,
    judge_accuracy,
    judge_report,
    origins_of,
    own_names,
    self_preference,
)
from judges.pairs import Pair, make_pairs, pairs_from_table, pairs_to_table
from judges.panel import Judged, Limits, Panel, together
from judges.quality import fit_flaw_weights
from judges.ratings import Rollout, is_pointwise, rate_rollouts, rating_id, rating_report, rollouts_in, rollouts_of
from judges.swiss import play
from store.errors import UsageError
from store.files import write_json
from store.schemas import ATTACKS, GOLD, PAIRS, PROMPTS, RATINGS, ROLLOUTS, VOTES
from store.sharding import ShardsConfig
from store.stage import Job, Metrics
from store.tables import read_table, write_table


def run(job: Job[JudgeStageConfig]) -> Metrics:
    """See the module. metrics: `pairs`, `votes` (accounting), `per_judge`, `self_preference`, `judge_accuracy`,
    `agreement`, `cost` (of all votes and ratings, those on calibration pairs too, each call once), `spent` (see
    `flows.stages.spent`: attacks too, and calls that were repeated); with pointwise
    judges `ratings` (accounting) and `ratings_per_judge`; with calibration pairs too, `flaw_weights` that fit them, for
    judges of flaws; `canaries` where judges were attacked.

    Raises UsageError for input that does not fit, RlaifError where a judge passes its limits.
    """
    judges = [load_judge(value) for value in job.values("judge")]
    rollouts = read_table(job.path("rollouts"), ROLLOUTS)
    prompts = read_table(job.path("prompts"), PROMPTS)
    gold = read_table(job.path("calibration"), GOLD) if job.given("calibration") else None
    pairs, judged = _judged(job, judges, rollouts, prompts, gold)
    votes, member_votes = judged.votes, judged.member_votes
    tags = {"rlaif.judges": json.dumps({judge.name: judge.fingerprint for judge in judges})}
    own = _on(votes, pairs)
    write_table(job.out / "pairs.parquet", PAIRS, pairs)
    write_table(job.out / "votes.parquet", VOTES, own, tags)
    if any(judge.members for judge in judges):
        write_table(job.out / "member_votes.parquet", VOTES, member_votes)
    ratings = _ratings(job, judges, judged.ratings, rollouts_of(rollouts, prompts), gold, tags)
    canaries, their_cost = _canaries(job, judges, own, judged.ratings, pairs)
    return {
        "pairs": pairs.num_rows,
        "prompts_without_pairs": len(pc.unique(rollouts["prompt_id"])) - len(pc.unique(pairs["prompt_id"])),
        "votes": account(own),
        "per_judge": judge_report(own, pairs, savings(judges, own, member_votes, judged.ratings)),
        "self_preference": self_preference(
            own, pairs, {one.fingerprint: own_names(one) for one in judges}, origins_of(rollouts)
        ),
        "agreement": agreement(own),
        "cost": total_cost(votes, member_votes, judged.ratings) + their_cost,
        "spent": joined(_spent(job, judges, votes, member_votes), spent(judges, job.out / ".canaries")),
        **ratings,
        **canaries,
        **_calibration(job, votes, gold, tags),
    }


def _judged(
    job: Job[JudgeStageConfig],
    judges: Sequence[Judge],
    rollouts: pa.Table,
    prompts: pa.Table,
    gold: pa.Table | None,
) -> tuple[pa.Table, Judged]:
    """PAIRS of the rollouts, and the votes on them and on the gold pairs."""
    config = job.config
    how: dict[str, Any] = {
        "seed": job.seed,
        "limits": Limits(config.max_error_rate, config.max_parse_failure_rate, config.rate_after),
        "shards": job.out / ".shards",
    }
    known = pairs_from_table(gold) if gold is not None else []

    def rated() -> pa.Table:
        return rate_rollouts(
            judges, [*rollouts_in(known), *rollouts_of(rollouts, prompts)], progress=job.progress, **how
        )

    if config.shards is not None:
        return _sharded(job, config.shards, judges, rollouts, prompts, known, how["limits"])
    if config.pairs != "swiss":
        pairs = _some(job, make_pairs(rollouts, prompts, config.pairs, config.pairs_per_prompt, job.seed))
        panel = Panel(judges, keep_loaded=False, ratings=rated(), **how)
        # Gold first, and all in one go: judges are loaded once, one after the other, and one that does not work shows
        # on the known pairs.
        return pairs, panel.ask(_joined(known, pairs_from_table(pairs)), job.progress)
    panel = Panel(judges, keep_loaded=True, ratings=rated(), **how)
    parts: list[Judged] = []

    def ask(some: list[Pair]) -> pa.Table:
        parts.append(panel.ask(_joined(known, some)[len(known) :], job.progress))
        return together(parts).votes

    with panel:
        parts.append(panel.ask(known, job.progress))
        rounds, number = job.out / ".rounds", config.pairs_per_prompt
        pairs = _some(job, play(rollouts, prompts, ask, per_prompt=number, seed=job.seed, folder=rounds))
    return pairs, together(parts)


def _sharded(
    job: Job[JudgeStageConfig],
    shards: ShardsConfig,
    judges: Sequence[Judge],
    rollouts: pa.Table,
    prompts: pa.Table,
    known: list[Pair],
    limits: Limits,
) -> tuple[pa.Table, Judged]:
    """As in one go, with the pairs in the same order; the parts lie in .parts until the stage is done."""
    config = job.config
    if config.pairs == "swiss":
        raise UsageError("judge.pairs is swiss, which looks at votes between its rounds: remove judge.shards.")
    pairs = _some(job, make_pairs(rollouts, prompts, config.pairs, config.pairs_per_prompt, job.seed))
    asked = pairs_to_table(_joined(known, pairs_from_table(pairs))) if known else pairs
    folders = judge_in_shards(
        judges,
        [asked],
        total=asked.num_rows,
        folder=job.out / ".parts",
        seed=job.seed,
        config=shards,
        limits=limits,
        progress=job.progress,
    )
    votes, members = (
        pa.concat_tables([VOTES.schema.empty_table(), *merged(open_parts([one / name for one in folders]))])
        for name in (VOTES_PART, MEMBERS_PART)
    )
    return pairs, Judged(votes.combine_chunks(), members.combine_chunks(), RATINGS.schema.empty_table())


def _spent(job: Job[JudgeStageConfig], judges: Sequence[Judge], votes: pa.Table, member_votes: pa.Table) -> Spent:
    sharded = job.config.shards is not None
    return spent_on_votes(votes, member_votes) if sharded else spent(judges, job.out / ".shards")


def _ratings(
    job: Job[JudgeStageConfig],
    judges: Sequence[Judge],
    ratings: pa.Table,
    rollouts: Sequence[Rollout],
    gold: pa.Table | None,
    tags: dict[str, str],
) -> Metrics:
    """Write what pointwise judges said, where there are any."""
    pointwise = [one for judge in judges for one in judge.asked if is_pointwise(one)]
    if not pointwise:
        return {}
    own = _of(ratings, pointwise, rollouts)
    write_table(job.out / "ratings.parquet", RATINGS, own, tags)
    metrics: Metrics = {"ratings": account(own), "ratings_per_judge": rating_report(own)}
    if gold is None:
        return metrics
    known = _of(ratings, pointwise, list(rollouts_in(pairs_from_table(gold))))
    write_table(job.out / "calibration_ratings.parquet", RATINGS, known, tags)
    metrics["calibration_ratings"] = account(known)
    if asked := [judge for judge in pointwise if judge.settings.mode == "flaws"]:
        metrics["flaw_weights"] = {judge.name: asdict(fit_flaw_weights(judge, known, gold)) for judge in asked}
    return metrics


def _of(ratings: pa.Table, judges: Sequence[Judge], rollouts: Sequence[Rollout]) -> pa.Table:
    ids = {rating_id(rollout, judge.fingerprint) for judge in judges for rollout in rollouts}
    return ratings.filter(pc.is_in(ratings["rating_id"], pa.array(sorted(ids), pa.string())))


def _some(job: Job[JudgeStageConfig], pairs: pa.Table) -> pa.Table:
    if pairs.num_rows == 0:
        raise UsageError(
            f"The rollouts {job.path('rollouts')} have no prompt with two different responses, so nothing to compare: "
            f"sample at least two a prompt, at a higher temperature."
        )
    return pairs


def _calibration(job: Job[JudgeStageConfig], votes: pa.Table, gold: pa.Table | None, tags: dict[str, str]) -> Metrics:
    if gold is None:
        return {"judge_accuracy": {}}
    own = _on(votes, gold)
    write_table(job.out / "calibration_votes.parquet", VOTES, own, tags)
    return {"judge_accuracy": judge_accuracy(own, gold), "calibration_votes": account(own)}


def _canaries(
    job: Job[JudgeStageConfig], judges: Sequence[Judge], votes: pa.Table, ratings: pa.Table, pairs: pa.Table
) -> tuple[Metrics, float]:
    """Attack every judge in pairs of the round that it decided, and write what came of it; gives the metrics and the
    cost. `ratings`: those that there are, so that of a pair only the attacked response is rated."""
    config = job.config
    if not config.canaries:
        return {}, 0.0
    corpus, reports, tables, answers = read_corpus(), [], [], []
    limits = Limits(config.max_error_rate, config.max_parse_failure_rate, config.rate_after)
    how: dict[str, Any] = {"seed": job.seed, "limits": limits, "shards": job.out / ".canaries", "ratings": ratings}
    round_pairs = pairs_from_table(pairs)
    for judge in judges:
        own = votes.filter(pc.equal(votes["fingerprint"], judge.fingerprint))
        attacks = plan(judge, own, round_pairs, corpus, per_canary=config.canaries, seed=job.seed)
        with Panel([judge], **how) as panel:
            answers.append(panel.ask([attack.pair for attack in attacks], job.progress))
        said = answers[-1].votes
        reports.append({"judge": identity(judge), "canaries": canaries_of(corpus, attacks, said)})
        tables.append(attack_table(judge, attacks, said))
    write_json(job.out / "canaries.json", reports)
    write_table(job.out / "attacks.parquet", ATTACKS, pa.concat_tables(tables))
    asked = together(answers)
    new = asked.ratings.filter(pc.invert(pc.is_in(asked.ratings["rating_id"], ratings["rating_id"].combine_chunks())))
    cost = total_cost(asked.votes, asked.member_votes, new)
    return {"canaries": {report["judge"]["name"]: report["canaries"]["all"] for report in reports}}, cost


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
