"""Evaluate stage: policy against reference on held-out prompts.

Sample k of the policy meets sample k of the reference. Identical responses are not judged and count as one half; a pair
that no judge could decide is left out and counted. Files: responses.parquet, votes.parquet, evaluation.json.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from flows.stages.spent import spent
from flows.stages.tables import read_prompts
from judges.config import load_judge
from judges.metrics import account, spending, split_by_judge
from judges.pairs import Pair
from judges.panel import judge_pairs, soft_preferences
from judges.scoring import Item, score_responses
from rlhf.config import EvaluateConfig
from rlhf.devices import Compute, choose
from rlhf.evaluation import by, clustered_mean, length_controlled_win_rate
from rlhf.forward import logprobs_of
from rlhf.generation import Generated, row_seed
from rlhf.memory import Budget
from rlhf.models import Model, load_policy
from rlhf.reward_model import load_reward_model
from rlhf.sampling import respond
from rlhf.sequences import Sample
from rlhf.tokens import Codec, same_vocabulary
from store.files import write_json
from store.hashing import short_id
from store.schemas import RESPONSES, VOTES
from store.stage import Job, Metrics
from store.tables import write_table

TOKENS = 8192
"""Tokens of one forward pass that only scores."""
UNIT = (0.0, 1.0)


@dataclass
class Side:
    """The responses of one of the two models, prompt by prompt, sample by sample."""

    name: str
    rows: list[dict[str, Any]]
    generated: list[Generated]


def run(job: Job[EvaluateConfig]) -> Metrics:
    config = job.config
    compute = choose(config.device)
    prompts = read_prompts(job.path("prompts"), config.splits, config.max_prompts, job.seed)
    policy, policy_codec = load_policy(job.value("policy"), compute)
    reference, reference_codec = load_policy(job.value("reference"), compute)
    ours = sample_side(job, "policy", policy, policy_codec, prompts, compute)
    theirs = sample_side(job, "reference", reference, reference_codec, prompts, compute)
    same = same_vocabulary(policy_codec, reference_codec)
    kls = kl_per_response(ours, reference, policy_codec, compute) if same else None
    del policy, reference
    add_rewards(job, [*ours.rows, *theirs.rows], prompts, compute)
    votes, wins = judge_sides(job, ours, theirs, prompts)
    for mine, other, win in zip(ours.rows, theirs.rows, wins, strict=True):
        mine["win_probability"], other["win_probability"] = win, None if win is None else 1 - win
    evaluation = summarise(ours, theirs, kls, wins, config.confidence) | {"votes": account(votes)}
    table = pa.Table.from_pylist([*ours.rows, *theirs.rows], schema=RESPONSES.schema)
    write_table(job.out / "responses.parquet", RESPONSES, table)
    write_table(job.out / "votes.parquet", VOTES, votes)
    write_json(job.out / "evaluation.json", evaluation)
    per_judge = {judge: account(own) | spending(own) for judge, own in split_by_judge(votes).items()}
    told = {name: value for name, value in evaluation.items() if name != "votes"}
    return told | {"per_judge": per_judge, "spent": spent(map(load_judge, job.values("judge")), job.out / ".votes")}


def sample_side(
    job: Job[EvaluateConfig],
    name: str,
    model: Model,
    codec: Codec,
    prompts: list[dict[str, Any]],
    compute: Compute,
) -> Side:
    """K responses a prompt. The two sides draw from different streams, so a policy compared with itself is no tie."""
    config = job.config
    jobs = [(row, sample) for row in prompts for sample in range(config.responses)]
    generated = respond(
        model,
        codec,
        [row["prompt"] for row, _ in jobs],
        [row_seed(job.seed, name, row["prompt_id"], sample) for row, sample in jobs],
        config.decoding,
        compute,
        Budget(config.batch_size, "responses"),
        job.progress,
        f"sample the {name}",
    )
    rows = []
    for (row, sample), result in zip(jobs, generated, strict=True):
        response = codec.text(result.ids)
        rows.append(
            {name: row[name] for name in ("prompt_id", "prompt", "group", "split")}
            | {
                "rollout_id": short_id(row["prompt_id"], name, job.identity(name), job.seed, sample, response),
                "response": response,
                "policy": name,
                "sample": sample,
                "probability": probability(result.logprob),
                "n_tokens": len(result.ids),
                "reward": None,
                "oracle": None,
                "oracle_reasons": None,
            }
        )
    return Side(name, rows, generated)


def probability(logprob: float) -> float:
    """p(y|x); a long response's may be too small for a float and is then 0."""
    return min(1.0, math.exp(logprob))


