"""Sample stage: k responses a prompt from a policy, out/rollouts.parquet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.compute as pc

from flows.stages.tables import read_prompts
from rlhf.config import SampleConfig
from rlhf.devices import choose
from rlhf.distributed import current
from rlhf.engines import open_engine
from rlhf.engines.base import RolloutEngine
from rlhf.engines.transformers import TransformersEngine
from rlhf.memory import Budget
from rlhf.models import load_policy
from rlhf.sampling import Prompt, sample_rollouts
from rlhf.tokens import Codec, codec_of
from store.stage import Job, Metrics
from store.tables import ROLLOUTS, write_table


def run(job: Job[SampleConfig]) -> Metrics:
    config = job.config
    rows = read_prompts(job.path("prompts"), config.splits, config.max_prompts, job.seed)
    with open_policy(job) as (engine, codec):
        table = sample_rollouts(
            engine,
            codec,
            [Prompt(row["prompt_id"], row["prompt"]) for row in rows],
            responses=config.responses,
            decoding=config.decoding,
            seed=job.seed,
            policy=job.identity("policy"),
            progress=job.progress,
        )
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


@contextmanager
def open_policy(job: Job[SampleConfig]) -> Iterator[tuple[RolloutEngine, Codec]]:
    """The policy as an engine, with its codec. vLLM loads it by itself: it is not loaded twice."""
    config, name, compute = job.config, job.value("policy"), choose(job.config.device)
    if config.engine == "transformers":
        model, codec = load_policy(name, compute)
        yield TransformersEngine(model, compute, Budget(config.batch_size, "responses")), codec
        return
    codec = codec_of(name)
    with open_engine(name, config, compute, logprobs="plain") as engine:
        if engine is None:
            raise ValueError(f"{config.engine} is an engine of its own")
        yield engine, codec
