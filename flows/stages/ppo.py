"""PPO stage: out/policy, out/updates.parquet and out/samples.parquet. Checkpoints and what judges
said lie in out/.checkpoints, .probe and .constraints meanwhile: after a kill neither work nor a call is done twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from flows.stages.constraints import open_terms
from flows.stages.spent import spent
from flows.stages.tables import read_prompts, write_rows
from judges.config import load_judge
from judges.pairs import Pair
from judges.panel import Panel, soft_preferences
from rlhf.config import PPOConfig
from rlhf.devices import choose
from rlhf.engines import open_engine
from rlhf.models import save_model
from rlhf.ppo.actors import load_actors
from rlhf.ppo.guard import Probe, ProbeItem, Wins
from rlhf.ppo.trainer import train
from rlhf.sampling import Prompt
from rlhf.tracking import tracking
from store.errors import RlaifError
from store.hashing import short_id
from store.stage import Job, Metrics


def run(job: Job[PPOConfig]) -> Metrics:
    config = job.config
    torch.manual_seed(job.seed)
    compute = choose(config.device)
    rows = read_prompts(job.path("prompts"), config.splits)
    about = {row["prompt_id"]: row for row in rows}
    main = compute.world.is_main
    with (
        tracking(config, "ppo", job.out, main) as log,
        open_terms(config.terms, job.values("constraint"), about, job.seed, job.out / ".constraints") as judged,
        open_probe(job, main) as probe,
        open_engine(job.value("policy"), config, compute) as engine,
    ):
        actors = load_actors(job.value("policy"), job.value("reward"), config, compute, judged)
        actors.engine = engine
        result = train(
            actors,
            [Prompt(row["prompt_id"], row["prompt"]) for row in rows],
            config,
            job.seed,
            job.out / ".checkpoints",
            probe=probe,
            progress=job.progress,
            log=log,
        )
    if not result.rows:
        raise RlaifError(f"PPO stopped before its first update: {result.stopped}.")
    save_model(job.out / "policy", actors.policy, actors.codec)
    if main:
        write_rows(job.out / "updates.parquet", result.rows)
        write_rows(job.out / "samples.parquet", result.samples)
    asked = [*job.values("judge"), *job.values("constraint")]
    first, kept = result.rows[0], next(row for row in result.rows if row["update"] == result.kept)
    return {
        "updates": result.updates,
        "best_update": result.kept,
        "stopped": result.stopped,
        "warnings": result.warnings,
        "kl": kept["kl"],
        "reward_start": first["score"],
        "reward_end": kept["score"],
        "response_length": kept["response_length"],
        "stop_rate": kept["stop_rate"],
        "seconds_per_update": sum(row.get("seconds") or 0.0 for row in result.rows) / max(1, result.updates),
        "spent": spent(map(load_judge, asked), job.out / ".probe", job.out / ".constraints"),
    }


@contextmanager
def open_probe(job: Job[PPOConfig], main: bool = True) -> Iterator[Probe | None]:
    """The judges of the live probe, loaded once for the whole stage; None without judges or where it is off.

    Updates since the last checkpoint are made again after a kill, with the same responses, whose votes are kept.
    `main`: whether this process is the one that asks them; the others are handed its answers.
    """
    if not job.given("judge") or not job.config.probe.every:
        yield None
        return
    if not main:
        yield lambda items: [None] * len(items)
        return
    groups = {
        row["prompt_id"]: (row["group"], row["split"], row["reference"])
        for row in read_prompts(Path(job.value("prompts")), job.config.splits)
    }
    judges = [load_judge(value) for value in job.values("judge")]
    with Panel(judges, seed=job.seed, shards=job.out / ".probe") as panel:

        def probe(items: Sequence[ProbeItem]) -> Wins:
            ids: list[str | None] = []
            pairs = []
            for item in items:
                if item.policy_response == item.reference_response:
                    ids.append(None)
                    continue
                group, split, reference = groups[item.prompt_id]
                pair = Pair(
                    short_id(item.prompt_id, item.policy_response, item.reference_response),
                    item.prompt_id,
                    item.prompt,
                    "policy",
                    "reference",
                    item.policy_response,
                    item.reference_response,
                    group,
                    split,
                    reference,
                )
                pairs.append(pair)
                ids.append(pair.pair_id)
            preferred = soft_preferences(panel.judge(pairs)) if pairs else {}
            return [0.5 if name is None else preferred.get(name) for name in ids]

        yield probe
