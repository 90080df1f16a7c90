"""Stage anchors: judges answer the frozen anchor pairs, each in both orders; see `judges.drift`.

Writes votes.parquet. A round has this stage only where the votes of its judge stage cannot stand for an asking.
"""

from __future__ import annotations

from flows.config import AnchorsConfig
from flows.stages.spent import spent
from judges.config import load_judge
from judges.metrics import account, split_by_judge
from judges.pairs import pairs_from_table
from judges.panel import Limits, judge_pairs
from store.schemas import GOLD, VOTES
from store.stage import Job, Metrics
from store.tables import read_table, write_table


def run(job: Job[AnchorsConfig]) -> Metrics:
    """See the module. metrics: `anchors`, `per_judge` the accounting of its votes, and `spent`.

    Raises RlaifError where a judge passes its limits, TransientError where that may pass.
    """
    config = job.config
    anchors = read_table(job.path("anchors"), GOLD)
    judges = [load_judge(value) for value in job.values("judge")]
    votes = judge_pairs(
        judges,
        pairs_from_table(anchors),
        seed=job.seed,
        progress=job.progress,
        shards=job.out / ".shards",
        limits=Limits(config.max_error_rate, config.max_parse_failure_rate, config.rate_after),
    )
    write_table(job.out / "votes.parquet", VOTES, votes)
    per_judge = {name: account(own) for name, own in split_by_judge(votes).items()}
    return {"anchors": anchors.num_rows, "per_judge": per_judge, "spent": spent(judges, job.out / ".shards")}
