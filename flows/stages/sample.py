"""Sample stage: k responses a prompt from a policy, out/rollouts.parquet."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from flows.shards.sampling import sample_in_shards
from flows.stages.tables import read_prompts
from rlhf.config import SampleConfig
from rlhf.devices import choose
from rlhf.distributed import current
from rlhf.sampling import Prompt, open_policy, sample_rollouts
from store.schemas import ROLLOUTS
from store.stage import Job, Metrics
from store.tables import write_table


def run(job: Job[SampleConfig]) -> Metrics:
    config = job.config
    rows = read_prompts(job.path("prompts"), config.splits, config.max_prompts, job.seed)
    table = _sampled(job, [Prompt(row["prompt_id"], row["prompt"]) for row in rows])
    if current().is_main:
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


def _sampled(job: Job[SampleConfig], prompts: list[Prompt]) -> pa.Table:
    """In one go, or in shards, whose parts lie in .parts until the stage is done."""
    config, name = job.config, job.value("policy")
    if config.shards is not None:
        return sample_in_shards(
            job.inputs["policy"][0],
            prompts,
            config=config,
            shards=config.shards,
            seed=job.seed,
            folder=job.out / ".parts",
            progress=job.progress,
        )
    with open_policy(name, config, choose(config.device)) as (engine, codec):
        return sample_rollouts(
            engine,
            codec,
            prompts,
            responses=config.responses,
            decoding=config.decoding,
            seed=job.seed,
            policy=job.identity("policy"),
            progress=job.progress,
        )