def kl_per_response(ours: Side, reference: Model, codec: Codec, compute: Compute) -> list[float]:
    """log p(y|x) of the policy minus that of the reference, in nats, for the policy's own responses.

    The reference reads the policy's token ids, so both must have one tokenizer, as models of one base have.
    """
    samples = [
        Sample(codec.prompt_ids(row["prompt"]), result.ids)
        for row, result in zip(ours.rows, ours.generated, strict=True)
    ]
    logprobs = logprobs_of(reference, samples, compute, Budget(TOKENS))
    return [result.logprob - float(row.double().sum()) for result, row in zip(ours.generated, logprobs, strict=True)]


def add_rewards(
    job: Job[EvaluateConfig], rows: list[dict[str, Any]], prompts: list[dict[str, Any]], compute: Compute
) -> None:
    """Fill in the reward model's and the oracle's scores where they are given."""
    if job.given("reward"):
        reward_model = load_reward_model(job.value("reward"), compute)
        exchanges = [(row["prompt"], row["response"]) for row in rows]
        for row, reward in zip(rows, reward_model.score(exchanges, compute, Budget(TOKENS)).tolist(), strict=True):
            row["reward"] = reward
    if job.given("oracle"):
        references = {row["prompt_id"]: row["reference"] for row in prompts}
        items = [Item(row["prompt"], row["response"], references[row["prompt_id"]], row["group"]) for row in rows]
        for row, score in zip(rows, score_responses(load_judge(job.value("oracle")), items), strict=True):
            row["oracle"] = score.value
            row["oracle_reasons"] = "; ".join(f"{d.rule} -{d.amount:g}: {d.trigger}" for d in score.deductions)


def judge_sides(
    job: Job[EvaluateConfig], ours: Side, theirs: Side, prompts: list[dict[str, Any]]
) -> tuple[pa.Table, list[float | None]]:
    """The votes, and for each pair the panel's probability that the policy's response is the better one."""
    references = {row["prompt_id"]: row["reference"] for row in prompts}
    pairs: list[Pair] = []
    names: list[str | None] = []
    for mine, other in zip(ours.rows, theirs.rows, strict=True):
        if mine["response"] == other["response"]:
            names.append(None)
            continue
        pair = Pair(
            short_id(mine["rollout_id"], other["rollout_id"]),
            mine["prompt_id"],
            mine["prompt"],
            mine["rollout_id"],
            other["rollout_id"],
            mine["response"],
            other["response"],
            mine["group"],
            mine["split"],
            references[mine["prompt_id"]],
        )
        pairs.append(pair)
        names.append(pair.pair_id)
    judges = [load_judge(value) for value in job.values("judge")]
    votes = judge_pairs(judges, pairs, seed=job.seed, progress=job.progress, shards=job.out / ".votes")
    preferred = soft_preferences(votes)
    return votes, [0.5 if name is None else preferred.get(name) for name in names]


def summarise(
    ours: Side, theirs: Side, kls: list[float] | None, wins: list[float | None], confidence: float
) -> dict[str, Any]:
    """The figures of evaluation.json, votes apart."""
    judged = [
        (row, other, win) for row, other, win in zip(ours.rows, theirs.rows, wins, strict=True) if win is not None
    ]
    values = [win for _, _, win in judged]
    clusters = [row["prompt_id"] for row, _, _ in judged]
    identical = sum(row["response"] == other["response"] for row, other, _ in judged)
    lengths = [float(row["n_tokens"] - other["n_tokens"]) for row, other, _ in judged]
    all_prompts = [row["prompt_id"] for row in ours.rows]
    return {
        "win_rate": clustered_mean(values, clusters, confidence, UNIT),
        "by_group": by([row["group"] for row, _, _ in judged], values, clusters, confidence, UNIT),
        "by_split": by([row["split"] for row, _, _ in judged], values, clusters, confidence, UNIT),
        "length_controlled_win_rate": length_controlled_win_rate(values, lengths),
        "expected_reward": of_both(ours, theirs, "oracle", confidence, UNIT),
        "reward_model": of_both(ours, theirs, "reward", confidence),
        "kl": None if kls is None else clustered_mean(kls, all_prompts, confidence),
        "length": of_both(ours, theirs, "n_tokens", confidence),
        "pairs": {"total": len(wins), "identical": identical, "undecided": len(wins) - len(judged)},
        "confidence": confidence,
    }


def of_both(
    ours: Side, theirs: Side, column: str, confidence: float, bounds: tuple[float, float] | None = None
) -> dict[str, Any] | None:
    """The mean of a column for both sides, over all prompts and by split; None where it was not measured."""
    if any(row[column] is None for side in (ours, theirs) for row in side.rows):
        return None
    found: dict[str, Any] = {}
    for side in (ours, theirs):
        values = [float(row[column]) for row in side.rows]
        clusters = [row["prompt_id"] for row in side.rows]
        found[side.name] = clustered_mean(values, clusters, confidence, bounds)
        splits = by([row["split"] for row in side.rows], values, clusters, confidence, bounds)
        found[side.name] |= {"by_split": splits}
    return found
