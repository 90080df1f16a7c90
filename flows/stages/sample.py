"""Sample stage: k responses a prompt from a policy, out/rollouts.parquet."""

from __future__ import annotations

import pyarrow.compute as pc

from flows.stages.tables import read_prompts
from rlhf.config import SampleConfig
from rlhf.devices import choose
from rlhf.models import load_policy
from rlhf.sampling import Prompt, sample_rollouts
from store.stage import Job, Metrics
from store.tables import ROLLOUTS, write_table


def run(job: Job[SampleConfig]) -> Metrics:
    config = job.config
    compute = choose(config.device)
    rows = read_prompts(job.path("prompts"), config.splits, config.max_prompts, job.seed)
    model, codec = load_policy(job.value("policy"), compute)
    table = sample_rollouts(
        model,
        codec,
        [Prompt(row["prompt_id"], row["prompt"]) for row in rows],
        responses=config.responses,
        decoding=config.decoding,
        seed=job.seed,
        policy=job.identity("policy"),
        compute=compute,
        batch_size=config.batch_size,
        progress=job.progress,
    )
    write_table(job.out / "rollouts.parquet", ROLLOUTS, table)
    stopped = pc.sum(pc.equal(table["finish_reason"], "stop")).as_py()
    return {
        "prompts": len(rows),
        "rollouts": table.num_rows,
        "tokens": pc.sum(table["n_tokens"]).as_py(),
        "mean_length": pc.mean(table["n_tokens"]).as_py(),
        "stop_rate": stopped / table.num_rows,
        "distinct_responses": pc.count_distinct(table["response"]).as_py(),
    }
