"""Stage aggregate: votes and people's verdicts become preferences and ratings.

Writes preferences.parquet and ratings.parquet. It works on anybody's votes and pairs tables, without a workspace.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from judges.aggregation.bradley_terry import rate_rollouts
from judges.aggregation.gold import anchors
from judges.aggregation.labels import checked_votes
from judges.aggregation.methods import method_of
from judges.aggregation.preferences import make_preferences
from judges.aggregation.verdicts import override, read_people
from judges.config import AggregateConfig
from judges.metrics import account
from store.errors import RlaifError, UsageError
from store.stage import Job, Metrics
from store.tables import GOLD, PAIRS, PREFERENCES, ROLLOUT_RATINGS, VERDICTS, VOTES, read_table, write_table


def run(job: Job[AggregateConfig]) -> Metrics:
    """See the module. metrics: `pairs`, `preferences`, `human`, `dropped` by reason, `mean_confidence`, and more.

    Raises UsageError for input that does not fit, RlaifError where no preference is left.
    """
    config = job.config
    pairs = read_table(job.path("pairs"), PAIRS)
    votes, excluded = checked_votes(read_table(job.path("votes"), VOTES), pairs)
    gold = read_gold(job)
    read = None
    if job.given("verdicts"):
        read = read_people(read_table(job.path("verdicts"), VERDICTS, allow_empty=True), pairs)
    known_votes, answers = anchors(votes, read.p_a if read else {}, *(reversed(gold) if gold else ()))
    method = method_of(config.method).fit(known_votes, answers)
    labels = method.predict(votes)
    people: Metrics = {}
    if read:
        labels, disagreements = override(labels, read)
        people = {"verdicts": read.counts, "people_against_judges": disagreements}
    made = make_preferences(
        pairs,
        labels,
        min_confidence=config.min_confidence,
        keep_ties=config.keep_ties,
        human_weight=config.human_weight,
        validation_fraction=config.validation_fraction,
    )
    if made.table.num_rows == 0:
        reasons = ", ".join(f"{reason} {count}" for reason, count in made.dropped.items() if count)
        raise RlaifError(f"None of the {pairs.num_rows} pairs became a preference ({reasons}): look at the votes.")
    ratings = rate_rollouts(pairs, labels)
    write_table(job.out / "preferences.parquet", PREFERENCES, made.table)
    write_table(job.out / "ratings.parquet", ROLLOUT_RATINGS, ratings.table)
    return {
        "pairs": pairs.num_rows,
        "preferences": made.table.num_rows,
        "human": _count(made.table, "source", "human"),
        "ties": int(pc.sum(pc.equal(made.table["p_chosen"], 0.5)).as_py()),
        "dropped": made.dropped,
        "votes": account(votes),
        "votes_excluded": excluded,
        "pairs_in_one_order": _in_one_order(votes),
        "gold_pairs": answers.num_rows,
        "judge_weights": _by_name(votes, getattr(method, "weights", {})),
        "mean_confidence": pc.mean(made.table["p_chosen"]).as_py(),
        "mean_agreement": pc.mean(made.table["agreement"]).as_py(),
        "splits": {split: _count(made.table, "split", split) for split in ("train", "test")},
        "rated_rollouts": ratings.table.num_rows,
        "prompts_not_strongly_connected": ratings.not_strongly_connected,
        **people,
    }


def read_gold(job: Job[AggregateConfig]) -> tuple[pa.Table, pa.Table] | None:
    """The judges' votes on pairs with known winners, and those pairs; None where they are not given.

    Raises UsageError where only one of the two is given, or a winner is not a, b or tie.
    """
    if not job.given("gold") and not job.given("gold_votes"):
        return None
    gold = read_table(job.path("gold"), GOLD)
    odd = pc.filter(gold["winner"], pc.invert(pc.is_in(gold["winner"], pa.array(["a", "b", "tie"]))))
    if len(odd):
        raise UsageError(f"{job.path('gold')} has the winner {odd[0].as_py()!r}: it must be a, b or tie.")
    votes, _ = checked_votes(read_table(job.path("gold_votes"), VOTES), gold)
    return votes, gold


def _by_name(votes: pa.Table, weights: dict[str, float]) -> dict[str, float]:
    names = dict(zip(votes["fingerprint"].to_pylist(), votes["judge"].to_pylist(), strict=True))
    return {names[fingerprint]: weight for fingerprint, weight in weights.items() if fingerprint in names}


def _in_one_order(votes: pa.Table) -> int:
    """Pairs that some judge saw in one order only: its slot preference is not averaged out of them."""
    orders = votes.group_by(["pair_id", "fingerprint"]).aggregate([([], "count_all")])
    return len(pc.unique(orders.filter(pc.less(orders["count_all"], 2))["pair_id"]))


def _count(table: pa.Table, column: str, value: str) -> int:
    return int(pc.sum(pc.equal(table[column], value)).as_py() or 0)
